//! What a client asks for, as JSON from outside: a task, a chain, a group, a chord, each inside of the others.
//!
//! | kind | members |
//! |---|---|
//! | `task` (or none) | `task`, `args`, `kwargs`, `immutable`, `options` |
//! | `chain`, `group` | `tasks` |
//! | `chord` | `tasks`, `body` |
//!
//! Every task gets its id here, before anything is sent: whoever waits needs the id of the last one.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use windlass_core::Json;
use windlass_wire::Malformed;
use windlass_wire::celery::Signature;

/// Calls inside of calls.
const DEPTH_MAX: usize = 32;
/// Options that hold calls themselves.
const LINKS: [&str; 2] = ["link", "link_error"];

/// A call, ready to be sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What is sent.
    pub signature: Signature,
    /// The task whose result is the result of the whole; the group's own id for a group.
    pub id: String,
    /// The ids of a group's members, in their order.
    pub children: Vec<String>,
    /// What a group holds: in a chain it becomes the head of a chord.
    members: Vec<Signature>,
}

/// A call that makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum InvalidCall {
    /// It is no JSON of a call.
    #[error("the call cannot be read: {0}")]
    Shape(#[from] serde_json::Error),
    /// Something that a signature cannot hold.
    #[error(transparent)]
    Signature(#[from] Malformed),
    /// Calls inside of calls inside of calls.
    #[error("calls nest more than {DEPTH_MAX} deep")]
    TooDeep,
    /// A chain, group or chord of nothing.
    #[error("a {0} needs tasks")]
    Empty(&'static str),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TaskCall {
    #[serde(default, rename = "kind")]
    _kind: Option<String>,
    task: String,
    #[serde(default)]
    args: Option<Json>,
    #[serde(default)]
    kwargs: Option<Json>,
    #[serde(default)]
    immutable: bool,
    #[serde(default)]
    options: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Several {
    #[serde(rename = "kind")]
    _kind: String,
    tasks: Vec<Value>,
    #[serde(default)]
    body: Option<Value>,
}

impl Call {
    /// Reads a call.
    ///
    /// # Errors
    /// [`InvalidCall`], with what is wrong.
    pub fn parse(text: &str) -> Result<Self, InvalidCall> {
        Self::of(serde_json::from_str(text)?, &mut new_id, 0)
    }

    fn of(value: Value, new_id: &mut dyn FnMut() -> String, depth: usize) -> Result<Self, InvalidCall> {
        if depth > DEPTH_MAX {
            return Err(InvalidCall::TooDeep);
        }
        let kind = value.get("kind").and_then(Value::as_str).unwrap_or("task").to_owned();
        match kind.as_str() {
            "chain" => Self::chain(serde_json::from_value(value)?, new_id, depth),
            "group" => Self::group(serde_json::from_value(value)?, new_id, depth),
            "chord" => Self::chord(serde_json::from_value(value)?, new_id, depth),
            _ => Self::task(serde_json::from_value(value)?, new_id, depth),
        }
    }

    fn task(call: TaskCall, new_id: &mut dyn FnMut() -> String, depth: usize) -> Result<Self, InvalidCall> {
        let mut signature = Signature::new(call.task);
        if let Some(args) = call.args {
            signature = signature.with_args(args)?;
        }
        if let Some(kwargs) = call.kwargs {
            if !kwargs.as_str().starts_with('{') {
                return Err(Malformed::Shape { part: "`kwargs` of a call", expected: "an object" }.into());
            }
            signature.kwargs = kwargs;
        }
        signature.immutable = call.immutable;
        signature.options = call.options;
        for name in LINKS {
            let Some(links) = signature.options.remove(name).filter(|links| !links.is_null()) else { continue };
            let links = if let Value::Array(links) = links { links } else { vec![links] };
            let links = links.into_iter().map(|link| Self::of(link, new_id, depth + 1).map(|call| call.signature));
            let links = links.collect::<Result<Vec<_>, _>>()?;
            signature.options.insert(name.to_owned(), serde_json::to_value(links)?);
        }
        let id = signature.options.get("task_id").and_then(Value::as_str).map_or_else(new_id, ToOwned::to_owned);
        signature.options.insert("task_id".to_owned(), Value::from(id.as_str()));
        Ok(Self { signature, id, children: Vec::new(), members: Vec::new() })
    }

    fn several(tasks: Vec<Value>, new_id: &mut dyn FnMut() -> String, depth: usize) -> Result<Vec<Self>, InvalidCall> {
        tasks.into_iter().map(|task| Self::of(task, new_id, depth + 1)).collect()
    }

    fn chain(call: Several, new_id: &mut dyn FnMut() -> String, depth: usize) -> Result<Self, InvalidCall> {
        let steps = with_chords(Self::several(call.tasks, new_id, depth)?);
        let last = steps.last().ok_or(InvalidCall::Empty("chain"))?;
        let (id, children) = (last.id.clone(), last.children.clone());
        let steps: Vec<Signature> = steps.into_iter().map(|step| step.signature).collect();
        let mut signature = Signature::new("celery.chain");
        signature.kwargs = Json::trusted(json!({ "tasks": serde_json::to_value(steps)? }).to_string());
        signature.subtask_type = Some("chain".to_owned());
        Ok(Self { signature, id, children, members: Vec::new() })
    }

    fn group(call: Several, new_id: &mut dyn FnMut() -> String, depth: usize) -> Result<Self, InvalidCall> {
        let members = Self::several(call.tasks, new_id, depth)?;
        if members.is_empty() {
            return Err(InvalidCall::Empty("group"));
        }
        let (id, children) = (new_id(), members.iter().map(|member| member.id.clone()).collect());
        let members: Vec<Signature> = members.into_iter().map(|member| member.signature).collect();
        Ok(Self { signature: Signature::group(&id, &members), id, children, members })
    }

    fn chord(call: Several, new_id: &mut dyn FnMut() -> String, depth: usize) -> Result<Self, InvalidCall> {
        let parts = Self::several(call.tasks, new_id, depth)?;
        if parts.is_empty() {
            return Err(InvalidCall::Empty("chord"));
        }
        let body = Self::of(call.body.ok_or(InvalidCall::Empty("chord"))?, new_id, depth + 1)?;
        let parts: Vec<Signature> = parts.into_iter().map(|part| part.signature).collect();
        let signature = Signature::chord(&new_id(), &parts, &body.signature);
        Ok(Self { signature, id: body.id, children: body.children, members: Vec::new() })
    }
}

/// A group that is followed by a step becomes a chord with that step as its body: workers from Python take it for granted
/// that the client has done so, and would run the step once for each member.
fn with_chords(steps: Vec<Call>) -> Vec<Call> {
    let mut done: Vec<Call> = Vec::with_capacity(steps.len());
    for step in steps.into_iter().rev() {
        let body = if step.members.is_empty() { None } else { done.pop() };
        done.push(match body {
            None => step,
            Some(body) => Call {
                signature: Signature::chord(&step.id, &step.members, &body.signature),
                id: body.id,
                children: body.children,
                members: Vec::new(),
            },
        });
    }
    done.reverse();
    done
}

fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Call {
        let mut count = 0;
        let mut new_id = || {
            count += 1;
            format!("id{count}")
        };
        Call::of(serde_json::from_str(text).unwrap(), &mut new_id, 0).unwrap()
    }

    #[test]
    fn a_task_keeps_its_arguments_and_options() {
        let call =
            read(r#"{"kind": "task", "task": "add", "args": [1, 2.0], "options": {"queue": "q", "task_id": "a"}}"#);
        assert_eq!((call.id.as_str(), call.signature.args.as_str()), ("a", "[1,2.0]"));
        assert_eq!(call.signature.options["queue"], "q");
    }

    #[test]
    fn a_chain_is_awaited_by_its_last_step() {
        let call = read(r#"{"kind": "chain", "tasks": [{"task": "a"}, {"task": "b", "immutable": true}]}"#);
        assert_eq!(call.id, "id2");
        assert!(call.signature.kwargs.as_str().contains(r#""immutable":true"#));
    }

    #[test]
    fn a_group_has_an_id_and_those_of_its_members() {
        let call = read(r#"{"kind": "group", "tasks": [{"task": "a"}, {"task": "b"}]}"#);
        assert_eq!((call.id.as_str(), call.children), ("id3", vec!["id1".to_owned(), "id2".to_owned()]));
    }

    #[test]
    fn a_chord_is_awaited_by_its_body() {
        let call = read(r#"{"kind": "chord", "tasks": [{"task": "a"}], "body": {"task": "sum"}}"#);
        assert_eq!(call.id, "id2");
    }

    #[test]
    fn a_group_that_is_followed_by_a_step_is_a_chord() {
        let group = r#"{"kind": "group", "tasks": [{"task": "b"}, {"task": "c"}]}"#;
        let call = read(&format!(
            r#"{{"kind": "chain", "tasks": [{{"task": "a"}}, {group}, {{"task": "d"}}, {{"task": "e"}}]}}"#
        ));
        let steps: Value = call.signature.kwargs.to().unwrap();
        let names: Vec<&str> =
            steps["tasks"].as_array().unwrap().iter().filter_map(|step| step["task"].as_str()).collect();
        assert_eq!(names, ["a", "celery.chord", "e"]);
        let last = read(&format!(r#"{{"kind": "chain", "tasks": [{{"task": "a"}}, {group}]}}"#));
        assert_eq!(last.children.len(), 2, "without a step behind it a group stays one");
    }

    #[test]
    fn links_are_calls_themselves() {
        let call = read(r#"{"task": "a", "options": {"link": {"task": "b"}, "link_error": [{"task": "c"}]}}"#);
        assert_eq!(call.signature.options["link"][0]["options"]["task_id"], "id1");
        assert_eq!(call.signature.options["link_error"][0]["task"], "c");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for text in [
            r#"{"task": "a", "argz": []}"#,
            r#"{"task": "a", "args": {}}"#,
            r#"{"kind": "chain", "tasks": []}"#,
            r#"{"kind": "chord", "tasks": [{"task": "a"}]}"#,
            "[]",
            "",
        ] {
            assert!(Call::parse(text).is_err(), "{text}");
        }
        let deep = format!("{}{{\"task\": \"a\"}}{}", r#"{"kind": "chain", "tasks": ["#.repeat(40), "]}".repeat(40));
        assert!(matches!(Call::parse(&deep), Err(InvalidCall::TooDeep)));
    }
}
