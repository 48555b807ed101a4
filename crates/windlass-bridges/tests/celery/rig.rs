//! A Redis server, a worker behind a bridge, and a producer that writes what Celery's clients write.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use windlass_bridges::celery::{Celery, Options, ResultPlace, with_builtins};
use windlass_core::bridge::{Bridge, Transport};
use windlass_core::view::{Filter, Page, Record};
use windlass_core::worker::{Settings, Shutdown, ShutdownStep, Worker};
use windlass_core::{App, Backend, Cx, Json, NodeId, QueueName, SystemClock, Task, TaskError, Timestamp};
use windlass_memory::MemoryStore;
use windlass_redis::foreign::{Channels, Command, Line, Reply};
use windlass_servers::{Aof, Redis};
use windlass_wire::celery::{Message, Request, ResultDocument, Sending};
use windlass_wire::kombu;

pub(crate) const NODE: &str = "celery@test";
/// Nothing here takes as long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// What has a handler here.
const TASKS: [&str; 8] = ["add", "sum", "fail", "flaky", "busy", "endless", "celery.map", "celery.starmap"];

/// Adds two numbers.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "add", output = i64, retries = 0)]
struct Add {
    x: i64,
    y: i64,
}

/// Adds many.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "sum", output = i64, retries = 0)]
struct Sum {
    xs: Vec<i64>,
}

/// Gives up.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "fail", output = i64, retries = 0)]
struct Fail {
    message: String,
}

/// Fails at its first attempt.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "flaky", output = u32, retries = 3)]
struct Flaky {}

/// Is throttled by its second call in this process, and answers the number of the call.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "busy", output = u32, retries = 0)]
struct Busy {
    item: u32,
}

/// Runs until it is stopped.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "endless", output = (), retries = 0)]
struct Endless {}

fn app() -> App {
    async fn add(task: Add, _cx: Cx) -> Result<i64, TaskError> {
        Ok(task.x + task.y)
    }
    async fn sum(task: Sum, _cx: Cx) -> Result<i64, TaskError> {
        Ok(task.xs.iter().sum())
    }
    async fn fail(task: Fail, _cx: Cx) -> Result<i64, TaskError> {
        Err(TaskError::fatal(task.message).class("ValueError"))
    }
    async fn flaky(_task: Flaky, cx: Cx) -> Result<u32, TaskError> {
        if cx.attempt == 1 {
            return Err(TaskError::retry_after(Duration::from_millis(10), "not yet").class("RuntimeError"));
        }
        Ok(cx.attempt)
    }
    async fn busy(_task: Busy, _cx: Cx) -> Result<u32, TaskError> {
        static CALLS: AtomicU32 = AtomicU32::new(0);
        match CALLS.fetch_add(1, Ordering::SeqCst) + 1 {
            2 => Err(TaskError::Throttled { after: Duration::from_millis(10) }),
            call => Ok(call),
        }
    }
    async fn endless(_task: Endless, cx: Cx) -> Result<(), TaskError> {
        cx.stopped().await;
        Err(TaskError::failed("stopped"))
    }
    App::new("test").task(add).task(sum).task(fail).task(flaky).task(busy).task(endless)
}

pub(crate) struct Rig {
    _server: Redis,
    pub(crate) url: String,
    pub(crate) line: Arc<Line>,
    pub(crate) store: MemoryStore,
    heard: tokio::sync::Mutex<Channels>,
}

/// A worker that runs until it is dropped or ended.
pub(crate) struct Working {
    shutdown: Shutdown,
    ended: tokio::task::JoinHandle<()>,
}

impl Working {
    pub(crate) async fn end(self) {
        self.shutdown.begin(ShutdownStep::Graceful);
        self.ended.await.expect("it ends in order");
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended.is_finished()
    }
}

/// What a producer says of a task besides its name and arguments.
pub(crate) fn message(task: &str, id: &str, args: Value) -> Message {
    let args = Json::parse(&args.to_string()).expect("JSON");
    Message { args, kwargs: Json::trusted("{}"), request: Request::new(task, id) }
}

impl Rig {
    pub(crate) async fn new() -> Self {
        let server = Redis::start(Aof::EverySec).expect("a server");
        let url = server.url().clone();
        let line = Arc::new(Line::to(url.parse().expect("a URL")));
        let channels = Channels::listen(Arc::clone(&line), vec!["*celery-task-meta-*".to_owned()]);
        let rig = Self {
            _server: server,
            url,
            line,
            store: MemoryStore::new(Arc::new(SystemClock)),
            heard: tokio::sync::Mutex::new(channels),
        };
        // Listening has begun when something published is heard.
        loop {
            rig.ask(&["PUBLISH", "celery-task-meta-", "{}"]).await;
            let mut heard = rig.heard.lock().await;
            if tokio::time::timeout(Duration::from_millis(50), heard.next()).await.is_ok() {
                break;
            }
        }
        rig
    }

    pub(crate) fn options(&self) -> Options {
        Options {
            registered: TASKS.map(ToOwned::to_owned).to_vec(),
            results: ResultPlace::Redis(self.url.parse().expect("a URL")),
            visibility: Duration::from_secs(1),
            ..Options::new(NODE)
        }
    }

    pub(crate) async fn celery(&self, options: Options) -> Celery {
        let store: Arc<dyn Backend> = Arc::new(self.store.clone());
        Celery::on_redis(self.url.parse().expect("a URL"), options, store).await.expect("opened")
    }

    pub(crate) async fn work(&self) -> Working {
        self.work_with(self.options()).await
    }

    pub(crate) async fn work_with(&self, options: Options) -> Working {
        let celery = self.celery(options).await;
        self.work_on(Arc::new(celery)).await
    }

    pub(crate) async fn work_on(&self, transport: Arc<dyn Transport>) -> Working {
        self.work_on_queue(transport, &QueueName::known("celery")).await
    }

    pub(crate) async fn work_on_queue(&self, transport: Arc<dyn Transport>, queue: &QueueName) -> Working {
        self.work_as(NODE, transport, queue).await
    }

    pub(crate) async fn work_as(&self, node: &str, transport: Arc<dyn Transport>, queue: &QueueName) -> Working {
        let bridge: Arc<dyn Backend> = Arc::new(Bridge::new(Arc::new(self.store.clone()), transport));
        let mut settings = Settings::new(NodeId::known(node));
        settings.queues = vec![(queue.clone(), 1)];
        settings.cancel_grace = Duration::from_millis(100);
        let registry = with_builtins(app().build().await.expect("declared well"));
        let worker = Worker::new(bridge, registry, settings);
        let shutdown = Shutdown::new();
        let run = worker.start(shutdown.clone());
        let ended = tokio::spawn(async move {
            run.await.expect("a thread");
        });
        Working { shutdown, ended }
    }

    pub(crate) async fn ask(&self, words: &[&str]) -> Reply {
        let command: Command = words.iter().map(|word| word.as_bytes().to_vec()).collect();
        self.line.ask(&command).await.expect("an answer")
    }

    pub(crate) async fn texts(&self, words: &[&str]) -> Vec<String> {
        let list = self.ask(words).await.list();
        list.into_iter().filter_map(|item| String::from_utf8(item.bytes()?).ok()).collect()
    }

    /// The element that a client pushes for a message.
    pub(crate) fn element(message: &Message, queue: &str) -> String {
        let tag = windlass_core::TaskId::random().to_string();
        let now = Timestamp::from_secs(1_800_000_000);
        let sending = Sending { exchange: "", routing_key: queue, delivery_tag: Some(&tag), now };
        kombu::encode(&message.frame(&sending))
    }

    /// Sends as a client does.
    pub(crate) async fn send(&self, message: &Message) {
        self.ask(&["LPUSH", "celery", &Self::element(message, "celery")]).await;
    }

    /// Waits until the task has this state, as a client that has subscribed.
    pub(crate) async fn until(&self, id: &str, state: &str) -> ResultDocument {
        self.until_under("", id, state).await
    }

    /// The same with a prefix in front of the key.
    pub(crate) async fn until_under(&self, prefix: &str, id: &str, state: &str) -> ResultDocument {
        let key = windlass_wire::celery::result::key(prefix, id);
        let mut heard = self.heard.lock().await;
        let wait = async {
            loop {
                if let Some(bytes) = self.ask(&["GET", &key]).await.bytes() {
                    let document = ResultDocument::decode(&bytes).expect("a document");
                    if document.status.as_str() == state {
                        return document;
                    }
                }
                heard.next().await.expect("it listens");
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("`{id}` never becomes {state}"))
    }

    pub(crate) async fn records(&self) -> Vec<Record> {
        self.store.list(&Filter::all(), &Page::first(1_000)).await.expect("listed").tasks
    }

    /// Waits until something is so; asked again when a result was published, or after a moment.
    pub(crate) async fn until_so(&self, what: &str, is_so: impl AsyncFn() -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !is_so().await {
            assert!(tokio::time::Instant::now() < deadline, "{what}");
            // tidy: allow(sleep): the other end is a server that tells nobody
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) fn signature(task: &str, id: &str, args: Value) -> windlass_wire::celery::Signature {
    let args = Json::parse(&args.to_string()).expect("JSON");
    windlass_wire::celery::Signature::new(task).with_args(args).expect("an array").option("task_id", json!(id))
}
