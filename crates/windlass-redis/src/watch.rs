//! Waiting until a task has ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use windlass_core::backend::WAIT_MAX;
use windlass_core::view::Record;
use windlass_core::{StoreError, TaskId};

use crate::Shared;
use crate::encode::micros;
use crate::listing::read;
use crate::wake::{LOOK, Watching};

/// Tasks are announced for longer than anybody waits between two looks.
const ANNOUNCED_FOR: Duration = Duration::from_secs(5);

/// Answers those of the tasks that have ended as soon as one has, or nothing after `wait`.
pub(crate) async fn watch(shared: &Arc<Shared>, ids: &[TaskId], wait: Duration) -> Result<Vec<Record>, StoreError> {
    let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
    if wait.is_zero() || ids.is_empty() {
        return look(shared, "ended", &names).await;
    }
    let deadline = Instant::now() + wait.min(WAIT_MAX);
    let watching = Watching::new(shared, ids).await;
    loop {
        // The script that finds nothing leaves word that somebody waits: what ends from then on is told.
        let ended = look(shared, "watch", &names).await?;
        if !ended.is_empty() || Instant::now() >= deadline {
            return Ok(ended);
        }
        tokio::select! {
            () = watching.rung() => {}
            () = tokio::time::sleep_until(deadline.min(Instant::now() + LOOK)) => {}
        }
    }
}

async fn look(shared: &Shared, how: &str, names: &[String]) -> Result<Vec<Record>, StoreError> {
    let found = read(shared, how, &micros(ANNOUNCED_FOR).to_string(), names).await?;
    Ok(found.into_iter().flatten().map(|(_, record)| record).collect())
}
