//! Stands between the bad lines and the store, and sees what really happens: who holds what, and what is settled.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use windlass_core::adoption::{Adopted, Adopting, Adoption};
use windlass_core::backend::{
    Backend, Claim, Command, Commanded, Demand, Push, Pushed, Receipt, Renewal, Renewed, ScheduleChange,
    ScheduleChanged, Settled, Settlement, StoreError, Ticked,
};
use windlass_core::limit::{LimitChange, LimitsView};
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::transfer::{Transfer, Transferred};
use windlass_core::view::{Counts, Filter, Info, Listing, Node, NodeInfo, Page, Record, ScheduleRecord};
use windlass_core::{Clock, NodeId, TaskId, Timestamp};

use super::limits;

/// A store that is watched. Every breach of an invariant is written down.
#[derive(Debug)]
pub(super) struct Witness {
    store: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    holders: HashMap<TaskId, Holder>,
    final_settles: HashMap<TaskId, u32>,
    slots: HashMap<TaskId, u32>,
    limits: limits::Watch,
    breaches: Vec<String>,
    claims: u64,
    stale: u64,
}

#[derive(Debug)]
struct Holder {
    fence: i64,
    lease_until: Timestamp,
    settled: bool,
}

/// What the witness has seen.
#[derive(Debug, Default, Clone)]
pub(super) struct Testimony {
    pub(super) breaches: Vec<String>,
    pub(super) claims: u64,
    pub(super) stale: u64,
    pub(super) final_settles: HashMap<TaskId, u32>,
}

impl Witness {
    pub(super) fn new(store: Arc<dyn Backend>, clock: Arc<dyn Clock>) -> Self {
        Self { store, clock, seen: Mutex::default() }
    }

    pub(super) fn testimony(&self) -> Testimony {
        let seen = self.seen.lock();
        Testimony {
            breaches: seen.breaches.clone(),
            claims: seen.claims,
            stale: seen.stale,
            final_settles: seen.final_settles.clone(),
        }
    }

    fn saw_claim(&self, claim: &Claim, lease: Duration) {
        let now = self.clock.now();
        let mut seen = self.seen.lock();
        let seen = &mut *seen;
        seen.claims += 1;
        let Receipt { id, fence, .. } = &claim.receipt;
        if let Some(holder) = seen.holders.get(id) {
            let (held, risen) = (!holder.settled && holder.lease_until > now, *fence > holder.fence);
            if held {
                seen.breaches.push(format!("{id} was claimed while its lease was held"));
            }
            if !risen {
                seen.breaches.push(format!("the fence of {id} did not rise"));
            }
        }
        seen.holders.insert(id.clone(), Holder { fence: *fence, lease_until: now + lease, settled: false });
        let holders = &seen.holders;
        let is_held = |id: &TaskId| holders.get(id).is_some_and(|holder| !holder.settled && holder.lease_until > now);
        seen.breaches.extend(seen.limits.saw_claim(claim, now, is_held));
    }

    /// An ended task was forgotten for a new one with its id.
    fn saw_new_run(&self, id: &TaskId) {
        let mut seen = self.seen.lock();
        seen.holders.remove(id);
        seen.final_settles.remove(id);
    }

    fn saw_renewal(&self, receipt: &Receipt, renewed: Renewed, lease: Duration) {
        let now = self.clock.now();
        let mut seen = self.seen.lock();
        let Some(holder) = seen.holders.get_mut(&receipt.id) else { return };
        match renewed {
            Renewed::Held | Renewed::Cancelled if holder.fence == receipt.fence => holder.lease_until = now + lease,
            Renewed::Held | Renewed::Cancelled => {
                seen.breaches.push(format!("an old holder of {} was told that it holds it", receipt.id));
            }
            Renewed::Lost => {}
        }
    }

    fn saw_settle(&self, settled: &Settled, settlement: Settlement) {
        let mut seen = self.seen.lock();
        let id = &settled.receipt.id;
        if settlement == Settlement::Stale {
            seen.stale += 1;
            return;
        }
        match seen.holders.get_mut(id) {
            Some(holder) if holder.fence == settled.receipt.fence && !holder.settled => holder.settled = true,
            Some(_) => seen.breaches.push(format!("{id} was settled by an old claim, or twice by the same one")),
            None => seen.breaches.push(format!("{id} was settled without a claim")),
        }
        if settled.verdict.state().is_final() {
            *seen.final_settles.entry(id.clone()).or_default() += 1;
        }
    }
}

#[async_trait]
impl Backend for Witness {
    async fn push(&self, push: &Push) -> Result<Vec<Pushed>, StoreError> {
        self.store.push(push).await
    }

    async fn claim(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
        let claims = self.store.claim(demand).await?;
        for claim in &claims {
            self.saw_claim(claim, demand.lease);
        }
        Ok(claims)
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopting, StoreError> {
        let adopting = self.store.adopt(adoption).await?;
        for (delivery, adopted) in adoption.deliveries.iter().zip(&adopting.adopted) {
            if *adopted == Adopted::Stored {
                self.saw_new_run(&delivery.envelope.id);
            }
        }
        if let Some(demand) = &adoption.demand {
            for claim in &adopting.claims {
                self.saw_claim(claim, demand.lease);
            }
        }
        Ok(adopting)
    }

    async fn renew(&self, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError> {
        let renewed = self.store.renew(renewals, lease).await?;
        for (renewal, renewed) in renewals.iter().zip(&renewed) {
            self.saw_renewal(&renewal.receipt, *renewed, lease);
        }
        Ok(renewed)
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError> {
        let settlements = self.store.settle(settled).await?;
        for (settled, settlement) in settled.iter().zip(&settlements) {
            self.saw_settle(settled, *settlement);
        }
        Ok(settlements)
    }

    async fn find(&self, ids: &[TaskId]) -> Result<Vec<Option<Record>>, StoreError> {
        self.store.find(ids).await
    }

    async fn list(&self, filter: &Filter, page: &Page) -> Result<Listing, StoreError> {
        self.store.list(filter, page).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.store.counts().await
    }

    async fn command(&self, command: &Command) -> Result<Commanded, StoreError> {
        self.store.command(command).await
    }

    async fn beat(&self, info: &NodeInfo, ttl: Duration) -> Result<(), StoreError> {
        self.store.beat(info, ttl).await
    }

    async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.store.nodes().await
    }

    async fn tick(&self, node: &NodeId) -> Result<Ticked, StoreError> {
        self.store.tick(node).await
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRecord>, StoreError> {
        self.store.schedules().await
    }

    async fn schedule(&self, change: &ScheduleChange) -> Result<ScheduleChanged, StoreError> {
        let changed = self.store.schedule(change).await?;
        if let (ScheduleChange::Fire { push, .. }, ScheduleChanged::Done) = (change, changed) {
            let mut seen = self.seen.lock();
            for envelope in push {
                let fired = seen.slots.entry(envelope.id.clone()).or_default();
                *fired += 1;
                if *fired > 1 {
                    seen.breaches.push(format!("the slot {} fired twice", envelope.id));
                }
            }
        }
        Ok(changed)
    }

    async fn limits(&self) -> Result<LimitsView, StoreError> {
        self.store.limits().await
    }

    async fn limit(&self, change: &LimitChange) -> Result<bool, StoreError> {
        let changed = self.store.limit(change).await?;
        self.seen.lock().limits.saw_change(change, self.clock.now());
        Ok(changed)
    }

    async fn note(&self, ask: &NoteAsk) -> Result<NoteAnswer, StoreError> {
        self.store.note(ask).await
    }

    async fn watch(&self, ids: &[TaskId], wait: Duration) -> Result<Vec<Record>, StoreError> {
        self.store.watch(ids, wait).await
    }

    async fn transfer(&self, step: &Transfer) -> Result<Transferred, StoreError> {
        self.store.transfer(step).await
    }

    async fn info(&self) -> Result<Info, StoreError> {
        self.store.info().await
    }
}
