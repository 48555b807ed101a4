//! Waiting: claims that found nothing, and watches of tasks that have not ended.
//!
//! Nobody waits inside the database. Who waits leaves a bell here and is rung
//! - by the lanes of this process, right after the commit that made a task ready or ended it,
//! - by the listener ([`crate::listen`]), which hears of the commits of others and knows when the next task falls due.
//!
//! A bell that rings means "ask again", nothing more.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use windlass_core::{QueueName, TaskId};

/// The longest note of a notification; PostgreSQL takes fewer than 8,000 bytes.
const NOTE_BYTES_MAX: usize = 7_800;

/// Whom a commit concerns.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// Tasks became ready in these queues.
    pub(crate) queues: HashSet<QueueName>,
    /// Anything may have become claimable.
    pub(crate) all: bool,
    /// Tasks were scheduled: the next one may fall due sooner.
    pub(crate) scheduled: bool,
    /// These tasks ended.
    pub(crate) ended: Vec<TaskId>,
}

impl Effects {
    /// What other processes are told.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes: Vec<String> = self.queues.iter().map(|queue| format!("q {queue}")).collect();
        if self.all {
            notes.push("a".to_owned());
        }
        if self.scheduled {
            notes.push("d".to_owned());
        }
        let mut ids = String::new();
        for id in &self.ended {
            let id = id.to_string();
            if !ids.is_empty() && ids.len() + id.len() > NOTE_BYTES_MAX {
                notes.push(format!("e{ids}"));
                ids.clear();
            }
            ids.push(' ');
            ids.push_str(&id);
        }
        if !ids.is_empty() {
            notes.push(format!("e{ids}"));
        }
        notes
    }

    /// Adds those whom another part of the commit concerns.
    pub(crate) fn add(&mut self, other: Self) {
        self.queues.extend(other.queues);
        self.all |= other.all;
        self.scheduled |= other.scheduled;
        self.ended.extend(other.ended);
    }

    /// The opposite of [`Effects::notes`]. What cannot be read concerns everybody who claims.
    pub(crate) fn hear(&mut self, note: &str) {
        match note.split_once(' ') {
            Some(("q", queue)) => match QueueName::new(queue) {
                Ok(queue) => drop(self.queues.insert(queue)),
                Err(_) => self.all = true,
            },
            Some(("e", ids)) => self.ended.extend(ids.split(' ').filter_map(|id| TaskId::new(id).ok())),
            None if note == "d" => self.scheduled = true,
            Some(_) | None => self.all = true,
        }
    }
}

/// Who waits.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    waiting: Mutex<Waiting>,
    claims: AtomicUsize,
    ends: AtomicUsize,
    /// Tells the listener that somebody waits, or that a task was scheduled.
    pub(crate) look: Notify,
    look_owed: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    next_ticket: u64,
    claims: HashMap<u64, (Vec<QueueName>, Arc<Notify>)>,
    ends: HashMap<u64, (HashSet<TaskId>, Arc<Notify>)>,
}

/// A place among those who wait; left when it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    bell: Arc<Bell>,
    number: u64,
    rung: Arc<Notify>,
}

impl Ticket {
    /// Waits for the bell. One that rang before is heard.
    pub(crate) async fn rung(&self) {
        self.rung.notified().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = self.bell.waiting.lock();
        if waiting.claims.remove(&self.number).is_some() {
            self.bell.claims.fetch_sub(1, Ordering::AcqRel);
        }
        if waiting.ends.remove(&self.number).is_some() {
            self.bell.ends.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Bell {
    /// The listener did not look for due tasks, as nobody waited.
    pub(crate) fn owe_a_look(&self) {
        self.look_owed.store(true, Ordering::Release);
    }

    /// Somebody waits: the look that was left out is made up for.
    pub(crate) fn ask_for_the_look(&self) {
        if self.look_owed.swap(false, Ordering::AcqRel) {
            self.look.notify_one();
        }
    }

    /// Waits for a task in one of these queues. Take the ticket first, then ask: nothing falls in between.
    pub(crate) fn wait_for_ready(self: &Arc<Self>, queues: &[QueueName]) -> Ticket {
        self.claims.fetch_add(1, Ordering::AcqRel);
        self.ticket(|waiting, number, rung| drop(waiting.claims.insert(number, (queues.to_vec(), rung))))
    }

    /// Waits for the end of one of these tasks.
    pub(crate) fn wait_for_ends(self: &Arc<Self>, ids: &[TaskId]) -> Ticket {
        self.ends.fetch_add(1, Ordering::AcqRel);
        self.ticket(|waiting, number, rung| drop(waiting.ends.insert(number, (ids.iter().cloned().collect(), rung))))
    }

    fn ticket(self: &Arc<Self>, enter: impl FnOnce(&mut Waiting, u64, Arc<Notify>)) -> Ticket {
        let rung = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock();
        let number = waiting.next_ticket;
        waiting.next_ticket += 1;
        enter(&mut waiting, number, Arc::clone(&rung));
        Ticket { bell: Arc::clone(self), number, rung }
    }

    /// Whether a claim waits.
    pub(crate) fn claims_wait(&self) -> bool {
        self.claims.load(Ordering::Acquire) > 0
    }

    /// Whether a watch waits.
    pub(crate) fn ends_are_awaited(&self) -> bool {
        self.ends.load(Ordering::Acquire) > 0
    }

    /// Rings for those whom a commit concerns.
    pub(crate) fn ring(&self, effects: &Effects) {
        if self.claims_wait() && (effects.all || !effects.queues.is_empty()) {
            for (queues, rung) in self.waiting.lock().claims.values() {
                if effects.all || queues.iter().any(|queue| effects.queues.contains(queue)) {
                    rung.notify_one();
                }
            }
        }
        if self.ends_are_awaited() && !effects.ended.is_empty() {
            for (ids, rung) in self.waiting.lock().ends.values() {
                if effects.ended.iter().any(|id| ids.contains(id)) {
                    rung.notify_one();
                }
            }
        }
        if effects.scheduled && self.claims_wait() {
            self.look.notify_one();
        }
    }

    /// Rings for every claim.
    pub(crate) fn ring_for_all_claims(&self) {
        self.waiting.lock().claims.values().for_each(|(_, rung)| rung.notify_one());
    }

    /// Rings for everybody.
    pub(crate) fn ring_for_everybody(&self) {
        let waiting = self.waiting.lock();
        waiting.claims.values().for_each(|(_, rung)| rung.notify_one());
        waiting.ends.values().for_each(|(_, rung)| rung.notify_one());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told_is_heard() {
        let mut told = Effects { scheduled: true, ..Effects::default() };
        told.queues.insert(QueueName::known("mail"));
        told.ended = (0..500).map(|_| TaskId::random()).collect();
        let mut heard = Effects::default();
        let notes = told.notes();
        assert!(notes.len() > 3 && notes.iter().all(|note| note.len() < 8_000), "ids are told in several notes");
        for note in &notes {
            heard.hear(note);
        }
        assert_eq!((heard.queues, heard.ended, heard.scheduled, heard.all), (told.queues, told.ended, true, false));
        heard.scheduled = false;
        let mut heard = Effects::default();
        heard.hear("what a newer version says");
        assert!(heard.all);
    }
}
