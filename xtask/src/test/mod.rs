//! `cargo xtask test`: everything the project proves about itself, one step after the other.
//!
//! The steps are a table in [`steps`]; a new layer (interop, browser) is one more row there. This file chooses which rows
//! run, times them and prints what became of each. It changes nothing outside the target folder, but for Debian packages
//! that are missing and can be installed.
//!
//! The tests get servers of their own ([`crate::servers`]). Servers that run on the machine already are not touched, unless
//! the environment names them.

mod examples;
mod steps;
mod summary;
mod totals;

use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;

use crate::process::Finished;
use steps::{Context, STEPS, Step};
use summary::{Line, Verdict};
use totals::Totals;

/// The whole run must end within an hour on two cores; what is not done by then has hung.
const RUN_LIMIT: Duration = Duration::from_secs(60 * 60);

/// What `cargo xtask test` takes.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Go on after a step has failed; the exit code is still that of a failure.
    #[arg(long)]
    keep_going: bool,
    /// Run this step only; may be given several times.
    #[arg(long, value_name = "STEP")]
    only: Vec<String>,
    /// Print the steps and run none.
    #[arg(long)]
    list: bool,
}

/// What a step that did not fail has to say.
#[derive(Debug)]
enum Outcome {
    /// It did its work: a few words, and the tests that ran in it, if it ran any.
    Passed(String, Totals),
    /// What it works on does not exist: not a pass.
    Nothing(String),
}

/// A step that ran tests and some of them failed: counted, where a build error has nothing to count.
#[derive(Debug)]
struct TestsFailed {
    totals: Totals,
    what: String,
}

impl std::fmt::Display for TestsFailed {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str(&self.what)
    }
}

impl std::error::Error for TestsFailed {}

/// Runs the chosen steps and prints the closing lines. The exit code is 0 only when no step failed.
///
/// # Errors
/// When `--only` names no step, or the machine cannot be asked about itself.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<ExitCode> {
    let chosen = choose(&arguments.only)?;
    if arguments.list {
        for step in chosen {
            println!("{:<10} {}", step.name, step.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let started = Instant::now();
    let context = Context::new(root, started + RUN_LIMIT);
    let mut lines = Vec::new();
    for (at, step) in chosen.iter().enumerate() {
        println!("\n[{}/{}] {}: {}", at + 1, chosen.len(), step.name, step.about);
        let line = run_step(step, &context);
        println!("[{}/{}] {}: {} in {}", at + 1, chosen.len(), step.name, line.verdict, summary::spell(line.took));
        let failed = matches!(line.verdict, Verdict::Failed(_));
        lines.push(line);
        if failed && !arguments.keep_going {
            lines.extend(chosen[at + 1..].iter().map(|step| Line::not_run(step.name)));
            break;
        }
    }
    println!("\n{}", summary::render(&lines, started.elapsed()));
    let failed = lines.iter().any(|line| matches!(line.verdict, Verdict::Failed(_)));
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn choose(only: &[String]) -> Result<Vec<&'static Step>> {
    if let Some(unknown) = only.iter().find(|name| !STEPS.iter().any(|step| step.name == name.as_str())) {
        let known = STEPS.iter().map(|step| step.name).collect::<Vec<_>>().join(", ");
        bail!("there is no step `{unknown}`: choose from {known}");
    }
    Ok(STEPS.iter().filter(|step| only.is_empty() || only.iter().any(|name| name == step.name)).collect())
}

fn run_step(step: &Step, context: &Context<'_>) -> Line {
    let started = Instant::now();
    let outcome = (step.run)(context);
    let took = started.elapsed();
    let (verdict, totals) = match outcome {
        Ok(Outcome::Passed(note, totals)) => (Verdict::Passed(note), totals),
        Ok(Outcome::Nothing(why)) => (Verdict::Nothing(why), Totals::default()),
        Err(error) => {
            let totals = error.downcast_ref::<TestsFailed>().map_or_else(Totals::default, |failed| failed.totals);
            (Verdict::Failed(format!("{error:#}")), totals)
        }
    };
    Line { name: step.name, verdict, took, totals }
}

/// Turns a program that failed into an error that says which.
///
/// # Errors
/// When it did not end with exit code 0.
fn must_succeed(finished: &Finished, what: &str, next: &str) -> Result<()> {
    if finished.success() {
        return Ok(());
    }
    bail!("{what} {}; {next}", finished.ending())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_chooses_steps_in_the_order_of_the_table() {
        let names = |only: &[&str]| -> Vec<&str> {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            choose(&only).expect("known").iter().map(|step| step.name).collect()
        };
        assert_eq!(names(&["tidy", "fmt"]), ["fmt", "tidy"]);
        assert_eq!(names(&[]).len(), STEPS.len());
    }

    #[test]
    fn an_unknown_step_is_answered_with_the_known_ones() {
        let error = choose(&["tset".to_owned()]).expect_err("unknown").to_string();
        assert!(error.contains("no step `tset`") && error.contains("tidy"), "{error}");
    }
}
