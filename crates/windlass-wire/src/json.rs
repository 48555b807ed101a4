//! JSON as Python reads and writes it.
//!
//! Python accepts and produces `NaN`, `Infinity` and `-Infinity`, which JSON does not have: they are read as `null` and
//! never written. It writes a space after `,` and `:` and escapes what is not ASCII; [`python_text`] does the same, so that
//! a frame of ours is the frame that a Python client would have sent, byte for byte.

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use windlass_core::Json;

use crate::error::Malformed;

/// The largest body that is read, in bytes, after it was decompressed.
pub const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// JSON with no more brackets than these nests less deeply than the 127 that [`Json::parse`] takes.
const DEPTH_HARMLESS: usize = 100;

/// Checks that bytes from outside are text of an acceptable size.
pub(crate) fn text<'b>(part: &'static str, bytes: &'b [u8], max: usize) -> Result<&'b str, Malformed> {
    if bytes.len() > max {
        return Err(Malformed::TooLarge { part, size: bytes.len(), max });
    }
    std::str::from_utf8(bytes).map_err(|error| Malformed::damaged(part, format_args!("not UTF-8: {error}")))
}

/// One JSON value from outside, with its depth checked.
pub(crate) fn value(part: &'static str, text: &str) -> Result<Json, Malformed> {
    Json::parse(&finite(text)).map_err(|error| Malformed::NotJson { part, reason: error.to_string() })
}

/// Refuses JSON that nests too deeply. For JSON that is valid: to check that, reading it is enough.
pub(crate) fn check_depth(part: &'static str, text: &str) -> Result<(), Malformed> {
    // Counting is cheap. Brackets in strings are counted too, which is why they do not decide.
    let brackets = text.bytes().filter(|byte| matches!(byte, b'[' | b'{')).count();
    if brackets <= DEPTH_HARMLESS { Ok(()) } else { value(part, text).map(drop) }
}

/// Reads JSON from outside as a type.
pub(crate) fn typed<T: DeserializeOwned>(part: &'static str, text: &str) -> Result<T, Malformed> {
    read(part, &finite(text))
}

/// Reads JSON that is [`finite`] as a type that may borrow from it.
pub(crate) fn read<'t, T: Deserialize<'t>>(part: &'static str, text: &'t str) -> Result<T, Malformed> {
    serde_json::from_str(text).map_err(|error| Malformed::NotJson { part, reason: error.to_string() })
}

/// Reads a JSON object from outside as a type. An array is no object, though a derived reader would take it for one.
pub(crate) fn object<T: DeserializeOwned>(part: &'static str, text: &str) -> Result<T, Malformed> {
    check_object(part, text)?;
    typed(part, text)
}

/// The same for JSON that is [`finite`], as a type that may borrow from it.
pub(crate) fn read_object<'t, T: Deserialize<'t>>(part: &'static str, text: &'t str) -> Result<T, Malformed> {
    check_object(part, text)?;
    read(part, text)
}

/// Refuses JSON that is no object.
pub(crate) fn check_object(part: &'static str, text: &str) -> Result<(), Malformed> {
    match text.trim_ascii_start().as_bytes().first() {
        Some(b'[' | b'"' | b'0'..=b'9' | b'-' | b't' | b'f' | b'n')
            if serde_json::from_str::<IgnoredAny>(text).is_ok() =>
        {
            Err(Malformed::shape(part, "a JSON object"))
        }
        _ => Ok(()),
    }
}

/// What takes the members of an object one by one, in their order. When two have the same name the last one counts.
pub(crate) trait Members<'t>: Default {
    /// What a member is read as.
    type Value: Deserialize<'t>;
    fn put(&mut self, name: Cow<'t, str>, value: Self::Value);
}

/// Reads an object member by member.
pub(crate) fn members<'t, D: Deserializer<'t>, M: Members<'t>>(deserializer: D) -> Result<M, D::Error> {
    deserializer.deserialize_map(Taking(M::default()))
}

struct Taking<M>(M);

impl<'t, M: Members<'t>> Visitor<'t> for Taking<M> {
    type Value = M;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'t>>(mut self, mut map: A) -> Result<M, A::Error> {
        while let Some(Name(name)) = map.next_key()? {
            self.0.put(name, map.next_value()?);
        }
        Ok(self.0)
    }
}

/// The name of a member, borrowed unless it has escapes: `Cow` alone is always read as owned.
#[derive(Deserialize)]
struct Name<'t>(#[serde(borrow)] Cow<'t, str>);

/// The text, when it is text.
pub(crate) fn text_of(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

/// The number, when it is a whole one from 0 to 255.
pub(crate) fn small_number_of(value: &Value) -> Option<u8> {
    value.as_u64().and_then(|number| u8::try_from(number).ok())
}

/// Replaces Python's numbers that JSON does not have by `null`. Borrows when there are none, which is nearly always.
pub(crate) fn finite(text: &str) -> Cow<'_, str> {
    if !text.contains("NaN") && !text.contains("Infinity") {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['"', 'N', 'I', '-']) {
        let (before, from) = rest.split_at(at);
        clean.push_str(before);
        let taken = if from.starts_with('"') {
            let end = string_end(from);
            clean.push_str(&from[..end]);
            end
        } else if let Some(word) = ["NaN", "-Infinity", "Infinity"].into_iter().find(|word| from.starts_with(word)) {
            clean.push_str("null");
            word.len()
        } else {
            clean.push_str(&from[..1]);
            1
        };
        rest = &from[taken..];
    }
    clean.push_str(rest);
    Cow::Owned(clean)
}

/// The length of the JSON string that `text` begins with, quotes included; all of it when the string does not end.
pub(crate) fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The same JSON as Python's `json.dumps` writes it: `", "`, `": "`, and `\uXXXX` for what is not ASCII.
///
/// Works on tokens, so that numbers keep every digit and keys keep their order. Takes valid JSON.
pub(crate) fn python_text(json: &str) -> String {
    let mut out = String::with_capacity(json.len() + json.len() / 8);
    push_python_text(&mut out, json);
    out
}

fn push_python_text(out: &mut String, json: &str) {
    let special = |byte: u8| matches!(byte, b'"' | b',' | b':') || byte.is_ascii_whitespace();
    let mut rest = json;
    while let Some(at) = rest.bytes().position(special) {
        let (plain, from) = rest.split_at(at);
        out.push_str(plain);
        let taken = match from.as_bytes()[0] {
            b'"' => {
                let end = string_end(from);
                push_ascii(out, &from[..end]);
                end
            }
            b',' => {
                out.push_str(", ");
                1
            }
            b':' => {
                out.push_str(": ");
                1
            }
            _ => 1,
        };
        rest = &from[taken..];
    }
    out.push_str(rest);
}

/// Python escapes what is beyond `~`: DEL, too, which JSON leaves as it is.
fn push_ascii(out: &mut String, text: &str) {
    if text.bytes().all(|byte| byte <= b'~') {
        out.push_str(text);
        return;
    }
    for char in text.chars() {
        if char <= '~' {
            out.push(char);
        } else {
            for unit in char.encode_utf16(&mut [0; 2]) {
                // Writing to a string cannot fail.
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
}

/// An object that is written member by member, as Python writes it.
pub(crate) struct PythonObject(String);

impl PythonObject {
    /// Enough for the result of a task that says little.
    const BYTES_USUAL: usize = 256;

    pub(crate) fn new() -> Self {
        Self(String::with_capacity(Self::BYTES_USUAL))
    }

    /// A member that is valid JSON.
    pub(crate) fn json(&mut self, name: &str, value: &str) {
        self.name(name);
        push_python_text(&mut self.0, value);
    }

    /// A member that is text.
    pub(crate) fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        if text.bytes().all(|byte| matches!(byte, b' '..=b'~') && !matches!(byte, b'"' | b'\\')) {
            self.0.push('"');
            self.0.push_str(text);
            self.0.push('"');
        } else {
            push_ascii(&mut self.0, &quoted(text));
        }
    }

    /// A member that is text or `null`.
    pub(crate) fn nullable(&mut self, name: &str, text: Option<&str>) {
        match text {
            Some(text) => self.text(name, text),
            None => self.json(name, "null"),
        }
    }

    /// `name` is plain: it has no character that is escaped.
    fn name(&mut self, name: &str) {
        self.0.push_str(if self.0.is_empty() { "{\"" } else { ", \"" });
        self.0.push_str(name);
        self.0.push_str("\": ");
    }

    /// The text of the object, which has a member.
    pub(crate) fn end(mut self) -> String {
        self.0.push('}');
        self.0
    }
}

/// Data as a tree. Raw JSON inside of it is parsed, which is why this can fail: it may nest too deeply.
pub(crate) fn tree<T: Serialize + ?Sized>(part: &'static str, data: &T) -> Result<Value, Malformed> {
    serde_json::to_value(data).map_err(|error| Malformed::NotJson { part, reason: error.to_string() })
}

/// Data as text. Raw JSON inside of it is copied, which is why this cannot fail.
pub(crate) fn written<T: Serialize + ?Sized>(data: &T) -> String {
    serde_json::to_string(data).unwrap_or_else(|error| unreachable!("plain data has a JSON form: {error}"))
}

/// A JSON string, without escapes for what is not ASCII.
pub(crate) fn quoted(text: &str) -> String {
    written(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_json_does_not_have_are_read_as_null() {
        let read = value("body", r#"[NaN, -Infinity, Infinity, "NaN \" Infinity", -1, {"N": "I"}]"#).unwrap();
        assert_eq!(read.as_str(), r#"[null, null, null, "NaN \" Infinity", -1, {"N": "I"}]"#);
        assert!(value("body", "[NaNaN]").is_err());
        assert!(value("body", "\"NaN").is_err());
    }

    #[test]
    fn text_is_written_as_python_writes_it() {
        for (json, python) in [
            (r#"{"a":[1,2.50,"x,y: z"],"b":null}"#, r#"{"a": [1, 2.50, "x,y: z"], "b": null}"#),
            ("[\"\u{43f} \u{1f680}\\n\"]", r#"["\u043f \ud83d\ude80\n"]"#),
            ("[\"a\u{7f}b\"]", r#"["a\u007fb"]"#),
            ("[123456789012345678901234567890]", "[123456789012345678901234567890]"),
            ("{ \"a\" : 1 }", r#"{"a": 1}"#),
        ] {
            assert_eq!(python_text(json), python);
            assert_eq!(python_text(python), python, "twice changes nothing");
        }
    }

    #[test]
    fn an_object_is_written_member_by_member_as_it_is_in_one_piece() {
        for text in ["", "plain", "\"quoted\\\"", "line\nend\u{1}", "\u{43f} \u{1f680}", "\u{7f}", "a, b: c"] {
            let mut object = PythonObject::new();
            object.text("text", text);
            object.nullable("nothing", None);
            let json = "[1,{\"a\":\"\u{43f}, :\"}]";
            object.json("json", json);
            let whole = format!(r#"{{"text":{},"nothing":null,"json":{json}}}"#, quoted(text));
            assert_eq!(object.end(), python_text(&whole));
        }
    }

    #[test]
    fn what_nests_at_the_limit_passes_and_one_over_does_not() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        for depth in [1, DEPTH_HARMLESS, DEPTH_HARMLESS + 1, 127] {
            assert_eq!(check_depth("body", &nested(depth)), Ok(()), "{depth}");
        }
        assert_eq!(check_depth("body", &nested(128)), value("body", &nested(128)).map(drop));
        assert!(check_depth("body", &nested(128)).is_err());
        assert_eq!(check_depth("body", &format!("\"{}\"", "[".repeat(1000))), Ok(()), "brackets in a string are text");
    }

    #[test]
    fn a_body_at_its_limit_is_read_and_one_over_is_not() {
        assert!(text("body", &[b'1'; 10], 10).is_ok());
        assert_eq!(text("body", &[b'1'; 11], 10), Err(Malformed::TooLarge { part: "body", size: 11, max: 10 }));
    }
}
