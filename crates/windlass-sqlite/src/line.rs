//! Lines of ready tasks: those of a queue without a key are one, those with one key are another. Each kind of line has its
//! index, and each statement about a line two texts that differ in nothing else.
//!
//! The text for tasks without a key says `?2 IS NULL` where the other compares the key, so that both take the same values.

use rusqlite::{Connection, OptionalExtension, params};
use windlass_core::Key;
use windlass_core::fair::KEYS_PER_CLAIM;

use crate::errors::Fault;
use crate::rows::parse;

/// A line of a queue.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line<'k> {
    pub(crate) queue: i64,
    /// `None`: its tasks have none.
    pub(crate) key: Option<&'k Key>,
}

impl<'k> Line<'k> {
    /// The key as a value.
    pub(crate) fn key_text(self) -> Option<&'k str> {
        self.key.map(Key::as_str)
    }

    /// The text for this kind of line.
    pub(crate) fn text(self, without_key: &'static str, with_key: &'static str) -> &'static str {
        if self.key.is_none() { without_key } else { with_key }
    }

    /// The names that have ready tasks in it; one index seek for each.
    pub(crate) fn names(self, db: &Connection) -> Result<Vec<i64>, Fault> {
        let mut next = db.prepare_cached(self.text(
            "SELECT name FROM windlass_task INDEXED BY windlass_task_ready \
             WHERE state = 1 AND key IS NULL AND queue = ?1 AND ?2 IS NULL AND name > ?3 ORDER BY name LIMIT 1",
            "SELECT name FROM windlass_task INDEXED BY windlass_task_keyed \
             WHERE state = 1 AND key IS NOT NULL AND queue = ?1 AND key = ?2 AND name > ?3 ORDER BY name LIMIT 1",
        ))?;
        let mut names = Vec::new();
        let mut after = 0;
        while let Some(name) =
            next.query_row(params![self.queue, self.key_text(), after], |row| row.get(0)).optional()?
        {
            names.push(name);
            after = name;
        }
        Ok(names)
    }
}

/// Whether a queue has ready tasks without a key.
pub(crate) fn any_without_key(db: &Connection, queue: i64) -> Result<bool, Fault> {
    let mut select = db.prepare_cached(
        "SELECT 1 FROM windlass_task INDEXED BY windlass_task_ready \
         WHERE state = 1 AND key IS NULL AND queue = ?1 LIMIT 1",
    )?;
    Ok(select.exists([queue])?)
}

/// Whether a queue has ready tasks with a key.
pub(crate) fn any_with_key(db: &Connection, queue: i64) -> Result<bool, Fault> {
    let mut select = db.prepare_cached(
        "SELECT 1 FROM windlass_task INDEXED BY windlass_task_keyed \
         WHERE state = 1 AND key IS NOT NULL AND queue = ?1 LIMIT 1",
    )?;
    Ok(select.exists([queue])?)
}

/// Where a walk along the keys of a queue goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum From {
    Start,
    Key(Key),
    After(Key),
}

/// The next key of a queue with ready tasks; one index seek.
pub(crate) fn next_key(db: &Connection, queue: i64, from: &From) -> Result<Option<Key>, Fault> {
    let (sql, from) = match from {
        From::Start => (AFTER, ""),
        From::Key(key) => (NOT_BEFORE, key.as_str()),
        From::After(key) => (AFTER, key.as_str()),
    };
    let mut select = db.prepare_cached(sql)?;
    let next: Option<String> = select.query_row(params![queue, from], |row| row.get(0)).optional()?;
    next.map(|key| parse("key", &key)).transpose()
}

const AFTER: &str = "SELECT key FROM windlass_task INDEXED BY windlass_task_keyed \
     WHERE state = 1 AND key IS NOT NULL AND queue = ?1 AND key > ?2 ORDER BY key LIMIT 1";
const NOT_BEFORE: &str = "SELECT key FROM windlass_task INDEXED BY windlass_task_keyed \
     WHERE state = 1 AND key IS NOT NULL AND queue = ?1 AND key >= ?2 ORDER BY key LIMIT 1";

/// Walks along the lines of a queue, as many as a claim looks at, until one is what `is_it` looks for. Answers whether one
/// was. A line may be empty.
pub(crate) fn any_line(
    db: &Connection,
    queue: i64,
    mut is_it: impl FnMut(Line<'_>) -> Result<bool, Fault>,
) -> Result<bool, Fault> {
    if is_it(Line { queue, key: None })? {
        return Ok(true);
    }
    let mut from = From::Start;
    for _ in 0..KEYS_PER_CLAIM {
        let Some(key) = next_key(db, queue, &from)? else { return Ok(false) };
        if is_it(Line { queue, key: Some(&key) })? {
            return Ok(true);
        }
        from = From::After(key);
    }
    Ok(false)
}
