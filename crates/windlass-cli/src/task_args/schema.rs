//! Whether a value fits a JSON Schema, for the part of it that derived types use.
//!
//! Refuses only what cannot fit: a keyword that is not known here decides nothing, since the worker decodes the arguments
//! in any case.

use serde_json::Value;

use crate::output::cut;

/// Deeper than any arguments that are accepted.
const DEPTH_MAX: usize = 128;

/// Whether text fits; then a value on the command line is text even if it looks like a number.
pub(super) fn takes_text(schema: &Value) -> bool {
    match &schema["type"] {
        Value::String(kind) => kind == "string",
        // `Option<String>`.
        Value::Array(kinds) => {
            kinds.iter().any(|kind| kind == "string") && kinds.iter().all(|kind| kind == "string" || kind == "null")
        }
        _ => schema["enum"].as_array().is_some_and(|values| values.iter().all(Value::is_string)),
    }
}

/// What is wrong, beginning with the path inside of the argument: `.headers: text is expected, not the number 5`.
pub(super) fn check(schema: &Value, value: &Value) -> Result<(), String> {
    check_at(schema, value, "", 0)
}

fn check_at(schema: &Value, value: &Value, path: &str, depth: usize) -> Result<(), String> {
    // A reference points to a type that holds itself; the worker will look at it.
    if depth > DEPTH_MAX || schema.get("$ref").is_some() {
        return Ok(());
    }
    if let Some(choices) = schema.get("anyOf").or_else(|| schema.get("oneOf")).and_then(Value::as_array) {
        return check_any(choices, value, path, depth);
    }
    check_type(schema, value, path)?;
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        let allowed: Vec<String> = allowed.iter().map(ToString::to_string).collect();
        return Err(format!("{path}: {} is expected, not {}", allowed.join(" or "), shown(value)));
    }
    if let Some(only) = schema.get("const")
        && only != value
    {
        return Err(format!("{path}: {only} is expected, not {}", shown(value)));
    }
    check_range(schema, value, path)?;
    match value {
        Value::Array(items) => {
            let Some(schema) = schema.get("items") else { return Ok(()) };
            for (at, item) in items.iter().enumerate() {
                check_at(schema, item, &format!("{path}[{at}]"), depth + 1)?;
            }
            Ok(())
        }
        Value::Object(fields) => check_object(schema, fields, path, depth),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Ok(()),
    }
}

fn check_any(choices: &[Value], value: &Value, path: &str, depth: usize) -> Result<(), String> {
    let mut wrong = Vec::new();
    for choice in choices {
        match check_at(choice, value, path, depth + 1) {
            Ok(()) => return Ok(()),
            Err(error) => wrong.push((choice, error)),
        }
    }
    // The complaint of the one choice that is not null says more than "none fits".
    let mut meant = wrong.into_iter().filter(|(choice, _)| choice["type"] != "null");
    match (meant.next(), meant.next()) {
        (Some((_, error)), None) => Err(error),
        _ => Err(format!("{path}: {} fits none of the forms that the task takes", shown(value))),
    }
}

fn check_type(schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    let kinds: Vec<&str> = match &schema["type"] {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    if kinds.iter().any(|kind| is_of(kind, value)) {
        return Ok(());
    }
    let expected: Vec<&str> = kinds.iter().filter(|kind| **kind != "null").map(|kind| in_words(kind)).collect();
    Err(format!("{path}: {} is expected, not {}", expected.join(" or "), shown(value)))
}

fn is_of(kind: &str, value: &Value) -> bool {
    match kind {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => true,
    }
}

fn in_words(kind: &str) -> &str {
    match kind {
        "string" => "text",
        "integer" => "a whole number",
        "number" => "a number",
        "boolean" => "true or false",
        "array" => "a list",
        "object" => "an object",
        other => other,
    }
}

fn check_range(schema: &Value, value: &Value, path: &str) -> Result<(), String> {
    let Some(number) = value.as_f64() else { return Ok(()) };
    if let Some(min) = schema["minimum"].as_f64()
        && number < min
    {
        return Err(format!("{path}: {value} is less than {}", schema["minimum"]));
    }
    if let Some(max) = schema["maximum"].as_f64()
        && number > max
    {
        return Err(format!("{path}: {value} is more than {}", schema["maximum"]));
    }
    Ok(())
}

fn check_object(
    schema: &Value,
    fields: &serde_json::Map<String, Value>,
    path: &str,
    depth: usize,
) -> Result<(), String> {
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !fields.contains_key(name) {
            return Err(format!("{path}: `{name}` is missing"));
        }
    }
    for (name, value) in fields {
        let at = format!("{path}.{name}");
        match (schema["properties"].get(name), schema.get("additionalProperties")) {
            (Some(schema), _) | (None, Some(schema @ Value::Object(_))) => check_at(schema, value, &at, depth + 1)?,
            (None, Some(Value::Bool(false))) => return Err(format!("{path}: `{}` is unknown", cut(name, 60))),
            (None, _) => {}
        }
    }
    Ok(())
}

/// A value in a message: what it is, and its start. Whole payloads and secrets do not belong there.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the text {}", Value::from(cut(text, 20))),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_cannot_fit_is_refused() {
        for (schema, value) in [
            (json!({}), json!(5)),
            (json!({"type": "integer"}), json!(5.0)),
            (json!({"type": ["string", "null"]}), json!(null)),
            (json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), json!("x")),
            (json!({"type": "array", "items": {"type": "string"}}), json!(["x"])),
            (json!({"type": "object", "additionalProperties": {"type": "string"}}), json!({"a": "b"})),
            (json!({"$ref": "#/$defs/Tree"}), json!(7)),
            (json!({"type": "number", "minimum": 1}), json!(1)),
        ] {
            assert_eq!(check(&schema, &value), Ok(()), "{schema} {value}");
        }
    }

    #[test]
    fn what_cannot_fit_is_refused_with_its_place() {
        for (schema, value, text) in [
            (json!({"type": "string"}), json!(5), ": text is expected, not the number 5"),
            (json!({"type": ["integer", "null"]}), json!("x"), ": a whole number is expected, not the text \"x\""),
            (json!({"enum": ["GET", "PUT"]}), json!("PUD"), ": \"GET\" or \"PUT\" is expected, not the text \"PUD\""),
            (
                json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
                json!(1),
                ": text is expected, not the number 1",
            ),
            (json!({"items": {"type": "string"}}), json!(["x", 2]), "[1]: text is expected, not the number 2"),
            (
                json!({"properties": {"a": {"type": "boolean"}}}),
                json!({"a": 1}),
                ".a: true or false is expected, not the number 1",
            ),
            (json!({"required": ["a"]}), json!({}), ": `a` is missing"),
            (json!({"additionalProperties": false}), json!({"b": 1}), ": `b` is unknown"),
            (json!({"minimum": 0}), json!(-1), ": -1 is less than 0"),
        ] {
            assert_eq!(check(&schema, &value), Err(text.to_owned()), "{schema} {value}");
        }
    }
}
