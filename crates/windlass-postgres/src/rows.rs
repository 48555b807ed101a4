//! Between rows and the engine's types: numbers for states and reasons, ids, histories, and whole records.
//!
//! The database comes from outside. Whatever it holds is parsed here; what cannot be parsed is a [`Fault`], never a panic.

use std::str::FromStr;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio_postgres::Row;
use windlass_core::state::AGING;
use windlass_core::view::{AttemptRecord, Record};
use windlass_core::{
    Args, DeadReason, Envelope, Failure, Json, NodeId, Priority, QueueName, State, TaskId, TaskName, Timestamp,
};

use crate::errors::Fault;

/// The number of a state in the tables; the conditions of the indices rely on it.
pub(crate) fn state_code(state: State) -> i16 {
    match state {
        State::Scheduled => 0,
        State::Ready => 1,
        State::Running => 2,
        State::Parked => 3,
        State::Succeeded => 4,
        State::Dead => 5,
        State::Cancelled => 6,
        State::Expired => 7,
    }
}

/// The state with this number.
pub(crate) fn state_of(code: i16) -> Result<State, Fault> {
    usize::try_from(code)
        .ok()
        .and_then(|index| State::ALL.get(index).copied())
        .ok_or_else(|| Fault::damaged("task", format_args!("state {code}")))
}

/// The number of a reason in the tables.
pub(crate) fn reason_code(reason: DeadReason) -> i16 {
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

fn reason_of(code: i16) -> Result<DeadReason, Fault> {
    usize::try_from(code)
        .ok()
        .and_then(|index| DeadReason::ALL.get(index).copied())
        .ok_or_else(|| Fault::damaged("task", format_args!("reason {code}")))
}

/// A value of a column, whatever is wrong with its type.
pub(crate) fn value<'row, T: tokio_postgres::types::FromSql<'row>>(row: &'row Row, index: usize) -> Result<T, Fault> {
    row.try_get(index).map_err(|error| Fault::damaged("row", error))
}

/// Parses a stored name of any kind.
pub(crate) fn parse<T: FromStr>(what: &str, text: &str) -> Result<T, Fault>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| Fault::damaged(what, error))
}

/// The id in a column.
pub(crate) fn id_of(row: &Row, index: usize) -> Result<TaskId, Fault> {
    parse("task id", value(row, index)?)
}

/// The queue in a column.
pub(crate) fn queue_of(row: &Row, index: usize) -> Result<QueueName, Fault> {
    parse("queue name", value(row, index)?)
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

// The statements compute ranks themselves.
const _: () =
    assert!(AGING.as_micros() == 300_000_000, "the number in the statements is the worth of a priority level");

/// The stored priority.
pub(crate) fn priority_of(level: i16) -> Result<Priority, Fault> {
    u8::try_from(level)
        .ok()
        .and_then(|level| Priority::new(level).ok())
        .ok_or_else(|| Fault::damaged("task", format_args!("priority {level}")))
}

/// A duration as the number of a column.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// One column of many rows, as a list for `unnest`.
pub(crate) fn column<'a, R, T>(rows: &[&'a R], of: impl Fn(&'a R) -> T) -> Vec<T> {
    rows.iter().map(|row| of(row)).collect()
}

/// Text that PostgreSQL can keep: everything but the character 0.
pub(crate) fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// What [`record`] reads of a task that has not ended, and its rank; conditions on `t` follow.
pub(crate) const LIVE_RECORD: &str = "\
SELECT t.seq, t.id, t.name, t.queue, t.priority, t.state, t.at, t.attempt, t.crashes, t.enqueued_at, t.started_at, t.node, \
t.cancel, NULL::smallint AS reason, NULL::text AS skipped, t.progress, t.failure, t.history, NULL::text AS result, t.body, t.rank, \
t.memo, t.waits_for FROM windlass.live t";

/// What [`record`] reads of a finished task.
pub(crate) const FINISHED_RECORD: &str = "\
SELECT t.seq, t.id, t.name, t.queue, t.priority, t.state, t.finished_at, t.attempt, t.crashes, t.enqueued_at, t.started_at, \
t.node, false, t.reason, t.skipped, t.progress, t.failure, t.history, t.result, t.body, \
NULL::bigint, t.memo, NULL::text FROM windlass.finished t";

/// What [`record`] reads of a dead letter or of a result with a time of its own.
pub(crate) const KEPT_RECORD: &str = "\
SELECT t.seq, t.id, t.name, t.queue, t.priority, t.state, t.finished_at, t.attempt, t.crashes, t.enqueued_at, t.started_at, \
t.node, false, t.reason, t.skipped, t.progress, t.failure, t.history, t.result, t.body, \
NULL::bigint, t.memo, NULL::text FROM windlass.kept t";

/// A record with its place in the order of insertion.
pub(crate) fn record(row: &Row) -> Result<(i64, Record), Fault> {
    let id = id_of(row, 1)?;
    let name: TaskName = parse("task name", value(row, 2)?)?;
    let queue = queue_of(row, 3)?;
    let priority = priority_of(value(row, 4)?)?;
    let state = state_of(value(row, 5)?)?;
    let at = Timestamp::from_micros(value(row, 6)?);
    let mut failure: Option<Failure> = json_column(row, 16, "failure")?;
    let envelope = match Envelope::from_body(id.clone(), name.clone(), queue.clone(), priority, value(row, 19)?) {
        Ok(envelope) => envelope,
        // A task that cannot be read is shown without its arguments: somebody must be able to find and discard it.
        Err(invalid) => {
            failure = Some(Failure::new("damaged", &invalid));
            Envelope { id, priority, ..Envelope::new(name, queue, Args::none()) }
        }
    };
    let count = |index: usize| -> Result<u32, Fault> { Ok(u32::try_from(value::<i32>(row, index)?).unwrap_or(0)) };
    let time = |index: usize| -> Result<Option<Timestamp>, Fault> {
        Ok(value::<Option<i64>>(row, index)?.map(Timestamp::from_micros))
    };
    Ok((
        value(row, 0)?,
        Record {
            envelope,
            state,
            attempt: count(7)?,
            crashes: count(8)?,
            enqueued_at: Timestamp::from_micros(value(row, 9)?),
            due_at: (state == State::Scheduled).then_some(at),
            started_at: time(10)?,
            finished_at: state.is_final().then_some(at),
            node: value::<Option<&str>>(row, 11)?.map(|node| parse::<NodeId>("node name", node)).transpose()?,
            progress: json_column(row, 15, "progress")?,
            cancel_requested: value(row, 12)?,
            result: value::<Option<&str>>(row, 18)?
                .map(Json::parse)
                .transpose()
                .map_err(|error| Fault::damaged("result", error))?,
            skipped: value(row, 14)?,
            reason: value::<Option<i16>>(row, 13)?.map(reason_of).transpose()?,
            failure,
            history: history(row, 17)?,
            memo: value::<Option<String>>(row, 21)?.unwrap_or_default(),
            waits_for: value::<Option<&str>>(row, 22)?
                .filter(|_| state == State::Scheduled)
                .map(|signal| parse("signal name", signal))
                .transpose()?,
        },
    ))
}

/// A stored attempt: number, node, when it started, when it ended, what went wrong. The statements write them.
type StoredAttempt = (u32, Option<NodeId>, Option<i64>, i64, Failure);

fn history(row: &Row, index: usize) -> Result<Vec<AttemptRecord>, Fault> {
    let attempts: Option<Vec<&str>> = value(row, index)?;
    let attempts = attempts.unwrap_or_default();
    attempts
        .into_iter()
        .map(|text| {
            let (number, node, started_at, ended_at, failure): StoredAttempt = from_json("history", text)?;
            Ok(AttemptRecord {
                number,
                node,
                started_at: started_at.map(Timestamp::from_micros),
                ended_at: Timestamp::from_micros(ended_at),
                failure,
            })
        })
        .collect()
}

/// The opposite of what reads a history: a JSON list of stored attempts; `None` for an empty one.
pub(crate) fn stored_history(attempts: &[AttemptRecord]) -> Option<String> {
    let stored = |attempt: &AttemptRecord| -> StoredAttempt {
        let AttemptRecord { number, node, started_at, ended_at, failure } = attempt.clone();
        (number, node, started_at.map(Timestamp::as_micros), ended_at.as_micros(), failure)
    };
    (!attempts.is_empty()).then(|| to_json(&attempts.iter().map(stored).collect::<Vec<_>>()))
}

fn json_column<T: DeserializeOwned>(row: &Row, index: usize, what: &str) -> Result<Option<T>, Fault> {
    value::<Option<&str>>(row, index)?.map(|text| from_json(what, text)).transpose()
}
