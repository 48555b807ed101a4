//! Fires schedules: looks which slots are due, pushes their tasks and moves on, in one step of the store.
//!
//! Every node may run it. The store lets one of them move a schedule from a slot to the next, and the id of a task is its
//! schedule and slot, so a slot fires once however many nodes try. There is no leader.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Due, Overlap, Schedule, due};
use crate::backend::{Backend, Command, ScheduleChange, ScheduleChanged, StoreError, Target, TaskAction};
use crate::event::{Event, Listener};
use crate::view::ScheduleRecord;
use crate::{Clock, TaskId, Timestamp};

/// Never sleeps for longer, so that a wall clock that is moved is noticed.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Fires the schedules of a store.
pub struct Runner {
    /// The store.
    pub backend: Arc<dyn Backend>,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Who hears of it.
    pub listeners: Arc<[Arc<dyn Listener>]>,
}

impl Runner {
    /// Declares the schedules of an application, then fires whatever is due until `stop`. `next_slot` is what the ticks of
    /// this node saw as the earliest next slot: so nothing is asked of the store while nothing is due.
    pub async fn run(
        self,
        declared: Vec<Schedule>,
        mut next_slot: watch::Receiver<Option<Timestamp>>,
        stop: CancellationToken,
    ) {
        let work = async {
            self.declare(declared).await;
            let mut next = self.fire_due().await;
            loop {
                let wait = next.map_or(LOOK_AGAIN, |next| next.since(self.clock.now()).min(LOOK_AGAIN));
                tokio::select! {
                    biased;
                    () = tokio::time::sleep(wait) => {}
                    changed = next_slot.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        next = *next_slot.borrow_and_update();
                    }
                }
                if next.is_some_and(|next| next <= self.clock.now()) {
                    next = self.fire_due().await;
                }
            }
        };
        // What a dropped fire has done stays right: the store moves a schedule and pushes in one step.
        tokio::select! {
            biased;
            () = work => {}
            () = stop.cancelled() => {}
        }
    }

    async fn declare(&self, declared: Vec<Schedule>) {
        for schedule in declared {
            loop {
                let next = schedule.spec.next(self.clock.now());
                match self.backend.schedule(&ScheduleChange::Put { schedule: schedule.clone(), next }).await {
                    Ok(_) => break,
                    Err(error) => self.failed("schedule", error).await,
                }
            }
        }
    }

    /// Fires everything that is due and answers the earliest next slot.
    async fn fire_due(&self) -> Option<Timestamp> {
        loop {
            let records = match self.backend.schedules().await {
                Ok(records) => records,
                Err(error) => {
                    self.failed("schedules", error).await;
                    continue;
                }
            };
            let now = self.clock.now();
            let mut next = None;
            for record in records.into_iter().filter(|record| !record.paused) {
                let Some(slot) = record.next else { continue };
                let after = if slot <= now { self.fire(&record, slot, now).await } else { Some(slot) };
                next = [next, after].into_iter().flatten().min();
            }
            // More slots than one call fires are due at once.
            if next.is_none_or(|next| next > self.clock.now()) {
                return next;
            }
        }
    }

    /// Fires one schedule and answers its next slot.
    async fn fire(&self, record: &ScheduleRecord, expected: Timestamp, now: Timestamp) -> Option<Timestamp> {
        let schedule = &record.schedule;
        let Due { mut fire, mut missed, next } = due(&schedule.spec, &schedule.missed, expected, now);
        let mut why = "no scheduler ran when they were due";
        match schedule.overlap {
            Overlap::Allow => {}
            Overlap::Skip => {
                // Slots that fire together overlap each other.
                let keep = match self.last_is_live(record).await {
                    Ok(true) => 0,
                    Ok(false) => fire.len().min(1),
                    Err(error) => {
                        self.failed("find", error).await;
                        return Some(expected);
                    }
                };
                let left_out = fire.len() - keep;
                if left_out > 0 {
                    why = "the task of the slot before has not ended";
                }
                fire.drain(..left_out);
                missed += left_out as u64;
            }
            Overlap::CancelPrevious => {
                if let Some(last) = record.last_task.clone().filter(|_| !fire.is_empty()) {
                    let command = Command::Tasks { target: Target::Ids(vec![last]), action: TaskAction::Cancel };
                    if let Err(error) = self.backend.command(&command).await {
                        self.failed("command", error).await;
                        return Some(expected);
                    }
                }
            }
        }
        let push = fire.iter().map(|slot| schedule.instance(*slot, now)).collect();
        let change = ScheduleChange::Fire { id: schedule.id.clone(), expected, next, push, missed };
        match self.backend.schedule(&change).await {
            Ok(ScheduleChanged::Done) => self.tell(schedule, &fire, missed, why),
            // Another node was faster, or it was paused or removed: the next look shows what is so now.
            Ok(ScheduleChanged::Raced | ScheduleChanged::Unknown | ScheduleChanged::Unchanged) => {}
            Err(error) => {
                self.failed("schedule", error).await;
                return Some(expected);
            }
        }
        next
    }

    async fn last_is_live(&self, record: &ScheduleRecord) -> Result<bool, StoreError> {
        let Some(last) = &record.last_task else { return Ok(false) };
        let found = self.backend.find(std::slice::from_ref::<TaskId>(last)).await?;
        Ok(found.into_iter().flatten().any(|task| !task.state.is_final()))
    }

    fn tell(&self, schedule: &Schedule, fired: &[Timestamp], missed: u64, why: &'static str) {
        let now = self.clock.now();
        for listener in self.listeners.iter() {
            for slot in fired {
                let task = schedule.task_id(*slot);
                let late = now.since(*slot);
                listener.on_event(&Event::ScheduleFired { schedule: schedule.id.clone(), slot: *slot, task, late });
            }
            if missed > 0 {
                listener.on_event(&Event::ScheduleMissed { schedule: schedule.id.clone(), count: missed, why });
            }
        }
    }

    async fn failed(&self, operation: &'static str, error: StoreError) {
        let event = Event::StoreFailed { operation, error, again_in: LOOK_AGAIN };
        for listener in self.listeners.iter() {
            listener.on_event(&event);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner").field("backend", &self.backend).finish_non_exhaustive()
    }
}
