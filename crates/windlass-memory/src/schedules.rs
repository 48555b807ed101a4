//! Schedules: definitions, and the one step in which a slot fires.

use windlass_core::backend::{Push, Pushed, ScheduleChange, ScheduleChanged, StoreError};
use windlass_core::schedule::Schedule;
use windlass_core::view::ScheduleRecord;
use windlass_core::{Envelope, ScheduleId, Timestamp};

use crate::data::Data;

impl Data {
    pub(crate) fn schedules(&self) -> Vec<ScheduleRecord> {
        self.schedules.values().cloned().collect()
    }

    /// The earliest slot of all schedules that fire.
    pub(crate) fn next_slot(&self) -> Option<Timestamp> {
        if self.closed {
            return None;
        }
        self.schedules.values().filter(|record| !record.paused).filter_map(|record| record.next).min()
    }

    pub(crate) fn schedule(&mut self, change: &ScheduleChange, now: Timestamp) -> Result<ScheduleChanged, StoreError> {
        Ok(match change {
            ScheduleChange::Put { schedule, next } => self.put_schedule(schedule, *next),
            ScheduleChange::Pause(id) => self.edit_schedule(id, |record| {
                let before = std::mem::replace(&mut record.paused, true);
                if before { ScheduleChanged::Unchanged } else { ScheduleChanged::Done }
            }),
            ScheduleChange::Resume { id, next } => self.edit_schedule(id, |record| {
                if !record.paused {
                    return ScheduleChanged::Unchanged;
                }
                record.paused = false;
                record.next = *next;
                ScheduleChanged::Done
            }),
            ScheduleChange::Remove(id) => match self.schedules.remove(id) {
                Some(_) => ScheduleChanged::Done,
                None => ScheduleChanged::Unknown,
            },
            ScheduleChange::Fire { id, expected, next, push, missed } => {
                let push = Push { envelopes: push.clone(), groups: Vec::new() };
                push.check()?;
                self.fire(id, *expected, *next, &push, *missed, now)
            }
        })
    }

    fn put_schedule(&mut self, schedule: &Schedule, next: Option<Timestamp>) -> ScheduleChanged {
        if let Some(record) = self.schedules.get_mut(&schedule.id) {
            if record.schedule == *schedule {
                return ScheduleChanged::Unchanged;
            }
            record.schedule = schedule.clone();
            record.next = next;
            return ScheduleChanged::Done;
        }
        let record = ScheduleRecord {
            schedule: schedule.clone(),
            next,
            paused: false,
            last_fired_at: None,
            last_task: None,
            fired: 0,
            missed: 0,
        };
        self.schedules.insert(schedule.id.clone(), record);
        ScheduleChanged::Done
    }

    fn edit_schedule(
        &mut self,
        id: &ScheduleId,
        edit: impl FnOnce(&mut ScheduleRecord) -> ScheduleChanged,
    ) -> ScheduleChanged {
        self.schedules.get_mut(id).map_or(ScheduleChanged::Unknown, edit)
    }

    fn fire(
        &mut self,
        id: &ScheduleId,
        expected: Timestamp,
        next: Option<Timestamp>,
        push: &Push,
        missed: u64,
        now: Timestamp,
    ) -> ScheduleChanged {
        let Some(record) = self.schedules.get(id) else { return ScheduleChanged::Unknown };
        if self.closed || record.paused || record.next != Some(expected) {
            return ScheduleChanged::Raced;
        }
        let answers = self.push(push, now);
        let stored: Vec<&Envelope> = push
            .envelopes
            .iter()
            .zip(&answers)
            .filter(|(_, answer)| **answer == Pushed::Stored)
            .map(|(envelope, _)| envelope)
            .collect();
        self.edit_schedule(id, |record| {
            record.next = next;
            record.missed += missed;
            record.fired += stored.len() as u64;
            if let Some(last) = stored.last() {
                record.last_task = Some(last.id.clone());
                record.last_fired_at = Some(now);
            }
            ScheduleChanged::Done
        })
    }
}
