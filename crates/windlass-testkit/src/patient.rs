//! A store that asks again while the store behind it is away, as the engine does.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use windlass_core::adoption::{Adopted, Adopting, Adoption};
use windlass_core::backend::{
    Backend, Claim, Command, Commanded, Demand, Push, Pushed, Renewal, Renewed, ScheduleChange, ScheduleChanged,
    Settled, Settlement, StoreError, Ticked,
};
use windlass_core::limit::{LimitChange, LimitsView};
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::transfer::{Transfer, Transferred};
use windlass_core::view::{Counts, Filter, Info, Listing, Node, NodeInfo, Page, Record, ScheduleRecord};
use windlass_core::{NodeId, TaskId};

/// How long it asks again.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(20);

/// Repeats what failed only for now: the conformance suite runs through it while servers are restarted and connections are
/// cut.
///
/// When the answer to a push, an adoption or a settle was lost, the second one says "known already": then this looks whether it was the
/// first that did it, and answers what was lost. A claim whose answer was lost holds tasks that nobody knows of, as in
/// production, where their leases end; a case in which that happens fails.
pub struct PatientStore(Arc<dyn Backend>);

impl PatientStore {
    /// Patience with this store.
    pub fn new(store: Arc<dyn Backend>) -> Self {
        Self(store)
    }

    /// The answer, and whether the store failed before it.
    async fn ask<T, F>(&self, request: impl Fn() -> F) -> Result<(T, bool), StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let give_up_at = Instant::now() + PATIENCE;
        let mut failed = false;
        loop {
            match request().await {
                Ok(answer) => return Ok((answer, failed)),
                Err(error) if error.is_transient() && Instant::now() < give_up_at => {
                    failed = true;
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl fmt::Debug for PatientStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PatientStore").field(&self.0).finish()
    }
}

#[async_trait]
impl Backend for PatientStore {
    async fn push(&self, push: &Push) -> Result<Vec<Pushed>, StoreError> {
        let (mut answers, failed) = self.ask(|| self.0.push(push)).await?;
        if failed {
            for (envelope, answer) in push.envelopes.iter().zip(&mut answers) {
                if *answer == Pushed::Exists(envelope.id.clone()) {
                    *answer = Pushed::Stored;
                }
            }
        }
        Ok(answers)
    }

    async fn claim(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
        Ok(self.ask(|| self.0.claim(demand)).await?.0)
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopting, StoreError> {
        let (mut adopting, failed) = self.ask(|| self.0.adopt(adoption)).await?;
        if failed {
            for answer in &mut adopting.adopted {
                if *answer == Adopted::Known {
                    *answer = Adopted::Stored;
                }
            }
        }
        Ok(adopting)
    }

    async fn renew(&self, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError> {
        Ok(self.ask(|| self.0.renew(renewals, lease)).await?.0)
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError> {
        let (mut answers, failed) = self.ask(|| self.0.settle(settled)).await?;
        if failed {
            let ids: Vec<TaskId> = settled.iter().map(|settled| settled.receipt.id.clone()).collect();
            let records = self.ask(|| self.0.find(&ids)).await?.0;
            for ((settled, record), answer) in settled.iter().zip(records).zip(&mut answers) {
                if record.is_some_and(|record| record.state == settled.verdict.state()) {
                    *answer = Settlement::Applied;
                }
            }
        }
        Ok(answers)
    }

    async fn find(&self, ids: &[TaskId]) -> Result<Vec<Option<Record>>, StoreError> {
        Ok(self.ask(|| self.0.find(ids)).await?.0)
    }

    async fn list(&self, filter: &Filter, page: &Page) -> Result<Listing, StoreError> {
        Ok(self.ask(|| self.0.list(filter, page)).await?.0)
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        Ok(self.ask(|| self.0.counts()).await?.0)
    }

    async fn command(&self, command: &Command) -> Result<Commanded, StoreError> {
        Ok(self.ask(|| self.0.command(command)).await?.0)
    }

    async fn beat(&self, info: &NodeInfo, ttl: Duration) -> Result<(), StoreError> {
        self.ask(|| self.0.beat(info, ttl)).await.map(drop)
    }

    async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        Ok(self.ask(|| self.0.nodes()).await?.0)
    }

    async fn tick(&self, node: &NodeId) -> Result<Ticked, StoreError> {
        Ok(self.ask(|| self.0.tick(node)).await?.0)
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRecord>, StoreError> {
        Ok(self.ask(|| self.0.schedules()).await?.0)
    }

    async fn schedule(&self, change: &ScheduleChange) -> Result<ScheduleChanged, StoreError> {
        Ok(self.ask(|| self.0.schedule(change)).await?.0)
    }

    async fn limits(&self) -> Result<LimitsView, StoreError> {
        Ok(self.ask(|| self.0.limits()).await?.0)
    }

    async fn limit(&self, change: &LimitChange) -> Result<bool, StoreError> {
        Ok(self.ask(|| self.0.limit(change)).await?.0)
    }

    async fn note(&self, ask: &NoteAsk) -> Result<NoteAnswer, StoreError> {
        Ok(self.ask(|| self.0.note(ask)).await?.0)
    }

    async fn watch(&self, ids: &[TaskId], wait: Duration) -> Result<Vec<Record>, StoreError> {
        Ok(self.ask(|| self.0.watch(ids, wait)).await?.0)
    }

    async fn transfer(&self, step: &Transfer) -> Result<Transferred, StoreError> {
        Ok(self.ask(|| self.0.transfer(step)).await?.0)
    }

    async fn info(&self) -> Result<Info, StoreError> {
        Ok(self.ask(|| self.0.info()).await?.0)
    }
}
