//! Opening a store: the path, the file system, the file, its version, the threads.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};
use windlass_core::time::LeaseGuard;
use windlass_core::view::Retention;
use windlass_core::{Clock, StoreError, SystemClock};

use crate::errors::{Fault, free_bytes, read_only};
use crate::file::{self, SameFile};
use crate::read::{READERS, Readers};
use crate::schema::{self, Pending};
use crate::wake::{self, Bell};
use crate::writer::{self, Writer};
use crate::{Shared, SqliteStore, Threads};

/// Statements that stay prepared; every verb together has about 80.
const STATEMENTS: usize = 128;
/// Page caches, in KiB.
const WRITER_CACHE: i64 = 16 * 1024;
const READER_CACHE: i64 = 4 * 1024;
/// The log is copied into the file after this many pages, 16 MiB. Pages that change again and again meanwhile are copied
/// once.
const CHECKPOINT_PAGES: u64 = 4_000;
/// On a small disk it is copied sooner, but never after fewer pages: the log may take an eighth of what is free.
const CHECKPOINT_PAGES_MIN: u64 = 250;
const LOG_SHARE: u64 = 8;
const PAGE_BYTES: u64 = 4_096;
/// What stays of the log's file after it was emptied, in bytes.
const LOG_KEPT: i64 = 16 * 1024 * 1024;

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long ended tasks are kept.
    pub retention: Retention,
    /// The store's time; leases and delays are measured by it.
    pub clock: Arc<dyn Clock>,
    /// How long a write waits for other processes before it is [`StoreError::Busy`]; 5 s.
    pub busy_timeout: Duration,
    /// What a push that returned survives; a power loss.
    pub durability: Durability,
    /// Whether the file may be on another machine; refused.
    pub network_files: NetworkFiles,
    /// Whether an older file is brought up to date; it is.
    pub migrations: Migrations,
    /// The file does not grow over this size, in bytes: a push is then [`StoreError::NoSpace`]. No limit.
    pub size_max: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            clock: Arc::new(SystemClock),
            busy_timeout: Duration::from_secs(5),
            durability: Durability::default(),
            network_files: NetworkFiles::default(),
            migrations: Migrations::default(),
            size_max: None,
        }
    }
}

/// What a push that returned survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// The loss of power: each group commit is synced.
    #[default]
    PowerLoss,
    /// The end of this process, however it ends. After a loss of power the last seconds may be missing.
    ProcessCrash,
}

impl Durability {
    fn synchronous(self) -> &'static str {
        match self {
            Self::PowerLoss => "FULL",
            Self::ProcessCrash => "NORMAL",
        }
    }

    /// In words, for `doctor`.
    pub(crate) fn in_words(self) -> &'static str {
        match self {
            Self::PowerLoss => "survives power loss: WAL, synchronous=FULL",
            Self::ProcessCrash => {
                "survives the end of the process, not a power loss: WAL, synchronous=NORMAL; the last seconds may be missing"
            }
        }
    }
}

/// Whether the file may be on another machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkFiles {
    /// The store is not opened.
    #[default]
    Refuse,
    /// The caller knows that locks and shared memory work there, and that one machine alone uses the file.
    Accept,
}

/// Whether an older file is brought up to date when it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Migrations {
    /// At once.
    #[default]
    Apply,
    /// The store is not opened; somebody runs [`SqliteStore::migrate`] first.
    Refuse,
}

impl SqliteStore {
    /// Opens the store in a file, and creates the file when there is none. Blocks for some milliseconds.
    ///
    /// Any number of processes may use the file at once. The store has threads of its own: one writes, two read, one
    /// looks for what other processes commit.
    ///
    /// # Errors
    /// [`StoreError::Broken`] when the path cannot hold a store: a directory, a missing folder, a network file system,
    /// a read-only or damaged file, a newer schema. [`StoreError::Busy`] when another process holds the file for longer
    /// than the timeout, [`StoreError::NoSpace`] when the disk is full.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use windlass_sqlite::{Options, SqliteStore};
    /// let folder = tempfile::tempdir()?;
    /// let store = SqliteStore::open(folder.path().join("tasks.db"), Options::default())?;
    /// # Ok(()) }
    /// ```
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Self, StoreError> {
        let path = path_of(path.as_ref(), options.network_files)?;
        let in_words = |fault: Fault| fault.into_store_error(&path);
        let mut db = connect(&path, &options).map_err(in_words)?;
        let pending = schema::pending(schema::version(&db).map_err(in_words)?, &path)?;
        if !pending.steps.is_empty() {
            // A file without tables is new: nobody's data is migrated.
            if options.migrations == Migrations::Refuse && pending.version > 0 {
                return Err(StoreError::Broken(format!(
                    "`{}` has schema version {}, this program needs version {}; run `windlass migrate` while no other process uses it",
                    path.display(),
                    pending.version,
                    schema::SCHEMA_VERSION
                )));
            }
            schema::migrate(&mut db, &path).map_err(in_words)?;
        }
        if let Some(size_max) = options.size_max {
            limit_size(&db, size_max).map_err(in_words)?;
        }
        let shared = Arc::new(Shared {
            file: SameFile::at(&path)?,
            clock: options.clock,
            leases: LeaseGuard::default(),
            retention: options.retention,
            busy_timeout: options.busy_timeout,
            durability: options.durability,
            bell: Arc::new(Bell::default()),
            path: path.clone(),
        });
        let reader = || read_connection(&path).map_err(in_words);
        let readers = (0..READERS).map(|_| reader()).collect::<Result<_, _>>()?;
        let lookout = reader()?;
        let (alive, threads) = Threads::new();
        let store = Self {
            writer: Writer::start(db, Arc::clone(&shared), alive.clone())?,
            readers: Readers::start(readers, Arc::clone(&shared), &alive)?,
            shared: Arc::clone(&shared),
            _threads: threads,
        };
        wake::start_lookout(lookout, shared, alive)?;
        Ok(store)
    }

    /// What is left to do before this program can use a file; changes nothing.
    ///
    /// # Errors
    /// As [`SqliteStore::open`]; a missing file has everything left to do and is not created.
    pub fn pending(path: impl AsRef<Path>) -> Result<Pending, StoreError> {
        let path = path.as_ref();
        if !path.exists() {
            return schema::pending(0, path);
        }
        let look = || -> Result<u32, Fault> { schema::version(&read_connection(path)?) };
        schema::pending(look().map_err(|fault| fault.into_store_error(path))?, path)
    }

    /// Brings a file up to date, one transaction for each step, and answers how many steps that were.
    ///
    /// # Errors
    /// As [`SqliteStore::open`].
    pub fn migrate(path: impl AsRef<Path>) -> Result<usize, StoreError> {
        let options = Options::default();
        let path = path_of(path.as_ref(), options.network_files)?;
        let migrate = || -> Result<usize, Fault> { schema::migrate(&mut connect(&path, &options)?, &path) };
        migrate().map_err(|fault| fault.into_store_error(&path))
    }
}

/// The path from the root, of a file that exists; a later change of the working directory must not matter.
fn path_of(path: &Path, network_files: NetworkFiles) -> Result<PathBuf, StoreError> {
    file::create(path)?;
    if network_files == NetworkFiles::Refuse {
        file::refuse_network(path)?;
    }
    path.canonicalize()
        .map_err(|error| StoreError::Broken(format!("`{}` cannot be found ({error}); check the path", path.display())))
}

/// The connection that writes.
fn connect(path: &Path, options: &Options) -> Result<Connection, Fault> {
    #[allow(unused_mut, reason = "the oldest rusqlite that we accept sets a busy handler through a shared reference")]
    let mut db =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    writer::be_patient_for(options.busy_timeout);
    db.busy_handler(Some(writer::wait_for_the_file as fn(i32) -> bool))?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    // Otherwise a statement that a partial index serves is planned anew whenever it is bound to other values: 5 % of a drain.
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    if db.is_readonly("main")? {
        return Err(Fault::Store(read_only(path)));
    }
    patiently(options.busy_timeout, || set_up(&db))?;
    let checkpoint_pages = free_bytes(path)
        .map_or(CHECKPOINT_PAGES, |free| (free / LOG_SHARE / PAGE_BYTES).clamp(CHECKPOINT_PAGES_MIN, CHECKPOINT_PAGES));
    db.execute_batch(&format!(
        "PRAGMA synchronous = {}; PRAGMA cache_size = -{WRITER_CACHE}; PRAGMA temp_store = MEMORY; \
         PRAGMA wal_autocheckpoint = {checkpoint_pages}; PRAGMA journal_size_limit = {LOG_KEPT}; \
         PRAGMA trusted_schema = OFF; PRAGMA cell_size_check = ON;",
        options.durability.synchronous()
    ))?;
    Ok(db)
}

/// What stays in the file: how it gives space back, which is fixed by its first page, and the log.
fn set_up(db: &Connection) -> Result<(), Fault> {
    let pages: i64 = db.query_row("PRAGMA page_count", [], |row| row.get(0))?;
    if pages == 0 {
        db.execute_batch("PRAGMA auto_vacuum = INCREMENTAL")?;
    }
    let mode: String = db.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(Fault::Store(StoreError::Broken(format!(
            "SQLite cannot keep a log beside this file (it stays in mode `{mode}`); put it on a local disk"
        ))));
    }
    Ok(())
}

/// Changing the journal's mode answers "busy" at once, without asking the busy handler.
fn patiently<T>(timeout: Duration, mut attempt: impl FnMut() -> Result<T, Fault>) -> Result<T, Fault> {
    let began = Instant::now();
    loop {
        match attempt() {
            Err(Fault::Sql(rusqlite::Error::SqliteFailure(failure, _)))
                if failure.code == rusqlite::ErrorCode::DatabaseBusy && began.elapsed() < timeout =>
            {
                std::thread::sleep(Duration::from_millis(1));
            }
            outcome => return outcome,
        }
    }
}

/// A connection that reads.
fn read_connection(path: &Path) -> Result<Connection, Fault> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(Duration::from_secs(5))?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    db.set_prepared_statement_cache_capacity(STATEMENTS);
    db.execute_batch(&format!(
        "PRAGMA query_only = ON; PRAGMA cache_size = -{READER_CACHE}; PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF;"
    ))?;
    Ok(db)
}

fn limit_size(db: &Connection, size_max: u64) -> Result<(), Fault> {
    let page: u64 = db.query_row("PRAGMA page_size", [], |row| row.get::<_, i64>(0))?.unsigned_abs();
    let pages = (size_max / page.max(1)).max(1);
    db.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))?;
    Ok(())
}
