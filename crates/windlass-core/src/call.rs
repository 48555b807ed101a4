//! One attempt as the handler and the middleware see it: [`Call`] is the data, [`Cx`] adds the application's state.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::backend::{Claim, Receipt};
use crate::client::Client;
use crate::envelope::Envelope;
use crate::error::cut;
use crate::view::{PROGRESS_TEXT_BYTES_MAX, Progress};
use crate::{Clock, NodeId, TaskId, Timestamp};

/// What every attempt on a node shares.
#[derive(Debug)]
pub struct Surroundings {
    /// The node.
    pub node: NodeId,
    /// For tasks that enqueue tasks.
    pub client: Client,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
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
        *self.progress.lock() = Some(Progress { done, total, text: cut(text, PROGRESS_TEXT_BYTES_MAX) });
    }

    /// The newest report that has not been taken yet.
    pub(crate) fn take_progress(&self) -> Option<Progress> {
        self.progress.lock().take()
    }

    /// Why the handler should end now, when it should.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.stop.asked()
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
        loop {
            let told = self.stop.told.notified();
            if let Some(reason) = self.stop.asked() {
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
