//! `celery worker` and `celery beat` as our own `worker` and `scheduler`.

use std::io::Write;
use std::path::Path;

use super::grammar::{Beat, Concurrency, Daemon, Pool, Top, Worker};
use super::{DEFAULT_QUEUE, found, place, send, warn_of_rest};
use crate::args::{Command, Global};
use crate::commands::worker::{Args, SchedulerArgs, host};
use crate::doors::broker::Found;
use crate::doors::{Way, words};
use crate::exit::{Exit, Problem};
use crate::output::Out;
use crate::settings::{self, Override};

/// A process needs so much to do anything: a smaller limit would replace it all the time.
const MEMORY_MIN: u64 = 32 << 20;

/// What is stored ahead is kept from other workers.
const AHEAD_MAX: u64 = 10_000;

/// A worker on the queues of the broker.
pub(super) fn worker(args: &Worker, top: &Top, global: &Global, out: &Out) -> Result<Way, Problem> {
    refuse(args.detach, &args.daemon)?;
    let mut found = found(top, global)?;
    if args.task_events {
        found.say("events", "1");
    }
    say_limits(&mut found, args);
    if args.without_mingle {
        found.say("mingle", "0");
    }
    if let Some(ahead) = ahead(args, global)? {
        found.say("ahead", &ahead.to_string());
    }
    let child = args.child.clone();
    let queues = queues(args, global)?;
    if !child.is_one() {
        warn_of_rest(out, &found);
        words::warn_of(out, &args.idle());
        if args.purge {
            purge(&found, &queues, out)?;
        }
        write_pid(&args.daemon)?;
    }
    let name = node_name(args.hostname.as_deref(), "celery", &host());
    log_to(&args.daemon, &name)?;
    let overrides = overrides(args, &found, &queues, &name, out);
    Ok(Way::Command(Box::new(Command::Worker(Args::translated(overrides, child)))))
}

/// A node that fires schedules and sends their messages to the broker.
pub(super) fn beat(args: &Beat, top: &Top, global: &Global, out: &Out) -> Result<Way, Problem> {
    refuse(args.detach, &args.daemon)?;
    let found = found(top, global)?;
    warn_of_rest(out, &found);
    words::warn_of(out, &args.idle());
    write_pid(&args.daemon)?;
    let name = node_name(args.hostname.as_deref(), "celerybeat", &host());
    log_to(&args.daemon, &name)?;
    let mut overrides =
        vec![words::set("bridge", found.from, &found.url), words::set("worker.node", "--hostname", &name)];
    overrides.extend(words::relay(out, args.queues.as_deref(), global)?);
    overrides.extend(args.loglevel.as_ref().map(|level| words::set("log.level", "--loglevel", level)));
    Ok(Way::Command(Box::new(Command::Scheduler(SchedulerArgs::translated(overrides)))))
}

/// What `celery worker` says, as keys of the configuration.
pub(super) fn overrides(args: &Worker, found: &Found, queues: &[String], name: &str, out: &Out) -> Vec<Override> {
    let mut set = vec![words::set("bridge", found.from, &found.url), words::set("worker.node", "--hostname", name)];
    if !queues.is_empty() {
        set.push(words::set("worker.queues", "--queues", queues.join(",")));
    }
    let slots = slots(args);
    set.extend(slots.map(|slots| words::set("worker.slots", "--concurrency", slots)));
    set.extend(args.loglevel.as_ref().map(|level| words::set("log.level", "--loglevel", level)));
    if args.beat {
        set.push(words::set("worker.schedules", "--beat", true));
    }
    // A child of Celery's runs one task at a time, ours as many as it has slots.
    let children = slots.unwrap_or(1).max(1);
    if let Some(tasks) = args.max_tasks_per_child {
        set.push(words::set("worker.recycle_tasks", "--max-tasks-per-child", tasks.saturating_mul(children)));
    }
    if let Some(kib) = args.max_memory_per_child {
        let wanted = kib.saturating_mul(1024).saturating_mul(children);
        if wanted < MEMORY_MIN {
            out.warn("--max-memory-per-child is less than a process needs: it is 32 MiB");
        }
        set.push(words::set("worker.recycle_memory", "--max-memory-per-child", wanted.max(MEMORY_MIN)));
    }
    if args.max_tasks_per_child.is_some() || args.max_memory_per_child.is_some() {
        set.push(words::set("worker.processes", "the limits of a child", 1));
    }
    set
}

/// What holds for tasks whose messages have no limits of their own.
pub(super) fn say_limits(found: &mut Found, args: &Worker) {
    for (option, limit) in [("time-limit", args.time_limit), ("soft-time-limit", args.soft_time_limit)] {
        if let Some(limit) = limit {
            found.say(option, &limit.as_secs_f64().to_string());
        }
    }
}

/// How many messages are stored beyond the free slots: of so many for each slot, one is the one that runs.
fn ahead(args: &Worker, global: &Global) -> Result<Option<u64>, Problem> {
    let Some(beyond) = args.prefetch_multiplier.and_then(|factor| factor.checked_sub(1)).filter(|beyond| *beyond > 0)
    else {
        return Ok(None);
    };
    let slots = match slots(args) {
        Some(slots) => slots,
        None => settings::load(&settings::sources(global, []))?.config.worker.slots as u64,
    };
    Ok(Some(slots.saturating_mul(beyond).min(AHEAD_MAX)))
}

/// How many tasks run at once; `None` for our default.
fn slots(args: &Worker) -> Option<u64> {
    match (args.pool, args.autoscale, args.concurrency) {
        (Some(Pool::Solo), _, _) => Some(1),
        (_, Some(most), _) => Some(most),
        (_, None, Some(Concurrency::Of(count))) => Some(count),
        (_, None, Some(Concurrency::Auto) | None) => None,
    }
}

/// The queues that are named, without those that are excluded; none when the configuration decides.
fn queues(args: &Worker, global: &Global) -> Result<Vec<String>, Problem> {
    let excluded = words::names(args.exclude_queues.as_deref());
    let named = match (args.queues.as_deref(), excluded.is_empty()) {
        (Some(queues), _) => words::names(Some(queues)),
        (None, true) => return Ok(Vec::new()),
        (None, false) => {
            let loaded = settings::load(&settings::sources(global, []))?;
            if loaded.is_set("worker.queues") {
                loaded.config.worker.queues.iter().map(ToString::to_string).collect()
            } else {
                vec![DEFAULT_QUEUE.to_owned()]
            }
        }
    };
    let queues: Vec<String> = named.into_iter().filter(|queue| !excluded.contains(queue)).collect();
    if queues.is_empty() {
        return Err(Problem::usage("no queue is left to work on", "name one with `-Q`, or exclude less with `-X`"));
    }
    Ok(queues)
}

/// A name as Celery makes it: what has no `@` is the part behind it.
pub(super) fn node_name(wanted: Option<&str>, before: &str, host: &str) -> String {
    let (short, domain) = host.split_once('.').unwrap_or((host, ""));
    let wanted = wanted.filter(|name| !name.is_empty()).unwrap_or("%h");
    let whole = if wanted.contains('@') { wanted.to_owned() } else { format!("{before}@{wanted}") };
    // Supervisors want their own percent signs doubled, and some hand them on.
    let whole = whole.replace("%%", "%");
    whole.replace("%h", host).replace("%n", short).replace("%d", domain).replace("%i", "").replace("%I", "")
}

/// What cannot be done in a way that its user may rely on.
fn refuse(detach: bool, daemon: &Daemon) -> Result<(), Problem> {
    if detach {
        return Err(Problem::usage(
            "this program does not leave its terminal by itself (--detach)",
            "let systemd, a container or `nohup … &` start it; it ends in order on TERM",
        ));
    }
    if daemon.uid.is_some() || daemon.gid.is_some() {
        return Err(Problem::usage(
            "this program does not change its user (--uid, --gid)",
            "start it as that user: `User=` of systemd, `setpriv` or `sudo -u`",
        ));
    }
    Ok(())
}

/// Drops what is in the queues, before the worker takes anything.
fn purge(found: &Found, queues: &[String], out: &Out) -> Result<(), Problem> {
    let bridge = found.bridge()?;
    let default = [DEFAULT_QUEUE.to_owned()];
    let queues = if queues.is_empty() { &default } else { queues };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let dropped = runtime.block_on(async { send::drop_all(&place::Place::of(&bridge).await?, queues).await })?;
    out.say(format_args!("--purge: {} dropped", crate::output::plural(dropped, "message")));
    Ok(())
}

fn write_pid(daemon: &Daemon) -> Result<(), Problem> {
    let Some(path) = &daemon.pidfile else { return Ok(()) };
    std::fs::write(path, format!("{}\n", std::process::id())).map_err(|error| not_written(path, &error))
}

/// Standard output becomes the end of a file: the log of a worker is what it prints.
fn log_to(daemon: &Daemon, name: &str) -> Result<(), Problem> {
    let Some(path) = daemon.logfile.as_deref().filter(|path| *path != "-") else { return Ok(()) };
    let path = path
        .replace("%n", name.split('@').next().unwrap_or(name))
        .replace("%h", &host())
        .replace("%i", "")
        .replace("%I", "");
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(Path::new(&path))
        .map_err(|error| not_written(&path, &error))?;
    file.flush()?;
    #[cfg(unix)]
    rustix::stdio::dup2_stdout(&file).map_err(|error| not_written(&path, &error.into()))?;
    #[cfg(not(unix))]
    return Err(Problem::usage("the log cannot be sent to a file on this system", "redirect standard output"));
    #[cfg(unix)]
    Ok(())
}

fn not_written(path: &str, error: &std::io::Error) -> Problem {
    Problem::new(
        Exit::Usage,
        format_args!("`{path}` cannot be written: {error}"),
        "name a file in a folder that is there and may be written",
    )
}
