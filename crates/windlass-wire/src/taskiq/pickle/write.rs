//! From JSON to a pickle, in one pass.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use windlass_core::Json;

use super::opcode as op;

/// The version that is written: every Python 3 reads it.
const PROTOCOL: u8 = 2;

/// Writes plain data. Whole numbers beyond 64 bits become floats.
///
/// ```
/// use windlass_core::Json;
/// use windlass_wire::taskiq::pickle;
/// let json = Json::parse(r#"{"a":[1,null]}"#).unwrap();
/// assert_eq!(pickle::decode(&pickle::encode(&json)).unwrap().as_str(), json.as_str());
/// ```
pub fn encode(json: &Json) -> Vec<u8> {
    let mut out = vec![op::PROTO, PROTOCOL];
    let mut reader = serde_json::Deserializer::from_str(json.as_str());
    if Writer(&mut out).deserialize(&mut reader).is_err() {
        // Text with half a surrogate pair is JSON and no text: there is nothing to write for it.
        out.truncate(2);
        out.push(op::NONE);
    }
    out.push(op::STOP);
    out
}

struct Writer<'o>(&'o mut Vec<u8>);

impl Writer<'_> {
    fn text(&mut self, text: &str) {
        self.0.push(op::BINUNICODE);
        // A body is limited far below what four bytes count.
        self.0.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn whole(&mut self, number: i128) {
        if let Ok(small) = i32::try_from(number) {
            self.0.push(op::BININT);
            self.0.extend_from_slice(&small.to_le_bytes());
        } else {
            let bytes = number.to_le_bytes();
            // Nine bytes hold every number of 64 bits with its sign.
            self.0.extend_from_slice(&[op::LONG1, 9]);
            self.0.extend_from_slice(&bytes[..9]);
        }
    }
}

impl<'de> DeserializeSeed<'de> for Writer<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Writer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        self.0.push(op::NONE);
        Ok(())
    }
    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.0.push(if value { op::NEWTRUE } else { op::NEWFALSE });
        Ok(())
    }
    fn visit_u64<E>(mut self, value: u64) -> Result<(), E> {
        self.whole(i128::from(value));
        Ok(())
    }
    fn visit_i64<E>(mut self, value: i64) -> Result<(), E> {
        self.whole(i128::from(value));
        Ok(())
    }
    fn visit_f64<E>(self, value: f64) -> Result<(), E> {
        self.0.push(op::BINFLOAT);
        self.0.extend_from_slice(&value.to_be_bytes());
        Ok(())
    }
    fn visit_str<E>(mut self, text: &str) -> Result<(), E> {
        self.text(text);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.0.extend_from_slice(&[op::EMPTY_LIST, op::MARK]);
        while seq.next_element_seed(Writer(self.0))?.is_some() {}
        self.0.push(op::APPENDS);
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        self.0.extend_from_slice(&[op::EMPTY_DICT, op::MARK]);
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            self.text(&key);
            map.next_value_seed(Writer(self.0))?;
        }
        self.0.push(op::SETITEMS);
        Ok(())
    }
}
