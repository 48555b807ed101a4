//! Schedules: definitions as text, and the compare-and-set that fires a slot once.

use rusqlite::{Connection, OptionalExtension, params};
use windlass_core::backend::{Pushed, ScheduleChange, ScheduleChanged};
use windlass_core::schedule::Schedule;
use windlass_core::view::ScheduleRecord;
use windlass_core::{ScheduleId, Timestamp};

use crate::errors::Fault;
use crate::push::{self, NewTask};
use crate::rows::{Id, from_json, id_of, text, to_json};
use crate::tx::Tx;

/// A change as it is stored.
#[derive(Debug)]
pub(crate) enum PreparedChange {
    Put { schedule: Box<Schedule>, definition: String, next: Option<Timestamp> },
    Pause(ScheduleId),
    Resume { id: ScheduleId, next: Option<Timestamp> },
    Remove(ScheduleId),
    Fire { id: ScheduleId, expected: Timestamp, next: Option<Timestamp>, push: Vec<NewTask>, missed: u64 },
}

impl PreparedChange {
    pub(crate) fn of(change: &ScheduleChange) -> Self {
        match change {
            ScheduleChange::Put { schedule, next } => {
                Self::Put { schedule: Box::new(schedule.clone()), definition: to_json(schedule), next: *next }
            }
            ScheduleChange::Pause(id) => Self::Pause(id.clone()),
            ScheduleChange::Resume { id, next } => Self::Resume { id: id.clone(), next: *next },
            ScheduleChange::Remove(id) => Self::Remove(id.clone()),
            ScheduleChange::Fire { id, expected, next, push, missed } => Self::Fire {
                id: id.clone(),
                expected: *expected,
                next: *next,
                push: push.iter().map(NewTask::of).collect(),
                missed: *missed,
            },
        }
    }
}

/// Applies a change.
pub(crate) fn change(tx: &mut Tx<'_>, change: &PreparedChange) -> Result<ScheduleChanged, Fault> {
    match change {
        PreparedChange::Put { schedule, definition, next } => put(tx, schedule, definition, *next),
        PreparedChange::Pause(id) => {
            let changed =
                tx.execute("UPDATE windlass_schedule SET paused = 1 WHERE id = ?1 AND paused = 0", [id.as_str()])?;
            outcome(tx, id, changed)
        }
        PreparedChange::Resume { id, next } => {
            let changed = tx.execute(
                "UPDATE windlass_schedule SET paused = 0, next = ?2 WHERE id = ?1 AND paused = 1",
                params![id.as_str(), next.map(Timestamp::as_micros)],
            )?;
            outcome(tx, id, changed)
        }
        PreparedChange::Remove(id) => {
            let changed = tx.execute("DELETE FROM windlass_schedule WHERE id = ?1", [id.as_str()])?;
            Ok(if changed == 0 { ScheduleChanged::Unknown } else { ScheduleChanged::Done })
        }
        PreparedChange::Fire { id, expected, next, push, missed } => fire(tx, id, *expected, *next, push, *missed),
    }
}

fn put(
    tx: &mut Tx<'_>,
    schedule: &Schedule,
    definition: &str,
    next: Option<Timestamp>,
) -> Result<ScheduleChanged, Fault> {
    let mut select = tx.prepare("SELECT definition FROM windlass_schedule WHERE id = ?1")?;
    let mut rows = select.query([schedule.id.as_str()])?;
    if let Some(row) = rows.next()? {
        let stored = text(row, 0)?;
        // Written by another version, the same definition may read differently: what counts is what it says.
        if stored == definition || from_json::<Schedule>("schedule", stored).is_ok_and(|stored| stored == *schedule) {
            return Ok(ScheduleChanged::Unchanged);
        }
    }
    tx.execute(
        "INSERT INTO windlass_schedule (id, definition, next) VALUES (?1, ?2, ?3) \
         ON CONFLICT (id) DO UPDATE SET definition = excluded.definition, next = excluded.next",
        params![schedule.id.as_str(), definition, next.map(Timestamp::as_micros)],
    )?;
    Ok(ScheduleChanged::Done)
}

fn outcome(tx: &Tx<'_>, id: &ScheduleId, changed: usize) -> Result<ScheduleChanged, Fault> {
    if changed > 0 {
        return Ok(ScheduleChanged::Done);
    }
    let known = tx.prepare("SELECT 1 FROM windlass_schedule WHERE id = ?1")?.exists([id.as_str()])?;
    Ok(if known { ScheduleChanged::Unchanged } else { ScheduleChanged::Unknown })
}

fn fire(
    tx: &mut Tx<'_>,
    id: &ScheduleId,
    expected: Timestamp,
    next: Option<Timestamp>,
    push: &[NewTask],
    missed: u64,
) -> Result<ScheduleChanged, Fault> {
    if tx.paused()?.closed {
        return Ok(ScheduleChanged::Raced);
    }
    let stored: Option<(Option<i64>, bool)> = tx
        .prepare("SELECT next, paused FROM windlass_schedule WHERE id = ?1")?
        .query_row([id.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    match stored {
        None => return Ok(ScheduleChanged::Unknown),
        Some((_, true)) => return Ok(ScheduleChanged::Raced),
        Some((slot, false)) if slot != Some(expected.as_micros()) => return Ok(ScheduleChanged::Raced),
        Some((_, false)) => {}
    }
    let pushed = push::push_all(tx, &[], push)?;
    let stored: Vec<&NewTask> =
        push.iter().zip(&pushed).filter(|(_, pushed)| **pushed == Pushed::Stored).map(|(task, _)| task).collect();
    let (fired, last_task) = (stored.len() as i64, stored.last().map(|task| task.id()));
    tx.execute(
        "UPDATE windlass_schedule SET next = ?2, fired = fired + ?3, missed = missed + ?4, \
         last_task = coalesce(?5, last_task), last_fired_at = CASE WHEN ?3 > 0 THEN ?6 ELSE last_fired_at END \
         WHERE id = ?1",
        params![
            id.as_str(),
            next.map(Timestamp::as_micros),
            fired,
            i64::try_from(missed).unwrap_or(i64::MAX),
            last_task.map(Id),
            tx.now_micros()
        ],
    )?;
    Ok(ScheduleChanged::Done)
}

/// Every schedule, by id.
pub(crate) fn all(db: &Connection) -> Result<Vec<ScheduleRecord>, Fault> {
    let mut select = db.prepare_cached(
        "SELECT definition, next, paused, last_fired_at, last_task, fired, missed FROM windlass_schedule ORDER BY id",
    )?;
    let mut rows = select.query([])?;
    let mut schedules = Vec::new();
    while let Some(row) = rows.next()? {
        let last_task = row.get_ref(4)?;
        schedules.push(ScheduleRecord {
            schedule: from_json("schedule", text(row, 0)?)?,
            next: row.get::<_, Option<i64>>(1)?.map(Timestamp::from_micros),
            paused: row.get(2)?,
            last_fired_at: row.get::<_, Option<i64>>(3)?.map(Timestamp::from_micros),
            last_task: if last_task == rusqlite::types::ValueRef::Null { None } else { Some(id_of(last_task)?) },
            fired: u64::try_from(row.get::<_, i64>(5)?).unwrap_or(0),
            missed: u64::try_from(row.get::<_, i64>(6)?).unwrap_or(0),
        });
    }
    Ok(schedules)
}
