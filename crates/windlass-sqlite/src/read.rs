//! Reading: connections beside the writer's, each with its thread, and what they answer.
//!
//! A reader sees the file as it was when it began; it neither waits for the writer nor makes it wait. Two are enough: a
//! read takes well under a millisecond, and more would only keep the log from being emptied.
//!
//! Threads of their own, not a pool with permits: a caller that has a permit but is not polled just then would keep it
//! from those who are.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{Connection, params};
use tokio::sync::{mpsc, oneshot};
use tracing::error;
use windlass_core::view::{Counts, QueueCounts, Record};
use windlass_core::{QueueName, StoreError, TaskId, TaskName};

use crate::errors::Fault;
use crate::line::any_line;
use crate::rows::{self, Id, RECORD, parse, priority_of, ready_at, text};
use crate::{Alive, Shared};

/// How many reads go on at once.
pub(crate) const READERS: usize = 2;
/// Reads that wait for a thread; further callers wait for a place.
const QUEUE_MAX: usize = 1_024;

type Look = Box<dyn FnOnce(&Connection) + Send>;

/// The way to the threads that read.
#[derive(Debug)]
pub(crate) struct Readers {
    looks: mpsc::Sender<Look>,
    shared: Arc<Shared>,
}

impl Readers {
    /// Starts a thread for each connection; they end when the store is dropped.
    pub(crate) fn start(connections: Vec<Connection>, shared: Arc<Shared>, alive: &Alive) -> Result<Self, StoreError> {
        let (looks, waiting) = mpsc::channel(QUEUE_MAX);
        let waiting = Arc::new(Mutex::new(waiting));
        for db in connections {
            let (waiting, alive) = (Arc::clone(&waiting), alive.clone());
            std::thread::Builder::new()
                .name("windlass-sqlite-reader".to_owned())
                .spawn(move || {
                    run(&db, &waiting);
                    drop(db);
                    drop(alive);
                })
                .map_err(|error| StoreError::Unreachable(error.into()))?;
        }
        Ok(Self { looks, shared })
    }

    /// Reads in one consistent view of the file.
    pub(crate) async fn read<T, F>(&self, look: F) -> Result<T, StoreError>
    where
        F: FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let shared = Arc::clone(&self.shared);
        let read: Look = Box::new(move |db| {
            let found = shared.file.check().map_err(Fault::from).and_then(|()| in_one_view(db, look));
            // Nobody waits any more when the caller's future was dropped.
            let _ = answer.send(found.map_err(|fault| fault.into_store_error(&shared.path)));
        });
        self.looks.send(read).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

fn stopped() -> StoreError {
    StoreError::Broken(
        "the store's driver failed while it read; please report it with the log of this process".to_owned(),
    )
}

fn run(db: &Connection, waiting: &Mutex<mpsc::Receiver<Look>>) {
    loop {
        // One reader waits for work, the others for their turn to wait.
        let next = waiting.lock().blocking_recv();
        let Some(look) = next else { return };
        // A mistake of ours must not take the thread away from everybody; the caller hears that its answer is gone.
        if catch_unwind(AssertUnwindSafe(|| look(db))).is_err() {
            error!("a read of the store panicked");
        }
    }
}

fn in_one_view<T>(db: &Connection, look: impl FnOnce(&Connection) -> Result<T, Fault>) -> Result<T, Fault> {
    let view = db.unchecked_transaction()?;
    let answer = look(db);
    view.finish()?;
    answer
}

/// The tasks with these ids, in their order.
pub(crate) fn find(db: &Connection, ids: &[TaskId]) -> Result<Vec<Option<Record>>, Fault> {
    let mut select = db.prepare_cached(&format!("{RECORD} WHERE t.id = ?1"))?;
    let mut found = Vec::with_capacity(ids.len());
    for id in ids {
        let mut rows = select.query([Id(id)])?;
        found.push(rows.next()?.map(|row| rows::record(row).map(|(_, record)| record)).transpose()?);
    }
    Ok(found)
}

/// Those of these tasks that have ended.
pub(crate) fn ended(db: &Connection, ids: &[TaskId]) -> Result<Vec<Record>, Fault> {
    let mut select = db.prepare_cached(&format!("{RECORD} WHERE t.id = ?1 AND t.state >= 4"))?;
    let mut ended = Vec::new();
    for id in ids {
        let mut rows = select.query([Id(id)])?;
        if let Some(row) = rows.next()? {
            ended.push(rows::record(row)?.1);
        }
    }
    Ok(ended)
}

/// The maintained counts.
pub(crate) fn counts(db: &Connection) -> Result<Counts, Fault> {
    let mut select = db.prepare_cached(
        "SELECT id, name, paused, scheduled, ready, running, parked, succeeded, dead, cancelled, expired \
         FROM windlass_queue WHERE used = 1 OR paused = 1",
    )?;
    let mut rows = select.query([])?;
    let mut queues = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let count = |index: usize| -> Result<u64, Fault> { Ok(u64::try_from(row.get::<_, i64>(index)?).unwrap_or(0)) };
        let mut counts = QueueCounts {
            paused: row.get(2)?,
            scheduled: count(3)?,
            ready: count(4)?,
            running: count(5)?,
            parked: count(6)?,
            succeeded: count(7)?,
            dead: count(8)?,
            cancelled: count(9)?,
            expired: count(10)?,
            oldest_ready_at: None,
        };
        if counts.ready > 0 {
            counts.oldest_ready_at = first_of(db, row.get(0)?)?;
        }
        queues.insert(parse::<QueueName>("queue name", text(row, 1)?)?, counts);
    }
    let mut select = db.prepare_cached("SELECT name FROM windlass_name WHERE paused = 1 ORDER BY name")?;
    let mut rows = select.query([])?;
    let mut paused_tasks = Vec::new();
    while let Some(row) = rows.next()? {
        paused_tasks.push(parse::<TaskName>("task name", text(row, 0)?)?);
    }
    Ok(Counts { queues, paused_tasks, closed: crate::tx::is_closed(db)? })
}

/// Since when the task of a queue waits that is claimed next.
fn first_of(db: &Connection, queue: i64) -> Result<Option<windlass_core::Timestamp>, Fault> {
    let mut first: Option<(i64, i64)> = None;
    any_line(db, queue, |line| {
        let mut select = db.prepare_cached(line.text(
            "SELECT rank, priority FROM windlass_task INDEXED BY windlass_task_ready \
             WHERE state = 1 AND key IS NULL AND queue = ?1 AND ?2 IS NULL AND name = ?3 ORDER BY rank, seq LIMIT 1",
            "SELECT rank, priority FROM windlass_task INDEXED BY windlass_task_keyed \
             WHERE state = 1 AND key IS NOT NULL AND queue = ?1 AND key = ?2 AND name = ?3 ORDER BY rank, seq LIMIT 1",
        ))?;
        for name in line.names(db)? {
            let values = params![queue, line.key_text(), name];
            let candidate: (i64, i64) = select.query_row(values, |row| Ok((row.get(0)?, row.get(1)?)))?;
            if first.is_none_or(|first| candidate.0 < first.0) {
                first = Some(candidate);
            }
        }
        Ok(false)
    })?;
    first.map(|(rank, priority)| Ok(ready_at(rank, priority_of(priority)?))).transpose()
}
