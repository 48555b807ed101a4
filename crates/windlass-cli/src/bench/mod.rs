//! `windlass bench`: how fast a store and the engine are on this machine.
//!
//! | command | measures |
//! |---|---|
//! | `enqueue` | how fast tasks get in: one by one, by many at once, in bulk |
//! | `drain` | how fast tasks that do nothing are worked off; the share of the store's own limit |
//! | `latency` | from the enqueue to the start, in one process or across two |
//! | `roundtrip` | from the enqueue to the result |
//! | `scheduled` | how late delayed tasks start |
//! | `idle` | what a worker costs that has nothing to do |
//! | `soak` | very many tasks: whether speed, memory and files stay as they were |
//! | `gates` | what limits cost that stop nothing |
//! | `fairness` | how long a small tenant waits behind a large one |
//! | `bridges` | messages of Celery, TaskIQ and bare JSON, against own tasks and those products' workers |
//! | `limits` | the store alone |
//! | `compare` | several stores and other products in one report |
//!
//! Numbers are data: with a unit each, as a table or as JSON. Progress is on standard error. `stats`, `machine` and
//! `report` hold what is measured with, `measured`, `bed` and `server` what is measured on, `raw` what it is compared
//! with, `side` a worker in a process of its own, `peer` the other products.

mod bed;
mod bridges;
mod compare;
mod drain;
mod enqueue;
mod fairness;
mod gates;
mod idle;
mod latency;
mod limits;
mod machine;
mod measured;
mod peer;
mod raw;
mod report;
mod roundtrip;
mod scheduled;
mod server;
mod side;
mod soak;
mod stats;

use std::fmt;
use std::process::ExitCode;

use windlass::config::{LogConfig, LogFormat};

use crate::args::Global;
use crate::exit::{Exit, Problem};
use crate::logs::{self, Labels, Stream};
use crate::output::Out;
use bed::Place;
use machine::Machine;
use report::{Goal, Report};

/// Measure a store and the engine on this machine
///
/// The store is a fresh one, by default SQLite in a temporary file on the disk of the current folder; `--store memory`
/// is the engine alone. In a server it is a namespace or a schema of its own that is removed afterwards. A file, a
/// namespace or a schema that is named with `--store` is used as it is: its tasks are left alone, the measured ones are
/// removed.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench drain                               SQLite, in a temporary file beside you
  windlass bench drain --store memory --json         the engine alone
  windlass bench latency --store redis://127.0.0.1/0 --processes 2
  windlass bench limits --store postgres://127.0.0.1/test
  windlass bench compare --store redis://127.0.0.1/0 --peer bullmq")]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum What {
    Enqueue(enqueue::Args),
    Drain(drain::Args),
    Latency(latency::Args),
    Roundtrip(roundtrip::Args),
    Scheduled(scheduled::Args),
    Idle(idle::Args),
    Soak(soak::Args),
    Gates(gates::Args),
    Fairness(fairness::Args),
    Bridges(bridges::Args),
    Limits(limits::Args),
    Compare(compare::Args),
    #[command(hide = true)]
    Worker(side::Args),
}

/// How often something is measured, and what a missed goal means.
#[derive(Debug, Clone, clap::Args)]
struct Repeat {
    /// Runs; the median of them is printed, with the range
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// Fail when a goal is missed
    #[arg(long)]
    check: bool,
}

impl What {
    /// Whether a missed goal fails the command.
    fn checks(&self) -> bool {
        match self {
            Self::Enqueue(args) => args.repeat.check,
            Self::Drain(args) => args.repeat.check,
            Self::Latency(args) => args.repeat.check,
            Self::Roundtrip(args) => args.repeat.check,
            Self::Scheduled(args) => args.repeat.check,
            Self::Idle(args) => args.repeat.check,
            Self::Soak(args) => args.check,
            Self::Gates(args) => args.repeat.check,
            Self::Fairness(args) => args.repeat.check,
            Self::Bridges(args) => args.repeat.check,
            Self::Limits(args) => args.repeat.check,
            Self::Compare(args) => args.repeat.check,
            Self::Worker(_) => false,
        }
    }

    /// The stores that are measured; one, unless they are compared.
    fn stores(&self, global: &Global) -> Vec<Option<String>> {
        match self {
            Self::Compare(args) if !args.store.is_empty() => args.store.iter().cloned().map(Some).collect(),
            _ => vec![global.store.clone()],
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
    if let What::Worker(args) = &args.what {
        side::run(args).await?;
        return Ok(Exit::Ok.into());
    }
    let stores = args.what.stores(global);
    let places = stores.iter().map(|store| Place::of(store.as_deref())).collect::<Result<Vec<_>, _>>()?;
    let bench = Bench { place: places[0].clone(), out: Out::of(global)? };
    let measured = async {
        match &args.what {
            What::Enqueue(args) => enqueue::run(&bench, args).await,
            What::Drain(args) => drain::run(&bench, args).await,
            What::Latency(args) => latency::run(&bench, args).await,
            What::Roundtrip(args) => roundtrip::run(&bench, args).await,
            What::Scheduled(args) => scheduled::run(&bench, args).await,
            What::Idle(args) => idle::run(&bench, args).await,
            What::Soak(args) => soak::run(&bench, args).await,
            What::Gates(args) => gates::run(&bench, args).await,
            What::Fairness(args) => fairness::run(&bench, args).await,
            What::Bridges(args) => bridges::run(&bench, args).await,
            What::Limits(args) => limits::run(&bench, args).await,
            What::Compare(args) => compare::run(&bench, &places, args).await,
            What::Worker(_) => unreachable!("it has returned"),
        }
    };
    // What is dropped half-way takes its temporary files with it.
    let ended = tokio::select! {
        report = measured => Ok(report),
        exit = interrupted() => Err(exit),
    };
    // However it ended, nothing is left in a server.
    for place in &places {
        if let Err(problem) = place.clean().await {
            bench.out.warn(format_args!("something may be left in the server: {}", problem.text()));
        }
    }
    match ended {
        Ok(report) => show(&bench, report?, args.what.checks()),
        Err(exit) => Ok(exit.into()),
    }
}

fn show(bench: &Bench, report: Report, checks: bool) -> Result<ExitCode, Problem> {
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
