//! A server is away for a while: the worker says so, lives, and goes on; what had ended is not run again.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::{Args, Backend, Envelope, QueueName, TaskName};
use windlass_chaos::{Fleet, Place, Runs, Store, Worker};

/// Long enough for everything that must happen soon.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the server is away: `WINDLASS_CHAOS_OUTAGE` seconds; without it, longer than any driver waits for a connection
/// before it says that the store is away.
fn outage() -> Duration {
    let set = std::env::var("WINDLASS_CHAOS_OUTAGE").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(set.unwrap_or(8))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        // tidy: allow(sleep): the pause between two looks at another process
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where the worker answers probes, from its log.
fn address(worker: &Worker) -> String {
    let mut address = None;
    until("the worker says where it answers", || {
        let log = worker.log_text();
        let line = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        address = line
            .into_iter()
            .find(|line| line["event"] == "probes_ready")
            .and_then(|line| line["address"].as_str().map(str::to_owned));
        address.is_some()
    });
    address.unwrap_or_default()
}

fn status(address: &str, path: &str) -> u16 {
    let ask = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(address)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: w\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().ok().and_then(|answer| answer.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0)
}

async fn push(backend: &Arc<dyn Backend>, numbers: std::ops::Range<u32>) {
    let client = windlass::Client::new(Arc::clone(backend));
    let envelopes = numbers
        .map(|number| {
            let args = Args::of(&serde_json::json!({ "number": number })).expect("arguments");
            Envelope::new(TaskName::known("chaos.count"), QueueName::default(), args)
        })
        .collect();
    client.push(envelopes).await.expect("the store is there");
}

async fn succeeded(backend: &Arc<dyn Backend>) -> u64 {
    backend.counts().await.map_or(0, |counts| counts.total().succeeded)
}

fn survives(store: Store) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let mut place = Place::start(store).expect("the server starts");
    let mut fleet = Fleet::new(Path::new(env!("CARGO_BIN_EXE_chaos-worker")), &place.url(), 8).expect("a folder");
    let backend = runtime.block_on(windlass::connect(&place.url())).expect("the store opens");
    let mut worker = fleet.worker(&["--listen", "127.0.0.1:0"]).expect("a worker starts");
    let address = address(&worker);
    until("the worker is ready", || status(&address, "/readyz") == 200);
    runtime.block_on(push(&backend, 0..200));
    until("the first tasks have ended", || runtime.block_on(succeeded(&backend)) == 200);

    place.take_away();
    until("the worker is not ready", || status(&address, "/readyz") == 503);
    let away_until = Instant::now() + outage();
    while Instant::now() < away_until {
        assert_eq!(status(&address, "/livez"), 200, "an outage is no reason to restart a worker");
        assert!(worker.runs().expect("it lives"));
        // tidy: allow(sleep): the pause between two looks at another process
        std::thread::sleep(Duration::from_millis(200));
    }
    place.bring_back().expect("the server starts again");
    until("the worker is ready again", || status(&address, "/readyz") == 200);
    until("the store answers us too", || runtime.block_on(backend.counts()).is_ok());
    runtime.block_on(push(&backend, 200..400));
    until("the rest has ended", || runtime.block_on(succeeded(&backend)) == 400);

    let log = worker.log_text();
    for event in ["store_failed", "store_back"] {
        assert!(log.contains(&format!("\"event\":\"{event}\"")), "the log does not say `{event}`");
    }
    assert_eq!(worker.end().expect("it is there"), Some(0));
    let runs = Runs::read(&fleet.ledger()).expect("the ledger");
    let repeated: Vec<u32> = (0..400).filter(|number| runs.of(*number) != 1).collect();
    assert!(repeated.is_empty(), "each ran once: {repeated:?}");
}

#[test]
fn a_worker_survives_an_outage_of_redis() {
    survives(Store::Redis);
}

#[test]
fn a_worker_survives_an_outage_of_postgres() {
    survives(Store::Postgres);
}
