//! Claim and renew.
//!
//! A queue's ready tasks are walked in the order of rank. When names are paused or left to other nodes, that walk could lead
//! over any number of tasks that must not be taken: then the best tasks of each name that may be taken are merged instead,
//! which needs an index of its own and looks at each name.

use tokio_postgres::Row;
use windlass_core::backend::{Receipt, Renewal, Renewed};
use windlass_core::view::{PROGRESS_TEXT_BYTES_MAX, Progress};
use windlass_core::{Priority, QueueName, TaskName, Timestamp};

use crate::connection::Connection;
use crate::errors::Fault;
use crate::lanes::{Claiming, Took};
use crate::rows::{self, id_of, micros, parse, priority_of, queue_of, ready_at, to_json, value};

/// The most scheduled tasks that a claim makes ready before it takes some; a flood of due tasks is shared among claims.
pub(crate) const PROMOTE_MAX: usize = 1_000;

/// Makes due tasks ready: `$1` the given time, `$2` at most how many. One row for each queue, and one without a queue.
pub(crate) const PROMOTE: &str = "\
WITH t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now), \
d AS MATERIALIZED (SELECT ctid FROM windlass.live WHERE state = 0 AND state <> 1 AND at <= (SELECT now FROM t) ORDER BY at LIMIT $2 \
FOR UPDATE SKIP LOCKED), \
u AS (UPDATE windlass.live l SET state = 1, rank = l.at - l.priority * 300000000::bigint, at = 0 \
WHERE l.ctid = ANY (ARRAY(SELECT ctid FROM d)) AND l.state = 0 RETURNING l.queue), \
q AS MATERIALIZED (SELECT queue, count(*) AS tasks FROM u GROUP BY queue), \
c AS (INSERT INTO windlass.delta (queue, scheduled, ready) SELECT queue, -tasks, tasks FROM q) \
SELECT q.queue, q.tasks, false, CASE WHEN EXISTS (SELECT 1 FROM windlass.waiting WHERE until > windlass.micros()) THEN \
pg_notify('@channel', 'q ' || q.queue)::text END FROM q \
UNION ALL SELECT NULL, 0, EXISTS (SELECT 1 FROM windlass.paused_name), NULL";

/// Takes tasks in the order of rank: `$1` the given time, `$2` the queues, `$3` at most how many, `$4` the lease, `$5` the node.
///
/// The rows are updated by their place in the table: they are locked, so they stay there, and no plan can make that slow.
/// Expired tasks are named and left alone. From a store that is closed nothing is taken; see [`crate::transfer::close`].
pub(crate) const CLAIM: &str = "\
WITH t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now), \
p AS MATERIALIZED (SELECT b.ctid, b.seq, b.expires FROM unnest($2::text[]) AS q(name) CROSS JOIN LATERAL ( \
SELECT l.ctid, l.seq, l.expires FROM windlass.live l WHERE l.state = 1 AND l.queue = q.name \
AND NOT EXISTS (SELECT 1 FROM windlass.queue s WHERE s.name = q.name AND s.paused) \
AND NOT EXISTS (SELECT 1 FROM windlass.paused_name) \
AND NOT EXISTS (SELECT 1 FROM windlass.meta WHERE key = 'closed') \
ORDER BY l.rank, l.seq LIMIT $3 FOR UPDATE OF l SKIP LOCKED) b LIMIT $3), \
u AS (UPDATE windlass.live l SET state = 2, at = t.now + $4::bigint, node = $5::text, started_at = t.now, fence = l.fence + 1, \
attempt = l.attempt + 1, progress = NULL FROM t \
WHERE l.ctid = ANY (ARRAY(SELECT ctid FROM p)) AND (l.expires IS NULL OR l.expires > t.now) \
RETURNING l.seq, l.id, l.queue, l.name, l.priority, l.rank, l.fence, l.attempt, l.enqueued_at, l.body), \
c AS (INSERT INTO windlass.delta (queue, ready, running) SELECT queue, -count(*), count(*) FROM u GROUP BY queue) \
SELECT seq, id, queue, name, priority, rank, fence, attempt, enqueued_at, body FROM u \
UNION ALL SELECT p.seq, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM p, t WHERE p.expires <= t.now";

/// The same without tasks of some names: `$6` those, and the paused ones.
pub(crate) const CLAIM_BY_NAME: &str = "\
WITH RECURSIVE t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now), \
q AS MATERIALIZED (SELECT q.name, q.place FROM unnest($2::text[]) WITH ORDINALITY AS q(name, place) \
WHERE NOT EXISTS (SELECT 1 FROM windlass.queue s WHERE s.name = q.name AND s.paused) \
AND NOT EXISTS (SELECT 1 FROM windlass.meta WHERE key = 'closed')), \
n AS (SELECT q.place, q.name AS queue, \
(SELECT l.name FROM windlass.live l WHERE l.state = 1 AND l.queue = q.name ORDER BY l.name LIMIT 1) AS name FROM q \
UNION ALL SELECT n.place, n.queue, (SELECT l.name FROM windlass.live l WHERE l.state = 1 AND l.queue = n.queue AND l.name > n.name \
ORDER BY l.name LIMIT 1) FROM n WHERE n.name IS NOT NULL), \
b AS MATERIALIZED (SELECT n.place, b.seq, b.rank FROM n CROSS JOIN LATERAL (SELECT l.seq, l.rank FROM windlass.live l \
WHERE l.state = 1 AND l.queue = n.queue AND l.name = n.name ORDER BY l.rank, l.seq LIMIT $3) b \
WHERE n.name IS NOT NULL AND n.name <> ALL ($6::text[]) \
AND NOT EXISTS (SELECT 1 FROM windlass.paused_name s WHERE s.name = n.name)), \
p AS MATERIALIZED (SELECT l.ctid, l.seq, l.expires FROM b JOIN windlass.live l ON l.seq = b.seq WHERE l.state = 1 \
ORDER BY b.place, b.rank, b.seq LIMIT $3 FOR UPDATE OF l SKIP LOCKED), \
u AS (UPDATE windlass.live l SET state = 2, at = t.now + $4::bigint, node = $5::text, started_at = t.now, fence = l.fence + 1, \
attempt = l.attempt + 1, progress = NULL FROM t \
WHERE l.ctid = ANY (ARRAY(SELECT ctid FROM p)) AND (l.expires IS NULL OR l.expires > t.now) \
RETURNING l.seq, l.id, l.queue, l.name, l.priority, l.rank, l.fence, l.attempt, l.enqueued_at, l.body), \
c AS (INSERT INTO windlass.delta (queue, ready, running) SELECT queue, -count(*), count(*) FROM u GROUP BY queue) \
SELECT seq, id, queue, name, priority, rank, fence, attempt, enqueued_at, body FROM u \
UNION ALL SELECT p.seq, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM p, t WHERE p.expires <= t.now";

/// Extends leases: `$1` the given time, then lists of rows, ids, fences, leases and progress.
pub(crate) const RENEW: &str = "\
WITH t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now) \
UPDATE windlass.live l SET at = t.now + r.lease, progress = coalesce(r.progress, l.progress) \
FROM t, unnest($2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::text[]) AS r(seq, id, fence, lease, progress) \
WHERE l.seq = r.seq AND l.id = r.id AND l.fence = r.fence AND l.state = 2 RETURNING l.seq, l.fence, l.cancel";

/// How a claim finds its tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Walk {
    /// In the order of rank; only when every name may be taken.
    Ranks,
    /// Name by name.
    Names,
}

/// A claimed task as its row says; the caller decodes the body.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) receipt: Receipt,
    pub(crate) name: TaskName,
    pub(crate) queue: QueueName,
    pub(crate) priority: Priority,
    pub(crate) rank: i64,
    pub(crate) body: String,
    pub(crate) attempt: u32,
    pub(crate) enqueued_at: Timestamp,
    pub(crate) ready_at: Timestamp,
}

/// What [`promote`] did and saw.
#[derive(Debug, Default)]
pub(crate) struct Promoted {
    pub(crate) tasks: usize,
    pub(crate) queues: Vec<QueueName>,
    pub(crate) names_paused: bool,
}

/// Makes due tasks ready, the earliest first.
pub(crate) async fn promote(connection: &Connection, now: Option<i64>, max: usize) -> Result<Promoted, Fault> {
    let mut promoted = Promoted::default();
    if max == 0 {
        return Ok(promoted);
    }
    for row in connection.query(PROMOTE, &[&now, &(max as i64)]).await? {
        if let Some(queue) = value::<Option<&str>>(&row, 0)? {
            promoted.queues.push(parse("queue name", queue)?);
            promoted.tasks += value::<i64>(&row, 1)? as usize;
        } else {
            promoted.names_paused = value(&row, 2)?;
        }
    }
    Ok(promoted)
}

/// Takes up to `demand.max` tasks, in the order of the queues, of rank and of insertion.
pub(crate) async fn take(connection: &Connection, now: Option<i64>, claiming: &Claiming) -> Result<Took, Fault> {
    let demand = &claiming.demand;
    let queues: Vec<&str> = demand.queues.iter().map(QueueName::as_str).collect();
    let (max, lease, node) = (demand.max as i64, micros(demand.lease), demand.node.as_str());
    let rows = match claiming.walk {
        Walk::Ranks => connection.query(CLAIM, &[&now, &queues, &max, &lease, &node]).await?,
        Walk::Names => {
            let except: Vec<&str> = demand.except.iter().map(TaskName::as_str).collect();
            connection.query(CLAIM_BY_NAME, &[&now, &queues, &max, &lease, &node, &except]).await?
        }
    };
    let mut took = Took::default();
    for row in rows {
        if value::<Option<&str>>(&row, 1)?.is_some() {
            took.claimed.push(claimed(&row)?);
        } else {
            took.late.push(value(&row, 0)?);
        }
    }
    let place = |queue: &QueueName| demand.queues.iter().position(|wanted| wanted == queue);
    took.claimed.sort_by_cached_key(|task| (place(&task.queue), task.rank, task.receipt.row));
    Ok(took)
}

fn claimed(row: &Row) -> Result<Claimed, Fault> {
    let priority = priority_of(value(row, 4)?)?;
    let rank = value(row, 5)?;
    Ok(Claimed {
        receipt: Receipt { id: id_of(row, 1)?, fence: value(row, 6)?, row: value(row, 0)? },
        name: rows::parse("task name", value(row, 3)?)?,
        queue: queue_of(row, 2)?,
        priority,
        rank,
        body: value(row, 9)?,
        attempt: u32::try_from(value::<i32>(row, 7)?).unwrap_or(1),
        enqueued_at: Timestamp::from_micros(value(row, 8)?),
        ready_at: ready_at(rank, priority),
    })
}

/// A renewal as it is stored.
#[derive(Debug)]
pub(crate) struct PreparedRenewal {
    receipt: Receipt,
    id: String,
    lease: i64,
    progress: Option<String>,
}

impl PreparedRenewal {
    pub(crate) fn of(renewal: &Renewal, lease: std::time::Duration) -> Self {
        Self {
            receipt: renewal.receipt.clone(),
            id: renewal.receipt.id.to_string(),
            lease: micros(lease),
            progress: renewal.progress.as_ref().map(|progress| to_json(&shortened(progress))),
        }
    }
}

fn shortened(progress: &Progress) -> Progress {
    let longest = progress.text.len().min(PROGRESS_TEXT_BYTES_MAX);
    // Zero is always a boundary of characters.
    let end = (0..=longest).rev().find(|at| progress.text.is_char_boundary(*at)).unwrap_or(0);
    Progress { text: progress.text[..end].to_owned(), ..*progress }
}

/// Extends leases that are held. One that has run out is still held until somebody else has the task.
pub(crate) async fn renew(
    connection: &Connection,
    now: Option<i64>,
    renewals: &[&PreparedRenewal],
) -> Result<Vec<Renewed>, Fault> {
    if renewals.is_empty() {
        return Ok(Vec::new());
    }
    // Everybody locks rows in one order.
    let mut sorted = renewals.to_vec();
    sorted.sort_by_key(|renewal| renewal.receipt.row);
    let seqs: Vec<i64> = sorted.iter().map(|renewal| renewal.receipt.row).collect();
    let ids: Vec<&str> = sorted.iter().map(|renewal| renewal.id.as_str()).collect();
    let fences: Vec<i64> = sorted.iter().map(|renewal| renewal.receipt.fence).collect();
    let leases: Vec<i64> = sorted.iter().map(|renewal| renewal.lease).collect();
    let progress: Vec<Option<&str>> = sorted.iter().map(|renewal| renewal.progress.as_deref()).collect();
    let rows = connection.query(RENEW, &[&now, &seqs, &ids, &fences, &leases, &progress]).await?;
    let held: std::collections::HashMap<(i64, i64), bool> =
        rows.iter().map(|row| Ok(((value(row, 0)?, value(row, 1)?), value(row, 2)?))).collect::<Result<_, Fault>>()?;
    Ok(renewals
        .iter()
        .map(|renewal| match held.get(&(renewal.receipt.row, renewal.receipt.fence)) {
            Some(true) => Renewed::Cancelled,
            Some(false) => Renewed::Held,
            None => Renewed::Lost,
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema;

    /// How many tasks wait; a walk over all of them would show.
    const BACKLOG: i64 = 200_000;

    /// The plan of a statement with this backlog, as the lanes would run it, and what it did.
    async fn plan(statement: &str, types: &str, values: &str) -> String {
        let url = std::env::var("WINDLASS_TEST_POSTGRES_URL").unwrap_or_else(|_| {
            panic!("WINDLASS_TEST_POSTGRES_URL is not set; run `cargo xtask servers -- cargo nextest run -p windlass-postgres`")
        });
        let name = format!("t_{}", windlass_core::TaskId::random().to_string().replace('-', ""));
        let joint = if url.contains('?') { '&' } else { '?' };
        let address = format!("{url}{joint}schema={name}&connections=1");
        let store = crate::PostgresStore::connect(&address, crate::Options::default()).await.expect("a store");
        let client = crate::connection::connect(&store.shared).await.expect("a connection");
        // Nothing has analysed the table: the planner knows as little as on the first day.
        client
            .batch_execute(&store.shared.sql(&format!(
                "ALTER TABLE windlass.live SET (autovacuum_enabled = off); \
                 INSERT INTO windlass.live (id, queue, name, priority, state, at, rank, enqueued_at, has_flow, body) \
                 SELECT 'task-' || n, 'default', CASE WHEN n <= {BACKLOG} / 2 THEN 'shut' ELSE 'open' END, 5, 1, 0, n, 0, false, \
                 '{{\"v\":1}}' FROM generate_series(1, {BACKLOG}) n; \
                 PREPARE question ({types}) AS {statement}"
            )))
            .await
            .expect("a backlog");
        let sql = format!("EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE question ({values})");
        let lines = client.simple_query(&sql).await.expect("a plan");
        let lines = lines.iter().filter_map(|line| match line {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let plan = lines.collect::<Vec<_>>().join("\n");
        client
            .batch_execute(&store.shared.sql("DROP SCHEMA windlass CASCADE").replace("windlass", &name))
            .await
            .expect("dropped");
        assert_eq!(schema::for_schema("windlass.live", &name, "c"), format!("{name}.live"));
        plan
    }

    /// The rows that the steps of a plan have read of the backlog, at most.
    fn most_rows(plan: &str) -> i64 {
        let rows = plan.split("actual rows=").skip(1).filter_map(|rest| {
            let (rows, rest) = rest.split_once(' ')?;
            let loops = rest.split_once("loops=")?.1.split(')').next()?;
            Some(rows.parse::<f64>().ok()? as i64 * loops.parse::<i64>().ok()?)
        });
        let removed = plan
            .split("Rows Removed by Filter: ")
            .skip(1)
            .filter_map(|rest| rest.lines().next()?.trim().parse::<i64>().ok());
        rows.chain(removed).max().unwrap_or(i64::MAX)
    }

    #[tokio::test]
    async fn a_claim_reads_no_more_of_a_backlog_than_it_takes() {
        let plan =
            plan(CLAIM, "bigint, text[], bigint, bigint, text", "NULL, ARRAY['default'], 100, 30000000, 'node-1'")
                .await;
        assert!(plan.contains("using live_ready on live"), "{plan}");
        assert!(!plan.contains("Seq Scan on live"), "{plan}");
        assert!(most_rows(&plan) <= 100, "{plan}");
    }

    #[tokio::test]
    async fn a_claim_does_not_read_the_tasks_of_names_that_it_leaves_to_others() {
        let plan = plan(
            CLAIM_BY_NAME,
            "bigint, text[], bigint, bigint, text, text[]",
            "NULL, ARRAY['default'], 100, 30000000, 'node-1', ARRAY['shut']",
        )
        .await;
        assert!(plan.contains("using live_ready_name on live"), "{plan}");
        assert!(!plan.contains("Seq Scan on live"), "{plan}");
        assert!(most_rows(&plan) <= 100, "{plan}");
    }

    #[tokio::test]
    async fn making_due_tasks_ready_reads_nothing_of_those_that_are() {
        let plan = plan(PROMOTE, "bigint, bigint", "NULL, 1000").await;
        assert!(plan.contains("using live_moment on live"), "{plan}");
        assert!(most_rows(&plan) <= 1, "{plan}");
    }
}
