//! One attempt as the handler and the middleware see it: [`Call`] is the data, [`Cx`] adds the application's state.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use tokio::sync::Notify;

use crate::backend::{Claim, Receipt, Settled};
use crate::client::Client;
use crate::envelope::{Envelope, RESULT_BYTES_MAX};
use crate::error::cut;
use crate::flow;
use crate::limit::{Gate, LimitChange};
use crate::names::NAME_BYTES_MAX;
use crate::steps::Steps;
use crate::view::{PROGRESS_TEXT_BYTES_MAX, Progress};
use crate::{Args, Clock, Feed, Json, NodeId, StoreError, TaskError, TaskId, TaskName, Timestamp, Verdict};

/// What every attempt on a node shares.
#[derive(Debug)]
pub struct Surroundings {
    /// The node.
    pub node: NodeId,
    /// For tasks that enqueue tasks.
    pub client: Client,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// For how long a lease is renewed.
    pub lease: Duration,
}

/// One attempt of one task.
pub struct Call {
    /// The task.
    pub envelope: Arc<Envelope>,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// When the task was pushed.
    pub enqueued_at: Timestamp,
    /// When this attempt could have started.
    pub ready_at: Timestamp,
    /// When it was claimed.
    pub started_at: Timestamp,
    /// The node that it runs on.
    pub surroundings: Arc<Surroundings>,
    pub(crate) receipt: Receipt,
    /// Where the dispatcher finds it.
    pub(crate) slot: usize,
    pub(crate) stop: Stop,
    progress: Mutex<Option<Progress>>,
    steps: Mutex<Steps>,
    /// What a transaction of the application completes the task with, once [`Call::completion`] was asked for.
    completion: Mutex<Option<Verdict>>,
    /// Shared with the blocking thread that runs the handler, as long as there is one.
    thread: Arc<()>,
    part: Option<Part>,
}

/// A run that is part of an attempt: another handler runs it.
struct Part {
    of: Arc<Call>,
    /// Which part: `3`, or `3.0` for a part of a part.
    place: String,
}

impl Call {
    pub(crate) fn new(claim: Claim, slot: usize, started_at: Timestamp, surroundings: Arc<Surroundings>) -> Self {
        Self {
            envelope: claim.envelope,
            attempt: claim.attempt,
            enqueued_at: claim.enqueued_at,
            ready_at: claim.ready_at,
            started_at,
            surroundings,
            receipt: claim.receipt,
            slot,
            stop: Stop::default(),
            progress: Mutex::new(None),
            steps: Mutex::new(Steps::of(&claim.memo)),
            completion: Mutex::new(None),
            thread: Arc::new(()),
            part: None,
        }
    }

    /// The run of another handler within this attempt: with a name, arguments and an id of its own. What stops the attempt
    /// stops it too.
    pub(crate) fn part(self: &Arc<Self>, number: usize, name: TaskName, args: Args) -> Self {
        let (of, place) = match &self.part {
            None => (Arc::clone(self), number.to_string()),
            Some(part) => (Arc::clone(&part.of), format!("{}.{number}", part.place)),
        };
        let envelope = Envelope {
            id: part_id(&of.envelope.id, &place),
            name,
            args,
            feed: Feed::Nothing,
            input: None,
            soft_limit: None,
            hard_limit: None,
            ..Envelope::clone(&self.envelope)
        };
        Self {
            envelope: Arc::new(envelope),
            attempt: self.attempt,
            enqueued_at: self.enqueued_at,
            ready_at: self.ready_at,
            started_at: self.started_at,
            surroundings: Arc::clone(&self.surroundings),
            receipt: self.receipt.clone(),
            slot: self.slot,
            stop: Stop::default(),
            progress: Mutex::default(),
            steps: Mutex::default(),
            completion: Mutex::default(),
            thread: Arc::clone(&self.thread),
            part: Some(Part { of, place }),
        }
    }

    /// The attempt itself: this one, or the one that this run is a part of.
    fn whole(&self) -> &Self {
        self.part.as_ref().map_or(self, |part| &part.of)
    }

    /// What this attempt remembers.
    pub(crate) fn steps(&self) -> MutexGuard<'_, Steps> {
        self.whole().steps.lock()
    }

    /// The name under which the attempt remembers a step of this run.
    pub(crate) fn step_name(&self, step: &str) -> String {
        match &self.part {
            None => step.to_owned(),
            Some(part) => format!("{} {step}", part.place),
        }
    }

    /// The task's id; also the key to hand to services that take an idempotency key, because it is the same for every
    /// attempt.
    pub fn id(&self) -> &TaskId {
        &self.envelope.id
    }

    /// A header of the envelope.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.envelope.headers.get(name).map(String::as_str)
    }

    /// Enqueues further tasks.
    pub fn client(&self) -> &Client {
        &self.surroundings.client
    }

    /// The time by the engine's clock.
    pub fn now(&self) -> Timestamp {
        self.surroundings.clock.now()
    }

    /// Reports how far the handler is; the newest report is stored with the next renewal of the lease.
    pub fn progress(&self, done: u64, total: Option<u64>, text: &str) {
        *self.whole().progress.lock() = Some(Progress { done, total, text: cut(text, PROGRESS_TEXT_BYTES_MAX) });
    }

    /// The newest report that has not been taken yet.
    pub(crate) fn take_progress(&self) -> Option<Progress> {
        self.progress.lock().take()
    }

    /// Holds a gate shut for a time: what a handler does when a service answers "retry after". Every worker heeds it from its
    /// next claim on; the task itself should end with [`TaskError::Throttled`].
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn hold(&self, gate: Gate, time: Duration) -> Result<(), StoreError> {
        self.client().backend().limit(&LimitChange::Hold { gate, time }).await.map(drop)
    }

    /// The settle that ends this attempt with this output, for `complete_in` of the stores: the application applies it in a
    /// transaction of its own, together with the effects of the task, commits, and returns the same output.
    ///
    /// From here on the handler's `Ok` does not end the task: the transaction does. When it was not committed, the attempt has
    /// failed.
    ///
    /// # Errors
    /// [`TaskError::Fatal`] when the output cannot be stored, or when this run is only a part of an attempt.
    pub fn completion<T: Serialize>(&self, output: &T) -> Result<Settled, TaskError> {
        if self.part.is_some() {
            return Err(TaskError::fatal("the attempt of another task runs this one: it cannot end that task"));
        }
        let result =
            Json::of(output).map_err(|error| TaskError::fatal(format_args!("the result cannot be stored: {error}")))?;
        if result.as_str().len() > RESULT_BYTES_MAX {
            return Err(TaskError::fatal(format_args!("the result takes more than {RESULT_BYTES_MAX} bytes")));
        }
        let verdict = Verdict::Succeeded { result, skipped: None };
        *self.completion.lock() = Some(verdict.clone());
        let follow = flow::follow(&self.envelope, &verdict);
        Ok(Settled { receipt: self.receipt.clone(), verdict, follow })
    }

    /// The transaction of the application was not committed, by the word of its handler.
    pub(crate) fn forget_completion(&self) {
        *self.completion.lock() = None;
    }

    /// The verdict that a transaction of the application may have recorded.
    pub(crate) fn completed_with(&self) -> Option<Verdict> {
        self.completion.lock().clone()
    }

    /// To be held by the blocking thread that runs the handler.
    pub(crate) fn takes_thread(&self) -> Arc<()> {
        Arc::clone(&self.thread)
    }

    /// Whether a blocking thread runs the handler, or is about to.
    pub(crate) fn has_thread(&self) -> bool {
        Arc::strong_count(&self.thread) > 1
    }

    /// Why the handler should end now, when it should.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.whole().stop.asked()
    }

    /// Waits until the handler should end. Handlers that run for long watch it, save what they have and return.
    ///
    /// ```
    /// # use windlass_core::{call::Cx, TaskError};
    /// # async fn work(cx: &Cx<()>) {}
    /// async fn handler(cx: Cx<()>) -> Result<(), TaskError> {
    ///     tokio::select! {
    ///         () = work(&cx) => Ok(()),
    ///         reason = cx.stopped() => Err(TaskError::failed(format_args!("stopped early: {reason}"))),
    ///     }
    /// }
    /// ```
    pub async fn stopped(&self) -> StopReason {
        let stop = &self.whole().stop;
        loop {
            let told = stop.told.notified();
            if let Some(reason) = stop.asked() {
                return reason;
            }
            told.await;
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Call({} {} #{})", self.envelope.name, self.envelope.id, self.attempt)
    }
}

/// The id of a part of an attempt: the same for every attempt. Of one that is too long, the end is kept.
fn part_id(whole: &TaskId, place: &str) -> TaskId {
    let text = format!("{whole}.{place}");
    // Ids are ASCII.
    TaskId::new(&text[text.len().saturating_sub(NAME_BYTES_MAX)..]).unwrap_or_else(|_| whole.clone())
}

/// Why a handler should end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// Its soft limit has passed.
    SoftLimit,
    /// Somebody cancelled the task.
    Cancelled,
    /// The worker is stopping; the task runs again elsewhere.
    Shutdown,
    /// The lease was lost: the task belongs to another node, nothing that this attempt does counts.
    LeaseLost,
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SoftLimit => "the soft limit has passed",
            Self::Cancelled => "the task was cancelled",
            Self::Shutdown => "the worker is stopping",
            Self::LeaseLost => "the lease was lost",
        })
    }
}

/// How the dispatcher reaches a running attempt: first it asks, then it drops.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    asked: AtomicU8,
    dropped: AtomicU8,
    begun: AtomicBool,
    told: Notify,
    runner: AtomicWaker,
}

impl Stop {
    /// Asks the handler to end; the first reason stays.
    pub(crate) fn ask(&self, reason: StopReason) {
        if self.asked.compare_exchange(0, code(reason), Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.told.notify_waiters();
        }
    }

    /// Ends the attempt where it stands: its future is dropped at its next await.
    pub(crate) fn drop_now(&self, reason: StopReason) {
        self.ask(reason);
        self.dropped.store(code(reason), Ordering::Release);
        self.runner.wake();
    }

    /// The handler has had a thread for the first time.
    pub(crate) fn begin(&self) {
        self.begun.store(true, Ordering::Release);
    }

    /// Whether it ever had one: it has not when others have kept every thread since it was claimed.
    pub(crate) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    pub(crate) fn asked(&self) -> Option<StopReason> {
        reason(self.asked.load(Ordering::Acquire))
    }

    pub(crate) fn dropped(&self) -> Option<StopReason> {
        reason(self.dropped.load(Ordering::Acquire))
    }

    /// The waker to be woken by [`Stop::drop_now`].
    pub(crate) fn register(&self, waker: &std::task::Waker) {
        self.runner.register(waker);
    }
}

const fn code(reason: StopReason) -> u8 {
    match reason {
        StopReason::SoftLimit => 1,
        StopReason::Cancelled => 2,
        StopReason::Shutdown => 3,
        StopReason::LeaseLost => 4,
    }
}

const fn reason(code: u8) -> Option<StopReason> {
    match code {
        1 => Some(StopReason::SoftLimit),
        2 => Some(StopReason::Cancelled),
        3 => Some(StopReason::Shutdown),
        4 => Some(StopReason::LeaseLost),
        _ => None,
    }
}

/// What a handler gets beside its task: the attempt (by deref) and the application's state.
pub struct Cx<S = ()> {
    call: Arc<Call>,
    state: Arc<S>,
}

impl<S> Cx<S> {
    pub(crate) fn new(call: Arc<Call>, state: Arc<S>) -> Self {
        Self { call, state }
    }

    /// The application's state: what `App::state` made.
    pub fn state(&self) -> &S {
        &self.state
    }
}

impl<S> Deref for Cx<S> {
    type Target = Call;
    fn deref(&self) -> &Call {
        &self.call
    }
}

impl<S> Clone for Cx<S> {
    fn clone(&self) -> Self {
        Self { call: Arc::clone(&self.call), state: Arc::clone(&self.state) }
    }
}

impl<S> fmt::Debug for Cx<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.call.fmt(f)
    }
}
