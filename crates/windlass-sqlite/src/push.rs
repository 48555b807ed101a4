//! Push: new tasks, new groups, and the tasks that follow others.
//!
//! Bodies are encoded by the task that calls, not by the writer thread.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use rusqlite::{OptionalExtension, params};
use windlass_core::backend::Pushed;
use windlass_core::envelope::Unique;
use windlass_core::flow::{NewGroup, stranded_verdict};
use windlass_core::state::rank;
use windlass_core::{
    Args, DeadReason, Due, Envelope, Failure, Key, OnConflict, Priority, QueueName, State, TaskId, TaskName, Timestamp,
    UniqueHold, Verdict,
};

use crate::errors::Fault;
use crate::rows;
use crate::rows::{Id, id_of, micros, reason_code, state_code, to_json};
use crate::settle;
use crate::tx::Tx;

/// A body over this many bytes is kept beside its task: half a page, so that a task's row never overflows one.
pub(crate) const INLINE_BYTES_MAX: usize = 2_048;

/// The end of a key that is taken until its task starts.
const UNTIL_STARTED: Timestamp = Timestamp::MAX;

/// An envelope as it is stored.
#[derive(Debug)]
pub(crate) struct NewTask {
    id: TaskId,
    name: TaskName,
    queue: QueueName,
    priority: Priority,
    due: Due,
    body: String,
    expires: Option<Timestamp>,
    result_ttl: Option<Duration>,
    key: Option<Key>,
    unique: Option<Unique>,
    workflow: Option<TaskId>,
    has_flow: bool,
    /// What a task that it replaces gets; empty when it replaces none.
    args: Args,
    headers: BTreeMap<String, String>,
}

impl NewTask {
    pub(crate) fn of(envelope: &Envelope) -> Self {
        let replaces = envelope.unique.as_ref().is_some_and(|unique| unique.on_conflict != OnConflict::Keep);
        Self {
            args: if replaces { envelope.args.clone() } else { Args::none() },
            headers: if replaces { envelope.headers.clone() } else { BTreeMap::new() },
            id: envelope.id.clone(),
            name: envelope.name.clone(),
            queue: envelope.queue.clone(),
            priority: envelope.priority,
            due: envelope.due,
            body: envelope.to_body(),
            expires: envelope.expires,
            result_ttl: envelope.result_ttl,
            key: envelope.key.clone(),
            unique: envelope.unique.clone(),
            workflow: envelope.workflow.clone(),
            has_flow: envelope.flow.is_some(),
        }
    }

    /// Where its life begins: state, the column `at`, rank.
    fn beginning(&self, now: Timestamp) -> (State, i64, i64) {
        match self.due.instant(now) {
            Some(due) => (State::Scheduled, due.as_micros(), rank(self.priority, due)),
            None => (State::Ready, 0, rank(self.priority, now)),
        }
    }

    /// The body as the task's row keeps it: not at all when it is large.
    fn inline_body(&self) -> Option<&str> {
        Some(self.body.as_str()).filter(|body| body.len() <= INLINE_BYTES_MAX)
    }
}

/// A group as it is stored.
#[derive(Debug)]
pub(crate) struct PreparedGroup {
    id: TaskId,
    size: u32,
    policy: &'static str,
    after: String,
}

impl PreparedGroup {
    pub(crate) fn of(group: &NewGroup) -> Self {
        Self { id: group.id.clone(), size: group.size, policy: group.policy.as_str(), after: to_json(&group.after) }
    }
}

/// Stores a task unless its id or its unique key is taken.
pub(crate) fn push(tx: &mut Tx<'_>, task: &NewTask) -> Result<Pushed, Fault> {
    if let Some(unique) = &task.unique {
        if place_of(tx, &task.id)?.is_some() {
            return Ok(Pushed::Exists(task.id.clone()));
        }
        if let Some(holder) = holder_of(tx, unique)? {
            return replace(tx, task, unique, holder);
        }
    }
    if let Some(limit) = tx.rules()?.length(&task.queue) {
        let queue = tx.queue(&task.queue)?;
        if tx.waiting(queue)? >= limit {
            let known = place_of(tx, &task.id)?.is_some();
            return Ok(if known { Pushed::Exists(task.id.clone()) } else { Pushed::Full { limit } });
        }
    }
    store(tx, task)
}

/// The limit of the first queue that has no room for all tasks of a push.
pub(crate) fn full_for(tx: &mut Tx<'_>, tasks: &[NewTask]) -> Result<Option<u64>, Fault> {
    let rules = tx.rules()?;
    if rules.is_empty() {
        return Ok(None);
    }
    let mut wanted: HashMap<&QueueName, u64> = HashMap::new();
    for task in tasks {
        *wanted.entry(&task.queue).or_default() += 1;
    }
    for (name, wanted) in wanted {
        let Some(limit) = rules.length(name) else { continue };
        let queue = tx.queue(name)?;
        if tx.waiting(queue)? + wanted > limit {
            return Ok(Some(limit));
        }
    }
    Ok(None)
}

/// Does what the unique key of a new task says about the one that has it.
fn replace(tx: &mut Tx<'_>, task: &NewTask, unique: &Unique, holder: TaskId) -> Result<Pushed, Fault> {
    if unique.on_conflict == OnConflict::Keep {
        return Ok(Pushed::Exists(holder));
    }
    let Some(held) = settle::held_under(tx, &holder)? else { return Ok(Pushed::Exists(holder)) };
    let Some(mut record) = rows::record_at(tx.db, held.seq)? else { return Ok(Pushed::Exists(holder)) };
    if !matches!(record.state, State::Scheduled | State::Ready) {
        return Ok(Pushed::Exists(holder));
    }
    let due = unique.due_of_replacement(task.due, record.due_at, record.enqueued_at, tx.now).instant(tx.now);
    let mut select = tx.prepare("SELECT rank FROM windlass_task WHERE seq = ?1")?;
    let old_rank: i64 = select.query_row([held.seq], |row| row.get(0))?;
    let ready_at = match unique.on_conflict {
        OnConflict::Debounce => due.unwrap_or(tx.now),
        OnConflict::Keep | OnConflict::Replace => rows::ready_at(old_rank, record.envelope.priority),
    };
    record.envelope.args = task.args.clone();
    record.envelope.headers = task.headers.clone();
    record.envelope.priority = task.priority;
    let body = record.envelope.to_body();
    let inline = Some(&body).filter(|body| body.len() <= INLINE_BYTES_MAX);
    let state = if due.is_some() { State::Scheduled } else { State::Ready };
    tx.execute(
        "UPDATE windlass_task SET state = ?2, at = ?3, rank = ?4, priority = ?5, body = ?6 WHERE seq = ?1",
        params![
            held.seq,
            state_code(state),
            due.map_or(0, Timestamp::as_micros),
            rank(task.priority, ready_at),
            task.priority.level(),
            inline,
        ],
    )?;
    store_body(tx, held.seq, &body)?;
    held.count_change(tx, state)?;
    tx.wake(held.queue);
    Ok(Pushed::Replaced(holder))
}

/// Stores a task whose unique key is free.
fn store(tx: &mut Tx<'_>, task: &NewTask) -> Result<Pushed, Fault> {
    let (state, at, rank) = task.beginning(tx.now);
    let Some(queue) = insert(tx, task, state, at, rank)? else { return Ok(Pushed::Exists(task.id.clone())) };
    if let Some(unique) = &task.unique {
        take(tx, unique, &task.id)?;
    }
    if state == State::Ready {
        tx.wake(queue);
    }
    Ok(Pushed::Stored)
}

/// Stores a task that follows another one. A known one is left alone, unless it died because nothing led to it: then it
/// is revived and ready, as it is pushed now.
pub(crate) fn push_following(tx: &mut Tx<'_>, task: &NewTask) -> Result<(), Fault> {
    let Some(place) = place_of(tx, &task.id)? else {
        // What follows is never refused for want of room.
        if task.unique.as_ref().map(|unique| holder_of(tx, unique)).transpose()?.flatten().is_none() {
            store(tx, task)?;
        }
        return Ok(());
    };
    if !(place.state == state_code(State::Dead) && place.reason == Some(reason_code(DeadReason::Upstream))) {
        return Ok(());
    }
    if let Some(unique) = &task.unique {
        if holder_of(tx, unique)?.is_some() {
            return Ok(());
        }
        take(tx, unique, &task.id)?;
    }
    let queue = tx.queue(&task.queue)?;
    let name = tx.name(&task.name)?;
    tx.execute(
        "UPDATE windlass_task SET queue = ?2, name = ?3, priority = ?4, state = 1, at = 0, rank = ?5, attempt = 0, \
         crashes = 0, has_flow = ?6, expires = ?7, keep = ?8, guard = ?9, key = ?10, workflow = ?11, reason = NULL, \
         failure = NULL, history = NULL, body = ?12 WHERE seq = ?1",
        params![
            place.seq,
            queue,
            name,
            task.priority.level(),
            rank(task.priority, tx.now),
            task.has_flow,
            task.expires.map(Timestamp::as_micros),
            task.result_ttl.map(micros),
            guard(task),
            task.key.as_ref().map(Key::as_str),
            task.workflow.as_ref().map(Id),
            task.inline_body(),
        ],
    )?;
    store_body(tx, place.seq, &task.body)?;
    tx.count(place.queue, Some(State::Dead), None);
    tx.count(queue, None, Some(State::Ready));
    tx.wake(queue);
    Ok(())
}

/// Records a task that never ran as a dead letter, unless it is known.
pub(crate) fn strand(tx: &mut Tx<'_>, task: &NewTask, cause: Option<&Failure>) -> Result<(), Fault> {
    let Verdict::Dead { reason, failure } = stranded_verdict(cause) else { unreachable!("a stranded task is dead") };
    let now = tx.now_micros();
    if insert(tx, task, State::Dead, now, rank(task.priority, tx.now))?.is_some() {
        tx.execute(
            "UPDATE windlass_task SET guard = NULL, reason = ?2, failure = ?3 WHERE id = ?1",
            params![Id(&task.id), reason_code(reason), to_json(&failure)],
        )?;
        tx.ended(&task.id);
    }
    Ok(())
}

/// Creates a group unless it is known; answers whether it is new.
pub(crate) fn create_group(tx: &mut Tx<'_>, group: &PreparedGroup) -> Result<bool, Fault> {
    let created = tx.execute(
        "INSERT INTO windlass_group (id, size, policy, after, touched_at) VALUES (?1, ?2, ?3, ?4, ?5) \
         ON CONFLICT (id) DO NOTHING",
        params![Id(&group.id), group.size, group.policy, group.after, tx.now_micros()],
    )?;
    Ok(created == 1)
}

/// Inserts the row; answers its queue, or `None` when the id is known.
pub(crate) fn insert(tx: &mut Tx<'_>, task: &NewTask, state: State, at: i64, rank: i64) -> Result<Option<i64>, Fault> {
    let queue = tx.queue(&task.queue)?;
    let name = tx.name(&task.name)?;
    let seq = tx.next_seq()?;
    let inserted = tx.execute(
        "INSERT INTO windlass_task (seq, id, queue, name, priority, state, at, rank, fence, attempt, crashes, enqueued_at, \
         cancel, has_flow, expires, keep, guard, key, workflow, body) \
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 0, 0, 0, ?9, 0, ?10, ?11, ?12, ?13, ?14, ?15, ?16) \
         ON CONFLICT (id) DO NOTHING",
        params![
            seq,
            Id(&task.id),
            queue,
            name,
            task.priority.level(),
            state_code(state),
            at,
            rank,
            tx.now_micros(),
            task.has_flow,
            task.expires.map(Timestamp::as_micros),
            task.result_ttl.map(micros),
            guard(task),
            task.key.as_ref().map(Key::as_str),
            task.workflow.as_ref().map(Id),
            task.inline_body(),
        ],
    )?;
    if inserted == 0 {
        return Ok(None);
    }
    if task.body.len() > INLINE_BYTES_MAX {
        store_body(tx, seq, &task.body)?;
    }
    tx.count(queue, None, Some(state));
    Ok(Some(queue))
}

/// Keeps the large part of a body beside its task, and forgets the one before.
pub(crate) fn store_body(tx: &Tx<'_>, seq: i64, body: &str) -> Result<(), Fault> {
    if body.len() > INLINE_BYTES_MAX {
        tx.execute("INSERT OR REPLACE INTO windlass_large (seq, body) VALUES (?1, ?2)", params![seq, body])?;
    } else {
        tx.execute("DELETE FROM windlass_large WHERE seq = ?1", [seq])?;
    }
    Ok(())
}

/// What a task gives back when it ends. A key that is taken for a window is not given back: the window ends by itself.
fn guard(task: &NewTask) -> Option<&str> {
    task.unique.as_ref().filter(|unique| unique.window.is_none()).map(|unique| unique.key.as_str())
}

struct Place {
    seq: i64,
    queue: i64,
    state: i64,
    reason: Option<i64>,
}

fn place_of(tx: &Tx<'_>, id: &TaskId) -> Result<Option<Place>, Fault> {
    let mut select = tx.prepare("SELECT seq, queue, state, reason FROM windlass_task WHERE id = ?1")?;
    let place = select.query_row([Id(id)], |row| {
        Ok(Place { seq: row.get(0)?, queue: row.get(1)?, state: row.get(2)?, reason: row.get(3)? })
    });
    Ok(place.optional()?)
}

/// Who has taken a unique key, when somebody has.
pub(crate) fn holder_of(tx: &Tx<'_>, unique: &Unique) -> Result<Option<TaskId>, Fault> {
    let mut select = tx.prepare("SELECT id FROM windlass_taken WHERE key = ?1 AND (until IS NULL OR until > ?2)")?;
    let mut rows = select.query(params![unique.key.as_str(), tx.now_micros()])?;
    rows.next()?.map(|row| id_of(row.get_ref(0)?)).transpose()
}

/// Takes a unique key that is free, or whose window has ended.
pub(crate) fn take(tx: &Tx<'_>, unique: &Unique, id: &TaskId) -> Result<(), Fault> {
    take_until(tx, unique, id, taken_until(unique, tx.now))
}

/// Until when a key is taken by a task that was pushed then; `None`: until it has ended.
pub(crate) fn taken_until(unique: &Unique, pushed_at: Timestamp) -> Option<Timestamp> {
    match (unique.window, unique.hold) {
        (Some(window), _) => Some(pushed_at + window),
        (None, UniqueHold::Started) => Some(UNTIL_STARTED),
        (None, UniqueHold::Ended) => None,
    }
}

/// Gives back a key that was taken until the start of its task.
pub(crate) fn give_back_started(tx: &Tx<'_>, key: &str, id: &TaskId) -> Result<(), Fault> {
    tx.execute(
        "DELETE FROM windlass_taken WHERE key = ?1 AND id = ?2 AND until = ?3",
        params![key, Id(id), UNTIL_STARTED.as_micros()],
    )?;
    Ok(())
}

/// The same with the end of its window.
pub(crate) fn take_until(tx: &Tx<'_>, unique: &Unique, id: &TaskId, until: Option<Timestamp>) -> Result<(), Fault> {
    tx.execute(
        "INSERT OR REPLACE INTO windlass_taken (key, id, until) VALUES (?1, ?2, ?3)",
        params![unique.key.as_str(), Id(id), until.map(Timestamp::as_micros)],
    )?;
    Ok(())
}

/// Gives a unique key back.
pub(crate) fn give_back(tx: &Tx<'_>, key: &str, id: &TaskId) -> Result<(), Fault> {
    tx.execute("DELETE FROM windlass_taken WHERE key = ?1 AND id = ?2", params![key, Id(id)])?;
    Ok(())
}
