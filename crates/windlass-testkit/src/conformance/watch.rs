//! What `watch` promises: whoever waits for a task learns at once that it has ended.

use std::sync::Arc;
use std::time::Duration;

use windlass_core::backend::{BATCH_MAX, TaskAction};
use windlass_core::flow::{After, FailurePolicy, Flow, Member, NewGroup};
use windlass_core::view::Record;
use windlass_core::{Envelope, State, TaskId};

use super::harness::{Harness, PATIENCE, START, answer, begun, is_rejected, settled, soon};
use super::make::{LEASE, SHORT, again, dead, demand, ok, secs, task, tasks};

/// A task that has ended already is answered at once, with everything that is known of it.
pub async fn a_task_that_has_ended_is_answered_at_once(h: &Harness) {
    let id = h.push_and_run(task("work"), ok("7")).await;
    let records = soon(watch(h, std::slice::from_ref(&id), PATIENCE * 2)).await;
    assert_eq!(records, [h.record(&id).await]);
}

/// Only those that have ended are answered.
pub async fn only_tasks_that_have_ended_are_answered(h: &Harness) {
    let ids = h.push_all(tasks(4)).await;
    let claims = h.claim(demand(3)).await;
    h.settle_all([(&claims[0], ok("1")), (&claims[2], dead())]).await;
    let mut ended = states(&soon(watch(h, &ids, PATIENCE * 2)).await);
    ended.sort();
    assert_eq!(ended, [(State::Succeeded, ids[0].clone()), (State::Dead, ids[2].clone())]);
}

/// A watch that does not wait asks once.
pub async fn a_watch_that_does_not_wait_asks_once(h: &Harness) {
    let id = h.push(task("work")).await;
    assert_eq!(soon(watch(h, &[id], Duration::ZERO)).await, []);
}

/// A watch in vain answers nothing when its time is over; an attempt that will be repeated is no end.
pub async fn a_watch_answers_nothing_in_the_end(h: &Harness) {
    let id = h.push_and_run(task("work"), again(secs(60))).await;
    assert_eq!(soon(watch(h, &[id], SHORT)).await, []);
}

/// A settle wakes a watch.
pub async fn a_watch_is_woken_by_a_settle(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let ended = begin(h, &claim.receipt.id);
    h.settle(&claim, ok("7")).await;
    let records = soon(ended).await;
    assert_eq!(records[0].result.as_ref().map(windlass_core::Json::as_str), Some("7"));
}

/// A settle through another handle wakes a watch.
pub async fn a_watch_is_woken_by_a_settle_through_another_handle(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let ended = begin(h, &claim.receipt.id);
    answer(h.second.settle(&[settled(&claim, ok("7"))]).await);
    assert_eq!(states(&soon(ended).await), [(State::Succeeded, claim.receipt.id)]);
}

/// A task that is cancelled while it waits wakes a watch.
pub async fn a_watch_is_woken_by_a_cancel(h: &Harness) {
    let id = h.push(task("work")).await;
    let ended = begin(h, &id);
    h.act_on(&id, TaskAction::Cancel).await;
    assert_eq!(states(&soon(ended).await), [(State::Cancelled, id)]);
}

/// A task that expires wakes a watch.
pub async fn a_watch_is_woken_by_a_tick(h: &Harness) {
    let id = h.push(Envelope { expires: Some(START + LEASE), ..task("work") }).await;
    let ended = begin(h, &id);
    h.tick_after(LEASE).await;
    assert_eq!(states(&soon(ended).await), [(State::Expired, id)]);
}

/// A step that will never run wakes whoever waits for it.
pub async fn a_watch_is_woken_when_a_step_is_stranded(h: &Harness) {
    let body = task("body");
    let group = TaskId::random();
    let flow = Flow { member: Some(Member { group: group.clone(), index: 0 }), ..Flow::default() };
    let after = After { push: vec![body.clone()], ..After::default() };
    let member = Envelope { flow: Some(Box::new(flow)), ..task("member") };
    h.push_group(vec![member], NewGroup { id: group, size: 1, policy: FailurePolicy::All, after }).await;
    let ended = begin(h, &body.id);
    h.run_one(dead()).await;
    assert_eq!(states(&soon(ended).await), [(State::Dead, body.id)]);
}

/// A task can be watched before it is pushed: an id that is not known has not ended.
pub async fn a_task_can_be_watched_before_it_is_pushed(h: &Harness) {
    let later = task("work");
    let ended = begin(h, &later.id);
    h.push_and_run(later.clone(), ok("1")).await;
    assert_eq!(states(&soon(ended).await), [(State::Succeeded, later.id)]);
}

/// Everybody who watches a task is woken.
pub async fn everybody_who_watches_is_woken(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let watches: Vec<_> = (0..5).map(|_| begin(h, &claim.receipt.id)).collect();
    h.settle(&claim, ok("1")).await;
    for ended in watches {
        assert_eq!(soon(ended).await.len(), 1);
    }
}

/// A watch that gave up does not keep the others from being woken.
pub async fn a_watch_that_gave_up_does_not_disturb_the_others(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let ended = begin(h, &claim.receipt.id);
    assert_eq!(soon(watch(h, std::slice::from_ref(&claim.receipt.id), SHORT)).await, []);
    h.settle(&claim, ok("1")).await;
    assert_eq!(soon(ended).await.len(), 1);
}

/// A task that started over has not ended.
pub async fn a_task_that_started_over_has_not_ended(h: &Harness) {
    let id = h.push_and_run(task("work"), dead()).await;
    h.act_on(&id, TaskAction::Retry).await;
    assert_eq!(soon(watch(h, std::slice::from_ref(&id), Duration::ZERO)).await, []);
    let ended = begin(h, &id);
    h.run_one(ok("1")).await;
    assert_eq!(states(&soon(ended).await), [(State::Succeeded, id)]);
}

/// As many ids as a batch may have are watched; one more is refused.
pub async fn a_watch_is_limited(h: &Harness) {
    let id = h.push_and_run(task("work"), ok("1")).await;
    let mut ids: Vec<TaskId> = (1..BATCH_MAX).map(|_| TaskId::random()).collect();
    ids.push(id);
    assert_eq!(watch(h, &ids, PATIENCE * 2).await.len(), 1);
    ids.push(TaskId::random());
    assert!(is_rejected(h.store.watch(&ids, Duration::ZERO).await));
}

async fn watch(h: &Harness, ids: &[TaskId], wait: Duration) -> Vec<Record> {
    answer(h.store.watch(ids, wait).await)
}

/// Begins to watch a task that has not ended.
fn begin(h: &Harness, id: &TaskId) -> impl Future<Output = Vec<Record>> + use<> {
    let (store, ids) = (Arc::clone(&h.store), [id.clone()]);
    let watch = begun(async move { store.watch(&ids, PATIENCE * 2).await });
    async move { answer(watch.await) }
}

fn states(records: &[Record]) -> Vec<(State, TaskId)> {
    records.iter().map(|record| (record.state, record.envelope.id.clone())).collect()
}
