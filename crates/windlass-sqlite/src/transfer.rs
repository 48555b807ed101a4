//! Moving everything to another store, and from one: a task is written with all that is known of it.

use rusqlite::{Connection, params};
use windlass_core::flow::NewGroup;
use windlass_core::state::rank;
use windlass_core::transfer::{PARCEL_GROUPS_MAX, PARCEL_TASKS_MAX, Parcel, Parcelled, ParcelledGroup};
use windlass_core::view::Record;
use windlass_core::{Due, GroupId, Json, SignalName, State, TaskId, Timestamp};

use crate::errors::Fault;
use crate::flow::policy_of;
use crate::push::{self, NewTask, PreparedGroup};
use crate::rows::{self, Id, from_json, id_of, micros, ready_at, reason_code, text, to_json};
use crate::tx::{Tx, is_closed};
use crate::{settle, tick};

/// Answers how many stores were closed.
pub(crate) fn close(tx: &mut Tx<'_>) -> Result<u64, Fault> {
    let closed = tx.execute("INSERT INTO windlass_meta VALUES ('closed', 1) ON CONFLICT (key) DO NOTHING", [])?;
    tx.paused_changed();
    Ok(closed as u64)
}

/// Answers how many stores were opened.
pub(crate) fn open(tx: &mut Tx<'_>) -> Result<u64, Fault> {
    let opened = u64::from(is_closed(tx.db)?);
    tx.execute("DELETE FROM windlass_meta WHERE key = 'closed'", [])?;
    tx.paused_changed();
    tx.memory.transaction.wake_all = true;
    Ok(opened)
}

pub(crate) fn export(db: &Connection) -> Result<Parcel, Fault> {
    let groups = open_groups(db)?;
    if !groups.is_empty() {
        return Ok(Parcel { groups, tasks: Vec::new() });
    }
    let mut oldest = db.prepare_cached("SELECT seq, rank FROM windlass_task WHERE state <> 2 ORDER BY seq LIMIT ?1")?;
    let mut rows = oldest.query([PARCEL_TASKS_MAX as i64])?;
    let mut tasks = Vec::new();
    while let Some(row) = rows.next()? {
        let Some(record) = rows::record_at(db, row.get(0)?)? else { continue };
        let ready_at = ready_at(row.get(1)?, record.envelope.priority);
        tasks.push(Parcelled { record, ready_at });
    }
    Ok(Parcel { groups, tasks })
}

fn open_groups(db: &Connection) -> Result<Vec<ParcelledGroup>, Fault> {
    let mut select = db.prepare_cached(
        "SELECT number, id, size, policy, after, broken FROM windlass_group WHERE completed = 0 ORDER BY number LIMIT ?1",
    )?;
    let mut arrivals =
        db.prepare_cached("SELECT place, succeeded, outcome FROM windlass_arrival WHERE number = ?1 ORDER BY place")?;
    let mut rows = select.query([PARCEL_GROUPS_MAX as i64])?;
    let mut groups = Vec::new();
    while let Some(row) = rows.next()? {
        let mut arrived = Vec::new();
        let mut members = arrivals.query([row.get::<_, i64>(0)?])?;
        while let Some(member) = members.next()? {
            let outcome = text(member, 2)?;
            let outcome = if member.get(1)? {
                Ok(Json::parse(outcome).map_err(|error| Fault::damaged("result", error))?)
            } else {
                Err(from_json("failure", outcome)?)
            };
            arrived.push((member.get(0)?, outcome));
        }
        let group = NewGroup {
            id: id_of(row.get_ref(1)?)?,
            size: row.get(2)?,
            policy: policy_of(text(row, 3)?)?,
            after: from_json("group", text(row, 4)?)?,
        };
        groups.push(ParcelledGroup { group, arrived, failed: row.get(5)? });
    }
    Ok(groups)
}

/// A parcel as it is stored; made by the task that calls.
#[derive(Debug)]
pub(crate) struct PreparedParcel {
    groups: Vec<(PreparedGroup, ParcelledGroup)>,
    tasks: Vec<(NewTask, Record, Timestamp)>,
}

impl PreparedParcel {
    pub(crate) fn of(parcel: Parcel) -> Self {
        let prepared = |mut parcelled: Parcelled| {
            parcelled.record.envelope.due = Due::Now;
            (NewTask::of(&parcelled.record.envelope), parcelled.record, parcelled.ready_at)
        };
        Self {
            groups: parcel.groups.into_iter().map(|group| (PreparedGroup::of(&group.group), group)).collect(),
            tasks: parcel.tasks.into_iter().map(prepared).collect(),
        }
    }

    /// About how many rows it changes.
    pub(crate) fn rows(&self) -> usize {
        self.tasks.len() + self.groups.iter().map(|(_, group)| 1 + group.arrived.len()).sum::<usize>()
    }
}

/// Answers how many tasks and groups are new.
pub(crate) fn import(tx: &mut Tx<'_>, parcel: &PreparedParcel) -> Result<u64, Fault> {
    let mut new = 0;
    for (prepared, group) in &parcel.groups {
        new += u64::from(import_group(tx, prepared, group)?);
    }
    for (task, record, ready_at) in &parcel.tasks {
        new += u64::from(import_task(tx, task, record, *ready_at)?);
    }
    Ok(new)
}

fn import_group(tx: &mut Tx<'_>, prepared: &PreparedGroup, parcelled: &ParcelledGroup) -> Result<bool, Fault> {
    if !push::create_group(tx, prepared)? {
        return Ok(false);
    }
    let number = tx.db.last_insert_rowid();
    let mut succeeded = 0;
    for (place, outcome) in &parcelled.arrived {
        let (ok, outcome) = match outcome {
            Ok(result) => (true, result.as_str().to_owned()),
            Err(failure) => (false, to_json(failure)),
        };
        succeeded += u32::from(ok);
        tx.execute("INSERT INTO windlass_arrival VALUES (?1, ?2, ?3, ?4)", params![number, place, ok, outcome])?;
    }
    let failed = parcelled.arrived.len() as u32 - succeeded;
    tx.execute(
        "UPDATE windlass_group SET succeeded = ?2, failed = ?3, broken = ?4 WHERE number = ?1",
        params![number, succeeded, failed, parcelled.failed],
    )?;
    Ok(true)
}

fn import_task(tx: &mut Tx<'_>, task: &NewTask, record: &Record, ready_at: Timestamp) -> Result<bool, Fault> {
    // A running task is in no parcel; should one be, nobody holds it here.
    let state = if record.state == State::Running { State::Ready } else { record.state };
    let at = match state {
        State::Scheduled => record.due_at.unwrap_or(ready_at),
        State::Ready | State::Running => Timestamp::MIN,
        State::Parked => tx.now,
        State::Succeeded | State::Dead | State::Cancelled | State::Expired => record.finished_at.unwrap_or(tx.now),
    };
    let rank = rank(record.envelope.priority, ready_at);
    let Some(queue) = push::insert(tx, task, state, at.as_micros(), rank)? else { return Ok(false) };
    let seq = tx.last_seq()?;
    let node = record.node.as_ref().map(|node| tx.node(node)).transpose()?;
    let keep = record.envelope.result_ttl.filter(|keep| state == State::Succeeded && !keep.is_zero());
    let history = (!record.history.is_empty()).then(|| to_json(&record.history));
    tx.execute(
        "UPDATE windlass_task SET attempt = ?2, crashes = ?3, enqueued_at = ?4, started_at = ?5, node = ?6, reason = ?7, \
         skipped = ?8, progress = ?9, failure = ?10, history = ?11, result = ?12, forget_at = ?13, \
         memo = ?14, waits_for = ?15 WHERE seq = ?1",
        params![
            seq,
            record.attempt,
            record.crashes,
            record.enqueued_at.as_micros(),
            record.started_at.map(Timestamp::as_micros),
            node,
            record.reason.map(reason_code),
            record.skipped,
            record.progress.as_ref().map(to_json),
            record.failure.as_ref().map(to_json),
            history,
            record.result.as_ref().map(Json::as_str),
            keep.map(|keep| at.as_micros().saturating_add(micros(keep))),
            Some(&record.memo).filter(|memo| !memo.is_empty()),
            record.waits_for.as_ref().filter(|_| state == State::Scheduled).map(SignalName::as_str),
        ],
    )?;
    if state.is_final() && state != State::Dead && keep.is_none() {
        tx.keep(1)?;
    }
    if let Some(unique) = &record.envelope.unique {
        let until = unique.window.map(|window| record.enqueued_at + window);
        let wanted = until.map_or(!state.is_final(), |until| until > tx.now);
        if wanted && push::holder_of(tx, unique)?.is_none() {
            push::take_until(tx, unique, &record.envelope.id, until)?;
        }
    }
    if state == State::Ready {
        tx.wake(queue);
    }
    Ok(true)
}

/// Answers how many tasks and groups were forgotten.
pub(crate) fn evict(tx: &mut Tx<'_>, tasks: &[TaskId], groups: &[GroupId]) -> Result<u64, Fault> {
    let mut evicted = 0;
    for group in groups {
        tx.execute(
            "DELETE FROM windlass_arrival WHERE number = (SELECT number FROM windlass_group WHERE id = ?1)",
            [Id(group)],
        )?;
        evicted += tx.execute("DELETE FROM windlass_group WHERE id = ?1", [Id(group)])? as u64;
    }
    for id in tasks {
        let Some(held) = settle::held_under(tx, id)? else { continue };
        if held.state == State::Running {
            continue;
        }
        if let Some(guard) = &held.guard {
            push::give_back(tx, guard, id)?;
        }
        tick::remove(tx, &held)?;
        evicted += 1;
    }
    Ok(evicted)
}
