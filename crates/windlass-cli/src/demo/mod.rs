//! `windlass demo`: the main job at work, checked against the receiver's own ledger.
//!
//! 1. start a receiver, two workers and a scheduler
//! 2. enqueue everything of `plan`
//! 3. half-way, kill a worker and start another
//! 4. wait until nothing is left
//! 5. read what the store and the receiver say, and compare
//! 6. print it
//!
//! | file | what it owns |
//! |---|---|
//! | `plan.rs` | what is enqueued, and what the receiver is to answer |
//! | `receiver.rs` | the receiver and its ledger |
//! | `fleet.rs` | the processes |
//! | `stage.rs` | steps 1 to 4: the run |
//! | `checks.rs` | step 5: the comparison, pure |
//! | `report.rs` | step 6: the table and the JSON |

mod checks;
mod fleet;
mod plan;
mod receiver;
mod report;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use windlass::{Location, QueueName, redact};

use crate::exit::{Exit, Problem};
use stage::Stage;

/// How long the checks of a run may be waited for, beside the time that the tasks themselves need.
const LIMIT: Duration = Duration::from_secs(60);
/// A machine that needs longer for a task is too slow for this to be a demo.
const LIMIT_PER_TASK: Duration = Duration::from_millis(5);

/// Flags of `windlass demo`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass demo
  windlass demo --tasks 2000 --json
  windlass demo --keep                        leave it running and look around
  windlass demo --store sqlite:/tmp/demo.db   in a store of your choice
  windlass demo --store redis://127.0.0.1:6379")]
pub struct Args {
    /// How many deliveries are enqueued, 100 to 1,000,000.
    #[arg(long, value_name = "COUNT", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    tasks: u32,
    /// How many deliveries each worker has under way at once.
    #[arg(long, value_name = "COUNT", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    slots: u16,
    /// Leaves everything running after the checks, until Ctrl-C.
    #[arg(long)]
    keep: bool,
}

/// Where the demo runs and how it speaks: from the flags that every command takes.
#[derive(Debug, Clone, Default)]
pub struct Setting {
    /// The store; a new file in a temporary folder without it.
    pub store: Option<String>,
    /// JSON instead of a table.
    pub json: bool,
    /// Whether there is a progress bar.
    pub progress: Progress,
}

/// Whether there is a progress bar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Progress {
    /// On standard error, when that is a terminal.
    #[default]
    OnTerminal,
    /// Never.
    Hidden,
}

/// Runs the demo.
///
/// # Errors
/// When it cannot be set up, or does not come to an end. A check that does not hold is the exit code 1.
pub async fn run(args: Args, setting: Setting) -> anyhow::Result<ExitCode> {
    let mut folder = tempfile::Builder::new().prefix("windlass-demo-").tempdir().context("cannot make a folder")?;
    let place = Place::of(&setting, folder.path())?;
    // Dropping a run kills its processes.
    let ended = tokio::select! {
        ended = perform(&args, &setting, &place) => ended,
        exit = told_to_stop() => return Ok(exit.into()),
    };
    let ended = match ended {
        Ok((stage, exit)) => {
            if args.keep {
                stage.go_on().await?;
                anstream::eprintln!("{}", still_running(&place));
                told_to_stop().await;
            }
            stage.end().await;
            Ok(exit)
        }
        Err(error) => Err(error),
    };
    if args.keep || !matches!(ended, Ok(Exit::Ok)) {
        folder.disable_cleanup(true);
        anstream::eprintln!("The logs of all processes are in {}", folder.path().display());
    }
    ended.map(Into::into)
}

/// Where tasks live for this run.
#[derive(Debug, Clone)]
struct Place {
    folder: PathBuf,
    store: String,
    queue: QueueName,
}

impl Place {
    fn of(setting: &Setting, folder: &std::path::Path) -> anyhow::Result<Self> {
        let folder = folder.to_owned();
        let Some(url) = &setting.store else {
            let store = Location::Sqlite(folder.join("demo.db")).to_string();
            return Ok(Self { folder, store, queue: QueueName::known("demo") });
        };
        let store = match url.parse::<Location>()? {
            Location::Memory => {
                return Err(Problem::usage(
                    "the demo runs several processes, and a store in memory is seen by one alone",
                    "leave `--store` out, or name a file such as `--store sqlite:/tmp/demo.db`",
                )
                .into());
            }
            // The processes start in a folder of their own.
            Location::Sqlite(path) => Location::Sqlite(std::path::absolute(path)?).to_string(),
            location @ (Location::Redis(_) | Location::Postgres(_)) => location.url(),
        };
        // There may be other tasks: those of this run have a queue of their own.
        let queue = QueueName::new(format!("demo-{:08x}", fastrand::u32(..)))?;
        Ok(Self { folder, store, queue })
    }
}

/// The run and its report.
async fn perform(args: &Args, setting: &Setting, place: &Place) -> anyhow::Result<(Stage, Exit)> {
    let mut stage = Stage::set(place, usize::from(args.slots), args.tasks, setting.progress).await?;
    let limit = LIMIT + LIMIT_PER_TASK * args.tasks;
    let seen = stage.play(limit).await?;
    let report = checks::report(&seen);
    if setting.json {
        anstream::println!("{}", report.to_json());
    } else {
        anstream::println!("{}", report.to_table());
    }
    Ok((stage, if report.holds() { Exit::Ok } else { Exit::Failed }))
}

fn still_running(place: &Place) -> String {
    let Place { queue, .. } = place;
    let store = redact::url(&place.store);
    format!(
        "\nIt is still running: two workers, and a schedule that fires every second. Look at it from another terminal:\n\
         \n  windlass queue ls --store {store}\
         \n  windlass task ls -q 'queue:{queue} state:dead' --store {store}\
         \n  windlass node ls --store {store}\
         \n\nCtrl-C ends it."
    )
}

/// Waits for Ctrl-C or SIGTERM.
async fn told_to_stop() -> Exit {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = interrupt.recv() => Exit::Interrupted,
            _ = terminate.recv() => Exit::Terminated,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = tokio::signal::ctrl_c().await;
        Exit::Interrupted
    }
}
