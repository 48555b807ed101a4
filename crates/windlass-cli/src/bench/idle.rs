//! `bench idle`: what a worker costs that has nothing to do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;

use super::bed::{self, Watch, Working};
use super::machine;
use super::stats::Runs;
use super::{Bench, Goal, Repeat, Report};
use crate::exit::Problem;
use crate::output::bytes;

/// Before anything is measured: the start itself is not idle.
const START: Duration = Duration::from_secs(2);
/// What an idle worker may cost.
const CPU_PERCENT_MAX: f64 = 0.2;
const CALLS_PER_SECOND_MAX: f64 = 2.0;
const MEMORY_MAX: f64 = 15.0 * 1024.0 * 1024.0;

/// What a worker costs that has nothing to do
///
/// Prints its share of a core, its memory and how often it asks the store.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench idle
  windlass bench idle --seconds 60 --check           exit code 1 when it costs too much")]
pub(crate) struct Args {
    /// How long it is watched in each run
    #[arg(long, value_name = "COUNT", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3_600))]
    seconds: u32,
    #[command(flatten)]
    pub(super) repeat: Repeat,
}

/// What the runs have given.
#[derive(Debug, Default)]
struct Seen {
    cpu_percent: Runs,
    server_cpu_percent: Runs,
    calls: Runs,
    memory: Runs,
    memory_private: Runs,
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let mut seen = Seen::default();
    for number in 1..=args.repeat.runs {
        bench.progress(format_args!("run {number} of {}: {} s", args.repeat.runs, args.seconds));
        one(bench, args, &mut seen).await?;
    }
    let mut report = Report::new("idle", bench.place.kind());
    report.put("runs", json!(args.repeat.runs), args.repeat.runs.to_string());
    report.put("seconds", json!(args.seconds), format!("{} s in each run", args.seconds));
    if seen.cpu_percent.count() > 0 {
        report.rate("cpu_percent", &seen.cpu_percent, "% of a core");
        let percent = seen.cpu_percent.median();
        report.goal(Goal::at_most("an idle worker's share of a core", percent, CPU_PERCENT_MAX, "%"));
    }
    if bench.place.server().is_some() {
        let text = match seen.server_cpu_percent.count() {
            0 => "not on this machine".to_owned(),
            _ => seen.server_cpu_percent.text("% of a core"),
        };
        report.put("server_cpu_percent", seen.server_cpu_percent.json(), text);
    }
    if seen.memory.count() > 0 {
        let (memory, private) = (seen.memory.median(), seen.memory_private.median());
        let text = format!(
            "{}, of which {} are private and the rest the program's file",
            bytes(memory as u64),
            bytes(private as u64)
        );
        report.put("memory_bytes", json!(memory as u64), text);
        report.json.insert("memory_private_bytes".to_owned(), json!(private as u64));
        let mebibytes = |bytes: f64| bytes / (1024.0 * 1024.0);
        report.goal(Goal::at_most("an idle worker's memory", mebibytes(memory), mebibytes(MEMORY_MAX), "MiB"));
    }
    report.rate("store_calls_per_s", &seen.calls, "calls/s");
    let calls = seen.calls.median();
    report.goal(Goal::at_most("an idle worker's requests to the store", calls, CALLS_PER_SECOND_MAX, "calls/s"));
    Ok(report)
}

async fn one(bench: &Bench, args: &Args, seen: &mut Seen) -> Result<(), Problem> {
    let open = bench.place.open(bed::keep_everything()).await?;
    let watch = Arc::new(Watch::default());
    let queue = bed::own_queue()?;
    let worker = Working::start(&open.backend, bed::noop_registry().await?, &queue, None, &watch);
    tokio::time::sleep(START).await;
    let server = bench.place.server_cpu().await?;
    let (began, cpu, calls) = (Instant::now(), machine::cpu_seconds_of_threads(), open.tally.calls());
    tokio::time::sleep(Duration::from_secs(args.seconds.into())).await;
    let (seconds, cpu_after) = (began.elapsed().as_secs_f64(), machine::cpu_seconds_of_threads());
    let percent = |before: Option<f64>, after: Option<f64>| {
        before.zip(after).map(|(before, after)| (after - before).max(0.0) / seconds * 100.0)
    };
    seen.calls.add((open.tally.calls() - calls) as f64 / seconds);
    seen.cpu_percent.add_known(percent(cpu, cpu_after));
    seen.memory.add_known(machine::memory_now().map(|bytes| bytes as f64));
    seen.memory_private.add_known(machine::memory_private().map(|bytes| bytes as f64));
    seen.server_cpu_percent.add_known(percent(server, bench.place.server_cpu().await?));
    worker.stop().await?;
    open.close(&queue).await
}
