//! Schedules: definitions as text, and the compare-and-set that fires a slot once.

use windlass_core::backend::{Pushed, ScheduleChange, ScheduleChanged};
use windlass_core::schedule::Schedule;
use windlass_core::view::ScheduleRecord;
use windlass_core::{Envelope, ScheduleId, Timestamp};

use crate::errors::Fault;
use crate::offer;
use crate::push::NewTask;
use crate::rows::{from_json, parse, to_json, value};
use crate::tx::Tx;

/// Applies a change.
pub(crate) async fn change(tx: &mut Tx<'_>, change: &ScheduleChange) -> Result<ScheduleChanged, Fault> {
    match change {
        ScheduleChange::Put { schedule, next } => put(tx, schedule, *next).await,
        ScheduleChange::Pause(id) => {
            let changed = tx
                .execute("UPDATE windlass.schedule SET paused = true WHERE id = $1 AND NOT paused", &[&id.as_str()])
                .await?;
            outcome(tx, id, changed).await
        }
        ScheduleChange::Resume { id, next } => {
            let changed = tx
                .execute(
                    "UPDATE windlass.schedule SET paused = false, next = $2 WHERE id = $1 AND paused",
                    &[&id.as_str(), &next.map(Timestamp::as_micros)],
                )
                .await?;
            outcome(tx, id, changed).await
        }
        ScheduleChange::Remove(id) => {
            let changed = tx.execute("DELETE FROM windlass.schedule WHERE id = $1", &[&id.as_str()]).await?;
            Ok(if changed == 0 { ScheduleChanged::Unknown } else { ScheduleChanged::Done })
        }
        ScheduleChange::Fire { id, expected, next, push, missed } => {
            fire(tx, id, *expected, *next, push, *missed).await
        }
    }
}

async fn put(tx: &mut Tx<'_>, schedule: &Schedule, next: Option<Timestamp>) -> Result<ScheduleChanged, Fault> {
    let definition = to_json(schedule);
    let rows =
        tx.query("SELECT definition FROM windlass.schedule WHERE id = $1 FOR UPDATE", &[&schedule.id.as_str()]).await?;
    if let Some(row) = rows.first() {
        let stored: &str = value(row, 0)?;
        // Written by another version, the same definition may read differently: what counts is what it says.
        if stored == definition || from_json::<Schedule>("schedule", stored).is_ok_and(|stored| stored == *schedule) {
            return Ok(ScheduleChanged::Unchanged);
        }
    }
    // Two nodes that declare the same new schedule at once: the second finds the definition of the first.
    let changed = tx
        .execute(
            "INSERT INTO windlass.schedule AS s (id, definition, next) VALUES ($1, $2, $3) \
             ON CONFLICT (id) DO UPDATE SET definition = excluded.definition, next = excluded.next \
             WHERE s.definition <> excluded.definition",
            &[&schedule.id.as_str(), &definition, &next.map(Timestamp::as_micros)],
        )
        .await?;
    Ok(if changed == 0 { ScheduleChanged::Unchanged } else { ScheduleChanged::Done })
}

async fn outcome(tx: &Tx<'_>, id: &ScheduleId, changed: u64) -> Result<ScheduleChanged, Fault> {
    if changed > 0 {
        return Ok(ScheduleChanged::Done);
    }
    let known = tx.query("SELECT 1 FROM windlass.schedule WHERE id = $1", &[&id.as_str()]).await?;
    Ok(if known.is_empty() { ScheduleChanged::Unknown } else { ScheduleChanged::Unchanged })
}

async fn fire(
    tx: &mut Tx<'_>,
    id: &ScheduleId,
    expected: Timestamp,
    next: Option<Timestamp>,
    push: &[Envelope],
    missed: u64,
) -> Result<ScheduleChanged, Fault> {
    let rows = tx
        .query(
            "SELECT next, paused OR EXISTS (SELECT 1 FROM windlass.meta WHERE key = 'closed') FROM windlass.schedule \
             WHERE id = $1 FOR UPDATE",
            &[&id.as_str()],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(ScheduleChanged::Unknown) };
    let (slot, stopped): (Option<i64>, bool) = (value(row, 0)?, value(row, 1)?);
    if stopped || slot != Some(expected.as_micros()) {
        return Ok(ScheduleChanged::Raced);
    }
    let tasks: Vec<NewTask> = push.iter().map(NewTask::of).collect();
    let pushed = offer::offer(tx, &tasks, &[]).await?;
    let stored: Vec<&NewTask> =
        tasks.iter().zip(&pushed).filter(|(_, pushed)| **pushed == Pushed::Stored).map(|(task, _)| task).collect();
    let last_task = stored.last().map(|task| task.id_text.as_str());
    let fired_at = (!stored.is_empty()).then_some(tx.now.as_micros());
    tx.execute(
        "UPDATE windlass.schedule SET next = $2, fired = fired + $3, missed = missed + $4, \
         last_task = coalesce($5, last_task), last_fired_at = coalesce($6, last_fired_at) WHERE id = $1",
        &[
            &id.as_str(),
            &next.map(Timestamp::as_micros),
            &(stored.len() as i64),
            &i64::try_from(missed).unwrap_or(i64::MAX),
            &last_task,
            &fired_at,
        ],
    )
    .await?;
    Ok(ScheduleChanged::Done)
}

/// Every schedule, by id.
pub(crate) async fn all(tx: &mut Tx<'_>) -> Result<Vec<ScheduleRecord>, Fault> {
    let rows = tx
        .query(
            "SELECT definition, next, paused, last_fired_at, last_task, fired, missed FROM windlass.schedule ORDER BY id",
            &[],
        )
        .await?;
    rows.iter()
        .map(|row| {
            Ok(ScheduleRecord {
                schedule: from_json("schedule", value(row, 0)?)?,
                next: value::<Option<i64>>(row, 1)?.map(Timestamp::from_micros),
                paused: value(row, 2)?,
                last_fired_at: value::<Option<i64>>(row, 3)?.map(Timestamp::from_micros),
                last_task: value::<Option<&str>>(row, 4)?.map(|id| parse("task id", id)).transpose()?,
                fired: u64::try_from(value::<i64>(row, 5)?).unwrap_or(0),
                missed: u64::try_from(value::<i64>(row, 6)?).unwrap_or(0),
            })
        })
        .collect()
}
