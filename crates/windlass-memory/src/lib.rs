//! A task store that lives in the memory of one process: for tests, for simulations, and for measuring the engine alone.
//!
//! It keeps the whole contract of [`Backend`] except that nothing survives the process. Time comes only from the
//! [`Clock`] it is given and waiting only from tokio, so a run under a test clock and a paused runtime repeats exactly.
//!
//! One mutex guards `Data`, plain structs without any waiting inside; it is held for one operation and
//! never across an `.await`. One module for each verb of the port extends `Data`:
//!
//! | module | owns |
//! |---|---|
//! | `data` | the tasks, where each is indexed, and every move from one stage to another |
//! | `slab`, `hash` | stable places for tasks; maps |
//! | `push` | new tasks, unique keys, what follows a task that ended |
//! | `adopt` | deliveries of foreign transports |
//! | `claim`, `waiting` | taking tasks and renewing leases; claims that wait |
//! | `settle` | verdicts |
//! | `groups` | arrivals and fan-in |
//! | `command`, `list` | what operators do and see |
//! | `tick`, `fleet` | housekeeping; nodes and orders |
//! | `retention` | what is kept of tasks that ended |
//! | `schedules`, `watch` | recurring pushes; waiting for results |
//! | `transfer` | moving everything to another store |

mod adopt;
mod claim;
mod command;
mod data;
mod fleet;
mod groups;
mod hash;
mod limits;
mod list;
mod notes;
mod push;
mod retention;
mod schedules;
mod settle;
mod slab;
mod tick;
mod transfer;
mod waiting;
mod watch;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use windlass_core::adoption::{Adopting, Adoption};
use windlass_core::backend::{
    BATCH_MAX, Backend, Claim, Command, Commanded, Demand, LEASE_MAX, Push, Pushed, Renewal, Renewed, ScheduleChange,
    ScheduleChanged, Settled, Settlement, StoreError, Ticked, check_batch,
};
use windlass_core::limit::{LimitChange, LimitsView};
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::time::LeaseGuard;
use windlass_core::transfer::{Transfer, Transferred};
use windlass_core::view::{
    Check, Counts, Filter, Health, Info, Listing, Node, NodeInfo, Page, Record, Retention, ScheduleRecord,
};
use windlass_core::{Clock, NodeId, TaskId, Timestamp};

use crate::data::Data;

/// A task store in memory. Clones are handles to the same tasks, like connections to one database.
///
/// ```
/// use std::sync::Arc;
/// use windlass_core::backend::{Backend, Push, Pushed};
/// use windlass_core::{Args, Envelope, QueueName, SystemClock, TaskName};
/// use windlass_memory::MemoryStore;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let store = MemoryStore::new(Arc::new(SystemClock));
/// let hello = Envelope::new(TaskName::known("hello"), QueueName::default(), Args::none());
/// let pushed = store.push(&Push { envelopes: vec![hello], groups: vec![] }).await?;
/// assert_eq!(pushed, [Pushed::Stored]);
/// assert_eq!(store.counts().await?.total().ready, 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

/// What all handles share.
struct Shared {
    clock: Arc<dyn Clock>,
    guard: LeaseGuard,
    data: Mutex<Data>,
}

impl Shared {
    /// Runs one operation: its time is read once, under the lock, so times never run against the order of operations.
    /// Whoever waits for what it made ready is woken before the lock is given back.
    fn run<T>(&self, operation: impl FnOnce(&mut Data, Timestamp) -> T) -> T {
        let mut data = self.data.lock();
        let now = self.clock.now();
        let answer = operation(&mut data, now);
        if std::mem::take(&mut data.limits.released) {
            data.wake_everybody();
        }
        data.wake_claims();
        answer
    }
}

impl MemoryStore {
    /// An empty store that reads the time from `clock` and keeps ended tasks by the default [`Retention`].
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { shared: Arc::new(Shared { clock, guard: LeaseGuard::default(), data: Mutex::new(Data::default()) }) }
    }

    /// Keeps ended tasks for other times; holds for every handle of this store.
    #[must_use]
    pub fn with_retention(self, retention: Retention) -> Self {
        self.shared.data.lock().retention = retention;
        self
    }
}

impl fmt::Debug for MemoryStore {
    /// Without the tasks: there may be millions, and their arguments may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for MemoryStore {
    async fn push(&self, push: &Push) -> Result<Vec<Pushed>, StoreError> {
        push.check()?;
        Ok(self.shared.run(|data, now| data.push(push, now)))
    }

    async fn claim(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
        demand.check()?;
        Ok(waiting::claim(&self.shared, demand).await)
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopting, StoreError> {
        adoption.check()?;
        Ok(self.shared.run(|data, now| data.adopt(adoption, now)))
    }

    async fn renew(&self, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError> {
        check_batch("renewals", renewals.len(), BATCH_MAX)?;
        if lease.is_zero() || lease > LEASE_MAX {
            return Err(StoreError::Rejected("a lease is longer than zero and at most 24 h".to_owned()));
        }
        Ok(self.shared.run(|data, now| data.renew(renewals, lease, now)))
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError> {
        check_batch("verdicts", settled.len(), BATCH_MAX)?;
        Ok(self.shared.run(|data, now| data.settle(settled, now)))
    }

    async fn find(&self, ids: &[TaskId]) -> Result<Vec<Option<Record>>, StoreError> {
        check_batch("ids", ids.len(), BATCH_MAX)?;
        Ok(self.shared.run(|data, _| data.find(ids)))
    }

    async fn list(&self, filter: &Filter, page: &Page) -> Result<Listing, StoreError> {
        self.shared.run(|data, _| data.list(filter, page))
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        Ok(self.shared.run(|data, _| data.counts()))
    }

    async fn command(&self, command: &Command) -> Result<Commanded, StoreError> {
        self.shared.run(|data, now| data.command(command, now))
    }

    async fn beat(&self, info: &NodeInfo, ttl: Duration) -> Result<(), StoreError> {
        self.shared.run(|data, now| data.beat(info, ttl, now));
        Ok(())
    }

    async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        Ok(self.shared.run(Data::nodes))
    }

    async fn tick(&self, node: &NodeId) -> Result<Ticked, StoreError> {
        let leases = self.shared.guard.look(&*self.shared.clock);
        Ok(self.shared.run(|data, now| data.tick(node, now, leases)))
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRecord>, StoreError> {
        Ok(self.shared.run(|data, _| data.schedules()))
    }

    async fn schedule(&self, change: &ScheduleChange) -> Result<ScheduleChanged, StoreError> {
        self.shared.run(|data, now| data.schedule(change, now))
    }

    async fn limits(&self) -> Result<LimitsView, StoreError> {
        Ok(self.shared.run(|data, now| data.limits(now)))
    }

    async fn limit(&self, change: &LimitChange) -> Result<bool, StoreError> {
        self.shared.run(|data, now| data.limit(change, now))
    }

    async fn note(&self, ask: &NoteAsk) -> Result<NoteAnswer, StoreError> {
        self.shared.run(|data, now| data.note(ask, now))
    }

    async fn watch(&self, ids: &[TaskId], wait: Duration) -> Result<Vec<Record>, StoreError> {
        check_batch("ids", ids.len(), BATCH_MAX)?;
        Ok(watch::watch(&self.shared, ids, wait).await)
    }

    async fn transfer(&self, step: &Transfer) -> Result<Transferred, StoreError> {
        step.check()?;
        Ok(self.shared.run(|data, now| data.transfer(step, now)))
    }

    async fn info(&self) -> Result<Info, StoreError> {
        Ok(Info {
            kind: "memory",
            location: "the memory of this process".to_owned(),
            durability: "nothing survives the end of this process".to_owned(),
            size_bytes: None,
            checks: vec![Check {
                name: "durability",
                health: Health::Warning,
                detail: "tasks are lost when this process ends; use a store on disk for anything but tests".to_owned(),
            }],
        })
    }
}
