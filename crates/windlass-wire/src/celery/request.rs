//! Everything that a message says of a task besides its arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::{Map, Number, Value, json};
use windlass_core::envelope::ORIGIN_BYTES_MAX;
use windlass_core::{Envelope, Json, Timestamp};

use super::canvas::Canvas;
use super::time::{iso_time, parse_time};
use crate::error::Malformed;
use crate::frame::Properties;
use crate::json;

/// What the origin of an envelope says first when it is a request.
const WIRE: &str = "celery";
/// The format of a request inside of an envelope. Members may be added; anything else raises it.
const VERSION: u64 = 1;

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

/// What [`Request::to_text`] writes.
#[derive(Deserialize)]
struct Stored {
    v: Option<u64>,
    protocol: Option<u64>,
    #[serde(default)]
    headers: Map<String, Value>,
    #[serde(default)]
    properties: Map<String, Value>,
    embed: Option<BTreeMap<String, Json>>,
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
            delivery_mode: 2,
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
        #[derive(Deserialize)]
        struct Origin {
            wire: String,
        }
        let Some(origin) = &envelope.origin else { return Ok(None) };
        match serde_json::from_str(origin.as_str()) {
            Ok(Origin { wire }) if wire == WIRE => Self::from_text(origin.as_str()).map(Some),
            Ok(_) | Err(_) => Ok(None),
        }
    }

    /// The request as JSON text, with headers, properties and canvas as on the wire.
    pub fn to_text(&self) -> String {
        let properties = json!({
            "correlation_id": self.correlation_id,
            "reply_to": self.reply_to,
            "delivery_mode": self.delivery_mode,
            "priority": self.priority,
            "exchange": self.exchange,
            "routing_key": self.routing_key,
            "redelivered": self.redelivered,
            "delivery_tag": self.delivery_tag,
        });
        let protocol = match self.protocol {
            Protocol::One => 1,
            Protocol::Two => 2,
        };
        let headers = Value::Object(self.headers());
        let embed = if self.canvas.is_empty() { "null".to_owned() } else { self.canvas.encode() };
        format!(
            r#"{{"wire":"{WIRE}","v":{VERSION},"protocol":{protocol},"headers":{headers},"properties":{properties},"embed":{embed}}}"#
        )
    }

    /// Reads what [`Request::to_text`] wrote.
    ///
    /// # Errors
    /// [`Malformed`] for anything else, and for what a newer version wrote.
    pub fn from_text(text: &str) -> Result<Self, Malformed> {
        let Stored { v, protocol, headers, properties, embed } = json::object("stored request", text)?;
        if v != Some(VERSION) {
            return Err(Malformed::shape("`v` of a stored request", "1: a newer version may have written it"));
        }
        let canvas = Canvas::decode(&mut embed.unwrap_or_default())?;
        let text = |name: &str| properties.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
        let properties = Properties {
            correlation_id: text("correlation_id"),
            reply_to: text("reply_to"),
            delivery_mode: properties.get("delivery_mode").and_then(Value::as_u64).and_then(|it| u8::try_from(it).ok()),
            priority: properties.get("priority").and_then(Value::as_i64),
            exchange: text("exchange").unwrap_or_default(),
            routing_key: text("routing_key").unwrap_or_default(),
            redelivered: properties.get("redelivered").and_then(Value::as_bool) == Some(true),
            delivery_tag: text("delivery_tag"),
            ..Properties::default()
        };
        let mut request = Self::decode(headers, &properties, canvas, &TimeZone::UTC)?;
        if protocol == Some(1) {
            request.protocol = Protocol::One;
        }
        Ok(request)
    }

    /// From the headers and properties of a message, with the canvas from its body. Times without an offset are read in
    /// `zone`.
    pub(super) fn decode(
        mut headers: Map<String, Value>,
        properties: &Properties,
        canvas: Canvas,
        zone: &TimeZone,
    ) -> Result<Self, Malformed> {
        let mut take = |name: &str| headers.remove(name).unwrap_or_default();
        let task = required_text(take("task"), "`task`")?;
        let id = required_text(take("id"), "`id`")?;
        let eta = time(&take("eta"), "`eta`", zone)?;
        let expires = time(&take("expires"), "`expires`", zone)?;
        let retries = count(&take("retries"), "`retries`")?;
        let timelimit = TimeLimit::decode(take("timelimit"))?;
        let request = Self {
            task,
            eta,
            expires,
            retries,
            timelimit,
            root_id: optional_text(take("root_id")),
            parent_id: optional_text(take("parent_id")),
            group: optional_text(take("group")),
            group_index: take("group_index").as_i64(),
            ignore_result: take("ignore_result").as_bool(),
            shadow: optional_text(take("shadow")),
            argsrepr: optional_text(take("argsrepr")).unwrap_or_default(),
            kwargsrepr: optional_text(take("kwargsrepr")).unwrap_or_default(),
            origin: optional_text(take("origin")),
            replaced_task_nesting: count(&take("replaced_task_nesting"), "`replaced_task_nesting`").unwrap_or(0),
            stamped_headers: names(take("stamped_headers")),
            stamps: match take("stamps") {
                Value::Object(stamps) => stamps,
                _ => Map::new(),
            },
            canvas,
            correlation_id: properties.correlation_id.clone(),
            reply_to: properties.reply_to.clone(),
            delivery_mode: properties.delivery_mode.unwrap_or(2),
            priority: properties.priority.unwrap_or(0),
            exchange: properties.exchange.clone(),
            routing_key: properties.routing_key.clone(),
            redelivered: properties.redelivered,
            delivery_tag: properties.delivery_tag.clone(),
            protocol: Protocol::Two,
            extra: Map::new(),
            id,
        };
        for of_the_frame in ["lang", "compression", "redelivered"] {
            headers.remove(of_the_frame);
        }
        Ok(Self { extra: headers, ..request })
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
    fn decode(value: Value) -> Result<Self, Malformed> {
        const PART: &str = "`timelimit`";
        match value {
            Value::Null => Ok(Self::default()),
            Value::Array(limits) if limits.len() == 2 => {
                Ok(Self { hard: limit(&limits[0])?, soft: limit(&limits[1])? })
            }
            _ => Err(Malformed::shape(PART, "[hard, soft] in seconds")),
        }
    }

    fn encode(self) -> Value {
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

fn optional_text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
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
        Value::Array(names) => Some(names.into_iter().filter_map(optional_text).collect()),
        _ => None,
    }
}
