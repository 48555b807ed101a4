//! Declares the limits of an application when a node of it starts, and withdraws what it declares no more.
//!
//! The store remembers for each application what it declares, in a note. So a declaration that was removed from the code
//! is removed from the store, and applications that share a store leave those of the others alone.
//!
//! 1. read the notes of all applications   2. note what this one declares, beside what it has declared before
//! 3. set its rules   4. withdraw what nobody declares any more   5. note what this one declares
//!
//! A crash in between leaves a note that names too much, never too little: the next start goes on. Where two applications,
//! or two versions of one, declare different rules for one subject, that of the node that started last holds; the rule of
//! an operator holds against all of them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{Limit, LimitChange, Subject};
use crate::backend::Backend;
use crate::event::{Event, Listener};
use crate::note::{NOTE_KEY_BYTES_MAX, NOTE_TTL_MAX, Note, NoteAnswer, NoteAsk};
use crate::{Clock, Json, StoreError, Timestamp};

/// The most limits that one application declares: their subjects fit into one note.
pub const DECLARED_MAX: usize = 200;
/// Where it is noted what applications declare.
pub const DECLARED_SPACE: &str = "limits";
/// The wait before a store that failed is asked again.
const AGAIN: Duration = Duration::from_secs(1);

/// What an application declares.
pub(crate) struct Declaring {
    /// The store.
    pub(crate) backend: Arc<dyn Backend>,
    /// What time it is.
    pub(crate) clock: Arc<dyn Clock>,
    /// Who hears of it.
    pub(crate) listeners: Arc<[Arc<dyn Listener>]>,
    /// The name of the application.
    pub(crate) application: String,
    /// Its limits.
    pub(crate) limits: Vec<Limit>,
}

/// The note of an application.
#[derive(Debug, Serialize, Deserialize)]
struct Declared {
    subjects: Vec<String>,
}

/// What is to be done at a store with these notes.
#[derive(Debug, PartialEq, Eq)]
struct Plan {
    /// The version of the own note.
    seen: Option<i64>,
    /// What is noted before anything is set; `None` when the note says so already.
    first: Option<BTreeSet<String>>,
    /// What nobody declares any more.
    withdraw: Vec<String>,
    /// What is noted at the end; `None` when the note says so already.
    last: Option<BTreeSet<String>>,
    /// What another application declares as well, with its name.
    contested: Vec<(String, String)>,
}

fn plan(key: &str, declared: &BTreeSet<String>, notes: &[Note], now: Timestamp) -> Plan {
    let subjects = |note: &Note| note.value.to::<Declared>().map(|declared| declared.subjects).unwrap_or_default();
    let own = notes.iter().find(|note| note.key == key);
    let before: BTreeSet<String> = own.map(subjects).unwrap_or_default().into_iter().collect();
    let others: Vec<(&str, Vec<String>)> =
        notes.iter().filter(|note| note.key != key).map(|note| (note.key.as_str(), subjects(note))).collect();
    let all: BTreeSet<String> = before.union(declared).cloned().collect();
    // A note must outlive the time between two starts.
    let fades = own.is_some_and(|note| note.expires < now + NOTE_TTL_MAX / 2);
    let by_others = |subject: &String| others.iter().find(|(_, theirs)| theirs.contains(subject));
    Plan {
        seen: own.map(|note| note.version),
        withdraw: before.difference(declared).filter(|subject| by_others(subject).is_none()).cloned().collect(),
        contested: declared
            .iter()
            .filter_map(|subject| by_others(subject).map(|(other, _)| (subject.clone(), (*other).to_owned())))
            .collect(),
        last: (all != *declared).then(|| declared.clone()),
        first: (all != before || (fades && !all.is_empty())).then_some(all),
    }
}

impl Declaring {
    /// Declares everything, however long the store fails. What it refuses for good is said, and the node goes on.
    pub(crate) async fn run(self) {
        let mut failing_since: Option<Instant> = None;
        loop {
            match self.declare().await {
                Ok(()) => break,
                Err(error) if error.is_transient() => {
                    failing_since.get_or_insert_with(Instant::now);
                    self.tell(&Event::StoreFailed { operation: "limit", error, again_in: AGAIN });
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => {
                    tracing::error!(event = "limits_refused", %error, "the declared limits do not hold");
                    break;
                }
            }
        }
        if let Some(since) = failing_since {
            self.tell(&Event::StoreBack { after: since.elapsed() });
        }
    }

    async fn declare(&self) -> Result<(), StoreError> {
        let key = key_of(&self.application);
        let declared: BTreeSet<String> = self.limits.iter().map(|limit| limit.subject.to_string()).collect();
        loop {
            let mut plan = plan(&key, &declared, &self.notes().await?, self.clock.now());
            if let Some(all) = &plan.first {
                // When another node of this application was faster, its note is read again.
                let Some(version) = self.note(&key, plan.seen, all).await? else { continue };
                plan.seen = version;
            }
            for limit in &self.limits {
                self.backend.limit(&LimitChange::Set(limit.clone())).await?;
            }
            for subject in plan.withdraw.iter().filter_map(|subject| subject.parse::<Subject>().ok()) {
                self.backend.limit(&LimitChange::Withdraw(subject)).await?;
            }
            if let Some(last) = &plan.last
                && self.note(&key, plan.seen, last).await?.is_none()
            {
                continue;
            }
            for (subject, other) in plan.contested {
                self.tell(&Event::LimitContested { subject, application: name_of(&other).to_owned() });
            }
            return Ok(());
        }
    }

    /// What every application declares.
    async fn notes(&self) -> Result<Vec<Note>, StoreError> {
        let mut all = Vec::new();
        loop {
            let after = all.last().map(|note: &Note| (note.space.clone(), note.key.clone()));
            let ask = NoteAsk::List { space: Some(DECLARED_SPACE.to_owned()), after };
            match self.backend.note(&ask).await? {
                NoteAnswer::Notes(notes) if !notes.is_empty() => all.extend(notes),
                _ => return Ok(all),
            }
        }
    }

    /// Notes what is declared; answers the version of the note, or nothing when somebody else has written it.
    async fn note(
        &self,
        key: &str,
        seen: Option<i64>,
        subjects: &BTreeSet<String>,
    ) -> Result<Option<Option<i64>>, StoreError> {
        let (space, key) = (DECLARED_SPACE.to_owned(), key.to_owned());
        let ask = match seen {
            Some(seen) if subjects.is_empty() => NoteAsk::Forget { space, key, seen },
            _ => {
                let declared = Declared { subjects: subjects.iter().cloned().collect() };
                let value = Json::of(&declared).map_err(|error| StoreError::Rejected(error.to_string()))?;
                NoteAsk::Write { space, key, seen, value, ttl: NOTE_TTL_MAX }
            }
        };
        Ok(match self.backend.note(&ask).await? {
            NoteAnswer::Written(version) => Some(Some(version)),
            NoteAnswer::Forgotten => Some(None),
            NoteAnswer::Conflict(_) | NoteAnswer::Notes(_) => None,
        })
    }

    fn tell(&self, event: &Event) {
        for listener in self.listeners.iter() {
            listener.on_event(event);
        }
    }
}

/// The key of an application's note: its name, made fit for one.
fn key_of(application: &str) -> String {
    let mut key = String::from(KEY_PREFIX);
    for char in application.chars().filter(|char| !char.is_control()) {
        if key.len() + char.len_utf8() > NOTE_KEY_BYTES_MAX {
            break;
        }
        key.push(char);
    }
    key
}

const KEY_PREFIX: &str = "of ";

fn name_of(key: &str) -> &str {
    key.strip_prefix(KEY_PREFIX).unwrap_or(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn set(subjects: &[&str]) -> BTreeSet<String> {
        subjects.iter().map(|subject| (*subject).to_owned()).collect()
    }

    fn note(key: &str, subjects: &[&str], expires: Timestamp) -> Note {
        let declared = Declared { subjects: subjects.iter().map(|subject| (*subject).to_owned()).collect() };
        let value = Json::of(&declared).expect("plain data");
        Note { space: DECLARED_SPACE.to_owned(), key: key.to_owned(), value, version: 7, expires }
    }

    fn fresh(key: &str, subjects: &[&str]) -> Note {
        note(key, subjects, NOW + NOTE_TTL_MAX)
    }

    #[test]
    fn an_application_without_limits_asks_once_and_changes_nothing() {
        let nothing = Plan { seen: None, first: None, withdraw: vec![], last: None, contested: vec![] };
        assert_eq!(plan("of a", &set(&[]), &[], NOW), nothing);
        assert_eq!(plan("of a", &set(&[]), &[fresh("of b", &["queue:x"])], NOW), nothing);
    }

    #[test]
    fn what_is_new_is_noted_before_it_is_set() {
        let plan = plan("of a", &set(&["queue:x", "queue:y"]), &[fresh("of a", &["queue:x"])], NOW);
        assert_eq!((plan.seen, plan.first), (Some(7), Some(set(&["queue:x", "queue:y"]))));
        assert_eq!((plan.withdraw, plan.last), (vec![], None));
    }

    #[test]
    fn what_is_removed_is_withdrawn_before_it_is_forgotten() {
        let plan = plan("of a", &set(&["queue:y"]), &[fresh("of a", &["queue:x", "queue:y"])], NOW);
        assert_eq!((plan.first, plan.last), (None, Some(set(&["queue:y"]))));
        assert_eq!(plan.withdraw, ["queue:x"]);
    }

    #[test]
    fn what_another_application_declares_is_left_to_it() {
        let notes = [fresh("of a", &["queue:x"]), fresh("of b", &["queue:x", "queue:y"])];
        assert_eq!(plan("of a", &set(&[]), &notes, NOW).withdraw, [""; 0]);
        let contested = plan("of a", &set(&["queue:y"]), &notes, NOW).contested;
        assert_eq!(contested, [("queue:y".to_owned(), "of b".to_owned())]);
    }

    #[test]
    fn a_note_that_fades_is_written_again() {
        let note = note("of a", &["queue:x"], NOW + NOTE_TTL_MAX / 3);
        assert_eq!(plan("of a", &set(&["queue:x"]), &[note], NOW).first, Some(set(&["queue:x"])));
    }

    #[test]
    fn every_name_of_an_application_makes_a_key() {
        assert_eq!(key_of(""), "of ");
        assert_eq!(key_of("a\nb"), "of ab");
        assert!(key_of(&"ü".repeat(400)).len() <= NOTE_KEY_BYTES_MAX);
    }

    #[test]
    fn the_subjects_of_an_application_at_its_limit_fit_into_a_note() {
        // A key may hold what JSON escapes with one more byte each.
        let subjects: Vec<String> = (0..DECLARED_MAX).map(|_| format!("key:{}", "x".repeat(255))).collect();
        let text = Json::of(&Declared { subjects }).expect("plain data");
        assert!(text.as_str().len() <= crate::note::NOTE_BYTES_MAX, "{}", text.as_str().len());
    }
}
