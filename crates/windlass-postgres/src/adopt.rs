//! Adopting the deliveries of a foreign transport: one transaction.
//!
//! 1. forget what the transport has let go, remember what is new: two nodes with one delivery meet here, and one waits
//! 2. push what is new; forget again what found no place   3. claim   4. wake others for what is left

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;

use windlass_core::adoption::{Adopted, Adoption, DELIVERY_SPACE, DELIVERY_TTL, remembered};
use windlass_core::backend::Demand;
use windlass_core::{DeliveryId, Json, QueueName, TaskId, Verdict};

use crate::claim::{self, Claimed, PROMOTE_MAX, Walk};
use crate::errors::Fault;
use crate::lanes::Claiming;
use crate::push::NewTask;
use crate::rows::{micros, value};
use crate::tx::Tx;
use crate::{Gates, Shared, offer, tick, turns};

/// Adopts deliveries, and takes what is demanded.
pub(crate) async fn adopt(
    tx: &mut Tx<'_>,
    shared: &Shared,
    adoption: &Adoption,
) -> Result<(Vec<Adopted>, Vec<Claimed>), Fault> {
    forget(tx, &adoption.accepted.iter().collect::<Vec<_>>()).await?;
    let mut adopted: Vec<Option<Adopted>> = vec![None; adoption.deliveries.len()];
    let mut rest: Vec<usize> = (0..adopted.len()).collect();
    while !rest.is_empty() {
        // A delivery that is there twice is looked at again: by then it is known, or had no place.
        let mut seen: HashSet<&DeliveryId> = HashSet::new();
        let (firsts, again) = rest.iter().partition(|place| seen.insert(&adoption.deliveries[**place].id));
        adopt_firsts(tx, adoption, firsts, &mut adopted).await?;
        rest = again;
    }
    let adopted: Vec<Adopted> = adopted.into_iter().flatten().collect();
    let Some(demand) = adoption.demand.as_ref().filter(|demand| demand.max > 0) else {
        return Ok((adopted, Vec::new()));
    };
    let mut ready: HashMap<&TaskId, &QueueName> = HashMap::new();
    for (delivery, answer) in adoption.deliveries.iter().zip(&adopted) {
        if *answer == Adopted::Stored && delivery.envelope.due.instant(tx.now).is_none() {
            ready.insert(&delivery.envelope.id, &delivery.envelope.queue);
        }
    }
    let replaced = adopted.iter().any(|answer| matches!(answer, Adopted::Replaced(_)));
    if !replaced {
        tx.effects.queues.clear();
    }
    let claimed = take(tx, shared, demand).await?;
    for task in &claimed {
        ready.remove(&task.receipt.id);
    }
    tx.effects.queues.extend(ready.into_values().cloned());
    Ok((adopted, claimed))
}

/// Adopts the deliveries in these places, each with an identity of its own.
async fn adopt_firsts(
    tx: &mut Tx<'_>,
    adoption: &Adoption,
    places: Vec<usize>,
    adopted: &mut [Option<Adopted>],
) -> Result<(), Fault> {
    let deliveries = |place: &usize| &adoption.deliveries[*place];
    let new = remember(tx, places.iter().map(|place| (&deliveries(place).id, &deliveries(place).envelope.id))).await?;
    let mut sound: Vec<(usize, NewTask)> = Vec::new();
    for place in places {
        let delivery = deliveries(&place);
        if !new.contains(delivery.id.as_str()) {
            adopted[place] = Some(Adopted::Known);
            continue;
        }
        let task = NewTask::of(&delivery.envelope);
        match delivery.verdict() {
            Some(Verdict::Dead { reason, failure }) => {
                let pushed = offer::bury_again(tx, &task, reason, &failure).await?;
                adopted[place] = Some(pushed.into());
            }
            Some(_) | None => sound.push((place, task)),
        }
    }
    let (places, tasks): (Vec<usize>, Vec<NewTask>) = sound.into_iter().unzip();
    if !tasks.is_empty() {
        for (place, pushed) in places.into_iter().zip(offer::offer_again(tx, &tasks).await?) {
            adopted[place] = Some(pushed.into());
        }
    }
    let mut without_place: Vec<&DeliveryId> = Vec::new();
    for (delivery, answer) in adoption.deliveries.iter().zip(adopted.iter()) {
        let Some(answer) = answer else { continue };
        match answer.to_remember(&delivery.envelope.id) {
            Some(json) if *answer != Adopted::Stored => say(tx, &delivery.id, &json).await?,
            None if *answer != Adopted::Known => without_place.push(&delivery.id),
            Some(_) | None => {}
        }
    }
    forget(tx, &without_place).await
}

/// Remembers deliveries with their tasks, unless they are remembered; answers which are new. Nobody else's are seen before
/// their transaction has ended.
async fn remember<'a>(
    tx: &Tx<'_>,
    deliveries: impl Iterator<Item = (&'a DeliveryId, &'a TaskId)>,
) -> Result<HashSet<String>, Fault> {
    // Everybody remembers in one order.
    let mut deliveries: Vec<(&str, String)> =
        deliveries.map(|(id, task)| (id.as_str(), remembered(task).as_str().to_owned())).collect();
    deliveries.sort_unstable();
    let (keys, values): (Vec<&str>, Vec<String>) = deliveries.into_iter().unzip();
    let now = tx.now.as_micros();
    let expires = now.saturating_add(micros(DELIVERY_TTL));
    let rows = tx
        .query(
            "INSERT INTO windlass.note AS n (space, key, value, version, expires) \
             SELECT $2, r.key, r.value, nextval('windlass.note_version'), $5 FROM unnest($3::text[], $4::text[]) AS r(key, value) \
             ON CONFLICT (space, key) DO UPDATE \
             SET value = excluded.value, version = excluded.version, expires = excluded.expires \
             WHERE n.expires <= $1 RETURNING key",
            &[&now, &DELIVERY_SPACE, &keys, &values, &expires],
        )
        .await?;
    rows.iter().map(|row| value(row, 0)).collect()
}

/// Remembers another task with a delivery.
async fn say(tx: &Tx<'_>, id: &DeliveryId, task: &Json) -> Result<(), Fault> {
    let values: crate::connection::Values<'_> = &[&DELIVERY_SPACE, &id.as_str(), &task.as_str()];
    tx.execute("UPDATE windlass.note SET value = $3 WHERE space = $1 AND key = $2", values).await.map(drop)
}

async fn forget(tx: &Tx<'_>, deliveries: &[&DeliveryId]) -> Result<(), Fault> {
    if deliveries.is_empty() {
        return Ok(());
    }
    let mut keys: Vec<&str> = deliveries.iter().map(|id| id.as_str()).collect();
    keys.sort_unstable();
    // Locked in one order, as they are remembered.
    tx.execute(
        "DELETE FROM windlass.note n USING (SELECT key FROM windlass.note WHERE space = $1 AND key = ANY($2) ORDER BY key FOR UPDATE) k \
         WHERE n.space = $1 AND n.key = k.key",
        &[&DELIVERY_SPACE, &keys],
    )
    .await
    .map(drop)
}

/// Takes what is demanded, within the transaction: by rank or by name, or in turns when gates or keys concern the queues.
async fn take(tx: &mut Tx<'_>, shared: &Shared, demand: &Demand) -> Result<Vec<Claimed>, Fault> {
    let mut claimed = Vec::new();
    // Reservations belong to lanes: past gates that are far from shutting it goes in turns as well.
    let mut in_turns = shared.past_gates(demand).is_some();
    let mut by_name = !demand.except.is_empty() || shared.names_paused.load(Ordering::Relaxed);
    loop {
        let demand = Demand { max: demand.max - claimed.len(), ..demand.clone() };
        let now = Some(tx.now.as_micros());
        let promoted = claim::promote(tx.connection(), now, PROMOTE_MAX).await?;
        tx.effects.queues.extend(promoted.queues);
        shared.names_paused(promoted.names_paused, true);
        if in_turns {
            let read = Box::pin(turns::read(tx, shared, &demand)).await?;
            let mut decided = Box::pin(turns::decide(tx, read, &demand)).await?;
            claimed.extend(decided.write(tx, &demand).await?);
            if decided.alone {
                shared.go_alone(&demand.queues);
            }
            return Ok(claimed);
        }
        let walk = if by_name || promoted.names_paused { Walk::Names } else { Walk::Ranks };
        by_name = walk == Walk::Names;
        let claiming = Claiming { demand, walk };
        let took = claim::take(tx.connection(), now, &claiming, None).await?;
        let found = took.claimed.len() + took.late.len();
        claimed.extend(took.claimed);
        if took.shared {
            shared.go_past_gates(&claiming.demand.queues, Gates::Near);
            in_turns = true;
            continue;
        }
        if !took.late.is_empty() {
            tick::expire(tx, &took.late).await?;
        }
        // What had expired has made room for others.
        if took.late.is_empty() || found < claiming.demand.max {
            return Ok(claimed);
        }
    }
}
