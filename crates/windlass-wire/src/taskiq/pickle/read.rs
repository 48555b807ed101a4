//! From a pickle to JSON: a small machine with a stack and a memo, and then one walk over what it built.

use std::collections::HashMap;
use std::fmt::Write as _;

use windlass_core::Json;

use super::opcode as op;
use super::whole;
use crate::error::{Malformed, shown};
use crate::json::{self, BODY_BYTES_MAX};

/// The largest pickle that is read, in bytes.
pub const PICKLE_BYTES_MAX: usize = 16 * 1024 * 1024;
/// The most values that a pickle builds, and the most that it stands for when a value is used several times.
pub const NODES_MAX: usize = 1_000_000;
/// The most bytes of the long whole numbers of a pickle together: to make digits of one takes the square of its length.
const WHOLE_BYTES_MAX: usize = 1024 * 1024;
/// One that takes no more is not long: lists of identifiers and of times may hold many.
const WHOLE_BYTES_SHORT: usize = 32;
/// How deeply its values may nest.
pub const DEPTH_MAX: usize = 120;

/// Reads plain data.
///
/// # Errors
/// [`Malformed::Pickle`] with the first instruction that does more than build plain data, or where the pickle is damaged;
/// [`Malformed::TooLarge`] and [`Malformed::TooMany`] at the limits.
///
/// ```
/// use windlass_wire::taskiq::pickle;
/// // os.system("true")
/// let error = pickle::decode(b"\x80\x04cos\nsystem\nX\x04\0\0\0true\x85R.").unwrap_err();
/// assert_eq!(error.to_string(), "pickle is refused at byte 2: GLOBAL looks up or calls `os system`, and only plain data is read");
/// ```
pub fn decode(bytes: &[u8]) -> Result<Json, Malformed> {
    if bytes.len() > PICKLE_BYTES_MAX {
        return Err(Malformed::TooLarge { part: "pickle", size: bytes.len(), max: PICKLE_BYTES_MAX });
    }
    let mut machine = Machine {
        bytes,
        at: 0,
        began: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        memo: HashMap::new(),
        whole_left: WHOLE_BYTES_MAX,
    };
    let root = machine.run()?;
    let mut writer = Writer { nodes: &machine.nodes, text: String::new(), written: 0, at: machine.began };
    writer.value(root, 0)?;
    Ok(Json::trusted(writer.text))
}

/// A value by its place; lists and dicts are filled after they were made, so they are not nested.
type Index = usize;

#[derive(Debug)]
enum Node {
    None,
    Bool(bool),
    /// Its digits.
    Int(String),
    Float(f64),
    Text(String),
    List(Vec<Index>),
    Dict(Vec<(Index, Index)>),
}

#[derive(Debug, Clone, Copy)]
enum Item {
    Mark,
    Value(Index),
}

struct Machine<'b> {
    bytes: &'b [u8],
    at: usize,
    /// Where the instruction began that runs now.
    began: usize,
    nodes: Vec<Node>,
    stack: Vec<Item>,
    memo: HashMap<u32, Index>,
    /// How many bytes long whole numbers may still take.
    whole_left: usize,
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Index, Malformed> {
        loop {
            self.began = self.at;
            let opcode = self.byte()?;
            if opcode == op::STOP {
                return self.pop();
            }
            self.step(opcode)?;
        }
    }

    fn step(&mut self, opcode: u8) -> Result<(), Malformed> {
        match opcode {
            op::PROTO => {
                let version = self.byte()?;
                if (2..=5).contains(&version) { Ok(()) } else { Err(self.error("only protocols 2 to 5 are read")) }
            }
            // How much may be read ahead; the length of what follows is checked where it is read.
            op::FRAME => self.take(8).map(|_| ()),
            op::NONE => self.push(Node::None),
            op::NEWTRUE => self.push(Node::Bool(true)),
            op::NEWFALSE => self.push(Node::Bool(false)),
            op::BININT | op::BININT1 | op::BININT2 | op::LONG1 | op::LONG4 => {
                let number = self.whole(opcode)?;
                self.push(Node::Int(number))
            }
            op::BINFLOAT => {
                let bytes = self.array::<8>()?;
                self.push(Node::Float(f64::from_be_bytes(bytes)))
            }
            op::SHORT_BINUNICODE | op::SHORT_BINBYTES => {
                let length = usize::from(self.byte()?);
                self.text(length)
            }
            op::BINUNICODE | op::BINBYTES => {
                let length = self.length4()?;
                self.text(length)
            }
            op::BINUNICODE8 | op::BINBYTES8 => {
                let length = u64::from_le_bytes(self.array()?);
                self.text(usize::try_from(length).unwrap_or(usize::MAX))
            }
            op::MEMOIZE | op::BINPUT | op::LONG_BINPUT | op::BINGET | op::LONG_BINGET => self.memo(opcode),
            _ => self.build(opcode),
        }
    }

    /// Lists, tuples, dicts.
    fn build(&mut self, opcode: u8) -> Result<(), Malformed> {
        match opcode {
            op::MARK => {
                self.room()?;
                self.stack.push(Item::Mark);
                Ok(())
            }
            op::EMPTY_LIST | op::EMPTY_TUPLE => self.push(Node::List(Vec::new())),
            op::EMPTY_DICT => self.push(Node::Dict(Vec::new())),
            op::TUPLE => {
                let items = self.since_mark()?;
                self.push(Node::List(items))
            }
            op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => {
                let count = usize::from(opcode - op::TUPLE1) + 1;
                let mut items = (0..count).map(|_| self.pop()).collect::<Result<Vec<_>, _>>()?;
                items.reverse();
                self.push(Node::List(items))
            }
            op::APPEND => {
                let item = self.pop()?;
                self.list()?.push(item);
                Ok(())
            }
            op::APPENDS => {
                let items = self.since_mark()?;
                self.list()?.extend(items);
                Ok(())
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.dict()?.push((key, value));
                Ok(())
            }
            op::SETITEMS => {
                let items = self.since_mark()?;
                if items.len() % 2 != 0 {
                    return Err(self.error("a dict has a key without a value"));
                }
                let pairs = items.chunks_exact(2).map(|pair| (pair[0], pair[1]));
                self.dict()?.extend(pairs);
                Ok(())
            }
            _ => Err(self.refuse(opcode)),
        }
    }

    fn memo(&mut self, opcode: u8) -> Result<(), Malformed> {
        let key = match opcode {
            op::MEMOIZE => self.memo.len() as u32,
            op::BINPUT | op::BINGET => u32::from(self.byte()?),
            _ => u32::from_le_bytes(self.array()?),
        };
        if matches!(opcode, op::BINGET | op::LONG_BINGET) {
            let index = *self.memo.get(&key).ok_or_else(|| self.error("it uses a value that was never kept"))?;
            self.room()?;
            self.stack.push(Item::Value(index));
        } else {
            let index = self.top()?;
            self.memo.insert(key, index);
        }
        Ok(())
    }

    fn whole(&mut self, opcode: u8) -> Result<String, Malformed> {
        let length = match opcode {
            op::BININT => return Ok(i32::from_le_bytes(self.array()?).to_string()),
            op::BININT1 => return Ok(self.byte()?.to_string()),
            op::BININT2 => return Ok(u16::from_le_bytes(self.array()?).to_string()),
            op::LONG1 => usize::from(self.byte()?),
            _ => self.length4()?,
        };
        if length > whole::BYTES_MAX {
            let max = whole::BYTES_MAX;
            return Err(self.error(&format!("a whole number takes {length} bytes, the limit is {max}")));
        }
        if length > WHOLE_BYTES_SHORT {
            let left = self.whole_left.checked_sub(length);
            let refused = || self.error(&format!("its long whole numbers take more than {WHOLE_BYTES_MAX} bytes"));
            self.whole_left = left.ok_or_else(refused)?;
        }
        Ok(whole::text(self.take(length)?))
    }

    fn text(&mut self, length: usize) -> Result<(), Malformed> {
        let bytes = self.take(length)?;
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.push(Node::Text(text))
    }

    fn push(&mut self, node: Node) -> Result<(), Malformed> {
        self.room()?;
        self.stack.push(Item::Value(self.nodes.len()));
        self.nodes.push(node);
        Ok(())
    }

    fn room(&self) -> Result<(), Malformed> {
        if self.nodes.len() >= NODES_MAX || self.stack.len() >= NODES_MAX {
            return Err(Malformed::TooMany { part: "pickle", max: NODES_MAX });
        }
        Ok(())
    }

    fn pop(&mut self) -> Result<Index, Malformed> {
        match self.stack.pop() {
            Some(Item::Value(index)) => Ok(index),
            Some(Item::Mark) | None => Err(self.error("it takes a value that is not there")),
        }
    }

    fn top(&self) -> Result<Index, Malformed> {
        match self.stack.last() {
            Some(Item::Value(index)) => Ok(*index),
            Some(Item::Mark) | None => Err(self.error("it takes a value that is not there")),
        }
    }

    fn since_mark(&mut self) -> Result<Vec<Index>, Malformed> {
        let mark = self.stack.iter().rposition(|item| matches!(item, Item::Mark));
        let mark = mark.ok_or_else(|| self.error("it takes values since a mark that is not there"))?;
        let items = self.stack.drain(mark..).skip(1);
        Ok(items
            .filter_map(|item| match item {
                Item::Value(index) => Some(index),
                Item::Mark => None,
            })
            .collect())
    }

    fn list(&mut self) -> Result<&mut Vec<Index>, Malformed> {
        let index = self.top()?;
        let error = self.error("it appends to what is no list");
        match &mut self.nodes[index] {
            Node::List(items) => Ok(items),
            _ => Err(error),
        }
    }

    fn dict(&mut self) -> Result<&mut Vec<(Index, Index)>, Malformed> {
        let index = self.top()?;
        let error = self.error("it sets an item of what is no dict");
        match &mut self.nodes[index] {
            Node::Dict(items) => Ok(items),
            _ => Err(error),
        }
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.array::<1>().map(|[byte]| byte)
    }

    fn length4(&mut self) -> Result<usize, Malformed> {
        self.array().map(|bytes| u32::from_le_bytes(bytes) as usize)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let bytes = self.take(N)?;
        bytes.try_into().map_err(|_| Malformed::Pickle { at: 0, reason: "it ends too early".to_owned() })
    }

    fn take(&mut self, length: usize) -> Result<&[u8], Malformed> {
        let end = self.at.checked_add(length).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.error("it ends too early"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn error(&self, reason: &str) -> Malformed {
        Malformed::Pickle { at: self.began, reason: reason.to_owned() }
    }

    fn refuse(&self, opcode: u8) -> Malformed {
        let reason = match (op::refused(opcode), self.name(opcode)) {
            (Some(instruction), Some(name)) => {
                format!("{instruction} looks up or calls `{name}`, and only plain data is read")
            }
            (Some(instruction), None) => {
                format!("{instruction} looks up or calls something, and only plain data is read")
            }
            (None, _) => format!("instruction 0x{opcode:02x} does not build plain data"),
        };
        self.error(&reason)
    }

    /// The name that a refused instruction asks for, as far as it is plain to see.
    fn name(&self, opcode: u8) -> Option<String> {
        if opcode == b'c' || opcode == b'i' {
            let rest = &self.bytes[self.at..self.bytes.len().min(self.at + 120)];
            let mut lines = rest.split(|byte| *byte == b'\n');
            let (module, name) = (lines.next()?, lines.next()?);
            return Some(shown(&format!("{} {}", String::from_utf8_lossy(module), String::from_utf8_lossy(name))));
        }
        if opcode != 0x93 {
            return None;
        }
        let mut texts = self.stack.iter().rev().take(2).filter_map(|item| match item {
            Item::Value(index) => match &self.nodes[*index] {
                Node::Text(text) => Some(text.as_str()),
                _ => None,
            },
            Item::Mark => None,
        });
        let (name, module) = (texts.next()?, texts.next()?);
        Some(shown(&format!("{module} {name}")))
    }
}

/// Walks what was built. A value that is used several times is written several times, within the limits; one that contains
/// itself runs into the limit of depth.
struct Writer<'n> {
    nodes: &'n [Node],
    text: String,
    written: usize,
    at: usize,
}

impl Writer<'_> {
    fn value(&mut self, index: Index, depth: usize) -> Result<(), Malformed> {
        self.written += 1;
        if self.written > NODES_MAX {
            return Err(Malformed::TooMany { part: "pickle", max: NODES_MAX });
        }
        if depth > DEPTH_MAX {
            let reason = format!("it nests more than {DEPTH_MAX} deep, or contains itself");
            return Err(Malformed::Pickle { at: self.at, reason });
        }
        let nodes = self.nodes;
        match &nodes[index] {
            Node::None => self.text.push_str("null"),
            Node::Bool(flag) => self.text.push_str(if *flag { "true" } else { "false" }),
            Node::Int(digits) => self.text.push_str(digits),
            Node::Float(number) => self.float(*number),
            Node::Text(text) => self.text.push_str(&json::quoted(text)),
            Node::List(items) => {
                self.text.push('[');
                for (count, item) in items.iter().enumerate() {
                    self.separate(count);
                    self.value(*item, depth + 1)?;
                }
                self.text.push(']');
            }
            Node::Dict(items) => {
                self.text.push('{');
                for (count, (key, value)) in items.iter().enumerate() {
                    self.separate(count);
                    self.key(*key)?;
                    self.text.push(':');
                    self.value(*value, depth + 1)?;
                }
                self.text.push('}');
            }
        }
        if self.text.len() > BODY_BYTES_MAX {
            return Err(Malformed::TooLarge { part: "pickle as JSON", size: self.text.len(), max: BODY_BYTES_MAX });
        }
        Ok(())
    }

    /// As Python's `json` writes keys that are no text.
    fn key(&mut self, index: Index) -> Result<(), Malformed> {
        let nodes = self.nodes;
        let text = match &nodes[index] {
            Node::Text(text) => json::quoted(text),
            Node::None => "\"null\"".to_owned(),
            Node::Bool(flag) => format!("\"{flag}\""),
            Node::Int(digits) => format!("\"{digits}\""),
            Node::Float(number) => format!("\"{number:?}\""),
            Node::List(_) | Node::Dict(_) => {
                let reason = "a key of a dict is a tuple, which JSON does not have".to_owned();
                return Err(Malformed::Pickle { at: self.at, reason });
            }
        };
        self.text.push_str(&text);
        Ok(())
    }

    fn float(&mut self, number: f64) {
        match serde_json::Number::from_f64(number) {
            Some(number) => self.display(number),
            None => self.text.push_str("null"),
        }
    }

    fn display(&mut self, value: impl std::fmt::Display) {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{value}");
    }

    fn separate(&mut self, count: usize) {
        if count > 0 {
            self.text.push(',');
        }
    }
}
