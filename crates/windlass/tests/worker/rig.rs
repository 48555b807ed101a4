//! A store, a client, and workers that the tests start.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use windlass::backend::Backend;
use windlass::prelude::*;
use windlass::view::Record;
use windlass::worker::Ended;
use windlass::{ConnectOptions, Location, Registry, State, TaskId, Timestamp};
use windlass_testkit::TestClock;

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// Does what its arguments say.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(name = "act", retries = 3, backoff = "10s", jitter = 0.0, soft_limit = "30s", hard_limit = "1m", output = u64, input = "before")]
pub(crate) struct Act {
    pub(crate) what: What,
    #[serde(default)]
    pub(crate) before: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum What {
    Return(u64),
    Panic,
    Fail,
    Hang,
    HangUntilAsked,
    Snooze,
    Skip,
    Work(Duration),
    Report,
}

pub(crate) fn act(what: What) -> Act {
    Act { what, before: 0 }
}

pub(crate) async fn handle(task: Act, cx: Cx) -> Result<u64, TaskError> {
    match task.what {
        What::Return(value) => Ok(task.before + value),
        What::Panic => panic!("scripted"),
        What::Fail => Err(TaskError::failed("scripted").class("scripted")),
        What::Hang => std::future::pending().await,
        What::HangUntilAsked => Err(TaskError::failed(cx.stopped().await)),
        What::Snooze if cx.now().since(cx.enqueued_at) < MINUTE => Err(TaskError::Snooze { after: MINUTE }),
        What::Snooze => Ok(u64::from(cx.attempt)),
        What::Skip => Err(TaskError::Skipped { reason: "nothing to do".into() }),
        What::Work(length) => {
            // tidy: allow(sleep): the work of a handler, in simulated time
            tokio::time::sleep(length).await;
            Ok(1)
        }
        What::Report => {
            cx.progress(3, Some(10), "third of ten");
            // tidy: allow(sleep): the work of a handler, in simulated time
            tokio::time::sleep(MINUTE / 3).await;
            Ok(3)
        }
    }
}

pub(crate) fn app() -> App {
    App::new("test").task(handle)
}

pub(crate) struct Rig {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) client: Client,
    pub(crate) clock: TestClock,
}

pub(crate) struct Running {
    pub(crate) shutdown: Shutdown,
    pub(crate) ended: JoinHandle<Ended>,
}

impl Rig {
    /// A store whose time goes as fast as the paused time of the runtime.
    pub(crate) async fn new() -> Self {
        let clock = TestClock::at(Timestamp::from_secs(1_800_000_000));
        clock.go();
        let options = ConnectOptions { clock: Arc::new(clock.clone()), ..ConnectOptions::default() };
        let backend = windlass::connect_with(&Location::Memory, options).await.unwrap();
        let client = Client::with(backend.clone(), Arc::new(clock.clone()), Arc::from([]), MINUTE);
        Self { backend, client, clock }
    }

    pub(crate) async fn worker(&self) -> Running {
        self.worker_of("w1", app(), |_| {}).await
    }

    pub(crate) async fn worker_of<S: Send + Sync + 'static>(
        &self,
        node: &str,
        app: App<S>,
        change: impl FnOnce(&mut Settings),
    ) -> Running {
        self.worker_over(self.backend.clone(), node, app, change).await
    }

    pub(crate) async fn worker_over<S: Send + Sync + 'static>(
        &self,
        backend: Arc<dyn Backend>,
        node: &str,
        app: App<S>,
        change: impl FnOnce(&mut Settings),
    ) -> Running {
        self.worker_with(backend, node, app.build().await.unwrap(), change)
    }

    pub(crate) fn worker_with(
        &self,
        backend: Arc<dyn Backend>,
        node: &str,
        registry: Registry,
        change: impl FnOnce(&mut Settings),
    ) -> Running {
        let mut settings = Settings::new(NodeId::known(node));
        settings.slots = 4;
        change(&mut settings);
        let shutdown = Shutdown::new();
        let worker = Worker::new(backend, registry, settings).clock(Arc::new(self.clock.clone()));
        let ended = tokio::spawn(worker.run(shutdown.clone()));
        Running { shutdown, ended }
    }

    pub(crate) async fn record(&self, id: &TaskId) -> Record {
        self.client.find(id).await.unwrap().expect("the task is known")
    }

    /// Waits until a task is in a state; time passes as nothing else has to happen.
    pub(crate) async fn until(&self, id: &TaskId, state: State) -> Record {
        self.until_record(id, |record| record.state == state).await
    }

    pub(crate) async fn until_record(&self, id: &TaskId, is_so: impl Fn(&Record) -> bool) -> Record {
        let mut pause = Duration::from_millis(10);
        for _ in 0..3_000 {
            let record = self.record(id).await;
            if is_so(&record) {
                return record;
            }
            // tidy: allow(sleep): simulated time, which passes only when every task waits
            tokio::time::sleep(pause).await;
            pause = (pause + pause / 50).min(Duration::from_secs(5));
        }
        panic!("it never happened: {:?}", self.record(id).await);
    }
}

impl Running {
    pub(crate) async fn stop(self) -> Ended {
        self.shutdown.begin(ShutdownStep::Graceful);
        tokio::time::timeout(MINUTE * 2, self.ended).await.expect("it ends in time").unwrap()
    }
}
