//! What became of a task, for those who wait for it.

use std::time::Duration;

use crate::view::Record;
use crate::{Failure, Json, State, StoreError};

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It has not ended in time; it goes on.
    #[error("the task has not ended within {}", crate::format_duration(*.0))]
    Timeout(Duration),
    /// It gave up.
    #[error("the task gave up: {0}")]
    Dead(Failure),
    /// It was cancelled, or was not started in time.
    #[error("the task is {0}")]
    Ended(State),
    /// It ended well, but its result was not kept, or it said that there was nothing to do.
    #[error("the task has no result{}", .0.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    NoResult(Option<String>),
    /// Its result has another shape than the task's output.
    #[error("the result does not fit the task's output: {0}")]
    Shape(crate::InvalidJson),
    /// The store could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

pub(super) fn result_of(record: &Record) -> Result<Json, WaitError> {
    match record.state {
        State::Succeeded => match (&record.result, &record.skipped) {
            (Some(result), None) => Ok(result.clone()),
            (_, skipped) => Err(WaitError::NoResult(skipped.clone())),
        },
        State::Dead => {
            let failure = record.failure.clone();
            Err(WaitError::Dead(failure.unwrap_or_else(|| Failure::new("unknown", "no failure is recorded"))))
        }
        state @ (State::Scheduled
        | State::Ready
        | State::Running
        | State::Parked
        | State::Cancelled
        | State::Expired) => Err(WaitError::Ended(state)),
    }
}

pub(super) fn output_of<O: serde::de::DeserializeOwned>(record: &Record) -> Result<O, WaitError> {
    result_of(record)?.to().map_err(WaitError::Shape)
}
