//! One module for each command, and the way from the command line to them.

pub(crate) mod breaker;
pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod dev;
pub(crate) mod dlq;
pub(crate) mod doctor;
pub(crate) mod enqueue;
pub(crate) mod health;
pub(crate) mod limit;
pub(crate) mod migrate;
pub(crate) mod node;
pub(crate) mod outbox;
pub(crate) mod queue;
pub(crate) mod run;
pub(crate) mod schedule;
pub(crate) mod task;
pub(crate) mod transfer;
pub(crate) mod worker;
pub(crate) mod workflow;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;

use clap::FromArgMatches;
use clap::error::ErrorKind;

use crate::args::{Cli, Color, Command, Format, Global, command_of};
use crate::context::Context;
use crate::doors::{self, Refused};
use crate::exit::{Exit, Outcome, Problem};
use crate::logs::{self, Labels, Stream};
use crate::output::{Out, Tone, colors};
use crate::program::{self, Program};
use crate::{bench, demo};

/// Reads the command line and does what it says.
pub(crate) fn main(program: Program) -> ExitCode {
    logs::hook_panics();
    program::be_called(program.name());
    let args: Vec<OsString> = std::env::args_os().collect();
    let read = match doors::knock(&args) {
        Some(knock) => {
            program::be_given(knock.typed());
            knock.read(&program)
        }
        None => read(&args, program.name()).map(Ok).map_err(Refused::from),
    };
    let cli = match read {
        Ok(Ok(cli)) => cli,
        Ok(Err(done)) => return done.into(),
        Err(Refused::Grammar(error)) => return refuse(&error),
        Err(Refused::Problem(problem)) => return report(&problem, Color::Auto),
    };
    let global = cli.global.clone();
    // The hook has said what happened.
    let ended = std::panic::catch_unwind(AssertUnwindSafe(|| run(cli, program)));
    match ended {
        Ok(Ok(code)) => code,
        Ok(Err(problem)) => report(&problem, global.color),
        Err(_) => {
            let problem = Problem::new(
                Exit::Failed,
                "this is a mistake in the program, not in what you did",
                "please report it, with the output of the same command under WINDLASS_BACKTRACE=1",
            );
            report(&problem, global.color)
        }
    }
}

fn read(args: &[OsString], program: &str) -> Result<Cli, clap::Error> {
    let matches = command_of(program).try_get_matches_from(args)?;
    Cli::from_arg_matches(&matches)
}

/// A command line that cannot be read, or one that asked for help.
fn refuse(error: &clap::Error) -> ExitCode {
    // Nobody listening is no problem.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Exit::Ok.into(),
        _ => Exit::Usage.into(),
    }
}

fn run(cli: Cli, program: Program) -> Result<ExitCode, Problem> {
    // Workers size their threads by the configuration; every other command waits more than it computes.
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    match &cli.command {
        Command::Worker(_) | Command::Scheduler(_) | Command::All(_) | Command::Dev(_) => {
            if let Some(threads) = worker::threads(&cli)? {
                builder.worker_threads(threads);
            }
        }
        Command::Demo(_) | Command::Bench(_) => {}
        _ => {
            builder.worker_threads(1);
        }
    }
    let runtime = builder.enable_all().build()?;
    let ended = runtime.block_on(dispatch(cli, program));
    // A handler that blocks its thread must not keep the program from ending.
    runtime.shutdown_background();
    ended
}

async fn dispatch(cli: Cli, program: Program) -> Result<ExitCode, Problem> {
    let global = &cli.global;
    let outcome: Outcome = match cli.command {
        Command::Worker(args) => worker::worker(global, args, program).await,
        Command::Scheduler(args) => worker::scheduler(global, args, program).await,
        Command::All(args) => worker::all(global, args, program).await,
        Command::Dev(args) => dev::run(global, args, program).await,
        Command::Demo(args) => return Ok(demo::run(args, setting(global)).await?),
        Command::Bench(args) => return bench::run(global, args).await,
        Command::Config(args) => config::run(global, args),
        Command::Completions(args) => completions::run(&args, program.name()),
        Command::Doctor(args) => doctor::run(global, &args, program).await,
        Command::Enqueue(args) => enqueue::run(&quiet_context(global, program)?, args).await,
        Command::Run(args) => run::run(quiet_context(global, program)?, args).await,
        Command::Task(args) => task::run(&quiet_context(global, program)?, args).await,
        Command::Queue(args) => queue::run(&quiet_context(global, program)?, args).await,
        Command::Dlq(args) => dlq::run(&quiet_context(global, program)?, args).await,
        Command::Workflow(args) => workflow::run(&quiet_context(global, program)?, args).await,
        Command::Limit(args) => limit::run(&quiet_context(global, program)?, args).await,
        Command::Breaker(args) => breaker::run(&quiet_context(global, program)?, args).await,
        Command::Schedule(args) => schedule::run(&quiet_context(global, program)?, args).await,
        Command::Node(args) => node::run(&quiet_context(global, program)?, args).await,
        Command::Migrate(args) => migrate::run(&quiet_context(global, program)?, &args).await,
        Command::Transfer(args) => transfer::run(&quiet_context(global, program)?, &args).await,
        Command::Outbox(args) => outbox::run(&quiet_context(global, program)?, args).await,
        Command::Celery(args) => doors::celery(&quiet_context(global, program)?, args).await,
        Command::Taskiq(args) => doors::taskiq(&quiet_context(global, program)?, args).await,
        Command::Health(args) => health::run(&quiet_context(global, program)?, &args).await,
    };
    outcome.map(Into::into)
}

/// Only what the command line says: a demo must not run in the store that the configuration happens to name.
fn setting(global: &Global) -> demo::Setting {
    let json = global.json || matches!(global.output, Some(Format::Json | Format::Ndjson));
    let progress = if global.quiet { demo::Progress::Hidden } else { demo::Progress::OnTerminal };
    demo::Setting { store: global.store.clone(), json, progress }
}

/// What a command that prints data works with: it logs warnings only, and on standard error.
fn quiet_context(global: &Global, program: Program) -> Result<Context, Problem> {
    let context = Context::new(global, [], program)?;
    let mut log = context.loaded.config.log.clone();
    if global.verbose == 0 {
        "warn".clone_into(&mut log.level);
    }
    let labels = Labels { worker: None, service: context.program.name().to_owned() };
    logs::start(global, &log, Stream::Stderr, labels);
    Ok(context)
}

/// Says what went wrong and what to do about it.
fn report(problem: &Problem, color: Color) -> ExitCode {
    if !problem.is_silent() {
        let colored = colors(color, io::stderr().is_terminal());
        let paint = |text: &str, tone: Tone| if colored { tone.paint(text) } else { text.to_owned() };
        let mut stderr = io::stderr().lock();
        let _ = writeln!(stderr, "{} {}", paint("error:", Tone::Bad), program::as_typed(problem.text()));
        let _ = writeln!(stderr, "{} {}", paint("  try:", Tone::Strong), program::as_typed(problem.next_step()));
        if logs::wants_backtrace() {
            let mut source = std::error::Error::source(problem);
            while let Some(cause) = source {
                let _ = writeln!(stderr, "  because: {cause}");
                source = cause.source();
            }
            let _ = writeln!(stderr, "{}", problem.backtrace());
        }
    }
    problem.exit_code().into()
}

/// A way to print for commands that need no configuration.
fn out(global: &Global) -> Result<Out, Problem> {
    Out::of(global)
}
