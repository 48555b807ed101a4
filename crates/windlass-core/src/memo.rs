//! What a task remembers across its attempts: the results of its durable steps, and the signals that were sent to it.
//!
//! A memo is text that only grows: one line of JSON for each step and signal. A store appends lines and hands all of them to
//! the next attempt with its claim; only the engine reads them. Steps are appended with a renewal of the lease, so an old
//! holder cannot; signals by the command [`TaskAction::Signal`](crate::backend::TaskAction::Signal).
//!
//! ```text
//! {"step":"charge","value":{"payment":"p-1"}}
//! {"signal":"approved","value":true}
//! ```

use serde::{Deserialize, Serialize};

use crate::{Json, SignalName};

/// The longest memo, in bytes. A step or signal that does not fit any more is refused.
pub const MEMO_BYTES_MAX: usize = 1024 * 1024;

/// One line of a memo.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// A step that is done.
    Step {
        /// Its name, unique within the task.
        step: String,
        /// What it returned.
        value: Json,
    },
    /// A signal that was sent.
    Signal {
        /// Its name.
        signal: SignalName,
        /// What was sent with it.
        value: Json,
    },
}

/// A line as it is stored: one of the names is there.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    signal: Option<SignalName>,
    value: Json,
}

impl Line {
    /// The line as stores append it, with its end.
    pub fn to_text(&self) -> String {
        let stored = match self.clone() {
            Self::Step { step, value } => Stored { step: Some(step), signal: None, value },
            Self::Signal { signal, value } => Stored { step: None, signal: Some(signal), value },
        };
        // Serialising plain data to a string cannot fail; JSON text has no line breaks.
        let mut text =
            serde_json::to_string(&stored).unwrap_or_else(|error| unreachable!("a line is plain data: {error}"));
        text.push('\n');
        text
    }

    fn read(text: &str) -> Option<Self> {
        let stored: Stored = serde_json::from_str(text).ok()?;
        match (stored.step, stored.signal) {
            (Some(step), None) => Some(Self::Step { step, value: stored.value }),
            (None, Some(signal)) => Some(Self::Signal { signal, value: stored.value }),
            (Some(_), Some(_)) | (None, None) => None,
        }
    }
}

/// Reads a memo. Lines that cannot be read, such as those of a newer version, are left out.
pub fn lines(memo: &str) -> impl Iterator<Item = Line> + '_ {
    memo.lines().filter_map(Line::read)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memo_reads_as_it_was_written() {
        let step = Line::Step { step: "charge".to_owned(), value: Json::trusted("{\"a\":\"x\\ny\"}") };
        let signal = Line::Signal { signal: SignalName::known("approved"), value: Json::null() };
        let memo = step.to_text() + &signal.to_text() + "{\"newer\":1}\n";
        assert_eq!(memo.lines().count(), 3, "line breaks in values are escaped");
        assert_eq!(lines(&memo).collect::<Vec<_>>(), [step, signal]);
    }
}
