//! What is kept of tasks that ended, and for how long.
//!
//! Dead letters are kept by their own time, results with a time of their own by that, everything else by age and number.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use windlass_core::{State, Timestamp};

use crate::data::{Data, Stage};
use crate::slab::Slot;

/// The tasks that ended, in the order in which retention asks for them.
#[derive(Default)]
pub(crate) struct Ended {
    last_order: u64,
    /// By the order of their endings. A task that was revived or removed leaves its entry behind: the entry is not
    /// counted in `finished_kept`, and is recognised by its order when it comes to the front.
    finished: VecDeque<Entry>,
    finished_kept: u64,
    /// Results that are kept for a time of their own, by its end.
    with_ttl: BTreeSet<(Timestamp, Slot)>,
    dead: BTreeSet<(Timestamp, Slot)>,
}

/// A place in the order of endings.
struct Entry {
    order: u64,
    slot: Slot,
    /// The latest that this one or one before it ended: what came from another store ended when it ended there.
    latest: Timestamp,
}

/// Which of the collections keeps a task.
enum Shelf {
    Finished,
    WithTtl(Timestamp),
    Dead,
}

fn shelf(state: State, at: Timestamp, result_ttl: Option<Duration>) -> Shelf {
    match (state, result_ttl) {
        (State::Dead, _) => Shelf::Dead,
        (State::Succeeded, Some(ttl)) if !ttl.is_zero() => Shelf::WithTtl(at + ttl),
        _ => Shelf::Finished,
    }
}

impl Ended {
    /// The stage of a task that ends now.
    pub(crate) fn stage(&mut self, state: State, at: Timestamp) -> Stage {
        self.last_order += 1;
        Stage::Ended { state, at, order: self.last_order }
    }

    pub(crate) fn insert(&mut self, state: State, at: Timestamp, order: u64, slot: Slot, result_ttl: Option<Duration>) {
        match shelf(state, at, result_ttl) {
            Shelf::Finished => {
                let latest = self.finished.back().map_or(at, |last| last.latest.max(at));
                self.finished.push_back(Entry { order, slot, latest });
                self.finished_kept += 1;
            }
            Shelf::WithTtl(end) => {
                self.with_ttl.insert((end, slot));
            }
            Shelf::Dead => {
                self.dead.insert((at, slot));
            }
        }
    }

    pub(crate) fn remove(&mut self, state: State, at: Timestamp, slot: Slot, result_ttl: Option<Duration>) {
        match shelf(state, at, result_ttl) {
            Shelf::Finished => self.finished_kept -= 1,
            Shelf::WithTtl(end) => {
                self.with_ttl.remove(&(end, slot));
            }
            Shelf::Dead => {
                self.dead.remove(&(at, slot));
            }
        }
    }
}

impl Data {
    /// Removes what is kept no longer, at most `max` of each kind; answers how many.
    pub(crate) fn prune(&mut self, now: Timestamp, max: usize) -> u64 {
        let mut pruned = self.prune_finished(now, max);
        for _ in 0..max {
            let Some((end, slot)) = self.ended.with_ttl.first().copied() else { break };
            if end > now {
                break;
            }
            self.remove(slot);
            pruned += 1;
        }
        for _ in 0..max {
            let Some((at, slot)) = self.ended.dead.first().copied() else { break };
            if at + self.retention.dead > now {
                break;
            }
            self.remove(slot);
            pruned += 1;
        }
        pruned
    }

    /// Removes finished tasks that are too old or too many, the first that ended first.
    pub(crate) fn prune_finished(&mut self, now: Timestamp, max: usize) -> u64 {
        let mut pruned = 0;
        for _ in 0..max {
            let Some(entry) = self.ended.finished.front() else { break };
            let slot = entry.slot;
            if let Some(at) = self.ended_at(entry) {
                let too_many = self.ended.finished_kept > self.retention.finished_max;
                if !too_many && at + self.retention.finished > now {
                    break;
                }
                self.remove(slot);
                pruned += 1;
            }
            self.ended.finished.pop_front();
        }
        pruned
    }

    /// When the task of an entry ended; `None` when that entry was left behind.
    fn ended_at(&self, entry: &Entry) -> Option<Timestamp> {
        match self.tasks.get(entry.slot)?.stage {
            Stage::Ended { at, order, .. } if order == entry.order => Some(at),
            Stage::Ended { .. }
            | Stage::Scheduled { .. }
            | Stage::Ready
            | Stage::Running { .. }
            | Stage::Parked { .. } => None,
        }
    }

    /// The tasks that ended at or after this time, and perhaps some that ended before, each once.
    pub(crate) fn ended_since(&self, since: Timestamp) -> impl Iterator<Item = Slot> {
        let finished = self.ended.finished.iter().rev().take_while(move |entry| entry.latest >= since);
        let finished = finished.filter(|entry| self.ended_at(entry).is_some()).map(|entry| entry.slot);
        // What is kept for a time of its own is kept until after it ended.
        let later = |kept: &'_ BTreeSet<(Timestamp, Slot)>| {
            kept.range((since, Slot::MIN)..).map(|(_, slot)| *slot).collect::<Vec<_>>()
        };
        finished.chain(later(&self.ended.with_ttl)).chain(later(&self.ended.dead))
    }
}
