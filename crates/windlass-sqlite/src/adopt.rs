//! Adopting the deliveries of a foreign transport: one job of the writer.

use std::collections::HashMap;

use windlass_core::adoption::{Adopted, Adoption, Delivery};
use windlass_core::backend::{Demand, Pushed};
use windlass_core::{DeadReason, DeliveryId, Failure, State, Verdict};

use crate::claim::{self, Found};
use crate::errors::Fault;
use crate::notes;
use crate::push::{self, NewTask};
use crate::receipt::place_of;
use crate::tx::Tx;
use crate::writer::OnDisk;

/// An adoption as it is stored; made by the task that calls.
#[derive(Debug)]
pub(crate) struct PreparedAdoption {
    accepted: Vec<DeliveryId>,
    deliveries: Vec<PreparedDelivery>,
    demand: Option<Demand>,
}

#[derive(Debug)]
struct PreparedDelivery {
    id: DeliveryId,
    task: NewTask,
    flaw: Option<(DeadReason, Failure)>,
}

impl PreparedDelivery {
    fn of(delivery: &Delivery) -> Self {
        let flaw = match delivery.verdict() {
            Some(Verdict::Dead { reason, failure }) => Some((reason, failure)),
            Some(_) | None => None,
        };
        Self { id: delivery.id.clone(), task: NewTask::of(&delivery.envelope), flaw }
    }
}

impl PreparedAdoption {
    pub(crate) fn of(adoption: &Adoption) -> Self {
        Self {
            accepted: adoption.accepted.clone(),
            deliveries: adoption.deliveries.iter().map(PreparedDelivery::of).collect(),
            demand: adoption.demand.clone(),
        }
    }

    /// About how many rows it changes.
    pub(crate) fn rows(&self) -> usize {
        self.accepted.len() + 2 * self.deliveries.len() + self.demand.as_ref().map_or(0, |demand| demand.max)
    }

    /// A delivery that is accepted at its transport is only here. A claim may be forgotten with its holder, and what the
    /// transport has let go may be remembered for longer.
    pub(crate) fn on_disk(&self) -> OnDisk {
        if self.deliveries.is_empty() { OnDisk::Later } else { OnDisk::AtCommit }
    }
}

/// Stores what is new and claims what is demanded.
pub(crate) fn adopt(tx: &mut Tx<'_>, adoption: &PreparedAdoption) -> Result<(Vec<Adopted>, Found), Fault> {
    adoption.accepted.iter().try_for_each(|id| notes::forget_delivery(tx, id))?;
    // What is claimed in the step that stored it wakes nobody.
    let woken_before = tx.memory.transaction.woken.clone();
    let mut free = push::free_places(tx, adoption.deliveries.iter().map(|delivery| &delivery.task))?;
    let mut ready: HashMap<i64, i64> = HashMap::new();
    let mut adopted = Vec::with_capacity(adoption.deliveries.len());
    let mut replaced = false;
    for PreparedDelivery { id, task, flaw } in &adoption.deliveries {
        if notes::is_known(tx, id)? {
            adopted.push(Adopted::Known);
            continue;
        }
        let pushed = match flaw {
            Some((reason, failure)) => push::bury_again(tx, task, *reason, failure)?,
            None => push::push_again(tx, task, &mut free)?,
        };
        if pushed == Pushed::Stored && flaw.is_none() && task.begins_as(tx.now) == State::Ready {
            ready.insert(tx.last_seq()?, tx.queue(task.queue())?);
        }
        replaced |= matches!(pushed, Pushed::Replaced(_));
        let answer = Adopted::from(pushed);
        if let Some(value) = answer.to_remember(task.id()) {
            notes::remember_delivery(tx, id, &value)?;
        }
        adopted.push(answer);
    }
    if !replaced {
        tx.memory.transaction.woken = woken_before;
    }
    let found = adoption.demand.as_ref().map_or_else(|| Ok(Found::default()), |demand| claim::claim(tx, demand))?;
    for task in &found.claimed {
        ready.remove(&place_of(task.receipt.row));
    }
    for queue in ready.into_values() {
        tx.wake(queue);
    }
    Ok((adopted, found))
}
