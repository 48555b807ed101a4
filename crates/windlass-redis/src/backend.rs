//! The port: checks of limits, and which module does what.

use std::time::Duration;

use async_trait::async_trait;
use redis::Value;
use windlass_core::adoption::{Adopting, Adoption};
use windlass_core::backend::{
    BATCH_MAX, Backend, Claim, Command, Commanded, Demand, LEASE_MAX, Push, Pushed, Renewal, Renewed, ScheduleChange,
    ScheduleChanged, Settled, Settlement, StoreError, Ticked, check_batch,
};
use windlass_core::limit::{LimitChange, LimitsView};
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::transfer::{Transfer, Transferred};
use windlass_core::view::{Counts, Filter, Info, Listing, Node, NodeInfo, Page, Record, ScheduleRecord};
use windlass_core::{NodeId, TaskId};

use crate::errors::damaged;
use crate::record::{list, parse, text};
use crate::scripts::Script;
use crate::{
    RedisStore, claim, command, counts, encode, fleet, info, limits, listing, notes, schedules, settle, transfer, watch,
};

#[async_trait]
impl Backend for RedisStore {
    async fn push(&self, push: &Push) -> Result<Vec<Pushed>, StoreError> {
        push.check()?;
        if push.envelopes.is_empty() && push.groups.is_empty() {
            return Ok(Vec::new());
        }
        let answer = self
            .shared
            .run(Script::Push, |cmd| {
                cmd.arg(encode::groups(&push.groups)).arg(push.envelopes.len());
                push.envelopes.iter().for_each(|envelope| encode::add_task(cmd, envelope));
            })
            .await?;
        list(answer)?.into_iter().map(pushed_of).collect()
    }

    async fn claim(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
        demand.check()?;
        claim::claim(&self.shared, demand).await
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopting, StoreError> {
        adoption.check()?;
        claim::adopt(&self.shared, adoption).await
    }

    async fn renew(&self, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError> {
        check_batch("renewals", renewals.len(), BATCH_MAX)?;
        if lease.is_zero() || lease > LEASE_MAX {
            return Err(StoreError::Rejected("a lease is longer than zero and at most 24 h".to_owned()));
        }
        claim::renew(&self.shared, renewals, lease).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError> {
        check_batch("settlements", settled.len(), BATCH_MAX)?;
        settle::settle(&self.shared, settled).await
    }

    async fn find(&self, ids: &[TaskId]) -> Result<Vec<Option<Record>>, StoreError> {
        check_batch("ids", ids.len(), BATCH_MAX)?;
        listing::find(&self.shared, ids).await
    }

    async fn list(&self, filter: &Filter, page: &Page) -> Result<Listing, StoreError> {
        listing::page(&self.shared, filter, page).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        counts::counts(&self.shared).await
    }

    async fn command(&self, command: &Command) -> Result<Commanded, StoreError> {
        command::command(&self.shared, command).await
    }

    async fn beat(&self, info: &NodeInfo, ttl: Duration) -> Result<(), StoreError> {
        fleet::beat(&self.shared, info, ttl).await
    }

    async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        fleet::nodes(&self.shared).await
    }

    async fn tick(&self, node: &NodeId) -> Result<Ticked, StoreError> {
        fleet::tick(&self.shared, node).await
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRecord>, StoreError> {
        schedules::all(&self.shared).await
    }

    async fn schedule(&self, change: &ScheduleChange) -> Result<ScheduleChanged, StoreError> {
        schedules::change(&self.shared, change).await
    }

    async fn limits(&self) -> Result<LimitsView, StoreError> {
        limits::view(&self.shared).await
    }

    async fn limit(&self, change: &LimitChange) -> Result<bool, StoreError> {
        change.check()?;
        limits::change(&self.shared, change).await
    }

    async fn note(&self, ask: &NoteAsk) -> Result<NoteAnswer, StoreError> {
        ask.check()?;
        notes::note(&self.shared, ask).await
    }

    async fn watch(&self, ids: &[TaskId], wait: Duration) -> Result<Vec<Record>, StoreError> {
        check_batch("ids", ids.len(), BATCH_MAX)?;
        watch::watch(&self.shared, ids, wait).await
    }

    async fn transfer(&self, step: &Transfer) -> Result<Transferred, StoreError> {
        transfer::transfer(&self.shared, step).await
    }

    async fn info(&self) -> Result<Info, StoreError> {
        info::info(&self.shared).await
    }
}

/// What a push says about one task.
pub(crate) fn pushed_of(answer: Value) -> Result<Pushed, StoreError> {
    let id = |id: Value| parse("task id", &text(id)?);
    match answer {
        Value::Nil | Value::Boolean(false) => Ok(Pushed::Stored),
        Value::Int(limit) => Ok(Pushed::Full { limit: u64::try_from(limit).unwrap_or(0) }),
        Value::Array(mut replaced) => match replaced.pop() {
            Some(replaced) => id(replaced).map(Pushed::Replaced),
            None => Err(damaged("answer", "it says nothing about a push")),
        },
        taken => id(taken).map(Pushed::Exists),
    }
}
