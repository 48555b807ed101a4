//! `windlass taskiq …`: TaskIQ's command line, for the tasks of this program.
//!
//! Its `module:broker` names a Python object, so the broker's address comes from `TASKIQ_BROKER_URL` or the configuration.

mod grammar;
mod send;

#[cfg(test)]
mod tests;

use std::ffi::OsString;

use clap::{CommandFactory, FromArgMatches};
use windlass::bridges::BridgeUrl;
use windlass::bridges::url::Over;

use super::broker::{self, Found};
use super::{Refused, TaskIqArgs, Way, words};
use crate::args::{Command, Global};
use crate::commands::worker::{Args, SchedulerArgs};
use crate::context::Context;
use crate::exit::{Outcome, Problem};
use crate::output::Out;
use crate::program::Program;
use crate::settings::{self, Override};
use grammar::{Door, Verb, Worker};

/// The variable that names the broker.
const BROKER: &str = "TASKIQ_BROKER_URL";

/// The queue of TaskIQ's producers.
const DEFAULT_QUEUE: &str = "taskiq";

/// A task that is to be sent.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    bridge: BridgeUrl,
    task: grammar::Send,
}

/// Reads a command line of TaskIQ's.
pub(super) fn read(theirs: &[OsString], global: &mut Global, program: &Program) -> Result<Way, Refused> {
    let line = std::iter::once(OsString::from("taskiq")).chain(theirs.iter().map(spelt_out));
    let matches = Door::command().bin_name(format!("{} taskiq", program.name())).try_get_matches_from(line)?;
    let out = Out::of(global)?;
    let command = match Door::from_arg_matches(&matches)?.verb {
        Verb::Worker(args) => {
            words::go_to(args.python.app_dir.as_deref())?;
            let mut found = found(global)?;
            if let Some(ahead) = args.max_prefetch.filter(|ahead| *ahead > 0) {
                found.say("ahead", &ahead.to_string());
            }
            if !args.child.is_one() {
                words::warn_of_module(&out, "the broker", Some(&args.broker), program.name());
                words::warn_of(&out, &args.idle());
            }
            Command::Worker(Args::translated(overrides(&args, &found), args.child))
        }
        Verb::Scheduler(args) => {
            words::go_to(args.python.app_dir.as_deref())?;
            let mut found = found(global)?;
            let bridge = found.bridge()?;
            if bridge.over == Over::Redis && bridge.get("schedules").is_none() {
                found.say("schedules", "broker");
            }
            words::warn_of_module(&out, "the scheduler", Some(&args.scheduler), program.name());
            words::warn_of(&out, &args.idle());
            let mut overrides = vec![words::set("bridge", found.from, &found.url)];
            overrides.extend(words::relay(&out, args.queues.as_deref(), global)?);
            overrides.extend(args.python.log_level.as_ref().map(|level| words::set("log.level", "--log-level", level)));
            Command::Scheduler(SchedulerArgs::translated(overrides))
        }
        Verb::Task(task) => {
            let ask = Some(Ask { bridge: found(global)?.bridge()?, task });
            Command::Taskiq(TaskIqArgs { theirs: theirs.to_vec(), ask })
        }
    };
    Ok(Way::Command(Box::new(command)))
}

/// Sends what was asked for.
pub(super) async fn answer(context: &Context, ask: Ask) -> Outcome {
    send::task(&context.out, &ask.bridge, &ask.task).await
}

/// Short options of more than one letter, which only Python's parser knows.
fn spelt_out(arg: &OsString) -> OsString {
    match arg.to_str() {
        Some("-fsd") => "--fs-discover".into(),
        Some("-tp") => "--tasks-pattern".into(),
        Some(text) if text.starts_with("-tp=") => format!("--tasks-pattern{}", &text[3..]).into(),
        Some(_) | None => arg.clone(),
    }
}

/// Where the broker is.
fn found(global: &Global) -> Result<Found, Problem> {
    if let Some(url) = std::env::var(BROKER).ok().filter(|url| !url.trim().is_empty()) {
        return broker::bridge_to("taskiq", &url, BROKER);
    }
    let loaded = settings::load(&settings::sources(global, []))?;
    match loaded.config.bridge.filter(|url| url.starts_with("taskiq+")) {
        Some(url) => Ok(Found { url, from: "bridge", left_out: Vec::new() }),
        None => Err(Problem::usage(
            "no broker is named: that of Python's `module:broker` cannot be read",
            "name it by TASKIQ_BROKER_URL, as in redis://HOST:PORT/DB?kind=stream, or as `bridge` in the configuration",
        )),
    }
}

/// What `taskiq worker` says, as keys of the configuration.
fn overrides(args: &Worker, found: &Found) -> Vec<Override> {
    let mut set = vec![words::set("bridge", found.from, &found.url)];
    set.extend(args.python.log_level.as_ref().map(|level| words::set("log.level", "--log-level", level)));
    set.extend(args.max_async_tasks.map(|slots| words::set("worker.slots", "--max-async-tasks", slots)));
    let grace = args.wait_tasks_timeout.or(args.shutdown_timeout);
    set.extend(grace.map(|grace| words::set("worker.grace", "--wait-tasks-timeout", words::duration(grace))));
    if let Some(tasks) = args.max_tasks_per_child {
        set.push(words::set("worker.recycle_tasks", "--max-tasks-per-child", tasks));
    }
    // One process needs nobody who looks after it, unless it is to be replaced.
    match (args.workers, args.max_tasks_per_child) {
        (Some(workers), _) if workers > 1 => set.push(words::set("worker.processes", "--workers", workers)),
        (_, Some(_)) => set.push(words::set("worker.processes", "--max-tasks-per-child", 1)),
        (_, None) => {}
    }
    set
}
