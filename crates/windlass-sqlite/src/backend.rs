//! The port: each method encodes in the calling task, hands a job to the writer or a look to a reader, and decodes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::warn;
use windlass_core::adoption::{Adopting, Adoption};
use windlass_core::backend::{
    BATCH_MAX, Backend, COMMAND_MAX, Claim, Command, Commanded, Demand, LEASE_MAX, Push, Pushed, Renewal, Renewed,
    ScheduleChange, ScheduleChanged, Settled, Settlement, Target, TaskAction, Ticked, WAIT_MAX, check_batch,
};
use windlass_core::limit::{LimitChange, LimitsView};
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::transfer::{Transfer, Transferred};
use windlass_core::view::{Counts, Filter, Info, Listing, Node, NodeInfo, PAGE_MAX, Page, Record, ScheduleRecord};
use windlass_core::{Envelope, NodeId, StoreError, TaskId, Timestamp};

use crate::adopt::PreparedAdoption;
use crate::claim::{Claimed, Found, PreparedRenewal};
use crate::command::Flowing;
use crate::push::{NewTask, PreparedGroup};
use crate::rows::to_json;
use crate::schedules::PreparedChange;
use crate::settle::PreparedSettle;
use crate::transfer::PreparedParcel;
use crate::writer::OnDisk;
use crate::{
    SqliteStore, adopt, claim, command, fleet, info, limits, listing, notes, push, read, schedules, settle, tick,
    transfer, wake,
};

/// A tick moves up to some thousand rows.
const TICK_ROWS: usize = 2_000;

#[async_trait]
impl Backend for SqliteStore {
    async fn push(&self, push: &Push) -> Result<Vec<Pushed>, StoreError> {
        push.check()?;
        let groups: Vec<_> = push.groups.iter().map(PreparedGroup::of).collect();
        let tasks: Vec<_> = push.envelopes.iter().map(NewTask::of).collect();
        let change = move |tx: &mut crate::tx::Tx<'_>| push::push_all(tx, &groups, &tasks);
        self.writer.write(push.envelopes.len() + push.groups.len(), change).await
    }

    async fn claim(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
        demand.check()?;
        let deadline = Instant::now() + demand.wait.min(WAIT_MAX);
        // The ticket comes before the question: what becomes ready in between rings.
        let ticket = self.shared.bell.wait_for_ready(&demand.queues, &demand.except);
        loop {
            if demand.hush.is_cancelled() || demand.max == 0 {
                return Ok(Vec::new());
            }
            let (claims, opens_at) = self.claim_now(demand).await?;
            if !claims.is_empty() || Instant::now() >= deadline {
                return Ok(claims);
            }
            tokio::select! {
                () = ticket.rung() => {}
                () = wake::until(&*self.shared.clock, opens_at) => {}
                () = demand.hush.cancelled() => return Ok(Vec::new()),
                () = tokio::time::sleep_until(deadline) => return Ok(Vec::new()),
            }
        }
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopting, StoreError> {
        adoption.check()?;
        let adoption = PreparedAdoption::of(adoption);
        let (on_disk, rows) = (adoption.on_disk(), adoption.rows());
        let (adopted, found) = self.writer.write_as(on_disk, rows, move |tx| adopt::adopt(tx, &adoption)).await?;
        Ok(Adopting { adopted, claims: self.decoded(found.claimed).await? })
    }

    async fn renew(&self, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError> {
        check_batch("renewals", renewals.len(), BATCH_MAX)?;
        if lease.is_zero() || lease > LEASE_MAX {
            return Err(StoreError::Rejected("a lease is longer than zero and at most 24 h".to_owned()));
        }
        let renewals: Vec<_> = renewals.iter().map(PreparedRenewal::of).collect();
        let rows = renewals.len();
        let must = renewals.iter().map(PreparedRenewal::on_disk).find(|on_disk| *on_disk == OnDisk::AtCommit);
        self.writer
            .write_as(must.unwrap_or(OnDisk::Later), rows, move |tx| {
                renewals.iter().map(|renewal| claim::renew(tx, renewal, lease)).collect()
            })
            .await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError> {
        check_batch("settlements", settled.len(), BATCH_MAX)?;
        let settled: Vec<_> = settled.iter().map(PreparedSettle::of).collect();
        let rows = settled.iter().map(PreparedSettle::rows).sum();
        self.writer.write(rows, move |tx| settled.iter().map(|settled| settle::settle(tx, settled)).collect()).await
    }

    async fn find(&self, ids: &[TaskId]) -> Result<Vec<Option<Record>>, StoreError> {
        check_batch("ids", ids.len(), BATCH_MAX)?;
        let ids = ids.to_vec();
        self.readers.read(move |db| read::find(db, &ids)).await
    }

    async fn list(&self, filter: &Filter, page: &Page) -> Result<Listing, StoreError> {
        if page.limit == 0 || page.limit > PAGE_MAX {
            return Err(StoreError::Rejected(format!("a page has 1 to {PAGE_MAX} tasks, not {}", page.limit)));
        }
        let after = listing::place_of(page.after.as_ref())?;
        let (filter, page) = (filter.clone(), page.clone());
        self.readers.read(move |db| listing::list(db, &filter, &page, after)).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.readers.read(read::counts).await
    }

    async fn command(&self, command: &Command) -> Result<Commanded, StoreError> {
        match command.clone() {
            Command::Tasks { target, action } => self.command_tasks(target, action).await,
            Command::PauseQueue(queue) => self.flip(move |tx| command::set_queue(tx, &queue, Flowing::Paused)).await,
            Command::ResumeQueue(queue) => {
                let resume = move |tx: &mut crate::tx::Tx<'_>| {
                    tx.memory.transaction.wake_all = true;
                    command::set_queue(tx, &queue, Flowing::Resumed)
                };
                self.flip(resume).await
            }
            Command::PauseTask(name) => self.flip(move |tx| command::set_name(tx, &name, Flowing::Paused)).await,
            Command::ResumeTask(name) => {
                let resume = move |tx: &mut crate::tx::Tx<'_>| {
                    tx.memory.transaction.wake_all = true;
                    command::set_name(tx, &name, Flowing::Resumed)
                };
                self.flip(resume).await
            }
            Command::Order { node, order } => self.flip(move |tx| command::order(tx, &node, order)).await,
        }
    }

    async fn beat(&self, info: &NodeInfo, ttl: Duration) -> Result<(), StoreError> {
        let (node, text) = (info.clone(), to_json(info));
        self.writer.write_as(OnDisk::Later, 1, move |tx| fleet::beat(tx, &node, &text, ttl)).await
    }

    async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        let now = self.shared.clock.now();
        self.readers.read(move |db| fleet::nodes(db, now)).await
    }

    async fn tick(&self, node: &NodeId) -> Result<Ticked, StoreError> {
        let node = node.clone();
        let leases = self.shared.leases.look(&*self.shared.clock);
        self.writer.write_as(OnDisk::Later, TICK_ROWS, move |tx| tick::tick(tx, &node, leases)).await
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRecord>, StoreError> {
        self.readers.read(schedules::all).await
    }

    async fn schedule(&self, change: &ScheduleChange) -> Result<ScheduleChanged, StoreError> {
        if let ScheduleChange::Fire { push, .. } = change {
            check_batch("tasks", push.len(), windlass_core::envelope::PUSH_MAX)?;
        }
        let change = PreparedChange::of(change);
        self.writer.write(1, move |tx| schedules::change(tx, &change)).await
    }

    async fn limits(&self) -> Result<LimitsView, StoreError> {
        let now = self.shared.clock.now();
        self.readers.read(move |db| limits::view(db, now)).await
    }

    async fn limit(&self, change: &LimitChange) -> Result<bool, StoreError> {
        change.check()?;
        let change = change.clone();
        self.writer.write(1, move |tx| limits::change(tx, &change)).await
    }

    async fn note(&self, ask: &NoteAsk) -> Result<NoteAnswer, StoreError> {
        ask.check()?;
        let (ask, now) = (ask.clone(), self.shared.clock.now());
        match ask {
            NoteAsk::List { .. } | NoteAsk::Read { .. } => {
                self.readers.read(move |db| notes::look(db, &ask, now)).await
            }
            NoteAsk::Write { .. } | NoteAsk::Forget { .. } => {
                self.writer.write(1, move |tx| notes::change(tx, &ask)).await
            }
        }
    }

    async fn watch(&self, ids: &[TaskId], wait: Duration) -> Result<Vec<Record>, StoreError> {
        check_batch("ids", ids.len(), BATCH_MAX)?;
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        let ticket = self.shared.bell.wait_for_ends(ids);
        loop {
            let wanted = ids.to_vec();
            let ended = self.readers.read(move |db| read::ended(db, &wanted)).await?;
            if !ended.is_empty() || Instant::now() >= deadline {
                return Ok(ended);
            }
            tokio::select! {
                () = ticket.rung() => {}
                () = tokio::time::sleep_until(deadline) => return Ok(Vec::new()),
            }
        }
    }

    async fn transfer(&self, step: &Transfer) -> Result<Transferred, StoreError> {
        step.check()?;
        match step.clone() {
            Transfer::Close => self.changed(1, transfer::close).await,
            Transfer::Open => self.changed(1, transfer::open).await,
            Transfer::Export => self.readers.read(transfer::export).await.map(Transferred::Parcel),
            Transfer::Import(parcel) => {
                let parcel = PreparedParcel::of(parcel);
                self.changed(parcel.rows(), move |tx| transfer::import(tx, &parcel)).await
            }
            Transfer::Evict { tasks, groups } => {
                self.changed(tasks.len() + groups.len(), move |tx| transfer::evict(tx, &tasks, &groups)).await
            }
        }
    }

    async fn info(&self) -> Result<Info, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.readers.read(move |db| info::info(db, &shared)).await
    }
}

impl SqliteStore {
    /// One claim without waiting, and when there may be more because a gate opens. A task that cannot be read becomes a dead
    /// letter instead of being claimed for ever.
    async fn claim_now(&self, demand: &Demand) -> Result<(Vec<Claim>, Option<Timestamp>), StoreError> {
        loop {
            let wanted = demand.clone();
            let Found { claimed, opens_at } =
                self.writer.write_as(OnDisk::Later, demand.max, move |tx| claim::claim(tx, &wanted)).await?;
            let found = claimed.len();
            let claims = self.decoded(claimed).await?;
            // Sound tasks may wait behind those that were not.
            if found == 0 || !claims.is_empty() {
                return Ok((claims, opens_at));
            }
        }
    }

    /// What was claimed, without what cannot be read: that becomes a dead letter.
    async fn decoded(&self, claimed: Vec<Claimed>) -> Result<Vec<Claim>, StoreError> {
        let mut claims = Vec::with_capacity(claimed.len());
        for task in claimed {
            match decode(task) {
                Ok(claim) => claims.push(claim),
                Err((receipt, detail)) => {
                    warn!(task.id = %receipt.id, detail, "a stored task cannot be read; it becomes a dead letter");
                    self.writer.write(1, move |tx| settle::bury(tx, &receipt, &detail)).await?;
                }
            }
        }
        Ok(claims)
    }

    async fn command_tasks(&self, target: Target, action: TaskAction) -> Result<Commanded, StoreError> {
        match target {
            Target::Ids(ids) => {
                check_batch("ids", ids.len(), COMMAND_MAX)?;
                self.writer.write(ids.len(), move |tx| command::tasks(tx, &ids, &action)).await
            }
            Target::Matching { filter, after } => {
                let after = listing::place_of(after.as_ref())?;
                self.writer.write(COMMAND_MAX, move |tx| command::matching(tx, &filter, after, &action)).await
            }
        }
    }

    /// A step of a move that changes something.
    async fn changed<F>(&self, rows: usize, change: F) -> Result<Transferred, StoreError>
    where
        F: FnMut(&mut crate::tx::Tx<'_>) -> Result<u64, crate::errors::Fault> + Send + 'static,
    {
        self.writer.write(rows, change).await.map(Transferred::Changed)
    }

    /// A command that changes one thing or none.
    async fn flip<F>(&self, change: F) -> Result<Commanded, StoreError>
    where
        F: FnMut(&mut crate::tx::Tx<'_>) -> Result<u64, crate::errors::Fault> + Send + 'static,
    {
        let changed = self.writer.write(1, change).await?;
        Ok(Commanded { changed, ..Commanded::default() })
    }
}

fn decode(task: Claimed) -> Result<Claim, (windlass_core::backend::Receipt, String)> {
    match Envelope::from_body(task.receipt.id.clone(), task.name, task.queue, task.priority, &task.body) {
        Ok(envelope) => Ok(Claim {
            envelope: Arc::new(envelope),
            receipt: task.receipt,
            attempt: task.attempt,
            enqueued_at: task.enqueued_at,
            ready_at: task.ready_at,
            memo: task.memo,
        }),
        Err(invalid) => Err((task.receipt, invalid.to_string())),
    }
}
