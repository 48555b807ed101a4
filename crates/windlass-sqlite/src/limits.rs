//! Limits and holds: what is set, what is counted, and how claims look it up.

use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use windlass_core::limit::{Gate, GateView, LIMITS_MAX, Limit, LimitChange, LimitsView, Rule, Rules, SetBy, Subject};
use windlass_core::{Key, QueueName, StoreError, TaskName, Timestamp};

use crate::errors::Fault;
use crate::rows::{optional_text, parse, text};
use crate::tx::Tx;

/// How many tasks of one queue, name and key run.
pub(crate) type Running = Vec<(QueueName, TaskName, Option<Key>, u64)>;

impl Tx<'_> {
    /// The limits and holds; remembered until somebody changes them.
    pub(crate) fn rules(&mut self) -> Result<Arc<Rules>, Fault> {
        if let Some(rules) = &self.memory.rules {
            return Ok(Arc::clone(rules));
        }
        let rules = Arc::new(Rules::new(limits(self.db)?, holds(self.db)?));
        self.memory.rules = Some(Arc::clone(&rules));
        Ok(rules)
    }

    /// How many tasks wait in a queue, this transaction included.
    pub(crate) fn waiting(&mut self, queue: i64) -> Result<u64, Fault> {
        let mut select = self.prepare("SELECT scheduled + ready + parked FROM windlass_queue WHERE id = ?1")?;
        let before: i64 = select.query_row([queue], |row| row.get(0))?;
        Ok(u64::try_from(before + self.memory.transaction.waiting_more(queue)).unwrap_or(0))
    }
}

fn limits(db: &Connection) -> Result<Vec<Limit>, Fault> {
    let mut select = db.prepare_cached("SELECT subject, rule FROM windlass_limit ORDER BY subject")?;
    let mut rows = select.query([])?;
    let mut limits = Vec::new();
    while let Some(row) = rows.next()? {
        let rule = Rule::from_text(text(row, 1)?).map_err(|error| Fault::damaged("limit", error))?;
        limits.push(Limit { subject: parse("subject of a limit", text(row, 0)?)?, rule });
    }
    Ok(limits)
}

fn holds(db: &Connection) -> Result<Vec<(Gate, Timestamp)>, Fault> {
    let mut select = db.prepare_cached("SELECT gate, until FROM windlass_hold")?;
    gates(&mut select)
}

fn gates(select: &mut rusqlite::CachedStatement<'_>) -> Result<Vec<(Gate, Timestamp)>, Fault> {
    let mut rows = select.query([])?;
    let mut gates = Vec::new();
    while let Some(row) = rows.next()? {
        gates.push((parse("gate", text(row, 0)?)?, Timestamp::from_micros(row.get(1)?)));
    }
    Ok(gates)
}

/// What runs, counted anew each time: so it is never wrong.
pub(crate) fn running(db: &Connection) -> Result<Running, Fault> {
    let mut select = db.prepare_cached(
        "SELECT q.name, n.name, t.key, t.tasks FROM (SELECT queue, name, key, count(*) AS tasks FROM windlass_task \
         INDEXED BY windlass_task_moment WHERE state = 2 AND state <> 1 AND forget_at IS NULL GROUP BY queue, name, key) t \
         CROSS JOIN windlass_queue q ON q.id = t.queue CROSS JOIN windlass_name n ON n.id = t.name",
    )?;
    let mut rows = select.query([])?;
    let mut running = Running::new();
    while let Some(row) = rows.next()? {
        let key = optional_text(row, 2)?.map(|key| parse("key", key)).transpose()?;
        running.push((
            parse("queue name", text(row, 0)?)?,
            parse("task name", text(row, 1)?)?,
            key,
            row.get::<_, i64>(3)?.unsigned_abs(),
        ));
    }
    Ok(running)
}

/// When the next start of a gate is due.
pub(crate) fn next_of(tx: &Tx<'_>, gate: &Gate) -> Result<Timestamp, Fault> {
    let mut select = tx.prepare("SELECT next FROM windlass_gate WHERE gate = ?1")?;
    let next: Option<i64> = select.query_row([gate.to_string()], |row| row.get(0)).optional()?;
    Ok(next.map_or(Timestamp::MIN, Timestamp::from_micros))
}

/// Changes a limit; answers whether that changed anything.
pub(crate) fn change(tx: &mut Tx<'_>, change: &LimitChange) -> Result<bool, Fault> {
    let changed = match change {
        LimitChange::Set(limit) => set(tx, limit)?,
        LimitChange::Remove(subject) => remove(tx, subject)?,
        LimitChange::Hold { gate, time } => {
            let held = tx.execute(
                "INSERT INTO windlass_hold (gate, until) VALUES (?1, ?2) ON CONFLICT (gate) DO UPDATE SET until = excluded.until \
                 WHERE excluded.until > windlass_hold.until",
                params![gate.to_string(), (tx.now + *time).as_micros()],
            )?;
            check_number(tx, "SELECT count(*) FROM windlass_hold", "holds")?;
            held > 0
        }
        LimitChange::Reset(gate) => {
            let gate = gate.to_string();
            let held = tx.execute("DELETE FROM windlass_hold WHERE gate = ?1", [&gate])?;
            held + tx.execute("DELETE FROM windlass_gate WHERE gate = ?1", [&gate])? > 0
        }
    };
    tx.memory.rules = None;
    tx.memory.transaction.wake_all |= changed;
    Ok(changed)
}

fn set(tx: &Tx<'_>, Limit { subject, rule }: &Limit) -> Result<bool, Fault> {
    let mut select = tx.prepare("SELECT rule FROM windlass_limit WHERE subject = ?1")?;
    let before: Option<String> = select.query_row([subject.to_string()], |row| row.get(0)).optional()?;
    if let Some(before) = before {
        let before = Rule::from_text(&before).map_err(|error| Fault::damaged("limit", error))?;
        if before == *rule || (before.set_by == SetBy::Operator && rule.set_by == SetBy::Application) {
            return Ok(false);
        }
    }
    tx.execute(
        "INSERT OR REPLACE INTO windlass_limit (subject, rule) VALUES (?1, ?2)",
        params![subject.to_string(), rule.to_text()],
    )?;
    check_number(tx, "SELECT count(*) FROM windlass_limit", "limits")?;
    Ok(true)
}

fn remove(tx: &Tx<'_>, subject: &Subject) -> Result<bool, Fault> {
    Ok(tx.execute("DELETE FROM windlass_limit WHERE subject = ?1", [subject.to_string()])? > 0)
}

fn check_number(tx: &Tx<'_>, count: &'static str, what: &str) -> Result<(), Fault> {
    let number: i64 = tx.prepare(count)?.query_row([], |row| row.get(0))?;
    if number as usize > LIMITS_MAX {
        return Err(Fault::Store(StoreError::Rejected(format!("a store keeps at most {LIMITS_MAX} {what}"))));
    }
    Ok(())
}

/// Forgets what says nothing any more.
pub(crate) fn forget(tx: &mut Tx<'_>) -> Result<(), Fault> {
    tx.execute("DELETE FROM windlass_gate WHERE next <= ?1", [tx.now_micros()])?;
    if tx.execute("DELETE FROM windlass_hold WHERE until <= ?1", [tx.now_micros()])? > 0 {
        tx.memory.rules = None;
    }
    tx.execute("DELETE FROM windlass_note WHERE expires <= ?1", [tx.now_micros()])?;
    Ok(())
}

/// Everything, for people.
pub(crate) fn view(db: &Connection, now: Timestamp) -> Result<LimitsView, Fault> {
    let (limits, holds) = (limits(db)?, holds(db)?);
    let rules = Rules::new(limits.iter().cloned(), holds.iter().cloned());
    let mut views = std::collections::BTreeMap::<Gate, GateView>::new();
    let empty = |gate: &Gate| GateView { gate: gate.clone(), held_until: None, next: None, running: None };
    for (gate, until) in holds.into_iter().filter(|(_, until)| *until > now) {
        views.entry(gate.clone()).or_insert_with(|| empty(&gate)).held_until = Some(until);
    }
    let counted = gates(&mut db.prepare_cached("SELECT gate, next FROM windlass_gate")?)?;
    for (gate, next) in counted.into_iter().filter(|(_, next)| *next > now) {
        views.entry(gate.clone()).or_insert_with(|| empty(&gate)).next = Some(next);
    }
    let with_concurrency = |gate: &Gate| {
        let rule = limits.iter().find(|limit| limit.subject == gate.subject()).map(|limit| &limit.rule);
        rule.is_some_and(|rule| rule.concurrency.is_some())
    };
    for (queue, name, key, running) in running(db)? {
        for gate in rules.gates_of(&queue, &name, key.as_ref()).into_iter().filter(with_concurrency) {
            let view = views.entry(gate.clone()).or_insert_with(|| empty(&gate));
            view.running = Some(view.running.unwrap_or(0) + running);
        }
    }
    Ok(LimitsView { limits, gates: views.into_values().take(LIMITS_MAX).collect() })
}
