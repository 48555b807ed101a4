//! The outbox in a SQLite file: for applications whose tasks are in a store elsewhere. See [`windlass_core::outbox`] for what it
//! promises.
//!
//! Nothing is locked while a batch is on its way: two relays of one file would push the same rows, which the store takes once.
//! One relay is enough.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior, params};
use tokio::time::Instant;
use windlass_core::backend::Push;
use windlass_core::outbox::{Outbox, Row, TAKE_BYTES_MAX, TAKE_ROWS_MAX, Taken, queue_of, to_text};
use windlass_core::{Clock, QueueName, StoreError, SystemClock, Timestamp};

use crate::errors::Fault;
use crate::file;
use crate::log_watch::{Heard, LogWatch, Waker};

/// Makes the table; for the migrations of the application. To run it again changes nothing.
pub const SQL: &str = include_str!("outbox.sql");

/// How long a settle waits for others that write.
const BUSY_MAX: Duration = Duration::from_secs(5);
/// Between two looks where the kernel does not tell of writes.
const LOOK: Duration = Duration::from_millis(20);
/// After a write: so many looks, this far apart.
const LOOKS_SOON: u32 = 5;
const LOOK_SOON: Duration = Duration::from_millis(2);

/// Writes a push into the outbox, in the caller's transaction: it goes to the store when that commits, and never was when it
/// rolls back.
///
/// # Errors
/// [`StoreError::Rejected`] when a limit is broken, [`StoreError::Broken`] when the table is missing: run [`SQL`] once.
pub fn push_in(transaction: &Transaction<'_>, push: &Push) -> Result<(), StoreError> {
    let (queue, text) = (queue_of(push), to_text(push)?);
    let insert = "INSERT INTO windlass_outbox (written_at, queue, push) VALUES (?1, ?2, ?3)";
    let now = SystemClock.now().as_micros();
    let written = transaction.execute(insert, params![now, queue.as_str(), text]).map(drop);
    let path = PathBuf::from(transaction.path().unwrap_or("the database"));
    written.map_err(|error| explained(error, &path))
}

/// The outbox of an application, for a [`Relay`](windlass_core::outbox::Relay).
#[derive(Debug)]
pub struct SqliteOutbox(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    db: Mutex<Db>,
    log: Mutex<LogWatch>,
    waker: Waker,
}

#[derive(Debug)]
struct Db {
    connection: Connection,
    /// What `PRAGMA data_version` said before the last take.
    seen: i64,
}

impl SqliteOutbox {
    /// The outbox in this file, which must exist.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be opened.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        let path = path.as_ref().to_owned();
        let open = || -> rusqlite::Result<Connection> {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&path, flags)?;
            connection.busy_timeout(BUSY_MAX)?;
            Ok(connection)
        };
        let connection = open().map_err(|error| explained(error, &path))?;
        let log = Mutex::new(LogWatch::of(&file::wal_of(&path)));
        let db = Mutex::new(Db { connection, seen: 0 });
        Ok(Self(Arc::new(Shared { path, db, log, waker: Waker::new() })))
    }
}

impl Drop for SqliteOutbox {
    fn drop(&mut self) {
        self.0.waker.wake();
    }
}

impl Shared {
    fn take(&self, except: &[QueueName]) -> rusqlite::Result<Vec<Row>> {
        let mut db = self.db.lock();
        db.seen = data_version(&db.connection)?;
        let now = SystemClock.now();
        let except: Vec<&str> = except.iter().map(QueueName::as_str).collect();
        let mut select = db.connection.prepare_cached(
            "SELECT place, written_at, push FROM windlass_outbox WHERE refused IS NULL \
             AND queue NOT IN (SELECT value FROM json_each(?1)) ORDER BY place LIMIT ?2",
        )?;
        let found = select.query_map(params![serde_json::json!(except).to_string(), TAKE_ROWS_MAX as i64], |row| {
            let age = now.since(Timestamp::from_micros(row.get(1)?));
            Ok(Row { place: row.get(0)?, age, text: row.get(2)? })
        })?;
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for row in found {
            let row = row?;
            bytes += row.text.len();
            if !rows.is_empty() && bytes > TAKE_BYTES_MAX {
                break;
            }
            rows.push(row);
        }
        Ok(rows)
    }

    fn settle(&self, moved: &[i64], refused: &[(i64, String)]) -> rusqlite::Result<()> {
        let mut db = self.db.lock();
        let transaction = db.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for place in moved {
            transaction.prepare_cached("DELETE FROM windlass_outbox WHERE place = ?1")?.execute([place])?;
        }
        for (place, why) in refused {
            let mut aside = transaction.prepare_cached("UPDATE windlass_outbox SET refused = ?2 WHERE place = ?1")?;
            aside.execute(params![place, why])?;
        }
        transaction.commit()
    }

    /// Waits until another connection has written; by the clock alone when the file cannot be asked.
    fn until_written(&self, until: Instant) {
        // A commit can be seen a moment after it was written into the log.
        let mut looks = 0;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let unchanged = {
                let db = self.db.lock();
                data_version(&db.connection).is_ok_and(|version| version == db.seen)
            };
            if left.is_zero() || !unchanged {
                return;
            }
            if looks > 0 {
                looks -= 1;
                std::thread::sleep(LOOK_SOON.min(left));
                continue;
            }
            match self.log.lock().sleep(left, &self.waker) {
                Heard::Something => looks = LOOKS_SOON,
                Heard::Nothing => {}
                Heard::Deaf => std::thread::sleep(LOOK.min(left)),
            }
        }
    }
}

fn data_version(db: &Connection) -> rusqlite::Result<i64> {
    db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
}

fn explained(error: rusqlite::Error, path: &Path) -> StoreError {
    match &error {
        rusqlite::Error::SqliteFailure(_, Some(said)) if said.contains("no such table: windlass_outbox") => {
            StoreError::Broken(format!(
                "`{}` has no table windlass_outbox; the application makes it with the SQL of its driver",
                path.display()
            ))
        }
        _ => Fault::Sql(error).into_store_error(path),
    }
}

async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| StoreError::Broken(format!("the outbox cannot be read: {error}")))
}

#[async_trait]
impl Outbox for SqliteOutbox {
    async fn take(&self, except: &[QueueName]) -> Result<Option<Box<dyn Taken>>, StoreError> {
        let (shared, except) = (Arc::clone(&self.0), except.to_vec());
        let taken = apart(move || shared.take(&except)).await?;
        let rows = taken.map_err(|error| explained(error, &self.0.path))?;
        if rows.is_empty() {
            return Ok(None);
        }
        Ok(Some(Box::new(Batch { rows, shared: Arc::clone(&self.0) })))
    }

    async fn written(&self, wait: Duration) {
        let (shared, until) = (Arc::clone(&self.0), Instant::now() + wait);
        // It fails when it is cancelled with its runtime.
        let _ = apart(move || shared.until_written(until)).await;
    }
}

/// Rows that were read.
struct Batch {
    rows: Vec<Row>,
    shared: Arc<Shared>,
}

#[async_trait]
impl Taken for Batch {
    fn rows(&self) -> &[Row] {
        &self.rows
    }

    async fn settle(self: Box<Self>, moved: &[i64], refused: &[(i64, String)]) -> Result<(), StoreError> {
        let (shared, moved, refused) = (Arc::clone(&self.shared), moved.to_vec(), refused.to_vec());
        if moved.is_empty() && refused.is_empty() {
            return Ok(());
        }
        let settled = apart(move || shared.settle(&moved, &refused)).await?;
        settled.map_err(|error| explained(error, &self.shared.path))
    }
}
