//! Housekeeping: due tasks, lost leases, what came too late, what is kept no longer.
//!
//! Every step is bounded, walks an index from its due end, and is safe on every node at once: whoever comes first does
//! it, the others find nothing.

use std::time::Duration;

use rusqlite::params;
use windlass_core::backend::{Order, Ticked};
use windlass_core::state::{self, PARKED_FOR, Rescue, rank};
use windlass_core::time::Leases;
use windlass_core::{DeadReason, NodeId, State, Timestamp, Verdict};

use crate::errors::Fault;
use crate::limits;
use crate::notes;
use crate::rows::{READY, id_of, priority_of, state_code, to_json};
use crate::settle::{self, Held};
use crate::tx::Tx;

/// The most tasks of each kind that one tick moves.
const EACH_MAX: usize = 1_000;
/// Groups that never became complete are kept at least this long.
const UNFINISHED_GROUP_KEPT: Duration = Duration::from_secs(35 * 86_400);
/// The names of nodes are kept this long after their last word, or as long as dead letters, which say who ran them.
const NODE_KEPT: Duration = Duration::from_secs(90 * 86_400);
/// Free pages below this many stay in the file: it would grow again soon.
const FREE_PAGES_KEPT: i64 = 1_000;
/// The most free pages that one tick gives back to the file system, 2 MiB: each page is moved.
const FREE_PAGES_BACK: i64 = 512;

/// Everything once.
pub(crate) fn tick(tx: &mut Tx<'_>, node: &NodeId, leases: Leases) -> Result<Ticked, Fault> {
    promote(tx, EACH_MAX)?;
    let (rescued, ended) = match leases {
        Leases::Trusted => rescue(tx)?,
        Leases::InDoubt => (0, 0),
    };
    let ended = ended + expire_late(tx)? + end_parked(tx)?;
    let pruned = prune(tx)?;
    forget(tx)?;
    shrink(tx)?;
    Ok(Ticked {
        rescued,
        ended,
        pruned,
        orders: take_orders(tx, node)?,
        cancelled: cancelled_of(tx, node)?,
        next_slot: next_slot(tx)?,
    })
}

/// Makes due tasks ready, the earliest first; answers how many.
pub(crate) fn promote(tx: &mut Tx<'_>, max: usize) -> Result<usize, Fault> {
    let mut select = tx.prepare(
        "SELECT seq, queue, priority, at FROM windlass_task INDEXED BY windlass_task_moment \
         WHERE state = 0 AND state <> 1 AND forget_at IS NULL AND at <= ?1 ORDER BY at LIMIT ?2",
    )?;
    let mut rows = select.query(params![tx.now_micros(), max as i64])?;
    let mut due: Vec<(i64, i64, i64)> = Vec::new();
    while let Some(row) = rows.next()? {
        let due_at = Timestamp::from_micros(row.get(3)?);
        due.push((row.get(0)?, row.get(1)?, rank(priority_of(row.get(2)?)?, due_at)));
    }
    for (seq, queue, rank) in &due {
        tx.execute(
            "UPDATE windlass_task SET state = 1, at = 0, rank = ?2, waits_for = NULL WHERE seq = ?1",
            [seq, rank],
        )?;
        tx.count(*queue, Some(State::Scheduled), Some(State::Ready));
        tx.wake(*queue);
    }
    Ok(due.len())
}

/// Ends a task that came too late.
pub(crate) fn expire(tx: &mut Tx<'_>, seq: i64) -> Result<(), Fault> {
    let held = settle::held_at(tx, seq)?;
    settle::end_by_store(tx, &held, &Verdict::Expired)
}

/// Takes tasks back whose lease ran out. Answers how many are ready again and how many ended.
fn rescue(tx: &mut Tx<'_>) -> Result<(u64, u64), Fault> {
    let (mut rescued, mut ended) = (0, 0);
    let lost = seqs(
        tx,
        "SELECT seq FROM windlass_task INDEXED BY windlass_task_moment \
         WHERE state = 2 AND state <> 1 AND forget_at IS NULL AND at <= ?1 ORDER BY at LIMIT ?2",
        tx.now_micros(),
    )?;
    for seq in lost {
        let mut held = settle::held_at(tx, seq)?;
        held.crashes += 1;
        match state::rescue(held.crashes, held.cancel) {
            Rescue::Ready => {
                send_back(tx, &held)?;
                rescued += 1;
            }
            Rescue::Poison => {
                let failure = state::poison_failure(held.crashes);
                settle::end_by_store(tx, &held, &Verdict::Dead { reason: DeadReason::Poison, failure })?;
                ended += 1;
            }
            Rescue::Cancelled => {
                settle::end_by_store(tx, &held, &Verdict::Cancelled)?;
                ended += 1;
            }
        }
    }
    Ok((rescued, ended))
}

/// Back to the ready ones at its old place; the attempt stays counted.
fn send_back(tx: &mut Tx<'_>, held: &Held) -> Result<(), Fault> {
    let failure = state::poison_failure(held.crashes);
    let history = settle::with_attempt(tx, held.seq, &failure)?;
    tx.execute(
        "UPDATE windlass_task SET state = ?2, at = 0, crashes = ?3, failure = ?4, history = ?5 WHERE seq = ?1",
        params![held.seq, READY, held.crashes, to_json(&failure), history],
    )?;
    tx.count(held.queue, Some(State::Running), Some(State::Ready));
    tx.wake(held.queue);
    Ok(())
}

fn expire_late(tx: &mut Tx<'_>) -> Result<u64, Fault> {
    let late = seqs(
        tx,
        "SELECT seq FROM windlass_task INDEXED BY windlass_task_expires \
         WHERE expires IS NOT NULL AND state IN (0, 1, 3) AND expires <= ?1 ORDER BY expires LIMIT ?2",
        tx.now_micros(),
    )?;
    for seq in &late {
        expire(tx, *seq)?;
    }
    Ok(late.len() as u64)
}

fn end_parked(tx: &mut Tx<'_>) -> Result<u64, Fault> {
    let parked = seqs(
        tx,
        "SELECT seq FROM windlass_task INDEXED BY windlass_task_moment \
         WHERE state = 3 AND state <> 1 AND forget_at IS NULL AND at <= ?1 ORDER BY at LIMIT ?2",
        (tx.now - PARKED_FOR).as_micros(),
    )?;
    for seq in &parked {
        let held = settle::held_at(tx, *seq)?;
        let name = tx.prepare("SELECT name FROM windlass_task WHERE seq = ?1")?.query_row([seq], |row| row.get(0))?;
        let failure = state::unknown_failure(tx.name_word(name)?.as_str());
        settle::end_by_store(tx, &held, &Verdict::Dead { reason: DeadReason::Unknown, failure })?;
    }
    Ok(parked.len() as u64)
}

/// Removes ended tasks that are kept no longer.
fn prune(tx: &mut Tx<'_>) -> Result<u64, Fault> {
    let mut pruned = 0;
    let ended_until = (tx.now - tx.retention.finished).as_micros();
    for state in [State::Succeeded, State::Cancelled, State::Expired] {
        let old = ended_first(tx, state, ended_until)?;
        remove_finished(tx, &old)?;
        pruned += old.len() as u64;
    }
    pruned += prune_over_maximum(tx, EACH_MAX as i64)?;
    let dead = ended_first(tx, State::Dead, (tx.now - tx.retention.dead).as_micros())?;
    remove_all(tx, &dead)?;
    let by_themselves = seqs(
        tx,
        "SELECT seq FROM windlass_task WHERE forget_at IS NOT NULL AND forget_at <= ?1 ORDER BY forget_at LIMIT ?2",
        tx.now_micros(),
    )?;
    remove_all(tx, &by_themselves)?;
    Ok(pruned + (dead.len() + by_themselves.len()) as u64)
}

/// The tasks in a final state that ended until then, the oldest first; results with a time of their own apart.
fn ended_first(tx: &Tx<'_>, state: State, ended_until: i64) -> Result<Vec<i64>, Fault> {
    let mut select = tx.prepare(
        "SELECT seq FROM windlass_task INDEXED BY windlass_task_moment \
         WHERE state = ?1 AND state <> 1 AND forget_at IS NULL AND at <= ?2 ORDER BY at LIMIT ?3",
    )?;
    let values = params![state_code(state), ended_until, EACH_MAX as i64];
    let seqs = select.query_map(values, |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(seqs)
}

/// Removes the oldest ended tasks over the maximum, twice as many as ended in this transaction at most: so a worker that
/// ends tasks faster than ticks prune them still cannot fill the disk.
pub(crate) fn keep_within_maximum(tx: &mut Tx<'_>) -> Result<(), Fault> {
    let ended = tx.ended_now();
    if ended <= 0 {
        return Ok(());
    }
    prune_over_maximum(tx, 2 * ended).map(drop)
}

/// Removes the ended tasks that ended first, dead letters and results with a time of their own apart.
fn prune_over_maximum(tx: &mut Tx<'_>, max: i64) -> Result<u64, Fault> {
    let maximum = i64::try_from(tx.retention.finished_max).unwrap_or(i64::MAX);
    let over = (tx.ended_kept()? - maximum).min(max);
    if over <= 0 {
        return Ok(0);
    }
    // The first of each state, then the first of all: an index walk for each instead of a sort of everything.
    let mut select = tx.prepare(
        "WITH succeeded AS (SELECT at, seq FROM windlass_task INDEXED BY windlass_task_moment \
         WHERE state = 4 AND state <> 1 AND forget_at IS NULL ORDER BY at LIMIT ?1), \
         cancelled AS (SELECT at, seq FROM windlass_task INDEXED BY windlass_task_moment \
         WHERE state = 6 AND state <> 1 AND forget_at IS NULL ORDER BY at LIMIT ?1), \
         expired AS (SELECT at, seq FROM windlass_task INDEXED BY windlass_task_moment \
         WHERE state = 7 AND state <> 1 AND forget_at IS NULL ORDER BY at LIMIT ?1) \
         SELECT seq FROM (SELECT * FROM succeeded UNION ALL SELECT * FROM cancelled UNION ALL SELECT * FROM expired) \
         ORDER BY at, seq LIMIT ?1",
    )?;
    let oldest: Vec<i64> = select.query_map([over], |row| row.get(0))?.collect::<Result<_, _>>()?;
    remove_finished(tx, &oldest)?;
    Ok(oldest.len() as u64)
}

/// Removes finished tasks that the store's own retention kept. Nothing is read of them: of such tasks the queues count what
/// ever ended, so no count of a queue changes, and a busy worker removes one for each that it ends.
fn remove_finished(tx: &mut Tx<'_>, seqs: &[i64]) -> Result<(), Fault> {
    let mut large = tx.prepare("SELECT 1 FROM windlass_large LIMIT 1")?;
    let any_large = large.exists([])?;
    for seq in seqs {
        tx.execute("DELETE FROM windlass_task WHERE seq = ?1", [seq])?;
        if any_large {
            tx.execute("DELETE FROM windlass_large WHERE seq = ?1", [seq])?;
        }
    }
    if seqs.is_empty() { Ok(()) } else { tx.keep(-(seqs.len() as i64)) }
}

fn remove_all(tx: &mut Tx<'_>, seqs: &[i64]) -> Result<(), Fault> {
    for seq in seqs {
        let held = settle::held_at(tx, *seq)?;
        remove(tx, &held)?;
    }
    Ok(())
}

/// Removes an ended task.
pub(crate) fn remove(tx: &mut Tx<'_>, held: &Held) -> Result<(), Fault> {
    debug_assert!(held.state != State::Running, "what somebody holds is not removed");
    let mut large = tx.prepare("SELECT body IS NULL FROM windlass_task WHERE seq = ?1")?;
    if large.query_row([held.seq], |row| row.get(0))? {
        tx.execute("DELETE FROM windlass_large WHERE seq = ?1", [held.seq])?;
    }
    tx.execute("DELETE FROM windlass_task WHERE seq = ?1", [held.seq])?;
    held.count_change(tx, None)
}

/// Removes what else is kept no longer: unique keys, notes, gates, groups, nodes.
fn forget(tx: &mut Tx<'_>) -> Result<(), Fault> {
    notes::prune(tx, EACH_MAX)?;
    limits::prune(tx)?;
    let now = tx.now_micros();
    tx.execute(
        "DELETE FROM windlass_taken WHERE key IN \
         (SELECT key FROM windlass_taken WHERE until IS NOT NULL AND until <= ?1 LIMIT ?2)",
        params![now, EACH_MAX as i64],
    )?;
    let silent_since = (tx.now - NODE_KEPT.max(tx.retention.dead)).as_micros();
    tx.execute(
        "DELETE FROM windlass_order WHERE node IN (SELECT id FROM windlass_node WHERE beat_at < ?1)",
        [silent_since],
    )?;
    tx.execute(
        "DELETE FROM windlass_node WHERE number IN \
         (SELECT number FROM windlass_node WHERE beat_at < ?1 LIMIT ?2)",
        params![silent_since, EACH_MAX as i64],
    )?;
    let finished = (tx.now - tx.retention.dead).as_micros();
    let unfinished = (tx.now - UNFINISHED_GROUP_KEPT.max(tx.retention.dead)).as_micros();
    let mut select = tx.prepare(
        "SELECT number FROM windlass_group \
         WHERE touched_at <= ?1 AND (completed = 1 OR touched_at <= ?2) ORDER BY touched_at LIMIT ?3",
    )?;
    let groups: Vec<i64> = select
        .query_map(params![finished, unfinished, EACH_MAX as i64], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for group in groups {
        tx.execute("DELETE FROM windlass_arrival WHERE number = ?1", [group])?;
        tx.execute("DELETE FROM windlass_group WHERE number = ?1", [group])?;
    }
    Ok(())
}

/// Gives free pages back to the file system, some with each tick.
fn shrink(tx: &Tx<'_>) -> Result<(), Fault> {
    let number =
        |pragma: &'static str| -> Result<i64, Fault> { Ok(tx.prepare(pragma)?.query_row([], |row| row.get(0))?) };
    let free = number("PRAGMA freelist_count")?;
    if free <= FREE_PAGES_KEPT || free * 4 <= number("PRAGMA page_count")? {
        return Ok(());
    }
    let back = (free - FREE_PAGES_KEPT).min(FREE_PAGES_BACK);
    let mut vacuum = tx.db.prepare(&format!("PRAGMA incremental_vacuum({back})"))?;
    let mut rows = vacuum.query([])?;
    while rows.next()?.is_some() {}
    Ok(())
}

fn take_orders(tx: &Tx<'_>, node: &NodeId) -> Result<Vec<Order>, Fault> {
    let mut select = tx.prepare("SELECT what, slots FROM windlass_order WHERE node = ?1 ORDER BY number")?;
    let mut rows = select.query([node.as_str()])?;
    let mut orders = Vec::new();
    while let Some(row) = rows.next()? {
        let slots: Option<i64> = row.get(1)?;
        orders.push(match (row.get_ref(0)?.as_str().unwrap_or_default(), slots) {
            ("quiet", _) => Order::Quiet,
            ("resume", _) => Order::Resume,
            ("stop", _) => Order::Stop,
            ("resize", Some(slots)) => Order::Resize(usize::try_from(slots).unwrap_or_default()),
            (other, _) => return Err(Fault::damaged("order", format_args!("`{other}`"))),
        });
    }
    if !orders.is_empty() {
        tx.execute("DELETE FROM windlass_order WHERE node = ?1", [node.as_str()])?;
    }
    Ok(orders)
}

fn cancelled_of(tx: &Tx<'_>, node: &NodeId) -> Result<Vec<windlass_core::TaskId>, Fault> {
    let mut select = tx.prepare(
        "SELECT id FROM windlass_task WHERE cancel = 1 AND state = 2 \
             AND node = (SELECT number FROM windlass_node WHERE id = ?1) LIMIT ?2",
    )?;
    let mut rows = select.query(params![node.as_str(), EACH_MAX as i64])?;
    let mut ids = Vec::new();
    while let Some(row) = rows.next()? {
        ids.push(id_of(row.get_ref(0)?)?);
    }
    Ok(ids)
}

fn next_slot(tx: &mut Tx<'_>) -> Result<Option<Timestamp>, Fault> {
    if tx.paused()?.closed {
        return Ok(None);
    }
    let mut select = tx.prepare("SELECT min(next) FROM windlass_schedule WHERE paused = 0")?;
    let next: Option<i64> = select.query_row([], |row| row.get(0))?;
    Ok(next.map(Timestamp::from_micros))
}

fn seqs(tx: &Tx<'_>, sql: &'static str, until: i64) -> Result<Vec<i64>, Fault> {
    let mut select = tx.prepare(sql)?;
    let seqs = select.query_map(params![until, EACH_MAX as i64], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(seqs)
}
