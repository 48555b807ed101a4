//! `bench soak`: whether a store and a worker stay as fast, and as small, over very many tasks.
//!
//! A producer keeps a bounded backlog in front of a worker until all tasks are done; once a second the rate, the memory
//! and the size of the files are noted. Retention is short, so that tasks are removed while others are added. In the
//! first tenth there is nothing old enough to be removed yet; it is shown, but the last tenth is compared with the
//! second, so that both ends do the same work.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use windlass::envelope::PUSH_MAX;
use windlass::view::Retention;
use windlass::worker::SLOTS_MAX;
use windlass::{Client, QueueName};

use super::bed::{self, Open, Watch, Working};
use super::machine;
use super::stats::{rounded, thousands};
use super::{Bench, Goal, Report};
use crate::commands::task::read_duration;
use crate::exit::Problem;
use crate::output::bytes;

/// How often the series is sampled.
const SAMPLE: Duration = Duration::from_secs(1);
/// Lines of the series that people see.
const LINES: usize = 10;
/// The last tenth of the tasks goes at least at this share of the rate of the second.
const LAST_PERCENT_MIN: f64 = 90.0;
/// Memory is flat: what a process has after the first fifth grows by this much at most until the end.
const GROWTH_MAX: f64 = 4.0 * 1024.0 * 1024.0;
/// The files are bounded: the second half needs at most this share of what the first half needed.
const FILE_PERCENT_MAX: f64 = 125.0;

/// Whether a store and a worker stay fast and small over very many tasks
///
/// Prints the rate, the memory and the size of the files over time, and whether they stay as they were.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench soak                                1,000,000 tasks through SQLite
  windlass bench soak --tasks 5000000 --check        exit code 1 when it gets slower or larger")]
pub(crate) struct Args {
    /// Tasks in all
    #[arg(long, value_name = "COUNT", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    tasks: u64,
    /// The most tasks that wait at once
    #[arg(long, value_name = "COUNT", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    backlog: u64,
    /// Tasks that run at once
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=SLOTS_MAX as i64))]
    slots: u32,
    /// How long an ended task is kept
    #[arg(long, value_name = "DURATION", default_value = "500ms", value_parser = read_duration)]
    retention: Duration,
    /// Fail when a goal is missed
    #[arg(long)]
    pub(super) check: bool,
}

/// How it stands at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Duration,
    done: u64,
    memory: u64,
    file: u64,
    log: u64,
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    if matches!(bench.place, bed::Place::Given(..)) {
        return Err(Problem::usage(
            "a soak removes ended tasks after a short time, so it needs a store of its own",
            "leave out `--store`, write `--store memory`, or name a server without a namespace or schema",
        ));
    }
    let retention = Retention { finished: args.retention, ..Retention::default() };
    let open = bench.place.open(retention).await?;
    let queue = bed::own_queue()?;
    let watch = Arc::new(Watch::default());
    let registry = bed::noop_registry().await?;
    let worker = Working::start(&open.backend, registry, &queue, Some(args.slots as usize), &watch);
    let began = Instant::now();
    let mut series = vec![sample(&open, &watch, began)];
    let mut seconds = tokio::time::interval_at((began + SAMPLE).into(), SAMPLE);
    {
        let mut work = std::pin::pin!(work(&open, &queue, &watch, args));
        loop {
            tokio::select! {
                done = &mut work => break done?,
                _ = seconds.tick() => {
                    let sample = sample(&open, &watch, began);
                    bench.progress(sample.text(series.last()));
                    series.push(sample);
                    watch.check()?;
                }
            }
        }
    }
    series.push(sample(&open, &watch, began));
    worker.stop().await?;
    watch.check()?;
    open.close(&queue).await?;
    Ok(report(bench, args, &series))
}

/// Pushes all tasks, never more than the backlog ahead of the worker, and waits for the last one.
async fn work(open: &Open, queue: &QueueName, watch: &Watch, args: &Args) -> Result<(), Problem> {
    let client = Client::new(Arc::clone(&open.backend));
    let mut pushed = 0;
    while pushed < args.tasks {
        let count = (args.tasks - pushed).min(PUSH_MAX as u64).min(args.backlog);
        watch.until((pushed + count).saturating_sub(args.backlog)).await;
        client.push(bed::noops(queue, count as usize, 0)?).await?;
        pushed += count;
    }
    watch.until(args.tasks).await;
    Ok(())
}

fn sample(open: &Open, watch: &Watch, began: Instant) -> Sample {
    let size = |suffix: &str| {
        let path = open.file().map(|file| PathBuf::from(format!("{}{suffix}", file.display())));
        path.map_or(0, |path| machine::size_of(&path))
    };
    Sample {
        at: began.elapsed(),
        done: watch.settled(),
        memory: machine::memory_now().unwrap_or_default(),
        file: size(""),
        log: size("-wal"),
    }
}

impl Sample {
    /// Tasks a second since the sample before.
    fn rate(&self, before: Option<&Self>) -> f64 {
        let (at, done) = before.map_or((Duration::ZERO, 0), |before| (before.at, before.done));
        (self.done - done) as f64 / self.at.saturating_sub(at).as_secs_f64().max(1e-9)
    }

    fn text(&self, before: Option<&Self>) -> String {
        format!(
            "{:>6.1} s  {:>11} tasks  {:>9} tasks/s  memory {}  file {}  log {}",
            self.at.as_secs_f64(),
            thousands(self.done),
            thousands(self.rate(before) as u64),
            bytes(self.memory),
            bytes(self.file),
            bytes(self.log),
        )
    }

    fn json(&self, before: Option<&Self>) -> serde_json::Value {
        json!({
            "seconds": rounded(self.at.as_secs_f64()),
            "tasks": self.done,
            "tasks_per_s": rounded(self.rate(before)),
            "memory_bytes": self.memory,
            "file_bytes": self.file,
            "log_bytes": self.log,
        })
    }
}

/// When so many tasks were done, in seconds: between two samples by proportion.
fn reached(series: &[Sample], done: f64) -> f64 {
    let mut before = (0.0, 0.0);
    for sample in series {
        let here = (sample.at.as_secs_f64(), sample.done as f64);
        if here.1 >= done && here.1 > before.1 {
            return before.0 + (here.0 - before.0) * (done - before.1) / (here.1 - before.1);
        }
        before = here;
    }
    before.0
}

/// The series in a few lines: every so many samples one, and the last.
fn condensed(series: &[Sample]) -> Vec<(Sample, Option<Sample>)> {
    let step = series.len().div_ceil(LINES).max(1);
    let shown: Vec<Sample> = series.iter().rev().step_by(step).copied().collect::<Vec<_>>().into_iter().rev().collect();
    shown.iter().enumerate().map(|(at, sample)| (*sample, at.checked_sub(1).map(|at| shown[at]))).collect()
}

fn report(bench: &Bench, args: &Args, series: &[Sample]) -> Report {
    let total = args.tasks as f64;
    let end = series.last().map_or(0.0, |last| last.at.as_secs_f64());
    let first = total / 10.0 / reached(series, total / 10.0).max(1e-9);
    let last = total / 10.0 / (end - reached(series, total * 0.9)).max(1e-9);
    let second = total / 10.0 / (reached(series, total * 0.2) - reached(series, total / 10.0)).max(1e-9);
    let last_percent = last / second * 100.0;
    let after = |share: f64| series.iter().position(|sample| sample.done as f64 >= total * share).unwrap_or(0);
    let warm = series[after(0.2)].memory;
    let memory = series.iter().skip(after(0.2)).map(|sample| sample.memory).max().unwrap_or_default();
    let growth = memory.saturating_sub(warm);
    let (early, late) = series.split_at(after(0.5));
    let largest = |part: &[Sample]| part.iter().map(|sample| sample.file + sample.log).max().unwrap_or_default();
    let (early, late) = (largest(early), largest(late));

    let mut report = Report::new("soak", bench.place.kind());
    report.put("tasks", json!(args.tasks), thousands(args.tasks));
    report.put("backlog", json!(args.backlog), thousands(args.backlog));
    report.put("slots", json!(args.slots), args.slots.to_string());
    report.put("retention_s", json!(args.retention.as_secs_f64()), windlass::format_duration(args.retention));
    let lines: Vec<String> = condensed(series).iter().map(|(sample, before)| sample.text(before.as_ref())).collect();
    let samples: Vec<_> =
        series.iter().enumerate().map(|(at, sample)| sample.json(at.checked_sub(1).map(|at| &series[at]))).collect();
    report.put("series", json!(samples), lines.join("\n"));
    let rate = total / end.max(1e-9);
    report.put("rate_tasks_per_s", json!(rounded(rate)), format!("{} tasks/s", thousands(rate as u64)));
    report.put("first_tenth_tasks_per_s", json!(rounded(first)), format!("{} tasks/s", thousands(first as u64)));
    report.put("second_tenth_tasks_per_s", json!(rounded(second)), format!("{} tasks/s", thousands(second as u64)));
    let text = format!("{} tasks/s, {last_percent:.1} % of the second", thousands(last as u64));
    report.put("last_tenth_tasks_per_s", json!(rounded(last)), text);
    report.goal(Goal::at_least("the last tenth as a share of the second", last_percent, LAST_PERCENT_MIN, "%"));
    let text = format!("{} to {}, grown by {}", bytes(warm), bytes(memory), bytes(growth));
    report.put("memory_growth_bytes", json!(growth), text);
    let mebibytes = |bytes: f64| bytes / (1024.0 * 1024.0);
    let growth = mebibytes(growth as f64);
    report.goal(Goal::at_most("growth of memory after the first fifth", growth, mebibytes(GROWTH_MAX), "MiB"));
    if early > 0 {
        let percent = late as f64 / early as f64 * 100.0;
        let text = format!("{} in the first half, {} in the second", bytes(early), bytes(late));
        report.put("files_largest_bytes", json!([early, late]), text);
        report.goal(Goal::at_most("the files in the second half, of the first", percent, FILE_PERCENT_MAX, "%"));
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(of: &[(u64, u64)]) -> Vec<Sample> {
        let sample =
            |(at, done): &(u64, u64)| Sample { at: Duration::from_secs(*at), done: *done, memory: 1, file: 1, log: 1 };
        of.iter().map(sample).collect()
    }

    #[test]
    fn the_time_of_a_task_is_between_two_samples() {
        let series = series(&[(0, 0), (1, 100), (3, 200)]);
        for (done, at) in [(50.0, 0.5), (100.0, 1.0), (150.0, 2.0), (200.0, 3.0)] {
            assert!((reached(&series, done) - at).abs() < 1e-9, "{done}");
        }
    }

    #[test]
    fn people_see_a_few_lines_and_always_the_last() {
        let series = series(&(0..95).map(|at| (at, at * 10)).collect::<Vec<_>>());
        let shown = condensed(&series);
        assert!(shown.len() <= LINES);
        let (last, before) = shown.last().unwrap();
        assert_eq!(last.done, 940);
        assert!((last.rate(before.as_ref()) - 10.0).abs() < 1e-9);
    }
}
