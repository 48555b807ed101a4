//! What a client asks for, as JSON from outside: `{"task", "args", "kwargs", "labels", "task_id"}`.

use serde::Deserialize;
use serde_json::{Map, Value};
use windlass_core::Json;
use windlass_wire::Malformed;
use windlass_wire::taskiq::{LABELS_MAX, Label, Labels, Message};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    task: String,
    #[serde(default)]
    args: Option<Json>,
    #[serde(default)]
    kwargs: Option<Json>,
    #[serde(default)]
    labels: Map<String, Value>,
    #[serde(default)]
    task_id: Option<String>,
}

/// Reads a call as the message that asks for it. Without an id it gets a new one.
///
/// # Errors
/// [`Malformed`] when it is no call.
pub fn read_call(text: &str) -> Result<Message, Malformed> {
    let call: Call =
        serde_json::from_str(text).map_err(|error| Malformed::NotJson { part: "call", reason: error.to_string() })?;
    if call.labels.len() > LABELS_MAX {
        return Err(Malformed::TooMany { part: "labels", max: LABELS_MAX });
    }
    let (args, kwargs) =
        (call.args.unwrap_or_else(|| Json::trusted("[]")), call.kwargs.unwrap_or_else(|| Json::trusted("{}")));
    if !args.as_str().starts_with('[') || !kwargs.as_str().starts_with('{') {
        return Err(Malformed::Shape { part: "`args` and `kwargs` of a call", expected: "an array and an object" });
    }
    let labels = call.labels.into_iter().map(|(name, value)| (name, Label::from_value(value))).collect();
    Ok(Message {
        task_id: call.task_id.unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string()),
        task_name: call.task,
        labels: Labels(labels),
        args,
        kwargs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_have_the_types_of_their_values() {
        let message =
            read_call(r#"{"task": "a", "labels": {"n": 5, "yes": true, "text": "x"}, "task_id": "t"}"#).unwrap();
        assert_eq!(message.task_id, "t");
        assert_eq!(message.labels.0["n"], Label::Int(5));
        assert_eq!(message.labels.0["yes"], Label::Bool(true));
        assert_eq!(message.args.as_str(), "[]");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in ["", "[]", r#"{"args": []}"#, r#"{"task": "a", "args": 5}"#, r#"{"task": "a", "label": {}}"#] {
            assert!(read_call(text).is_err(), "{text}");
        }
    }
}
