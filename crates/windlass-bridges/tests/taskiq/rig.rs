//! A Redis server with what Python's clients do to it, nodes with a bridge to it, and their application.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use windlass_bridges::taskiq::{self, Options, ResultOptions, Results};
use windlass_core::bridge::{Bridge, Transport};
use windlass_core::view::{Filter, Page, Record};
use windlass_core::worker::{Ended, ShutdownStep};
use windlass_core::{
    App, Backend, Cx, NodeId, QueueName, Settings, Shutdown, State, SystemClock, Task, TaskError, Worker,
};
use windlass_memory::MemoryStore;
use windlass_redis::Location;
use windlass_redis::foreign::{Command, Line, Reply};
use windlass_servers::{Aof, Redis};
use windlass_wire::taskiq::TaskResult;

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Who is dead loses its tasks soon.
const LEASE: Duration = Duration::from_secs(5);

#[derive(Task, Serialize, Deserialize)]
#[task(name = "interop.add", output = i64)]
struct Add {
    x: i64,
    y: i64,
}

async fn add(task: Add, _cx: Cx) -> Result<i64, TaskError> {
    Ok(task.x + task.y)
}

#[derive(Task, Serialize, Deserialize)]
#[task(name = "interop.echo", output = Value)]
struct Echo {
    value: Value,
    #[serde(default)]
    k: Value,
}

async fn echo(task: Echo, _cx: Cx) -> Result<Value, TaskError> {
    Ok(if task.k.is_null() { task.value } else { serde_json::json!([task.value, task.k]) })
}

#[derive(Task, Serialize, Deserialize)]
#[task(name = "interop.fail", retries = 0)]
struct Fail {
    message: String,
    #[serde(default)]
    class: Option<String>,
}

async fn fail(task: Fail, _cx: Cx) -> Result<(), TaskError> {
    let class = task.class.as_deref().unwrap_or("ValueError");
    Err(TaskError::failed(task.message).class(class))
}

#[derive(Task, Serialize, Deserialize)]
#[task(name = "interop.flaky", retries = 0, backoff = "1ms", jitter = 0.0, output = Value)]
struct Flaky {
    key: String,
    fails: u32,
}

async fn flaky(task: Flaky, cx: Cx) -> Result<Value, TaskError> {
    if cx.attempt <= task.fails {
        return Err(TaskError::failed(format_args!("flaky {}", task.key)).class("RuntimeError"));
    }
    Ok(serde_json::json!({ "key": task.key, "attempts": cx.attempt }))
}

#[derive(Task, Serialize, Deserialize)]
#[task(name = "interop.sleep", retries = 0)]
struct Sleep {
    seconds: f64,
}

async fn sleep(task: Sleep, _cx: Cx) -> Result<(), TaskError> {
    // tidy: allow(sleep): it is what the task does
    tokio::time::sleep(Duration::from_secs_f64(task.seconds)).await;
    Ok(())
}

pub(crate) const NAMES: [&str; 5] = ["interop.add", "interop.echo", "interop.fail", "interop.flaky", "interop.sleep"];

fn app() -> App {
    App::new("interop").task(add).task(echo).task(fail).task(flaky).task(sleep)
}

/// A server, and a line to it as a client has.
pub(crate) struct Rig {
    pub(crate) server: Redis,
    pub(crate) line: Arc<Line>,
    pub(crate) store: MemoryStore,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let server = Redis::start(Aof::EverySec).expect("a server");
        let line = Arc::new(Line::to(server.url().parse().expect("a URL")));
        Self { server, line, store: MemoryStore::new(Arc::new(SystemClock)) }
    }

    pub(crate) fn location(&self) -> Location {
        self.server.url().parse().expect("a URL")
    }

    pub(crate) async fn ask(&self, words: &[&[u8]]) -> Reply {
        let command: Command = words.iter().map(|word| word.to_vec()).collect();
        self.line.ask(&command).await.expect("an answer")
    }

    pub(crate) async fn lpush(&self, queue: &str, message: impl AsRef<[u8]>) {
        self.ask(&[b"LPUSH", queue.as_bytes(), message.as_ref()]).await;
    }

    /// TaskIQ's defaults, and the tasks that are here.
    pub(crate) fn options(&self) -> Options {
        Options {
            registered: NAMES.map(ToOwned::to_owned).to_vec(),
            results: Some(ResultOptions::new(self.location())),
            ..Options::default()
        }
    }

    /// A node whose bridge has this transport.
    pub(crate) async fn node(&self, name: &str, transport: Arc<dyn Transport>) -> Node {
        self.node_of(name, transport, &["taskiq"]).await
    }

    pub(crate) async fn node_of(&self, name: &str, transport: Arc<dyn Transport>, queues: &[&str]) -> Node {
        self.node_over(Arc::new(self.store.clone()), name, transport, queues).await
    }

    pub(crate) async fn node_over(
        &self,
        store: Arc<dyn Backend>,
        name: &str,
        transport: Arc<dyn Transport>,
        queues: &[&str],
    ) -> Node {
        let mut settings = Settings::new(NodeId::known(name));
        settings.queues = queues.iter().map(|queue| (QueueName::known(queue), 1)).collect();
        settings.slots = 8;
        settings.lease = LEASE;
        let bridge = Bridge::new(store, transport);
        let worker = Worker::new(Arc::new(bridge), app().build().await.expect("it builds"), settings);
        let shutdown = Shutdown::new();
        Node { ended: tokio::spawn(worker.run(shutdown.clone())), shutdown }
    }

    /// A node on the list `taskiq`.
    pub(crate) async fn list_node(&self) -> Node {
        let transport = taskiq::open_lists(self.location(), self.options()).await.expect("it opens");
        self.node("lists-1", transport).await
    }

    /// What a client finds that waits with the backend's defaults.
    pub(crate) async fn result(&self, task_id: &str) -> TaskResult {
        let results = Results::new(&ResultOptions::new(self.location()));
        results.wait(task_id, PATIENCE).await.expect("a result")
    }

    pub(crate) async fn records(&self) -> Vec<Record> {
        self.store.list(&Filter::all(), &Page::first(1_000)).await.expect("listed").tasks
    }

    /// Waits until the store has so many tasks in this state.
    pub(crate) async fn until_records(&self, amount: usize, state: State) -> Vec<Record> {
        until("records of this state", async || {
            let records: Vec<Record> =
                self.records().await.into_iter().filter(|record| record.state == state).collect();
            (records.len() >= amount).then_some(records)
        })
        .await
    }

    /// Waits until so many connections listen to channels.
    pub(crate) async fn listeners(&self, amount: usize) {
        until("all of them listen", async || {
            let clients = self.ask(&[b"CLIENT", b"LIST"]).await.bytes().unwrap_or_default();
            let listening = String::from_utf8_lossy(&clients).matches(" psub=1").count();
            (listening == amount).then_some(())
        })
        .await;
    }

    /// Waits until nothing is in the list, in a holding of it, or pending in the stream.
    pub(crate) async fn until_accepted(&self) {
        until("everything is accepted", async || {
            let listed = self.ask(&[b"LLEN", b"taskiq"]).await.number();
            let held = self.ask(&[b"KEYS", b"windlass.held:*"]).await.list();
            let mut waiting = 0;
            for holding in held.into_iter().filter_map(Reply::bytes) {
                waiting += usize::from(self.holds(&holding).await);
            }
            (listed == Some(0) && waiting == 0).then_some(())
        })
        .await;
    }

    async fn holds(&self, holding: &[u8]) -> bool {
        let fields = self.ask(&[b"HVALS", holding]).await.list();
        fields.into_iter().filter_map(Reply::bytes).any(|value| String::from_utf8_lossy(&value).contains("task_id"))
    }
}

/// A running node.
pub(crate) struct Node {
    shutdown: Shutdown,
    ended: JoinHandle<Ended>,
}

impl Node {
    pub(crate) async fn stop(self) {
        self.shutdown.begin(ShutdownStep::Graceful);
        tokio::time::timeout(PATIENCE, self.ended).await.expect("it ends in time").expect("it does not panic");
    }
}

/// Looks until there is something.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "it never happened: {what}");
        // tidy: allow(sleep): a server tells nobody what others do in it
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A recording of a Python client or worker.
pub(crate) fn vector(name: &str) -> Value {
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "..", "windlass-wire", "tests", "vectors", "taskiq", &format!("{name}.json")]
            .iter()
            .collect();
    let text = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).expect("JSON")
}

/// The commands that a Python client has sent.
pub(crate) fn client_commands(name: &str) -> Vec<Vec<Vec<u8>>> {
    let recorded = vector(name);
    let commands = recorded["client_commands"].as_array().expect("commands").iter();
    commands.map(|command| command["cmd"].as_array().expect("words").iter().map(bytes).collect()).collect()
}

/// Recorded bytes: text, or base64 of what is no text.
pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    use base64::Engine as _;
    match value {
        Value::String(text) => text.clone().into_bytes(),
        Value::Number(number) => number.to_string().into_bytes(),
        value => base64::engine::general_purpose::STANDARD
            .decode(value["b64"].as_str().expect("text or base64"))
            .expect("base64"),
    }
}

/// A message as the default formatter writes it.
pub(crate) fn message(id: &str, name: &str, labels: &[(&str, &str, u8)], args: &str) -> String {
    let object = |value: fn(&(&str, &str, u8)) -> Value| {
        let members = labels.iter().map(|label| (label.0.to_owned(), value(label)));
        Value::Object(members.collect())
    };
    let (values, types) = (object(|label| Value::from(label.1)), object(|label| Value::from(label.2)));
    format!(
        r#"{{"task_id": "{id}", "task_name": "{name}", "labels": {values}, "labels_types": {types}, "args": {args}, "kwargs": {{}}}}"#
    )
}

/// The result that a Python worker has stored, without what is different each time.
pub(crate) fn comparable(mut result: Value) -> Value {
    result["execution_time"] = Value::from("*");
    if let Some(error) = result["error"].as_object_mut() {
        // What the exception was made from in the process; no client looks at it.
        error.insert("exc_context".to_owned(), Value::Null);
    }
    result
}

/// The same of a result that was found.
pub(crate) fn found(result: &TaskResult) -> Value {
    comparable(serde_json::from_str(result.to_json().as_str()).expect("JSON"))
}
