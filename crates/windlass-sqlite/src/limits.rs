//! Limits: rules and holds as they are set and read, and what is counted at gates. How a claim passes them is in `turns`.
//!
//! Every claim needs the rules. They are kept in memory and read again when their number in `windlass_meta` has risen,
//! which is asked for only after somebody else has written. What runs is counted anew whenever a rule asks for it: one
//! look at the running rows, so it cannot be wrong.

use std::collections::{BTreeMap, HashMap};

use rusqlite::{Connection, OptionalExtension, params};
use windlass_core::limit::{Gate, GateView, LIMITS_MAX, Limit, LimitChange, LimitsView, Rule, Rules, SetBy};
use windlass_core::{Key, StoreError, Timestamp};

use crate::errors::Fault;
use crate::rows::{micros, optional_text, parse, text};
use crate::tx::Tx;

/// The most gates that one tick looks at; the next one goes on after them.
const PRUNE_MAX: i64 = 1_000;

/// Every rule and every hold, as claims look them up.
pub(crate) fn rules(db: &Connection) -> Result<Rules, Fault> {
    Ok(Rules::new(all(db)?, holds(db)?))
}

fn all(db: &Connection) -> Result<Vec<Limit>, Fault> {
    let mut select = db.prepare_cached("SELECT subject, rule FROM windlass_limit")?;
    let mut rows = select.query([])?;
    let mut limits = Vec::new();
    while let Some(row) = rows.next()? {
        limits.push(Limit { subject: parse("subject of a limit", text(row, 0)?)?, rule: rule_of(text(row, 1)?)? });
    }
    Ok(limits)
}

fn holds(db: &Connection) -> Result<Vec<(Gate, Timestamp)>, Fault> {
    let mut select = db.prepare_cached("SELECT gate, hold FROM windlass_gate WHERE hold IS NOT NULL")?;
    let mut rows = select.query([])?;
    let mut holds = Vec::new();
    while let Some(row) = rows.next()? {
        holds.push((parse("gate", text(row, 0)?)?, Timestamp::from_micros(row.get(1)?)));
    }
    Ok(holds)
}

fn rule_of(stored: &str) -> Result<Rule, Fault> {
    Rule::from_text(stored).map_err(|error| Fault::damaged("limit", error))
}

/// Makes a change that was checked. Answers whether it was one.
pub(crate) fn change(tx: &mut Tx<'_>, change: &LimitChange) -> Result<bool, Fault> {
    let changed = match change {
        LimitChange::Set(limit) => set(tx, limit)?,
        LimitChange::Remove(subject) => {
            tx.execute("DELETE FROM windlass_limit WHERE subject = ?1", [subject.to_string()])? > 0
        }
        LimitChange::Withdraw(subject) => withdraw(tx, &subject.to_string())?,
        LimitChange::Hold { gate, time } => hold(tx, gate, tx.now_micros().saturating_add(micros(*time)))?,
        LimitChange::Reset(gate) => tx.execute("DELETE FROM windlass_gate WHERE gate = ?1", [gate.to_string()])? > 0,
    };
    if changed {
        tx.rules_changed()?;
        tx.memory.transaction.wake_all = true;
    }
    Ok(changed)
}

fn set(tx: &Tx<'_>, Limit { subject, rule }: &Limit) -> Result<bool, Fault> {
    let subject = subject.to_string();
    let mut select = tx.prepare("SELECT rule FROM windlass_limit WHERE subject = ?1")?;
    let before: Option<String> = select.query_row([&subject], |row| row.get(0)).optional()?;
    match before.map(|before| rule_of(&before)).transpose()? {
        Some(before) if before == *rule => return Ok(false),
        Some(before) if before.set_by == SetBy::Operator && rule.set_by == SetBy::Application => return Ok(false),
        Some(_) => {}
        None => {
            let mut select = tx.prepare("SELECT count(*) FROM windlass_limit")?;
            room_for_one(select.query_row([], |row| row.get(0))?, "a store keeps at most", "limits")?;
        }
    }
    tx.execute("INSERT OR REPLACE INTO windlass_limit (subject, rule) VALUES (?1, ?2)", [subject, rule.to_text()])?;
    Ok(true)
}

fn withdraw(tx: &Tx<'_>, subject: &str) -> Result<bool, Fault> {
    let mut select = tx.prepare("SELECT rule FROM windlass_limit WHERE subject = ?1")?;
    let rule: Option<String> = select.query_row([subject], |row| row.get(0)).optional()?;
    match rule.map(|rule| rule_of(&rule)).transpose()? {
        Some(rule) if rule.set_by == SetBy::Application => {
            Ok(tx.execute("DELETE FROM windlass_limit WHERE subject = ?1", [subject])? > 0)
        }
        Some(_) | None => Ok(false),
    }
}

fn hold(tx: &Tx<'_>, gate: &Gate, until: i64) -> Result<bool, Fault> {
    let gate = gate.to_string();
    let mut select = tx.prepare("SELECT hold FROM windlass_gate WHERE gate = ?1")?;
    let before: Option<i64> = select.query_row([&gate], |row| row.get(0)).optional()?.flatten();
    match before {
        Some(before) if before >= until => return Ok(false),
        Some(_) => {}
        None => {
            let mut select = tx.prepare("SELECT count(*) FROM windlass_gate WHERE hold IS NOT NULL")?;
            room_for_one(select.query_row([], |row| row.get(0))?, "a store holds at most", "gates")?;
        }
    }
    tx.execute(
        "INSERT INTO windlass_gate (gate, hold) VALUES (?1, ?2) ON CONFLICT (gate) DO UPDATE SET hold = excluded.hold",
        params![gate, until],
    )?;
    Ok(true)
}

fn room_for_one(kept: i64, at_most: &str, what: &str) -> Result<(), Fault> {
    if kept < LIMITS_MAX as i64 {
        return Ok(());
    }
    Err(Fault::Store(StoreError::Rejected(format!("{at_most} {LIMITS_MAX} {what}"))))
}

/// The limits and what is counted for them, for people.
pub(crate) fn view(db: &Connection, now: Timestamp) -> Result<LimitsView, Fault> {
    let mut limits = all(db)?;
    limits.sort_by(|one, other| one.subject.cmp(&other.subject));
    let mut gates: BTreeMap<Gate, GateView> = BTreeMap::new();
    let empty = |gate: Gate| GateView { gate, held_until: None, next: None, running: None };
    let mut select = db.prepare_cached("SELECT gate, next, hold FROM windlass_gate WHERE next > ?1 OR hold > ?1")?;
    let mut rows = select.query([now.as_micros()])?;
    while let Some(row) = rows.next()? {
        let later = |index: usize| -> Result<Option<Timestamp>, Fault> {
            let stored = row.get::<_, Option<i64>>(index)?.map(Timestamp::from_micros);
            Ok(stored.filter(|stored| *stored > now))
        };
        let gate: Gate = parse("gate", text(row, 0)?)?;
        let seen = GateView { held_until: later(2)?, next: later(1)?, ..empty(gate.clone()) };
        gates.insert(gate, seen);
    }
    let concurrency = |gate: &Gate| {
        limits.iter().any(|Limit { subject, rule }| *subject == gate.subject() && rule.concurrency.is_some())
    };
    if limits.iter().any(|limit| limit.rule.concurrency.is_some()) {
        for (gate, running) in running_at_gates(db)? {
            if concurrency(&gate) {
                gates.entry(gate.clone()).or_insert_with(|| empty(gate)).running = Some(running);
            }
        }
    }
    Ok(LimitsView { limits, gates: gates.into_values().take(LIMITS_MAX).collect() })
}

fn running_at_gates(db: &Connection) -> Result<HashMap<Gate, u64>, Fault> {
    let mut queue = db.prepare_cached("SELECT name FROM windlass_queue WHERE id = ?1")?;
    let mut name = db.prepare_cached("SELECT name FROM windlass_name WHERE id = ?1")?;
    let mut gates = HashMap::new();
    for (counted, running) in Running::count(db)?.0 {
        let mut queue = |number: i64| -> Result<_, Fault> {
            parse("queue name", &queue.query_row([number], |row| row.get::<_, String>(0))?)
        };
        let mut name = |number: i64| -> Result<_, Fault> {
            parse("task name", &name.query_row([number], |row| row.get::<_, String>(0))?)
        };
        let gate = match counted {
            Counted::Queue(number) => Gate::Queue(queue(number)?),
            Counted::Name(number) => Gate::Task(name(number)?),
            Counted::Key(key) => Gate::Key(key),
            Counted::KeyOfQueue(number, key) => Gate::KeyOfQueue(queue(number)?, key),
            Counted::KeyOfName(number, key) => Gate::KeyOfTask(name(number)?, key),
        };
        gates.insert(gate, running);
    }
    Ok(gates)
}

/// How many tasks run, by everything that can be limited.
#[derive(Debug, Default)]
pub(crate) struct Running(HashMap<Counted, u64>);

/// A gate with numbers for names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Counted {
    Queue(i64),
    Name(i64),
    Key(Key),
    KeyOfQueue(i64, Key),
    KeyOfName(i64, Key),
}

impl Running {
    /// Looks at everything that runs.
    pub(crate) fn count(db: &Connection) -> Result<Self, Fault> {
        let mut select = db.prepare_cached(
            "SELECT queue, name, key FROM windlass_task INDEXED BY windlass_task_moment \
             WHERE state = 2 AND state <> 1 AND forget_at IS NULL",
        )?;
        let mut rows = select.query([])?;
        let mut alike: HashMap<(i64, i64, Option<Key>), u64> = HashMap::new();
        while let Some(row) = rows.next()? {
            let key = optional_text(row, 2)?.map(|key| parse("key", key)).transpose()?;
            *alike.entry((row.get(0)?, row.get(1)?, key)).or_default() += 1;
        }
        let mut running = Self::default();
        let mut add = |counted: Counted, tasks: u64| *running.0.entry(counted).or_default() += tasks;
        for ((queue, name, key), tasks) in alike {
            add(Counted::Queue(queue), tasks);
            add(Counted::Name(name), tasks);
            if let Some(key) = key {
                add(Counted::Key(key.clone()), tasks);
                add(Counted::KeyOfQueue(queue, key.clone()), tasks);
                add(Counted::KeyOfName(name, key), tasks);
            }
        }
        Ok(running)
    }

    /// How many run of a gate that tasks of this queue and name pass.
    pub(crate) fn of(&self, gate: &Gate, queue: i64, name: i64) -> u64 {
        let counted = match gate {
            Gate::Queue(_) => Counted::Queue(queue),
            Gate::Task(_) => Counted::Name(name),
            Gate::Key(key) => Counted::Key(key.clone()),
            Gate::KeyOfQueue(_, key) => Counted::KeyOfQueue(queue, key.clone()),
            Gate::KeyOfTask(_, key) => Counted::KeyOfName(name, key.clone()),
        };
        self.0.get(&counted).copied().unwrap_or(0)
    }
}

/// When the next start of a gate is due; long ago when nothing was counted.
pub(crate) fn next_of(tx: &Tx<'_>, gate: &Gate) -> Result<Timestamp, Fault> {
    let mut select = tx.prepare("SELECT next FROM windlass_gate WHERE gate = ?1")?;
    let next: Option<i64> = select.query_row([gate.to_string()], |row| row.get(0)).optional()?.flatten();
    Ok(next.map_or(Timestamp::MIN, Timestamp::from_micros))
}

/// Keeps what a claim has counted at a gate.
pub(crate) fn keep_next(tx: &Tx<'_>, gate: &Gate, next: Timestamp) -> Result<(), Fault> {
    tx.execute(
        "INSERT INTO windlass_gate (gate, next) VALUES (?1, ?2) \
         ON CONFLICT (gate) DO UPDATE SET next = excluded.next WHERE next IS NOT excluded.next",
        params![gate.to_string(), next.as_micros()],
    )?;
    Ok(())
}

/// Forgets holds that have ended and counts that say nothing any more, some with each tick.
pub(crate) fn prune(tx: &mut Tx<'_>) -> Result<(), Fault> {
    let after = std::mem::take(&mut tx.memory.gates_pruned_to);
    let mut select = tx.prepare("SELECT gate, next, hold FROM windlass_gate WHERE gate > ?1 ORDER BY gate LIMIT ?2")?;
    let mut rows = select.query(params![after, PRUNE_MAX])?;
    let (mut seen, mut over, mut holds_ended) = (0, Vec::new(), false);
    let mut last = String::new();
    let now = tx.now_micros();
    while let Some(row) = rows.next()? {
        seen += 1;
        last = row.get(0)?;
        let hold: Option<i64> = row.get(2)?;
        if row.get::<_, Option<i64>>(1)?.is_none_or(|next| next <= now) && hold.is_none_or(|hold| hold <= now) {
            holds_ended |= hold.is_some();
            over.push(last.clone());
        }
    }
    drop(rows);
    for gate in over {
        tx.execute("DELETE FROM windlass_gate WHERE gate = ?1", [gate])?;
    }
    if seen == PRUNE_MAX {
        tx.memory.gates_pruned_to = last;
    }
    if holds_ended { tx.rules_changed() } else { Ok(()) }
}
