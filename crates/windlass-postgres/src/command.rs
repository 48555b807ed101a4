//! Commands: what operators change, only on tasks that nobody holds; a held one is marked.

use std::collections::{HashMap, HashSet};

use windlass_core::backend::{COMMAND_MAX, Commanded, Order, TaskAction};
use windlass_core::memo::{Line, MEMO_BYTES_MAX};
use windlass_core::view::{Cursor, Filter};
use windlass_core::{Envelope, Json, NodeId, QueueName, SignalName, State, TaskId, TaskName, UniqueHold, Verdict};

use crate::connection::Values;
use crate::errors::Fault;
use crate::fleet;
use crate::listing::{self, Scanned};
use crate::push::{NewTask, take_keys};
use crate::rows::{self, id_of, priority_of, queue_of, state_of, value};
use crate::settle;
use crate::tx::Tx;

/// The most orders that wait for one node; the oldest go first.
const ORDERS_MAX: i64 = 100;

/// Moves ended tasks back among those that have not: `$1` the time, then lists of places, new bodies and unique keys.
macro_rules! revive {
    ($table:literal) => {
        concat!(
            "WITH g AS (DELETE FROM windlass.",
            $table,
            " f USING unnest($2::bigint[], $3::text[], $4::text[], $5::boolean[]) AS r(seq, new_body, guard, brief) WHERE f.seq = r.seq \
             RETURNING f.*, r.new_body, r.guard, r.brief) \
             INSERT INTO windlass.live (seq, rank, at, fence, enqueued_at, started_at, keep, attempt, crashes, state, priority, has_flow, \
             id, queue, name, node, guard, brief, key, workflow, history, memo, body) OVERRIDING SYSTEM VALUE \
             SELECT g.seq, $1 - g.priority * 300000000::bigint, 0, g.fence, g.enqueued_at, g.started_at, g.keep, 0, 0, 1, g.priority, \
             g.has_flow, g.id, g.queue, g.name, g.node, g.guard, g.brief, g.key, g.workflow, g.history, g.memo, coalesce(g.new_body, g.body) FROM g"
        )
    };
}
/// A task that a command is about.
#[derive(Debug, Clone)]
struct Found {
    seq: i64,
    id: TaskId,
    state: State,
    queue: QueueName,
    /// Whether it is in the table `finished`.
    finished: bool,
}

/// Which tasks are looked for.
enum Which<'a> {
    Ids(&'a [String]),
    Places(&'a [i64]),
}

/// Finds and locks tasks, whatever their state.
async fn find(tx: &Tx<'_>, which: Which<'_>) -> Result<Vec<Found>, Fault> {
    let (live, finished, kept) = match which {
        Which::Ids(ids) => {
            let values: Values<'_> = &[&ids];
            tokio::try_join!(
                tx.query(
                    "SELECT seq, id, state, queue FROM windlass.live WHERE id = ANY($1) ORDER BY seq FOR UPDATE",
                    values
                ),
                tx.query(
                    "SELECT seq, id, state, queue FROM windlass.finished WHERE id = ANY($1) ORDER BY seq FOR UPDATE",
                    values
                ),
                tx.query(
                    "SELECT seq, id, state, queue FROM windlass.kept WHERE id = ANY($1) ORDER BY seq FOR UPDATE",
                    values
                ),
            )?
        }
        Which::Places(seqs) => {
            let values: Values<'_> = &[&seqs];
            tokio::try_join!(
                tx.query(
                    "SELECT seq, id, state, queue FROM windlass.live WHERE seq = ANY($1) ORDER BY seq FOR UPDATE",
                    values
                ),
                tx.query(
                    "SELECT seq, id, state, queue FROM windlass.finished WHERE seq = ANY($1) ORDER BY seq FOR UPDATE",
                    values
                ),
                tx.query(
                    "SELECT seq, id, state, queue FROM windlass.kept WHERE seq = ANY($1) ORDER BY seq FOR UPDATE",
                    values
                ),
            )?
        }
    };
    let of = |row: &tokio_postgres::Row, finished: bool| -> Result<Found, Fault> {
        Ok(Found {
            seq: value(row, 0)?,
            id: id_of(row, 1)?,
            state: state_of(value(row, 2)?)?,
            queue: queue_of(row, 3)?,
            finished,
        })
    };
    let others = live.iter().chain(&kept).map(|row| of(row, false));
    others.chain(finished.iter().map(|row| of(row, true))).collect()
}

/// Applies an action to these tasks.
pub(crate) async fn tasks(tx: &mut Tx<'_>, ids: &[TaskId], action: &TaskAction) -> Result<Commanded, Fault> {
    let texts: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let found = find(tx, Which::Ids(&texts)).await?;
    let mut by_id: HashMap<&TaskId, &Found> = found.iter().map(|found| (&found.id, found)).collect();
    let mut seen = HashSet::new();
    let first: Vec<Found> = ids
        .iter()
        .filter(|id| seen.insert(*id))
        .filter_map(|id| by_id.get(id))
        .filter(|found| action.applies_to(found.state))
        .map(|found| (*found).clone())
        .collect();
    let changed = act(tx, &first, action).await?;
    // An id that comes again finds the task as the first time has left it.
    let again = find(tx, Which::Ids(&texts)).await?;
    let mut commanded = Commanded::default();
    let mut seen = HashSet::new();
    let states: HashMap<&TaskId, State> = again.iter().map(|found| (&found.id, found.state)).collect();
    for id in ids {
        let done = if seen.insert(id) {
            by_id.remove(id).is_some_and(|found| changed.contains(&found.seq))
        } else {
            let place_only = matches!(action, TaskAction::Move(_) | TaskAction::Reprioritise(_));
            place_only && states.get(id).is_some_and(|state| action.applies_to(*state))
        };
        if done {
            commanded.changed += 1;
        } else {
            commanded.unchanged.push((id.clone(), states.get(id).copied()));
        }
    }
    Ok(commanded)
}

/// Applies an action to the tasks that match and that it has a meaning for, newest first.
pub(crate) async fn matching(
    tx: &mut Tx<'_>,
    filter: &Filter,
    after: Option<i64>,
    action: &TaskAction,
) -> Result<Commanded, Fault> {
    let mut applicable = filter.clone();
    applicable.states = State::ALL
        .into_iter()
        .filter(|state| action.applies_to(*state) && (filter.states.is_empty() || filter.states.contains(state)))
        .collect();
    if applicable.states.is_empty() {
        return Ok(Commanded::default());
    }
    let Scanned { seqs, next } = listing::scan(tx, &applicable, after, COMMAND_MAX).await?;
    let mut found = find(tx, Which::Places(&seqs)).await?;
    found.retain(|found| action.applies_to(found.state));
    found.sort_by_key(|found| std::cmp::Reverse(found.seq));
    let changed = act(tx, &found, action).await?;
    Ok(Commanded {
        changed: changed.len() as u64,
        unchanged: Vec::new(),
        next: next.map(|seq| Cursor(seq.to_string())),
    })
}

/// Does it to locked tasks in states that it has a meaning for. Answers the places of those that it changed.
async fn act(tx: &mut Tx<'_>, found: &[Found], action: &TaskAction) -> Result<HashSet<i64>, Fault> {
    let seqs: Vec<i64> = found.iter().map(|found| found.seq).collect();
    if seqs.is_empty() {
        return Ok(HashSet::new());
    }
    match action {
        TaskAction::Cancel => cancel(tx, found).await,
        TaskAction::Retry => retry(tx, found).await,
        TaskAction::Discard => {
            tx.execute("DELETE FROM windlass.finished WHERE seq = ANY($1)", &[&seqs]).await?;
            tx.execute("DELETE FROM windlass.kept WHERE seq = ANY($1)", &[&seqs]).await?;
            for found in found {
                tx.count(&found.queue, Some(found.state), None);
                if found.finished {
                    tx.count_removed(&found.queue, 1);
                }
            }
            Ok(seqs.into_iter().collect())
        }
        TaskAction::Move(queue) => {
            tx.execute("UPDATE windlass.live SET queue = $2 WHERE seq = ANY($1)", &[&seqs, &queue.as_str()]).await?;
            for found in found {
                tx.count(&found.queue, Some(found.state), None);
                tx.count(queue, None, Some(found.state));
                if found.state == State::Ready {
                    tx.effects.queues.insert(queue.clone());
                }
            }
            Ok(seqs.into_iter().collect())
        }
        TaskAction::Reprioritise(priority) => {
            tx.execute(
                "UPDATE windlass.live SET rank = rank + (priority - $2::smallint) * 300000000::bigint, priority = $2 \
                 WHERE seq = ANY($1)",
                &[&seqs, &i16::from(priority.level())],
            )
            .await?;
            Ok(seqs.into_iter().collect())
        }
        TaskAction::RunNow => {
            run_now(tx, &found.iter().collect::<Vec<_>>()).await?;
            Ok(seqs.into_iter().collect())
        }
        TaskAction::Signal { name, value } => signal(tx, found, name, value).await,
    }
}

/// Makes scheduled tasks ready at once.
async fn run_now(tx: &mut Tx<'_>, found: &[&Found]) -> Result<(), Fault> {
    let seqs: Vec<i64> = found.iter().map(|found| found.seq).collect();
    tx.execute(
        "UPDATE windlass.live SET state = 1, at = 0, waits_for = NULL, rank = $2 - priority * 300000000::bigint WHERE seq = ANY($1)",
        &[&seqs, &tx.now.as_micros()],
    )
    .await?;
    for found in found {
        tx.count(&found.queue, Some(State::Scheduled), Some(State::Ready));
        tx.effects.queues.insert(found.queue.clone());
    }
    Ok(())
}

/// Adds a signal to the memos of tasks, and wakes those that wait for it.
async fn signal(tx: &mut Tx<'_>, found: &[Found], name: &SignalName, sent: &Json) -> Result<HashSet<i64>, Fault> {
    let seqs: Vec<i64> = found.iter().map(|found| found.seq).collect();
    let line = Line::Signal { signal: name.clone(), value: sent.clone() }.to_text();
    let rows = tx
        .query(
            "UPDATE windlass.live SET memo = coalesce(memo, '') || $2::text WHERE seq = ANY($1) \
             AND octet_length(coalesce(memo, '')) + octet_length($2::text) <= $3 \
             RETURNING seq, state = 0 AND waits_for IS NOT DISTINCT FROM $4",
            &[&seqs, &line, &(MEMO_BYTES_MAX as i32), &name.as_str()],
        )
        .await?;
    let (mut told, mut woken) = (HashSet::new(), HashSet::new());
    for row in &rows {
        told.insert(value(row, 0)?);
        if value(row, 1)? {
            woken.insert(value::<i64>(row, 0)?);
        }
    }
    run_now(tx, &found.iter().filter(|found| woken.contains(&found.seq)).collect::<Vec<_>>()).await?;
    Ok(told)
}

async fn cancel(tx: &mut Tx<'_>, found: &[Found]) -> Result<HashSet<i64>, Fault> {
    let (running, waiting): (Vec<&Found>, Vec<&Found>) = found.iter().partition(|found| found.state == State::Running);
    let running: Vec<i64> = running.iter().map(|found| found.seq).collect();
    let marked = tx
        .query("UPDATE windlass.live SET cancel = true WHERE seq = ANY($1) AND NOT cancel RETURNING seq", &[&running])
        .await?;
    let mut changed: HashSet<i64> = marked.iter().map(|row| value(row, 0)).collect::<Result<_, _>>()?;
    let waiting: Vec<i64> = waiting.iter().map(|found| found.seq).collect();
    let held = settle::held(tx, &waiting).await?;
    changed.extend(&waiting);
    settle::end_by_store(tx, held.into_iter().map(|held| (held, Verdict::Cancelled)).collect()).await?;
    Ok(changed)
}

/// Makes ended tasks ready with all their attempts, unless another one has their unique key by now.
async fn retry(tx: &mut Tx<'_>, found: &[Found]) -> Result<HashSet<i64>, Fault> {
    let seqs: Vec<i64> = found.iter().map(|found| found.seq).collect();
    let rows = tx
        .query(
            "SELECT seq, name, priority, body FROM windlass.finished WHERE seq = ANY($1) \
             UNION ALL SELECT seq, name, priority, body FROM windlass.kept WHERE seq = ANY($1)",
            &[&seqs],
        )
        .await?;
    let mut stored: HashMap<i64, &tokio_postgres::Row> = HashMap::new();
    for row in &rows {
        stored.insert(value(row, 0)?, row);
    }
    let (mut places, mut bodies, mut guards, mut briefs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut changed = HashSet::new();
    for found in found {
        let Some(row) = stored.get(&found.seq) else { continue };
        let envelope = Envelope::from_body(
            found.id.clone(),
            rows::parse("task name", value(row, 1)?)?,
            found.queue.clone(),
            priority_of(value(row, 2)?)?,
            value(row, 3)?,
        );
        let (mut body, mut guard, mut brief) = (None, None, None);
        // One that cannot be read starts over as it is: its next holder makes it a dead letter again.
        if let Ok(mut envelope) = envelope {
            if envelope.unique.is_some() {
                if !take_key_again(tx, &envelope).await? {
                    continue;
                }
                // A window counts from the push on and is not opened again.
                let unique = envelope.unique.as_ref().filter(|unique| unique.window.is_none());
                guard = unique.map(|unique| unique.key.as_str().to_owned());
                brief = unique.filter(|unique| unique.hold == UniqueHold::Started).map(|_| true);
            }
            if envelope.expires.take().is_some() {
                body = Some(envelope.to_body());
            }
        }
        places.push(found.seq);
        bodies.push(body);
        guards.push(guard);
        briefs.push(brief);
        changed.insert(found.seq);
        tx.count(&found.queue, Some(found.state), Some(State::Ready));
        if found.finished {
            tx.count_removed(&found.queue, 1);
        }
        tx.effects.queues.insert(found.queue.clone());
    }
    let now = tx.now.as_micros();
    for sql in [revive!("finished"), revive!("kept")] {
        tx.execute(sql, &[&now, &places, &bodies, &guards, &briefs]).await?;
    }
    Ok(changed)
}

/// Whether a task may start over as far as its unique key is concerned; takes the key when it has no window.
async fn take_key_again(tx: &mut Tx<'_>, envelope: &Envelope) -> Result<bool, Fault> {
    let task = NewTask::of(envelope);
    let Some((key, window)) = &task.unique else { return Ok(true) };
    let now = tx.now.as_micros();
    let holder = tx
        .query(
            "SELECT id FROM windlass.taken WHERE key = $1 AND (until IS NULL OR until > $2) FOR UPDATE",
            &[key, &now],
        )
        .await?;
    match holder.first() {
        Some(row) => Ok(value::<&str>(row, 0)? == task.id_text),
        None if window.is_some() => Ok(true),
        None => Ok(take_keys(tx, [&task]).await?.contains(key)),
    }
}

/// Whether something is started.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Flowing {
    Paused,
    Resumed,
}

/// Pauses or resumes a queue, which need not exist yet. Answers whether that changed anything.
pub(crate) async fn set_queue(tx: &mut Tx<'_>, queue: &QueueName, flowing: Flowing) -> Result<u64, Fault> {
    match flowing {
        Flowing::Paused => {
            tx.execute(
                "INSERT INTO windlass.queue AS q (name, paused) VALUES ($1, true) \
                 ON CONFLICT (name) DO UPDATE SET paused = true WHERE NOT q.paused",
                &[&queue.as_str()],
            )
            .await
        }
        Flowing::Resumed => {
            tx.effects.all = true;
            tx.execute("UPDATE windlass.queue SET paused = false WHERE name = $1 AND paused", &[&queue.as_str()]).await
        }
    }
}

/// Pauses or resumes a name, which need not exist yet. Answers whether that changed anything.
pub(crate) async fn set_name(tx: &mut Tx<'_>, name: &TaskName, flowing: Flowing) -> Result<u64, Fault> {
    match flowing {
        Flowing::Paused => {
            tx.execute("INSERT INTO windlass.paused_name VALUES ($1) ON CONFLICT DO NOTHING", &[&name.as_str()]).await
        }
        Flowing::Resumed => {
            tx.effects.all = true;
            tx.execute("DELETE FROM windlass.paused_name WHERE name = $1", &[&name.as_str()]).await
        }
    }
}

/// Leaves an order for a node. Answers whether there is such a node.
pub(crate) async fn order(tx: &mut Tx<'_>, node: &NodeId, order: Order) -> Result<u64, Fault> {
    let known = tx
        .query(
            "SELECT 1 FROM windlass.node WHERE id = $1 AND beat_at > $2",
            &[&node.as_str(), &(tx.now - fleet::SHOWN).as_micros()],
        )
        .await?;
    if known.is_empty() {
        return Ok(0);
    }
    let (what, slots) = match order {
        Order::Quiet => ("quiet", None),
        Order::Resume => ("resume", None),
        Order::Stop => ("stop", None),
        Order::Resize(slots) => ("resize", Some(slots as i64)),
    };
    tx.execute(
        "DELETE FROM windlass.orders WHERE number IN \
         (SELECT number FROM windlass.orders WHERE node = $1 ORDER BY number DESC OFFSET $2)",
        &[&node.as_str(), &(ORDERS_MAX - 1)],
    )
    .await?;
    tx.execute("INSERT INTO windlass.orders (node, what, slots) VALUES ($1, $2, $3)", &[&node.as_str(), &what, &slots])
        .await?;
    Ok(1)
}
