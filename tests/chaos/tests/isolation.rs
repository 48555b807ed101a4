//! Workers in processes of their own: a task that cannot be ended costs its process, and nobody else anything.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use windlass::view::Record;
use windlass::{Args, Backend, Client, Envelope, QueueName, State, TaskId, TaskName};
use windlass_chaos::{Fleet, Place, Runs, Store, Worker};

/// Long enough for everything that must happen soon.
const PATIENCE: Duration = Duration::from_secs(90);
/// Tasks beside those that misbehave.
const OTHERS: u32 = 300;

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        // tidy: allow(sleep): the pause between two looks at another process
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A store, a supervisor with its children, and a client.
struct Yard {
    runtime: tokio::runtime::Runtime,
    backend: Arc<dyn Backend>,
    worker: Worker,
    fleet: Fleet,
    _place: Place,
}

impl Yard {
    fn of(store: Store, flags: &[&str]) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let place = Place::start(store).expect("the server starts");
        let mut fleet = Fleet::new(Path::new(env!("CARGO_BIN_EXE_chaos-worker")), &place.url(), 4).expect("a folder");
        let backend = runtime.block_on(windlass::connect(&place.url())).expect("the store opens");
        let worker = fleet.worker(flags).expect("a worker starts");
        Self { runtime, backend, worker, fleet, _place: place }
    }

    fn push(&self, name: &'static str, args: Value) -> TaskId {
        let args = Args::of(&args).expect("arguments");
        let mut envelope = Envelope::new(TaskName::known(name), QueueName::default(), args);
        // What misbehaves is at work while the others are.
        envelope.priority = windlass::Priority::HIGH;
        let id = envelope.id.clone();
        self.runtime.block_on(Client::new(Arc::clone(&self.backend)).push(vec![envelope])).expect("pushed");
        id
    }

    fn push_others(&self, numbers: std::ops::Range<u32>) {
        let envelopes = numbers.map(|number| {
            let args = Args::of(&json!({ "number": number })).expect("arguments");
            Envelope::new(TaskName::known("chaos.count"), QueueName::default(), args)
        });
        let client = Client::new(Arc::clone(&self.backend));
        self.runtime.block_on(client.push(envelopes.collect())).expect("pushed");
    }

    fn record(&self, id: &TaskId) -> Record {
        let found = self.runtime.block_on(self.backend.find(std::slice::from_ref(id))).expect("the store answers");
        found.into_iter().flatten().next().expect("it is stored")
    }

    fn until_dead(&self, id: &TaskId) -> Record {
        until("the task has given up", || self.record(id).state == State::Dead);
        self.record(id)
    }

    fn until_succeeded(&self, count: u64) {
        until("the others have succeeded", || {
            self.runtime.block_on(self.backend.counts()).expect("the store answers").total().succeeded == count
        });
    }

    /// The lines of the log with this event.
    fn log(&self, event: &str) -> Vec<Value> {
        let log = self.worker.log_text();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.filter(|line| line["event"] == event).collect()
    }

    /// Ends all of it in order; answers how often each of the others has run.
    fn end(self) -> Runs {
        assert_eq!(self.worker.end().expect("it is there"), Some(0));
        Runs::read(&self.fleet.ledger()).expect("the ledger")
    }
}

/// With a single thread for handlers in each child, so that a task that spins takes all that a child has.
/// One that has not begun because another spins on that thread is given back, and costs a child of its own later: so two
/// children end. Blocking handlers have a thread each, and may share the child.
fn a_task_that_spins_is_a_time_out(store: Store, task: &'static str, children: std::ops::RangeInclusive<usize>) {
    let yard = Yard::of(store, &["--processes", "2", "--threads", "1"]);
    until("both children take tasks", || yard.log("worker_ready").len() == 2);
    let spinning = [yard.push(task, json!({})), yard.push(task, json!({}))];
    yard.push_others(0..OTHERS);
    for id in &spinning {
        let record = yard.until_dead(id);
        let took = record.finished_at.expect("it has ended").since(record.started_at.expect("it has started"));
        println!("{store}: {task} with a hard limit of 1 s was recorded after {took:?}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(record.failure.expect("a failure").class, "timeout");
        assert_eq!((record.attempt, record.crashes), (1, 0));
    }
    yard.until_succeeded(u64::from(OTHERS));
    // The worker goes on, with as many children as before.
    yard.push_others(OTHERS..OTHERS + 50);
    yard.until_succeeded(u64::from(OTHERS) + 50);
    until("what spins has ended", || yard.log("child_ended").len() >= *children.start());
    let ended = yard.log("child_ended");
    assert!(children.contains(&ended.iter().filter(|line| line["exit_code"] == 75).count()), "{ended:?}");
    assert!(yard.log("child_killed").is_empty() && yard.log("child_backoff").is_empty());
    assert!(yard.log("tasks_rescued").is_empty(), "nothing had to wait for a lease");
    let runs = yard.end();
    assert_eq!(runs.missing(OTHERS + 50), Vec::<u32>::new());
}

#[test]
fn a_handler_that_never_yields_is_a_time_out_within_two_seconds_and_others_go_on() {
    a_task_that_spins_is_a_time_out(Store::Sqlite, "chaos.spin", 2..=2);
}

#[test]
fn so_it_is_when_the_store_is_a_server() {
    a_task_that_spins_is_a_time_out(Store::Redis, "chaos.spin", 2..=2);
}

#[test]
fn a_blocking_handler_that_never_returns_is_a_time_out_and_its_thread_ends_with_its_process() {
    a_task_that_spins_is_a_time_out(Store::Sqlite, "chaos.spin_blocking", 1..=2);
}

#[test]
fn a_handler_that_eats_memory_is_stopped_at_its_limit_and_becomes_a_dead_letter() {
    let yard = Yard::of(Store::Sqlite, &["--processes", "2", "--memory-max", "256MiB"]);
    until("both children take tasks", || yard.log("worker_ready").len() == 2);
    let hog = yard.push("chaos.eat", json!({ "mib": 4_096 }));
    let record = yard.until_dead(&hog);
    yard.push_others(0..OTHERS);
    yard.until_succeeded(u64::from(OTHERS));
    assert_eq!((record.attempt, record.crashes), (2, 0), "it had one retry");
    let failure = record.failure.expect("a failure");
    assert_eq!(failure.class, "memory_limit");
    println!("{}", failure.message);
    assert_eq!(yard.log("child_ended").iter().filter(|line| line["exit_code"] == 76).count(), 2);
    assert!(yard.log("child_killed").is_empty(), "the children have left by themselves");
    let runs = yard.end();
    assert_eq!((runs.missing(OTHERS), runs.repeats()), (Vec::new(), 0));
}

#[test]
fn a_child_that_is_recycled_loses_nothing_and_repeats_nothing() {
    const TASKS: u32 = 3_000;
    let yard = Yard::of(Store::Sqlite, &["--processes", "2", "--recycle-tasks", "200"]);
    yard.push_others(0..TASKS);
    yard.until_succeeded(u64::from(TASKS));
    let recycled = yard.log("child_ended");
    println!("{} children were recycled", recycled.len());
    assert!(recycled.len() >= 2, "{recycled:?}");
    assert!(recycled.iter().all(|line| line["exit_code"] == 0), "{recycled:?}");
    let runs = yard.end();
    assert_eq!((runs.missing(TASKS), runs.repeats()), (Vec::new(), 0));
}

#[test]
fn a_task_that_ends_its_process_is_poison_and_never_a_success() {
    let yard = Yard::of(Store::Sqlite, &["--processes", "2"]);
    until("both children take tasks", || yard.log("worker_ready").len() == 2);
    let id = yard.push("chaos.exit", json!({}));
    let record = yard.until_dead(&id);
    assert_eq!((record.attempt, record.crashes), (3, 3));
    assert_eq!(record.reason, Some(windlass::DeadReason::Poison));
    yard.push_others(0..OTHERS);
    yard.until_succeeded(u64::from(OTHERS));
    assert!(yard.log("child_backoff").len() >= 3, "an exit in the middle of a task is a crash");
    yard.end();
}
