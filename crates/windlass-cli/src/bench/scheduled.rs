//! `bench scheduled`: how late a delayed task starts.
//!
//! Tasks are enqueued beforehand, in bulk, each for an instant of its own: a steady number of them fall due every
//! second. The handler takes the time of its start; the lateness is from the instant to the start.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc;
use windlass::envelope::{Due, PUSH_MAX};
use windlass::{Client, Timestamp};

use super::bed::{self, Watch, Working};
use super::latency::{self, PATIENCE, Stamp};
use super::stats::{Histogram, Latencies};
use super::{Bench, Goal, Repeat, Report};
use crate::commands::enqueue::rate::Rate;
use crate::exit::{Exit, Problem};

/// Time to enqueue everything before the first one is due.
const AHEAD: Duration = Duration::from_secs(2);
/// From the instant that was asked for to the start.
const P99_MS_MAX: f64 = 10.0;

/// How late delayed tasks start
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench scheduled                           300 tasks fall due every second for 10 s
  windlass bench scheduled --store redis://127.0.0.1/0 --rate 1000/s --check")]
pub(crate) struct Args {
    /// How many tasks fall due: 300/s, 600/m
    #[arg(long, value_name = "RATE", default_value = "300/s")]
    rate: Rate,
    /// For how long in each run
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    #[command(flatten)]
    pub(super) repeat: Repeat,
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let runs = args.repeat.runs;
    let mut late = Latencies::default();
    for number in 1..=runs {
        bench.progress(format_args!("run {number} of {runs}: {} s", args.seconds));
        late.add(&one(bench, args).await?);
    }
    let mut report = Report::new("scheduled", bench.place.kind());
    report.put("runs", json!(runs), runs.to_string());
    report.put("seconds", json!(args.seconds), format!("{} s in each run", args.seconds));
    report.times("lateness", &late);
    report.goal(Goal::at_most("scheduled lateness p99", late.p99() / 1e3, P99_MS_MAX, "ms"));
    Ok(report)
}

/// One run on a fresh queue; answers how late each task started, in microseconds.
async fn one(bench: &Bench, args: &Args) -> Result<Histogram, Problem> {
    let open = bench.place.open(bed::keep_everything()).await?;
    let queue = bed::own_queue()?;
    let client = Client::new(Arc::clone(&open.backend));
    let (sender, mut starts) = mpsc::unbounded_channel();
    let registry = latency::stamp_registry(sender).await?;
    let worker = Working::start(&open.backend, registry, &queue, None, &Arc::new(Watch::default()));
    let count = latency::tasks_in(args.rate, Duration::from_secs(args.seconds.into()));
    let first = bed::now() + AHEAD;
    let instants: Vec<Timestamp> = (0..count as u64).map(|number| first + args.rate.opens(number)).collect();
    for batch in instants.chunks(PUSH_MAX) {
        let envelope = |due: &Timestamp| {
            let mut envelope = bed::envelope(&Stamp { sent_at: due.as_micros() }, &queue)?;
            envelope.due = Due::At(*due);
            Ok(envelope)
        };
        client.push(batch.iter().map(envelope).collect::<Result<_, Problem>>()?).await?;
    }
    if bed::now() >= first {
        return Err(Problem::new(
            Exit::Failed,
            "the first tasks were due before all of them were enqueued",
            "choose fewer with `--rate` or `--seconds`",
        ));
    }
    let mut late = Histogram::default();
    let all = async {
        for _ in 0..count {
            late.add(starts.recv().await?);
        }
        Some(())
    };
    let limit = AHEAD + Duration::from_secs(args.seconds.into()) + PATIENCE;
    if tokio::time::timeout(limit, all).await.ok().flatten().is_none() {
        return Err(Problem::new(Exit::TimedOut, "a task has not started within 30 s", "run it again with `-v`"));
    }
    worker.stop().await?;
    drop(client);
    open.close(&queue).await?;
    Ok(late)
}
