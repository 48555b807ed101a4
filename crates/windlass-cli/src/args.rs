//! The command line: every command with its flags. What they do is in `commands`.

use clap::{Args, Parser, Subcommand};

use crate::{bench, commands, demo};

/// Background tasks for services: durable, fast, and nothing is ever lost.
#[derive(Debug, Parser)]
#[command(name = "windlass", version, propagate_version = true, disable_help_subcommand = false)]
#[command(after_help = "\
EXAMPLES
  windlass demo                                          see it work and check itself
  windlass worker                                        run tasks from ./windlass.db
  windlass enqueue http.request --arg url=https://example.org
  windlass task ls -q state:dead")]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// The store: sqlite:PATH, a bare path, or memory:.
    #[arg(long, global = true, value_name = "URL", env = "WINDLASS_STORE", help_heading = "Connection")]
    pub(crate) store: Option<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Worker(commands::worker::Args),
    /// Shows the main job at work and checks itself.
    Demo(demo::Args),
    /// Measures a store and the engine on this machine.
    Bench(bench::Args),
}
