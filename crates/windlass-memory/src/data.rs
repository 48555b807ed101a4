//! The tasks, where each of them is indexed, and every move from one stage of life to another.
//!
//! A task is in exactly the indexes that its [`Stage`] asks for. Only [`Data::enter`] and [`Data::leave`] touch these
//! indexes and the counters, so they cannot disagree: every change of a task is "leave, change, enter".

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use windlass_core::fair::Turn;
use windlass_core::state::{DeadReason, rank};
use windlass_core::view::{AttemptRecord, Progress, QueueCounts, Record, Retention, ScheduleRecord};
use windlass_core::{
    Envelope, Failure, GroupId, Json, Key, NodeId, QueueName, ScheduleId, SignalName, State, TaskId, TaskName,
    Timestamp,
};

use crate::fleet::Fleet;
use crate::groups::Group;
use crate::hash::FastMap;
use crate::limits::Limits;
use crate::notes::Notes;
use crate::push::UniqueKeys;
use crate::retention::Ended;
use crate::slab::{Slab, Slot};
use crate::waiting::Waiters;
use crate::watch::Watchers;

/// A place in [`Data::queues`]. Queues are never removed.
pub(crate) type QueueIndex = usize;

/// The order of the ready tasks of a queue: by rank, then by insertion.
pub(crate) type Place = (i64, u64);

/// Everything that the store knows.
#[derive(Default)]
pub(crate) struct Data {
    pub(crate) retention: Retention,
    pub(crate) tasks: Slab<Task>,
    pub(crate) by_id: FastMap<TaskId, Slot>,
    /// By insertion: the order of listings.
    pub(crate) by_seq: BTreeMap<u64, Slot>,
    last_seq: u64,
    pub(crate) queues: Vec<Queue>,
    pub(crate) queue_by_name: FastMap<QueueName, QueueIndex>,
    pub(crate) paused_names: BTreeSet<TaskName>,
    /// Running tasks by the end of their lease.
    pub(crate) leases: BTreeSet<(Timestamp, Slot)>,
    /// Running tasks that somebody asked to cancel, by their holder.
    pub(crate) cancel_marks: BTreeMap<NodeId, BTreeSet<Slot>>,
    /// Waiting tasks by the time after which they are not started.
    pub(crate) expiring: BTreeSet<(Timestamp, Slot)>,
    /// Parked tasks by the time since which they are parked.
    pub(crate) parked: BTreeSet<(Timestamp, Slot)>,
    pub(crate) parked_by_name: BTreeMap<TaskName, BTreeSet<Slot>>,
    pub(crate) unique: UniqueKeys,
    pub(crate) ended: Ended,
    pub(crate) groups: FastMap<GroupId, Group>,
    /// When to look whether a group may be forgotten.
    pub(crate) group_checks: BTreeSet<(Timestamp, GroupId)>,
    pub(crate) schedules: BTreeMap<ScheduleId, ScheduleRecord>,
    /// Nothing is started and no schedule fires.
    pub(crate) closed: bool,
    pub(crate) limits: Limits,
    pub(crate) notes: Notes,
    pub(crate) fleet: Fleet,
    pub(crate) waiters: Waiters,
    pub(crate) watchers: Watchers,
}

/// A queue: its waiting tasks in their orders, and its counters.
#[derive(Default)]
pub(crate) struct Queue {
    /// Those without a key.
    pub(crate) ready: BTreeMap<Place, Slot>,
    /// Those with one; no key is empty.
    pub(crate) keyed: BTreeMap<Key, BTreeMap<Place, Slot>>,
    /// Whose turn it is.
    pub(crate) turn: Turn,
    pub(crate) due: BTreeSet<(Timestamp, u64, Slot)>,
    /// Of these, `paused` is the truth and `oldest_ready_at` is filled when somebody asks.
    pub(crate) counts: QueueCounts,
    pub(crate) ever_used: bool,
    /// Claims that wait for this queue, the longest waiting first.
    pub(crate) waiting: BTreeSet<u64>,
    /// How many tasks became ready since the waiting claims were last looked at.
    pub(crate) fresh: usize,
}

impl Queue {
    fn remove_ready(&mut self, key: Option<&Key>, place: Place) {
        let Some(key) = key else {
            self.ready.remove(&place);
            return;
        };
        if let Some(of_key) = self.keyed.get_mut(key) {
            of_key.remove(&place);
            if of_key.is_empty() {
                self.keyed.remove(key);
            }
        }
    }

    /// The ready tasks that come first: of those without a key, and of each key.
    pub(crate) fn first_ready(&self) -> impl Iterator<Item = Slot> + '_ {
        let firsts = self.keyed.values().filter_map(BTreeMap::first_key_value);
        self.ready.first_key_value().into_iter().chain(firsts).map(|(_, slot)| *slot)
    }
}

/// One task.
pub(crate) struct Task {
    pub(crate) envelope: Arc<Envelope>,
    pub(crate) seq: u64,
    pub(crate) queue: QueueIndex,
    pub(crate) stage: Stage,
    pub(crate) attempt: u32,
    pub(crate) crashes: u32,
    pub(crate) fence: i64,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) ready_at: Timestamp,
    pub(crate) rank: i64,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) node: Option<NodeId>,
    pub(crate) result: Option<Json>,
    /// What most tasks never have: kept apart so that a waiting task stays small.
    pub(crate) story: Option<Box<Story>>,
}

/// What a task went through.
#[derive(Default)]
pub(crate) struct Story {
    pub(crate) progress: Option<Progress>,
    pub(crate) skipped: Option<String>,
    pub(crate) reason: Option<DeadReason>,
    pub(crate) failure: Option<Failure>,
    pub(crate) history: Vec<AttemptRecord>,
    pub(crate) memo: String,
    pub(crate) waits_for: Option<SignalName>,
}

/// Where a task is in its life, with what only that stage knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Scheduled {
        due_at: Timestamp,
    },
    Ready,
    Running {
        lease_until: Timestamp,
        cancel: CancelMark,
    },
    Parked {
        since: Timestamp,
    },
    /// `order` numbers the endings of the whole store.
    Ended {
        state: State,
        at: Timestamp,
        order: u64,
    },
}

/// Whether somebody asked to cancel a running task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CancelMark {
    Absent,
    Requested,
}

impl Stage {
    pub(crate) fn state(self) -> State {
        match self {
            Self::Scheduled { .. } => State::Scheduled,
            Self::Ready => State::Ready,
            Self::Running { .. } => State::Running,
            Self::Parked { .. } => State::Parked,
            Self::Ended { state, .. } => state,
        }
    }

    /// Whether the task waits: an expiry date can end it.
    fn waits(self) -> bool {
        match self {
            Self::Scheduled { .. } | Self::Ready | Self::Parked { .. } => true,
            Self::Running { .. } | Self::Ended { .. } => false,
        }
    }
}

impl Task {
    pub(crate) fn story(&mut self) -> &mut Story {
        self.story.get_or_insert_default()
    }

    /// Ready since this time: what its place among the ready ones follows from.
    pub(crate) fn set_ready_at(&mut self, ready_at: Timestamp) {
        self.ready_at = ready_at;
        self.rank = rank(self.envelope.priority, ready_at);
    }

    /// Writes a failed attempt into the task's story.
    pub(crate) fn remember_failure(&mut self, failure: &Failure, now: Timestamp) {
        let attempt = AttemptRecord {
            number: self.attempt,
            node: self.node.clone(),
            started_at: self.started_at,
            ended_at: now,
            failure: failure.clone(),
        };
        let story = self.story();
        story.failure = Some(failure.clone());
        windlass_core::view::remember_attempt(&mut story.history, attempt);
    }

    pub(crate) fn record(&self) -> Record {
        let story = self.story.as_deref();
        let (due_at, finished_at, cancel_requested) = match self.stage {
            Stage::Scheduled { due_at } => (Some(due_at), None, false),
            Stage::Running { cancel, .. } => (None, None, cancel == CancelMark::Requested),
            Stage::Ended { at, .. } => (None, Some(at), false),
            Stage::Ready | Stage::Parked { .. } => (None, None, false),
        };
        Record {
            envelope: (*self.envelope).clone(),
            state: self.stage.state(),
            attempt: self.attempt,
            crashes: self.crashes,
            enqueued_at: self.enqueued_at,
            due_at,
            started_at: self.started_at,
            finished_at,
            node: self.node.clone(),
            progress: story.and_then(|story| story.progress.clone()),
            cancel_requested,
            result: self.result.clone(),
            skipped: story.and_then(|story| story.skipped.clone()),
            reason: story.and_then(|story| story.reason),
            failure: story.and_then(|story| story.failure.clone()),
            history: story.map(|story| story.history.clone()).unwrap_or_default(),
            memo: story.map(|story| story.memo.clone()).unwrap_or_default(),
            waits_for: story.and_then(|story| story.waits_for.clone()),
        }
    }
}

impl Data {
    /// The queue of this name, made when it is named for the first time.
    pub(crate) fn queue_named(&mut self, name: &QueueName) -> QueueIndex {
        if let Some(index) = self.queue_by_name.get(name) {
            return *index;
        }
        self.queues.push(Queue::default());
        self.queue_by_name.insert(name.clone(), self.queues.len() - 1);
        self.queues.len() - 1
    }

    /// The place of the newest task in the order of insertion.
    pub(crate) fn newest_seq(&self) -> u64 {
        self.last_seq
    }

    /// Adds a task in its first stage.
    pub(crate) fn add(
        &mut self,
        envelope: Envelope,
        queue: QueueIndex,
        stage: Stage,
        ready_at: Timestamp,
        now: Timestamp,
    ) -> Slot {
        self.last_seq += 1;
        let id = envelope.id.clone();
        let rank = rank(envelope.priority, ready_at);
        let task = Task {
            envelope: Arc::new(envelope),
            seq: self.last_seq,
            queue,
            stage,
            attempt: 0,
            crashes: 0,
            fence: 0,
            enqueued_at: now,
            ready_at,
            rank,
            started_at: None,
            node: None,
            result: None,
            story: None,
        };
        let slot = self.tasks.insert(task);
        self.by_seq.insert(self.last_seq, slot);
        let before = self.by_id.insert(id, slot);
        debug_assert!(before.is_none(), "an id names one task");
        self.queues[queue].ever_used = true;
        self.index(slot);
        slot
    }

    /// Forgets a task that nobody holds.
    pub(crate) fn remove(&mut self, slot: Slot) {
        self.leave(slot);
        let task = self.tasks.remove(slot);
        debug_assert!(task.stage.state() != State::Running, "a task that somebody holds is never forgotten");
        self.by_seq.remove(&task.seq);
        self.by_id.remove(&task.envelope.id);
    }

    /// Moves a task from its stage to another one.
    pub(crate) fn change(&mut self, slot: Slot, stage: Stage) {
        self.leave(slot);
        self.enter(slot, stage);
    }

    /// Puts a task that has left its indexes into a stage.
    pub(crate) fn enter(&mut self, slot: Slot, stage: Stage) {
        self.tasks[slot].stage = stage;
        self.index(slot);
    }

    fn index(&mut self, slot: Slot) {
        let task = &self.tasks[slot];
        let queue = &mut self.queues[task.queue];
        *queue.counts.of_mut(task.stage.state()) += 1;
        match task.stage {
            Stage::Scheduled { due_at } => {
                let earliest = queue.due.first().is_none_or(|(first, ..)| due_at < *first);
                queue.due.insert((due_at, task.seq, slot));
                if earliest {
                    // Whoever waits there set its alarm for a later task.
                    self.waiters.ring_all(queue);
                }
            }
            Stage::Ready => {
                match &task.envelope.key {
                    None => queue.ready.insert((task.rank, task.seq), slot),
                    Some(key) => queue.keyed.entry(key.clone()).or_default().insert((task.rank, task.seq), slot),
                };
                self.waiters.note_fresh(queue, task.queue, 1);
            }
            Stage::Running { lease_until, cancel } => {
                self.leases.insert((lease_until, slot));
                if let (CancelMark::Requested, Some(node)) = (cancel, &task.node) {
                    self.cancel_marks.entry(node.clone()).or_default().insert(slot);
                }
            }
            Stage::Parked { since } => {
                self.parked.insert((since, slot));
                self.parked_by_name.entry(task.envelope.name.clone()).or_default().insert(slot);
            }
            Stage::Ended { state, at, order } => self.ended.insert(state, at, order, slot, task.envelope.result_ttl),
        }
        if task.stage.waits()
            && let Some(expires) = task.envelope.expires
        {
            self.expiring.insert((expires, slot));
        }
    }

    /// Takes a task out of the indexes of its stage; what comes next is [`Data::enter`].
    pub(crate) fn leave(&mut self, slot: Slot) {
        let task = &self.tasks[slot];
        let queue = &mut self.queues[task.queue];
        let state = task.stage.state();
        // Of the final states, only dead letters are counted as they are now; the others count what ever happened.
        if !state.is_final() || state == State::Dead {
            *queue.counts.of_mut(state) -= 1;
        }
        match task.stage {
            Stage::Scheduled { due_at } => {
                queue.due.remove(&(due_at, task.seq, slot));
            }
            Stage::Ready => {
                queue.remove_ready(task.envelope.key.as_ref(), (task.rank, task.seq));
            }
            Stage::Running { lease_until, cancel } => {
                self.leases.remove(&(lease_until, slot));
                self.limits.released |= self.limits.rules.count_running();
                if let (CancelMark::Requested, Some(node)) = (cancel, &task.node) {
                    forget(&mut self.cancel_marks, node, slot);
                }
            }
            Stage::Parked { since } => {
                self.parked.remove(&(since, slot));
                forget(&mut self.parked_by_name, &task.envelope.name, slot);
            }
            Stage::Ended { state, at, .. } => self.ended.remove(state, at, slot, task.envelope.result_ttl),
        }
        if task.stage.waits()
            && let Some(expires) = task.envelope.expires
        {
            self.expiring.remove(&(expires, slot));
        }
    }
}

/// Removes a slot from a set of sets, and the set with its last slot.
fn forget<K: Ord>(sets: &mut BTreeMap<K, BTreeSet<Slot>>, key: &K, slot: Slot) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(&slot);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
