//! Answers of workers, in the shape that `celery inspect` gives them.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// A heading for each worker, and what it says below.
    Answers {
        /// Whether the workers are counted at the end.
        counts: bool,
    },
    /// A line for each worker.
    Status,
    /// One JSON object.
    Json,
}

/// Every answer, with the workers in the order of their names. What comes from a worker cannot move the cursor.
pub(super) fn answers(answers: &Map<String, Value>, form: Form) -> String {
    let mut sorted: Vec<(&String, &Value)> = answers.iter().collect();
    sorted.sort_by_key(|(node, _)| *node);
    let mut text = String::new();
    for (node, answer) in &sorted {
        let node = crate::output::one_line(node);
        let said = said(answer);
        match form {
            Form::Json => {}
            // Writing to a string cannot fail.
            Form::Status => drop(writeln!(text, "{node}: {}", said.word)),
            Form::Answers { .. } => drop(writeln!(text, "->  {node}: {}\n{}", said.word, said.below)),
        }
    }
    match form {
        Form::Json => Value::Object(answers.clone()).to_string(),
        Form::Answers { counts: true } | Form::Status => {
            format!("{text}\n{} online.\n", crate::output::plural(sorted.len() as u64, "node"))
        }
        Form::Answers { counts: false } => text,
    }
}

struct Said {
    word: &'static str,
    below: String,
}

/// What a worker says: done, not done, or data.
fn said(answer: &Value) -> Said {
    let (word, content) = match answer {
        Value::Object(members) if members.len() == 1 => match (members.get("ok"), members.get("error")) {
            (Some(done), _) => ("OK", done),
            (None, Some(error)) => ("ERROR", error),
            (None, None) => ("OK", answer),
        },
        _ => ("OK", answer),
    };
    let below = match content {
        Value::String(text) => indented(&printable(text), 8),
        Value::Array(items) if items.is_empty() => "    - empty -".to_owned(),
        Value::Array(items) => {
            let item = |item: &Value| match item {
                Value::String(text) => format!("    * {}", indented(&printable(text), 6).trim_start()),
                other => format!("    * {}", indented(&pretty(other), 6).trim_start()),
            };
            items.iter().map(item).collect::<Vec<_>>().join("\n")
        }
        other => indented(&pretty(other), 4),
    };
    Said { word, below }
}

/// JSON escapes control characters by itself.
fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// Lines stay, other control characters do not.
fn printable(text: &str) -> String {
    text.chars().map(|char| if char.is_control() && char != '\n' { '\u{fffd}' } else { char }).collect()
}

fn indented(text: &str, by: usize) -> String {
    let lines: Vec<String> = text.lines().map(|line| format!("{:by$}{line}", "")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(value: Value, form: Form) -> String {
        answers(value.as_object().expect("answers by node"), form)
    }

    #[test]
    fn answers_have_the_shape_of_celerys() {
        let plain = Form::Answers { counts: false };
        assert_eq!(
            shown(json!({"b@h": {"ok": "pong"}, "a@h": {"ok": "pong"}}), Form::Answers { counts: true }),
            "->  a@h: OK\n        pong\n->  b@h: OK\n        pong\n\n2 nodes online.\n"
        );
        assert_eq!(shown(json!({"a@h": []}), plain), "->  a@h: OK\n    - empty -\n");
        assert_eq!(shown(json!({"a@h": ["t.add"]}), plain), "->  a@h: OK\n    * t.add\n");
        assert_eq!(shown(json!({"a@h": {"error": "no\u{1b}[2J"}}), plain), "->  a@h: ERROR\n        no\u{fffd}[2J\n");
        assert_eq!(shown(json!({"a@h": {"clock": 3}}), plain), "->  a@h: OK\n    {\n      \"clock\": 3\n    }\n");
        assert_eq!(shown(json!({"a@h": {"ok": "pong"}}), Form::Status), "a@h: OK\n\n1 node online.\n");
        assert_eq!(shown(json!({"a@h": {"ok": "pong"}}), Form::Json), r#"{"a@h":{"ok":"pong"}}"#);
    }
}
