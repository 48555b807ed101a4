//! `windlass migrate`: the layout of the store.

use serde_json::json;
use windlass::view::Health;
use windlass::{Backend, Location};

use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
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
    /// Print what `migrate up` would do as SQL, for a user with the rights to run it; of PostgreSQL stores
    #[command(after_help = "\
EXAMPLES
  windlass migrate sql --store postgres://app@db/app
  windlass migrate sql --store postgres://app@db/app | psql postgres://owner@db/app")]
    Sql,
}

pub(crate) async fn run(context: &Context, args: &Args) -> Outcome {
    let location: Location = context.loaded.config.store.parse()?;
    match args.command {
        Command::Status => {
            let backend = context.store().await?;
            report(context, backend.as_ref(), Made::Before).await
        }
        Command::Up => {
            let made = match &location {
                Location::Sqlite(path) if !path.exists() => Made::Now,
                _ if windlass::pending(&location).await?.version == 0 => Made::Now,
                _ => Made::Before,
            };
            let backend = context.store_or_new().await?;
            report(context, backend.as_ref(), made).await
        }
        Command::Sql => print_sql(context, &location).await,
    }
}

/// Whether the store was there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Before,
    Now,
}

async fn print_sql(context: &Context, location: &Location) -> Outcome {
    let Some(sql) = windlass::pending(location).await?.sql else {
        return Err(Problem::usage(
            "this store is not made by SQL of yours: it is made when it is opened",
            "run `windlass migrate up`",
        ));
    };
    let text = if sql.is_empty() { "-- The store is up to date.\n".to_owned() } else { sql };
    context.out.line(text.trim_end())?;
    Ok(Exit::Ok)
}

async fn report(context: &Context, backend: &dyn Backend, made: Made) -> Outcome {
    let info = backend.info().await?;
    let bad: Vec<&str> =
        info.checks.iter().filter(|check| check.health == Health::Bad).map(|check| check.detail.as_str()).collect();
    let current = bad.is_empty();
    let made = made == Made::Now;
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
