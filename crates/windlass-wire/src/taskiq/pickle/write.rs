//! From JSON to a pickle, in one walk over the text: so whole numbers keep every digit.

use std::borrow::Cow;

use windlass_core::Json;
use windlass_core::json::JSON_DEPTH_MAX;

use super::opcode as op;
use super::whole;
use crate::json::string_end;

/// The version that is written: every Python 3 reads it.
const PROTOCOL: u8 = 2;

/// Writes plain data. Whole numbers of more than 4,300 digits, which Python does not read either, become floats.
///
/// ```
/// use windlass_core::Json;
/// use windlass_wire::taskiq::pickle;
/// let json = Json::parse(r#"{"a":[1,null,123456789012345678901234567890]}"#).unwrap();
/// assert_eq!(pickle::decode(&pickle::encode(&json)).unwrap().as_str(), json.as_str());
/// ```
pub fn encode(json: &Json) -> Vec<u8> {
    let mut walk = Walk { rest: json.as_str(), out: vec![op::PROTO, PROTOCOL] };
    let written = walk.value(0);
    let mut out = walk.out;
    if written.is_none() {
        // Text with half a surrogate pair is JSON and no text: there is nothing to write for it.
        out.truncate(2);
        out.push(op::NONE);
    }
    out.push(op::STOP);
    out
}

/// What of the text is left, which is JSON, and what was written. Its steps answer `None` for what no pickle can say.
struct Walk<'j> {
    rest: &'j str,
    out: Vec<u8>,
}

impl<'j> Walk<'j> {
    fn value(&mut self, depth: usize) -> Option<()> {
        if depth > JSON_DEPTH_MAX {
            return None;
        }
        match self.next()? {
            b'[' => self.list(depth),
            b'{' => self.dict(depth),
            b'"' => self.text(),
            b'n' => self.word("null", op::NONE),
            b't' => self.word("true", op::NEWTRUE),
            b'f' => self.word("false", op::NEWFALSE),
            _ => self.number(),
        }
    }

    /// What comes next, behind white space.
    fn next(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.bytes().next()
    }

    fn take(&mut self, length: usize) -> Option<&'j str> {
        let (taken, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(taken)
    }

    fn word(&mut self, word: &str, opcode: u8) -> Option<()> {
        self.out.push(opcode);
        self.take(word.len()).map(drop)
    }

    fn list(&mut self, depth: usize) -> Option<()> {
        self.out.extend_from_slice(&[op::EMPTY_LIST, op::MARK]);
        self.take(1)?;
        while self.next()? != b']' {
            self.value(depth + 1)?;
            self.skip(b',')?;
        }
        self.out.push(op::APPENDS);
        self.take(1).map(drop)
    }

    fn dict(&mut self, depth: usize) -> Option<()> {
        self.out.extend_from_slice(&[op::EMPTY_DICT, op::MARK]);
        self.take(1)?;
        while self.next()? != b'}' {
            self.text()?;
            self.skip(b':')?;
            self.value(depth + 1)?;
            self.skip(b',')?;
        }
        self.out.push(op::SETITEMS);
        self.take(1).map(drop)
    }

    /// What stands between two parts, when it is there.
    fn skip(&mut self, byte: u8) -> Option<()> {
        if self.next()? == byte { self.take(1).map(drop) } else { Some(()) }
    }

    fn text(&mut self) -> Option<()> {
        let quoted = self.take(string_end(self.rest))?;
        let text: Cow<'_, str> = serde_json::from_str(quoted).ok()?;
        self.out.push(op::BINUNICODE);
        // A body is limited far below what four bytes count.
        self.out.extend_from_slice(&(text.len() as u32).to_le_bytes());
        self.out.extend_from_slice(text.as_bytes());
        Some(())
    }

    fn number(&mut self) -> Option<()> {
        let of_number = |byte: u8| byte.is_ascii_digit() || matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E');
        let length = self.rest.bytes().take_while(|byte| of_number(*byte)).count();
        let number = self.take(length)?;
        if let Ok(small) = number.parse::<i32>() {
            self.out.push(op::BININT);
            self.out.extend_from_slice(&small.to_le_bytes());
        } else if let Some(bytes) = whole::bytes(number) {
            self.whole(&bytes);
        } else {
            self.out.push(op::BINFLOAT);
            self.out.extend_from_slice(&number.parse::<f64>().ok()?.to_be_bytes());
        }
        Some(())
    }

    fn whole(&mut self, bytes: &[u8]) {
        if let Ok(length) = u8::try_from(bytes.len()) {
            self.out.extend_from_slice(&[op::LONG1, length]);
        } else {
            self.out.push(op::LONG4);
            self.out.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        }
        self.out.extend_from_slice(bytes);
    }
}
