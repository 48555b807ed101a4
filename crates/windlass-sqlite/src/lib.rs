//! The SQLite store of Windlass: durable tasks in one file, no server, any number of processes.
//!
//! ```text
//! push, claim, settle, ...  -->  writer: one thread, group commit, one sync for all that waited
//! find, list, counts, ...   -->  read: two connections, never in the way of the writer
//! a claim that found nothing -->  wake: rung by the writer of this process, or by the lookout for other processes
//! ```
//!
//! Where to look: `schema` tables and migrations; `open` the path and the threads; `writer`, `tx`, `statements` what a transaction is;
//! `push`, `claim`, `settle`, `flow`, `command`, `tick`, `fleet`, `schedules` one verb each; `read`, `listing`, `info`
//! what people see; `wake` waiting; `file` the file under us; `errors` what SQLite's errors mean.

mod backend;
mod claim;
mod command;
mod errors;
mod file;
mod fleet;
mod flow;
mod info;
mod listing;
mod open;
mod push;
mod read;
mod receipt;
mod rows;
mod schedules;
mod schema;
mod settle;
mod statements;
mod tick;
mod tx;
mod wake;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use windlass_core::time::LeaseGuard;
use windlass_core::view::{Check, Retention};
use windlass_core::{Clock, StoreError};

pub use open::{Durability, Migrations, NetworkFiles, Options};
pub use schema::{Pending, SCHEMA_VERSION};

/// A task store in a file.
#[derive(Debug)]
pub struct SqliteStore {
    writer: writer::Writer,
    readers: read::Readers,
    shared: Arc<Shared>,
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
