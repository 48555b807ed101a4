//! `windlass task`: look at tasks and change them.

mod definitions;
mod show;
mod signal;
mod wait;

use windlass::backend::TaskAction;
use windlass::view::{Filter, PAGE_MAX, Page};
use windlass::{Priority, QueueName, State, TaskId, TaskName};

use crate::context::Context;
use crate::exit::Outcome;
use crate::json::{self, Secrets};
use crate::output::{Cell, Column, Listing, Row, Tone};
use crate::select::{Selection, Verb, change};

pub(crate) use show::show;
pub(crate) use signal::read_json;
pub(crate) use wait::{WaitFor, ended, read_duration};

/// Look at tasks and change them
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass task ls
  windlass task ls -q 'state:dead queue:email'
  windlass task show 01927c1e-0000-7000-8000-000000000000
  windlass task retry -q state:dead --yes
  windlass task definitions http.request")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List tasks, newest first
    #[command(
        visible_alias = "list",
        after_help = "\
EXAMPLES
  windlass task ls
  windlass task ls -q 'state:ready,scheduled queue:email name:send_mail'
  windlass task ls -q 'state:dead reason:poison since:2026-01-31T00:00:00Z' -o wide
  windlass task ls -q state:dead -o id | windlass task retry --stdin"
    )]
    Ls(ListFlags),
    /// Show everything that is known of tasks
    #[command(after_help = "\
EXAMPLES
  windlass task show order-1017
  windlass task show order-1017 --json")]
    Show {
        /// Ids of tasks
        #[arg(value_name = "ID", required = true)]
        ids: Vec<TaskId>,
        /// Show arguments and results that look like secrets
        #[arg(long)]
        secrets: bool,
    },
    /// Cancel tasks: those that wait at once, those that run as soon as their workers hear of it
    #[command(after_help = "\
EXAMPLES
  windlass task cancel order-1017 order-1018
  windlass task cancel -q 'queue:email state:scheduled' --dry-run
  windlass task cancel -q queue:email --yes")]
    Cancel(Selection),
    /// Make tasks that have ended ready again, with all their attempts
    #[command(after_help = "\
EXAMPLES
  windlass task retry order-1017
  windlass task retry -q 'state:dead name:send_mail'
  windlass task ls -q state:dead -o id | windlass task retry --stdin")]
    Retry(Selection),
    /// Forget tasks that have ended
    #[command(after_help = "\
EXAMPLES
  windlass task discard order-1017
  windlass task discard -q 'state:dead reason:malformed' --yes")]
    Discard(Selection),
    /// Put tasks that wait into another queue
    #[command(after_help = "\
EXAMPLES
  windlass task move order-1017 --to slow
  windlass task move -q 'queue:email name:newsletter' --to bulk --yes")]
    Move {
        #[command(flatten)]
        selection: Selection,
        /// The queue
        #[arg(long, value_name = "QUEUE")]
        to: QueueName,
    },
    /// Give tasks that wait another priority
    #[command(
        visible_alias = "prioritize",
        after_help = "\
EXAMPLES
  windlass task prioritise order-1017 --to 9
  windlass task prioritise -q 'key:acme state:ready' --to 7 --yes"
    )]
    Prioritise {
        #[command(flatten)]
        selection: Selection,
        /// 0 (last) to 9 (first)
        #[arg(long, value_name = "LEVEL", value_parser = read_priority)]
        to: Priority,
    },
    /// Start scheduled tasks now
    #[command(after_help = "\
EXAMPLES
  windlass task now order-1017
  windlass task now -q 'state:scheduled name:send_mail' --yes")]
    Now(Selection),
    /// Send a signal to a task: one that waits for it goes on, one that does not keeps it
    #[command(after_help = "\
EXAMPLES
  windlass task signal order-1017 approved
  windlass task signal order-1017 approved '{\"by\": \"ada\"}'")]
    Signal(signal::Args),
    /// Start no task of these names until they are resumed
    #[command(after_help = "\
EXAMPLES
  windlass task pause send_mail
  windlass task pause send_mail newsletter")]
    Pause {
        /// Names of tasks
        #[arg(value_name = "NAME", required = true)]
        names: Vec<TaskName>,
    },
    /// Start tasks of these names again
    #[command(after_help = "\
EXAMPLES
  windlass task resume send_mail")]
    Resume {
        /// Names of tasks
        #[arg(value_name = "NAME", required = true)]
        names: Vec<TaskName>,
    },
    /// Wait until tasks have ended
    #[command(after_help = "\
EXAMPLES
  windlass task wait order-1017
  windlass task wait order-1017 order-1018 --timeout 5m")]
    Wait(wait::Args),
    /// Print the result of a task
    #[command(after_help = "\
EXAMPLES
  windlass task result order-1017
  windlass task result order-1017 --wait --timeout 30s")]
    Result(wait::ResultArgs),
    /// List the tasks of this program and what they take
    #[command(after_help = "\
EXAMPLES
  windlass task definitions
  windlass task definitions http.request
  windlass task definitions --json")]
    Definitions {
        /// Only this one, with its arguments
        #[arg(value_name = "NAME")]
        name: Option<TaskName>,
    },
}

/// Which tasks are listed.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ListFlags {
    /// Only tasks that match, as in 'state:dead queue:mail name:send key:k workflow:ID reason:poison since:… until:…
    /// finished-since:…'
    #[arg(
        short,
        long,
        value_name = "QUERY",
        default_value = "",
        hide_default_value = true,
        help_heading = "Selection"
    )]
    pub(crate) query: Filter,
    /// At most this many
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = read_limit, help_heading = "Selection")]
    pub(crate) limit: usize,
    /// Go on where the page before ended
    #[arg(long, value_name = "CURSOR", help_heading = "Selection")]
    pub(crate) after: Option<String>,
}

fn read_limit(text: &str) -> Result<usize, String> {
    let limit = text.parse().ok().filter(|limit| (1..=PAGE_MAX).contains(limit));
    limit.ok_or_else(|| format!("write a number from 1 to {PAGE_MAX}, and go on with --after"))
}

/// Reads a priority, for clap.
pub(crate) fn read_priority(text: &str) -> Result<Priority, String> {
    let level: u8 = text.parse().map_err(|_| "write a number from 0 (last) to 9 (first)".to_owned())?;
    Priority::new(level).map_err(|error| error.to_string())
}

const COLUMNS: &[Column] = &[
    Column::new("ID"),
    Column::new("NAME").stretch(),
    Column::new("QUEUE"),
    Column::new("STATE"),
    Column::new("PRIORITY").wide(),
    Column::new("ATTEMPT"),
    Column::new("ENQUEUED"),
    Column::new("KEY").wide(),
    Column::new("NODE").wide(),
    Column::new("DETAIL").stretch(),
];

pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    let verb = |name, done, action| Verb { name, done, action };
    match args.command {
        Command::Ls(flags) => list(context, flags, "no task matches").await,
        Command::Show { ids, secrets } => {
            show(context, &ids, if secrets { Secrets::Show } else { Secrets::Mask }, &[]).await
        }
        Command::Cancel(selection) => {
            change(context, selection, &verb("cancel", "cancelled", TaskAction::Cancel), &[]).await
        }
        Command::Retry(selection) => {
            change(context, selection, &verb("retry", "retried", TaskAction::Retry), &[]).await
        }
        Command::Discard(selection) => {
            change(context, selection, &verb("discard", "discarded", TaskAction::Discard), &[]).await
        }
        Command::Move { selection, to } => {
            change(context, selection, &verb("move", "moved", TaskAction::Move(to)), &[]).await
        }
        Command::Prioritise { selection, to } => {
            change(context, selection, &verb("prioritise", "prioritised", TaskAction::Reprioritise(to)), &[]).await
        }
        Command::Now(selection) => change(context, selection, &verb("now", "started", TaskAction::RunNow), &[]).await,
        Command::Signal(args) => signal::run(context, args).await,
        Command::Pause { names } => {
            let commands = names.into_iter().map(windlass::backend::Command::PauseTask);
            super::queue::switch(context, commands.collect(), "paused").await
        }
        Command::Resume { names } => {
            let commands = names.into_iter().map(windlass::backend::Command::ResumeTask);
            super::queue::switch(context, commands.collect(), "resumed").await
        }
        Command::Wait(args) => wait::run(context, args).await,
        Command::Result(args) => wait::result(context, args).await,
        Command::Definitions { name } => definitions::run(context, name.as_ref()),
    }
}

/// Lists the tasks that match.
pub(crate) async fn list(context: &Context, flags: ListFlags, empty: &'static str) -> Outcome {
    let backend = context.store().await?;
    let page = Page { after: flags.after.map(windlass::view::Cursor), limit: flags.limit };
    let listing = backend.list(&flags.query, &page).await?;
    let rows = listing.tasks.iter().map(|record| row(context, record)).collect();
    let mut table = Listing::whole("tasks", COLUMNS, empty, rows);
    table.pages = true;
    table.next = listing.next.map(|cursor| cursor.0);
    context.out.listing(&table)
}

fn row(context: &Context, record: &windlass::view::Record) -> Row {
    let envelope = &record.envelope;
    let optional = |text: Option<String>| text.map_or_else(|| Cell::toned("-", Tone::Dim), Cell::from);
    Row {
        id: envelope.id.to_string(),
        cells: vec![
            envelope.id.to_string().into(),
            envelope.name.to_string().into(),
            envelope.queue.to_string().into(),
            state(record.state),
            envelope.priority.level().to_string().into(),
            record.attempt.to_string().into(),
            Cell::toned(context.out.when(record.enqueued_at), Tone::Dim),
            optional(envelope.key.as_ref().map(ToString::to_string)),
            optional(record.node.as_ref().map(ToString::to_string)),
            detail(context, record).into(),
        ],
        json: json::task(record, Secrets::Mask),
    }
}

/// What one wants to know next of a task in this state.
fn detail(context: &Context, record: &windlass::view::Record) -> String {
    let failure = || record.failure.as_ref().map(|failure| format!("{}: {}", failure.class, failure.message));
    match record.state {
        State::Scheduled => {
            let due = record.due_at.map(|due| format!("due {}", context.out.when(due))).unwrap_or_default();
            let due = match &record.waits_for {
                Some(signal) => format!("waits for the signal {signal}; {due}"),
                None => due,
            };
            failure().map_or(due.clone(), |failure| format!("{due}; {failure}"))
        }
        State::Running => {
            let progress = record.progress.as_ref().map(|progress| {
                let total = progress.total.map(|total| format!("/{total}")).unwrap_or_default();
                format!("{}{total} {}", progress.done, progress.text)
            });
            let cancelling = if record.cancel_requested { "is being cancelled " } else { "" };
            format!("{cancelling}{}", progress.unwrap_or_default())
        }
        State::Dead => {
            let reason = record.reason.map(|reason| reason.to_string()).unwrap_or_default();
            failure().map_or(reason.clone(), |failure| format!("{reason}; {failure}"))
        }
        State::Ready => failure().unwrap_or_default(),
        State::Parked => "waits for a node that knows its name".to_owned(),
        State::Succeeded => record.skipped.as_ref().map(|reason| format!("skipped: {reason}")).unwrap_or_default(),
        State::Cancelled | State::Expired => String::new(),
    }
}

/// A state in its colour.
pub(crate) fn state(state: State) -> Cell {
    Cell::toned(state, tone_of(state))
}

/// The colour of a state.
pub(crate) fn tone_of(state: State) -> Tone {
    match state {
        State::Scheduled | State::Ready => Tone::Plain,
        State::Running => Tone::Active,
        State::Parked | State::Expired => Tone::Warn,
        State::Succeeded => Tone::Good,
        State::Dead => Tone::Bad,
        State::Cancelled => Tone::Dim,
    }
}
