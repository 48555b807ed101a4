//! Between what the scripts answer and the engine's types.
//!
//! The store comes from outside. Whatever it holds is parsed here; what cannot be parsed is an error, never a panic.

use std::fmt::Display;
use std::str::FromStr;

use redis::Value;
use serde::de::DeserializeOwned;
use windlass_core::state::AGING;
use windlass_core::view::{AttemptRecord, Record};
use windlass_core::{
    Args, DeadReason, Envelope, Failure, Json, NodeId, Priority, QueueName, State, StoreError, TaskId, TaskName,
    Timestamp,
};

use crate::errors::damaged;

pub(crate) const CANCEL: u16 = 1;
pub(crate) const EXPIRES: u16 = 8;
const NULL: u16 = 32;
const LARGE: u16 = 1024;
const NO_REASON: u8 = 255;

/// A task as the scripts pack it; `FORM` in `common.lua`.
#[derive(Debug, Clone)]
pub(crate) struct Packed {
    pub(crate) state: State,
    pub(crate) priority: Priority,
    pub(crate) flags: u16,
    pub(crate) reason: Option<DeadReason>,
    pub(crate) attempt: u32,
    pub(crate) crashes: u32,
    pub(crate) fence: i64,
    at: Timestamp,
    rank: i64,
    pub(crate) enqueued_at: Timestamp,
    started_at: Option<Timestamp>,
    pub(crate) queue: QueueName,
    pub(crate) name: TaskName,
    node: Option<NodeId>,
    pub(crate) id: TaskId,
    /// Its body, when that is packed with it.
    body: String,
}

impl Packed {
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, StoreError> {
        let mut rest = Bytes(bytes);
        let state = rest.u8()?;
        let priority = rest.u8()?;
        let flags = u16::from_le_bytes(rest.take()?);
        let reason = rest.u8()?;
        let attempt = u32::from_le_bytes(rest.take()?);
        let crashes = u32::from_le_bytes(rest.take()?);
        let [fence, at, rank, enqueued, started] =
            [rest.number()?, rest.number()?, rest.number()?, rest.number()?, rest.number()?];
        let (queue, name, node, id) = (rest.text()?, rest.text()?, rest.text()?, rest.text()?);
        Ok(Self {
            state: *State::ALL.get(usize::from(state)).ok_or_else(|| damaged("task", format_args!("state {state}")))?,
            priority: Priority::new(priority).map_err(|error| damaged("task", error))?,
            flags,
            reason: match reason {
                NO_REASON => None,
                code => Some(
                    *DeadReason::ALL
                        .get(usize::from(code))
                        .ok_or_else(|| damaged("task", format_args!("reason {code}")))?,
                ),
            },
            attempt,
            crashes,
            fence,
            at: Timestamp::from_micros(at),
            rank,
            enqueued_at: Timestamp::from_micros(enqueued),
            started_at: Some(Timestamp::from_micros(started)).filter(|_| started != 0),
            queue: parse("queue name", queue)?,
            name: parse("task name", name)?,
            node: if node.is_empty() { None } else { Some(parse("node name", node)?) },
            id: parse("task id", id)?,
            body: String::from_utf8(rest.0.to_vec()).map_err(|error| damaged("task", error))?,
        })
    }

    /// When the task ended.
    pub(crate) fn finished_at(&self) -> Option<Timestamp> {
        self.state.is_final().then_some(self.at)
    }

    /// When the task could have been started: its rank without its priority.
    pub(crate) fn ready_at(&self) -> Timestamp {
        Timestamp::from_micros(self.rank + i64::from(self.priority.level()) * AGING.as_micros() as i64)
    }

    /// The envelope; `large` is its body, when that is not packed with it.
    pub(crate) fn envelope(&self, large: &str) -> Result<Envelope, windlass_core::envelope::InvalidBody> {
        let body = if self.flags & LARGE == 0 { self.body.as_str() } else { large };
        let read = |body: &str| {
            Envelope::from_body(self.id.clone(), self.name.clone(), self.queue.clone(), self.priority, body)
        };
        // A push that took its place has left its own body behind the first one.
        let (first, replacement) = body.split_once('\0').map_or((body, None), |(first, last)| (first, Some(last)));
        let mut envelope = read(first)?;
        if let Some(replacement) = replacement {
            let Envelope { args, headers, .. } = read(replacement)?;
            (envelope.args, envelope.headers) = (args, headers);
        }
        // A task that starts over does not expire any more; its body is not written again for that.
        if self.flags & EXPIRES == 0 {
            envelope.expires = None;
        }
        Ok(envelope)
    }
}

/// The bytes of a packed task that were not read yet.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], StoreError> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| damaged("task", "it is too short"))?;
        self.0 = rest;
        Ok(*first)
    }

    fn u8(&mut self) -> Result<u8, StoreError> {
        Ok(self.take::<1>()?[0])
    }

    /// A whole number that Lua keeps as a double.
    fn number(&mut self) -> Result<i64, StoreError> {
        Ok(f64::from_le_bytes(self.take()?) as i64)
    }

    fn text(&mut self) -> Result<&'a str, StoreError> {
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(|| damaged("task", "its text has no end"))?;
        let (text, rest) = self.0.split_at(end);
        self.0 = &rest[1..];
        std::str::from_utf8(text).map_err(|error| damaged("task", error))
    }
}

/// A record from an answer of `read.lua`, with its row.
pub(crate) fn record(answer: Value) -> Result<(i64, Record), StoreError> {
    let mut parts = list(answer)?.into_iter();
    let mut next = || parts.next().unwrap_or(Value::Nil);
    let row = row_number(&next())?;
    let packed = Packed::of(&bytes(next())?)?;
    let body = optional_text(next())?.unwrap_or_default();
    let [result, failure, history, progress, skipped] = [next(), next(), next(), next(), next()].map(optional_text);
    let [memo, waits_for] = [next(), next()].map(optional_text);
    let mut failure: Option<Failure> = json("failure", failure?)?;
    let envelope = match packed.envelope(&body) {
        Ok(envelope) => envelope,
        // A task that cannot be read is shown without its arguments: somebody must be able to find and discard it.
        Err(invalid) => {
            failure = Some(Failure::new("damaged", &invalid));
            let mut bare = Envelope::new(packed.name.clone(), packed.queue.clone(), Args::none());
            bare.id = packed.id.clone();
            bare.priority = packed.priority;
            bare
        }
    };
    let result = match result? {
        Some(text) => Some(Json::parse(&text).map_err(|error| damaged("result", error))?),
        None => (packed.flags & NULL != 0).then(Json::null),
    };
    Ok((
        row,
        Record {
            envelope,
            state: packed.state,
            attempt: packed.attempt,
            crashes: packed.crashes,
            enqueued_at: packed.enqueued_at,
            due_at: (packed.state == State::Scheduled).then_some(packed.at),
            started_at: packed.started_at,
            finished_at: packed.state.is_final().then_some(packed.at),
            node: packed.node,
            progress: json("progress", progress?)?,
            cancel_requested: packed.flags & CANCEL != 0,
            result,
            skipped: skipped?,
            reason: packed.reason,
            failure,
            history: history?.as_deref().map(attempts).transpose()?.unwrap_or_default(),
            memo: memo?.unwrap_or_default(),
            waits_for: waits_for?
                .filter(|_| packed.state == State::Scheduled)
                .map(|signal| parse("signal", &signal))
                .transpose()?,
        },
    ))
}

/// The lines that `remember` in `common.lua` writes.
fn attempts(lines: &str) -> Result<Vec<AttemptRecord>, StoreError> {
    lines.lines().map(attempt).collect()
}

fn attempt(line: &str) -> Result<AttemptRecord, StoreError> {
    let parts: Vec<&str> = line.splitn(5, '\t').collect();
    let [number, node, started, ended, failure] = parts[..] else {
        return Err(damaged("history", "a line has too few parts"));
    };
    let time = |text: &str| parse::<i64>("history", text).map(Timestamp::from_micros);
    Ok(AttemptRecord {
        number: parse("history", number)?,
        node: if node.is_empty() { None } else { Some(parse("node name", node)?) },
        started_at: if started == "0" { None } else { Some(time(started)?) },
        ended_at: time(ended)?,
        failure: from_json("failure", failure)?,
    })
}

fn json<T: DeserializeOwned>(what: &str, text: Option<String>) -> Result<Option<T>, StoreError> {
    text.map(|text| from_json(what, &text)).transpose()
}

/// Plain data from the text that the store keeps.
pub(crate) fn from_json<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|error| damaged(what, error))
}

/// The opposite of [`from_json`].
pub(crate) fn to_json<T: serde::Serialize + ?Sized>(value: &T) -> String {
    // Serialising plain data to a string cannot fail: every key is text.
    serde_json::to_string(value).unwrap_or_else(|error| unreachable!("stored values are plain data: {error}"))
}

/// Parses a stored name or number of any kind.
pub(crate) fn parse<T: FromStr>(what: &str, text: &str) -> Result<T, StoreError>
where
    T::Err: Display,
{
    text.parse().map_err(|error| damaged(what, error))
}

/// A list of an answer; nothing is an empty one.
pub(crate) fn list(value: Value) -> Result<Vec<Value>, StoreError> {
    match value {
        Value::Array(values) | Value::Set(values) => Ok(values),
        Value::Map(pairs) => Ok(pairs.into_iter().flat_map(|(key, value)| [key, value]).collect()),
        Value::Nil => Ok(Vec::new()),
        _ => Err(damaged("answer", "it is not a list")),
    }
}

pub(crate) fn bytes(value: Value) -> Result<Vec<u8>, StoreError> {
    match value {
        Value::BulkString(bytes) => Ok(bytes),
        Value::SimpleString(text) => Ok(text.into_bytes()),
        _ => Err(damaged("answer", "it is not text")),
    }
}

pub(crate) fn text(value: Value) -> Result<String, StoreError> {
    match value {
        Value::Int(number) => Ok(number.to_string()),
        Value::Okay => Ok("OK".to_owned()),
        Value::VerbatimString { text, .. } => Ok(text),
        other => String::from_utf8(bytes(other)?).map_err(|error| damaged("text", error)),
    }
}

/// The text that may be missing: Lua answers `false` as nothing.
pub(crate) fn optional_text(value: Value) -> Result<Option<String>, StoreError> {
    match value {
        Value::Nil | Value::Boolean(false) => Ok(None),
        other => text(other).map(Some),
    }
}

pub(crate) fn texts(value: Value) -> Result<Vec<String>, StoreError> {
    list(value)?.into_iter().map(text).collect()
}

pub(crate) fn integer(value: &Value) -> Result<i64, StoreError> {
    match value {
        Value::Int(number) => Ok(*number),
        Value::BulkString(digits) => {
            let digits = std::str::from_utf8(digits).map_err(|error| damaged("number", error))?;
            // Scores are doubles, which a server writes as it likes.
            digits.parse().or_else(|_| parse::<f64>("number", digits).map(|number| number as i64))
        }
        Value::Double(number) => Ok(*number as i64),
        _ => Err(damaged("answer", "it is not a number")),
    }
}

/// The number of a task from the text that the scripts use for it.
pub(crate) fn row_number(value: &Value) -> Result<i64, StoreError> {
    integer(value)
}

/// The opposite of [`row_number`].
pub(crate) fn row_text(row: i64) -> String {
    format!("{row:014}")
}
