//! A worker with one task, which writes its number into the ledger.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use windlass::prelude::*;
use windlass_chaos::{LEDGER, Ledger};

/// Writes down that it ran.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "chaos.count", output = u32)]
struct Count {
    number: u32,
}

async fn count(task: Count, cx: Cx<Ledger>) -> Result<u32, TaskError> {
    cx.state().ran(task.number)?;
    // tidy: allow(sleep): this is the work of the task, so that there is always something in flight
    tokio::time::sleep(Duration::from_millis(10)).await;
    Ok(task.number)
}

async fn open() -> anyhow::Result<Ledger> {
    let folder = std::env::var_os(LEDGER).map(PathBuf::from);
    Ledger::open(&folder.ok_or_else(|| anyhow::anyhow!("{LEDGER} names the folder of the ledger"))?)
}

fn main() -> ExitCode {
    windlass_cli::run(App::new("chaos").state(open).task(count))
}
