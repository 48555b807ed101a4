//! `bench latency`: how soon an enqueued task starts, and how soon its result is back.
//!
//! 1. Tasks are enqueued one by one at a steady rate, whether or not those before have started: a slow one cannot hide
//!    behind a producer that waits for it. Each carries the time just before its enqueue; its handler takes the time of
//!    its start. 2. Round trips, one at a time: enqueue, wait for the output.
//!
//! With two processes the worker is this program, started again ([`side`](super::side)). Both read the clock of the
//! machine, so that their times can be compared.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;
use windlass::{App, Client, Cx, Location, QueueName, Registry, Task, TaskError, Timestamp};

use super::bed::{self, Open, Watch, Working};
use super::stats::{Histogram, thousands};
use super::{Bench, Goal, Report, raw};
use crate::commands::enqueue::rate::Rate;
use crate::exit::{Exit, Problem};

/// Before anything is measured: the first tasks find cold caches and a worker that is still starting.
const COLD: u64 = 20;
/// How long SQLite alone is measured at most.
const ALONE_MAX: Duration = Duration::from_secs(10);
/// A task that has not started after this long never will.
const PATIENCE: Duration = Duration::from_secs(30);
/// From the enqueue to the start, inside one process and across two.
const P99_MAX: Duration = Duration::from_millis(5);
const P99_MAX_ACROSS: Duration = Duration::from_millis(25);

/// How soon an enqueued task starts, and how soon its result is back
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench latency                             200 tasks a second for 10 s
  windlass bench latency --processes 2               the worker in a process of its own
  windlass bench latency --store memory --rate 1000/s --seconds 5")]
pub(crate) struct Args {
    /// How many tasks are enqueued: 200/s, 600/m
    #[arg(long, value_name = "RATE", default_value = "200/s")]
    rate: Rate,
    /// For how long
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// 1: producer and worker in one process; 2: each in its own
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
    processes: u32,
    /// Results that are waited for, one after the other
    #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    round_trips: u32,
    /// Fail when a goal is missed
    #[arg(long)]
    pub(super) check: bool,
}

/// Says when it starts.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "bench.stamp", output = i64)]
pub(super) struct Stamp {
    /// Just before the enqueue, in microseconds since 1970.
    sent_at: i64,
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
    There { child: Child, orders: ChildStdin, starts: Lines<BufReader<ChildStdout>> },
}

impl Side {
    async fn start(open: &Open, queue: &QueueName, processes: u32) -> Result<Self, Problem> {
        if processes == 1 {
            let (sender, starts) = mpsc::unbounded_channel();
            let registry = stamp_registry(sender).await?;
            let worker = Working::start(&open.backend, registry, queue, None, &Arc::new(Watch::default()));
            return Ok(Self::Here { worker, starts });
        }
        if open.location == Location::Memory {
            return Err(Problem::usage("a store in memory has one process only", "leave out `--store memory`"));
        }
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["bench", "worker", "--store", &open.location.to_string(), "--queue", queue.as_str()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let (Some(orders), Some(output)) = (child.stdin.take(), child.stdout.take()) else { return Err(gone()) };
        Ok(Self::There { child, orders, starts: BufReader::new(output).lines() })
    }

    /// How long after its enqueue the next task started, in microseconds.
    async fn next(&mut self) -> Result<u64, Problem> {
        let next = async {
            match self {
                Self::Here { starts, .. } => starts.recv().await,
                Self::There { starts, .. } => starts.next_line().await.ok()??.parse().ok(),
            }
        };
        match tokio::time::timeout(PATIENCE, next).await {
            Ok(Some(after)) => Ok(after),
            Ok(None) => Err(gone()),
            Err(_) => Err(Problem::new(Exit::TimedOut, "a task has not started within 30 s", "run it again with `-v`")),
        }
    }

    async fn stop(self) -> Result<(), Problem> {
        match self {
            Self::Here { worker, .. } => worker.stop().await,
            Self::There { mut child, orders, mut starts } => {
                drop(orders);
                // A full pipe would keep it from ending.
                while let Ok(Some(_)) = starts.next_line().await {}
                if child.wait().await?.success() { Ok(()) } else { Err(gone()) }
            }
        }
    }
}

fn gone() -> Problem {
    Problem::new(Exit::Failed, "the worker's process has ended early", "see what it said above")
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let open = bench.place.open(bed::keep_everything()).await?;
    let queue = bed::own_queue()?;
    let client = Client::new(Arc::clone(&open.backend));
    let mut side = Side::start(&open, &queue, args.processes).await?;
    for _ in 0..COLD {
        send(&client, &queue).await?;
        side.next().await?;
    }
    bench.progress(format_args!("enqueue-to-start for {} s", args.seconds));
    let (starts, pushes) = steadily(&client, &queue, &mut side, args).await?;
    bench.progress(format_args!("{} round trips", args.round_trips));
    let round_trips = round_trips(&client, &queue, &mut side, args.round_trips).await?;
    side.stop().await?;
    if matches!(bench.place, bed::Place::Given(_)) {
        bed::forget(&open, &queue).await?;
    }
    let alone = if bench.place.kind() == "sqlite" { Some(sqlite_alone(bench, args).await?) } else { None };

    let mut report = Report::new("latency", bench.place.kind());
    report.put("processes", json!(args.processes), args.processes.to_string());
    report.put("tasks", json!(starts.count()), thousands(starts.count()));
    report.put("seconds", json!(args.seconds), format!("{} s", args.seconds));
    report.put("enqueue_to_start", starts.json("us"), starts.text());
    report.put("enqueue", pushes.json("us"), pushes.text());
    if let Some(alone) = alone {
        report.put("sqlite_push_and_claim", alone.json("us"), alone.text());
    }
    if round_trips.count() > 0 {
        report.put("round_trip", round_trips.json("us"), round_trips.text());
    }
    let most = if args.processes == 1 { P99_MAX } else { P99_MAX_ACROSS };
    let p99 = starts.quantile(0.99) as f64 / 1e3;
    report.goal(Goal::at_most("enqueue-to-start p99", p99, most.as_secs_f64() * 1e3, "ms"));
    Ok(report)
}

/// The two commits between an enqueue and a start, at the same rate, by SQLite alone.
async fn sqlite_alone(bench: &Bench, args: &Args) -> Result<Histogram, Problem> {
    let folder = bench.place.temporary_folder()?;
    // The folder stays with this future: it goes when the measurement is interrupted.
    let path = folder.path().to_owned();
    let body = bed::envelope(&Stamp { sent_at: bed::now().as_micros() }, &QueueName::default())?.to_body();
    let every = args.rate.opens(1);
    let tasks = tasks_in(args.rate, Duration::from_secs(args.seconds.into()).min(ALONE_MAX));
    bench.progress(format_args!("SQLite alone, {tasks} tasks"));
    let measured = tokio::task::spawn_blocking(move || raw::starts(&path, tasks, &body, every));
    Ok(measured.await.map_err(anyhow::Error::from)?.map_err(anyhow::Error::from)?)
}

/// Enqueues one task and answers how long that took, in microseconds.
async fn send(client: &Client, queue: &QueueName) -> Result<u64, Problem> {
    let sent_at = bed::now();
    client.push(vec![bed::envelope(&Stamp { sent_at: sent_at.as_micros() }, queue)?]).await?;
    Ok(bed::now().since(sent_at).as_micros() as u64)
}

/// How many tasks are enqueued in a time.
fn tasks_in(rate: Rate, length: Duration) -> usize {
    // No rate is above a million a second.
    (0..length.as_micros() as u64).take_while(|number| rate.opens(*number) < length).count()
}

/// Enqueues at the rate; answers from the enqueue to the start, and how long enqueueing took.
async fn steadily(
    client: &Client,
    queue: &QueueName,
    side: &mut Side,
    args: &Args,
) -> Result<(Histogram, Histogram), Problem> {
    let began = Instant::now();
    let count = tasks_in(args.rate, Duration::from_secs(args.seconds.into()));
    let (client, queue, rate) = (client.clone(), queue.clone(), args.rate);
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

/// Enqueues and waits for the output, one at a time.
async fn round_trips(client: &Client, queue: &QueueName, side: &mut Side, count: u32) -> Result<Histogram, Problem> {
    let mut times = Histogram::default();
    for _ in 0..count {
        let sent_at = bed::now();
        let enqueued = client.enqueue(Stamp { sent_at: sent_at.as_micros() }).queue(queue.clone()).await?;
        enqueued.output(PATIENCE).await?;
        times.add(bed::now().since(sent_at).as_micros() as u64);
        side.next().await?;
    }
    Ok(times)
}
