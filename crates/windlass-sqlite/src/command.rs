//! Commands: what operators change, only on tasks that nobody holds; a held one is marked.

use rusqlite::{OptionalExtension, params};
use windlass_core::backend::{COMMAND_MAX, Commanded, Order, TaskAction};
use windlass_core::memo::{Line, MEMO_BYTES_MAX};
use windlass_core::state::rank;
use windlass_core::view::{Cursor, Filter};
use windlass_core::{Json, NodeId, QueueName, SignalName, State, TaskId, TaskName, Verdict};

use crate::claim;
use crate::errors::Fault;
use crate::fleet;
use crate::listing::{self, Scanned};
use crate::push::{self, holder_of, store_body, take};
use crate::rows::{self, Id, READY, priority_of, ready_at, state_of};
use crate::settle;
use crate::tick;
use crate::tx::Tx;

/// The most orders that wait for one node; the oldest go first.
const ORDERS_MAX: i64 = 100;

/// Applies an action to these tasks.
pub(crate) fn tasks(tx: &mut Tx<'_>, ids: &[TaskId], action: &TaskAction) -> Result<Commanded, Fault> {
    let mut commanded = Commanded::default();
    for id in ids {
        let found: Option<(i64, i64)> = tx
            .prepare("SELECT seq, state FROM windlass_task WHERE id = ?1")?
            .query_row([Id(id)], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        let Some((seq, code)) = found else {
            commanded.unchanged.push((id.clone(), None));
            continue;
        };
        let state = state_of(code)?;
        if action.applies_to(state) && act(tx, seq, action)? {
            commanded.changed += 1;
        } else {
            commanded.unchanged.push((id.clone(), Some(state)));
        }
    }
    Ok(commanded)
}

/// Applies an action to the tasks that match and that it has a meaning for, newest first.
pub(crate) fn matching(
    tx: &mut Tx<'_>,
    filter: &Filter,
    after: Option<i64>,
    action: &TaskAction,
) -> Result<Commanded, Fault> {
    let mut applicable = filter.clone();
    applicable.states = State::ALL
        .into_iter()
        .filter(|state| action.applies_to(*state) && (filter.states.is_empty() || filter.states.contains(state)))
        .collect();
    if applicable.states.is_empty() {
        return Ok(Commanded::default());
    }
    let Scanned { seqs, next } = listing::scan(tx.db, &applicable, after, COMMAND_MAX)?;
    let mut changed = 0;
    for seq in seqs {
        changed += u64::from(act(tx, seq, action)?);
    }
    Ok(Commanded { changed, unchanged: Vec::new(), next: next.map(|seq| Cursor(seq.to_string())) })
}

/// Does it to one task in a state that it has a meaning for. Answers whether that changed anything.
fn act(tx: &mut Tx<'_>, seq: i64, action: &TaskAction) -> Result<bool, Fault> {
    match action {
        TaskAction::Cancel => cancel(tx, seq),
        TaskAction::Retry => retry(tx, seq),
        TaskAction::Discard => {
            let held = settle::held_at(tx, seq)?;
            tick::remove(tx, &held)?;
            Ok(true)
        }
        TaskAction::Move(queue) => move_to(tx, seq, queue),
        TaskAction::Reprioritise(priority) => {
            let (old, old_rank): (i64, i64) = tx
                .prepare("SELECT priority, rank FROM windlass_task WHERE seq = ?1")?
                .query_row([seq], |row| Ok((row.get(0)?, row.get(1)?)))?;
            let rank = rank(*priority, ready_at(old_rank, priority_of(old)?));
            tx.execute(
                "UPDATE windlass_task SET priority = ?2, rank = ?3 WHERE seq = ?1",
                params![seq, priority.level(), rank],
            )?;
            Ok(true)
        }
        TaskAction::RunNow => {
            let held = settle::held_at(tx, seq)?;
            make_ready(tx, seq)?;
            settle::move_to(tx, &held, State::Ready)?;
            Ok(true)
        }
        TaskAction::Signal { name, value } => signal(tx, seq, name, value),
    }
}

/// Adds a signal to the memo of a task, if there is room, and makes it ready when it waits for that.
fn signal(tx: &mut Tx<'_>, seq: i64, name: &SignalName, value: &Json) -> Result<bool, Fault> {
    let line = Line::Signal { signal: name.clone(), value: value.clone() }.to_text();
    if settle::memo_bytes(tx, seq)? + line.len() > MEMO_BYTES_MAX {
        return Ok(false);
    }
    claim::remember(tx, seq, &line)?;
    let mut select = tx.prepare("SELECT waits_for IS ?2 FROM windlass_task WHERE seq = ?1")?;
    if select.query_row(params![seq, name.as_str()], |row| row.get(0))? {
        let held = settle::held_at(tx, seq)?;
        make_ready(tx, seq)?;
        settle::move_to(tx, &held, State::Ready)?;
    }
    Ok(true)
}

fn cancel(tx: &mut Tx<'_>, seq: i64) -> Result<bool, Fault> {
    let held = settle::held_at(tx, seq)?;
    if held.state != State::Running {
        settle::end_by_store(tx, &held, &Verdict::Cancelled)?;
        return Ok(true);
    }
    tx.execute("UPDATE windlass_task SET cancel = 1 WHERE seq = ?1", [seq])?;
    Ok(!held.cancel)
}

/// Makes an ended task ready with all its attempts, unless another one has its unique key by now.
fn retry(tx: &mut Tx<'_>, seq: i64) -> Result<bool, Fault> {
    let held = settle::held_at(tx, seq)?;
    let Some(mut record) = rows::record_at(tx.db, seq)? else { return Ok(false) };
    if let Some(unique) = &record.envelope.unique {
        if holder_of(tx, unique)?.is_some_and(|holder| holder != held.id) {
            return Ok(false);
        }
        // A window counts from the push on and is not opened again.
        if unique.window.is_none() {
            take(tx, unique, &held.id)?;
        }
    }
    if record.envelope.expires.take().is_some() {
        let body = record.envelope.to_body();
        let inline = push::inline(&body);
        tx.execute("UPDATE windlass_task SET expires = NULL, body = ?2 WHERE seq = ?1", params![seq, inline])?;
        store_body(tx, seq, &body)?;
    }
    tx.execute(
        "UPDATE windlass_task SET attempt = 0, crashes = 0, cancel = 0, forget_at = NULL, reason = NULL, skipped = NULL, \
         progress = NULL, failure = NULL, result = NULL WHERE seq = ?1",
        [seq],
    )?;
    make_ready(tx, seq)?;
    held.count_change(tx, State::Ready)?;
    tx.wake(held.queue);
    Ok(true)
}

fn make_ready(tx: &Tx<'_>, seq: i64) -> Result<(), Fault> {
    let level: i64 =
        tx.prepare("SELECT priority FROM windlass_task WHERE seq = ?1")?.query_row([seq], |row| row.get(0))?;
    let rank = rank(priority_of(level)?, tx.now);
    tx.execute(
        "UPDATE windlass_task SET state = ?2, at = 0, rank = ?3, waits_for = NULL WHERE seq = ?1",
        [seq, READY, rank],
    )?;
    Ok(())
}

fn move_to(tx: &mut Tx<'_>, seq: i64, queue: &QueueName) -> Result<bool, Fault> {
    let held = settle::held_at(tx, seq)?;
    let queue = tx.queue(queue)?;
    if queue == held.queue {
        return Ok(true);
    }
    tx.execute("UPDATE windlass_task SET queue = ?2 WHERE seq = ?1", [seq, queue])?;
    tx.count(held.queue, Some(held.state), None);
    tx.count(queue, None, Some(held.state));
    if held.state == State::Ready {
        tx.wake(queue);
    }
    Ok(true)
}

/// Whether something is started.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Flowing {
    Paused,
    Resumed,
}

/// Pauses or resumes a queue, which need not exist yet. Answers whether that changed anything.
pub(crate) fn set_queue(tx: &mut Tx<'_>, queue: &QueueName, flowing: Flowing) -> Result<u64, Fault> {
    let changed = match flowing {
        Flowing::Paused => {
            let number = tx.queue(queue)?;
            tx.execute("UPDATE windlass_queue SET paused = 1 WHERE id = ?1 AND paused = 0", [number])?
        }
        Flowing::Resumed => {
            tx.execute("UPDATE windlass_queue SET paused = 0 WHERE name = ?1 AND paused = 1", [queue.as_str()])?
        }
    };
    tx.paused_changed();
    Ok(changed as u64)
}

/// Pauses or resumes a name, which need not exist yet. Answers whether that changed anything.
pub(crate) fn set_name(tx: &mut Tx<'_>, name: &TaskName, flowing: Flowing) -> Result<u64, Fault> {
    let changed = match flowing {
        Flowing::Paused => {
            let number = tx.name(name)?;
            tx.execute("UPDATE windlass_name SET paused = 1 WHERE id = ?1 AND paused = 0", [number])?
        }
        Flowing::Resumed => {
            tx.execute("UPDATE windlass_name SET paused = 0 WHERE name = ?1 AND paused = 1", [name.as_str()])?
        }
    };
    tx.paused_changed();
    Ok(changed as u64)
}

/// Leaves an order for a node. Answers whether there is such a node.
pub(crate) fn order(tx: &mut Tx<'_>, node: &NodeId, order: Order) -> Result<u64, Fault> {
    let mut known = tx.prepare("SELECT 1 FROM windlass_node WHERE id = ?1 AND info IS NOT NULL AND beat_at > ?2")?;
    let known = known.exists(params![node.as_str(), (tx.now - fleet::SHOWN).as_micros()])?;
    if !known {
        return Ok(0);
    }
    let (what, slots) = match order {
        Order::Quiet => ("quiet", None),
        Order::Resume => ("resume", None),
        Order::Stop => ("stop", None),
        Order::Resize(slots) => ("resize", Some(slots as i64)),
    };
    tx.execute(
        "DELETE FROM windlass_order WHERE number IN \
         (SELECT number FROM windlass_order WHERE node = ?1 ORDER BY number DESC LIMIT -1 OFFSET ?2)",
        params![node.as_str(), ORDERS_MAX - 1],
    )?;
    tx.execute(
        "INSERT INTO windlass_order (node, what, slots) VALUES (?1, ?2, ?3)",
        params![node.as_str(), what, slots],
    )?;
    Ok(1)
}
