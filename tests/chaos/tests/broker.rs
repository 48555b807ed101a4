//! A broker dies and comes back, or loses its connections, behind a whole bridge: the same worker process runs what is sent
//! after that, soon, and nothing that was sent before is lost.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::bridges::BridgeUrl;
use windlass::{Args, Backend, Envelope, QueueName, TaskName};
use windlass_chaos::{Fleet, Producer, Runs, Worker};
use windlass_servers::{Aof, Proxy, RabbitMq, Redis};

/// How soon a task ends that is sent when the broker answers again.
const SOON: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(60);
/// Tasks that are sent right before something breaks.
const BEFORE: u32 = 20;

/// One worker behind one bridge, and a client at its other end.
struct Site {
    name: &'static str,
    queue: QueueName,
    /// The broker without the faulty network in between.
    direct: BridgeUrl,
    fleet: Fleet,
    worker: Worker,
    sent: Vec<(u32, String)>,
}

impl Site {
    /// `server` and `direct` are the same broker, for the worker and for its client.
    fn start(name: &'static str, wire: &str, server: &str, direct: &str, options: &str, store: &str) -> Self {
        let (queue, program) = (QueueName::known(name), Path::new(env!("CARGO_BIN_EXE_chaos-worker")));
        let mut fleet = Fleet::new(program, store, 8).expect("a folder");
        fleet.tell("WINDLASS_BRIDGE", &format!("{wire}+{server}{options}"));
        let mut worker = fleet.worker(&["--queues", name]).expect("a worker starts");
        worker.ready().unwrap_or_else(|error| panic!("{name}: {error}"));
        let direct = format!("{wire}+{direct}{options}").parse().expect("a URL");
        Self { name, queue, direct, fleet, worker, sent: Vec::new() }
    }

    async fn send(&mut self, producer: &Producer) {
        let number = u32::try_from(self.sent.len()).expect("few");
        let args = Args::of(&serde_json::json!({ "number": number })).expect("arguments");
        let envelope = Envelope::new(TaskName::known("chaos.count"), self.queue.clone(), args);
        let id = producer.send(&envelope).await.unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
        self.sent.push((number, id));
    }

    /// Sends what must survive what comes next.
    async fn load(&mut self) {
        let producer = Producer::open(&self.direct, &self.queue).await.expect("the broker answers");
        for _ in 0..BEFORE {
            self.send(&producer).await;
        }
    }

    /// A task that is sent now ends soon.
    async fn probe(&mut self, after: &str) {
        let producer = Producer::open(&self.direct, &self.queue).await.expect("the broker answers");
        let began = Instant::now();
        self.send(&producer).await;
        let (number, id) = self.sent.last().expect("one was sent");
        let result = producer.result(id, PATIENCE).await;
        let took = began.elapsed();
        println!("{} after {after}: {took:?}", self.name);
        let log = || self.worker.log_text();
        assert_eq!(result.unwrap_or_else(|error| panic!("{error:#}: {}", log())), number.to_string());
        assert!(took <= SOON, "{} took {took:?} after {after}: {}", self.name, log());
        assert!(self.worker.runs().expect("it lives"), "{}: the worker has left", self.name);
    }

    /// Everything that was ever sent has ended well, once in the store, and ran in this one process.
    async fn end(self, store: &Arc<dyn Backend>) {
        let producer = Producer::open(&self.direct, &self.queue).await.expect("the broker answers");
        for (number, id) in &self.sent {
            let result = producer.result(id, PATIENCE).await.unwrap_or_else(|error| panic!("{}: {error:#}", self.name));
            assert_eq!(result, number.to_string());
        }
        assert_eq!(self.worker.end().expect("it is there"), Some(0), "{}", self.name);
        let counts = store.counts().await.expect("counts").queues.remove(&self.queue).unwrap_or_default();
        let sent = self.sent.len();
        assert_eq!((counts.succeeded, counts.live(), counts.dead), (sent as u64, 0, 0), "{}", self.name);
        let runs = Runs::read(&self.fleet.ledger()).expect("the ledger");
        assert_eq!(runs.missing(u32::try_from(sent).expect("few")), [0; 0], "{}", self.name);
    }
}

/// Probes every site, after it was given something that must survive.
async fn breaks(sites: &mut [Site], what: &str, breaking: impl FnOnce()) {
    for site in &mut *sites {
        site.load().await;
    }
    breaking();
    for site in &mut *sites {
        site.probe(what).await;
    }
}

#[tokio::test]
async fn a_redis_that_dies_or_hangs_up_is_used_again_by_the_same_worker() {
    let mut redis = Redis::start(Aof::Always).expect("Redis starts");
    let proxy = Proxy::to(redis.address()).expect("a port");
    let (url, far) = (redis.url(), format!("redis://{}/0", proxy.address()));
    let mut sites = vec![
        Site::start("celery-list", "celery", &far, &url, "", &far),
        Site::start("taskiq-list", "taskiq", &far, &url, "?kind=list", &far),
        Site::start("taskiq-stream", "taskiq", &far, &url, "?kind=stream", &far),
    ];
    breaks(&mut sites, "nothing", || {}).await;
    breaks(&mut sites, "SIGKILL of the broker", || {
        redis.kill();
        redis.start_again().expect("it starts again");
    })
    .await;
    breaks(&mut sites, "CLIENT KILL", || {
        for kind in ["normal", "pubsub"] {
            redis.cli(&["CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"]).expect("killed");
        }
    })
    .await;
    breaks(&mut sites, "a cut of all connections", || proxy.cut()).await;
    let store = windlass::connect(&url).await.expect("the store opens");
    for site in sites {
        site.end(&store).await;
    }
}

#[tokio::test]
async fn a_rabbitmq_that_dies_or_hangs_up_is_used_again_by_the_same_worker() {
    let mut rabbit = RabbitMq::start().expect("RabbitMQ starts");
    let redis = Redis::start(Aof::EverySec).expect("Redis starts");
    let proxy = Proxy::to(rabbit.address()).expect("a port");
    let (url, far, store) = (rabbit.url(), rabbit.url_at(proxy.address()), redis.url());
    let results = format!("?results={}", store.replace(':', "%3A").replace('/', "%2F"));
    let mut sites = vec![
        Site::start("celery-queue", "celery", &far, &url, &results, &store),
        Site::start("taskiq-queue", "taskiq", &far, &url, &results, &store),
    ];
    breaks(&mut sites, "nothing", || {}).await;
    breaks(&mut sites, "SIGKILL of the broker", || {
        // These queues are young.
        rabbit.write_down().expect("written down");
        rabbit.kill();
        rabbit.start_again().expect("it starts again");
    })
    .await;
    breaks(&mut sites, "close_all_connections", || rabbit.close_connections().expect("closed")).await;
    breaks(&mut sites, "a cut of all connections", || proxy.cut()).await;
    let store = windlass::connect(&store).await.expect("the store opens");
    for site in sites {
        site.end(&store).await;
    }
}
