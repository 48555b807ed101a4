//! `bench worker`: the other process of `bench latency --processes 2`. Nobody else calls it.
//!
//! It works until its standard input is closed, and writes a line for each task: how long after its enqueue it started,
//! in microseconds.

use std::io::Write;
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use windlass::QueueName;

use super::bed::{Place, Watch, Working, keep_everything};
use super::latency;
use crate::exit::Problem;

/// The other process of `bench latency`
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench worker --store windlass.db --queue bench-1")]
pub(crate) struct Args {
    /// The queue that it works on
    #[arg(long, value_name = "NAME")]
    queue: QueueName,
}

pub(super) async fn run(place: &Place, args: &Args) -> Result<(), Problem> {
    let open = place.open(keep_everything()).await?;
    let (sender, mut starts) = mpsc::unbounded_channel();
    let registry = latency::stamp_registry(sender).await?;
    let worker = Working::start(&open.backend, registry, &args.queue, None, &Arc::new(Watch::default()));
    let mut orders = tokio::io::stdin();
    let mut ignored = [0; 64];
    loop {
        tokio::select! {
            started = starts.recv() => match started {
                Some(after) => writeln!(std::io::stdout().lock(), "{after}")?,
                None => break,
            },
            read = orders.read(&mut ignored) => if read? == 0 {
                break;
            },
        }
    }
    worker.stop().await
}
