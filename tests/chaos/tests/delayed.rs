//! Many delayed messages of Celery, and workers that are killed while they come: each runs once when it is due, those for
//! another day wait, and they cost the workers no memory.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use windlass::bridges::BridgeUrl;
use windlass::view::{Filter, Page, QueueCounts};
use windlass::{Args, Backend, Due, Envelope, QueueName, TaskName};
use windlass_chaos::{Fleet, Producer, Runs, Worker};
use windlass_servers::{Aof, Redis};

/// Due within ten seconds, evenly.
const SOON: u32 = 1_500;
const SOON_WITHIN: Duration = Duration::from_secs(10);
/// Due another day.
const FAR: u32 = 500;
const FAR_AFTER: Duration = Duration::from_secs(2 * 86_400);
/// A worker may have so much more memory at the end than when it was ready.
const GROWTH_MAX_KIB: u64 = 60 * 1024;
/// Each worker has its slots in flight when it is killed.
const SLOTS: usize = 8;
const PATIENCE: Duration = Duration::from_secs(60);

fn message(number: u32) -> Envelope {
    let args = Args::of(&serde_json::json!({ "number": number })).expect("arguments");
    let after = if number < SOON { SOON_WITHIN * number / SOON } else { FAR_AFTER };
    let envelope = Envelope::new(TaskName::known("chaos.count"), QueueName::known("celery"), args);
    Envelope { due: Due::After(after), ..envelope }
}

async fn counts(backend: &Arc<dyn Backend>) -> QueueCounts {
    backend.counts().await.expect("counts").total()
}

/// Waits until so many have succeeded, and answers how all are.
async fn until_succeeded(backend: &Arc<dyn Backend>, wanted: u32) -> QueueCounts {
    let began = Instant::now();
    loop {
        let counts = counts(backend).await;
        if counts.succeeded >= u64::from(wanted) {
            return counts;
        }
        assert!(began.elapsed() < PATIENCE, "{wanted} do not end: {counts:?}");
        // tidy: allow(sleep): the pause between two looks at a store
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// The ids of all tasks of the store; none may be there twice.
async fn stored(backend: &Arc<dyn Backend>) -> BTreeSet<String> {
    let (mut all, mut page, mut listed) = (BTreeSet::new(), Page::first(500), 0);
    loop {
        let listing = backend.list(&Filter::all(), &page).await.expect("listed");
        listed += listing.tasks.len();
        all.extend(listing.tasks.into_iter().map(|record| record.envelope.id.to_string()));
        match listing.next {
            Some(next) => page = Page { after: Some(next), ..page },
            None => break,
        }
    }
    assert_eq!(all.len(), listed, "a task is listed twice");
    all
}

fn ready(fleet: &mut Fleet) -> (Worker, u64) {
    let mut worker = fleet.worker(&["--queues", "celery"]).expect("a worker starts");
    worker.ready().expect("it is ready");
    let memory = worker.memory_kib().expect("it is there");
    (worker, memory)
}

#[tokio::test]
async fn delayed_messages_run_once_when_they_are_due_however_often_workers_die() {
    let redis = Redis::start(Aof::EverySec).expect("Redis starts");
    let url = format!("celery+{}?visibility=1s", redis.url());
    let bridge: BridgeUrl = url.parse().expect("a URL");
    let mut fleet = Fleet::new(Path::new(env!("CARGO_BIN_EXE_chaos-worker")), &redis.url(), SLOTS).expect("a folder");
    fleet.tell("WINDLASS_BRIDGE", &url);
    let mut workers = vec![ready(&mut fleet), ready(&mut fleet)];
    let backend = windlass::connect(&redis.url()).await.expect("the store opens");
    let producer = Producer::open(&bridge, &QueueName::known("celery")).await.expect("it opens");
    let mut sent = BTreeSet::new();
    // Those for another day are spread among the others.
    for number in (0..SOON).flat_map(|number| [Some(number), (number % 3 == 0).then_some(SOON + number / 3)]).flatten()
    {
        sent.insert(producer.send(&message(number)).await.expect("sent"));
    }
    assert_eq!(sent.len(), (SOON + FAR) as usize);
    for (index, after) in [(0, SOON / 4), (1, SOON / 2)] {
        until_succeeded(&backend, after).await;
        let fresh = ready(&mut fleet);
        std::mem::replace(&mut workers[index], fresh).0.kill().expect("it is there");
    }
    let at_end = until_succeeded(&backend, SOON).await;
    assert_eq!((at_end.succeeded, at_end.scheduled, at_end.dead), (1_500, 500, 0), "{at_end:?}");
    assert_eq!(at_end.live(), 500, "{at_end:?}");
    for (worker, before) in &workers {
        let after = worker.memory_kib().expect("it is there");
        println!("VmRSS: {before} KiB when it was ready, {after} KiB at the end");
        assert!(after < before + GROWTH_MAX_KIB, "delayed messages cost {} KiB", after - before);
    }
    assert_eq!(stored(&backend).await, sent);
    let runs = Runs::read(&fleet.ledger()).expect("the ledger");
    assert_eq!(runs.missing(SOON), [0; 0], "some never ran");
    assert_eq!((SOON..SOON + FAR).filter(|number| runs.of(*number) > 0).count(), 0, "some ran too early");
    println!("{} runs were repeats", runs.repeats());
    assert!(runs.repeats() <= 2 * SLOTS as u64, "{} runs are repeats", runs.repeats());
    for (worker, _) in workers {
        assert_eq!(worker.end().expect("it is there"), Some(0));
    }
}
