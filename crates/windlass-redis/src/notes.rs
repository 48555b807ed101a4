//! Notes: small records that are changed by compare-and-swap.

use std::time::Duration;

use redis::Value;
use windlass_core::note::{NOTES_MAX, Note, NoteAnswer, NoteAsk};
use windlass_core::{Json, StoreError, Timestamp};

use crate::Shared;
use crate::encode::micros;
use crate::errors::damaged;
use crate::record::{integer, list, parse, text};
use crate::scripts::Script;

/// Reads or changes notes.
pub(crate) async fn note(shared: &Shared, ask: &NoteAsk) -> Result<NoteAnswer, StoreError> {
    match ask {
        NoteAsk::List { space, after } => {
            let (from, till) = range(space.as_deref(), after.as_ref());
            let answer = shared
                .run(Script::Note, |cmd| {
                    cmd.arg("list").arg(&from).arg(&till).arg(NOTES_MAX);
                })
                .await?;
            notes_of(answer).map(NoteAnswer::Notes)
        }
        NoteAsk::Read { space, key } => {
            let answer = shared
                .run(Script::Note, |cmd| {
                    cmd.arg("read").arg(place(space, key));
                })
                .await?;
            notes_of(answer).map(NoteAnswer::Notes)
        }
        NoteAsk::Write { space, key, seen, value, ttl } => {
            let written = NoteAnswer::Written;
            change(shared, "write", &place(space, key), *seen, *ttl, value.as_str(), written).await
        }
        NoteAsk::Forget { space, key, seen } => {
            let forgotten = |_| NoteAnswer::Forgotten;
            change(shared, "forget", &place(space, key), Some(*seen), Duration::ZERO, "", forgotten).await
        }
    }
}

async fn change(
    shared: &Shared,
    what: &str,
    name: &str,
    seen: Option<i64>,
    ttl: Duration,
    value: &str,
    done: impl Fn(i64) -> NoteAnswer,
) -> Result<NoteAnswer, StoreError> {
    let answer = shared
        .run(Script::Note, |cmd| {
            let seen = seen.map(|version| version.to_string()).unwrap_or_default();
            cmd.arg(what).arg(name).arg(seen).arg(micros(ttl)).arg(value);
        })
        .await?;
    match answer {
        Value::Array(_) => Ok(NoteAnswer::Conflict(notes_of(answer)?.pop())),
        version => integer(&version).map(done),
    }
}

/// What the scripts call a note: no space has a space in it, and none has what sorts before one.
pub(crate) fn place(space: &str, key: &str) -> String {
    format!("{space} {key}")
}

/// Where a list begins and ends.
fn range(space: Option<&str>, after: Option<&(String, String)>) -> (String, String) {
    let from = match (after, space) {
        (Some((space, key)), _) => format!("({}", place(space, key)),
        (None, Some(space)) => format!("[{space} "),
        (None, None) => "-".to_owned(),
    };
    // `!` comes next after a space.
    (from, space.map_or_else(|| "+".to_owned(), |space| format!("({space}!")))
}

/// Name, version, end and value of each.
fn notes_of(answer: Value) -> Result<Vec<Note>, StoreError> {
    let mut parts = list(answer)?.into_iter();
    let mut notes = Vec::new();
    while let (Some(name), Some(version), Some(expires), Some(value)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    {
        let name = text(name)?;
        let (space, key) = name.split_once(' ').ok_or_else(|| damaged("note", "its name has no space"))?;
        notes.push(Note {
            space: space.to_owned(),
            key: key.to_owned(),
            value: Json::parse(&text(value)?).map_err(|error| damaged("note", error))?,
            version: parse("note", &text(version)?)?,
            expires: Timestamp::from_micros(parse("note", &text(expires)?)?),
        });
    }
    Ok(notes)
}
