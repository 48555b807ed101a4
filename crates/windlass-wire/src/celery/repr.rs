//! JSON as Python shows it: what `argsrepr` and events display.

use std::fmt::{self, Write as _};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use windlass_core::Json;

/// The longest text that is shown, in characters.
pub const REPR_CHARS_MAX: usize = 1024;

/// Positional arguments as Python shows a tuple: `(1, 'a')`, `(1,)`, `()`.
pub fn args(args: &Json) -> String {
    show(args, Outer::Tuple)
}

/// Any value as Python shows it: `{'a': None}`, `True`.
pub fn value(value: &Json) -> String {
    show(value, Outer::Value)
}

#[derive(Clone, Copy, PartialEq)]
enum Outer {
    Tuple,
    Value,
}

fn show(json: &Json, outer: Outer) -> String {
    let mut text = Cut { text: String::new(), chars: 0 };
    let mut reader = serde_json::Deserializer::from_str(json.as_str());
    // What the reader cannot read (half a surrogate pair) is shown up to there.
    let _ = Shown { out: &mut text, outer }.deserialize(&mut reader);
    if text.chars > REPR_CHARS_MAX {
        text.text.push_str("...");
    }
    text.text
}

/// A text that stops growing at its limit.
struct Cut {
    text: String,
    chars: usize,
}

impl fmt::Write for Cut {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        for char in more.chars() {
            if self.chars < REPR_CHARS_MAX {
                self.text.push(char);
            }
            self.chars += 1;
        }
        Ok(())
    }
}

struct Shown<'o> {
    out: &'o mut Cut,
    outer: Outer,
}

impl Shown<'_> {
    fn put(&mut self, text: impl fmt::Display) {
        // Writing to a cut text cannot fail.
        let _ = write!(self.out, "{text}");
    }

    fn string(&mut self, text: &str) {
        let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
        self.put(quote);
        for char in text.chars().take(REPR_CHARS_MAX + 1) {
            match char {
                '\\' => self.put("\\\\"),
                '\n' => self.put("\\n"),
                '\r' => self.put("\\r"),
                '\t' => self.put("\\t"),
                char if char == quote => self.put(format_args!("\\{char}")),
                char if char.is_control() => self.put(format_args!("\\x{:02x}", u32::from(char))),
                char => self.put(char),
            }
        }
        self.put(quote);
    }
}

impl<'de> DeserializeSeed<'de> for Shown<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Shown<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(mut self) -> Result<(), E> {
        self.put("None");
        Ok(())
    }
    fn visit_bool<E>(mut self, value: bool) -> Result<(), E> {
        self.put(if value { "True" } else { "False" });
        Ok(())
    }
    fn visit_u64<E>(mut self, value: u64) -> Result<(), E> {
        self.put(value);
        Ok(())
    }
    fn visit_i64<E>(mut self, value: i64) -> Result<(), E> {
        self.put(value);
        Ok(())
    }
    fn visit_f64<E>(mut self, value: f64) -> Result<(), E> {
        self.put(format_args!("{value:?}"));
        Ok(())
    }
    fn visit_str<E>(mut self, text: &str) -> Result<(), E> {
        self.string(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        let tuple = self.outer == Outer::Tuple;
        self.put(if tuple { '(' } else { '[' });
        let mut count = 0;
        loop {
            // The separator belongs before an element that may not be there.
            let before = (self.out.text.len(), self.out.chars);
            if count > 0 {
                self.put(", ");
            }
            if seq.next_element_seed(Shown { out: self.out, outer: Outer::Value })?.is_none() {
                self.out.text.truncate(before.0);
                self.out.chars = before.1;
                break;
            }
            count += 1;
        }
        self.put(match (tuple, count) {
            (true, 1) => ",)",
            (true, _) => ")",
            (false, _) => "]",
        });
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.put('{');
        let mut count = 0;
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            if count > 0 {
                self.put(", ");
            }
            self.string(&key);
            self.put(": ");
            map.next_value_seed(Shown { out: self.out, outer: Outer::Value })?;
            count += 1;
        }
        self.put('}');
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_shown_as_python_shows_them() {
        for (json, shown) in [
            ("[]", "()"),
            ("[2]", "(2,)"),
            ("[2, 3.0]", "(2, 3.0)"),
            (r#"["it's", "a\"b", "\n\u0001"]"#, r#"("it's", 'a"b', '\n\x01')"#),
            (r#"[{"a": [1, null, 1.5, true]}]"#, "({'a': [1, None, 1.5, True]},)"),
        ] {
            assert_eq!(args(&Json::trusted(json)), shown);
        }
        assert_eq!(value(&Json::trusted(r#"{"a": "b"}"#)), "{'a': 'b'}");
    }

    #[test]
    fn a_long_text_is_cut_at_its_limit() {
        let long = value(&Json::trusted(format!("\"{}\"", "x".repeat(5000))));
        assert_eq!(long.chars().count(), REPR_CHARS_MAX + 3);
    }
}
