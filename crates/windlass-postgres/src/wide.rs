//! Claims past gates that are far from shutting: side by side, where [`crate::turns`] goes one after the other.
//!
//! 1. [`RESERVE`], a transaction of its own before that of the lane: as many starts as the claim may take are counted at the
//!    rates of its queues. It is over at once, as nobody waits until it is synced: the commit of the claim comes later in the
//!    same log, so a claim that survives a crash has been counted. Where keys take turns, [`DEAL`] deals the places in the same
//!    way, and counts at the rates of the keys.
//! 2. [`ANNOUNCE`], in the lane's transaction: up to its commit everybody sees how many places the claim may take.
//! 3. [`CLAIM`], or [`CLAIM_DEALT`]: if what runs, and what is announced, leaves room for all of that, takes tasks in the order of
//!    rank, or as was dealt, and gives back the starts that it did not need.
//!
//! All of it is sent together. What is not certain is not taken: a claim that found no room, a key, a hold or another version
//! of the limits says so, and goes in turns. That is how it begins as well: a claim in turns says whether the gates that it
//! passed are far from shutting. A claim that was dealt more than its keys had goes on in turns as well.
//!
//! Why no gate lets too much pass:
//!
//! - A claim in turns has the lock of the queue for itself, these share it: neither decides on what the other has not
//!   committed.
//! - **Rates.** The start number `i` of a gate has a theoretical arrival time, at least an interval after that of the one before,
//!   and it may come earlier by the tolerance, never later: so the bound of [`windlass_core::limit`] holds whatever is used and
//!   in which order. A reservation is for times that are still to come, and a claim that reaches the store after the first of
//!   them takes nothing. What is reserved and not used makes the rate tighter, once.
//! - **Concurrency.** An announcement is a lock that the claim shares, so it ends with the transaction however that ends. Claims
//!   read the announcements of others before they count what runs: what is committed in between is counted twice, never missed.

use std::sync::atomic::{AtomicI64, Ordering};

use futures_util::future::join_all;
use tokio_postgres::Row;
use tracing::debug;
use windlass_core::backend::Demand;
use windlass_core::{Gate, QueueName, Rate};

use crate::Gates;
use crate::claim::{Walk, taken_unless_shared, taking};
use crate::connection::{Connection, Values};
use crate::errors::Fault;
use crate::lanes::Claiming;
use crate::limits::Known;
use crate::rows::micros;

/// Gates are far from shutting when they leave room for so many claims like the last one.
pub(crate) const FAR: u64 = 4;

/// Counts starts at gates: `$1` the given time, `$2` the queues, `$3` the number of the reservation, `$4` how many starts, then lists of
/// gates, intervals and tolerances, and where the session keeps what came out. All or nothing at each gate.
///
/// The first theoretical arrival is a quarter of the tolerance away, at most 250 ms: so long the claim may be on its way.
const RESERVE: &str = "\
WITH a AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS quick), \
l AS MATERIALIZED (SELECT count(pg_advisory_xact_lock_shared(q.lock)::text) AS locks FROM a, \
(SELECT hashtextextended('@channel ' || r.name, 0) AS lock FROM unnest($2::text[]) AS r(name) ORDER BY 1) q WHERE a.quick = 'off'), \
t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now FROM l), \
r AS MATERIALIZED (SELECT r.gate, r.interval * $4::bigint AS time, r.tolerance, t.now + least(r.tolerance / 4, 250000) AS first, r.place, t.now \
FROM t, unnest($5::text[], $6::bigint[], $7::bigint[]) WITH ORDINALITY AS r(gate, interval, tolerance, place)), \
g AS (INSERT INTO windlass.gate AS g (gate, next) \
SELECT r.gate, r.first + r.time FROM r WHERE r.first + r.time <= r.now + r.tolerance ORDER BY r.gate \
ON CONFLICT (gate) DO UPDATE SET next = greatest(g.next + (SELECT r.time FROM r WHERE r.gate = g.gate), excluded.next) \
WHERE coalesce(g.next, 0) + (SELECT r.time FROM r WHERE r.gate = g.gate) <= (SELECT r.now + r.tolerance FROM r WHERE r.gate = g.gate) \
RETURNING g.gate, g.next) \
SELECT set_config($8::text, coalesce((SELECT (ARRAY[$3::bigint, min(g.next - r.time)] || array_agg(g.next ORDER BY r.place))::text \
FROM g JOIN r ON r.gate = g.gate HAVING count(*) = cardinality($5::text[])), ''), false)";

/// Announces that places are taken: `$1` the queues, `$2` how many places. The session keeps, for each queue, how many are
/// announced in all.
///
/// The locks of a queue are asked for its announcements after the own one was made: by the row that made it.
const ANNOUNCE: &str = "\
WITH l AS MATERIALIZED (SELECT q.place, q.class, pg_advisory_xact_lock_shared(q.lock)::text || pg_advisory_xact_lock_shared(q.class, $2::integer)::text AS locked \
FROM (SELECT r.place, hashtextextended('@channel ' || r.name, 0) AS lock, hashtext('@channel ' || r.name) AS class \
FROM unnest($1::text[]) WITH ORDINALITY AS r(name, place) ORDER BY 2) q) \
SELECT set_config('windlass_claim.announced', array_agg((SELECT coalesce(sum(k.objid::bigint), 0)::bigint FROM pg_locks k \
WHERE l.locked IS NOT NULL AND k.locktype = 'advisory' AND k.objsubid = 2 AND k.mode = 'ShareLock' \
AND k.classid::bigint = (l.class::bigint + 4294967296) % 4294967296 \
AND k.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())) ORDER BY l.place)::text, true) FROM l";

/// Takes tasks: `$1` the given time, `$2` the lease, `$3` the node, `$4` the queues, `$5` at most how many, `$6` the version of the limits;
/// `$7` the number of the reservation, then, for rates of whole queues, lists of gates, their queues and their intervals; then lists
/// of announced queues and their concurrencies, and where the session keeps the reservation. Nothing is taken when that is not
/// certain to be right.
macro_rules! claiming {
    ($refusal:literal, $walk:literal, $back:literal) => {
        concat!(
            "WITH t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now), \
             v AS MATERIALIZED (SELECT nullif(current_setting($13::text, true), '')::bigint[] AS kept), \
             s AS MATERIALIZED (SELECT \
             (SELECT value FROM windlass.meta WHERE key = 'limits') IS DISTINCT FROM $6::bigint \
             OR (cardinality($8::text[]) > 0 AND coalesce(v.kept[1] <> $7::bigint OR v.kept[2] < t.now, true)) \
             OR EXISTS (SELECT 1 FROM windlass.gate g WHERE g.held_until > t.now) \
             OR EXISTS (SELECT 1 FROM windlass.paused_name) \
             OR EXISTS (SELECT 1 FROM unnest($11::text[], $12::bigint[]) WITH ORDINALITY AS r(queue, most, place) WHERE r.most < \
             (current_setting('windlass_claim.announced')::bigint[])[r.place] + \
             (SELECT count(*) FROM windlass.live l WHERE l.state = 2 AND l.state <> 1 AND l.queue = r.queue)) \
             OR ",
            $refusal,
            " AS shared FROM t, v), ",
            $walk,
            taking!(),
            ", i AS MATERIALIZED (SELECT count(*) AS tasks FROM u), \
             n AS MATERIALIZED (SELECT queue, count(*) AS tasks FROM u GROUP BY queue), \
             w AS (UPDATE windlass.gate g SET next = g.next - ($5 - r.tasks) * r.interval FROM (SELECT r.gate, r.interval, r.place, \
             coalesce((SELECT n.tasks FROM n WHERE n.queue = r.queue), 0) AS tasks \
             FROM unnest($8::text[], $9::text[], $10::bigint[]) WITH ORDINALITY AS r(gate, queue, interval, place) \
             WHERE (SELECT i.tasks FROM i) < $5 OR cardinality($8) > 1) r, v \
             WHERE r.tasks < $5 AND v.kept[1] = $7 AND g.gate = r.gate AND g.next = v.kept[2 + r.place])",
            $back,
            taken_unless_shared!()
        )
    };
}

/// In the order of rank; there must be no keys.
const CLAIM: &str = claiming!(
    "EXISTS (SELECT 1 FROM unnest($4::text[]) AS q(name) CROSS JOIN LATERAL \
     (SELECT 1 FROM windlass.live k WHERE k.state = 1 AND k.key IS NOT NULL AND k.queue = q.name LIMIT 1) k)",
    "p AS MATERIALIZED (SELECT b.ctid, b.seq, b.expires FROM unnest($4::text[]) AS q(name) CROSS JOIN LATERAL ( \
     SELECT l.ctid, l.seq, l.expires FROM windlass.live l WHERE l.state = 1 AND l.key IS NULL AND l.queue = q.name \
     AND NOT (SELECT shared FROM s) \
     AND NOT EXISTS (SELECT 1 FROM windlass.queue s WHERE s.name = q.name AND s.paused) \
     AND NOT EXISTS (SELECT 1 FROM windlass.meta WHERE key = 'closed') \
     ORDER BY l.rank, l.seq LIMIT $5 FOR UPDATE OF l SKIP LOCKED) b LIMIT $5), ",
    ""
);

/// What was dealt to the keys of one queue, [`DEAL`]: `$14` where the session keeps that, `$15` and `$16` interval and concurrency of
/// each key. The queue is announced last.
const CLAIM_DEALT: &str = claiming!(
    "coalesce((SELECT z.dealt[1] <> $7 OR z.dealt[2] < t.now FROM \
     (SELECT nullif(current_setting($14::text, true), '')::bigint[] AS dealt) z), true) \
     OR ($16::bigint IS NOT NULL AND $16 < (current_setting('windlass_claim.announced')::bigint[])[cardinality($11) + 1] + \
     (SELECT coalesce(max(z.tasks), 0) FROM (SELECT count(*) AS tasks FROM windlass.live l \
     WHERE l.state = 2 AND l.state <> 1 AND l.queue = ($4::text[])[1] GROUP BY l.key) z))",
    "d AS MATERIALIZED (SELECT r.key, r.share FROM unnest(nullif(current_setting($14 || '_keys', true), '')::text[], \
     nullif(current_setting($14 || '_shares', true), '')::bigint[]) AS r(key, share) \
     WHERE NOT (SELECT shared FROM s) \
     AND NOT EXISTS (SELECT 1 FROM windlass.queue s WHERE s.name = ($4)[1] AND s.paused) \
     AND NOT EXISTS (SELECT 1 FROM windlass.meta WHERE key = 'closed')), \
     p AS MATERIALIZED (SELECT b.ctid, b.seq, b.expires FROM d CROSS JOIN LATERAL ( \
     SELECT l.ctid, l.seq, l.expires FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue = ($4)[1] \
     AND l.key >= d.key AND l.key <= d.key ORDER BY l.key, l.rank, l.seq LIMIT d.share FOR UPDATE OF l SKIP LOCKED) b \
     UNION ALL SELECT b.ctid, b.seq, b.expires FROM d CROSS JOIN LATERAL ( \
     SELECT l.ctid, l.seq, l.expires FROM windlass.live l WHERE l.state = 1 AND l.key IS NULL AND l.queue = ($4)[1] \
     AND d.key IS NULL ORDER BY l.rank, l.seq LIMIT d.share FOR UPDATE OF l SKIP LOCKED) b WHERE d.key IS NULL), ",
    ", j AS MATERIALIZED (SELECT 'key-of-queue:' || ($4)[1] || ' ' || l.key AS gate, count(*) AS tasks FROM u \
     JOIN windlass.live l ON l.seq = u.seq WHERE (SELECT i.tasks FROM i) < $5 GROUP BY l.key), \
     y AS (UPDATE windlass.gate g SET next = g.next - (r.share - r.tasks) * $15::bigint FROM (SELECT r.gate, r.next, r.share, \
     coalesce((SELECT j.tasks FROM j WHERE j.gate = r.gate), 0) AS tasks \
     FROM unnest(nullif(current_setting($14 || '_gates', true), '')::text[], nullif(current_setting($14 || '_ends', true), '')::bigint[], \
     nullif(current_setting($14 || '_starts', true), '')::bigint[]) AS r(gate, next, share) \
     WHERE (SELECT i.tasks FROM i) < $5) r \
     WHERE r.tasks < r.share AND (nullif(current_setting($14, true), '')::bigint[])[1] = $7 AND g.gate = r.gate AND g.next = r.next)"
);

/// Deals places to the keys of a queue, as [`windlass_core::fair::deal`] does with equal weights, and counts as many starts at the
/// gates of the keys: `$1` the given time, `$2` the queue, `$3` the number of the reservation, `$4` how many places, `$5` and `$6` the interval
/// and the tolerance when each key has a rate, `$7` where the session keeps what came out. The row of the turn is locked until this
/// is over, which is soon.
const DEAL: &str = "\
WITH RECURSIVE a AS MATERIALIZED (SELECT set_config('synchronous_commit', 'off', true) AS quick), \
l AS MATERIALIZED (SELECT pg_advisory_xact_lock_shared(hashtextextended('@channel ' || $2::text, 0))::text AS locked FROM a WHERE a.quick = 'off'), \
b AS MATERIALIZED (SELECT s.key FROM l, windlass.turn s WHERE l.locked IS NOT NULL AND s.queue = $2 AND s.rest = 1 FOR UPDATE OF s), \
t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now FROM b), \
f AS ((SELECT l.key FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue = $2 \
AND l.key >= (SELECT coalesce(b.key, '') FROM b) ORDER BY l.key LIMIT 1) \
UNION ALL SELECT (SELECT l.key FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue = $2 \
AND l.key > f.key ORDER BY l.key LIMIT 1) FROM f WHERE f.key IS NOT NULL), \
g AS ((SELECT l.key FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue = $2 \
AND l.key < (SELECT b.key FROM b) ORDER BY l.key LIMIT 1) \
UNION ALL SELECT (SELECT l.key FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue = $2 \
AND l.key > g.key AND l.key < (SELECT b.key FROM b) ORDER BY l.key LIMIT 1) FROM g WHERE g.key IS NOT NULL), \
k AS MATERIALIZED (SELECT q.key, row_number() OVER (ORDER BY q.part, q.key) AS place FROM ( \
(SELECT CASE WHEN b.key IS NULL THEN 1 ELSE 3 END AS part, NULL::text AS key FROM b WHERE EXISTS (SELECT 1 FROM windlass.live l \
WHERE l.state = 1 AND l.key IS NULL AND l.queue = $2)) \
UNION ALL (SELECT 2, f.key FROM f, b WHERE f.key IS NOT NULL LIMIT $4::bigint + 1) \
UNION ALL (SELECT 4, g.key FROM g WHERE g.key IS NOT NULL LIMIT $4::bigint + 1) ORDER BY 1, 2 LIMIT $4::bigint + 1) q), \
m AS MATERIALIZED (SELECT count(*) AS keys FROM k), \
d AS MATERIALIZED (SELECT k.key, k.place, $4 / m.keys + CASE WHEN k.place <= $4 % m.keys THEN 1 ELSE 0 END AS share FROM k, m), \
w AS (UPDATE windlass.turn t SET key = k.key FROM k, m WHERE t.queue = $2 AND k.place = $4 % m.keys + 1), \
r AS MATERIALIZED (SELECT 'key-of-queue:' || $2 || ' ' || d.key AS gate, d.share, d.share * $5::bigint AS time, \
t.now + least($6::bigint / 4, 250000) AS first, t.now + $6::bigint AS last FROM d, t \
WHERE $5::bigint IS NOT NULL AND d.key IS NOT NULL AND d.share > 0 ORDER BY d.key), \
u AS (UPDATE windlass.gate g SET next = greatest(coalesce(g.next, 0), r.first) + r.time FROM r WHERE g.gate = r.gate \
AND greatest(coalesce(g.next, 0), r.first) + r.time <= r.last RETURNING r.gate, r.share, g.next, g.next - r.time AS first), \
n AS (INSERT INTO windlass.gate (gate, next) SELECT r.gate, r.first + r.time FROM r WHERE r.first + r.time <= r.last \
AND NOT EXISTS (SELECT 1 FROM windlass.gate g WHERE g.gate = r.gate) ON CONFLICT DO NOTHING RETURNING gate, next), \
e AS MATERIALIZED (SELECT u.gate, u.share, u.next, u.first FROM u \
UNION ALL SELECT r.gate, r.share, n.next, r.first FROM n JOIN r ON r.gate = n.gate), \
c AS MATERIALIZED (SELECT (SELECT count(*) FROM e) = (SELECT count(*) FROM r) AND (SELECT keys FROM m) > 0 AS whole) \
SELECT set_config($7::text, CASE WHEN c.whole THEN ARRAY[$3::bigint, (SELECT coalesce(min(e.first), 9223372036854775807) FROM e)]::text ELSE '' END, false), \
set_config($7 || '_keys', (SELECT coalesce(array_agg(d.key ORDER BY d.place), '{}')::text FROM d WHERE d.share > 0), false), \
set_config($7 || '_shares', (SELECT coalesce(array_agg(d.share ORDER BY d.place), '{}')::text FROM d WHERE d.share > 0), false), \
set_config($7 || '_gates', (SELECT coalesce(array_agg(e.gate), '{}')::text FROM e), false), \
set_config($7 || '_ends', (SELECT coalesce(array_agg(e.next), '{}')::text FROM e), false), \
set_config($7 || '_starts', (SELECT coalesce(array_agg(e.share), '{}')::text FROM e), false) \
FROM c";

/// What is sent together. It must be prepared before.
pub(crate) const SENT_TOGETHER: [&str; 5] = [RESERVE, DEAL, ANNOUNCE, CLAIM, CLAIM_DEALT];

/// What is needed to know of the gates of some queues.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wide {
    /// Of the limits.
    version: i64,
    /// Queues with a rate, sorted.
    rates: Vec<(QueueName, Rate)>,
    /// Queues with a concurrency, and that.
    concurrencies: Vec<(QueueName, i64)>,
    /// When the keys of the queue, which is one, take turns: their rate and their concurrency.
    keys: Option<(Option<Rate>, Option<i64>)>,
}

/// What a lane gives to a claim past wide gates.
#[derive(Debug)]
pub(crate) struct Pass {
    /// The number of its reservation, which no other has.
    number: i64,
    /// Where the session keeps that, and what was dealt.
    kept_at: String,
    dealt_at: String,
    /// How many places all claims of the transaction may take.
    places: i32,
}

/// A pass for each claim of a transaction that goes past wide gates.
pub(crate) fn passes(claims: &[&Claiming]) -> Vec<Option<Pass>> {
    static NEXT: AtomicI64 = AtomicI64::new(1);
    let is_wide = |claiming: &&&Claiming| matches!(claiming.walk, Walk::Wide(_));
    let places = claims.iter().filter(is_wide).map(|claiming| claiming.demand.max).sum::<usize>();
    let pass = |index| Pass {
        number: NEXT.fetch_add(1, Ordering::Relaxed),
        kept_at: format!("windlass_claim.reserved_{index}"),
        dealt_at: format!("windlass_claim.dealt_{index}"),
        places: i32::try_from(places).unwrap_or(i32::MAX),
    };
    claims.iter().enumerate().map(|(index, claiming)| is_wide(&claiming).then(|| pass(index))).collect()
}

/// Counts the starts that claims with a pass may need.
pub(crate) async fn reserve(
    connection: &Connection<'_>,
    now: Option<i64>,
    claims: &[&Claiming],
    passes: &[Option<Pass>],
) {
    join_all(claims.iter().zip(passes).filter_map(|(claiming, pass)| match (&claiming.walk, pass) {
        (Walk::Wide(wide), Some(pass)) => Some(wide.reserve(connection, now, &claiming.demand, pass)),
        (Walk::Ranks | Walk::Names | Walk::Turns | Walk::Wide(_), _) => None,
    }))
    .await;
}

impl Wide {
    /// For these queues, whose gates are so; nothing when it has to go in turns.
    pub(crate) fn of(known: &Known, queues: &[QueueName], gates: Gates) -> Option<Self> {
        if known.across_queues {
            return None;
        }
        let keys = match (gates, queues) {
            (Gates::Far, _) => None,
            (Gates::KeysFar, [queue]) if !known.weighted => {
                let (rate, concurrency) = known.of_each_key(queue).unwrap_or_default();
                Some((rate, concurrency.map(i64::from)))
            }
            (Gates::Near | Gates::KeysFar, _) => return None,
        };
        let mut wide = Self { version: known.version, rates: Vec::new(), concurrencies: Vec::new(), keys };
        for queue in queues {
            let Some((rate, concurrency)) = known.of_queue(queue) else { continue };
            wide.rates.extend(rate.map(|rate| (queue.clone(), rate)));
            wide.concurrencies.extend(concurrency.map(|most| (queue.clone(), i64::from(most))));
        }
        wide.rates.sort_by(|(a, _), (b, _)| a.cmp(b));
        Some(wide)
    }

    /// Whether keys take turns: then a claim that was dealt more than there was goes on in turns.
    pub(crate) fn deals(&self) -> bool {
        self.keys.is_some()
    }

    /// Counts the starts that the claim may need. What goes wrong here is seen by the claim: it finds no reservation.
    async fn reserve(&self, connection: &Connection<'_>, now: Option<i64>, demand: &Demand, pass: &Pass) {
        let queues: Vec<&str> = demand.queues.iter().map(QueueName::as_str).collect();
        let (gates, intervals) = self.gates();
        let tolerances: Vec<i64> = self.rates.iter().map(|(_, rate)| rate.tolerance_micros()).collect();
        let (places, queue) = (demand.max as i64, queues.first().copied().unwrap_or_default());
        let rate = self.keys.and_then(|(rate, _)| rate);
        let (interval, tolerance) = (rate.map(Rate::interval_micros), rate.map(Rate::tolerance_micros));
        let starts: Values<'_> =
            &[&now, &queues, &pass.number, &places, &gates, &intervals, &tolerances, &pass.kept_at];
        let shares: Values<'_> = &[&now, &queue, &pass.number, &places, &interval, &tolerance, &pass.dealt_at];
        let reserved =
            async { if gates.is_empty() { Ok(Vec::new()) } else { connection.query(RESERVE, starts).await } };
        let dealt = async { if self.deals() { connection.query(DEAL, shares).await } else { Ok(Vec::new()) } };
        let (reserved, dealt) = tokio::join!(biased; reserved, dealt);
        if let Err(fault) = reserved.and(dealt) {
            debug!(?fault, "starts were not reserved; the claim goes in turns");
        }
    }

    /// Takes tasks, as [`CLAIM`] answers.
    pub(crate) async fn take(
        &self,
        connection: &Connection<'_>,
        now: Option<i64>,
        demand: &Demand,
        pass: &Pass,
    ) -> Result<Vec<Row>, Fault> {
        let queues: Vec<&str> = demand.queues.iter().map(QueueName::as_str).collect();
        let (max, lease, node) = (demand.max as i64, micros(demand.lease), demand.node.as_str());
        let (gates, intervals) = self.gates();
        let of_gates: Vec<&str> = self.rates.iter().map(|(queue, _)| queue.as_str()).collect();
        let counted: Vec<&str> = self.concurrencies.iter().map(|(queue, _)| queue.as_str()).collect();
        let most: Vec<i64> = self.concurrencies.iter().map(|(_, most)| *most).collect();
        let (rate, of_each_key) = self.keys.unwrap_or_default();
        let interval = rate.map(Rate::interval_micros);
        let announced: Vec<&str> = counted.iter().chain(of_each_key.and(queues.first())).copied().collect();
        let announcement: Values<'_> = &[&announced, &pass.places];
        let values: Values<'_> = &[
            &now,
            &lease,
            &node,
            &queues,
            &max,
            &self.version,
            &pass.number,
            &gates,
            &of_gates,
            &intervals,
            &counted,
            &most,
            &pass.kept_at,
            &pass.dealt_at,
            &interval,
            &of_each_key,
        ];
        let announce = async {
            if announced.is_empty() { Ok(Vec::new()) } else { connection.query(ANNOUNCE, announcement).await }
        };
        let claim = async {
            if self.deals() {
                connection.query(CLAIM_DEALT, values).await
            } else {
                connection.query(CLAIM, &values[..13]).await
            }
        };
        let (announced, rows) = tokio::join!(biased; announce, claim);
        announced.and(rows)
    }

    fn gates(&self) -> (Vec<String>, Vec<i64>) {
        let gate = |(queue, rate): &(QueueName, Rate)| (Gate::Queue(queue.clone()).to_string(), rate.interval_micros());
        self.rates.iter().map(gate).unzip()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio_util::sync::CancellationToken;
    use windlass_core::backend::{Backend, Claim, Push, Settled};
    use windlass_core::flow::Follow;
    use windlass_core::limit::{Limit, LimitChange, Rule};
    use windlass_core::{Args, Envelope, Json, Key, NodeId, Subject, TaskName, Verdict};

    use super::*;
    use crate::claim::tests::{Backlog, most_rows};
    use crate::{Options, PostgresStore, connection};

    /// Two handles of a schema of their own.
    async fn handles() -> [Arc<PostgresStore>; 2] {
        let url = std::env::var("WINDLASS_TEST_POSTGRES_URL").expect("WINDLASS_TEST_POSTGRES_URL names a server");
        let name = format!("t_{}", windlass_core::TaskId::random().to_string().replace('-', ""));
        let joint = if url.contains('?') { '&' } else { '?' };
        let address = format!("{url}{joint}schema={name}");
        let open = || PostgresStore::connect(&address, Options::default());
        [Arc::new(open().await.expect("a store")), Arc::new(open().await.expect("a store"))]
    }

    fn demand(number: usize, max: usize) -> Demand {
        Demand {
            node: NodeId::known(&format!("node-{number}")),
            queues: vec![QueueName::default()],
            max,
            lease: Duration::from_secs(60),
            except: Vec::new(),
            wait: Duration::from_secs(1),
            hush: CancellationToken::new(),
        }
    }

    /// Six workers claim and settle `tasks` under a limit, and count how many of each key run; answers how many of their
    /// claims went past wide gates.
    async fn work(stores: &[Arc<PostgresStore>; 2], about: &str, rule: Rule, tasks: Vec<Envelope>) -> usize {
        let subject: Subject = about.parse().expect("a subject");
        let most = rule.concurrency.expect("a concurrency") as usize;
        let running: Arc<Mutex<HashMap<Option<Key>, usize>>> = Arc::default();
        stores[0].limit(&LimitChange::Set(Limit { subject, rule })).await.expect("a limit");
        let left = Arc::new(AtomicUsize::new(tasks.len()));
        for some in tasks.chunks(500) {
            stores[0].push(&Push { envelopes: some.to_vec(), groups: Vec::new() }).await.expect("pushed");
        }
        let workers = (0..6).map(|number| {
            let (store, left, running) = (Arc::clone(&stores[number % 2]), Arc::clone(&left), Arc::clone(&running));
            async move {
                let mut dice = fastrand::Rng::with_seed(number as u64);
                let (mut held, mut wide): (Vec<Claim>, usize) = (Vec::new(), 0);
                while left.load(Ordering::Relaxed) > 0 {
                    let demand = demand(number, dice.usize(1..=20));
                    wide += usize::from(matches!(store.shared.past_gates(&demand), Some(Walk::Wide(_))));
                    let claims = store.claim(&demand).await.expect("claimed");
                    for claim in &claims {
                        *running.lock().entry(claim.envelope.key.clone()).or_default() += 1;
                    }
                    let now = running.lock().values().copied().max().unwrap_or_default();
                    assert!(now <= most, "{now} run at once");
                    held.extend(claims);
                    let ends: Vec<Claim> = held.drain(dice.usize(0..=held.len() / 2)..).collect();
                    for claim in &ends {
                        *running.lock().entry(claim.envelope.key.clone()).or_default() -= 1;
                    }
                    let settled: Vec<Settled> = ends.into_iter().map(succeeded).collect();
                    store.settle(&settled).await.expect("settled");
                    left.fetch_sub(settled.len(), Ordering::Relaxed);
                }
                wide
            }
        });
        join_all(workers).await.into_iter().sum()
    }

    fn succeeded(claim: Claim) -> Settled {
        let verdict = Verdict::Succeeded { result: Json::null(), skipped: None };
        Settled { receipt: claim.receipt, verdict, follow: Follow::default() }
    }

    /// Reads from the store when tasks have started, and compares it with the rate of each key. Drops the schema.
    async fn check(stores: &[Arc<PostgresStore>; 2], tasks: usize, rate: Rate) {
        let client = connection::connect(&stores[0].shared).await.expect("a connection");
        let sql = stores[0].shared.sql("SELECT coalesce(key, ''), started_at FROM windlass.finished ORDER BY 1, 2");
        let rows = client.query(&sql, &[]).await.expect("what has run");
        let drop =
            stores[0].shared.sql("DROP SCHEMA windlass CASCADE").replace("windlass", &stores[0].shared.address.schema);
        client.batch_execute(&drop).await.expect("dropped");
        assert_eq!(rows.len(), tasks);
        let of_key = |row: &Row| row.get::<_, String>(0);
        for rows in rows.chunk_by(|a, b| of_key(a) == of_key(b)) {
            let starts: Vec<i64> = rows.iter().map(|row| row.get(1)).collect();
            for (first, from) in starts.iter().enumerate() {
                for (last, to) in starts.iter().enumerate().skip(first) {
                    let allowed = i64::from(rate.burst) + (to - from) / rate.interval_micros();
                    assert!(
                        (last - first + 1) as i64 <= allowed,
                        "{} starts within {} us",
                        last - first + 1,
                        to - from
                    );
                }
            }
        }
    }

    fn task(key: Option<Key>) -> Envelope {
        let args = Args::parse("{}").expect("JSON");
        Envelope { key, ..Envelope::new(TaskName::known("work"), QueueName::default(), args) }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn claims_side_by_side_exceed_no_limit() {
        let stores = handles().await;
        let rate = Rate { burst: 400, ..Rate::new(2_000, Duration::from_secs(1)) };
        let rule = Rule { rate: Some(rate), concurrency: Some(150), ..Rule::default() };
        let wide = work(&stores, "queue:default", rule, (0..2_000).map(|_| task(None)).collect()).await;
        assert!(wide > 10, "only {wide} claims went side by side");
        check(&stores, 2_000, rate).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn claims_of_keys_side_by_side_exceed_no_limit() {
        let stores = handles().await;
        let rate = Rate { burst: 100, ..Rate::new(500, Duration::from_secs(1)) };
        let rule = Rule { rate: Some(rate), concurrency: Some(150), ..Rule::default() };
        let key = |number: usize| Some(Key::known(&format!("key {}", number % 5)));
        let wide =
            work(&stores, "keys-of-queue:default", rule, (0..2_000).map(|number| task(key(number))).collect()).await;
        assert!(wide > 10, "only {wide} claims went side by side");
        check(&stores, 2_000, rate).await;
    }

    #[tokio::test]
    async fn a_claim_past_wide_gates_reads_no_more_of_a_backlog_than_it_takes() {
        let types =
            "bigint, bigint, text, text[], bigint, bigint, bigint, text[], text[], bigint[], text[], bigint[], text";
        let values = "NULL, 30000000, 'node-1', ARRAY['default'], 100, 0, 7, '{}', '{}', '{}', '{}', '{}', 'windlass_claim.reserved_0'";
        let backlog = Backlog::new("NULL").await;
        let plan = backlog.plan(CLAIM, types, values).await;
        assert!(plan.contains("using live_plain on live"), "{plan}");
        assert!(!plan.contains("Seq Scan on live") && most_rows(&plan) <= 100, "{plan}");
        backlog.drop().await;
        let backlog = Backlog::new("'key ' || n % 3").await;
        backlog.run("INSERT INTO windlass.turn VALUES ('default', 'key 1', 1)").await;
        let deal = "NULL, 'default', 7, 100, 1, 1000000, 'windlass_claim.dealt_0'";
        let plan = backlog.plan(DEAL, "bigint, text, bigint, bigint, bigint, bigint, text", deal).await;
        assert!(!plan.contains("Seq Scan on live") && most_rows(&plan) <= 100, "{plan}");
        backlog
            .run(
                "SELECT set_config('windlass_claim.dealt_0', '{7,9223372036854775807}', false), \
                 set_config('windlass_claim.dealt_0_keys', '{key 0,key 2}', false), \
                 set_config('windlass_claim.dealt_0_shares', '{50,50}', false)",
            )
            .await;
        let (types, values) =
            (format!("{types}, text, bigint, bigint"), format!("{values}, 'windlass_claim.dealt_0', NULL, NULL"));
        let plan = backlog.plan(CLAIM_DEALT, &types, &values).await;
        assert!(plan.contains("using live_keyed on live"), "{plan}");
        assert!(!plan.contains("Seq Scan on live") && most_rows(&plan) <= 100, "{plan}");
        backlog.drop().await;
    }
}
