//! Measures what tasks cost the server, and how soon a waiting claim gets one.
//!
//! ```text
//! cargo run --release -p windlass-redis --bench measure -- redis://127.0.0.1:6379
//! ```
//!
//! The cost of the server is the CPU time of its main thread (`INFO cpu`): scripts, network and log together. The numbers of a
//! server that others use as well are too high. The namespace `measure` is emptied before and after.

use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use windlass_core::backend::{Backend, Claim, Demand, Push, Settled};
use windlass_core::flow::Follow;
use windlass_core::limit::{Limit, LimitChange, Rule};
use windlass_core::view::Retention;
use windlass_core::{Args, Envelope, Json, Key, NodeId, QueueName, TaskName, Verdict};
use windlass_redis::{Location, Options, RedisStore};

const TASKS: usize = 50_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let url = std::env::args().nth(1).ok_or("the URL of a server is missing")?;
    let location = url.parse::<Location>()?.with_namespace("measure")?;
    let mut server = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
    clear(&mut server).await?;
    for (batch, finished_max) in [(1, 100_000), (100, 100_000), (250, 100_000), (1_000, 100_000), (100, 1_000)] {
        let retention = Retention { finished_max, ..Retention::default() };
        let store = RedisStore::open(location.clone(), Options { retention, ..Options::default() }).await?;
        let tasks = if batch == 1 { TASKS / 10 } else { TASKS };
        let push_batch = if batch == 1 { 1 } else { 1_000 };
        let (pushing, pushed) = timed(&mut server, push(&store, tasks, push_batch)).await?;
        let (draining, drained) = timed(&mut server, drain(&store, batch)).await?;
        let per = |micros: f64| micros / tasks as f64;
        println!(
            "batch {batch:4}, {finished_max:6} kept: push by {push_batch:4} {:6.2} us of the server, {:6.0}/s; \
             claim and settle {:6.2} us, {:6.0}/s",
            per(pushing),
            tasks as f64 / pushed.as_secs_f64(),
            per(draining),
            tasks as f64 / drained.as_secs_f64(),
        );
    }
    for with in [With::Nothing, With::Limits, With::Keys, With::Nothing, With::Limits, With::Keys] {
        with_limits_or_keys(&location, &mut server, with).await?;
    }
    let info = RedisStore::open(location.clone(), Options::default()).await?.info().await?;
    for check in info.checks {
        println!("{}: {}", check.name, check.detail);
    }
    latency(&location).await?;
    clear(&mut server).await
}

/// What a claim has to look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum With {
    Nothing,
    /// A rate and a concurrency that never bind.
    Limits,
    /// A hundred keys.
    Keys,
}

async fn with_limits_or_keys(
    location: &Location,
    server: &mut redis::aio::MultiplexedConnection,
    with: With,
) -> Result<(), Box<dyn Error>> {
    clear(server).await?;
    let store = RedisStore::open(location.clone(), Options::default()).await?;
    if with == With::Limits {
        let rule =
            Rule { rate: Some("1000000/s burst 1000000".parse()?), concurrency: Some(10_000), ..Rule::default() };
        store.limit(&LimitChange::Set(Limit { subject: "queue:default".parse()?, rule: rule.clone() })).await?;
        store.limit(&LimitChange::Set(Limit { subject: "task:send_email".parse()?, rule })).await?;
    }
    for round in 0..TASKS / 1_000 {
        let key =
            |number: usize| Key::new(format!("key {}", (round + number) % 100)).ok().filter(|_| with == With::Keys);
        let envelopes = (0..1_000)
            .map(|number| task().map(|task| Envelope { key: key(number), ..task }))
            .collect::<Result<_, _>>()?;
        store.push(&Push { envelopes, groups: Vec::new() }).await?;
    }
    let (draining, drained) = timed(server, drain(&store, 100)).await?;
    println!(
        "batch  100, with {with:?}: claim and settle {:6.2} us, {:6.0}/s",
        draining / TASKS as f64,
        TASKS as f64 / drained.as_secs_f64()
    );
    Ok(())
}

async fn clear(server: &mut redis::aio::MultiplexedConnection) -> Result<(), Box<dyn Error>> {
    let keys: Vec<String> = redis::cmd("KEYS").arg("{measure}:*").query_async(server).await?;
    if !keys.is_empty() {
        let _: i64 = redis::cmd("DEL").arg(keys).query_async(server).await?;
    }
    Ok(())
}

/// The microseconds of CPU that the server spent, and how long it took.
async fn timed(
    server: &mut redis::aio::MultiplexedConnection,
    work: impl Future<Output = Result<(), Box<dyn Error>>>,
) -> Result<(f64, Duration), Box<dyn Error>> {
    let before = cpu(server).await?;
    let began = Instant::now();
    work.await?;
    let took = began.elapsed();
    Ok((cpu(server).await? - before, took))
}

async fn cpu(server: &mut redis::aio::MultiplexedConnection) -> Result<f64, Box<dyn Error>> {
    let told: String = redis::cmd("INFO").arg("cpu").query_async(server).await?;
    let of = |name: &str| told.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.parse::<f64>().ok());
    // Of the thread that runs commands, where the server tells; its file is written by another.
    let seconds = ["user", "sys"].map(|kind| {
        of(&format!("used_cpu_{kind}_main_thread")).or_else(|| of(&format!("used_cpu_{kind}"))).unwrap_or_default()
    });
    Ok(seconds.iter().sum::<f64>() * 1e6)
}

fn task() -> Result<Envelope, Box<dyn Error>> {
    let args = Args::parse(r#"{"user_id":4711,"email":"someone@example.com"}"#)?;
    Ok(Envelope::new(TaskName::known("send_email"), QueueName::default(), args))
}

async fn push(store: &RedisStore, tasks: usize, batch: usize) -> Result<(), Box<dyn Error>> {
    for _ in 0..tasks / batch {
        let envelopes = (0..batch).map(|_| task()).collect::<Result<_, _>>()?;
        store.push(&Push { envelopes, groups: Vec::new() }).await?;
    }
    Ok(())
}

fn demand(max: usize, wait: Duration) -> Demand {
    Demand {
        node: NodeId::known("node-1"),
        queues: vec![QueueName::default()],
        max,
        lease: Duration::from_secs(30),
        except: Vec::new(),
        wait,
        hush: CancellationToken::new(),
    }
}

async fn drain(store: &RedisStore, batch: usize) -> Result<(), Box<dyn Error>> {
    loop {
        let claims = store.claim(&demand(batch, Duration::ZERO)).await?;
        if claims.is_empty() {
            return Ok(());
        }
        store.settle(&claims.iter().map(settled).collect::<Vec<_>>()).await?;
    }
}

fn settled(claim: &Claim) -> Settled {
    let verdict = Verdict::Succeeded { result: Json::null(), skipped: None };
    Settled { receipt: claim.receipt.clone(), verdict, follow: Follow::default() }
}

/// From the start of a push to the claim that has the task, 200 times a second, from another handle.
async fn latency(location: &Location) -> Result<(), Box<dyn Error>> {
    let producer = RedisStore::open(location.clone(), Options::default()).await?;
    let worker = Arc::new(RedisStore::open(location.clone(), Options::default()).await?);
    let (started, mut starts) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok(claims) = worker.claim(&demand(10, Duration::from_secs(5))).await {
            let now = Instant::now();
            if claims.is_empty() || claims.iter().any(|claim| started.send((claim.receipt.id.clone(), now)).is_err()) {
                return;
            }
            let settled: Vec<Settled> = claims.iter().map(settled).collect();
            let worker = Arc::clone(&worker);
            tokio::spawn(async move { worker.settle(&settled).await });
        }
    });
    let mut waits = Vec::new();
    for _ in 0..1_000 {
        // tidy: allow(sleep): the pace of the measurement
        tokio::time::sleep(Duration::from_millis(5)).await;
        let envelope = task()?;
        let id = envelope.id.clone();
        let began = Instant::now();
        producer.push(&Push { envelopes: vec![envelope], groups: Vec::new() }).await?;
        let (claimed, at) = starts.recv().await.ok_or("the worker is gone")?;
        assert_eq!(claimed, id, "one task is under way at a time");
        waits.push(at.duration_since(began).as_micros());
    }
    waits.sort_unstable();
    let at = |share: f64| waits[((waits.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
    println!("push to claim at 200/s: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms", at(0.5), at(0.99), at(1.0));
    Ok(())
}
