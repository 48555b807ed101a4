//! Pickles of plain data: `None`, bool, int, float, str, bytes, list, tuple and dict. Nothing is imported or called.
//!
//! A pickle is a program for a small machine. This one knows the instructions that build plain data; the first other
//! one ends it with an error. In particular it has no way to look up a name (`GLOBAL`, `STACK_GLOBAL`, `INST`) or to call
//! something (`REDUCE`, `BUILD`, `OBJ`, `NEWOBJ`), which is what makes pickles of strangers dangerous in Python.
//!
//! | Python | JSON |
//! |---|---|
//! | tuple | array |
//! | bytes | text, with what is not UTF-8 replaced |
//! | keys that are numbers, `True`, `False`, `None` | text, as Python's `json` writes them |
//! | `nan`, `inf` | `null` |
//! | whole numbers | the same, exact up to 4,300 digits: Python reads and writes no more |
//!
//! Source of the format: the recorded results and the documentation of Python's `pickletools`; protocols 2 to 5 are read, 2
//! is written.

mod read;
mod whole;
mod write;

pub use read::{DEPTH_MAX, NODES_MAX, PICKLE_BYTES_MAX, decode};
pub use write::encode;

/// The instructions that are read or written, and those that are refused by their name.
mod opcode {
    pub(super) const PROTO: u8 = 0x80;
    pub(super) const FRAME: u8 = 0x95;
    pub(super) const STOP: u8 = b'.';
    pub(super) const MARK: u8 = b'(';
    pub(super) const NONE: u8 = b'N';
    pub(super) const NEWTRUE: u8 = 0x88;
    pub(super) const NEWFALSE: u8 = 0x89;
    pub(super) const BININT: u8 = b'J';
    pub(super) const BININT1: u8 = b'K';
    pub(super) const BININT2: u8 = b'M';
    pub(super) const LONG1: u8 = 0x8a;
    pub(super) const LONG4: u8 = 0x8b;
    pub(super) const BINFLOAT: u8 = b'G';
    pub(super) const SHORT_BINUNICODE: u8 = 0x8c;
    pub(super) const BINUNICODE: u8 = b'X';
    pub(super) const BINUNICODE8: u8 = 0x8d;
    pub(super) const SHORT_BINBYTES: u8 = b'C';
    pub(super) const BINBYTES: u8 = b'B';
    pub(super) const BINBYTES8: u8 = 0x8e;
    pub(super) const EMPTY_LIST: u8 = b']';
    pub(super) const APPEND: u8 = b'a';
    pub(super) const APPENDS: u8 = b'e';
    pub(super) const EMPTY_DICT: u8 = b'}';
    pub(super) const SETITEM: u8 = b's';
    pub(super) const SETITEMS: u8 = b'u';
    pub(super) const EMPTY_TUPLE: u8 = b')';
    pub(super) const TUPLE: u8 = b't';
    pub(super) const TUPLE1: u8 = 0x85;
    pub(super) const TUPLE2: u8 = 0x86;
    pub(super) const TUPLE3: u8 = 0x87;
    pub(super) const MEMOIZE: u8 = 0x94;
    pub(super) const BINPUT: u8 = b'q';
    pub(super) const LONG_BINPUT: u8 = b'r';
    pub(super) const BINGET: u8 = b'h';
    pub(super) const LONG_BINGET: u8 = b'j';

    /// The names of instructions that are refused because they look up or call something.
    pub(super) fn refused(opcode: u8) -> Option<&'static str> {
        Some(match opcode {
            b'c' => "GLOBAL",
            0x93 => "STACK_GLOBAL",
            b'R' => "REDUCE",
            b'b' => "BUILD",
            b'i' => "INST",
            b'o' => "OBJ",
            0x81 => "NEWOBJ",
            0x92 => "NEWOBJ_EX",
            0x82..=0x84 => "EXT",
            b'P' => "PERSID",
            b'Q' => "BINPERSID",
            0x96..=0x98 => "BUFFER",
            _ => return None,
        })
    }
}
