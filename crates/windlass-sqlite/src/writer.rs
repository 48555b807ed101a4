//! The one thread of a process that writes: group commit.
//!
//! 1. wait for a job, take everything else that waits   2. `BEGIN IMMEDIATE`   3. apply the jobs in their order
//! 4. write the counts, `COMMIT` (one sync for all)   5. answer   6. let other processes in
//!
//! A job validates before it writes and may run twice: when one fails, the transaction is rolled back and every job runs
//! in a transaction of its own, so that a bad one cannot fail others. A worker's settle and its next claim wait together
//! and share one commit.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{mpsc, oneshot};
use tracing::{error, warn};
use windlass_core::StoreError;

use crate::Durability;
use crate::errors::Fault;
use crate::statements::Statements;
use crate::tx::{Memory, Tx};
use crate::{Alive, Shared, file, schema, tick};

/// Jobs that wait for the thread; further callers wait for a place.
const QUEUE_MAX: usize = 1_024;
/// The most jobs in one transaction.
const JOBS_MAX: usize = 512;
/// No further job joins a transaction that changes this many rows: about 50 ms, the time that another process may have
/// to wait for the file.
const ROWS_MAX: usize = 10_000;

/// A process that commits without a gap can keep every other from writing: SQLite has no queue for its lock, a waiting
/// process looks now and then, and the lock is taken again before it looks. So a process that has left no gap for this
/// long makes one, in which everybody who waits looks at least once. Costs 2 % of a saturated process.
///
/// Measured with two saturated processes on two cores: a pause after every commit, as long as others write, made nobody
/// wait less (20 to 100 ms at most either way, the busy timeout with SQLite's own busy handler) and cost half of the
/// commits of a process that writes little.
const GAPLESS_MAX: Duration = Duration::from_millis(20);
/// The same while others write too.
const GAPLESS_MAX_AMONG_OTHERS: Duration = Duration::from_millis(10);
/// They are taken to write for this long after they were last seen to.
const OTHERS_FOR: Duration = Duration::from_millis(100);
/// Longer than the pause of a waiting process between two looks.
const GAP: Duration = Duration::from_micros(400);

/// How often a waiting process looks whether the file is free, at first and later.
const LOOK: Duration = Duration::from_micros(250);
const LOOK_LATER: Duration = Duration::from_millis(1);
const LOOKS_AT_FIRST: i32 = 1_000;

/// The log is looked at this often while there is work, and emptied by force over this size, waiting this long.
const LOG_CHECK: Duration = Duration::from_secs(2);
const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;
const LOG_PATIENCE: Duration = Duration::from_millis(50);

/// On a full disk the log is emptied at most this often.
const ROOM_AGAIN: Duration = Duration::from_secs(1);

/// The way to the writer thread.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Box<dyn Job>>,
}

/// Whether a change must be on the disk before it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnDisk {
    /// It must: somebody was promised that it survives a power loss.
    AtCommit,
    /// With the next change that must. Until then it survives the end of this process but not a power loss, and need not:
    /// who holds a task is forgotten together with the holder, whose machine is the one that lost its power.
    Later,
}

/// A change, the place for its answer, and how many rows it may change.
trait Job: Send {
    fn on_disk(&self) -> OnDisk;
    fn apply(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault>;
    fn answer(self: Box<Self>, outcome: Result<(), StoreError>);
    fn rows(&self) -> usize;
}

impl std::fmt::Debug for dyn Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({} rows)", self.rows())
    }
}

struct Work<F, T> {
    change: F,
    on_disk: OnDisk,
    rows: usize,
    done: Option<T>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<F, T> Job for Work<F, T>
where
    F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send,
    T: Send,
{
    fn on_disk(&self) -> OnDisk {
        self.on_disk
    }

    fn apply(&mut self, tx: &mut Tx<'_>) -> Result<(), Fault> {
        self.done = Some((self.change)(tx)?);
        Ok(())
    }

    fn answer(self: Box<Self>, outcome: Result<(), StoreError>) {
        let answer = match (outcome, self.done) {
            (Ok(()), Some(done)) => Ok(done),
            (Ok(()), None) => Err(stopped()),
            (Err(error), _) => Err(error),
        };
        // Nobody waits any more when the caller's future was dropped; the change stands.
        let _ = self.answer.send(answer);
    }

    fn rows(&self) -> usize {
        self.rows
    }
}

fn stopped() -> StoreError {
    StoreError::Broken("the thread that writes to the store has stopped; restart this process".to_owned())
}

impl Writer {
    /// Starts the thread; it ends when the store is dropped and everything that waited is done.
    pub(crate) fn start(db: Connection, shared: Arc<Shared>, alive: Alive) -> Result<Self, StoreError> {
        let (jobs, waiting) = mpsc::channel(QUEUE_MAX);
        std::thread::Builder::new()
            .name("windlass-sqlite-writer".to_owned())
            .spawn(move || {
                Thread::new(db, shared).run(waiting);
                drop(alive);
            })
            .map_err(|error| StoreError::Unreachable(error.into()))?;
        Ok(Self { jobs })
    }

    /// Makes a change that touches about `rows` rows; durable when this returns.
    pub(crate) async fn write<T, F>(&self, rows: usize, change: F) -> Result<T, StoreError>
    where
        F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
        T: Send + 'static,
    {
        self.write_as(OnDisk::AtCommit, rows, change).await
    }

    /// Makes a change that touches about `rows` rows, on the disk as `on_disk` says.
    pub(crate) async fn write_as<T, F>(&self, on_disk: OnDisk, rows: usize, change: F) -> Result<T, StoreError>
    where
        F: FnMut(&mut Tx<'_>) -> Result<T, Fault> + Send + 'static,
        T: Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job = Box::new(Work { change, on_disk, rows, done: None, answer });
        self.jobs.send(job).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

struct Thread {
    db: Connection,
    shared: Arc<Shared>,
    /// How the connection commits at present.
    on_disk: OnDisk,
    memory: Memory,
    pace: Pace,
    log_checked: Instant,
    room_made: Option<Instant>,
}

impl Thread {
    fn new(db: Connection, shared: Arc<Shared>) -> Self {
        Self {
            db,
            shared,
            on_disk: OnDisk::AtCommit,
            memory: Memory::default(),
            pace: Pace::new(),
            log_checked: Instant::now(),
            room_made: None,
        }
    }

    fn run(mut self, mut waiting: mpsc::Receiver<Box<dyn Job>>) {
        be_patient_for(self.shared.busy_timeout);
        while let Some(first) = waiting.blocking_recv() {
            let mut rows = first.rows();
            let mut jobs = vec![first];
            // A worker asks for its next tasks right after it has settled the last ones: let it get that far.
            std::thread::yield_now();
            while jobs.len() < JOBS_MAX && rows < ROWS_MAX {
                let Ok(next) = waiting.try_recv() else { break };
                rows += next.rows();
                jobs.push(next);
            }
            self.pace.begin();
            self.commit(jobs);
            self.keep_the_log_short();
            self.pace.end();
        }
        // So that a copy of the file alone has everything. While other processes read, the last of them does it.
        self.empty_the_log();
    }

    /// SQLite empties the log by itself when nobody reads it just then. Under readers without a gap it never can: then
    /// it is emptied here, waiting for them for a moment.
    fn keep_the_log_short(&mut self) {
        if self.log_checked.elapsed() < LOG_CHECK {
            return;
        }
        self.log_checked = Instant::now();
        if file::size_of(&file::wal_of(&self.shared.path)) <= LOG_BYTES_MAX {
            return;
        }
        if !self.empty_the_log() {
            warn!("the log of the store grows because somebody reads without a pause");
        }
    }

    /// Applies jobs in one transaction and answers them.
    fn commit(&mut self, mut jobs: Vec<Box<dyn Job>>) {
        let mut outcome = self.attempt(&mut jobs);
        let no_space = outcome.as_ref().is_err_and(|failed| failed.is_for_lack_of_space(&self.shared.path));
        if no_space && self.make_room() {
            outcome = self.attempt(&mut jobs);
        }
        match outcome {
            Ok(()) => jobs.into_iter().for_each(|job| job.answer(Ok(()))),
            Err(Failed::OnTheWay(_)) if jobs.len() > 1 => jobs.into_iter().for_each(|job| self.commit(vec![job])),
            // When nobody can write, that is everybody's answer.
            Err(Failed::ToBegin(fault) | Failed::OnTheWay(fault)) => {
                for job in jobs {
                    job.answer(Err(fault.to_store_error(&self.shared.path)));
                }
            }
        }
    }

    /// One transaction, or nothing.
    fn attempt(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<(), Failed> {
        let outcome = self.transaction(jobs);
        if outcome.is_err() {
            self.roll_back();
        }
        outcome
    }

    fn transaction(&mut self, jobs: &mut [Box<dyn Job>]) -> Result<(), Failed> {
        self.shared.file.check().map_err(|error| Failed::ToBegin(error.into()))?;
        self.begin(jobs).map_err(Failed::ToBegin)?;
        self.memory.transaction.collect_ended = self.shared.bell.somebody_waits_for_an_end();
        let mut tx = Tx {
            db: &self.db,
            now: self.shared.clock.now(),
            retention: &self.shared.retention,
            memory: &mut self.memory,
            statements: Statements::default(),
        };
        for job in jobs {
            tx.now = self.shared.clock.now();
            apply(job.as_mut(), &mut tx).map_err(Failed::OnTheWay)?;
        }
        tick::keep_within_maximum(&mut tx).map_err(Failed::OnTheWay)?;
        tx.flush().map_err(Failed::OnTheWay)?;
        let mut woken = Vec::new();
        for queue in std::mem::take(&mut tx.memory.transaction.woken) {
            woken.push(tx.queue_word(queue).map_err(Failed::OnTheWay)?);
        }
        self.db
            .prepare_cached("COMMIT")
            .and_then(|mut commit| commit.execute([]))
            .map_err(|error| Failed::OnTheWay(error.into()))?;
        // The file may have gone while we wrote into it: then this commit is durable in a file that nobody finds.
        self.shared.file.check().map_err(|error| Failed::ToBegin(error.into()))?;
        let transaction = std::mem::take(&mut tx.memory.transaction);
        if transaction.wake_all {
            self.shared.bell.ring_for_all_claims();
        } else if !woken.is_empty() {
            self.shared.bell.ring_for_queues(&woken);
        }
        if !transaction.ended.is_empty() {
            self.shared.bell.ring_for_ended(&transaction.ended);
        }
        Ok(())
    }

    fn begin(&mut self, jobs: &[Box<dyn Job>]) -> Result<(), Fault> {
        self.commit_as(if jobs.iter().any(|job| job.on_disk() == OnDisk::AtCommit) {
            OnDisk::AtCommit
        } else {
            OnDisk::Later
        })?;
        self.db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let data_version: i64 = self.db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if data_version != self.pace.data_version {
            // A newer program may have brought the file to a version that this one would damage.
            schema::pending(schema::version(&self.db)?, &self.shared.path)?;
            self.memory.others_wrote();
            self.pace.others_wrote(data_version);
        }
        Ok(())
    }

    /// A claim that is alone in its transaction starts its task a sync earlier: that is half of the wait.
    fn commit_as(&mut self, on_disk: OnDisk) -> Result<(), Fault> {
        if self.on_disk != on_disk && self.shared.durability == Durability::PowerLoss {
            let level = match on_disk {
                OnDisk::AtCommit => "FULL",
                OnDisk::Later => "NORMAL",
            };
            self.db.execute_batch(&format!("PRAGMA synchronous = {level}"))?;
            self.on_disk = on_disk;
        }
        Ok(())
    }

    /// Empties the log into the file: on a full disk the room that the log takes is enough to go on, most of the time.
    /// Answers whether that worked.
    fn make_room(&mut self) -> bool {
        if self.room_made.is_some_and(|made| made.elapsed() < ROOM_AGAIN) {
            return false;
        }
        self.room_made = Some(Instant::now());
        self.empty_the_log()
    }

    /// Waits for readers for a moment only.
    fn empty_the_log(&self) -> bool {
        be_patient_for(LOG_PATIENCE);
        let busy = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, bool>(0));
        be_patient_for(self.shared.busy_timeout);
        matches!(busy, Ok(false))
    }

    fn roll_back(&mut self) {
        // SQLite has rolled back by itself after some errors, such as a full disk.
        if !self.db.is_autocommit()
            && let Err(error) = self.db.execute_batch("ROLLBACK")
        {
            warn!(%error, "rollback failed");
        }
        self.memory.rolled_back();
    }
}

/// Where a transaction failed.
enum Failed {
    ToBegin(Fault),
    OnTheWay(Fault),
}

impl Failed {
    fn is_for_lack_of_space(&self, path: &std::path::Path) -> bool {
        match self {
            Self::ToBegin(_) => false,
            Self::OnTheWay(fault) => matches!(fault.to_store_error(path), StoreError::NoSpace(_)),
        }
    }
}

/// A panic of ours must not take the store away from everybody.
fn apply(job: &mut dyn Job, tx: &mut Tx<'_>) -> Result<(), Fault> {
    catch_unwind(AssertUnwindSafe(|| job.apply(tx))).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<&str>().copied().map(str::to_owned);
        let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        error!(said, "a change of the store panicked; it was rolled back");
        Err(Fault::Store(StoreError::Broken(format!(
            "the store's driver failed on this request ({said}); please report it, the request has changed nothing"
        ))))
    })
}

/// When to leave the file to others.
struct Pace {
    data_version: i64,
    others_seen: Option<Instant>,
    /// Since when commits have followed each other without a gap.
    gapless_since: Instant,
    last_end: Instant,
}

impl Pace {
    fn new() -> Self {
        let now = Instant::now();
        Self { data_version: 0, others_seen: None, gapless_since: now, last_end: now }
    }

    /// What SQLite counts of the commits of others has changed.
    fn others_wrote(&mut self, data_version: i64) {
        self.others_seen = Some(Instant::now());
        self.data_version = data_version;
    }

    fn begin(&mut self) {
        if self.last_end.elapsed() >= GAP {
            self.gapless_since = Instant::now();
        }
    }

    fn end(&mut self) {
        let among_others = self.others_seen.is_some_and(|seen| seen.elapsed() < OTHERS_FOR);
        let gapless_max = if among_others { GAPLESS_MAX_AMONG_OTHERS } else { GAPLESS_MAX };
        if self.gapless_since.elapsed() >= gapless_max {
            std::thread::sleep(GAP);
            self.gapless_since = Instant::now();
        }
        self.last_end = Instant::now();
    }
}

thread_local! {
    static PATIENCE: Cell<(Duration, Option<Instant>)> = const { Cell::new((Duration::ZERO, None)) };
}

/// How long this thread waits for the file, from [`wait_for_the_file`].
pub(crate) fn be_patient_for(timeout: Duration) {
    PATIENCE.set((timeout, None));
}

/// The busy handler: SQLite's own sleeps up to 100 ms between two looks, which loses against every process that looks
/// more often.
pub(crate) fn wait_for_the_file(looks: i32) -> bool {
    let (timeout, since) = PATIENCE.get();
    let since = since.filter(|_| looks > 0).unwrap_or_else(Instant::now);
    PATIENCE.set((timeout, Some(since)));
    if since.elapsed() >= timeout {
        return false;
    }
    std::thread::sleep(if looks < LOOKS_AT_FIRST { LOOK } else { LOOK_LATER });
    true
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use windlass_core::backend::Backend;

    use super::*;
    use crate::{Options, SqliteStore};

    fn store() -> (tempfile::TempDir, Arc<SqliteStore>) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let store = SqliteStore::open(folder.path().join("tasks.db"), Options::default()).expect("a new file");
        (folder, Arc::new(store))
    }

    /// Keeps the thread busy until `go` is dropped, so that what is sent meanwhile waits together. Answers when it is: what is
    /// sent before could still join the job that keeps it.
    async fn hold_up(store: &Arc<SqliteStore>) -> mpsc::Sender<()> {
        let (go, held) = mpsc::channel::<()>();
        let held = std::sync::Mutex::new(held);
        let (begin, begun) = oneshot::channel();
        let mut begin = Some(begin);
        let store = Arc::clone(store);
        tokio::spawn(async move {
            let job = store.writer.write(1, move |_| {
                begin.take().map(|begin| begin.send(()));
                let _ = held.lock().expect("nobody panicked").recv();
                Ok(())
            });
            job.await.expect("the job is sound");
        });
        begun.await.expect("it begins");
        go
    }

    #[tokio::test]
    async fn jobs_that_wait_together_share_one_commit() {
        let (_folder, store) = store();
        let go = hold_up(&store).await;
        // Each job says whether it is the first of its transaction: the first one reads the next place from the file.
        let jobs = (0..50).map(|_| {
            store.writer.write(1, |tx| {
                let first = tx.next_seq_is_unread();
                tx.next_seq()?;
                Ok(first)
            })
        });
        let release = async { drop(go) };
        let (firsts, ()) = tokio::join!(biased; all(jobs), release);
        assert_eq!(firsts.iter().filter(|first| **first).count(), 1);
    }

    #[tokio::test]
    async fn a_job_that_fails_changes_nothing_and_fails_no_other() {
        let (_folder, store) = store();
        let go = hold_up(&store).await;
        let good = |name: &'static str| {
            store.writer.write(1, move |tx| {
                tx.execute("INSERT INTO windlass_name (name) VALUES (?1)", [name])?;
                Ok(())
            })
        };
        let bad = store.writer.write(1, |tx| {
            tx.execute("INSERT INTO windlass_name (name) VALUES ('half')", [])?;
            tx.execute("INSERT INTO windlass_name (name) VALUES (NULL)", []).map(drop)
        });
        let mad = store.writer.write::<(), _>(1, |tx| {
            tx.execute("INSERT INTO windlass_name (name) VALUES ('mad')", [])?;
            panic!("a mistake of ours")
        });
        let release = async { drop(go) };
        let (first, bad, mad, last, ()) = tokio::join!(biased; good("first"), bad, mad, good("last"), release);
        assert!(first.is_ok() && last.is_ok());
        assert!(bad.is_err());
        assert!(matches!(mad, Err(StoreError::Broken(text)) if text.contains("a mistake of ours")));
        let names = store.readers.read(|db| {
            let mut select = db.prepare("SELECT name FROM windlass_name ORDER BY id")?;
            let names = select.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
            Ok(names)
        });
        assert_eq!(names.await.unwrap(), ["first", "last"]);
        assert!(store.counts().await.unwrap().queues.is_empty());
    }

    async fn all<T>(jobs: impl Iterator<Item = impl Future<Output = Result<T, StoreError>>>) -> Vec<T> {
        let mut jobs: Vec<_> = jobs.map(Box::pin).collect();
        let mut done = Vec::new();
        // Every job is sent before the first answer is awaited.
        std::future::poll_fn(|context| {
            jobs.retain_mut(|job| match job.as_mut().poll(context) {
                std::task::Poll::Ready(answer) => {
                    done.push(answer.expect("the job is sound"));
                    false
                }
                std::task::Poll::Pending => true,
            });
            if jobs.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        })
        .await;
        done
    }
}
