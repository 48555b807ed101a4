//! Claim and renew.
//!
//! A queue's ready tasks are indexed by name and rank: the best tasks of all names that may be taken are merged here. So
//! a name that is paused, or that its worker does not want now, costs nothing, however many of its tasks wait in front.

use std::collections::BinaryHeap;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};
use windlass_core::backend::{Demand, Receipt, Renewal, Renewed};
use windlass_core::{Priority, QueueName, State, TaskName, Timestamp};

use crate::errors::Fault;
use crate::push;
use crate::receipt::{place_of, row_of};
use crate::rows::{RUNNING, id_of, is_id, optional_text, priority_of, ready_at, to_json};
use crate::tick;
use crate::turns;
use crate::tx::Tx;

/// The most scheduled tasks that a claim makes ready before it takes some; a flood of due tasks is shared among claims.
const PROMOTE_MAX: usize = 1_000;

/// A claimed task as the writer thread found it; the calling task decodes the body.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) receipt: Receipt,
    pub(crate) name: TaskName,
    pub(crate) queue: QueueName,
    pub(crate) priority: Priority,
    pub(crate) body: String,
    pub(crate) memo: String,
    /// The unique key that it gives back when it ends, or now.
    guard: Option<String>,
    pub(crate) attempt: u32,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) ready_at: Timestamp,
}

/// Takes up to `demand.max` tasks.
pub(crate) fn claim(tx: &mut Tx<'_>, demand: &Demand) -> Result<Vec<Claimed>, Fault> {
    let mut claimed = Vec::new();
    tx.memory.opens_at = None;
    if tx.paused()?.closed {
        return Ok(claimed);
    }
    loop {
        let promoted = tick::promote(tx, PROMOTE_MAX)?;
        for queue in &demand.queues {
            take_from(tx, demand, queue, &mut claimed)?;
            if claimed.len() == demand.max {
                return Ok(claimed);
            }
        }
        // More is due than one round makes ready, and none of it was for this claim.
        if !claimed.is_empty() || promoted < PROMOTE_MAX {
            return Ok(claimed);
        }
    }
}

fn take_from(tx: &mut Tx<'_>, demand: &Demand, queue: &QueueName, claimed: &mut Vec<Claimed>) -> Result<(), Fault> {
    let Some(number) = tx.known_queue(queue)? else { return Ok(()) };
    if tx.paused()?.queues.contains(&number) {
        return Ok(());
    }
    let mut shut = Vec::with_capacity(demand.except.len());
    for name in &demand.except {
        shut.extend(tx.known_name(name)?);
    }
    if turns::is_shared(tx, number)? {
        return turns::take(tx, turns::Place { demand, queue, number, shut: &shut }, claimed);
    }
    loop {
        let wanted = demand.max - claimed.len();
        let names = open_names(tx, number, &shut)?;
        if names.is_empty() {
            return Ok(());
        }
        let node = tx.node(&demand.node)?;
        if let [name] = names[..]
            && take_all(tx, demand, node, (queue, number), name, wanted, claimed)?
        {
            return Ok(());
        }
        let best = best_of(tx, number, &names, wanted)?;
        let found = best.len();
        let mut late = 0;
        for (_, seq) in best {
            if let Some(task) = take(tx, demand, node, queue, seq)? {
                claimed.push(task);
            } else {
                tick::expire(tx, seq)?;
                late += 1;
            }
        }
        // What had expired has made room for others.
        if late == 0 || found < wanted {
            return Ok(());
        }
    }
}

/// The names of a queue of which there are ready tasks that may be taken.
fn open_names(tx: &mut Tx<'_>, queue: i64, shut: &[i64]) -> Result<Vec<i64>, Fault> {
    let mut names = ready_names(tx.db, queue)?;
    let paused = tx.paused()?;
    names.retain(|name| !shut.contains(name) && !paused.names.contains(name));
    Ok(names)
}

/// The `wanted` best ready tasks of a queue, as rank and place, best first.
///
/// Each name is read only while it beats the worst of what was found so far: about `wanted * ln(names)` rows in all.
fn best_of(tx: &Tx<'_>, queue: i64, names: &[i64], wanted: usize) -> Result<Vec<(i64, i64)>, Fault> {
    let mut best = BinaryHeap::with_capacity(wanted + 1);
    let mut select = tx.prepare(
        "SELECT rank, seq FROM windlass_task INDEXED BY windlass_task_ready \
         WHERE state = 1 AND key IS NULL AND queue = ?1 AND name = ?2 ORDER BY rank, seq LIMIT ?3",
    )?;
    for name in names {
        let mut rows = select.query(params![queue, name, wanted as i64])?;
        while let Some(row) = rows.next()? {
            let candidate: (i64, i64) = (row.get(0)?, row.get(1)?);
            if best.len() == wanted {
                if best.peek().is_some_and(|worst| candidate >= *worst) {
                    break;
                }
                best.pop();
            }
            best.push(candidate);
        }
    }
    Ok(best.into_sorted_vec())
}

/// The names that have ready tasks without a key in a queue; one index seek for each.
pub(crate) fn ready_names(db: &Connection, queue: i64) -> Result<Vec<i64>, Fault> {
    let mut next = db.prepare_cached(
        "SELECT name FROM windlass_task INDEXED BY windlass_task_ready \
         WHERE state = 1 AND key IS NULL AND queue = ?1 AND name > ?2 ORDER BY name LIMIT 1",
    )?;
    let mut names = Vec::new();
    let mut after = 0;
    while let Some(name) = next.query_row([queue, after], |row| row.get(0)).optional()? {
        names.push(name);
        after = name;
    }
    Ok(names)
}

/// Hands the best tasks of a name to the node, when it is the only name that may be taken: two statements for all of
/// them, which halves what a claim costs. Answers `false`, and changes nothing, when one of them has expired.
pub(crate) fn take_all(
    tx: &mut Tx<'_>,
    demand: &Demand,
    node: i64,
    (queue, number): (&QueueName, i64),
    name: i64,
    wanted: usize,
    claimed: &mut Vec<Claimed>,
) -> Result<bool, Fault> {
    let before = claimed.len();
    let mut last: (i64, i64) = (0, 0);
    let mut select = tx.prepare(
        "SELECT id, queue, name, priority, rank, fence, attempt, enqueued_at, expires, body, \
         guard IS NULL AND keep IS NULL, guard, memo, seq FROM windlass_task INDEXED BY windlass_task_ready \
         WHERE state = 1 AND key IS NULL AND queue = ?1 AND name = ?2 ORDER BY rank, seq LIMIT ?3",
    )?;
    let mut rows = select.query(params![number, name, wanted as i64])?;
    while let Some(row) = rows.next()? {
        let seq = row.get(13)?;
        let Some(task) = ready_task(tx, row, queue, seq)? else {
            claimed.truncate(before);
            return Ok(false);
        };
        last = (row.get(4)?, seq);
        claimed.push(task);
    }
    drop(rows);
    let taken = claimed.len() - before;
    if taken == 0 {
        return Ok(true);
    }
    let changed = tx.execute(
        "UPDATE windlass_task INDEXED BY windlass_task_ready SET state = 2, at = ?1, node = ?2, started_at = ?3, \
         fence = fence + 1, attempt = attempt + 1, progress = NULL, waits_for = NULL \
         WHERE state = 1 AND key IS NULL AND queue = ?4 AND name = ?5 AND rank <= ?6 AND (rank < ?6 OR seq <= ?7)",
        params![lease_until(tx, demand), node, tx.now_micros(), number, name, last.0, last.1],
    )?;
    if changed != taken {
        return Err(Fault::damaged("index of ready tasks", format_args!("{taken} tasks were read, {changed} changed")));
    }
    tx.count_many(number, Some(State::Ready), Some(State::Running), taken as i64);
    for task in &claimed[before..] {
        started(tx, task)?;
    }
    Ok(true)
}

/// The columns of a ready task, as its holder will know it; `None` when it has expired.
fn ready_task(tx: &mut Tx<'_>, row: &Row<'_>, queue: &QueueName, seq: i64) -> Result<Option<Claimed>, Fault> {
    if row.get::<_, Option<i64>>(8)?.is_some_and(|expires| expires <= tx.now_micros()) {
        return Ok(None);
    }
    let priority = priority_of(row.get(3)?)?;
    let plain: bool = row.get(10)?;
    let plain_queue = if plain { Some(row.get(1)?) } else { None };
    Ok(Some(Claimed {
        receipt: Receipt {
            id: id_of(row.get_ref(0)?)?,
            fence: row.get::<_, i64>(5)? + 1,
            row: row_of(seq, plain_queue),
        },
        name: tx.name_word(row.get(2)?)?,
        queue: queue.clone(),
        priority,
        body: match optional_text(row, 9)? {
            Some(body) => body.to_owned(),
            None => large_body(tx, seq)?,
        },
        guard: row.get(11)?,
        memo: row.get::<_, Option<String>>(12)?.unwrap_or_default(),
        attempt: row.get::<_, u32>(6)?.saturating_add(1),
        enqueued_at: Timestamp::from_micros(row.get(7)?),
        ready_at: ready_at(row.get(4)?, priority),
    }))
}

fn lease_until(tx: &Tx<'_>, demand: &Demand) -> i64 {
    (tx.now + demand.lease).as_micros()
}

/// Gives back a unique key that is held until the start.
fn started(tx: &Tx<'_>, task: &Claimed) -> Result<(), Fault> {
    match &task.guard {
        Some(guard) => push::give_back_started(tx, guard, &task.receipt.id),
        None => Ok(()),
    }
}

/// Hands one ready task to the node, unless it has expired.
pub(crate) fn take(
    tx: &mut Tx<'_>,
    demand: &Demand,
    node: i64,
    queue: &QueueName,
    seq: i64,
) -> Result<Option<Claimed>, Fault> {
    let mut select = tx.prepare(
        "SELECT id, queue, name, priority, rank, fence, attempt, enqueued_at, expires, body, \
         guard IS NULL AND keep IS NULL, guard, memo FROM windlass_task WHERE seq = ?1",
    )?;
    let mut rows = select.query([seq])?;
    let row = rows.next()?.ok_or_else(|| Fault::damaged("index of ready tasks", format_args!("no task {seq}")))?;
    let Some(task) = ready_task(tx, row, queue, seq)? else { return Ok(None) };
    tx.count(row.get(1)?, Some(State::Ready), Some(State::Running));
    tx.execute(
        "UPDATE windlass_task SET state = 2, at = ?2, node = ?3, started_at = ?4, fence = ?5, attempt = ?6, \
         progress = NULL, waits_for = NULL WHERE seq = ?1",
        params![seq, lease_until(tx, demand), node, tx.now_micros(), task.receipt.fence, task.attempt],
    )?;
    started(tx, &task)?;
    Ok(Some(task))
}

fn large_body(tx: &Tx<'_>, seq: i64) -> Result<String, Fault> {
    let body =
        tx.prepare("SELECT body FROM windlass_large WHERE seq = ?1")?.query_row([seq], |row| row.get(0)).optional()?;
    // A task whose body is gone is claimed with an empty one: the caller cannot read it and makes it a dead letter.
    Ok(body.unwrap_or_default())
}

/// A renewal as it is stored.
#[derive(Debug)]
pub(crate) struct PreparedRenewal {
    receipt: Receipt,
    progress: Option<String>,
    memo: Option<String>,
}

impl PreparedRenewal {
    pub(crate) fn of(renewal: &Renewal) -> Self {
        let progress = renewal.progress.as_ref().map(|progress| to_json(&progress.shortened()));
        Self { receipt: renewal.receipt.clone(), progress, memo: renewal.memo.clone() }
    }
}

/// Extends a lease that is held. One that has run out is still held until somebody else has the task.
pub(crate) fn renew(tx: &mut Tx<'_>, renewal: &PreparedRenewal, lease: Duration) -> Result<Renewed, Fault> {
    let receipt = &renewal.receipt;
    let mut select = tx.prepare("SELECT id, fence, state, cancel FROM windlass_task WHERE seq = ?1")?;
    let place = place_of(receipt.row);
    let mut rows = select.query([place])?;
    let Some(row) = rows.next()? else { return Ok(Renewed::Lost) };
    let held = row.get::<_, i64>(2)? == RUNNING
        && row.get::<_, i64>(1)? == receipt.fence
        && is_id(row.get_ref(0)?, &receipt.id);
    if !held {
        return Ok(Renewed::Lost);
    }
    let cancelled = row.get::<_, i64>(3)? != 0;
    tx.execute(
        "UPDATE windlass_task SET at = ?2, progress = coalesce(?3, progress) WHERE seq = ?1",
        params![place, (tx.now + lease).as_micros(), renewal.progress],
    )?;
    if let Some(lines) = &renewal.memo {
        tx.execute("UPDATE windlass_task SET memo = coalesce(memo, '') || ?2 WHERE seq = ?1", params![place, lines])?;
    }
    Ok(if cancelled { Renewed::Cancelled } else { Renewed::Held })
}
