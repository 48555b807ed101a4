//! The way of a claim through the gates: the rules it looks up, and what it counts.

use std::collections::HashMap;

use super::{Gate, Limit, Rule, Subject};
use crate::{Key, QueueName, TaskName, Timestamp};

/// The rules and holds of a store, as its claims look them up.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    rules: HashMap<Subject, Rule>,
    holds: HashMap<Gate, Timestamp>,
    weights: HashMap<Key, u32>,
    any_concurrency: bool,
    any_at_keys: bool,
}

impl Rules {
    /// From what the store keeps. Holds that have ended do no harm.
    pub fn new(limits: impl IntoIterator<Item = Limit>, holds: impl IntoIterator<Item = (Gate, Timestamp)>) -> Self {
        let mut rules = Self { holds: holds.into_iter().collect(), ..Self::default() };
        let of_key = |gate: &Gate| !matches!(gate, Gate::Queue(_) | Gate::Task(_));
        rules.any_at_keys = rules.holds.keys().any(of_key);
        for Limit { subject, rule } in limits {
            rules.any_concurrency |= rule.concurrency.is_some();
            rules.any_at_keys |= !matches!(subject, Subject::Queue(_) | Subject::Task(_));
            if let (Subject::Key(key), Some(weight)) = (&subject, rule.weight) {
                rules.weights.insert(key.clone(), weight);
            }
            rules.rules.insert(subject, rule);
        }
        rules
    }

    /// Whether no claim is affected.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty() && self.holds.is_empty()
    }

    /// Whether what runs must be counted.
    pub fn count_running(&self) -> bool {
        self.any_concurrency
    }

    /// How many may wait in this queue.
    pub fn length(&self, queue: &QueueName) -> Option<u64> {
        self.rules.get(&Subject::Queue(queue.clone()))?.length
    }

    /// How many turns this key gets where others have one.
    pub fn weight(&self, key: Option<&Key>) -> u32 {
        key.and_then(|key| self.weights.get(key)).copied().unwrap_or(1)
    }

    /// The gates with a rule or a hold that tasks of this queue, name and key pass.
    pub fn gates_of(&self, queue: &QueueName, name: &TaskName, key: Option<&Key>) -> Vec<Gate> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut gates = vec![Gate::Queue(queue.clone()), Gate::Task(name.clone())];
        if let Some(key) = key.filter(|_| self.any_at_keys) {
            gates.push(Gate::Key(key.clone()));
            gates.push(Gate::KeyOfQueue(queue.clone(), key.clone()));
            gates.push(Gate::KeyOfTask(name.clone(), key.clone()));
        }
        gates.retain(|gate| self.matters(gate));
        gates
    }

    fn matters(&self, gate: &Gate) -> bool {
        self.holds.contains_key(gate) || self.rules.get(&gate.subject()).is_some_and(Rule::limits_starts)
    }
}

impl Rule {
    /// Whether a claim has to look at it.
    pub fn limits_starts(&self) -> bool {
        self.rate.is_some() || self.concurrency.is_some()
    }
}

/// What a store knows of a gate when a claim begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateState {
    /// When the next start is due; [`Timestamp::MIN`] when nothing was counted.
    pub next: Timestamp,
    /// How many of it run.
    pub running: u64,
}

/// One claim on its way through the gates.
#[derive(Debug)]
pub struct Admission<'r> {
    rules: &'r Rules,
    now: Timestamp,
    states: HashMap<Gate, GateState>,
    opens_at: Option<Timestamp>,
}

/// As many as anybody wants.
const NO_LIMIT: u64 = u64::MAX;

impl<'r> Admission<'r> {
    /// A claim at this time, by the clock of the store.
    pub fn new(rules: &'r Rules, now: Timestamp) -> Self {
        Self { rules, now, states: HashMap::new(), opens_at: None }
    }

    /// How many tasks with this key and name may start from the queue; `load` is asked once for the state of each gate.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn room<E>(
        &mut self,
        queue: &QueueName,
        name: &TaskName,
        key: Option<&Key>,
        mut load: impl FnMut(&Gate) -> Result<GateState, E>,
    ) -> Result<u64, E> {
        let mut room = NO_LIMIT;
        for gate in self.rules.gates_of(queue, name, key) {
            room = room.min(self.room_at(gate, &mut load)?);
            if room == 0 {
                break;
            }
        }
        Ok(room)
    }

    /// How many tasks may start from the queue, whatever their names and keys: more places must not be dealt.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn room_of_queue<E>(
        &mut self,
        queue: &QueueName,
        mut load: impl FnMut(&Gate) -> Result<GateState, E>,
    ) -> Result<u64, E> {
        self.room_at(Gate::Queue(queue.clone()), &mut load)
    }

    /// Whether the queue itself, or the key in it, lets nothing start, whatever its name.
    ///
    /// # Errors
    /// Those of `load`.
    pub fn is_shut<E>(
        &mut self,
        queue: &QueueName,
        key: Option<&Key>,
        mut load: impl FnMut(&Gate) -> Result<GateState, E>,
    ) -> Result<bool, E> {
        let mut gates = vec![Gate::Queue(queue.clone())];
        gates.extend(key.map(|key| Gate::Key(key.clone())));
        gates.extend(key.map(|key| Gate::KeyOfQueue(queue.clone(), key.clone())));
        for gate in gates {
            if self.room_at(gate, &mut load)? == 0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn room_at<E>(&mut self, gate: Gate, load: &mut impl FnMut(&Gate) -> Result<GateState, E>) -> Result<u64, E> {
        if let Some(until) = self.rules.holds.get(&gate).copied().filter(|until| *until > self.now) {
            self.wait_for(until);
            return Ok(0);
        }
        let Some(rule) = self.rules.rules.get(&gate.subject()).filter(|rule| rule.limits_starts()) else {
            return Ok(NO_LIMIT);
        };
        let state = if let Some(state) = self.states.get(&gate) {
            *state
        } else {
            let state = load(&gate)?;
            self.states.insert(gate, state);
            state
        };
        let mut room = NO_LIMIT;
        if let Some(rate) = rule.rate {
            room = rate.room(state.next, self.now);
            if room == 0 {
                self.wait_for(rate.opens_at(state.next));
            }
        }
        if let Some(most) = rule.concurrency {
            room = room.min(u64::from(most).saturating_sub(state.running));
        }
        Ok(room)
    }

    fn wait_for(&mut self, opens_at: Timestamp) {
        self.opens_at = Some(self.opens_at.map_or(opens_at, |before| before.min(opens_at)));
    }

    /// Counts tasks that start. Their room was asked for before.
    pub fn start(&mut self, queue: &QueueName, name: &TaskName, key: Option<&Key>, started: u64) {
        for gate in self.rules.gates_of(queue, name, key) {
            let rate = self.rules.rules.get(&gate.subject()).and_then(|rule| rule.rate);
            if let Some(state) = self.states.get_mut(&gate) {
                state.running += started;
                if let Some(rate) = rate {
                    state.next = rate.after(state.next, self.now, started);
                }
            }
        }
    }

    /// The earliest time at which a gate that was shut opens by itself; a gate whose tasks all run opens when one ends.
    pub fn opens_at(&self) -> Option<Timestamp> {
        self.opens_at
    }

    /// What the store keeps of this claim: when the next start of each gate with a rate is due.
    pub fn counted(&self) -> impl Iterator<Item = (&Gate, Timestamp)> {
        let with_rate = |gate: &Gate| self.rules.rules.get(&gate.subject()).is_some_and(|rule| rule.rate.is_some());
        self.states
            .iter()
            .filter(move |(gate, state)| state.next > self.now && with_rate(gate))
            .map(|(gate, state)| (gate, state.next))
    }
}
