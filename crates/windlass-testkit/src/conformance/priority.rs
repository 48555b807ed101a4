//! What priority promises: what matters more goes first, and nothing starves.

use std::time::Duration;

use windlass_core::state::AGING;
use windlass_core::{Due, Envelope, Priority};

use super::harness::Harness;
use super::make::{MICRO, again, demand, demand_of, just_under, secs, task, task_in};

/// Of tasks that are ready since the same time the one with the higher priority goes first.
pub async fn higher_priorities_go_first(h: &Harness) {
    let mut ids = Vec::new();
    for level in [0, 5, 9, 3, 7] {
        ids.push(h.push(of(level)).await);
    }
    let order = [2, 4, 1, 3, 0].map(|place| ids[place].clone());
    assert_eq!(h.claim_ids(demand(10)).await, order);
}

/// Of tasks of one priority the one that waits longest goes first.
pub async fn equal_priorities_keep_their_order(h: &Harness) {
    let first = h.push_all([of(7), of(7)]).await;
    h.clock.advance(MICRO);
    let second = h.push(of(7)).await;
    assert_eq!(h.claim_ids(demand(10)).await, [first[0].clone(), first[1].clone(), second]);
}

/// A level of priority is worth a time of waiting: a task that waits overtakes the newer ones above it.
pub async fn a_task_that_waits_rises(h: &Harness) {
    let low = h.push(of(3)).await;
    h.clock.advance(just_under(AGING * 4));
    let before = h.push(of(7)).await;
    assert_eq!(h.claim_ids(demand(1)).await, [before], "a moment too early");
    h.clock.advance(MICRO * 2);
    let after = h.push(of(7)).await;
    assert_eq!(h.claim_ids(demand(2)).await, [low, after]);
}

/// The lowest priority is not kept waiting by any number of newer tasks of the highest.
pub async fn nothing_starves(h: &Harness) {
    let last = h.push(of(0)).await;
    h.clock.advance(AGING * 9 + MICRO);
    h.push_all((0..100).map(|_| of(9))).await;
    assert_eq!(h.claim_ids(demand(1)).await, [last]);
}

/// A scheduled task has the place that its priority and its due time give it.
pub async fn a_due_task_has_its_priority(h: &Harness) {
    let low = h.push(Envelope { due: Due::After(secs(5)), ..of(3) }).await;
    let high = h.push(Envelope { due: Due::After(secs(10)), ..of(7) }).await;
    h.clock.advance(secs(10));
    assert_eq!(h.claim_ids(demand(10)).await, [high, low]);
}

/// A retry keeps the priority and waits from the time at which it is ready.
pub async fn a_retry_keeps_its_priority(h: &Harness) {
    let high = h.push(of(7)).await;
    let low = h.push(of(3)).await;
    h.run_one(again(Duration::ZERO)).await;
    assert_eq!(h.claim_ids(demand(10)).await, [high, low]);
}

/// Priority decides within a queue; between queues the demand decides.
pub async fn queues_come_before_priorities(h: &Harness) {
    let low = h.push(Envelope { priority: Priority::LAST, ..task_in("first") }).await;
    let high = h.push(Envelope { priority: Priority::FIRST, ..task_in("second") }).await;
    assert_eq!(h.claim_ids(demand_of(&["first", "second"], 10)).await, [low, high]);
}

fn of(level: u8) -> Envelope {
    Envelope { priority: Priority::new(level).unwrap_or_default(), ..task("work") }
}
