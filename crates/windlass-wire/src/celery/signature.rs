//! Signatures: a task that is described and not yet sent.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use windlass_core::Json;

use crate::error::Malformed;
use crate::json;

/// The most signatures in one list of a canvas.
pub const SIGNATURES_MAX: usize = 10_000;

/// A task that is described and not yet sent: a step of a chain, a callback, a member of a group.
///
/// `{"task", "args", "kwargs", "options", "subtask_type", "immutable"}`; missing members have their defaults, unknown ones
/// are dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Signature {
    /// The name of the task; `celery.chain`, `celery.group` and `celery.chord` hold other signatures.
    pub task: String,
    /// Positional arguments: an array.
    #[serde(default = "no_args", deserialize_with = "array")]
    pub args: Json,
    /// Keyword arguments: an object.
    #[serde(default = "no_kwargs", deserialize_with = "object")]
    pub kwargs: Json,
    /// Options, as in a direct call: `task_id`, `queue`, `countdown`, `link`, `chord` and so on.
    #[serde(default, deserialize_with = "nullable")]
    pub options: Map<String, Value>,
    /// `group`, `chord`, `chain`, … for the built-in names.
    #[serde(default)]
    pub subtask_type: Option<String>,
    /// It takes its arguments as they are, without the result of the task before.
    #[serde(default, deserialize_with = "nullable")]
    pub immutable: bool,
    /// How many results the body of a chord waits for, when the client says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chord_size: Option<Value>,
}

pub(super) fn no_args() -> Json {
    Json::trusted("[]")
}

pub(super) fn no_kwargs() -> Json {
    Json::trusted("{}")
}

fn array<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
    let json = Json::deserialize(deserializer)?;
    match json.as_str().as_bytes().first() {
        Some(b'[') => Ok(json),
        Some(b'n') => Ok(no_args()),
        _ => Err(serde::de::Error::custom("`args` of a signature must be an array")),
    }
}

fn object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Json, D::Error> {
    let json = Json::deserialize(deserializer)?;
    match json.as_str().as_bytes().first() {
        Some(b'{') => Ok(json),
        Some(b'n') => Ok(no_kwargs()),
        _ => Err(serde::de::Error::custom("`kwargs` of a signature must be an object")),
    }
}

fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Signature {
    /// A signature without arguments and options.
    pub fn new(task: impl Into<String>) -> Self {
        Self {
            task: task.into(),
            args: no_args(),
            kwargs: no_kwargs(),
            options: Map::new(),
            subtask_type: None,
            immutable: false,
            chord_size: None,
        }
    }

    /// The same with positional arguments: a JSON array.
    ///
    /// # Errors
    /// [`Malformed::Shape`] for any other JSON.
    pub fn with_args(self, args: Json) -> Result<Self, Malformed> {
        if !args.as_str().starts_with('[') {
            return Err(Malformed::shape("`args` of a signature", "an array"));
        }
        Ok(Self { args, ..self })
    }

    /// The same with one more option.
    #[must_use]
    pub fn option(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.options.insert(name.to_owned(), value.into());
        self
    }

    /// `celery.group`: tasks side by side.
    pub fn group(id: &str, tasks: &[Self]) -> Self {
        let kwargs = format!(r#"{{"tasks": {}}}"#, json::written(tasks));
        Self {
            kwargs: Json::trusted(kwargs),
            subtask_type: Some("group".to_owned()),
            ..Self::new("celery.group").option("task_id", id)
        }
    }

    /// `celery.chord`: a group and the task that gets its results.
    pub fn chord(id: &str, header: &[Self], body: &Self) -> Self {
        let (header, body) = (json::written(&Self::group(id, header)), json::written(body));
        Self {
            kwargs: Json::trusted(format!(r#"{{"kwargs": {{}}, "header": {header}, "body": {body}}}"#)),
            subtask_type: Some("chord".to_owned()),
            ..Self::new("celery.chord").option("task_id", id)
        }
    }

    /// An option that is text; `null` and other types count as absent.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.options.get(name).and_then(Value::as_str)
    }

    /// The chord that waits for it.
    ///
    /// # Errors
    /// [`Malformed`] when it is no signature.
    pub fn counts_for(&self) -> Result<Option<Box<Self>>, Malformed> {
        match self.options.get("chord") {
            None | Some(Value::Null) => Ok(None),
            Some(chord) => one("`chord`", text("`chord`", chord)?.as_str()).map(Box::new).map(Some),
        }
    }

    /// An option in seconds; what is negative or no number counts as absent.
    pub(super) fn seconds(&self, name: &str) -> Option<Duration> {
        self.options.get(name).and_then(Value::as_f64).and_then(|secs| Duration::try_from_secs_f64(secs).ok())
    }

    /// An option that is a list of signatures, or one signature.
    pub(super) fn signatures(&self, name: &'static str) -> Result<Vec<Self>, Malformed> {
        self.options.get(name).map_or(Ok(Vec::new()), |value| list(name, text(name, value)?.as_str()))
    }

    /// What a built-in name holds: `tasks` of a group or chain, `header` and `body` of a chord.
    pub(super) fn inner(&self, name: &'static str) -> Result<Vec<Self>, Malformed> {
        let mut kwargs: BTreeMap<String, Json> = json::object("`kwargs` of a signature", self.kwargs.as_str())?;
        match kwargs.remove(name) {
            Some(value) => list(name, value.as_str()),
            None => Ok(Vec::new()),
        }
    }

    /// The body of a chord.
    pub(super) fn inner_body(&self) -> Result<Option<Self>, Malformed> {
        if self.task == "celery.chord" { self.inner("body").map(|mut bodies| bodies.pop()) } else { Ok(None) }
    }
}

/// Reads a list of signatures: an array, one signature, or nothing.
pub(super) fn list(part: &'static str, value: &str) -> Result<Vec<Signature>, Malformed> {
    let entries: Vec<&RawValue> = match value.as_bytes().first() {
        Some(b'n') => return Ok(Vec::new()),
        Some(b'[') => json::read(part, value)?,
        Some(b'{') => return Ok(vec![one(part, value)?]),
        _ => return Err(Malformed::shape(part, "a list of signatures")),
    };
    if entries.len() > SIGNATURES_MAX {
        return Err(Malformed::TooMany { part, max: SIGNATURES_MAX });
    }
    entries.into_iter().map(|entry| one(part, entry.get())).collect()
}

/// Reads one signature.
pub(super) fn one(part: &'static str, value: &str) -> Result<Signature, Malformed> {
    if !value.starts_with('{') {
        return Err(Malformed::shape(part, "a signature: an object with a `task`"));
    }
    json::read(part, value)
}

/// An option as text.
fn text(part: &'static str, value: &Value) -> Result<Json, Malformed> {
    Json::of(value).map_err(|error| Malformed::NotJson { part, reason: error.to_string() })
}
