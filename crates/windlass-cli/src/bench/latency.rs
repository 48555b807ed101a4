//! `bench latency`: how soon an enqueued task starts.
//!
//! Tasks are enqueued one by one at a steady rate, whether or not those before have started: a slow one cannot hide
//! behind a producer that waits for it. Each carries the time just before its enqueue; its handler takes the time of
//! its start. After each run the store alone does the same at the same rate: from a push to whoever waits for it.
//!
//! With two processes the worker is this program, started again ([`side`](super::side)). Both read the clock of the
//! machine, so that their times can be compared.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use windlass::{App, Client, Cx, QueueName, Registry, Task, TaskError, Timestamp};

use super::bed::{self, Open, Place, Watch, Working};
use super::raw::Raw;
use super::side::{Helper, Word, Work};
use super::stats::{Histogram, Latencies};
use super::{Bench, Goal, Repeat, Report};
use crate::commands::enqueue::rate::Rate;
use crate::exit::{Exit, Problem};

/// Before anything is measured: the first tasks find cold caches and a worker that is still starting.
const COLD: u64 = 20;
/// How long the store alone is measured at most.
const ALONE_MAX: Duration = Duration::from_secs(10);
/// A task that has not started after this long never will.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);
/// From the enqueue to the start.
const P99_MS_MAX: f64 = 5.0;
const REDIS_P99_MS_MAX: f64 = 3.0;
/// The median, as a multiple of what the store alone takes.
const TIMES_ALONE_MAX: f64 = 3.0;

/// How soon an enqueued task starts
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench latency                             200 tasks a second for 10 s
  windlass bench latency --processes 2               the worker in a process of its own
  windlass bench latency --store memory --rate 1000/s --seconds 5")]
pub(crate) struct Args {
    #[command(flatten)]
    plan: Plan,
    #[command(flatten)]
    pub(super) repeat: Repeat,
}

/// What is enqueued, and where it starts.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Plan {
    /// How many tasks are enqueued: 200/s, 600/m
    #[arg(long, value_name = "RATE", default_value = "200/s")]
    pub(super) rate: Rate,
    /// For how long in each run
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    pub(super) seconds: u32,
    /// 1: producer and worker in one process; 2: each in its own
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
    pub(super) processes: u32,
}

/// Says when it starts.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "bench.stamp", output = i64)]
pub(super) struct Stamp {
    /// Just before the enqueue, in microseconds since 1970.
    pub(super) sent_at: i64,
}

/// The application whose tasks say how long after their enqueue they started, in microseconds.
pub(super) async fn stamp_registry(starts: mpsc::UnboundedSender<u64>) -> Result<Registry, Problem> {
    async fn stamp(task: Stamp, cx: Cx<mpsc::UnboundedSender<u64>>) -> Result<i64, TaskError> {
        let started_at = bed::now();
        // A measurement that was stopped does not listen any more.
        let _ = cx.state().send(started_at.since(Timestamp::from_micros(task.sent_at)).as_micros() as u64);
        Ok(started_at.as_micros())
    }
    let app = App::new("bench").state(async move || Ok::<_, std::convert::Infallible>(starts));
    Ok(app.task(stamp).build().await?)
}

/// Where tasks start.
enum Side {
    Here { worker: Working, starts: mpsc::UnboundedReceiver<u64> },
    There(Box<Helper>),
}

impl Side {
    async fn start(open: &Open, queue: &QueueName, processes: u32) -> Result<Self, Problem> {
        if processes == 1 {
            let (sender, starts) = mpsc::unbounded_channel();
            let registry = stamp_registry(sender).await?;
            let worker = Working::start(&open.backend, registry, queue, None, &Arc::new(Watch::default()));
            return Ok(Self::Here { worker, starts });
        }
        let mut helper = Helper::start(open, queue, Work::Stamp, 256).await?;
        helper.go().await?;
        Ok(Self::There(Box::new(helper)))
    }

    /// How long after its enqueue the next task started, in microseconds.
    async fn next(&mut self) -> Result<u64, Problem> {
        let next = async {
            match self {
                Self::Here { starts, .. } => starts.recv().await.ok_or_else(never_started),
                Self::There(helper) => loop {
                    if let Word::Started(after) = helper.next().await? {
                        break Ok(after);
                    }
                },
            }
        };
        tokio::time::timeout(PATIENCE, next).await.map_err(|_| never_started())?
    }

    async fn stop(self) -> Result<(), Problem> {
        match self {
            Self::Here { worker, .. } => worker.stop().await,
            Self::There(helper) => helper.stop().await.map(|_| ()),
        }
    }
}

fn never_started() -> Problem {
    Problem::new(Exit::TimedOut, "a task has not started within 30 s", "run it again with `-v`")
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let (place, plan, runs) = (&bench.place, &args.plan, args.repeat.runs);
    let (mut starts, mut pushes, mut alone) = (Latencies::default(), Latencies::default(), Latencies::default());
    for number in 1..=runs {
        bench.progress(format_args!("run {number} of {runs}: {} s", plan.seconds));
        let (started, pushed) = one(place, plan).await?;
        starts.add(&started);
        pushes.add(&pushed);
        if let Some(raw) = Raw::of(place) {
            let tasks = tasks_in(plan.rate, Duration::from_secs(plan.seconds.into()).min(ALONE_MAX));
            bench.progress(format_args!("  {} alone, {tasks} tasks", raw.name()));
            let body = bed::envelope(&Stamp { sent_at: bed::now().as_micros() }, &QueueName::default())?.to_body();
            alone.add(&raw.wake_ups(tasks, plan.rate.opens(1), &body).await?);
        }
    }

    let mut report = Report::new("latency", place.kind());
    report.put("processes", json!(plan.processes), plan.processes.to_string());
    report.put("runs", json!(runs), runs.to_string());
    report.put("seconds", json!(plan.seconds), format!("{} s in each run", plan.seconds));
    report.times("enqueue_to_start", &starts);
    report.times("enqueue", &pushes);
    let most = if place.kind() == "redis" { REDIS_P99_MS_MAX } else { P99_MS_MAX };
    report.goal(Goal::at_most("enqueue-to-start p99", starts.p99() / 1e3, most, "ms"));
    if alone.count() > 0 {
        report.times("store_alone", &alone);
        let times = starts.p50() / alone.p50().max(1.0);
        report.goal(Goal::at_most("enqueue-to-start p50", times, TIMES_ALONE_MAX, "x the store alone"));
    }
    Ok(report)
}

/// One run on a fresh queue: from the enqueue to the start, and how long enqueueing took.
pub(super) async fn one(place: &Place, plan: &Plan) -> Result<(Histogram, Histogram), Problem> {
    let open = place.open(bed::keep_everything()).await?;
    let queue = bed::own_queue()?;
    let client = Client::new(Arc::clone(&open.backend));
    let mut side = Side::start(&open, &queue, plan.processes).await?;
    for _ in 0..COLD {
        send(&client, &queue).await?;
        side.next().await?;
    }
    let measured = steadily(&client, &queue, &mut side, plan).await?;
    side.stop().await?;
    drop(client);
    open.close(&queue).await?;
    Ok(measured)
}

/// Enqueues one task and answers how long that took, in microseconds.
async fn send(client: &Client, queue: &QueueName) -> Result<u64, Problem> {
    let sent_at = bed::now();
    client.push(vec![bed::envelope(&Stamp { sent_at: sent_at.as_micros() }, queue)?]).await?;
    Ok(bed::now().since(sent_at).as_micros() as u64)
}

/// How many tasks are enqueued in a time.
pub(super) fn tasks_in(rate: Rate, length: Duration) -> usize {
    // No rate is above a million a second.
    (0..length.as_micros() as u64).take_while(|number| rate.opens(*number) < length).count()
}

/// Enqueues at the rate; answers from the enqueue to the start, and how long enqueueing took.
async fn steadily(
    client: &Client,
    queue: &QueueName,
    side: &mut Side,
    plan: &Plan,
) -> Result<(Histogram, Histogram), Problem> {
    let began = Instant::now();
    let count = tasks_in(plan.rate, Duration::from_secs(plan.seconds.into()));
    let (client, queue, rate) = (client.clone(), queue.clone(), plan.rate);
    let producer = tokio::spawn(async move {
        let mut sending = tokio::task::JoinSet::new();
        for number in 0..count {
            tokio::time::sleep_until((began + rate.opens(number as u64)).into()).await;
            let (client, queue) = (client.clone(), queue.clone());
            sending.spawn(async move { send(&client, &queue).await });
        }
        sending.join_all().await
    });
    let mut starts = Histogram::default();
    for _ in 0..count {
        starts.add(side.next().await?);
    }
    let mut pushes = Histogram::default();
    for push in producer.await.map_err(anyhow::Error::from)? {
        pushes.add(push?);
    }
    Ok((starts, pushes))
}
