//! `bench idle`: what a worker costs that has nothing to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::bed::{self, Watch, Working};
use super::machine;
use super::stats::rounded;
use super::{Bench, Goal, Report};
use crate::exit::Problem;
use crate::output::bytes;

/// Before anything is measured: the start itself is not idle.
const START: Duration = Duration::from_secs(2);
/// What an idle worker may cost.
const CPU_PERCENT_MAX: f64 = 0.2;
const CALLS_PER_SECOND_MAX: f64 = 2.0;
const MEMORY_MAX: u64 = 15 * 1024 * 1024;

/// What a worker costs that has nothing to do
///
/// Prints its share of a core, its memory and how often it asks the store.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench idle
  windlass bench idle --seconds 60 --check           exit code 1 when it costs too much")]
pub(crate) struct Args {
    /// How long it is watched
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    /// Fail when a goal is missed
    #[arg(long)]
    pub(super) check: bool,
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let open = bench.place.open(bed::keep_everything()).await?;
    let watch = Arc::new(Watch::default());
    let queue = bed::own_queue()?;
    let worker = Working::start(&open.backend, bed::noop_registry().await?, &queue, None, &watch);
    tokio::time::sleep(START).await;
    let (began, cpu, calls) = (Instant::now(), machine::cpu_seconds_of_threads(), open.tally.calls());
    tokio::time::sleep(Duration::from_secs(args.seconds.into())).await;
    let (seconds, cpu_after) = (began.elapsed().as_secs_f64(), machine::cpu_seconds_of_threads());
    let calls = (open.tally.calls() - calls) as f64 / seconds;
    let (memory, private) = (machine::memory_now(), machine::memory_private());
    worker.stop().await?;

    let mut report = Report::new("idle", bench.place.kind());
    report.put("seconds", json!(args.seconds), format!("{} s", args.seconds));
    if let Some((before, after)) = cpu.zip(cpu_after) {
        let percent = (after - before) / seconds * 100.0;
        report.put("cpu_percent", json!(rounded(percent)), format!("{percent:.3} % of a core"));
        report.goal(Goal::at_most("an idle worker's share of a core", percent, CPU_PERCENT_MAX, "%"));
    }
    if let Some(memory) = memory {
        let private = private.unwrap_or(memory);
        let text =
            format!("{}, of which {} are private and the rest the program's file", bytes(memory), bytes(private));
        report.put("memory_bytes", json!(memory), text);
        report.json.insert("memory_private_bytes".to_owned(), json!(private));
        let mebibytes = |bytes: u64| bytes as f64 / (1024.0 * 1024.0);
        report.goal(Goal::at_most("an idle worker's memory", mebibytes(memory), mebibytes(MEMORY_MAX), "MiB"));
    }
    report.put("store_calls_per_s", json!(rounded(calls)), format!("{calls:.2} calls/s"));
    report.goal(Goal::at_most("an idle worker's requests to the store", calls, CALLS_PER_SECOND_MAX, "calls/s"));
    Ok(report)
}
