//! Tasks that go from a database through its outbox into a store elsewhere, while relays are killed and abort after every step:
//! each task whose transaction was committed gets there once, and no other.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;
use tokio_postgres::NoTls;
use windlass::backend::{BATCH_MAX, Push};
use windlass::{Args, Envelope, QueueName, TaskId, TaskName};
use windlass_chaos::{Fleet, Place, Store, seed, tasks};
use windlass_postgres::outbox::{SQL, push_in};

const RELAYS: usize = 2;
/// The pause between two looks at other processes.
const LOOK: Duration = Duration::from_millis(20);
/// One transaction of so many is rolled back.
const PER_ROLLBACK: u32 = 5;

/// Writes tasks in transactions of one to three, and answers those that were committed.
async fn write(url: &str, count: u32, dice: &mut Rng) -> anyhow::Result<Vec<TaskId>> {
    let (mut db, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    let mut committed = Vec::new();
    while committed.len() < count as usize {
        let transaction = db.transaction().await?;
        let mut ids = Vec::new();
        for _ in 0..dice.u32(1..=3) {
            let task = Envelope::new(TaskName::known("chaos.sent"), QueueName::default(), Args::none());
            ids.push(task.id.clone());
            push_in(&transaction, &Push::from(task)).await?;
        }
        if dice.u32(0..PER_ROLLBACK) == 0 {
            transaction.rollback().await?;
        } else {
            transaction.commit().await?;
            committed.extend(ids);
        }
    }
    Ok(committed)
}

async fn rows(url: &str) -> anyhow::Result<i64> {
    let (db, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(db.query_one("SELECT count(*) FROM windlass_outbox", &[]).await?.get(0))
}

#[test]
fn what_is_written_into_an_outbox_gets_into_redis_once() {
    let seed = seed();
    println!("WINDLASS_CHAOS_SEED={seed}");
    let mut dice = Rng::with_seed(seed);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (database, store) =
        (Place::start(Store::Postgres).expect("a database"), Place::start(Store::Redis).expect("a store"));
    let from = database.url();
    let backend = runtime.block_on(windlass::connect(&store.url())).expect("the store opens");
    runtime.block_on(async {
        let (db, connection) = tokio_postgres::connect(&from, NoTls).await.expect("the database opens");
        tokio::spawn(connection);
        db.batch_execute(SQL).await.expect("the table");
    });
    let mut fleet = Fleet::new(Path::new(env!("CARGO_BIN_EXE_chaos-relay")), &store.url(), 1).expect("a folder");
    let mut relays: Vec<_> = (0..RELAYS).map(|_| fleet.relay(&from).expect("a relay starts")).collect();
    let count = tasks() / 3;
    let writing = {
        let (from, mut dice) = (from.clone(), dice.fork());
        runtime.spawn(async move { write(&from, count, &mut dice).await })
    };
    let (mut killed, mut aborted) = (0, Vec::new());
    let (began, limit) = (Instant::now(), Duration::from_secs(180));
    let mut next_kill = Instant::now() + Duration::from_millis(300);
    while !writing.is_finished() || runtime.block_on(rows(&from)).expect("counted") > 0 {
        assert!(began.elapsed() < limit, "seed {seed}: it does not come to an end");
        // tidy: allow(sleep): the pause between two looks at other processes
        std::thread::sleep(LOOK);
        for relay in &mut relays {
            if let Some(step) = relay.aborted().expect("a relay ends by the dice only") {
                aborted.push(step);
                *relay = fleet.relay(&from).expect("a relay starts");
            }
        }
        if next_kill <= Instant::now() {
            next_kill = Instant::now() + Duration::from_millis(dice.u64(200..800));
            let index = dice.usize(0..RELAYS);
            let fresh = fleet.relay(&from).expect("a relay starts");
            std::mem::replace(&mut relays[index], fresh).kill().expect("it is there");
            killed += 1;
        }
    }
    let committed = runtime.block_on(writing).expect("it does not panic").expect("written");
    let steps: BTreeSet<&String> = aborted.iter().collect();
    println!(
        "{} tasks in {:?}, {killed} kills, {} aborts after {steps:?}",
        committed.len(),
        began.elapsed(),
        aborted.len()
    );
    for ids in committed.chunks(BATCH_MAX) {
        for (id, record) in ids.iter().zip(runtime.block_on(backend.find(ids)).expect("found")) {
            assert!(record.is_some(), "seed {seed}: {id} is lost");
        }
    }
    let counts = runtime.block_on(backend.counts()).expect("counts").total();
    assert_eq!(counts.live(), committed.len() as u64, "seed {seed}: each is there once, and nothing else");
    assert!(killed > 0 && steps.len() == 3, "the run is too quiet to say anything");
}
