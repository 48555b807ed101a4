//! Notes: small records that are changed by compare-and-swap.

use rusqlite::{Connection, Row, params};
use windlass_core::note::{NOTES_MAX, Note, NoteAnswer, NoteAsk};
use windlass_core::{Json, Timestamp};

use crate::errors::Fault;
use crate::rows::{micros, text};
use crate::tx::Tx;

/// Answers what is asked; reads only for the two that change nothing.
pub(crate) fn read(db: &Connection, ask: &NoteAsk, now: Timestamp) -> Result<NoteAnswer, Fault> {
    let notes = match ask {
        NoteAsk::List { space, after } => list(db, space.as_deref(), after.as_ref(), now)?,
        NoteAsk::Read { space, key } | NoteAsk::Write { space, key, .. } | NoteAsk::Forget { space, key, .. } => {
            one(db, space, key, now)?.into_iter().collect()
        }
    };
    Ok(NoteAnswer::Notes(notes))
}

/// Writes or forgets a note that still is as the caller saw it.
pub(crate) fn change(tx: &mut Tx<'_>, ask: &NoteAsk) -> Result<NoteAnswer, Fault> {
    let (space, key, seen) = match ask {
        NoteAsk::Write { space, key, seen, .. } => (space, key, *seen),
        NoteAsk::Forget { space, key, seen } => (space, key, Some(*seen)),
        NoteAsk::List { .. } | NoteAsk::Read { .. } => return read(tx.db, ask, tx.now),
    };
    let before = one(tx.db, space, key, tx.now)?;
    if before.as_ref().map(|note| note.version) != seen {
        return Ok(NoteAnswer::Conflict(before));
    }
    let NoteAsk::Write { value, ttl, .. } = ask else {
        tx.execute("DELETE FROM windlass_note WHERE space = ?1 AND key = ?2", [space, key])?;
        return Ok(NoteAnswer::Forgotten);
    };
    tx.execute("UPDATE windlass_meta SET value = value + 1 WHERE key = 'note_version'", [])?;
    let mut select = tx.prepare("SELECT value FROM windlass_meta WHERE key = 'note_version'")?;
    let version: i64 = select.query_row([], |row| row.get(0))?;
    let expires = tx.now_micros().saturating_add(micros(*ttl));
    tx.execute(
        "INSERT OR REPLACE INTO windlass_note (space, key, value, version, expires) VALUES (?1, ?2, ?3, ?4, ?5)",
        params![space, key, value.as_str(), version, expires],
    )?;
    Ok(NoteAnswer::Written(version))
}

fn one(db: &Connection, space: &str, key: &str, now: Timestamp) -> Result<Option<Note>, Fault> {
    let mut select = db.prepare_cached(
        "SELECT space, key, value, version, expires FROM windlass_note WHERE space = ?1 AND key = ?2 AND expires > ?3",
    )?;
    let mut rows = select.query(params![space, key, now.as_micros()])?;
    rows.next()?.map(note).transpose()
}

fn list(
    db: &Connection,
    space: Option<&str>,
    after: Option<&(String, String)>,
    now: Timestamp,
) -> Result<Vec<Note>, Fault> {
    let mut select = db.prepare_cached(
        "SELECT space, key, value, version, expires FROM windlass_note \
         WHERE (space, key) > (?1, ?2) AND (?3 IS NULL OR space = ?3) AND expires > ?4 ORDER BY space, key LIMIT ?5",
    )?;
    let (from_space, from_key) =
        after.map_or((space.unwrap_or_default(), ""), |(space, key)| (space.as_str(), key.as_str()));
    let mut rows = select.query(params![from_space, from_key, space, now.as_micros(), NOTES_MAX as i64])?;
    let mut notes = Vec::new();
    while let Some(row) = rows.next()? {
        notes.push(note(row)?);
    }
    Ok(notes)
}

fn note(row: &Row<'_>) -> Result<Note, Fault> {
    Ok(Note {
        space: text(row, 0)?.to_owned(),
        key: text(row, 1)?.to_owned(),
        value: Json::parse(text(row, 2)?).map_err(|error| Fault::damaged("note", error))?,
        version: row.get(3)?,
        expires: Timestamp::from_micros(row.get(4)?),
    })
}
