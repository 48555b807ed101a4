//! Frames as elements of Redis lists and channels, as kombu's virtual transport writes them, and the names of its keys.
//!
//! One element is one JSON text:
//!
//! ```text
//! {"body": base64, "content-encoding": "utf-8", "content-type": "application/json", "headers": {…}, "properties": {…}}
//! ```
//!
//! Source of the format: elements recorded from kombu 5.7.0 and 5.3.7. Producers push at the left end, consumers pop at
//! the right one. Every key and every channel has the `global_keyprefix` of the deployment in front.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::error::Malformed;
use crate::frame::{FRAME_BYTES_MAX, Frame, HEADERS_MAX, Properties};
use crate::json::{self, Members};

/// What separates the parts of a key: a queue from its priority, the parts of a binding.
pub const SEPARATOR: &str = "\u{6}\u{16}";
/// The steps of priority that have a list of their own, as kombu has them by default. 0 is served first.
pub const PRIORITY_STEPS: [u8; 4] = [0, 3, 6, 9];
/// The hash of deliveries that were taken and not acknowledged.
pub const UNACKED: &str = "unacked";
/// The sorted set of the same deliveries by the time when they were taken.
pub const UNACKED_INDEX: &str = "unacked_index";
/// Held by whoever gives back what was not acknowledged in time.
pub const UNACKED_MUTEX: &str = "unacked_mutex";

/// The most members of `properties` and of `delivery_info` are few; this bounds what a stranger may write there.
const PROPERTIES_MAX: usize = 64;

/// An element with its headers as `H`: a map, or a type that takes them as they are read.
#[derive(Deserialize)]
struct Element<'e, H> {
    #[serde(borrow, default)]
    body: Option<Cow<'e, str>>,
    #[serde(borrow, default, rename = "content-encoding")]
    content_encoding: Option<Cow<'e, str>>,
    #[serde(borrow, default, rename = "content-type")]
    content_type: Option<Cow<'e, str>>,
    #[serde(default)]
    headers: Option<H>,
    #[serde(borrow, default)]
    properties: Option<ElementProperties<'e>>,
}

/// The properties of an element. Members of the wrong type count as absent: kombu does not look at them either.
#[derive(Default)]
struct ElementProperties<'e> {
    known: Properties,
    body_encoding: Value,
    names: Vec<Cow<'e, str>>,
}

impl<'e> Members<'e> for ElementProperties<'e> {
    type Value = Value;

    fn put(&mut self, name: Cow<'e, str>, mut value: Value) {
        let known = &mut self.known;
        match &*name {
            "correlation_id" => known.correlation_id = json::text_of(value),
            "reply_to" => known.reply_to = json::text_of(value),
            "delivery_mode" => known.delivery_mode = json::small_number_of(&value),
            "priority" => known.priority = value.as_i64(),
            "expiration" => known.expiration = json::text_of(value),
            "message_id" => known.message_id = json::text_of(value),
            "delivery_tag" => known.delivery_tag = json::text_of(value),
            "delivery_info" => {
                let mut take = |member| value.as_object_mut().and_then(|info| info.remove(member)).unwrap_or_default();
                known.exchange = json::text_of(take("exchange")).unwrap_or_default();
                known.routing_key = json::text_of(take("routing_key")).unwrap_or_default();
                known.redelivered = take("redelivered") == Value::Bool(true);
            }
            "body_encoding" => self.body_encoding = value,
            _ => {}
        }
        self.names.push(name);
    }
}

impl<'de: 'e, 'e> Deserialize<'de> for ElementProperties<'e> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        json::members::<D, ElementProperties<'de>>(deserializer)
    }
}

impl ElementProperties<'_> {
    /// Whether it has more members than what is read; of those with the same name only one counts.
    fn too_many(&mut self) -> bool {
        if self.names.len() > PROPERTIES_MAX {
            self.names.sort_unstable();
            self.names.dedup();
        }
        self.names.len() > PROPERTIES_MAX
    }
}

/// Reads an element of a list or a message of a channel.
///
/// `headers`, `properties`, the delivery tag and the delivery info may be missing: the frame is read without them.
/// # Errors
/// [`Malformed`] when it is not a JSON object, when its body is missing or no base64, or when a limit is broken.
pub fn decode(element: &[u8]) -> Result<Frame, Malformed> {
    let text = json::text("list element", element, FRAME_BYTES_MAX)?;
    json::check_object("list element", text)?;
    let element: Element<'_, Map<String, Value>> = match serde_json::from_str(text) {
        Ok(element) => element,
        // A header may hold a number that JSON does not have: read it once more, slowly.
        Err(_) => return decode_value(json::typed("list element", text)?),
    };
    into_frame(element)
}

fn decode_value(element: Value) -> Result<Frame, Malformed> {
    into_frame(json::read("list element", &element.to_string())?)
}

fn into_frame(element: Element<'_, Map<String, Value>>) -> Result<Frame, Malformed> {
    let Parts { headers, properties, body } = into_parts(element, Map::len)?;
    Ok(Frame { headers, properties, body })
}

/// What [`decode`] reads, with the headers as another type.
pub(crate) struct Parts<H> {
    pub(crate) headers: H,
    pub(crate) properties: Properties,
    pub(crate) body: Vec<u8>,
}

/// Reads an element as [`decode`] does, without making a map of its headers. `len` says how many there are at most.
///
/// `None` when something is wrong with it, or may be: `decode` says what.
pub(crate) fn parts<'e, H>(element: &'e [u8], len: impl FnOnce(&H) -> usize) -> Option<Parts<H>>
where
    H: Deserialize<'e> + Default,
{
    let text = json::text("list element", element, FRAME_BYTES_MAX).ok()?;
    let element: Element<'_, H> = json::read_object("list element", text).ok()?;
    into_parts(element, len).ok()
}

fn into_parts<H: Default>(element: Element<'_, H>, len: impl FnOnce(&H) -> usize) -> Result<Parts<H>, Malformed> {
    let body = element.body.ok_or(Malformed::Missing("`body` of the list element"))?;
    let headers = element.headers.unwrap_or_default();
    let mut properties = element.properties.unwrap_or_default();
    if len(&headers) > HEADERS_MAX {
        return Err(Malformed::TooMany { part: "`headers`", max: HEADERS_MAX });
    }
    if properties.too_many() {
        return Err(Malformed::TooMany { part: "`properties`", max: PROPERTIES_MAX });
    }
    let body = match properties.body_encoding {
        Value::Null => body.into_owned().into_bytes(),
        Value::String(encoding) if encoding == "base64" => {
            STANDARD.decode(body.as_bytes()).map_err(|error| Malformed::damaged("base64 of the body", error))?
        }
        _ => return Err(Malformed::shape("`body_encoding`", "`base64` or absent")),
    };
    let properties = Properties {
        content_type: element.content_type.map(Cow::into_owned),
        content_encoding: element.content_encoding.map(Cow::into_owned),
        ..properties.known
    };
    Ok(Parts { headers, properties, body })
}

/// Writes a frame as an element. It needs a delivery tag that no other frame has: the key under which a consumer keeps it.
pub fn encode(frame: &Frame) -> String {
    let from = &frame.properties;
    let mut properties = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            properties.insert(name.to_owned(), value);
        }
    };
    put("correlation_id", from.correlation_id.clone().map(Value::from));
    put("reply_to", from.reply_to.clone().map(Value::from));
    put("delivery_mode", from.delivery_mode.map(Value::from));
    put("expiration", from.expiration.clone().map(Value::from));
    put("message_id", from.message_id.clone().map(Value::from));
    let mut delivery_info = json!({"exchange": from.exchange, "routing_key": from.routing_key});
    if from.redelivered {
        delivery_info["redelivered"] = Value::Bool(true);
    }
    put("delivery_info", Some(delivery_info));
    put("priority", Some(Value::from(from.priority.unwrap_or(0))));
    put("body_encoding", Some(Value::from("base64")));
    put("delivery_tag", from.delivery_tag.clone().map(Value::from));
    let mut headers = frame.headers.clone();
    if from.redelivered {
        headers.insert("redelivered".to_owned(), Value::Bool(true));
    }
    let element = json!({
        "body": STANDARD.encode(&frame.body),
        "content-encoding": from.content_encoding,
        "content-type": from.content_type,
        "headers": headers,
        "properties": properties,
    });
    json::python_text(&element.to_string())
}

/// The value of the hash [`UNACKED`] under a delivery's tag: `[element, exchange, routing key]`.
///
/// `element` is the text that was taken from the list, unchanged.
pub fn unacked_entry(element: &str, exchange: &str, routing_key: &str) -> String {
    format!("[{element}, {}, {}]", json::quoted(exchange), json::quoted(routing_key))
}

/// Reads a value of the hash [`UNACKED`]: the element to give back, marked as redelivered, with its exchange and routing key.
///
/// # Errors
/// [`Malformed`] when the value is not such an array.
pub fn restored(entry: &[u8]) -> Result<Restored, Malformed> {
    let text = json::text("entry of `unacked`", entry, FRAME_BYTES_MAX)?;
    let (mut element, exchange, routing_key): (Map<String, Value>, String, String) =
        json::typed("entry of `unacked`", text)?;
    mark(&mut element, "headers");
    if let Some(properties) = element.get_mut("properties").and_then(Value::as_object_mut) {
        mark(properties, "delivery_info");
    }
    let element = json::python_text(&Value::Object(element).to_string());
    Ok(Restored { element, exchange, routing_key })
}

fn mark(object: &mut Map<String, Value>, member: &str) {
    let entry = object.entry(member).or_insert_with(|| json!({}));
    if let Some(entry) = entry.as_object_mut() {
        entry.insert("redelivered".to_owned(), Value::Bool(true));
    }
}

/// A delivery that goes back to its queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    /// The element to push.
    pub element: String,
    /// The exchange that it came through; empty for the default one.
    pub exchange: String,
    /// The routing key; the name of the queue when the exchange is the default one.
    pub routing_key: String,
}

/// The key of the list for messages of this priority: `priority` is that of the frame, 0 first.
///
/// ```
/// use windlass_wire::kombu;
/// assert_eq!(kombu::list("celery", 0), "celery");
/// assert_eq!(kombu::list("celery", 4), "celery\u{6}\u{16}3");
/// assert_eq!(kombu::list("celery", 10), "celery\u{6}\u{16}9");
/// ```
pub fn list(queue: &str, priority: i64) -> String {
    let step = PRIORITY_STEPS.into_iter().rev().find(|step| i64::from(*step) <= priority).unwrap_or(0);
    match step {
        0 => queue.to_owned(),
        step => format!("{queue}{SEPARATOR}{step}"),
    }
}

/// The keys of all lists of a queue, the one that is served first first.
pub fn lists(queue: &str) -> [String; 4] {
    PRIORITY_STEPS.map(|step| list(queue, i64::from(step)))
}

/// The key of the set that says which queues are bound to an exchange.
pub fn bindings(exchange: &str) -> String {
    format!("_kombu.binding.{exchange}")
}

/// The key of the same set for queues that never expire, which kombu 5.7 reads besides.
pub fn permanent_bindings(exchange: &str) -> String {
    format!("_kombu.binding_permanent.{exchange}")
}

/// The member of such a set that stands for one queue.
pub fn binding(routing_key: &str, queue: &str) -> String {
    format!("{routing_key}{SEPARATOR}{SEPARATOR}{queue}")
}

/// Reads a member of such a set: routing key, pattern, queue. `None` for a text of another shape.
pub fn parse_binding(member: &str) -> Option<(&str, &str, &str)> {
    let mut parts = member.split(SEPARATOR);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(routing_key), Some(pattern), Some(queue), None) => Some((routing_key, pattern, queue)),
        _ => None,
    }
}

/// The channel of a fanout or topic exchange. It has the number of the database in it: clients of another database do not
/// hear it.
pub fn channel(database: u32, exchange: &str, routing_key: &str) -> String {
    match routing_key {
        "" => format!("/{database}.{exchange}"),
        key => format!("/{database}.{exchange}/{key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_without_base64_has_its_body_as_it_is() {
        let frame = decode(br#"{"body": "[[], {}, {}]", "properties": {"body_encoding": null}}"#).unwrap();
        assert_eq!(frame.body, b"[[], {}, {}]");
        assert_eq!(frame.properties.delivery_tag, None);
    }

    #[test]
    fn elements_that_kill_other_workers_are_refused_with_a_reason() {
        for (element, reason) in [
            (&b"not json"[..], "list element is not JSON that can be read: expected ident at line 1 column 2"),
            (b"[\"e30=\"]", "list element must be a JSON object"),
            (b"7", "list element must be a JSON object"),
            (b"", "list element is not JSON"),
            (br#"{"headers": {}}"#, "`body` of the list element is missing"),
            (br#"{"body": 5}"#, "list element is not JSON"),
            (br#"{"body": "%%%", "properties": {"body_encoding": "base64"}}"#, "base64 of the body is damaged"),
            (
                br#"{"body": "", "properties": {"body_encoding": "rot13"}}"#,
                "`body_encoding` must be `base64` or absent",
            ),
            (b"\xff\xfe", "list element is damaged: not UTF-8"),
        ] {
            let error = decode(element).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{error}");
        }
    }

    #[test]
    fn a_header_with_a_number_that_json_does_not_have_is_read_as_null() {
        let frame = decode(br#"{"body": "", "headers": {"x": NaN}}"#).unwrap();
        assert_eq!(frame.headers["x"], Value::Null);
    }

    #[test]
    fn what_is_given_back_is_marked_as_redelivered_in_both_places() {
        let element = r#"{"body": "e30=", "headers": {"id": "1"}, "properties": {"body_encoding": "base64", "delivery_info": {"exchange": "", "routing_key": "q"}}}"#;
        let back = restored(unacked_entry(element, "", "q").as_bytes()).unwrap();
        assert_eq!((back.exchange.as_str(), back.routing_key.as_str()), ("", "q"));
        let frame = decode(back.element.as_bytes()).unwrap();
        assert!(frame.properties.redelivered);
        assert_eq!(frame.headers["redelivered"], Value::Bool(true));
        assert!(restored(b"[]").is_err());
    }

    #[test]
    fn a_binding_has_three_parts() {
        assert_eq!(parse_binding(&binding("k", "q")), Some(("k", "", "q")));
        assert_eq!(parse_binding("k"), None);
    }

    #[test]
    fn channels_name_the_database() {
        assert_eq!(channel(22, "celery.pidbox", ""), "/22.celery.pidbox");
        assert_eq!(channel(0, "celeryev", "task.multi"), "/0.celeryev/task.multi");
    }
}
