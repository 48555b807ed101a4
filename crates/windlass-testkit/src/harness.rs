//! An application under test: the real worker over a store in memory, in simulated time.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use windlass_core::event::{Event, Listener};
use windlass_core::registry::BuildError;
use windlass_core::state::Verdict;
use windlass_core::view::Record;
use windlass_core::worker::{Schedules, Settings, Shutdown, ShutdownStep, Worker};
use windlass_core::{App, Client, Clock, NodeId, Task, TaskId, Timestamp, WaitError};
use windlass_memory::MemoryStore;

use crate::TestClock;

/// When the time of a [`TestApp`] begins unless the test says otherwise: 15 January 2027, 08:00 UTC, a Friday.
pub const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// How much simulated time a task may take to end: more than the default retries of a task take together.
pub const RUN_MAX: Duration = Duration::from_secs(3 * 86_400);

/// An application under test: its tasks run as in production, over a store in memory.
///
/// In a runtime whose time is paused (`#[tokio::test(start_paused = true)]`, with the feature `test-util` of tokio) time
/// passes only when everything waits, and then at once: a retry an hour later, a time limit or a schedule takes no time,
/// and every run is the same.
///
/// ```
/// # extern crate windlass_core as windlass;
/// use serde::{Deserialize, Serialize};
/// use windlass::{App, Cx, Task, TaskError};
/// use windlass_testkit::TestApp;
///
/// #[derive(Task, Serialize, Deserialize)]
/// #[task(retries = 1, backoff = "1h", jitter = 0.0, output = u32)]
/// struct Double { number: u32 }
///
/// async fn double(task: Double, cx: Cx) -> Result<u32, TaskError> {
///     if cx.attempt == 1 { Err(TaskError::failed("not yet")) } else { Ok(2 * task.number) }
/// }
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let app = TestApp::start(App::new("numbers").task(double)).await?;
/// assert_eq!(app.output(Double { number: 21 }).await?, 42);
/// # Ok(()) }
/// ```
pub struct TestApp {
    client: Client,
    clock: TestClock,
    verdicts: Verdicts,
    shutdown: Shutdown,
}

impl TestApp {
    /// Starts a worker of this application with all of its queues and schedules, at [`START`].
    ///
    /// # Errors
    /// [`BuildError`], as a worker in production.
    pub async fn start<S: Send + Sync + 'static>(app: App<S>) -> Result<Self, BuildError> {
        Self::start_at(app, START).await
    }

    /// As [`TestApp::start`], at another time.
    ///
    /// # Errors
    /// [`BuildError`], as a worker in production.
    pub async fn start_at<S: Send + Sync + 'static>(app: App<S>, now: Timestamp) -> Result<Self, BuildError> {
        let clock = TestClock::at(now);
        clock.go();
        let store = Arc::new(MemoryStore::new(Arc::new(clock.clone())));
        let mut settings = Settings::new(NodeId::known("test"));
        settings.schedules = Schedules::Fire;
        settings.seed = 0;
        for definition in app.definitions() {
            let queue = &definition.options.queue;
            if settings.queues.iter().all(|(known, _)| known != queue) {
                settings.queues.push((queue.clone(), 1));
            }
        }
        let registry = app.build().await?;
        let middleware = Arc::clone(registry.middleware());
        let client = Client::with(store.clone(), Arc::new(clock.clone()), middleware, RUN_MAX);
        let (verdicts, shutdown) = (Verdicts::default(), Shutdown::new());
        let worker = Worker::new(store, registry, settings).clock(Arc::new(clock.clone())).listener(verdicts.clone());
        tokio::spawn(worker.run(shutdown.clone()));
        Ok(Self { client, clock, verdicts, shutdown })
    }

    /// A client of the store: for delays, workflows, cancellations, and for looking around.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Lets this much time pass, and everything happen that falls into it.
    pub async fn advance(&self, by: Duration) {
        tokio::time::sleep(by).await;
    }

    /// Runs the first attempt of a task; what the engine made of its outcome.
    ///
    /// # Panics
    /// When the task cannot be enqueued, or the attempt does not end within [`RUN_MAX`].
    pub async fn attempt<T: Task>(&self, task: T) -> Verdict {
        let name = T::NAME;
        let id = self.client.enqueue(task).await.unwrap_or_else(|error| panic!("`{name}` is not enqueued: {error}")).id;
        let verdict = tokio::time::timeout(RUN_MAX, self.verdicts.first(&id)).await;
        verdict.unwrap_or_else(|_| panic!("no attempt of `{name}` has ended within {RUN_MAX:?}"))
    }

    /// Runs a task to its end, with its retries; what the store knows of it then.
    ///
    /// # Panics
    /// When the task cannot be enqueued, or does not end within [`RUN_MAX`].
    pub async fn run<T: Task>(&self, task: T) -> Record {
        let name = T::NAME;
        let handle =
            self.client.enqueue(task).await.unwrap_or_else(|error| panic!("`{name}` is not enqueued: {error}"));
        handle.ended(RUN_MAX).await.unwrap_or_else(|error| panic!("`{name}`: {error}"))
    }

    /// Runs a task to its end, with its retries; what it returned.
    ///
    /// # Errors
    /// [`WaitError`], when it gave up or returned nothing.
    /// # Panics
    /// When the task cannot be enqueued.
    pub async fn output<T: Task>(&self, task: T) -> Result<T::Output, WaitError> {
        let name = T::NAME;
        let handle =
            self.client.enqueue(task).await.unwrap_or_else(|error| panic!("`{name}` is not enqueued: {error}"));
        handle.output(RUN_MAX).await
    }
}

impl Drop for TestApp {
    /// Stops the worker.
    fn drop(&mut self) {
        self.shutdown.begin(ShutdownStep::Immediate);
    }
}

impl fmt::Debug for TestApp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestApp").field("clock", &self.clock).finish_non_exhaustive()
    }
}

/// The first verdict on each task.
#[derive(Clone, Default)]
struct Verdicts(Arc<(Mutex<HashMap<TaskId, Verdict>>, Notify)>);

impl Verdicts {
    async fn first(&self, id: &TaskId) -> Verdict {
        let (verdicts, arrived) = &*self.0;
        loop {
            let mut more = std::pin::pin!(arrived.notified());
            more.as_mut().enable();
            if let Some(verdict) = verdicts.lock().get(id) {
                return verdict.clone();
            }
            more.await;
        }
    }
}

impl Listener for Verdicts {
    fn on_event(&self, event: &Event) {
        if let Event::Settled { call, verdict, .. } = event {
            self.0.0.lock().entry(call.id().clone()).or_insert_with(|| verdict.clone());
            self.0.1.notify_waiters();
        }
    }
}
