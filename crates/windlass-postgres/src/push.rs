//! Push: new tasks, new groups, and the tasks that follow others.
//!
//! One insert for all tasks that wait. A second statement takes those back whose id belongs to a task that has ended: after
//! the insert, so that a push that waited for the settle of its own task sees what the settle left.

use std::collections::{HashMap, HashSet};

use tokio_postgres::Row;
use windlass_core::backend::Pushed;
use windlass_core::flow::{NewGroup, stranded_verdict};
use windlass_core::{
    DeadReason, Due, Envelope, Failure, OnConflict, QueueName, State, TaskId, Timestamp, UniqueHold, Verdict,
};

use crate::connection::Connection;
use crate::errors::Fault;
use crate::rows::{self, column, micros, reason_code, state_code, to_json};
use crate::tx::Tx;
use crate::wake::Effects;

/// `$1` the given time, then a list for each column; the last one says which tasks belong together.
///
/// Those that belong together are left out when one of them is for a queue that has a length: they are named by a row with
/// the state -1, and [`crate::offer`] counts.
macro_rules! insert {
    ($somebody:literal) => {
        concat!(
            "\
WITH t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now), \
w AS MATERIALIZED (SELECT ",
            $somebody,
            " AS somebody), \
z AS MATERIALIZED (SELECT coalesce(array_agg(queue), '{}') AS queues FROM windlass.rule WHERE length IS NOT NULL), \
y AS MATERIALIZED (SELECT coalesce(array_agg(DISTINCT r.batch), '{}') AS batches \
FROM z CROSS JOIN unnest($3::text[], $16::integer[]) AS r(queue, batch) WHERE r.queue = ANY (z.queues) AND r.batch IS NOT NULL), \
n AS (INSERT INTO windlass.live (id, queue, name, priority, state, at, rank, enqueued_at, has_flow, expires, keep, guard, brief, key, \
workflow, body) \
SELECT r.id, r.queue, r.name, r.priority, d.state, d.at, d.since - r.priority * 300000000::bigint, t.now, r.has_flow, r.expires, r.keep, \
r.guard, r.brief, r.key, r.workflow, r.body \
FROM t CROSS JOIN unnest($2::text[], $3::text[], $4::text[], $5::smallint[], $6::bigint[], $7::bigint[], $8::boolean[], $9::bigint[], \
$10::bigint[], $11::text[], $12::text[], $13::text[], $14::text[], $15::boolean[], $16::integer[]) WITH ORDINALITY \
AS r(id, queue, name, priority, after, due, has_flow, expires, keep, guard, key, workflow, body, brief, batch, place) \
CROSS JOIN LATERAL (SELECT coalesce(r.due, t.now + r.after, 0) AS due) u \
CROSS JOIN LATERAL (SELECT CASE WHEN u.due > t.now THEN 0 ELSE 1 END::smallint AS state, \
CASE WHEN u.due > t.now THEN u.due ELSE 0 END AS at, CASE WHEN u.due > t.now THEN u.due ELSE t.now END AS since) d \
WHERE r.batch IS NULL OR r.batch <> ALL ((SELECT batches FROM y)::integer[]) ORDER BY r.place ON CONFLICT (id) DO NOTHING RETURNING id, queue, state), \
c AS (INSERT INTO windlass.delta (queue, scheduled, ready) \
SELECT queue, count(*) FILTER (WHERE state = 0), count(*) FILTER (WHERE state = 1) FROM n GROUP BY queue) \
SELECT n.id, n.state, CASE WHEN w.somebody THEN \
pg_notify('@channel', CASE n.state WHEN 1 THEN 'q ' || n.queue ELSE 'd' END)::text END FROM n, w \
UNION ALL SELECT b.batch::text, -1::smallint, NULL FROM y CROSS JOIN unnest(y.batches) AS b(batch)"
        )
    };
}

/// Others are told in the statement itself.
pub(crate) const INSERT: &str = insert!("EXISTS (SELECT 1 FROM windlass.waiting WHERE until > windlass.micros())");
/// Others are told by [`Tx::flush`], of what is left at the end of the transaction.
const INSERT_QUIETLY: &str = insert!("false");

/// `$1` the ids of the tasks that were pushed. An id is never in two tables, so what is found in `live` was just inserted.
pub(crate) const FORGET_KNOWN: &str = "\
WITH k AS MATERIALIZED (SELECT r.id FROM unnest($1::text[]) AS r(id) \
WHERE EXISTS (SELECT 1 FROM windlass.finished f WHERE f.id = r.id) OR EXISTS (SELECT 1 FROM windlass.kept f WHERE f.id = r.id)), \
g AS (DELETE FROM windlass.live l USING k WHERE l.id = k.id RETURNING l.id, l.queue, l.state), \
c AS (INSERT INTO windlass.delta (queue, scheduled, ready) \
SELECT queue, -count(*) FILTER (WHERE state = 0), -count(*) FILTER (WHERE state = 1) FROM g GROUP BY queue) \
SELECT id FROM g";

/// An envelope as it is stored.
#[derive(Debug)]
pub(crate) struct NewTask {
    pub(crate) id: TaskId,
    pub(crate) id_text: String,
    name: String,
    pub(crate) queue: QueueName,
    priority: i16,
    after: Option<i64>,
    at: Option<i64>,
    expires: Option<i64>,
    keep: Option<i64>,
    key: Option<String>,
    /// The unique key, and its window in microseconds.
    pub(crate) unique: Option<(String, Option<i64>)>,
    /// Whether it gives its unique key back when it starts.
    brief: bool,
    /// The whole task, when it takes the place of one that has its unique key and waits.
    pub(crate) replacing: Option<Box<Envelope>>,
    workflow: Option<String>,
    has_flow: bool,
    body: String,
}

impl NewTask {
    pub(crate) fn of(envelope: &Envelope) -> Self {
        let (after, at) = match envelope.due {
            Due::Now => (None, None),
            Due::After(delay) => (Some(micros(delay.min(windlass_core::envelope::DELAY_MAX))), None),
            Due::At(due) => (None, Some(due.as_micros())),
        };
        let unique = envelope.unique.as_ref();
        Self {
            id: envelope.id.clone(),
            id_text: envelope.id.to_string(),
            name: envelope.name.as_str().to_owned(),
            queue: envelope.queue.clone(),
            priority: i16::from(envelope.priority.level()),
            after,
            at,
            expires: envelope.expires.map(Timestamp::as_micros),
            keep: envelope.result_ttl.map(micros),
            key: envelope.key.as_ref().map(|key| key.as_str().to_owned()),
            unique: unique.map(|unique| (unique.key.as_str().to_owned(), unique.window.map(micros))),
            brief: unique.is_some_and(|unique| unique.window.is_none() && unique.hold == UniqueHold::Started),
            replacing: unique
                .filter(|unique| unique.on_conflict != OnConflict::Keep)
                .map(|_| Box::new(envelope.clone())),
            workflow: envelope.workflow.as_ref().map(ToString::to_string),
            has_flow: envelope.flow.is_some(),
            body: envelope.to_body(),
        }
    }

    /// What a task gives back when it ends. A key that is taken for a window is not given back: the window ends by itself.
    pub(crate) fn guard(&self) -> Option<&str> {
        self.unique.as_ref().filter(|(_, window)| window.is_none()).map(|(key, _)| key.as_str())
    }

    /// What is stored of it besides the columns.
    pub(crate) fn body(&self) -> &str {
        &self.body
    }

    /// Whether it gives its unique key back when it starts; nothing for most.
    pub(crate) fn brief(&self) -> Option<bool> {
        self.brief.then_some(true)
    }
}

/// Inserts tasks whose ids are not live. With batches, those for queues that have a length are left out.
pub(crate) async fn insert(
    connection: &Connection<'_>,
    now: Option<i64>,
    tasks: &[&NewTask],
    batches: Option<&[i32]>,
) -> Result<Vec<Row>, Fault> {
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    let statement = if batches.is_some() { INSERT } else { INSERT_QUIETLY };
    connection
        .query(
            statement,
            &[
                &now,
                &column(tasks, |task| task.id_text.as_str()),
                &column(tasks, |task| task.queue.as_str()),
                &column(tasks, |task| task.name.as_str()),
                &column(tasks, |task| task.priority),
                &column(tasks, |task| task.after),
                &column(tasks, |task| task.at),
                &column(tasks, |task| task.has_flow),
                &column(tasks, |task| task.expires),
                &column(tasks, |task| task.keep),
                &column(tasks, NewTask::guard),
                &column(tasks, |task| task.key.as_deref()),
                &column(tasks, |task| task.workflow.as_deref()),
                &column(tasks, |task| task.body.as_str()),
                &column(tasks, NewTask::brief),
                &batches,
            ],
        )
        .await
}

/// Takes back the inserted tasks whose id belongs to one that has ended.
pub(crate) async fn forget_known(connection: &Connection<'_>, tasks: &[&NewTask]) -> Result<Vec<Row>, Fault> {
    if tasks.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<&str> = tasks.iter().map(|task| task.id_text.as_str()).collect();
    connection.query(FORGET_KNOWN, &[&ids]).await
}

/// What became of a task that was inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Inserted {
    /// It is stored.
    New,
    /// Its id is taken.
    Known,
    /// It was left out with everything that belongs to it: a queue has a length.
    Measured,
}

/// Which tasks are stored, from the answers of [`insert`] and [`forget_known`]. Of equal ids the first is.
pub(crate) fn stored(
    tasks: &[&NewTask],
    batches: Option<&[i32]>,
    inserted: &[Row],
    known: &[Row],
    effects: &mut Effects,
) -> Vec<Inserted> {
    let (mut new, mut measured): (HashMap<&str, i16>, HashSet<i32>) = (HashMap::new(), HashSet::new());
    for row in inserted {
        match (row.get::<_, &str>(0), row.get::<_, i16>(1)) {
            (batch, -1) => measured.extend(batch.parse::<i32>()),
            (id, state) => drop(new.insert(id, state)),
        }
    }
    for row in known {
        new.remove(row.get::<_, &str>(0));
    }
    let is_measured = |index: usize| batches.is_some_and(|batches| measured.contains(&batches[index]));
    let each = tasks.iter().enumerate().map(|(index, task)| match new.remove(task.id_text.as_str()) {
        Some(state) if state == state_code(State::Ready) => {
            effects.queues.insert(task.queue.clone());
            Inserted::New
        }
        Some(_) => {
            effects.scheduled = true;
            Inserted::New
        }
        None if is_measured(index) => Inserted::Measured,
        None => Inserted::Known,
    });
    each.collect()
}

/// Stores tasks, however full their queues are.
pub(crate) async fn push(tx: &mut Tx<'_>, tasks: &[&NewTask]) -> Result<Vec<Pushed>, Fault> {
    let mut holders: HashMap<usize, TaskId> = HashMap::new();
    let with_keys: Vec<usize> = (0..tasks.len()).filter(|index| tasks[*index].unique.is_some()).collect();
    if !with_keys.is_empty() {
        refuse_taken(tx, tasks, &with_keys, &mut holders).await?;
    }
    let free: Vec<&NewTask> =
        tasks.iter().enumerate().filter(|(index, _)| !holders.contains_key(index)).map(|(_, task)| *task).collect();
    let mut stored = insert_new(tx, &free).await?.into_iter();
    let mut pushed = Vec::with_capacity(tasks.len());
    let mut lost_keys: Vec<(&str, &str)> = Vec::new();
    for (index, task) in tasks.iter().enumerate() {
        pushed.push(match holders.remove(&index) {
            Some(holder) => Pushed::Exists(holder),
            None if stored.next().unwrap_or(false) => Pushed::Stored,
            None => {
                lost_keys.extend(task.unique.as_ref().map(|(key, _)| (key.as_str(), task.id_text.as_str())));
                Pushed::Exists(task.id.clone())
            }
        });
    }
    // Another push of the same id was faster: it has the key, or needs none.
    for (key, id) in lost_keys {
        tx.execute(
            "DELETE FROM windlass.taken t WHERE t.key = $1 AND t.id = $2 \
             AND NOT EXISTS (SELECT 1 FROM windlass.live l WHERE l.id = $2 AND l.guard = $1)",
            &[&key, &id],
        )
        .await?;
    }
    Ok(pushed)
}

/// Inserts tasks; answers for each whether it is stored.
pub(crate) async fn insert_new(tx: &mut Tx<'_>, tasks: &[&NewTask]) -> Result<Vec<bool>, Fault> {
    let now = Some(tx.now.as_micros());
    // A statement that is prepared on the way is sent behind those that need not be.
    tx.connection().prepare_all(&[INSERT_QUIETLY, FORGET_KNOWN]).await?;
    let (inserted, known) = tokio::join!(
        biased;
        insert(tx.connection(), now, tasks, None),
        forget_known(tx.connection(), tasks),
    );
    let (inserted, known) = (inserted?, known?);
    let each = stored(tasks, None, &inserted, &known, &mut tx.effects);
    Ok(each.into_iter().map(|one| one == Inserted::New).collect())
}

/// Takes the unique keys of tasks. Those that cannot have theirs, or whose id is known, get a holder.
async fn refuse_taken(
    tx: &mut Tx<'_>,
    tasks: &[&NewTask],
    with_keys: &[usize],
    holders: &mut HashMap<usize, TaskId>,
) -> Result<(), Fault> {
    let ids: Vec<&str> = with_keys.iter().map(|index| tasks[*index].id_text.as_str()).collect();
    let known: HashSet<String> = known_ids(tx, &ids).await?;
    let mut first: HashMap<&str, usize> = HashMap::new();
    let mut ids_seen: HashSet<&str> = HashSet::new();
    for index in with_keys {
        let task = &tasks[*index];
        let Some((key, _)) = &task.unique else { continue };
        if known.contains(&task.id_text) || !ids_seen.insert(&task.id_text) {
            holders.insert(*index, task.id.clone());
        } else if let Some(earlier) = first.get(key.as_str()) {
            holders.insert(*index, tasks[*earlier].id.clone());
        } else {
            first.insert(key, *index);
        }
    }
    let mut wanted: Vec<usize> = first.into_values().collect();
    // Everybody takes keys in one order.
    wanted.sort_by(|a, b| tasks[*a].unique.cmp(&tasks[*b].unique));
    let taken = take_keys(tx, wanted.iter().map(|index| tasks[*index])).await?;
    let refused: Vec<usize> = wanted
        .into_iter()
        .filter(|index| tasks[*index].unique.as_ref().is_some_and(|(key, _)| !taken.contains(key)))
        .collect();
    if refused.is_empty() {
        return Ok(());
    }
    let keys: Vec<&str> =
        refused.iter().filter_map(|index| tasks[*index].unique.as_ref()).map(|(key, _)| key.as_str()).collect();
    let rows = tx.query("SELECT key, id FROM windlass.taken WHERE key = ANY($1)", &[&keys]).await?;
    let by_key: HashMap<String, TaskId> =
        rows.iter().map(|row| Ok((row.get(0), rows::id_of(row, 1)?))).collect::<Result<_, Fault>>()?;
    // Of equal keys in one push the first would have been stored; all of them are refused by the same holder.
    for (index, task) in tasks.iter().enumerate() {
        if let Some(holder) = task.unique.as_ref().and_then(|(key, _)| by_key.get(key))
            && !known.contains(&task.id_text)
        {
            holders.insert(index, holder.clone());
        }
    }
    Ok(())
}

/// Takes unique keys that are free, or whose window has ended; answers which. They are given in the order of the keys.
pub(crate) async fn take_keys<'a>(
    tx: &mut Tx<'_>,
    tasks: impl IntoIterator<Item = &'a NewTask>,
) -> Result<HashSet<String>, Fault> {
    let (mut keys, mut ids, mut windows) = (Vec::new(), Vec::new(), Vec::new());
    for task in tasks {
        if let Some((key, window)) = &task.unique {
            keys.push(key.as_str());
            ids.push(task.id_text.as_str());
            windows.push(*window);
        }
    }
    let now = tx.now.as_micros();
    let rows = tx
        .query(
            "INSERT INTO windlass.taken AS t (key, id, until) \
             SELECT r.key, r.id, $1::bigint + r.window FROM unnest($2::text[], $3::text[], $4::bigint[]) AS r(key, id, \"window\") \
             ON CONFLICT (key) DO UPDATE SET id = excluded.id, until = excluded.until WHERE t.until <= $1 RETURNING t.key",
            &[&now, &keys, &ids, &windows],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Those of these ids that some task has, ended or not.
pub(crate) async fn known_ids(tx: &mut Tx<'_>, ids: &[&str]) -> Result<HashSet<String>, Fault> {
    let rows = tx
        .query(
            "SELECT r.id FROM unnest($1::text[]) AS r(id) WHERE EXISTS (SELECT 1 FROM windlass.live l WHERE l.id = r.id) \
             OR EXISTS (SELECT 1 FROM windlass.finished f WHERE f.id = r.id) OR EXISTS (SELECT 1 FROM windlass.kept k WHERE k.id = r.id)",
            &[&ids],
        )
        .await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Stores tasks that follow others. A known one is left alone, unless it died because nothing led to it: then it is revived
/// and ready, as it is pushed now.
pub(crate) async fn push_following(tx: &mut Tx<'_>, tasks: &[NewTask]) -> Result<(), Fault> {
    let tasks: Vec<&NewTask> = tasks.iter().collect();
    let pushed = push(tx, &tasks).await?;
    let known: Vec<&NewTask> = tasks
        .iter()
        .zip(&pushed)
        .filter(|(task, pushed)| matches!(pushed, Pushed::Exists(id) if *id == task.id))
        .map(|(task, _)| *task)
        .collect();
    if known.is_empty() {
        return Ok(());
    }
    let ids: Vec<&str> = known.iter().map(|task| task.id_text.as_str()).collect();
    let stranded = tx
        .query(
            "DELETE FROM windlass.kept k WHERE k.id = ANY($1) AND k.state = 5 AND k.reason = $2 RETURNING k.id, k.queue",
            &[&ids, &reason_code(DeadReason::Upstream)],
        )
        .await?;
    for row in stranded {
        let id: &str = row.get(0);
        tx.count(&rows::queue_of(&row, 1)?, Some(State::Dead), None);
        let Some(task) = known.iter().find(|task| task.id_text == id) else { continue };
        insert_new(tx, &[task]).await?;
    }
    Ok(())
}

/// Records tasks that never ran as dead letters, unless they are known.
pub(crate) async fn strand(tx: &mut Tx<'_>, tasks: &[NewTask], cause: Option<&Failure>) -> Result<(), Fault> {
    let Verdict::Dead { reason, failure } = stranded_verdict(cause) else { unreachable!("a stranded task is dead") };
    for task in tasks {
        bury(tx, task, reason, &failure).await?;
    }
    Ok(())
}

/// Records a task as a dead letter that never ran, unless it is known; answers whether it is recorded.
pub(crate) async fn bury(
    tx: &mut Tx<'_>,
    task: &NewTask,
    reason: DeadReason,
    failure: &Failure,
) -> Result<bool, Fault> {
    let stored = tx
            .query(
                "INSERT INTO windlass.kept (seq, finished_at, fence, enqueued_at, keep, attempt, crashes, state, priority, reason, \
                 has_flow, id, queue, name, key, workflow, failure, body) \
                 SELECT nextval(pg_get_serial_sequence('windlass.live', 'seq')), $1, 0, $1, $2, 0, 0, 5, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12 \
                 WHERE NOT EXISTS (SELECT 1 FROM windlass.live l WHERE l.id = $6) \
                 AND NOT EXISTS (SELECT 1 FROM windlass.finished f WHERE f.id = $6) ON CONFLICT (id) DO NOTHING RETURNING seq",
                &[
                    &tx.now.as_micros(),
                    &task.keep,
                    &task.priority,
                    &reason_code(reason),
                    &task.has_flow,
                    &task.id_text,
                    &task.queue.as_str(),
                    &task.name,
                    &task.key,
                    &task.workflow,
                    &to_json(failure),
                    &task.body,
                ],
            )
            .await?;
    if !stored.is_empty() {
        tx.count(&task.queue, None, Some(State::Dead));
        tx.effects.ended.push(task.id.clone());
    }
    Ok(!stored.is_empty())
}

/// Creates groups unless they are known.
pub(crate) async fn create_groups(tx: &mut Tx<'_>, groups: &[NewGroup]) -> Result<(), Fault> {
    if groups.is_empty() {
        return Ok(());
    }
    let mut groups: Vec<&NewGroup> = groups.iter().collect();
    groups.sort_by(|a, b| a.id.cmp(&b.id));
    let ids: Vec<String> = groups.iter().map(|group| group.id.to_string()).collect();
    let sizes: Vec<i32> = groups.iter().map(|group| group.size as i32).collect();
    let policies: Vec<&str> = groups.iter().map(|group| group.policy.as_str()).collect();
    let after: Vec<String> = groups.iter().map(|group| to_json(&group.after)).collect();
    let now = tx.now.as_micros();
    tx.execute(
        "INSERT INTO windlass.groups (id, size, policy, after, touched_at) \
         SELECT r.id, r.size, r.policy, r.after, $1 FROM unnest($2::text[], $3::int[], $4::text[], $5::text[]) AS r(id, size, policy, after) \
         ON CONFLICT (id) DO NOTHING",
        &[&now, &ids, &sizes, &policies, &after],
    )
    .await?;
    Ok(())
}
