//! What `command` promises: operators change tasks that nobody holds, and ask the holders of the others.

use std::time::Duration;

use windlass_core::backend::{COMMAND_MAX, Command, Commanded, Target, TaskAction};
use windlass_core::view::Filter;
use windlass_core::{Envelope, Priority, State, TaskId, TaskName, Verdict};

use super::harness::{Harness, START, answer, is_rejected};
use super::make::{LEASE, again, dead, delayed, demand, demand_of, ok, queue, secs, snooze, task, tasks};

/// A task that waits is cancelled at once.
pub async fn a_waiting_task_is_cancelled_at_once(h: &Harness) {
    let parked = h.push_and_run(task("unknown"), Verdict::Parked).await;
    let ids = [h.push(delayed(secs(60))).await, h.push(task("work")).await, parked];
    let commanded = h.act(&ids, TaskAction::Cancel).await;
    assert_eq!((commanded.changed, commanded.unchanged), (3, vec![]));
    for id in &ids {
        let record = h.record(id).await;
        assert_eq!((record.state, record.finished_at, record.due_at), (State::Cancelled, Some(START), None));
    }
    h.clock.advance(secs(60));
    assert_eq!(h.claim_ids(demand(10)).await, []);
}

/// A task that runs is marked: it goes on until its holder ends it.
pub async fn a_running_task_is_marked_for_cancelling(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let id = claim.receipt.id.clone();
    h.act_on(&id, TaskAction::Cancel).await;
    let record = h.record(&id).await;
    assert_eq!((record.state, record.cancel_requested), (State::Running, true));
    let again = h.act(std::slice::from_ref(&id), TaskAction::Cancel).await;
    assert_eq!((again.changed, again.unchanged), (0, vec![(id.clone(), Some(State::Running))]));
    h.settle(&claim, Verdict::Cancelled).await;
    assert_eq!(h.state(&id).await, State::Cancelled);
}

/// A mark does not outlive the attempt that it was meant for.
pub async fn a_retried_task_is_not_marked(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    h.act_on(&claim.receipt.id, TaskAction::Cancel).await;
    h.settle(&claim, Verdict::Cancelled).await;
    h.act_on(&claim.receipt.id, TaskAction::Retry).await;
    let second = h.claim_one().await;
    assert!(!h.record(&second.receipt.id).await.cancel_requested);
    h.settle(&second, again(Duration::ZERO)).await;
    assert_eq!(h.state(&second.receipt.id).await, State::Ready);
}

/// An action that has no meaning for a task leaves it alone and says in which state it is.
pub async fn an_action_without_meaning_changes_nothing(h: &Harness) {
    let scheduled = h.push(delayed(secs(60))).await;
    let running = h.push_and_claim(task("work")).await.receipt.id;
    let ended = h.push_and_run(task("work"), ok("1")).await;
    let moved = TaskAction::Move(queue("other"));
    for (id, state, actions) in [
        (&scheduled, State::Scheduled, vec![TaskAction::Retry, TaskAction::Discard]),
        (&running, State::Running, vec![TaskAction::Retry, TaskAction::Discard, moved.clone(), TaskAction::RunNow]),
        (&ended, State::Succeeded, vec![TaskAction::Cancel, moved, TaskAction::RunNow]),
    ] {
        let before = h.record(id).await;
        for action in actions {
            let commanded = h.act(std::slice::from_ref(id), action).await;
            assert_eq!((commanded.changed, commanded.unchanged), (0, vec![(id.clone(), Some(state))]));
        }
        assert_eq!(h.record(id).await, before);
    }
}

/// Of several ids, those that cannot be changed are named, in their order; the others are changed.
pub async fn ids_that_are_not_changed_are_named(h: &Harness) {
    let ended = h.push_and_run(task("work"), ok("1")).await;
    let waiting = h.push(task("work")).await;
    let unknown = TaskId::random();
    let commanded = h.act(&[unknown.clone(), waiting, ended.clone()], TaskAction::Cancel).await;
    let unchanged = vec![(unknown, None), (ended, Some(State::Succeeded))];
    assert_eq!(commanded, Commanded { changed: 1, unchanged, next: None });
}

/// An id that is named twice is changed once.
pub async fn an_id_twice_in_one_command_is_changed_once(h: &Harness) {
    let id = h.push(task("work")).await;
    let commanded = h.act(&[id.clone(), id.clone()], TaskAction::Cancel).await;
    assert_eq!((commanded.changed, commanded.unchanged), (1, vec![(id, Some(State::Cancelled))]));
}

/// A task starts over from whatever it ended with, with all its attempts.
pub async fn a_task_starts_over_whatever_it_ended_with(h: &Harness) {
    for verdict in [ok("1"), dead(), Verdict::Cancelled, Verdict::Expired] {
        let id = h.push_and_run(task("work"), verdict).await;
        h.act_on(&id, TaskAction::Retry).await;
        assert_eq!(h.state(&id).await, State::Ready);
        let claim = h.claim_one().await;
        assert_eq!((&claim.receipt.id, claim.attempt), (&id, 1));
        h.settle(&claim, ok("2")).await;
    }
}

/// A task that starts over is as new, except for its history and the time of its push.
pub async fn a_task_that_starts_over_keeps_its_history(h: &Harness) {
    let id = h.push_and_run(task("work"), again(Duration::ZERO)).await;
    h.clock.advance(secs(5));
    h.run_one(dead()).await;
    h.act_on(&id, TaskAction::Retry).await;
    let record = h.record(&id).await;
    assert_eq!((record.attempt, record.crashes, record.enqueued_at, record.finished_at), (0, 0, START, None));
    assert_eq!((record.result, record.reason, record.failure, record.history.len()), (None, None, None, 2));
    assert_eq!(h.claim_one().await.ready_at, START + secs(5));
}

/// The result of a task that starts over is gone until it has a new one.
pub async fn a_task_that_starts_over_has_no_result(h: &Harness) {
    let skipped = Verdict::Succeeded { result: windlass_core::Json::null(), skipped: Some("nothing to do".to_owned()) };
    let id = h.push_and_run(task("work"), skipped).await;
    h.act_on(&id, TaskAction::Retry).await;
    let record = h.record(&id).await;
    assert_eq!((record.result, record.skipped), (None, None));
}

/// A task that starts over does not expire by its old date.
pub async fn a_task_that_starts_over_does_not_expire(h: &Harness) {
    let id = h.push(Envelope { expires: Some(START + secs(10)), ..task("work") }).await;
    h.tick_after(secs(10)).await;
    assert_eq!(h.state(&id).await, State::Expired);
    h.act_on(&id, TaskAction::Retry).await;
    assert_eq!(h.claim_one().await.envelope.expires, None);
}

/// Lost workers of an earlier life do not count when a task starts over.
pub async fn a_task_that_starts_over_forgets_lost_workers(h: &Harness) {
    let id = h.push(task("work")).await;
    for _ in 0..windlass_core::state::CRASHES_MAX {
        h.claim_one().await;
        h.tick_after(LEASE).await;
    }
    assert_eq!(h.state(&id).await, State::Dead);
    h.act_on(&id, TaskAction::Retry).await;
    h.claim_one().await;
    h.tick_after(LEASE).await;
    assert_eq!(h.state(&id).await, State::Ready);
}

/// A discarded task is not known any more.
pub async fn a_discarded_task_is_forgotten(h: &Harness) {
    let id = h.push_and_run(task("work"), dead()).await;
    h.act_on(&id, TaskAction::Discard).await;
    assert_eq!(h.find(&id).await, None);
    assert_eq!(h.list(&Filter::all()).await, []);
    let commanded = h.act(std::slice::from_ref(&id), TaskAction::Retry).await;
    assert_eq!(commanded.unchanged, [(id, None)]);
}

/// A task that waits moves to another queue and keeps its place in time.
pub async fn a_task_moves_to_another_queue(h: &Harness) {
    let id = h.push(task("work")).await;
    h.clock.advance(secs(5));
    h.act_on(&id, TaskAction::Move(queue("other"))).await;
    assert_eq!((h.default_counts().await.ready, h.counts(&queue("other")).await.ready), (0, 1));
    assert_eq!(h.claim_ids(demand(1)).await, []);
    let claim = h.claim(demand_of(&["other"], 1)).await.remove(0);
    assert_eq!((claim.receipt.id, claim.ready_at, &claim.envelope.queue), (id, START, &queue("other")));
}

/// Scheduled and parked tasks move and stay what they are.
pub async fn scheduled_and_parked_tasks_move(h: &Harness) {
    let parked = h.push_and_run(task("unknown"), Verdict::Parked).await;
    let scheduled = h.push(delayed(secs(60))).await;
    h.act(&[parked.clone(), scheduled.clone()], TaskAction::Move(queue("other"))).await;
    assert_eq!((h.state(&parked).await, h.state(&scheduled).await), (State::Parked, State::Scheduled));
    let counts = h.counts(&queue("other")).await;
    assert_eq!((counts.parked, counts.scheduled), (1, 1));
    h.clock.advance(secs(60));
    assert_eq!(h.claim_ids(demand_of(&["default", "other"], 10)).await, [scheduled]);
}

/// A task that waits takes the place of its new priority.
pub async fn a_new_priority_gives_a_new_place(h: &Harness) {
    let ids = h.push_all(tasks(2)).await;
    let later = h.push(delayed(secs(1))).await;
    h.act_on(&ids[1], TaskAction::Reprioritise(Priority::HIGH)).await;
    h.act_on(&later, TaskAction::Reprioritise(Priority::FIRST)).await;
    assert_eq!(h.record(&ids[1]).await.envelope.priority, Priority::HIGH);
    h.clock.advance(secs(1));
    assert_eq!(h.claim_ids(demand(10)).await, [later, ids[1].clone(), ids[0].clone()]);
}

/// A scheduled task can be made ready at once; it is ready since then.
pub async fn a_scheduled_task_is_run_now(h: &Harness) {
    let pushed = h.push(delayed(secs(60))).await;
    h.clock.advance(secs(5));
    h.act_on(&pushed, TaskAction::RunNow).await;
    let claim = h.claim_one().await;
    assert_eq!((&claim.receipt.id, claim.ready_at), (&pushed, START + secs(5)));
    h.settle(&claim, snooze(secs(60))).await;
    h.act_on(&pushed, TaskAction::RunNow).await;
    assert_eq!(h.claim_one().await.receipt.id, pushed);
}

/// A filter changes the tasks that match and to which the action applies, and nothing else.
pub async fn a_filter_changes_what_matches_and_applies(h: &Harness) {
    let ended = h.push_and_run(task("mail"), ok("1")).await;
    let mails = h.push_all([task("mail"), task("mail")]).await;
    let other = h.push(task("other")).await;
    let filter = Filter { names: vec![TaskName::known("mail")], ..Filter::default() };
    let commanded = act_matching(h, filter, TaskAction::Cancel).await;
    assert_eq!(commanded, Commanded { changed: 2, unchanged: vec![], next: None });
    assert_eq!((h.state(&mails[0]).await, h.state(&mails[1]).await), (State::Cancelled, State::Cancelled));
    assert_eq!((h.state(&ended).await, h.state(&other).await), (State::Succeeded, State::Ready));
}

/// More tasks than one command changes are changed by repeating it from where it stopped.
pub async fn many_tasks_are_changed_page_by_page(h: &Harness) {
    let ids = [h.push_all(tasks(COMMAND_MAX)).await, h.push_all(tasks(10)).await].concat();
    let action = TaskAction::Reprioritise(Priority::HIGH);
    let first = act_matching(h, Filter::all(), action.clone()).await;
    assert_eq!(first.changed, COMMAND_MAX as u64);
    assert!(first.next.is_some(), "more tasks match");
    assert_eq!(h.record(&ids[9]).await.envelope.priority, Priority::NORMAL, "the newest are changed first");
    let target = Target::Matching { filter: Filter::all(), after: first.next };
    let second = h.command(Command::Tasks { target, action }).await;
    assert_eq!((second.changed, second.next), (10, None));
    assert_eq!(h.record(&ids[0]).await.envelope.priority, Priority::HIGH);
}

/// Dead letters are replayed by a filter; every one of them, and each once.
pub async fn dead_letters_are_replayed_by_a_filter(h: &Harness) {
    h.push_all(tasks(20)).await;
    let claims = h.claim(demand(20)).await;
    h.settle_all(claims.iter().map(|claim| (claim, dead()))).await;
    let commanded = act_matching(h, Filter::in_states([State::Dead]), TaskAction::Retry).await;
    assert_eq!((commanded.changed, commanded.next), (20, None));
    assert_eq!((h.default_counts().await.ready, h.default_counts().await.dead), (20, 0));
}

/// As many ids as a command changes are taken; one more is refused and nothing is changed.
pub async fn a_command_is_limited(h: &Harness) {
    let id = h.push(task("work")).await;
    let over = Command::Tasks { target: Target::Ids(vec![id.clone(); COMMAND_MAX + 1]), action: TaskAction::Cancel };
    assert!(is_rejected(h.store.command(&over).await));
    assert_eq!(h.state(&id).await, State::Ready);
    assert_eq!(h.act(&vec![id; COMMAND_MAX], TaskAction::Cancel).await.changed, 1);
}

/// A command through one handle is obeyed by the other.
pub async fn a_command_is_obeyed_through_every_handle(h: &Harness) {
    let id = h.push(task("work")).await;
    let command = Command::Tasks { target: Target::Ids(vec![id.clone()]), action: TaskAction::Cancel };
    assert_eq!(answer(h.second.command(&command).await).changed, 1);
    assert_eq!(h.state(&id).await, State::Cancelled);
    assert_eq!(h.claim_ids(demand(1)).await, []);
}

async fn act_matching(h: &Harness, filter: Filter, action: TaskAction) -> Commanded {
    h.command(Command::Tasks { target: Target::Matching { filter, after: None }, action }).await
}
