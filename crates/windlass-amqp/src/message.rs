//! Messages as data: what is published, and what was delivered.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use lapin::BasicProperties;
use lapin::message::Delivery;
use lapin::types::ShortString;
use serde_json::{Map, Value};

use crate::AmqpError;
use crate::desk::Tag;
use crate::table::{self, short};

/// The largest body that is handed out whole; of a larger one only the first part comes, so that a single message cannot
/// fill a node. Four times what the arguments of a task may take, encoded.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How much of a body over the limit comes: enough to see in a dead letter what it was.
pub const BODY_BYTES_OF_TOO_LARGE: usize = 64 * 1024;
/// The longest time to live that the broker takes, 49 days; a message with a longer one lives for ever as far as the broker
/// is concerned.
pub const EXPIRATION_MAX: Duration = Duration::from_millis(u32::MAX as u64);
/// The value of `delivery_mode` for a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;

/// One message to publish.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Message {
    /// Empty for the default exchange, where the routing key is the name of the queue.
    pub exchange: String,
    /// Where the exchange sends it.
    pub routing_key: String,
    /// Any bytes.
    pub body: Vec<u8>,
    /// What stands beside the body.
    pub properties: Properties,
    /// What happens when no queue takes it.
    pub unrouted: Unrouted,
}

/// What happens to a message that no queue takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unrouted {
    /// [`crate::Published::Unroutable`] says so.
    #[default]
    Report,
    /// The broker drops it and confirms it: for events that nobody may listen to.
    Drop,
}

/// Whether a message survives a restart of the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// In a durable queue it does.
    #[default]
    Persistent,
    /// It does not, and costs the broker no disk.
    Transient,
}

/// What stands beside a body. Texts have at most 255 bytes.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Properties {
    /// Such as `application/json`.
    pub content_type: Option<String>,
    /// Such as `utf-8`.
    pub content_encoding: Option<String>,
    /// A table of plain values, at most 128 KiB as AMQP.
    pub headers: Map<String, Value>,
    /// Whether it survives a restart.
    pub storage: Storage,
    /// 0 to 255; the queue says how many it tells apart, and that the greater goes first.
    pub priority: Option<u8>,
    /// For the reader.
    pub correlation_id: Option<String>,
    /// The queue where an answer is waited for.
    pub reply_to: Option<String>,
    /// How long it may wait in a queue; rounded down to milliseconds, without effect above [`EXPIRATION_MAX`].
    pub expiration: Option<Duration>,
    /// For the reader.
    pub message_id: Option<String>,
    /// Seconds since 1970, for the reader.
    pub timestamp: Option<u64>,
    /// For the reader.
    pub kind: Option<String>,
    /// The broker refuses any but the name of the user of the connection.
    pub user_id: Option<String>,
    /// For the reader.
    pub app_id: Option<String>,
}

/// One message that the broker has delivered and that waits to be accepted, put back or rejected.
#[derive(Clone, PartialEq)]
pub struct Taken {
    /// What it is accepted by.
    pub tag: Tag,
    /// The queue that it came from.
    pub queue: Arc<str>,
    /// The exchange that it was published to.
    pub exchange: String,
    /// The routing key that it was published with.
    pub routing_key: String,
    /// Whether the broker has, or may have, delivered it before.
    pub redelivered: bool,
    /// What stands beside the body.
    pub properties: Properties,
    /// Whether headers were left away because there are too many, or they lie too deep.
    pub headers_are_cut: bool,
    /// The body; only its first [`BODY_BYTES_OF_TOO_LARGE`] bytes when it is larger than [`BODY_BYTES_MAX`].
    pub body: Vec<u8>,
    /// How many bytes the body has, or had.
    pub body_bytes: usize,
}

impl Taken {
    /// Whether the body was too large to be handed out.
    pub fn is_too_large(&self) -> bool {
        self.body_bytes > self.body.len()
    }
}

/// Without body and headers: they may hold anything.
impl fmt::Debug for Taken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taken")
            .field("tag", &self.tag)
            .field("queue", &self.queue)
            .field("routing_key", &self.routing_key)
            .field("redelivered", &self.redelivered)
            .field("body_bytes", &self.body_bytes)
            .finish_non_exhaustive()
    }
}

/// What the client library delivered, without a copy of the body.
pub(crate) fn taken(delivery: Delivery, tag: Tag, queue: Arc<str>) -> Taken {
    let Delivery { exchange, routing_key, redelivered, properties, data: mut body, .. } = delivery;
    let (properties, headers_are_cut) = plain_properties(&properties);
    let body_bytes = body.len();
    if body_bytes > BODY_BYTES_MAX {
        body.truncate(BODY_BYTES_OF_TOO_LARGE);
        body.shrink_to_fit();
    }
    Taken {
        tag,
        queue,
        exchange: exchange.into(),
        routing_key: routing_key.into(),
        redelivered,
        properties,
        headers_are_cut,
        body,
        body_bytes,
    }
}

fn plain_properties(wire: &BasicProperties) -> (Properties, bool) {
    let text = |text: &Option<ShortString>| text.as_ref().map(ToString::to_string);
    let headers = wire.headers().as_ref().map(table::plain).unwrap_or_default();
    let millis = wire.expiration().as_ref().and_then(|text| text.as_str().parse().ok());
    let properties = Properties {
        content_type: text(wire.content_type()),
        content_encoding: text(wire.content_encoding()),
        headers: headers.values,
        storage: if *wire.delivery_mode() == Some(PERSISTENT) { Storage::Persistent } else { Storage::Transient },
        priority: *wire.priority(),
        correlation_id: text(wire.correlation_id()),
        reply_to: text(wire.reply_to()),
        expiration: millis.map(Duration::from_millis),
        message_id: text(wire.message_id()),
        timestamp: *wire.timestamp(),
        kind: text(wire.kind()),
        user_id: text(wire.user_id()),
        app_id: text(wire.app_id()),
    };
    (properties, headers.is_cut)
}

impl Message {
    /// Its exchange, its routing key and its properties as the protocol has them.
    ///
    /// # Errors
    /// [`AmqpError::Refused`] when a text is longer than the protocol allows.
    pub(crate) fn to_wire(&self) -> Result<(ShortString, ShortString, BasicProperties), AmqpError> {
        let exchange = short("the exchange", &self.exchange)?;
        let routing_key = short("the routing key", &self.routing_key)?;
        Ok((exchange, routing_key, self.properties.to_wire()?))
    }
}

/// Sets a property that is a short text.
type Setter = fn(BasicProperties, ShortString) -> BasicProperties;

impl Properties {
    fn to_wire(&self) -> Result<BasicProperties, AmqpError> {
        let mut wire = BasicProperties::default().with_delivery_mode(match self.storage {
            Storage::Persistent => PERSISTENT,
            Storage::Transient => 1,
        });
        if !self.headers.is_empty() {
            wire = wire.with_headers(table::table(&self.headers)?);
        }
        if let Some(priority) = self.priority {
            wire = wire.with_priority(priority);
        }
        if let Some(timestamp) = self.timestamp {
            wire = wire.with_timestamp(timestamp);
        }
        if let Some(expiration) = self.expiration.filter(|expiration| *expiration <= EXPIRATION_MAX) {
            wire = wire.with_expiration(expiration.as_millis().to_string().into());
        }
        let texts: [(&str, &Option<String>, Setter); 8] = [
            ("content_type", &self.content_type, BasicProperties::with_content_type),
            ("content_encoding", &self.content_encoding, BasicProperties::with_content_encoding),
            ("correlation_id", &self.correlation_id, BasicProperties::with_correlation_id),
            ("reply_to", &self.reply_to, BasicProperties::with_reply_to),
            ("message_id", &self.message_id, BasicProperties::with_message_id),
            ("type", &self.kind, BasicProperties::with_type),
            ("user_id", &self.user_id, BasicProperties::with_user_id),
            ("app_id", &self.app_id, BasicProperties::with_app_id),
        ];
        for (name, text, set) in texts {
            if let Some(text) = text {
                wire = set(wire, short(name, text)?);
            }
        }
        Ok(wire)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn full() -> Properties {
        let text = |text: &str| Some(text.to_owned());
        Properties {
            content_type: text("application/json"),
            content_encoding: text("utf-8"),
            headers: json!({"task": "add", "retries": 0}).as_object().cloned().unwrap_or_default(),
            storage: Storage::Transient,
            priority: Some(9),
            correlation_id: text("id"),
            reply_to: text("answers"),
            expiration: Some(Duration::from_millis(1500)),
            message_id: text("m"),
            timestamp: Some(17),
            kind: text("t"),
            user_id: text("u"),
            app_id: text("a"),
        }
    }

    #[test]
    fn properties_come_back_as_they_were() {
        for properties in [full(), Properties::default()] {
            let wire = properties.to_wire().expect("it can be written");
            assert_eq!(plain_properties(&wire), (properties, false));
        }
    }

    #[test]
    fn an_expiry_that_the_broker_would_refuse_is_left_away() {
        for (expiration, sent) in [(EXPIRATION_MAX, true), (EXPIRATION_MAX + Duration::from_millis(1), false)] {
            let wire = Properties { expiration: Some(expiration), ..Properties::default() }.to_wire().expect("written");
            assert_eq!(wire.expiration().is_some(), sent);
        }
    }

    #[test]
    fn a_text_that_is_too_long_is_named() {
        let properties = Properties { reply_to: Some("x".repeat(256)), ..Properties::default() };
        assert!(properties.to_wire().expect_err("too long").to_string().contains("reply_to takes 256 bytes"));
    }

    #[test]
    fn of_a_body_over_the_limit_only_the_beginning_comes() {
        for (bytes, kept) in [(BODY_BYTES_MAX, BODY_BYTES_MAX), (BODY_BYTES_MAX + 1, BODY_BYTES_OF_TOO_LARGE)] {
            let delivery = Delivery::mock(1, "".into(), "q".into(), false, vec![7; bytes]);
            let taken = taken(delivery, Tag::default(), "q".into());
            assert_eq!((taken.body.len(), taken.body_bytes, taken.is_too_large()), (kept, bytes, kept < bytes));
        }
    }
}
