//! A worker behind a bridge is killed (SIGKILL, by itself) at each moment in the life of a message; another one finishes
//! everything: each task ended well once, its producer has its result, and nothing is left at the broker.

use std::collections::BTreeSet;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::runtime::Runtime;
use windlass::bridges::BridgeUrl;
use windlass::bridges::url::{Over, Wire};
use windlass::view::{Filter, Page};
use windlass::{Args, Due, Envelope, QueueName, State, TaskName};
use windlass_chaos::{DIES, Doom, Fleet, Moment, Producer, Runs, Worker};
use windlass_servers::{Aof, RabbitMq, Redis};

/// Tasks in each run; the first of them are delayed: by Celery's `countdown`, or by a handler that wants to run later.
const MESSAGES: u32 = 20;
const DELAYED: u32 = 3;
const DELAY: Duration = Duration::from_secs(1);
/// At which message the worker dies.
const DIES_AT: usize = 5;
const SLOTS: usize = 4;
/// After so long without a sign of life what the dead one has taken is found by the others.
const SILENT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// One bridge with servers of its own, and the death of its worker.
struct Case {
    moment: Moment,
    /// As its worker is told it.
    text: String,
    url: BridgeUrl,
    queue: QueueName,
    /// The store and the results; the broker, too, unless that is RabbitMQ.
    redis: Redis,
}

impl Case {
    /// `rabbit` is the URL of a RabbitMQ.
    fn new(wire: &str, kind: &str, rabbit: Option<&str>, moment: Moment) -> Result<Self> {
        let redis = Redis::start(Aof::EverySec)?;
        let server = rabbit.map_or_else(|| redis.url(), str::to_owned);
        let results = redis.url().replace(':', "%3A").replace('/', "%2F");
        let queue = QueueName::new(format!("{wire}-{}", Doom::spelled(moment, DIES_AT)))?;
        let text = format!("{wire}+{server}?{kind}results={results}");
        Ok(Self { moment, url: text.parse()?, text, queue, redis })
    }

    fn play(&self, runtime: &Runtime) -> Result<()> {
        let began = Instant::now();
        let mut fleet = Fleet::new(Path::new(env!("CARGO_BIN_EXE_chaos-bridge")), &self.redis.url(), SLOTS)?;
        fleet.tell("CHAOS_BRIDGE", &self.text);
        fleet.tell("CHAOS_QUEUE", self.queue.as_str());
        let played = self.play_with(runtime, &mut fleet);
        println!("{} {:?}: {:?}", self.queue, self.moment, began.elapsed());
        played.with_context(|| format!("{} at {:?}; logs: {}", self.queue, self.moment, fleet.keep_logs().display()))
    }

    fn play_with(&self, runtime: &Runtime, fleet: &mut Fleet) -> Result<()> {
        let producer = runtime.block_on(Producer::open(&self.url, &self.queue))?;
        let ids = runtime.block_on(self.send_all(&producer))?;
        fleet.tell(DIES, &Doom::spelled(self.moment, DIES_AT));
        fleet.start(&[])?.killed_itself(PATIENCE)?;
        fleet.forget(DIES);
        let settled = runtime.block_on(self.settled_at_death())?;
        // tidy: allow(sleep): only time makes it silent, and the first look for the dead comes with the first tick
        thread::sleep(SILENT);
        let worker = fleet.start(&[])?;
        for (number, id) in ids.iter().enumerate() {
            let result = runtime.block_on(producer.result(id, PATIENCE));
            let result = result.with_context(|| format!("the log of the second worker: {}", worker.log_text()))?;
            ensure!(result == number.to_string(), "task {number} has the result {result}");
        }
        self.compare_store(runtime, &ids)?;
        let runs = Runs::read(&fleet.ledger())?;
        ensure!(runs.missing(MESSAGES).is_empty(), "these never ran: {:?}", runs.missing(MESSAGES));
        let settled = (0..MESSAGES).zip(&ids).filter(|(_, id)| settled.contains(*id)).map(|(number, _)| number);
        let repeated: Vec<u32> = settled.filter(|number| runs.of(*number) != 1).collect();
        ensure!(repeated.is_empty(), "their end was stored, and they ran again: {repeated:?}");
        self.leaves_nothing(runtime, worker)
    }

    async fn send_all(&self, producer: &Producer) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for number in 0..MESSAGES {
            let delayed = number < DELAYED;
            let by_broker = self.url.wire == Wire::Celery;
            let args = Args::of(&serde_json::json!({ "number": number, "later": delayed && !by_broker }))?;
            let mut envelope = Envelope::new(TaskName::known("chaos.visit"), self.queue.clone(), args);
            if delayed && by_broker {
                envelope.due = Due::After(DELAY);
            }
            ids.push(producer.send(&envelope).await?);
        }
        Ok(ids)
    }

    /// What the store has the end of; that shows whether the worker has died where it should.
    async fn settled_at_death(&self) -> Result<BTreeSet<String>> {
        let backend = windlass::connect(&self.redis.url()).await?;
        let records = backend.list(&Filter::all(), &Page::first(1_000)).await?.tasks;
        let is_stored = records.len() >= DIES_AT;
        ensure!(is_stored == (self.moment != Moment::Taken), "{} tasks are stored", records.len());
        let settled = records.into_iter().filter(|record| record.state == State::Succeeded);
        let settled: BTreeSet<String> = settled.map(|record| record.envelope.id.to_string()).collect();
        let is_settled = settled.len() >= DIES_AT;
        // The broker lets go while handlers are at work, and some may have ended before it has.
        let may_be_settled = matches!(self.moment, Moment::Stored | Moment::Accepted);
        ensure!(
            may_be_settled || is_settled == (self.moment == Moment::Settled),
            "{} tasks are settled",
            settled.len()
        );
        Ok(settled)
    }

    /// Each task is in the store once, and ended well. A producer may hear of the end before the store does.
    fn compare_store(&self, runtime: &Runtime, ids: &[String]) -> Result<()> {
        let backend = runtime.block_on(windlass::connect(&self.redis.url()))?;
        let began = Instant::now();
        loop {
            let counts = runtime.block_on(backend.counts())?.total();
            if counts.live() == 0 {
                ensure!(counts.succeeded == u64::from(MESSAGES), "{counts:?}");
                break;
            }
            ensure!(began.elapsed() < PATIENCE, "some do not end: {counts:?}");
            // tidy: allow(sleep): the pause between two looks at a store
            thread::sleep(Duration::from_millis(50));
        }
        let records = runtime.block_on(backend.list(&Filter::all(), &Page::first(1_000)))?.tasks;
        ensure!(records.iter().all(|record| record.state == State::Succeeded), "{records:?}");
        let stored: Vec<String> = records.iter().map(|record| record.envelope.id.to_string()).collect();
        ensure!(stored.len() == ids.len(), "{} tasks are stored: {stored:?}", stored.len());
        ensure!(stored.iter().collect::<BTreeSet<_>>() == ids.iter().collect(), "others are stored: {stored:?}");
        Ok(())
    }

    /// The broker has nothing left, in a queue or with somebody who took it; also when everybody has gone.
    fn leaves_nothing(&self, runtime: &Runtime, worker: Worker) -> Result<()> {
        ensure!(worker.end()? == Some(0), "the second worker does not end in order");
        let queue = self.queue.as_str();
        match (self.url.over, self.url.get("kind")) {
            (Over::Amqp, _) => {
                let location = self.url.server().parse()?;
                let left = runtime.block_on(async {
                    let amqp = windlass_amqp::Amqp::open(location, windlass_amqp::Options::default()).await?;
                    amqp.purge(queue).await
                })?;
                ensure!(left == 0, "{left} messages are left in the queue");
            }
            (Over::Redis, Some("stream")) => {
                let pending = self.redis.cli(&["XPENDING", queue, "taskiq"])?;
                ensure!(pending.lines().next() == Some("0"), "entries are pending: {pending}");
            }
            (Over::Redis, _) => {
                ensure!(self.redis.cli(&["LLEN", queue])? == "0", "messages are left in the list");
                let held = self.redis.cli(&["KEYS", "windlass.held*"])?;
                ensure!(held.is_empty(), "messages are held: {held}");
            }
        }
        Ok(())
    }
}

/// All moments side by side: mostly they wait, for leases and for silence.
fn survives(wire: &str, kind: &str, rabbit: Option<&str>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = &runtime.expect("a runtime");
    thread::scope(|scope| {
        let play = |moment| move || Case::new(wire, kind, rabbit, moment)?.play(runtime);
        let cases: Vec<_> = Moment::ALL.into_iter().map(|moment| scope.spawn(play(moment))).collect();
        for case in cases {
            case.join().expect("it does not panic").unwrap_or_else(|error| panic!("{error:#}"));
        }
    });
}

#[test]
fn a_worker_killed_at_any_moment_loses_nothing_of_celery_over_redis() {
    survives("celery", "", None);
}

#[test]
fn a_worker_killed_at_any_moment_loses_nothing_of_a_taskiq_list() {
    survives("taskiq", "kind=list&", None);
}

#[test]
fn a_worker_killed_at_any_moment_loses_nothing_of_a_taskiq_stream() {
    survives("taskiq", "kind=stream&", None);
}

/// One server for both: it takes its time to start.
#[test]
fn a_worker_killed_at_any_moment_loses_nothing_of_celery_and_taskiq_over_rabbitmq() {
    let rabbit = RabbitMq::start().expect("RabbitMQ starts");
    survives("celery", "", Some(&rabbit.url()));
    survives("taskiq", "", Some(&rabbit.url()));
}
