//! Why a frame is refused.

use windlass_core::{Failure, InvalidName};

/// A frame that cannot become a task, a result or an answer: what is wrong, and what whoever sent it can do.
///
/// The texts hold names and sizes, never arguments: they are logged and kept with the dead letter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Larger than what is read.
    #[error("{part} takes {size} bytes, the limit is {max}; store the data elsewhere and send a reference")]
    TooLarge {
        /// Which part of the frame.
        part: &'static str,
        /// Its size, in bytes; at least this when reading stopped early.
        size: usize,
        /// The limit, in bytes.
        max: usize,
    },
    /// More of something than what is read.
    #[error("{part} has more than {max} entries")]
    TooMany {
        /// Which part of the frame.
        part: &'static str,
        /// The limit.
        max: usize,
    },
    /// Damaged on the way: not UTF-8, not base64, a broken compressed stream.
    #[error("{part} is damaged: {reason}")]
    Damaged {
        /// Which part of the frame.
        part: &'static str,
        /// What was expected of it.
        reason: String,
    },
    /// Not JSON, or nested too deeply.
    #[error("{part} is not JSON that can be read: {reason}")]
    NotJson {
        /// Which part of the frame.
        part: &'static str,
        /// In the words of the parser.
        reason: String,
    },
    /// JSON of another shape.
    #[error("{part} must be {expected}")]
    Shape {
        /// Which part of the frame.
        part: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// A part that every frame of this kind has.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A serialiser that is not accepted.
    #[error("content type `{0}` is not accepted: let the producer send `application/json`")]
    ContentType(String),
    /// A character set that is not accepted.
    #[error("content encoding `{0}` is not accepted: let the producer send `utf-8`")]
    ContentEncoding(String),
    /// A compression that is not read.
    #[error("compression `{0}` is not read: let the producer compress with zlib or not at all")]
    Compression(String),
    /// A time that is not ISO 8601.
    #[error("{part} `{text}` is no time in ISO 8601")]
    Time {
        /// Which part of the frame.
        part: &'static str,
        /// Its start.
        text: String,
    },
    /// A name or an id that breaks its rule.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// A pickle that holds more than plain data, or is damaged.
    #[error("pickle is refused at byte {at}: {reason}")]
    Pickle {
        /// Where reading stopped.
        at: usize,
        /// Why.
        reason: String,
    },
}

impl Malformed {
    /// The kind of mistake as one word: a label of metrics.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } | Self::TooMany { .. } => "too_large",
            Self::Damaged { .. } => "damaged",
            Self::NotJson { .. } => "not_json",
            Self::Shape { .. } => "shape",
            Self::Missing(_) => "missing",
            Self::ContentType(_) => "content_type",
            Self::ContentEncoding(_) => "content_encoding",
            Self::Compression(_) => "compression",
            Self::Time { .. } => "time",
            Self::Name(_) => "name",
            Self::Pickle { .. } => "pickle",
        }
    }

    /// The failure that a dead letter is kept with.
    pub fn failure(&self) -> Failure {
        Failure::new("malformed", self)
    }

    pub(crate) fn shape(part: &'static str, expected: &'static str) -> Self {
        Self::Shape { part, expected }
    }

    pub(crate) fn damaged(part: &'static str, reason: impl ToString) -> Self {
        Self::Damaged { part, reason: reason.to_string() }
    }

    pub(crate) fn time(part: &'static str, text: &str) -> Self {
        Self::Time { part, text: shown(text) }
    }
}

/// The start of a text from outside, without control characters: safe in an error.
pub(crate) fn shown(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}
