//! What operators change: tasks that nobody holds, pauses, orders.

use std::sync::Arc;

use windlass_core::backend::{COMMAND_MAX, Command, Commanded, StoreError, Target, TaskAction, check_batch};
use windlass_core::memo::{Line, MEMO_BYTES_MAX};
use windlass_core::{Json, Priority, QueueName, SignalName, TaskId, TaskName, Timestamp, Verdict};

use crate::data::{CancelMark, Data, Stage};
use crate::fleet::Ordered;
use crate::slab::Slot;

/// What an action did to one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Acted {
    Changed,
    /// It has no meaning for the task as it is.
    Unchanged,
}

impl Data {
    pub(crate) fn command(&mut self, command: &Command, now: Timestamp) -> Result<Commanded, StoreError> {
        let changed = match command {
            Command::Tasks { target, action } => return self.act_on(target, action, now),
            Command::PauseQueue(queue) => self.pause_queue(queue),
            Command::ResumeQueue(queue) => self.resume_queue(queue),
            Command::PauseTask(name) => u64::from(self.paused_names.insert(name.clone())),
            Command::ResumeTask(name) => self.resume_task(name),
            Command::Order { node, order } => match self.fleet.order(node, *order, now) {
                Ordered::Kept => 1,
                Ordered::UnknownNode => 0,
            },
        };
        Ok(Commanded { changed, ..Commanded::default() })
    }

    fn act_on(&mut self, target: &Target, action: &TaskAction, now: Timestamp) -> Result<Commanded, StoreError> {
        match target {
            Target::Ids(ids) => {
                check_batch("ids", ids.len(), COMMAND_MAX)?;
                Ok(self.act_on_ids(ids, action, now))
            }
            Target::Matching { filter, after } => {
                let matching = self.newest_first(filter, after.as_ref())?;
                let applicable = matching.filter(|slot| action.applies_to(self.tasks[*slot].stage.state()));
                let slots: Vec<Slot> = applicable.take(COMMAND_MAX).collect();
                let next = self.cursor_after(&slots, COMMAND_MAX);
                let changed = slots.into_iter().filter(|slot| self.act(*slot, action, now) == Acted::Changed).count();
                Ok(Commanded { changed: changed as u64, unchanged: Vec::new(), next })
            }
        }
    }

    fn act_on_ids(&mut self, ids: &[TaskId], action: &TaskAction, now: Timestamp) -> Commanded {
        let mut commanded = Commanded::default();
        for id in ids {
            let Some(slot) = self.by_id.get(id).copied() else {
                commanded.unchanged.push((id.clone(), None));
                continue;
            };
            match self.act(slot, action, now) {
                Acted::Changed => commanded.changed += 1,
                Acted::Unchanged => commanded.unchanged.push((id.clone(), Some(self.tasks[slot].stage.state()))),
            }
        }
        commanded
    }

    fn act(&mut self, slot: Slot, action: &TaskAction, now: Timestamp) -> Acted {
        let stage = self.tasks[slot].stage;
        if !action.applies_to(stage.state()) {
            return Acted::Unchanged;
        }
        match action {
            TaskAction::Cancel => return self.cancel(slot, stage, now),
            TaskAction::Retry => return self.retry(slot, now),
            TaskAction::Discard => self.remove(slot),
            TaskAction::Move(queue) => self.move_to(slot, queue, stage),
            TaskAction::Reprioritise(priority) => self.reprioritise(slot, *priority, stage),
            TaskAction::RunNow => self.run_now(slot, now),
            TaskAction::Signal { name, value } => return self.signal(slot, name, value, now),
        }
        Acted::Changed
    }

    fn run_now(&mut self, slot: Slot, now: Timestamp) {
        self.leave(slot);
        let task = &mut self.tasks[slot];
        task.set_ready_at(now);
        if let Some(story) = &mut task.story {
            story.waits_for = None;
        }
        self.enter(slot, Stage::Ready);
    }

    fn signal(&mut self, slot: Slot, name: &SignalName, value: &Json, now: Timestamp) -> Acted {
        let line = Line::Signal { signal: name.clone(), value: value.clone() }.to_text();
        let story = self.tasks[slot].story();
        if story.memo.len() + line.len() > MEMO_BYTES_MAX {
            return Acted::Unchanged;
        }
        story.memo.push_str(&line);
        if story.waits_for.as_ref() == Some(name) {
            self.run_now(slot, now);
        }
        Acted::Changed
    }

    fn cancel(&mut self, slot: Slot, stage: Stage, now: Timestamp) -> Acted {
        match stage {
            Stage::Running { cancel: CancelMark::Requested, .. } => return Acted::Unchanged,
            Stage::Running { lease_until, cancel: CancelMark::Absent } => {
                self.change(slot, Stage::Running { lease_until, cancel: CancelMark::Requested });
            }
            Stage::Scheduled { .. } | Stage::Ready | Stage::Parked { .. } | Stage::Ended { .. } => {
                self.end_by_store(slot, &Verdict::Cancelled, now);
            }
        }
        Acted::Changed
    }

    /// Makes an ended task ready as if it were new, except for its history, its fence and when it was pushed.
    fn retry(&mut self, slot: Slot, now: Timestamp) -> Acted {
        let envelope = Arc::clone(&self.tasks[slot].envelope);
        if let Some(unique) = &envelope.unique {
            if self.unique.holder(&unique.key, now).is_some_and(|holder| *holder != envelope.id) {
                return Acted::Unchanged;
            }
            self.unique.retake(unique, &envelope.id);
        }
        drop(envelope);
        self.leave(slot);
        let task = &mut self.tasks[slot];
        task.attempt = 0;
        task.crashes = 0;
        task.result = None;
        if task.envelope.expires.is_some() {
            Arc::make_mut(&mut task.envelope).expires = None;
        }
        if let Some(story) = &mut task.story {
            story.reason = None;
            story.failure = None;
            story.skipped = None;
            story.progress = None;
        }
        task.set_ready_at(now);
        self.enter(slot, Stage::Ready);
        Acted::Changed
    }

    fn move_to(&mut self, slot: Slot, queue: &QueueName, stage: Stage) {
        self.leave(slot);
        let index = self.queue_named(queue);
        self.queues[index].ever_used = true;
        let task = &mut self.tasks[slot];
        Arc::make_mut(&mut task.envelope).queue = queue.clone();
        task.queue = index;
        self.enter(slot, stage);
    }

    fn reprioritise(&mut self, slot: Slot, priority: Priority, stage: Stage) {
        self.leave(slot);
        let task = &mut self.tasks[slot];
        Arc::make_mut(&mut task.envelope).priority = priority;
        task.set_ready_at(task.ready_at);
        self.enter(slot, stage);
    }

    fn pause_queue(&mut self, queue: &QueueName) -> u64 {
        let index = self.queue_named(queue);
        u64::from(!std::mem::replace(&mut self.queues[index].counts.paused, true))
    }

    fn resume_queue(&mut self, queue: &QueueName) -> u64 {
        let Some(index) = self.queue_by_name.get(queue).copied() else { return 0 };
        if !std::mem::replace(&mut self.queues[index].counts.paused, false) {
            return 0;
        }
        // Everybody looks again: for what is ready, and for when the next task falls due, which nobody did meanwhile.
        self.waiters.ring_all(&self.queues[index]);
        1
    }

    fn resume_task(&mut self, name: &TaskName) -> u64 {
        if !self.paused_names.remove(name) {
            return 0;
        }
        for index in 0..self.queues.len() {
            self.wake_queue(index);
        }
        1
    }
}
