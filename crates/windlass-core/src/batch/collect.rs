//! Collecting: tasks of one name sit down until their batch begins.
//!
//! Everything that decides happens under one lock that is never held across an await: who sits, who leaves, and when the
//! batch is taken away to run. A timer of its own waits for each batch, so that no member has to: any of them may leave.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::room::{Advice, Room};
use super::running::{self, Crew, Slot};
use super::{Answers, Batch, BatchCx, Item};
use crate::call::{Call, StopReason};
use crate::retry::Outcome;
use crate::task::Task;
use crate::worker;

/// A handler of batches.
pub(super) type Handler<T, S> =
    Box<dyn Fn(Vec<Item<T>>, BatchCx<S>) -> BoxFuture<'static, Result<Answers, Outcome>> + Send + Sync>;

/// The batches of one task on one worker.
pub(super) struct Collector<T, S> {
    size: Batch,
    pub(super) handler: Handler<T, S>,
    pub(super) state: Arc<S>,
    room: Arc<Room>,
    open: Mutex<Open<T>>,
}

/// The batch that collects now.
struct Open<T> {
    /// Which it is, so that nobody mistakes it for the one before.
    number: u64,
    seats: Vec<Seat<T>>,
    crew: Arc<Crew>,
    /// What waits for it; there once somebody sits in it.
    timer: Option<AbortHandle>,
}

/// A task in a batch.
pub(super) struct Seat<T> {
    pub(super) task: T,
    pub(super) call: Arc<Call>,
    pub(super) slot: Arc<Slot>,
    /// When its hard limit passes, and what that limit is.
    pub(super) ends: (Instant, Duration),
}

/// A batch that was taken away to run.
struct Taken<T> {
    seats: Vec<Seat<T>>,
    crew: Arc<Crew>,
}

/// What a member holds of its batch until it has its answer.
struct Member<T: Task, S: Send + Sync + 'static> {
    collector: Arc<Collector<T, S>>,
    number: u64,
    slot: Arc<Slot>,
    crew: Arc<Crew>,
    answer: oneshot::Receiver<Outcome>,
    /// It has its answer, or needs none from the batch.
    provided_for: bool,
}

impl<T: Task, S: Send + Sync + 'static> Collector<T, S> {
    pub(super) fn new(size: Batch, handler: Handler<T, S>, state: Arc<S>, room: Arc<Room>) -> Self {
        let open = Open { number: 0, seats: Vec::new(), crew: Arc::default(), timer: None };
        Self { size, handler, state, room, open: Mutex::new(open) }
    }

    /// The end of a task's chain: it waits in a batch, and then for its answer.
    pub(super) async fn join(self: Arc<Self>, task: T, call: Arc<Call>) -> Outcome {
        let mut member = self.sit_down(task, &call);
        tokio::select! {
            biased;
            outcome = member.answer() => return outcome,
            reason = call.stopped() => {
                if let Some(outcome) = not_begun(reason)
                    && member.leave()
                {
                    return outcome;
                }
            }
        }
        // It runs already, and was asked to end through its item.
        member.answer().await
    }

    fn sit_down(self: Arc<Self>, task: T, call: &Arc<Call>) -> Member<T, S> {
        let (soft, hard) = worker::limits(call, T::definition());
        let hurry = self.size.leaves_too_little_of(soft.unwrap_or(hard));
        let (slot, answer) = Slot::new();
        let now = Instant::now();
        let ends = (now + hard, hard);
        let (number, crew, taken) = {
            let mut open = self.open.lock();
            let (number, crew) = (open.number, Arc::clone(&open.crew));
            crew.sat_down();
            self.room.sat_down();
            open.seats.push(Seat { task, call: Arc::clone(call), slot: Arc::clone(&slot), ends });
            let taken = (open.seats.len() >= self.size.up_to || hurry).then(|| self.take(&mut open));
            if taken.is_none() && open.timer.is_none() {
                open.timer = Some(tokio::spawn(Arc::clone(&self).wait(number, now + self.size.within)).abort_handle());
            }
            (number, crew, taken)
        };
        if let Some(taken) = taken {
            self.begin(taken);
        }
        Member { collector: self, number, slot, crew, answer, provided_for: false }
    }

    /// Waits until a batch begins that is not full.
    async fn wait(self: Arc<Self>, number: u64, until: Instant) {
        let advice = tokio::select! {
            () = tokio::time::sleep_until(until) => Advice::Begin,
            advice = self.room.nothing_more_comes() => advice,
        };
        let taken = {
            let mut open = self.open.lock();
            if open.number != number {
                return;
            }
            self.take(&mut open)
        };
        match advice {
            Advice::Begin | Advice::Wait => self.begin(taken),
            Advice::GiveBack => {
                for seat in taken.seats {
                    seat.slot.settle(Outcome::Released);
                }
            }
        }
    }

    /// Takes the batch away; the next one collects.
    fn take(&self, open: &mut Open<T>) -> Taken<T> {
        open.number += 1;
        if let Some(timer) = open.timer.take() {
            // When it is the timer that takes the batch, it has nothing more to wait for.
            timer.abort();
        }
        let taken = Taken { seats: std::mem::take(&mut open.seats), crew: std::mem::take(&mut open.crew) };
        self.room.stood_up(taken.seats.len());
        taken
    }

    /// Runs a batch, without those who were asked to end a moment ago and those who have waited for too long.
    fn begin(self: &Arc<Self>, taken: Taken<T>) {
        let Taken { mut seats, crew } = taken;
        seats.retain(|seat| match seat.call.stop_reason().and_then(not_begun).or_else(|| expired(&seat.call)) {
            Some(outcome) => {
                seat.slot.settle(outcome);
                false
            }
            None => true,
        });
        if !seats.is_empty() {
            tokio::spawn(running::run(Arc::clone(self), seats, crew));
        }
    }

    /// Takes one task out of its batch, if that has not begun.
    fn stand_up(&self, number: u64, slot: &Arc<Slot>) -> bool {
        let mut open = self.open.lock();
        if open.number != number {
            return false;
        }
        let Some(index) = open.seats.iter().position(|seat| Arc::ptr_eq(&seat.slot, slot)) else { return false };
        open.seats.remove(index);
        self.room.stood_up(1);
        if open.seats.is_empty() {
            // The next one to sit down begins a wait of its own.
            self.take(&mut open);
        }
        true
    }
}

impl<T: Task, S: Send + Sync + 'static> Member<T, S> {
    /// Waits for the answer. Only a runtime that is gone has none.
    async fn answer(&mut self) -> Outcome {
        let outcome = (&mut self.answer).await.unwrap_or(Outcome::Released);
        self.provided_for = true;
        outcome
    }

    /// Leaves a batch that has not begun.
    fn leave(&mut self) -> bool {
        let left = self.collector.stand_up(self.number, &self.slot);
        self.provided_for |= left;
        left
    }
}

/// A member that is dropped, at a limit or by the worker, leaves as well.
impl<T: Task, S: Send + Sync + 'static> Drop for Member<T, S> {
    fn drop(&mut self) {
        if !self.provided_for {
            self.leave();
        }
        self.crew.left(self.provided_for);
    }
}

/// What becomes of a task that is asked to end before its batch has begun.
fn not_begun(reason: StopReason) -> Option<Outcome> {
    match reason {
        StopReason::Cancelled => Some(Outcome::Cancelled),
        StopReason::Shutdown | StopReason::LeaseLost => Some(Outcome::Released),
        // It is on its way: the handler sees that the time is short.
        StopReason::SoftLimit => None,
    }
}

/// The wait counts: a task is not started after it has expired.
fn expired(call: &Call) -> Option<Outcome> {
    call.envelope.expires.filter(|expires| *expires <= call.now()).map(|_| Outcome::Expired)
}
