//! Notes: small records that are changed by compare-and-swap.

use std::time::Duration;

use rusqlite::{Connection, Row, params};
use windlass_core::adoption::{DELIVERY_SPACE, DELIVERY_TTL};
use windlass_core::note::{NOTES_MAX, Note, NoteAnswer, NoteAsk};
use windlass_core::{DeliveryId, Json, Timestamp};

use crate::errors::Fault;
use crate::rows::{micros, text};
use crate::tx::Tx;

/// Answers what only reads.
pub(crate) fn look(db: &Connection, ask: &NoteAsk, now: Timestamp) -> Result<NoteAnswer, Fault> {
    let notes = match ask {
        NoteAsk::List { space: Some(space), after } => {
            let from = after.as_ref().filter(|(of, _)| of >= space);
            let (of, key) = from.map_or((space.as_str(), ""), |(of, key)| (of, key));
            let mut select = db.prepare_cached(
                "SELECT space, key, value, version, expires FROM windlass_note \
                 WHERE space = ?1 AND (space, key) > (?2, ?3) AND expires > ?4 ORDER BY key LIMIT ?5",
            )?;
            notes(select.query(params![space, of, key, now.as_micros(), NOTES_MAX as i64])?)?
        }
        NoteAsk::List { space: None, after } => {
            let (of, key) = after.as_ref().map_or(("", ""), |(of, key)| (of, key));
            let mut select = db.prepare_cached(
                "SELECT space, key, value, version, expires FROM windlass_note \
                 WHERE (space, key) > (?1, ?2) AND expires > ?3 ORDER BY space, key LIMIT ?4",
            )?;
            notes(select.query(params![of, key, now.as_micros(), NOTES_MAX as i64])?)?
        }
        NoteAsk::Read { space, key } | NoteAsk::Write { space, key, .. } | NoteAsk::Forget { space, key, .. } => {
            read(db, space, key, now)?.into_iter().collect()
        }
    };
    Ok(NoteAnswer::Notes(notes))
}

/// Writes or forgets a note, if it is as the caller saw it.
pub(crate) fn change(tx: &mut Tx<'_>, ask: &NoteAsk) -> Result<NoteAnswer, Fault> {
    match ask {
        NoteAsk::List { .. } | NoteAsk::Read { .. } => look(tx.db, ask, tx.now),
        NoteAsk::Write { space, key, seen, value, ttl } => {
            let before = read(tx.db, space, key, tx.now)?;
            if before.as_ref().map(|note| note.version) != *seen {
                return Ok(NoteAnswer::Conflict(before));
            }
            write(tx, (space, key), value, *ttl).map(NoteAnswer::Written)
        }
        NoteAsk::Forget { space, key, seen } => {
            let before = read(tx.db, space, key, tx.now)?;
            if before.as_ref().map(|note| note.version) != Some(*seen) {
                return Ok(NoteAnswer::Conflict(before));
            }
            forget(tx, space, key).map(|()| NoteAnswer::Forgotten)
        }
    }
}

/// Whether a delivery is remembered.
pub(crate) fn is_known(tx: &Tx<'_>, id: &DeliveryId) -> Result<bool, Fault> {
    let mut select = tx.prepare("SELECT 1 FROM windlass_note WHERE space = ?1 AND key = ?2 AND expires > ?3")?;
    Ok(select.exists(params![DELIVERY_SPACE, id.as_str(), tx.now_micros()])?)
}

/// Remembers a delivery, whatever was there.
pub(crate) fn remember_delivery(tx: &Tx<'_>, id: &DeliveryId, value: &Json) -> Result<(), Fault> {
    write(tx, (DELIVERY_SPACE, id.as_str()), value, DELIVERY_TTL).map(drop)
}

/// Forgets a delivery, if it is remembered.
pub(crate) fn forget_delivery(tx: &Tx<'_>, id: &DeliveryId) -> Result<(), Fault> {
    forget(tx, DELIVERY_SPACE, id.as_str())
}

/// Writes a note, whatever was there; answers its version.
fn write(tx: &Tx<'_>, (space, key): (&str, &str), value: &Json, ttl: Duration) -> Result<i64, Fault> {
    let version = next_version(tx)?;
    let expires = tx.now_micros().saturating_add(micros(ttl));
    tx.execute(
        "INSERT OR REPLACE INTO windlass_note (space, key, value, version, expires) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![space, key, value.as_str(), version, expires],
    )?;
    Ok(version)
}

fn forget(tx: &Tx<'_>, space: &str, key: &str) -> Result<(), Fault> {
    tx.execute("DELETE FROM windlass_note WHERE space = ?1 AND key = ?2", [space, key])?;
    Ok(())
}

/// Removes notes whose time has passed.
pub(crate) fn prune(tx: &Tx<'_>, most: usize) -> Result<(), Fault> {
    tx.execute(
        "DELETE FROM windlass_note WHERE (space, key) IN \
         (SELECT space, key FROM windlass_note WHERE expires <= ?1 ORDER BY expires LIMIT ?2)",
        params![tx.now_micros(), most as i64],
    )?;
    Ok(())
}

/// One counter for all notes that never goes back: a version that somebody saw fits no note that was written later, even if
/// the note was forgotten in between.
fn next_version(tx: &Tx<'_>) -> Result<i64, Fault> {
    let mut next =
        tx.prepare("UPDATE windlass_meta SET value = value + 1 WHERE key = 'note_version' RETURNING value")?;
    Ok(next.query_row([], |row| row.get(0))?)
}

fn read(db: &Connection, space: &str, key: &str, now: Timestamp) -> Result<Option<Note>, Fault> {
    let mut select = db.prepare_cached(
        "SELECT space, key, value, version, expires FROM windlass_note WHERE space = ?1 AND key = ?2 AND expires > ?3",
    )?;
    Ok(notes(select.query(params![space, key, now.as_micros()])?)?.pop())
}

fn notes(mut rows: rusqlite::Rows<'_>) -> Result<Vec<Note>, Fault> {
    let mut notes = Vec::new();
    while let Some(row) = rows.next()? {
        notes.push(note(row)?);
    }
    Ok(notes)
}

fn note(row: &Row<'_>) -> Result<Note, Fault> {
    Ok(Note {
        space: row.get(0)?,
        key: row.get(1)?,
        value: Json::parse(text(row, 2)?).map_err(|error| Fault::damaged("note", error))?,
        version: row.get(3)?,
        expires: Timestamp::from_micros(row.get(4)?),
    })
}
