//! What became of an attempt: by the word of the holder, or of the store itself when there is none.

use std::time::Duration;

use windlass_core::backend::{Settled, Settlement};
use windlass_core::flow;
use windlass_core::state::Spent;
use windlass_core::{Failure, Timestamp, Verdict};

use crate::data::{CancelMark, Data, Stage, Task};
use crate::slab::Slot;

impl Data {
    pub(crate) fn settle(&mut self, settled: &[Settled], now: Timestamp) -> Vec<Settlement> {
        let answers = settled.iter().map(|settled| self.settle_one(settled, now)).collect();
        // Each settle ends one task at most, so removing two for each keeps the history at its size however rare ticks are.
        self.prune_finished(now, 2 * settled.len());
        answers
    }

    fn settle_one(&mut self, settled: &Settled, now: Timestamp) -> Settlement {
        let Some((slot, cancel)) = self.held(&settled.receipt) else { return Settlement::Stale };
        let verdict = &settled.verdict;
        self.leave(slot);
        let task = &mut self.tasks[slot];
        task.crashes = 0;
        if let Some(failure) = failure_of(verdict) {
            task.remember_failure(failure, now);
        }
        if verdict.spent() == Spent::No {
            task.attempt -= 1;
        }
        if verdict.state().is_final() {
            self.finish(slot, verdict, now);
            self.apply(settled.follow.clone(), now);
        } else if cancel == CancelMark::Requested {
            self.finish(slot, &Verdict::Cancelled, now);
            let follow = flow::follow(&self.tasks[slot].envelope, &Verdict::Cancelled);
            self.apply(follow, now);
        } else {
            let stage = waiting_stage(&mut self.tasks[slot], verdict, now);
            self.enter(slot, stage);
        }
        Settlement::Applied
    }

    /// Ends a task that nobody holds, with everything that follows.
    pub(crate) fn end_by_store(&mut self, slot: Slot, verdict: &Verdict, now: Timestamp) {
        self.leave(slot);
        self.finish(slot, verdict, now);
        let follow = flow::follow(&self.tasks[slot].envelope, verdict);
        self.apply(follow, now);
    }

    /// Ends a task that has left its stage.
    fn finish(&mut self, slot: Slot, verdict: &Verdict, now: Timestamp) {
        let task = &mut self.tasks[slot];
        match verdict {
            Verdict::Succeeded { result, skipped } => {
                task.result = (task.envelope.result_ttl != Some(Duration::ZERO)).then(|| result.clone());
                if skipped.is_some() {
                    task.story().skipped.clone_from(skipped);
                }
            }
            Verdict::Dead { reason, failure } => {
                let story = task.story();
                story.reason = Some(*reason);
                story.failure = Some(failure.clone());
            }
            Verdict::Cancelled | Verdict::Expired => {}
            Verdict::Again { .. } | Verdict::Awaits { .. } | Verdict::Released | Verdict::Parked => {
                unreachable!("such a verdict ends no task")
            }
        }
        self.unique.release(&task.envelope);
        self.watchers.ended(&task.envelope.id);
        let stage = self.ended.stage(verdict.state(), now);
        self.enter(slot, stage);
    }
}

fn failure_of(verdict: &Verdict) -> Option<&Failure> {
    match verdict {
        Verdict::Again { failure, .. } => failure.as_ref(),
        Verdict::Dead { failure, .. } => Some(failure),
        Verdict::Succeeded { .. }
        | Verdict::Awaits { .. }
        | Verdict::Cancelled
        | Verdict::Expired
        | Verdict::Released
        | Verdict::Parked => None,
    }
}

/// Where a task waits after a verdict that did not end it. Released and parked tasks keep their place.
fn waiting_stage(task: &mut Task, verdict: &Verdict, now: Timestamp) -> Stage {
    match verdict {
        Verdict::Again { after, .. } => {
            task.set_ready_at(now + *after);
            if after.is_zero() { Stage::Ready } else { Stage::Scheduled { due_at: task.ready_at } }
        }
        Verdict::Awaits { signal, seen, at_most } => {
            let story = task.story();
            if story.memo.len() > *seen || at_most.is_zero() {
                // A signal has come while it ran.
                task.set_ready_at(now);
                return Stage::Ready;
            }
            story.waits_for = Some(signal.clone());
            task.set_ready_at(now + *at_most);
            Stage::Scheduled { due_at: task.ready_at }
        }
        Verdict::Released => Stage::Ready,
        Verdict::Parked => Stage::Parked { since: now },
        Verdict::Succeeded { .. } | Verdict::Dead { .. } | Verdict::Cancelled | Verdict::Expired => {
            unreachable!("such a verdict ends the task")
        }
    }
}
