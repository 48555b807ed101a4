//! A task message: from a frame to an envelope, and back to a frame.

use std::borrow::Cow;
use std::time::Duration;

use jiff::tz::TimeZone;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use windlass_core::args::ARGS_BYTES_MAX;
use windlass_core::envelope::{HEADERS_BYTES_MAX, HEADERS_MAX};
use windlass_core::{Args, Due, Envelope, Json, Priority, QueueName, TaskId, TaskName, Timestamp};

use super::canvas::{Canvas, Embed};
use super::headers::Headers;
use super::request::{Protocol, Request};
use super::signature::{no_args, no_kwargs};
use super::{body, repr};
use crate::error::Malformed;
use crate::frame::{Frame, HEADERS_MAX as FRAME_HEADERS_MAX, Properties};
use crate::json;
use crate::kombu::{self, Parts};

/// The largest number of milliseconds that RabbitMQ takes as the expiration of a message.
const EXPIRATION_MAX: u128 = u32::MAX as u128;

/// Which way priorities run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broker {
    /// Redis: 0 is served first.
    Redis,
    /// RabbitMQ and other brokers of AMQP: 9 is served first.
    Amqp,
}

impl Broker {
    /// The priority of a frame as ours, of which 9 is first. What is beyond 0 to 9 counts as the nearest of them.
    ///
    /// ```
    /// use windlass_wire::celery::Broker;
    /// assert_eq!(Broker::Redis.priority(0).level(), 9);
    /// assert_eq!(Broker::Amqp.priority(255).level(), 9);
    /// ```
    pub fn priority(self, wire: i64) -> Priority {
        let level = wire.clamp(0, 9) as u8;
        let level = match self {
            Self::Redis => 9 - level,
            Self::Amqp => level,
        };
        Priority::new(level).expect("a digit is a priority")
    }

    /// Our priority as the broker takes it.
    pub fn wire_priority(self, priority: Priority) -> i64 {
        match self {
            Self::Redis => i64::from(9 - priority.level()),
            Self::Amqp => i64::from(priority.level()),
        }
    }
}

/// How messages are read.
#[derive(Debug, Clone)]
pub struct Reading {
    /// The zone of times without an offset: the `timezone` of the Celery application, UTC by default.
    pub zone: TimeZone,
}

impl Default for Reading {
    fn default() -> Self {
        Self { zone: TimeZone::UTC }
    }
}

/// Where a message goes.
#[derive(Debug, Clone, Copy)]
pub struct Sending<'s> {
    /// The exchange; empty for the default one, which queues of type direct are reached through.
    pub exchange: &'s str,
    /// The routing key: the name of the queue.
    pub routing_key: &'s str,
    /// Unique for each frame; Redis transports need it, AMQP has its own.
    pub delivery_tag: Option<&'s str>,
    /// Now: a message that expires tells the broker for how long to keep it.
    pub now: Timestamp,
}

/// A task message.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Positional arguments: an array.
    pub args: Json,
    /// Keyword arguments: an object.
    pub kwargs: Json,
    /// Everything else.
    pub request: Request,
}

/// A body of protocol 1. Times, limits and ids have the shape that they have in the headers of protocol 2.
#[derive(Deserialize)]
struct BodyOne {
    #[serde(default)]
    args: Option<Json>,
    #[serde(default)]
    kwargs: Option<Json>,
}

/// The parts of a body of protocol 2: arguments, keyword arguments, options.
fn parts(body: &str) -> Result<(&RawValue, &RawValue, &RawValue), Malformed> {
    let Ok(parts) = json::read("body", body) else {
        // That it is no JSON, or nests too deeply, goes before what it must be.
        json::value("body", body)?;
        return Err(Malformed::shape("body", "an array of arguments, keyword arguments and options"));
    };
    json::check_depth("body", body)?;
    Ok(parts)
}

impl Message {
    /// Reads a task message of protocol 2 or 1.
    ///
    /// # Errors
    /// [`Malformed`], with which every message that stops or kills a Celery worker is refused: an empty body, a body of
    /// another length or type, a serialiser other than JSON, times that are none.
    pub fn decode(frame: &Frame, reading: &Reading) -> Result<Self, Malformed> {
        if frame.headers.len() > FRAME_HEADERS_MAX {
            return Err(Malformed::TooMany { part: "headers", max: FRAME_HEADERS_MAX });
        }
        let headers = Headers::copied(&frame.headers);
        if headers.task.is_null() {
            Self::decode_one(frame, reading)
        } else {
            Self::decode_two(headers, frame.properties.clone(), &frame.body, reading)
        }
    }

    /// Reads an element of a list of Redis: [`kombu::decode`] and [`Message::decode`] in one, for less.
    ///
    /// # Errors
    /// Those of the two.
    pub fn of_element(element: &[u8], reading: &Reading) -> Result<Self, Malformed> {
        let read = kombu::parts(element, |headers: &Headers| headers.len)
            .filter(|parts| !parts.headers.task.is_null())
            .and_then(|Parts { headers, properties, body }| Self::decode_two(headers, properties, &body, reading).ok());
        // What is wrong with it is found out in two steps, and what only looked wrong is read.
        read.map_or_else(|| Self::decode(&kombu::decode(element)?, reading), Ok)
    }

    fn decode_two(headers: Headers, properties: Properties, body: &[u8], reading: &Reading) -> Result<Self, Malformed> {
        let text = body::text(body, &properties, &headers.compression)?;
        let text = json::finite(&text);
        let (args, kwargs, embed) = parts(&text)?;
        let canvas = Canvas::decode(match embed.get() {
            "null" => Embed::default(),
            embed => json::read_object("options in the body", embed)?,
        })?;
        let request = Request::decode(headers, properties, canvas, &reading.zone)?;
        Self::of_parts(args.get(), kwargs.get(), request)
    }

    fn decode_one(frame: &Frame, reading: &Reading) -> Result<Self, Malformed> {
        let compression = frame.headers.get("compression").unwrap_or(&Value::Null);
        let text = body::text(&frame.body, &frame.properties, compression)?;
        // Checks the depth of everything at once: the parts below need no check of their own.
        let text = json::value("body", &text)?;
        let mut members: Map<String, Value> = match json::object("body", text.as_str()) {
            Ok(members) => members,
            // Without the header it could only be protocol 1, whose body is an object.
            Err(_) => return Err(Malformed::Missing("header `task`")),
        };
        let BodyOne { args, kwargs } = json::object("body", text.as_str())?;
        let canvas = Canvas::decode(json::read_object("body", text.as_str())?)?;
        if let Some(group) = members.remove("taskset")
            && members.get("group").is_none_or(Value::is_null)
        {
            members.insert("group".to_owned(), group);
        }
        for of_the_form in ["args", "kwargs", "utc", "callbacks", "errbacks", "chain", "chord"] {
            members.remove(of_the_form);
        }
        members.extend(
            frame.headers.iter().filter(|(name, _)| *name != "task").map(|(name, value)| (name.clone(), value.clone())),
        );
        let request = Request::decode(members.into(), frame.properties.clone(), canvas, &reading.zone)?;
        let (args, kwargs) = (args.unwrap_or_else(Json::null), kwargs.unwrap_or_else(Json::null));
        Self::of_parts(args.as_str(), kwargs.as_str(), Request { protocol: Protocol::One, ..request })
    }

    /// Arguments as text; `null` is none of them.
    fn of_parts(args: &str, kwargs: &str, request: Request) -> Result<Self, Malformed> {
        let args = match args {
            "null" => no_args(),
            args if args.starts_with('[') => Json::trusted(args),
            _ => return Err(Malformed::shape("arguments", "an array")),
        };
        let kwargs = match kwargs {
            "null" => no_kwargs(),
            kwargs if kwargs.starts_with('{') => Json::trusted(kwargs),
            _ => return Err(Malformed::shape("keyword arguments", "an object")),
        };
        Ok(Self { args, kwargs, request })
    }

    /// The task that the message asks for, in the queue that it was taken from.
    ///
    /// | message | envelope |
    /// |---|---|
    /// | `id`, `task` | `id`, `name` |
    /// | `eta`, `expires` | `due`, `expires` |
    /// | `timelimit` | `hard_limit`, `soft_limit` |
    /// | `ignore_result` true | `result_ttl` of zero |
    /// | `root_id`, when it is another task | `workflow` |
    /// | headers of the caller | `headers`; what is not text as its JSON |
    ///
    /// `retries` of the message counts runs that were, not runs that may be: it stays in the request.
    /// # Errors
    /// [`Malformed`] when a name or an id breaks its rule, or arguments or headers are over the limits of an envelope.
    pub fn envelope(&self, broker: Broker, queue: QueueName) -> Result<Envelope, Malformed> {
        let request = &self.request;
        let args = Args::new(Some(self.args.clone()), Some(self.kwargs.clone()))
            .map_err(|_| Malformed::shape("arguments", "an array and an object"))?;
        if args.size() > ARGS_BYTES_MAX {
            return Err(Malformed::TooLarge { part: "arguments", size: args.size(), max: ARGS_BYTES_MAX });
        }
        let id = TaskId::new(&request.id)?;
        let root = request.root_id.as_deref().filter(|root| *root != request.id);
        let mut envelope = Envelope::new(TaskName::new(&request.task)?, queue, args);
        envelope.id = id;
        envelope.priority = broker.priority(request.priority);
        envelope.due = request.eta.map_or(Due::Now, Due::At);
        envelope.expires = request.expires;
        envelope.hard_limit = request.timelimit.hard;
        envelope.soft_limit = request.timelimit.soft;
        envelope.result_ttl = (request.ignore_result == Some(true)).then_some(Duration::ZERO);
        envelope.workflow = root.and_then(|root| TaskId::new(root).ok());
        for (name, value) in &request.extra {
            let value = value.as_str().map_or_else(|| Cow::Owned(value.to_string()), Cow::Borrowed);
            envelope.headers.insert(name.clone(), value.into_owned());
        }
        let size = envelope.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if size > HEADERS_BYTES_MAX {
            return Err(Malformed::TooLarge { part: "headers of the caller", size, max: HEADERS_BYTES_MAX });
        }
        if envelope.headers.len() > HEADERS_MAX {
            return Err(Malformed::TooMany { part: "headers of the caller", max: HEADERS_MAX });
        }
        Ok(envelope)
    }

    /// The next run of the same task as Celery asks for it: the same id, one more in `retries`, not before `eta`.
    /// Everything that follows the task travels with it.
    #[must_use]
    pub fn retry(&self, eta: Timestamp) -> Self {
        let mut next = self.clone();
        next.request.protocol = Protocol::Two;
        next.request.retries = self.request.retries.saturating_add(1);
        next.request.eta = Some(eta);
        next.request.redelivered = false;
        next.request.delivery_tag = None;
        if next.request.parent_id.is_none() {
            next.request.parent_id = Some(self.request.id.clone());
        }
        next
    }

    /// The same with `argsrepr` and `kwargsrepr` filled in: what Flower and `celery inspect` show.
    #[must_use]
    pub fn with_reprs(mut self) -> Self {
        self.request.argsrepr = repr::args(&self.args);
        self.request.kwargsrepr = repr::value(&self.kwargs);
        self
    }

    /// The message as a frame of protocol 2.
    pub fn frame(&self, sending: &Sending<'_>) -> Frame {
        let request = &self.request;
        let body = format!("[{}, {}, {}]", self.args.as_str(), self.kwargs.as_str(), request.canvas.encode());
        let expiration = request.expires.map(|expires| {
            // A message that has expired already is still sent: the worker answers it with `REVOKED`.
            expires.since(sending.now).as_millis().clamp(1, EXPIRATION_MAX).to_string()
        });
        Frame {
            headers: request.headers(),
            properties: Properties {
                content_type: Some("application/json".to_owned()),
                content_encoding: Some("utf-8".to_owned()),
                correlation_id: Some(request.correlation_id.clone().unwrap_or_else(|| request.id.clone())),
                reply_to: request.reply_to.clone(),
                delivery_mode: Some(request.delivery_mode),
                priority: Some(request.priority),
                expiration,
                message_id: None,
                delivery_tag: sending.delivery_tag.map(ToOwned::to_owned),
                exchange: sending.exchange.to_owned(),
                routing_key: sending.routing_key.to_owned(),
                redelivered: false,
            },
            body: json::python_text(&body).into_bytes(),
        }
    }
}
