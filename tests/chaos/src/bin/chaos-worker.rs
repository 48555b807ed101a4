//! A worker with a task that writes its number into the ledger, and with some that do what no task should.

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

/// Never gives its thread back.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "chaos.spin", hard_limit = "1s", retries = 0)]
struct Spin {}

async fn spin(_: Spin, _: Cx<Ledger>) -> Result<(), TaskError> {
    loop {
        std::hint::spin_loop();
    }
}

/// The same on a thread that it may block.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "chaos.spin_blocking", hard_limit = "1s", retries = 0)]
struct SpinBlocking {}

fn spin_blocking(_: SpinBlocking, _: Cx<Ledger>) -> Result<(), TaskError> {
    loop {
        std::hint::spin_loop();
    }
}

/// Uses so much memory and keeps it.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "chaos.eat", hard_limit = "1m", retries = 1, backoff = "100ms")]
struct Eat {
    mib: usize,
}

async fn eat(task: Eat, cx: Cx<Ledger>) -> Result<(), TaskError> {
    let mut eaten = Vec::new();
    for _ in 0..task.mib {
        eaten.push(vec![1_u8; 1 << 20]);
        // tidy: allow(sleep): a task that eats as it works, not faster than a machine can swap
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cx.stopped().await;
    Err(TaskError::failed(format_args!("{} MiB were too few", eaten.len())))
}

/// Ends the process in the middle of a task, as if all were well.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "chaos.exit")]
struct Exit {}

async fn exit(_: Exit, _: Cx<Ledger>) -> Result<(), TaskError> {
    std::process::exit(0)
}

async fn open() -> anyhow::Result<Ledger> {
    let folder = std::env::var_os(LEDGER).map(PathBuf::from);
    Ledger::open(&folder.ok_or_else(|| anyhow::anyhow!("{LEDGER} names the folder of the ledger"))?)
}

fn main() -> ExitCode {
    let app = App::new("chaos").state(open).task(count).task(spin).blocking_task(spin_blocking).task(eat).task(exit);
    windlass_cli::run(app)
}
