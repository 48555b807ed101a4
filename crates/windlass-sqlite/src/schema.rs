//! The tables, their versions, and the way from one version to the next.
//!
//! Every name starts with `windlass_`: an application may keep its own tables in the same file.
//!
//! One table holds all tasks, living and ended. Tables apart were measured (claim and settle of one no-op task, 2.5 GHz):
//! 4.6 us with a table of ended tasks, 3.7 us with one table and partial indices, because a settle then changes one row
//! in place instead of deleting four index entries and writing four others. What keeps the hot index small is its
//! condition: `ready` holds ready tasks without a key only.
//!
//! The columns `at` and `rank` mean what the state needs:
//!
//! | state | `at` | index |
//! |---|---|---|
//! | 0 scheduled | due | `moment` |
//! | 1 ready | - | `ready`: by queue, name and rank; paused names are never walked over. With a key: `keyed`, by queue, key, name and rank |
//! | 2 running | the lease ends | `moment` |
//! | 3 parked | parked since | `moment` |
//! | 4 succeeded, 5 dead, 6 cancelled, 7 expired | ended | `moment`: pruning walks it from the old end; `forget` when the task says itself how long it is kept |
//!
//! SQLite uses a partial index only for a query that repeats its condition, word for word: hence the
//! `state <> 1 AND forget_at IS NULL` beside `state = 2`, and `INDEXED BY`, which makes a mistake an error, not a scan.
//!
//! `rank` orders ready tasks ([`windlass_core::state::rank`]); since it is priority and time in one number, the time a
//! task became ready is computed from it ([`crate::rows::ready_at`]) and not stored.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};
use windlass_core::StoreError;

use crate::errors::Fault;

/// The version that this program writes and reads.
pub const SCHEMA_VERSION: u32 = 2;

/// One step from a version to the next, applied in one transaction.
struct Migration {
    /// What it does, for `pending`.
    what: &'static str,
    sql: &'static str,
}

/// `MIGRATIONS[n]` leads from version n to n + 1. Published ones never change.
const MIGRATIONS: [Migration; SCHEMA_VERSION as usize] = [
    Migration { what: "create the tables", sql: CREATE },
    Migration { what: "add limits, turns of keys, memos and notes", sql: ADD_LIMITS_AND_NOTES },
];

const CREATE: &str = "
CREATE TABLE windlass_meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO windlass_meta VALUES ('version', 1), ('next_seq', 1), ('ended_kept', 0);

-- Queues and names: numbers in the task table, text here. `scheduled` to `expired` are the maintained counts.
CREATE TABLE windlass_queue (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    paused INTEGER NOT NULL DEFAULT 0,
    used INTEGER NOT NULL DEFAULT 0,
    scheduled INTEGER NOT NULL DEFAULT 0, ready INTEGER NOT NULL DEFAULT 0, running INTEGER NOT NULL DEFAULT 0,
    parked INTEGER NOT NULL DEFAULT 0, succeeded INTEGER NOT NULL DEFAULT 0, dead INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0, expired INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX windlass_queue_paused ON windlass_queue (id) WHERE paused = 1;
CREATE TABLE windlass_name (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, paused INTEGER NOT NULL DEFAULT 0) STRICT;
CREATE INDEX windlass_name_paused ON windlass_name (id) WHERE paused = 1;

CREATE TABLE windlass_task (
    seq INTEGER PRIMARY KEY,      -- the order of insertion; never used twice
    id ANY NOT NULL,              -- 16 bytes of a UUID, or text
    queue INTEGER NOT NULL,
    name INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    state INTEGER NOT NULL,
    at INTEGER NOT NULL,          -- microseconds since 1970, as every time here
    rank INTEGER NOT NULL,
    fence INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    crashes INTEGER NOT NULL,
    enqueued_at INTEGER NOT NULL,
    started_at INTEGER,
    node INTEGER,
    cancel INTEGER NOT NULL,      -- 1: somebody asked to cancel it while it runs
    has_flow INTEGER NOT NULL,    -- 1: the body says what follows
    expires INTEGER,
    keep INTEGER,                 -- microseconds that the result is kept, when the task says so
    forget_at INTEGER,            -- when an ended task with `keep` goes
    guard TEXT,                   -- the unique key that it gives back when it ends
    key TEXT,
    workflow ANY,
    reason INTEGER,
    skipped TEXT,
    progress TEXT,
    failure TEXT,
    history TEXT,
    result TEXT,
    body TEXT                     -- NULL: in windlass_large
) STRICT;
CREATE UNIQUE INDEX windlass_task_id ON windlass_task (id);
CREATE INDEX windlass_task_ready ON windlass_task (queue, name, rank) WHERE state = 1;
CREATE INDEX windlass_task_moment ON windlass_task (state, at) WHERE state <> 1 AND forget_at IS NULL;
CREATE INDEX windlass_task_parked ON windlass_task (name) WHERE state = 3;
CREATE INDEX windlass_task_cancel ON windlass_task (node) WHERE cancel = 1;
CREATE INDEX windlass_task_expires ON windlass_task (expires) WHERE expires IS NOT NULL AND state IN (0, 1, 3);
CREATE INDEX windlass_task_forget ON windlass_task (forget_at) WHERE forget_at IS NOT NULL;
CREATE INDEX windlass_task_key ON windlass_task (key) WHERE key IS NOT NULL;
CREATE INDEX windlass_task_workflow ON windlass_task (workflow) WHERE workflow IS NOT NULL;

-- Bodies that would fill pages: a claim, a renewal and a settle rewrite a task's row, and should not rewrite these.
CREATE TABLE windlass_large (seq INTEGER PRIMARY KEY, body TEXT NOT NULL) STRICT;

CREATE TABLE windlass_taken (key TEXT PRIMARY KEY, id ANY NOT NULL, until INTEGER) STRICT, WITHOUT ROWID;
CREATE INDEX windlass_taken_until ON windlass_taken (until) WHERE until IS NOT NULL;

CREATE TABLE windlass_group (
    number INTEGER PRIMARY KEY,
    id ANY NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    policy TEXT NOT NULL,
    after TEXT NOT NULL,
    succeeded INTEGER NOT NULL DEFAULT 0,
    failed INTEGER NOT NULL DEFAULT 0,
    completed INTEGER NOT NULL DEFAULT 0,
    broken INTEGER NOT NULL DEFAULT 0,
    touched_at INTEGER NOT NULL
) STRICT;
CREATE INDEX windlass_group_touched ON windlass_group (touched_at);
CREATE TABLE windlass_arrival (
    number INTEGER NOT NULL,
    place INTEGER NOT NULL,
    succeeded INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    PRIMARY KEY (number, place)
) STRICT, WITHOUT ROWID;

CREATE TABLE windlass_schedule (
    id TEXT PRIMARY KEY,
    definition TEXT NOT NULL,
    next INTEGER,
    paused INTEGER NOT NULL DEFAULT 0,
    last_fired_at INTEGER,
    last_task ANY,
    fired INTEGER NOT NULL DEFAULT 0,
    missed INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- Every node that ever beat or claimed; `info` is what it said last.
CREATE TABLE windlass_node (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    info TEXT,
    beat_at INTEGER NOT NULL,
    alive_until INTEGER NOT NULL
) STRICT;
CREATE INDEX windlass_node_beat ON windlass_node (beat_at);
CREATE TABLE windlass_order (number INTEGER PRIMARY KEY, node TEXT NOT NULL, what TEXT NOT NULL, slots INTEGER) STRICT;
CREATE INDEX windlass_order_node ON windlass_order (node);
";

const ADD_LIMITS_AND_NOTES: &str = "
ALTER TABLE windlass_task ADD COLUMN memo TEXT;       -- lines that only grow
ALTER TABLE windlass_task ADD COLUMN waits_for TEXT;  -- the signal that a scheduled task waits for

-- Tasks with a key have an index of their own, so that a queue without keys costs what it always did.
DROP INDEX windlass_task_ready;
CREATE INDEX windlass_task_ready ON windlass_task (queue, name, rank) WHERE state = 1 AND key IS NULL;
CREATE INDEX windlass_task_keyed ON windlass_task (queue, key, name, rank) WHERE state = 1 AND key IS NOT NULL;

-- Whose turn it is among the keys of a queue (NULL: tasks without a key), and how much is left of it.
ALTER TABLE windlass_queue ADD COLUMN turn_key TEXT;
ALTER TABLE windlass_queue ADD COLUMN turn_left INTEGER NOT NULL DEFAULT 0;

-- 1: given back by the first claim of its task.
ALTER TABLE windlass_taken ADD COLUMN until_started INTEGER NOT NULL DEFAULT 0;

-- Rules as JSON; what is counted at gates, and until when they are held. `limits` rises with every change of a rule or a
-- hold: who has read them asks for this number only.
CREATE TABLE windlass_limit (subject TEXT PRIMARY KEY, rule TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE windlass_gate (gate TEXT PRIMARY KEY, next INTEGER, hold INTEGER) STRICT, WITHOUT ROWID;
CREATE INDEX windlass_gate_hold ON windlass_gate (hold) WHERE hold IS NOT NULL;

CREATE TABLE windlass_note (
    space TEXT NOT NULL,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    version INTEGER NOT NULL,
    expires INTEGER NOT NULL,
    PRIMARY KEY (space, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX windlass_note_expires ON windlass_note (expires);
INSERT INTO windlass_meta VALUES ('limits', 0), ('note_version', 0);
";

/// The migrations that a file needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The version of the file; 0 when it has none of our tables, or does not exist.
    pub version: u32,
    /// What is to be done, in this order, in words.
    pub steps: Vec<&'static str>,
}

/// The version of the open file; 0 when it has none of our tables.
///
/// # Errors
/// Those of SQLite.
pub(crate) fn version(db: &Connection) -> Result<u32, Fault> {
    let mut known = db.prepare_cached("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'windlass_meta'")?;
    if !known.exists([])? {
        return Ok(0);
    }
    let mut select = db.prepare_cached("SELECT value FROM windlass_meta WHERE key = 'version'")?;
    let version: Option<i64> = select.query_row([], |row| row.get(0)).optional()?;
    match version.map(u32::try_from) {
        Some(Ok(version)) => Ok(version),
        Some(Err(_)) | None => Err(Fault::damaged("schema version", "it is missing or not a number")),
    }
}

/// What is left to do for a file of this version.
///
/// # Errors
/// [`StoreError::Broken`] when a newer program wrote it.
pub(crate) fn pending(version: u32, path: &Path) -> Result<Pending, StoreError> {
    if version > SCHEMA_VERSION {
        return Err(StoreError::Broken(format!(
            "`{}` has schema version {version}, this program knows versions up to {SCHEMA_VERSION}; \
             upgrade this program, or use another file",
            path.display()
        )));
    }
    Ok(Pending { version, steps: MIGRATIONS[version as usize..].iter().map(|migration| migration.what).collect() })
}

/// Applies what is left to do, one transaction for each step, and answers how many steps that were. Another process may
/// do the same at the same time.
///
/// # Errors
/// Those of SQLite, and [`StoreError::Broken`] when a newer program wrote the file.
pub(crate) fn migrate(db: &mut Connection, path: &Path) -> Result<usize, Fault> {
    let mut steps_done = 0;
    loop {
        let step = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let version = version(&step)?;
        if pending(version, path)?.steps.is_empty() {
            return Ok(steps_done);
        }
        step.execute_batch(MIGRATIONS[version as usize].sql)?;
        step.execute("UPDATE windlass_meta SET value = ?1 WHERE key = 'version'", [version + 1])?;
        step.commit()?;
        steps_done += 1;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rusqlite::params;
    use windlass_core::backend::{Backend, Demand, Push, Pushed};
    use windlass_core::{Args, Envelope, Key, NodeId, QueueName, TaskName, Unique, UniqueKey};

    use super::*;
    use crate::{Options, SqliteStore};

    fn demand(max: usize) -> Demand {
        Demand {
            node: NodeId::known("node-1"),
            queues: vec![QueueName::default()],
            max,
            lease: Duration::from_secs(30),
            except: Vec::new(),
            wait: Duration::ZERO,
            hush: tokio_util::sync::CancellationToken::new(),
        }
    }

    /// A file of version 1 with these tasks: rows as that version wrote them.
    fn old_file(file: &Path, tasks: &[Envelope]) {
        let db = Connection::open(file).expect("a new file");
        db.execute_batch(CREATE).expect("the tables");
        db.execute_batch("INSERT INTO windlass_queue (name, ready) VALUES ('default', 2)").expect("a queue");
        db.execute_batch("INSERT INTO windlass_name (name) VALUES ('work')").expect("a name");
        for (task, seq) in tasks.iter().zip(1..) {
            let unique = task.unique.as_ref().map(|unique| unique.key.as_str());
            let values =
                params![seq, crate::rows::Id(&task.id), task.key.as_ref().map(Key::as_str), unique, task.to_body()];
            db.execute(
                "INSERT INTO windlass_task (seq, id, queue, name, priority, state, at, rank, fence, attempt, crashes, \
                 enqueued_at, cancel, has_flow, key, guard, body) \
                 VALUES (?1, ?2, 1, 1, 5, 1, 0, ?1, 0, 0, 0, 0, 0, 0, ?3, ?4, ?5)",
                values,
            )
            .expect("a task");
            if let Some(unique) = unique {
                db.execute(
                    "INSERT INTO windlass_taken VALUES (?1, ?2, NULL)",
                    params![unique, crate::rows::Id(&task.id)],
                )
                .expect("a key");
            }
            db.execute("UPDATE windlass_meta SET value = ?1 WHERE key = 'next_seq'", [seq + 1]).expect("counted");
        }
    }

    #[tokio::test]
    async fn a_file_of_version_1_goes_on_as_it_is() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("tasks.db");
        let task = || Envelope::new(TaskName::known("work"), QueueName::default(), Args::none());
        let keyed = Envelope { key: Some(Key::known("acme")), ..task() };
        let unique = Envelope { unique: Some(Unique::new(UniqueKey::known("one"))), ..task() };
        old_file(&file, &[keyed.clone(), unique.clone()]);
        let store = SqliteStore::open(&file, Options::default()).expect("it is brought up to date");
        let again = Push { envelopes: vec![Envelope { id: task().id, ..unique.clone() }], groups: Vec::new() };
        assert_eq!(store.push(&again).await.expect("pushed"), [Pushed::Exists(unique.id.clone())]);
        let claims = store.claim(&demand(10)).await.expect("claimed");
        let mut ids: Vec<String> = claims.iter().map(|claim| claim.receipt.id.to_string()).collect();
        let mut expected = [keyed.id.to_string(), unique.id.to_string()];
        ids.sort();
        expected.sort();
        assert_eq!(ids, expected);
        assert_eq!(
            store.push(&again).await.expect("pushed"),
            [Pushed::Exists(unique.id)],
            "it holds its key to the end"
        );
    }
}
