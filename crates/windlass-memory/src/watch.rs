//! Waiting until a task has ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use windlass_core::TaskId;
use windlass_core::backend::WAIT_MAX;
use windlass_core::view::Record;

use crate::Shared;
use crate::data::{Data, Stage, Task};
use crate::hash::FastMap;

/// Who waits for which task; the task need not be known yet.
#[derive(Default)]
pub(crate) struct Watchers {
    bells: FastMap<TaskId, Vec<Arc<Notify>>>,
}

impl Watchers {
    /// A task has ended.
    pub(crate) fn ended(&self, id: &TaskId) {
        if self.bells.is_empty() {
            return;
        }
        for bell in self.bells.get(id).into_iter().flatten() {
            bell.notify_one();
        }
    }
}

/// Answers those of the tasks that have ended as soon as one has, or nothing after `wait`.
pub(crate) async fn watch(shared: &Arc<Shared>, ids: &[TaskId], wait: Duration) -> Vec<Record> {
    let ended = shared.run(|data, _| data.ended_of(ids));
    if !ended.is_empty() || wait.is_zero() || ids.is_empty() {
        return ended;
    }
    let deadline = Instant::now() + wait.min(WAIT_MAX);
    let watching = Watching::register(shared, ids);
    loop {
        // Looks again after it has registered: what ended in between is not missed.
        let ended = shared.run(|data, _| data.ended_of(ids));
        if !ended.is_empty() || Instant::now() >= deadline {
            return ended;
        }
        tokio::select! {
            biased;
            () = watching.bell.notified() => {}
            () = tokio::time::sleep_until(deadline) => {}
        }
    }
}

/// A registration, given back when the watch ends in whatever way.
struct Watching<'a> {
    shared: &'a Arc<Shared>,
    ids: &'a [TaskId],
    bell: Arc<Notify>,
}

impl<'a> Watching<'a> {
    fn register(shared: &'a Arc<Shared>, ids: &'a [TaskId]) -> Self {
        let bell = Arc::new(Notify::new());
        shared.run(|data, _| {
            for id in ids {
                data.watchers.bells.entry(id.clone()).or_default().push(Arc::clone(&bell));
            }
        });
        Self { shared, ids, bell }
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.shared.run(|data, _| {
            for id in self.ids {
                if let Some(bells) = data.watchers.bells.get_mut(id) {
                    bells.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
                    if bells.is_empty() {
                        data.watchers.bells.remove(id);
                    }
                }
            }
        });
    }
}

impl Data {
    /// The records of those that have ended.
    fn ended_of(&self, ids: &[TaskId]) -> Vec<Record> {
        let slots = ids.iter().filter_map(|id| self.by_id.get(id));
        let tasks = slots.map(|slot| &self.tasks[*slot]);
        tasks.filter(|task| matches!(task.stage, Stage::Ended { .. })).map(Task::record).collect()
    }
}
