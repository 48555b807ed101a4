//! What is kept of tasks that ended, for how long, and the days that they are kept in.
//!
//! Finished tasks are removed row by row when they are kept for less than some days, or when there are too many; the days
//! themselves are dropped whole when nothing of them is kept any more, and that gives all their space back at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio_postgres::Client;
use tracing::{debug, warn};
use windlass_core::view::Retention;
use windlass_core::{StoreError, Timestamp};

use crate::Shared;
use crate::connection::Values;
use crate::errors::{Fault, store_error};
use crate::rows::{queue_of, state_of, value};
use crate::tick::EACH_MAX;
use crate::tx::Tx;

const DAY: i64 = 86_400_000_000;
/// What is kept for longer goes by whole days, up to one day late.
const BY_ROW_MAX: Duration = Duration::from_secs(2 * 86_400);
/// The most finished tasks that one tick removes because they are old.
const FINISHED_MAX: i64 = EACH_MAX * 10;
/// The most finished tasks over the maximum that one tick removes: more than a busy fleet ends in a second.
const OVER_MAX: i64 = 50_000;
/// The most changes of counts that one tick adds up.
const CHANGES_MAX: i64 = 50_000;
/// Groups that never became complete are kept at least this long.
const UNFINISHED_GROUP_KEPT: Duration = Duration::from_secs(35 * 86_400);
/// Nodes are remembered this long after their last word.
const NODE_KEPT: Duration = Duration::from_secs(90 * 86_400);
/// The days are looked after this often, in microseconds.
const UPKEEP_EVERY: i64 = 3_600_000_000;

/// When the days were last looked after.
#[derive(Debug, Default)]
pub(crate) struct Upkeep(Mutex<Option<i64>>);

/// Removes the rows of finished tasks that ended first: `$1` that ended until then, `$2` at most how many.
macro_rules! remove {
    ($table:literal) => {
        concat!(
            "WITH d AS MATERIALIZED (SELECT seq FROM windlass.",
            $table,
            " WHERE finished_at <= $1 ORDER BY finished_at, seq LIMIT $2 FOR UPDATE SKIP LOCKED), g AS (DELETE FROM windlass.",
            $table,
            " f USING d WHERE f.seq = d.seq AND f.finished_at <= $1 RETURNING f.queue), \
             c AS (INSERT INTO windlass.delta (queue, finished) SELECT queue, -count(*) FROM g GROUP BY queue) \
             SELECT count(*) FROM g"
        )
    };
}
const REMOVE_FINISHED: &str = remove!("finished");
/// The same of those that are in no day of their own: they came from another store, or from a clock that was moved.
const REMOVE_OTHER: &str = remove!("finished_other");

/// Removes what is kept no longer; answers how many tasks that were.
pub(crate) async fn prune(tx: &mut Tx<'_>, kept: &Retention) -> Result<u64, Fault> {
    let now = tx.now.as_micros();
    let finished_until = (tx.now - kept.finished).as_micros();
    let by_row = if kept.finished <= BY_ROW_MAX { REMOVE_FINISHED } else { REMOVE_OTHER };
    let dead_until = (tx.now - kept.dead).as_micros();
    let (until_finished, until_dead, until_now): (Values<'_>, Values<'_>, Values<'_>) =
        (&[&finished_until, &FINISHED_MAX], &[&dead_until, &EACH_MAX], &[&now, &EACH_MAX]);
    let (aged, dead, own, over) = tokio::join!(
        biased;
        tx.query(by_row, until_finished),
        tx.query(
            "DELETE FROM windlass.kept WHERE seq IN (SELECT seq FROM windlass.kept WHERE state = 5 AND finished_at <= $1 \
             ORDER BY finished_at LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING queue, state",
            until_dead,
        ),
        tx.query(
            "DELETE FROM windlass.kept WHERE seq IN (SELECT seq FROM windlass.kept WHERE forget_at IS NOT NULL AND forget_at <= $1 \
             ORDER BY forget_at LIMIT $2 FOR UPDATE SKIP LOCKED) RETURNING queue, state",
            until_now,
        ),
        tx.query(
            "SELECT ((SELECT coalesce(sum(finished), 0) FROM windlass.queue) + (SELECT coalesce(sum(finished), 0) FROM windlass.delta))::bigint",
            &[],
        ),
    );
    let mut pruned = one(&aged?)?;
    for row in dead?.iter().chain(&own?) {
        tx.count(&queue_of(row, 0)?, Some(state_of(value(row, 1)?)?), None);
        pruned += 1;
    }
    let over = one(&over?)? - i64::try_from(kept.finished_max).unwrap_or(i64::MAX);
    if over > 0 {
        pruned += one(&tx.query(REMOVE_FINISHED, &[&i64::MAX, &over.min(OVER_MAX)]).await?)?;
    }
    forget(tx, kept.dead).await?;
    Ok(u64::try_from(pruned).unwrap_or(0))
}

fn one(rows: &[tokio_postgres::Row]) -> Result<i64, Fault> {
    rows.first().map_or(Ok(0), |row| value(row, 0))
}

/// Removes what else is kept no longer: unique keys, groups, nodes, those who waited, notes, gates that are open.
async fn forget(tx: &Tx<'_>, dead: Duration) -> Result<(), Fault> {
    let now = tx.now.as_micros();
    let silent_since = (tx.now - NODE_KEPT.max(dead)).as_micros();
    let finished = (tx.now - dead).as_micros();
    let unfinished = (tx.now - UNFINISHED_GROUP_KEPT.max(dead)).as_micros();
    let (until_now, until_silent, until_touched): (Values<'_>, Values<'_>, Values<'_>) =
        (&[&now, &EACH_MAX], &[&silent_since], &[&finished, &unfinished, &EACH_MAX]);
    let done = tokio::join!(
        biased;
        tx.execute(
            "DELETE FROM windlass.taken WHERE key IN (SELECT key FROM windlass.taken WHERE until IS NOT NULL AND until <= $1 \
             ORDER BY until LIMIT $2 FOR UPDATE SKIP LOCKED)",
            until_now,
        ),
        tx.execute(
            "WITH g AS (DELETE FROM windlass.node WHERE beat_at < $1 RETURNING id) \
             DELETE FROM windlass.orders o USING g WHERE o.node = g.id",
            until_silent,
        ),
        tx.execute(
            "WITH g AS (DELETE FROM windlass.groups WHERE number IN (SELECT number FROM windlass.groups WHERE touched_at <= $1 \
             AND (completed OR touched_at <= $2) ORDER BY touched_at LIMIT $3 FOR UPDATE SKIP LOCKED) RETURNING number) \
             DELETE FROM windlass.arrival a USING g WHERE a.number = g.number",
            until_touched,
        ),
        tx.execute("DELETE FROM windlass.waiting WHERE until < windlass.micros() - 60000000", &[]),
        tx.execute(
            "DELETE FROM windlass.note WHERE (space, key) IN (SELECT space, key FROM windlass.note WHERE expires <= $1 \
             ORDER BY expires LIMIT $2 FOR UPDATE SKIP LOCKED)",
            until_now,
        ),
        tx.execute(
            "DELETE FROM windlass.gate WHERE gate IN (SELECT gate FROM windlass.gate WHERE coalesce(held_until, 0) <= $1 \
             AND coalesce(next, 0) <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)",
            until_now,
        ),
    );
    done.0.and(done.1).and(done.2).and(done.3).and(done.4).and(done.5).map(drop)
}

/// Adds changes of the counts up. Last in its transaction: others wait for the rows that it locks.
pub(crate) async fn add_up(tx: &Tx<'_>) -> Result<(), Fault> {
    tx.execute(
        "WITH d AS (DELETE FROM windlass.delta WHERE ctid = ANY (ARRAY(SELECT ctid FROM windlass.delta LIMIT $1 FOR UPDATE SKIP LOCKED)) \
         RETURNING *), \
         s AS MATERIALIZED (SELECT queue, sum(scheduled)::bigint AS scheduled, sum(ready)::bigint AS ready, sum(running)::bigint AS running, \
         sum(parked)::bigint AS parked, sum(succeeded)::bigint AS succeeded, sum(dead)::bigint AS dead, \
         sum(cancelled)::bigint AS cancelled, sum(expired)::bigint AS expired, sum(finished)::bigint AS finished FROM d GROUP BY queue) \
         INSERT INTO windlass.queue AS q (name, used, scheduled, ready, running, parked, succeeded, dead, cancelled, expired, finished) \
         SELECT queue, true, scheduled, ready, running, parked, succeeded, dead, cancelled, expired, finished FROM s ORDER BY queue \
         ON CONFLICT (name) DO UPDATE SET used = true, scheduled = q.scheduled + excluded.scheduled, ready = q.ready + excluded.ready, \
         running = q.running + excluded.running, parked = q.parked + excluded.parked, succeeded = q.succeeded + excluded.succeeded, \
         dead = q.dead + excluded.dead, cancelled = q.cancelled + excluded.cancelled, expired = q.expired + excluded.expired, \
         finished = q.finished + excluded.finished",
        &[&CHANGES_MAX],
    )
    .await?;
    Ok(())
}

impl Upkeep {
    /// Whether it is time to look after the days; once in each hour.
    pub(crate) fn is_due(&self, now: Timestamp) -> bool {
        let hour = now.as_micros().div_euclid(UPKEEP_EVERY);
        self.0.lock().replace(hour) != Some(hour)
    }
}

/// How many tasks have ended here since the tables were vacuumed, and whether they are being.
///
/// A task that ends leaves dead rows and index entries behind. The server's own vacuum comes once a minute at the earliest, and
/// by then a busy fleet has ended a million: the tables would be a hundred times as large as what waits in them.
#[derive(Debug, Default)]
pub(crate) struct Turnover {
    ended: AtomicU64,
    under_way: AtomicBool,
}

/// Tasks that end between two rounds; a round costs about 2 us for each of them.
const VACUUM_AFTER: u64 = 50_000;

impl Turnover {
    /// Counts tasks that ended.
    pub(crate) fn add(&self, tasks: usize) {
        self.ended.fetch_add(tasks as u64, Ordering::Relaxed);
    }

    /// Whether it is time for a round, which then is under way.
    fn begin(&self) -> bool {
        self.ended.load(Ordering::Relaxed) >= VACUUM_AFTER && !self.under_way.swap(true, Ordering::AcqRel)
    }

    fn end(&self) {
        self.ended.store(0, Ordering::Relaxed);
        self.under_way.store(false, Ordering::Release);
    }
}

/// Vacuums the hot tables in the background when many tasks have ended. What another node vacuums just then is left to it.
pub(crate) fn vacuum_when_due(shared: &Arc<Shared>) {
    if !shared.turnover.begin() {
        return;
    }
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let sql =
            "VACUUM (SKIP_LOCKED, INDEX_CLEANUP ON, TRUNCATE FALSE) windlass.live, windlass.delta, windlass.finished";
        let vacuumed = async {
            let client = crate::connection::connect(&shared).await?;
            client.batch_execute(&shared.sql(sql)).await.map_err(|error| store_error(&error, &shared.address.shown))
        };
        if let Err(error) = vacuumed.await {
            // The server's own vacuum comes later.
            debug!(%error, "the tables were not vacuumed");
        }
        shared.turnover.end();
    });
}

/// Makes the days of today and tomorrow.
pub(crate) async fn make_partitions(shared: &Shared, client: &Client) -> Result<(), StoreError> {
    let in_words = |error: tokio_postgres::Error| store_error(&error, &shared.address.shown);
    let schema = &shared.address.schema;
    let sql = format!("SELECT coalesce($1::bigint, {schema}.micros())");
    let now: i64 = client.query_one(&sql, &[&shared.given_now()]).await.map_err(in_words)?.get(0);
    for day in [now.div_euclid(DAY), now.div_euclid(DAY) + 1] {
        let table = partition(schema, day);
        let known = client.query_one("SELECT to_regclass($1::text) IS NOT NULL", &[&table]).await.map_err(in_words)?;
        if known.get(0) {
            continue;
        }
        let (from, to) = (day * DAY, (day + 1) * DAY);
        let made = client
            .batch_execute(&format!(
                "BEGIN; SET LOCAL lock_timeout = '2s'; \
                 CREATE TABLE {table} (LIKE {schema}.finished) WITH (autovacuum_vacuum_scale_factor = 0.05, \
                 autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0); \
                 ALTER TABLE {schema}.finished ATTACH PARTITION {table} FOR VALUES FROM ({from}) TO ({to}); COMMIT"
            ))
            .await;
        if let Err(error) = made {
            client.batch_execute("ROLLBACK").await.map_err(in_words)?;
            // Another node made it, or tasks have ended on that day already and are in the table for all others. What ends
            // goes there as well; nothing is lost.
            debug!(%error, table, "a day for finished tasks was not made");
        }
    }
    Ok(())
}

/// The table of a day since 1970.
fn partition(schema: &str, day: i64) -> String {
    let date = Timestamp::from_micros(day * DAY).to_string();
    let date: String = date.chars().take(10).filter(char::is_ascii_digit).collect();
    format!("{schema}.finished_{date}")
}

/// Drops the days of which nothing is kept any more, one at a time.
pub(crate) async fn drop_partitions(tx: &mut Tx<'_>, shared: &Shared) -> Result<(), Fault> {
    let gone_before = (tx.now - shared.retention.finished).as_micros().div_euclid(DAY);
    let oldest_kept = partition(&shared.address.schema, gone_before);
    let rows = tx
        .query(
            "SELECT c.oid::regclass::text FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid \
             WHERE i.inhparent = 'windlass.finished'::regclass AND c.relname ~ '^finished_[0-9]{8}$' \
             AND c.relname < split_part($1, '.', 2) ORDER BY c.relname LIMIT 1",
            &[&oldest_kept],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(()) };
    let table: String = value(row, 0)?;
    tx.connection().run("SET LOCAL lock_timeout = '1s'").await?;
    tx.connection().run(&shared.sql("LOCK TABLE windlass.finished IN ACCESS EXCLUSIVE MODE")).await?;
    let left = tx.connection().query_once(&format!("SELECT queue, count(*) FROM {table} GROUP BY queue"), &[]).await?;
    for row in left {
        tx.count_removed(&queue_of(&row, 0)?, value(&row, 1)?);
    }
    tx.connection().run(&format!("DROP TABLE {table}")).await?;
    debug!(table, "a day of finished tasks was dropped");
    Ok(())
}

/// What a failed upkeep means: the next hour tries again.
pub(crate) fn upkeep_failed(error: &StoreError) {
    warn!(%error, "the days of finished tasks were not looked after");
}
