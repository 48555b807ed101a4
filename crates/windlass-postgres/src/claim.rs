//! Claim and renew.
//!
//! A queue's ready tasks are walked in the order of rank. When names are paused or left to other nodes, that walk could lead
//! over any number of tasks that must not be taken: then the best tasks of each name that may be taken are merged instead,
//! which needs an index of its own and looks at each name.

use tokio_postgres::Row;
use windlass_core::backend::{Receipt, Renewal, Renewed};
use windlass_core::{Priority, QueueName, TaskName, Timestamp};

use crate::connection::Connection;
use crate::errors::Fault;
use crate::lanes::{Claiming, Took};
use crate::rows::{self, id_of, micros, parse, priority_of, queue_of, ready_at, to_json, value};
use crate::wide::{Pass, Wide};

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

/// The part of a statement that takes the tasks `p` at the time `t`: `$2` the lease, `$3` the node.
///
/// The rows are updated by their place in the table: they are locked, so they stay there, and no plan can make that slow.
macro_rules! taking {
    () => {
        "u AS (UPDATE windlass.live l SET state = 2, at = t.now + $2::bigint, node = $3::text, started_at = t.now, fence = l.fence + 1, \
         attempt = l.attempt + 1, progress = NULL, waits_for = NULL FROM t \
         WHERE l.ctid = ANY (ARRAY(SELECT ctid FROM p)) AND (l.expires IS NULL OR l.expires > t.now) \
         RETURNING l.seq, l.id, l.queue, l.name, l.priority, l.rank, l.fence, l.attempt, l.enqueued_at, l.body, l.memo, l.brief, l.guard), \
         c AS (INSERT INTO windlass.delta (queue, ready, running) SELECT queue, -count(*), count(*) FROM u GROUP BY queue), \
         x AS (DELETE FROM windlass.taken k USING u WHERE u.brief AND k.key = u.guard AND k.id = u.id)"
    };
}

/// Its answer, read by [`claimed`]. Expired tasks are named and left alone.
macro_rules! taken {
    () => {
        " SELECT seq, id, queue, name, priority, rank, fence, attempt, enqueued_at, body, memo FROM u \
         UNION ALL SELECT p.seq, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM p, t WHERE p.expires <= t.now"
    };
}

/// The answer of a statement that takes nothing because something has to be looked at, as `s` says: a row without a place.
macro_rules! taken_unless_shared {
    () => {
        concat!(
            $crate::claim::taken!(),
            " UNION ALL SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM s WHERE shared"
        )
    };
}
pub(crate) use {taken, taken_unless_shared, taking};

/// A statement that walks queues, `$4`: nothing is taken when gates or keys have to be looked at ([`crate::turns`]).
macro_rules! walking {
    ($recursive:literal, $walk:literal) => {
        concat!(
            "WITH ",
            $recursive,
            "t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now), \
             s AS MATERIALIZED (SELECT \
             EXISTS (SELECT 1 FROM windlass.rule r WHERE r.starts AND (r.queue IS NULL OR r.queue = ANY ($4::text[]))) \
             OR EXISTS (SELECT 1 FROM windlass.gate g WHERE g.held_until > (SELECT now FROM t)) \
             OR EXISTS (SELECT 1 FROM unnest($4::text[]) AS q(name) CROSS JOIN LATERAL \
             (SELECT 1 FROM windlass.live k WHERE k.state = 1 AND k.key IS NOT NULL AND k.queue = q.name LIMIT 1) k) AS shared), ",
            $walk,
            taking!(),
            taken_unless_shared!()
        )
    };
}

/// Takes tasks in the order of rank: `$1` the given time, `$2` the lease, `$3` the node, `$4` the queues, `$5` at most how many.
/// From a store that is closed nothing is taken; see [`crate::transfer::close`].
pub(crate) const CLAIM: &str = walking!(
    "",
    "p AS MATERIALIZED (SELECT b.ctid, b.seq, b.expires FROM unnest($4::text[]) AS q(name) CROSS JOIN LATERAL ( \
     SELECT l.ctid, l.seq, l.expires FROM windlass.live l WHERE l.state = 1 AND l.key IS NULL AND l.queue = q.name \
     AND NOT (SELECT shared FROM s) \
     AND NOT EXISTS (SELECT 1 FROM windlass.queue s WHERE s.name = q.name AND s.paused) \
     AND NOT EXISTS (SELECT 1 FROM windlass.paused_name) \
     AND NOT EXISTS (SELECT 1 FROM windlass.meta WHERE key = 'closed') \
     ORDER BY l.rank, l.seq LIMIT $5 FOR UPDATE OF l SKIP LOCKED) b LIMIT $5), "
);

/// The same without tasks of some names: `$6` those, and the paused ones.
pub(crate) const CLAIM_BY_NAME: &str = walking!(
    "RECURSIVE ",
    "q AS MATERIALIZED (SELECT q.name, q.place FROM unnest($4::text[]) WITH ORDINALITY AS q(name, place) \
     WHERE NOT (SELECT shared FROM s) \
     AND NOT EXISTS (SELECT 1 FROM windlass.queue s WHERE s.name = q.name AND s.paused) \
     AND NOT EXISTS (SELECT 1 FROM windlass.meta WHERE key = 'closed')), \
     n AS (SELECT q.place, q.name AS queue, (SELECT l.name FROM windlass.live l \
     WHERE l.state = 1 AND l.key IS NULL AND l.queue = q.name ORDER BY l.name LIMIT 1) AS name FROM q \
     UNION ALL SELECT n.place, n.queue, (SELECT l.name FROM windlass.live l \
     WHERE l.state = 1 AND l.key IS NULL AND l.queue = n.queue AND l.name > n.name ORDER BY l.name LIMIT 1) \
     FROM n WHERE n.name IS NOT NULL), \
     b AS MATERIALIZED (SELECT n.place, b.seq, b.rank FROM n CROSS JOIN LATERAL (SELECT l.seq, l.rank FROM windlass.live l \
     WHERE l.state = 1 AND l.key IS NULL AND l.queue = n.queue AND l.name = n.name ORDER BY l.rank, l.seq LIMIT $5) b \
     WHERE n.name IS NOT NULL AND n.name <> ALL ($6::text[]) \
     AND NOT EXISTS (SELECT 1 FROM windlass.paused_name s WHERE s.name = n.name)), \
     p AS MATERIALIZED (SELECT l.ctid, l.seq, l.expires FROM b JOIN windlass.live l ON l.seq = b.seq WHERE l.state = 1 \
     ORDER BY b.place, b.rank, b.seq LIMIT $5 FOR UPDATE OF l SKIP LOCKED), "
);

/// Takes these tasks, which are locked: `$4` their places.
pub(crate) const TAKE: &str = concat!(
    "WITH t AS MATERIALIZED (SELECT $1::bigint AS now), \
     p AS MATERIALIZED (SELECT l.ctid, l.seq, l.expires FROM unnest($4::bigint[]) AS r(seq) JOIN windlass.live l ON l.seq = r.seq \
     WHERE l.state = 1), ",
    taking!(),
    taken!()
);

/// Extends leases: `$1` the given time, then lists of rows, ids, fences, leases, progress and what is added to memos.
pub(crate) const RENEW: &str = "\
WITH t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now) \
UPDATE windlass.live l SET at = t.now + r.lease, progress = coalesce(r.progress, l.progress), \
memo = CASE WHEN r.memo IS NULL THEN l.memo ELSE coalesce(l.memo, '') || r.memo END \
FROM t, unnest($2::bigint[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::text[]) \
AS r(seq, id, fence, lease, progress, memo) \
WHERE l.seq = r.seq AND l.id = r.id AND l.fence = r.fence AND l.state = 2 RETURNING l.seq, l.fence, l.cancel";

/// How a claim finds its tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Walk {
    /// In the order of rank; only when every name may be taken.
    Ranks,
    /// Name by name.
    Names,
    /// In the order of rank past gates that are far from shutting, by [`crate::wide`].
    Wide(Wide),
    /// Past the gates and in the turns of keys, by [`crate::turns`].
    Turns,
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
    pub(crate) memo: String,
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
pub(crate) async fn promote(connection: &Connection<'_>, now: Option<i64>, max: usize) -> Result<Promoted, Fault> {
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

/// Takes up to `demand.max` tasks, in the order of the queues, of rank and of insertion; for who goes in turns nothing. A
/// claim past wide gates has a `pass`.
pub(crate) async fn take(
    connection: &Connection<'_>,
    now: Option<i64>,
    claiming: &Claiming,
    pass: Option<&Pass>,
) -> Result<Took, Fault> {
    let demand = &claiming.demand;
    let queues: Vec<&str> = demand.queues.iter().map(QueueName::as_str).collect();
    let (max, lease, node) = (demand.max as i64, micros(demand.lease), demand.node.as_str());
    let rows = match &claiming.walk {
        Walk::Ranks => connection.query(CLAIM, &[&now, &lease, &node, &queues, &max]).await?,
        Walk::Wide(wide) => match pass {
            Some(pass) => wide.take(connection, now, demand, pass).await?,
            None => unreachable!("the lane gives a pass to each claim past wide gates"),
        },
        Walk::Turns => return Ok(Took::default()),
        Walk::Names => {
            let except: Vec<&str> = demand.except.iter().map(TaskName::as_str).collect();
            connection.query(CLAIM_BY_NAME, &[&now, &lease, &node, &queues, &max, &except]).await?
        }
    };
    let mut took = Took::default();
    for row in rows {
        if value::<Option<&str>>(&row, 1)?.is_some() {
            took.claimed.push(claimed(&row)?);
        } else if let Some(late) = value(&row, 0)? {
            took.late.push(late);
        } else {
            took.shared = true;
        }
    }
    let place = |queue: &QueueName| demand.queues.iter().position(|wanted| wanted == queue);
    took.claimed.sort_by_cached_key(|task| (place(&task.queue), task.rank, task.receipt.row));
    Ok(took)
}

/// A row of [`TAKE`] and the like.
pub(crate) fn claimed(row: &Row) -> Result<Claimed, Fault> {
    let priority = priority_of(value(row, 4)?)?;
    let rank = value(row, 5)?;
    Ok(Claimed {
        receipt: Receipt { id: id_of(row, 1)?, fence: value(row, 6)?, row: value(row, 0)? },
        name: rows::parse("task name", value(row, 3)?)?,
        queue: queue_of(row, 2)?,
        priority,
        rank,
        body: value(row, 9)?,
        memo: value::<Option<String>>(row, 10)?.unwrap_or_default(),
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
    memo: Option<String>,
}

impl PreparedRenewal {
    pub(crate) fn of(renewal: &Renewal, lease: std::time::Duration) -> Self {
        Self {
            receipt: renewal.receipt.clone(),
            id: renewal.receipt.id.to_string(),
            lease: micros(lease),
            progress: renewal.progress.as_ref().map(|progress| to_json(&progress.shortened())),
            memo: renewal.memo.clone(),
        }
    }
}

/// Extends leases that are held. One that has run out is still held until somebody else has the task.
pub(crate) async fn renew(
    connection: &Connection<'_>,
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
    let memos: Vec<Option<&str>> = sorted.iter().map(|renewal| renewal.memo.as_deref()).collect();
    let rows = connection.query(RENEW, &[&now, &seqs, &ids, &fences, &leases, &progress, &memos]).await?;
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
pub(crate) mod tests {
    use super::*;
    use crate::schema;

    /// How many tasks wait; a walk over all of them would show.
    const BACKLOG: i64 = 200_000;

    /// A schema with this backlog.
    pub(crate) struct Backlog {
        client: tokio_postgres::Client,
        store: crate::PostgresStore,
        name: String,
    }

    impl Backlog {
        /// Tasks in the queue `default`; with a `key` of SQL in each, when there is one.
        pub(crate) async fn new(key: &str) -> Self {
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
                     INSERT INTO windlass.live (id, queue, name, priority, state, at, rank, enqueued_at, has_flow, key, body) \
                     SELECT 'task-' || n, 'default', CASE WHEN n <= {BACKLOG} / 2 THEN 'shut' ELSE 'open' END, 5, 1, 0, n, 0, false, \
                     {key}, '{{\"v\":1}}' FROM generate_series(1, {BACKLOG}) n"
                )))
                .await
                .expect("a backlog");
            Self { client, store, name }
        }

        /// The planner learns what there is.
        pub(crate) async fn analyse(&self) {
            self.client.batch_execute(&self.store.shared.sql("ANALYZE windlass.live")).await.expect("analysed");
        }

        /// Runs statements in its session.
        pub(crate) async fn run(&self, sql: &str) {
            self.client.batch_execute(&self.store.shared.sql(sql)).await.expect("run");
        }

        /// The plan of a statement, as the lanes would run it, and what it did.
        pub(crate) async fn plan(&self, statement: &str, types: &str, values: &str) -> String {
            let (types, values) = (in_brackets(types), in_brackets(values));
            let prepare = self.store.shared.sql(&format!("PREPARE question{types} AS {statement}"));
            self.client.batch_execute(&prepare).await.expect("prepared");
            let sql = format!(
                "BEGIN; EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE question{values}; ROLLBACK; DEALLOCATE question"
            );
            let lines = self.client.simple_query(&sql).await.expect("a plan");
            let lines = lines.iter().filter_map(|line| match line {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
                _ => None,
            });
            lines.collect::<Vec<_>>().join("\n")
        }

        pub(crate) async fn drop(self) {
            let sql = self.store.shared.sql("DROP SCHEMA windlass CASCADE").replace("windlass", &self.name);
            self.client.batch_execute(&sql).await.expect("dropped");
            assert_eq!(schema::for_schema("windlass.live", &self.name, "c"), format!("{}.live", self.name));
        }
    }

    fn in_brackets(list: &str) -> String {
        if list.is_empty() { String::new() } else { format!(" ({list})") }
    }

    /// The rows that the steps of a plan have read of the backlog, at most.
    pub(crate) fn most_rows(plan: &str) -> i64 {
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
        let backlog = Backlog::new("NULL").await;
        let plan = backlog
            .plan(CLAIM, "bigint, bigint, text, text[], bigint", "NULL, 30000000, 'node-1', ARRAY['default'], 100")
            .await;
        assert!(plan.contains("using live_plain on live"), "{plan}");
        assert!(!plan.contains("Seq Scan on live"), "{plan}");
        assert!(most_rows(&plan) <= 100, "{plan}");
        // Nor the tasks of names that it leaves to others.
        let plan = backlog
            .plan(
                CLAIM_BY_NAME,
                "bigint, bigint, text, text[], bigint, text[]",
                "NULL, 30000000, 'node-1', ARRAY['default'], 100, ARRAY['shut']",
            )
            .await;
        assert!(plan.contains("using live_plain_name on live"), "{plan}");
        assert!(!plan.contains("Seq Scan on live"), "{plan}");
        assert!(most_rows(&plan) <= 100, "{plan}");
        let plan = backlog.plan(PROMOTE, "bigint, bigint", "NULL, 1000").await;
        assert!(plan.contains("using live_moment on live"), "{plan}");
        assert!(most_rows(&plan) <= 1, "{plan}");
        backlog.drop().await;
    }
}
