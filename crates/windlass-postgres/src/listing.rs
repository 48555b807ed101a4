//! Listings: which tasks match, newest first.
//!
//! Filters are anything, tasks may be millions, and an index for every question would slow every push. So:
//! - a key or a workflow has its index,
//! - a state says which tables can hold it: dead letters are few and apart; few running or parked tasks have an index,
//! - tasks that ended since a time are found by the order of their endings, when they are few,
//! - everything else is read in the order of insertion, one stretch after the other, until the page is full or
//!   [`SCAN_MAX`] is over. Then the page is shorter and says where to go on.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tokio_postgres::types::ToSql;
use windlass_core::view::{Cursor, Filter, Listing, Page, Record};
use windlass_core::{State, StoreError, Timestamp};

use crate::errors::Fault;
use crate::rows::{FINISHED_RECORD, KEPT_RECORD, LIVE_RECORD, reason_code, record, state_code, value};
use crate::tx::Tx;

/// The longest that one page looks for tasks.
const SCAN_MAX: Duration = Duration::from_millis(100);
/// Tasks in one stretch of the order of insertion.
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
pub(crate) async fn list(tx: &Tx<'_>, filter: &Filter, page: &Page, after: Option<i64>) -> Result<Listing, Fault> {
    let Scanned { seqs, next } = scan(tx, filter, after, page.limit).await?;
    let sql = format!(
        "{LIVE_RECORD} WHERE t.seq = ANY($1) UNION ALL {FINISHED_RECORD} WHERE t.seq = ANY($1) \
         UNION ALL {KEPT_RECORD} WHERE t.seq = ANY($1)"
    );
    let rows = tx.connection().query_once(&sql, &[&seqs]).await?;
    let mut records: Vec<(i64, Record)> = rows.iter().map(record).collect::<Result<_, _>>()?;
    records.sort_by_key(|(seq, _)| std::cmp::Reverse(*seq));
    Ok(Listing {
        tasks: records.into_iter().map(|(_, record)| record).collect(),
        next: next.map(|seq| Cursor(seq.to_string())),
    })
}

/// A table and the states that it can hold.
const TABLES: [(&str, [State; 4]); 3] = [
    ("live", [State::Scheduled, State::Ready, State::Running, State::Parked]),
    ("finished", [State::Succeeded, State::Cancelled, State::Expired, State::Expired]),
    ("kept", [State::Dead, State::Succeeded, State::Dead, State::Succeeded]),
];

/// What is read of a table: all of it, or what an index finds by this condition.
struct Source {
    table: &'static str,
    within: String,
}

/// The first `limit` places after `after` that match.
pub(crate) async fn scan(tx: &Tx<'_>, filter: &Filter, after: Option<i64>, limit: usize) -> Result<Scanned, Fault> {
    let states = filter.possible_states();
    let tables = TABLES.iter().filter(|(_, holds)| holds.iter().any(|state| states.contains(state)));
    let mut sources: Vec<Source> = tables.map(|(table, _)| Source { table, within: "true".to_owned() }).collect();
    if sources.is_empty() {
        return Ok(Scanned { seqs: Vec::new(), next: None });
    }
    let few = if filter.key.is_some() || filter.workflow.is_some() {
        true
    } else if let Some(since) = filter.finished_since {
        let ended = ended_since(&states, since);
        let few = few_within(tx, &ended).await?;
        if few {
            sources = ended;
        }
        few
    } else {
        few_in_states(tx, &filter.states).await?
    };
    let condition = Condition::of(filter, &states);
    let began = Instant::now();
    let mut seqs: Vec<i64> = Vec::new();
    let mut below = after.unwrap_or(i64::MAX);
    loop {
        // One more than wanted tells whether there is more.
        let wanted = (limit + 1 - seqs.len()) as i64;
        let (found, reached) =
            stretch(tx, &sources, &condition, below, wanted, if few { None } else { Some(STRETCH) }).await?;
        seqs.extend(found);
        if seqs.len() > limit {
            seqs.truncate(limit);
            return Ok(Scanned { next: seqs.last().copied(), seqs });
        }
        let Some(reached) = reached else { return Ok(Scanned { seqs, next: None }) };
        below = reached;
        if began.elapsed() >= SCAN_MAX {
            return Ok(Scanned { seqs, next: Some(below) });
        }
    }
}

/// Places that match among the next tasks, and where to go on when there are more.
async fn stretch(
    tx: &Tx<'_>,
    sources: &[Source],
    condition: &Condition,
    below: i64,
    wanted: i64,
    length: Option<i64>,
) -> Result<(Vec<i64>, Option<i64>), Fault> {
    let mut values: Vec<&(dyn ToSql + Sync)> = vec![&below, &wanted];
    values.extend(condition.values.iter().map(|value| &**value as &(dyn ToSql + Sync)));
    let limit = length.unwrap_or(i64::MAX);
    let parts: Vec<String> = sources
        .iter()
        .map(|source| {
            // The index `live_of_key` is one of this expression.
            let (key, rest) = if source.table == "live" {
                ("t.key || '' AS key", "NULL::smallint AS reason, NULL::bigint AS finished_at")
            } else {
                ("t.key", "t.reason, t.finished_at")
            };
            let part = format!(
                "SELECT t.seq, t.id, t.state, t.queue, t.name, {key}, t.workflow, t.enqueued_at, {rest} \
                 FROM windlass.{} t WHERE t.seq < $1 AND {}",
                source.table, source.within
            );
            match length {
                // Conditions that an index serves belong to the table itself.
                None => format!("(SELECT * FROM ({part}) t WHERE true {} ORDER BY t.seq DESC LIMIT $2)", condition.sql),
                Some(_) => format!("({part} ORDER BY t.seq DESC LIMIT {limit})"),
            }
        })
        .collect();
    let union = parts.join(" UNION ALL ");
    if length.is_none() {
        let sql = format!("SELECT t.seq FROM ({union}) t ORDER BY t.seq DESC LIMIT $2");
        let rows = tx.connection().query_once(&sql, &values).await?;
        return Ok((rows.iter().map(|row| value(row, 0)).collect::<Result<_, _>>()?, None));
    }
    let sql = format!(
        "WITH s AS MATERIALIZED (SELECT * FROM ({union}) t ORDER BY t.seq DESC LIMIT {limit}) \
         (SELECT t.seq, true FROM s t WHERE true {} ORDER BY t.seq DESC LIMIT $2) \
         UNION ALL SELECT min(seq), false FROM s HAVING count(*) = {limit}",
        condition.sql
    );
    let (mut found, mut reached) = (Vec::new(), None);
    for row in tx.connection().query_once(&sql, &values).await? {
        if value(&row, 1)? {
            found.push(value(&row, 0)?);
        } else {
            reached = value(&row, 0)?;
        }
    }
    found.sort_unstable_by_key(|seq| std::cmp::Reverse(*seq));
    Ok((found, reached))
}

/// A filter as SQL on `t`, with values for `$3` and on.
struct Condition {
    sql: String,
    values: Vec<Box<dyn ToSql + Sync + Send>>,
}

impl Condition {
    fn of(filter: &Filter, states: &[State]) -> Self {
        let mut condition = Self { sql: String::new(), values: Vec::new() };
        if states.len() < State::ALL.len() {
            condition.add("t.state = ANY(?)", states.iter().map(|state| state_code(*state)).collect::<Vec<_>>());
        }
        if !filter.queues.is_empty() {
            let queues: Vec<String> = filter.queues.iter().map(|queue| queue.as_str().to_owned()).collect();
            condition.add("t.queue = ANY(?)", queues);
        }
        if !filter.names.is_empty() {
            let names: Vec<String> = filter.names.iter().map(|name| name.as_str().to_owned()).collect();
            condition.add("t.name = ANY(?)", names);
        }
        if let Some(reason) = filter.reason {
            condition.add("t.reason = ?", reason_code(reason));
        }
        if let Some(key) = &filter.key {
            condition.add("t.key = ?", key.as_str().to_owned());
        }
        if let Some(workflow) = &filter.workflow {
            condition.add("(t.workflow = ? OR t.id = ?)", workflow.to_string());
        }
        if let Some(since) = filter.since {
            condition.add("t.enqueued_at >= ?", since.as_micros());
        }
        if let Some(until) = filter.until {
            condition.add("t.enqueued_at < ?", until.as_micros());
        }
        if let Some(since) = filter.finished_since {
            condition.add("t.finished_at >= ?", since.as_micros());
        }
        condition
    }

    fn add(&mut self, sql: &str, value: impl ToSql + Sync + Send + 'static) {
        self.values.push(Box::new(value));
        // Writing to a string cannot fail.
        let _ = write!(self.sql, " AND {}", sql.replace('?', &format!("${}", self.values.len() + 2)));
    }
}

/// Tasks in these states that ended at or after this time, by the indices of their endings.
fn ended_since(states: &[State], since: Timestamp) -> Vec<Source> {
    let at = since.as_micros();
    let mut sources = Vec::new();
    let mut add = |table, within| sources.push(Source { table, within });
    if states.contains(&State::Succeeded) {
        add("finished", format!("t.finished_at >= {at}"));
        // What has a time of its own is forgotten after it has ended.
        add("kept", format!("t.state = 4 AND t.forget_at IS NOT NULL AND t.forget_at >= {at}"));
    } else if states.contains(&State::Cancelled) || states.contains(&State::Expired) {
        add("finished", format!("t.state <> 4 AND t.finished_at >= {at}"));
    }
    if states.contains(&State::Dead) {
        add("kept", format!("t.state = 5 AND t.finished_at >= {at}"));
    }
    sources
}

/// Whether these are so few tasks that they can be collected.
async fn few_within(tx: &Tx<'_>, sources: &[Source]) -> Result<bool, Fault> {
    let one = |source: &Source| {
        format!("(SELECT 1 FROM windlass.{} t WHERE {} LIMIT {})", source.table, source.within, FEW + 1)
    };
    let all = sources.iter().map(one).collect::<Vec<_>>().join(" UNION ALL ");
    let rows = tx.connection().query_once(&format!("SELECT count(*) FROM ({all}) t"), &[]).await?;
    Ok(rows.first().map_or(Ok(0), |row| value::<i64>(row, 0))? <= FEW)
}

/// Whether so few tasks are in these states that they can be collected through the index of these states.
async fn few_in_states(tx: &Tx<'_>, states: &[State]) -> Result<bool, Fault> {
    let indexed = |state: &State| matches!(state, State::Scheduled | State::Running | State::Parked);
    if states.is_empty() || !states.iter().all(indexed) {
        return Ok(false);
    }
    let codes: Vec<i16> = states.iter().map(|state| state_code(*state)).collect();
    let rows = tx
        .query(
            "SELECT count(*) FROM (SELECT 1 FROM windlass.live WHERE state = ANY($1) AND state <> 1 LIMIT $2) t",
            &[&codes, &(FEW + 1)],
        )
        .await?;
    Ok(rows.first().map_or(Ok(0), |row| value::<i64>(row, 0))? <= FEW)
}
