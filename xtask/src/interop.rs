//! `cargo xtask interop`: real programs from Python (Celery, Flower, TaskIQ) against our worker and our client.
//!
//! 1. make a private Python environment in the target folder, once for each list of pinned packages
//! 2. build the programs of the suite   3. start private servers   4. run pytest

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process::{self, Echo, Finished};
use crate::programs::Programs;
use crate::servers::{self, Servers};
use crate::{machine, metadata};

/// Where the suite is, from the root of the repository.
const SUITE: &str = "tests/interop/python";
/// The pinned packages.
const PACKAGES: &str = "tests/interop/python/requirements.txt";
/// The worker of the suite and its client, and the program that we ship; each with the variable that names it.
const PROGRAMS: [(&str, &str); 3] =
    [("interop-worker", WORKER), ("interop-client", "INTEROP_CLIENT"), ("windlass", "INTEROP_WINDLASS")];
const WORKER: &str = "INTEROP_WORKER";
/// Which worker the suite talks to.
const PEER: &str = "INTEROP_PEER";
/// Written last: an environment without it was not finished.
const STAMP: &str = "packages.txt";
/// Fifty packages from a mirror near by; a quarter of an hour means that it does not answer.
const INSTALL_LIMIT: Duration = Duration::from_secs(15 * 60);
/// Two cores need some six minutes for everything.
const RUN_LIMIT: Duration = Duration::from_secs(30 * 60);

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  cargo xtask interop
  cargo xtask interop --peer python
  cargo xtask interop -- -k 'canvas and redis'";

/// Which worker the suite talks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(crate) enum Peer {
    /// Our own.
    #[default]
    Ours,
    /// A reference worker from Python: it proves the suite.
    Python,
}

/// What `cargo xtask interop` takes.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Arguments {
    /// Which worker the suite talks to.
    #[arg(long, value_enum, default_value_t = Peer::Ours)]
    pub(crate) peer: Peer,
    /// For pytest: names of files, `-k EXPRESSION`.
    #[arg(last = true, value_name = "PYTEST")]
    pub(crate) pytest: Vec<String>,
}

/// Installs what is missing, builds the programs, runs the suite and prints what became of it.
///
/// # Errors
/// When something cannot be installed or built, or a test fails.
pub(crate) fn run(root: &Path, arguments: &Arguments) -> Result<()> {
    servers::install_missing()?;
    let programs = build(root)?;
    let servers = Servers::start()?;
    let finished = run_suite(root, arguments, &programs, &servers, RUN_LIMIT)?;
    if !finished.success() {
        bail!("the suite {}; repeat one test with `cargo xtask interop -- -k NAME`", finished.ending());
    }
    Ok(())
}

/// Runs the suite with programs and servers that are there.
///
/// # Errors
/// When the Python environment cannot be made, or `pytest` does not start.
pub(crate) fn run_suite(
    root: &Path,
    arguments: &Arguments,
    programs: &[(&'static str, PathBuf)],
    servers: &Servers,
    limit: Duration,
) -> Result<Finished> {
    let python = environment(root)?;
    let mut command = Command::new(python);
    command.args(["-m", "pytest", "-p", "no:cacheprovider", "--color", "no"]).args(&arguments.pytest);
    command.current_dir(root.join(SUITE)).envs(servers.variables());
    // Folders of bytecode in the checkout help nobody.
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.env(PEER, if arguments.peer == Peer::Python { "python" } else { "ours" });
    for (variable, program) in programs {
        command.env(variable, program);
    }
    process::run(command, limit, Echo::Both)
}

/// The Python of the private environment, which is made when it is not there or other packages are pinned.
///
/// # Errors
/// When Python has no `venv` and cannot get it, or a package cannot be installed.
pub(crate) fn environment(root: &Path) -> Result<PathBuf> {
    let wanted = fs::read_to_string(root.join(PACKAGES)).with_context(|| format!("cannot read {PACKAGES}"))?;
    let folder = metadata::target_folder(root)?.join("interop-python");
    let (python, stamp) = (folder.join("bin/python"), folder.join(STAMP));
    if python.is_file() && fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).context("cannot remove an environment of other packages")?;
    }
    make_environment(&folder)?;
    println!("interop: installing the packages of {PACKAGES}");
    let mut command = Command::new(&python);
    command.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]);
    command.arg(root.join(PACKAGES));
    let finished = process::run(command, INSTALL_LIMIT, Echo::Both)?;
    if !finished.success() {
        bail!("pip {}: it says above which package it cannot get", finished.ending());
    }
    fs::write(&stamp, wanted).context("cannot mark the environment as complete")?;
    Ok(python)
}

/// An empty environment. Debian has the module for it, and pip, in packages of their own.
fn make_environment(folder: &Path) -> Result<()> {
    let made = || process::run(venv_command(folder), INSTALL_LIMIT, Echo::Nothing);
    if made().is_ok_and(|finished| finished.success()) {
        return Ok(());
    }
    for package in ["python3", "python3-venv", "python3-pip"] {
        machine::install(package, "Python with its module `venv` (the suite runs programs from Python)")?;
    }
    let finished = made()?;
    if !finished.success() {
        bail!("python3 -m venv {}: {}", finished.ending(), finished.stderr.trim());
    }
    Ok(())
}

fn venv_command(folder: &Path) -> Command {
    let mut command = Command::new("python3");
    command.args(["-m", "venv", "--clear"]).arg(folder);
    command
}

/// Those of the suite's programs that a build made, each with the variable that names it.
pub(crate) fn programs_of(built: &Programs) -> Vec<(&'static str, PathBuf)> {
    let found = PROGRAMS.iter().map(|(name, variable)| (*variable, built.find("bin", name)));
    found.filter_map(|(variable, path)| Some((variable, path?.to_path_buf()))).collect()
}

fn build(root: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let mut command = process::cargo();
    command.args(["build", "--package", "windlass-interop", "--package", "windlass-cli", "--bins", "--locked"]);
    command.current_dir(root);
    command.args(["--message-format", "json-render-diagnostics"]);
    let finished = process::run(command, RUN_LIMIT, Echo::Errors)?;
    if !finished.success() {
        bail!("the build {}; mend the errors above", finished.ending());
    }
    Ok(programs_of(&Programs::of_messages(&finished.stdout)))
}
