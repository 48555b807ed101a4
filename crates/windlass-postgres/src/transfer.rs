//! Moving everything to another store, and from one: a parcel costs a few statements, whatever is in it.
//!
//! What is imported is inserted among the tasks that wait, and what has ended is moved on from there, as a settle does it:
//! so a push of the same id at the same time is known, on whichever side of the commit.

use std::collections::{BTreeMap, HashMap};

use windlass_core::state::rank;
use windlass_core::transfer::{PARCEL_GROUPS_MAX, PARCEL_TASKS_MAX, Parcel, Parcelled, ParcelledGroup};
use windlass_core::view::Record;
use windlass_core::{Due, Failure, GroupId, Json, Key, NodeId, State, TaskId, Timestamp};

use crate::errors::Fault;
use crate::flow::policy_of;
use crate::push::NewTask;
use crate::rows::{
    self, FINISHED_RECORD, KEPT_RECORD, LIVE_RECORD, column, from_json, parse, queue_of, ready_at, reason_code, record,
    state_code, state_of, storable, stored_history, to_json, value,
};
use crate::tx::Tx;

/// Answers how many stores were closed. When it is committed nothing is being claimed or fired any more: both look into
/// the table `meta`, and whoever has looked already is waited for.
pub(crate) async fn close(tx: &mut Tx<'_>) -> Result<u64, Fault> {
    tx.execute("LOCK TABLE windlass.meta IN ACCESS EXCLUSIVE MODE", &[]).await?;
    tx.execute("INSERT INTO windlass.meta VALUES ('closed', 1) ON CONFLICT (key) DO NOTHING", &[]).await
}

/// Answers how many stores were opened.
pub(crate) async fn open(tx: &mut Tx<'_>) -> Result<u64, Fault> {
    tx.effects.all = true;
    tx.execute("DELETE FROM windlass.meta WHERE key = 'closed'", &[]).await
}

pub(crate) async fn export(tx: &Tx<'_>) -> Result<Parcel, Fault> {
    let groups = open_groups(tx).await?;
    if !groups.is_empty() {
        return Ok(Parcel { groups, tasks: Vec::new() });
    }
    let oldest = format!(
        "SELECT * FROM (({LIVE_RECORD} WHERE t.state <> 2 ORDER BY t.seq LIMIT $1) \
         UNION ALL ({FINISHED_RECORD} ORDER BY t.seq LIMIT $1) \
         UNION ALL ({KEPT_RECORD} ORDER BY t.seq LIMIT $1)) r ORDER BY r.seq LIMIT $1"
    );
    let rows = tx.connection().query_once(&oldest, &[&(PARCEL_TASKS_MAX as i64)]).await?;
    let tasks = rows.iter().map(|row| {
        let (_, record) = record(row)?;
        // What has ended is in no line any more.
        let rank: Option<i64> = value(row, 20)?;
        let ready_at = rank.map_or(record.enqueued_at, |rank| ready_at(rank, record.envelope.priority));
        Ok(Parcelled { record, ready_at })
    });
    Ok(Parcel { groups, tasks: tasks.collect::<Result<_, Fault>>()? })
}

/// The place of a member, and what it ended with.
type Arrived = (u32, Result<Json, Failure>);

async fn open_groups(tx: &Tx<'_>) -> Result<Vec<ParcelledGroup>, Fault> {
    let open = tx
        .query(
            "SELECT number, id, size, policy, after, broken FROM windlass.groups WHERE NOT completed ORDER BY number LIMIT $1",
            &[&(PARCEL_GROUPS_MAX as i64)],
        )
        .await?;
    if open.is_empty() {
        return Ok(Vec::new());
    }
    let numbers: Vec<i64> = open.iter().map(|row| value(row, 0)).collect::<Result<_, _>>()?;
    let rows = tx
        .query(
            "SELECT number, place, succeeded, outcome FROM windlass.arrival WHERE number = ANY($1) ORDER BY number, place",
            &[&numbers],
        )
        .await?;
    let mut arrived: HashMap<i64, Vec<Arrived>> = HashMap::new();
    for row in &rows {
        let outcome: &str = value(row, 3)?;
        let outcome = if value(row, 2)? {
            Ok(Json::parse(outcome).map_err(|error| Fault::damaged("result", error))?)
        } else {
            Err(from_json("failure", outcome)?)
        };
        let place = u32::try_from(value::<i32>(row, 1)?).map_err(|error| Fault::damaged("arrival", error))?;
        arrived.entry(value(row, 0)?).or_default().push((place, outcome));
    }
    open.iter()
        .zip(numbers)
        .map(|(row, number)| {
            let group = windlass_core::flow::NewGroup {
                id: parse("group id", value(row, 1)?)?,
                size: u32::try_from(value::<i32>(row, 2)?).map_err(|error| Fault::damaged("group", error))?,
                policy: policy_of(value(row, 3)?)?,
                after: from_json("group", value(row, 4)?)?,
            };
            Ok(ParcelledGroup { group, arrived: arrived.remove(&number).unwrap_or_default(), failed: value(row, 5)? })
        })
        .collect()
}

/// Answers how many tasks and groups are new.
pub(crate) async fn import(tx: &mut Tx<'_>, parcel: &Parcel) -> Result<u64, Fault> {
    let groups = import_groups(tx, &parcel.groups).await?;
    let tasks = parcel.tasks.iter().map(|task| Arriving::of(task, tx.now)).collect();
    Ok(groups + import_tasks(tx, tasks).await?)
}

async fn import_groups(tx: &Tx<'_>, groups: &[ParcelledGroup]) -> Result<u64, Fault> {
    if groups.is_empty() {
        return Ok(0);
    }
    // Everybody creates groups in one order.
    let groups: BTreeMap<String, &ParcelledGroup> =
        groups.iter().map(|group| (group.group.id.to_string(), group)).collect();
    let ids: Vec<&str> = groups.keys().map(String::as_str).collect();
    let rows: Vec<&ParcelledGroup> = groups.values().copied().collect();
    let good = |group: &ParcelledGroup| group.arrived.iter().filter(|(_, outcome)| outcome.is_ok()).count() as i32;
    let created = tx
        .query(
            "INSERT INTO windlass.groups (id, size, policy, after, succeeded, failed, broken, touched_at) \
             SELECT r.id, r.size, r.policy, r.after, r.succeeded, r.failed, r.broken, $1 \
             FROM unnest($2::text[], $3::int[], $4::text[], $5::text[], $6::int[], $7::int[], $8::boolean[]) \
             AS r(id, size, policy, after, succeeded, failed, broken) ON CONFLICT (id) DO NOTHING RETURNING id, number",
            &[
                &tx.now.as_micros(),
                &ids,
                &column(&rows, |group| group.group.size as i32),
                &column(&rows, |group| group.group.policy.as_str()),
                &column(&rows, |group| to_json(&group.group.after)),
                &column(&rows, good),
                &column(&rows, |group| group.arrived.len() as i32 - good(group)),
                &column(&rows, |group| group.failed),
            ],
        )
        .await?;
    let (mut numbers, mut places, mut succeeded, mut outcomes) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for row in &created {
        let (id, number): (&str, i64) = (value(row, 0)?, value(row, 1)?);
        for (place, outcome) in groups.get(id).iter().flat_map(|group| &group.arrived) {
            numbers.push(number);
            places.push(*place as i32);
            succeeded.push(outcome.is_ok());
            outcomes.push(match outcome {
                Ok(result) => result.as_str().to_owned(),
                Err(failure) => to_json(failure),
            });
        }
    }
    tx.execute(
        "INSERT INTO windlass.arrival (number, place, succeeded, outcome) \
         SELECT * FROM unnest($1::bigint[], $2::int[], $3::boolean[], $4::text[])",
        &[&numbers, &places, &succeeded, &outcomes],
    )
    .await?;
    Ok(created.len() as u64)
}

/// Inserts tasks whatever their state: `$1` lists of columns. Those whose id is live are left out.
const IMPORT: &str = "\
INSERT INTO windlass.live (id, queue, name, priority, state, at, rank, enqueued_at, started_at, expires, keep, attempt, crashes, \
has_flow, node, guard, brief, key, workflow, progress, failure, history, memo, waits_for, body) \
SELECT r.id, r.queue, r.name, r.priority, r.state, r.at, r.rank, r.enqueued_at, r.started_at, r.expires, r.keep, r.attempt, r.crashes, \
r.has_flow, r.node, r.guard, r.brief, r.key, r.workflow, r.progress, r.failure, \
CASE WHEN r.history IS NOT NULL THEN ARRAY(SELECT json_array_elements_text(r.history::json)) END, r.memo, r.waits_for, r.body \
FROM unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::smallint[], $6::bigint[], $7::bigint[], $8::bigint[], $9::bigint[], \
$10::bigint[], $11::bigint[], $12::integer[], $13::integer[], $14::boolean[], $15::text[], $16::text[], $17::text[], $18::text[], \
$19::text[], $20::text[], $21::text[], $22::text[], $23::boolean[], $24::text[], $25::text[]) WITH ORDINALITY \
AS r(id, queue, name, priority, state, at, rank, enqueued_at, started_at, expires, keep, attempt, crashes, has_flow, node, guard, key, \
workflow, progress, failure, history, body, brief, memo, waits_for, place) ORDER BY r.place ON CONFLICT (id) DO NOTHING RETURNING id";

/// Takes the inserted tasks back whose id belongs to one that has ended: `$1` the ids that were inserted.
const FORGET_KNOWN: &str = "\
DELETE FROM windlass.live l USING unnest($1::text[]) AS r(id) WHERE l.id = r.id \
AND (EXISTS (SELECT 1 FROM windlass.finished f WHERE f.id = r.id) OR EXISTS (SELECT 1 FROM windlass.kept k WHERE k.id = r.id)) \
RETURNING l.id";

/// Moves the inserted tasks on that have ended: lists of ids, ends, reasons, skips and results.
const MOVE_ENDED: &str = "\
WITH g AS (DELETE FROM windlass.live l USING unnest($1::text[], $2::bigint[], $3::smallint[], $4::text[], $5::text[]) \
AS r(id, finished_at, reason, skipped, result) WHERE l.id = r.id RETURNING l.*, r.finished_at, r.reason, r.skipped, r.result), \
f AS (INSERT INTO windlass.finished (seq, finished_at, fence, enqueued_at, started_at, keep, attempt, crashes, state, priority, \
has_flow, id, queue, name, node, key, workflow, skipped, progress, failure, history, memo, result, body) \
SELECT seq, finished_at, fence, enqueued_at, started_at, keep, attempt, crashes, state, priority, has_flow, id, queue, name, node, \
key, workflow, skipped, progress, failure, history, memo, result, body FROM g \
WHERE state <> 5 AND NOT (state = 4 AND coalesce(keep, 0) > 0) RETURNING queue), \
k AS (INSERT INTO windlass.kept (seq, finished_at, forget_at, fence, enqueued_at, started_at, keep, attempt, crashes, state, \
priority, reason, has_flow, id, queue, name, node, key, workflow, skipped, progress, failure, history, memo, result, body) \
SELECT seq, finished_at, CASE state WHEN 4 THEN finished_at + keep END, fence, enqueued_at, started_at, keep, attempt, crashes, state, \
priority, reason, has_flow, id, queue, name, node, key, workflow, skipped, progress, failure, history, memo, result, body FROM g \
WHERE state = 5 OR (state = 4 AND coalesce(keep, 0) > 0)) \
INSERT INTO windlass.delta (queue, finished) SELECT queue, count(*) FROM f GROUP BY queue";

/// A task on its way in, and what it becomes.
struct Arriving<'a> {
    parcelled: &'a Parcelled,
    task: NewTask,
    state: State,
    /// What its column `at` says while it waits.
    at: i64,
    /// Whether it wants its unique key.
    wants_key: bool,
    /// Until when it has that; without a time until it has ended.
    key_until: Option<i64>,
}

impl<'a> Arriving<'a> {
    fn of(parcelled: &'a Parcelled, now: Timestamp) -> Self {
        let record = &parcelled.record;
        let mut envelope = record.envelope.clone();
        envelope.due = Due::Now;
        // A running task is in no parcel; should one be, nobody holds it here.
        let state = if record.state == State::Running { State::Ready } else { record.state };
        let at = match state {
            State::Scheduled => record.due_at.unwrap_or(parcelled.ready_at).as_micros(),
            State::Parked => now.as_micros(),
            State::Ready | State::Running | State::Succeeded | State::Dead | State::Cancelled | State::Expired => 0,
        };
        let window = envelope.unique.as_ref().and_then(|unique| unique.window);
        let until = window.map(|window| record.enqueued_at + window);
        let wants_key = envelope.unique.is_some() && until.map_or(!state.is_final(), |until| until > now);
        let key_until = until.map(Timestamp::as_micros);
        Self { parcelled, task: NewTask::of(&envelope), state, at, wants_key, key_until }
    }

    fn record(&self) -> &'a Record {
        &self.parcelled.record
    }
}

async fn import_tasks(tx: &mut Tx<'_>, tasks: Vec<Arriving<'_>>) -> Result<u64, Fault> {
    if tasks.is_empty() {
        return Ok(0);
    }
    let new = insert(tx, &tasks).await?;
    for one in &new {
        tx.count(&one.task.queue, None, Some(one.state));
        match one.state {
            State::Ready => drop(tx.effects.queues.insert(one.task.queue.clone())),
            State::Scheduled => tx.effects.scheduled = true,
            State::Succeeded | State::Dead | State::Cancelled | State::Expired => {
                tx.effects.ended.push(one.task.id.clone());
            }
            State::Running | State::Parked => {}
        }
    }
    let ended: Vec<&Arriving<'_>> = new.iter().copied().filter(|one| one.state.is_final()).collect();
    if !ended.is_empty() {
        move_ended(tx, &ended).await?;
    }
    take_free_keys(tx, &new).await?;
    Ok(new.len() as u64)
}

/// Inserts tasks whose ids are not known; answers which these are. Of equal ids the first is.
async fn insert<'a, 'b>(tx: &Tx<'_>, tasks: &'a [Arriving<'b>]) -> Result<Vec<&'a Arriving<'b>>, Fault> {
    let rows: Vec<&Arriving<'b>> = tasks.iter().collect();
    let inserted = tx
        .query(
            IMPORT,
            &[
                &column(&rows, |one| one.task.id_text.as_str()),
                &column(&rows, |one| one.task.queue.as_str()),
                &column(&rows, |one| one.record().envelope.name.as_str()),
                &column(&rows, |one| i16::from(one.record().envelope.priority.level())),
                &column(&rows, |one| state_code(one.state)),
                &column(&rows, |one| one.at),
                &column(&rows, |one| rank(one.record().envelope.priority, one.parcelled.ready_at)),
                &column(&rows, |one| one.record().enqueued_at.as_micros()),
                &column(&rows, |one| one.record().started_at.map(Timestamp::as_micros)),
                &column(&rows, |one| one.record().envelope.expires.map(Timestamp::as_micros)),
                &column(&rows, |one| one.record().envelope.result_ttl.map(rows::micros)),
                &column(&rows, |one| one.record().attempt as i32),
                &column(&rows, |one| one.record().crashes as i32),
                &column(&rows, |one| one.record().envelope.flow.is_some()),
                &column(&rows, |one| one.record().node.as_ref().map(NodeId::as_str)),
                &column(&rows, |one| one.task.guard()),
                &column(&rows, |one| one.record().envelope.key.as_ref().map(Key::as_str)),
                &column(&rows, |one| one.record().envelope.workflow.as_ref().map(ToString::to_string)),
                &column(&rows, |one| one.record().progress.as_ref().map(to_json)),
                &column(&rows, |one| one.record().failure.as_ref().map(to_json)),
                &column(&rows, |one| stored_history(&one.record().history)),
                &column(&rows, |one| one.task.body()),
                &column(&rows, |one| one.task.brief()),
                &column(&rows, |one| Some(one.record().memo.as_str()).filter(|memo| !memo.is_empty())),
                &column(&rows, |one| one.record().waits_for.as_ref().map(ToString::to_string)),
            ],
        )
        .await?;
    let ids: Vec<&str> = inserted.iter().map(|row| value(row, 0)).collect::<Result<_, _>>()?;
    let known = tx.query(FORGET_KNOWN, &[&ids]).await?;
    let mut new: std::collections::HashSet<&str> = ids.into_iter().collect();
    for row in &known {
        new.remove(value::<&str>(row, 0)?);
    }
    Ok(tasks.iter().filter(|one| new.remove(one.task.id_text.as_str())).collect())
}

async fn move_ended(tx: &Tx<'_>, ended: &[&Arriving<'_>]) -> Result<(), Fault> {
    let now = tx.now;
    tx.execute(
        MOVE_ENDED,
        &[
            &column(ended, |one| one.task.id_text.as_str()),
            &column(ended, |one| one.record().finished_at.unwrap_or(now).as_micros()),
            &column(ended, |one| one.record().reason.map(reason_code)),
            &column(ended, |one| one.record().skipped.as_deref().map(storable)),
            &column(ended, |one| one.record().result.as_ref().map(Json::as_str)),
        ],
    )
    .await?;
    Ok(())
}

/// Takes the unique keys that are free, or whose window has ended. Of equal ones the oldest task has it.
async fn take_free_keys(tx: &Tx<'_>, tasks: &[&Arriving<'_>]) -> Result<(), Fault> {
    // Everybody takes keys in one order.
    let mut wanted: BTreeMap<&str, (&str, Option<i64>)> = BTreeMap::new();
    for one in tasks {
        if let (true, Some((key, _))) = (one.wants_key, &one.task.unique) {
            wanted.entry(key).or_insert((&one.task.id_text, one.key_until));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let keys: Vec<&str> = wanted.keys().copied().collect();
    let (ids, untils): (Vec<&str>, Vec<Option<i64>>) = wanted.into_values().unzip();
    tx.execute(
        "INSERT INTO windlass.taken AS t (key, id, until) SELECT * FROM unnest($2::text[], $3::text[], $4::bigint[]) \
         ON CONFLICT (key) DO UPDATE SET id = excluded.id, until = excluded.until WHERE t.until <= $1::bigint",
        &[&tx.now.as_micros(), &keys, &ids, &untils],
    )
    .await?;
    Ok(())
}

/// Answers how many tasks and groups were forgotten.
pub(crate) async fn evict(tx: &mut Tx<'_>, tasks: &[TaskId], groups: &[GroupId]) -> Result<u64, Fault> {
    let mut evicted = 0;
    if !groups.is_empty() {
        let ids: Vec<String> = groups.iter().map(ToString::to_string).collect();
        let gone = tx
            .query(
                "WITH g AS MATERIALIZED (SELECT number FROM windlass.groups WHERE id = ANY($1) ORDER BY id FOR UPDATE), \
                 a AS (DELETE FROM windlass.arrival a USING g WHERE a.number = g.number) \
                 DELETE FROM windlass.groups o USING g WHERE o.number = g.number RETURNING o.number",
                &[&ids],
            )
            .await?;
        evicted += gone.len() as u64;
    }
    if tasks.is_empty() {
        return Ok(evicted);
    }
    let ids: Vec<String> = tasks.iter().map(ToString::to_string).collect();
    let gone = tx
        .query(
            "WITH d AS MATERIALIZED (SELECT seq FROM windlass.live WHERE id = ANY($1) AND state <> 2 ORDER BY seq FOR UPDATE), \
             l AS (DELETE FROM windlass.live l USING d WHERE l.seq = d.seq RETURNING l.id, l.queue, l.state, l.guard), \
             x AS (DELETE FROM windlass.taken t USING l WHERE l.guard IS NOT NULL AND t.key = l.guard AND t.id = l.id), \
             f AS (DELETE FROM windlass.finished WHERE id = ANY($1) RETURNING queue, state), \
             k AS (DELETE FROM windlass.kept WHERE id = ANY($1) RETURNING queue, state) \
             SELECT queue, state, false FROM l UNION ALL SELECT queue, state, true FROM f UNION ALL SELECT queue, state, false FROM k",
            &[&ids],
        )
        .await?;
    for row in &gone {
        let queue = queue_of(row, 0)?;
        tx.count(&queue, Some(state_of(value(row, 1)?)?), None);
        if value(row, 2)? {
            tx.count_removed(&queue, 1);
        }
    }
    Ok(evicted + gone.len() as u64)
}
