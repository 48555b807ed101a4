//! Claim and settle through the store against what the server allows: run with
//! `WINDLASS_TEST_POSTGRES_URL=... cargo bench -p windlass-postgres`.
//!
//! `SECTION=gates` runs only the last part: what gates and keys cost that do not bind.
//!
//! The limit is a bare table (id, queue, rank, lease, body) in which one statement acknowledges the last batch by deleting it
//! and claims the next, on as many connections. Store and limit run in turn, on the same server, in the same run.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::{Client, NoTls};
use tokio_util::sync::CancellationToken;
use windlass_core::backend::{Backend, Claim, Demand, Push, Settled};
use windlass_core::flow::Follow;
use windlass_core::limit::{Limit, LimitChange, Rate, Rule, Subject};
use windlass_core::view::Retention;
use windlass_core::{Args, Envelope, Json, Key, NodeId, QueueName, TaskName, Verdict};
use windlass_postgres::{Options, PostgresStore};

const ROUNDS: usize = 5;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

async fn run() {
    let tasks: usize = std::env::var("TASKS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000);
    println!("{tasks} tasks, {ROUNDS} rounds; tasks/s, median (range)");
    if std::env::var("SECTION").is_ok_and(|section| section == "gates") {
        return gates(tasks).await;
    }
    println!("{:>6} {:>6} {:>26} {:>26} {:>8}", "batch", "lanes", "limit", "store", "share");
    for batch in [100, 500] {
        for lanes in [1, 2, 4] {
            let (mut limits, mut stores) = (Vec::new(), Vec::new());
            for _ in 0..ROUNDS {
                limits.push(limit(tasks, batch, lanes).await);
                stores.push(store(tasks, batch, lanes, Work::Plain).await);
            }
            let (limit, store) = (median(&mut limits), median(&mut stores));
            println!(
                "{batch:>6} {lanes:>6} {:>26} {:>26} {:>7.0}%",
                shown(&limits),
                shown(&stores),
                100.0 * store / limit
            );
        }
    }
    pushes().await;
    gates(tasks).await;
}

/// What is drained.
#[derive(Debug, Clone, Copy)]
enum Work {
    Plain,
    /// The queue has a rate and a concurrency that are never reached.
    Limited,
    /// Tasks of fifty keys.
    Keyed,
    /// The same, and each key has a rate and a concurrency that are never reached.
    KeysLimited,
}

const WORKS: [Work; 4] = [Work::Plain, Work::Limited, Work::Keyed, Work::KeysLimited];
const KEYS: usize = 50;

/// Limits that do not bind, and keys, against a queue without them.
async fn gates(tasks: usize) {
    println!("{:>6} {:>6} {:>22} {:>22} {:>22} {:>22}", "batch", "lanes", "plain", "limited", "keyed", "keys limited");
    for batch in numbers("BATCHES", &[10, 100, 500]) {
        for lanes in numbers("LANES", &[1, 2, 4]) {
            let mut rates = WORKS.map(|_| Vec::new());
            let tasks = tasks.min(batch * numbers("CLAIMS", &[400])[0]);
            for _ in 0..numbers("ROUNDS", &[ROUNDS])[0] {
                for (rates, work) in rates.iter_mut().zip(WORKS) {
                    rates.push(store(tasks, batch, lanes, work).await);
                }
            }
            let [plain, limited, keyed, keys_limited] = rates.each_mut().map(|rates| median(rates));
            let shown: Vec<String> = rates.iter().map(|rates| format!("{:>22}", shown(rates))).collect();
            println!(
                "{batch:>6} {lanes:>6} {}   limited {:.0}%, keyed {:.0}%, keys limited {:.0}% of keyed",
                shown.join(" "),
                100.0 * limited / plain,
                100.0 * keyed / plain,
                100.0 * keys_limited / keyed,
            );
        }
    }
}

/// Numbers from the environment, as in `LANES=1,2,4`.
fn numbers(name: &str, usual: &[usize]) -> Vec<usize> {
    let given = std::env::var(name).ok();
    given.map_or(usual.to_vec(), |text| text.split(',').map(|part| part.parse().expect("a number")).collect())
}

fn median(rates: &mut [f64]) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

fn shown(rates: &[f64]) -> String {
    format!("{:.0} ({:.0}-{:.0})", rates[rates.len() / 2], rates[0], rates[rates.len() - 1])
}

fn url() -> String {
    std::env::var("WINDLASS_TEST_POSTGRES_URL").expect("WINDLASS_TEST_POSTGRES_URL names a server")
}

async fn client() -> Client {
    let (client, connection) = tokio_postgres::connect(&url(), NoTls).await.expect("a server");
    tokio::spawn(connection);
    client
}

async fn open(schema: &str, connections: usize) -> PostgresStore {
    client().await.batch_execute(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE")).await.expect("dropped");
    let joint = if url().contains('?') { '&' } else { '?' };
    let address = format!("{}{joint}schema={schema}&connections={connections}", url());
    let options = Options { retention: Retention::default(), ..Options::default() };
    PostgresStore::connect(&address, options).await.expect("a store")
}

fn task() -> Envelope {
    Envelope::new(
        TaskName::known("bench"),
        QueueName::default(),
        Args::parse(r#"{"number":1017,"to":"somebody"}"#).expect("JSON"),
    )
}

fn demand(node: usize, max: usize) -> Demand {
    Demand {
        node: NodeId::known(&format!("node-{node}")),
        queues: vec![QueueName::default()],
        max,
        lease: Duration::from_secs(60),
        except: Vec::new(),
        wait: Duration::ZERO,
        hush: CancellationToken::new(),
    }
}

fn settled(claims: &[Claim]) -> Vec<Settled> {
    let done = |claim: &Claim| Settled {
        receipt: claim.receipt.clone(),
        verdict: Verdict::Succeeded { result: Json::null(), skipped: None },
        follow: Follow::default(),
    };
    claims.iter().map(done).collect()
}

/// Each lane settles its last batch and claims the next at the same time, as a worker does.
async fn store(tasks: usize, batch: usize, lanes: usize, work: Work) -> f64 {
    let store = Arc::new(open("bench_store", lanes).await);
    let about = match work {
        Work::Plain | Work::Keyed => None,
        Work::Limited => Some(Subject::Queue(QueueName::default())),
        Work::KeysLimited => Some(Subject::KeysOfQueue(QueueName::default())),
    };
    if let Some(subject) = about {
        let rate = Some(Rate { burst: 1_000_000, ..Rate::new(1_000_000, Duration::from_secs(1)) });
        let rule = Rule { concurrency: Some(1_000_000), rate, ..Rule::default() };
        store.limit(&LimitChange::Set(Limit { subject, rule })).await.expect("a limit");
    }
    let task_of = |number: usize| match work {
        Work::Plain | Work::Limited => task(),
        Work::Keyed | Work::KeysLimited => {
            Envelope { key: Some(Key::known(&format!("key {}", number % KEYS))), ..task() }
        }
    };
    for _ in 0..tasks / 1_000 {
        let push = Push { envelopes: (0..1_000).map(task_of).collect(), groups: Vec::new() };
        store.push(&push).await.expect("pushed");
    }
    for rest in ["VACUUM ANALYZE bench_store.live", "CHECKPOINT"] {
        client().await.batch_execute(rest).await.expect("vacuumed");
    }
    let ended = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let workers = (0..lanes).map(|node| {
        let (store, ended) = (Arc::clone(&store), Arc::clone(&ended));
        tokio::spawn(async move {
            let mut held: Vec<Claim> = Vec::new();
            loop {
                let settles = settled(&held);
                let wanted = demand(node, batch);
                let (settlements, next) = tokio::join!(store.settle(&settles), store.claim(&wanted));
                ended.fetch_add(settlements.expect("settled").len(), Ordering::Relaxed);
                held = next.expect("claimed");
                if held.is_empty() {
                    return;
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("a worker ends");
    }
    assert_eq!(ended.load(Ordering::Relaxed), tasks / 1_000 * 1_000, "every task ended");
    rate(tasks / 1_000 * 1_000, began.elapsed())
}

fn rate(tasks: usize, took: Duration) -> f64 {
    tasks as f64 / took.as_secs_f64()
}

/// The same on a bare table: the last batch is deleted and the next claimed in one statement.
async fn limit(tasks: usize, batch: usize, lanes: usize) -> f64 {
    let setup = client().await;
    setup
        .batch_execute(&format!(
            "DROP TABLE IF EXISTS bench_limit; CREATE TABLE bench_limit (id bigserial PRIMARY KEY, queue text NOT NULL, \
             rank bigint NOT NULL, lease bigint, body text NOT NULL); \
             CREATE INDEX bench_limit_ready ON bench_limit (queue, rank, id) WHERE lease IS NULL; \
             INSERT INTO bench_limit (queue, rank, body) SELECT 'default', n, \
             '{{\"v\":1,\"args\":{{\"number\":1017,\"to\":\"somebody\"}}}}' FROM generate_series(1, {tasks}) n"
        ))
        .await
        .expect("a table");
    for rest in ["VACUUM ANALYZE bench_limit", "CHECKPOINT"] {
        setup.batch_execute(rest).await.expect("vacuumed");
    }
    let began = Instant::now();
    let workers = (0..lanes).map(|_| {
        tokio::spawn(async move {
            let client = client().await;
            let step = client
                .prepare(
                    "WITH acked AS (DELETE FROM bench_limit WHERE id = ANY($1)), \
                     picked AS (SELECT id FROM bench_limit WHERE queue = 'default' AND lease IS NULL ORDER BY rank, id LIMIT $2 \
                     FOR UPDATE SKIP LOCKED) \
                     UPDATE bench_limit b SET lease = 1 FROM picked WHERE b.id = picked.id RETURNING b.id, b.body",
                )
                .await
                .expect("prepared");
            let mut held: Vec<i64> = Vec::new();
            loop {
                let rows = client.query(&step, &[&held, &(batch as i64)]).await.expect("claimed");
                held = rows.iter().map(|row| row.get(0)).collect();
                if held.is_empty() {
                    return;
                }
            }
        })
    });
    for worker in workers.collect::<Vec<_>>() {
        worker.await.expect("a worker ends");
    }
    let took = began.elapsed();
    setup.batch_execute("DROP TABLE bench_limit").await.expect("dropped");
    rate(tasks, took)
}

/// Concurrent single pushes, against `unnest` of a thousand.
async fn pushes() {
    const PUSHES: usize = 10_000;
    for callers in [1, 16, 64] {
        let mut rates = Vec::new();
        for _ in 0..ROUNDS {
            let store = Arc::new(open("bench_store", 3).await);
            let began = Instant::now();
            let each = if callers == 1 { 500 } else { PUSHES / callers };
            let producers: Vec<_> = (0..callers)
                .map(|_| {
                    let store = Arc::clone(&store);
                    tokio::spawn(async move {
                        for _ in 0..each {
                            store.push(&Push { envelopes: vec![task()], groups: Vec::new() }).await.expect("pushed");
                        }
                    })
                })
                .collect();
            for producer in producers {
                producer.await.expect("a producer ends");
            }
            rates.push(rate(each * callers, began.elapsed()));
        }
        median(&mut rates);
        println!("single pushes, {callers} callers: {}", shown(&rates));
    }
    let mut rates = Vec::new();
    for _ in 0..ROUNDS {
        let store = open("bench_store", 3).await;
        let batches: Vec<Push> =
            (0..10).map(|_| Push { envelopes: (0..1_000).map(|_| task()).collect(), groups: Vec::new() }).collect();
        let began = Instant::now();
        for push in &batches {
            store.push(push).await.expect("pushed");
        }
        rates.push(rate(10_000, began.elapsed()));
    }
    median(&mut rates);
    println!("pushes of 1,000: {}", shown(&rates));
}
