//! One write transaction: what the verbs work with, and what the writer thread remembers for them.
//!
//! Changes of the counts, the newest `seq`, and whom to wake are collected here and flushed once, just before the commit.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};
use windlass_core::limit::Rules;
use windlass_core::view::Retention;
use windlass_core::{NodeId, QueueName, State, TaskId, TaskName, Timestamp};

use crate::errors::Fault;
use crate::limits;
use crate::rows;
use crate::statements::{Lent, Statements};

/// A write transaction in progress.
pub(crate) struct Tx<'a> {
    pub(crate) db: &'a Connection,
    /// The store's time, read once for each job.
    pub(crate) now: Timestamp,
    pub(crate) retention: &'a Retention,
    pub(crate) memory: &'a mut Memory,
    pub(crate) statements: Statements<'a>,
}

/// What the writer thread remembers.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    queues: Words<QueueName>,
    names: Words<TaskName>,
    nodes: Words<NodeId>,
    /// What is paused, as far as this thread knows; forgotten when another process has written.
    paused: Option<Paused>,
    /// The limits, with the number that they were read under.
    rules: Option<(i64, Arc<Rules>)>,
    /// Whether that number is still the newest, as far as this thread knows.
    rules_are_new: bool,
    /// The gate after which the next tick goes on.
    pub(crate) gates_pruned_to: String,
    pub(crate) transaction: Pending,
}

/// What one transaction collects.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    counts: HashMap<i64, [i64; State::ALL.len()]>,
    next_seq: Option<i64>,
    next_seq_moved: bool,
    ended_kept: Option<i64>,
    ended_kept_moved: bool,
    /// How many tasks ended in this transaction, less those that were removed or revived; dead letters apart.
    ended_now: i64,
    /// Queues in which a task became ready.
    pub(crate) woken: BTreeSet<i64>,
    /// Whether every waiting claim should look again.
    pub(crate) wake_all: bool,
    /// Whether a task stopped running: who waits for room may look again.
    room_made: bool,
    /// Tasks that ended; collected only while somebody waits for one.
    pub(crate) ended: Vec<TaskId>,
    pub(crate) collect_ended: bool,
}

/// What is paused.
#[derive(Debug, Default)]
pub(crate) struct Paused {
    pub(crate) queues: HashSet<i64>,
    pub(crate) names: HashSet<i64>,
    /// Everything, because the store is being moved or was.
    pub(crate) closed: bool,
}

/// Words of one kind and their numbers. Rows of words are never removed, so what is known stays true.
#[derive(Debug)]
struct Words<T> {
    numbers: HashMap<T, i64>,
    words: HashMap<i64, T>,
}

impl<T> Default for Words<T> {
    fn default() -> Self {
        Self { numbers: HashMap::new(), words: HashMap::new() }
    }
}

/// More words than this are forgotten and read again: a producer that names a queue after every customer must not fill
/// the memory of every process.
const WORDS_MAX: usize = 10_000;

impl<T: Clone + Eq + std::hash::Hash> Words<T> {
    fn remember(&mut self, word: &T, number: i64) {
        if self.numbers.len() >= WORDS_MAX {
            *self = Self::default();
        }
        self.numbers.insert(word.clone(), number);
        self.words.insert(number, word.clone());
    }
}

impl Memory {
    /// Another process has written.
    pub(crate) fn others_wrote(&mut self) {
        self.paused = None;
        self.rules_are_new = false;
    }

    /// The transaction was rolled back: nothing that it learned is true.
    pub(crate) fn rolled_back(&mut self) {
        *self = Self::default();
    }
}

impl<'a> Tx<'a> {
    /// A statement, prepared once for the life of the connection.
    pub(crate) fn prepare(&self, sql: &'static str) -> Result<Lent<'a>, Fault> {
        self.statements.lend(self.db, sql)
    }

    /// Runs a statement and answers how many rows it changed.
    pub(crate) fn execute(&self, sql: &'static str, values: impl rusqlite::Params) -> Result<usize, Fault> {
        Ok(self.prepare(sql)?.execute(values)?)
    }

    /// Time as the number of a column.
    pub(crate) fn now_micros(&self) -> i64 {
        self.now.as_micros()
    }

    /// The number of a queue, which is created when it is new.
    pub(crate) fn queue(&mut self, queue: &QueueName) -> Result<i64, Fault> {
        if let Some(number) = self.known_queue(queue)? {
            return Ok(number);
        }
        self.execute("INSERT INTO windlass_queue (name) VALUES (?1)", [queue.as_str()])?;
        let number = self.db.last_insert_rowid();
        self.memory.queues.remember(queue, number);
        Ok(number)
    }

    /// The number of a queue that exists.
    pub(crate) fn known_queue(&mut self, queue: &QueueName) -> Result<Option<i64>, Fault> {
        if let Some(number) = self.memory.queues.numbers.get(queue) {
            return Ok(Some(*number));
        }
        let number = queue_number(self.db, queue)?;
        if let Some(number) = number {
            self.memory.queues.remember(queue, number);
        }
        Ok(number)
    }

    /// The number of a name, which is created when it is new.
    pub(crate) fn name(&mut self, name: &TaskName) -> Result<i64, Fault> {
        if let Some(number) = self.known_name(name)? {
            return Ok(number);
        }
        self.execute("INSERT INTO windlass_name (name) VALUES (?1)", [name.as_str()])?;
        let number = self.db.last_insert_rowid();
        self.memory.names.remember(name, number);
        Ok(number)
    }

    /// The number of a name that exists.
    pub(crate) fn known_name(&mut self, name: &TaskName) -> Result<Option<i64>, Fault> {
        if let Some(number) = self.memory.names.numbers.get(name) {
            return Ok(Some(*number));
        }
        let number = name_number(self.db, name)?;
        if let Some(number) = number {
            self.memory.names.remember(name, number);
        }
        Ok(number)
    }

    /// The number of a node, which is created when it has neither claimed nor beaten before.
    pub(crate) fn node(&mut self, node: &NodeId) -> Result<i64, Fault> {
        if let Some(number) = self.memory.nodes.numbers.get(node) {
            return Ok(*number);
        }
        self.execute(
            "INSERT INTO windlass_node (id, beat_at, alive_until) VALUES (?1, ?2, 0) ON CONFLICT (id) DO NOTHING",
            params![node.as_str(), self.now_micros()],
        )?;
        let mut select = self.prepare("SELECT number FROM windlass_node WHERE id = ?1")?;
        let number = select.query_row([node.as_str()], |row| row.get(0))?;
        self.memory.nodes.remember(node, number);
        Ok(number)
    }

    /// The queue with this number.
    pub(crate) fn queue_word(&mut self, number: i64) -> Result<QueueName, Fault> {
        if let Some(queue) = self.memory.queues.words.get(&number) {
            return Ok(queue.clone());
        }
        let text: String =
            self.prepare("SELECT name FROM windlass_queue WHERE id = ?1")?.query_row([number], |row| row.get(0))?;
        let queue: QueueName = rows::parse("queue name", &text)?;
        self.memory.queues.remember(&queue, number);
        Ok(queue)
    }

    /// The name with this number.
    pub(crate) fn name_word(&mut self, number: i64) -> Result<TaskName, Fault> {
        if let Some(name) = self.memory.names.words.get(&number) {
            return Ok(name.clone());
        }
        let text: String =
            self.prepare("SELECT name FROM windlass_name WHERE id = ?1")?.query_row([number], |row| row.get(0))?;
        let name: TaskName = rows::parse("task name", &text)?;
        self.memory.names.remember(&name, number);
        Ok(name)
    }

    /// What is paused now.
    pub(crate) fn paused(&mut self) -> Result<&Paused, Fault> {
        if self.memory.paused.is_none() {
            self.memory.paused = Some(paused(self.db)?);
        }
        Ok(self.memory.paused.get_or_insert_default())
    }

    /// Something was paused or resumed.
    pub(crate) fn paused_changed(&mut self) {
        self.memory.paused = None;
    }

    /// The limits that hold now.
    pub(crate) fn rules(&mut self) -> Result<Arc<Rules>, Fault> {
        if let Some((_, rules)) = self.memory.rules.as_ref().filter(|_| self.memory.rules_are_new) {
            return Ok(Arc::clone(rules));
        }
        let version = self.meta("limits")?;
        let rules = match self.memory.rules.take() {
            Some((known, rules)) if known == version => rules,
            // Most stores have none, and never had.
            Some(_) | None if version == 0 => Arc::default(),
            Some(_) | None => Arc::new(limits::rules(self.db)?),
        };
        self.memory.rules = Some((version, Arc::clone(&rules)));
        self.memory.rules_are_new = true;
        Ok(rules)
    }

    /// A rule or a hold was changed.
    pub(crate) fn rules_changed(&mut self) -> Result<(), Fault> {
        self.execute("UPDATE windlass_meta SET value = value + 1 WHERE key = 'limits'", [])?;
        self.memory.rules_are_new = false;
        Ok(())
    }

    /// How many tasks of a queue wait, with what this transaction has changed.
    pub(crate) fn waiting(&self, queue: i64) -> Result<u64, Fault> {
        let mut select = self.prepare("SELECT scheduled + ready + parked FROM windlass_queue WHERE id = ?1")?;
        let stored: i64 = select.query_row([queue], |row| row.get(0))?;
        let moved = self.memory.transaction.counts.get(&queue).map_or(0, |counts| {
            let waiting = [State::Scheduled, State::Ready, State::Parked];
            waiting.into_iter().map(|state| counts[rows::state_code(state) as usize]).sum()
        });
        Ok(u64::try_from(stored + moved).unwrap_or(0))
    }

    /// The place of the next task in the order of insertion. Never used twice, so that a receipt of a task that was
    /// forgotten cannot fit another one.
    pub(crate) fn next_seq(&mut self) -> Result<i64, Fault> {
        let next = match self.memory.transaction.next_seq {
            Some(next) => next,
            None => self.meta("next_seq")?,
        };
        self.memory.transaction.next_seq = Some(next + 1);
        self.memory.transaction.next_seq_moved = true;
        Ok(next)
    }

    /// The place that was given last in this transaction.
    pub(crate) fn last_seq(&self) -> Result<i64, Fault> {
        let next = self.memory.transaction.next_seq;
        next.map(|next| next - 1).ok_or_else(|| Fault::damaged("order of insertion", "nothing was inserted"))
    }

    /// Whether nobody has asked for a place in this transaction.
    #[cfg(test)]
    pub(crate) fn next_seq_is_unread(&self) -> bool {
        self.memory.transaction.next_seq.is_none()
    }

    /// How many ended tasks the store's retention keeps; dead letters and results with a time of their own apart.
    pub(crate) fn ended_kept(&mut self) -> Result<i64, Fault> {
        if let Some(kept) = self.memory.transaction.ended_kept {
            return Ok(kept);
        }
        let kept = self.meta("ended_kept")?;
        self.memory.transaction.ended_kept = Some(kept);
        Ok(kept)
    }

    /// How many tasks ended in this transaction, less those that were removed or revived; as [`Tx::ended_kept`].
    pub(crate) fn ended_now(&self) -> i64 {
        self.memory.transaction.ended_now
    }

    /// Notes that a task of `queue` left a state; `None` for a new task.
    ///
    /// Of the states that end a task, only the dead letters are counted down; the others count what ever ended so.
    pub(crate) fn count(&mut self, queue: i64, from: Option<State>, to: Option<State>) {
        self.count_many(queue, from, to, 1);
    }

    /// The same for several tasks of one queue.
    pub(crate) fn count_many(&mut self, queue: i64, from: Option<State>, to: Option<State>, tasks: i64) {
        self.memory.transaction.room_made |= from == Some(State::Running);
        let counts = self.memory.transaction.counts.entry(queue).or_default();
        if let Some(from) = from
            && (!from.is_final() || from == State::Dead)
        {
            counts[rows::state_code(from) as usize] -= tasks;
        }
        if let Some(to) = to {
            counts[rows::state_code(to) as usize] += tasks;
        }
    }

    /// Notes that this many ended tasks more are kept by the store's retention, or fewer; dead letters apart.
    pub(crate) fn keep(&mut self, change: i64) -> Result<(), Fault> {
        let kept = self.ended_kept()? + change;
        let transaction = &mut self.memory.transaction;
        transaction.ended_kept = Some(kept);
        transaction.ended_kept_moved = true;
        transaction.ended_now += change;
        Ok(())
    }

    /// Notes that a task of this queue can be claimed.
    pub(crate) fn wake(&mut self, queue: i64) {
        self.memory.transaction.woken.insert(queue);
    }

    /// Notes that a task ended.
    pub(crate) fn ended(&mut self, id: &TaskId) {
        if self.memory.transaction.collect_ended {
            self.memory.transaction.ended.push(id.clone());
        }
    }

    fn meta(&self, key: &str) -> Result<i64, Fault> {
        let mut select = self.prepare("SELECT value FROM windlass_meta WHERE key = ?1")?;
        let value: Option<i64> = select.query_row([key], |row| row.get(0)).optional()?;
        value.ok_or_else(|| Fault::damaged("table of facts", format_args!("`{key}` is missing")))
    }

    /// Writes what was collected.
    pub(crate) fn flush(&mut self) -> Result<(), Fault> {
        if self.memory.transaction.room_made && self.rules()?.count_running() {
            self.memory.transaction.wake_all = true;
        }
        let transaction = &mut self.memory.transaction;
        for (queue, [scheduled, ready, running, parked, succeeded, dead, cancelled, expired]) in
            transaction.counts.drain().filter(|(_, counts)| counts.iter().any(|count| *count != 0))
        {
            self.db
                .prepare_cached(
                    "UPDATE windlass_queue SET used = 1, scheduled = scheduled + ?2, ready = ready + ?3, running = running + ?4, \
                     parked = parked + ?5, succeeded = succeeded + ?6, dead = dead + ?7, cancelled = cancelled + ?8, \
                     expired = expired + ?9 WHERE id = ?1",
                )?
                .execute(params![queue, scheduled, ready, running, parked, succeeded, dead, cancelled, expired])?;
        }
        for (key, value, moved) in [
            ("next_seq", transaction.next_seq, transaction.next_seq_moved),
            ("ended_kept", transaction.ended_kept, transaction.ended_kept_moved),
        ] {
            if let Some(value) = value.filter(|_| moved) {
                self.db
                    .prepare_cached("UPDATE windlass_meta SET value = ?2 WHERE key = ?1")?
                    .execute(params![key, value])?;
            }
        }
        Ok(())
    }
}

/// The number of a queue that exists.
pub(crate) fn queue_number(db: &Connection, queue: &QueueName) -> Result<Option<i64>, Fault> {
    let mut select = db.prepare_cached("SELECT id FROM windlass_queue WHERE name = ?1")?;
    Ok(select.query_row([queue.as_str()], |row| row.get(0)).optional()?)
}

/// The number of a name that exists.
pub(crate) fn name_number(db: &Connection, name: &TaskName) -> Result<Option<i64>, Fault> {
    let mut select = db.prepare_cached("SELECT id FROM windlass_name WHERE name = ?1")?;
    Ok(select.query_row([name.as_str()], |row| row.get(0)).optional()?)
}

/// Whether nothing is started here.
pub(crate) fn is_closed(db: &Connection) -> Result<bool, Fault> {
    Ok(db.prepare_cached("SELECT 1 FROM windlass_meta WHERE key = 'closed'")?.exists([])?)
}

/// Everything that is paused.
pub(crate) fn paused(db: &Connection) -> Result<Paused, Fault> {
    let numbers = |sql: &str| -> Result<HashSet<i64>, Fault> {
        let mut select = db.prepare_cached(sql)?;
        let numbers = select.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(numbers)
    };
    Ok(Paused {
        queues: numbers("SELECT id FROM windlass_queue WHERE paused = 1")?,
        names: numbers("SELECT id FROM windlass_name WHERE paused = 1")?,
        closed: is_closed(db)?,
    })
}
