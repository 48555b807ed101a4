//! Schedules: definitions as text, and the compare-and-set that fires a slot once.

use redis::{Cmd, Value};
use windlass_core::backend::{ScheduleChange, ScheduleChanged, check_batch};
use windlass_core::envelope::PUSH_MAX;
use windlass_core::schedule::Schedule;
use windlass_core::view::ScheduleRecord;
use windlass_core::{StoreError, Timestamp};

use crate::Shared;
use crate::encode::{add_task, optional_time};
use crate::errors::damaged;
use crate::record::{bytes, from_json, list, optional_text, parse, text, to_json};
use crate::scripts::Script;

/// Changes a schedule.
pub(crate) async fn change(shared: &Shared, change: &ScheduleChange) -> Result<ScheduleChanged, StoreError> {
    match change {
        ScheduleChange::Put { schedule, next } => put(shared, schedule, *next).await,
        ScheduleChange::Pause(id) => {
            ask(shared, |cmd| {
                cmd.arg("pause").arg(id.as_str());
            })
            .await
        }
        ScheduleChange::Resume { id, next } => {
            ask(shared, |cmd| {
                cmd.arg("resume").arg(id.as_str()).arg(optional_time(*next));
            })
            .await
        }
        ScheduleChange::Remove(id) => {
            ask(shared, |cmd| {
                cmd.arg("remove").arg(id.as_str());
            })
            .await
        }
        ScheduleChange::Fire { id, expected, next, push, missed } => {
            check_batch("tasks", push.len(), PUSH_MAX)?;
            ask(shared, |cmd| {
                cmd.arg("fire").arg(id.as_str()).arg(expected.as_micros()).arg(optional_time(*next));
                cmd.arg((*missed).min(i64::MAX as u64));
                for envelope in push {
                    add_task(cmd, envelope);
                }
            })
            .await
        }
    }
}

async fn put(shared: &Shared, schedule: &Schedule, next: Option<Timestamp>) -> Result<ScheduleChanged, StoreError> {
    let definition = to_json(schedule);
    let mut seen = String::new();
    loop {
        let answer = shared
            .run(Script::Schedule, |cmd| {
                cmd.arg("put").arg(schedule.id.as_str()).arg(&definition).arg(optional_time(next)).arg(&seen);
            })
            .await?;
        let Value::Array(mut stored) = answer else { return changed_of(answer) };
        let stored = text(stored.pop().unwrap_or(Value::Nil))?;
        // Written by another version, the same definition may read differently: what counts is what it says.
        if from_json::<Schedule>("schedule", &stored).is_ok_and(|stored| stored == *schedule) {
            return Ok(ScheduleChanged::Unchanged);
        }
        seen = stored;
    }
}

async fn ask(shared: &Shared, fill: impl Fn(&mut Cmd) + Sync) -> Result<ScheduleChanged, StoreError> {
    changed_of(shared.run(Script::Schedule, fill).await?)
}

fn changed_of(answer: Value) -> Result<ScheduleChanged, StoreError> {
    match bytes(answer)?.as_slice() {
        b"done" => Ok(ScheduleChanged::Done),
        b"unchanged" => Ok(ScheduleChanged::Unchanged),
        b"unknown" => Ok(ScheduleChanged::Unknown),
        b"raced" => Ok(ScheduleChanged::Raced),
        _ => Err(damaged("answer", "it says nothing about a schedule")),
    }
}

/// Every schedule, by id.
pub(crate) async fn all(shared: &Shared) -> Result<Vec<ScheduleRecord>, StoreError> {
    let answer = shared
        .run(Script::Schedule, |cmd| {
            cmd.arg("list");
        })
        .await?;
    let mut records = list(answer)?.into_iter().map(record_of).collect::<Result<Vec<_>, _>>()?;
    records.sort_by(|one, other| one.schedule.id.cmp(&other.schedule.id));
    Ok(records)
}

fn record_of(answer: Value) -> Result<ScheduleRecord, StoreError> {
    let mut parts = list(answer)?.into_iter().map(optional_text);
    let mut next = || parts.next().unwrap_or(Ok(None));
    let definition = next()?.ok_or_else(|| damaged("schedule", "its definition is gone"))?;
    let time = |text: Option<String>| -> Result<Option<Timestamp>, StoreError> {
        let text = text.filter(|text| !text.is_empty());
        text.map(|text| parse("schedule", &text).map(Timestamp::from_micros)).transpose()
    };
    let number = |text: Option<String>| text.map_or(Ok(0), |text| parse::<u64>("schedule", &text));
    Ok(ScheduleRecord {
        schedule: from_json("schedule", &definition)?,
        next: time(next()?)?,
        paused: next()?.as_deref() == Some("1"),
        last_fired_at: time(next()?)?,
        last_task: next()?.map(|id| parse("task id", &id)).transpose()?,
        fired: number(next()?)?,
        missed: number(next()?)?,
    })
}
