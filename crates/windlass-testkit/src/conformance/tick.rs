//! What `tick` promises: nothing that nobody holds is forgotten, and nothing is kept for ever.

use std::time::Duration;

use futures_util::future::join;
use windlass_core::backend::{Renewed, TaskAction};
use windlass_core::state::{CRASHES_MAX, DeadReason, PARKED_FOR};
use windlass_core::time::LeaseGuard;
use windlass_core::{Clock, Due, Envelope, State, Verdict};

use super::harness::{Harness, RETENTION, START, answer};
use super::make::{
    LEASE, MICRO, again, dead, delayed, demand, just_under, node, ok, other_node, secs, snooze, task, tasks,
};

/// A scheduled task is ready from its due time on.
pub async fn due_tasks_become_ready(h: &Harness) {
    let id = h.push(delayed(secs(60))).await;
    h.tick_after(just_under(secs(60))).await;
    assert_eq!(h.state(&id).await, State::Scheduled);
    h.tick_after(MICRO).await;
    assert_eq!(h.state(&id).await, State::Ready);
}

/// However many tasks fall due at once, ticks make all of them ready.
pub async fn any_number_of_due_tasks_become_ready(h: &Harness) {
    for _ in 0..3 {
        let due = || Envelope { due: Due::After(secs(60)), ..task("work") };
        h.push_all((0..1000).map(|_| due())).await;
    }
    h.clock.advance(secs(60));
    while h.default_counts().await.scheduled > 0 {
        let before = h.default_counts().await.ready;
        h.tick().await;
        assert!(h.default_counts().await.ready > before, "every tick gets on");
    }
    assert_eq!(h.default_counts().await.ready, 3000);
}

/// A task is taken back from a lost worker when its lease has run out; the attempt counts and is remembered.
pub async fn a_task_of_a_lost_worker_is_taken_back(h: &Harness) {
    let id = h.push_and_claim(task("work")).await.receipt.id;
    assert_eq!(h.tick_after(just_under(LEASE)).await.rescued, 0);
    assert_eq!(h.tick_after(MICRO).await.rescued, 1);
    let record = h.record(&id).await;
    assert_eq!((record.state, record.attempt, record.crashes), (State::Ready, 1, 1));
    assert_eq!((record.history[0].failure.class.as_str(), record.history[0].number), ("worker_lost", 1));
    assert_eq!((&record.history[0].node, record.history[0].ended_at), (&Some(node()), START + LEASE));
    assert_eq!(h.claim_one().await.attempt, 2);
}

/// A task that was taken back stands where it stood before.
pub async fn a_task_of_a_lost_worker_gets_its_place_back(h: &Harness) {
    let lost = h.push_and_claim(task("work")).await.receipt.id;
    let later = h.push(task("work")).await;
    h.tick_after(LEASE).await;
    let claims = h.claim(demand(2)).await;
    assert_eq!((&claims[0].receipt.id, &claims[1].receipt.id), (&lost, &later));
    assert_eq!(claims[0].ready_at, START);
}

/// However many nodes tick, a task is taken back once.
pub async fn a_lost_task_is_taken_back_once(h: &Harness) {
    h.push_and_claim(task("work")).await;
    h.clock.advance(LEASE);
    let (node, other_node) = (node(), other_node());
    let (first, second) = join(h.store.tick(&node), h.second.tick(&other_node)).await;
    assert_eq!(answer(first).rescued + answer(second).rescued, 1);
    assert_eq!(h.claim_one().await.attempt, 2);
}

/// A task that takes its workers down becomes a dead letter instead of going round for ever.
pub async fn a_task_that_takes_its_workers_down_is_poison(h: &Harness) {
    let id = h.push(task("work")).await;
    for crash in 1..=CRASHES_MAX {
        h.claim_one().await;
        let ticked = h.tick_after(LEASE).await;
        let last = crash == CRASHES_MAX;
        assert_eq!((ticked.rescued, ticked.ended), (u64::from(!last), u64::from(last)));
    }
    let record = h.record(&id).await;
    assert_eq!((record.state, record.reason, record.crashes), (State::Dead, Some(DeadReason::Poison), CRASHES_MAX));
    assert_eq!(record.failure.map(|failure| failure.class).as_deref(), Some("worker_lost"));
    assert_eq!((record.history.len(), record.attempt), (CRASHES_MAX as usize, CRASHES_MAX));
}

/// Workers are lost in a row only while none of them says anything.
pub async fn lost_workers_count_only_in_a_row(h: &Harness) {
    let id = h.push(task("work")).await;
    for _ in 0..CRASHES_MAX * 2 {
        h.claim_one().await;
        h.tick_after(LEASE).await;
        h.run_one(again(Duration::ZERO)).await;
    }
    assert_eq!(h.state(&id).await, State::Ready);
}

/// A task that was to be cancelled when its worker was lost is cancelled.
pub async fn a_lost_task_that_was_to_be_cancelled_is_cancelled(h: &Harness) {
    let id = h.push_and_claim(task("work")).await.receipt.id;
    h.act_on(&id, TaskAction::Cancel).await;
    assert_eq!(h.tick_after(LEASE).await.rescued, 0);
    let record = h.record(&id).await;
    assert_eq!((record.state, record.finished_at), (State::Cancelled, Some(START + LEASE)));
    assert_eq!(h.claim_ids(demand(1)).await, []);
}

/// A task that waits ends when it expires, whatever it waits for.
pub async fn waiting_tasks_expire(h: &Harness) {
    let expiring = |due| Envelope { due, expires: Some(START + secs(10)), ..task("work") };
    let parked = h.push_and_run(expiring(Due::Now), Verdict::Parked).await;
    let retried = h.push_and_run(expiring(Due::Now), again(secs(60))).await;
    let ids = [parked, retried, h.push(expiring(Due::Now)).await, h.push(expiring(Due::After(secs(60)))).await];
    assert_eq!(h.tick_after(just_under(secs(10))).await.ended, 0);
    assert_eq!(h.tick_after(MICRO).await.ended, 4);
    for id in &ids {
        let record = h.record(id).await;
        assert_eq!((record.state, record.finished_at, record.due_at), (State::Expired, Some(START + secs(10)), None));
    }
}

/// A task that was started in time may take as long as it likes.
pub async fn running_tasks_do_not_expire(h: &Harness) {
    let claim = h.push_and_claim(Envelope { expires: Some(START + secs(10)), ..task("work") }).await;
    assert_eq!(h.tick_after(secs(20)).await.ended, 0);
    h.settle(&claim, ok("1")).await;
    assert_eq!(h.state(&claim.receipt.id).await, State::Succeeded);
}

/// A parked task that nobody declares in time is a dead letter.
pub async fn a_task_that_nobody_knows_becomes_a_dead_letter(h: &Harness) {
    h.push(task("unknown")).await;
    h.clock.advance(secs(100));
    let id = h.run_one(Verdict::Parked).await;
    assert_eq!(h.tick_after(just_under(PARKED_FOR)).await.ended, 0);
    assert_eq!(h.tick_after(MICRO).await.ended, 1);
    let record = h.record(&id).await;
    assert_eq!((record.state, record.reason), (State::Dead, Some(DeadReason::Unknown)));
    assert!(record.failure.is_some_and(|failure| failure.message.contains("`unknown`")));
}

/// What ended well, was cancelled or expired is kept for its time and then forgotten.
pub async fn finished_tasks_are_kept_for_their_time(h: &Harness) {
    let mut ids = Vec::new();
    for verdict in [ok("1"), Verdict::Cancelled, Verdict::Expired] {
        ids.push(h.push_and_run(task("work"), verdict).await);
    }
    assert_eq!(h.tick_after(just_under(RETENTION.finished)).await.pruned, 0);
    assert_eq!(h.tick_after(MICRO).await.pruned, 3);
    for id in &ids {
        assert_eq!(h.find(id).await, None);
    }
}

/// Dead letters have a time of their own.
pub async fn dead_letters_are_kept_for_their_time(h: &Harness) {
    let id = h.push_and_run(task("work"), dead()).await;
    assert_eq!(h.tick_after(just_under(RETENTION.dead)).await.pruned, 0);
    assert_eq!(h.state(&id).await, State::Dead);
    assert_eq!(h.tick_after(MICRO).await.pruned, 1);
    assert_eq!(h.find(&id).await, None);
}

/// A result with a time to live of its own is kept for that, be it shorter or longer.
pub async fn results_are_kept_for_their_own_time(h: &Harness) {
    let with_ttl = |ttl| Envelope { result_ttl: Some(ttl), ..task("work") };
    let short = h.push_and_run(with_ttl(secs(60)), ok("1")).await;
    let long = h.push_and_run(with_ttl(RETENTION.finished * 2), ok("1")).await;
    let none = h.push_and_run(with_ttl(Duration::ZERO), ok("1")).await;
    h.tick_after(just_under(secs(60))).await;
    assert!(h.record(&short).await.result.is_some());
    h.tick_after(MICRO).await;
    assert!(h.find(&short).await.is_none_or(|record| record.result.is_none()), "its time is over");
    assert_eq!(h.state(&none).await, State::Succeeded, "a task is remembered though its result is not kept");
    h.tick_after((RETENTION.finished * 2).saturating_sub(secs(61))).await;
    assert!(h.record(&long).await.result.is_some());
    h.tick_after(secs(1)).await;
    assert_eq!(h.find(&long).await, None);
}

/// Of more finished tasks than are kept, the newest stay.
pub async fn the_newest_finished_tasks_are_kept(h: &Harness) {
    let max = RETENTION.finished_max as usize;
    let ids = h.push_all(tasks(max + 3)).await;
    for _ in 0..max + 3 {
        h.clock.advance(MICRO);
        h.run_one(ok("1")).await;
    }
    h.tick().await;
    let kept = answer(h.store.find(&ids).await);
    let forgotten = kept.iter().take_while(|record| record.is_none()).count();
    assert_eq!((forgotten, kept.iter().flatten().count()), (3, max));
}

/// Dead letters do not count among the finished tasks, nor do they make room for them.
pub async fn dead_letters_are_not_pushed_out_by_finished_tasks(h: &Harness) {
    let dead = h.push_and_run(task("work"), dead()).await;
    h.push_all(tasks(RETENTION.finished_max as usize)).await;
    for _ in 0..RETENTION.finished_max {
        h.run_one(ok("1")).await;
    }
    assert_eq!(h.tick().await.pruned, 0);
    assert_eq!(h.state(&dead).await, State::Dead);
    assert_eq!(h.list(&windlass_core::view::Filter::all()).await.len() as u64, RETENTION.finished_max + 1);
}

/// A task that started over is not forgotten when its first life would have been.
pub async fn a_task_that_started_over_is_not_forgotten(h: &Harness) {
    let id = h.push_and_run(task("work"), ok("1")).await;
    h.act_on(&id, TaskAction::Retry).await;
    h.tick_after(RETENTION.finished).await;
    assert_eq!(h.state(&id).await, State::Ready);
    h.run_one(ok("2")).await;
    assert_eq!(h.tick_after(just_under(RETENTION.finished)).await.pruned, 0);
    assert_eq!(h.tick_after(MICRO).await.pruned, 1);
}

/// A task that started over has ended when it ended last: it is forgotten after those that ended before that.
pub async fn a_task_that_started_over_ends_anew(h: &Harness) {
    let first = h.push_and_run(task("work"), ok("1")).await;
    let second = h.push_and_run(task("work"), ok("1")).await;
    h.act_on(&first, TaskAction::Retry).await;
    h.clock.advance(secs(1));
    h.run_one(ok("2")).await;
    for _ in 2..=RETENTION.finished_max {
        h.push_and_run(task("work"), ok("1")).await;
    }
    h.tick().await;
    assert_eq!((h.find(&second).await.is_some(), h.find(&first).await.is_some()), (false, true));
}

/// The id of a forgotten task is free.
pub async fn the_id_of_a_forgotten_task_is_free(h: &Harness) {
    let first = task("work");
    h.push_and_run(first.clone(), ok("1")).await;
    h.tick_after(RETENTION.finished).await;
    h.push(first.clone()).await;
    assert_eq!(h.state(&first.id).await, State::Ready);
}

/// Live tasks are never forgotten, however old they are.
pub async fn live_tasks_are_never_forgotten(h: &Harness) {
    let waiting = h.push_and_run(task("work"), snooze(RETENTION.dead * 3)).await;
    let running = h.push_and_claim(task("work")).await;
    h.clock.advance(RETENTION.dead * 2);
    h.renew(&running, LEASE).await;
    assert_eq!(h.tick().await.pruned, 0);
    assert_eq!((h.state(&waiting).await, h.state(&running.receipt.id).await), (State::Scheduled, State::Running));
}

/// A node hears which of its tasks are to be cancelled, until it has ended them.
pub async fn a_node_hears_which_of_its_tasks_to_cancel(h: &Harness) {
    h.push_all(tasks(2)).await;
    let claims = h.claim(demand(2)).await;
    assert_eq!(h.tick().await.cancelled, []);
    h.act_on(&claims[1].receipt.id, TaskAction::Cancel).await;
    assert_eq!(answer(h.store.tick(&other_node()).await).cancelled, []);
    for _ in 0..2 {
        assert_eq!(h.tick().await.cancelled, [claims[1].receipt.id.clone()]);
    }
    h.settle(&claims[1], Verdict::Cancelled).await;
    assert_eq!(h.tick().await.cancelled, []);
}

/// A node that never beat may tick, and a tick without work says so.
pub async fn a_tick_without_work_does_nothing(h: &Harness) {
    assert_eq!(h.tick().await, windlass_core::backend::Ticked::default());
}

/// A wall clock that is moved forward makes nobody lose a task who renews it in time.
pub async fn a_living_holder_keeps_its_task_when_the_clock_is_moved_forward(h: &Harness) {
    let id = h.push(task("work")).await;
    let claim = h.claim_one().await;
    h.tick().await;
    h.clock.set(h.clock.now() + secs(3600));
    assert_eq!(h.tick().await.rescued, 0);
    assert_eq!(h.renew(&claim, LEASE).await, Renewed::Held);
    h.tick_after(just_under(LEASE)).await;
    assert_eq!(h.state(&id).await, State::Running);
}

/// A lost worker's task comes back all the same, a while after the clock was moved.
pub async fn a_lost_task_comes_back_after_the_clock_was_moved(h: &Harness) {
    let id = h.push(task("work")).await;
    h.claim_one().await;
    h.tick().await;
    h.clock.set(h.clock.now() + secs(3600));
    h.tick().await;
    h.tick_after(LeaseGuard::PAUSE).await;
    assert_eq!(h.state(&id).await, State::Ready);
}
