//! What people and waiting clients ask: tasks by id, what has ended, the counts.

use std::collections::{BTreeMap, HashMap};

use windlass_core::TaskId;
use windlass_core::view::{Counts, QueueCounts, Record};

use crate::errors::Fault;
use crate::rows::{FINISHED_RECORD, KEPT_RECORD, LIVE_RECORD, parse, priority_of, queue_of, ready_at, record, value};
use crate::tx::Tx;

/// The tasks with these ids, in their order.
pub(crate) async fn find(tx: &Tx<'_>, ids: &[TaskId]) -> Result<Vec<Option<Record>>, Fault> {
    let texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let sql = format!(
        "{LIVE_RECORD} WHERE t.id = ANY($1) UNION ALL {FINISHED_RECORD} WHERE t.id = ANY($1) \
         UNION ALL {KEPT_RECORD} WHERE t.id = ANY($1)"
    );
    let found = by_id(tx, &sql, &texts).await?;
    Ok(ids.iter().map(|id| found.get(id).cloned()).collect())
}

/// Those of these tasks that have ended.
pub(crate) async fn ended(tx: &Tx<'_>, ids: &[TaskId]) -> Result<Vec<Record>, Fault> {
    let texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let sql = format!("{FINISHED_RECORD} WHERE t.id = ANY($1) UNION ALL {KEPT_RECORD} WHERE t.id = ANY($1)");
    let mut found = by_id(tx, &sql, &texts).await?;
    Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
}

async fn by_id(tx: &Tx<'_>, sql: &str, ids: &[String]) -> Result<HashMap<TaskId, Record>, Fault> {
    let rows = tx.connection().query_once(sql, &[&ids]).await?;
    rows.iter()
        .map(|row| {
            let (_, record) = record(row)?;
            Ok((record.envelope.id.clone(), record))
        })
        .collect()
}

/// The maintained counts: what was added up, and what has changed since.
pub(crate) async fn counts(tx: &Tx<'_>) -> Result<Counts, Fault> {
    let (counted, first, paused, closed) = tokio::try_join!(
        tx.query(
            "WITH d AS (SELECT queue, sum(scheduled)::bigint AS scheduled, sum(ready)::bigint AS ready, sum(running)::bigint AS running, \
             sum(parked)::bigint AS parked, sum(succeeded)::bigint AS succeeded, sum(dead)::bigint AS dead, \
             sum(cancelled)::bigint AS cancelled, sum(expired)::bigint AS expired FROM windlass.delta GROUP BY queue) \
             SELECT coalesce(q.name, d.queue), coalesce(q.paused, false), \
             coalesce(q.scheduled, 0) + coalesce(d.scheduled, 0), coalesce(q.ready, 0) + coalesce(d.ready, 0), \
             coalesce(q.running, 0) + coalesce(d.running, 0), coalesce(q.parked, 0) + coalesce(d.parked, 0), \
             coalesce(q.succeeded, 0) + coalesce(d.succeeded, 0), coalesce(q.dead, 0) + coalesce(d.dead, 0), \
             coalesce(q.cancelled, 0) + coalesce(d.cancelled, 0), coalesce(q.expired, 0) + coalesce(d.expired, 0) \
             FROM windlass.queue q FULL JOIN d ON d.queue = q.name WHERE q.used OR q.paused OR d.queue IS NOT NULL",
            &[],
        ),
        // One step of the index for each queue that has ready tasks.
        tx.query(
            "WITH RECURSIVE q AS (SELECT least( \
             (SELECT l.queue FROM windlass.live l WHERE l.state = 1 AND l.key IS NULL ORDER BY l.queue LIMIT 1), \
             (SELECT l.queue FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL ORDER BY l.queue LIMIT 1)) AS queue \
             UNION ALL SELECT least( \
             (SELECT l.queue FROM windlass.live l WHERE l.state = 1 AND l.key IS NULL AND l.queue > q.queue ORDER BY l.queue LIMIT 1), \
             (SELECT l.queue FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue > q.queue ORDER BY l.queue LIMIT 1)) \
             FROM q WHERE q.queue IS NOT NULL) \
             SELECT q.queue, f.rank, f.priority FROM q CROSS JOIN LATERAL ( \
             (SELECT l.rank, l.priority FROM windlass.live l WHERE l.state = 1 AND l.key IS NULL AND l.queue = q.queue \
             ORDER BY l.rank, l.seq LIMIT 1) UNION ALL \
             (SELECT l.rank, l.priority FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue = q.queue \
             ORDER BY l.rank, l.seq LIMIT 1) ORDER BY rank LIMIT 1) f",
            &[],
        ),
        tx.query("SELECT name FROM windlass.paused_name ORDER BY name", &[]),
        tx.query("SELECT 1 FROM windlass.meta WHERE key = 'closed'", &[]),
    )?;
    let mut queues = BTreeMap::new();
    for row in counted {
        let count = |index: usize| -> Result<u64, Fault> { Ok(u64::try_from(value::<i64>(&row, index)?).unwrap_or(0)) };
        let counts = QueueCounts {
            paused: value(&row, 1)?,
            scheduled: count(2)?,
            ready: count(3)?,
            running: count(4)?,
            parked: count(5)?,
            succeeded: count(6)?,
            dead: count(7)?,
            cancelled: count(8)?,
            expired: count(9)?,
            oldest_ready_at: None,
        };
        queues.insert(queue_of(&row, 0)?, counts);
    }
    for row in first {
        let since = ready_at(value(&row, 1)?, priority_of(value(&row, 2)?)?);
        if let Some(counts) = queues.get_mut(&queue_of(&row, 0)?) {
            counts.oldest_ready_at = Some(since);
        }
    }
    let paused_tasks = paused.iter().map(|row| parse("task name", value(row, 0)?)).collect::<Result<_, Fault>>()?;
    Ok(Counts { queues, paused_tasks, closed: !closed.is_empty() })
}
