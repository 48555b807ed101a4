//! A task instance as data, and the form in which stores keep it.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::args::{ARGS_BYTES_MAX, Args, Feed, InvalidArgs};
use crate::flow::Flow;
use crate::retry::Backoff;
use crate::time::duration_text;
use crate::{Json, Key, Priority, QueueName, ScheduleId, TaskId, TaskName, Timestamp, UniqueKey};

/// The most headers that an envelope may carry.
pub const HEADERS_MAX: usize = 64;
/// The size of all header names and values together, in bytes.
pub const HEADERS_BYTES_MAX: usize = 16 * 1024;
/// The largest [`Envelope::origin`], in bytes: a message with a whole workflow in it, whose steps have arguments of their own.
pub const ORIGIN_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A task cannot be delayed for longer.
pub const DELAY_MAX: Duration = Duration::from_secs(10 * 366 * 86_400);
/// The largest result that is stored, in bytes.
pub const RESULT_BYTES_MAX: usize = 4 * 1024 * 1024;
/// The most envelopes in one push; more are split by the client.
pub const PUSH_MAX: usize = 1_000;

/// When a task may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Due {
    /// At once.
    #[default]
    Now,
    /// This long after the store has it, by the store's clock.
    After(Duration),
    /// At this time, by the store's clock; a time in the past is now.
    At(Timestamp),
}

impl Due {
    /// The instant this means, for a store whose clock says `now`; `None` when the task is ready at once.
    pub fn instant(self, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Now => None,
            Self::After(delay) => Some(now + delay.min(DELAY_MAX)).filter(|due| *due > now),
            Self::At(due) => Some(due).filter(|due| *due > now),
        }
    }
}

/// What must not be queued twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unique {
    /// Compared within the whole store; the client prefixes it with the task's name.
    pub key: UniqueKey,
    /// How long the key is taken, from the push on. Without it: until the task has ended.
    #[serde(default, with = "duration_text::option", skip_serializing_if = "Option::is_none")]
    pub window: Option<Duration>,
    /// Without a window: until when its task holds the key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hold: UniqueHold,
    /// What a second push does while the key is taken.
    #[serde(default, skip_serializing_if = "is_default")]
    pub on_conflict: OnConflict,
}

impl Unique {
    /// A key that is taken until its task has ended.
    pub fn new(key: UniqueKey) -> Self {
        Self { key, window: None, hold: UniqueHold::default(), on_conflict: OnConflict::default() }
    }

    /// A key that is taken for this long from the push on, whether or not its task has ended.
    #[must_use]
    pub fn for_window(self, window: Duration) -> Self {
        Self { window: Some(window), ..self }
    }

    /// The time from which a task may start that takes the place of one that waits: `waiting` is when that one may start,
    /// `now` when it is ready. The key is taken since `taken_at`.
    pub fn due_of_replacement(&self, new: Due, waiting: Option<Timestamp>, taken_at: Timestamp, now: Timestamp) -> Due {
        match self.on_conflict {
            OnConflict::Keep | OnConflict::Replace => waiting.map_or(Due::Now, Due::At),
            // A stream of pushes must not put it off for ever.
            OnConflict::Debounce => match (new.instant(now), self.window) {
                (Some(due), Some(window)) => Due::At(due.min(taken_at + window)),
                (Some(due), None) => Due::At(due),
                (None, _) => Due::Now,
            },
        }
    }
}

/// Until when a task holds its unique key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UniqueHold {
    /// Until it has ended: there is one, waiting or running.
    #[default]
    Ended,
    /// Until it is claimed for the first time: one waits, and another may run.
    Started,
}

/// What a second push with the same unique key does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// Nothing: the first stays as it is.
    #[default]
    Keep,
    /// Gives its arguments, headers and priority to the first, when that waits; its time stays.
    Replace,
    /// As [`OnConflict::Replace`], and the first starts when the second would: after a quiet time. With a window, that time
    /// is put off by the window at most.
    Debounce,
}

/// Where a task came from; a label of metrics and listings.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A producer enqueued it.
    #[default]
    Client,
    /// A schedule fired.
    Schedule {
        /// Which.
        id: ScheduleId,
        /// For which planned instant.
        slot: Timestamp,
    },
    /// A step of a workflow.
    Workflow,
}

/// A task instance as data. What it does is decided by the worker that knows its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Envelope {
    /// Its identity; the key that makes a repeated push harmless.
    pub id: TaskId,
    /// Which task.
    pub name: TaskName,
    /// Where it waits.
    pub queue: QueueName,
    /// How much it matters.
    pub priority: Priority,
    /// When it may start.
    pub due: Due,
    /// Its arguments.
    pub args: Args,
    /// How the result of the step before reaches it.
    pub feed: Feed,
    /// The result of the step before.
    pub input: Option<Json>,
    /// It is not started after this time.
    pub expires: Option<Timestamp>,
    /// What it belongs to.
    pub key: Option<Key>,
    /// What must not be queued twice.
    pub unique: Option<Unique>,
    /// Overrides the task's own number of retries.
    pub retries: Option<u32>,
    /// Overrides the task's own backoff.
    pub backoff: Option<Backoff>,
    /// Overrides the task's own soft limit.
    pub soft_limit: Option<Duration>,
    /// Overrides the task's own hard limit.
    pub hard_limit: Option<Duration>,
    /// How long its result is kept instead of the store's own retention; zero keeps none.
    pub result_ttl: Option<Duration>,
    /// Trace context, tenant and the like. Names are case-sensitive.
    pub headers: BTreeMap<String, String>,
    /// What follows it.
    pub flow: Option<Box<Flow>>,
    /// The workflow it is part of: the id of the workflow's first task or group.
    pub workflow: Option<TaskId>,
    /// Where it came from.
    pub source: Source,
    /// What a bridge keeps of the message that it was, to answer whoever sent it. Means nothing to the engine.
    pub origin: Option<Json>,
}

impl Envelope {
    /// An envelope with a new id and no options.
    pub fn new(name: TaskName, queue: QueueName, args: Args) -> Self {
        Self { args, ..Self::plain(TaskId::random(), name, queue) }
    }

    /// Checks the limits that every store relies on. The client calls it before anything is sent.
    ///
    /// # Errors
    /// [`InvalidEnvelope`], one variant for each limit.
    pub fn check(&self, now: Timestamp) -> Result<(), InvalidEnvelope> {
        self.check_alone(now)?;
        match &self.flow {
            Some(flow) => flow.check(now),
            None => Ok(()),
        }
    }

    /// Checks the envelope without what follows it.
    pub(crate) fn check_alone(&self, now: Timestamp) -> Result<(), InvalidEnvelope> {
        let size = self.args.size();
        if size > ARGS_BYTES_MAX {
            return Err(InvalidEnvelope::ArgsTooLarge { name: self.name.clone(), size, max: ARGS_BYTES_MAX });
        }
        let headers_size: usize = self.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if self.headers.len() > HEADERS_MAX || headers_size > HEADERS_BYTES_MAX {
            return Err(InvalidEnvelope::HeadersTooLarge { name: self.name.clone() });
        }
        let size = self.origin.as_ref().map_or(0, |origin| origin.as_str().len());
        if size > ORIGIN_BYTES_MAX {
            return Err(InvalidEnvelope::OriginTooLarge { name: self.name.clone(), size });
        }
        let delay = match self.due {
            Due::Now => Duration::ZERO,
            Due::After(delay) => delay,
            Due::At(due) => due.since(now),
        };
        if delay > DELAY_MAX {
            return Err(InvalidEnvelope::TooFar { name: self.name.clone() });
        }
        if self.retries.is_some_and(|retries| retries >= crate::retry::ATTEMPTS_MAX) {
            return Err(InvalidEnvelope::TooManyRetries { name: self.name.clone() });
        }
        Ok(())
    }

    /// The body that a store keeps beside the columns it needs itself (id, name, queue, priority).
    pub fn to_body(&self) -> String {
        let stored = Stored::of(self, Part::Body);
        // Serialising plain data to a string cannot fail: every key is text.
        serde_json::to_string(&stored).unwrap_or_else(|error| unreachable!("an envelope is plain data: {error}"))
    }

    /// Rebuilds an envelope from [`Envelope::to_body`] and the store's columns.
    ///
    /// # Errors
    /// [`InvalidBody`] when the body is damaged or was written by a newer version.
    pub fn from_body(
        id: TaskId,
        name: TaskName,
        queue: QueueName,
        priority: Priority,
        body: &str,
    ) -> Result<Self, InvalidBody> {
        if body == EMPTY_BODY {
            return Ok(Self { priority, ..Self::plain(id, name, queue) });
        }
        let stored: Stored = serde_json::from_str(body).map_err(|error| InvalidBody::Damaged(error.to_string()))?;
        if stored.v > STORED_VERSION {
            return Err(InvalidBody::Newer(stored.v));
        }
        Ok(stored.into_envelope(id, name, queue, priority))
    }

    /// Without arguments and options.
    fn plain(id: TaskId, name: TaskName, queue: QueueName) -> Self {
        Self {
            id,
            name,
            queue,
            priority: Priority::default(),
            due: Due::Now,
            args: Args::none(),
            feed: Feed::Nothing,
            input: None,
            expires: None,
            key: None,
            unique: None,
            retries: None,
            backoff: None,
            soft_limit: None,
            hard_limit: None,
            result_ttl: None,
            headers: BTreeMap::new(),
            flow: None,
            workflow: None,
            source: Source::Client,
            origin: None,
        }
    }
}

/// An envelope that breaks a limit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEnvelope {
    /// Its arguments are too large.
    #[error(
        "arguments of `{name}` take {size} bytes, the limit is {max}; store the data elsewhere and send a reference"
    )]
    ArgsTooLarge {
        /// The task.
        name: TaskName,
        /// The size, in bytes.
        size: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// Too many headers, or too large.
    #[error("headers of `{name}` are over the limit of {HEADERS_MAX} headers and {HEADERS_BYTES_MAX} bytes")]
    HeadersTooLarge {
        /// The task.
        name: TaskName,
    },
    /// Too much of its message is to be kept.
    #[error("the message of `{name}` has {size} bytes besides its arguments, the limit is {ORIGIN_BYTES_MAX}")]
    OriginTooLarge {
        /// The task.
        name: TaskName,
        /// The size, in bytes.
        size: usize,
    },
    /// Delayed for too long.
    #[error("`{name}` is due in more than ten years")]
    TooFar {
        /// The task.
        name: TaskName,
    },
    /// Too many retries.
    #[error("`{name}` asks for more than {} retries", crate::retry::ATTEMPTS_MAX - 1)]
    TooManyRetries {
        /// The task.
        name: TaskName,
    },
    /// Its workflow is too large, or a group in it is empty.
    #[error("{0}")]
    Flow(String),
    /// Its arguments are not acceptable.
    #[error(transparent)]
    Args(#[from] InvalidArgs),
}

/// A stored envelope that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBody {
    /// It is not what we wrote.
    #[error("stored envelope is damaged: {0}")]
    Damaged(String),
    /// A newer version wrote it.
    #[error("stored envelope has format {0}, this version reads up to {STORED_VERSION}")]
    Newer(u32),
}

/// Version of [`Stored`]. Fields may be added with a default; anything else raises it, and old versions stay readable.
const STORED_VERSION: u32 = 1;
/// What an envelope without arguments and options is stored as.
const EMPTY_BODY: &str = r#"{"v":1}"#;

enum Part {
    /// Without what the store keeps in columns.
    Body,
    /// Everything: for envelopes inside of a workflow.
    Whole,
}

/// The stored form: short names, defaults left out.
#[derive(Serialize, Deserialize)]
struct Stored {
    v: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<TaskId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    name: Option<TaskName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queue: Option<QueueName>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<Priority>,
    #[serde(default, with = "duration_text::option", skip_serializing_if = "Option::is_none")]
    after: Option<Duration>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<Args>,
    #[serde(default, skip_serializing_if = "is_default")]
    feed: Feed,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    input: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Key>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unique: Option<Unique>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retries: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backoff: Option<Backoff>,
    #[serde(default, with = "duration_text::option", skip_serializing_if = "Option::is_none")]
    soft_limit: Option<Duration>,
    #[serde(default, with = "duration_text::option", skip_serializing_if = "Option::is_none")]
    hard_limit: Option<Duration>,
    #[serde(default, with = "duration_text::option", skip_serializing_if = "Option::is_none")]
    result_ttl: Option<Duration>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    flow: Option<Box<Flow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workflow: Option<TaskId>,
    #[serde(default, skip_serializing_if = "is_default")]
    source: Source,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    origin: Option<Json>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Stored {
    fn of(envelope: &Envelope, part: Part) -> Self {
        let whole = matches!(part, Part::Whole);
        let (after, at) = match envelope.due {
            Due::Now => (None, None),
            Due::After(delay) => (Some(delay), None),
            Due::At(due) => (None, Some(due)),
        };
        Self {
            v: STORED_VERSION,
            id: whole.then(|| envelope.id.clone()),
            name: whole.then(|| envelope.name.clone()),
            queue: whole.then(|| envelope.queue.clone()),
            priority: whole.then_some(envelope.priority),
            after: after.filter(|_| whole),
            at: at.filter(|_| whole),
            args: Some(envelope.args.clone()).filter(|args| *args != Args::none()),
            feed: envelope.feed.clone(),
            input: envelope.input.clone(),
            expires: envelope.expires,
            key: envelope.key.clone(),
            unique: envelope.unique.clone(),
            retries: envelope.retries,
            backoff: envelope.backoff.clone(),
            soft_limit: envelope.soft_limit,
            hard_limit: envelope.hard_limit,
            result_ttl: envelope.result_ttl,
            headers: envelope.headers.clone(),
            flow: envelope.flow.clone(),
            workflow: envelope.workflow.clone(),
            source: envelope.source.clone(),
            origin: envelope.origin.clone(),
        }
    }

    fn into_envelope(self, id: TaskId, name: TaskName, queue: QueueName, priority: Priority) -> Envelope {
        let due = match (self.after, self.at) {
            (Some(delay), _) => Due::After(delay),
            (None, Some(due)) => Due::At(due),
            (None, None) => Due::Now,
        };
        Envelope {
            id,
            name,
            queue,
            priority,
            due,
            args: self.args.unwrap_or(Args::none()),
            feed: self.feed,
            input: self.input,
            expires: self.expires,
            key: self.key,
            unique: self.unique,
            retries: self.retries,
            backoff: self.backoff,
            soft_limit: self.soft_limit,
            hard_limit: self.hard_limit,
            result_ttl: self.result_ttl,
            headers: self.headers,
            flow: self.flow,
            workflow: self.workflow,
            source: self.source,
            origin: self.origin,
        }
    }
}

/// Envelopes inside of workflows and schedules are stored whole.
impl Serialize for Envelope {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Stored::of(self, Part::Whole).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Envelope {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let mut stored = Stored::deserialize(deserializer)?;
        if stored.v > STORED_VERSION {
            return Err(D::Error::custom(InvalidBody::Newer(stored.v)));
        }
        let id = stored.id.take().ok_or_else(|| D::Error::missing_field("id"))?;
        let name = stored.name.take().ok_or_else(|| D::Error::missing_field("name"))?;
        let queue = stored.queue.take().unwrap_or_default();
        let priority = stored.priority.take().unwrap_or_default();
        Ok(stored.into_envelope(id, name, queue, priority))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> Envelope {
        let mut envelope =
            Envelope::new(TaskName::known("mail"), QueueName::known("email"), Args::parse(r#"{"a":1}"#).unwrap());
        envelope.priority = Priority::HIGH;
        envelope.due = Due::At(Timestamp::from_secs(1_800_000_000));
        envelope.expires = Some(Timestamp::from_micros(1_900_000_000_123_456));
        envelope.key = Some(Key::known("tenant 1"));
        envelope.unique = Some(Unique::new(UniqueKey::known("u")).for_window(Duration::from_secs(60)));
        envelope.retries = Some(3);
        envelope.backoff = Some(Backoff::formula("1s * 2^n"));
        envelope.hard_limit = Some(Duration::from_millis(1500));
        envelope.headers.insert("traceparent".into(), "00-…".into());
        envelope.feed = Feed::Field("x".into());
        envelope.input = Some(Json::trusted("[1]"));
        envelope
    }

    #[test]
    fn an_envelope_survives_storage() {
        let envelope = full();
        let body = envelope.to_body();
        let back = Envelope::from_body(
            envelope.id.clone(),
            envelope.name.clone(),
            envelope.queue.clone(),
            envelope.priority,
            &body,
        )
        .unwrap();
        assert_eq!(back, Envelope { due: Due::Now, ..envelope.clone() }, "the store keeps the due time itself");
        let whole = serde_json::to_string(&envelope).unwrap();
        assert_eq!(serde_json::from_str::<Envelope>(&whole).unwrap(), envelope);
    }

    #[test]
    fn an_envelope_without_options_has_the_smallest_body() {
        let envelope = Envelope::new(TaskName::known("noop"), QueueName::default(), Args::none());
        assert_eq!(envelope.to_body(), EMPTY_BODY);
    }

    #[test]
    fn a_body_of_a_newer_version_is_refused_by_name() {
        let read = Envelope::from_body(
            TaskId::random(),
            TaskName::known("x"),
            QueueName::default(),
            Priority::NORMAL,
            r#"{"v":2}"#,
        );
        assert_eq!(read, Err(InvalidBody::Newer(2)));
    }

    #[test]
    fn limits_hold_at_the_limit_and_one_over() {
        let now = Timestamp::from_secs(1_800_000_000);
        let of_size = |size: usize| {
            let text = format!(r#"{{"a":"{}"}}"#, "x".repeat(size - 8));
            Envelope::new(TaskName::known("x"), QueueName::default(), Args::parse(&text).unwrap())
        };
        assert_eq!(of_size(ARGS_BYTES_MAX).check(now), Ok(()));
        assert!(matches!(of_size(ARGS_BYTES_MAX + 1).check(now), Err(InvalidEnvelope::ArgsTooLarge { .. })));
        let mut envelope = of_size(10);
        envelope.due = Due::After(DELAY_MAX);
        assert_eq!(envelope.check(now), Ok(()));
        envelope.due = Due::After(DELAY_MAX + Duration::from_secs(1));
        assert!(matches!(envelope.check(now), Err(InvalidEnvelope::TooFar { .. })));
    }
}
