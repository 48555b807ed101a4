//! Claim and renew.
//!
//! The ready tasks of a line ([`crate::line`]) are indexed by name and rank: the best tasks of all names that may be taken
//! are merged here. So a name that is paused, or that its worker does not want now, or whose gate is shut, costs nothing,
//! however many of its tasks wait in front.

use std::collections::BinaryHeap;
use std::time::Duration;

use rusqlite::types::ValueRef;
use rusqlite::{OptionalExtension, Row, params};
use windlass_core::backend::{Demand, Receipt, Renewal, Renewed};
use windlass_core::{Key, Priority, QueueName, State, TaskId, TaskName, Timestamp};

use crate::errors::Fault;
use crate::line::Line;
use crate::push;
use crate::receipt::{place_of, row_of};
use crate::rows::{RUNNING, id_of, is_id, optional_text, priority_of, ready_at, to_json};
use crate::tick;
use crate::turns::{self, Gates, Of};
use crate::tx::Tx;
use crate::writer::OnDisk;

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
    pub(crate) attempt: u32,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) ready_at: Timestamp,
    pub(crate) memo: String,
}

/// What a claim found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) claimed: Vec<Claimed>,
    /// When there may be more, because a gate opens by itself.
    pub(crate) opens_at: Option<Timestamp>,
}

/// What a claim works with in one queue.
pub(crate) struct Taking<'a, 'r> {
    demand: &'a Demand,
    pub(crate) queue: (&'a QueueName, i64),
    /// Names that are left to others.
    shut: Vec<i64>,
    pub(crate) gates: &'a mut Gates<'r>,
    pub(crate) claimed: &'a mut Vec<Claimed>,
}

impl Taking<'_, '_> {
    /// How many places are left.
    pub(crate) fn room(&self) -> usize {
        self.demand.max - self.claimed.len()
    }
}

/// Takes up to `demand.max` tasks.
pub(crate) fn claim(tx: &mut Tx<'_>, demand: &Demand) -> Result<Found, Fault> {
    if tx.paused()?.closed {
        return Ok(Found::default());
    }
    let rules = tx.rules()?;
    let mut gates = Gates::new(&rules, tx.now);
    let mut claimed = Vec::new();
    loop {
        let promoted = tick::promote(tx, PROMOTE_MAX)?;
        for queue in &demand.queues {
            take_from(tx, demand, queue, &mut gates, &mut claimed)?;
            if claimed.len() == demand.max {
                break;
            }
        }
        // More is due than one round makes ready, and none of it was for this claim.
        if !claimed.is_empty() || promoted < PROMOTE_MAX {
            break;
        }
    }
    if !claimed.is_empty() {
        gates.keep(tx)?;
    }
    Ok(Found { claimed, opens_at: gates.opens_at() })
}

fn take_from(
    tx: &mut Tx<'_>,
    demand: &Demand,
    queue: &QueueName,
    gates: &mut Gates<'_>,
    claimed: &mut Vec<Claimed>,
) -> Result<(), Fault> {
    let Some(number) = tx.known_queue(queue)? else { return Ok(()) };
    if tx.paused()?.queues.contains(&number) {
        return Ok(());
    }
    let mut shut = Vec::with_capacity(demand.except.len());
    for name in &demand.except {
        shut.extend(tx.known_name(name)?);
    }
    turns::take_from(tx, &mut Taking { demand, queue: (queue, number), shut, gates, claimed })
}

/// Takes up to `share` tasks of a queue with this key, or without one; answers how many.
pub(crate) fn take_of(
    tx: &mut Tx<'_>,
    taking: &mut Taking<'_, '_>,
    key: Option<&Key>,
    share: usize,
) -> Result<usize, Fault> {
    let before = taking.claimed.len();
    if taking.gates.is_shut(tx, taking.queue, key)? {
        return Ok(0);
    }
    let line = Line { queue: taking.queue.1, key };
    loop {
        let wanted = share - (taking.claimed.len() - before);
        let names = open_names(tx, taking, line)?;
        if names.is_empty() || wanted == 0 {
            break;
        }
        let node = tx.node(&taking.demand.node)?;
        if let [open] = names[..]
            && take_all(tx, taking, node, line, open, wanted)?
        {
            break;
        }
        // What had expired has made room for others.
        if take_best(tx, taking, node, line, &names, wanted)? == 0 {
            break;
        }
    }
    Ok(taking.claimed.len() - before)
}

/// A name of which there are ready tasks that may be taken, and how many may.
#[derive(Debug, Clone, Copy)]
struct Open {
    name: i64,
    room: usize,
}

fn open_names(tx: &mut Tx<'_>, taking: &mut Taking<'_, '_>, line: Line<'_>) -> Result<Vec<Open>, Fault> {
    let mut names = line.names(tx.db)?;
    let paused = tx.paused()?;
    names.retain(|name| !taking.shut.contains(name) && !paused.names.contains(name));
    if taking.gates.are_open() {
        return Ok(names.into_iter().map(|name| Open { name, room: usize::MAX }).collect());
    }
    let mut open = Vec::with_capacity(names.len());
    for name in names {
        let room = room_of(tx, taking, line.key, name)?;
        if room > 0 {
            open.push(Open { name, room });
        }
    }
    Ok(open)
}

fn room_of(tx: &mut Tx<'_>, taking: &mut Taking<'_, '_>, key: Option<&Key>, name: i64) -> Result<usize, Fault> {
    let word = tx.name_word(name)?;
    let room = taking.gates.room(tx, Of { queue: taking.queue, name: (&word, name) }, key)?;
    Ok(usize::try_from(room).unwrap_or(usize::MAX))
}

/// Hands the best tasks of several names to the node; answers how many had expired instead.
fn take_best(
    tx: &mut Tx<'_>,
    taking: &mut Taking<'_, '_>,
    node: i64,
    line: Line<'_>,
    names: &[Open],
    wanted: usize,
) -> Result<usize, Fault> {
    let best = best_of(tx, line, names, wanted)?;
    // While each name has room for all of them, nothing that they share can be in the way.
    let tight = names.iter().any(|open| open.room < best.len());
    let mut late = 0;
    for (_, seq, name) in best {
        if tight && room_of(tx, taking, line.key, name)? == 0 {
            continue;
        }
        if let Some(task) = take(tx, taking, node, seq)? {
            taking.gates.start(&task.queue, &task.name, line.key, 1);
            taking.claimed.push(task);
        } else {
            tick::expire(tx, seq)?;
            late += 1;
        }
    }
    Ok(late)
}

/// The `wanted` best ready tasks of a line, as rank, place and name, best first; of each name as many as have room.
///
/// Each name is read only while it beats the worst of what was found so far: about `wanted * ln(names)` rows in all.
fn best_of(tx: &Tx<'_>, line: Line<'_>, names: &[Open], wanted: usize) -> Result<Vec<(i64, i64, i64)>, Fault> {
    let mut best = BinaryHeap::with_capacity(wanted + 1);
    let mut select = tx.prepare(line.text(
        "SELECT rank, seq FROM windlass_task INDEXED BY windlass_task_ready \
         WHERE state = 1 AND key IS NULL AND queue = ?1 AND ?2 IS NULL AND name = ?3 ORDER BY rank, seq LIMIT ?4",
        "SELECT rank, seq FROM windlass_task INDEXED BY windlass_task_keyed \
         WHERE state = 1 AND key IS NOT NULL AND queue = ?1 AND key = ?2 AND name = ?3 ORDER BY rank, seq LIMIT ?4",
    ))?;
    for Open { name, room } in names {
        let most = wanted.min(*room) as i64;
        let mut rows = select.query(params![line.queue, line.key_text(), name, most])?;
        while let Some(row) = rows.next()? {
            let candidate: (i64, i64, i64) = (row.get(0)?, row.get(1)?, *name);
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

/// Hands the best tasks of a name to the node, when it is the only name that may be taken: two statements for all of
/// them, which halves what a claim costs. Answers `false`, and changes nothing, when one of them has expired.
fn take_all(
    tx: &mut Tx<'_>,
    taking: &mut Taking<'_, '_>,
    node: i64,
    line: Line<'_>,
    Open { name, room }: Open,
    wanted: usize,
) -> Result<bool, Fault> {
    let before = taking.claimed.len();
    let (queue, number) = taking.queue;
    let mut last: (i64, i64) = (0, 0);
    let mut guarded: Vec<(String, TaskId)> = Vec::new();
    let mut select = tx.prepare(line.text(
        "SELECT id, queue, name, priority, rank, fence, attempt, enqueued_at, expires, body, guard, keep IS NULL, memo, \
         seq FROM windlass_task INDEXED BY windlass_task_ready \
         WHERE state = 1 AND key IS NULL AND queue = ?1 AND ?2 IS NULL AND name = ?3 ORDER BY rank, seq LIMIT ?4",
        "SELECT id, queue, name, priority, rank, fence, attempt, enqueued_at, expires, body, guard, keep IS NULL, memo, \
         seq FROM windlass_task INDEXED BY windlass_task_keyed \
         WHERE state = 1 AND key IS NOT NULL AND queue = ?1 AND key = ?2 AND name = ?3 ORDER BY rank, seq LIMIT ?4",
    ))?;
    let mut rows = select.query(params![number, line.key_text(), name, wanted.min(room) as i64])?;
    while let Some(row) = rows.next()? {
        let seq = row.get(13)?;
        let Some(task) = ready_task(tx, row, queue, seq)? else {
            taking.claimed.truncate(before);
            return Ok(false);
        };
        last = (row.get(4)?, seq);
        if let Some(guard) = optional_text(row, 10)? {
            guarded.push((guard.to_owned(), task.receipt.id.clone()));
        }
        taking.claimed.push(task);
    }
    drop(rows);
    let taken = taking.claimed.len() - before;
    if taken == 0 {
        return Ok(true);
    }
    let changed = tx.execute(
        line.text(
            "UPDATE windlass_task INDEXED BY windlass_task_ready SET state = 2, at = ?1, node = ?2, started_at = ?3, \
             fence = fence + 1, attempt = attempt + 1, progress = NULL \
             WHERE state = 1 AND key IS NULL AND queue = ?4 AND ?5 IS NULL AND name = ?6 \
             AND rank <= ?7 AND (rank < ?7 OR seq <= ?8)",
            "UPDATE windlass_task INDEXED BY windlass_task_keyed SET state = 2, at = ?1, node = ?2, started_at = ?3, \
             fence = fence + 1, attempt = attempt + 1, progress = NULL \
             WHERE state = 1 AND key IS NOT NULL AND queue = ?4 AND key = ?5 AND name = ?6 \
             AND rank <= ?7 AND (rank < ?7 OR seq <= ?8)",
        ),
        params![lease_until(tx, taking.demand), node, tx.now_micros(), number, line.key_text(), name, last.0, last.1],
    )?;
    if changed != taken {
        return Err(Fault::damaged("index of ready tasks", format_args!("{taken} tasks were read, {changed} changed")));
    }
    for (guard, id) in guarded {
        push::started(tx, &guard, &id)?;
    }
    taking.gates.start(queue, &taking.claimed[before].name, line.key, taken);
    tx.count_many(number, Some(State::Ready), Some(State::Running), taken as i64);
    Ok(true)
}

/// The columns of a ready task, as its holder will know it; `None` when it has expired.
fn ready_task(tx: &mut Tx<'_>, row: &Row<'_>, queue: &QueueName, seq: i64) -> Result<Option<Claimed>, Fault> {
    if row.get::<_, Option<i64>>(8)?.is_some_and(|expires| expires <= tx.now_micros()) {
        return Ok(None);
    }
    let priority = priority_of(row.get(3)?)?;
    let plain = row.get_ref(10)? == ValueRef::Null && row.get::<_, bool>(11)?;
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
        attempt: row.get::<_, u32>(6)?.saturating_add(1),
        enqueued_at: Timestamp::from_micros(row.get(7)?),
        ready_at: ready_at(row.get(4)?, priority),
        memo: optional_text(row, 12)?.map(str::to_owned).unwrap_or_default(),
    }))
}

fn lease_until(tx: &Tx<'_>, demand: &Demand) -> i64 {
    (tx.now + demand.lease).as_micros()
}

/// Hands one ready task to the node, unless it has expired.
fn take(tx: &mut Tx<'_>, taking: &Taking<'_, '_>, node: i64, seq: i64) -> Result<Option<Claimed>, Fault> {
    let mut select = tx.prepare(
        "SELECT id, queue, name, priority, rank, fence, attempt, enqueued_at, expires, body, guard, keep IS NULL, memo \
         FROM windlass_task WHERE seq = ?1",
    )?;
    let mut rows = select.query([seq])?;
    let row = rows.next()?.ok_or_else(|| Fault::damaged("index of ready tasks", format_args!("no task {seq}")))?;
    let Some(task) = ready_task(tx, row, taking.queue.0, seq)? else { return Ok(None) };
    if let Some(guard) = optional_text(row, 10)? {
        push::started(tx, guard, &task.receipt.id)?;
    }
    tx.count(row.get(1)?, Some(State::Ready), Some(State::Running));
    tx.execute(
        "UPDATE windlass_task SET state = 2, at = ?2, node = ?3, started_at = ?4, fence = ?5, attempt = ?6, \
         progress = NULL WHERE seq = ?1",
        params![seq, lease_until(tx, taking.demand), node, tx.now_micros(), task.receipt.fence, task.attempt],
    )?;
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

    /// What a task remembers must outlive the machine of its holder; that it is held need not.
    pub(crate) fn on_disk(&self) -> OnDisk {
        if self.memo.is_some() { OnDisk::AtCommit } else { OnDisk::Later }
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
        remember(tx, place, lines)?;
    }
    Ok(if cancelled { Renewed::Cancelled } else { Renewed::Held })
}

/// Adds lines to the memo of a task.
pub(crate) fn remember(tx: &Tx<'_>, seq: i64, lines: &str) -> Result<(), Fault> {
    tx.execute("UPDATE windlass_task SET memo = coalesce(memo, '') || ?2 WHERE seq = ?1", params![seq, lines])?;
    Ok(())
}
