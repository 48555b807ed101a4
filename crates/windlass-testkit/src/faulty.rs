//! A store behind a bad line: requests and replies are lost, repeated and delayed, as a seed says.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;
use windlass_core::adoption::{Adopting, Adoption};
use windlass_core::backend::{
    Backend, Claim, Command, Commanded, Demand, Push, Pushed, Renewal, Renewed, ScheduleChange, ScheduleChanged,
    Settled, Settlement, StoreError, Ticked,
};
use windlass_core::limit::{LimitChange, LimitsView};
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::transfer::{Transfer, Transferred};
use windlass_core::view::{Counts, Filter, Info, Listing, Node, NodeInfo, Page, Record, ScheduleRecord};
use windlass_core::{NodeId, TaskId};

/// How bad the line is. Chances run from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Faults {
    /// A request never arrives.
    pub lost_requests: f64,
    /// A request is done, but its reply never arrives.
    pub lost_replies: f64,
    /// A request arrives twice.
    pub duplicates: f64,
    /// Every request takes up to this long.
    pub delay: Duration,
    /// A request takes this much longer, with the chance before it.
    pub pause: (f64, Duration),
}

impl Faults {
    /// A perfect line.
    pub const NONE: Self = Self {
        lost_requests: 0.0,
        lost_replies: 0.0,
        duplicates: 0.0,
        delay: Duration::ZERO,
        pause: (0.0, Duration::ZERO),
    };
}

/// A store behind a bad line. Each worker of a test gets its own, so that each has its own bad luck.
///
/// ```
/// # use std::sync::Arc;
/// # use windlass_core::Backend;
/// use windlass_testkit::faulty::{Faults, FaultyStore};
/// # fn example(store: Arc<dyn Backend>) {
/// let line = FaultyStore::new(store, 4711, Faults { lost_replies: 0.1, ..Faults::NONE });
/// # }
/// ```
pub struct FaultyStore {
    store: Arc<dyn Backend>,
    dice: Mutex<fastrand::Rng>,
    faults: Mutex<Faults>,
    /// Requests that are made before this time wait for it: the process is stopped.
    frozen_until: Mutex<Option<Instant>>,
    cut: Mutex<bool>,
}

/// What happens to one request.
enum Luck {
    Good,
    RequestLost,
    ReplyLost,
    Twice,
}

impl FaultyStore {
    /// A bad line to this store.
    pub fn new(store: Arc<dyn Backend>, seed: u64, faults: Faults) -> Self {
        Self {
            store,
            dice: Mutex::new(fastrand::Rng::with_seed(seed)),
            faults: Mutex::new(faults),
            frozen_until: Mutex::new(None),
            cut: Mutex::new(false),
        }
    }

    /// Changes the line from now on.
    pub fn set(&self, faults: Faults) {
        *self.faults.lock() = faults;
    }

    /// Cuts the line for good: no request is answered any more, as after `kill -9`.
    pub fn cut(&self) {
        *self.cut.lock() = true;
    }

    /// Whether [`FaultyStore::cut`] was called.
    pub fn is_cut(&self) -> bool {
        *self.cut.lock()
    }

    /// Holds every request back for this long, as if the process were stopped and continued.
    pub fn freeze(&self, length: Duration) {
        *self.frozen_until.lock() = Some(Instant::now() + length);
    }

    /// When the process goes on, if it is stopped.
    pub fn frozen_until(&self) -> Option<Instant> {
        self.frozen_until.lock().filter(|until| *until > Instant::now())
    }

    async fn luck(&self) -> Luck {
        let (delay, luck) = {
            let (mut dice, faults) = (self.dice.lock(), *self.faults.lock());
            let mut delay = faults.delay.mul_f64(dice.f64());
            if dice.f64() < faults.pause.0 {
                delay += faults.pause.1;
            }
            let draw = dice.f64();
            let luck = if draw < faults.lost_requests {
                Luck::RequestLost
            } else if draw < faults.lost_requests + faults.lost_replies {
                Luck::ReplyLost
            } else if draw < faults.lost_requests + faults.lost_replies + faults.duplicates {
                Luck::Twice
            } else {
                Luck::Good
            };
            (delay, luck)
        };
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.stand_still().await;
        luck
    }

    /// A stopped process waits, a dead one for ever.
    async fn stand_still(&self) {
        while let Some(until) = self.frozen_until() {
            tokio::time::sleep_until(until).await;
        }
        if self.is_cut() {
            std::future::pending::<()>().await;
        }
    }

    async fn through<T, F>(&self, request: impl Fn() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let lost = || StoreError::Unreachable("the line is bad".into());
        let answer = match self.luck().await {
            Luck::Good => request().await,
            Luck::RequestLost => Err(lost()),
            Luck::ReplyLost => {
                // It is done; nobody hears of it.
                let _ = request().await;
                Err(lost())
            }
            Luck::Twice => {
                let first = request().await;
                let second = request().await;
                if self.dice.lock().bool() { first } else { second }
            }
        };
        self.stand_still().await;
        answer
    }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").field("store", &self.store).finish_non_exhaustive()
    }
}

#[async_trait]
impl Backend for FaultyStore {
    async fn push(&self, push: &Push) -> Result<Vec<Pushed>, StoreError> {
        self.through(|| self.store.push(push)).await
    }

    async fn claim(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
        self.through(|| self.store.claim(demand)).await
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopting, StoreError> {
        self.through(|| self.store.adopt(adoption)).await
    }

    async fn renew(&self, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError> {
        self.through(|| self.store.renew(renewals, lease)).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError> {
        self.through(|| self.store.settle(settled)).await
    }

    async fn find(&self, ids: &[TaskId]) -> Result<Vec<Option<Record>>, StoreError> {
        self.through(|| self.store.find(ids)).await
    }

    async fn list(&self, filter: &Filter, page: &Page) -> Result<Listing, StoreError> {
        self.through(|| self.store.list(filter, page)).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.through(|| self.store.counts()).await
    }

    async fn command(&self, command: &Command) -> Result<Commanded, StoreError> {
        self.through(|| self.store.command(command)).await
    }

    async fn beat(&self, info: &NodeInfo, ttl: Duration) -> Result<(), StoreError> {
        self.through(|| self.store.beat(info, ttl)).await
    }

    async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.through(|| self.store.nodes()).await
    }

    async fn tick(&self, node: &NodeId) -> Result<Ticked, StoreError> {
        self.through(|| self.store.tick(node)).await
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRecord>, StoreError> {
        self.through(|| self.store.schedules()).await
    }

    async fn schedule(&self, change: &ScheduleChange) -> Result<ScheduleChanged, StoreError> {
        self.through(|| self.store.schedule(change)).await
    }

    async fn limits(&self) -> Result<LimitsView, StoreError> {
        self.through(|| self.store.limits()).await
    }

    async fn limit(&self, change: &LimitChange) -> Result<bool, StoreError> {
        self.through(|| self.store.limit(change)).await
    }

    async fn note(&self, ask: &NoteAsk) -> Result<NoteAnswer, StoreError> {
        self.through(|| self.store.note(ask)).await
    }

    async fn watch(&self, ids: &[TaskId], wait: Duration) -> Result<Vec<Record>, StoreError> {
        self.through(|| self.store.watch(ids, wait)).await
    }

    async fn transfer(&self, step: &Transfer) -> Result<Transferred, StoreError> {
        self.through(|| self.store.transfer(step)).await
    }

    async fn info(&self) -> Result<Info, StoreError> {
        self.through(|| self.store.info()).await
    }
}
