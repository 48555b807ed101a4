//! What people see of tasks: records by id, and listings, newest first.
//!
//! Filters are anything, and an index for every question would slow every push. So:
//! - a key or a workflow has its set of tasks,
//! - states that few tasks are in, or that few have entered since a time, are read from the sorted sets of those states,
//! - everything else is read in the order of insertion, block by block, until the page is full or [`SCAN_MAX`] is over. Then
//!   the page is shorter and says where to go on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;
use windlass_core::view::{Cursor, Filter, Listing, PAGE_MAX, Page, Record};
use windlass_core::{QueueName, State, StoreError, TaskId};

use crate::Shared;
use crate::record::{Packed, integer, list, optional_text, record, row_number, row_text, texts};
use crate::scripts::Script;

/// The longest that one page looks for tasks.
const SCAN_MAX: Duration = Duration::from_millis(200);
/// Rows of one block: those that differ in the last three digits.
const BLOCK: i64 = 1000;
/// Up to this many tasks in the wanted states are collected and sorted.
const FEW: i64 = 20_000;
/// The most records that one script reads.
const CHUNK: usize = 100;

/// The rows of the tasks that match, newest first.
pub(crate) struct Scanned {
    pub(crate) rows: Vec<i64>,
    /// More may come after this row.
    pub(crate) next: Option<i64>,
}

/// The row that a cursor names.
pub(crate) fn row_of(cursor: Option<&Cursor>) -> Result<Option<i64>, StoreError> {
    cursor
        .map(|cursor| {
            cursor.0.parse().map_err(|_| StoreError::Rejected("the cursor was not made by this store".to_owned()))
        })
        .transpose()
}

pub(crate) fn cursor(row: i64) -> Cursor {
    Cursor(row.to_string())
}

/// The tasks with these ids, in their order.
pub(crate) async fn find(shared: &Shared, ids: &[TaskId]) -> Result<Vec<Option<Record>>, StoreError> {
    let names: Vec<String> = ids.iter().map(ToString::to_string).collect();
    Ok(read(shared, "id", "", &names).await?.into_iter().map(|found| found.map(|(_, record)| record)).collect())
}

/// Records of tasks; see `read.lua`.
pub(crate) async fn read(
    shared: &Shared,
    how: &str,
    time: &str,
    names: &[String],
) -> Result<Vec<Option<(i64, Record)>>, StoreError> {
    let mut records = Vec::with_capacity(names.len());
    for chunk in names.chunks(CHUNK) {
        let answer = shared
            .run(Script::Read, |cmd| {
                cmd.arg(how).arg(time);
                for name in chunk {
                    cmd.arg(name);
                }
            })
            .await?;
        for value in list(answer)? {
            records.push(match value {
                Value::Nil | Value::Boolean(false) => None,
                parts => Some(record(parts)?),
            });
        }
    }
    Ok(records)
}

/// One page.
pub(crate) async fn page(shared: &Arc<Shared>, filter: &Filter, page: &Page) -> Result<Listing, StoreError> {
    if page.limit == 0 || page.limit > PAGE_MAX {
        return Err(StoreError::Rejected(format!("a page has 1 to {PAGE_MAX} tasks, not {}", page.limit)));
    }
    let after = row_of(page.after.as_ref())?;
    let Scanned { rows, next } = scan(shared, filter, after, page.limit).await?;
    let names: Vec<String> = rows.into_iter().map(row_text).collect();
    let tasks = read(shared, "row", "", &names).await?.into_iter().flatten().map(|(_, record)| record).collect();
    Ok(Listing { tasks, next: next.map(cursor) })
}

/// The first `limit` rows after `after` that match.
pub(crate) async fn scan(
    shared: &Shared,
    filter: &Filter,
    after: Option<i64>,
    limit: usize,
) -> Result<Scanned, StoreError> {
    if filter.possible_states().is_empty() {
        return Ok(Scanned { rows: Vec::new(), next: None });
    }
    let mut stretches = match candidates(shared, filter).await? {
        Some(mut rows) => {
            rows.retain(|row| after.is_none_or(|after| *row < after));
            rows.sort_unstable_by(|one, other| other.cmp(one));
            rows.dedup();
            Stretches::Few(rows)
        }
        None => Stretches::All { blocks: blocks(shared, after).await?, after },
    };
    let began = Instant::now();
    let mut rows = Vec::new();
    while let Some(stretch) = stretches.next() {
        let looked_at = stretch.last().copied();
        for (row, packed) in packed_of(shared, &stretch).await? {
            if is_match(filter, &packed) {
                rows.push(row);
                if rows.len() > limit {
                    rows.truncate(limit);
                    return Ok(Scanned { next: rows.last().copied(), rows });
                }
            }
        }
        if began.elapsed() >= SCAN_MAX {
            return Ok(Scanned { rows, next: looked_at });
        }
    }
    Ok(Scanned { rows, next: None })
}

/// Rows to be looked at, newest first, a thousand at a time.
enum Stretches {
    Few(Vec<i64>),
    All { blocks: Vec<i64>, after: Option<i64> },
}

impl Stretches {
    fn next(&mut self) -> Option<Vec<i64>> {
        match self {
            Self::Few(rows) if rows.is_empty() => None,
            Self::Few(rows) => {
                let rest = rows.split_off(rows.len().min(BLOCK as usize));
                Some(std::mem::replace(rows, rest))
            }
            Self::All { blocks, after } => {
                let first = blocks.pop()? * BLOCK;
                let end = after.map_or(first + BLOCK, |after| after.min(first + BLOCK));
                Some((first..end).rev().collect())
            }
        }
    }
}

/// The blocks that have tasks, the newest last.
async fn blocks(shared: &Shared, after: Option<i64>) -> Result<Vec<i64>, StoreError> {
    let answer = shared.link.ask(redis::cmd("HKEYS").arg(shared.key("blocks"))).await?;
    let mut blocks = list(answer)?.iter().map(integer).collect::<Result<Vec<_>, _>>()?;
    blocks.retain(|block| after.is_none_or(|after| block * BLOCK < after));
    blocks.sort_unstable();
    Ok(blocks)
}

/// The first tasks in the order of insertion that are wanted, at most `limit` of them.
pub(crate) async fn oldest(
    shared: &Shared,
    limit: usize,
    is_wanted: impl Fn(&Packed) -> bool,
) -> Result<Vec<(i64, Packed)>, StoreError> {
    let mut found = Vec::new();
    for block in blocks(shared, None).await? {
        let rows: Vec<i64> = (block * BLOCK..(block + 1) * BLOCK).collect();
        let tasks = packed_of(shared, &rows).await?;
        found.extend(tasks.into_iter().filter(|(_, packed)| is_wanted(packed)).take(limit - found.len()));
        if found.len() == limit {
            break;
        }
    }
    Ok(found)
}

async fn packed_of(shared: &Shared, rows: &[i64]) -> Result<Vec<(i64, Packed)>, StoreError> {
    if rows.is_empty() {
        return Ok(Vec::new());
    }
    let mut cmd = redis::cmd("HMGET");
    cmd.arg(shared.key("task"));
    for row in rows {
        cmd.arg(row_text(*row));
    }
    let found = list(shared.link.ask(&cmd).await?)?;
    let known = rows.iter().zip(found).filter_map(|(row, value)| match value {
        Value::BulkString(bytes) => Some(Packed::of(&bytes).map(|packed| (*row, packed))),
        _ => None,
    });
    known.collect()
}

/// What a packed task says about a filter; the set that it was found in says the rest.
fn is_match(filter: &Filter, packed: &Packed) -> bool {
    (filter.states.is_empty() || filter.states.contains(&packed.state))
        && (filter.queues.is_empty() || filter.queues.contains(&packed.queue))
        && (filter.names.is_empty() || filter.names.contains(&packed.name))
        && filter.reason.is_none_or(|reason| packed.reason == Some(reason))
        && filter.since.is_none_or(|since| packed.enqueued_at >= since)
        && filter.until.is_none_or(|until| packed.enqueued_at < until)
        && filter.finished_since.is_none_or(|since| packed.finished_at().is_some_and(|at| at >= since))
}

/// The rows that may match, when they are few; in any order.
async fn candidates(shared: &Shared, filter: &Filter) -> Result<Option<Vec<i64>>, StoreError> {
    let mut sets: Vec<Vec<i64>> = Vec::new();
    if let Some(key) = &filter.key {
        sets.push(members(shared, &format!("key:{key}")).await?);
    }
    if let Some(workflow) = &filter.workflow {
        let mut rows = members(shared, &format!("flow:{workflow}")).await?;
        // A workflow is named after its first task.
        let first = shared.link.ask(redis::cmd("HGET").arg(shared.key("id")).arg(workflow.to_string())).await?;
        if let Some(row) = optional_text(first)? {
            rows.push(row_number(&Value::BulkString(row.into_bytes()))?);
        }
        sets.push(rows);
    }
    if let Some(first) = sets.pop() {
        let others: Vec<HashSet<i64>> = sets.into_iter().map(|set| set.into_iter().collect()).collect();
        return Ok(Some(first.into_iter().filter(|row| others.iter().all(|set| set.contains(row))).collect()));
    }
    if filter.states.is_empty() && filter.finished_since.is_none() {
        return Ok(None);
    }
    few_in_states(shared, filter).await
}

async fn members(shared: &Shared, name: &str) -> Result<Vec<i64>, StoreError> {
    let answer = shared.link.ask(redis::cmd("SMEMBERS").arg(shared.key(name))).await?;
    list(answer)?.iter().map(row_number).collect()
}

/// The tasks in these states from the sorted sets of the states, unless they are many. Those that end since a time have a score
/// that is not before it: when they ended, or when they will be forgotten.
async fn few_in_states(shared: &Shared, filter: &Filter) -> Result<Option<Vec<i64>>, StoreError> {
    let keys = keys_of_states(shared, filter).await?;
    if keys.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let from = filter.finished_since.map_or_else(|| "-inf".to_owned(), |since| since.as_micros().to_string());
    let mut sizes = redis::pipe();
    for key in &keys {
        sizes.cmd("ZCOUNT").arg(key).arg(&from).arg("+inf");
    }
    let mut size = 0;
    for value in shared.link.ask_all(&sizes).await? {
        size += integer(&value)?;
    }
    if size > FEW {
        return Ok(None);
    }
    let mut ranges = redis::pipe();
    for key in &keys {
        ranges.cmd("ZRANGEBYSCORE").arg(key).arg(&from).arg("+inf");
    }
    let mut rows = Vec::new();
    for value in shared.link.ask_all(&ranges).await? {
        for row in list(value)? {
            rows.push(row_number(&row)?);
        }
    }
    Ok(Some(rows))
}

async fn keys_of_states(shared: &Shared, filter: &Filter) -> Result<Vec<String>, StoreError> {
    let queues = if filter.queues.is_empty() {
        texts(shared.link.ask(redis::cmd("SMEMBERS").arg(shared.key("queues"))).await?)?
    } else {
        filter.queues.iter().map(QueueName::to_string).collect()
    };
    let mut keys = Vec::new();
    for state in filter.possible_states() {
        match state {
            State::Scheduled => keys.extend(queues.iter().map(|queue| shared.key(&format!("due:{queue}")))),
            State::Ready if !queues.is_empty() => {
                let mut lanes = redis::pipe();
                for queue in &queues {
                    lanes.cmd("SMEMBERS").arg(shared.key(&format!("lanes:{queue}")));
                }
                keys.extend(queues.iter().map(|queue| shared.key(&format!("keyed:{queue}"))));
                for (queue, names) in queues.iter().zip(shared.link.ask_all(&lanes).await?) {
                    let names = texts(names)?;
                    keys.extend(names.iter().map(|name| shared.key(&format!("ready:{queue} {name}"))));
                }
            }
            State::Ready => {}
            State::Running => keys.push(shared.key("lease")),
            State::Parked => keys.push(shared.key("parked")),
            State::Dead => keys.push(shared.key("dead")),
            State::Succeeded => keys.extend([shared.key("ended"), shared.key("forget")]),
            State::Cancelled | State::Expired => keys.push(shared.key("stopped")),
        }
    }
    keys.sort_unstable();
    keys.dedup();
    Ok(keys)
}
