//! Listings: which tasks match, newest first.
//!
//! Filters are anything, tasks may be millions, and an index for every question would slow every push. So:
//! - a key or a workflow has its index,
//! - states that few tasks are in, or that few have entered since a time, are found through the index of that state,
//! - everything else is read in the order of insertion, one stretch after the other, until the page is full or
//!   [`SCAN_MAX`] is over. Then the page is shorter and says where to go on.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use rusqlite::types::Value;
use rusqlite::{Connection, params_from_iter};
use windlass_core::StoreError;
use windlass_core::names::IdForm;
use windlass_core::view::{Cursor, Filter, Listing, Page, Record};
use windlass_core::{State, TaskId, Timestamp};

use crate::errors::Fault;
use crate::rows::{self, reason_code, state_code};
use crate::tx::{name_number, queue_number};

/// The longest that one page looks for tasks.
const SCAN_MAX: Duration = Duration::from_millis(100);
/// Places in one stretch of the order of insertion.
const STRETCH: i64 = 20_000;
/// Up to this many tasks in the wanted states are collected and sorted.
const FEW: i64 = 20_000;

/// The places of the tasks that match, newest first.
pub(crate) struct Scanned {
    pub(crate) seqs: Vec<i64>,
    /// More may come after this place.
    pub(crate) next: Option<i64>,
}

/// The place that a cursor names.
pub(crate) fn place_of(cursor: Option<&Cursor>) -> Result<Option<i64>, StoreError> {
    cursor
        .map(|cursor| {
            cursor.0.parse().map_err(|_| StoreError::Rejected("the cursor was not made by this store".to_owned()))
        })
        .transpose()
}

/// One page with its records.
pub(crate) fn list(db: &Connection, filter: &Filter, page: &Page, after: Option<i64>) -> Result<Listing, Fault> {
    let Scanned { seqs, next } = scan(db, filter, after, page.limit)?;
    let mut tasks: Vec<Record> = Vec::with_capacity(seqs.len());
    for seq in seqs {
        tasks.extend(rows::record_at(db, seq)?);
    }
    Ok(Listing { tasks, next: next.map(|seq| Cursor(seq.to_string())) })
}

/// The first `limit` places after `after` that match.
pub(crate) fn scan(db: &Connection, filter: &Filter, after: Option<i64>, limit: usize) -> Result<Scanned, Fault> {
    let Some((condition, values)) = condition(db, filter)? else { return Ok(Scanned { seqs: Vec::new(), next: None }) };
    let top = match after {
        Some(after) => after,
        None => newest(db)?.saturating_add(1),
    };
    let few = filter.key.is_some() || filter.workflow.is_some();
    let few = few
        || match filter.finished_since {
            Some(_) => few_ended_since(db, filter)?,
            None => few_in_states(db, &filter.states)?,
        };
    let source = if few { few_source(filter) } else { "windlass_task t".to_owned() };
    let sql =
        format!("SELECT t.seq FROM {source} WHERE t.seq < ?1 AND t.seq >= ?2 {condition} ORDER BY t.seq DESC LIMIT ?3");
    let mut select = db.prepare(&sql)?;
    let began = Instant::now();
    let mut seqs: Vec<i64> = Vec::new();
    let mut below = top;
    loop {
        let from = if few { 0 } else { below.saturating_sub(STRETCH).max(0) };
        // One more than wanted tells whether there is more.
        let wanted = (limit + 1 - seqs.len()) as i64;
        let bound = [Value::from(below), Value::from(from), Value::from(wanted)];
        let mut rows = select.query(params_from_iter(bound.into_iter().chain(values.iter().cloned())))?;
        while let Some(row) = rows.next()? {
            seqs.push(row.get(0)?);
        }
        if seqs.len() > limit {
            seqs.truncate(limit);
            return Ok(Scanned { next: seqs.last().copied(), seqs });
        }
        if from == 0 {
            return Ok(Scanned { seqs, next: None });
        }
        below = from;
        if began.elapsed() >= SCAN_MAX {
            return Ok(Scanned { seqs, next: Some(below) });
        }
    }
}

fn newest(db: &Connection) -> Result<i64, Fault> {
    let newest: Option<i64> =
        db.prepare_cached("SELECT max(seq) FROM windlass_task")?.query_row([], |row| row.get(0))?;
    Ok(newest.unwrap_or(0))
}

/// The filter as SQL, with values for `?4` and on; `None` when nothing can match.
fn condition(db: &Connection, filter: &Filter) -> Result<Option<(String, Vec<Value>)>, Fault> {
    let mut sql = String::new();
    let mut values = Vec::new();
    let numbers = |sql: &mut String, column: &str, numbers: Vec<i64>| {
        let list = numbers.iter().map(i64::to_string).collect::<Vec<_>>().join(", ");
        // Writing to a string cannot fail.
        let _ = write!(sql, " AND t.{column} IN ({list})");
    };
    let states = filter.possible_states();
    if states.is_empty() {
        return Ok(None);
    }
    if states.len() < State::ALL.len() {
        numbers(&mut sql, "state", states.into_iter().map(state_code).collect());
    }
    if !filter.queues.is_empty() {
        let known = filter.queues.iter().map(|queue| queue_number(db, queue)).collect::<Result<Vec<_>, _>>()?;
        let known: Vec<i64> = known.into_iter().flatten().collect();
        if known.is_empty() {
            return Ok(None);
        }
        numbers(&mut sql, "queue", known);
    }
    if !filter.names.is_empty() {
        let known = filter.names.iter().map(|name| name_number(db, name)).collect::<Result<Vec<_>, _>>()?;
        let known: Vec<i64> = known.into_iter().flatten().collect();
        if known.is_empty() {
            return Ok(None);
        }
        numbers(&mut sql, "name", known);
    }
    if let Some(reason) = filter.reason {
        numbers(&mut sql, "reason", vec![reason_code(reason)]);
    }
    let mut value = |condition: &str, value: Value| {
        values.push(value);
        let _ = write!(sql, " AND {}", condition.replace('?', &format!("?{}", values.len() + 3)));
    };
    if let Some(key) = &filter.key {
        value("t.key = ?", Value::from(key.as_str().to_owned()));
    }
    if let Some(workflow) = &filter.workflow {
        value("(t.workflow = ? OR t.id = ?)", id_value(workflow));
    }
    if let Some(since) = filter.since {
        value("t.enqueued_at >= ?", Value::from(Timestamp::as_micros(since)));
    }
    if let Some(until) = filter.until {
        value("t.enqueued_at < ?", Value::from(Timestamp::as_micros(until)));
    }
    if let Some(since) = filter.finished_since {
        // Of the states that are left, that is when the task ended.
        value("t.at >= ?", Value::from(Timestamp::as_micros(since)));
    }
    Ok(Some((sql, values)))
}

fn id_value(id: &TaskId) -> Value {
    match id.form() {
        IdForm::Uuid(bytes) => Value::Blob(bytes.to_vec()),
        IdForm::Text(text) => Value::Text(text.to_owned()),
    }
}

/// Whether so few tasks are in these states that they can be collected.
fn few_in_states(db: &Connection, states: &[State]) -> Result<bool, Fault> {
    if states.is_empty() {
        return Ok(false);
    }
    // Of most final states the counts say what ever ended so; what is kept of them is one number.
    let ended = if states.iter().any(|state| state.is_final() && *state != State::Dead) {
        "(SELECT value FROM windlass_meta WHERE key = 'ended_kept') + \
         (SELECT count(*) FROM (SELECT 1 FROM windlass_task WHERE forget_at IS NOT NULL LIMIT 50000))"
    } else {
        "0"
    };
    let counted: Vec<&str> =
        states.iter().filter(|state| !state.is_final() || **state == State::Dead).map(|state| state.as_str()).collect();
    let sum = if counted.is_empty() { "0".to_owned() } else { format!("sum({})", counted.join(" + ")) };
    let few = db
        .prepare_cached(&format!("SELECT coalesce({sum}, 0) + {ended} FROM windlass_queue"))?
        .query_row([], |row| row.get::<_, i64>(0))?;
    Ok(few <= FEW)
}

/// Whether so few tasks have ended since then that they can be collected.
fn few_ended_since(db: &Connection, filter: &Filter) -> Result<bool, Fault> {
    let sql = format!("SELECT count(*) FROM (SELECT 1 FROM ({}) LIMIT {})", places_of_states(filter), FEW + 1);
    let count: i64 = db.prepare(&sql)?.query_row([], |row| row.get(0))?;
    Ok(count <= FEW)
}

/// The places of tasks in the wanted states, and of those that ended in time, by the indices of these states. What has a time
/// of its own is forgotten after it has ended, so that time bounds it from below.
fn places_of_states(filter: &Filter) -> String {
    let wanted = filter.possible_states();
    let states = wanted.iter().map(|state| state_code(*state).to_string()).collect::<Vec<_>>().join(", ");
    let since = filter.finished_since.map(Timestamp::as_micros);
    let (ended, forgotten) =
        since.map_or_else(Default::default, |at| (format!("AND at >= {at}"), format!("AND forget_at >= {at}")));
    let mut places = format!(
        "SELECT seq FROM windlass_task INDEXED BY windlass_task_moment \
         WHERE state IN ({states}) AND state <> 1 AND forget_at IS NULL {ended}"
    );
    if wanted.contains(&State::Succeeded) {
        let _ = write!(
            places,
            " UNION ALL SELECT seq FROM windlass_task INDEXED BY windlass_task_forget \
             WHERE forget_at IS NOT NULL AND state = {} {forgotten}",
            state_code(State::Succeeded)
        );
    }
    if wanted.contains(&State::Ready) {
        places.push_str(
            " UNION ALL SELECT seq FROM windlass_task INDEXED BY windlass_task_ready WHERE state = 1 AND key IS NULL \
             UNION ALL SELECT seq FROM windlass_task INDEXED BY windlass_task_keyed WHERE state = 1 AND key IS NOT NULL",
        );
    }
    places
}

/// A source that is small because of an index, sorted by place.
fn few_source(filter: &Filter) -> String {
    if filter.workflow.is_some() || filter.key.is_some() {
        // The planner finds these indices by itself: the condition names their columns.
        return "windlass_task t".to_owned();
    }
    let places = places_of_states(filter);
    format!("(SELECT seq AS place FROM ({places}) ORDER BY place DESC) p CROSS JOIN windlass_task t ON t.seq = p.place")
}
