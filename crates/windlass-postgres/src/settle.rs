//! Settle: what became of a claim, with what follows from it, in one step.
//!
//! 1. verdicts that nothing follows go to a lane: one statement ends, one sends back, whatever their number
//! 2. the others have a transaction: end, then apply what follows
//! 3. those that somebody asked to cancel are not sent back: they end too

use std::collections::{HashMap, HashSet};

use windlass_core::backend::{Receipt, Settled, Settlement};
use windlass_core::flow::{self, Follow};
use windlass_core::state::Spent;
use windlass_core::{DeadReason, Envelope, Failure, QueueName, State, TaskId, Verdict};

use crate::connection::Connection;
use crate::errors::Fault;
use crate::flow::apply;
use crate::lanes::{SettledRows, Settling};
use crate::rows::{self, column, micros, priority_of, reason_code, state_code, storable, to_json, value};
use crate::tx::Tx;

/// Ends tasks: `$1` the given time, then lists. Only the claim with this fence, in this state, is ended.
pub(crate) const END: &str = "\
WITH t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now), \
w AS MATERIALIZED (SELECT coalesce(bool_or(ends), false) AS ends, count(*) > 0 AS somebody FROM windlass.waiting WHERE until > windlass.micros()), \
m AS MATERIALIZED (SELECT EXISTS (SELECT 1 FROM windlass.rule WHERE concurrent) AS frees), \
g AS (DELETE FROM windlass.live l USING unnest($2::bigint[], $3::text[], $4::bigint[], $5::smallint[], $6::smallint[], $7::integer[], \
$8::text[], $9::text[], $10::smallint[], $11::text[]) AS r(seq, id, fence, was, becomes, crashes, result, skipped, reason, failure) \
WHERE l.seq = r.seq AND l.id = r.id AND l.fence = r.fence AND l.state = r.was \
RETURNING l.seq, l.id, l.queue, l.name, l.fence, l.priority, l.enqueued_at, l.started_at, l.keep, l.attempt, l.has_flow, l.node, \
l.guard, l.key, l.workflow, l.progress, l.history, l.memo, l.body, l.failure AS last_failure, r.was, r.becomes, r.crashes, r.result, r.skipped, \
r.reason, r.failure), \
f AS (INSERT INTO windlass.finished (seq, finished_at, fence, enqueued_at, started_at, keep, attempt, crashes, state, priority, \
has_flow, id, queue, name, node, key, workflow, skipped, progress, failure, history, memo, result, body) \
SELECT g.seq, t.now, g.fence, g.enqueued_at, g.started_at, g.keep, g.attempt, g.crashes, g.becomes, g.priority, g.has_flow, g.id, \
g.queue, g.name, g.node, g.key, g.workflow, g.skipped, g.progress, g.last_failure, g.history, g.memo, \
CASE WHEN g.keep IS NULL THEN g.result END, g.body \
FROM g, t WHERE g.becomes <> 5 AND NOT (g.becomes = 4 AND coalesce(g.keep, 0) > 0)), \
k AS (INSERT INTO windlass.kept (seq, finished_at, forget_at, fence, enqueued_at, started_at, keep, attempt, crashes, state, priority, \
reason, has_flow, id, queue, name, node, key, workflow, skipped, progress, failure, history, memo, result, body) \
SELECT g.seq, t.now, CASE g.becomes WHEN 4 THEN t.now + g.keep END, g.fence, g.enqueued_at, g.started_at, g.keep, g.attempt, g.crashes, \
g.becomes, g.priority, g.reason, g.has_flow, g.id, g.queue, g.name, g.node, g.key, g.workflow, g.skipped, g.progress, \
coalesce(g.failure, g.last_failure), \
CASE WHEN g.becomes = 5 AND g.was = 2 THEN (coalesce(g.history, '{}') || \
json_build_array(g.attempt, g.node, g.started_at, t.now, g.failure::json)::text)[greatest(1, coalesce(cardinality(g.history), 0) - 18):] \
ELSE g.history END, g.memo, g.result, g.body \
FROM g, t WHERE g.becomes = 5 OR (g.becomes = 4 AND coalesce(g.keep, 0) > 0)), \
x AS (DELETE FROM windlass.taken t USING g WHERE g.guard IS NOT NULL AND t.key = g.guard AND t.id = g.id), \
c AS (INSERT INTO windlass.delta (queue, scheduled, ready, running, parked, succeeded, dead, cancelled, expired, finished) \
SELECT queue, -count(*) FILTER (WHERE was = 0), -count(*) FILTER (WHERE was = 1), -count(*) FILTER (WHERE was = 2), \
-count(*) FILTER (WHERE was = 3), count(*) FILTER (WHERE becomes = 4), count(*) FILTER (WHERE becomes = 5), \
count(*) FILTER (WHERE becomes = 6), count(*) FILTER (WHERE becomes = 7), \
count(*) FILTER (WHERE becomes <> 5 AND NOT (becomes = 4 AND coalesce(keep, 0) > 0)) FROM g GROUP BY queue) \
SELECT g.seq, g.fence, m.frees AND g.was = 2, CASE WHEN w.ends THEN pg_notify('@channel', 'e ' || g.id)::text END, \
CASE WHEN m.frees AND g.was = 2 AND w.somebody THEN pg_notify('@channel', 'a')::text END FROM g, w, m";

/// Sends tasks back: `$1` the given time, then lists. One that is to be cancelled is named and left alone; one that would wait
/// for a signal is ready when its memo has grown beyond what was seen.
pub(crate) const SEND_BACK: &str = "\
WITH t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now), \
w AS MATERIALIZED (SELECT EXISTS (SELECT 1 FROM windlass.waiting WHERE until > windlass.micros()) AS somebody), \
r AS MATERIALIZED (SELECT * FROM unnest($2::bigint[], $3::text[], $4::bigint[], $5::smallint[], $6::bigint[], $7::integer[], \
$8::integer[], $9::text[], $10::text[], $11::integer[]) \
AS r(seq, id, fence, becomes, after, unspent, crashes, failure, waits_for, seen)), \
m AS MATERIALIZED (SELECT EXISTS (SELECT 1 FROM windlass.rule WHERE concurrent) AS frees), \
u AS (UPDATE windlass.live l SET (state, at, rank, waits_for) = (SELECT d.state, \
CASE d.state WHEN 0 THEN t.now + d.after WHEN 3 THEN t.now ELSE 0 END, \
CASE WHEN d.after IS NULL THEN l.rank ELSE t.now + d.after - l.priority * 300000000::bigint END, CASE d.state WHEN 0 THEN r.waits_for END \
FROM (SELECT r.seen IS NOT NULL AND (r.after = 0 OR octet_length(coalesce(l.memo, '')) > r.seen) AS woken) s CROSS JOIN LATERAL \
(SELECT CASE WHEN s.woken THEN 1 ELSE r.becomes END::smallint AS state, CASE WHEN s.woken THEN 0 ELSE r.after END AS after) d), \
attempt = l.attempt - r.unspent, crashes = r.crashes, failure = coalesce(r.failure, l.failure), \
history = CASE WHEN r.failure IS NULL THEN l.history ELSE (coalesce(l.history, '{}') || \
json_build_array(l.attempt, l.node, l.started_at, t.now, r.failure::json)::text)[greatest(1, coalesce(cardinality(l.history), 0) - 18):] END \
FROM t, r WHERE l.seq = r.seq AND l.id = r.id AND l.fence = r.fence AND l.state = 2 AND NOT l.cancel \
RETURNING l.seq, l.fence, l.queue, l.state), \
c AS (INSERT INTO windlass.delta (queue, running, scheduled, ready, parked) SELECT queue, -count(*), count(*) FILTER (WHERE state = 0), \
count(*) FILTER (WHERE state = 1), count(*) FILTER (WHERE state = 3) FROM u GROUP BY queue) \
SELECT u.seq, u.fence, u.queue, u.state, m.frees, CASE WHEN w.somebody AND u.state <> 3 THEN \
pg_notify('@channel', CASE u.state WHEN 1 THEN 'q ' || u.queue ELSE 'd' END)::text END, \
CASE WHEN w.somebody AND m.frees THEN pg_notify('@channel', 'a')::text END FROM u, w, m \
UNION ALL SELECT l.seq, l.fence, NULL, NULL, false, NULL, NULL FROM windlass.live l, r \
WHERE l.seq = r.seq AND l.id = r.id AND l.fence = r.fence AND l.state = 2 AND l.cancel";

/// The end of a task.
#[derive(Debug)]
pub(crate) struct End {
    pub(crate) seq: i64,
    pub(crate) id: TaskId,
    id_text: String,
    pub(crate) fence: i64,
    was: i16,
    becomes: i16,
    crashes: i32,
    result: Option<String>,
    skipped: Option<String>,
    reason: Option<i16>,
    failure: Option<String>,
}

impl End {
    /// Of a task in this state. `crashes`: workers that were lost with it, in a row.
    pub(crate) fn of(receipt: &Receipt, was: State, crashes: i32, verdict: &Verdict) -> Self {
        let state = verdict.state();
        assert!(state.is_final(), "only a final verdict ends a task");
        let (mut result, mut skip, mut why, mut last) = (None, None, None, None);
        match verdict {
            Verdict::Succeeded { result: value, skipped } => {
                result = Some(value.as_str().to_owned());
                skip = skipped.as_deref().map(storable);
            }
            Verdict::Dead { reason, failure } => {
                why = Some(reason_code(*reason));
                last = Some(to_json(failure));
            }
            Verdict::Cancelled
            | Verdict::Expired
            | Verdict::Again { .. }
            | Verdict::Awaits { .. }
            | Verdict::Released
            | Verdict::Parked => {}
        }
        Self {
            seq: receipt.row,
            id: receipt.id.clone(),
            id_text: receipt.id.to_string(),
            fence: receipt.fence,
            was: state_code(was),
            becomes: state_code(state),
            crashes,
            result,
            skipped: skip,
            reason: why,
            failure: last,
        }
    }
}

/// The way back of a running task.
#[derive(Debug)]
pub(crate) struct Back {
    pub(crate) seq: i64,
    id_text: String,
    pub(crate) fence: i64,
    becomes: i16,
    /// Without it, the task gets its old place.
    after: Option<i64>,
    unspent: i32,
    crashes: i32,
    failure: Option<String>,
    /// The signal that it waits for, and how much of its memo its holder has seen.
    waits_for: Option<(String, i32)>,
}

impl Back {
    /// By the word of its holder, who is not lost.
    fn of(receipt: &Receipt, verdict: &Verdict) -> Self {
        let (after, failure, waits_for) = match verdict {
            Verdict::Again { after, failure, .. } => (Some(micros(*after)), failure.as_ref().map(to_json), None),
            Verdict::Awaits { signal, seen, at_most } => {
                let seen = i32::try_from(*seen).unwrap_or(i32::MAX);
                (Some(micros(*at_most)), None, Some((signal.to_string(), seen)))
            }
            Verdict::Released | Verdict::Parked => (None, None, None),
            Verdict::Succeeded { .. } | Verdict::Dead { .. } | Verdict::Cancelled | Verdict::Expired => {
                unreachable!("such a verdict ends the task")
            }
        };
        Self {
            seq: receipt.row,
            id_text: receipt.id.to_string(),
            fence: receipt.fence,
            becomes: state_code(verdict.state()),
            after,
            unspent: i32::from(verdict.spent() == Spent::No),
            crashes: 0,
            failure,
            waits_for,
        }
    }

    /// Because its holder is lost; the attempt stays counted.
    pub(crate) fn rescued(receipt: &Receipt, crashes: u32, failure: &Failure) -> Self {
        Self {
            seq: receipt.row,
            id_text: receipt.id.to_string(),
            fence: receipt.fence,
            becomes: state_code(State::Ready),
            after: None,
            unspent: 0,
            crashes: crashes as i32,
            failure: Some(to_json(failure)),
            waits_for: None,
        }
    }
}

/// What [`send_back`] did, by row and fence.
#[derive(Debug, Default)]
pub(crate) struct Backs {
    pub(crate) applied: HashSet<(i64, i64)>,
    /// They are to be cancelled.
    pub(crate) marked: HashSet<(i64, i64)>,
    /// Where tasks became ready.
    pub(crate) queues: HashSet<QueueName>,
    pub(crate) scheduled: bool,
    /// Others may have waited for one that ran to stop.
    pub(crate) frees: bool,
}

/// What [`end`] did.
#[derive(Debug, Default)]
pub(crate) struct Ends {
    /// By row and fence.
    pub(crate) applied: HashSet<(i64, i64)>,
    /// Others may have waited for one that ran to end.
    pub(crate) frees: bool,
}

/// Ends tasks.
pub(crate) async fn end(connection: &Connection<'_>, now: Option<i64>, ends: &[&End]) -> Result<Ends, Fault> {
    let mut done = Ends::default();
    if ends.is_empty() {
        return Ok(done);
    }
    let rows = connection
        .query(
            END,
            &[
                &now,
                &column(ends, |end| end.seq),
                &column(ends, |end| end.id_text.as_str()),
                &column(ends, |end| end.fence),
                &column(ends, |end| end.was),
                &column(ends, |end| end.becomes),
                &column(ends, |end| end.crashes),
                &column(ends, |end| end.result.as_deref()),
                &column(ends, |end| end.skipped.as_deref()),
                &column(ends, |end| end.reason),
                &column(ends, |end| end.failure.as_deref()),
            ],
        )
        .await?;
    for row in &rows {
        done.applied.insert((value(row, 0)?, value(row, 1)?));
        done.frees |= value::<bool>(row, 2)?;
    }
    Ok(done)
}

/// Sends running tasks back.
pub(crate) async fn send_back(connection: &Connection<'_>, now: Option<i64>, backs: &[&Back]) -> Result<Backs, Fault> {
    let mut done = Backs::default();
    if backs.is_empty() {
        return Ok(done);
    }
    let rows = connection
        .query(
            SEND_BACK,
            &[
                &now,
                &column(backs, |back| back.seq),
                &column(backs, |back| back.id_text.as_str()),
                &column(backs, |back| back.fence),
                &column(backs, |back| back.becomes),
                &column(backs, |back| back.after),
                &column(backs, |back| back.unspent),
                &column(backs, |back| back.crashes),
                &column(backs, |back| back.failure.as_deref()),
                &column(backs, |back| back.waits_for.as_ref().map(|(signal, _)| signal.as_str())),
                &column(backs, |back| back.waits_for.as_ref().map(|(_, seen)| *seen)),
            ],
        )
        .await?;
    for row in rows {
        let key = (value(&row, 0)?, value(&row, 1)?);
        match value::<Option<i16>>(&row, 3)? {
            None => drop(done.marked.insert(key)),
            Some(state) => {
                done.applied.insert(key);
                if state == state_code(State::Ready) {
                    done.queues.insert(rows::queue_of(&row, 2)?);
                }
                done.scheduled |= state == state_code(State::Scheduled);
                done.frees |= value::<bool>(&row, 4)?;
            }
        }
    }
    Ok(done)
}

/// A batch of settles, sorted by what they need.
pub(crate) struct Sorted<'a> {
    /// What a lane does.
    pub(crate) plain: Settling,
    /// What needs a transaction, in the order of the batch.
    pub(crate) others: Vec<&'a Settled>,
}

/// Sorts a batch. A receipt that comes twice goes to the transaction, where one comes after the other.
pub(crate) fn sort(settled: &[Settled]) -> Sorted<'_> {
    let mut times: HashMap<(i64, i64), u32> = HashMap::with_capacity(settled.len());
    for one in settled {
        *times.entry((one.receipt.row, one.receipt.fence)).or_default() += 1;
    }
    let mut sorted = Sorted { plain: Settling::default(), others: Vec::new() };
    for one in settled {
        let once = times.get(&(one.receipt.row, one.receipt.fence)) == Some(&1);
        if !once || !one.follow.is_empty() {
            sorted.others.push(one);
        } else if one.verdict.state().is_final() {
            sorted.plain.ends.push(End::of(&one.receipt, State::Running, 0, &one.verdict));
        } else {
            sorted.plain.backs.push(Back::of(&one.receipt, &one.verdict));
        }
    }
    sorted
}

/// The answers in the order of the batch. `others` are those of [`Sorted::others`].
pub(crate) fn answers(settled: &[Settled], plain: &SettledRows, others: Vec<Settlement>) -> Vec<Settlement> {
    let sorted = sort(settled);
    let mut of_others = sorted.others.iter().map(|one| std::ptr::from_ref(*one)).zip(others);
    let mut next = of_others.next();
    settled
        .iter()
        .map(|one| {
            if let Some((place, settlement)) = next
                && std::ptr::eq(place, one)
            {
                next = of_others.next();
                return settlement;
            }
            if plain.applied.contains(&one.receipt.row) { Settlement::Applied } else { Settlement::Stale }
        })
        .collect()
}

/// Records verdicts in a transaction, with what follows from them.
pub(crate) async fn settle(tx: &mut Tx<'_>, settled: &[&Settled]) -> Result<Vec<Settlement>, Fault> {
    let mut settlements = vec![Settlement::Stale; settled.len()];
    // Row by row in one order, and of equal rows the first.
    let mut order: Vec<usize> = (0..settled.len()).collect();
    order.sort_by_key(|index| settled[*index].receipt.row);
    let mut seen = HashSet::new();
    let (mut ends, mut backs): (Vec<(usize, End)>, Vec<usize>) = (Vec::new(), Vec::new());
    for index in order {
        let one = settled[index];
        // What comes after the first with this receipt is stale, unless the first was so itself: then this one is as well.
        if !seen.insert((one.receipt.row, one.receipt.fence, one.receipt.id.clone())) {
            continue;
        }
        if one.verdict.state().is_final() {
            ends.push((index, End::of(&one.receipt, State::Running, 0, &one.verdict)));
        } else {
            backs.push(index);
        }
    }
    let ended = tx.end_tasks(&ends.iter().map(|(_, end)| end).collect::<Vec<_>>()).await?;
    let mut follows: Vec<&Follow> = Vec::new();
    for (index, end) in &ends {
        if ended.contains(&(end.seq, end.fence)) {
            settlements[*index] = Settlement::Applied;
            follows.push(&settled[*index].follow);
        }
    }
    for index in backs {
        let one = settled[index];
        let sent = tx.send_back(&[&Back::of(&one.receipt, &one.verdict)]).await?;
        let key = (one.receipt.row, one.receipt.fence);
        if sent.applied.contains(&key) || (sent.marked.contains(&key) && cancel_held(tx, one).await?) {
            settlements[index] = Settlement::Applied;
        }
    }
    apply(tx, follows.into_iter().cloned().collect()).await?;
    Ok(settlements)
}

/// A held task would run again, and somebody asked that it does not: the attempt is noted, then it ends.
async fn cancel_held(tx: &mut Tx<'_>, settled: &Settled) -> Result<bool, Fault> {
    let back = Back::of(&settled.receipt, &settled.verdict);
    let now = tx.now.as_micros();
    let noted = tx
        .execute(
            "UPDATE windlass.live l SET cancel = false, crashes = 0, attempt = l.attempt - $4, failure = coalesce($5::text, l.failure), \
             history = CASE WHEN $5::text IS NULL THEN l.history ELSE (coalesce(l.history, '{}') || \
             json_build_array(l.attempt, l.node, l.started_at, $6::bigint, $5::json)::text)\
             [greatest(1, coalesce(cardinality(l.history), 0) - 18):] END \
             WHERE l.seq = $1 AND l.id = $2 AND l.fence = $3 AND l.state = 2",
            &[&back.seq, &back.id_text, &back.fence, &back.unspent, &back.failure, &now],
        )
        .await?;
    if noted == 0 {
        return Ok(false);
    }
    let held = held(tx, &[back.seq]).await?;
    let ends = held.into_iter().map(|held| (held, Verdict::Cancelled)).collect();
    Ok(end_by_store(tx, ends).await? > 0)
}

/// What must be known of a task to end it without its holder's word.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) receipt: Receipt,
    pub(crate) state: State,
    pub(crate) cancel: bool,
    pub(crate) crashes: u32,
    pub(crate) name: String,
    /// The whole task, when something follows it.
    envelope: Option<Box<Envelope>>,
}

/// A task from the columns that [`held`] names, and the statements of [`crate::tick`].
pub(crate) fn held_of(row: &tokio_postgres::Row) -> Result<Held, Fault> {
    let id = rows::id_of(row, 1)?;
    let envelope = match value::<Option<&str>>(row, 9)? {
        // One that cannot be read is followed by nothing.
        Some(body) => Envelope::from_body(
            id.clone(),
            rows::parse("task name", value(row, 6)?)?,
            rows::queue_of(row, 7)?,
            priority_of(value(row, 8)?)?,
            body,
        )
        .ok()
        .map(Box::new),
        None => None,
    };
    Ok(Held {
        receipt: Receipt { id, fence: value(row, 2)?, row: value(row, 0)? },
        state: rows::state_of(value(row, 3)?)?,
        cancel: value(row, 4)?,
        crashes: u32::try_from(value::<i32>(row, 5)?).unwrap_or(0),
        name: value(row, 6)?,
        envelope,
    })
}

/// Locks tasks that have not ended, by their places.
pub(crate) async fn held(tx: &mut Tx<'_>, seqs: &[i64]) -> Result<Vec<Held>, Fault> {
    if seqs.is_empty() {
        return Ok(Vec::new());
    }
    let rows = tx
        .query(
            "SELECT l.seq, l.id, l.fence, l.state, l.cancel, l.crashes, l.name, l.queue, l.priority, CASE WHEN l.has_flow THEN l.body END \
             FROM windlass.live l WHERE l.seq = ANY($1) ORDER BY l.seq FOR UPDATE OF l",
            &[&seqs],
        )
        .await?;
    rows.iter().map(held_of).collect()
}

/// Ends locked tasks that nobody settles: what follows is computed here. Answers how many ended.
pub(crate) async fn end_by_store(tx: &mut Tx<'_>, ends: Vec<(Held, Verdict)>) -> Result<u64, Fault> {
    if ends.is_empty() {
        return Ok(0);
    }
    let rows: Vec<End> =
        ends.iter().map(|(held, verdict)| End::of(&held.receipt, held.state, held.crashes as i32, verdict)).collect();
    let ended = tx.end_tasks(&rows.iter().collect::<Vec<_>>()).await?;
    let follows = ends
        .iter()
        .filter(|(held, _)| ended.contains(&(held.receipt.row, held.receipt.fence)))
        .filter_map(|(held, verdict)| held.envelope.as_ref().map(|envelope| flow::follow(envelope, verdict)))
        .collect();
    apply(tx, follows).await?;
    Ok(ended.len() as u64)
}

/// Makes a task that was claimed but cannot be read a dead letter: it would be claimed again and again.
pub(crate) fn burial(receipt: &Receipt, detail: &str) -> Settled {
    let failure = Failure::new("damaged", detail);
    Settled {
        receipt: receipt.clone(),
        verdict: Verdict::Dead { reason: DeadReason::Malformed, failure },
        follow: Follow::default(),
    }
}
