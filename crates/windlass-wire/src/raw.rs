//! Bare JSON: what a service pushes into a list without any framework.
//!
//! A [`Shape`] says what an object means:
//!
//! | shape | the object is |
//! |---|---|
//! | [`Shape::Described`] | a description of a task: `{"task": "mail", "args": {"to": "a@b"}}` |
//! | [`Shape::Arguments`] | the arguments by name of one known task |
//! | [`Shape::Whole`] | one argument of one known task, kept byte for byte |
//!
//! A description has these members; only `task` is needed and unknown ones are refused:
//!
//! | member | type | meaning |
//! |---|---|---|
//! | `task` | text | the name of the task |
//! | `args` | object or array | arguments by name or by position |
//! | `kwargs` | object | arguments by name besides those by position |
//! | `id` | text | the id of the task; a new one without it |
//! | `priority` | 0 to 9 | 9 is first |
//! | `delay` | seconds | not before this long from now |
//! | `eta`, `expires` | RFC 3339 | not before, not after |
//! | `headers` | object of text | trace context and the like |

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use windlass_core::args::ARGS_BYTES_MAX;
use windlass_core::envelope::{DELAY_MAX, HEADERS_BYTES_MAX, HEADERS_MAX};
use windlass_core::{Args, Due, Envelope, Json, Priority, QueueName, TaskId, TaskName, Timestamp};

use crate::error::Malformed;
use crate::json::{self, BODY_BYTES_MAX};

/// What a bare object means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shape {
    /// A description of a task.
    Described,
    /// The arguments by name of this task.
    Arguments {
        /// Which task.
        task: TaskName,
        /// The member that is the id of the task, when there is one.
        id: Option<String>,
    },
    /// One argument of this task, kept byte for byte.
    Whole {
        /// Which task.
        task: TaskName,
        /// The name of the argument.
        argument: String,
        /// The member that is the id of the task, when there is one.
        id: Option<String>,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Description {
    task: TaskName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<TaskId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    args: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kwargs: Option<Json>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    priority: Option<Priority>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    delay: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eta: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<String, String>,
}

/// Reads an object as a task in the queue that it was taken from.
///
/// # Errors
/// [`Malformed`] when it is no JSON object, lacks what its shape needs, or is over the limits of an envelope.
///
/// ```
/// use windlass_core::{QueueName, TaskName};
/// use windlass_wire::raw::{Shape, decode};
/// let shape = Shape::Whole {
///     task: TaskName::known("courier.deliver_message"),
///     argument: "message".to_owned(),
///     id: Some("message_id".to_owned()),
/// };
/// let task = decode(br#"{"message_id": "m-1", "size": 1.50}"#, &shape, QueueName::known("message_queue"))?;
/// assert_eq!(task.id.to_string(), "m-1");
/// assert_eq!(task.args.keyword().unwrap().as_str(), r#"{"message":{"message_id": "m-1", "size": 1.50}}"#);
/// # Ok::<(), windlass_wire::Malformed>(())
/// ```
pub fn decode(bytes: &[u8], shape: &Shape, queue: QueueName) -> Result<Envelope, Malformed> {
    let text = json::text("message", bytes, BODY_BYTES_MAX)?;
    json::check_object("message", text)?;
    let text = json::value("message", text)?;
    let envelope = match shape {
        Shape::Described => described(&text, queue)?,
        Shape::Arguments { task, id } => known(task, queue, text.clone(), id.as_deref(), &text)?,
        Shape::Whole { task, argument, id } => {
            let keyword = Json::trusted(format!("{{{}:{}}}", json::quoted(argument), text.as_str()));
            known(task, queue, keyword, id.as_deref(), &text)?
        }
    };
    let size = envelope.args.size();
    if size > ARGS_BYTES_MAX {
        return Err(Malformed::TooLarge { part: "arguments", size, max: ARGS_BYTES_MAX });
    }
    Ok(envelope)
}

/// Writes a task as a description. What a description has no member for (limits, workflow, unique key) is not written.
pub fn encode(envelope: &Envelope) -> String {
    let (positional, keyword) = (envelope.args.positional().cloned(), envelope.args.keyword().cloned());
    let (args, kwargs) = if positional.is_some() { (positional, keyword) } else { (keyword, None) };
    let (delay, eta) = match envelope.due {
        Due::Now => (None, None),
        Due::After(delay) => (Some(delay.as_secs_f64()), None),
        Due::At(at) => (None, Some(at)),
    };
    let description = Description {
        task: envelope.name.clone(),
        id: Some(envelope.id.clone()),
        args,
        kwargs,
        priority: (envelope.priority != Priority::NORMAL).then_some(envelope.priority),
        delay,
        eta,
        expires: envelope.expires,
        headers: envelope.headers.clone(),
    };
    serde_json::to_string(&description).unwrap_or_else(|error| unreachable!("a description is plain data: {error}"))
}

fn described(text: &Json, queue: QueueName) -> Result<Envelope, Malformed> {
    let from: Description = json::object("message", text.as_str())?;
    let args = match (from.args, from.kwargs) {
        (Some(args), kwargs) if args.as_str().starts_with('[') => Args::new(Some(args), kwargs),
        (Some(args), None) => Args::new(None, Some(args)),
        (None, kwargs) => Args::new(None, kwargs),
        (Some(_), Some(_)) => return Err(Malformed::shape("`args` beside `kwargs`", "an array")),
    };
    let args = args.map_err(|_| Malformed::shape("`args` and `kwargs`", "an object or an array, and an object"))?;
    let mut envelope = Envelope::new(from.task, queue, args);
    if let Some(id) = from.id {
        envelope.id = id;
    }
    envelope.priority = from.priority.unwrap_or_default();
    envelope.expires = from.expires;
    envelope.due = match (from.delay, from.eta) {
        (None, None) => Due::Now,
        (None, Some(at)) => Due::At(at),
        (Some(seconds), None) => Due::After(delay(seconds)?),
        (Some(_), Some(_)) => return Err(Malformed::shape("`delay` and `eta`", "one of them")),
    };
    let size = from.headers.iter().map(|(name, value)| name.len() + value.len()).sum();
    if size > HEADERS_BYTES_MAX {
        return Err(Malformed::TooLarge { part: "`headers`", size, max: HEADERS_BYTES_MAX });
    }
    if from.headers.len() > HEADERS_MAX {
        return Err(Malformed::TooMany { part: "`headers`", max: HEADERS_MAX });
    }
    envelope.headers = from.headers;
    Ok(envelope)
}

fn delay(seconds: f64) -> Result<Duration, Malformed> {
    let delay = Duration::try_from_secs_f64(seconds).ok().filter(|delay| *delay <= DELAY_MAX);
    delay.ok_or(Malformed::shape("`delay`", "seconds, not negative and not more than ten years"))
}

fn known(
    task: &TaskName,
    queue: QueueName,
    keyword: Json,
    id: Option<&str>,
    object: &Json,
) -> Result<Envelope, Malformed> {
    let args = Args::new(None, Some(keyword)).map_err(|_| Malformed::shape("message", "a JSON object"))?;
    let mut envelope = Envelope::new(task.clone(), queue, args);
    if let Some(member) = id {
        let members: Map<String, Value> = json::object("message", object.as_str())?;
        match members.get(member) {
            Some(Value::String(id)) => envelope.id = TaskId::new(id)?,
            Some(Value::Number(id)) => envelope.id = TaskId::new(id.to_string())?,
            None | Some(_) => return Err(Malformed::Missing("the member that is the id")),
        }
    }
    Ok(envelope)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Envelope, Malformed> {
        decode(text.as_bytes(), &Shape::Described, QueueName::known("q"))
    }

    #[test]
    fn a_description_becomes_its_task_and_is_written_again() {
        let text = r#"{"task":"mail","id":"m-1","args":[1],"kwargs":{"to":"a"},"priority":7,"delay":1.5,"expires":"2040-01-02T03:04:05.000000Z","headers":{"tenant":"acme"}}"#;
        let task = read(text).unwrap();
        assert_eq!((task.id.to_string().as_str(), task.priority.level()), ("m-1", 7));
        assert_eq!(task.due, Due::After(Duration::from_millis(1500)));
        assert_eq!(task.headers["tenant"], "acme");
        assert_eq!(encode(&task), text);
        let by_name = read(r#"{"task":"mail","args":{"to":"a"}}"#).unwrap();
        assert_eq!(by_name.args.keyword().unwrap().as_str(), r#"{"to":"a"}"#);
    }

    #[test]
    fn a_description_that_is_wrong_is_refused_with_a_reason() {
        for (text, reason) in [
            ("[]", "message must be a JSON object"),
            ("{}", "message is not JSON that can be read: missing field `task`"),
            (r#"{"task":"two words"}"#, "message is not JSON that can be read: invalid task name"),
            (r#"{"task":"a","arg":[]}"#, "message is not JSON that can be read: unknown field `arg`"),
            (r#"{"task":"a","args":5}"#, "`args` and `kwargs` must be an object or an array"),
            (r#"{"task":"a","args":{},"kwargs":{}}"#, "`args` beside `kwargs` must be an array"),
            (r#"{"task":"a","delay":-1}"#, "`delay` must be seconds"),
            (r#"{"task":"a","delay":1,"eta":"2040-01-02T03:04:05Z"}"#, "`delay` and `eta` must be one of them"),
            (r#"{"task":"a","eta":"2040-01-02T03:04:05"}"#, "message is not JSON that can be read: invalid time"),
            (r#"{"task":"a","priority":10}"#, "message is not JSON that can be read: invalid priority"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(reason), "{error}");
        }
    }

    #[test]
    fn an_object_may_be_the_arguments_of_a_known_task() {
        let shape = Shape::Arguments { task: TaskName::known("mail"), id: Some("n".to_owned()) };
        let task = decode(br#"{"n": 7, "to": "a"}"#, &shape, QueueName::known("q")).unwrap();
        assert_eq!((task.id.to_string().as_str(), task.name.as_str()), ("7", "mail"));
        assert_eq!(task.args.keyword().unwrap().as_str(), r#"{"n": 7, "to": "a"}"#);
        assert!(decode(br#"{"to": "a"}"#, &shape, QueueName::known("q")).is_err(), "the id is missing");
    }
}
