//! Labels: text on the wire, with a code for the type that it had.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Number, Value, json};
use windlass_core::envelope::{HEADERS_BYTES_MAX, HEADERS_MAX};
use windlass_core::{Envelope, Json};

use crate::error::Malformed;
use crate::json;

/// The most labels of a message.
pub const LABELS_MAX: usize = 256;
/// The header of an envelope that says which of its headers are labels, and of which types.
pub const LABELS_HEADER: &str = "taskiq";
/// The code that stands for "no code" in that header.
const UNTYPED: u64 = 0;

/// The value of a label.
#[derive(Debug, Clone, PartialEq)]
pub enum Label {
    /// Code 1: anything else, as Python shows it. It stays text.
    Any(String),
    /// Code 2.
    Int(i64),
    /// Code 3.
    Text(String),
    /// Code 4.
    Float(f64),
    /// Code 5: `True` or `False`.
    Bool(bool),
    /// Code 6: base64.
    Bytes(Vec<u8>),
    /// No code: the value as it came.
    Untyped(Value),
}

impl Label {
    /// From the value on the wire and its code, if it has one.
    fn decode(value: Value, code: Option<u64>) -> Result<Self, Malformed> {
        let Some(code) = code.filter(|code| *code != UNTYPED) else { return Ok(Self::Untyped(value)) };
        // Clients send text; Python's conversions take the value itself as well.
        let text = match value {
            Value::String(text) => text,
            other => other.to_string(),
        };
        match code {
            1 => Ok(Self::Any(text)),
            2 => text.trim().parse().map(Self::Int).map_err(|_| Malformed::shape("label of type 2", "a whole number")),
            3 => Ok(Self::Text(text)),
            4 => {
                let number = text.trim().parse().map_err(|_| Malformed::shape("label of type 4", "a number"))?;
                Ok(Self::Float(number))
            }
            5 => Ok(Self::Bool(text.eq_ignore_ascii_case("true"))),
            6 => {
                let bytes = STANDARD.decode(text.as_bytes());
                bytes.map(Self::Bytes).map_err(|error| Malformed::damaged("label of type 6", error))
            }
            _ => Err(Malformed::shape("code of a label", "1 to 6")),
        }
    }

    /// From plain data, as Python's client prepares a label.
    pub fn from_value(value: Value) -> Self {
        match value {
            Value::String(text) => Self::Text(text),
            Value::Bool(flag) => Self::Bool(flag),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => Self::Int(whole),
                None => Self::Float(number.as_f64().unwrap_or_default()),
            },
            other => Self::Any(crate::celery::repr_of(&Json::trusted(other.to_string()))),
        }
    }

    /// The code of its type; `None` for a label without one.
    pub fn code(&self) -> Option<u64> {
        match self {
            Self::Any(_) => Some(1),
            Self::Int(_) => Some(2),
            Self::Text(_) => Some(3),
            Self::Float(_) => Some(4),
            Self::Bool(_) => Some(5),
            Self::Bytes(_) => Some(6),
            Self::Untyped(_) => None,
        }
    }

    /// As it is written on the wire.
    pub fn text(&self) -> String {
        match self {
            Self::Any(text) | Self::Text(text) | Self::Untyped(Value::String(text)) => text.clone(),
            Self::Int(number) => number.to_string(),
            Self::Float(number) => format!("{number:?}"),
            Self::Bool(true) => "True".to_owned(),
            Self::Bool(false) => "False".to_owned(),
            Self::Bytes(bytes) => STANDARD.encode(bytes),
            Self::Untyped(value) => value.to_string(),
        }
    }

    /// As a result shows it: a number is a number again. Bytes are text with what is not UTF-8 replaced.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Any(text) | Self::Text(text) => Value::from(text.as_str()),
            Self::Int(number) => Value::from(*number),
            Self::Float(number) => Number::from_f64(*number).map_or(Value::Null, Value::Number),
            Self::Bool(flag) => Value::Bool(*flag),
            Self::Bytes(bytes) => Value::from(String::from_utf8_lossy(bytes)),
            Self::Untyped(value) => value.clone(),
        }
    }
}

/// The labels of a task by their names.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Labels(pub BTreeMap<String, Label>);

impl Labels {
    /// From `labels` and `labels_types`.
    pub(super) fn decode(labels: Map<String, Value>, types: &Map<String, Value>) -> Result<Self, Malformed> {
        if labels.len() > LABELS_MAX {
            return Err(Malformed::TooMany { part: "`labels`", max: LABELS_MAX });
        }
        let typed = labels.into_iter().map(|(name, value)| {
            let code = match types.get(&name) {
                None | Some(Value::Null) => None,
                Some(code) => Some(code.as_u64().ok_or(Malformed::shape("code of a label", "1 to 6"))?),
            };
            Label::decode(value, code).map(|label| (name, label))
        });
        typed.collect::<Result<_, _>>().map(Self)
    }

    /// As `labels` and `labels_types`.
    pub(super) fn encode(&self) -> (Value, Value) {
        let labels = self.0.iter().map(|(name, label)| match label {
            Label::Untyped(value) => (name.clone(), value.clone()),
            label => (name.clone(), Value::from(label.text())),
        });
        let types = self.0.iter().filter_map(|(name, label)| Some((name.clone(), Value::from(label.code()?))));
        (Value::Object(labels.collect()), Value::Object(types.collect()))
    }

    /// As a result shows them.
    pub fn to_value(&self) -> Value {
        Value::Object(self.0.iter().map(|(name, label)| (name.clone(), label.to_value())).collect())
    }

    /// Puts the labels into the envelope's headers as text, and their types into [`LABELS_HEADER`].
    ///
    /// # Errors
    /// [`Malformed`] when the headers would break their limit or a label is called [`LABELS_HEADER`]; the envelope is unchanged.
    pub fn attach(&self, envelope: &mut Envelope) -> Result<(), Malformed> {
        if self.0.contains_key(LABELS_HEADER) {
            return Err(Malformed::shape("the name of a label", "another one than `taskiq`, which is taken"));
        }
        let types: Map<String, Value> =
            self.0.iter().map(|(name, label)| (name.clone(), json!(label.code().unwrap_or(UNTYPED)))).collect();
        let mut headers = envelope.headers.clone();
        headers.extend(self.0.iter().map(|(name, label)| (name.clone(), label.text())));
        headers.insert(LABELS_HEADER.to_owned(), json!({"v": 1, "types": types}).to_string());
        let size = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        if size > HEADERS_BYTES_MAX {
            return Err(Malformed::TooLarge { part: "labels", size, max: HEADERS_BYTES_MAX });
        }
        if headers.len() > HEADERS_MAX {
            return Err(Malformed::TooMany { part: "labels of an envelope", max: HEADERS_MAX });
        }
        envelope.headers = headers;
        Ok(())
    }

    /// The labels that [`Labels::attach`] put into an envelope; `None` when there are none: the task is not TaskIQ's.
    ///
    /// # Errors
    /// [`Malformed`] when the header is damaged or a newer version wrote it.
    pub fn of(envelope: &Envelope) -> Result<Option<Self>, Malformed> {
        let Some(header) = envelope.headers.get(LABELS_HEADER) else { return Ok(None) };
        let header: Map<String, Value> = json::object("header `taskiq`", header)?;
        let (Some(1), Some(Value::Object(types))) = (header.get("v").and_then(Value::as_u64), header.get("types"))
        else {
            return Err(Malformed::shape("header `taskiq`", "of version 1: a newer version may have written it"));
        };
        let labels = types.iter().filter_map(|(name, code)| {
            let text = envelope.headers.get(name)?;
            let untyped = code.as_u64() == Some(UNTYPED);
            // What had no code is text, or the JSON of a value that was none.
            let value =
                if untyped { serde_json::from_str(text).ok().filter(|value: &Value| !value.is_string()) } else { None };
            Some((name.clone(), value.unwrap_or_else(|| Value::from(text.as_str()))))
        });
        Self::decode(labels.collect(), types).map(Some)
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.0.get(name).and_then(|label| label.text().trim().parse().ok())
    }

    fn count(&self, name: &str) -> Option<u32> {
        self.0.get(name).and_then(|label| label.text().trim().parse().ok())
    }

    /// Label `timeout`: the task is over after this long.
    pub fn timeout(&self) -> Option<std::time::Duration> {
        let seconds = self.number("timeout").filter(|seconds| *seconds > 0.0)?;
        std::time::Duration::try_from_secs_f64(seconds).ok()
    }

    /// Label `priority`: 9 is first.
    pub fn priority(&self) -> Option<i64> {
        self.number("priority").map(|number| number as i64)
    }

    /// Label `delay`: seconds before the first run, which the broker waits for; the base of later delays.
    pub fn delay(&self) -> Option<std::time::Duration> {
        self.number("delay").and_then(|seconds| std::time::Duration::try_from_secs_f64(seconds).ok())
    }

    /// Label `retry_on_error`: any text but `true` is no.
    pub fn retry_on_error(&self) -> Option<bool> {
        self.0.get("retry_on_error").map(|label| label.text().eq_ignore_ascii_case("true"))
    }

    /// Label `max_retries`: the number of **runs**, not of repeats.
    pub fn max_runs(&self) -> Option<u32> {
        self.count("max_retries")
    }

    /// Label `_retries`: how many runs failed before this one.
    pub fn failed_runs(&self) -> u32 {
        self.count("_retries").unwrap_or(0)
    }

    /// Label `ack_type`: `when_received`, `when_executed`, `when_saved` or `manual`.
    pub fn ack_type(&self) -> Option<String> {
        self.0.get("ack_type").map(Label::text)
    }
}
