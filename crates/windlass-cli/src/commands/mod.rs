//! One module for each command, and the way from the command line to them.

pub(crate) mod worker;

use std::process::ExitCode;

use clap::Parser;

use crate::args::{Cli, Command};
use crate::exit::{Exit, Outcome, Problem};
use crate::program::Program;
use crate::{bench, demo};

/// Reads the command line and does what it says.
pub(crate) fn main(program: Program) -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return report(&Problem::from(error)),
    };
    match runtime.block_on(dispatch(cli, program)) {
        Ok(code) => code,
        Err(problem) => report(&problem),
    }
}

async fn dispatch(cli: Cli, program: Program) -> Result<ExitCode, Problem> {
    let outcome: Outcome = match cli.command {
        Command::Worker(args) => worker::run(&cli.global, args, program).await,
        Command::Demo(args) => return Ok(demo::run(args).await?),
        Command::Bench(args) => return Ok(bench::run(args).await?),
    };
    outcome.map(Into::into)
}

fn report(problem: &Problem) -> ExitCode {
    if !problem.is_silent() {
        anstream::eprintln!("error: {}\n  next: {}", problem.text(), problem.next_step());
    }
    let exit: Exit = problem.exit_code();
    exit.into()
}
