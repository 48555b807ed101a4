//! `windlass outbox`: what an application has written into a table of its own gets into the store.

use std::sync::Arc;

use serde_json::json;
use windlass::outbox::{Outbox, Relay};
use windlass::{connect_outbox, redact};

use crate::context::Context;
use crate::exit::{Exit, Outcome};
use crate::output::plural;
use crate::signals::Signals;

/// Move tasks from the outbox of an application into the store
///
/// For applications whose data are in another database than their tasks: see docs/transactions.md.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass outbox relay --from postgres://app@db/shop --store redis://127.0.0.1:6379")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    Relay(RelayArgs),
}

/// Move rows as they are written, until told to stop
///
/// Several relays of one PostgreSQL database share the work. A row that the store will never take is set aside with its reason
/// in the column `refused`; rows of a full queue wait. After TERM or INT the batch that has begun is brought to its end.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass outbox relay --from postgres://app@db/shop --store redis://127.0.0.1:6379
  windlass outbox relay --from sqlite:shop.db --store redis://127.0.0.1:6379 --once
  windlass outbox relay --from 'postgres://app@db/shop?options=-csearch_path%3Dsales'      another schema")]
struct RelayArgs {
    /// The database of the application: a SQLite file, or PostgreSQL
    #[arg(long, value_name = "URL", env = "WINDLASS_OUTBOX", hide_env_values = true)]
    from: String,
    /// Move what there is, and end
    #[arg(long)]
    once: bool,
}

pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::Relay(args) => relay(context, &args).await,
    }
}

async fn relay(context: &Context, args: &RelayArgs) -> Outcome {
    let signals = Signals::catch();
    let from: Arc<dyn Outbox> = connect_outbox(&args.from).await?;
    let relay = Relay::new(from, context.store_or_new().await?);
    if !args.once {
        relay.run(signals.stopped()).await;
        return Ok(Exit::Ok);
    }
    let relayed = relay.drain().await?;
    let shown = redact::url(&args.from);
    let json = json!({
        "from": shown, "moved": relayed.moved, "known": relayed.known, "refused": relayed.refused, "waiting": relayed.waiting,
    });
    context.out.object(&shown, json, || {
        let known = if relayed.known > 0 { format!(", {} of them known before", relayed.known) } else { String::new() };
        context.out.fields(&[
            ("moved", format!("{}{known}", plural(relayed.moved, "row"))),
            ("set aside", relayed.refused.to_string()),
            ("queue full", relayed.waiting.to_string()),
        ])
    })?;
    Ok(Exit::Ok)
}
