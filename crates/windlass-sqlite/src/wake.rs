//! Waiting: claims that found nothing, and watches of tasks that have not ended.
//!
//! Nobody waits inside the writer. Who waits leaves a bell here and is rung
//! - by the writer thread of this process, right after the commit that made a task ready or ended it,
//! - by the lookout, a thread that reads `PRAGMA data_version` whenever somebody has written into the log
//!   ([`crate::log_watch`]), or every 10 to 15 ms where nobody tells it: it sees what other processes commit, and it
//!   knows when the next scheduled task falls due.
//!
//! A bell that rings means "ask again", nothing more. A gate that opens by itself rings for nobody: the claims that found it
//! shut know when that is and look by then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use rusqlite::{Connection, OptionalExtension};
use tokio::sync::Notify;
use tracing::warn;
use windlass_core::{Clock, QueueName, StoreError, TaskId, TaskName, Timestamp};

use crate::errors::Fault;
use crate::line::{Line, any_line};
use crate::log_watch::{Heard, LogWatch, Waker};
use crate::rows::Id;
use crate::{Alive, Shared};
use crate::{file, tx};

/// How long after a write the lookout looks, and how long after the last look at least: whoever writes into the log has not
/// committed yet, and several writes are one commit.
const LOOK_AFTER_WRITE: Duration = Duration::from_millis(1);
/// The pauses between looks double until somebody writes again: a commit may be seen long after its write, when the disk
/// takes its time. The longest is for what no write has told.
const LOOK_IN_SILENCE: Duration = Duration::from_millis(500);
/// How often the lookout looks where nobody tells it of writes; the most that a task of another process waits longer than
/// one of this process.
const LOOK: Duration = Duration::from_millis(10);
/// The same when nothing has happened for a while. A look is three system calls, and nearly all of its cost is waking up:
/// 0.15 % of a core every 10 ms, a third less so.
const LOOK_QUIETLY: Duration = Duration::from_millis(15);
const QUIET: Duration = Duration::from_secs(5);
/// The lookout spends at most this share of its time on looking, however many wait: 1 / 10.
const SHARE: u32 = 10;
/// How often the lookout checks that the file is still the one that was opened.
const FILE_CHECK: Duration = Duration::from_secs(1);

/// Who waits.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    waiting: Mutex<Waiting>,
    /// Tells the lookout that somebody waits, or that it should end.
    somebody: Condvar,
    /// Ends the sleep of the lookout when the store is closed.
    waker: Waker,
    ends_awaited: AtomicUsize,
}

#[derive(Debug, Default)]
struct Waiting {
    next_ticket: u64,
    claims: HashMap<u64, Arc<ClaimWaits>>,
    ends: HashMap<u64, Arc<EndWaits>>,
    closed: bool,
}

#[derive(Debug)]
struct ClaimWaits {
    queues: Vec<QueueName>,
    except: Vec<TaskName>,
    rung: Arc<Notify>,
}

#[derive(Debug)]
struct EndWaits {
    ids: HashSet<TaskId>,
    rung: Arc<Notify>,
}

/// A place among those who wait; left when it is dropped.
#[derive(Debug)]
pub(crate) struct Ticket {
    bell: Arc<Bell>,
    number: u64,
    rung: Arc<Notify>,
}

impl Ticket {
    /// Waits for the bell. One that rang before is heard.
    pub(crate) async fn rung(&self) {
        self.rung.notified().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut waiting = self.bell.waiting.lock();
        waiting.claims.remove(&self.number);
        if waiting.ends.remove(&self.number).is_some() {
            self.bell.ends_awaited.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl Bell {
    /// Waits for a task that such a claim may take. Take the ticket first, then ask: nothing falls in between.
    pub(crate) fn wait_for_ready(self: &Arc<Self>, queues: &[QueueName], except: &[TaskName]) -> Ticket {
        self.ticket(|waiting, number, rung| {
            let claim = ClaimWaits { queues: queues.to_vec(), except: except.to_vec(), rung };
            waiting.claims.insert(number, Arc::new(claim));
        })
    }

    /// Waits for the end of one of these tasks.
    pub(crate) fn wait_for_ends(self: &Arc<Self>, ids: &[TaskId]) -> Ticket {
        self.ends_awaited.fetch_add(1, Ordering::AcqRel);
        self.ticket(|waiting, number, rung| {
            waiting.ends.insert(number, Arc::new(EndWaits { ids: ids.iter().cloned().collect(), rung }));
        })
    }

    fn ticket(self: &Arc<Self>, enter: impl FnOnce(&mut Waiting, u64, Arc<Notify>)) -> Ticket {
        let rung = Arc::new(Notify::new());
        let mut waiting = self.waiting.lock();
        let number = waiting.next_ticket;
        waiting.next_ticket += 1;
        enter(&mut waiting, number, Arc::clone(&rung));
        self.somebody.notify_one();
        Ticket { bell: Arc::clone(self), number, rung }
    }

    /// Whether it is worth collecting the ids of tasks that end.
    pub(crate) fn somebody_waits_for_an_end(&self) -> bool {
        self.ends_awaited.load(Ordering::Acquire) > 0
    }

    /// A task became ready in these queues.
    pub(crate) fn ring_for_queues(&self, queues: &[QueueName]) {
        let waiting = self.waiting.lock();
        for claim in waiting.claims.values() {
            if claim.queues.iter().any(|queue| queues.contains(queue)) {
                claim.rung.notify_one();
            }
        }
    }

    /// Anything may have become claimable.
    pub(crate) fn ring_for_all_claims(&self) {
        self.waiting.lock().claims.values().for_each(|claim| claim.rung.notify_one());
    }

    /// These tasks ended.
    pub(crate) fn ring_for_ended(&self, ids: &[TaskId]) {
        let waiting = self.waiting.lock();
        for end in waiting.ends.values() {
            if ids.iter().any(|id| end.ids.contains(id)) {
                end.rung.notify_one();
            }
        }
    }

    fn ring_for_everybody(&self) {
        let waiting = self.waiting.lock();
        waiting.claims.values().for_each(|claim| claim.rung.notify_one());
        waiting.ends.values().for_each(|end| end.rung.notify_one());
    }

    fn everybody(&self) -> (Vec<Arc<ClaimWaits>>, Vec<Arc<EndWaits>>) {
        let waiting = self.waiting.lock();
        (waiting.claims.values().cloned().collect(), waiting.ends.values().cloned().collect())
    }

    /// Ends the lookout.
    pub(crate) fn close(&self) {
        self.waiting.lock().closed = true;
        self.somebody.notify_one();
        self.waker.wake();
    }

    /// Sleeps while nobody waits; `false` when the store was closed.
    fn until_somebody_waits(&self) -> bool {
        let mut waiting = self.waiting.lock();
        while !waiting.closed && waiting.claims.is_empty() && waiting.ends.is_empty() {
            self.somebody.wait(&mut waiting);
        }
        !waiting.closed
    }
}

/// Waits for a gate that opens then, by the clock of the store; without one, for ever. The clock may be set meanwhile, so it
/// is looked at again and again.
pub(crate) async fn until(clock: &dyn Clock, opens_at: Option<Timestamp>) {
    let Some(opens_at) = opens_at else { return std::future::pending().await };
    loop {
        let rest = opens_at.since(clock.now());
        if rest.is_zero() {
            return;
        }
        // tidy: allow(sleep): a gate opens at a time, and tells nobody
        tokio::time::sleep(rest.min(LOOK_IN_SILENCE)).await;
    }
}

/// Starts the lookout; it ends when the bell is closed.
pub(crate) fn start_lookout(db: Connection, shared: Arc<Shared>, alive: Alive) -> Result<(), StoreError> {
    let now = Instant::now();
    let log = LogWatch::of(&file::wal_of(&shared.path));
    let lookout = Lookout {
        db,
        shared,
        log,
        step: LOOK_AFTER_WRITE,
        data_version: None,
        next_due: None,
        file_checked: now,
        changed: now,
    };
    std::thread::Builder::new()
        .name("windlass-sqlite-lookout".to_owned())
        .spawn(move || {
            lookout.run();
            drop(alive);
        })
        .map(drop)
        .map_err(|error| StoreError::Unreachable(error.into()))
}

struct Lookout {
    db: Connection,
    shared: Arc<Shared>,
    log: LogWatch,
    /// The pause after the next look, unless somebody writes.
    step: Duration,
    data_version: Option<i64>,
    next_due: Option<i64>,
    file_checked: Instant,
    changed: Instant,
}

impl Lookout {
    fn run(mut self) {
        while self.shared.bell.until_somebody_waits() {
            let began = Instant::now();
            if let Err(fault) = self.look() {
                // Those who wait ask the writer, which gives the answer in full.
                warn!(error = %fault.into_store_error(&self.shared.path), "cannot look for new tasks");
                self.data_version = None;
                self.shared.bell.ring_for_everybody();
                std::thread::sleep(FILE_CHECK);
            }
            self.pause(began.elapsed());
        }
    }

    /// Sleeps until it is time to look again.
    fn pause(&mut self, look_took: Duration) {
        let rest = look_took * SHARE;
        let pause = self.step.min(self.until_due());
        // What is written while it rests is heard afterwards.
        std::thread::sleep(rest.max(LOOK_AFTER_WRITE).min(self.until_due()));
        match self.log.sleep(pause, &self.shared.bell.waker) {
            Heard::Something => self.step = LOOK_AFTER_WRITE,
            Heard::Nothing => self.step = (self.step * 2).min(LOOK_IN_SILENCE),
            Heard::Deaf => {
                let look = if self.changed.elapsed() < QUIET { LOOK } else { LOOK_QUIETLY };
                std::thread::sleep(look.max(rest).min(self.until_due()));
            }
        }
    }

    /// Until the next scheduled task falls due, at least a millisecond.
    fn until_due(&self) -> Duration {
        let Some(due) = self.next_due else { return Duration::MAX };
        let until = Duration::from_micros(u64::try_from(due - self.shared.clock.now().as_micros()).unwrap_or(0));
        until.max(Duration::from_millis(1))
    }

    fn look(&mut self) -> Result<(), Fault> {
        if self.file_checked.elapsed() >= FILE_CHECK {
            self.shared.file.check()?;
            self.file_checked = Instant::now();
        }
        let version: i64 = self.db.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))?;
        if self.data_version != Some(version) {
            self.data_version = Some(version);
            self.changed = Instant::now();
            self.step = LOOK_AFTER_WRITE;
            self.next_due = self.read_next_due()?;
            self.ring_for_what_is_there()?;
        }
        if self.next_due.is_some_and(|due| due <= self.shared.clock.now().as_micros()) {
            self.shared.bell.ring_for_all_claims();
        }
        Ok(())
    }

    fn read_next_due(&self) -> Result<Option<i64>, Fault> {
        let mut select = self.db.prepare_cached(
            "SELECT min(at) FROM windlass_task INDEXED BY windlass_task_moment \
             WHERE state = 0 AND state <> 1 AND forget_at IS NULL",
        )?;
        Ok(select.query_row([], |row| row.get(0))?)
    }

    fn ring_for_what_is_there(&self) -> Result<(), Fault> {
        // The list is copied: who rings must not wait for what is read here.
        let (claims, ends) = self.shared.bell.everybody();
        let paused = tx::paused(&self.db)?;
        for claim in claims {
            if !paused.closed && self.something_is_ready(&claim, &paused)? {
                claim.rung.notify_one();
            }
        }
        let mut ended = self.db.prepare_cached("SELECT 1 FROM windlass_task WHERE id = ?1 AND state >= 4")?;
        for end in ends {
            for id in &end.ids {
                if ended.query_row([Id(id)], |_| Ok(())).optional()?.is_some() {
                    end.rung.notify_one();
                    break;
                }
            }
        }
        Ok(())
    }

    fn something_is_ready(&self, claim: &ClaimWaits, paused: &tx::Paused) -> Result<bool, Fault> {
        for queue in &claim.queues {
            let Some(number) = tx::queue_number(&self.db, queue)? else { continue };
            if paused.queues.contains(&number) {
                continue;
            }
            if any_line(&self.db, number, |line| self.is_wanted(line, claim, paused))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether a line has a ready task that the claim may take, as far as its gates let it.
    fn is_wanted(&self, line: Line<'_>, claim: &ClaimWaits, paused: &tx::Paused) -> Result<bool, Fault> {
        for name in line.names(&self.db)? {
            if paused.names.contains(&name) {
                continue;
            }
            let mut word = self.db.prepare_cached("SELECT name FROM windlass_name WHERE id = ?1")?;
            let word: String = word.query_row([name], |row| row.get(0))?;
            if !claim.except.iter().any(|except| except.as_str() == word) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
