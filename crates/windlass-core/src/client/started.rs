//! A workflow that was started: its results, and its end.

use std::time::Duration;

use tokio::time::Instant;

use super::outcome::result_of;
use super::{Client, TRY_AGAIN, TRY_AGAIN_MAX, WaitError};
use crate::backend::TaskAction;
use crate::task::Task;
use crate::view::{Filter, Page};
use crate::{Json, StoreError, TaskId};

/// A workflow that was started.
#[derive(Debug)]
pub struct Started {
    /// The workflow: listings and commands find all of its tasks by it.
    pub id: TaskId,
    /// The tasks that it starts with.
    pub tasks: Vec<TaskId>,
    pub(super) client: Client,
}

impl Started {
    /// Waits until every task that it started with has ended, up to `limit`, and returns their results in order; that is
    /// the whole of a group that nothing follows.
    ///
    /// # Errors
    /// [`WaitError`]; the first member that gave up decides.
    pub async fn results(&self, limit: Duration) -> Result<Vec<Json>, WaitError> {
        let records = self.client.watch_all(&self.tasks, limit).await?;
        if records.len() < self.tasks.len() {
            return Err(WaitError::Timeout(limit));
        }
        let find = |id: &TaskId| records.iter().find(|record| record.envelope.id == *id);
        self.tasks.iter().filter_map(find).map(result_of).collect()
    }

    /// Waits until the step with this task's name has ended, up to `limit`, and returns its output.
    ///
    /// # Errors
    /// [`WaitError`].
    pub async fn output<T: Task>(&self, limit: Duration) -> Result<T::Output, WaitError> {
        let name = &T::definition().name;
        let filter = Filter { workflow: Some(self.id.clone()), names: vec![name.clone()], ..Filter::default() };
        let give_up_at = Instant::now() + limit;
        let mut wait = TRY_AGAIN;
        // A later step does not exist yet: it appears when the one before has ended.
        loop {
            let listing = self.client.backend().list(&filter, &Page::first(1)).await?;
            let left = give_up_at.saturating_duration_since(Instant::now());
            if let Some(record) = listing.tasks.first() {
                let handle = self.client.handle::<T>(record.envelope.id.clone());
                return handle.output(left).await;
            }
            if left.is_zero() {
                return Err(WaitError::Timeout(limit));
            }
            tokio::time::sleep(wait.min(left)).await;
            wait = (wait * 2).min(TRY_AGAIN_MAX);
        }
    }

    /// Cancels every task of it that has not ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cancel(&self) -> Result<u64, StoreError> {
        let filter = Filter { workflow: Some(self.id.clone()), ..Filter::default() };
        self.client.command_all(&filter, TaskAction::Cancel).await
    }
}
