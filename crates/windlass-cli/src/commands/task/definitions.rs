//! The catalogue: what this program can run and which arguments it takes.

use std::fmt::Write as _;

use serde_json::{Value, json};
use windlass::TaskName;
use windlass::task::{Definition, Fields, Presence};

use crate::context::Context;
use crate::exit::Outcome;
use crate::output::{Cell, Column, Listing, Row, Tone};
use crate::task_args::task_of;

const COLUMNS: &[Column] = &[
    Column::new("NAME"),
    Column::new("QUEUE"),
    Column::new("PRIORITY").wide(),
    Column::new("RETRIES").wide(),
    Column::new("BACKOFF").wide(),
    Column::new("LIMIT").wide(),
    Column::new("ARGUMENTS").stretch(),
    Column::new("WHAT IT DOES").stretch(),
];

pub(super) fn run(context: &Context, name: Option<&TaskName>) -> Outcome {
    if let Some(name) = name {
        let definition = task_of(&context.program, name)?.definition;
        return context.out.object(name.as_str(), json!(definition), || describe(context, definition));
    }
    let rows = context.program.definitions().map(row).collect();
    context.out.listing(&Listing::whole("definitions", COLUMNS, "this program declares no task", rows))
}

fn row(definition: &Definition) -> Row {
    let options = &definition.options;
    Row {
        id: definition.name.to_string(),
        cells: vec![
            Cell::toned(&definition.name, Tone::Strong),
            options.queue.to_string().into(),
            options.priority.level().to_string().into(),
            (options.retry.attempts_max - 1).to_string().into(),
            options.retry.backoff.to_string().into(),
            windlass::format_duration(options.hard_limit).into(),
            definition.fields.to_string().into(),
            Cell::toned(definition.doc.lines().next().unwrap_or_default(), Tone::Dim),
        ],
        json: json!(definition),
    }
}

fn describe(context: &Context, definition: &Definition) -> String {
    let out = &context.out;
    let options = &definition.options;
    let optional = |duration: Option<std::time::Duration>| duration.map(windlass::format_duration).unwrap_or_default();
    let mut text = format!("{}\n", out.tone(definition.name.as_str(), Tone::Strong));
    if !definition.doc.is_empty() {
        let _ = writeln!(text, "{}", definition.doc);
    }
    text.push('\n');
    text.push_str(&out.fields(&[
        ("queue", options.queue.to_string()),
        ("priority", options.priority.level().to_string()),
        ("retries", (options.retry.attempts_max - 1).to_string()),
        ("backoff", options.retry.backoff.to_string()),
        ("soft limit", optional(options.soft_limit)),
        ("hard limit", windlass::format_duration(options.hard_limit)),
        ("expires after", optional(options.expires_after)),
        ("result kept", optional(options.result_ttl)),
        ("rate", options.limit.rate.map(|rate| rate.to_string()).unwrap_or_default()),
        ("concurrency", options.limit.concurrency.map(|count| count.to_string()).unwrap_or_default()),
        ("rate of a key", options.key_limit.rate.map(|rate| rate.to_string()).unwrap_or_default()),
        ("concurrency of a key", options.key_limit.concurrency.map(|count| count.to_string()).unwrap_or_default()),
        ("output", if definition.output == json!({}) { String::new() } else { kind(&definition.output) }),
    ]));
    match &definition.fields {
        Fields::Any => text.push_str("\nIt takes any arguments.\n"),
        Fields::Named(fields) if fields.is_empty() => text.push_str("\nIt takes no arguments.\n"),
        Fields::Named(fields) => {
            text.push_str("\nArguments:\n");
            let width = fields.iter().map(|field| field.name.len()).max().unwrap_or(0);
            for field in fields {
                let required = match field.presence {
                    Presence::Required => "required",
                    Presence::Optional => "optional",
                };
                let name = out.tone(&format!("{:width$}", field.name), Tone::Strong);
                let doc = field.doc.lines().next().unwrap_or_default();
                let _ = writeln!(text, "  {name}  {required}, {}  {}", kind(&field.schema), out.tone(doc, Tone::Dim));
            }
        }
    }
    text
}

/// A schema in a few words.
fn kind(schema: &Value) -> String {
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().map(ToString::to_string).collect::<Vec<_>>().join(" | ");
    }
    if let Some(choices) = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array) {
        let kinds: Vec<String> = choices.iter().map(kind).filter(|kind| kind != "null").collect();
        return kinds.join(" | ");
    }
    match &schema["type"] {
        Value::String(kind) if kind == "array" => format!("list of {}", self::kind(&schema["items"])),
        Value::String(kind) => kind.clone(),
        Value::Array(kinds) => {
            kinds.iter().filter_map(Value::as_str).filter(|kind| *kind != "null").collect::<Vec<_>>().join(" | ")
        }
        _ => schema.get("const").map_or_else(|| "anything".to_owned(), ToString::to_string),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_is_said_in_a_few_words() {
        for (schema, words) in [
            (json!({"type": ["string", "null"]}), "string"),
            (json!({"type": "array", "items": {"type": "integer"}}), "list of integer"),
            (json!({"enum": ["GET", "PUT"]}), "\"GET\" | \"PUT\""),
            (json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), "string"),
            (json!({}), "anything"),
        ] {
            assert_eq!(kind(&schema), words);
        }
    }
}
