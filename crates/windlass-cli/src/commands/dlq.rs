//! `windlass dlq`: the tasks that gave up.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::{Value, json};
use windlass::backend::TaskAction;
use windlass::view::{Filter, PAGE_MAX, Page, Record};
use windlass::{State, TaskId};

use super::task::{ListFlags, list, show};
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::json::{self, Secrets};
use crate::output::{Cell, Column, Listing, Row, Tone, plural, versioned};
use crate::select::{Selection, Verb, change};

/// Look at tasks that gave up, replay or discard them
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass dlq ls
  windlass dlq stats
  windlass dlq retry -q 'name:send_mail reason:attempts_used_up' --yes")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List dead letters, newest first
    #[command(
        visible_alias = "list",
        after_help = "\
EXAMPLES
  windlass dlq ls
  windlass dlq ls -q 'queue:email reason:poison' -o wide"
    )]
    Ls(ListFlags),
    /// Show everything that is known of dead letters
    #[command(after_help = "\
EXAMPLES
  windlass dlq show order-1017")]
    Show {
        /// Ids of tasks
        #[arg(value_name = "ID", required = true)]
        ids: Vec<TaskId>,
        /// Show arguments that look like secrets
        #[arg(long)]
        secrets: bool,
    },
    /// Count dead letters by task, reason and error
    #[command(after_help = "\
EXAMPLES
  windlass dlq stats
  windlass dlq stats -q queue:email --json")]
    Stats {
        /// Only those that match
        #[arg(short, long, value_name = "QUERY", default_value = "", hide_default_value = true)]
        query: Filter,
    },
    /// Make dead letters ready again, with all their attempts
    #[command(after_help = "\
EXAMPLES
  windlass dlq retry order-1017
  windlass dlq retry -q name:send_mail --dry-run
  windlass dlq retry --all --yes")]
    Retry(DeadSelection),
    /// Forget dead letters
    #[command(after_help = "\
EXAMPLES
  windlass dlq discard order-1017
  windlass dlq discard -q reason:malformed --yes")]
    Discard(DeadSelection),
    /// Write dead letters as one JSON object a line
    #[command(after_help = "\
EXAMPLES
  windlass dlq export > dead.ndjson
  windlass dlq export -q queue:email --secrets > dead.ndjson")]
    Export {
        /// Only those that match
        #[arg(short, long, value_name = "QUERY", default_value = "", hide_default_value = true)]
        query: Filter,
        /// Write arguments that look like secrets as they are
        #[arg(long)]
        secrets: bool,
    },
}

/// Which dead letters.
#[derive(Debug, Clone, clap::Args)]
struct DeadSelection {
    #[command(flatten)]
    selection: Selection,
    /// Every dead letter
    #[arg(long, conflicts_with_all = ["ids", "query", "stdin"], help_heading = "Selection")]
    all: bool,
}

impl DeadSelection {
    fn into_selection(self) -> Selection {
        let mut selection = self.selection;
        if self.all {
            selection.query = Some(Filter::all());
        }
        selection
    }
}

const DEAD: &[State] = &[State::Dead];

pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::Ls(mut flags) => {
            flags.query = only_dead(flags.query)?;
            list(context, flags, "there are no dead letters").await
        }
        Command::Show { ids, secrets } => {
            show(context, &ids, if secrets { Secrets::Show } else { Secrets::Mask }, DEAD).await
        }
        Command::Stats { query } => stats(context, &only_dead(query)?).await,
        Command::Retry(selection) => {
            let verb = Verb { name: "retry", done: "retried", action: TaskAction::Retry };
            change(context, selection.into_selection(), &verb, DEAD).await
        }
        Command::Discard(selection) => {
            let verb = Verb { name: "discard", done: "discarded", action: TaskAction::Discard };
            change(context, selection.into_selection(), &verb, DEAD).await
        }
        Command::Export { query, secrets } => {
            export(context, &only_dead(query)?, if secrets { Secrets::Show } else { Secrets::Mask }).await
        }
    }
}

fn only_dead(mut filter: Filter) -> Result<Filter, Problem> {
    if filter.states.is_empty() {
        filter.states.push(State::Dead);
    }
    if filter.states == DEAD {
        return Ok(filter);
    }
    Err(Problem::usage("dead letters are in the state dead only", "leave `state:` out, or use `windlass task ls -q …`"))
}

/// Hands over every dead letter that matches, a page at a time.
async fn for_each(
    context: &Context,
    filter: &Filter,
    mut take: impl FnMut(&Record) -> Result<(), Problem>,
) -> Result<(), Problem> {
    let backend = context.store().await?;
    let mut after = None;
    loop {
        let listing = backend.list(filter, &Page { after, limit: PAGE_MAX }).await?;
        listing.tasks.iter().try_for_each(&mut take)?;
        after = listing.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

/// Which dead letters are counted together: task, reason, class of the error.
type Kind = (String, String, String);

#[derive(Default)]
struct Tally {
    count: u64,
    newest: Option<windlass::Timestamp>,
    message: String,
}

const STATS: &[Column] = &[
    Column::new("COUNT"),
    Column::new("TASK"),
    Column::new("REASON"),
    Column::new("ERROR"),
    Column::new("NEWEST"),
    Column::new("FOR EXAMPLE").stretch(),
];

async fn stats(context: &Context, filter: &Filter) -> Outcome {
    let mut tallies: BTreeMap<Kind, Tally> = BTreeMap::new();
    let mut total = 0;
    for_each(context, filter, |record| {
        let failure = record.failure.as_ref();
        let kind = (
            record.envelope.name.to_string(),
            record.reason.map(|reason| reason.to_string()).unwrap_or_default(),
            failure.map(|failure| failure.class.clone()).unwrap_or_default(),
        );
        let tally = tallies.entry(kind).or_default();
        tally.count += 1;
        total += 1;
        if tally.newest < record.finished_at || tally.newest.is_none() {
            tally.newest = record.finished_at;
            tally.message = failure.map(|failure| failure.message.clone()).unwrap_or_default();
        }
        Ok(())
    })
    .await?;
    let mut tallies: Vec<(Kind, Tally)> = tallies.into_iter().collect();
    tallies.sort_by_key(|(_, tally)| std::cmp::Reverse(tally.count));
    let rows = tallies.iter().map(|((task, reason, class), tally)| Row {
        id: task.clone(),
        cells: vec![
            Cell::toned(tally.count, Tone::Bad),
            task.clone().into(),
            reason.clone().into(),
            class.clone().into(),
            context.out.when_any(tally.newest).into(),
            Cell::toned(&tally.message, Tone::Dim),
        ],
        json: json!({
            "task": task, "reason": reason, "error": class, "count": tally.count, "newest": tally.newest,
            "example": tally.message,
        }),
    });
    let mut listing = Listing::whole("groups", STATS, "there are no dead letters", rows.collect());
    listing.extra.insert("total".to_owned(), Value::from(total));
    context.out.listing(&listing)
}

async fn export(context: &Context, filter: &Filter, secrets: Secrets) -> Outcome {
    let mut stdout = std::io::BufWriter::new(std::io::stdout());
    let mut count = 0;
    for_each(context, filter, |record| {
        count += 1;
        writeln!(stdout, "{}", versioned(json::task(record, secrets)))?;
        Ok(())
    })
    .await?;
    stdout.flush()?;
    context.out.say(format_args!("exported {}", plural(count, "dead letter")));
    Ok(Exit::Ok)
}
