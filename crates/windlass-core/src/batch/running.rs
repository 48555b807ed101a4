//! Running: one call of the handler, and an answer for every task of the batch.
//!
//! The batch is a task of the runtime, apart from its members: each of them waits for its answer and may be dropped at any
//! time without the others noticing.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use super::collect::{Collector, Seat};
use super::{Answers, BatchCx, Item, Kind, Reply};
use crate::TaskError;
use crate::registry::panic_text;
use crate::retry::Outcome;
use crate::task::Task;

/// Where the answer for one task goes; the first one counts.
#[derive(Debug)]
pub(super) struct Slot(Mutex<Option<oneshot::Sender<Outcome>>>);

impl Slot {
    pub(super) fn new() -> (Arc<Self>, oneshot::Receiver<Outcome>) {
        let (send, answer) = oneshot::channel();
        (Arc::new(Self(Mutex::new(Some(send)))), answer)
    }

    pub(super) fn settle(&self, outcome: Outcome) {
        if let Some(send) = self.0.lock().take() {
            // A member that was dropped does not listen.
            let _ = send.send(outcome);
        }
    }
}

/// Counts those who wait for an answer of one batch.
#[derive(Debug, Default)]
pub(super) struct Crew {
    waiting: AtomicUsize,
    abandoned: Notify,
}

impl Crew {
    pub(super) fn sat_down(&self) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
    }

    /// One waits no more. When the last one was dropped, the handler works for nobody. When the last one is provided for,
    /// the handler may go on to its end.
    pub(super) fn left(&self, provided_for: bool) {
        if self.waiting.fetch_sub(1, Ordering::AcqRel) == 1 && !provided_for {
            self.abandoned.notify_one();
        }
    }
}

/// Runs a batch that has begun: at least one task.
pub(super) async fn run<T, S>(collector: Arc<Collector<T, S>>, seats: Vec<Seat<T>>, crew: Arc<Crew>)
where
    T: Task,
    S: Send + Sync + 'static,
{
    let Some((ends_at, limit)) = seats.iter().map(|seat| seat.ends).min() else { return };
    let slots: Vec<Arc<Slot>> = seats.iter().map(|seat| Arc::clone(&seat.slot)).collect();
    let cx = BatchCx {
        calls: seats.iter().map(|seat| Arc::clone(&seat.call)).collect(),
        state: Arc::clone(&collector.state),
    };
    let items = seats.into_iter().map(item).collect();
    let handler = AssertUnwindSafe(async { (collector.handler)(items, cx).await }).catch_unwind();
    let ended = tokio::select! {
        biased;
        ended = handler => ended.unwrap_or_else(|panic| Err(Outcome::Panicked(panic_text(&*panic)))),
        () = tokio::time::sleep_until(ends_at) => Err(Outcome::TimedOut { limit }),
        () = crew.abandoned.notified() => return,
    };
    answer_all(&slots, ended);
}

fn item<T>(seat: Seat<T>) -> Item<T> {
    let Seat { task, call, slot, .. } = seat;
    Item { task, reply: Reply { call, slot, task: std::marker::PhantomData } }
}

/// Answers every task that has no answer yet.
fn answer_all(slots: &[Arc<Slot>], ended: Result<Answers, Outcome>) {
    for (slot, outcome) in slots.iter().zip(outcomes(slots.len(), ended)) {
        slot.settle(outcome);
    }
}

/// What the end of the handler means for each task, in the order of the batch.
fn outcomes(tasks: usize, ended: Result<Answers, Outcome>) -> Vec<Outcome> {
    let for_all = match ended {
        Ok(Answers(Kind::InOrder(outcomes))) if outcomes.len() == tasks => return outcomes,
        Ok(Answers(Kind::InOrder(outcomes))) => {
            unanswered(format_args!("the handler returned {} results for a batch of {tasks} tasks", outcomes.len()))
        }
        Ok(Answers(Kind::ByItem)) => unanswered(format_args!("the handler of the batch gave no answer for this task")),
        Err(outcome) => outcome,
    };
    vec![for_all; tasks]
}

fn unanswered(text: std::fmt::Arguments<'_>) -> Outcome {
    Outcome::Error(TaskError::failed(text).class("unanswered"))
}
