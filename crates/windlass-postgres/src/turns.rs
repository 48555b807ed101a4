//! Claims that look at gates, or let the keys of a queue take turns.
//!
//! 1. lock the queues, and the gates that are shared by queues, in one order: such claims go one after the other, so what one
//!    has started is seen by the next. A task that ends is seen after its commit; until then it counts as running.
//! 2. read limits, what runs and whose turn it is ([`read`]): all of it sent together, with what else the transaction does
//! 3. for each queue: deal places to keys, lock the first tasks of each, let them pass the gates or leave them; until no key
//!    has any that may go ([`decide`])
//! 4. take what may go, write the counted rates and the turns: sent together with the commit ([`Decided::write`])
//!
//! Queues without limits, holds and keys never come here: [`crate::claim`] says when they do. While gates are far from shutting,
//! the next claims are spared the waiting for each other: [`crate::wide`].

use std::collections::{BTreeSet, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio_postgres::Row;
use windlass_core::backend::Demand;
use windlass_core::fair::{KEYS_PER_CLAIM, Turn, deal};
use windlass_core::limit::{Admission, Gate, GateState};
use windlass_core::{Key, QueueName, TaskName, Timestamp};

use crate::claim::{self, Claimed, TAKE};
use crate::connection::Values;
use crate::errors::Fault;
use crate::limits::{self, Known};
use crate::ring::{self, FirstRead, Ring};
use crate::rows::{micros, parse, value};
use crate::tx::{NOW, Tx, time_of};
use crate::{Gates, Shared, tick, wide};

/// `$1` the queues. Answers whether the gates that are shared by queues were locked as well.
const LOCK: &str = "\
SELECT l.across, pg_advisory_xact_lock(l.lock)::text FROM (SELECT true AS across, hashtextextended('@channel', 0) AS lock \
WHERE EXISTS (SELECT 1 FROM windlass.rule WHERE starts AND queue IS NULL) \
UNION ALL SELECT DISTINCT false, hashtextextended('@channel ' || q.name, 0) FROM unnest($1::text[]) AS q(name) ORDER BY 1 DESC, 2) l";
const LOCK_ACROSS: &str = "SELECT pg_advisory_xact_lock(hashtextextended('@channel', 0))::text";

/// `$1` the queues: those that may be taken from, each with its turn.
const QUEUES: &str = "\
SELECT q.name, t.key, coalesce(t.rest, 0) FROM unnest($1::text[]) AS q(name) LEFT JOIN windlass.turn t ON t.queue = q.name \
WHERE NOT EXISTS (SELECT 1 FROM windlass.queue s WHERE s.name = q.name AND s.paused) \
AND NOT EXISTS (SELECT 1 FROM windlass.meta WHERE key = 'closed')";

/// Locks the first tasks without a key: `$1` the queue, `$2` at most how many.
const FIRST_PLAIN: &str = "\
SELECT NULL::text, l.seq, l.name, l.expires FROM windlass.live l WHERE l.state = 1 AND l.key IS NULL AND l.queue = $1 \
ORDER BY l.rank, l.seq LIMIT $2 FOR UPDATE OF l SKIP LOCKED";
/// Locks the first tasks of keys: `$1` the queue, `$2` the keys, `$3` at most how many of each.
///
/// A range of one key and the order by it leave the planner no other index than that of keys; so it is with names below.
const FIRST_KEYED: &str = "\
SELECT r.key, b.seq, b.name, b.expires FROM unnest($2::text[], $3::bigint[]) AS r(key, share) CROSS JOIN LATERAL ( \
SELECT l.seq, l.name, l.expires FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue = $1 \
AND l.key >= r.key AND l.key <= r.key ORDER BY l.key, l.rank, l.seq LIMIT r.share FOR UPDATE OF l SKIP LOCKED) b";
/// The same without tasks of some names, merged name by name: `$3` those names.
const FIRST_PLAIN_BY_NAME: &str = "\
WITH RECURSIVE n AS ((SELECT l.name FROM windlass.live l WHERE l.state = 1 AND l.key IS NULL AND l.queue = $1 ORDER BY l.name LIMIT 1) \
UNION ALL SELECT (SELECT l.name FROM windlass.live l WHERE l.state = 1 AND l.key IS NULL AND l.queue = $1 AND l.name > n.name \
ORDER BY l.name LIMIT 1) FROM n WHERE n.name IS NOT NULL) \
SELECT NULL::text, l.seq, l.name, l.expires FROM (SELECT b.seq, b.rank FROM n CROSS JOIN LATERAL (SELECT l.seq, l.rank \
FROM windlass.live l WHERE l.state = 1 AND l.key IS NULL AND l.queue = $1 AND l.name = n.name ORDER BY l.rank, l.seq LIMIT $2) b \
WHERE n.name IS NOT NULL AND n.name <> ALL ($3::text[]) ORDER BY b.rank, b.seq LIMIT $2) c \
JOIN windlass.live l ON l.seq = c.seq WHERE l.state = 1 ORDER BY c.rank, c.seq FOR UPDATE OF l SKIP LOCKED";
/// The same of keys: `$4` names that are left out of every key, `$5` and `$6` keys and names that are left out of one.
const FIRST_KEYED_BY_NAME: &str = "\
SELECT r.key, l.seq, l.name, l.expires FROM unnest($2::text[], $3::bigint[]) WITH ORDINALITY AS r(key, share, place) CROSS JOIN LATERAL ( \
WITH RECURSIVE n AS ((SELECT l.name FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue = $1 AND l.key = r.key \
ORDER BY l.name LIMIT 1) \
UNION ALL SELECT (SELECT l.name FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL AND l.queue = $1 AND l.key = r.key \
AND l.name > n.name ORDER BY l.name LIMIT 1) FROM n WHERE n.name IS NOT NULL) \
SELECT b.seq, b.rank FROM n CROSS JOIN LATERAL (SELECT l.seq, l.rank FROM windlass.live l WHERE l.state = 1 AND l.key IS NOT NULL \
AND l.queue = $1 AND l.key = r.key AND l.name >= n.name AND l.name <= n.name ORDER BY l.name, l.rank, l.seq LIMIT r.share) b \
WHERE n.name IS NOT NULL AND n.name <> ALL ($4::text[]) \
AND NOT EXISTS (SELECT 1 FROM unnest($5::text[], $6::text[]) AS x(key, name) WHERE x.key = r.key AND x.name = n.name) \
ORDER BY b.rank, b.seq LIMIT r.share) c \
JOIN windlass.live l ON l.seq = c.seq WHERE l.state = 1 ORDER BY r.place, c.rank, c.seq FOR UPDATE OF l SKIP LOCKED";

/// When the next starts are due: `$1` the given time, `$2` at most how many.
const RATES: &str = "\
SELECT gate, next FROM windlass.gate WHERE next > coalesce($1::bigint, windlass.micros()) LIMIT $2";
/// Up to this many are read at once; when there are more, those that are needed are asked for.
const RATES_MAX: usize = 1_000;

/// What is sent together with the beginning and the end of a transaction. It must be prepared before: a statement that is
/// prepared on the way is sent behind the commit.
pub(crate) const SENT_TOGETHER: [&str; 13] = [
    LOCK,
    NOW,
    limits::READ,
    limits::RUNNING,
    PAUSED,
    QUEUES,
    RATES,
    ring::KEYS_FROM_TURN,
    ring::PLAIN,
    ring::KEYS_TO_TURN,
    TAKE,
    WRITE_TURNS,
    WRITE_RATES,
];

/// What is read once for a claim.
pub(crate) struct Read {
    now: Timestamp,
    known: Arc<Known>,
    running: Vec<Row>,
    paused: Vec<TaskName>,
    turns: HashMap<QueueName, Turn>,
    /// Of all gates, or nothing when there are too many.
    rates: Option<HashMap<Gate, Timestamp>>,
    /// The circle of the first queue.
    first: FirstRead,
}

/// Locks and reads. A limit that is new may need a lock that was not taken: then it is taken, and everything read again.
pub(crate) async fn read(tx: &Tx<'_>, shared: &Shared, demand: &Demand) -> Result<Read, Fault> {
    let queues: Vec<&str> = demand.queues.iter().map(QueueName::as_str).collect();
    let of_queues: Values<'_> = &[&queues];
    let (locked, read) = tokio::join!(biased; tx.query(LOCK, of_queues), read_locked(tx, shared, demand, &queues));
    let across = locked?.iter().any(|row| row.get::<_, bool>(0));
    let read = read?;
    if across || !read.known.across_queues {
        return Ok(read);
    }
    tx.query(LOCK_ACROSS, &[]).await?;
    Box::pin(read_locked(tx, shared, demand, &queues)).await
}

async fn read_locked(tx: &Tx<'_>, shared: &Shared, demand: &Demand, queues: &[&str]) -> Result<Read, Fault> {
    let given = shared.given_now();
    let most = RATES_MAX as i64 + 1;
    let (the_time, of_queues, of_rates): (Values<'_>, Values<'_>, Values<'_>) =
        (&[&given], &[&queues], &[&given, &most]);
    let (now, known, running, paused, turns, rates, first) = tokio::join!(
        biased;
        tx.query(NOW, the_time),
        limits::read(tx, &shared.limits),
        tx.query(limits::RUNNING, &[]),
        tx.query(PAUSED, &[]),
        tx.query(QUEUES, of_queues),
        tx.query(RATES, of_rates),
        ring::read_first(tx, queues.first().copied().unwrap_or_default(), demand.max + 1),
    );
    let mut by_queue = HashMap::new();
    for row in &turns? {
        let key: Option<Key> = value::<Option<&str>>(row, 1)?.map(|key| parse("key", key)).transpose()?;
        let left = u32::try_from(value::<i64>(row, 2)?).unwrap_or(0);
        by_queue.insert(parse("queue name", value(row, 0)?)?, Turn { key, left });
    }
    let rates = rates?;
    Ok(Read {
        now: time_of(&now?)?,
        known: known?,
        running: running?,
        paused: paused?.iter().map(|row| parse("task name", value(row, 0)?)).collect::<Result<_, Fault>>()?,
        turns: by_queue,
        rates: if rates.len() <= RATES_MAX { Some(rates_of(&rates)?) } else { None },
        first: first?,
    })
}

fn rates_of(rows: &[Row]) -> Result<HashMap<Gate, Timestamp>, Fault> {
    rows.iter().map(|row| Ok((parse("gate", value(row, 0)?)?, Timestamp::from_micros(value(row, 1)?)))).collect()
}

/// What a claim may take, and what the next one should know.
#[derive(Debug)]
pub(crate) struct Decided {
    /// Tasks that are locked and may go.
    picked: Vec<i64>,
    claimed: Vec<Claimed>,
    now: Timestamp,
    turns: Vec<(QueueName, Turn)>,
    rates: Vec<(String, Timestamp)>,
    /// A gate that was shut opens by itself after this time.
    pub(crate) opens_after: Option<Duration>,
    /// Neither gates nor keys were there to look at: the next claim need not come here.
    pub(crate) alone: bool,
    /// How near the gates are to shutting.
    pub(crate) gates: Gates,
}

/// Decides on up to `demand.max` tasks that their gates let pass, the keys of each queue in turns.
pub(crate) async fn decide(tx: &mut Tx<'_>, mut read: Read, demand: &Demand) -> Result<Decided, Fault> {
    tx.now = read.now;
    let known = Arc::clone(&read.known);
    let left_out = demand.except.iter().cloned().chain(read.paused).collect();
    let mut taking = Taking {
        admission: Admission::new(&known.rules, tx.now),
        known: &known,
        running: limits::running(&known.rules, &read.running)?,
        ask_for_rates: known.any_rate && read.rates.is_none(),
        next: read.rates.unwrap_or_default(),
        left_out: &left_out,
        picked: Vec::new(),
        claimed: Vec::new(),
        started: 0,
        far: true,
        turns: Vec::new(),
        demand,
    };
    // A queue that is not reached may have keys: a claim that takes it for one without is refused.
    let (mut keyed, mut reached_keys) = (false, false);
    let mut first = Some(read.first);
    for queue in &demand.queues {
        // Only that of the first queue has been read.
        let begun = first.take();
        let Some(turn) = read.turns.remove(queue) else { continue };
        if taking.started == demand.max {
            keyed = true;
        } else {
            let ring = Ring::new(queue, turn.key.as_ref(), begun);
            reached_keys |= taking.take_from(tx, queue, turn, ring).await?;
        }
    }
    keyed |= reached_keys;
    let opens_after = taking.admission.opens_at().map(|opens_at| opens_at.since(tx.now));
    let rates = taking.admission.counted().map(|(gate, next)| (gate.to_string(), next)).collect();
    let gates = taking.gates_are(reached_keys);
    let Taking { picked, claimed, turns, .. } = taking;
    let alone = !keyed && !known.concerns(&demand.queues, tx.now);
    Ok(Decided { picked, claimed, now: tx.now, turns, rates, opens_after, alone, gates })
}

impl Decided {
    /// Takes what was decided on, and writes what is counted.
    pub(crate) async fn write(&mut self, tx: &Tx<'_>, demand: &Demand) -> Result<Vec<Claimed>, Fault> {
        let (taken, turns, rates) = tokio::join!(
            biased;
            hand_out(tx, &self.picked, self.now, demand),
            write_turns(tx, &self.turns),
            write_rates(tx, &mut self.rates),
        );
        let mut claimed = std::mem::take(&mut self.claimed);
        claimed.extend(taken?);
        turns.and(rates).map(|()| claimed)
    }
}

/// Leases tasks that were let pass.
async fn hand_out(tx: &Tx<'_>, picked: &[i64], now: Timestamp, demand: &Demand) -> Result<Vec<Claimed>, Fault> {
    if picked.is_empty() {
        return Ok(Vec::new());
    }
    let (now, lease, node) = (now.as_micros(), micros(demand.lease), demand.node.as_str());
    let mut taken: HashMap<i64, Claimed> = HashMap::with_capacity(picked.len());
    for row in tx.query(TAKE, &[&now, &lease, &node, &picked]).await? {
        let claimed = claim::claimed(&row)?;
        taken.insert(claimed.receipt.row, claimed);
    }
    Ok(picked.iter().filter_map(|seq| taken.remove(seq)).collect())
}

async fn write_turns(tx: &Tx<'_>, turns: &[(QueueName, Turn)]) -> Result<(), Fault> {
    if turns.is_empty() {
        return Ok(());
    }
    let queues: Vec<&str> = turns.iter().map(|(queue, _)| queue.as_str()).collect();
    let keys: Vec<Option<&str>> = turns.iter().map(|(_, turn)| turn.key.as_ref().map(Key::as_str)).collect();
    let rests: Vec<i64> = turns.iter().map(|(_, turn)| i64::from(turn.left)).collect();
    tx.execute(WRITE_TURNS, &[&queues, &keys, &rests]).await?;
    Ok(())
}

async fn write_rates(tx: &Tx<'_>, counted: &mut [(String, Timestamp)]) -> Result<(), Fault> {
    if counted.is_empty() {
        return Ok(());
    }
    // Everybody writes gates in one order.
    counted.sort();
    let gates: Vec<&str> = counted.iter().map(|(gate, _)| gate.as_str()).collect();
    let times: Vec<i64> = counted.iter().map(|(_, next)| next.as_micros()).collect();
    tx.execute(WRITE_RATES, &[&gates, &times]).await?;
    Ok(())
}

const PAUSED: &str = "SELECT name FROM windlass.paused_name";
const WRITE_TURNS: &str = "\
INSERT INTO windlass.turn (queue, key, rest) SELECT * FROM unnest($1::text[], $2::text[], $3::bigint[]) \
ON CONFLICT (queue) DO UPDATE SET key = excluded.key, rest = excluded.rest";
const WRITE_RATES: &str = "\
INSERT INTO windlass.gate (gate, next) SELECT * FROM unnest($1::text[], $2::bigint[]) \
ON CONFLICT (gate) DO UPDATE SET next = excluded.next";

/// One claim on its way.
struct Taking<'k> {
    admission: Admission<'k>,
    known: &'k Known,
    running: HashMap<Gate, u64>,
    /// When the next start is due at the gates that were asked for.
    next: HashMap<Gate, Timestamp>,
    /// Names that are left to others, or paused.
    left_out: &'k BTreeSet<TaskName>,
    /// Whether those of further keys have to be asked for.
    ask_for_rates: bool,
    /// What the last round let pass; it is taken with what comes next.
    picked: Vec<i64>,
    claimed: Vec<Claimed>,
    /// How many were let pass in all.
    started: usize,
    /// Every key that was served has room for many more.
    far: bool,
    turns: Vec<(QueueName, Turn)>,
    demand: &'k Demand,
}

/// Something to be asked of the admission: its state is known by now.
macro_rules! ask {
    ($taking:ident, $asked:ident($($argument:expr),*)) => {{
        let Taking { admission, running, next, .. } = $taking;
        let load = |gate: &Gate| -> Result<GateState, Infallible> {
            let next = next.get(gate).copied().unwrap_or(Timestamp::MIN);
            Ok(GateState { next, running: running.get(gate).copied().unwrap_or(0) })
        };
        let Ok(answer) = admission.$asked($($argument,)* load);
        answer
    }};
}

impl Taking<'_> {
    /// How near the gates are to shutting for claims like this one. Keys count as far only while there was enough to take.
    fn gates_are(&mut self, keyed: bool) -> Gates {
        if !self.left_out.is_empty() || self.admission.opens_at().is_some() {
            return Gates::Near;
        }
        if keyed {
            let plenty = self.started == self.demand.max && self.demand.queues.len() == 1;
            return if plenty && self.far && !self.known.weighted { Gates::KeysFar } else { Gates::Near };
        }
        let wanted = wide::FAR * self.demand.max as u64;
        let far = self.demand.queues.iter().all(|queue| ask!(self, room_of_queue(queue)) >= wanted);
        if far && self.admission.opens_at().is_none() { Gates::Far } else { Gates::Near }
    }

    /// Takes from one queue; answers whether it has keys.
    async fn take_from(
        &mut self,
        tx: &mut Tx<'_>,
        queue: &QueueName,
        mut turn: Turn,
        mut ring: Ring,
    ) -> Result<bool, Fault> {
        let before = self.started;
        self.load_rates(tx, queue, &ring.keys).await?;
        while self.started < self.demand.max {
            // Dealing more places than the gate of the queue has would let turns pass in which nothing is taken.
            let of_queue = ask!(self, room_of_queue(queue));
            let room = (self.demand.max - self.started).min(usize::try_from(of_queue).unwrap_or(usize::MAX));
            if room == 0 {
                break;
            }
            let chosen = self.choose(tx, &mut ring, queue, room + 1).await?;
            let Some(first) = chosen.first() else { break };
            let rules = &self.known.rules;
            let left = if turn.key == ring.keys[*first] { turn.left } else { rules.weight(ring.keys[*first].as_ref()) };
            let weights: Vec<u32> = chosen.iter().map(|place| rules.weight(ring.keys[*place].as_ref())).collect();
            let (shares, (next, left)) = deal(&weights, left, room);
            turn = Turn { key: ring.keys[chosen[next]].clone(), left };
            ring.start = chosen[next];
            let dealt: Vec<(usize, usize)> = chosen.into_iter().zip(shares).filter(|(_, share)| *share > 0).collect();
            self.take_dealt(tx, &mut ring, queue, &dealt).await?;
        }
        if self.started > before && ring.has_keys() {
            self.turns.push((queue.clone(), turn));
        }
        Ok(ring.has_keys())
    }

    /// The keys that get places now, beginning with whose turn it is: up to `wanted`.
    async fn choose(
        &mut self,
        tx: &Tx<'_>,
        ring: &mut Ring,
        queue: &QueueName,
        wanted: usize,
    ) -> Result<Vec<usize>, Fault> {
        loop {
            let mut chosen = Vec::with_capacity(wanted.min(ring.keys.len()));
            for place in ring.order() {
                if ring.aside.contains(&place) {
                    continue;
                }
                let key = ring.keys[place].as_ref();
                if ask!(self, is_shut(queue, key)) {
                    ring.aside.insert(place);
                    continue;
                }
                chosen.push(place);
                if chosen.len() == wanted {
                    return Ok(chosen);
                }
            }
            if ring.is_complete() || ring.keys.len() >= KEYS_PER_CLAIM {
                return Ok(chosen);
            }
            let fresh = ring.fetch(tx, wanted).await?;
            self.load_rates(tx, queue, &ring.keys[fresh..]).await?;
        }
    }

    /// Learns when the next starts are due at all gates of these keys.
    async fn load_rates(&mut self, tx: &Tx<'_>, queue: &QueueName, keys: &[Option<Key>]) -> Result<(), Fault> {
        if !self.ask_for_rates || keys.is_empty() {
            return Ok(());
        }
        // Gates of the queue and the key come with any name.
        let any_name = TaskName::known("any");
        let mut gates: HashSet<Gate> = HashSet::new();
        for key in keys {
            for name in self.known.names.iter().chain([&any_name]) {
                gates.extend(self.known.rules.gates_of(queue, name, key.as_ref()));
            }
        }
        let asked: Vec<String> = gates.iter().map(ToString::to_string).collect();
        let rows = tx
            .query(
                "SELECT g.gate, g.next FROM unnest($1::text[]) AS r(gate) JOIN windlass.gate g ON g.gate = r.gate \
                 WHERE g.next > $2",
                &[&asked, &tx.now.as_micros()],
            )
            .await?;
        self.next.extend(rates_of(&rows)?);
        Ok(())
    }

    /// Takes what these keys were dealt. A key that has less is set aside.
    async fn take_dealt(
        &mut self,
        tx: &mut Tx<'_>,
        ring: &mut Ring,
        queue: &QueueName,
        dealt: &[(usize, usize)],
    ) -> Result<(), Fault> {
        // What an earlier round let pass must not be found again.
        let earlier = std::mem::take(&mut self.picked);
        self.claimed.extend(hand_out(tx, &earlier, tx.now, self.demand).await?);
        let rows = self.first(tx, ring, queue, dealt).await?;
        let mut of_key: HashMap<Option<&str>, Vec<&Row>> = HashMap::new();
        for row in &rows {
            of_key.entry(value(row, 0)?).or_default().push(row);
        }
        let mut late: Vec<i64> = Vec::new();
        // Far is said only while no gate is about names.
        let any_name = TaskName::known("any");
        for (place, share) in dealt {
            let key = ring.keys[*place].as_ref();
            let found = of_key.remove(&key.map(Key::as_str)).unwrap_or_default();
            for row in &found {
                let (seq, name): (i64, TaskName) = (value(row, 1)?, parse("task name", value(row, 2)?)?);
                if value::<Option<i64>>(row, 3)?.is_some_and(|expires| expires <= tx.now.as_micros()) {
                    late.push(seq);
                } else if ask!(self, room(queue, &name, key)) > 0 {
                    self.admission.start(queue, &name, key, 1);
                    self.picked.push(seq);
                    self.started += 1;
                }
            }
            if found.len() < *share {
                ring.aside.insert(*place);
            }
            self.far &= ask!(self, room(queue, &any_name, key)) >= wide::FAR * *share as u64;
        }
        if !late.is_empty() {
            tick::expire(tx, &late).await?;
        }
        Ok(())
    }

    /// Locks the first tasks of keys, as many of each as it was dealt, without names that may not start.
    async fn first(
        &mut self,
        tx: &Tx<'_>,
        ring: &Ring,
        queue: &QueueName,
        dealt: &[(usize, usize)],
    ) -> Result<Vec<Row>, Fault> {
        let (known, left_out) = (self.known, self.left_out);
        let queue_name = queue.as_str();
        let everywhere: Vec<&str> = left_out.iter().map(TaskName::as_str).collect();
        let (mut keys, mut shares): (Vec<&str>, Vec<i64>) = (Vec::new(), Vec::new());
        let (mut shut_keys, mut shut_names): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
        let mut rows = Vec::new();
        for (place, share) in dealt {
            let key = ring.keys[*place].as_ref();
            let shut: Vec<&str> = known
                .names
                .iter()
                .filter(|name| ask!(self, room(queue, name, key)) == 0)
                .map(TaskName::as_str)
                .collect();
            let Some(key) = key else {
                let names: Vec<&str> = everywhere.iter().copied().chain(shut).collect();
                let share = *share as i64;
                rows = if names.is_empty() {
                    tx.query(FIRST_PLAIN, &[&queue_name, &share]).await?
                } else {
                    tx.query(FIRST_PLAIN_BY_NAME, &[&queue_name, &share, &names]).await?
                };
                continue;
            };
            keys.push(key.as_str());
            shares.push(*share as i64);
            shut_keys.extend(std::iter::repeat_n(key.as_str(), shut.len()));
            shut_names.extend(shut);
        }
        if keys.is_empty() {
            return Ok(rows);
        }
        rows.extend(if everywhere.is_empty() && shut_keys.is_empty() {
            tx.query(FIRST_KEYED, &[&queue_name, &keys, &shares]).await?
        } else {
            tx.query(FIRST_KEYED_BY_NAME, &[&queue_name, &keys, &shares, &everywhere, &shut_keys, &shut_names]).await?
        });
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::tests::{Backlog, most_rows};

    #[tokio::test]
    async fn a_claim_of_keys_reads_no_more_of_a_backlog_than_it_takes() {
        for (keys, analysed) in
            [("'key ' || n % 3", false), ("CASE WHEN n % 1000 = 0 THEN 'key 2' ELSE 'key 0' END", true)]
        {
            let backlog = Backlog::new(keys).await;
            if analysed {
                backlog.analyse().await;
            }
            claims_of_keys_read_little(&backlog).await;
            backlog.drop().await;
        }
    }

    async fn claims_of_keys_read_little(backlog: &Backlog) {
        let keys = "ARRAY['key 0', 'key 2'], ARRAY[50, 50]";
        let shut = "ARRAY['other'], ARRAY['key 0', 'key 2'], ARRAY['shut', 'shut']";
        for (statement, types, values) in [
            (FIRST_KEYED, "text, text[], bigint[]", format!("'default', {keys}")),
            (
                FIRST_KEYED_BY_NAME,
                "text, text[], bigint[], text[], text[], text[]",
                format!("'default', {keys}, {shut}"),
            ),
            (limits::RUNNING, "", String::new()),
            (ring::KEYS_FROM_TURN, "text, bigint", "'default', 100".to_owned()),
            (ring::KEYS_TO_TURN, "text, bigint", "'default', 100".to_owned()),
            (ring::PLAIN, "text", "'default'".to_owned()),
        ] {
            let plan = backlog.plan(statement, types, &values).await;
            assert!(!plan.contains("Seq Scan on live"), "{plan}");
            assert!(most_rows(&plan) <= 100, "{plan}");
        }
    }

    #[tokio::test]
    async fn a_claim_past_gates_reads_no_more_of_a_backlog_than_it_takes() {
        let backlog = Backlog::new("NULL").await;
        for (statement, types, values) in [
            (FIRST_PLAIN, "text, bigint", "'default', 100"),
            (FIRST_PLAIN_BY_NAME, "text, bigint, text[]", "'default', 100, ARRAY['shut']"),
        ] {
            let plan = backlog.plan(statement, types, values).await;
            assert!(!plan.contains("Seq Scan on live"), "{plan}");
            assert!(most_rows(&plan) <= 100, "{plan}");
        }
        backlog.drop().await;
    }
}
