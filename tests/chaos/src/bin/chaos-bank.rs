//! A worker that makes transfers, and that aborts now and then in the middle of one.

use std::process::ExitCode;

use anyhow::Context;
use windlass::prelude::*;
use windlass_chaos::{ABORTS, Bank, Step, Transfer, bank};

/// One of so many steps is the last thing that its process does.
const STEPS_PER_ABORT: u32 = 300;

async fn transfer(task: Transfer, cx: Cx<Box<dyn Bank>>) -> Result<u32, TaskError> {
    cx.state().transfer(&task, &cx, &may_abort).await?;
    Ok(task.number)
}

fn may_abort(step: Step) {
    if fastrand::u32(0..STEPS_PER_ABORT) == 0 {
        eprintln!("{ABORTS} {step:?}");
        std::process::abort();
    }
}

async fn open() -> anyhow::Result<Box<dyn Bank>> {
    bank(&std::env::var("WINDLASS_STORE").context("WINDLASS_STORE names the store")?)
}

fn main() -> ExitCode {
    windlass_cli::run(App::new("bank").state(open).task(transfer))
}
