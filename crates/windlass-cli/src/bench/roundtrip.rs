//! `bench roundtrip`: how soon the result of a task is back.
//!
//! For each run, on a fresh queue: enqueue and wait for the output, one at a time; then many callers at once, each
//! waiting for its own. Producer and worker are in one process; the result goes through the store all the same.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::try_join_all;
use serde_json::json;
use tokio::sync::mpsc;
use windlass::{Client, QueueName};

use super::bed::{self, Watch, Working};
use super::latency::{self, PATIENCE, Stamp};
use super::stats::{Histogram, Latencies, Runs};
use super::{Bench, Goal, Repeat, Report};
use crate::exit::Problem;

/// Before anything is measured.
const COLD: usize = 20;
/// A round trip through Redis, one at a time.
const REDIS_P50_MS_MAX: f64 = 1.1;

/// How soon the result of a task is back
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench roundtrip
  windlass bench roundtrip --store redis://127.0.0.1/0 --outstanding 100")]
pub(crate) struct Args {
    /// Results that are waited for one after the other in each run
    #[arg(long, value_name = "COUNT", default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    tasks: u32,
    /// Callers that wait at once; together they wait for five times as many results
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    outstanding: u32,
    #[command(flatten)]
    pub(super) repeat: Repeat,
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let runs = args.repeat.runs;
    let (mut alone, mut together) = (Latencies::default(), Latencies::default());
    let (mut alone_rate, mut together_rate) = (Runs::default(), Runs::default());
    for number in 1..=runs {
        bench.progress(format_args!("run {number} of {runs}: {} round trips", args.tasks));
        let open = bench.place.open(bed::keep_everything()).await?;
        let queue = bed::own_queue()?;
        let client = Client::new(Arc::clone(&open.backend));
        // Nobody looks at the starts.
        let (starts, _) = mpsc::unbounded_channel();
        let registry = latency::stamp_registry(starts).await?;
        let worker = Working::start(&open.backend, registry, &queue, None, &Arc::new(Watch::default()));
        trips(&client, &queue, COLD).await?;

        let began = Instant::now();
        let times = trips(&client, &queue, args.tasks as usize).await?;
        alone_rate.add(times.count() as f64 / began.elapsed().as_secs_f64());
        alone.add(&times);

        let each = (args.tasks as usize * 5).div_ceil(args.outstanding as usize);
        let began = Instant::now();
        let callers = (0..args.outstanding).map(|_| {
            let (client, queue) = (client.clone(), queue.clone());
            tokio::spawn(async move { trips(&client, &queue, each).await })
        });
        let mut times = Histogram::default();
        for caller in try_join_all(callers).await.map_err(anyhow::Error::from)? {
            times.merge(&caller?);
        }
        together_rate.add(times.count() as f64 / began.elapsed().as_secs_f64());
        together.add(&times);

        worker.stop().await?;
        drop(client);
        open.close(&queue).await?;
    }
    let mut report = Report::new("roundtrip", bench.place.kind());
    report.put("runs", json!(runs), runs.to_string());
    report.times("one_outstanding", &alone);
    report.rate("one_outstanding_per_s", &alone_rate, "results/s");
    report.put("outstanding", json!(args.outstanding), args.outstanding.to_string());
    report.times("many_outstanding", &together);
    report.rate("many_outstanding_per_s", &together_rate, "results/s");
    if bench.place.kind() == "redis" {
        report.goal(Goal::at_most("a round trip's p50", alone.p50() / 1e3, REDIS_P50_MS_MAX, "ms"));
    }
    Ok(report)
}

/// Enqueues and waits for the output, one at a time; answers how long each took in microseconds.
async fn trips(client: &Client, queue: &QueueName, count: usize) -> Result<Histogram, Problem> {
    let mut times = Histogram::default();
    for _ in 0..count {
        let sent_at = bed::now();
        let enqueued = client.enqueue(Stamp { sent_at: sent_at.as_micros() }).queue(queue.clone()).await?;
        enqueued.output(PATIENCE).await?;
        times.add(bed::now().since(sent_at).as_micros() as u64);
    }
    Ok(times)
}
