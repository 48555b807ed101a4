//! `task wait` and `task result`: wait for tasks to end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use windlass::view::Record;
use windlass::{Backend, Failure, State, TaskId, format_duration, parse_duration};

use super::tone_of;
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::json::{self, Secrets};
use crate::output::Out;

/// How long to wait.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct WaitFor {
    /// Give up waiting after this long; the task goes on
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = read_duration)]
    pub(crate) timeout: Duration,
}

/// Reads a duration, for clap.
pub(crate) fn read_duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).map_err(|error| error.to_string())
}

#[derive(Debug, Clone, clap::Args)]
pub(super) struct Args {
    /// Ids of tasks
    #[arg(value_name = "ID", required = true)]
    ids: Vec<TaskId>,
    #[command(flatten)]
    wait: WaitFor,
}

#[derive(Debug, Clone, clap::Args)]
pub(super) struct ResultArgs {
    /// The id of the task
    #[arg(value_name = "ID")]
    id: TaskId,
    /// Wait for a task that has not ended
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    limit: WaitFor,
}

pub(super) async fn run(context: &Context, args: Args) -> Outcome {
    let backend = context.store().await?;
    refuse_unknown(&backend, &args.ids).await?;
    let mut ids = args.ids.clone();
    ids.sort();
    ids.dedup();
    let records = context.client(&backend).watch_all(&ids, args.wait.timeout).await?;
    let tasks: Vec<_> = records.iter().map(|record| json::task(record, Secrets::Mask)).collect();
    context.out.object("", json!({"tasks": tasks, "missing": ids.len() - records.len()}), || {
        let lines = records.iter().map(|record| {
            format!("{}  {}\n", record.envelope.id, context.out.tone(record.state.as_str(), tone_of(record.state)))
        });
        lines.collect()
    })?;
    if records.len() < ids.len() {
        let missing = ids.len() - records.len();
        return Err(Problem::new(
            Exit::TimedOut,
            format_args!("{missing} of {} have not ended within {}", ids.len(), format_duration(args.wait.timeout)),
            "they go on: wait longer with `--timeout`, or see `windlass node ls` for who works",
        ));
    }
    Ok(if records.iter().all(|record| record.state == State::Succeeded) { Exit::Ok } else { Exit::Failed })
}

/// A task that does not exist would be waited for until the timeout.
async fn refuse_unknown(backend: &Arc<dyn Backend>, ids: &[TaskId]) -> Result<(), Problem> {
    for step in ids.chunks(windlass::backend::BATCH_MAX) {
        let records = backend.find(step).await?;
        if let Some((id, _)) = step.iter().zip(&records).find(|(_, record)| record.is_none()) {
            return Err(Problem::new(
                Exit::NotFound,
                format_args!("task `{id}` is not known (any more)"),
                "results are kept for an hour unless `retention.finished` says otherwise",
            ));
        }
    }
    Ok(())
}

pub(super) async fn result(context: &Context, args: ResultArgs) -> Outcome {
    let backend = context.store().await?;
    refuse_unknown(&backend, std::slice::from_ref(&args.id)).await?;
    let limit = if args.wait { args.limit.timeout } else { Duration::ZERO };
    let record = context.client(&backend).watch_all(std::slice::from_ref(&args.id), limit).await?.pop();
    match record {
        Some(record) => ended(&context.out, &record),
        None if args.wait => Err(Problem::new(
            Exit::TimedOut,
            format_args!("the task has not ended within {}", format_duration(limit)),
            "it goes on: wait longer with `--timeout`",
        )),
        None => Err(Problem::new(Exit::Conflict, "the task has not ended yet", "add `--wait` to wait for it")),
    }
}

/// Prints the result of a task that has ended well; a problem for every other end.
pub(crate) fn ended(out: &Out, record: &Record) -> Outcome {
    let id = &record.envelope.id;
    match record.state {
        State::Succeeded => {
            if let Some(reason) = &record.skipped {
                out.say(format_args!("there was nothing to do: {reason}"));
            }
            let result = record.result.as_ref().map(|json| json::value_of(json, Secrets::Show));
            if result.is_none() && record.skipped.is_none() {
                out.say("it succeeded; its result is not kept");
            }
            let json = json!({"id": id, "state": record.state, "result": result, "skipped": record.skipped});
            out.object(&id.to_string(), json, || {
                let pretty = result.as_ref().map(|value| serde_json::to_string_pretty(value).unwrap_or_default());
                pretty.map(|text| text + "\n").unwrap_or_default()
            })
        }
        State::Dead => {
            if out.is_json() {
                let json = json!({"id": id, "state": record.state, "reason": record.reason, "failure": record.failure});
                out.object("", json, String::new)?;
            }
            let failure = record.failure.clone().unwrap_or_else(|| Failure::new("unknown", "no failure is recorded"));
            Err(Problem::new(
                Exit::Failed,
                format_args!("the task gave up: {}: {}", failure.class, crate::output::one_line(&failure.message)),
                format_args!(
                    "see its attempts with `windlass task show {id}`, replay it with `windlass task retry {id}`"
                ),
            ))
        }
        state @ (State::Cancelled
        | State::Expired
        | State::Scheduled
        | State::Ready
        | State::Running
        | State::Parked) => Err(Problem::new(
            Exit::Failed,
            format_args!("the task is {state}: it has no result"),
            format_args!("`windlass task retry {id}` runs it again"),
        )),
    }
}
