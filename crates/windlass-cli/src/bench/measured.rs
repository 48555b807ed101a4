//! A store that counts what it is asked and how long it takes; everything is passed on as it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use windlass::adoption::{Adopting, Adoption};
use windlass::backend::{
    Claim, Command, Commanded, Demand, Push, Pushed, Renewal, Renewed, ScheduleChange, ScheduleChanged, Settled,
    Settlement, Ticked,
};
use windlass::limit::{LimitChange, LimitsView};
use windlass::note::{NoteAnswer, NoteAsk};
use windlass::transfer::{Transfer, Transferred};
use windlass::view::{Counts, Filter, Info, Listing, Node, NodeInfo, Page, Record, ScheduleRecord};
use windlass::{Backend, NodeId, StoreError, TaskId};

use super::stats::Histogram;

/// A store with a [`Tally`].
#[derive(Debug)]
pub(super) struct Measured {
    inner: Arc<dyn Backend>,
    tally: Arc<Tally>,
}

/// What a store was asked.
#[derive(Debug, Default)]
pub(super) struct Tally {
    calls: AtomicU64,
    /// Claims that found something: the others wait, which says nothing about the store.
    pub(super) claims: Mutex<Batches>,
    pub(super) settles: Mutex<Batches>,
}

/// Requests of one kind.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Batches {
    /// How long the store took, in microseconds.
    pub(super) took: Histogram,
    /// How many tasks there were in each.
    pub(super) sizes: Histogram,
}

impl Batches {
    fn add(&mut self, size: usize, since: Instant) {
        self.took.add(since.elapsed().as_micros() as u64);
        self.sizes.add(size as u64);
    }

    pub(super) fn merge(&mut self, other: &Self) {
        self.took.merge(&other.took);
        self.sizes.merge(&other.sizes);
    }
}

impl Measured {
    pub(super) fn around(inner: Arc<dyn Backend>) -> (Arc<dyn Backend>, Arc<Tally>) {
        let tally = Arc::new(Tally::default());
        (Arc::new(Self { inner, tally: Arc::clone(&tally) }), tally)
    }

    fn asked(&self) -> &dyn Backend {
        self.tally.calls.fetch_add(1, Ordering::Relaxed);
        &*self.inner
    }
}

impl Tally {
    /// Requests of every kind so far.
    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl Backend for Measured {
    async fn push(&self, push: &Push) -> Result<Vec<Pushed>, StoreError> {
        self.asked().push(push).await
    }

    async fn claim(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
        let since = Instant::now();
        let answer = self.asked().claim(demand).await;
        if let Ok(claims) = &answer
            && !claims.is_empty()
        {
            self.tally.claims.lock().add(claims.len(), since);
        }
        answer
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopting, StoreError> {
        let since = Instant::now();
        let answer = self.asked().adopt(adoption).await;
        if let Ok(adopting) = &answer
            && !adopting.claims.is_empty()
        {
            self.tally.claims.lock().add(adopting.claims.len(), since);
        }
        answer
    }

    async fn renew(&self, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError> {
        self.asked().renew(renewals, lease).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError> {
        let since = Instant::now();
        let answer = self.asked().settle(settled).await;
        self.tally.settles.lock().add(settled.len(), since);
        answer
    }

    async fn find(&self, ids: &[TaskId]) -> Result<Vec<Option<Record>>, StoreError> {
        self.asked().find(ids).await
    }

    async fn list(&self, filter: &Filter, page: &Page) -> Result<Listing, StoreError> {
        self.asked().list(filter, page).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.asked().counts().await
    }

    async fn command(&self, command: &Command) -> Result<Commanded, StoreError> {
        self.asked().command(command).await
    }

    async fn beat(&self, info: &NodeInfo, ttl: Duration) -> Result<(), StoreError> {
        self.asked().beat(info, ttl).await
    }

    async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.asked().nodes().await
    }

    async fn tick(&self, node: &NodeId) -> Result<Ticked, StoreError> {
        self.asked().tick(node).await
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRecord>, StoreError> {
        self.asked().schedules().await
    }

    async fn schedule(&self, change: &ScheduleChange) -> Result<ScheduleChanged, StoreError> {
        self.asked().schedule(change).await
    }

    async fn limits(&self) -> Result<LimitsView, StoreError> {
        self.asked().limits().await
    }

    async fn limit(&self, change: &LimitChange) -> Result<bool, StoreError> {
        self.asked().limit(change).await
    }

    async fn note(&self, ask: &NoteAsk) -> Result<NoteAnswer, StoreError> {
        self.asked().note(ask).await
    }

    async fn watch(&self, ids: &[TaskId], wait: Duration) -> Result<Vec<Record>, StoreError> {
        self.asked().watch(ids, wait).await
    }

    async fn transfer(&self, step: &Transfer) -> Result<Transferred, StoreError> {
        self.asked().transfer(step).await
    }

    async fn info(&self) -> Result<Info, StoreError> {
        self.asked().info().await
    }
}
