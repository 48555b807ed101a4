//! A fleet of workers on bridges, in simulated time and with bad luck from a seed: processes die anywhere, the store loses
//! requests and answers, the transport comes and goes. Every message becomes one task, and every task ends once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use windlass_core::backend::Backend;
use windlass_core::bridge::{Bridge, News};
use windlass_core::view::{Filter, Page, Record, Retention};
use windlass_core::worker::{Settings, Shutdown, ShutdownStep, Worker};
use windlass_core::{App, Clock, Cx, Envelope, NodeId, State, Task, TaskError, TaskId, Timestamp};
use windlass_memory::MemoryStore;
use windlass_testkit::transport::ANSWERED;
use windlass_testkit::{Faults, FaultyStore, MemoryTransport};

// The derive writes the crate that users depend on.
extern crate windlass_core as windlass;

const SEEDS: u64 = 20;
const MESSAGES: usize = 60;

#[derive(Task, Serialize, Deserialize)]
#[task(retries = 5, backoff = "1s", output = u32)]
struct Count {
    good_from: u32,
    millis: u64,
}

async fn count(task: Count, cx: Cx) -> Result<u32, TaskError> {
    // tidy: allow(sleep): the work that it does, in simulated time
    tokio::time::sleep(Duration::from_millis(task.millis)).await;
    if cx.attempt >= task.good_from { Ok(cx.attempt) } else { Err(TaskError::failed("not yet")) }
}

#[derive(Debug)]
struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs(1_800_000_000) + self.0.elapsed()
    }
}

struct Process {
    line: Arc<FaultyStore>,
    transport: MemoryTransport,
    shutdown: Shutdown,
    task: JoinHandle<()>,
}

struct Fleet {
    clock: Arc<dyn Clock>,
    store: MemoryStore,
    transport: MemoryTransport,
    faults: Faults,
    dice: fastrand::Rng,
    started: u32,
}

impl Fleet {
    fn new(seed: u64) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock(Instant::now()));
        let retention = Retention { finished: Duration::from_secs(86_400), ..Retention::default() };
        let store = MemoryStore::new(Arc::clone(&clock)).with_retention(retention);
        let faults = Faults {
            lost_requests: 0.05,
            lost_replies: 0.1,
            duplicates: 0.05,
            delay: Duration::from_millis(100),
            pause: (0.01, Duration::from_secs(2)),
        };
        let dice = fastrand::Rng::with_seed(seed);
        Self { clock, store, transport: MemoryTransport::new(), faults, dice, started: 0 }
    }

    async fn start(&mut self) -> Process {
        self.started += 1;
        let line = Arc::new(FaultyStore::new(Arc::new(self.store.clone()), self.dice.u64(..), self.faults));
        let transport = self.transport.of_process();
        let bridge = Bridge::new(Arc::clone(&line) as Arc<dyn Backend>, Arc::new(transport.clone()));
        let bridge: Arc<dyn Backend> = Arc::new(bridge.with_clock(Arc::clone(&self.clock)));
        let registry = App::new("storm").task(count).build().await.expect("declared well");
        let mut settings = Settings::new(NodeId::known(&format!("node-{}", self.started)));
        settings.slots = self.dice.usize(1..6);
        settings.lease = Duration::from_secs(9);
        settings.seed = self.dice.u64(..);
        let worker = Worker::new(bridge, registry, settings).clock(Arc::clone(&self.clock));
        let shutdown = Shutdown::new();
        let run = worker.run(shutdown.clone());
        let task = tokio::spawn(async move {
            run.await;
        });
        Process { line, transport, shutdown, task }
    }

    /// A message in one of the ways in which producers send them; answers the id that it may become.
    fn send(&mut self, number: usize) -> TaskId {
        let task = Count { good_from: self.dice.u32(1..3), millis: self.dice.u64(0..3_000) };
        let mut envelope = Envelope::of(&task, self.clock.now()).expect("an envelope");
        envelope.headers.insert(ANSWERED.to_owned(), "yes".to_owned());
        let id = envelope.id.clone();
        self.transport.send(&format!("t:{number}"), envelope.clone());
        if self.dice.u8(..5) == 0 {
            // The transport itself delivers twice.
            self.transport.send(&format!("t:{number}"), envelope);
        }
        id
    }

    async fn records(&self) -> Vec<Record> {
        self.store.list(&Filter::all(), &Page::first(1_000)).await.expect("listed").tasks
    }
}

/// One run: a storm, then calm, then everything is counted.
async fn storm(seed: u64) {
    fastrand::seed(seed);
    let mut fleet = Fleet::new(seed);
    let mut processes = Vec::new();
    for _ in 0..3 {
        processes.push(fleet.start().await);
    }
    let mut sent = BTreeSet::new();
    for number in 0..MESSAGES {
        sent.insert(fleet.send(number));
        // tidy: allow(sleep): simulated time passes
        tokio::time::sleep(Duration::from_millis(fleet.dice.u64(0..2_000))).await;
        match fleet.dice.u8(..12) {
            0 => {
                let killed = processes.swap_remove(fleet.dice.usize(..processes.len()));
                killed.line.cut();
                killed.transport.kill();
                killed.task.abort();
                processes.push(fleet.start().await);
            }
            1 => fleet.transport.cut(),
            2 | 3 => fleet.transport.mend(),
            4 => {
                let stopped = processes.swap_remove(fleet.dice.usize(..processes.len()));
                stopped.shutdown.begin(ShutdownStep::Graceful);
                processes.push(fleet.start().await);
            }
            _ => {}
        }
    }
    fleet.transport.mend();
    for process in &processes {
        process.line.set(Faults::NONE);
    }
    fleet.faults = Faults::NONE;
    processes.push(fleet.start().await);
    let deadline = Instant::now() + Duration::from_secs(3_600);
    loop {
        let all_ended = fleet.records().await.iter().all(|record| record.state.is_final());
        if fleet.transport.waiting() + fleet.transport.held() == 0 && all_ended {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "seed {seed}: {} wait, {} are held",
            fleet.transport.waiting(),
            fleet.transport.held()
        );
        // tidy: allow(sleep): simulated time passes
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // What ended without a holder is told with one of the next ticks.
    // tidy: allow(sleep): simulated time passes
    tokio::time::sleep(Duration::from_secs(15)).await;
    let records = fleet.records().await;
    let stored: BTreeSet<TaskId> = records.iter().map(|record| record.envelope.id.clone()).collect();
    assert_eq!((records.len(), &stored), (MESSAGES, &sent), "seed {seed}");
    let mut told: BTreeMap<String, u32> = BTreeMap::new();
    for answer in fleet.transport.answers() {
        match &answer.news {
            News::Settled(verdict) | News::Ended(verdict) if verdict.state().is_final() => {
                *told.entry(answer.id()).or_default() += 1;
            }
            News::Settled(_) | News::Started(_) | News::Ended(_) => {}
        }
    }
    for record in &records {
        let times = told.get(&record.envelope.id.to_string()).copied().unwrap_or(0);
        assert!(times >= 1, "seed {seed}: every producer hears of the end: {:?}, {:?}", record.state, record.reason);
        assert!(matches!(record.state, State::Succeeded | State::Dead), "seed {seed}: {:?}", record.state);
    }
    for process in processes {
        process.shutdown.begin(ShutdownStep::Graceful);
        process.task.await.expect("it ends");
    }
}

#[test]
fn every_message_becomes_one_task_whatever_dies() {
    for seed in 0..SEEDS {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(storm(seed));
    }
}
