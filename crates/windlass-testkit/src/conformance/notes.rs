//! What notes promise: of all who write at once, one has seen what he replaces.

use std::time::Duration;

use futures_util::future::join_all;
use windlass_core::note::{NOTE_BYTES_MAX, NOTE_KEY_BYTES_MAX, NOTE_TTL_MAX, Note, NoteAnswer, NoteAsk};

use super::harness::{Harness, START, answer, is_rejected};
use super::make::{MICRO, json, just_under, secs};

/// A note is there for everybody, with the version that its writer was told.
pub async fn a_note_is_read_as_it_was_written(h: &Harness) {
    assert_eq!(read(h, "a").await, None);
    let version = write(h, "a", None, "{\"x\":[1, 2]}").await.expect("written");
    let expected = Note {
        space: "test".to_owned(),
        key: "a".to_owned(),
        value: json("{\"x\":[1, 2]}"),
        version,
        expires: START + secs(60),
    };
    assert_eq!(answer(h.second.note(&asked("a")).await), NoteAnswer::Notes(vec![expected]));
}

/// Only who has seen the newest version writes.
pub async fn a_note_is_changed_by_who_has_seen_it(h: &Harness) {
    let first = write(h, "a", None, "1").await.expect("new");
    let there = write(h, "a", None, "2").await.expect_err("it is there");
    assert_eq!(there.map(|note| note.value), Some(json("1")));
    let second = write(h, "a", Some(first), "2").await.expect("seen");
    assert!(second > first);
    assert_eq!(write(h, "a", Some(first), "3").await.expect_err("old").map(|note| note.version), Some(second));
    assert_eq!(write(h, "b", Some(first), "3").await, Err(None), "there is none");
}

/// Of many who write a new note at once, one does.
pub async fn of_many_writers_one_writes(h: &Harness) {
    let writers = (0..16).map(|number| {
        let store = if number % 2 == 0 { h.store.clone() } else { h.second.clone() };
        async move { answer(store.note(&written("a", None, &number.to_string())).await) }
    });
    let answers = join_all(writers).await;
    assert_eq!(answers.iter().filter(|answer| matches!(answer, NoteAnswer::Written(_))).count(), 1);
}

/// A note is forgotten when its time has passed, and then it is new.
pub async fn a_note_is_forgotten_after_its_time(h: &Harness) {
    let first = write(h, "a", None, "1").await.expect("new");
    h.clock.advance(just_under(secs(60)));
    assert!(read(h, "a").await.is_some());
    h.tick_after(MICRO).await;
    assert_eq!(read(h, "a").await, None);
    assert_eq!(write(h, "a", Some(first), "2").await, Err(None));
    let second = write(h, "a", None, "2").await.expect("new again");
    assert!(second > first, "an old version never fits a new note");
}

/// A note is forgotten by who has seen it.
pub async fn a_note_is_forgotten_by_who_has_seen_it(h: &Harness) {
    let first = write(h, "a", None, "1").await.expect("new");
    let second = write(h, "a", Some(first), "2").await.expect("seen");
    let forget = |seen| NoteAsk::Forget { space: "test".to_owned(), key: "a".to_owned(), seen };
    assert!(matches!(answer(h.store.note(&forget(first)).await), NoteAnswer::Conflict(Some(_))));
    assert_eq!(answer(h.store.note(&forget(second)).await), NoteAnswer::Forgotten);
    assert_eq!(answer(h.store.note(&forget(second)).await), NoteAnswer::Conflict(None));
}

/// Notes are listed by key, a space at a time or all of them.
pub async fn notes_are_listed(h: &Harness) {
    for key in ["b", "a", "ü"] {
        write(h, key, None, "1").await.expect("new");
    }
    let elsewhere = NoteAsk::Write {
        space: "a-space".to_owned(),
        key: "z".to_owned(),
        seen: None,
        value: json("1"),
        ttl: secs(60),
    };
    answer(h.store.note(&elsewhere).await);
    let place = |space: &str, key: &str| (space.to_owned(), key.to_owned());
    let space = Some("test".to_owned());
    assert_eq!(list(h, space.clone(), None).await, [place("test", "a"), place("test", "b"), place("test", "ü")]);
    assert_eq!(list(h, space, Some(place("test", "a"))).await, [place("test", "b"), place("test", "ü")]);
    assert_eq!(list(h, None, None).await.len(), 4);
    assert_eq!(list(h, None, Some(place("a-space", "z"))).await.len(), 3);
}

/// Notes have limits.
pub async fn notes_are_limited(h: &Harness) {
    let with = |space: &str, key: &str, size: usize, ttl: Duration| NoteAsk::Write {
        space: space.to_owned(),
        key: key.to_owned(),
        seen: None,
        value: json(&format!("\"{}\"", "x".repeat(size - 2))),
        ttl,
    };
    let key = "k".repeat(NOTE_KEY_BYTES_MAX);
    assert!(matches!(
        answer(h.store.note(&with("test", &key, NOTE_BYTES_MAX, NOTE_TTL_MAX)).await),
        NoteAnswer::Written(_)
    ));
    for wrong in [
        with("test", &format!("{key}k"), 10, secs(1)),
        with("test", "k", NOTE_BYTES_MAX + 1, secs(1)),
        with("test", "k", 10, NOTE_TTL_MAX + secs(1)),
        with("test", "k", 10, Duration::ZERO),
        with("te st", "k", 10, secs(1)),
        with("", "k", 10, secs(1)),
        with("test", "", 10, secs(1)),
        with("test", "a\nb", 10, secs(1)),
    ] {
        assert!(is_rejected(h.store.note(&wrong).await), "{wrong:?}");
    }
}

fn asked(key: &str) -> NoteAsk {
    NoteAsk::Read { space: "test".to_owned(), key: key.to_owned() }
}

fn written(key: &str, seen: Option<i64>, value: &str) -> NoteAsk {
    NoteAsk::Write { space: "test".to_owned(), key: key.to_owned(), seen, value: json(value), ttl: secs(60) }
}

async fn read(h: &Harness, key: &str) -> Option<Note> {
    match answer(h.store.note(&asked(key)).await) {
        NoteAnswer::Notes(mut notes) => notes.pop(),
        other => panic!("a note is read, not {other:?}"),
    }
}

async fn write(h: &Harness, key: &str, seen: Option<i64>, value: &str) -> Result<i64, Option<Note>> {
    match answer(h.store.note(&written(key, seen, value)).await) {
        NoteAnswer::Written(version) => Ok(version),
        NoteAnswer::Conflict(now) => Err(now),
        other => panic!("a note is written or not, {other:?}"),
    }
}

async fn list(h: &Harness, space: Option<String>, after: Option<(String, String)>) -> Vec<(String, String)> {
    match answer(h.store.note(&NoteAsk::List { space, after }).await) {
        NoteAnswer::Notes(notes) => notes.into_iter().map(|note| (note.space, note.key)).collect(),
        other => panic!("notes are listed, not {other:?}"),
    }
}
