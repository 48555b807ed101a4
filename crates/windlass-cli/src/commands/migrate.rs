//! `windlass migrate`: the layout of the store.

use serde_json::json;
use windlass::Location;
use windlass::view::Health;

use crate::context::Context;
use crate::exit::{Exit, Outcome};
use crate::settings::shown_store;

/// Look at the layout of the store, and bring it up to date
///
/// A store is brought up to date whenever it is opened; these commands do it, or look, without starting anything.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass migrate status
  windlass migrate up --store sqlite:/var/lib/app/tasks.db")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// Say whether the store exists and is up to date
    #[command(after_help = "\
EXAMPLES
  windlass migrate status
  windlass migrate status --json")]
    Status,
    /// Make the store when it does not exist, and bring it up to date
    #[command(after_help = "\
EXAMPLES
  windlass migrate up
  windlass migrate up --store sqlite:/var/lib/app/tasks.db")]
    Up,
}

pub(crate) async fn run(context: &Context, args: &Args) -> Outcome {
    let location: Location = context.loaded.config.store.parse()?;
    let existed = match &location {
        Location::Memory => true,
        Location::Sqlite(path) => path.exists(),
        // A server is asked.
        Location::Redis(_) | Location::Postgres(_) => true,
    };
    let backend = match args.command {
        Command::Status => context.store().await?,
        Command::Up => context.store_or_new().await?,
    };
    let info = backend.info().await?;
    let bad: Vec<&str> =
        info.checks.iter().filter(|check| check.health == Health::Bad).map(|check| check.detail.as_str()).collect();
    let current = bad.is_empty();
    let made = matches!(args.command, Command::Up) && !existed;
    let store = shown_store(&context.loaded);
    let json = json!({
        "store": store, "kind": info.kind, "created": made, "current": current, "durability": info.durability,
        "size_bytes": info.size_bytes,
    });
    context.out.object(&store, json, || {
        let state = match (made, current) {
            (true, true) => "made, and up to date".to_owned(),
            (false, true) => "up to date".to_owned(),
            (_, false) => bad.join("; "),
        };
        context.out.fields(&[
            ("store", store.clone()),
            ("state", state),
            ("durability", info.durability.clone()),
            ("size", info.size_bytes.map(crate::output::bytes).unwrap_or_default()),
        ])
    })?;
    Ok(if current { Exit::Ok } else { Exit::Failed })
}
