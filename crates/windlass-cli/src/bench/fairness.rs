//! `bench fairness`: how long a small tenant waits behind a large one.
//!
//! A large tenant's backlog is there before the worker starts, and keeps every slot busy. Meanwhile a small tenant of the
//! same queue enqueues one task for each thousand of the large one, one by one at a steady rate, whether or not those
//! before have started. Measured is from the enqueue to the start. A task that was enqueued when the backlog was gone says
//! nothing and is not counted.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc;
use windlass::envelope::PUSH_MAX;
use windlass::worker::SLOTS_MAX;
use windlass::{App, Client, Cx, Key, QueueName, Registry, Task, TaskError, Timestamp};

use super::bed::{self, Watch, Working};
use super::latency::PATIENCE;
use super::stats::{Histogram, Latencies, Runs, thousands};
use super::{Bench, Goal, Repeat, Report};
use crate::commands::enqueue::rate::Rate;
use crate::exit::{Exit, Problem};

/// How many tasks the large tenant has for each of the small one.
const RATIO: u32 = 1_000;
/// What the small tenant waits.
const P99_MS_MAX: f64 = 50.0;
/// The worker drains before the small tenant's first task: nothing is measured of a worker that starts.
const COLD: u64 = 2_000;

/// How long a small tenant waits behind a large one
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench fairness                            300,000 tasks of one tenant, 300 of another
  windlass bench fairness --store redis://127.0.0.1/0 --runs 5 --check")]
pub(crate) struct Args {
    /// Tasks of the large tenant; the small one has a thousandth of that
    #[arg(long, value_name = "COUNT", default_value_t = 300_000, value_parser = clap::value_parser!(u32).range(1_000..=10_000_000))]
    backlog: u32,
    /// How often the small tenant enqueues one: 100/s, 600/m
    #[arg(long, value_name = "RATE", default_value = "100/s")]
    rate: Rate,
    /// Tasks that run at once; the most that are claimed in one step
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=SLOTS_MAX as i64))]
    slots: u32,
    #[command(flatten)]
    pub(super) repeat: Repeat,
}

/// A task of a tenant.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "bench.turn")]
struct Turn {
    /// Just before the enqueue, in microseconds since 1970, when somebody wants to know.
    sent_at: Option<i64>,
}

/// A small task has started: when it was enqueued, and how long ago that is, in microseconds.
#[derive(Debug, Clone, Copy)]
struct Start {
    sent_at: i64,
    after: u64,
}

/// What one run has given.
struct Run {
    waits: Histogram,
    drain: f64,
    /// Small tasks that were enqueued after the backlog was gone.
    late: u64,
}

async fn registry(starts: mpsc::UnboundedSender<Start>) -> Result<Registry, Problem> {
    async fn turn(task: Turn, cx: Cx<mpsc::UnboundedSender<Start>>) -> Result<(), TaskError> {
        if let Some(sent_at) = task.sent_at {
            let after = bed::now().since(Timestamp::from_micros(sent_at)).as_micros() as u64;
            // A measurement that was stopped does not listen any more.
            let _ = cx.state().send(Start { sent_at, after });
        }
        Ok(())
    }
    let app = App::new("bench").state(async move || Ok::<_, std::convert::Infallible>(starts));
    Ok(app.task(turn).build().await?)
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let runs = args.repeat.runs;
    let (mut waits, mut drain, mut late) = (Latencies::default(), Runs::default(), 0);
    for number in 1..=runs {
        bench.progress(format_args!("run {number} of {runs}: {} tasks wait", thousands(args.backlog.into())));
        let run = one(bench, args).await?;
        waits.add(&run.waits);
        drain.add(run.drain);
        late += run.late;
    }
    if waits.count() == 0 {
        return Err(Problem::new(
            Exit::Failed,
            "the backlog was gone before a task of the small tenant was enqueued",
            "choose a larger `--backlog` or a higher `--rate`",
        ));
    }
    let mut report = Report::new("fairness", bench.place.kind());
    report.put("backlog_tasks", json!(args.backlog), thousands(args.backlog.into()));
    report.put("slots", json!(args.slots), args.slots.to_string());
    report.put("runs", json!(runs), runs.to_string());
    report.put("counted", json!(waits.count()), format!("{} tasks of the small tenant", thousands(waits.count())));
    report.put("not_counted", json!(late), format!("{} after the backlog was gone", thousands(late)));
    report.times("enqueue_to_start", &waits);
    report.rate("drain_tasks_per_s", &drain, "tasks/s");
    report.goal(Goal::at_most("the small tenant's wait p99", waits.p99() / 1e3, P99_MS_MAX, "ms"));
    Ok(report)
}

/// One run on a fresh queue.
async fn one(bench: &Bench, args: &Args) -> Result<Run, Problem> {
    let open = bench.place.open(bed::keep_everything()).await?;
    let queue = bed::own_queue()?;
    let client = Client::new(Arc::clone(&open.backend));
    let (large, small) = (bed::key_of(0)?, bed::key_of(1)?);
    let mut left = args.backlog as usize;
    while left > 0 {
        let count = left.min(PUSH_MAX);
        let envelopes = (0..count).map(|_| turn(&queue, &large, None)).collect::<Result<_, Problem>>()?;
        client.push(envelopes).await?;
        left -= count;
    }

    let (sender, mut starts) = mpsc::unbounded_channel();
    let watch = Arc::new(Watch::default());
    let began = Instant::now();
    let worker = Working::start(&open.backend, registry(sender).await?, &queue, Some(args.slots as usize), &watch);
    watch.until(COLD.min(args.backlog.into())).await;
    let count = args.backlog / RATIO;
    let mut sending = steadily(&client, &queue, &small, count, args.rate);
    // The few small tasks among the first so many end it a little early, not late.
    watch.until(args.backlog.into()).await;
    let (drained_at, seconds) = (bed::now(), began.elapsed().as_secs_f64());

    let mut run = Run { waits: Histogram::default(), drain: f64::from(args.backlog) / seconds.max(1e-9), late: 0 };
    for _ in 0..count {
        let start = tokio::time::timeout(PATIENCE, starts.recv()).await.ok().flatten().ok_or_else(never_started)?;
        // One that was enqueued behind the backlog counts, however late it started.
        if start.sent_at <= drained_at.as_micros() {
            run.waits.add(start.after);
        } else {
            run.late += 1;
        }
    }
    while let Some(sent) = sending.join_next().await {
        sent.map_err(anyhow::Error::from)??;
    }
    watch.until(u64::from(args.backlog) + u64::from(count)).await;
    worker.stop().await?;
    watch.check()?;
    drop(client);
    open.close(&queue).await?;
    Ok(run)
}

/// Enqueues the tasks of the small tenant at the rate, each by itself.
fn steadily(
    client: &Client,
    queue: &QueueName,
    key: &Key,
    count: u32,
    rate: Rate,
) -> tokio::task::JoinSet<Result<(), Problem>> {
    let began = Instant::now();
    let mut sending = tokio::task::JoinSet::new();
    for number in 0..u64::from(count) {
        let (client, queue, key) = (client.clone(), queue.clone(), key.clone());
        sending.spawn(async move {
            tokio::time::sleep_until((began + rate.opens(number)).into()).await;
            client.push(vec![turn(&queue, &key, Some(bed::now().as_micros()))?]).await?;
            Ok(())
        });
    }
    sending
}

fn turn(queue: &QueueName, key: &Key, sent_at: Option<i64>) -> Result<windlass::Envelope, Problem> {
    let mut envelope = bed::envelope(&Turn { sent_at }, queue)?;
    envelope.key = Some(key.clone());
    Ok(envelope)
}

fn never_started() -> Problem {
    Problem::new(Exit::TimedOut, "a task of the small tenant has not started within 30 s", "run it again with `-v`")
}
