//! `bench enqueue`: how fast tasks get into a store.
//!
//! For each run, on a fresh queue: one by one from one producer, which waits for each; one by one from many producers
//! at once, whose pushes a store may join into one commit; in bulk. After each run the store alone pushes in bulk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use serde_json::json;
use windlass::envelope::PUSH_MAX;
use windlass::{Client, QueueName};

use super::bed::{self, Place};
use super::raw::{Load, Raw};
use super::stats::{Histogram, Latencies, Runs, thousands};
use super::{Bench, Repeat, Report};
use crate::exit::Problem;
use crate::output::bytes;

/// A single producer may need a commit for each task: it stops after this long, however many it has enqueued.
const SINGLE_MAX: Duration = Duration::from_secs(5);

/// How fast tasks are enqueued: one by one, by many at once, in bulk
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench enqueue                             SQLite, in a temporary file beside you
  windlass bench enqueue --store redis://127.0.0.1/0
  windlass bench enqueue --store postgres://127.0.0.1/test --callers 64 --batch 500")]
pub(crate) struct Args {
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    pub(super) repeat: Repeat,
}

/// What is enqueued.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Plan {
    /// Tasks in bulk in each run; a tenth of them by many at once, at most as many one by one
    #[arg(long, value_name = "COUNT", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(10..=10_000_000))]
    pub(super) tasks: u32,
    /// Producers at once
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(super) callers: u32,
    /// Tasks in each push in bulk
    #[arg(long, value_name = "COUNT", default_value_t = PUSH_MAX as u32, value_parser = clap::value_parser!(u32).range(1..=PUSH_MAX as i64))]
    pub(super) batch: u32,
    /// Bytes of arguments in each task
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(super) payload: u32,
}

/// What one run has given, in tasks a second.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) single: f64,
    pub(super) concurrent: f64,
    pub(super) bulk: f64,
    single_took: Histogram,
    concurrent_took: Histogram,
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let (place, plan, runs) = (&bench.place, &args.plan, args.repeat.runs);
    let (mut single, mut concurrent, mut bulk) = (Runs::default(), Runs::default(), Runs::default());
    let (mut single_took, mut concurrent_took) = (Latencies::default(), Latencies::default());
    let (mut limit, mut share) = (Runs::default(), Runs::default());
    for number in 1..=runs {
        let run = one(place, plan).await?;
        bench.progress(format_args!("run {number} of {runs}: {} tasks/s in bulk", thousands(run.bulk as u64)));
        if let Some(raw) = Raw::of(place) {
            let load = Load {
                tasks: plan.tasks as usize,
                body: bed::noops(&QueueName::default(), 1, plan.payload as usize)?[0].to_body(),
                push_batch: plan.batch as usize,
                batch: PUSH_MAX,
                connections: 1,
            };
            let alone = raw.limit(&load).await?.enqueue;
            bench.progress(format_args!("  {} alone: {} tasks/s", raw.name(), thousands(alone as u64)));
            limit.add(alone);
            share.add(run.bulk / alone * 100.0);
        }
        single.add(run.single);
        concurrent.add(run.concurrent);
        bulk.add(run.bulk);
        single_took.add(&run.single_took);
        concurrent_took.add(&run.concurrent_took);
    }
    let mut report = Report::new("enqueue", place.kind());
    report.put("tasks", json!(plan.tasks), thousands(plan.tasks.into()));
    report.put("callers", json!(plan.callers), plan.callers.to_string());
    report.put("batch_tasks", json!(plan.batch), plan.batch.to_string());
    report.put("payload_bytes", json!(plan.payload), bytes(plan.payload.into()));
    report.put("runs", json!(runs), runs.to_string());
    report.rate("one_by_one_tasks_per_s", &single, "tasks/s");
    report.times("one_by_one_took", &single_took);
    report.rate("concurrent_tasks_per_s", &concurrent, "tasks/s");
    report.times("concurrent_took", &concurrent_took);
    report.rate("bulk_tasks_per_s", &bulk, "tasks/s");
    if limit.count() > 0 {
        report.rate("limit_bulk_tasks_per_s", &limit, "tasks/s");
        report.rate("share_of_limit_percent", &share, "%");
    }
    Ok(report)
}

/// One run on a fresh queue.
pub(super) async fn one(place: &Place, plan: &Plan) -> Result<Run, Problem> {
    let open = place.open(bed::keep_everything()).await?;
    let queue = bed::own_queue()?;
    let client = Client::new(Arc::clone(&open.backend));
    let (bytes, each) = (plan.payload as usize, plan.tasks as usize / 10);

    let (single, single_took) = one_by_one(&client, &queue, each, bytes).await?;
    let callers = (plan.callers as usize).min(each.max(1));
    let began = Instant::now();
    let calling =
        (0..callers).map(|_| {
            let (client, queue) = (client.clone(), queue.clone());
            async move {
                tokio::spawn(async move { one_by_one(&client, &queue, (each / callers).max(1), bytes).await }).await
            }
        });
    let called = try_join_all(calling).await.map_err(anyhow::Error::from)?;
    let seconds = began.elapsed().as_secs_f64();
    let mut concurrent_took = Histogram::default();
    for took in called {
        concurrent_took.merge(&took?.1);
    }
    let concurrent = concurrent_took.count() as f64 / seconds;

    let mut batches = Vec::new();
    let mut left = plan.tasks as usize;
    while left > 0 {
        let count = left.min(plan.batch as usize);
        batches.push(count);
        left -= count;
    }
    let began = Instant::now();
    for count in batches {
        client.push(bed::noops(&queue, count, bytes)?).await?;
    }
    let bulk = f64::from(plan.tasks) / began.elapsed().as_secs_f64();
    drop(client);
    open.close(&queue).await?;
    Ok(Run { single, concurrent, bulk, single_took, concurrent_took })
}

/// Enqueues tasks, each after the one before; answers how many a second, and how long each took in microseconds.
async fn one_by_one(
    client: &Client,
    queue: &QueueName,
    count: usize,
    bytes: usize,
) -> Result<(f64, Histogram), Problem> {
    let mut took = Histogram::default();
    let began = Instant::now();
    for _ in 0..count {
        let sent = Instant::now();
        if sent - began > SINGLE_MAX {
            break;
        }
        client.push(bed::noops(queue, 1, bytes)?).await?;
        took.add(sent.elapsed().as_micros() as u64);
    }
    Ok((took.count() as f64 / began.elapsed().as_secs_f64(), took))
}
