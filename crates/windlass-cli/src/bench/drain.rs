//! `bench drain`: how fast tasks that do nothing are enqueued and drained.
//!
//! Nothing is removed meanwhile: `soak` measures that. For each run: a fresh store, all tasks pushed in batches, then a
//! worker that drains them, in this process or in several of their own. The store's own limit ([`raw`](super::raw)) is
//! measured after each run, in batches of the size that the worker had, with bodies as long and over as many
//! connections, so that whatever else the machine does hits both.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::try_join_all;
use serde_json::{Value, json};
use windlass::envelope::PUSH_MAX;
use windlass::worker::SLOTS_MAX;
use windlass::{Client, QueueName};

use super::bed::{self, Open, Place, Watch, Working};
use super::measured::Batches;
use super::raw::{Limit, Load, Raw};
use super::server::micros_per_task;
use super::side::{Done, Helper, Word, Work};
use super::stats::{Histogram, Latencies, Runs, rounded, thousands};
use super::{Bench, Goal, Repeat, Report, gates, machine};
use crate::exit::Problem;
use crate::output::bytes;

/// Slots of the worker: batches that are worth a sync of the disk. Handlers that do nothing need none of them for
/// themselves.
const SLOTS: usize = 256;
/// What a drain should reach on two cores of 2.5 GHz.
const MEMORY_RATE_MIN: f64 = 300_000.0;
const SQLITE_RATE_MIN: f64 = 40_000.0;
/// Of the store's own limit with equal batches and connections, on any machine, in percent.
const SQLITE_SHARE_MIN: f64 = 60.0;
const REDIS_SHARE_MIN: f64 = 60.0;
const POSTGRES_SHARE_MIN: f64 = 70.0;
/// A long queue costs no more than this, in percent.
const BACKLOG_SHARE_MIN: f64 = 95.0;
/// Connections of a PostgreSQL store that work, when its URL does not say.
const POSTGRES_CONNECTIONS: usize = 3;

/// How fast tasks that do nothing are enqueued and drained
///
/// Prints tasks a second, CPU time, latencies and memory, and the share of what a bare loop of the store's own commands
/// reaches with the same batches, the same bodies and the same syncs in the same run.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench drain                               SQLite, in a temporary file beside you
  windlass bench drain --store memory --runs 5
  windlass bench drain --store redis://127.0.0.1/0 --processes 2 --slots 100
  windlass bench drain --backlog 1000000 --check     whether a long queue makes it slower
  windlass bench drain --store sqlite:/mnt/disk/t.db --payload 10240 --slots 100")]
pub(crate) struct Args {
    #[command(flatten)]
    plan: Plan,
    /// So many more tasks wait behind the measured ones; each run is compared with one without them
    #[arg(long, value_name = "COUNT", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000_000))]
    backlog: u32,
    /// Run once more before, and forget that run
    #[arg(long)]
    warm_up: bool,
    #[command(flatten)]
    pub(super) repeat: Repeat,
}

/// What is drained, and by whom.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Plan {
    /// Tasks in each run
    #[arg(long, value_name = "COUNT", default_value_t = 200_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub(super) tasks: u32,
    /// Tasks that run at once in each process; the most that are claimed or settled in one step
    #[arg(long, visible_alias = "concurrency", value_name = "COUNT", default_value_t = SLOTS as u32, value_parser = clap::value_parser!(u32).range(1..=SLOTS_MAX as i64))]
    pub(super) slots: u32,
    /// Bytes of arguments in each task
    #[arg(long, value_name = "BYTES", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(super) payload: u32,
    /// Work in so many processes of their own; without it, in this one
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(super) processes: Option<u32>,
}

/// In what a run is unlike others of the same plan.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Setting {
    /// So many more tasks wait behind the measured ones.
    pub(super) backlog: u32,
    /// The tasks have so many keys, in turns; zero: none has one.
    pub(super) keys: u32,
    /// The queue has limits that stop nothing ([`gates::loose`]).
    pub(super) limited: bool,
}

/// What one run has given.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) enqueue: f64,
    pub(super) drain: f64,
    /// Microseconds of CPU for each task.
    pub(super) worker_cpu: Option<f64>,
    pub(super) server_cpu: Option<f64>,
    /// The largest of the processes.
    memory_peak: Option<u64>,
    /// The share of the process that did least, of what would be its fair share, in percent.
    least: f64,
    held: Histogram,
    claims: Batches,
    settles: Batches,
}

/// What all of them have given.
#[derive(Debug, Default)]
struct All {
    enqueue: Runs,
    drain: Runs,
    worker_cpu: Runs,
    server_cpu: Runs,
    least: Runs,
    memory_peak: u64,
    held: Latencies,
    claims: Batches,
    settles: Batches,
    limit: Limits,
    /// Of the rate without a backlog, in percent.
    of_short: Runs,
}

/// The store's own.
#[derive(Debug, Default)]
struct Limits {
    enqueue: Runs,
    drain: Runs,
    share: Runs,
    share_of_enqueue: Runs,
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let (place, plan, runs) = (&bench.place, &args.plan, args.repeat.runs);
    let mut all = All::default();
    if args.warm_up {
        bench.progress("warm-up");
        one(place, plan, Setting::default()).await?;
    }
    for number in 1..=runs {
        let run = one(place, plan, Setting { backlog: args.backlog, ..Setting::default() }).await?;
        bench.progress(format_args!("run {number} of {runs}: {} tasks/s", thousands(run.drain as u64)));
        if let Some(raw) = Raw::of(place) {
            let limit = raw.limit(&load_of(place, plan, &run)?).await?;
            let name = raw.name();
            bench.progress(format_args!("  {name} alone: {} tasks/s", thousands(limit.drain as u64)));
            all.limit.add(&run, limit);
        }
        if args.backlog > 0 {
            let short = one(place, plan, Setting::default()).await?.drain;
            bench.progress(format_args!("  without the backlog: {} tasks/s", thousands(short as u64)));
            all.of_short.add(run.drain / short * 100.0);
        }
        all.add(run);
    }
    Ok(all.report(place, args))
}

/// One run on a fresh queue.
pub(super) async fn one(place: &Place, plan: &Plan, setting: Setting) -> Result<Run, Problem> {
    let open = place.open(bed::keep_everything()).await?;
    let queue = bed::own_queue()?;
    if setting.limited {
        gates::set(&open, gates::loose(&queue, setting.keys)).await?;
    }
    let enqueue = push(&open, &queue, plan, setting).await?;
    let (server_before, server_after);
    let (seconds, done) = if let Some(processes) = plan.processes {
        let start = |_| Helper::start(&open, &queue, Work::Noop, plan.slots);
        let helpers = try_join_all((0..processes).map(start)).await?;
        server_before = place.server_cpu().await?;
        let drained = in_processes(helpers, plan.tasks.into()).await?;
        server_after = place.server_cpu().await?;
        drained
    } else {
        server_before = place.server_cpu().await?;
        let drained = here(&open, &queue, plan).await?;
        server_after = place.server_cpu().await?;
        drained
    };
    bed::all_well(done.iter().map(|done| done.wrong).sum())?;
    open.close(&queue).await?;
    Ok(summed(plan, enqueue, seconds, micros_per_task(server_before, server_after, plan.tasks.into()), &done))
}

/// What several processes have done, together.
fn summed(plan: &Plan, enqueue: f64, seconds: f64, server_cpu: Option<f64>, done: &[Done]) -> Run {
    let tasks = f64::from(plan.tasks);
    let cpu = done.iter().map(|done| done.cpu_seconds).sum::<Option<f64>>();
    let fair = done.iter().map(|done| done.settled).sum::<u64>() as f64 / done.len().max(1) as f64;
    let least = done.iter().map(|done| done.settled).min().unwrap_or_default() as f64 / fair.max(1.0) * 100.0;
    let mut run = Run {
        enqueue,
        drain: tasks / seconds.max(1e-9),
        worker_cpu: cpu.map(|seconds| seconds / tasks * 1e6),
        server_cpu,
        memory_peak: done.iter().filter_map(|done| done.memory_peak).max(),
        least,
        held: Histogram::default(),
        claims: Batches::default(),
        settles: Batches::default(),
    };
    for done in done {
        run.held.merge(&done.held);
        run.claims.merge(&done.claims);
        run.settles.merge(&done.settles);
    }
    run
}

/// Drains in this process; answers for how long.
async fn here(open: &Open, queue: &QueueName, plan: &Plan) -> Result<(f64, Vec<Done>), Problem> {
    let registry = bed::noop_registry().await?;
    let watch = Arc::new(Watch::default());
    machine::forget_peak();
    let (began, cpu) = (Instant::now(), machine::cpu_seconds());
    let worker = Working::start(&open.backend, registry, queue, Some(plan.slots as usize), &watch);
    watch.until(plan.tasks.into()).await;
    let (seconds, cpu_after) = (began.elapsed().as_secs_f64(), machine::cpu_seconds());
    let memory_peak = machine::memory_peak();
    worker.stop().await?;
    let done = Done {
        settled: watch.settled(),
        wrong: watch.wrong(),
        last_at: watch.last_at(),
        cpu_seconds: cpu.zip(cpu_after).map(|(before, after)| after - before),
        memory_peak,
        held: watch.held(),
        claims: open.tally.claims.lock().clone(),
        settles: open.tally.settles.lock().clone(),
    };
    Ok((seconds, vec![done]))
}

/// Drains in processes of their own; answers for how long, from when they may begin to the end of the last task.
async fn in_processes(mut helpers: Vec<Helper>, tasks: u64) -> Result<(f64, Vec<Done>), Problem> {
    let began_at = bed::now();
    for helper in &mut helpers {
        helper.go().await?;
    }
    let mut settled = vec![0; helpers.len()];
    while settled.iter().sum::<u64>() < tasks {
        let next = helpers.iter_mut().map(|helper| Box::pin(helper.next()));
        let (word, helper, _) = futures_util::future::select_all(next).await;
        if let Word::Settled(count) = word? {
            settled[helper] = count;
        }
    }
    let done = try_join_all(helpers.into_iter().map(Helper::stop)).await?;
    let last_at = done.iter().map(|done| done.last_at).max().unwrap_or_default();
    Ok(((last_at - began_at.as_micros()) as f64 / 1e6, done))
}

/// Pushes the tasks, and answers how many a second that were.
async fn push(open: &Open, queue: &QueueName, plan: &Plan, setting: Setting) -> Result<f64, Problem> {
    let client = Client::new(Arc::clone(&open.backend));
    let tasks = plan.tasks + setting.backlog;
    let mut left = tasks as usize;
    let began = Instant::now();
    while left > 0 {
        let count = left.min(PUSH_MAX);
        let mut envelopes = bed::noops(queue, count, plan.payload as usize)?;
        if setting.keys > 0 {
            for (number, envelope) in (0..setting.keys).cycle().zip(&mut envelopes) {
                envelope.key = Some(bed::key_of(number)?);
            }
        }
        client.push(envelopes).await?;
        left -= count;
    }
    Ok(f64::from(tasks) / began.elapsed().as_secs_f64())
}

/// What the store alone has to do to do the same as a run.
fn load_of(place: &Place, plan: &Plan, run: &Run) -> Result<Load, Problem> {
    let processes = plan.processes.unwrap_or(1) as usize;
    let connections = match place.kind() {
        "postgres" => processes * postgres_connections(place),
        "redis" => processes,
        // The file has one writer at a time, however many processes there are.
        _ => 1,
    };
    Ok(Load {
        tasks: plan.tasks as usize,
        body: bed::noops(&QueueName::default(), 1, plan.payload as usize)?[0].to_body(),
        push_batch: PUSH_MAX,
        batch: (run.claims.sizes.mean().round() as usize).max(1),
        connections,
    })
}

fn postgres_connections(place: &Place) -> usize {
    let query = place.server().and_then(|server| server.url().split_once('?')).map_or("", |(_, query)| query);
    let count = query.split('&').find_map(|part| part.strip_prefix("connections=")?.parse().ok());
    count.unwrap_or(POSTGRES_CONNECTIONS)
}

impl Limits {
    fn add(&mut self, run: &Run, limit: Limit) {
        self.enqueue.add(limit.enqueue);
        self.drain.add(limit.drain);
        self.share.add(run.drain / limit.drain * 100.0);
        self.share_of_enqueue.add(run.enqueue / limit.enqueue * 100.0);
    }
}

impl All {
    fn add(&mut self, run: Run) {
        self.enqueue.add(run.enqueue);
        self.drain.add(run.drain);
        self.least.add(run.least);
        self.worker_cpu.add_known(run.worker_cpu);
        self.server_cpu.add_known(run.server_cpu);
        self.memory_peak = self.memory_peak.max(run.memory_peak.unwrap_or_default());
        self.held.add(&run.held);
        self.claims.merge(&run.claims);
        self.settles.merge(&run.settles);
    }

    fn report(&self, place: &Place, args: &Args) -> Report {
        let (plan, runs) = (&args.plan, args.repeat.runs);
        let mut report = Report::new("drain", place.kind());
        report.put("tasks", json!(plan.tasks), thousands(plan.tasks.into()));
        report.put("slots", json!(plan.slots), plan.slots.to_string());
        report.put("payload_bytes", json!(plan.payload), bytes(plan.payload.into()));
        if let Some(processes) = plan.processes {
            report.put("processes", json!(processes), format!("{processes}, each of its own"));
            let text = format!("{}; 100 % is fair", self.least.text("%"));
            report.put("least_of_a_process_percent", self.least.json(), text);
        }
        report.put("runs", json!(runs), runs.to_string());
        report.rate("drain_tasks_per_s", &self.drain, "tasks/s");
        if place.kind() == "memory" {
            let nanos = 1e9 / self.drain.median();
            report.put("ns_per_task", json!(nanos.round()), format!("{nanos:.0} ns: the engine itself is the limit"));
        }
        report.rate("enqueue_tasks_per_s", &self.enqueue, "tasks/s");
        report.cpu("worker_cpu_us_per_task", &self.worker_cpu);
        if place.server().is_some() {
            report.cpu("server_cpu_us_per_task", &self.server_cpu);
        }
        report.times("claim_to_settled", &self.held);
        report.put("claim", self.claims.took.json("us"), self.claims.took.text());
        report.put("settle", self.settles.took.json("us"), self.settles.took.text());
        report.put("claim_batch_tasks", sizes_json(&self.claims.sizes), sizes(&self.claims.sizes));
        report.put("settle_batch_tasks", sizes_json(&self.settles.sizes), sizes(&self.settles.sizes));
        report.put("memory_peak_bytes", json!(self.memory_peak), bytes(self.memory_peak));
        if self.limit.drain.count() > 0 {
            let limit = &self.limit;
            report.rate("limit_drain_tasks_per_s", &limit.drain, "tasks/s");
            report.rate("share_of_limit_percent", &limit.share, "%");
            report.rate("limit_enqueue_tasks_per_s", &limit.enqueue, "tasks/s");
            report.rate("share_of_limit_enqueue_percent", &limit.share_of_enqueue, "%");
        }
        if args.backlog > 0 {
            report.put("backlog_tasks", json!(args.backlog), thousands(args.backlog.into()));
            report.rate("of_the_rate_without_backlog_percent", &self.of_short, "%");
            let share = self.of_short.median();
            report.goal(Goal::at_least("the rate before a backlog, of that without", share, BACKLOG_SHARE_MIN, "%"));
        }
        self.set_goals(&mut report, place.kind());
        report
    }

    fn set_goals(&self, report: &mut Report, kind: &str) {
        let (drain, share) = (self.drain.median(), self.limit.share.median());
        match kind {
            "memory" => report.goal(Goal::at_least("drain through memory", drain, MEMORY_RATE_MIN, "tasks/s")),
            "sqlite" => {
                report.goal(Goal::at_least("drain through SQLite", drain, SQLITE_RATE_MIN, "tasks/s"));
                report.goal(Goal::at_least("share of SQLite's own limit", share, SQLITE_SHARE_MIN, "%"));
            }
            "redis" => report.goal(Goal::at_least("share of Redis' own limit", share, REDIS_SHARE_MIN, "%")),
            _ => report.goal(Goal::at_least("share of PostgreSQL's own limit", share, POSTGRES_SHARE_MIN, "%")),
        }
    }
}

fn sizes_json(sizes: &Histogram) -> Value {
    json!({ "mean": rounded(sizes.mean()), "p50": sizes.quantile(0.5), "max": sizes.max(), "batches": sizes.count() })
}

fn sizes(sizes: &Histogram) -> String {
    let batches = thousands(sizes.count());
    format!("mean {:.0}, p50 {}, max {} in {batches} batches", sizes.mean(), sizes.quantile(0.5), sizes.max())
}
