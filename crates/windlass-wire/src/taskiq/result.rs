//! Results and progress.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use windlass_core::{Failure, Json};

use super::label::Labels;
use super::pickle;
use crate::error::Malformed;
use crate::json::{self, BODY_BYTES_MAX};
use crate::python;

/// How results and schedules are written. Nothing in the bytes says which: both sides have to agree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Serializer {
    /// Pickles of plain data: TaskIQ's default.
    #[default]
    Pickle,
    /// JSON.
    Json,
}

impl Serializer {
    /// Plain data as bytes.
    pub fn encode(self, json: &Json) -> Vec<u8> {
        match self {
            Self::Pickle => pickle::encode(json),
            Self::Json => json::python_text(json.as_str()).into_bytes(),
        }
    }

    /// Bytes as plain data.
    ///
    /// # Errors
    /// [`Malformed`] when they are something else.
    pub fn decode(self, part: &'static str, bytes: &[u8]) -> Result<Json, Malformed> {
        match self {
            Self::Pickle => pickle::decode(bytes),
            Self::Json => json::value(part, json::text(part, bytes, BODY_BYTES_MAX)?),
        }
    }
}

/// The result of a task, under [`result_key`].
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// What the task returned; `null` after an error.
    pub return_value: Json,
    /// Seconds that it ran, with two digits.
    pub execution_time: f64,
    /// Its labels; an object of values of their own types.
    pub labels: Value,
    /// Why it failed.
    pub error: Option<ErrorObject>,
}

#[derive(Deserialize)]
struct Wire {
    is_err: bool,
    #[serde(default = "Json::null")]
    return_value: Json,
    #[serde(default)]
    execution_time: f64,
    #[serde(default)]
    labels: Map<String, Value>,
    #[serde(default)]
    error: Option<ErrorObject>,
}

/// An exception as data. Clients look the class up among the modules that are imported already.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ErrorObject {
    /// The name of the class inside of its module.
    pub exc_type: String,
    /// The arguments of its constructor.
    #[serde(default)]
    pub exc_message: Value,
    /// The module.
    #[serde(default)]
    pub exc_module: Option<String>,
    /// What it was raised from.
    #[serde(default)]
    pub exc_cause: Option<Box<ErrorObject>>,
    /// What was handled when it was raised.
    #[serde(default)]
    pub exc_context: Option<Box<ErrorObject>>,
    /// Whether the context is hidden.
    #[serde(default)]
    pub exc_suppress_context: bool,
}

impl ErrorObject {
    /// An exception of one argument.
    pub fn new(module: &str, class: &str, message: &str) -> Self {
        Self {
            exc_type: class.to_owned(),
            exc_message: Value::Array(vec![Value::from(message)]),
            exc_module: Some(module.to_owned()),
            exc_cause: None,
            exc_context: None,
            exc_suppress_context: false,
        }
    }

    /// A failure of ours, of the class that [`python::Class`] finds for it.
    pub fn of(failure: &Failure) -> Self {
        let python::Class { module, name } = python::Class::of(failure);
        Self::new(&module, &name, &failure.message)
    }

    /// The label `timeout` was passed.
    pub fn timeout() -> Self {
        Self { exc_message: Value::Array(Vec::new()), ..Self::new("builtins", "TimeoutError", "") }
    }

    /// The arguments do not fit.
    pub fn wrong_arguments(message: &str) -> Self {
        Self::new("builtins", "TypeError", message)
    }
}

impl fmt::Display for ErrorObject {
    /// As Python shows it: `ValueError('boom')`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exception = crate::celery::Exception {
            exc_type: self.exc_type.clone(),
            exc_message: self.exc_message.as_array().cloned().unwrap_or_default(),
            exc_module: None,
        };
        exception.fmt(f)
    }
}

impl TaskResult {
    /// The result of a task that ended well.
    pub fn success(return_value: Json, labels: &Labels, ran: std::time::Duration) -> Self {
        Self { return_value, execution_time: rounded(ran), labels: labels.to_value(), error: None }
    }

    /// The result of a task that gave up.
    pub fn failure(error: ErrorObject, labels: &Labels, ran: std::time::Duration) -> Self {
        Self { return_value: Json::null(), execution_time: rounded(ran), labels: labels.to_value(), error: Some(error) }
    }

    /// The result as JSON.
    pub fn to_json(&self) -> Json {
        let error = serde_json::to_value(&self.error).unwrap_or(Value::Null);
        Json::trusted(format!(
            r#"{{"is_err": {}, "log": null, "return_value": {}, "execution_time": {}, "labels": {}, "error": {error}}}"#,
            self.error.is_some(),
            self.return_value.as_str(),
            // A float stays one: `0.0`, not `0`.
            serde_json::Number::from_f64(self.execution_time).unwrap_or_else(|| 0.into()),
            self.labels,
        ))
    }

    /// The result as its backend stores it.
    pub fn encode(&self, serializer: Serializer) -> Vec<u8> {
        serializer.encode(&self.to_json())
    }

    /// Reads a stored result.
    ///
    /// # Errors
    /// [`Malformed`] when it is no result, or a pickle of more than plain data.
    pub fn decode(bytes: &[u8], serializer: Serializer) -> Result<Self, Malformed> {
        let text = serializer.decode("result", bytes)?;
        json::check_object("result", text.as_str())?;
        let wire: Wire = json::object("result", text.as_str())?;
        let error = wire.error.or_else(|| wire.is_err.then(|| ErrorObject::new("builtins", "Exception", "")));
        Ok(Self {
            return_value: wire.return_value,
            execution_time: wire.execution_time,
            labels: Value::Object(wire.labels),
            error: error.filter(|_| wire.is_err),
        })
    }
}

fn rounded(ran: std::time::Duration) -> f64 {
    (ran.as_secs_f64() * 100.0).round() / 100.0
}

/// How far a task is, under [`progress_key`].
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// `STARTED`, `FAILURE`, `SUCCESS`, `RETRY`, or a state of the application's own.
    pub state: String,
    /// Anything.
    pub meta: Json,
}

impl Progress {
    /// The progress as its backend stores it.
    pub fn encode(&self, serializer: Serializer) -> Vec<u8> {
        let text = format!(r#"{{"state": {}, "meta": {}}}"#, json::quoted(&self.state), self.meta.as_str());
        serializer.encode(&Json::trusted(text))
    }

    /// Reads a stored progress.
    ///
    /// # Errors
    /// [`Malformed`] when it is something else.
    pub fn decode(bytes: &[u8], serializer: Serializer) -> Result<Self, Malformed> {
        #[derive(Deserialize)]
        struct Wire {
            state: String,
            #[serde(default = "Json::null")]
            meta: Json,
        }
        let text = serializer.decode("progress", bytes)?;
        json::check_object("progress", text.as_str())?;
        let Wire { state, meta } = json::object("progress", text.as_str())?;
        Ok(Self { state, meta })
    }
}

/// The key of a task's result: the bare id, or `<prefix>:<id>`.
pub fn result_key(prefix: Option<&str>, task_id: &str) -> String {
    match prefix {
        None => task_id.to_owned(),
        Some(prefix) => format!("{prefix}:{task_id}"),
    }
}

/// The key of a task's progress.
pub fn progress_key(prefix: Option<&str>, task_id: &str) -> String {
    format!("{}__progress", result_key(prefix, task_id))
}
