//! `windlass queue`: how much waits where, and pausing.

use serde_json::json;
use windlass::backend::Command as StoreCommand;
use windlass::view::QueueCounts;
use windlass::{QueueName, State};

use super::task::tone_of;
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::json;
use crate::output::{Cell, Column, Listing, Row, Tone};

/// Look at queues, pause and resume them
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass queue ls
  windlass queue pause email
  windlass queue resume email")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List queues with their tasks by state
    #[command(
        visible_alias = "list",
        after_help = "\
EXAMPLES
  windlass queue ls
  windlass queue ls --json"
    )]
    Ls,
    /// Show one queue
    #[command(after_help = "\
EXAMPLES
  windlass queue show email")]
    Show {
        /// The queue
        #[arg(value_name = "QUEUE")]
        name: QueueName,
    },
    /// Start no task of these queues until they are resumed; what runs goes on
    #[command(after_help = "\
EXAMPLES
  windlass queue pause email sms")]
    Pause {
        /// Queues; they need not exist yet
        #[arg(value_name = "QUEUE", required = true)]
        names: Vec<QueueName>,
    },
    /// Start tasks of these queues again
    #[command(after_help = "\
EXAMPLES
  windlass queue resume email sms")]
    Resume {
        /// Queues
        #[arg(value_name = "QUEUE", required = true)]
        names: Vec<QueueName>,
    },
}

const COLUMNS: &[Column] = &[
    Column::new("QUEUE"),
    Column::new("READY"),
    Column::new("RUNNING"),
    Column::new("SCHEDULED"),
    Column::new("PARKED"),
    Column::new("DEAD"),
    Column::new("SUCCEEDED"),
    Column::new("CANCELLED").wide(),
    Column::new("EXPIRED").wide(),
    Column::new("OLDEST READY"),
    Column::new("STATUS"),
];

pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::Ls => list(context).await,
        Command::Show { name } => show(context, &name).await,
        Command::Pause { names } => {
            switch(context, names.into_iter().map(StoreCommand::PauseQueue).collect(), "paused").await
        }
        Command::Resume { names } => {
            switch(context, names.into_iter().map(StoreCommand::ResumeQueue).collect(), "resumed").await
        }
    }
}

async fn list(context: &Context) -> Outcome {
    let counts = context.store().await?.counts().await?;
    let rows = counts.queues.iter().map(|(name, counts)| row(context, name, counts)).collect();
    let mut listing = Listing::whole("queues", COLUMNS, "no queue has ever had a task", rows);
    listing.extra.insert("total".to_owned(), json!(counts.total()));
    listing.extra.insert("paused_tasks".to_owned(), json!(counts.paused_tasks));
    listing.extra.insert("closed".to_owned(), json!(counts.closed));
    context.out.listing(&listing)?;
    if counts.closed && !context.out.is_json() {
        context
            .out
            .say("this store is closed, because it was moved: nothing is started here; see `windlass transfer --help`");
    }
    if !counts.paused_tasks.is_empty() && !context.out.is_json() {
        let names: Vec<String> = counts.paused_tasks.iter().map(ToString::to_string).collect();
        context
            .out
            .say(format_args!("paused tasks: {}; `windlass task resume NAME` starts them again", names.join(", ")));
    }
    Ok(Exit::Ok)
}

fn row(context: &Context, name: &QueueName, counts: &QueueCounts) -> Row {
    let count = |state: State| Cell::count(counts.of(state), tone_of(state));
    let status = if counts.paused { Cell::toned("paused", Tone::Warn) } else { Cell::toned("open", Tone::Dim) };
    Row {
        id: name.to_string(),
        cells: vec![
            Cell::toned(name, Tone::Strong),
            count(State::Ready),
            count(State::Running),
            count(State::Scheduled),
            count(State::Parked),
            count(State::Dead),
            count(State::Succeeded),
            count(State::Cancelled),
            count(State::Expired),
            context.out.when_any(counts.oldest_ready_at).into(),
            status,
        ],
        json: json::queue(name, counts),
    }
}

async fn show(context: &Context, name: &QueueName) -> Outcome {
    let counts = context.store().await?.counts().await?;
    let Some(found) = counts.queues.get(name) else {
        let names = counts.queues.keys().map(QueueName::as_str);
        let next = match crate::task_args::nearest(name.as_str(), names) {
            Some(nearest) => format!("did you mean `{nearest}`?"),
            None => "`windlass queue ls` lists all queues".to_owned(),
        };
        return Err(Problem::new(Exit::NotFound, format_args!("no task was ever in a queue `{name}`"), next));
    };
    context.out.object(name.as_str(), json::queue(name, found), || {
        let mut fields =
            vec![("queue", name.to_string()), ("paused", if found.paused { "yes" } else { "no" }.to_owned())];
        fields.extend(State::ALL.into_iter().map(|state| (state.as_str(), found.of(state).to_string())));
        fields.push(("oldest ready", found.oldest_ready_at.map(|at| context.out.when(at)).unwrap_or_default()));
        context.out.fields(&fields)
    })
}

/// Pauses and resumes, one after the other.
pub(crate) async fn switch(context: &Context, commands: Vec<StoreCommand>, done: &str) -> Outcome {
    let backend = context.store().await?;
    let (mut changed, count) = (0, commands.len() as u64);
    for command in &commands {
        changed += backend.command(command).await?.changed;
    }
    let already = count - changed;
    context.out.object(&changed.to_string(), json!({"changed": changed, "unchanged": already}), || {
        if already == 0 { format!("{done}\n") } else { format!("{done}; {already} of {count} had been already\n") }
    })
}
