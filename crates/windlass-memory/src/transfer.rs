//! Moving everything to another store, and from one.

use windlass_core::transfer::{PARCEL_GROUPS_MAX, PARCEL_TASKS_MAX, Parcel, Parcelled, ParcelledGroup};
use windlass_core::transfer::{Transfer, Transferred};
use windlass_core::{Due, GroupId, State, TaskId, Timestamp};

use crate::data::{Data, Stage, Story};
use crate::groups::Phase;

impl Data {
    pub(crate) fn transfer(&mut self, step: &Transfer, now: Timestamp) -> Transferred {
        match step {
            Transfer::Close => Transferred::Changed(u64::from(!std::mem::replace(&mut self.closed, true))),
            Transfer::Open => {
                let was_closed = std::mem::replace(&mut self.closed, false);
                self.wake_everybody();
                Transferred::Changed(u64::from(was_closed))
            }
            Transfer::Export => Transferred::Parcel(self.export()),
            Transfer::Import(parcel) => Transferred::Changed(self.import(parcel, now)),
            Transfer::Evict { tasks, groups } => Transferred::Changed(self.evict(tasks, groups)),
        }
    }

    fn export(&self) -> Parcel {
        let open = self.groups.values().filter(|group| group.phase != Phase::Completed);
        let groups: Vec<_> = open
            .take(PARCEL_GROUPS_MAX)
            .map(|group| ParcelledGroup {
                group: group.new.clone(),
                arrived: group.outcomes.iter().map(|(place, outcome)| (*place, outcome.clone())).collect(),
                failed: group.phase == Phase::Failed,
            })
            .collect();
        if !groups.is_empty() {
            return Parcel { groups, tasks: Vec::new() };
        }
        let oldest_first = self.by_seq.values().map(|slot| &self.tasks[*slot]);
        let tasks = oldest_first
            .filter(|task| task.stage.state() != State::Running)
            .take(PARCEL_TASKS_MAX)
            .map(|task| Parcelled { record: task.record(), ready_at: task.ready_at })
            .collect();
        Parcel { groups, tasks }
    }

    fn import(&mut self, parcel: &Parcel, now: Timestamp) -> u64 {
        let groups = parcel.groups.iter().filter(|group| self.import_group(group, now)).count();
        let tasks = parcel.tasks.iter().filter(|task| self.import_task(task, now)).count();
        (groups + tasks) as u64
    }

    fn import_group(&mut self, parcelled: &ParcelledGroup, now: Timestamp) -> bool {
        let id = parcelled.group.id.clone();
        if self.groups.contains_key(&id) {
            return false;
        }
        self.create_group(parcelled.group.clone(), now);
        if let Some(group) = self.groups.get_mut(&id) {
            group.succeeded = parcelled.arrived.iter().filter(|(_, outcome)| outcome.is_ok()).count() as u32;
            group.outcomes = parcelled.arrived.iter().cloned().collect();
            group.phase = if parcelled.failed { Phase::Failed } else { Phase::Open };
        }
        true
    }

    fn import_task(&mut self, parcelled: &Parcelled, now: Timestamp) -> bool {
        let record = &parcelled.record;
        if self.by_id.contains_key(&record.envelope.id) {
            return false;
        }
        if let Some(unique) = &record.envelope.unique {
            self.unique.take_over(unique, &record.envelope.id, record.state, record.enqueued_at, now);
        }
        let mut envelope = record.envelope.clone();
        envelope.due = Due::Now;
        let queue = self.queue_named(&envelope.queue);
        let stage = match record.state {
            State::Scheduled => Stage::Scheduled { due_at: record.due_at.unwrap_or(parcelled.ready_at) },
            // A running task is in no parcel; should one be, nobody holds it here.
            State::Ready | State::Running => Stage::Ready,
            State::Parked => Stage::Parked { since: now },
            State::Succeeded | State::Dead | State::Cancelled | State::Expired => {
                self.ended.stage(record.state, record.finished_at.unwrap_or(now))
            }
        };
        let slot = self.add(envelope, queue, stage, parcelled.ready_at, record.enqueued_at);
        let task = &mut self.tasks[slot];
        task.attempt = record.attempt;
        task.crashes = record.crashes;
        task.started_at = record.started_at;
        task.node.clone_from(&record.node);
        task.result.clone_from(&record.result);
        task.story = Some(Box::new(Story {
            progress: record.progress.clone(),
            skipped: record.skipped.clone(),
            reason: record.reason,
            failure: record.failure.clone(),
            history: record.history.clone(),
            memo: record.memo.clone(),
            waits_for: record.waits_for.clone(),
        }));
        true
    }

    fn evict(&mut self, tasks: &[TaskId], groups: &[GroupId]) -> u64 {
        let gone = groups.iter().filter(|id| self.groups.remove(*id).is_some()).count();
        let mut evicted = gone as u64;
        for id in tasks {
            let Some(slot) = self.by_id.get(id).copied() else { continue };
            if self.tasks[slot].stage.state() == State::Running {
                continue;
            }
            let envelope = self.tasks[slot].envelope.clone();
            self.unique.release(&envelope);
            self.remove(slot);
            evicted += 1;
        }
        evicted
    }
}
