//! Queues from which nothing is taken for a while: the store is full of them, or may not start what it has of them. A paused
//! queue must not drain the whole backlog of its transport into the store. Pure.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::pace::Pace;
use crate::{QueueName, TaskId};

/// A queue is tried again after this long, at first and later; at once when what was taken of it has started here.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// The queues that are held.
#[derive(Debug, Default)]
pub(super) struct Holds {
    of: HashMap<QueueName, Hold>,
}

#[derive(Debug)]
struct Hold {
    /// What was stored last and did not start; none when there was no place.
    waits: HashSet<TaskId>,
    pace: Pace,
}

impl Holds {
    /// Messages of this queue were stored and did not start, or had no place.
    pub(super) fn wait(&mut self, queue: &QueueName, waits: HashSet<TaskId>, now: Instant, dice: f64) {
        let hold = self.of.entry(queue.clone());
        let hold = hold.or_insert_with(|| Hold { waits: HashSet::new(), pace: Pace::new(AGAIN.0, AGAIN.1) });
        hold.waits = waits;
        hold.pace.failed(now, dice);
    }

    /// A task has started on this node: when it was the last that waited, or one place is what was missing, the queue is open.
    pub(super) fn started(&mut self, queue: &QueueName, task: &TaskId) {
        let Some(hold) = self.of.get_mut(queue) else { return };
        hold.waits.remove(task);
        if hold.waits.is_empty() {
            self.of.remove(queue);
        }
    }

    /// All messages of this queue were stored, and those that can start did.
    pub(super) fn open(&mut self, queue: &QueueName) {
        self.of.remove(queue);
    }

    /// Those of these queues that are open now, in their order, and when the first of the others opens.
    pub(super) fn open_of(&self, queues: &[QueueName], now: Instant) -> (Vec<QueueName>, Option<Instant>) {
        let mut opens_at: Option<Instant> = None;
        let mut open = Vec::with_capacity(queues.len());
        for queue in queues {
            match self.of.get(queue).and_then(|hold| hold.pace.shut_until(now)) {
                None => open.push(queue.clone()),
                Some(until) => opens_at = Some(opens_at.map_or(until, |first| first.min(until))),
            }
        }
        (open, opens_at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_opens_when_what_waits_has_started_or_after_a_while() {
        let (mut holds, now) = (Holds::default(), Instant::now());
        let queues = ["a", "b", "c"].map(QueueName::known);
        let (first, second) = (TaskId::random(), TaskId::random());
        holds.wait(&queues[0], [first.clone(), second.clone()].into(), now, 1.0);
        holds.wait(&queues[1], HashSet::new(), now, 1.0);
        assert_eq!(holds.open_of(&queues, now), (vec![queues[2].clone()], Some(now + AGAIN.0)));
        holds.started(&queues[0], &first);
        assert_eq!(holds.open_of(&queues, now).0, [queues[2].clone()]);
        holds.started(&queues[0], &second);
        holds.started(&queues[1], &first);
        assert_eq!(holds.open_of(&queues, now), (queues.to_vec(), None), "any start makes a place in a full queue");
        for _ in 0..9 {
            holds.wait(&queues[0], [first.clone()].into(), now, 1.0);
        }
        assert_eq!(holds.open_of(&queues, now).1, Some(now + AGAIN.1));
        assert_eq!(holds.open_of(&queues, now + AGAIN.1).0, queues);
    }
}
