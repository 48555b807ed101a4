//! The SQLite store of Windlass: durable tasks in one file, no server, any number of processes.
//!
//! ```text
//! push, claim, settle, ...  -->  writer: one thread, group commit, one sync for all that waited
//! find, list, counts, ...   -->  read: two connections, never in the way of the writer
//! a claim that found nothing -->  wake: rung by the writer of this process, or by the lookout for other processes
//! ```
//!
//! Where to look: `schema` tables and migrations; `open` the path and the threads; `writer`, `tx`, `statements` what a transaction is;
//! `push`, `claim`, `adopt`, `settle`, `flow`, `command`, `tick`, `fleet`, `schedules`, `notes`, `transfer` one verb each; `line`, `turns`,
//! `limits` which tasks a claim may take; `read`, `listing`, `info` what people see; `join` pushes and completes in a transaction
//! of yours; [`outbox`] is for tasks that go to another store; `wake` waiting, `log_watch` what the kernel tells of others; `file` the file under us; `errors` what SQLite's errors mean.
//!
//! # What was measured
//!
//! No-op tasks with a small body, `synchronous=FULL`, one process, two cores at 2.5 GHz that did other things as well;
//! median (range) of ten runs, limit and store in turn. The limit is a bare table (id, queue, rank, lease, body) in which
//! claims are updated and acknowledged tasks deleted, both in one commit; this store keeps what has ended.
//!
//! | batch | limit, tasks/s | claim and settle, one lane | two lanes |
//! |---|---|---|---|
//! | 100 | 34 k (19 k to 212 k) | 55 k (35 k to 110 k) | 73 k (40 k to 125 k) |
//! | 1000 | 245 k (155 k to 425 k) | 122 k (109 k to 180 k) | 168 k (106 k to 200 k) |
//!
//! At batch 100 the sync decides, which took 0.3 to 3.5 ms from one minute to the next; at 1000 it is the CPU for a
//! task, a quarter more with a full history, when each end removes an older one. Tried and not kept: `RETURNING` for each
//! row (+1.7 us), pages of 8 KiB (+15 % CPU), settles as one statement over a JSON list (no gain), rows that do not grow
//! when they are claimed (no gain), a table apart for what has ended (+0.9 us). Since that table a claim reads its batch
//! with one statement and changes it with another, and no statement is planned twice: `windlass bench drain` showed 63 %
//! of SQLite's own limit with equal batches (it was 54 % with 256 slots, 59 % with 1000).
//!
//! From push to start: 0.5 ms in the middle and 1.4 ms at p99 within one process; from another process 1.6 ms in the
//! middle. A claim that is alone in its transaction is not synced (`writer::OnDisk`): only the push is waited for. A worker
//! that waits and has nothing to do: 0.05 % of a core. A backlog of a million is drained as fast as one of sixty thousand.

mod adopt;
mod backend;
mod claim;
mod command;
mod errors;
mod file;
mod fleet;
mod flow;
mod info;
mod join;
mod limits;
mod line;
mod listing;
mod log_watch;
mod notes;
mod open;
pub mod outbox;
mod push;
mod read;
mod receipt;
mod rows;
mod schedules;
mod schema;
mod settle;
mod statements;
mod tick;
mod transfer;
mod turns;
mod tx;
mod wake;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;
use windlass_core::time::LeaseGuard;
use windlass_core::view::{Check, Retention};
use windlass_core::{Clock, StoreError};

pub use join::{CompleteInError, complete_in, push_in};
pub use open::{Durability, Migrations, NetworkFiles, Options};
pub use schema::{Pending, SCHEMA_VERSION};

/// A task store in a file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: writer::Writer,
    readers: read::Readers,
    shared: Arc<Shared>,
    // Last: the threads end when the channels above are gone, and then this waits for them.
    _threads: Threads,
}

/// The threads of a store. Dropping it waits for them, so that each closes its connection: the last connection to a file
/// writes its log back and removes it. A process that ended before would leave the newest tasks in the log, and a copy of
/// the file alone would lack them.
#[derive(Debug)]
struct Threads(Mutex<Receiver<Never>>);

/// Nothing is ever sent: that all senders are gone is the message.
#[derive(Debug)]
enum Never {}

/// Held by a thread for as long as it runs.
#[derive(Debug, Clone)]
struct Alive(#[allow(dead_code, reason = "its drop is the message")] SyncSender<Never>);

impl Threads {
    /// A thread that a change keeps busy is not waited for longer than this.
    const CLOSE_WITHIN: Duration = Duration::from_secs(2);

    fn new() -> (Alive, Self) {
        let (alive, gone) = sync_channel(0);
        (Alive(alive), Self(Mutex::new(gone)))
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // Either way there is nothing more to do: a log that stays is read by whoever opens the file next.
        let _ = self.0.lock().recv_timeout(Self::CLOSE_WITHIN);
    }
}

/// What all threads of a store know.
#[derive(Debug)]
struct Shared {
    path: PathBuf,
    file: file::SameFile,
    clock: Arc<dyn Clock>,
    leases: LeaseGuard,
    retention: Retention,
    busy_timeout: Duration,
    durability: Durability,
    bell: Arc<wake::Bell>,
}

impl SqliteStore {
    /// The file, from the root.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Reads the whole file and says whether it is sound: for `doctor`. Takes about a second for each gigabyte.
    ///
    /// # Errors
    /// [`StoreError::Broken`] when the file is gone or too damaged to be read.
    pub async fn soundness(&self) -> Result<Check, StoreError> {
        self.readers.read(info::soundness).await
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.shared.bell.close();
    }
}
