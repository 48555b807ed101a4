//! The steps of `cargo xtask test`, in their order: cheap ones first, so that a slip shows in seconds.
//!
//! All of them select the whole workspace in one profile, because one selection of crates is one set of features; and
//! programs, tests and examples are built by `cargo test --no-run`, because `cargo build` makes units of its own for
//! crates with a procedural macro below them. So nothing is built twice.

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use windlass_servers::POSTGRES_URL;

use super::totals::Totals;
use super::{Outcome, TestsFailed, examples, must_succeed};
use crate::metadata::Metadata;
use crate::process::{self, Echo, Finished};
use crate::programs::Programs;
use crate::servers::Servers;
use crate::{interop, machine, sim, tidy};

/// How many seeds of the simulation run with the tests when the environment does not say.
const SIM_SEEDS_DEFAULT: &str = "200";

/// One step.
#[derive(Debug)]
pub(super) struct Step {
    /// The name that `--only` takes.
    pub(super) name: &'static str,
    /// What it does.
    pub(super) about: &'static str,
    /// Does it.
    pub(super) run: fn(&Context<'_>) -> Result<Outcome>,
}

/// Every step, in order.
pub(super) const STEPS: [Step; 11] = [
    Step {
        name: "machine",
        about: "find or install what is needed",
        run: |context| machine::prepare(context.root).map(passed),
    },
    Step { name: "fmt", about: "every file is formatted", run: check_format },
    Step {
        name: "tidy",
        about: "the rules that no compiler knows",
        run: |context| tidy::run(context.root, &[]).map(|()| passed("")),
    },
    Step { name: "clippy", about: "no warning in any target", run: check_lints },
    Step { name: "build", about: "every program, test and example", run: build },
    Step {
        name: "test",
        about: "every test, 200 seeds of the simulation and those that need a server among them",
        run: run_tests,
    },
    Step { name: "interop", about: "real Celery, Flower and TaskIQ programs from Python", run: run_interop },
    Step { name: "doctest", about: "the examples in the documentation of the code", run: run_doc_tests },
    Step { name: "doc", about: "the documentation builds without a warning", run: build_docs },
    Step { name: "examples", about: "every example prints what its expected output says", run: run_examples },
    Step { name: "commands", about: "the commands in the documents exist", run: check_documented_commands },
];

/// What the steps share.
pub(super) struct Context<'root> {
    /// The checkout.
    pub(super) root: &'root Path,
    deadline: Instant,
    programs: OnceCell<Programs>,
}

impl<'root> Context<'root> {
    /// What steps need to run in `root` until `deadline`.
    pub(super) fn new(root: &'root Path, deadline: Instant) -> Self {
        Self { root, deadline, programs: OnceCell::new() }
    }

    /// A cargo command in the checkout.
    fn cargo<'word>(&self, arguments: impl IntoIterator<Item = &'word str>) -> Command {
        let mut command = process::cargo();
        command.args(arguments).current_dir(self.root);
        command
    }

    /// Runs a command within what is left of the time of the whole run.
    fn run(&self, command: Command, echo: Echo) -> Result<Finished> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        process::run(command, left.max(Duration::from_secs(1)), echo)
    }

    /// The programs of the workspace, built on the first call.
    ///
    /// # Errors
    /// When something does not compile.
    pub(super) fn programs(&self) -> Result<&Programs> {
        if let Some(programs) = self.programs.get() {
            return Ok(programs);
        }
        let programs = self.build(["test", "--no-run"])?;
        Ok(self.programs.get_or_init(|| programs))
    }

    /// The binary `windlass`. Integration tests of its crate build it along with them; without any, it is built here.
    fn binary(&self) -> Result<PathBuf> {
        if let Some(binary) = self.programs()?.find("bin", "windlass") {
            return Ok(binary.to_path_buf());
        }
        // With every target, so that the features stay those of the tests: other features would build half the world again.
        let programs = self.build(["build", "--all-targets"])?;
        programs.find("bin", "windlass").map(Path::to_path_buf).context("the build made no binary `windlass`")
    }

    fn build<const N: usize>(&self, how: [&str; N]) -> Result<Programs> {
        let mut command = self.cargo(how);
        command.args(["--workspace", "--locked", "--message-format", "json-render-diagnostics"]);
        let finished = self.run(command, Echo::Errors)?;
        must_succeed(&finished, "the build", "mend the errors above")?;
        Ok(Programs::of_messages(&finished.stdout))
    }
}

fn passed(note: impl Into<String>) -> Outcome {
    Outcome::Passed(note.into(), Totals::default())
}

fn check_format(context: &Context<'_>) -> Result<Outcome> {
    let finished = context.run(context.cargo(["fmt", "--all", "--check"]), Echo::Both)?;
    must_succeed(&finished, "rustfmt", "run `cargo fmt --all` and commit")?;
    Ok(passed(""))
}

fn check_lints(context: &Context<'_>) -> Result<Outcome> {
    let command =
        context.cargo(["clippy", "--workspace", "--all-targets", "--keep-going", "--locked", "--", "-D", "warnings"]);
    let finished = context.run(command, Echo::Both)?;
    must_succeed(&finished, "clippy", "mend the warnings above")?;
    Ok(passed(""))
}

fn build(context: &Context<'_>) -> Result<Outcome> {
    let programs = context.programs()?;
    Ok(passed(format!("{} test programs, {} binaries and examples", programs.tests(), programs.len())))
}

fn run_tests(context: &Context<'_>) -> Result<Outcome> {
    let mut command = if machine::has_nextest() {
        context.cargo(["nextest", "run", "--workspace", "--no-tests", "pass", "--no-fail-fast"])
    } else {
        // Without doc tests, which are the next step.
        context.cargo(["test", "--workspace", "--lib", "--bins", "--tests", "--no-fail-fast"])
    };
    command.arg("--locked");
    let seeds = std::env::var(sim::SEEDS).unwrap_or_else(|_| SIM_SEEDS_DEFAULT.to_owned());
    command.env(sim::SEEDS, seeds);
    // They end when this function does.
    let servers = Servers::start()?;
    command.envs(servers.variables());
    judge_tests(&context.run(command, Echo::Both)?, "the tests")
}

fn run_interop(context: &Context<'_>) -> Result<Outcome> {
    let programs = interop::programs_of(context.programs()?);
    // They end when this function does.
    let servers = Servers::start()?;
    let left = context.deadline.saturating_duration_since(Instant::now());
    let arguments = interop::Arguments { peer: interop::peer_of(&programs), pytest: Vec::new() };
    let finished = interop::run_suite(context.root, &arguments, &programs, &servers, left)?;
    match (judge_tests(&finished, "the programs from Python")?, arguments.peer) {
        // Said in the summary, because it proves less.
        (Outcome::Passed(note, totals), interop::Peer::Python) => {
            Ok(Outcome::Passed(format!("{note}, against a worker from Python: no `interop-worker` was built"), totals))
        }
        (outcome, _) => Ok(outcome),
    }
}

fn run_doc_tests(context: &Context<'_>) -> Result<Outcome> {
    let command = context.cargo(["test", "--workspace", "--doc", "--no-fail-fast", "--locked"]);
    judge_tests(&context.run(command, Echo::Both)?, "the doc tests")
}

/// A run of tests passed when its runner says so and tests ran.
fn judge_tests(finished: &Finished, what: &str) -> Result<Outcome> {
    let mut totals = Totals::of_output(&finished.stdout);
    totals += Totals::of_output(&finished.stderr);
    if !finished.success() {
        let what = format!("{what} {}; {} failed, named above", finished.ending(), totals.failed);
        return Err(TestsFailed { totals, what }.into());
    }
    if totals.ran() == 0 {
        return Ok(Outcome::Nothing("no test exists".to_owned()));
    }
    Ok(Outcome::Passed(format!("{} tests", totals.ran()), totals))
}

fn build_docs(context: &Context<'_>) -> Result<Outcome> {
    // Libraries only: the binary `windlass` and the library `windlass` would write to the same folder.
    let mut command = context.cargo(["doc", "--workspace", "--no-deps", "--lib", "--locked"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    let finished = context.run(command, Echo::Both)?;
    must_succeed(&finished, "rustdoc", "mend the warnings above")?;
    Ok(passed(""))
}

fn run_examples(context: &Context<'_>) -> Result<Outcome> {
    let examples = examples::find(context.root, &Metadata::read(context.root)?)?;
    if examples.is_empty() {
        return Ok(Outcome::Nothing("no crate has examples".to_owned()));
    }
    let programs = context.programs()?;
    // They end when this function does.
    let servers = Servers::start()?;
    let postgres = servers.variables().get(POSTGRES_URL).context("a PostgreSQL was started")?;
    let mut totals = Totals::default();
    for example in &examples {
        match example.check(programs, postgres) {
            Ok(()) => {
                println!("  {}: as expected", example.name);
                totals.passed += 1;
            }
            Err(error) => {
                println!("  {}: {error:#}", example.name);
                totals.failed += 1;
            }
        }
    }
    if totals.failed > 0 {
        return Err(TestsFailed {
            totals,
            what: format!("{} of {} examples, see above", totals.failed, examples.len()),
        }
        .into());
    }
    Ok(Outcome::Passed(format!("{} examples", examples.len()), totals))
}

fn check_documented_commands(context: &Context<'_>) -> Result<Outcome> {
    if !tidy::documents_name_commands(context.root)? {
        return Ok(Outcome::Nothing("no document names a windlass command".to_owned()));
    }
    let documented = tidy::check_documented_commands(context.root, &context.binary()?)?;
    for finding in &documented.findings {
        println!("  {finding}");
    }
    if !documented.findings.is_empty() {
        bail!("{} commands in the documents do not exist, listed above", documented.findings.len());
    }
    Ok(passed(format!("{} commands", documented.count)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_have_names_of_their_own() {
        for (at, step) in STEPS.iter().enumerate() {
            assert!(STEPS[..at].iter().all(|before| before.name != step.name), "{}", step.name);
        }
    }

    #[test]
    fn a_run_without_tests_is_no_pass() {
        let finished = Finished {
            status: Some(std::process::ExitStatus::default()),
            stdout: String::new(),
            stderr: String::new(),
        };
        assert!(matches!(judge_tests(&finished, "the tests").expect("exit code 0"), Outcome::Nothing(_)));
    }

    #[test]
    fn failed_tests_are_counted_in_the_error() {
        let stdout = "test result: FAILED. 2 passed; 1 failed; 0 ignored".to_owned();
        let finished = Finished { status: None, stdout, stderr: String::new() };
        let error = judge_tests(&finished, "the tests").expect_err("failed");
        let failed = error.downcast_ref::<TestsFailed>().expect("counted");
        assert_eq!((failed.totals.passed, failed.totals.failed), (2, 1));
    }
}
