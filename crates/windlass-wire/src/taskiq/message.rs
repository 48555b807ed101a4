//! A task message.

use serde::Deserialize;
use serde_json::{Map, Value};
use windlass_core::args::ARGS_BYTES_MAX;
use windlass_core::{Args, Due, Envelope, Json, Priority, QueueName, TaskId, TaskName};

use super::label::{LABELS_HEADER, Label, Labels};
use crate::celery::Broker;
use crate::error::Malformed;
use crate::json::{self, BODY_BYTES_MAX};

/// How often a task runs that is retried and says no number.
const RUNS_DEFAULT: u32 = 3;

/// A task message: `{"task_id", "task_name", "labels", "labels_types", "args", "kwargs"}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// The id of the task: the key of its result.
    pub task_id: String,
    /// The name of the task; `module:function` by default.
    pub task_name: String,
    /// Its labels.
    pub labels: Labels,
    /// Positional arguments: an array.
    pub args: Json,
    /// Keyword arguments: an object.
    pub kwargs: Json,
}

#[derive(Deserialize)]
struct Wire {
    task_id: String,
    task_name: String,
    labels: Map<String, Value>,
    #[serde(default)]
    labels_types: Option<Map<String, Value>>,
    args: Json,
    kwargs: Json,
}

/// A task that TaskIQ has no message for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsendable {
    /// It is followed by others.
    #[error("`{0}` is part of a workflow, which TaskIQ's messages cannot carry")]
    Workflow(TaskId),
    /// It is delayed.
    #[error("`{0}` is delayed, which TaskIQ's Redis brokers cannot do: use a schedule source")]
    Delayed(TaskId),
    /// It expires.
    #[error("`{0}` expires, which TaskIQ's messages cannot say")]
    Expires(TaskId),
}

impl Message {
    /// Reads a message in JSON, with either spelling of text and spaces.
    ///
    /// # Errors
    /// [`Malformed`] when a member is missing or has another type. Other members are ignored.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let text = json::text("message", bytes, BODY_BYTES_MAX)?;
        json::check_object("message", text)?;
        let text = json::value("message", text)?;
        let wire: Wire = json::object("message", text.as_str())?;
        if !wire.args.as_str().starts_with('[') {
            return Err(Malformed::shape("`args`", "an array"));
        }
        if !wire.kwargs.as_str().starts_with('{') {
            return Err(Malformed::shape("`kwargs`", "an object"));
        }
        Ok(Self {
            labels: Labels::decode(wire.labels, &wire.labels_types.unwrap_or_default())?,
            task_id: wire.task_id,
            task_name: wire.task_name,
            args: wire.args,
            kwargs: wire.kwargs,
        })
    }

    /// The message as the default formatter writes it.
    pub fn encode(&self) -> String {
        let (labels, types) = self.labels.encode();
        let text = format!(
            r#"{{"task_id": {}, "task_name": {}, "labels": {labels}, "labels_types": {types}, "args": {}, "kwargs": {}}}"#,
            json::quoted(&self.task_id),
            json::quoted(&self.task_name),
            self.args.as_str(),
            self.kwargs.as_str(),
        );
        json::python_text(&text)
    }

    /// The task that the message asks for, in the queue that it was taken from. Its labels become headers.
    ///
    /// | message | envelope |
    /// |---|---|
    /// | `task_id`, `task_name` | `id`, `name` |
    /// | label `timeout` | `hard_limit` |
    /// | label `priority`, on AMQP | `priority`: 0, the last, when there is none. On Redis every task has the default |
    /// | labels `retry_on_error`, `max_retries`, `_retries` | `retries`: what is left of the runs; without the first one it is the task's own affair |
    ///
    /// The label `delay` is the broker's: a message that arrives is due.
    /// # Errors
    /// [`Malformed`] when a name or an id breaks its rule, or arguments or labels are over the limits of an envelope.
    pub fn envelope(&self, broker: Broker, queue: QueueName) -> Result<Envelope, Malformed> {
        let args = Args::new(Some(self.args.clone()), Some(self.kwargs.clone()))
            .map_err(|_| Malformed::shape("arguments", "an array and an object"))?;
        if args.size() > ARGS_BYTES_MAX {
            return Err(Malformed::TooLarge { part: "arguments", size: args.size(), max: ARGS_BYTES_MAX });
        }
        let id = TaskId::new(&self.task_id)?;
        let mut envelope = Envelope::new(TaskName::new(&self.task_name)?, queue, args);
        envelope.id = id;
        envelope.priority = match broker {
            Broker::Redis => Priority::NORMAL,
            Broker::Amqp => broker.priority(self.labels.priority().unwrap_or(0)),
        };
        envelope.hard_limit = self.labels.timeout();
        envelope.retries = self.labels.retry_on_error().map(|again| {
            let runs = if again { self.labels.max_runs().unwrap_or(RUNS_DEFAULT) } else { 1 };
            runs.saturating_sub(1).saturating_sub(self.labels.failed_runs())
        });
        self.labels.attach(&mut envelope)?;
        Ok(envelope)
    }

    /// The message for a task: what `kiq` of a Python client would send. Headers become labels.
    ///
    /// # Errors
    /// [`Unsendable`] for what TaskIQ's messages cannot say.
    pub fn of(envelope: &Envelope, broker: Broker) -> Result<Self, Unsendable> {
        if envelope.flow.is_some() || envelope.input.is_some() {
            return Err(Unsendable::Workflow(envelope.id.clone()));
        }
        if envelope.expires.is_some() {
            return Err(Unsendable::Expires(envelope.id.clone()));
        }
        let mut labels = Labels::of(envelope).ok().flatten().unwrap_or_default();
        for (name, value) in envelope.headers.iter().filter(|(name, _)| *name != LABELS_HEADER) {
            labels.0.entry(name.clone()).or_insert_with(|| Label::Text(value.clone()));
        }
        let mut label = |name: &str, label: Label| {
            labels.0.entry(name.to_owned()).or_insert(label);
        };
        if let Some(limit) = envelope.hard_limit {
            label("timeout", Label::Float(limit.as_secs_f64()));
        }
        if let Some(retries) = envelope.retries {
            label("retry_on_error", Label::Bool(retries > 0));
            label("max_retries", Label::Int(i64::from(retries) + 1));
        }
        match (broker, envelope.due) {
            (_, Due::Now) => {}
            (Broker::Amqp, Due::After(delay)) => label("delay", Label::Float(delay.as_secs_f64())),
            (Broker::Amqp, Due::At(_)) | (Broker::Redis, _) => return Err(Unsendable::Delayed(envelope.id.clone())),
        }
        if broker == Broker::Amqp {
            label("priority", Label::Int(broker.wire_priority(envelope.priority)));
        }
        let part = |part: Option<&Json>, empty: &str| part.cloned().unwrap_or_else(|| Json::trusted(empty));
        Ok(Self {
            task_id: envelope.id.to_string(),
            task_name: envelope.name.to_string(),
            labels,
            args: part(envelope.args.positional(), "[]"),
            kwargs: part(envelope.args.keyword(), "{}"),
        })
    }

    /// The next run of the same task, as TaskIQ's retry middleware asks for it: the same id, one more in `_retries`.
    #[must_use]
    pub fn retry(&self) -> Self {
        let mut next = self.clone();
        let failed = i64::from(self.labels.failed_runs()) + 1;
        next.labels.0.insert("_retries".to_owned(), Label::Int(failed));
        next
    }
}
