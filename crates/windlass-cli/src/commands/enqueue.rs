//! `windlass enqueue`: one task from flags, or many from lines.

mod lines;
mod many;
pub(crate) mod rate;

use std::time::Duration;

use serde_json::json;
use windlass::backend::Pushed;
use windlass::envelope::{Due, OnConflict, Unique, UniqueHold};
use windlass::{Clock, Envelope, Key, Priority, QueueName, SystemClock, TaskId, TaskName, Timestamp, UniqueKey};

use super::task::{ended, read_duration, read_priority};
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::program::{Known, Program};
use crate::task_args::{ArgsFlags, task_of};

pub(crate) use many::LinesForm;

/// Enqueue a task, or many from a file
///
/// With --from, each line is one task: a JSON array of arguments by position, an object of arguments by name, or an
/// object with `args` and any of `id`, `delay`, `at`, `priority`, `queue`, `key`, `unique`, `expires`, `headers`,
/// `retries`. The flags are the defaults of every line. A line that does not fit is reported and the rest goes on.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass enqueue http.request --arg url=https://example.org
  windlass enqueue http.request --args '{\"url\": \"https://example.org\", \"method\": \"POST\"}' --wait
  windlass enqueue http.request --from urls.ndjson --rate 50/s
  windlass enqueue sleep --arg duration=5s --delay 1h30m --priority 9 --unique nightly
  windlass enqueue sleep --arg duration=5s --delay 30s --unique report --on-conflict debounce
  generate | windlass enqueue send_mail --from - --queue email -o ndjson")]
pub(crate) struct Args {
    /// The name of the task
    #[arg(value_name = "NAME")]
    name: TaskName,
    #[command(flatten)]
    given: ArgsFlags,
    /// One task for each line of a file of JSON lines; - is standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["args", "arg", "id"], help_heading = "Many tasks")]
    from: Option<String>,
    /// Not faster than this: 50/s, 3000/m, 10/h
    #[arg(long, value_name = "RATE", requires = "from", help_heading = "Many tasks")]
    rate: Option<rate::Rate>,
    /// How lines are read
    #[arg(long, value_name = "FORM", default_value = "auto", requires = "from", help_heading = "Many tasks")]
    lines: LinesForm,
    #[command(flatten)]
    options: TaskOptions,
    /// The id; enqueueing the same id twice enqueues once
    #[arg(long, value_name = "ID", help_heading = "Task")]
    id: Option<TaskId>,
    /// Enqueue a task that this program does not know, for a worker of another program
    #[arg(long, help_heading = "Task")]
    unregistered: bool,
    /// Wait until it has ended and print its result; up to 10m, or as long as given
    #[arg(
        long,
        value_name = "DURATION",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "10m",
        value_parser = read_duration,
        conflicts_with = "from"
    )]
    wait: Option<Duration>,
}

/// Options of a task that override those of its definition.
#[derive(Debug, Clone, Default, clap::Args)]
#[command(next_help_heading = "Task")]
pub(crate) struct TaskOptions {
    /// Start it this long from now
    #[arg(long, value_name = "DURATION", value_parser = read_duration, conflicts_with = "at")]
    pub(crate) delay: Option<Duration>,
    /// Start it at this time, as in 2026-11-24T05:04:03Z
    #[arg(long, value_name = "TIME")]
    pub(crate) at: Option<Timestamp>,
    /// 0 (last) to 9 (first)
    #[arg(long, value_name = "LEVEL", value_parser = read_priority)]
    pub(crate) priority: Option<Priority>,
    /// Another queue than the task's own
    #[arg(long, value_name = "QUEUE")]
    pub(crate) queue: Option<QueueName>,
    /// Refuse a second task of this name with the same key while the first has not ended
    #[arg(long, value_name = "KEY")]
    pub(crate) unique: Option<String>,
    /// The unique key is taken for this long instead, whether or not the first has ended
    #[arg(long, value_name = "DURATION", value_parser = read_duration, requires = "unique")]
    pub(crate) unique_for: Option<Duration>,
    /// What it does when the unique key is taken: keep leaves the first task as it is; replace gives it these arguments while
    /// it waits; debounce puts off its start as well
    #[arg(long, value_name = "ACTION", value_enum, requires = "unique")]
    pub(crate) on_conflict: Option<Conflict>,
    /// The unique key is free again when the task is started: one may wait while another runs
    #[arg(long, requires = "unique", conflicts_with = "unique_for")]
    pub(crate) until_started: bool,
    /// What it belongs to: a tenant, an order; `-q key:…` finds it by that
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<Key>,
    /// Do not start it any more after this long
    #[arg(long, value_name = "DURATION", value_parser = read_duration)]
    pub(crate) expires: Option<Duration>,
    /// Data beside the arguments; may be repeated
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = read_header)]
    pub(crate) headers: Vec<(String, String)>,
    /// Another number of retries than the task's own
    #[arg(long, value_name = "COUNT")]
    pub(crate) retries: Option<u32>,
}

/// What a second task does while the unique key is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Conflict {
    /// Nothing: the first stays as it is.
    Keep,
    /// The first gets its arguments, headers and priority.
    Replace,
    /// And its time: it starts after a quiet time.
    Debounce,
}

impl From<Conflict> for OnConflict {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::Keep => Self::Keep,
            Conflict::Replace => Self::Replace,
            Conflict::Debounce => Self::Debounce,
        }
    }
}

fn read_header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write it as NAME=VALUE".to_owned()),
    }
}

impl TaskOptions {
    /// Puts them into an envelope.
    pub(crate) fn apply(&self, envelope: &mut Envelope, now: Timestamp) -> Result<(), Problem> {
        if let Some(delay) = self.delay {
            envelope.due = Due::After(delay);
        }
        if let Some(at) = self.at {
            envelope.due = Due::At(at);
        }
        if let Some(priority) = self.priority {
            envelope.priority = priority;
        }
        if let Some(queue) = &self.queue {
            envelope.queue = queue.clone();
        }
        if let Some(key) = &self.unique {
            // As the client does: keys of different tasks never meet.
            let key = UniqueKey::new(format!("{}:{key}", envelope.name))
                .map_err(|error| Problem::usage(error, "choose a shorter `--unique` key"))?;
            let hold = if self.until_started { UniqueHold::Started } else { UniqueHold::Ended };
            let on_conflict = self.on_conflict.map_or_else(OnConflict::default, Into::into);
            envelope.unique = Some(Unique { key, window: self.unique_for, hold, on_conflict });
        }
        if let Some(key) = &self.key {
            envelope.key = Some(key.clone());
        }
        if let Some(after) = self.expires {
            envelope.expires = Some(now + after);
        }
        if let Some(retries) = self.retries {
            envelope.retries = Some(retries);
        }
        envelope.headers.extend(self.headers.iter().cloned());
        Ok(())
    }
}

/// The task that is meant; none when it is enqueued for another program.
pub(crate) fn find(program: &Program, name: &TaskName, unregistered: bool) -> Result<Option<Known>, Problem> {
    match task_of(program, name) {
        Ok(task) => Ok(Some(task)),
        Err(_) if unregistered => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// An envelope with the defaults of the task.
pub(crate) fn envelope(name: &TaskName, task: Option<Known>, args: windlass::Args, now: Timestamp) -> Envelope {
    match task {
        Some(task) => task.definition.instance(args, now),
        None => Envelope::new(name.clone(), QueueName::default(), args),
    }
}

pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let task = find(&context.program, &args.name, args.unregistered)?;
    if let Some(from) = &args.from {
        let source = many::Source { name: args.name, task, options: args.options, rate: args.rate, form: args.lines };
        return many::run(context, source, from).await;
    }
    let now = SystemClock.now();
    let mut envelope = envelope(&args.name, task, args.given.read(task)?, now);
    args.options.apply(&mut envelope, now)?;
    if let Some(id) = args.id {
        envelope.id = id;
    }
    let (name, queue) = (envelope.name.clone(), envelope.queue.clone());
    envelope.check(now)?;
    let backend = context.store_or_new().await?;
    let client = context.client(&backend);
    let Some((own, pushed)) = client.push(vec![envelope]).await?.pop() else {
        return Err(Problem::new(Exit::Failed, "the store answered nothing", "run `windlass doctor`"));
    };
    let (id, fresh) = match pushed {
        Pushed::Stored => (own, true),
        Pushed::Exists(other) => (other, false),
        Pushed::Replaced(other) => {
            context.out.say("a task with this unique key waits: it has got the new arguments");
            (other, true)
        }
        Pushed::Full { limit } => return Err(windlass::PushError::Full { queue, limit }.into()),
    };
    if !fresh {
        context.out.say("a task with this id or unique key is there already: nothing was stored");
    }
    if let Some(limit) = args.wait {
        context.out.say(format_args!("{id}"));
        let Some(record) = client.watch_all(std::slice::from_ref(&id), limit).await?.pop() else {
            return Err(windlass::WaitError::Timeout(limit).into());
        };
        return ended(&context.out, &record);
    }
    let json = json!({"id": id, "name": name, "queue": queue, "fresh": fresh});
    context.out.object(&id.to_string(), json, || format!("{id}\n"))
}
