//! Taking tasks, waiting for them, and renewing the leases of those taken.

use std::sync::Arc;
use std::time::Duration;

use redis::{Cmd, Value};
use tokio::time::Instant;
use tracing::warn;
use windlass_core::adoption::{Adopted, Adopting, Adoption, Delivery};
use windlass_core::backend::{Claim, Demand, Receipt, Renewal, Renewed, WAIT_MAX};
use windlass_core::{DeadReason, Due, Envelope, Failure, StoreError, Timestamp, Verdict};

use crate::Shared;
use crate::backend::pushed_of;
use crate::encode::{self, micros};
use crate::errors::damaged;
use crate::record::{Packed, bytes, integer, list, optional_text, row_number, row_text, to_json};
use crate::scripts::Script;
use crate::settle::{Item, end_by_store};
use crate::wake::{LOOK, Ticket};

/// The most tasks that one script takes, as many as a node has slots by default: the server does nothing else meanwhile.
const CHUNK: usize = 256;
/// A claim that waits holds out this long while the server cannot be asked; then its caller hears of it.
const HOLD_OUT: Duration = Duration::from_secs(5);
/// Between two attempts to ask a server that did not answer.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// Takes what the demand may have, and waits for it when it is to wait.
pub(crate) async fn claim(shared: &Arc<Shared>, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
    if demand.max == 0 || demand.queues.is_empty() {
        return Ok(Vec::new());
    }
    if demand.wait.is_zero() {
        return Ok(take(shared, demand, None).await?.0);
    }
    let deadline = Instant::now() + demand.wait.min(WAIT_MAX);
    let mut ticket = Ticket::new(shared, demand).await;
    let mut silent_since: Option<Instant> = None;
    let mut has_looked = false;
    loop {
        let look_at = match take(shared, demand, Some(&mut ticket)).await {
            Ok((claims, _)) if !claims.is_empty() => return Ok(claims),
            Ok((_, alarm)) => {
                (silent_since, has_looked) = (None, true);
                Instant::now() + alarm.map_or(LOOK, |alarm| alarm.min(LOOK))
            }
            // A server that is started again is waited for, so that a claim goes on by itself.
            Err(error) if error.is_transient() && has_looked => {
                let since = *silent_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= HOLD_OUT {
                    return Err(error);
                }
                Instant::now() + ASK_AGAIN
            }
            Err(error) => return Err(error),
        };
        if demand.hush.is_cancelled() || Instant::now() >= deadline {
            return Ok(Vec::new());
        }
        tokio::select! {
            biased;
            () = demand.hush.cancelled() => return Ok(Vec::new()),
            () = ticket.rung(), if silent_since.is_none() => {}
            () = tokio::time::sleep_until(look_at.min(deadline)) => {}
        }
    }
}

/// One look, and when the next task falls due or may start.
async fn take(
    shared: &Arc<Shared>,
    demand: &Demand,
    ticket: Option<&mut Ticket>,
) -> Result<(Vec<Claim>, Option<Duration>), StoreError> {
    go_on(shared, demand, Vec::new(), None, ticket).await
}

/// Looks until the demand is served or nothing is left; some claims and the first look may be there already. A task that cannot be
/// read becomes a dead letter instead of being claimed for ever.
async fn go_on(
    shared: &Arc<Shared>,
    demand: &Demand,
    mut claims: Vec<Claim>,
    mut first: Option<Looked>,
    mut ticket: Option<&mut Ticket>,
) -> Result<(Vec<Claim>, Option<Duration>), StoreError> {
    loop {
        let rest = demand.max - claims.len();
        let room = if first.is_some() { rest } else { rest.min(CHUNK) };
        // Only the first look may leave a name: the others find that nothing is left.
        let waiting = if claims.is_empty() { ticket.as_deref_mut() } else { None };
        let looked = match first.take() {
            Some(looked) => Ok(looked),
            None => look(shared, demand, room, waiting).await,
        };
        let looked = match looked {
            Ok(looked) => looked,
            Err(error) if claims.is_empty() => return Err(error),
            Err(error) => {
                warn!(event = "claim_cut_short", %error, taken = claims.len(), "a part of a claim failed");
                return Ok((claims, None));
            }
        };
        let found = looked.tasks.len();
        for Taken { row, packed, body, memo } in looked.tasks {
            match packed.envelope(&body) {
                Ok(envelope) => claims.push(claim_of(row, &packed, envelope, memo)),
                Err(invalid) => bury(shared, row, &packed, &invalid.to_string()).await?,
            }
        }
        let is_late = !looked.late.is_empty();
        for (row, packed, body) in looked.late {
            end_by_store(shared, row, &packed, &body, &Verdict::Expired).await?;
        }
        let is_more = found == room || is_late;
        if claims.len() == demand.max || !is_more || (found < room && !claims.is_empty()) {
            return Ok((claims, looked.alarm));
        }
    }
}

struct Taken {
    row: i64,
    packed: Packed,
    /// Its body, when that is not packed with it.
    body: String,
    memo: String,
}

struct Looked {
    tasks: Vec<Taken>,
    /// Those that have expired and that the script could not end.
    late: Vec<(i64, Vec<u8>, String)>,
    alarm: Option<Duration>,
}

async fn look(
    shared: &Arc<Shared>,
    demand: &Demand,
    room: usize,
    mut ticket: Option<&mut Ticket>,
) -> Result<Looked, StoreError> {
    let (name, listed) = match &ticket {
        Some(ticket) => {
            ticket.looks();
            (ticket.name().to_owned(), ticket.is_listed())
        }
        None => (String::new(), false),
    };
    // Until the answer is there, the name may be listed.
    if let Some(ticket) = ticket.as_deref_mut() {
        ticket.looked(true);
    }
    let answer = shared
        .run(Script::Claim, |cmd| {
            add_demand(cmd, demand, room, &name, listed);
        })
        .await?;
    let looked = looked_of(answer)?;
    if let Some(ticket) = ticket {
        ticket.looked(looked.tasks.is_empty());
    }
    Ok(looked)
}

/// Adds what the script of a claim takes: at most `room` tasks, for the claim that waits under this name, if it does.
fn add_demand(cmd: &mut Cmd, demand: &Demand, room: usize, name: &str, listed: bool) {
    cmd.arg(demand.node.as_str()).arg(micros(demand.lease)).arg(room).arg(name).arg(u8::from(listed));
    cmd.arg(demand.queues.len()).arg(demand.except.len());
    for queue in &demand.queues {
        cmd.arg(queue.as_str());
    }
    for except in &demand.except {
        cmd.arg(except.as_str());
    }
}

/// The answer of a claim's script.
fn looked_of(answer: Value) -> Result<Looked, StoreError> {
    let mut parts = list(answer)?.into_iter();
    let mut next = || parts.next().unwrap_or(Value::Nil);
    let taken = usize::try_from(integer(&next())?).map_err(|error| damaged("answer", error))?;
    let alarm = u64::try_from(integer(&next())?).ok().map(Duration::from_micros);
    let mut tasks = Vec::with_capacity(taken);
    for _ in 0..taken {
        let row = row_number(&next())?;
        let packed = Packed::of(&bytes(next())?)?;
        let [body, memo] = [next(), next()].map(|part| optional_text(part).map(Option::unwrap_or_default));
        tasks.push(Taken { row, packed, body: body?, memo: memo? });
    }
    let mut late = Vec::new();
    loop {
        match next() {
            Value::Nil => break,
            row => late.push((row_number(&row)?, bytes(next())?, optional_text(next())?.unwrap_or_default())),
        }
    }
    Ok(Looked { tasks, late, alarm })
}

/// Stores the deliveries of a foreign transport and takes what is demanded, in one script.
pub(crate) async fn adopt(shared: &Arc<Shared>, adoption: &Adoption) -> Result<Adopting, StoreError> {
    let demand = adoption.demand.as_ref().filter(|demand| demand.max > 0);
    let answer = shared
        .run(Script::Adopt, |cmd| {
            match demand {
                Some(demand) => add_demand(cmd, demand, demand.max, "", false),
                // Nobody, for no time, nothing, and so on: no queue is looked into.
                None => {
                    cmd.arg("").arg(0).arg(0).arg("").arg(0).arg(0).arg(0);
                }
            }
            encode::add_adoption(cmd, adoption);
        })
        .await?;
    let Ok([adopted, looked, begun]) = <[Value; 3]>::try_from(list(answer)?) else {
        return Err(damaged("answer", "it says nothing about an adoption"));
    };
    let adopted = list(adopted)?.into_iter().map(adopted_of).collect::<Result<Vec<_>, _>>()?;
    let Some(demand) = demand else { return Ok(Adopting { adopted, claims: Vec::new() }) };
    let claims = begun_of(begun, &adoption.deliveries)?;
    let (claims, _) = go_on(shared, demand, claims, Some(looked_of(looked)?), None).await?;
    Ok(Adopting { adopted, claims })
}

/// The deliveries that the script of an adoption has handed to the node at once: all that it says of them is where they are.
fn begun_of(answer: Value, deliveries: &[Delivery]) -> Result<Vec<Claim>, StoreError> {
    let mut parts = list(answer)?.into_iter();
    let mut next = || parts.next().unwrap_or(Value::Nil);
    let began_at = Timestamp::from_micros(row_number(&next())?);
    let row_before = row_number(&next())?;
    parts
        .map(|place| {
            let place = integer(&place)?;
            let delivery = usize::try_from(place - 1).ok().and_then(|index| deliveries.get(index));
            let Delivery { envelope, .. } = delivery.ok_or_else(|| damaged("answer", "there is no such delivery"))?;
            Ok(Claim {
                receipt: Receipt { id: envelope.id.clone(), fence: 1, row: row_before + place },
                attempt: 1,
                enqueued_at: began_at,
                ready_at: began_at,
                // As it would be read from the store: when it was due is over.
                envelope: Arc::new(Envelope { due: Due::Now, ..envelope.clone() }),
                memo: String::new(),
            })
        })
        .collect()
}

fn adopted_of(answer: Value) -> Result<Adopted, StoreError> {
    match answer {
        Value::Int(-1) => Ok(Adopted::Known),
        pushed => pushed_of(pushed).map(Adopted::from),
    }
}

fn claim_of(row: i64, packed: &Packed, envelope: Envelope, memo: String) -> Claim {
    Claim {
        receipt: Receipt { id: packed.id.clone(), fence: packed.fence, row },
        attempt: packed.attempt,
        enqueued_at: packed.enqueued_at,
        ready_at: packed.ready_at(),
        envelope: Arc::new(envelope),
        memo,
    }
}

async fn bury(shared: &Arc<Shared>, row: i64, packed: &Packed, detail: &str) -> Result<(), StoreError> {
    warn!(event = "task_damaged", task.id = %packed.id, detail, "a stored task cannot be read; it becomes a dead letter");
    let receipt = Receipt { id: packed.id.clone(), fence: packed.fence, row };
    let verdict = Verdict::Dead { reason: DeadReason::Malformed, failure: Failure::new("damaged", detail) };
    crate::settle::run(shared, &[Item::held(&receipt, &verdict, String::new())]).await.map(drop)
}

/// Renews leases from now on.
pub(crate) async fn renew(
    shared: &Arc<Shared>,
    renewals: &[Renewal],
    lease: Duration,
) -> Result<Vec<Renewed>, StoreError> {
    let chunks = renewals.chunks(CHUNK).map(|chunk| renew_chunk(shared, chunk, lease));
    Ok(futures_util::future::try_join_all(chunks).await?.concat())
}

async fn renew_chunk(shared: &Shared, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError> {
    let answer = shared
        .run(Script::Renew, |cmd| {
            cmd.arg(micros(lease));
            for Renewal { receipt, progress, memo } in renewals {
                let progress = progress.as_ref().map(|progress| to_json(&progress.shortened())).unwrap_or_default();
                cmd.arg(row_text(receipt.row)).arg(receipt.fence).arg(receipt.id.to_string()).arg(progress);
                cmd.arg(memo.as_deref().unwrap_or_default());
            }
        })
        .await?;
    list(answer)?
        .into_iter()
        .map(|answer| match bytes(answer)?.as_slice() {
            b"h" => Ok(Renewed::Held),
            b"c" => Ok(Renewed::Cancelled),
            b"l" => Ok(Renewed::Lost),
            _ => Err(damaged("answer", "it says nothing about a lease")),
        })
        .collect()
}
