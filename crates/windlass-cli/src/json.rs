//! The JSON that commands print: one function for each kind of object, versioned by `output::SCHEMA_VERSION`.
//!
//! Every key is always there; what is not known is null. Arguments, results and errors are redacted.

use serde_json::{Value, json};
use windlass::breaker::Standing;
use windlass::limit::{GateView, Limit, Rule};
use windlass::view::{Node, QueueCounts, Record, ScheduleRecord};
use windlass::{Json, QueueName, format_duration, memo, redact};

/// Whether values that look like secrets are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Secrets {
    /// They are masked.
    Mask,
    /// Somebody asked for them by name.
    Show,
}

/// Stored JSON as a value.
pub(crate) fn value_of(json: &Json, secrets: Secrets) -> Value {
    // What a store keeps was checked when it came in; should it be damaged, the text itself is the best there is.
    let mut value = json.to::<Value>().unwrap_or_else(|_| Value::from(json.as_str()));
    if secrets == Secrets::Mask {
        redact::json(&mut value);
    }
    value
}

/// What a task remembers across its attempts, by name; the values are its own business.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    /// The steps that are done.
    pub(crate) steps: Vec<String>,
    /// The signals that were sent.
    pub(crate) signals: Vec<String>,
}

impl Remembered {
    pub(crate) fn of(record: &Record) -> Self {
        let mut remembered = Self::default();
        for line in memo::lines(&record.memo) {
            match line {
                memo::Line::Step { step, .. } => remembered.steps.push(step),
                memo::Line::Signal { signal, .. } => remembered.signals.push(signal.to_string()),
            }
        }
        remembered
    }
}

/// A limit.
pub(crate) fn limit(limit: &Limit) -> Value {
    let Rule { rate, concurrency, length, weight, set_by } = &limit.rule;
    json!({
        "subject": limit.subject.to_string(),
        "rate": rate,
        "concurrency": concurrency,
        "length": length,
        "weight": weight,
        "set_by": set_by,
    })
}

/// What is counted at a gate.
pub(crate) fn gate(view: &GateView) -> Value {
    json!({
        "gate": view.gate.to_string(),
        "running": view.running,
        "next": view.next,
        "held_until": view.held_until,
    })
}

/// A circuit breaker.
pub(crate) fn breaker(name: &str, standing: &Standing) -> Value {
    json!({
        "name": name,
        "state": standing.position.as_str(),
        "until": (!standing.forced).then_some(standing.until),
        "opened": standing.opened,
        "forced": standing.forced,
    })
}

/// A task.
pub(crate) fn task(record: &Record, secrets: Secrets) -> Value {
    let envelope = &record.envelope;
    let mut headers = json!(envelope.headers);
    if secrets == Secrets::Mask {
        redact::json(&mut headers);
    }
    let remembered = Remembered::of(record);
    json!({
        "id": envelope.id,
        "name": envelope.name,
        "queue": envelope.queue,
        "priority": envelope.priority,
        "state": record.state,
        "attempt": record.attempt,
        "crashes": record.crashes,
        "arguments": envelope.args.keyword().map_or_else(|| json!({}), |json| value_of(json, secrets)),
        "positional": envelope.args.positional().map_or_else(|| json!([]), |json| value_of(json, secrets)),
        "headers": headers,
        "key": envelope.key,
        "unique": envelope.unique.as_ref().map(|unique| &unique.key),
        "workflow": envelope.workflow,
        "source": envelope.source,
        "retries": envelope.retries,
        "enqueued_at": record.enqueued_at,
        "due_at": record.due_at,
        "expires_at": envelope.expires,
        "started_at": record.started_at,
        "finished_at": record.finished_at,
        "node": record.node,
        "waits_for": record.waits_for,
        "steps": remembered.steps,
        "signals": remembered.signals,
        "progress": record.progress,
        "cancel_requested": record.cancel_requested,
        "result": record.result.as_ref().map(|json| value_of(json, secrets)),
        "skipped": record.skipped,
        "reason": record.reason,
        "failure": record.failure,
        "history": record.history,
    })
}

/// A queue.
pub(crate) fn queue(name: &QueueName, counts: &QueueCounts) -> Value {
    let mut value = json!(counts);
    value["name"] = json!(name);
    value
}

/// A node.
pub(crate) fn node(node: &Node) -> Value {
    let mut value = json!(node.info);
    value["alive"] = json!(node.alive);
    value["beat_at"] = json!(node.beat_at);
    value
}

/// A schedule.
pub(crate) fn schedule(record: &ScheduleRecord, secrets: Secrets) -> Value {
    let schedule = &record.schedule;
    let args = &schedule.task.args;
    json!({
        "id": schedule.id,
        "when": schedule.spec,
        "words": schedule.spec.words(),
        "task": schedule.task.name,
        "queue": schedule.task.queue,
        "priority": schedule.task.priority,
        "arguments": args.keyword().map_or_else(|| json!({}), |json| value_of(json, secrets)),
        "positional": args.positional().map_or_else(|| json!([]), |json| value_of(json, secrets)),
        "expires_after": schedule.expires_after.map(format_duration),
        "missed_policy": schedule.missed.what,
        "max_lateness": schedule.missed.max_lateness.map(format_duration),
        "overlap": schedule.overlap,
        "jitter": schedule.jitter,
        "origin": schedule.origin,
        "paused": record.paused,
        "next": record.next,
        "last_fired_at": record.last_fired_at,
        "last_task": record.last_task,
        "fired": record.fired,
        "missed": record.missed,
    })
}
