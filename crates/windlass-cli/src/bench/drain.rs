//! `bench drain`: how fast tasks that do nothing are enqueued and drained.
//!
//! Nothing is removed meanwhile: `soak` measures that. For each run: a fresh store, all tasks pushed in batches, then a worker that drains them. SQLite's own limit
//! ([`raw`]) is measured after each run, in batches of the size that the worker had and with bodies as long, so that
//! whatever else the machine does hits both.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use windlass::envelope::PUSH_MAX;
use windlass::worker::SLOTS_MAX;
use windlass::{Client, QueueName};

use super::bed::{self, Open, Place, Watch, Working};
use super::machine;
use super::measured::Batches;
use super::raw::{self, Ended};
use super::stats::{Histogram, Runs, rounded, thousands};
use super::{Bench, Goal, Report};
use crate::exit::Problem;
use crate::output::bytes;

/// Slots of the worker: batches that are worth a sync of the disk. Handlers that do nothing need none of them for
/// themselves.
const SLOTS: usize = 256;
/// What a drain should reach on two cores of 2.5 GHz.
const MEMORY_RATE_MIN: f64 = 300_000.0;
const SQLITE_RATE_MIN: f64 = 40_000.0;
/// Of SQLite's own limit with equal batches, on any machine.
const SHARE_MIN: f64 = 60.0;

/// How fast tasks that do nothing are enqueued and drained
///
/// Prints tasks a second, CPU time, latencies and memory; for SQLite also the share of what a bare loop of SQLite
/// statements reaches with the same batches, the same bodies and the same syncs in the same run.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench drain                               SQLite, in a temporary file beside you
  windlass bench drain --store memory --runs 5
  windlass bench drain --store sqlite:/mnt/disk/t.db --payload 10240 --slots 100")]
pub(crate) struct Args {
    /// Tasks in each run
    #[arg(long, value_name = "COUNT", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    tasks: u32,
    /// Tasks that run at once; the most that are claimed or settled in one step
    #[arg(long, value_name = "COUNT", default_value_t = SLOTS as u32, value_parser = clap::value_parser!(u32).range(1..=SLOTS_MAX as i64))]
    slots: u32,
    /// Bytes of arguments in each task
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    payload: u32,
    /// Runs; the median of them is printed
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Run once more before, and forget that run
    #[arg(long)]
    warm_up: bool,
    /// Fail when a goal is missed
    #[arg(long)]
    pub(super) check: bool,
}

/// What one run has given.
#[derive(Debug)]
struct Run {
    enqueue: f64,
    drain: f64,
    cpu_micros: Option<f64>,
    memory_peak: Option<u64>,
    held: Histogram,
    claims: Batches,
    settles: Batches,
}

/// What all of them have given.
#[derive(Debug, Default)]
struct All {
    enqueue: Runs,
    drain: Runs,
    cpu_micros: Runs,
    memory_peak: u64,
    held: Histogram,
    claims: Batches,
    settles: Batches,
    limit: Limits,
}

/// SQLite's own.
#[derive(Debug, Default)]
struct Limits {
    enqueue: Runs,
    drain: Runs,
    drain_forgetting: Runs,
    share: Runs,
    share_of_enqueue: Runs,
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let mut all = All::default();
    if args.warm_up {
        bench.progress("warm-up");
        one(&bench.place, args).await?;
    }
    for number in 1..=args.runs {
        let run = one(&bench.place, args).await?;
        bench.progress(format_args!("run {number} of {}: {} tasks/s", args.runs, thousands(run.drain as u64)));
        if bench.place.kind() == "sqlite" {
            let (kept, forgotten) = limit(&bench.place, args, &run).await?;
            bench.progress(format_args!("  SQLite alone: {} tasks/s", thousands(kept.drain as u64)));
            all.limit.enqueue.add(kept.enqueue);
            all.limit.drain.add(kept.drain);
            all.limit.drain_forgetting.add(forgotten.drain);
            all.limit.share.add(run.drain / kept.drain * 100.0);
            all.limit.share_of_enqueue.add(run.enqueue / kept.enqueue * 100.0);
        }
        all.add(run);
    }
    Ok(all.report(bench.place.kind(), args))
}

/// One run on a fresh queue.
async fn one(place: &Place, args: &Args) -> Result<Run, Problem> {
    let open = place.open(bed::keep_everything()).await?;
    let queue = bed::own_queue()?;
    let tasks = u64::from(args.tasks);
    let enqueued = push(&open, &queue, args).await?;
    let registry = bed::noop_registry().await?;
    let watch = Arc::new(Watch::default());
    machine::forget_peak();
    let (began, cpu) = (Instant::now(), machine::cpu_seconds());
    let worker = Working::start(&open.backend, registry, &queue, Some(args.slots as usize), &watch);
    watch.until(tasks).await;
    let (seconds, cpu_after) = (began.elapsed().as_secs_f64(), machine::cpu_seconds());
    let memory_peak = machine::memory_peak();
    worker.stop().await?;
    watch.check()?;
    let run = Run {
        enqueue: enqueued,
        drain: tasks as f64 / seconds,
        cpu_micros: cpu.zip(cpu_after).map(|(before, after)| (after - before) / tasks as f64 * 1e6),
        memory_peak,
        held: watch.held(),
        claims: open.tally.claims.lock().clone(),
        settles: open.tally.settles.lock().clone(),
    };
    if matches!(place, Place::Given(_)) {
        bed::forget(&open, &queue).await?;
    }
    Ok(run)
}

/// Pushes the tasks, and answers how many a second that were.
async fn push(open: &Open, queue: &QueueName, args: &Args) -> Result<f64, Problem> {
    let client = Client::new(Arc::clone(&open.backend));
    let mut left = args.tasks as usize;
    let began = Instant::now();
    while left > 0 {
        let count = left.min(PUSH_MAX);
        client.push(bed::noops(queue, count, args.payload as usize)?).await?;
        left -= count;
    }
    Ok(f64::from(args.tasks) / began.elapsed().as_secs_f64())
}

/// SQLite's own limit for what a run has done.
async fn limit(place: &Place, args: &Args, run: &Run) -> Result<(raw::Limit, raw::Limit), Problem> {
    let folder = place.temporary_folder()?;
    let body = bed::noops(&QueueName::default(), 1, args.payload as usize)?[0].to_body();
    let (tasks, batch) = (args.tasks as usize, (run.claims.sizes.mean().round() as usize).max(1));
    // The folder stays with this future: it goes when the measurement is interrupted.
    let path = folder.path().to_owned();
    let measured = tokio::task::spawn_blocking(move || -> rusqlite::Result<_> {
        let limit = |ended| raw::limit(&path, tasks, &body, PUSH_MAX, batch, ended);
        Ok((limit(Ended::Kept)?, limit(Ended::Forgotten)?))
    });
    Ok(measured.await.map_err(anyhow::Error::from)?.map_err(anyhow::Error::from)?)
}

impl All {
    fn add(&mut self, run: Run) {
        self.enqueue.add(run.enqueue);
        self.drain.add(run.drain);
        if let Some(micros) = run.cpu_micros {
            self.cpu_micros.add(micros);
        }
        self.memory_peak = self.memory_peak.max(run.memory_peak.unwrap_or_default());
        self.held.merge(&run.held);
        self.claims.merge(&run.claims);
        self.settles.merge(&run.settles);
    }

    fn report(&self, kind: &'static str, args: &Args) -> Report {
        let mut report = Report::new("drain", kind);
        report.put("tasks", json!(args.tasks), thousands(args.tasks.into()));
        report.put("slots", json!(args.slots), args.slots.to_string());
        report.put("payload_bytes", json!(args.payload), bytes(args.payload.into()));
        report.put("runs", json!(args.runs), args.runs.to_string());
        report.put("drain_tasks_per_s", self.drain.json(), self.drain.text("tasks/s"));
        if kind == "memory" {
            let nanos = 1e9 / self.drain.median();
            report.goal(Goal::at_least("drain through memory", self.drain.median(), MEMORY_RATE_MIN, "tasks/s"));
            report.put("ns_per_task", json!(nanos.round()), format!("{nanos:.0} ns: the engine itself is the limit"));
        }
        report.put("enqueue_tasks_per_s", self.enqueue.json(), self.enqueue.text("tasks/s"));
        // Microseconds a task are milliseconds a thousand tasks.
        let cpu_per_thousand = format!("{:.4} s per 1,000 tasks", self.cpu_micros.median() / 1e3);
        let cpu = format!("{} = {cpu_per_thousand}", self.cpu_micros.text("us a task"));
        report.put("cpu_us_per_task", self.cpu_micros.json(), cpu);
        report.put("claim_to_settled", self.held.json("us"), self.held.text());
        report.put("claim", self.claims.took.json("us"), self.claims.took.text());
        report.put("settle", self.settles.took.json("us"), self.settles.took.text());
        report.put("claim_batch_tasks", sizes_json(&self.claims.sizes), sizes(&self.claims.sizes));
        report.put("settle_batch_tasks", sizes_json(&self.settles.sizes), sizes(&self.settles.sizes));
        report.put("memory_peak_bytes", json!(self.memory_peak), bytes(self.memory_peak));
        if kind == "sqlite" {
            let limit = &self.limit;
            report.put("sqlite_drain_tasks_per_s", limit.drain.json(), limit.drain.text("tasks/s"));
            report.put("share_of_sqlite_percent", limit.share.json(), limit.share.text("%"));
            report.goal(Goal::at_least("drain through SQLite", self.drain.median(), SQLITE_RATE_MIN, "tasks/s"));
            report.goal(Goal::at_least("share of SQLite's own limit", limit.share.median(), SHARE_MIN, "%"));
            let forgetting = limit.drain_forgetting.text("tasks/s");
            report.put("sqlite_drain_forgetting_tasks_per_s", limit.drain_forgetting.json(), forgetting);
            report.put("sqlite_enqueue_tasks_per_s", limit.enqueue.json(), limit.enqueue.text("tasks/s"));
            report.put(
                "share_of_sqlite_enqueue_percent",
                limit.share_of_enqueue.json(),
                limit.share_of_enqueue.text("%"),
            );
        }
        report
    }
}

fn sizes_json(sizes: &Histogram) -> Value {
    json!({ "mean": rounded(sizes.mean()), "p50": sizes.quantile(0.5), "max": sizes.max(), "batches": sizes.count() })
}

fn sizes(sizes: &Histogram) -> String {
    let batches = thousands(sizes.count());
    format!("mean {:.0}, p50 {}, max {} in {batches} batches", sizes.mean(), sizes.quantile(0.5), sizes.max())
}
