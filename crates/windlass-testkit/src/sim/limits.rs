//! The limited queue of a simulation, and what a witness sees of its limits.

use std::collections::HashMap;
use std::time::Duration;

use windlass_core::backend::{Backend, Claim};
use windlass_core::limit::{Gate, Limit, LimitChange, Rate, Rule, Subject};
use windlass_core::{Key, QueueName, TaskId, Timestamp};

/// So many run at once, and of one key.
const CONCURRENCY: usize = 3;
const CONCURRENCY_OF_KEY: usize = 1;
/// So many start at once after a pause, and one more in each interval.
const BURST: usize = 3;
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn queue() -> QueueName {
    QueueName::known("limited")
}

/// A key of a task in the limited queue.
pub(super) fn draw_key(dice: &mut fastrand::Rng) -> Key {
    Key::known(["ash", "birch", "cedar"][dice.usize(..3)])
}

/// Sets the limits; before anything is pushed.
pub(super) async fn set(backend: &dyn Backend) {
    let rate = Rate { burst: BURST as u32, ..Rate::new(1, INTERVAL) };
    let concurrency = |count: usize| Some(count as u32);
    let limits = [
        (Subject::Queue(queue()), Rule { rate: Some(rate), concurrency: concurrency(CONCURRENCY), ..Rule::default() }),
        (Subject::KeysOfQueue(queue()), Rule { concurrency: concurrency(CONCURRENCY_OF_KEY), ..Rule::default() }),
    ];
    for (subject, rule) in limits {
        // The store behind the lines has no faults.
        let _ = backend.limit(&LimitChange::Set(Limit { subject, rule })).await;
    }
}

/// Holds the queue shut for a time.
pub(super) async fn hold(backend: &dyn Backend, time: Duration) {
    let _ = backend.limit(&LimitChange::Hold { gate: Gate::Queue(queue()), time }).await;
}

/// What is known of the limited queue.
#[derive(Debug, Default)]
pub(super) struct Watch {
    starts: Vec<Timestamp>,
    held_until: Option<Timestamp>,
    held: HashMap<TaskId, Option<Key>>,
}

impl Watch {
    pub(super) fn saw_change(&mut self, change: &LimitChange, now: Timestamp) {
        if let LimitChange::Hold { time, .. } = change {
            self.held_until = self.held_until.max(Some(now + *time));
        }
    }

    /// Takes a claim down; answers what it breaks. `is_held` says whether a task is held at this time.
    pub(super) fn saw_claim(
        &mut self,
        claim: &Claim,
        now: Timestamp,
        is_held: impl Fn(&TaskId) -> bool,
    ) -> Vec<String> {
        let envelope = &claim.envelope;
        if envelope.queue != queue() {
            return Vec::new();
        }
        let mut breaches = Vec::new();
        if self.held_until.is_some_and(|until| now < until) {
            breaches.push(format!("{} started while its queue was held", envelope.id));
        }
        self.held.insert(envelope.id.clone(), envelope.key.clone());
        self.held.retain(|id, _| is_held(id));
        let of_key = self.held.values().filter(|key| **key == envelope.key).count();
        if self.held.len() > CONCURRENCY || of_key > CONCURRENCY_OF_KEY {
            breaches.push(format!("{} were held at once in the limited queue, {of_key} of one key", self.held.len()));
        }
        self.starts.push(now);
        for (number, began) in self.starts.iter().rev().enumerate() {
            let most = BURST + (now.since(*began).as_micros() / INTERVAL.as_micros()) as usize;
            if number + 1 > most {
                breaches.push(format!("{} started within {:?}", number + 1, now.since(*began)));
                break;
            }
        }
        breaches
    }
}
