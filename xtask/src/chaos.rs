//! `cargo xtask chaos`: large runs of the tests that kill workers and servers; small ones run with all tests.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::process::{self, Echo};

/// What the runs read.
const TASKS: &str = "WINDLASS_CHAOS_TASKS";
const SEED: &str = "WINDLASS_CHAOS_SEED";
const OUTAGE: &str = "WINDLASS_CHAOS_OUTAGE";

/// A run that takes longer has hung.
const LIMIT: Duration = Duration::from_secs(6 * 3600);

/// What `cargo xtask chaos` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Tasks in each run.
    #[arg(long, default_value_t = 100_000)]
    tasks: u32,
    /// Seconds that a server is away in the tests of outages.
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    outage: u32,
    /// What decides when what happens; a run that fails names its own.
    #[arg(long)]
    seed: Option<u64>,
    /// Only tests whose name contains this: `redis`, `storm`.
    #[arg(value_name = "NAME")]
    only: Option<String>,
}

/// Runs them in release mode, one after the other.
///
/// # Errors
/// When one fails.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    let mut command = process::cargo();
    command.args(["test", "--package", "windlass-chaos", "--release", "--tests", "--no-fail-fast", "--"]);
    command.args(arguments.only.iter()).args(["--nocapture", "--test-threads", "1"]).current_dir(root);
    command.env(TASKS, arguments.tasks.to_string()).env(OUTAGE, arguments.outage.to_string());
    if let Some(seed) = arguments.seed {
        command.env(SEED, seed.to_string());
    }
    let finished = process::run(command, LIMIT, Echo::Both)?;
    if !finished.success() {
        bail!("the runs {}: repeat one with `cargo xtask chaos --seed SEED NAME`", finished.ending());
    }
    Ok(())
}
