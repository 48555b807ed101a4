//! Push: new tasks, new groups, and the tasks that follow others.
//!
//! A push is refused by the length of its queue; what follows another task, or comes back, never is.
//!
//! Bodies are encoded by the task that calls, not by the writer thread.

use std::time::Duration;

use rusqlite::{OptionalExtension, params};
use windlass_core::backend::Pushed;
use windlass_core::envelope::InvalidBody;
use windlass_core::flow::{NewGroup, stranded_verdict};
use windlass_core::state::rank;
use windlass_core::{
    DeadReason, Due, Envelope, Failure, Key, OnConflict, Priority, QueueName, State, TaskId, TaskName, Timestamp,
    Unique, UniqueHold, Verdict,
};

use crate::errors::Fault;
use crate::rows::{self, Id, id_of, micros, ready_at, reason_code, state_code, to_json};
use crate::tx::Tx;
use crate::{settle, tick};

/// A body over this many bytes is kept beside its task: half a page, so that a task's row never overflows one.
pub(crate) const INLINE_BYTES_MAX: usize = 2_048;

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
}

impl NewTask {
    pub(crate) fn of(envelope: &Envelope) -> Self {
        Self {
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

    pub(crate) fn id(&self) -> &TaskId {
        &self.id
    }

    pub(crate) fn queue(&self) -> &QueueName {
        &self.queue
    }

    /// The state that its life begins with.
    pub(crate) fn begins_as(&self, now: Timestamp) -> State {
        self.beginning(now).0
    }

    /// Where its life begins: state, the column `at`, rank.
    fn beginning(&self, now: Timestamp) -> (State, i64, i64) {
        match self.due.instant(now) {
            Some(due) => (State::Scheduled, due.as_micros(), rank(self.priority, due)),
            None => (State::Ready, 0, rank(self.priority, now)),
        }
    }

    /// The body as the task's row keeps it.
    fn inline_body(&self) -> Option<&str> {
        inline(&self.body)
    }

    /// The envelope that it was made of, without its due time.
    fn envelope(&self) -> Result<Envelope, InvalidBody> {
        Envelope::from_body(self.id.clone(), self.name.clone(), self.queue.clone(), self.priority, &self.body)
    }
}

/// A body as its task's row keeps it: not at all when it is large.
pub(crate) fn inline(body: &str) -> Option<&str> {
    Some(body).filter(|body| body.len() <= INLINE_BYTES_MAX)
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

/// The free places of a queue that has a length.
pub(crate) struct Free {
    queue: i64,
    limit: u64,
    places: u64,
    wanted: u64,
}

/// Stores what somebody pushes: tasks and groups, as far as their queues have room.
pub(crate) fn push_all(tx: &mut Tx<'_>, groups: &[PreparedGroup], tasks: &[NewTask]) -> Result<Vec<Pushed>, Fault> {
    let mut free = free_places(tx, tasks)?;
    if !groups.is_empty()
        && let Some(full) = free.iter().find(|free| free.wanted > free.places)
    {
        // A group of which members are missing would be waited for without end.
        return Ok(vec![Pushed::Full { limit: full.limit }; tasks.len()]);
    }
    groups.iter().try_for_each(|group| create_group(tx, group).map(drop))?;
    tasks.iter().map(|task| push_within(tx, task, &mut free)).collect()
}

/// Stores a task unless its queue is full.
fn push_within(tx: &mut Tx<'_>, task: &NewTask, free: &mut [Free]) -> Result<Pushed, Fault> {
    if free.is_empty() {
        return push(tx, task);
    }
    let queue = tx.queue(&task.queue)?;
    let Some(free) = free.iter_mut().find(|free| free.queue == queue) else { return push(tx, task) };
    if free.places == 0 {
        // What is there already is answered as such, however full its queue is.
        let known = conflict(tx, task)?.map(|id| replace(tx, task, id)).transpose()?;
        return Ok(known.unwrap_or(Pushed::Full { limit: free.limit }));
    }
    let pushed = push(tx, task)?;
    free.places -= u64::from(pushed == Pushed::Stored);
    Ok(pushed)
}

/// How many places are free in the queues that have a length.
pub(crate) fn free_places<'t>(
    tx: &mut Tx<'_>,
    tasks: impl IntoIterator<Item = &'t NewTask>,
) -> Result<Vec<Free>, Fault> {
    let mut free: Vec<Free> = Vec::new();
    let rules = tx.rules()?;
    if rules.is_empty() {
        return Ok(free);
    }
    for task in tasks {
        let Some(limit) = rules.length(&task.queue) else { continue };
        let queue = tx.queue(&task.queue)?;
        if let Some(free) = free.iter_mut().find(|free| free.queue == queue) {
            free.wanted += 1;
            continue;
        }
        let places = limit.saturating_sub(tx.waiting(queue)?);
        free.push(Free { queue, limit, places, wanted: 1 });
    }
    Ok(free)
}

/// Stores the task of a delivery: one that has ended with the same id is forgotten for it.
pub(crate) fn push_again(tx: &mut Tx<'_>, task: &NewTask, free: &mut [Free]) -> Result<Pushed, Fault> {
    let before = settle::held_under(tx, &task.id)?;
    if before.as_ref().is_some_and(|held| !held.state.is_final()) {
        return Ok(Pushed::Exists(task.id.clone()));
    }
    if let Some(holder) = taken_by(tx, task)? {
        return replace(tx, task, holder);
    }
    if !free.is_empty() {
        let queue = tx.queue(&task.queue)?;
        if let Some(free) = free.iter_mut().find(|free| free.queue == queue) {
            if free.places == 0 {
                return Ok(Pushed::Full { limit: free.limit });
            }
            free.places -= 1;
        }
    }
    if let Some(held) = before {
        tick::remove(tx, &held)?;
    }
    store(tx, task)
}

/// The same for a task that is a dead letter from the start.
pub(crate) fn bury_again(
    tx: &mut Tx<'_>,
    task: &NewTask,
    reason: DeadReason,
    failure: &Failure,
) -> Result<Pushed, Fault> {
    if let Some(held) = settle::held_under(tx, &task.id)? {
        if !held.state.is_final() {
            return Ok(Pushed::Exists(task.id.clone()));
        }
        tick::remove(tx, &held)?;
    }
    bury(tx, task, reason, failure).map(|()| Pushed::Stored)
}

/// Stores a task unless its id or its unique key is taken.
fn push(tx: &mut Tx<'_>, task: &NewTask) -> Result<Pushed, Fault> {
    if task.unique.is_some()
        && let Some(id) = conflict(tx, task)?
    {
        return replace(tx, task, id);
    }
    store(tx, task)
}

/// Stores a task whose unique key is free, unless its id is known.
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

/// The task that has the id of a new one, or its unique key.
fn conflict(tx: &Tx<'_>, task: &NewTask) -> Result<Option<TaskId>, Fault> {
    if place_of(tx, &task.id)?.is_some() {
        return Ok(Some(task.id.clone()));
    }
    taken_by(tx, task)
}

/// The task that has the unique key of a new one.
fn taken_by(tx: &Tx<'_>, task: &NewTask) -> Result<Option<TaskId>, Fault> {
    task.unique.as_ref().map_or(Ok(None), |unique| holder_of(tx, unique))
}

/// Does what the unique key of a new task says about the one that has it.
fn replace(tx: &mut Tx<'_>, new: &NewTask, id: TaskId) -> Result<Pushed, Fault> {
    let unique = new.unique.as_ref().filter(|unique| unique.on_conflict != OnConflict::Keep && id != new.id);
    let Some(unique) = unique else { return Ok(Pushed::Exists(id)) };
    let Some(held) = settle::held_under(tx, &id)? else { return Ok(Pushed::Exists(id)) };
    let waits = matches!(held.state, State::Scheduled | State::Ready);
    let record = if waits { rows::record_at(tx.db, held.seq)? } else { None };
    // One that cannot be read is left to whoever looks at it.
    let Some(record) = record.filter(|record| !rows::is_damaged(record)) else { return Ok(Pushed::Exists(id)) };
    let Ok(newer) = new.envelope() else { return Ok(Pushed::Exists(id)) };
    let due = unique.due_of_replacement(new.due, record.due_at, record.enqueued_at, tx.now).instant(tx.now);
    let old_rank = tx
        .prepare("SELECT rank FROM windlass_task WHERE seq = ?1")?
        .query_row([held.seq], |row| row.get::<_, i64>(0))?;
    let ready_at = match unique.on_conflict {
        OnConflict::Debounce => due.unwrap_or(tx.now),
        OnConflict::Keep | OnConflict::Replace => ready_at(old_rank, record.envelope.priority),
    };
    let state = if due.is_some() { State::Scheduled } else { State::Ready };
    let body = Envelope { args: newer.args, headers: newer.headers, ..record.envelope }.to_body();
    tx.execute(
        "UPDATE windlass_task SET priority = ?2, state = ?3, at = ?4, rank = ?5, body = ?6, waits_for = NULL WHERE seq = ?1",
        params![
            held.seq,
            new.priority.level(),
            state_code(state),
            due.map_or(0, Timestamp::as_micros),
            rank(new.priority, ready_at),
            inline(&body),
        ],
    )?;
    store_body(tx, held.seq, &body)?;
    settle::move_to(tx, &held, state)?;
    Ok(Pushed::Replaced(id))
}

/// Stores a task that follows another one. A known one is left alone, unless it died because nothing led to it: then it
/// is revived and ready, as it is pushed now.
pub(crate) fn push_following(tx: &mut Tx<'_>, task: &NewTask) -> Result<(), Fault> {
    let Some(place) = place_of(tx, &task.id)? else {
        // One whose unique key is taken is left out, whatever it would do to another.
        if taken_by(tx, task)?.is_none() {
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
         failure = NULL, history = NULL, memo = NULL, waits_for = NULL, body = ?12 WHERE seq = ?1",
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
    bury(tx, task, reason, &failure)
}

/// Records a dead letter, unless its id is known.
fn bury(tx: &mut Tx<'_>, task: &NewTask, reason: DeadReason, failure: &Failure) -> Result<(), Fault> {
    let now = tx.now_micros();
    if insert(tx, task, State::Dead, now, rank(task.priority, tx.now))?.is_some() {
        tx.execute(
            "UPDATE windlass_task SET guard = NULL, reason = ?2, failure = ?3 WHERE id = ?1",
            params![Id(&task.id), reason_code(reason), to_json(failure)],
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
    take_until(tx, unique, id, unique.window.map(|window| tx.now + window))
}

/// The same with the end of its window.
pub(crate) fn take_until(tx: &Tx<'_>, unique: &Unique, id: &TaskId, until: Option<Timestamp>) -> Result<(), Fault> {
    let until_started = until.is_none() && unique.hold == UniqueHold::Started;
    tx.execute(
        "INSERT OR REPLACE INTO windlass_taken (key, id, until, until_started) VALUES (?1, ?2, ?3, ?4)",
        params![unique.key.as_str(), Id(id), until.map(Timestamp::as_micros), until_started],
    )?;
    Ok(())
}

/// Gives a unique key back that its task holds until it starts.
pub(crate) fn started(tx: &Tx<'_>, key: &str, id: &TaskId) -> Result<(), Fault> {
    tx.execute("DELETE FROM windlass_taken WHERE key = ?1 AND id = ?2 AND until_started = 1", params![key, Id(id)])?;
    Ok(())
}

/// Gives a unique key back.
pub(crate) fn give_back(tx: &Tx<'_>, key: &str, id: &TaskId) -> Result<(), Fault> {
    tx.execute("DELETE FROM windlass_taken WHERE key = ?1 AND id = ?2", params![key, Id(id)])?;
    Ok(())
}
