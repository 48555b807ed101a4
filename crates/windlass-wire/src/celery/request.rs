//! Everything that a message says of a task besides its arguments.

use std::time::Duration;

use jiff::tz::TimeZone;
use serde_json::{Map, Number, Value, json};
use windlass_core::envelope::ORIGIN_BYTES_MAX;
use windlass_core::{Envelope, Json, Timestamp};

use super::canvas::Canvas;
use super::headers::Headers;
use super::stored;
use super::time::{iso_time, parse_time};
use crate::error::Malformed;
use crate::frame::Properties;
use crate::json::text_of;

/// What counts when a message does not say it: it survives a restart of the broker.
pub(super) const DELIVERY_MODE: u8 = 2;

/// Which form a message had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// One object in the body. Read, never written.
    One,
    /// Headers, and a body of arguments, keyword arguments and canvas.
    #[default]
    Two,
}

/// How long a task may run; what is absent is the task's own limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TimeLimit {
    /// After this long it is killed.
    pub hard: Option<Duration>,
    /// After this long it is asked to end.
    pub soft: Option<Duration>,
}

/// Everything that a message says of a task besides its arguments: what is needed to answer it, and to send it again.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The form of the message.
    pub protocol: Protocol,
    /// The name of the task.
    pub task: String,
    /// The id of the task: the key of its result.
    pub id: String,
    /// The id of the first task of the workflow: passed on to everything that is published from this one.
    pub root_id: Option<String>,
    /// The task that published this one.
    pub parent_id: Option<String>,
    /// The group that it is part of.
    pub group: Option<String>,
    /// Its position in the group.
    pub group_index: Option<i64>,
    /// How many runs there were before this one.
    pub retries: u32,
    /// It does not start before this time.
    pub eta: Option<Timestamp>,
    /// It does not start after this time.
    pub expires: Option<Timestamp>,
    /// How long it may run.
    pub timelimit: TimeLimit,
    /// `Some(true)`: nothing is stored, no errors either. `None`: as the task says. The two are not the same.
    pub ignore_result: Option<bool>,
    /// The name that is shown instead of its own.
    pub shadow: Option<String>,
    /// Positional arguments as Python shows them; for display only.
    pub argsrepr: String,
    /// Keyword arguments as Python shows them; for display only.
    pub kwargsrepr: String,
    /// Who sent it: `gen<pid>@<host>`.
    pub origin: Option<String>,
    /// How often the task was replaced by another one.
    pub replaced_task_nesting: u32,
    /// The names of its stamps.
    pub stamped_headers: Option<Vec<String>>,
    /// Its stamps.
    pub stamps: Map<String, Value>,
    /// Headers that Celery does not know: the caller's, tracing. Kept, shown to the task, copied on a retry.
    pub extra: Map<String, Value>,
    /// What follows it.
    pub canvas: Canvas,
    /// Its id once more; whoever waits compares it.
    pub correlation_id: Option<String>,
    /// The queue that results go to with the result backend `rpc://`.
    pub reply_to: Option<String>,
    /// 2: survives a restart of the broker, 1: does not.
    pub delivery_mode: u8,
    /// In the direction of the broker; 0 when the producer gave none.
    pub priority: i64,
    /// The exchange that it came through; empty for the default one.
    pub exchange: String,
    /// Its routing key, which a retry is sent to.
    pub routing_key: String,
    /// The transport says that it was delivered before.
    pub redelivered: bool,
    /// What the transport calls this message; on Redis no other message has it.
    pub delivery_tag: Option<String>,
}

impl Request {
    /// A request with no options.
    pub fn new(task: impl Into<String>, id: impl Into<String>) -> Self {
        let id = id.into();
        Self {
            protocol: Protocol::Two,
            task: task.into(),
            root_id: Some(id.clone()),
            correlation_id: Some(id.clone()),
            id,
            parent_id: None,
            group: None,
            group_index: None,
            retries: 0,
            eta: None,
            expires: None,
            timelimit: TimeLimit::default(),
            ignore_result: None,
            shadow: None,
            argsrepr: String::new(),
            kwargsrepr: String::new(),
            origin: None,
            replaced_task_nesting: 0,
            stamped_headers: None,
            stamps: Map::new(),
            extra: Map::new(),
            canvas: Canvas::default(),
            reply_to: None,
            delivery_mode: DELIVERY_MODE,
            priority: 0,
            exchange: String::new(),
            routing_key: String::new(),
            redelivered: false,
            delivery_tag: None,
        }
    }

    /// The name that events and listings show.
    pub fn shown_name(&self) -> &str {
        self.shadow.as_deref().unwrap_or(&self.task)
    }

    /// Keeps the request as the envelope's [`origin`](Envelope::origin).
    ///
    /// # Errors
    /// [`Malformed::TooLarge`] for a canvas over the limit of an origin. The envelope is unchanged.
    pub fn attach(&self, envelope: &mut Envelope) -> Result<(), Malformed> {
        let text = self.to_text();
        if text.len() > ORIGIN_BYTES_MAX {
            return Err(Malformed::TooLarge {
                part: "request with its canvas",
                size: text.len(),
                max: ORIGIN_BYTES_MAX,
            });
        }
        envelope.origin = Some(Json::trusted(text));
        Ok(())
    }

    /// The request that [`Request::attach`] put into an envelope; `None` when there is none: the task is not Celery's.
    ///
    /// # Errors
    /// As [`Request::from_text`].
    pub fn of(envelope: &Envelope) -> Result<Option<Self>, Malformed> {
        envelope.origin.as_ref().map_or(Ok(None), |origin| stored::read_origin(origin.as_str()))
    }

    /// The request as JSON text, with headers, properties and canvas as on the wire. What is absent or has its default is
    /// not written.
    pub fn to_text(&self) -> String {
        stored::write(self)
    }

    /// Reads what [`Request::to_text`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] for anything else, and for what a newer version wrote.
    pub fn from_text(text: &str) -> Result<Self, Malformed> {
        stored::read(text)
    }

    /// From the headers and properties of a message, with the canvas from its body. Times without an offset are read in
    /// `zone`.
    pub(super) fn decode(
        headers: Headers,
        properties: Properties,
        canvas: Canvas,
        zone: &TimeZone,
    ) -> Result<Self, Malformed> {
        let task = required_text(headers.task, "`task`")?;
        let id = required_text(headers.id, "`id`")?;
        Ok(Self {
            task,
            id,
            eta: time(&headers.eta, "`eta`", zone)?,
            expires: time(&headers.expires, "`expires`", zone)?,
            retries: count(&headers.retries, "`retries`")?,
            timelimit: TimeLimit::decode(&headers.timelimit)?,
            root_id: text_of(headers.root_id),
            parent_id: text_of(headers.parent_id),
            group: text_of(headers.group),
            group_index: headers.group_index.as_i64(),
            ignore_result: headers.ignore_result.as_bool(),
            shadow: text_of(headers.shadow),
            argsrepr: text_of(headers.argsrepr).unwrap_or_default(),
            kwargsrepr: text_of(headers.kwargsrepr).unwrap_or_default(),
            origin: text_of(headers.origin),
            replaced_task_nesting: count(&headers.replaced_task_nesting, "`replaced_task_nesting`").unwrap_or(0),
            stamped_headers: names(headers.stamped_headers),
            stamps: match headers.stamps {
                Value::Object(stamps) => stamps,
                _ => Map::new(),
            },
            extra: headers.extra,
            canvas,
            correlation_id: properties.correlation_id,
            reply_to: properties.reply_to,
            delivery_mode: properties.delivery_mode.unwrap_or(DELIVERY_MODE),
            priority: properties.priority.unwrap_or(0),
            exchange: properties.exchange,
            routing_key: properties.routing_key,
            redelivered: properties.redelivered,
            delivery_tag: properties.delivery_tag,
            protocol: Protocol::Two,
        })
    }

    /// The headers of protocol 2, those of the caller included.
    pub(super) fn headers(&self) -> Map<String, Value> {
        let known = json!({
            "lang": "py",
            "task": self.task,
            "id": self.id,
            "shadow": self.shadow,
            "eta": self.eta.map(iso_time),
            "expires": self.expires.map(iso_time),
            "group": self.group,
            "group_index": self.group_index,
            "retries": self.retries,
            "timelimit": self.timelimit.encode(),
            "root_id": self.root_id,
            "parent_id": self.parent_id,
            "argsrepr": self.argsrepr,
            "kwargsrepr": self.kwargsrepr,
            "origin": self.origin,
            "ignore_result": self.ignore_result,
            "replaced_task_nesting": self.replaced_task_nesting,
            "stamped_headers": self.stamped_headers,
            "stamps": self.stamps,
        });
        let mut headers = self.extra.clone();
        if let Value::Object(known) = known {
            headers.extend(known);
        }
        headers
    }
}

impl TimeLimit {
    /// From `[hard, soft]`: seconds or null.
    fn decode(value: &Value) -> Result<Self, Malformed> {
        const PART: &str = "`timelimit`";
        match value {
            Value::Null => Ok(Self::default()),
            Value::Array(limits) if limits.len() == 2 => {
                Ok(Self { hard: limit(&limits[0])?, soft: limit(&limits[1])? })
            }
            _ => Err(Malformed::shape(PART, "[hard, soft] in seconds")),
        }
    }

    pub(super) fn encode(self) -> Value {
        Value::Array(vec![seconds(self.hard), seconds(self.soft)])
    }
}

/// Seconds that are not above zero mean no limit.
fn limit(value: &Value) -> Result<Option<Duration>, Malformed> {
    match value {
        Value::Null => Ok(None),
        Value::Number(number) => {
            let seconds = number.as_f64().filter(|seconds| *seconds > 0.0);
            Ok(seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)))
        }
        _ => Err(Malformed::shape("`timelimit`", "[hard, soft] in seconds")),
    }
}

fn seconds(limit: Option<Duration>) -> Value {
    match limit {
        None => Value::Null,
        Some(limit) if limit.subsec_nanos() == 0 => Value::from(limit.as_secs()),
        Some(limit) => Number::from_f64(limit.as_secs_f64()).map_or(Value::Null, Value::Number),
    }
}

fn required_text(value: Value, part: &'static str) -> Result<String, Malformed> {
    match value {
        Value::String(text) => Ok(text),
        Value::Null => Err(Malformed::Missing(part)),
        _ => Err(Malformed::shape(part, "text")),
    }
}

fn time(value: &Value, part: &'static str, zone: &TimeZone) -> Result<Option<Timestamp>, Malformed> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => parse_time(part, text, zone).map(Some),
        _ => Err(Malformed::shape(part, "a time in ISO 8601")),
    }
}

fn count(value: &Value, part: &'static str) -> Result<u32, Malformed> {
    match value {
        Value::Null => Ok(0),
        value => value
            .as_u64()
            .and_then(|count| u32::try_from(count).ok())
            .ok_or(Malformed::shape(part, "a whole number, not negative")),
    }
}

fn names(value: Value) -> Option<Vec<String>> {
    match value {
        Value::Array(names) => Some(names.into_iter().filter_map(text_of).collect()),
        _ => None,
    }
}
