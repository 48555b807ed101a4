//! Batches: a handler that takes several tasks at once. Each task keeps its own verdict.
//!
//! 1. each task of the name is claimed and goes through its own limits and its own middleware, as any other
//! 2. at the end of its chain it sits down in the batch that collects now          `collect.rs`
//! 3. the batch begins: it is full, its wait is over, or nothing more can come     `collect.rs`, `room.rs`
//! 4. the handler runs once for all of them                                        `running.rs`
//! 5. each task gets its answer, and its chain goes on to its own verdict
//!
//! Never talks to the store and never decides about retries: to the worker each member is one attempt, with its own lease,
//! cancel, progress and settle.

mod collect;
mod room;
mod running;

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;

use crate::backend::BATCH_MAX;
use crate::call::{Call, StopReason};
use crate::client::Client;
use crate::error::TaskError;
use crate::registry::{App, Takes, outcome_of};
use crate::retry::Outcome;
use crate::task::{Definition, Task};
use crate::{NodeId, Timestamp, format_duration};
use collect::Collector;
pub(crate) use room::Room;
use running::Slot;

/// The most tasks in one batch: a store hands out no more in one claim.
pub const BATCH_SIZE_MAX: usize = BATCH_MAX;
/// The longest that a batch waits for more tasks: each that waits holds a slot of its worker.
pub const BATCH_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long a batch waits that names no time.
pub const BATCH_WAIT_DEFAULT: Duration = Duration::from_millis(100);

/// How many tasks a batch takes, and how long it waits for them.
///
/// ```
/// # use std::time::Duration;
/// # use windlass_core::Batch;
/// let size = Batch::up_to(100).within(Duration::from_millis(200));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Batch {
    up_to: usize,
    within: Duration,
}

impl Batch {
    /// Batches of at most this many tasks, 1 to [`BATCH_SIZE_MAX`]. They wait [`BATCH_WAIT_DEFAULT`].
    pub const fn up_to(tasks: usize) -> Self {
        Self { up_to: tasks, within: BATCH_WAIT_DEFAULT }
    }

    /// How long a batch waits for more tasks after its first; 0 to [`BATCH_WAIT_MAX`], and at most half of the task's soft
    /// and hard limit, which go on meanwhile.
    #[must_use]
    pub const fn within(mut self, wait: Duration) -> Self {
        self.within = wait;
        self
    }

    /// The most tasks in one batch.
    pub(crate) const fn tasks(self) -> usize {
        self.up_to
    }

    /// What is wrong with it, for tasks of this definition.
    pub(crate) fn mistakes(self, definition: &Definition) -> Vec<String> {
        let name = &definition.name;
        let mut mistakes = Vec::new();
        if self.up_to == 0 || self.up_to > BATCH_SIZE_MAX {
            mistakes.push(format!("task `{name}`: a batch takes 1 to {BATCH_SIZE_MAX} tasks, not {}", self.up_to));
        }
        let wait = format_duration(self.within);
        if self.within > BATCH_WAIT_MAX {
            let most = format_duration(BATCH_WAIT_MAX);
            mistakes.push(format!("task `{name}`: a batch waits for {most} at most, not {wait}"));
        }
        let options = &definition.options;
        let limit = options.soft_limit.unwrap_or(options.hard_limit).min(options.hard_limit);
        if self.leaves_too_little_of(limit) {
            let limit = format_duration(limit);
            mistakes.push(format!(
                "task `{name}`: a batch that waits for {wait} leaves too little of its limit of {limit}"
            ));
        }
        mistakes
    }

    /// The limits of a task go on while it waits: half of them must be left for the handler.
    fn leaves_too_little_of(self, limit: Duration) -> bool {
        self.within.saturating_mul(2) > limit
    }
}

impl<S: Send + Sync + 'static> App<S> {
    /// Registers a handler that takes several tasks at once.
    ///
    /// A batch begins as soon as it is full; when its wait has passed since its first task; or at once when nothing more can
    /// come, because every slot of the worker waits in a batch or the worker has been made quiet. A worker therefore needs
    /// at least as many slots as a batch takes, or its batches are smaller, of which its log warns. When the worker stops, tasks whose batch has not
    /// begun are given back without an attempt spent.
    ///
    /// **Each task keeps its own verdict.** The handler answers each through its [`Item`], or returns a list of results in
    /// the order of the batch. An error of the handler is the answer for every task that has none, and so is a panic: each
    /// is retried by its own policy. A task that is left without an answer has failed, with the class `unanswered`. Arguments
    /// that do not fit make a dead letter of that task and never reach the batch.
    ///
    /// **Each task keeps its own limits and its own middleware.** Limits count from the claim, so the wait is part of them;
    /// a task whose own limit is shorter than twice the wait begins its batch at once. At a soft limit the item is asked to
    /// end. The first hard limit that passes ends the batch: every task that has no answer has timed out. A cancelled task
    /// leaves a batch that has not begun; afterwards its item is asked to end, and after the grace the others go on without
    /// it. Middleware runs around each task and sees the wait as part of the attempt.
    ///
    /// ```
    /// # extern crate windlass_core as windlass;
    /// use std::time::Duration;
    /// use serde::{Deserialize, Serialize};
    /// use windlass_core::{App, Batch, BatchCx, Item, Task, TaskError};
    ///
    /// #[derive(Task, Serialize, Deserialize)]
    /// #[task(output = u64)]
    /// struct Index { text: String }
    ///
    /// async fn index(batch: Vec<Item<Index>>, _cx: BatchCx) -> Result<(), TaskError> {
    ///     for item in batch {
    ///         match item.task.text.len() {
    ///             0 => item.fail(TaskError::fatal("nothing to index")),
    ///             length => item.done(length as u64),
    ///         }
    ///     }
    ///     Ok(())
    /// }
    /// let app = App::new("indexer").batch_task(Batch::up_to(100).within(Duration::from_millis(200)), index);
    /// ```
    #[must_use]
    pub fn batch_task<T, F, Fut, A>(self, size: Batch, handler: F) -> Self
    where
        T: Task,
        F: Fn(Vec<Item<T>>, BatchCx<S>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<A, TaskError>> + Send + 'static,
        A: BatchAnswer<T>,
    {
        let handler = Arc::new(handler);
        self.collect(size, move |items, cx| {
            let handler = Arc::clone(&handler);
            // The handler is called inside of the future, so that a panic before its first await is caught as well.
            async move { answers(handler(items, cx).await) }.boxed()
        })
    }

    /// Registers a handler of batches that blocks or computes: it runs on a thread of its own kind, so that it holds up
    /// nobody else. See [`App::batch_task`] and [`App::blocking_task`].
    #[must_use]
    pub fn blocking_batch_task<T, F, A>(self, size: Batch, handler: F) -> Self
    where
        T: Task,
        F: Fn(Vec<Item<T>>, BatchCx<S>) -> Result<A, TaskError> + Send + Sync + 'static,
        A: BatchAnswer<T>,
    {
        let handler = Arc::new(handler);
        self.collect(size, move |items, cx| {
            let handler = Arc::clone(&handler);
            async move {
                match tokio::task::spawn_blocking(move || answers(handler(items, cx))).await {
                    Ok(answers) => answers,
                    Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                    Err(_) => Err(Outcome::Released),
                }
            }
            .boxed()
        })
    }

    fn collect<T, H>(self, size: Batch, handler: H) -> Self
    where
        T: Task,
        H: Fn(Vec<Item<T>>, BatchCx<S>) -> BoxFuture<'static, Result<Answers, Outcome>> + Send + Sync + 'static,
    {
        self.declare(Takes::Several(size), move |state, room| {
            let collector = Arc::new(Collector::new(size, Box::new(handler), Arc::clone(state), Arc::clone(room)));
            move |task: T, call| Arc::clone(&collector).join(task, call).boxed()
        })
    }
}

/// One task of a batch: its arguments, its attempt (by deref, as a [`crate::Cx`] has it), and the way to answer it.
pub struct Item<T> {
    /// The task.
    pub task: T,
    /// Where the answer goes; for handlers that take the task out of the item.
    pub reply: Reply<T>,
}

impl<T: Task> Item<T> {
    /// The task succeeded.
    pub fn done(self, output: T::Output) {
        self.reply.done(output);
    }

    /// The task did not succeed; what follows is up to the error and the task's own retry policy.
    pub fn fail(self, error: impl Into<TaskError>) {
        self.reply.fail(error);
    }

    /// Either.
    pub fn answer<E: Into<TaskError>>(self, result: Result<T::Output, E>) {
        self.reply.answer(result);
    }
}

impl<T> Deref for Item<T> {
    type Target = Call;
    fn deref(&self) -> &Call {
        &self.reply.call
    }
}

impl<T> fmt::Debug for Item<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Item({:?})", self.reply.call)
    }
}

/// The way to answer one task of a batch. What is answered is settled at once, while the handler goes on with the others.
pub struct Reply<T> {
    call: Arc<Call>,
    slot: Arc<Slot>,
    task: PhantomData<fn(T)>,
}

impl<T: Task> Reply<T> {
    /// The task succeeded.
    pub fn done(self, output: T::Output) {
        self.slot.settle(outcome_of(Ok(output)));
    }

    /// The task did not succeed; what follows is up to the error and the task's own retry policy.
    pub fn fail(self, error: impl Into<TaskError>) {
        self.slot.settle(Outcome::Error(error.into()));
    }

    /// Either.
    pub fn answer<E: Into<TaskError>>(self, result: Result<T::Output, E>) {
        self.slot.settle(outcome_of(result.map_err(Into::into)));
    }
}

impl<T> Deref for Reply<T> {
    type Target = Call;
    fn deref(&self) -> &Call {
        &self.call
    }
}

impl<T> fmt::Debug for Reply<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reply({:?})", self.call)
    }
}

/// What a handler of batches gets beside its items.
pub struct BatchCx<S = ()> {
    calls: Arc<[Arc<Call>]>,
    state: Arc<S>,
}

impl<S> BatchCx<S> {
    /// The application's state: what `App::state` made.
    pub fn state(&self) -> &S {
        &self.state
    }

    /// Enqueues further tasks.
    pub fn client(&self) -> &Client {
        self.calls[0].client()
    }

    /// The node that the batch runs on.
    pub fn node(&self) -> &NodeId {
        &self.calls[0].surroundings.node
    }

    /// The time by the engine's clock.
    pub fn now(&self) -> Timestamp {
        self.calls[0].now()
    }

    /// Why the whole batch should end now, when it should: the worker stops, the soft limit of one of its tasks has passed,
    /// or every task was cancelled or lost. Each item has a reason of its own.
    pub fn stop_reason(&self) -> Option<StopReason> {
        let mut every = self.calls.first()?.stop_reason();
        for call in self.calls.iter() {
            match call.stop_reason() {
                Some(reason @ (StopReason::SoftLimit | StopReason::Shutdown)) => return Some(reason),
                Some(StopReason::Cancelled | StopReason::LeaseLost) => {}
                None => every = None,
            }
        }
        every
    }

    /// Waits until the whole batch should end: see [`BatchCx::stop_reason`].
    pub async fn stopped(&self) -> StopReason {
        let mut asked: FuturesUnordered<_> = self.calls.iter().map(|call| call.stopped()).collect();
        loop {
            if let Some(reason) = self.stop_reason() {
                return reason;
            }
            // With the last of them every task has been asked to end, which is a reason.
            asked.next().await;
        }
    }
}

impl<S> Clone for BatchCx<S> {
    fn clone(&self) -> Self {
        Self { calls: Arc::clone(&self.calls), state: Arc::clone(&self.state) }
    }
}

impl<S> fmt::Debug for BatchCx<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchCx({} tasks)", self.calls.len())
    }
}

/// What a handler of batches may return: nothing, when it has answered through its items, or a list with the result of
/// each task, in the order of the batch.
///
/// What was answered through an item stays. A list of another length than the batch answers nothing: whose results they
/// are cannot be known.
pub trait BatchAnswer<T: Task>: Send + 'static {
    #[doc(hidden)]
    fn into_answers(self) -> Answers;
}

impl<T: Task> BatchAnswer<T> for () {
    fn into_answers(self) -> Answers {
        Answers(Kind::ByItem)
    }
}

impl<T: Task> BatchAnswer<T> for Vec<Result<T::Output, TaskError>> {
    fn into_answers(self) -> Answers {
        Answers(Kind::InOrder(self.into_iter().map(outcome_of).collect()))
    }
}

/// What a handler returned, whatever its tasks are.
#[doc(hidden)]
#[derive(Debug)]
pub struct Answers(Kind);

#[derive(Debug)]
enum Kind {
    ByItem,
    InOrder(Vec<Outcome>),
}

fn answers<T: Task, A: BatchAnswer<T>>(result: Result<A, TaskError>) -> Result<Answers, Outcome> {
    result.map(BatchAnswer::into_answers).map_err(Outcome::Error)
}
