//! Housekeeping. Each kind of work is bounded, so a tick never holds the others up for long.

use windlass_core::backend::Ticked;
use windlass_core::state::{DeadReason, PARKED_FOR, Rescue, poison_failure, rescue, unknown_failure};
use windlass_core::time::Leases;
use windlass_core::{NodeId, Timestamp, Verdict};

use crate::data::{CancelMark, Data, QueueIndex, Stage};
use crate::slab::Slot;

/// The most tasks of each kind that one tick handles.
const TICK_MAX: usize = 1_000;

/// What became of a task whose lease ran out.
enum Rescued {
    Ready,
    Ended,
}

impl Data {
    pub(crate) fn tick(&mut self, node: &NodeId, now: Timestamp, leases: Leases) -> Ticked {
        let mut ticked = Ticked::default();
        for index in 0..self.queues.len() {
            self.promote(index, now, TICK_MAX);
        }
        let lost = match leases {
            Leases::Trusted => first_until(&self.leases, now),
            Leases::InDoubt => Vec::new(),
        };
        for slot in lost {
            match self.rescue(slot, now) {
                Rescued::Ready => ticked.rescued += 1,
                Rescued::Ended => ticked.ended += 1,
            }
        }
        for slot in first_until(&self.expiring, now) {
            self.end_by_store(slot, &Verdict::Expired, now);
            ticked.ended += 1;
        }
        for slot in first_until(&self.parked, now - PARKED_FOR) {
            let failure = unknown_failure(self.tasks[slot].envelope.name.as_str());
            self.end_by_store(slot, &Verdict::Dead { reason: DeadReason::Unknown, failure }, now);
            ticked.ended += 1;
        }
        ticked.pruned = self.prune(now, TICK_MAX);
        self.prune_groups(now, TICK_MAX);
        self.unique.prune(now, TICK_MAX);
        self.limits.prune(now);
        self.notes.prune(now);
        ticked.orders = self.fleet.take_orders(node);
        let marks = self.cancel_marks.get(node).into_iter().flatten();
        ticked.cancelled = marks.map(|slot| self.tasks[*slot].envelope.id.clone()).collect();
        ticked.next_slot = self.next_slot();
        ticked
    }

    /// Makes tasks of a queue ready whose time has come.
    pub(crate) fn promote(&mut self, index: QueueIndex, now: Timestamp, max: usize) {
        for _ in 0..max {
            match self.queues[index].due.first().copied() {
                // Their place among the ready ones was set by their due time when they were scheduled.
                Some((due_at, _, slot)) if due_at <= now => {
                    if let Some(story) = &mut self.tasks[slot].story {
                        // It has waited long enough: a signal that comes now finds it ready.
                        story.waits_for = None;
                    }
                    self.change(slot, Stage::Ready);
                }
                Some(_) | None => return,
            }
        }
    }

    fn rescue(&mut self, slot: Slot, now: Timestamp) -> Rescued {
        let task = &mut self.tasks[slot];
        let cancelled = matches!(task.stage, Stage::Running { cancel: CancelMark::Requested, .. });
        task.crashes += 1;
        let crashes = task.crashes;
        let failure = poison_failure(crashes);
        match rescue(crashes, cancelled) {
            Rescue::Ready => {
                task.remember_failure(&failure, now);
                self.change(slot, Stage::Ready);
                Rescued::Ready
            }
            Rescue::Poison => {
                task.remember_failure(&failure, now);
                self.end_by_store(slot, &Verdict::Dead { reason: DeadReason::Poison, failure }, now);
                Rescued::Ended
            }
            Rescue::Cancelled => {
                self.end_by_store(slot, &Verdict::Cancelled, now);
                Rescued::Ended
            }
        }
    }
}

/// The tasks at or before a time, as many as one tick handles.
fn first_until(tasks: &std::collections::BTreeSet<(Timestamp, Slot)>, until: Timestamp) -> Vec<Slot> {
    tasks.range(..=(until, Slot::MAX)).take(TICK_MAX).map(|(_, slot)| *slot).collect()
}
