//! Claims of queues that have keys or limits: keys take turns, and every gate of a task lets it pass.

use std::collections::HashSet;

use rusqlite::{OptionalExtension, params};
use windlass_core::backend::Demand;
use windlass_core::fair::{KEYS_PER_CLAIM, Turn, deal};
use windlass_core::limit::{Admission, Gate, GateState};
use windlass_core::{Key, QueueName, TaskName};

use crate::claim::{self, Claimed};
use crate::errors::Fault;
use crate::limits::{self, Running};
use crate::rows::{optional_text, parse};
use crate::tick;
use crate::tx::Tx;

/// A queue under a claim.
#[derive(Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) demand: &'a Demand,
    pub(crate) queue: &'a QueueName,
    pub(crate) number: i64,
    /// Names that are left to others.
    pub(crate) shut: &'a [i64],
}

/// What a claim of one queue works with.
struct Passing<'r> {
    admission: Admission<'r>,
    running: Running,
    /// Keys of which this claim can take nothing more.
    set_aside: HashSet<Option<Key>>,
}

/// Whether a claim of this queue must look at limits, or let keys take turns.
pub(crate) fn is_shared(tx: &mut Tx<'_>, queue: i64) -> Result<bool, Fault> {
    Ok(!tx.rules()?.is_empty() || has_keys(tx.db, queue)?)
}

/// Whether tasks with a key are ready in a queue.
pub(crate) fn has_keys(db: &rusqlite::Connection, queue: i64) -> Result<bool, Fault> {
    let mut select = db.prepare_cached(
        "SELECT 1 FROM windlass_task INDEXED BY windlass_task_keyed WHERE state = 1 AND key IS NOT NULL AND queue = ?1 LIMIT 1",
    )?;
    Ok(select.exists([queue])?)
}

/// Takes from a queue what its gates let pass, its keys in turns.
pub(crate) fn take(tx: &mut Tx<'_>, place: Place<'_>, claimed: &mut Vec<Claimed>) -> Result<(), Fault> {
    let rules = tx.rules()?;
    let running = if rules.count_running() { limits::running(tx.db)? } else { Running::new() };
    let mut passing = Passing { admission: Admission::new(&rules, tx.now), running, set_aside: HashSet::new() };
    let mut turn = turn_of(tx, place.number)?;
    let began_with = turn.clone();
    while claimed.len() < place.demand.max {
        // Dealing more places than the gate of the queue has would let turns pass in which nothing is taken.
        let running = &passing.running;
        let of_queue = passing.admission.room_of_queue(place.queue, |gate| state_of(tx, running, gate))?;
        let room = (place.demand.max - claimed.len()).min(usize::try_from(of_queue).unwrap_or(usize::MAX));
        if room == 0 {
            break;
        }
        let participants = participants(tx, place.number, &turn, room, &passing.set_aside)?;
        let Some(first) = participants.first() else { break };
        let left = if turn.key == *first { turn.left } else { rules.weight(first.as_ref()) };
        let weights: Vec<u32> = participants.iter().map(|key| rules.weight(key.as_ref())).collect();
        let (shares, (next, left)) = deal(&weights, left, room);
        turn = Turn { key: participants[next].clone(), left };
        for (key, share) in participants.into_iter().zip(shares).filter(|(_, share)| *share > 0) {
            if !take_of_key(tx, place, key.as_ref(), share, &mut passing, claimed)? {
                passing.set_aside.insert(key);
            }
        }
    }
    if turn != began_with {
        tx.execute(
            "UPDATE windlass_queue SET turn_key = ?2, turn_left = ?3 WHERE id = ?1",
            params![place.number, turn.key.as_ref().map(Key::as_str), turn.left],
        )?;
    }
    for (gate, next) in passing.admission.counted() {
        tx.execute(
            "INSERT OR REPLACE INTO windlass_gate (gate, next) VALUES (?1, ?2)",
            params![gate.to_string(), next.as_micros()],
        )?;
    }
    let opens_at = [tx.memory.opens_at, passing.admission.opens_at()];
    tx.memory.opens_at = opens_at.into_iter().flatten().min();
    Ok(())
}

/// What is known of a gate.
fn state_of(tx: &Tx<'_>, running: &Running, gate: &Gate) -> Result<GateState, Fault> {
    let of = |(queue, name, key, count): &(QueueName, TaskName, Option<Key>, u64)| {
        if gate.is_of(queue, name, key.as_ref()) { *count } else { 0 }
    };
    Ok(GateState { next: limits::next_of(tx, gate)?, running: running.iter().map(of).sum() })
}

fn turn_of(tx: &Tx<'_>, queue: i64) -> Result<Turn, Fault> {
    let mut select = tx.prepare("SELECT turn_key, turn_left FROM windlass_queue WHERE id = ?1")?;
    let mut rows = select.query([queue])?;
    let Some(row) = rows.next()? else { return Ok(Turn::default()) };
    let key = optional_text(row, 0)?.map(|key| parse("key", key)).transpose()?;
    Ok(Turn { key, left: row.get(1)? })
}

/// The keys with ready tasks, beginning with whose turn it is; one more than there are places, who is next.
fn participants(
    tx: &Tx<'_>,
    queue: i64,
    turn: &Turn,
    room: usize,
    set_aside: &HashSet<Option<Key>>,
) -> Result<Vec<Option<Key>>, Fault> {
    let mut found = Vec::new();
    let mut looked = 0;
    let mut add = |key: Option<Key>, found: &mut Vec<Option<Key>>| {
        if !set_aside.contains(&key) {
            found.push(key);
        }
        looked += 1;
        found.len() <= room && looked <= KEYS_PER_CLAIM
    };
    let plain = plainly_ready(tx, queue)?;
    let begin = turn.key.as_ref();
    let mut goes_on = true;
    if begin.is_none() && plain {
        goes_on = add(None, &mut found);
    }
    let mut key = if goes_on { key_from(tx, queue, begin)? } else { None };
    while let Some(this) = key {
        key = if add(Some(this.clone()), &mut found) { key_after(tx, queue, &this)? } else { None };
        goes_on = key.is_some() || found.len() <= room;
    }
    if let Some(begin) = begin.filter(|_| goes_on) {
        goes_on = !plain || add(None, &mut found);
        let mut key = if goes_on { key_from(tx, queue, None)? } else { None };
        while let Some(this) = key.filter(|this| this < begin) {
            key = if add(Some(this.clone()), &mut found) { key_after(tx, queue, &this)? } else { None };
        }
    }
    Ok(found)
}

fn plainly_ready(tx: &Tx<'_>, queue: i64) -> Result<bool, Fault> {
    let mut select = tx.prepare(
        "SELECT 1 FROM windlass_task INDEXED BY windlass_task_ready WHERE state = 1 AND key IS NULL AND queue = ?1 LIMIT 1",
    )?;
    Ok(select.exists([queue])?)
}

fn key_from(tx: &Tx<'_>, queue: i64, from: Option<&Key>) -> Result<Option<Key>, Fault> {
    let mut select = tx.prepare(
        "SELECT key FROM windlass_task INDEXED BY windlass_task_keyed \
         WHERE state = 1 AND key IS NOT NULL AND queue = ?1 AND key >= ?2 ORDER BY key LIMIT 1",
    )?;
    let key: Option<String> =
        select.query_row(params![queue, from.map_or("", Key::as_str)], |row| row.get(0)).optional()?;
    key.map(|key| parse("key", &key)).transpose()
}

fn key_after(tx: &Tx<'_>, queue: i64, after: &Key) -> Result<Option<Key>, Fault> {
    let mut select = tx.prepare(
        "SELECT key FROM windlass_task INDEXED BY windlass_task_keyed \
         WHERE state = 1 AND key IS NOT NULL AND queue = ?1 AND key > ?2 ORDER BY key LIMIT 1",
    )?;
    let key: Option<String> = select.query_row(params![queue, after.as_str()], |row| row.get(0)).optional()?;
    key.map(|key| parse("key", &key)).transpose()
}

/// Takes up to `share` tasks with this key (or without one). Answers whether there may be more that can be taken.
fn take_of_key(
    tx: &mut Tx<'_>,
    place: Place<'_>,
    key: Option<&Key>,
    share: usize,
    passing: &mut Passing<'_>,
    claimed: &mut Vec<Claimed>,
) -> Result<bool, Fault> {
    let names = open_names(tx, place, key)?;
    let Passing { admission, running, .. } = passing;
    let mut rooms = Vec::with_capacity(names.len());
    for number in names {
        let name = tx.name_word(number)?;
        let room = admission.room(place.queue, &name, key, |gate| state_of(tx, running, gate))?;
        if room > 0 {
            rooms.push((number, name, room));
        }
    }
    if rooms.is_empty() {
        return Ok(false);
    }
    if let [(number, name, room)] = &rooms[..]
        && key.is_none()
    {
        let wanted = usize::try_from(*room).unwrap_or(usize::MAX).min(share);
        let before = claimed.len();
        let node = tx.node(&place.demand.node)?;
        if claim::take_all(tx, place.demand, node, (place.queue, place.number), *number, wanted, claimed)? {
            let taken = claimed.len() - before;
            admission.start(place.queue, name, key, taken as u64);
            return Ok(taken == share);
        }
    }
    let best = best_of(tx, place.number, key, &rooms, share)?;
    let found = best.len();
    let (mut taken, mut late) = (0, 0);
    let node = tx.node(&place.demand.node)?;
    for (_, seq, index) in best {
        if taken == share {
            break;
        }
        let (_, name, _) = &rooms[index];
        // Gates that several names pass have less room with each that starts.
        if admission.room(place.queue, name, key, |gate| state_of(tx, running, gate))? == 0 {
            continue;
        }
        if let Some(task) = claim::take(tx, place.demand, node, place.queue, seq)? {
            admission.start(place.queue, name, key, 1);
            claimed.push(task);
            taken += 1;
        } else {
            tick::expire(tx, seq)?;
            late += 1;
        }
    }
    Ok(taken == share || (late > 0 && found > 0))
}

/// The names of a key of a queue of which there are ready tasks that may be taken.
fn open_names(tx: &mut Tx<'_>, place: Place<'_>, key: Option<&Key>) -> Result<Vec<i64>, Fault> {
    let mut names = match key {
        None => claim::ready_names(tx.db, place.number)?,
        Some(key) => names_of(tx, place.number, key)?,
    };
    let paused = tx.paused()?;
    names.retain(|name| !place.shut.contains(name) && !paused.names.contains(name));
    Ok(names)
}

fn names_of(tx: &Tx<'_>, queue: i64, key: &Key) -> Result<Vec<i64>, Fault> {
    let mut next = tx.prepare(
        "SELECT name FROM windlass_task INDEXED BY windlass_task_keyed \
         WHERE state = 1 AND key IS NOT NULL AND queue = ?1 AND key = ?2 AND name > ?3 ORDER BY name LIMIT 1",
    )?;
    let (mut names, mut after) = (Vec::new(), 0);
    while let Some(name) = next.query_row(params![queue, key.as_str(), after], |row| row.get(0)).optional()? {
        names.push(name);
        after = name;
    }
    Ok(names)
}

/// The best ready tasks of these names, as rank, place and the index of the name, best first; of each name no more than it
/// has room for.
fn best_of(
    tx: &Tx<'_>,
    queue: i64,
    key: Option<&Key>,
    rooms: &[(i64, TaskName, u64)],
    share: usize,
) -> Result<Vec<(i64, i64, usize)>, Fault> {
    let mut select = match key {
        None => tx.prepare(
            "SELECT rank, seq FROM windlass_task INDEXED BY windlass_task_ready \
             WHERE state = 1 AND key IS NULL AND queue = ?1 AND name = ?2 AND ?4 IS NULL ORDER BY rank, seq LIMIT ?3",
        )?,
        Some(_) => tx.prepare(
            "SELECT rank, seq FROM windlass_task INDEXED BY windlass_task_keyed \
             WHERE state = 1 AND key IS NOT NULL AND queue = ?1 AND name = ?2 AND key = ?4 ORDER BY rank, seq LIMIT ?3",
        )?,
    };
    let mut best = Vec::new();
    for (index, (name, _, room)) in rooms.iter().enumerate() {
        let most = usize::try_from(*room).unwrap_or(usize::MAX).min(share) as i64;
        let mut rows = select.query(params![queue, name, most, key.map(Key::as_str)])?;
        while let Some(row) = rows.next()? {
            best.push((row.get(0)?, row.get(1)?, index));
        }
    }
    best.sort_unstable();
    // More than a share of them may be needed, when a gate shuts for some of the names.
    if rooms.len() == 1 {
        best.truncate(share);
    }
    Ok(best)
}
