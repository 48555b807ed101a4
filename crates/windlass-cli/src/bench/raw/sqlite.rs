//! What SQLite itself allows: a bare loop that does the least that an honest at-least-once queue must do.
//!
//! The table has the columns that a claim and a settle need, with the same three indices as the store's: by id, ready
//! tasks by queue and rank, running ones by the end of their lease. The pragmas are the store's: WAL,
//! `synchronous=FULL`, the same caches and the same pages between two checkpoints.
//!
//! Enqueue: one transaction for each batch of inserts. Drain, one transaction for each batch:
//! 1. the tasks that were claimed before are settled, each by place and fence: its row is deleted, and its id and result
//!    are inserted into a table of ended tasks, so that somebody can ask for them;
//! 2. the next tasks are claimed in the order of their ranks: state, lease, node, start, fence and attempt are updated,
//!    id, fence and body are read;
//! 3. `COMMIT`, synced.
//!
//! The second loop keeps nothing of what has ended: step 1 only deletes. No product may do that without losing results;
//! it says how much of the limit they cost.
//!
//! Starts: at a steady rate, one task is pushed and then claimed, each in a transaction of its own, as above: these are
//! the two syncs between an enqueue and a start that both survive a loss of power.
//!
//! What none of them does: counts by queue and state, priorities and expiry, retries, pruning, decoding, handlers, more
//! than one thread.

use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use crate::bench::bed;
use crate::bench::stats::Histogram;

/// The pragmas of the store.
const PRAGMAS: &str = "\
PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA cache_size = -16384; \
PRAGMA temp_store = MEMORY; PRAGMA wal_autocheckpoint = 4000; PRAGMA journal_size_limit = 16777216;";

const TABLES: &str = "\
CREATE TABLE task (seq INTEGER PRIMARY KEY, id BLOB NOT NULL, queue INTEGER NOT NULL, state INTEGER NOT NULL, \
    rank INTEGER NOT NULL, lease INTEGER NOT NULL, fence INTEGER NOT NULL, attempt INTEGER NOT NULL, \
    enqueued_at INTEGER NOT NULL, started_at INTEGER, node TEXT, body TEXT NOT NULL) STRICT;
CREATE UNIQUE INDEX task_id ON task (id);
CREATE INDEX task_ready ON task (queue, rank) WHERE state = 1;
CREATE INDEX task_lease ON task (lease) WHERE state = 2;
CREATE TABLE ended (id BLOB PRIMARY KEY, state INTEGER NOT NULL, at INTEGER NOT NULL, result TEXT) STRICT, WITHOUT ROWID;";

/// How a task that has ended is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::bench) enum Ended {
    /// With its result.
    Kept,
    /// Not at all.
    Forgotten,
}

/// A file that is made as the store makes its own.
#[derive(Debug)]
pub(super) struct File(Connection);

impl File {
    /// A new one in this folder.
    pub(super) fn new(folder: &Path) -> rusqlite::Result<Self> {
        let db = Connection::open(folder.join(format!("raw-{:08x}.db", fastrand::u32(..))))?;
        db.execute_batch(PRAGMAS)?;
        db.execute_batch(TABLES)?;
        Ok(Self(db))
    }

    /// Pushes so many tasks with such a body.
    pub(super) fn push(&self, tasks: usize, body: &str, batch: usize) -> rusqlite::Result<()> {
        push(&self.0, tasks, body, batch)
    }

    /// Drains them.
    pub(super) fn drain(&self, batch: usize, ended: Ended) -> rusqlite::Result<()> {
        drain(&self.0, batch, ended)
    }
}

/// From before the push to after the claim of this many tasks, in microseconds, in a fresh file in this folder.
///
/// # Errors
/// Those of SQLite.
pub(super) fn starts(folder: &Path, tasks: usize, body: &str, every: Duration) -> rusqlite::Result<Histogram> {
    let File(db) = File::new(folder)?;
    let mut times = Histogram::default();
    let mut held = Vec::new();
    let mut next = Instant::now();
    for number in 0..tasks {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        next += every;
        let began = Instant::now();
        push_one_batch(&db, number..number + 1, body)?;
        take_turn(&db, &mut held, 1, Ended::Kept)?;
        times.add(began.elapsed().as_micros() as u64);
    }
    Ok(times)
}

fn push(db: &Connection, tasks: usize, body: &str, batch: usize) -> rusqlite::Result<()> {
    let mut pushed = 0;
    while pushed < tasks {
        let end = tasks.min(pushed + batch);
        push_one_batch(db, pushed..end, body)?;
        pushed = end;
    }
    Ok(())
}

fn push_one_batch(db: &Connection, numbers: Range<usize>, body: &str) -> rusqlite::Result<()> {
    db.execute_batch("BEGIN IMMEDIATE")?;
    let mut insert = db.prepare_cached(
        "INSERT INTO task (id, queue, state, rank, lease, fence, attempt, enqueued_at, body) \
         VALUES (?1, 1, 1, ?2, 0, 0, 0, ?3, ?4)",
    )?;
    let now = bed::now().as_micros();
    for number in numbers {
        insert.execute(params![super::id(number), number as i64, now, body])?;
    }
    db.execute_batch("COMMIT")
}

fn drain(db: &Connection, batch: usize, ended: Ended) -> rusqlite::Result<()> {
    let mut held = Vec::with_capacity(batch);
    loop {
        take_turn(db, &mut held, batch, ended)?;
        if held.is_empty() {
            return Ok(());
        }
    }
}

/// A task that is claimed: its place, its fence and its id.
type Held = (i64, i64, [u8; 16]);

/// One transaction: settles what is held, and claims the next.
fn take_turn(db: &Connection, held: &mut Vec<Held>, batch: usize, ended: Ended) -> rusqlite::Result<()> {
    db.execute_batch("BEGIN IMMEDIATE")?;
    let now = bed::now().as_micros();
    let mut delete = db.prepare_cached("DELETE FROM task WHERE seq = ?1 AND fence = ?2 AND state = 2")?;
    let mut keep = db.prepare_cached("INSERT INTO ended (id, state, at, result) VALUES (?1, 4, ?2, 'null')")?;
    for (seq, fence, id) in held.drain(..) {
        if delete.execute([seq, fence])? == 1 && ended == Ended::Kept {
            keep.execute(params![id, now])?;
        }
    }
    let mut claim = db.prepare_cached(
        "UPDATE task SET state = 2, lease = ?1, node = ?2, started_at = ?3, fence = fence + 1, attempt = attempt + 1 \
         WHERE seq IN (SELECT seq FROM task WHERE queue = 1 AND state = 1 ORDER BY rank LIMIT ?4) \
         RETURNING seq, fence, id, body",
    )?;
    let mut rows = claim.query(params![now + 30_000_000, "a-host-4242-k3f9", now, batch as i64])?;
    while let Some(row) = rows.next()? {
        let _: String = row.get(3)?;
        held.push((row.get(0)?, row.get(1)?, row.get(2)?));
    }
    drop(rows);
    db.execute_batch("COMMIT")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_drains_everything_and_keeps_what_it_should() {
        let folder = tempfile::tempdir().unwrap();
        for (ended, kept) in [(Ended::Kept, 25), (Ended::Forgotten, 0)] {
            let file = File::new(folder.path()).unwrap();
            file.push(25, "{}", 10).unwrap();
            file.drain(7, ended).unwrap();
            let count = |table: &str| -> i64 {
                file.0.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0)).unwrap()
            };
            assert_eq!((count("task"), count("ended")), (0, kept));
        }
        assert_eq!(starts(folder.path(), 5, "{}", Duration::from_millis(1)).unwrap().count(), 5);
    }
}
