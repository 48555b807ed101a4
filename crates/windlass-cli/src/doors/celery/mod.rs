//! `windlass celery …`: Celery's command line, for the tasks of this program.

mod grammar;
mod place;
mod remote;
mod send;
mod shown;
mod worker;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches};
use windlass::bridges::BridgeUrl;
use windlass::bridges::wire::celery::control;

use super::broker::Found;
use super::{CeleryArgs, Refused, Way, words};
use crate::args::{Color, Command, Global};
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::output::Out;
use crate::program::Program;
use grammar::{Door, Top, Verb};

/// Where a task goes that names no queue.
const DEFAULT_QUEUE: &str = "celery";

/// Something that is asked of the broker, of workers or of where results are.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    bridge: BridgeUrl,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// Every worker is asked, and answers are shown as they come.
    Remote(Remote),
    Call(Box<grammar::Call>),
    Result(grammar::TaskResult),
    Purge(grammar::Purge),
    Bindings,
    Report,
}

/// A request to workers.
#[derive(Debug, Clone)]
struct Remote {
    command: control::Command,
    destination: Vec<String>,
    patience: Duration,
    form: shown::Form,
}

/// Reads a command line of Celery's.
pub(super) fn read(theirs: &[OsString], global: &mut Global, program: &Program) -> Result<Way, Refused> {
    let name = format!("{} celery", program.name());
    let line = std::iter::once(OsString::from("celery")).chain(theirs.iter().cloned());
    // A name lives as long as the process, and there is one.
    let command = Door::command().bin_name(name);
    let matches = command.try_get_matches_from(line)?;
    let Door { top, verb } = Door::from_arg_matches(&matches)?;
    global.quiet |= top.quiet;
    if top.no_color {
        global.color = Color::Never;
    }
    words::go_to(top.workdir.as_deref())?;
    let out = Out::of(global)?;
    words::warn_of_module(&out, "-A", top.app.as_deref(), program.name());
    words::warn_of(&out, &top.idle());
    let ask = |what| -> Result<Way, Problem> {
        let found = found(&top, global)?;
        warn_of_rest(&out, &found);
        let ask = Some(Ask { bridge: found.bridge()?, what });
        Ok(Way::Command(Box::new(Command::Celery(CeleryArgs { theirs: theirs.to_vec(), ask }))))
    };
    let way = match verb {
        Verb::Worker(args) => worker::worker(&args, &top, global, &out)?,
        Verb::Beat(args) => worker::beat(&args, &top, global, &out)?,
        Verb::Inspect(args) if args.list => listed(&out, remote::INSPECT)?,
        Verb::Inspect(args) => ask(What::Remote(args.remote(remote::INSPECT)?))?,
        Verb::Control(args) if args.list => listed(&out, remote::CONTROL)?,
        Verb::Control(args) => ask(What::Remote(args.remote(remote::CONTROL)?))?,
        Verb::Status(args) => ask(What::Remote(args.remote()))?,
        Verb::Call(args) => {
            words::warn_of(&out, &args.idle());
            ask(What::Call(args))?
        }
        Verb::Result(args) => {
            words::warn_of(&out, &args.idle());
            ask(What::Result(args))?
        }
        Verb::Purge(args) => ask(What::Purge(args))?,
        Verb::Report => ask(What::Report)?,
        Verb::List(args) => match args.what {
            grammar::Listed::Bindings => ask(What::Bindings)?,
        },
        Verb::Elsewhere(words) => return Err(elsewhere(&words).into()),
    };
    Ok(way)
}

/// Answers what was asked.
pub(super) async fn answer(context: &Context, ask: Ask) -> Outcome {
    // Nobody is asked for that: it is said of a broker that is down, too.
    if let What::Report = ask.what {
        return send::report(context, &ask.bridge);
    }
    let place = place::Place::of(&ask.bridge).await?;
    match ask.what {
        What::Remote(remote) => remote::ask(&context.out, &place, remote).await,
        What::Call(args) => send::call(&context.out, &place, &args).await,
        What::Result(args) => send::result(&context.out, &place, &args).await,
        What::Purge(args) => send::purge(&context.out, &place, &args, &own_queues(context)).await,
        What::Bindings => send::bindings(&context.out, &place).await,
        What::Report => send::report(context, &ask.bridge),
    }
}

/// The queues that somebody has chosen, or the one that everybody uses.
fn own_queues(context: &Context) -> Vec<String> {
    let loaded = &context.loaded;
    let names = || loaded.config.worker.queues.iter().map(ToString::to_string).collect();
    if loaded.is_set("worker.queues") { names() } else { vec![DEFAULT_QUEUE.to_owned()] }
}

/// Where the broker is: the option, the variable that Celery's own settings are often filled from, or our configuration.
fn found(top: &Top, global: &Global) -> Result<Found, Problem> {
    let variable = |name| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let mut found = if let Some(broker) = &top.broker {
        super::broker::bridge_to("celery", broker, "--broker")?
    } else if let Some(broker) = variable("CELERY_BROKER_URL") {
        super::broker::bridge_to("celery", &broker, "CELERY_BROKER_URL")?
    } else {
        let loaded = crate::settings::load(&crate::settings::sources(global, []))?;
        let Some(url) = loaded.config.bridge.clone().filter(|url| url.starts_with("celery+")) else {
            return Err(Problem::usage(
                "no broker is named",
                "name it with `-b redis://HOST:PORT/DB`, by CELERY_BROKER_URL, or as `bridge` in the configuration",
            ));
        };
        Found { url, from: "bridge", left_out: Vec::new() }
    };
    let of_variable = || variable("CELERY_RESULT_BACKEND").map(|url| (url, "CELERY_RESULT_BACKEND"));
    let backend = top.result_backend.clone().map(|url| (url, "--result-backend")).or_else(of_variable);
    if let Some((backend, from)) = backend {
        let (results, left_out) = results(&backend, from)?;
        found.say("results", &results);
        found.left_out.extend(left_out);
    }
    Ok(found)
}

/// Where results go, as the URL of a bridge says it.
fn results(backend: &str, from: &str) -> Result<(String, Vec<String>), Problem> {
    match backend.trim() {
        "" | "disabled" | "disabled://" => Ok(("none".to_owned(), Vec::new())),
        "rpc" | "rpc://" => Ok(("rpc".to_owned(), Vec::new())),
        url if url.contains("redis") || url.starts_with("valkey") || url.starts_with("unix") => {
            super::broker::server_of(url).map_err(|wrong| {
                Problem::usage(
                    format_args!("the results of {from} cannot go there: {wrong}"),
                    "write redis://HOST:PORT/DB",
                )
            })
        }
        url => Err(Problem::usage(
            format_args!(
                "results cannot go to a backend of the kind `{}` ({from})",
                url.split(':').next().unwrap_or_default().chars().take(40).collect::<String>()
            ),
            "write redis://HOST:PORT/DB, `rpc://` or `disabled`; tasks are kept in the store as well: `windlass task ls`",
        )),
    }
}

fn warn_of_rest(out: &Out, found: &Found) {
    for left_out in &found.left_out {
        out.warn(format_args!("{}: {left_out}", found.from));
    }
}

fn listed(out: &Out, known: &[remote::Known]) -> Result<Way, Problem> {
    for one in known {
        out.line(format_args!("{:26} {:36} {}", one.method, one.usage, one.about))?;
    }
    Ok(Way::Done(Exit::Ok))
}

/// Commands of Celery's that something else does here, and what.
const ELSEWHERE: &[(&str, &str)] = &[
    (
        "flower",
        "there is no web server in this program: start `pip install flower`'s own `celery flower` on the same broker, which shows our workers, or look with `windlass node ls`, `windlass queue ls` and `windlass task ls`",
    ),
    (
        "events",
        "see the tasks with `windlass task ls` and a worker's `/metrics`; Celery's own `celery events` on the same broker shows our workers when they run with `-E`",
    ),
    ("multi", "one command starts many: `windlass worker --processes N`, or a unit of systemd for each"),
    ("migrate", "tasks are moved between stores by `windlass transfer`"),
    ("shell", "there is no Python in this program; see `windlass task show ID` and `windlass run NAME`"),
    ("amqp", "use `rabbitmqadmin` or the management pages of RabbitMQ"),
    ("graph", "see `windlass workflow graph ID`, or `windlass node ls` for the workers"),
    ("logtool", "our log is JSON, one object a line: use `jq`"),
    ("upgrade", "settings of Celery's are not read: see docs/bridges.md for those of a bridge"),
];

fn elsewhere(typed: &[OsString]) -> Problem {
    let verb = typed.first().map(|verb| verb.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some((_, instead)) = ELSEWHERE.iter().find(|(known, _)| *known == verb) {
        return Problem::usage(format_args!("`celery {verb}` is not done by this program"), instead);
    }
    let own = Door::command();
    let known = own.get_subcommands().map(clap::Command::get_name).chain(ELSEWHERE.iter().map(|(known, _)| *known));
    let next = match crate::task_args::nearest(&verb, known) {
        Some(nearest) => format!("did you mean `{nearest}`?"),
        None => "`windlass celery --help` lists the commands".to_owned(),
    };
    Problem::usage(format_args!("there is no command `celery {}`", crate::output::one_line(&verb)), next)
}
