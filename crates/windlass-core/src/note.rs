//! Notes: small records that all nodes share and change by compare-and-swap. Receipts of side effects
//! ([`Call::once`](crate::call::Call::once)) and circuit breakers ([`crate::breaker`]) are kept as notes.
//!
//! A note has a space and a key; its version is unique within the store's life of that key, and rises with each write. It
//! is forgotten when its time has passed.

use std::time::Duration;

use crate::{Json, StoreError, Timestamp};

/// The longest space of a note, in bytes; letters, digits, `-` and `_`.
pub const NOTE_SPACE_BYTES_MAX: usize = 40;
/// The longest key of a note, in bytes; no control characters.
pub const NOTE_KEY_BYTES_MAX: usize = 255;
/// The largest note, in bytes.
pub const NOTE_BYTES_MAX: usize = 64 * 1024;
/// The longest time that a note is kept after its last write.
pub const NOTE_TTL_MAX: Duration = Duration::from_secs(366 * 86_400);
/// The most notes in one answer.
pub const NOTES_MAX: usize = 1_000;

/// A note.
#[derive(Debug, Clone, PartialEq)]
pub struct Note {
    /// What kind of note it is.
    pub space: String,
    /// Its name.
    pub key: String,
    /// What is written.
    pub value: Json,
    /// Rises with each write.
    pub version: i64,
    /// When it is forgotten.
    pub expires: Timestamp,
}

/// What is asked about notes.
#[derive(Debug, Clone, PartialEq)]
pub enum NoteAsk {
    /// The notes of a space, by key, after this one; at most [`NOTES_MAX`]. Without a space: of all, by space and key.
    List {
        /// Which space.
        space: Option<String>,
        /// Space and key of the last note of the page before.
        after: Option<(String, String)>,
    },
    /// One note.
    Read {
        /// Its space.
        space: String,
        /// Its key.
        key: String,
    },
    /// Writes a note if it still is as the caller saw it.
    Write {
        /// Its space.
        space: String,
        /// Its key.
        key: String,
        /// The version that the caller saw; `None`: there was none.
        seen: Option<i64>,
        /// What is written.
        value: Json,
        /// How long it is kept.
        ttl: Duration,
    },
    /// Forgets a note if it still is as the caller saw it.
    Forget {
        /// Its space.
        space: String,
        /// Its key.
        key: String,
        /// The version that the caller saw.
        seen: i64,
    },
}

/// What is answered.
#[derive(Debug, Clone, PartialEq)]
pub enum NoteAnswer {
    /// These; of [`NoteAsk::List`] and [`NoteAsk::Read`].
    Notes(Vec<Note>),
    /// It is written, with this version.
    Written(i64),
    /// It is forgotten.
    Forgotten,
    /// Somebody else has written: this is what there is now.
    Conflict(Option<Note>),
}

impl NoteAsk {
    /// Checks the limits; for drivers.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when one is broken.
    pub fn check(&self) -> Result<(), StoreError> {
        let (space, key) = match self {
            Self::List { .. } => return Ok(()),
            Self::Read { space, key } | Self::Forget { space, key, .. } => (space, key),
            Self::Write { space, key, value, ttl, .. } => {
                if value.as_str().len() > NOTE_BYTES_MAX {
                    return Err(StoreError::Rejected(format!("a note takes at most {NOTE_BYTES_MAX} bytes")));
                }
                if ttl.is_zero() || *ttl > NOTE_TTL_MAX {
                    return Err(StoreError::Rejected(
                        "a note is kept for longer than zero and at most 366 d".to_owned(),
                    ));
                }
                (space, key)
            }
        };
        let named = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if space.is_empty() || space.len() > NOTE_SPACE_BYTES_MAX || !space.bytes().all(named) {
            return Err(StoreError::Rejected(format!(
                "the space of a note is 1 to {NOTE_SPACE_BYTES_MAX} letters, digits, `-` and `_`"
            )));
        }
        if key.is_empty() || key.len() > NOTE_KEY_BYTES_MAX || key.chars().any(char::is_control) {
            return Err(StoreError::Rejected(format!(
                "the key of a note is 1 to {NOTE_KEY_BYTES_MAX} bytes without control characters"
            )));
        }
        Ok(())
    }
}
