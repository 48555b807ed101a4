//! Limits and holds: what is set, what is counted, and what a claim may take of a queue because of it.

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;

use windlass_core::backend::Claim;
use windlass_core::backend::Demand;
use windlass_core::fair::{KEYS_PER_CLAIM, Turn, deal};
use windlass_core::limit::{
    Admission, Gate, GateState, GateView, LIMITS_MAX, Limit, LimitChange, LimitsView, Rule, Rules, SetBy, Subject,
};
use windlass_core::{Key, StoreError, TaskName, Timestamp, Verdict};

use crate::data::{Data, QueueIndex};
use crate::hash::FastMap;
use crate::slab::Slot;

/// The limits of a store.
#[derive(Default)]
pub(crate) struct Limits {
    set: BTreeMap<Subject, Rule>,
    holds: BTreeMap<Gate, Timestamp>,
    /// When the next start of a gate with a rate is due.
    next: FastMap<Gate, Timestamp>,
    /// The same as claims look it up.
    pub(crate) rules: Rules,
    /// When the last claim could have taken more, by the gates that it found shut.
    pub(crate) opens_at: Option<Timestamp>,
    /// A running task has ended, and others may have waited for that.
    pub(crate) released: bool,
}

/// How many tasks of one queue, name and key run.
type Running = Vec<(QueueIndex, TaskName, Option<Key>, u64)>;

impl Limits {
    fn look_up_again(&mut self) {
        let limits = self.set.iter().map(|(subject, rule)| Limit { subject: subject.clone(), rule: rule.clone() });
        self.rules = Rules::new(limits, self.holds.clone());
    }

    /// Forgets holds that have ended and counts that say nothing any more.
    pub(crate) fn prune(&mut self, now: Timestamp) {
        let before = self.holds.len();
        self.holds.retain(|_, until| *until > now);
        self.next.retain(|_, next| *next > now);
        if self.holds.len() != before {
            self.look_up_again();
        }
    }
}

impl Data {
    pub(crate) fn limit(&mut self, change: &LimitChange, now: Timestamp) -> Result<bool, StoreError> {
        change.check()?;
        let limits = &mut self.limits;
        let changed = match change {
            LimitChange::Set(Limit { subject, rule }) => {
                let before = limits.set.get(subject);
                let kept = before.is_some_and(|before| {
                    before == rule || (before.set_by == SetBy::Operator && rule.set_by == SetBy::Application)
                });
                if before.is_none() && limits.set.len() >= LIMITS_MAX {
                    return Err(StoreError::Rejected(format!("a store keeps at most {LIMITS_MAX} limits")));
                }
                if !kept {
                    limits.set.insert(subject.clone(), rule.clone());
                }
                !kept
            }
            LimitChange::Remove(subject) => limits.set.remove(subject).is_some(),
            LimitChange::Withdraw(subject) => {
                let declared = limits.set.get(subject).is_some_and(|rule| rule.set_by == SetBy::Application);
                declared && limits.set.remove(subject).is_some()
            }
            LimitChange::Hold { gate, time } => {
                let until = now + *time;
                let longer = limits.holds.get(gate).is_none_or(|before| *before < until);
                if limits.holds.len() >= LIMITS_MAX && !limits.holds.contains_key(gate) {
                    return Err(StoreError::Rejected(format!("a store holds at most {LIMITS_MAX} gates")));
                }
                if longer {
                    limits.holds.insert(gate.clone(), until);
                }
                longer
            }
            LimitChange::Reset(gate) => {
                let counted = limits.next.remove(gate).is_some();
                limits.holds.remove(gate).is_some() || counted
            }
        };
        limits.look_up_again();
        if changed {
            self.wake_everybody();
        }
        Ok(changed)
    }

    pub(crate) fn limits(&self, now: Timestamp) -> LimitsView {
        let limits = &self.limits;
        let set = limits.set.iter().map(|(subject, rule)| Limit { subject: subject.clone(), rule: rule.clone() });
        let mut gates: BTreeMap<Gate, GateView> = BTreeMap::new();
        let mut view = |gate: &Gate, fill: &mut dyn FnMut(&mut GateView)| {
            let empty = || GateView { gate: gate.clone(), held_until: None, next: None, running: None };
            fill(gates.entry(gate.clone()).or_insert_with(empty));
        };
        for (gate, until) in limits.holds.iter().filter(|(_, until)| **until > now) {
            view(gate, &mut |view| view.held_until = Some(*until));
        }
        for (gate, next) in limits.next.iter().filter(|(_, next)| **next > now) {
            view(gate, &mut |view| view.next = Some(*next));
        }
        let queue_name = |index: QueueIndex| self.queue_by_name.iter().find(|(_, at)| **at == index);
        for (index, name, key, running) in self.running() {
            let Some((queue, _)) = queue_name(index) else { continue };
            for gate in limits.rules.gates_of(queue, &name, key.as_ref()) {
                if limits.set.get(&gate.subject()).is_some_and(|rule| rule.concurrency.is_some()) {
                    view(&gate, &mut |view| view.running = Some(view.running.unwrap_or(0) + running));
                }
            }
        }
        LimitsView { limits: set.collect(), gates: gates.into_values().take(LIMITS_MAX).collect() }
    }

    /// What runs, counted anew each time: so it is never wrong.
    fn running(&self) -> Running {
        let mut counted: FastMap<(QueueIndex, TaskName, Option<Key>), u64> = FastMap::default();
        for (_, slot) in &self.leases {
            let task = &self.tasks[*slot];
            let envelope = &task.envelope;
            *counted.entry((task.queue, envelope.name.clone(), envelope.key.clone())).or_default() += 1;
        }
        counted.into_iter().map(|((queue, name, key), running)| (queue, name, key, running)).collect()
    }

    /// Whether a claim of this queue must look at limits, or let keys take turns.
    pub(crate) fn is_shared(&self, index: QueueIndex) -> bool {
        !self.limits.rules.is_empty() || !self.queues[index].keyed.is_empty()
    }

    /// Takes from a queue what its gates let pass, its keys in turns.
    pub(crate) fn take_in_turns(
        &mut self,
        index: QueueIndex,
        demand: &Demand,
        now: Timestamp,
        claims: &mut Vec<Claim>,
    ) {
        let rules = std::mem::take(&mut self.limits.rules);
        let running = if rules.count_running() { self.running() } else { Running::new() };
        let mut passing = Passing { admission: Admission::new(&rules, now), running, set_aside: HashSet::new() };
        while claims.len() < demand.max {
            let room = (demand.max - claims.len()).min(self.room_of(index, demand, &mut passing));
            if room == 0 {
                break;
            }
            let participants = self.participants(index, room, &passing.set_aside);
            let Some(first) = participants.first() else { break };
            let turn = &self.queues[index].turn;
            let left = if turn.key == *first { turn.left } else { rules.weight(first.as_ref()) };
            let weights: Vec<u32> = participants.iter().map(|key| rules.weight(key.as_ref())).collect();
            let (shares, (next, left)) = deal(&weights, left, room);
            self.queues[index].turn = Turn { key: participants[next].clone(), left };
            for (key, share) in participants.into_iter().zip(shares).filter(|(_, share)| *share > 0) {
                if self.take_of_key(index, key.as_ref(), share, demand, now, &mut passing, claims) < share {
                    passing.set_aside.insert(key);
                }
            }
        }
        let Passing { admission, .. } = passing;
        let opens_at = admission.opens_at();
        let counted: Vec<(Gate, Timestamp)> = admission.counted().map(|(gate, next)| (gate.clone(), next)).collect();
        self.limits.rules = rules;
        self.limits.next.extend(counted);
        self.limits.opens_at = [self.limits.opens_at, opens_at].into_iter().flatten().min();
    }

    /// How many places the gate of the queue has: dealing more would let turns pass in which nothing is taken.
    fn room_of(&self, index: QueueIndex, demand: &Demand, passing: &mut Passing<'_>) -> usize {
        let Some(queue) = demand.queues.iter().find(|name| self.queue_by_name.get(*name) == Some(&index)) else {
            return 0;
        };
        let Passing { admission, running, .. } = passing;
        let next = &self.limits.next;
        let Ok(room) = admission.room_of_queue(queue, |gate| -> Result<GateState, Infallible> {
            let in_queue = running.iter().filter(|(at, ..)| *at == index).map(|(.., count)| *count);
            Ok(GateState { next: next.get(gate).copied().unwrap_or(Timestamp::MIN), running: in_queue.sum() })
        });
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    /// The keys with ready tasks, beginning with whose turn it is; one more than there are places, who is next.
    fn participants(&self, index: QueueIndex, room: usize, set_aside: &HashSet<Option<Key>>) -> Vec<Option<Key>> {
        let queue = &self.queues[index];
        let without = (!queue.ready.is_empty()).then_some(None);
        let named = |(key, _): (&Key, &_)| Some(key.clone());
        let round: Box<dyn Iterator<Item = Option<Key>>> = match &queue.turn.key {
            None => Box::new(without.into_iter().chain(queue.keyed.iter().map(named))),
            Some(turn) => {
                let after = queue.keyed.range::<Key, _>(turn..).map(named);
                let before = queue.keyed.range::<Key, _>(..turn).map(named);
                Box::new(after.chain(without).chain(before))
            }
        };
        round.take(KEYS_PER_CLAIM).filter(|key| !set_aside.contains(key)).take(room + 1).collect()
    }

    /// Takes up to `share` tasks with this key (or without one), and answers how many.
    #[allow(clippy::too_many_arguments, reason = "one step of a claim, with everything that a claim works with")]
    fn take_of_key(
        &mut self,
        index: QueueIndex,
        key: Option<&Key>,
        share: usize,
        demand: &Demand,
        now: Timestamp,
        passing: &mut Passing<'_>,
        claims: &mut Vec<Claim>,
    ) -> usize {
        let Some(queue) = demand.queues.iter().find(|name| self.queue_by_name.get(*name) == Some(&index)) else {
            return 0;
        };
        let Passing { admission, running, .. } = passing;
        let next = &self.limits.next;
        let load = |gate: &Gate| -> Result<GateState, Infallible> {
            let of = |(at, name, key, count): &(QueueIndex, TaskName, Option<Key>, u64)| {
                let in_queue = *at == index || !matches!(gate, Gate::Queue(_) | Gate::KeyOfQueue(..));
                if in_queue && gate.is_of(queue, name, key.as_ref()) { *count } else { 0 }
            };
            let next = next.get(gate).copied().unwrap_or(Timestamp::MIN);
            Ok(GateState { next, running: running.iter().map(of).sum() })
        };
        let Ok(shut) = admission.is_shut(queue, key, load);
        if shut {
            return 0;
        }
        // Names whose tasks may go, with how many may; a name that may not is passed over.
        let mut rooms: Vec<(TaskName, u64)> = Vec::new();
        let mut picked: Vec<Slot> = Vec::with_capacity(share);
        let mut late: Vec<Slot> = Vec::new();
        let ready = match key {
            None => Some(&self.queues[index].ready),
            Some(key) => self.queues[index].keyed.get(key),
        };
        for slot in ready.into_iter().flat_map(BTreeMap::values) {
            let name = &self.tasks[*slot].envelope.name;
            if demand.except.contains(name) || self.paused_names.contains(name) {
                continue;
            }
            if self.tasks[*slot].envelope.expires.is_some_and(|expires| expires <= now) {
                late.push(*slot);
                continue;
            }
            if !rooms.iter().any(|(known, _)| known == name) {
                let Ok(room) = admission.room(queue, name, key, load);
                rooms.push((name.clone(), room));
            }
            let Some((_, room)) = rooms.iter_mut().find(|(known, _)| known == name) else { continue };
            if *room == 0 {
                continue;
            }
            *room -= 1;
            admission.start(queue, name, key, 1);
            // Gates that several names pass have less room now.
            rooms.retain(|(known, _)| known == name);
            picked.push(*slot);
            if picked.len() == share {
                break;
            }
        }
        for slot in late {
            self.end_by_store(slot, &Verdict::Expired, now);
        }
        let found = picked.len();
        claims.extend(picked.into_iter().map(|slot| self.hand_out(slot, demand, now)));
        found
    }
}

/// What a claim of one queue works with.
struct Passing<'r> {
    admission: Admission<'r>,
    running: Running,
    /// Keys of which this claim can take nothing more.
    set_aside: HashSet<Option<Key>>,
}
