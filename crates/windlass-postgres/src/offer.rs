//! What a producer offers: tasks that a full queue refuses, and tasks that take the place of others.
//!
//! Pushes into a queue that has a length lock its limit: they go one after the other, and each counts what the one before has
//! stored. The next steps of workflows, retries and returns are no offers: no queue refuses them.

use std::collections::{HashMap, HashSet};

use windlass_core::backend::Pushed;
use windlass_core::flow::NewGroup;
use windlass_core::state::rank;
use windlass_core::{DeadReason, Envelope, Failure, OnConflict, QueueName, State, TaskId, Timestamp};

use crate::connection::Values;
use crate::errors::Fault;
use crate::push::{self, NewTask};
use crate::rows::{self, priority_of, queue_of, ready_at, state_code, state_of, value};
use crate::tx::Tx;

/// A queue that has a length.
struct Measured {
    limit: u64,
    /// How many more may wait in it.
    places: u64,
    /// How many are offered.
    wanted: u64,
}

/// Stores tasks and groups.
pub(crate) async fn offer(tx: &mut Tx<'_>, tasks: &[NewTask], groups: &[NewGroup]) -> Result<Vec<Pushed>, Fault> {
    let mut measured = measure(tx, tasks).await?;
    let full = measured.values().find(|queue| queue.wanted > queue.places).map(|queue| queue.limit);
    if let (Some(limit), false) = (full, groups.is_empty()) {
        // A group of which members are missing would be waited for without end.
        return Ok(vec![Pushed::Full { limit }; tasks.len()]);
    }
    push::create_groups(tx, groups).await?;
    let refused = match full {
        Some(_) => {
            let ids: Vec<&str> = tasks.iter().map(|task| task.id_text.as_str()).collect();
            let known = push::known_ids(tx, &ids).await?;
            refuse(tx, tasks, known, &mut measured).await?
        }
        None => HashMap::new(),
    };
    push_others(tx, tasks, &refused).await
}

/// Stores the tasks of deliveries: those that have ended with the same ids are forgotten for them.
pub(crate) async fn offer_again(tx: &mut Tx<'_>, tasks: &[NewTask]) -> Result<Vec<Pushed>, Fault> {
    let ids: Vec<&str> = tasks.iter().map(|task| task.id_text.as_str()).collect();
    let ended = ended(tx, &ids).await?;
    let mut measured = measure(tx, tasks).await?;
    let refused = if measured.values().any(|queue| queue.wanted > queue.places) {
        let mut known = push::known_ids(tx, &ids).await?;
        known.retain(|id| !ended.contains(id));
        refuse(tx, tasks, known, &mut measured).await?
    } else {
        HashMap::new()
    };
    if !ended.is_empty() {
        let taken = taken_keys(tx, tasks).await?;
        let stays = |(place, task): (usize, &NewTask)| {
            refused.contains_key(&place) || task.unique.as_ref().is_some_and(|(key, _)| taken.contains(key))
        };
        let forgotten = tasks.iter().enumerate().filter(|one| !stays(*one)).map(|(_, task)| task.id_text.as_str());
        let forgotten: Vec<&str> = forgotten.filter(|id| ended.contains(*id)).collect();
        forget_ended(tx, &forgotten).await?;
    }
    push_others(tx, tasks, &refused).await
}

/// Records the task of a delivery as a dead letter. One that has ended with the same id is forgotten for it.
pub(crate) async fn bury_again(
    tx: &mut Tx<'_>,
    task: &NewTask,
    reason: DeadReason,
    failure: &Failure,
) -> Result<Pushed, Fault> {
    forget_ended(tx, &[&task.id_text]).await?;
    let buried = push::bury(tx, task, reason, failure).await?;
    Ok(if buried { Pushed::Stored } else { Pushed::Exists(task.id.clone()) })
}

/// Those of these ids that belong to tasks that have ended. Locks them.
async fn ended(tx: &Tx<'_>, ids: &[&str]) -> Result<HashSet<String>, Fault> {
    let values: Values<'_> = &[&ids];
    let (finished, kept) = tokio::join!(
        biased;
        tx.query("SELECT id FROM windlass.finished WHERE id = ANY($1) ORDER BY id FOR UPDATE", values),
        tx.query("SELECT id FROM windlass.kept WHERE id = ANY($1) ORDER BY id FOR UPDATE", values),
    );
    finished?.iter().chain(&kept?).map(|row| value(row, 0)).collect()
}

/// Forgets tasks that have ended.
async fn forget_ended(tx: &mut Tx<'_>, ids: &[&str]) -> Result<(), Fault> {
    let values: Values<'_> = &[&ids];
    let (finished, kept) = tokio::join!(
        biased;
        tx.query("DELETE FROM windlass.finished WHERE id = ANY($1) RETURNING queue", values),
        tx.query("DELETE FROM windlass.kept WHERE id = ANY($1) RETURNING queue, state", values),
    );
    for row in &finished? {
        tx.count_removed(&queue_of(row, 0)?, 1);
    }
    for row in &kept? {
        tx.count(&queue_of(row, 0)?, Some(state_of(value(row, 1)?)?), None);
    }
    Ok(())
}

/// Stores tasks, without those that are refused.
async fn push_others(tx: &mut Tx<'_>, tasks: &[NewTask], refused: &HashMap<usize, u64>) -> Result<Vec<Pushed>, Fault> {
    let offered: Vec<&NewTask> =
        tasks.iter().enumerate().filter(|(place, _)| !refused.contains_key(place)).map(|(_, task)| task).collect();
    let mut pushed = push::push(tx, &offered).await?.into_iter();
    let mut answers = Vec::with_capacity(tasks.len());
    for (place, task) in tasks.iter().enumerate() {
        answers.push(match (refused.get(&place), &task.replacing) {
            (Some(limit), _) => Pushed::Full { limit: *limit },
            (None, replacing) => match (pushed.next().unwrap_or(Pushed::Stored), replacing) {
                (Pushed::Exists(id), Some(new)) if id != task.id => replace(tx, new, id).await?,
                (answer, _) => answer,
            },
        });
    }
    Ok(answers)
}

/// The queues of these tasks that have a length. Locks their limits.
async fn measure(tx: &Tx<'_>, tasks: &[NewTask]) -> Result<HashMap<QueueName, Measured>, Fault> {
    let queues: HashSet<&str> = tasks.iter().map(|task| task.queue.as_str()).collect();
    let queues: Vec<&str> = queues.into_iter().collect();
    let rows = tx
        .query(
            "SELECT queue, length FROM windlass.rule WHERE queue = ANY($1) AND length IS NOT NULL ORDER BY subject FOR UPDATE",
            &[&queues],
        )
        .await?;
    let mut measured = HashMap::new();
    for row in &rows {
        let queue = queue_of(row, 0)?;
        let limit = value::<i64>(row, 1)? as u64;
        let waiting = tx.query("SELECT windlass.waiting_in($1)", &[&queue.as_str()]).await?;
        let waiting = waiting.first().map_or(Ok(0), |row| value::<i64>(row, 0))?.max(0) as u64;
        let wanted = tasks.iter().filter(|task| task.queue == queue).count() as u64;
        measured.insert(queue, Measured { limit, places: limit.saturating_sub(waiting), wanted });
    }
    Ok(measured)
}

/// Which of these tasks, by their places, find no place, and the limit of their queue. What is there already, with an id that is
/// known or a key that is taken, wants none.
async fn refuse(
    tx: &Tx<'_>,
    tasks: &[NewTask],
    mut known: HashSet<String>,
    measured: &mut HashMap<QueueName, Measured>,
) -> Result<HashMap<usize, u64>, Fault> {
    let mut taken = taken_keys(tx, tasks).await?;
    let mut refused = HashMap::new();
    for (place, task) in tasks.iter().enumerate() {
        let key = task.unique.as_ref().map(|(key, _)| key);
        if known.contains(&task.id_text) || key.is_some_and(|key| taken.contains(key)) {
            continue;
        }
        if let Some(queue) = measured.get_mut(&task.queue) {
            if queue.places == 0 {
                refused.insert(place, queue.limit);
                continue;
            }
            queue.places -= 1;
        }
        known.insert(task.id_text.clone());
        taken.extend(key.cloned());
    }
    Ok(refused)
}

/// Those of the unique keys of these tasks that are taken.
async fn taken_keys(tx: &Tx<'_>, tasks: &[NewTask]) -> Result<HashSet<String>, Fault> {
    let keys: Vec<&str> = tasks.iter().filter_map(|task| task.unique.as_ref()).map(|(key, _)| key.as_str()).collect();
    if keys.is_empty() {
        return Ok(HashSet::new());
    }
    let rows = tx
        .query(
            "SELECT key FROM windlass.taken WHERE key = ANY($1) AND (until IS NULL OR until > $2)",
            &[&keys, &tx.now.as_micros()],
        )
        .await?;
    rows.iter().map(|row| value(row, 0)).collect()
}

/// Does what the unique key of a new task says about the one that has it; only one that waits is replaced.
async fn replace(tx: &mut Tx<'_>, new: &Envelope, id: TaskId) -> Result<Pushed, Fault> {
    let Some(unique) = &new.unique else { return Ok(Pushed::Exists(id)) };
    // One that runs is not locked: its settle may wait for our keys.
    let rows = tx
        .query(
            "SELECT seq, name, queue, priority, state, at, rank, enqueued_at, body FROM windlass.live \
             WHERE id = $1 AND state IN (0, 1) FOR UPDATE",
            &[&id.to_string()],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(Pushed::Exists(id)) };
    let (queue, priority) = (queue_of(row, 2)?, priority_of(value(row, 3)?)?);
    let name = rows::parse("task name", value(row, 1)?)?;
    let Ok(mut envelope) = Envelope::from_body(id.clone(), name, queue.clone(), priority, value(row, 8)?) else {
        // Its next holder makes it a dead letter.
        return Ok(Pushed::Exists(id));
    };
    let was = state_of(value(row, 4)?)?;
    let waits_until = (was == State::Scheduled).then_some(Timestamp::from_micros(value(row, 5)?));
    let enqueued_at = Timestamp::from_micros(value(row, 7)?);
    let due = unique.due_of_replacement(new.due, waits_until, enqueued_at, tx.now).instant(tx.now);
    let since = match unique.on_conflict {
        OnConflict::Debounce => due.unwrap_or(tx.now),
        OnConflict::Keep | OnConflict::Replace => ready_at(value(row, 6)?, priority),
    };
    (envelope.args, envelope.headers, envelope.priority) = (new.args.clone(), new.headers.clone(), new.priority);
    let becomes = if due.is_some() { State::Scheduled } else { State::Ready };
    tx.execute(
        "UPDATE windlass.live SET state = $2, at = $3, rank = $4, priority = $5, body = $6 WHERE seq = $1",
        &[
            &value::<i64>(row, 0)?,
            &state_code(becomes),
            &due.map_or(0, Timestamp::as_micros),
            &rank(new.priority, since),
            &i16::from(new.priority.level()),
            &envelope.to_body(),
        ],
    )
    .await?;
    if was != becomes {
        tx.count(&queue, Some(was), Some(becomes));
    }
    match becomes {
        State::Scheduled => tx.effects.scheduled = true,
        _ => drop(tx.effects.queues.insert(queue)),
    }
    Ok(Pushed::Replaced(id))
}
