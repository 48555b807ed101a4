//! `windlass breaker`: circuit breakers as all nodes see them.

use std::time::Duration;

use serde_json::json;
use windlass::breaker::{self, Position, Standing};
use windlass::{Backend, Clock, SystemClock};

use super::task::read_duration;
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::json;
use crate::output::{Cell, Column, Listing, Row, Tone};

/// Look at circuit breakers, open and close them
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass breaker ls
  windlass breaker open payments --for 10m
  windlass breaker reset payments")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Command {
    /// List breakers that are not simply closed: those that have opened, and those that somebody has put
    #[command(
        visible_alias = "list",
        after_help = "\
EXAMPLES
  windlass breaker ls
  windlass breaker ls --json"
    )]
    Ls,
    /// Let no call pass, until it is closed or reset
    #[command(after_help = "\
EXAMPLES
  windlass breaker open payments
  windlass breaker open payments --for 10m")]
    Open {
        /// Breakers, by the names that the code gives them
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
        /// For this long; then one call is tried, as after any opening
        #[arg(long = "for", value_name = "DURATION", value_parser = read_duration)]
        time: Option<Duration>,
    },
    /// Let every call pass, whatever fails, until it is opened or reset
    #[command(after_help = "\
EXAMPLES
  windlass breaker close payments")]
    Close {
        /// Breakers
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
    /// Give breakers back to their policy, closed
    #[command(after_help = "\
EXAMPLES
  windlass breaker reset payments")]
    Reset {
        /// Breakers
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

const COLUMNS: &[Column] = &[
    Column::new("BREAKER"),
    Column::new("STATE"),
    Column::new("UNTIL"),
    Column::new("OPENED"),
    Column::new("DECIDED BY"),
];

pub(crate) async fn run(context: &Context, args: Args) -> Outcome {
    match args.command {
        Command::Ls => list(context).await,
        Command::Open { names, time } => {
            let until = time.map(|time| SystemClock.now() + time);
            each(context, &names, "open", async |backend: &dyn Backend, name: &str| match until {
                Some(until) => breaker::open_until(backend, name, until).await,
                None => breaker::force(backend, name, Some(Position::Open)).await,
            })
            .await
        }
        Command::Close { names } => {
            each(context, &names, "closed", async |backend: &dyn Backend, name: &str| {
                breaker::force(backend, name, Some(Position::Closed)).await
            })
            .await
        }
        Command::Reset { names } => reset(context, &names).await,
    }
}

async fn list(context: &Context) -> Outcome {
    let breakers = breaker::list(&*context.store().await?).await?;
    let rows = breakers.iter().map(|(name, standing)| row(context, name, standing)).collect();
    context.out.listing(&Listing::whole("breakers", COLUMNS, "every breaker is closed", rows))
}

fn row(context: &Context, name: &str, standing: &Standing) -> Row {
    let (state, tone) = match standing.position {
        Position::Closed => ("closed", Tone::Good),
        Position::HalfOpen => ("half-open", Tone::Warn),
        Position::Open => ("open", Tone::Bad),
    };
    let until = if standing.forced { "it is changed".to_owned() } else { context.out.when(standing.until) };
    Row {
        id: name.to_owned(),
        cells: vec![
            Cell::toned(name, Tone::Strong),
            Cell::toned(state, tone),
            until.into(),
            standing.opened.to_string().into(),
            if standing.forced { "operator" } else { "policy" }.into(),
        ],
        json: json::breaker(name, standing),
    }
}

/// Puts breakers one after the other. Any name is taken: which ones there are, only the code knows.
async fn each(
    context: &Context,
    names: &[String],
    done: &str,
    put: impl AsyncFn(&dyn Backend, &str) -> Result<(), windlass::StoreError>,
) -> Outcome {
    let backend = context.store().await?;
    let known = breaker::list(&*backend).await?;
    for name in names {
        put(&*backend, name).await?;
        if !known.iter().any(|(known, _)| known == name) {
            context
                .out
                .say(format_args!("no node has opened a breaker `{name}` yet: see that this is its name in the code"));
        }
    }
    let changed = names.len();
    context.out.object(&changed.to_string(), json!({"changed": changed, "unchanged": 0}), || format!("{done}\n"))
}

async fn reset(context: &Context, names: &[String]) -> Outcome {
    let backend = context.store().await?;
    let known = breaker::list(&*backend).await?;
    let mut changed = 0;
    for name in names {
        if known.iter().any(|(known, _)| known == name) {
            breaker::force(&*backend, name, None).await?;
            changed += 1;
        } else {
            context.out.warn(format_args!("`{name}` is closed already, or no breaker has this name"));
        }
    }
    if changed == 0 {
        return Err(Problem::new(Exit::NotFound, "nothing was reset", "`windlass breaker ls` lists what can be"));
    }
    let unchanged = names.len() - changed;
    context
        .out
        .object(&changed.to_string(), json!({"changed": changed, "unchanged": unchanged}), || "reset\n".to_owned())
}
