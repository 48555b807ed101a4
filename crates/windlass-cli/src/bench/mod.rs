//! `windlass bench`: how fast a store and the engine are on this machine.
//!
//! | command | measures |
//! |---|---|
//! | `drain` | enqueue and drain of tasks that do nothing; the share of SQLite's own limit |
//! | `latency` | from the enqueue to the start, and to the result, in one process or across two |
//! | `soak` | very many tasks: whether speed, memory and files stay as they were |
//! | `idle` | what a worker costs that has nothing to do |
//!
//! Numbers are data: with a unit each, as a table or as JSON. Progress is on standard error. `stats` and `machine` hold
//! what is measured with, `measured` and `bed` what is measured on, `raw` what it is compared with, `side` the
//! second process.

mod bed;
mod drain;
mod idle;
mod latency;
mod machine;
mod measured;
mod raw;
mod side;
mod soak;
mod stats;

use std::fmt;
use std::process::ExitCode;

use serde_json::{Map, Value, json};
use windlass::config::{LogConfig, LogFormat};

use crate::args::Global;
use crate::exit::{Exit, Problem};
use crate::logs::{self, Labels, Stream};
use crate::output::Out;
use bed::Place;
use machine::Machine;
use stats::{rounded, thousands};

/// Measure a store and the engine on this machine
///
/// The store is a fresh one, by default SQLite in a temporary file on the disk of the current folder; `--store memory`
/// is the engine alone. A store that is named with `--store` is used as it is: its tasks are left alone, the measured
/// ones are removed.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench drain                               SQLite, in a temporary file beside you
  windlass bench drain --store memory --json         the engine alone
  windlass bench latency --processes 2
  windlass bench soak --check")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    Drain(drain::Args),
    Latency(latency::Args),
    Soak(soak::Args),
    Idle(idle::Args),
    #[command(hide = true)]
    Worker(side::Args),
}

impl What {
    /// Whether a missed goal fails the command.
    fn checks(&self) -> bool {
        match self {
            Self::Drain(args) => args.check,
            Self::Latency(args) => args.check,
            Self::Soak(args) => args.check,
            Self::Idle(args) => args.check,
            Self::Worker(_) => false,
        }
    }
}

/// What every measurement gets.
#[derive(Debug)]
struct Bench {
    place: Place,
    out: Out,
}

impl Bench {
    /// Says how far it is, on standard error.
    fn progress(&self, text: impl fmt::Display) {
        self.out.say(text);
    }
}

/// Runs the measurement.
pub(crate) async fn run(global: &Global, args: Args) -> Result<ExitCode, Problem> {
    let log = LogConfig { level: "warn".to_owned(), format: LogFormat::Auto };
    logs::start(global, &log, Stream::Stderr, Labels { worker: None, service: "bench".to_owned() });
    let bench = Bench { place: Place::of(global)?, out: Out::of(global)? };
    if let What::Worker(args) = &args.what {
        side::run(&bench.place, args).await?;
        return Ok(Exit::Ok.into());
    }
    let checks = args.what.checks();
    let measured = async {
        match &args.what {
            What::Drain(args) => drain::run(&bench, args).await,
            What::Latency(args) => latency::run(&bench, args).await,
            What::Soak(args) => soak::run(&bench, args).await,
            What::Idle(args) => idle::run(&bench, args).await,
            What::Worker(_) => unreachable!("it has returned"),
        }
    };
    // What is dropped half-way takes its temporary files with it.
    let report = tokio::select! {
        report = measured => report?,
        exit = interrupted() => return Ok(exit.into()),
    };
    let machine = Machine::of(&bench.place.folder());
    if machine.is_for_debugging() {
        bench.out.warn("this is a debug build: measure with one that was made by `cargo build --release`");
    }
    let missed = report.missed();
    let (json, lines) = report.with(&machine);
    let people =
        || bench.out.fields(&lines.iter().map(|(label, text)| (label.as_str(), text.clone())).collect::<Vec<_>>());
    bench.out.object("", json, people)?;
    match missed {
        Some(missed) if checks => Err(Problem::new(
            Exit::Failed,
            missed,
            "measure again on a machine that does nothing else before you conclude",
        )),
        _ => Ok(Exit::Ok.into()),
    }
}

/// Waits for a signal that ends the program.
async fn interrupted() -> Exit {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            return tokio::select! {
                _ = terminate.recv() => Exit::Terminated,
                _ = tokio::signal::ctrl_c() => Exit::Interrupted,
            };
        }
    }
    // Without signals it runs to its end.
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
    Exit::Interrupted
}

/// What was measured: for machines and for people.
#[derive(Debug)]
struct Report {
    json: Map<String, Value>,
    lines: Vec<(String, String)>,
    goals: Vec<Goal>,
}

/// What a number should be.
#[derive(Debug)]
struct Goal {
    what: &'static str,
    value: f64,
    bound: Bound,
    unit: &'static str,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Goal {
    fn at_least(what: &'static str, value: f64, least: f64, unit: &'static str) -> Self {
        Self { what, value, bound: Bound::AtLeast(least), unit }
    }

    fn at_most(what: &'static str, value: f64, most: f64, unit: &'static str) -> Self {
        Self { what, value, bound: Bound::AtMost(most), unit }
    }

    fn is_met(&self) -> bool {
        match self.bound {
            Bound::AtLeast(least) => self.value >= least,
            Bound::AtMost(most) => self.value <= most,
        }
    }

    fn text(&self) -> String {
        let number = |value: f64| if value >= 1_000.0 { thousands(value as u64) } else { rounded(value).to_string() };
        let (bound, limit) = match self.bound {
            Bound::AtLeast(least) => ("at least", number(least)),
            Bound::AtMost(most) => ("at most", number(most)),
        };
        let Self { what, value, unit, .. } = self;
        format!("{what}: {} {unit}, the goal is {bound} {limit} {unit}", number(*value))
    }

    fn json(&self) -> Value {
        let mut json =
            json!({ "what": self.what, "value": rounded(self.value), "unit": self.unit, "met": self.is_met() });
        let (bound, limit) = match self.bound {
            Bound::AtLeast(least) => ("at_least", least),
            Bound::AtMost(most) => ("at_most", most),
        };
        json[bound] = json!(limit);
        json
    }
}

impl Report {
    fn new(measurement: &'static str, store: &'static str) -> Self {
        let mut report = Self { json: Map::new(), lines: Vec::new(), goals: Vec::new() };
        report.put("measurement", json!(measurement), measurement.to_owned());
        report.put("store", json!(store), store.to_owned());
        report
    }

    /// A number under the name that it has in JSON; people see the name without its unit, and a text with it.
    fn put(&mut self, key: &str, json: Value, text: String) {
        self.json.insert(key.to_owned(), json);
        let label = ["_tasks_per_s", "_calls_per_s", "_per_s", "_percent", "_bytes", "_us_per_task", "_tasks", "_s"]
            .iter()
            .find_map(|unit| key.strip_suffix(unit))
            .unwrap_or(key);
        self.lines.push((label.replace('_', " "), text));
    }

    /// What a number should be; printed with whether it is.
    fn goal(&mut self, goal: Goal) {
        self.goals.push(goal);
    }

    /// The goals that are missed, in words.
    fn missed(&self) -> Option<String> {
        let missed: Vec<String> = self.goals.iter().filter(|goal| !goal.is_met()).map(Goal::text).collect();
        (!missed.is_empty()).then(|| missed.join("; "))
    }

    fn with(mut self, machine: &Machine) -> (Value, Vec<(String, String)>) {
        self.json.insert("goals".to_owned(), self.goals.iter().map(Goal::json).collect());
        for goal in &self.goals {
            let met = if goal.is_met() { "goal met" } else { "goal missed" };
            self.lines.push((met.to_owned(), goal.text()));
        }
        self.json.insert("machine".to_owned(), machine.json());
        self.lines.push(("machine".to_owned(), machine.text()));
        (Value::Object(self.json), self.lines)
    }
}
