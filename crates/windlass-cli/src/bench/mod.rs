//! `windlass bench`: how fast a store and the engine are on this machine.
//!
//! | command | measures |
//! |---|---|
//! | `drain` | enqueue and drain of tasks that do nothing; the share of SQLite's own limit |
//!
//! Numbers are data: with a unit each, as a table or as JSON. Progress is on standard error. `stats` and `machine` hold
//! what is measured with, `measured` and `bed` what is measured on, `raw` what it is compared with.

mod bed;
mod drain;
mod machine;
mod measured;
mod raw;
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

/// Measure a store and the engine on this machine
///
/// The store is a fresh one, by default SQLite in a temporary file on the disk of the current folder; `--store memory`
/// is the engine alone. A store that is named with `--store` is used as it is: its tasks are left alone, the measured
/// ones are removed.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench drain                               SQLite, in a temporary file beside you
  windlass bench drain --store memory --json         the engine alone")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    Drain(drain::Args),
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
    let measured = async {
        match args.what {
            What::Drain(args) => drain::run(&bench, args).await,
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
    let (json, lines) = report.with(&machine);
    let people =
        || bench.out.fields(&lines.iter().map(|(label, text)| (label.as_str(), text.clone())).collect::<Vec<_>>());
    Ok(bench.out.object("", json, people)?.into())
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
}

impl Report {
    fn new(measurement: &'static str, store: &'static str) -> Self {
        let mut report = Self { json: Map::new(), lines: Vec::new() };
        report.put("measurement", json!(measurement), measurement.to_owned());
        report.put("store", json!(store), store.to_owned());
        report
    }

    /// A number under the name that it has in JSON; people see the name without its unit, and a text with it.
    fn put(&mut self, key: &str, json: Value, text: String) {
        self.json.insert(key.to_owned(), json);
        let label = ["_tasks_per_s", "_percent", "_bytes", "_us_per_task", "_tasks"]
            .iter()
            .find_map(|unit| key.strip_suffix(unit))
            .unwrap_or(key);
        self.lines.push((label.replace('_', " "), text));
    }

    fn with(mut self, machine: &Machine) -> (Value, Vec<(String, String)>) {
        self.json.insert("machine".to_owned(), machine.json());
        self.lines.push(("machine".to_owned(), machine.text()));
        (Value::Object(self.json), self.lines)
    }
}
