//! What a client of Celery's sends, reads and drops: `call`, `result`, `purge`, `list bindings`, `report`.

use std::time::Duration;

use jiff::tz::TimeZone;
use windlass::bridges::BridgeUrl;
use windlass::bridges::celery::producer::WaitError;
use windlass::bridges::wire::celery::{State, parse_time};
use windlass::{Args, Clock, Due, Envelope, Json, QueueName, SystemClock, TaskId, TaskName, Timestamp, redact};

use super::grammar::{Call, Purge, TaskResult};
use super::place::{self, Place};
use super::{DEFAULT_QUEUE, words};
use crate::context::{Agreed, Context, confirm};
use crate::doors::broker;
use crate::exit::{Exit, Outcome, Problem};
use crate::output::{Cell, Column, Listing, Out, Row, plural};

/// Somebody waits without knowing for what.
const SAY_AFTER: Duration = Duration::from_secs(2);
/// Whoever waits decides how long: a year.
const FOR_EVER: Duration = Duration::from_secs(365 * 86_400);

const BINDINGS: &[Column] =
    &[Column::new("QUEUE").stretch(), Column::new("EXCHANGE").stretch(), Column::new("ROUTING KEY").stretch()];

/// Sends a task and prints its id.
pub(super) async fn call(out: &Out, place: &Place, args: &Call) -> Outcome {
    let envelope = envelope(args, SystemClock.now())?;
    // Without an exchange the routing key is the queue, for kombu as well.
    let exchange = args.exchange.as_deref().unwrap_or_default();
    let routing_key = args.routing_key.as_deref().unwrap_or(envelope.queue.as_str());
    let id = place.producer.enqueue_to(&envelope, exchange, routing_key).await.map_err(place::not_sent)?;
    place.producer.close().await;
    out.line(&id)?;
    Ok(Exit::Ok)
}

/// The task that `celery call` asks for.
fn envelope(args: &Call, now: Timestamp) -> Result<Envelope, Problem> {
    let wrong = |what: &str, next: &str| Problem::usage(what, next);
    let name =
        TaskName::new(&args.name).map_err(|error| Problem::usage(error, "name the task as its worker knows it"))?;
    let json = |text: &Option<String>, option: &str| {
        let parsed = text.as_deref().map(Json::parse).transpose();
        parsed.map_err(|error| Problem::usage(format_args!("{option}: {error}"), "write JSON, in quotes of the shell"))
    };
    let (positional, keyword) = (json(&args.args, "--args")?, json(&args.kwargs, "--kwargs")?);
    let given = Args::new(positional, keyword)
        .map_err(|_| wrong("the arguments have another shape", "write --args '[1, 2]' and --kwargs '{\"name\": 1}'"))?;
    let queue = args.queue.as_deref().or(args.routing_key.as_deref()).unwrap_or(DEFAULT_QUEUE);
    let queue = QueueName::new(queue).map_err(|error| Problem::usage(error, "name another queue with `--queue`"))?;
    let mut envelope = Envelope::new(name, queue, given);
    let time = |part, text: &str| {
        parse_time(part, text, &TimeZone::UTC)
            .map_err(|error| Problem::usage(error, "write a time as in 2030-01-31T12:00:00Z"))
    };
    if let Some(countdown) = args.countdown {
        envelope.due = Due::At(now + countdown);
    }
    if let Some(eta) = &args.eta {
        envelope.due = Due::At(time("eta", eta)?);
    }
    if let Some(expires) = &args.expires {
        envelope.expires = Some(match words::seconds(expires) {
            Ok(after) => now + after,
            Err(_) => time("expires", expires)?,
        });
    }
    Ok(envelope)
}

/// Waits for a task to end, and prints what it has returned.
pub(super) async fn result(out: &Out, place: &Place, args: &TaskResult) -> Outcome {
    let id = TaskId::new(&args.id).map_err(|error| Problem::usage(error, "name it as `celery call` has printed it"))?;
    let id = id.to_string();
    let document = match place.producer.wait(&id, SAY_AFTER).await {
        Err(WaitError::Timeout { .. }) => {
            out.say("the task has not ended, or nobody knows it; waiting (Ctrl-C ends this)");
            place.producer.wait(&id, FOR_EVER).await
        }
        waited => waited,
    };
    let document = document.map_err(place::not_found)?;
    let traceback = document.traceback.clone().unwrap_or_default();
    match (&document.status, args.traceback) {
        (_, true) => out.line(traceback.trim_end())?,
        (State::Success, false) => out.line(document.result.as_str())?,
        (_, false) => {
            let error = document.exception().map(|error| error.to_string()).unwrap_or_default();
            return Err(Problem::new(
                Exit::Failed,
                format_args!(
                    "the task has ended as {}: {}",
                    document.status,
                    redact::text(&crate::output::one_line(&error))
                ),
                "see more with `--traceback`, or with `windlass task show ID`",
            ));
        }
    }
    Ok(Exit::Ok)
}

/// Drops what waits in queues.
pub(super) async fn purge(out: &Out, place: &Place, args: &Purge, own: &[String]) -> Outcome {
    let excluded = words::names(args.exclude_queues.as_deref());
    let named = match &args.queues {
        Some(queues) => words::names(Some(queues)),
        None => own.to_vec(),
    };
    let queues: Vec<String> = named.into_iter().filter(|queue| !excluded.contains(queue)).collect();
    if queues.is_empty() {
        return Err(Problem::usage("no queue is left to purge", "name one with `-Q`"));
    }
    let agreed = if args.force { Agreed::Already } else { Agreed::Ask };
    confirm(&format!("Drop every message of {} at {}?", queues.join(", "), place.shown), agreed)
        .map_err(|problem| if args.force { problem } else { problem.next("add `--force` to do it") })?;
    let dropped = drop_all(place, &queues).await?;
    out.line(format_args!("{} dropped from {}", plural(dropped, "message"), queues.join(", ")))?;
    Ok(Exit::Ok)
}

/// Drops what waits in queues, and answers how much that was.
pub(super) async fn drop_all(place: &Place, queues: &[String]) -> Result<u64, Problem> {
    let queues: Result<Vec<QueueName>, _> = queues.iter().map(QueueName::new).collect();
    let queues = queues.map_err(|error| Problem::usage(error, "name queues with commas between them"))?;
    let dropped = place.producer.purge(&queues).await.map_err(broker::not_done);
    place.producer.close().await;
    dropped
}

/// Lists which queue gets what.
pub(super) async fn bindings(out: &Out, place: &Place) -> Outcome {
    let bindings = place.producer.bindings().await.map_err(broker::not_done)?;
    let rows = bindings.into_iter().map(|one| Row {
        id: one.queue.clone(),
        json: serde_json::json!({"queue": one.queue, "exchange": one.exchange, "routing_key": one.routing_key}),
        cells: [&one.queue, &one.exchange, &one.routing_key]
            .map(|text| Cell::from(crate::output::one_line(text)))
            .into(),
    });
    out.listing(&Listing::whole("bindings", BINDINGS, "nothing is bound there", rows.collect()))
}

/// Prints what this program is and what it is connected to.
pub(super) fn report(context: &Context, bridge: &BridgeUrl) -> Outcome {
    let tasks: Vec<String> = context.program.definitions().map(|definition| definition.name.to_string()).collect();
    context.out.line(format_args!(
        "software -> windlass:{} (celery's protocol 2)\nplatform -> system:{} arch:{}\napplication -> {}\nbroker -> {bridge}\n\
         results -> {}\ntasks -> {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH,
        context.program.name(),
        redact::url(bridge.get("results").unwrap_or("with the broker")),
        tasks.join(", "),
    ))?;
    Ok(Exit::Ok)
}
