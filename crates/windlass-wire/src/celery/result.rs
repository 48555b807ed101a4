//! Result documents: what `AsyncResult` of a Python client reads, in a Redis key or from a reply queue.
//!
//! A waiting client subscribes to the key and reads it: the writer sets **and publishes** the same text, and never over a
//! stored `SUCCESS`. With `rpc://` the same document is published to the queue `reply_to` of the request, with the task's
//! id as correlation id.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use windlass_core::{Failure, Json, Timestamp};

use super::repr;
use super::request::Request;
use super::time::iso_time;
use crate::error::Malformed;
use crate::frame::{Frame, Properties};
use crate::json::{self, BODY_BYTES_MAX, PythonObject};
use crate::python;

/// The longest traceback that is written, in bytes.
pub const TRACEBACK_BYTES_MAX: usize = 16 * 1024;

/// What became of a task, in Celery's words. Custom texts are legal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing is stored.
    Pending,
    /// In events only.
    Received,
    /// A worker runs it.
    Started,
    /// It failed and runs again.
    Retry,
    /// It ended well.
    Success,
    /// It gave up.
    Failure,
    /// It was revoked, expired or terminated.
    Revoked,
    /// A state of the application's own, such as `PROGRESS`.
    Custom(String),
}

impl State {
    /// The state as it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Pending => "PENDING",
            Self::Received => "RECEIVED",
            Self::Started => "STARTED",
            Self::Retry => "RETRY",
            Self::Success => "SUCCESS",
            Self::Failure => "FAILURE",
            Self::Revoked => "REVOKED",
            Self::Custom(text) => text,
        }
    }

    /// Whether nothing comes after it.
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Success | Self::Failure | Self::Revoked)
    }

    /// Whether its result is an error.
    pub fn is_exception(&self) -> bool {
        matches!(self, Self::Retry | Self::Failure | Self::Revoked)
    }
}

impl From<&str> for State {
    fn from(text: &str) -> Self {
        match text {
            "PENDING" => Self::Pending,
            "RECEIVED" => Self::Received,
            "STARTED" => Self::Started,
            "RETRY" => Self::Retry,
            "SUCCESS" => Self::Success,
            "FAILURE" => Self::Failure,
            "REVOKED" => Self::Revoked,
            custom => Self::Custom(custom.to_owned()),
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl Serialize for State {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for State {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        std::borrow::Cow::<'de, str>::deserialize(deserializer).map(|text| Self::from(&*text))
    }
}

/// An exception as data: `{"exc_type", "exc_message", "exc_module"}`. Clients look the class up and import nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Exception {
    /// The name of the class inside of its module.
    pub exc_type: String,
    /// The arguments of its constructor.
    #[serde(deserialize_with = "arguments")]
    pub exc_message: Vec<Value>,
    /// The module.
    #[serde(default)]
    pub exc_module: Option<String>,
}

fn arguments<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Value>, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Array(arguments) => arguments,
        Value::Null => Vec::new(),
        one => vec![one],
    })
}

impl Exception {
    /// An exception of one argument.
    pub fn new(module: &str, class: &str, message: impl Into<Value>) -> Self {
        Self { exc_type: class.to_owned(), exc_message: vec![message.into()], exc_module: Some(module.to_owned()) }
    }

    /// A failure of ours, of the class that [`python::Class`] finds for it.
    pub fn of(failure: &Failure) -> Self {
        let python::Class { module, name } = python::Class::of(failure);
        Self::new(&module, &name, failure.message.as_str())
    }

    /// The task was revoked: `revoked`, `expired` or `terminated`.
    pub fn revoked(why: &str) -> Self {
        Self::new("celery.exceptions", "TaskRevokedError", why)
    }

    /// No worker knows this name.
    pub fn not_registered(task: &str) -> Self {
        Self::new("celery.exceptions", "NotRegistered", task)
    }

    /// A part of a chord failed.
    pub fn chord(part: &str, error: &Self) -> Self {
        Self::new("celery.exceptions", "ChordError", format!("Dependency {part} raised {error}"))
    }

    /// The hard limit passed.
    pub fn hard_limit(limit: std::time::Duration) -> Self {
        let seconds = limit.as_secs_f64();
        let seconds = if limit.subsec_nanos() == 0 { Value::from(limit.as_secs()) } else { Value::from(seconds) };
        Self::new("billiard.exceptions", "TimeLimitExceeded", seconds)
    }

    /// The soft limit passed and the task let it.
    pub fn soft_limit() -> Self {
        Self {
            exc_type: "SoftTimeLimitExceeded".to_owned(),
            exc_message: Vec::new(),
            exc_module: Some("billiard.exceptions".to_owned()),
        }
    }

    /// The process that ran the task is gone.
    pub fn worker_lost(message: &str) -> Self {
        Self::new("billiard.exceptions", "WorkerLostError", message)
    }
}

impl fmt::Display for Exception {
    /// As Python shows it: `ValueError('boom')`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let arguments: Vec<String> =
            self.exc_message.iter().map(|argument| repr::value(&Json::trusted(argument.to_string()))).collect();
        write!(f, "{}({})", self.exc_type, arguments.join(", "))
    }
}

/// A result document. The members after `task_id` are written only with `result_extended`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ResultDocument {
    /// What became of the task.
    pub status: State,
    /// The return value; an exception after a failure; the process after a start.
    #[serde(default = "Json::null")]
    pub result: Json,
    /// The traceback of a failure.
    #[serde(default)]
    pub traceback: Option<String>,
    /// What the task published: result tuples, `[[id, parent], children]`.
    #[serde(default)]
    pub children: Option<Vec<Value>>,
    /// When it ended, ISO 8601.
    #[serde(default)]
    pub date_done: Option<String>,
    /// The group that it is part of.
    #[serde(default)]
    pub group_id: Option<String>,
    /// The task that published it.
    #[serde(default)]
    pub parent_id: Option<String>,
    /// Its id.
    #[serde(default)]
    pub task_id: Option<String>,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Its positional arguments.
    #[serde(default)]
    pub args: Option<Json>,
    /// Its keyword arguments.
    #[serde(default)]
    pub kwargs: Option<Json>,
    /// Who ran it.
    #[serde(default)]
    pub worker: Option<String>,
    /// How many runs there were before.
    #[serde(default)]
    pub retries: Option<u32>,
    /// Where it waited.
    #[serde(default)]
    pub queue: Option<String>,
}

impl ResultDocument {
    fn of(request: &Request, status: State, result: Json) -> Self {
        Self {
            status,
            result,
            traceback: None,
            children: Some(Vec::new()),
            date_done: None,
            group_id: request.group.clone(),
            parent_id: request.parent_id.clone(),
            task_id: Some(request.id.clone()),
            name: None,
            args: None,
            kwargs: None,
            worker: None,
            retries: None,
            queue: None,
        }
    }

    /// A worker runs the task.
    pub fn started(request: &Request, hostname: &str, pid: u32) -> Self {
        let process = format!(r#"{{"pid": {pid}, "hostname": {}}}"#, json::quoted(hostname));
        Self::of(request, State::Started, Json::trusted(process))
    }

    /// It ended well; `children` is what [`follow::success`](super::follow::success) published.
    pub fn success(request: &Request, result: Json, children: Vec<Value>, at: Timestamp) -> Self {
        Self { children: Some(children), date_done: Some(iso_time(at)), ..Self::of(request, State::Success, result) }
    }

    /// It gave up.
    pub fn failure(request: &Request, error: &Exception, traceback: Option<&str>, at: Timestamp) -> Self {
        Self {
            traceback: traceback.map(cut),
            date_done: Some(iso_time(at)),
            ..Self::of(request, State::Failure, exception_json(error))
        }
    }

    /// It failed and runs again: the next run has the same id and is its child.
    pub fn retry(request: &Request, error: &Exception, traceback: Option<&str>) -> Self {
        let child = serde_json::json!([[request.id, null], null]);
        Self {
            traceback: traceback.map(cut),
            children: Some(vec![child]),
            ..Self::of(request, State::Retry, exception_json(error))
        }
    }

    /// It was revoked, expired or terminated.
    pub fn revoked(request: &Request, why: &str, at: Timestamp) -> Self {
        Self {
            date_done: Some(iso_time(at)),
            ..Self::of(request, State::Revoked, exception_json(&Exception::revoked(why)))
        }
    }

    /// Reads a document.
    ///
    /// # Errors
    /// [`Malformed`] when it is not an object with a `status`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let text = json::text("result", bytes, BODY_BYTES_MAX)?;
        json::check_object("result", text)?;
        let checked = json::value("result", text)?;
        json::object("result", checked.as_str())
    }

    /// The document as JSON text.
    pub fn encode(&self) -> String {
        let mut object = PythonObject::new();
        object.text("status", self.status.as_str());
        object.json("result", self.result.as_str());
        object.nullable("traceback", self.traceback.as_deref());
        match self.children.as_deref() {
            None => object.json("children", "null"),
            Some([]) => object.json("children", "[]"),
            Some(children) => object.json("children", &json::written(children)),
        }
        object.nullable("date_done", self.date_done.as_deref());
        let texts = [
            ("group_id", &self.group_id),
            ("parent_id", &self.parent_id),
            ("name", &self.name),
            ("worker", &self.worker),
            ("queue", &self.queue),
            ("task_id", &self.task_id),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                object.text(name, text);
            }
        }
        for (name, value) in [("args", &self.args), ("kwargs", &self.kwargs)] {
            if let Some(value) = value {
                object.json(name, value.as_str());
            }
        }
        if let Some(retries) = self.retries {
            object.json("retries", &retries.to_string());
        }
        object.end()
    }

    /// The exception of a task that failed, was revoked or runs again; `None` otherwise.
    pub fn exception(&self) -> Option<Exception> {
        if !self.status.is_exception() {
            return None;
        }
        self.result.to().ok()
    }

    /// The document as a frame for the queue `reply_to` of a request: the result backend `rpc://`.
    pub fn reply(&self, reply_to: &str) -> Frame {
        Frame {
            headers: serde_json::Map::new(),
            properties: Properties {
                content_type: Some("application/json".to_owned()),
                content_encoding: Some("utf-8".to_owned()),
                correlation_id: self.task_id.clone(),
                delivery_mode: Some(1),
                priority: Some(0),
                routing_key: reply_to.to_owned(),
                ..Properties::default()
            },
            body: self.encode().into_bytes(),
        }
    }
}

fn exception_json(error: &Exception) -> Json {
    let members = [
        ("exc_type", json::quoted(&error.exc_type)),
        ("exc_message", Value::from(error.exc_message.clone()).to_string()),
        ("exc_module", error.exc_module.as_deref().map_or_else(|| "null".to_owned(), json::quoted)),
    ];
    let members = members.map(|(name, value)| format!("\"{name}\": {value}"));
    Json::trusted(format!("{{{}}}", members.join(", ")))
}

fn cut(text: &str) -> String {
    let end = (0..=TRACEBACK_BYTES_MAX.min(text.len())).rev().find(|at| text.is_char_boundary(*at));
    text[..end.unwrap_or(0)].to_owned()
}

/// One counted part of a chord: a member of the set `<key>.j`.
#[derive(Debug, Clone, PartialEq)]
pub struct ChordPart {
    /// The id of the task.
    pub task_id: String,
    /// What became of it: a ready state.
    pub state: State,
    /// Its result, or its exception.
    pub result: Json,
}

impl ChordPart {
    /// The part that a finished task is; the document is the one that is stored for it.
    pub fn of(document: &ResultDocument) -> Self {
        Self {
            task_id: document.task_id.clone().unwrap_or_default(),
            state: document.status.clone(),
            result: document.result.clone(),
        }
    }

    /// The member as JSON: `[1, id, state, result]`.
    pub fn encode(&self) -> String {
        let state = json::quoted(self.state.as_str());
        json::python_text(&format!("[1, {}, {state}, {}]", json::quoted(&self.task_id), self.result.as_str()))
    }

    /// Reads a member.
    ///
    /// # Errors
    /// [`Malformed`] when it has another shape.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let text = json::text("part of a chord", bytes, BODY_BYTES_MAX)?;
        let checked = json::value("part of a chord", text)?;
        let (_, task_id, state, result): (Json, String, State, Json) = json::typed("part of a chord", checked.as_str())
            .map_err(|_| Malformed::shape("part of a chord", "[1, id, state, result]"))?;
        Ok(Self { task_id, state, result })
    }
}

/// A result tuple: `[[id, parent], children]`.
pub fn result_tuple(id: &str, parent: Option<Value>, children: Option<Vec<Value>>) -> Value {
    serde_json::json!([[id, parent], children])
}

/// The key of a task's result, which is also the channel that waiting clients listen to.
///
/// ```
/// use windlass_wire::celery::result::key;
/// assert_eq!(key("", "42"), "celery-task-meta-42");
/// assert_eq!(key("app", "42"), "app_celery-task-meta-42");
/// assert_eq!(key("app:", "42"), "app:celery-task-meta-42");
/// ```
pub fn key(global_keyprefix: &str, id: &str) -> String {
    format!("{}celery-task-meta-{id}", prefix(global_keyprefix))
}

/// The key of a group's result; with `.j`, `.t`, `.s`, `.d` and `.c` behind it those of a chord's counters.
pub fn group_key(global_keyprefix: &str, group: &str) -> String {
    format!("{}celery-taskset-meta-{group}", prefix(global_keyprefix))
}

fn prefix(prefix: &str) -> String {
    if prefix.is_empty() || prefix.ends_with([':', '_', '-', '.']) { prefix.to_owned() } else { format!("{prefix}_") }
}
