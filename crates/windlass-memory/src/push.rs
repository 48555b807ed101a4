//! New tasks: what a client or a schedule pushes, and what follows a task that ended. Unique keys.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use windlass_core::backend::{Push, Pushed};
use windlass_core::flow::{Follow, stranded_verdict};
use windlass_core::state::DeadReason;
use windlass_core::{Due, Envelope, Failure, OnConflict, State, TaskId, Timestamp, Unique, UniqueKey, Verdict};

use crate::data::{Data, QueueIndex, Stage, Task};
use crate::hash::FastMap;
use crate::slab::Slot;

/// Which task took which unique key.
#[derive(Default)]
pub(crate) struct UniqueKeys {
    taken: FastMap<UniqueKey, Taken>,
    /// Keys that are taken for a time, by its end.
    windows: BTreeSet<(Timestamp, UniqueKey)>,
}

struct Taken {
    by: TaskId,
    hold: Hold,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    WhileLive,
    Until(Timestamp),
}

/// The free places of a queue that has a length.
pub(crate) struct Free {
    queue: QueueIndex,
    limit: u64,
    places: u64,
    wanted: u64,
}

impl UniqueKeys {
    /// Who has the key now.
    pub(crate) fn holder(&self, key: &UniqueKey, now: Timestamp) -> Option<&TaskId> {
        let taken = self.taken.get(key)?;
        match taken.hold {
            Hold::WhileLive => Some(&taken.by),
            Hold::Until(end) => (end > now).then_some(&taken.by),
        }
    }

    /// Takes a key that is free, at the time of the push.
    fn take(&mut self, unique: &Unique, by: &TaskId, pushed_at: Timestamp) {
        let hold = match unique.window {
            None => Hold::WhileLive,
            Some(window) => {
                let end = pushed_at + window;
                self.windows.insert((end, unique.key.clone()));
                Hold::Until(end)
            }
        };
        self.taken.insert(unique.key.clone(), Taken { by: by.clone(), hold });
    }

    /// Takes a key for a task that comes from another store: for what is left of its window, if any is.
    pub(crate) fn take_over(
        &mut self,
        unique: &Unique,
        by: &TaskId,
        state: State,
        pushed_at: Timestamp,
        now: Timestamp,
    ) {
        let wanted = unique.window.map_or(!state.is_final(), |window| pushed_at + window > now);
        if wanted && self.holder(&unique.key, now).is_none() {
            self.take(unique, by, pushed_at);
        }
    }

    /// Takes the key again for a task that starts over. A window counts from the push on and is not opened again.
    pub(crate) fn retake(&mut self, unique: &Unique, by: &TaskId) {
        if unique.window.is_none() {
            self.taken.insert(unique.key.clone(), Taken { by: by.clone(), hold: Hold::WhileLive });
        }
    }

    /// Gives back the key of a task that ended, unless it was taken for a time.
    pub(crate) fn release(&mut self, envelope: &Envelope) {
        let Some(unique) = &envelope.unique else { return };
        let is_ours = |taken: &Taken| taken.hold == Hold::WhileLive && taken.by == envelope.id;
        if self.taken.get(&unique.key).is_some_and(is_ours) {
            self.taken.remove(&unique.key);
        }
    }

    /// Forgets windows that have passed.
    pub(crate) fn prune(&mut self, now: Timestamp, max: usize) {
        for _ in 0..max {
            let Some((end, _)) = self.windows.first() else { return };
            if *end > now {
                return;
            }
            let Some((end, key)) = self.windows.pop_first() else { return };
            if self.taken.get(&key).is_some_and(|taken| taken.hold == Hold::Until(end)) {
                self.taken.remove(&key);
            }
        }
    }
}

impl Data {
    pub(crate) fn push(&mut self, push: &Push, now: Timestamp) -> Vec<Pushed> {
        let mut free = self.free_places(&push.envelopes);
        if !push.groups.is_empty()
            && let Some(full) = free.iter().find(|free| free.wanted > free.places)
        {
            // A group of which members are missing would be waited for without end.
            return vec![Pushed::Full { limit: full.limit }; push.envelopes.len()];
        }
        for group in &push.groups {
            self.create_group(group.clone(), now);
        }
        self.by_id.reserve(push.envelopes.len());
        // Batches mostly go to one queue: its name is looked up once.
        let mut last: Option<(&Envelope, QueueIndex)> = None;
        let mut answers = Vec::with_capacity(push.envelopes.len());
        for envelope in &push.envelopes {
            let queue = match last {
                Some((before, queue)) if before.queue == envelope.queue => queue,
                _ => self.queue_named(&envelope.queue),
            };
            last = Some((envelope, queue));
            if let Some(id) = self.conflict(envelope, now) {
                answers.push(self.replace(envelope, id, now));
                continue;
            }
            if let Some(limit) = take_place(&mut free, queue) {
                answers.push(Pushed::Full { limit });
                continue;
            }
            self.store(envelope.clone(), queue, now);
            answers.push(Pushed::Stored);
        }
        answers
    }

    /// Pushes the task of a delivery: one that has ended with the same id is forgotten for it.
    pub(crate) fn push_again(&mut self, envelope: &Envelope, free: &mut [Free], now: Timestamp) -> Pushed {
        let queue = self.queue_named(&envelope.queue);
        let before = self.by_id.get(&envelope.id).copied();
        if before.is_some_and(|slot| !self.tasks[slot].stage.state().is_final()) {
            return Pushed::Exists(envelope.id.clone());
        }
        let holder = envelope.unique.as_ref().and_then(|unique| self.unique.holder(&unique.key, now)).cloned();
        if let Some(holder) = holder {
            return self.replace(envelope, holder, now);
        }
        if let Some(limit) = take_place(free, queue) {
            return Pushed::Full { limit };
        }
        if let Some(slot) = before {
            self.remove(slot);
        }
        self.store(envelope.clone(), queue, now);
        Pushed::Stored
    }

    /// The same for a task that is a dead letter from the start.
    pub(crate) fn bury_again(
        &mut self,
        envelope: &Envelope,
        reason: DeadReason,
        failure: Failure,
        now: Timestamp,
    ) -> Pushed {
        if let Some(slot) = self.by_id.get(&envelope.id).copied() {
            if !self.tasks[slot].stage.state().is_final() {
                return Pushed::Exists(envelope.id.clone());
            }
            self.remove(slot);
        }
        self.bury(envelope.clone(), reason, failure, now);
        Pushed::Stored
    }

    /// Does what a task that ended has left to do, and what follows from that.
    pub(crate) fn apply(&mut self, follow: Follow, now: Timestamp) {
        if follow.is_empty() {
            return;
        }
        let mut rest = VecDeque::from([follow]);
        while let Some(follow) = rest.pop_front() {
            for group in follow.groups {
                self.create_group(group, now);
            }
            for envelope in follow.push {
                self.push_next(envelope, now);
            }
            for envelope in follow.stranded {
                self.strand(envelope, follow.cause.as_ref(), now);
            }
            for arrival in follow.arrive {
                rest.extend(self.arrive(arrival, now));
            }
        }
    }

    /// How many places are free in the queues that have a length.
    pub(crate) fn free_places<'a>(&mut self, envelopes: impl IntoIterator<Item = &'a Envelope>) -> Vec<Free> {
        let mut free: Vec<Free> = Vec::new();
        if self.limits.rules.is_empty() {
            return free;
        }
        for envelope in envelopes {
            let Some(limit) = self.limits.rules.length(&envelope.queue) else { continue };
            let queue = self.queue_named(&envelope.queue);
            if let Some(free) = free.iter_mut().find(|free| free.queue == queue) {
                free.wanted += 1;
                continue;
            }
            let counts = &self.queues[queue].counts;
            let waiting = counts.scheduled + counts.ready + counts.parked;
            free.push(Free { queue, limit, places: limit.saturating_sub(waiting), wanted: 1 });
        }
        free
    }

    /// Does what the unique key of a new task says about the one that has it.
    fn replace(&mut self, new: &Envelope, id: TaskId, now: Timestamp) -> Pushed {
        let unique = new.unique.as_ref().filter(|unique| unique.on_conflict != OnConflict::Keep && id != new.id);
        let (Some(unique), Some(slot)) = (unique, self.by_id.get(&id).copied()) else { return Pushed::Exists(id) };
        let task = &self.tasks[slot];
        let waiting = match task.stage {
            Stage::Scheduled { due_at } => Some(due_at),
            Stage::Ready => None,
            Stage::Running { .. } | Stage::Parked { .. } | Stage::Ended { .. } => return Pushed::Exists(id),
        };
        let due = unique.due_of_replacement(new.due, waiting, task.enqueued_at, now).instant(now);
        self.leave(slot);
        let task = &mut self.tasks[slot];
        let old = Arc::make_mut(&mut task.envelope);
        (old.args, old.headers, old.priority) = (new.args.clone(), new.headers.clone(), new.priority);
        if unique.on_conflict == OnConflict::Debounce {
            task.set_ready_at(due.unwrap_or(now));
        } else {
            task.set_ready_at(task.ready_at);
        }
        self.enter(slot, due.map_or(Stage::Ready, |due_at| Stage::Scheduled { due_at }));
        Pushed::Replaced(id)
    }

    /// The task that has the envelope's id or its unique key.
    fn conflict(&self, envelope: &Envelope, now: Timestamp) -> Option<TaskId> {
        if self.by_id.contains_key(&envelope.id) {
            return Some(envelope.id.clone());
        }
        self.unique.holder(&envelope.unique.as_ref()?.key, now).cloned()
    }

    fn store(&mut self, mut envelope: Envelope, queue: QueueIndex, now: Timestamp) {
        if let Some(unique) = &envelope.unique {
            self.unique.take(unique, &envelope.id, now);
        }
        let due = std::mem::replace(&mut envelope.due, Due::Now).instant(now);
        let stage = due.map_or(Stage::Ready, |due_at| Stage::Scheduled { due_at });
        self.add(envelope, queue, stage, due.unwrap_or(now), now);
    }

    /// Pushes the next step of a workflow: one that is stranded comes back to life.
    fn push_next(&mut self, envelope: Envelope, now: Timestamp) {
        let queue = self.queue_named(&envelope.queue);
        match self.by_id.get(&envelope.id) {
            None if self.conflict(&envelope, now).is_none() => self.store(envelope, queue, now),
            Some(slot) if is_stranded(&self.tasks[*slot]) => self.revive(*slot, envelope, queue, now),
            // Known already, or its unique key is taken: left alone, as in every push.
            None | Some(_) => {}
        }
    }

    fn revive(&mut self, slot: Slot, mut envelope: Envelope, queue: QueueIndex, now: Timestamp) {
        if let Some(unique) = &envelope.unique {
            if self.unique.holder(&unique.key, now).is_some() {
                return;
            }
            self.unique.take(unique, &envelope.id, now);
        }
        self.leave(slot);
        envelope.due = Due::Now;
        self.queues[queue].ever_used = true;
        let task = &mut self.tasks[slot];
        task.envelope = Arc::new(envelope);
        task.queue = queue;
        task.story = None;
        task.set_ready_at(now);
        self.enter(slot, Stage::Ready);
    }

    /// Records a task that will never run, so that an operator sees it.
    fn strand(&mut self, envelope: Envelope, cause: Option<&Failure>, now: Timestamp) {
        if self.by_id.contains_key(&envelope.id) {
            return;
        }
        let Verdict::Dead { reason, failure } = stranded_verdict(cause) else {
            unreachable!("a stranded task is a dead letter")
        };
        self.bury(envelope, reason, failure, now);
    }

    /// Adds a dead letter.
    fn bury(&mut self, mut envelope: Envelope, reason: DeadReason, failure: Failure, now: Timestamp) {
        envelope.due = Due::Now;
        let queue = self.queue_named(&envelope.queue);
        let id = envelope.id.clone();
        let stage = self.ended.stage(State::Dead, now);
        let slot = self.add(envelope, queue, stage, now, now);
        let story = self.tasks[slot].story();
        story.reason = Some(reason);
        story.failure = Some(failure);
        self.watchers.ended(&id);
    }
}

/// Takes a place in a queue; answers its length when there is none.
fn take_place(free: &mut [Free], queue: QueueIndex) -> Option<u64> {
    let free = free.iter_mut().find(|free| free.queue == queue)?;
    if free.places == 0 {
        return Some(free.limit);
    }
    free.places -= 1;
    None
}

fn is_stranded(task: &Task) -> bool {
    task.story.as_ref().is_some_and(|story| story.reason == Some(DeadReason::Upstream))
        && task.stage.state() == State::Dead
}
