//! Taking tasks of a queue by turns: its keys in a circle, weighted ([`windlass_core::fair`]), and every task through its
//! gates ([`windlass_core::limit`]).
//!
//! A queue without keys is one line and has no turns. Of the others, a claim reads the keys one by one from whose turn it is,
//! as many as it has places; a key that has nothing for it leaves the circle of this claim.

use std::cell::Cell;
use std::collections::{HashSet, VecDeque};

use rusqlite::params;
use windlass_core::fair::{KEYS_PER_CLAIM, Turn, deal};
use windlass_core::limit::{Admission, Gate, GateState, Rules};
use windlass_core::{Key, QueueName, TaskName, Timestamp};

use crate::claim::{Taking, take_of};
use crate::errors::Fault;
use crate::limits::{self, Running};
use crate::line::{self, From};
use crate::rows::{optional_text, parse};
use crate::tx::Tx;

/// The gates as one claim passes them; what is counted at each is read once.
pub(crate) struct Gates<'r> {
    rules: &'r Rules,
    admission: Admission<'r>,
    /// Counted when it is asked for first. What this claim starts is counted by the admission.
    running: Option<Running>,
}

/// A queue and a name, by their numbers too.
#[derive(Clone, Copy)]
pub(crate) struct Of<'a> {
    pub(crate) queue: (&'a QueueName, i64),
    pub(crate) name: (&'a TaskName, i64),
}

impl<'r> Gates<'r> {
    pub(crate) fn new(rules: &'r Rules, now: Timestamp) -> Self {
        Self { rules, admission: Admission::new(rules, now), running: None }
    }

    /// Whether there is nothing to look at.
    pub(crate) fn are_open(&self) -> bool {
        self.rules.is_empty()
    }

    /// How many tasks may start.
    pub(crate) fn room(&mut self, tx: &Tx<'_>, of: Of<'_>, key: Option<&Key>) -> Result<u64, Fault> {
        let Self { rules, admission, running } = self;
        let ((queue, queue_number), (name, name_number)) = (of.queue, of.name);
        admission.room(queue, name, key, |gate| state_of(tx, rules, running, gate, (queue_number, name_number)))
    }

    /// Whether the queue itself, or the key in it, lets nothing start.
    pub(crate) fn is_shut(
        &mut self,
        tx: &Tx<'_>,
        (queue, number): (&QueueName, i64),
        key: Option<&Key>,
    ) -> Result<bool, Fault> {
        if self.are_open() {
            return Ok(false);
        }
        let Self { rules, admission, running } = self;
        // No gate that is asked about here is one of a name.
        admission.is_shut(queue, key, |gate| state_of(tx, rules, running, gate, (number, 0)))
    }

    /// How many tasks may start from a queue, whatever their names and keys.
    fn room_of_queue(&mut self, tx: &Tx<'_>, (queue, number): (&QueueName, i64)) -> Result<usize, Fault> {
        let Self { rules, admission, running } = self;
        let room = admission.room_of_queue(queue, |gate| state_of(tx, rules, running, gate, (number, 0)))?;
        Ok(usize::try_from(room).unwrap_or(usize::MAX))
    }

    /// Counts tasks that start.
    pub(crate) fn start(&mut self, queue: &QueueName, name: &TaskName, key: Option<&Key>, started: usize) {
        self.admission.start(queue, name, key, started as u64);
    }

    /// Keeps what the claim has counted. One that started nothing has counted nothing, and must not write: its write would
    /// wake others that wait, whose writes would wake this one.
    pub(crate) fn keep(&self, tx: &Tx<'_>) -> Result<(), Fault> {
        self.admission.counted().try_for_each(|(gate, next)| limits::keep_next(tx, gate, next))
    }

    /// When a gate that was shut opens by itself.
    pub(crate) fn opens_at(&self) -> Option<Timestamp> {
        self.admission.opens_at()
    }
}

fn state_of(
    tx: &Tx<'_>,
    rules: &Rules,
    running: &mut Option<Running>,
    gate: &Gate,
    (queue, name): (i64, i64),
) -> Result<GateState, Fault> {
    let next = limits::next_of(tx, gate)?;
    if !rules.count_running() {
        return Ok(GateState { next, running: 0 });
    }
    let running = match running {
        Some(running) => running,
        None => running.insert(Running::count(tx.db)?),
    };
    Ok(GateState { next, running: running.of(gate, queue, name) })
}

/// Takes what a queue has for the demand.
pub(crate) fn take_from(tx: &mut Tx<'_>, taking: &mut Taking<'_, '_>) -> Result<(), Fault> {
    let (_, number) = taking.queue;
    if !line::any_with_key(tx.db, number)? {
        let room = taking.room();
        return take_of(tx, taking, None, room).map(drop);
    }
    let before = turn_of(tx, number)?;
    let had = taking.claimed.len();
    let mut turn = before.clone();
    let mut circle = Circle::beginning_with(number, before.key.clone());
    loop {
        // Dealing more places than the gate of the queue has would let turns pass in which nothing is taken.
        let room = taking.room().min(taking.gates.room_of_queue(tx, taking.queue)?);
        if room == 0 {
            break;
        }
        circle.fill(tx, room + 1)?;
        let Some(first) = circle.ahead.front() else { break };
        let rules = taking.gates.rules;
        let left = if turn.key == *first { turn.left } else { rules.weight(first.as_ref()) };
        let participants: Vec<Option<Key>> = circle.ahead.iter().take(room + 1).cloned().collect();
        let weights: Vec<u32> = participants.iter().map(|key| rules.weight(key.as_ref())).collect();
        let (shares, (next, left)) = deal(&weights, left, room);
        turn = Turn { key: participants[next].clone(), left };
        circle.pass(next);
        let mut out = HashSet::new();
        for (key, share) in participants.into_iter().zip(shares).filter(|(_, share)| *share > 0) {
            if take_of(tx, taking, key.as_ref(), share)? < share {
                out.insert(key);
            }
        }
        circle.leave(&out);
    }
    if turn != before && taking.claimed.len() > had {
        tx.execute(
            "UPDATE windlass_queue SET turn_key = ?2, turn_left = ?3 WHERE id = ?1",
            params![number, turn.key.as_ref().map(Key::as_str), turn.left],
        )?;
    }
    Ok(())
}

fn turn_of(tx: &Tx<'_>, queue: i64) -> Result<Turn, Fault> {
    let mut select = tx.prepare("SELECT turn_key, turn_left FROM windlass_queue WHERE id = ?1")?;
    let mut rows = select.query([queue])?;
    let Some(row) = rows.next()? else { return Ok(Turn::default()) };
    let key = optional_text(row, 0)?.map(|key| parse("key", key)).transpose()?;
    Ok(Turn { key, left: row.get(1)? })
}

/// The lines of a queue that take part in a claim, in the order of their turns. Those that are not needed are not read.
struct Circle {
    queue: i64,
    first: Option<Key>,
    unread: Unread,
    /// The most keys that are still read.
    left: Cell<usize>,
    /// Beginning with whose turn it is.
    ahead: VecDeque<Option<Key>>,
    /// Those whose turn is over; after the last that is read, they come again.
    passed: VecDeque<Option<Key>>,
}

/// What has not been read of the circle.
enum Unread {
    /// The keys from here on; then tasks without a key, and the keys before the first.
    ToTheEnd(From),
    /// Tasks without a key, and the keys before the first.
    FromTheStart,
    /// The keys from here on that come before the first.
    ToTheFirst(From),
    Nothing,
}

impl Circle {
    fn beginning_with(queue: i64, first: Option<Key>) -> Self {
        let unread = match &first {
            Some(key) => Unread::ToTheEnd(From::Key(key.clone())),
            None => Unread::FromTheStart,
        };
        Self { queue, first, unread, left: Cell::new(KEYS_PER_CLAIM), ahead: VecDeque::new(), passed: VecDeque::new() }
    }

    /// Sees to it that this many are ahead, when there are so many.
    fn fill(&mut self, tx: &Tx<'_>, wanted: usize) -> Result<(), Fault> {
        while self.ahead.len() < wanted && self.read_one(tx)? {}
        if self.ahead.len() < wanted {
            self.ahead.append(&mut self.passed);
        }
        Ok(())
    }

    /// Reads the next line of the circle; answers whether there was one.
    fn read_one(&mut self, tx: &Tx<'_>) -> Result<bool, Fault> {
        loop {
            let (found, unread) = match &self.unread {
                Unread::ToTheEnd(from) => match self.next_key(tx, from)? {
                    Some(key) => (Some(Some(key.clone())), Unread::ToTheEnd(From::After(key))),
                    None => (None, Unread::FromTheStart),
                },
                Unread::FromTheStart => {
                    (line::any_without_key(tx.db, self.queue)?.then_some(None), Unread::ToTheFirst(From::Start))
                }
                Unread::ToTheFirst(from) => match self.next_key(tx, from)? {
                    Some(key) if self.first.as_ref().is_none_or(|first| key < *first) => {
                        (Some(Some(key.clone())), Unread::ToTheFirst(From::After(key)))
                    }
                    Some(_) | None => (None, Unread::Nothing),
                },
                Unread::Nothing => return Ok(false),
            };
            self.unread = unread;
            if let Some(line) = found {
                self.ahead.push_back(line);
                return Ok(true);
            }
        }
    }

    fn next_key(&self, tx: &Tx<'_>, from: &From) -> Result<Option<Key>, Fault> {
        if self.left.get() == 0 {
            return Ok(None);
        }
        self.left.set(self.left.get() - 1);
        line::next_key(tx.db, self.queue, from)
    }

    /// The turns of this many are over.
    fn pass(&mut self, turns: usize) {
        self.passed.extend(self.ahead.drain(..turns));
    }

    /// Nothing more is taken of these.
    fn leave(&mut self, out: &HashSet<Option<Key>>) {
        if !out.is_empty() {
            self.ahead.retain(|key| !out.contains(key));
            self.passed.retain(|key| !out.contains(key));
        }
    }
}
