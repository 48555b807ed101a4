//! `windlass demo`: the main job at work, checked against the receiver's own ledger.

use std::process::ExitCode;

/// Flags of `windlass demo`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass demo")]
pub struct Args {}

/// Runs the demo.
///
/// # Errors
/// When it cannot be set up.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let _ = args;
    anyhow::bail!("this build has no demo")
}
