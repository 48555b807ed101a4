//! Notes: small records that are changed by compare-and-swap.

use std::collections::BTreeMap;
use std::ops::Bound;

use windlass_core::note::{NOTES_MAX, Note, NoteAnswer, NoteAsk};
use windlass_core::{Json, StoreError, Timestamp};

use crate::data::Data;

/// The notes of a store, by space and key.
#[derive(Default)]
pub(crate) struct Notes {
    kept: BTreeMap<(String, String), Kept>,
    last_version: i64,
}

struct Kept {
    value: Json,
    version: i64,
    expires: Timestamp,
}

impl Notes {
    fn read(&self, place: &(String, String), now: Timestamp) -> Option<Note> {
        self.kept.get(place).filter(|kept| kept.expires > now).map(|kept| note(place, kept))
    }

    pub(crate) fn is_there(&self, place: &(String, String), now: Timestamp) -> bool {
        self.kept.get(place).is_some_and(|kept| kept.expires > now)
    }

    /// Writes a note, whatever was there.
    pub(crate) fn write(&mut self, place: (String, String), value: Json, expires: Timestamp) -> i64 {
        self.last_version += 1;
        self.kept.insert(place, Kept { value, version: self.last_version, expires });
        self.last_version
    }

    /// Forgets a note, if there is one.
    pub(crate) fn forget(&mut self, place: &(String, String)) {
        self.kept.remove(place);
    }

    pub(crate) fn prune(&mut self, now: Timestamp) {
        self.kept.retain(|_, kept| kept.expires > now);
    }
}

fn note((space, key): &(String, String), kept: &Kept) -> Note {
    Note {
        space: space.clone(),
        key: key.clone(),
        value: kept.value.clone(),
        version: kept.version,
        expires: kept.expires,
    }
}

impl Data {
    pub(crate) fn note(&mut self, ask: &NoteAsk, now: Timestamp) -> Result<NoteAnswer, StoreError> {
        ask.check()?;
        let notes = &mut self.notes;
        Ok(match ask.clone() {
            NoteAsk::List { space, after } => {
                let first = (space.clone().unwrap_or_default(), String::new());
                let from = after.map_or(Bound::Included(first), Bound::Excluded);
                let living = notes.kept.range((from, Bound::Unbounded)).filter(|(_, kept)| kept.expires > now);
                let of_space = living.take_while(|((of, _), _)| space.as_ref().is_none_or(|space| space == of));
                NoteAnswer::Notes(of_space.take(NOTES_MAX).map(|(place, kept)| note(place, kept)).collect())
            }
            NoteAsk::Read { space, key } => NoteAnswer::Notes(notes.read(&(space, key), now).into_iter().collect()),
            NoteAsk::Write { space, key, seen, value, ttl } => {
                let place = (space, key);
                let before = notes.read(&place, now);
                if before.as_ref().map(|note| note.version) != seen {
                    return Ok(NoteAnswer::Conflict(before));
                }
                NoteAnswer::Written(notes.write(place, value, now + ttl))
            }
            NoteAsk::Forget { space, key, seen } => {
                let place = (space, key);
                let before = notes.read(&place, now);
                if before.as_ref().map(|note| note.version) != Some(seen) {
                    return Ok(NoteAnswer::Conflict(before));
                }
                notes.forget(&place);
                NoteAnswer::Forgotten
            }
        })
    }
}
