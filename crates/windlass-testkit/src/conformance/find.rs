//! What `find` promises: everything that is known of a task, by its id.

use windlass_core::backend::BATCH_MAX;
use windlass_core::{State, TaskId};

use super::harness::{Harness, START, answer, is_rejected};
use super::make::{delayed, ok, secs, snooze, task};

/// Records stand in the places of their ids; an id that is not known has none.
pub async fn records_are_answered_in_the_order_of_the_ids(h: &Harness) {
    let first = h.push(task("work")).await;
    let second = h.push(task("work")).await;
    let unknown = TaskId::random();
    let ids = [second.clone(), unknown, first.clone(), second.clone()];
    let found = answer(h.store.find(&ids).await);
    let found: Vec<Option<TaskId>> = found.into_iter().map(|record| record.map(|record| record.envelope.id)).collect();
    assert_eq!(found, [Some(second.clone()), None, Some(first), Some(second)]);
}

/// A question about nothing is answered with nothing.
pub async fn no_ids_are_answered_with_no_records(h: &Harness) {
    assert_eq!(answer(h.store.find(&[]).await), []);
}

/// Only a scheduled task has a due time, whatever it waited for.
pub async fn only_scheduled_tasks_have_a_due_time(h: &Harness) {
    let id = h.push(delayed(secs(60))).await;
    assert_eq!(h.record(&id).await.due_at, Some(START + secs(60)));
    h.tick_after(secs(60)).await;
    assert_eq!((h.state(&id).await, h.record(&id).await.due_at), (State::Ready, None));
    h.run_one(snooze(secs(5))).await;
    assert_eq!(h.record(&id).await.due_at, Some(START + secs(65)));
    h.clock.advance(secs(5));
    h.run_one(ok("1")).await;
    assert_eq!(h.record(&id).await.due_at, None);
}

/// An attempt that starts again is told from the one before: a record shows when the last one was claimed.
pub async fn a_record_shows_when_the_last_attempt_was_claimed(h: &Harness) {
    let id = h.push_and_run(task("work"), snooze(secs(5))).await;
    assert_eq!(h.record(&id).await.started_at, Some(START));
    h.clock.advance(secs(7));
    h.claim_one().await;
    assert_eq!(h.record(&id).await.started_at, Some(START + secs(7)));
}

/// As many ids as a batch may have are answered; one more is refused.
pub async fn a_question_is_limited(h: &Harness) {
    let id = h.push(task("work")).await;
    assert_eq!(answer(h.store.find(&vec![id.clone(); BATCH_MAX]).await).len(), BATCH_MAX);
    assert!(is_rejected(h.store.find(&vec![id; BATCH_MAX + 1]).await));
}
