//! A message as every transport knows it: headers, properties, body.

use serde_json::{Map, Value};

/// The largest frame that is read, in bytes: the largest arguments in base64, and a canvas of the same size.
pub const FRAME_BYTES_MAX: usize = 24 * 1024 * 1024;
/// The most headers of a frame.
pub const HEADERS_MAX: usize = 256;

/// A message as a transport hands it over or takes it.
///
/// On AMQP its parts are those of a content frame; [`kombu`](crate::kombu) writes the same parts as one JSON text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Frame {
    /// The headers. AMQP tables become JSON: long strings are text, timestamps are seconds since 1970.
    pub headers: Map<String, Value>,
    /// The properties.
    pub properties: Properties,
    /// The body as it travels: serialised, encoded, perhaps compressed.
    pub body: Vec<u8>,
}

/// The properties of a message, and where it is addressed to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties {
    /// The serialiser: `application/json`.
    pub content_type: Option<String>,
    /// The character set: `utf-8`.
    pub content_encoding: Option<String>,
    /// The id of the task that it asks for or answers.
    pub correlation_id: Option<String>,
    /// Where an answer goes.
    pub reply_to: Option<String>,
    /// 2: survives a restart of the broker, 1: does not.
    pub delivery_mode: Option<u8>,
    /// In the direction of the transport.
    pub priority: Option<i64>,
    /// After this many milliseconds the broker drops it, as text.
    pub expiration: Option<String>,
    /// An id of the message, not of the task.
    pub message_id: Option<String>,
    /// What the transport calls this delivery.
    pub delivery_tag: Option<String>,
    /// The exchange; empty for the default one.
    pub exchange: String,
    /// The routing key; the name of the queue when the exchange is the default one.
    pub routing_key: String,
    /// The transport says that it was delivered before.
    pub redelivered: bool,
}
