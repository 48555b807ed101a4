//! `windlass transfer`: everything from one store to another.

use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use windlass::transfer::{Inventory, Moved, Mover, Transfer, TransferError};
use windlass::{Backend, Location, redact};

use crate::context::{Agreed, Context, confirm};
use crate::exit::{Exit, Outcome, Problem};
use crate::output::plural;
use crate::settings::{self, Missing};

/// Move everything from one store to another
///
/// Both stores start no task until it is done; what runs in the old one is waited for. Tasks go with their attempts,
/// results and places in line, dead letters with their reasons, groups with what has arrived, schedules with their next
/// slots, and pauses. It may be interrupted and started again: the same command goes on where it ended. Afterwards the new
/// store is open and the old one stays closed: point workers, schedulers and producers to the new one, then run it once
/// more for what producers have pushed to the old store meanwhile.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass transfer --from sqlite:tasks.db --to redis://127.0.0.1:6379 --dry-run
  windlass transfer --from sqlite:tasks.db --to postgres://app@db/app --yes
  windlass transfer --reopen sqlite:tasks.db          use the old store again")]
pub(crate) struct Args {
    /// The old store
    #[arg(long, value_name = "URL", required_unless_present = "reopen", conflicts_with = "reopen")]
    from: Option<String>,
    /// The new store; it is made when it does not exist
    #[arg(long, value_name = "URL", required_unless_present = "reopen", conflicts_with = "reopen")]
    to: Option<String>,
    /// Say what would be moved, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask
    #[arg(long, short)]
    yes: bool,
    /// Open a store that a transfer has closed, so that tasks are started there again
    #[arg(long, value_name = "URL")]
    reopen: Option<String>,
}

pub(crate) async fn run(context: &Context, args: &Args) -> Outcome {
    if let Some(url) = &args.reopen {
        return reopen(context, url).await;
    }
    let (Some(from), Some(to)) = (&args.from, &args.to) else {
        return Err(Problem::usage("a transfer needs two stores", "name them with `--from URL` and `--to URL`"));
    };
    let shown = (redact::url(from), redact::url(to));
    let old = store(context, from, Missing::Refuse).await?;
    if args.dry_run {
        let inventory = Mover::new(Arc::clone(&old), old).inventory().await?;
        return say_what_there_is(context, &shown, &inventory);
    }
    let question = format!("Close {} and move everything to {}?", shown.0, shown.1);
    confirm(&question, if args.yes { Agreed::Already } else { Agreed::Ask })?;
    let new = store(context, to, Missing::Create).await?;
    let bar = bar(context);
    let moved = Mover::new(old, new).run(|moved| bar.set_message(so_far(moved))).await;
    bar.finish_and_clear();
    say_what_was_moved(context, &shown, moved?)
}

async fn store(context: &Context, url: &str, missing: Missing) -> Result<Arc<dyn Backend>, Problem> {
    let location: Location = url.parse()?;
    if location == Location::Memory {
        return Err(Problem::usage(
            "a store in memory lives as long as this command",
            "name a file or a server, as in `--to sqlite:windlass.db`",
        ));
    }
    settings::open_at(&context.loaded, &location, missing).await
}

async fn reopen(context: &Context, url: &str) -> Outcome {
    let opened = store(context, url, Missing::Refuse).await?.transfer(&Transfer::Open).await?;
    let was_closed = opened == windlass::transfer::Transferred::Changed(1);
    let shown = redact::url(url);
    context.out.object(&shown, json!({ "store": shown, "opened": was_closed }), || {
        context.out.fields(&[(
            "store",
            if was_closed { format!("{shown} is open again") } else { format!("{shown} was open already") },
        )])
    })?;
    Ok(Exit::Ok)
}

fn say_what_there_is(context: &Context, (from, to): &(String, String), inventory: &Inventory) -> Outcome {
    let tasks = &inventory.tasks;
    let json = json!({
        "from": from, "to": to, "dry_run": true, "scheduled": tasks.scheduled, "ready": tasks.ready, "running": tasks.running,
        "parked": tasks.parked, "dead": tasks.dead, "schedules": inventory.schedules, "pauses": inventory.pauses,
        "limits": inventory.limits,
    });
    context.out.object(from, json, || {
        let running = if tasks.running > 0 { format!("{}, to be waited for", tasks.running) } else { "0".to_owned() };
        context.out.fields(&[
            ("from", from.clone()),
            ("to", to.clone()),
            ("scheduled", tasks.scheduled.to_string()),
            ("ready", tasks.ready.to_string()),
            ("running", running),
            ("parked", tasks.parked.to_string()),
            ("dead letters", tasks.dead.to_string()),
            ("schedules", inventory.schedules.to_string()),
            ("pauses", inventory.pauses.to_string()),
            ("limits", inventory.limits.to_string()),
            ("and", "results that are still kept, groups of workflows, and notes".to_owned()),
        ])
    })?;
    Ok(Exit::Ok)
}

fn say_what_was_moved(context: &Context, (from, to): &(String, String), moved: Moved) -> Outcome {
    let json = json!({
        "from": from, "to": to, "dry_run": false, "live": moved.live, "dead": moved.dead, "ended": moved.ended,
        "groups": moved.groups, "schedules": moved.schedules, "limits": moved.limits, "notes": moved.notes, "known": moved.known,
    });
    context.out.object(to, json, || {
        context.out.fields(&[
            ("from", format!("{from}, which stays closed")),
            ("to", to.clone()),
            ("waiting tasks", moved.live.to_string()),
            ("dead letters", moved.dead.to_string()),
            ("ended tasks", moved.ended.to_string()),
            ("groups", moved.groups.to_string()),
            ("schedules", moved.schedules.to_string()),
            ("limits", moved.limits.to_string()),
            ("notes", moved.notes.to_string()),
            ("known already", moved.known.to_string()),
        ])
    })?;
    Ok(Exit::Ok)
}

fn so_far(moved: &Moved) -> String {
    if moved.running > 0 {
        return format!("waiting for {} in the old store", plural(moved.running, "running task"));
    }
    format!("{} moved", plural(moved.live + moved.dead + moved.ended, "task"))
}

fn bar(context: &Context) -> ProgressBar {
    if !context.out.shows_progress() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{spinner} {msg}  {elapsed}");
    let bar = ProgressBar::new_spinner().with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

impl From<TransferError> for Problem {
    fn from(error: TransferError) -> Self {
        match error {
            TransferError::SameStore => {
                Self::usage("both URLs lead to the same store", "name another store with `--to URL`")
            }
            TransferError::From(_) | TransferError::To(_) => Self::new(
                Exit::Unreachable,
                &error,
                "mend that and run the same command again: it goes on where it ended, nothing is lost",
            ),
        }
    }
}
