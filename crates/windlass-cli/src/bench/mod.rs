//! `windlass bench`: how fast a store and the engine are on this machine.

use std::process::ExitCode;

/// Flags of `windlass bench`.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench")]
pub struct Args {}

/// Runs the measurement.
///
/// # Errors
/// When it cannot be set up.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let _ = args;
    anyhow::bail!("this build has no bench")
}
