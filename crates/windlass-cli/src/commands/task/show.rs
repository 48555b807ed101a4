//! `task show`: everything that is known of a task.

use serde_json::Value;
use windlass::envelope::Source;
use windlass::view::Record;
use windlass::{Json, State, TaskId};

use super::tone_of;
use crate::context::Context;
use crate::exit::{Exit, Outcome};
use crate::json::{self, Secrets};
use crate::output::{Cell, Column, Listing, Out, Row, Tone, ago};

/// Shows these tasks; `within` are the states that count, all when empty.
pub(crate) async fn show(context: &Context, ids: &[TaskId], secrets: Secrets, within: &[State]) -> Outcome {
    let backend = context.store().await?;
    let mut found = Vec::new();
    for step in ids.chunks(windlass::backend::BATCH_MAX) {
        let records = backend.find(step).await?;
        for (id, record) in step.iter().zip(records) {
            match record.filter(|record| within.is_empty() || within.contains(&record.state)) {
                Some(record) => found.push(record),
                None => context.out.warn(format_args!("{id} is not known (any more)")),
            }
        }
    }
    if let ([record], [_]) = (found.as_slice(), ids) {
        let id = record.envelope.id.to_string();
        return context.out.object(&id, json::task(record, secrets), || describe(&context.out, record, secrets));
    }
    if found.is_empty() {
        return Ok(Exit::NotFound);
    }
    let rows: Vec<Row> = found
        .iter()
        .map(|record| Row {
            id: record.envelope.id.to_string(),
            cells: vec![describe(&context.out, record, secrets).into()],
            json: json::task(record, secrets),
        })
        .collect();
    if context.out.is_json() || context.out.format() == crate::args::Format::Id {
        context.out.listing(&Listing::whole("tasks", &[], "", rows))?;
    } else {
        let texts: Vec<String> = found.iter().map(|record| describe(&context.out, record, secrets)).collect();
        context.out.line(texts.join("\n").trim_end())?;
    }
    Ok(if found.len() == ids.len() { Exit::Ok } else { Exit::Partial })
}

/// A task for people: what is empty is left out.
pub(super) fn describe(out: &Out, record: &Record, secrets: Secrets) -> String {
    let envelope = &record.envelope;
    let json = |json: Option<&Json>| json.map(|json| pretty(&json::value_of(json, secrets))).unwrap_or_default();
    let time = |at: Option<windlass::Timestamp>| {
        at.map(|at| format!("{} ({})", out.exactly(at), ago(at, out.now()))).unwrap_or_default()
    };
    let failure = record.failure.as_ref().map(|failure| format!("{}: {}", failure.class, lines(&failure.message)));
    let source = match &envelope.source {
        Source::Client => String::new(),
        Source::Schedule { id, slot } => format!("schedule {id}, slot {}", out.exactly(*slot)),
        Source::Workflow => "a workflow".to_owned(),
    };
    let headers: Vec<String> = match json::task(record, secrets)["headers"].as_object() {
        Some(headers) => {
            headers.iter().map(|(name, value)| format!("{name}: {}", value.as_str().unwrap_or("?"))).collect()
        }
        None => Vec::new(),
    };
    let text_of = |text: Option<String>| text.unwrap_or_default();
    let remembered = json::Remembered::of(record);
    let mut text = out.fields(&[
        ("id", envelope.id.to_string()),
        ("name", out.tone(envelope.name.as_str(), Tone::Strong)),
        ("state", out.tone(record.state.as_str(), tone_of(record.state))),
        ("reason", text_of(record.reason.map(|reason| reason.to_string()))),
        ("failure", failure.unwrap_or_default()),
        ("skipped", text_of(record.skipped.as_deref().map(lines))),
        ("queue", envelope.queue.to_string()),
        ("priority", envelope.priority.level().to_string()),
        ("attempt", record.attempt.to_string()),
        ("waits for", text_of(record.waits_for.as_ref().map(|signal| format!("the signal {signal}")))),
        ("steps", remembered.steps.iter().map(|step| lines(step)).collect::<Vec<_>>().join("\n")),
        ("signals", remembered.signals.join("\n")),
        ("crashes", if record.crashes > 0 { record.crashes.to_string() } else { String::new() }),
        ("cancelling", if record.cancel_requested { "asked for".to_owned() } else { String::new() }),
        ("enqueued", time(Some(record.enqueued_at))),
        ("due", time(record.due_at)),
        ("expires", time(envelope.expires)),
        ("started", time(record.started_at)),
        ("finished", time(record.finished_at)),
        ("node", text_of(record.node.as_ref().map(ToString::to_string))),
        ("key", text_of(envelope.key.as_ref().map(ToString::to_string))),
        ("unique", text_of(envelope.unique.as_ref().map(|unique| unique.key.to_string()))),
        ("workflow", text_of(envelope.workflow.as_ref().map(ToString::to_string))),
        ("from", source),
        ("headers", headers.join("\n")),
        ("arguments", json(envelope.args.keyword())),
        ("positional", json(envelope.args.positional())),
        ("result", json(record.result.as_ref())),
    ]);
    if !record.history.is_empty() {
        text.push('\n');
        text.push_str(&history(out, record));
    }
    text
}

const HISTORY: &[Column] =
    &[Column::new("ATTEMPT"), Column::new("ENDED"), Column::new("NODE"), Column::new("WHAT WENT WRONG").stretch()];

fn history(out: &Out, record: &Record) -> String {
    let rows = record
        .history
        .iter()
        .map(|attempt| Row {
            id: String::new(),
            cells: vec![
                attempt.number.to_string().into(),
                out.when(attempt.ended_at).into(),
                attempt.node.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string).into(),
                Cell::toned(format!("{}: {}", attempt.failure.class, attempt.failure.message), Tone::Bad),
            ],
            json: Value::Null,
        })
        .collect();
    out.table(&Listing::whole("history", HISTORY, "", rows))
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_else(|_| value.to_string())
}

/// A text of several lines without what would move the cursor.
fn lines(text: &str) -> String {
    text.lines().map(crate::output::one_line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use windlass::view::AttemptRecord;
    use windlass::{Args, Envelope, Failure, QueueName, TaskName, Timestamp};

    fn out() -> Out {
        let cli = crate::args::Cli::parse_from(["windlass", "--color", "never", "--utc", "task", "ls"]);
        Out::of(&cli.global).expect("flags that fit")
    }

    fn record() -> Record {
        let args = Args::parse(r#"{"url": "https://example.org", "token": "hunter2"}"#).unwrap();
        let at = Timestamp::from_secs(1_800_000_000);
        let failure = Failure::new("http_503", "busy\u{1b}[2J");
        Record {
            envelope: Envelope::new(TaskName::known("http.request"), QueueName::known("web"), args),
            state: State::Dead,
            attempt: 2,
            crashes: 0,
            enqueued_at: at,
            due_at: None,
            started_at: Some(at),
            finished_at: Some(at),
            node: None,
            progress: None,
            cancel_requested: false,
            result: None,
            skipped: None,
            reason: Some(windlass::DeadReason::AttemptsUsedUp),
            failure: Some(failure.clone()),
            memo: String::new(),
            waits_for: None,
            history: vec![AttemptRecord { number: 1, node: None, started_at: None, ended_at: at, failure }],
        }
    }

    #[test]
    fn a_task_is_shown_without_secrets_and_control_characters() {
        let text = describe(&out(), &record(), Secrets::Mask);
        for part in ["http.request", "attempts_used_up", "http_503: busy", "https://example.org", "2027-01-15T08:00:00"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("hunter2") && !text.contains('\u{1b}'), "{text}");
        assert!(describe(&out(), &record(), Secrets::Show).contains("hunter2"));
    }

    #[test]
    fn the_json_of_a_task_always_has_every_key() {
        let json = json::task(&record(), Secrets::Mask);
        for key in [
            "id",
            "state",
            "arguments",
            "positional",
            "result",
            "failure",
            "history",
            "due_at",
            "progress",
            "key",
            "waits_for",
            "steps",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        assert_eq!(json["reason"], "attempts_used_up");
        assert_eq!(json["arguments"]["token"], windlass::redact::MASK);
    }
}
