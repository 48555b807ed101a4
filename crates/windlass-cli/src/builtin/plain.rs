//! The tasks that need nothing from outside: `noop`, `sleep`, `fail`. For trying things out, and for measuring.

use serde::{Deserialize, Serialize};
use windlass::{Cx, Task, TaskError};

use super::Services;
use super::duration::DurationText;

/// Does nothing and succeeds.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(name = "noop")]
pub struct Noop {}

/// Waits and succeeds.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(name = "sleep", hard_limit = "1d")]
pub struct Sleep {
    /// How long: `250ms`, `30s`, `1h30m`; up to a day.
    pub duration: DurationText,
}

/// Fails, in the way that is asked for.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(name = "fail", retries = 3, backoff = "1s * 2^n up to 1m")]
pub struct Fail {
    /// The text of the error.
    #[serde(default = "on_purpose")]
    pub message: String,
    /// Fails this many attempts, then succeeds; without it, every attempt fails.
    pub times: Option<u32>,
    /// Gives up at once instead of being tried again.
    #[serde(default)]
    pub fatal: bool,
    /// Panics instead of returning an error.
    #[serde(default)]
    pub panic: bool,
}

fn on_purpose() -> String {
    "failed on purpose".to_owned()
}

pub(super) async fn noop(_: Noop, _: Cx<Services>) -> Result<(), TaskError> {
    Ok(())
}

pub(super) async fn sleep(task: Sleep, cx: Cx<Services>) -> Result<(), TaskError> {
    tokio::select! {
        () = tokio::time::sleep(task.duration.0) => Ok(()),
        reason = cx.stopped() => Err(TaskError::failed(format_args!("woken early: {reason}")).class("stopped")),
    }
}

pub(super) async fn fail(task: Fail, cx: Cx<Services>) -> Result<(), TaskError> {
    if task.times.is_some_and(|times| cx.attempt > times) {
        return Ok(());
    }
    assert!(!task.panic, "{}", task.message);
    if task.fatal { Err(TaskError::fatal(task.message)) } else { Err(TaskError::failed(task.message)) }
}
