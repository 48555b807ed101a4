//! `cargo xtask`: the project's own tooling, typed, without shell scripts.
//!
//! Every command is one module: [`mod@test`] runs all checks of the project, [`tidy`] the rules that no compiler knows,
//! [`sim`] many seeds of the simulation, [`chaos`] large runs with killed workers and servers, [`interop`] real programs
//! from Python, [`servers`] the servers that tests of the stores need. A new command is one variant of [`Task`] and one arm in [`run`].

mod chaos;
mod finding;
mod interop;
mod machine;
mod markdown;
mod metadata;
mod process;
mod programs;
mod rust_source;
mod servers;
mod sim;
mod test;
mod tidy;
mod tree;

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The command line of `cargo xtask`.
#[derive(Debug, Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "The project's own tooling",
    disable_help_subcommand = true
)]
struct Xtask {
    #[command(subcommand)]
    task: Task,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
enum Task {
    /// Set up what is missing on this machine, then run every check and every test of the project.
    Test(test::Arguments),
    /// Check the rules that no compiler knows: import rules, left-overs, licences, documents.
    #[command(after_help = tidy::EXCUSES)]
    Tidy {
        /// Run this check only; may be given several times.
        #[arg(long, value_name = "CHECK", value_parser = clap::builder::PossibleValuesParser::new(tidy::names()))]
        only: Vec<String>,
    },
    /// Run many seeds of the simulation in release mode and print seeds per second.
    Sim {
        /// How many seeds.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
        seeds: u64,
        /// The first seed; a failing run names its own, to be run alone.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// Kill and freeze workers and crash servers while many tasks run, and check that nothing is lost.
    Chaos(chaos::Arguments),
    /// Run real programs from Python (Celery, Flower, TaskIQ) against our worker and our client.
    #[command(after_help = interop::EXAMPLES)]
    Interop(interop::Arguments),
    /// Start the servers that the tests of the stores need, run a command with them and stop them.
    ///
    /// Starts a Redis that syncs its log every second, one that syncs it with every write, and a PostgreSQL: on free ports
    /// of 127.0.0.1, with data of their own; a RabbitMQ when somebody connects to it. The command finds them by the variables
    /// WINDLASS_TEST_REDIS_URL, WINDLASS_TEST_REDIS_ALWAYS_URL, WINDLASS_TEST_POSTGRES_URL and WINDLASS_TEST_RABBITMQ_URL;
    /// its exit code is passed on. A variable that is set already is used as it is, and nothing is started for it. Programs that are missing are installed with apt-get.
    #[command(after_help = servers::EXAMPLES)]
    Servers {
        /// What happens to the servers while the command runs: the conformance suite asks again meanwhile. A case whose claim
        /// was done and not answered fails, as its task is held by nobody: run with `--retries`.
        #[arg(long, value_enum, requires = "command")]
        trouble: Option<servers::Trouble>,
        /// What to run. Without it the variables are printed, and the servers stay until Ctrl-C or SIGTERM.
        #[arg(last = true, value_name = "COMMAND")]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    match run(Xtask::parse().task) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<ExitCode> {
    let root = tree::find_root()?;
    match task {
        Task::Test(arguments) => test::run(&root, &arguments),
        Task::Tidy { only } => tidy::run(&root, &only).map(|()| ExitCode::SUCCESS),
        Task::Sim { seeds, from } => sim::run(&root, seeds, from).map(|()| ExitCode::SUCCESS),
        Task::Chaos(arguments) => chaos::run(&root, &arguments).map(|()| ExitCode::SUCCESS),
        Task::Interop(arguments) => interop::run(&root, &arguments).map(|()| ExitCode::SUCCESS),
        Task::Servers { trouble, command } => servers::run(&command, trouble),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Xtask::command().debug_assert();
    }
}
