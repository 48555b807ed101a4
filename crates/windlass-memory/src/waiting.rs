//! Claims that wait for a task.
//!
//! Each registers with its queues. When tasks become ready, as many of the waiting claims are woken as it takes to hold
//! them, the longest waiting first: a push of one task wakes one claim, not the whole fleet. Whoever was woken and leaves
//! while there is more to do wakes the next.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;
use windlass_core::Timestamp;
use windlass_core::backend::{Claim, Demand, WAIT_MAX};

use crate::Shared;
use crate::data::{Data, Queue, QueueIndex};

/// The claims that wait.
#[derive(Default)]
pub(crate) struct Waiters {
    last_id: u64,
    /// In the order of their arrival.
    by_id: BTreeMap<u64, Waiter>,
    /// Queues in which tasks became ready during this operation.
    fresh: Vec<QueueIndex>,
}

struct Waiter {
    queues: Vec<QueueIndex>,
    max: usize,
    picky: Picky,
    bell: Arc<Notify>,
    turn: Turn,
}

/// Whether a claim leaves some names to others: then it may not want the task that it was woken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Picky {
    TakesAll,
    LeavesSome,
}

/// Whether a waiting claim has been woken for a task and has not looked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    Waits,
    Called,
}

impl Waiters {
    /// Tasks became ready in a queue that somebody may wait for.
    pub(crate) fn note_fresh(&mut self, queue: &mut Queue, index: QueueIndex, count: usize) {
        if queue.waiting.is_empty() || count == 0 {
            return;
        }
        if queue.fresh == 0 {
            self.fresh.push(index);
        }
        queue.fresh += count;
    }

    /// Lets everybody who waits for a queue look again.
    pub(crate) fn ring_all(&self, queue: &Queue) {
        for waiter in queue.waiting.iter().filter_map(|id| self.by_id.get(id)) {
            waiter.bell.notify_one();
        }
    }
}

/// Waits until the demand takes something, up to its time.
pub(crate) async fn claim(shared: &Arc<Shared>, demand: &Demand) -> Vec<Claim> {
    let claims = shared.run(|data, now| data.take(demand, now));
    if !claims.is_empty() || demand.wait.is_zero() || demand.max == 0 {
        return claims;
    }
    let deadline = Instant::now() + demand.wait.min(WAIT_MAX);
    let waiting = Waiting::register(shared, demand);
    loop {
        // Looks again after it has registered: what became ready in between is not missed.
        let alarm = match shared.run(|data, now| data.take_or_wait(waiting.id, demand, now)) {
            Ok(claims) => return claims,
            Err(NothingYet { alarm }) => alarm.map(|after| Instant::now() + after),
        };
        if Instant::now() >= deadline {
            return Vec::new();
        }
        tokio::select! {
            biased;
            () = waiting.bell.notified() => {}
            () = demand.hush.cancelled() => return Vec::new(),
            () = tokio::time::sleep_until(alarm.unwrap_or(deadline).min(deadline)) => {}
        }
    }
}

/// Nothing to take; a scheduled task falls due after `alarm`.
struct NothingYet {
    alarm: Option<Duration>,
}

/// The registration of a waiting claim, given back when it ends in whatever way.
struct Waiting<'a> {
    shared: &'a Arc<Shared>,
    id: u64,
    bell: Arc<Notify>,
}

impl<'a> Waiting<'a> {
    fn register(shared: &'a Arc<Shared>, demand: &Demand) -> Self {
        let bell = Arc::new(Notify::new());
        let id = shared.run(|data, _| {
            let queues = demand.queues.iter().map(|name| data.queue_named(name)).collect();
            let picky = if demand.except.is_empty() { Picky::TakesAll } else { Picky::LeavesSome };
            data.waiters.last_id += 1;
            let waiter = Waiter { queues, max: demand.max, picky, bell: Arc::clone(&bell), turn: Turn::Waits };
            data.waiters.by_id.insert(data.waiters.last_id, waiter);
            data.waiters.last_id
        });
        Self { shared, id, bell }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shared.run(|data, _| {
            data.unlist(self.id);
            if let Some(waiter) = data.waiters.by_id.remove(&self.id)
                && waiter.turn == Turn::Called
            {
                data.pass_on(&waiter.queues);
            }
        });
    }
}

impl Data {
    /// Wakes waiting claims for what became ready in this operation.
    pub(crate) fn wake_claims(&mut self) {
        while let Some(index) = self.waiters.fresh.pop() {
            let mut unclaimed = std::mem::take(&mut self.queues[index].fresh);
            if self.closed || self.queues[index].counts.paused {
                continue;
            }
            while unclaimed > 0 {
                let Some(id) = self.queues[index].waiting.first().copied() else { break };
                self.unlist(id);
                let Some(waiter) = self.waiters.by_id.get_mut(&id) else { continue };
                waiter.turn = Turn::Called;
                waiter.bell.notify_one();
                if waiter.picky == Picky::TakesAll {
                    unclaimed = unclaimed.saturating_sub(waiter.max);
                }
            }
        }
    }

    fn take_or_wait(&mut self, id: u64, demand: &Demand, now: Timestamp) -> Result<Vec<Claim>, NothingYet> {
        self.unlist(id);
        let claims = self.take(demand, now);
        let Some(waiter) = self.waiters.by_id.get_mut(&id) else { return Ok(claims) };
        let turn = std::mem::replace(&mut waiter.turn, Turn::Waits);
        let queues = waiter.queues.clone();
        if !claims.is_empty() {
            if turn == Turn::Called {
                self.pass_on(&queues);
            }
            return Ok(claims);
        }
        let mut first_due = self.limits.opens_at;
        let closed = self.closed;
        for index in queues {
            let queue = &mut self.queues[index];
            queue.waiting.insert(id);
            // A paused queue wakes its claims when it is resumed, a closed store when it is opened.
            if let Some((due_at, ..)) = queue.due.first().filter(|_| !closed && !queue.counts.paused) {
                first_due = Some(first_due.map_or(*due_at, |first: Timestamp| first.min(*due_at)));
            }
        }
        Err(NothingYet { alarm: first_due.map(|due_at| due_at.since(now)) })
    }

    /// Wakes the next one for what is still ready.
    fn pass_on(&mut self, queues: &[QueueIndex]) {
        for index in queues {
            self.wake_queue(*index);
        }
    }

    /// Wakes waiting claims for whatever is ready in a queue.
    pub(crate) fn wake_queue(&mut self, index: QueueIndex) {
        let queue = &mut self.queues[index];
        let ready = queue.counts.ready as usize;
        self.waiters.note_fresh(queue, index, ready);
    }

    /// Wakes waiting claims for whatever is ready anywhere.
    pub(crate) fn wake_everybody(&mut self) {
        (0..self.queues.len()).for_each(|index| self.wake_queue(index));
    }

    fn unlist(&mut self, id: u64) {
        let Some(waiter) = self.waiters.by_id.get(&id) else { return };
        for index in &waiter.queues {
            self.queues[*index].waiting.remove(&id);
        }
    }
}
