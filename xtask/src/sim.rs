//! `cargo xtask sim`: many seeds of the simulation, in release mode, with their speed.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::process::{self, Echo};

/// How many seeds the simulation runs when nobody says otherwise; the simulation reads it too.
pub(crate) const SEEDS: &str = "WINDLASS_SIM_SEEDS";
/// The first seed.
pub(crate) const FROM: &str = "WINDLASS_SIM_FROM";

/// A night's worth; a run that takes longer has hung.
const LIMIT: Duration = Duration::from_secs(12 * 3600);

/// Builds the simulation, runs `seeds` of it beginning at `from`, and prints how many it did in a second.
///
/// # Errors
/// When a seed fails (the output names it) or there is no simulation to run.
pub(crate) fn run(root: &Path, seeds: u64, from: u64) -> Result<()> {
    if !root.join("crates/windlass-testkit/tests/simulation.rs").is_file() {
        bail!("there is nothing to run yet: crates/windlass-testkit/tests/simulation.rs does not exist");
    }
    // Built first, so that the speed below is that of the simulation alone.
    let mut build = simulation(root);
    build.arg("--no-run");
    if !process::run(build, LIMIT, Echo::Both)?.success() {
        bail!("the simulation does not build: see the errors above");
    }
    let mut simulate = simulation(root);
    simulate.args(["--", "--nocapture"]).env(SEEDS, seeds.to_string()).env(FROM, from.to_string());
    let started = Instant::now();
    let finished = process::run(simulate, LIMIT, Echo::Both)?;
    let took = started.elapsed();
    println!("{}", describe_speed(seeds, from, took));
    if !finished.success() {
        bail!("the simulation {}: run its seed alone with `cargo xtask sim --seeds 1 --from SEED`", finished.ending());
    }
    Ok(())
}

fn simulation(root: &Path) -> Command {
    let mut command = process::cargo();
    command.args(["test", "--package", "windlass-testkit", "--release", "--test", "simulation"]).current_dir(root);
    command
}

fn describe_speed(seeds: u64, from: u64, took: Duration) -> String {
    let each_second = seeds as f64 / took.as_secs_f64().max(0.001);
    format!(
        "sim: seeds {from} to {}, {:.1} s, {each_second:.1} seeds/s",
        from + seeds.saturating_sub(1),
        took.as_secs_f64()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speed_is_seeds_a_second() {
        assert_eq!(describe_speed(200, 100, Duration::from_secs(4)), "sim: seeds 100 to 299, 4.0 s, 50.0 seeds/s");
    }
}
