//! The port: each method encodes, hands a job to the lanes or runs a transaction, and decodes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::warn;
use windlass_core::adoption::{Adopting, Adoption};
use windlass_core::backend::{
    BATCH_MAX, Backend, COMMAND_MAX, Claim, Command, Commanded, Demand, LEASE_MAX, Push, Pushed, Renewal, Renewed,
    ScheduleChange, ScheduleChanged, Settled, Settlement, Target, Ticked, WAIT_MAX, check_batch,
};
use windlass_core::limit::{LimitChange, LimitsView};
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::transfer::{Transfer, Transferred};
use windlass_core::view::{Counts, Filter, Info, Listing, Node, NodeInfo, PAGE_MAX, Page, Record, ScheduleRecord};
use windlass_core::{Envelope, NodeId, StoreError, TaskId};

use crate::claim::{Claimed, PreparedRenewal, Walk};
use crate::command::Flowing;
use crate::lanes::Claiming;
use crate::listen::For;
use crate::push::{Inserted, NewTask};
use crate::tx::transaction;
use crate::{
    Gates, PostgresStore, adopt, claim, command, fleet, info, limits, listing, notes, offer, read, retention,
    schedules, settle, tick, transfer,
};

/// Who waits asks at least this often, whatever it hears.
const ASK: Duration = Duration::from_secs(1);
/// Transactions after which a process adds the counts up itself: nobody may tick.
const CHANGES_MAX: u64 = 2_000;

#[async_trait]
impl Backend for PostgresStore {
    async fn push(&self, push: &Push) -> Result<Vec<Pushed>, StoreError> {
        push.check()?;
        let tasks: Arc<Vec<NewTask>> = Arc::new(push.envelopes.iter().map(NewTask::of).collect());
        let plain = push.groups.is_empty() && tasks.iter().all(|task| task.unique.is_none());
        let pushed = if tasks.is_empty() && push.groups.is_empty() {
            Vec::new()
        } else if let Some(pushed) = if plain { self.push_plain(&tasks).await? } else { None } {
            pushed
        } else {
            transaction!(self, tx => offer::offer(&mut tx, &tasks, &push.groups).await)
        };
        self.add_up_now_and_then().await;
        Ok(pushed)
    }

    async fn claim(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
        demand.check()?;
        let deadline = Instant::now() + demand.wait.min(WAIT_MAX);
        // The ticket comes before the question: what becomes ready in between rings.
        let ticket = self.shared.bell.wait_for_ready(&demand.queues);
        loop {
            if demand.hush.is_cancelled() || demand.max == 0 {
                return Ok(Vec::new());
            }
            let heard = self.listener.hears(For::Claims);
            let (claims, opens_after) = self.claim_now(demand).await?;
            if !claims.is_empty() || Instant::now() >= deadline {
                return Ok(claims);
            }
            // A gate opens by itself, and nobody tells.
            let opens = opens_after.map_or(deadline, |after| Instant::now() + after).min(deadline);
            self.shared.bell.ask_for_the_look();
            if !heard && !demand.hush.is_cancelled() {
                // What was committed by others since the question was not heard: ask again once it is.
                tokio::select! {
                    () = self.listener.begin(For::Claims) => {}
                    () = ticket.rung() => {}
                    () = demand.hush.cancelled() => return Ok(Vec::new()),
                    () = tokio::time::sleep_until(opens) => {}
                }
                if self.listener.hears(For::Claims) {
                    continue;
                }
            }
            tokio::select! {
                () = ticket.rung() => {}
                () = demand.hush.cancelled() => return Ok(Vec::new()),
                () = tokio::time::sleep_until(opens) => {}
                () = tokio::time::sleep(ASK), if !self.listener.hears(For::Claims) => {}
            }
        }
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopting, StoreError> {
        adoption.check()?;
        if let (true, true, Some(demand)) =
            (adoption.deliveries.is_empty(), adoption.accepted.is_empty(), &adoption.demand)
        {
            let claims = if demand.max == 0 { Vec::new() } else { self.claim_now(demand).await?.0 };
            return Ok(Adopting { adopted: Vec::new(), claims });
        }
        let (adopted, claimed) =
            transaction!(self, tx => Box::pin(adopt::adopt(&mut tx, &self.shared, adoption)).await);
        let claims = self.readable(claimed).await?.0;
        self.add_up_now_and_then().await;
        Ok(Adopting { adopted, claims })
    }

    async fn renew(&self, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError> {
        check_batch("renewals", renewals.len(), BATCH_MAX)?;
        if lease.is_zero() || lease > LEASE_MAX {
            return Err(StoreError::Rejected("a lease is longer than zero and at most 24 h".to_owned()));
        }
        if renewals.is_empty() {
            return Ok(Vec::new());
        }
        self.lanes.renew(renewals.iter().map(|renewal| PreparedRenewal::of(renewal, lease)).collect()).await
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError> {
        check_batch("settlements", settled.len(), BATCH_MAX)?;
        self.shared.turnover.add(settled.len());
        let sorted = settle::sort(settled);
        let plain = async {
            if sorted.plain.ends.is_empty() && sorted.plain.backs.is_empty() {
                return Ok(crate::lanes::SettledRows::default());
            }
            self.lanes.settle(sorted.plain).await
        };
        let others = async {
            if sorted.others.is_empty() {
                return Ok::<_, StoreError>(Vec::new());
            }
            Ok(transaction!(self, tx => settle::settle(&mut tx, &sorted.others).await))
        };
        let (plain, others) = tokio::join!(plain, others);
        let mut plain = plain?;
        if !plain.marked.is_empty() {
            let marked: Vec<&Settled> = settled.iter().filter(|one| plain.marked.contains(&one.receipt.row)).collect();
            let answers: Vec<Settlement> = transaction!(self, tx => settle::settle(&mut tx, &marked).await);
            let applied = marked.iter().zip(answers).filter(|(_, answer)| *answer == Settlement::Applied);
            plain.applied.extend(applied.map(|(one, _)| one.receipt.row));
        }
        Ok(settle::answers(settled, &plain, others?))
    }

    async fn find(&self, ids: &[TaskId]) -> Result<Vec<Option<Record>>, StoreError> {
        check_batch("ids", ids.len(), BATCH_MAX)?;
        Ok(transaction!(self, tx => read::find(&tx, ids).await))
    }

    async fn list(&self, filter: &Filter, page: &Page) -> Result<Listing, StoreError> {
        if page.limit == 0 || page.limit > PAGE_MAX {
            return Err(StoreError::Rejected(format!("a page has 1 to {PAGE_MAX} tasks, not {}", page.limit)));
        }
        let after = listing::place_of(page.after.as_ref())?;
        Ok(transaction!(self, tx => listing::list(&tx, filter, page, after).await))
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        Ok(transaction!(self, tx => read::counts(&tx).await))
    }

    async fn command(&self, command: &Command) -> Result<Commanded, StoreError> {
        let changed = match command {
            Command::Tasks { target: Target::Ids(ids), action } => {
                check_batch("ids", ids.len(), COMMAND_MAX)?;
                return Ok(transaction!(self, tx => command::tasks(&mut tx, ids, action).await));
            }
            Command::Tasks { target: Target::Matching { filter, after }, action } => {
                let after = listing::place_of(after.as_ref())?;
                return Ok(transaction!(self, tx => command::matching(&mut tx, filter, after, action).await));
            }
            Command::PauseQueue(queue) => {
                transaction!(self, tx => command::set_queue(&mut tx, queue, Flowing::Paused).await)
            }
            Command::ResumeQueue(queue) => {
                transaction!(self, tx => command::set_queue(&mut tx, queue, Flowing::Resumed).await)
            }
            Command::PauseTask(name) => {
                transaction!(self, tx => command::set_name(&mut tx, name, Flowing::Paused).await)
            }
            Command::ResumeTask(name) => {
                transaction!(self, tx => command::set_name(&mut tx, name, Flowing::Resumed).await)
            }
            Command::Order { node, order } => transaction!(self, tx => command::order(&mut tx, node, *order).await),
        };
        Ok(Commanded { changed, ..Commanded::default() })
    }

    async fn beat(&self, info: &NodeInfo, ttl: Duration) -> Result<(), StoreError> {
        transaction!(self, tx => fleet::beat(&mut tx, info, ttl).await);
        Ok(())
    }

    async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        Ok(transaction!(self, tx => fleet::nodes(&mut tx).await))
    }

    async fn tick(&self, node: &NodeId) -> Result<Ticked, StoreError> {
        let (ticked, now) = transaction!(self, tx => {
            let now = tx.now;
            Box::pin(tick::tick(&mut tx, &self.shared, node)).await.map(|ticked| (ticked, now))
        });
        self.shared.changes.store(0, Ordering::Relaxed);
        retention::vacuum_when_due(&self.shared);
        if self.shared.upkeep.is_due(now)
            && let Err(error) = self.look_after_days().await
        {
            retention::upkeep_failed(&error);
        }
        Ok(ticked)
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRecord>, StoreError> {
        Ok(transaction!(self, tx => schedules::all(&mut tx).await))
    }

    async fn schedule(&self, change: &ScheduleChange) -> Result<ScheduleChanged, StoreError> {
        if let ScheduleChange::Fire { push, .. } = change {
            check_batch("tasks", push.len(), windlass_core::envelope::PUSH_MAX)?;
        }
        Ok(transaction!(self, tx => schedules::change(&mut tx, change).await))
    }

    async fn limits(&self) -> Result<LimitsView, StoreError> {
        Ok(transaction!(self, tx => limits::view(&tx).await))
    }

    async fn limit(&self, change: &LimitChange) -> Result<bool, StoreError> {
        change.check()?;
        Ok(transaction!(self, tx => limits::change(&mut tx, change).await))
    }

    async fn note(&self, ask: &NoteAsk) -> Result<NoteAnswer, StoreError> {
        ask.check()?;
        Ok(transaction!(self, tx => notes::note(&mut tx, ask).await))
    }

    async fn watch(&self, ids: &[TaskId], wait: Duration) -> Result<Vec<Record>, StoreError> {
        check_batch("ids", ids.len(), BATCH_MAX)?;
        let deadline = Instant::now() + wait.min(WAIT_MAX);
        let ticket = self.shared.bell.wait_for_ends(ids);
        loop {
            let heard = self.listener.hears(For::Ends);
            let ended: Vec<Record> = transaction!(self, tx => read::ended(&tx, ids).await);
            if !ended.is_empty() || Instant::now() >= deadline {
                return Ok(ended);
            }
            if !heard {
                tokio::select! {
                    () = self.listener.begin(For::Ends) => {}
                    () = ticket.rung() => {}
                    () = tokio::time::sleep_until(deadline) => return Ok(Vec::new()),
                }
                if self.listener.hears(For::Ends) {
                    continue;
                }
            }
            tokio::select! {
                () = ticket.rung() => {}
                () = tokio::time::sleep_until(deadline) => return Ok(Vec::new()),
                () = tokio::time::sleep(ASK) => {}
            }
        }
    }

    async fn transfer(&self, step: &Transfer) -> Result<Transferred, StoreError> {
        step.check()?;
        let changed = match step {
            Transfer::Close => transaction!(self, tx => transfer::close(&mut tx).await),
            Transfer::Open => transaction!(self, tx => transfer::open(&mut tx).await),
            Transfer::Export => {
                return Ok(Transferred::Parcel(transaction!(self, tx => transfer::export(&tx).await)));
            }
            Transfer::Import(parcel) => transaction!(self, tx => transfer::import(&mut tx, parcel).await),
            Transfer::Evict { tasks, groups } => {
                transaction!(self, tx => transfer::evict(&mut tx, tasks, groups).await)
            }
        };
        self.add_up_now_and_then().await;
        Ok(Transferred::Changed(changed))
    }

    async fn info(&self) -> Result<Info, StoreError> {
        Ok(transaction!(self, tx => info::info(&tx, &self.shared).await))
    }
}

impl PostgresStore {
    /// Pushes tasks without unique keys; nothing when a queue has a length, and all of them have to be counted.
    async fn push_plain(&self, tasks: &Arc<Vec<NewTask>>) -> Result<Option<Vec<Pushed>>, StoreError> {
        let inserted = self.lanes.push(Arc::clone(tasks)).await?;
        let answer = |(task, inserted): (&NewTask, Inserted)| match inserted {
            Inserted::New => Some(Pushed::Stored),
            Inserted::Known => Some(Pushed::Exists(task.id.clone())),
            Inserted::Measured => None,
        };
        Ok(tasks.iter().zip(inserted).map(answer).collect())
    }

    /// One claim without waiting, and after which time a gate opens that was shut. What has expired is ended on the way, and a
    /// task that cannot be read becomes a dead letter instead of being claimed for ever.
    async fn claim_now(&self, demand: &Demand) -> Result<(Vec<Claim>, Option<Duration>), StoreError> {
        let mut claims: Vec<Claim> = Vec::new();
        loop {
            let rest = Demand { max: demand.max - claims.len(), ..demand.clone() };
            let round = match self.claim_round(rest).await {
                Ok(round) => round,
                // What an earlier round took is held already, and nobody else would hear of it.
                Err(error) if !claims.is_empty() => {
                    warn!(%error, "a claim ends with fewer tasks than it could have taken");
                    return Ok((claims, None));
                }
                Err(error) => return Err(error),
            };
            let (read, unread) = self.readable(round.claimed).await?;
            claims.extend(read);
            // What could not be read has made room for others.
            let repeat = round.repeat || unread > 0;
            // More is due than one round makes ready, and none of it was for this claim.
            let more_is_due = claims.is_empty() && round.promoted >= claim::PROMOTE_MAX;
            if claims.len() >= demand.max || !(repeat || more_is_due) {
                return Ok((claims, round.opens_after));
            }
        }
    }

    /// What was claimed, without what cannot be read: that becomes a dead letter. Answers how many those are, too.
    async fn readable(&self, claimed: Vec<Claimed>) -> Result<(Vec<Claim>, usize), StoreError> {
        let mut claims = Vec::with_capacity(claimed.len());
        let mut unread = Vec::new();
        for task in claimed {
            match decode(task) {
                Ok(claim) => claims.push(claim),
                Err((receipt, detail)) => {
                    warn!(task.id = %receipt.id, detail, "a stored task cannot be read; it becomes a dead letter");
                    unread.push(settle::burial(&receipt, &detail));
                }
            }
        }
        if !unread.is_empty() {
            self.settle(&unread).await?;
        }
        Ok((claims, unread.len()))
    }

    /// One round of a claim: by rank or by name, or in turns when gates or keys concern its queues.
    async fn claim_round(&self, demand: Demand) -> Result<Round, StoreError> {
        let queues = demand.queues.clone();
        let walk = if let Some(walk) = self.shared.past_gates(&demand) {
            walk
        } else if !demand.except.is_empty() || self.shared.names_paused.load(Ordering::Relaxed) {
            Walk::Names
        } else {
            Walk::Ranks
        };
        let by_rank = walk == Walk::Ranks;
        let (past_wide, dealt) = match &walk {
            Walk::Wide(wide) => (true, wide.deals()),
            Walk::Ranks | Walk::Names | Walk::Turns => (false, false),
        };
        let wanted = demand.max;
        let took = self.lanes.claim(Claiming { demand, walk }).await?;
        if took.shared && past_wide {
            self.shared.go_in_turns_for_a_while(&queues);
        } else if took.shared {
            self.shared.go_past_gates(&queues, Gates::Near);
        }
        // Some keys had less than they were dealt: others have it, in turns.
        let dealt_too_much = dealt && !took.shared && took.claimed.len() < wanted;
        if dealt_too_much {
            self.shared.go_past_gates(&queues, Gates::Near);
        }
        if let Some(gates) = took.gates {
            self.shared.go_past_gates(&queues, gates);
        }
        if took.alone {
            self.shared.go_alone(&queues);
        }
        if !took.late.is_empty() {
            transaction!(self, tx => tick::expire(&mut tx, &took.late).await);
        }
        // A walk by ranks takes nothing while names are paused: the next one goes by name.
        let by_name_next = by_rank && took.names_paused;
        // What had expired has made room for others.
        let repeat = by_name_next || took.shared || dealt_too_much || !took.late.is_empty();
        Ok(Round { claimed: took.claimed, promoted: took.promoted, opens_after: took.opens_after, repeat })
    }

    /// Adds the counts up in a process that only pushes.
    async fn add_up_now_and_then(&self) {
        if self.shared.changes.load(Ordering::Relaxed) < CHANGES_MAX {
            return;
        }
        self.shared.changes.store(0, Ordering::Relaxed);
        if let Err(error) = self.add_up().await {
            warn!(%error, "the counts were not added up; the next time will do it");
        }
    }

    async fn add_up(&self) -> Result<(), StoreError> {
        transaction!(self, tx => retention::add_up(&tx).await);
        Ok(())
    }

    async fn look_after_days(&self) -> Result<(), StoreError> {
        let client = crate::connection::connect(&self.shared).await?;
        retention::make_partitions(&self.shared, &client).await?;
        drop(client);
        transaction!(self, tx => retention::drop_partitions(&mut tx, &self.shared).await);
        Ok(())
    }
}

/// What one round of a claim took.
struct Round {
    claimed: Vec<Claimed>,
    promoted: usize,
    opens_after: Option<Duration>,
    /// Another round may take more.
    repeat: bool,
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
