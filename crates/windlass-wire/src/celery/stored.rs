//! A request as text inside of an envelope: headers, properties and canvas, in the JSON of the wire.
//!
//! What is `null` or has its default is not written: its absence is read as the same, by older versions too, which wrote
//! everything.

use std::borrow::Cow;

use jiff::tz::TimeZone;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::canvas::{Canvas, Embed};
use super::headers::Headers;
use super::request::{DELIVERY_MODE, Protocol, Request, TimeLimit};
use super::signature::Signature;
use super::time::iso_time;
use crate::error::Malformed;
use crate::frame::Properties;
use crate::json::{self, Members};

/// What the text says first: whose it is.
const WIRE: &str = "celery";
/// The format of the text. Members may be added; anything else raises it.
const VERSION: u64 = 1;
/// What errors call the text.
const PART: &str = "stored request";

/// The request as text.
pub(super) fn write(request: &Request) -> String {
    json::written(&Written {
        wire: WIRE,
        v: VERSION,
        protocol: match request.protocol {
            Protocol::One => 1,
            Protocol::Two => 2,
        },
        headers: WrittenHeaders(request),
        properties: WrittenProperties(request),
        embed: (!request.canvas.is_empty()).then(|| WrittenCanvas::of(&request.canvas)),
    })
}

/// Reads what [`write`] wrote.
pub(super) fn read(text: &str) -> Result<Request, Malformed> {
    json::check_object(PART, text)?;
    json::read::<Stored<'_>>(PART, &json::finite(text))?.request()
}

/// Reads the origin of an envelope; `None` when another wire wrote it.
pub(super) fn read_origin(text: &str) -> Result<Option<Request>, Malformed> {
    match json::read_object::<Stored<'_>>(PART, text) {
        Ok(stored) if stored.wire == Wire::Celery => stored.request().map(Some),
        Ok(_) => Ok(None),
        // Another wire may have members of these names in other shapes.
        Err(error) if says_celery(text) => Err(error),
        Err(_) => Ok(None),
    }
}

fn says_celery(text: &str) -> bool {
    #[derive(Deserialize)]
    struct Origin {
        wire: String,
    }
    serde_json::from_str(text).is_ok_and(|Origin { wire }| wire == WIRE)
}

/// The text as it is read.
#[derive(Deserialize)]
struct Stored<'t> {
    v: Option<u64>,
    protocol: Option<u64>,
    #[serde(default)]
    headers: Headers,
    #[serde(default)]
    properties: StoredProperties,
    #[serde(borrow)]
    embed: Option<Embed<'t>>,
    #[serde(default)]
    wire: Wire,
}

impl Stored<'_> {
    fn request(self) -> Result<Request, Malformed> {
        if self.v != Some(VERSION) {
            return Err(Malformed::shape("`v` of a stored request", "1: a newer version may have written it"));
        }
        let canvas = self.embed.map_or_else(|| Ok(Canvas::default()), Canvas::decode)?;
        let mut request = Request::decode(self.headers, self.properties.0, canvas, &TimeZone::UTC)?;
        if self.protocol == Some(1) {
            request.protocol = Protocol::One;
        }
        Ok(request)
    }
}

/// Whose text it is. Anything may stand there.
#[derive(PartialEq, Default)]
enum Wire {
    Celery,
    #[default]
    Another,
}

impl<'de> Deserialize<'de> for Wire {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        let celery = serde_json::from_str::<String>(raw.get()).is_ok_and(|wire| wire == WIRE);
        Ok(if celery { Self::Celery } else { Self::Another })
    }
}

/// The properties of the message. Members of the wrong type count as absent.
#[derive(Default)]
struct StoredProperties(Properties);

impl<'t> Members<'t> for StoredProperties {
    type Value = Value;

    fn put(&mut self, name: Cow<'t, str>, value: Value) {
        let Self(properties) = self;
        match &*name {
            "correlation_id" => properties.correlation_id = json::text_of(value),
            "reply_to" => properties.reply_to = json::text_of(value),
            "delivery_mode" => properties.delivery_mode = json::small_number_of(&value),
            "priority" => properties.priority = value.as_i64(),
            "exchange" => properties.exchange = json::text_of(value).unwrap_or_default(),
            "routing_key" => properties.routing_key = json::text_of(value).unwrap_or_default(),
            "redelivered" => properties.redelivered = value == Value::Bool(true),
            "delivery_tag" => properties.delivery_tag = json::text_of(value),
            _ => {}
        }
    }
}

impl<'de> Deserialize<'de> for StoredProperties {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        json::members(deserializer)
    }
}

/// The text as it is written.
#[derive(Serialize)]
struct Written<'r> {
    wire: &'static str,
    v: u64,
    protocol: u64,
    headers: WrittenHeaders<'r>,
    properties: WrittenProperties<'r>,
    #[serde(skip_serializing_if = "Option::is_none")]
    embed: Option<WrittenCanvas<'r>>,
}

struct WrittenHeaders<'r>(&'r Request);

impl Serialize for WrittenHeaders<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(request) = self;
        let mut headers = serializer.serialize_map(None)?;
        for (name, value) in request.extra.iter().filter(|(name, _)| Headers::is_extra(name)) {
            headers.serialize_entry(name, value)?;
        }
        headers.serialize_entry("task", &request.task)?;
        headers.serialize_entry("id", &request.id)?;
        put_given(&mut headers, "root_id", request.root_id.as_deref())?;
        put_given(&mut headers, "parent_id", request.parent_id.as_deref())?;
        put_given(&mut headers, "group", request.group.as_deref())?;
        put_given(&mut headers, "group_index", request.group_index)?;
        put_unless(&mut headers, "retries", &request.retries, &0)?;
        put_given(&mut headers, "eta", request.eta.map(iso_time))?;
        put_given(&mut headers, "expires", request.expires.map(iso_time))?;
        if request.timelimit != TimeLimit::default() {
            headers.serialize_entry("timelimit", &request.timelimit.encode())?;
        }
        put_given(&mut headers, "ignore_result", request.ignore_result)?;
        put_given(&mut headers, "shadow", request.shadow.as_deref())?;
        put_unless(&mut headers, "argsrepr", request.argsrepr.as_str(), "")?;
        put_unless(&mut headers, "kwargsrepr", request.kwargsrepr.as_str(), "")?;
        put_given(&mut headers, "origin", request.origin.as_deref())?;
        put_unless(&mut headers, "replaced_task_nesting", &request.replaced_task_nesting, &0)?;
        put_given(&mut headers, "stamped_headers", request.stamped_headers.as_ref())?;
        if !request.stamps.is_empty() {
            headers.serialize_entry("stamps", &request.stamps)?;
        }
        headers.end()
    }
}

struct WrittenProperties<'r>(&'r Request);

impl Serialize for WrittenProperties<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(request) = self;
        let mut properties = serializer.serialize_map(None)?;
        put_given(&mut properties, "correlation_id", request.correlation_id.as_deref())?;
        put_given(&mut properties, "reply_to", request.reply_to.as_deref())?;
        put_unless(&mut properties, "delivery_mode", &request.delivery_mode, &DELIVERY_MODE)?;
        put_unless(&mut properties, "priority", &request.priority, &0)?;
        put_unless(&mut properties, "exchange", request.exchange.as_str(), "")?;
        put_unless(&mut properties, "routing_key", request.routing_key.as_str(), "")?;
        put_unless(&mut properties, "redelivered", &request.redelivered, &false)?;
        put_given(&mut properties, "delivery_tag", request.delivery_tag.as_deref())?;
        properties.end()
    }
}

fn put_given<M: SerializeMap>(map: &mut M, name: &str, value: Option<impl Serialize>) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, &value))
}

fn put_unless<M: SerializeMap, T: Serialize + PartialEq + ?Sized>(
    map: &mut M,
    name: &str,
    value: &T,
    default: &T,
) -> Result<(), M::Error> {
    if value == default { Ok(()) } else { map.serialize_entry(name, value) }
}

#[derive(Serialize)]
struct WrittenCanvas<'r> {
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    callbacks: &'r [Signature],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errbacks: &'r [Signature],
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    chain: &'r [Signature],
    #[serde(skip_serializing_if = "Option::is_none")]
    chord: Option<&'r Signature>,
}

impl<'r> WrittenCanvas<'r> {
    fn of(canvas: &'r Canvas) -> Self {
        let Canvas { callbacks, errbacks, chain, chord } = canvas;
        Self { callbacks, errbacks, chain, chord: chord.as_deref() }
    }
}
