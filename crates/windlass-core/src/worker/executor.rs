//! Runs one claimed task to a verdict.
//!
//! 1. find the handler   2. arm the soft and the hard limit   3. run the middleware chain and the handler
//! 4. catch a panic   5. ask `retry::decide` and `flow::follow`
//!
//! Never talks to the store: the dispatcher settles. So everything here can be tested without one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use crate::call::{Call, StopReason};
use crate::envelope::RESULT_BYTES_MAX;
use crate::error::TaskError;
use crate::flow::{self, Follow};
use crate::middleware::Next;
use crate::registry::{Entry, Registry, panic_text};
use crate::retry::{self, Attempt, Outcome, RetryPolicy};
use crate::state::Verdict;
use crate::task::{Definition, HARD_LIMIT_DEFAULT};

/// A batch that has taken this long hands over what it has and lets others have the thread.
const INLINE_MAX: Duration = Duration::from_micros(200);

/// An attempt that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) call: Arc<Call>,
    pub(crate) verdict: Verdict,
    pub(crate) follow: Follow,
    pub(crate) ran: Duration,
}

/// Where executors leave what has ended, and the dispatcher finds it.
#[derive(Debug, Default)]
pub(crate) struct Done {
    finished: Mutex<Vec<Finished>>,
    arrived: Notify,
}

impl Done {
    fn add(&self, finished: impl IntoIterator<Item = Finished>) {
        self.finished.lock().extend(finished);
        self.arrived.notify_one();
    }

    /// Waits for something to end and takes everything that has.
    pub(crate) async fn take(&self) -> Vec<Finished> {
        loop {
            let finished = std::mem::take(&mut *self.finished.lock());
            if !finished.is_empty() {
                return finished;
            }
            self.arrived.notified().await;
        }
    }
}

/// Starts a batch. Two threads share it, so that a handler that blocks one of them holds up nobody else.
pub(crate) fn start_batch(calls: Vec<Arc<Call>>, registry: Arc<Registry>, done: Arc<Done>, runtime: &Handle) {
    let shared = calls.len() > 1;
    let calls = Arc::new(Mutex::new(VecDeque::from(calls)));
    if shared {
        runtime.spawn(run_batch(Arc::clone(&calls), Arc::clone(&registry), Arc::clone(&done)));
    }
    runtime.spawn(run_batch(calls, registry, done));
}

/// Runs what is left of a batch. Handlers that return at once are done here, one after the other, on the thread that has
/// the batch; those that wait become tasks of their own.
async fn run_batch(calls: Arc<Mutex<VecDeque<Arc<Call>>>>, registry: Arc<Registry>, done: Arc<Done>) {
    let mut finished = Vec::new();
    let mut began = Instant::now();
    loop {
        // Not in the condition of the loop: the lock would be held while the handler runs.
        let Some(call) = calls.lock().pop_front() else { break };
        let mut attempt = Box::pin(run(call, Arc::clone(&registry)));
        match poll_fn(|context| Poll::Ready(attempt.as_mut().poll(context))).await {
            Poll::Ready(ended) => finished.push(ended),
            Poll::Pending => {
                let done = Arc::clone(&done);
                tokio::spawn(async move { done.add([attempt.await]) });
            }
        }
        // Handlers that compute must not keep the verdicts of those before them, nor their neighbours on this thread.
        if began.elapsed() > INLINE_MAX {
            done.add(finished.drain(..));
            tokio::task::yield_now().await;
            began = Instant::now();
        }
    }
    if !finished.is_empty() {
        done.add(finished);
    }
}

/// Runs one attempt: steps 8 to 11 of the main line.
pub(crate) async fn run(call: Arc<Call>, registry: Arc<Registry>) -> Finished {
    let started = Instant::now();
    let Some(entry) = registry.entry(&call.envelope.name) else {
        return decided(call, &RetryPolicy::default(), Outcome::Unknown, Duration::ZERO);
    };
    let outcome = if call.envelope.expires.is_some_and(|expires| expires <= call.now()) {
        Outcome::Expired
    } else {
        let (soft, hard) = limits(&call, entry.definition());
        let running = chain(Arc::clone(&call), Arc::clone(&registry));
        Limited { call: Arc::clone(&call), running, started, soft, hard, timer: None }.await
    };
    let policy = policy(&call, entry);
    decided(call, &policy, outcome, started.elapsed())
}

fn chain(call: Arc<Call>, registry: Arc<Registry>) -> BoxFuture<'static, Outcome> {
    async move {
        // It was there a moment ago, and registries do not change.
        let Some(entry) = registry.entry(&call.envelope.name) else { return Outcome::Unknown };
        Next::new(&call, &registry, entry).run().await
    }
    .boxed()
}

/// The soft and hard limit of an attempt.
pub(crate) fn limits(call: &Call, definition: &Definition) -> (Option<Duration>, Duration) {
    let options = &definition.options;
    let hard = call.envelope.hard_limit.unwrap_or(options.hard_limit);
    (call.envelope.soft_limit.or(options.soft_limit).filter(|soft| *soft < hard), hard)
}

/// The hard limit that the dispatcher enforces for handlers that block their thread.
pub(crate) fn hard_limit(call: &Call, registry: &Registry) -> Duration {
    registry.entry(&call.envelope.name).map_or(HARD_LIMIT_DEFAULT, |entry| limits(call, entry.definition()).1)
}

fn policy<'e>(call: &Call, entry: &'e Entry) -> std::borrow::Cow<'e, RetryPolicy> {
    let own = &entry.definition().options.retry;
    if call.envelope.retries.is_none() && call.envelope.backoff.is_none() {
        return std::borrow::Cow::Borrowed(own);
    }
    let mut policy = own.clone();
    if let Some(retries) = call.envelope.retries {
        policy.attempts_max = retries + 1;
    }
    if let Some(backoff) = &call.envelope.backoff {
        policy.backoff = backoff.clone();
    }
    std::borrow::Cow::Owned(policy)
}

/// What an outcome means for a task, when the dispatcher has to say it in place of the handler.
pub(crate) fn decide_for(call: Arc<Call>, registry: &Registry, outcome: Outcome, ran: Duration) -> Finished {
    match registry.entry(&call.envelope.name) {
        Some(entry) => {
            let policy = policy(&call, entry);
            decided(call, &policy, outcome, ran)
        }
        None => decided(call, &RetryPolicy::default(), outcome, ran),
    }
}

fn decided(call: Arc<Call>, policy: &RetryPolicy, outcome: Outcome, ran: Duration) -> Finished {
    let outcome = within_limits(not_committed(&call, as_asked(&call, outcome)));
    let now = call.now();
    let attempt = Attempt { number: call.attempt, enqueued_at: call.enqueued_at, now, dice: fastrand::f64() };
    let verdict = retry::decide(policy, attempt, outcome);
    let follow = flow::follow(&call.envelope, &verdict);
    Finished { call, verdict, follow, ran }
}

/// A handler that was asked to end and did not succeed has ended as it was asked to, whatever error it returned.
fn as_asked(call: &Call, outcome: Outcome) -> Outcome {
    match (call.stop.asked(), &outcome) {
        (Some(StopReason::Cancelled), Outcome::Error(_) | Outcome::TimedOut { .. }) => Outcome::Cancelled,
        (Some(StopReason::Shutdown), Outcome::Error(TaskError::Failed(_) | TaskError::Retry { .. })) => {
            Outcome::Released
        }
        _ => outcome,
    }
}

/// A handler that ends its task in a transaction of its own has ended it there, and nothing is left to be settled; this is
/// what is recorded when it has not. One that fails does not claim to have committed.
fn not_committed(call: &Call, outcome: Outcome) -> Outcome {
    if !matches!(outcome, Outcome::Done(_)) {
        call.forget_completion();
    }
    match &outcome {
        Outcome::Done(_) if call.completed_with().is_some() => Outcome::Error(
            TaskError::failed("the transaction that completes the task was not committed").class("not_committed"),
        ),
        _ => outcome,
    }
}

fn within_limits(outcome: Outcome) -> Outcome {
    match &outcome {
        Outcome::Done(result) if result.as_str().len() > RESULT_BYTES_MAX => {
            Outcome::Error(TaskError::fatal(format_args!(
                "the result takes {} bytes, the limit is {RESULT_BYTES_MAX}; store the data elsewhere and return a reference",
                result.as_str().len()
            )))
        }
        _ => outcome,
    }
}

/// A handler with its limits. At the soft limit it is asked to end, at the hard limit it is dropped; the dispatcher may
/// drop it earlier.
struct Limited {
    call: Arc<Call>,
    running: BoxFuture<'static, Outcome>,
    started: Instant,
    soft: Option<Duration>,
    hard: Duration,
    /// Only a handler that waits gets a timer.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Future for Limited {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let this = &mut *self;
        if let Some(outcome) = this.dropped() {
            return Poll::Ready(outcome);
        }
        this.call.stop.begin();
        match catch_unwind(AssertUnwindSafe(|| this.running.poll_unpin(context))) {
            Ok(Poll::Ready(outcome)) => return Poll::Ready(outcome),
            Ok(Poll::Pending) => {}
            Err(panic) => return Poll::Ready(Outcome::Panicked(panic_text(&*panic))),
        }
        // Registered before it is looked at again: a drop in between wakes this future.
        this.call.stop.register(context.waker());
        if let Some(outcome) = this.dropped() {
            return Poll::Ready(outcome);
        }
        loop {
            let limit = this.soft.unwrap_or(this.hard);
            let deadline = this.started + limit;
            let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
            match timer.as_mut().poll(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) if this.soft.take().is_some() => {
                    timer.as_mut().reset(this.started + this.hard);
                    this.call.stop.ask(StopReason::SoftLimit);
                }
                Poll::Ready(()) => return Poll::Ready(Outcome::TimedOut { limit: this.hard }),
            }
        }
    }
}

impl Limited {
    fn dropped(&self) -> Option<Outcome> {
        self.call.stop.dropped().map(|reason| match reason {
            StopReason::Cancelled => Outcome::Cancelled,
            StopReason::Shutdown | StopReason::LeaseLost => Outcome::Released,
            StopReason::SoftLimit => Outcome::TimedOut { limit: self.hard },
        })
    }
}
