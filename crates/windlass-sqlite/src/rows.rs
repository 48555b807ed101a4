//! Between rows and the engine's types: numbers for states and reasons, ids, and whole records.
//!
//! The file comes from outside. Whatever it holds is parsed here; what cannot be parsed is a [`Fault`], never a panic.

use std::str::FromStr;
use std::time::Duration;

use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, Row, ToSql};
use serde::Serialize;
use serde::de::DeserializeOwned;
use windlass_core::names::IdForm;
use windlass_core::state::AGING;
use windlass_core::view::Record;
use windlass_core::{
    Args, DeadReason, Envelope, Failure, Json, NodeId, Priority, QueueName, State, TaskId, TaskName, Timestamp,
};

use crate::errors::Fault;

pub(crate) const SCHEDULED: i64 = 0;
pub(crate) const READY: i64 = 1;
pub(crate) const RUNNING: i64 = 2;
pub(crate) const PARKED: i64 = 3;

/// The number of a state in the file; the conditions of the indices rely on it.
pub(crate) fn state_code(state: State) -> i64 {
    match state {
        State::Scheduled => SCHEDULED,
        State::Ready => READY,
        State::Running => RUNNING,
        State::Parked => PARKED,
        State::Succeeded => 4,
        State::Dead => 5,
        State::Cancelled => 6,
        State::Expired => 7,
    }
}

/// The state with this number.
pub(crate) fn state_of(code: i64) -> Result<State, Fault> {
    usize::try_from(code)
        .ok()
        .and_then(|index| State::ALL.get(index).copied())
        .ok_or_else(|| Fault::damaged("task", format_args!("state {code}")))
}

/// The number of a reason in the file.
pub(crate) fn reason_code(reason: DeadReason) -> i64 {
    match reason {
        DeadReason::AttemptsUsedUp => 0,
        DeadReason::Fatal => 1,
        DeadReason::Malformed => 2,
        DeadReason::Unknown => 3,
        DeadReason::Poison => 4,
        DeadReason::TooOld => 5,
        DeadReason::Upstream => 6,
    }
}

fn reason_of(code: i64) -> Result<DeadReason, Fault> {
    usize::try_from(code)
        .ok()
        .and_then(|index| DeadReason::ALL.get(index).copied())
        .ok_or_else(|| Fault::damaged("task", format_args!("reason {code}")))
}

/// An id as a parameter.
pub(crate) struct Id<'a>(pub(crate) &'a TaskId);

impl ToSql for Id<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0.form() {
            IdForm::Uuid(bytes) => ValueRef::Blob(bytes),
            IdForm::Text(text) => ValueRef::Text(text.as_bytes()),
        }))
    }
}

/// Whether a stored id is this one; without making a copy of it.
pub(crate) fn is_id(value: ValueRef<'_>, id: &TaskId) -> bool {
    match (value, id.form()) {
        (ValueRef::Blob(stored), IdForm::Uuid(bytes)) => stored == bytes,
        (ValueRef::Text(stored), IdForm::Text(text)) => stored == text.as_bytes(),
        _ => false,
    }
}

/// The stored id.
pub(crate) fn id_of(value: ValueRef<'_>) -> Result<TaskId, Fault> {
    match value {
        ValueRef::Blob(bytes) => bytes
            .try_into()
            .map(TaskId::from_bytes)
            .map_err(|_| Fault::damaged("task id", format_args!("{} bytes", bytes.len()))),
        ValueRef::Text(text) => {
            let text = std::str::from_utf8(text).map_err(|error| Fault::damaged("task id", error))?;
            TaskId::new(text).map_err(|error| Fault::damaged("task id", error))
        }
        ValueRef::Null | ValueRef::Integer(_) | ValueRef::Real(_) => {
            Err(Fault::damaged("task id", "it is neither bytes nor text"))
        }
    }
}

/// Parses a stored name of any kind.
pub(crate) fn parse<T: FromStr>(what: &str, text: &str) -> Result<T, Fault>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| Fault::damaged(what, error))
}

/// Plain data as the text of a column.
pub(crate) fn to_json<T: Serialize + ?Sized>(value: &T) -> String {
    // Serialising plain data to a string cannot fail: every key is text.
    serde_json::to_string(value).unwrap_or_else(|error| unreachable!("stored values are plain data: {error}"))
}

/// The opposite of [`to_json`].
pub(crate) fn from_json<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, Fault> {
    serde_json::from_str(text).map_err(|error| Fault::damaged(what, error))
}

/// When a ready task became ready: its rank without its priority. The inverse of [`windlass_core::state::rank`].
pub(crate) fn ready_at(rank: i64, priority: Priority) -> Timestamp {
    Timestamp::from_micros(rank + i64::from(priority.level()) * AGING.as_micros() as i64)
}

/// The stored priority.
pub(crate) fn priority_of(level: i64) -> Result<Priority, Fault> {
    u8::try_from(level)
        .ok()
        .and_then(|level| Priority::new(level).ok())
        .ok_or_else(|| Fault::damaged("task", format_args!("priority {level}")))
}

/// A duration as the number of a column.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// Everything that [`record`] reads; conditions on `t` follow.
pub(crate) const RECORD: &str = "\
SELECT t.seq, t.id, n.name, q.name, t.priority, t.state, t.at, t.attempt, t.crashes, t.enqueued_at, t.started_at, \
(SELECT w.id FROM windlass_node w WHERE w.number = t.node), t.cancel, t.reason, t.skipped, t.progress, t.failure, t.history, t.result, \
coalesce(t.body, (SELECT l.body FROM windlass_large l WHERE l.seq = t.seq)), t.memo, t.waits_for \
FROM windlass_task t CROSS JOIN windlass_queue q ON q.id = t.queue CROSS JOIN windlass_name n ON n.id = t.name ";

/// A record with its place in the order of insertion.
pub(crate) fn record(row: &Row<'_>) -> Result<(i64, Record), Fault> {
    let id = id_of(row.get_ref(1)?)?;
    let name: TaskName = parse("task name", text(row, 2)?)?;
    let queue: QueueName = parse("queue name", text(row, 3)?)?;
    let priority = priority_of(row.get(4)?)?;
    let state = state_of(row.get(5)?)?;
    let at = Timestamp::from_micros(row.get(6)?);
    let mut failure = json_column(row, 16, "failure")?;
    let envelope = match Envelope::from_body(
        id.clone(),
        name.clone(),
        queue.clone(),
        priority,
        optional_text(row, 19)?.unwrap_or_default(),
    ) {
        Ok(envelope) => envelope,
        // A task that cannot be read is shown without its arguments: somebody must be able to find and discard it.
        Err(invalid) => {
            failure = Some(Failure::new(DAMAGED, &invalid));
            let mut bare = Envelope::new(name, queue, Args::none());
            bare.id = id;
            bare.priority = priority;
            bare
        }
    };
    Ok((
        row.get(0)?,
        Record {
            envelope,
            state,
            attempt: row.get(7)?,
            crashes: row.get(8)?,
            enqueued_at: Timestamp::from_micros(row.get(9)?),
            due_at: (state == State::Scheduled).then_some(at),
            started_at: row.get::<_, Option<i64>>(10)?.map(Timestamp::from_micros),
            finished_at: state.is_final().then_some(at),
            node: optional_text(row, 11)?.map(|node| parse::<NodeId>("node name", node)).transpose()?,
            progress: json_column(row, 15, "progress")?,
            cancel_requested: row.get::<_, i64>(12)? != 0,
            result: optional_text(row, 18)?
                .map(Json::parse)
                .transpose()
                .map_err(|error| Fault::damaged("result", error))?,
            skipped: row.get(14)?,
            reason: row.get::<_, Option<i64>>(13)?.map(reason_of).transpose()?,
            failure,
            history: json_column(row, 17, "history")?.unwrap_or_default(),
            memo: optional_text(row, 20)?.map(str::to_owned).unwrap_or_default(),
            waits_for: optional_text(row, 21)?.map(|signal| parse("name of a signal", signal)).transpose()?,
        },
    ))
}

/// The class of the failure that a record shows whose task cannot be read.
pub(crate) const DAMAGED: &str = "damaged";

/// Whether the task of a record cannot be read: its arguments are not what was pushed.
pub(crate) fn is_damaged(record: &Record) -> bool {
    record.failure.as_ref().is_some_and(|failure| failure.class == DAMAGED)
}

/// The record at a place; `None` when there is none.
pub(crate) fn record_at(db: &Connection, seq: i64) -> Result<Option<Record>, Fault> {
    let mut select = db.prepare_cached(record_at_sql())?;
    let mut rows = select.query([seq])?;
    rows.next()?.map(|row| record(row).map(|(_, record)| record)).transpose()
}

fn record_at_sql() -> &'static str {
    static SQL: std::sync::LazyLock<String> = std::sync::LazyLock::new(|| format!("{RECORD} WHERE t.seq = ?1"));
    &SQL
}

fn json_column<T: DeserializeOwned>(row: &Row<'_>, index: usize, what: &str) -> Result<Option<T>, Fault> {
    optional_text(row, index)?.map(|text| from_json(what, text)).transpose()
}

/// The text of a column, borrowed.
pub(crate) fn text<'row>(row: &'row Row<'_>, index: usize) -> Result<&'row str, Fault> {
    row.get_ref(index)?.as_str().map_err(|error| Fault::damaged("text", error))
}

/// The text of a column that may be NULL, borrowed.
pub(crate) fn optional_text<'row>(row: &'row Row<'_>, index: usize) -> Result<Option<&'row str>, Fault> {
    row.get_ref(index)?.as_str_or_null().map_err(|error| Fault::damaged("text", error))
}
