//! What `settle` promises: the newest holder's word counts, once, and everything that it says happens together.

use std::time::Duration;

use windlass_core::backend::{BATCH_MAX, Receipt, Settled, Settlement, TaskAction};
use windlass_core::flow::Follow;
use windlass_core::state::{DeadReason, Spent};
use windlass_core::view::HISTORY_MAX;
use windlass_core::{Envelope, Json, State, Verdict};

use super::harness::{Harness, START, answer, is_rejected, settled};
use super::make::{LEASE, again, dead, demand, failure, node, ok, secs, snooze, task, tasks};

/// A task that succeeded keeps its result.
pub async fn a_succeeded_task_keeps_its_result(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    h.clock.advance(secs(5));
    assert_eq!(h.settle(&claim, ok(r#"{"sent":3}"#)).await, Settlement::Applied);
    let record = h.record(&claim.receipt.id).await;
    assert_eq!(record.result.as_ref().map(Json::as_str), Some(r#"{"sent":3}"#));
    assert_eq!(
        (record.state, record.finished_at, record.node),
        (State::Succeeded, Some(START + secs(5)), Some(node()))
    );
    assert_eq!((record.skipped, record.reason, record.failure, record.history.len()), (None, None, None, 0));
}

/// A handler that had nothing to do says why.
pub async fn a_skipped_task_keeps_its_reason(h: &Harness) {
    let verdict = Verdict::Succeeded { result: Json::null(), skipped: Some("no such user".to_owned()) };
    let id = h.push_and_run(task("work"), verdict).await;
    let record = h.record(&id).await;
    assert_eq!((record.state, record.skipped.as_deref()), (State::Succeeded, Some("no such user")));
}

/// A task whose results are not kept keeps none.
pub async fn a_result_with_no_time_to_live_is_not_kept(h: &Harness) {
    let id = h.push_and_run(Envelope { result_ttl: Some(Duration::ZERO), ..task("work") }, ok("1")).await;
    let record = h.record(&id).await;
    assert_eq!((record.state, record.result), (State::Succeeded, None));
}

/// A failed attempt waits for the time of its retry.
pub async fn a_failed_attempt_waits_for_its_retry(h: &Harness) {
    let id = h.push_and_run(task("work"), again(secs(60))).await;
    let record = h.record(&id).await;
    assert_eq!((record.state, record.due_at, record.attempt), (State::Scheduled, Some(START + secs(60)), 1));
    assert_eq!((record.failure, record.finished_at), (Some(failure()), None));
    assert_eq!(h.claim_ids(demand(1)).await, []);
    h.clock.advance(secs(60));
    assert_eq!(h.claim_one().await.attempt, 2);
}

/// A retry without delay is ready at once, behind those that wait already.
pub async fn a_retry_without_delay_goes_to_the_end_of_the_line(h: &Harness) {
    let ids = h.push_all(tasks(2)).await;
    h.clock.advance(secs(5));
    h.run_one(again(Duration::ZERO)).await;
    let claims = h.claim(demand(2)).await;
    assert_eq!((&claims[0].receipt.id, &claims[1].receipt.id), (&ids[1], &ids[0]));
    assert_eq!(claims[1].ready_at, START + secs(5));
}

/// A failed attempt is remembered with everything that explains it.
pub async fn a_failed_attempt_is_remembered(h: &Harness) {
    h.push(task("work")).await;
    h.clock.advance(secs(2));
    let claim = h.claim_one().await;
    h.clock.advance(secs(3));
    h.settle(&claim, again(secs(60))).await;
    let history = h.record(&claim.receipt.id).await.history;
    assert_eq!(history.len(), 1);
    assert_eq!((history[0].number, &history[0].node, &history[0].failure), (1, &Some(node()), &failure()));
    assert_eq!((history[0].started_at, history[0].ended_at), (Some(START + secs(2)), START + secs(5)));
}

/// Only the newest failed attempts are remembered.
pub async fn the_newest_failed_attempts_are_remembered(h: &Harness) {
    let id = h.push(task("work")).await;
    for _ in 0..=HISTORY_MAX {
        h.run_one(again(Duration::ZERO)).await;
    }
    let history = h.record(&id).await.history;
    assert_eq!((history.len(), history[0].number), (HISTORY_MAX, 2));
    assert_eq!(history[HISTORY_MAX - 1].number, HISTORY_MAX as u32 + 1);
}

/// An attempt that is not the task's fault does not count; without a failure there is nothing to remember.
pub async fn an_attempt_that_does_not_count_is_given_back(h: &Harness) {
    let id = h.push_and_run(task("work"), snooze(secs(5))).await;
    let record = h.record(&id).await;
    assert_eq!((record.state, record.attempt, record.failure, record.history.len()), (State::Scheduled, 0, None, 0));
    h.clock.advance(secs(5));
    assert_eq!(h.claim_one().await.attempt, 1);
}

/// A failure that does not count is remembered all the same, under the number of its attempt.
pub async fn a_failure_that_does_not_count_is_remembered(h: &Harness) {
    let verdict = Verdict::Again { after: secs(5), spent: Spent::No, failure: Some(failure()) };
    let id = h.push_and_run(task("work"), verdict).await;
    let record = h.record(&id).await;
    assert_eq!((record.attempt, record.failure, record.history[0].number), (0, Some(failure()), 1));
}

/// A task that is given back stands where it stood before, with its attempt.
pub async fn a_released_task_gets_its_place_back(h: &Harness) {
    let ids = h.push_all(tasks(3)).await;
    h.clock.advance(secs(5));
    let first = h.claim_one().await;
    assert_eq!(h.settle(&first, Verdict::Released).await, Settlement::Applied);
    let claims = h.claim(demand(3)).await;
    assert_eq!(claims.iter().map(|claim| claim.receipt.id.clone()).collect::<Vec<_>>(), ids);
    assert_eq!((claims[0].attempt, claims[0].ready_at), (1, START));
}

/// A parked task waits for a node that knows it; its attempt does not count.
pub async fn a_parked_task_is_not_claimed(h: &Harness) {
    let id = h.push_and_run(task("unknown"), Verdict::Parked).await;
    let record = h.record(&id).await;
    assert_eq!((record.state, record.attempt), (State::Parked, 0));
    assert_eq!(h.claim_ids(demand(10)).await, []);
}

/// A task that gave up is a dead letter with its reason, its failure and its attempts.
pub async fn a_dead_letter_keeps_its_reason(h: &Harness) {
    let id = h.push_and_run(task("work"), again(Duration::ZERO)).await;
    h.run_one(Verdict::Dead { reason: DeadReason::AttemptsUsedUp, failure: failure() }).await;
    let record = h.record(&id).await;
    assert_eq!((record.state, record.reason), (State::Dead, Some(DeadReason::AttemptsUsedUp)));
    assert_eq!((record.failure, record.finished_at), (Some(failure()), Some(START)));
    assert_eq!(record.history.iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [1, 2]);
}

/// Cancelled and expired tasks have ended.
pub async fn cancelled_and_expired_tasks_have_ended(h: &Harness) {
    for (verdict, state) in [(Verdict::Cancelled, State::Cancelled), (Verdict::Expired, State::Expired)] {
        let id = h.push_and_run(task("work"), verdict).await;
        let record = h.record(&id).await;
        assert_eq!((record.state, record.finished_at), (state, Some(START)));
    }
    assert_eq!(h.claim_ids(demand(10)).await, []);
}

/// A claim is settled once: what is said later changes nothing.
pub async fn a_claim_is_settled_once(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    h.settle(&claim, ok("1")).await;
    let before = h.record(&claim.receipt.id).await;
    for verdict in [ok("2"), dead(), again(secs(1)), Verdict::Released] {
        assert_eq!(h.settle(&claim, verdict).await, Settlement::Stale);
    }
    assert_eq!(h.record(&claim.receipt.id).await, before);
}

/// A holder that lost its task to another cannot settle it.
pub async fn a_holder_that_outlives_its_lease_cannot_settle(h: &Harness) {
    let old = h.push_and_claim(task("work")).await;
    h.tick_after(LEASE).await;
    let new = h.claim_one().await;
    assert_eq!(h.settle(&old, dead()).await, Settlement::Stale);
    assert_eq!(h.settle(&new, ok("7")).await, Settlement::Applied);
    assert_eq!(h.state(&old.receipt.id).await, State::Succeeded);
}

/// A holder cannot settle a task that a tick gave back, even when nobody has claimed it since.
pub async fn a_task_that_was_given_back_cannot_be_settled(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    h.tick_after(LEASE).await;
    assert_eq!(h.settle(&claim, ok("1")).await, Settlement::Stale);
    assert_eq!(h.state(&claim.receipt.id).await, State::Ready);
}

/// Late is not too late: a settle after the end of the lease counts while nobody took the task away.
pub async fn a_late_settle_counts_while_nobody_took_the_task(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    h.clock.advance(secs(3600));
    assert_eq!(h.settle(&claim, ok("1")).await, Settlement::Applied);
    assert_eq!(h.tick().await.rescued, 0);
}

/// Of two settles of one claim in a batch the first counts.
pub async fn a_claim_twice_in_one_batch_is_settled_once(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let settlements = h.settle_all([(&claim, ok("1")), (&claim, dead())]).await;
    assert_eq!(settlements, [Settlement::Applied, Settlement::Stale]);
    assert_eq!(h.state(&claim.receipt.id).await, State::Succeeded);
}

/// A stale claim does not undo the others of its batch, and each answer stands in the place of its claim.
pub async fn a_stale_claim_does_not_undo_the_others(h: &Harness) {
    h.push_all(tasks(3)).await;
    let claims = h.claim(demand(3)).await;
    h.settle(&claims[1], ok("1")).await;
    let settlements = h.settle_all(claims.iter().map(|claim| (claim, dead()))).await;
    assert_eq!(settlements, [Settlement::Applied, Settlement::Stale, Settlement::Applied]);
    assert_eq!((h.default_counts().await.dead, h.default_counts().await.succeeded), (2, 1));
}

/// The receipt of a task that was forgotten says nothing about a new task with the same id.
pub async fn a_receipt_does_not_outlive_its_task(h: &Harness) {
    let first = task("work");
    let old = h.push_and_claim(first.clone()).await;
    h.settle(&old, ok("1")).await;
    h.act_on(&first.id, TaskAction::Discard).await;
    h.push_and_claim(first.clone()).await;
    assert_eq!(h.settle(&old, dead()).await, Settlement::Stale);
    assert_eq!(h.state(&first.id).await, State::Running);
}

/// A receipt of a task that was never there is stale.
pub async fn an_unknown_receipt_is_stale(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let receipt = Receipt { id: task("other").id, ..claim.receipt };
    let unknown = Settled { receipt, verdict: dead(), follow: Follow::default() };
    assert_eq!(answer(h.store.settle(&[unknown]).await), [Settlement::Stale]);
}

/// A task that somebody asked to cancel does not start over: a verdict that would let it run again cancels it.
pub async fn a_task_that_is_to_be_cancelled_does_not_run_again(h: &Harness) {
    for (verdict, attempt) in [(again(secs(5)), 1), (snooze(secs(5)), 0), (Verdict::Released, 0), (Verdict::Parked, 0)]
    {
        let claim = h.push_and_claim(task("work")).await;
        h.act_on(&claim.receipt.id, TaskAction::Cancel).await;
        assert_eq!(h.settle(&claim, verdict).await, Settlement::Applied);
        let record = h.record(&claim.receipt.id).await;
        assert_eq!((record.state, record.finished_at, record.attempt), (State::Cancelled, Some(START), attempt));
        assert!(!record.cancel_requested, "it does not run any more");
    }
}

/// A task that ended before it heard of the cancel has ended as it says.
pub async fn a_final_verdict_wins_over_a_cancel(h: &Harness) {
    for (verdict, state) in [(ok("1"), State::Succeeded), (dead(), State::Dead), (Verdict::Expired, State::Expired)] {
        let claim = h.push_and_claim(task("work")).await;
        h.act_on(&claim.receipt.id, TaskAction::Cancel).await;
        h.settle(&claim, verdict).await;
        assert_eq!(h.state(&claim.receipt.id).await, state);
    }
}

/// Any settle shows that the worker lives: lost workers are counted in a row.
pub async fn a_settle_forgets_lost_workers(h: &Harness) {
    let id = h.push_and_claim(task("work")).await.receipt.id;
    h.tick_after(LEASE).await;
    assert_eq!(h.record(&id).await.crashes, 1);
    h.run_one(Verdict::Released).await;
    assert_eq!(h.record(&id).await.crashes, 0);
}

/// A batch of settles is taken up to its limit.
pub async fn a_settle_is_limited(h: &Harness) {
    h.push_all(tasks(BATCH_MAX)).await;
    let claims = h.claim(demand(BATCH_MAX)).await;
    let mut batch: Vec<Settled> = claims.iter().map(|claim| settled(claim, ok("1"))).collect();
    batch.push(batch[0].clone());
    assert!(is_rejected(h.store.settle(&batch).await));
    assert_eq!(h.default_counts().await.running, BATCH_MAX as u64);
    batch.pop();
    assert!(answer(h.store.settle(&batch).await).iter().all(|settlement| *settlement == Settlement::Applied));
}

/// A settle through one handle is seen through the other, and its receipt is worth nothing there any more.
pub async fn a_settle_is_seen_through_every_handle(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    assert_eq!(answer(h.second.settle(&[settled(&claim, ok("1"))]).await), [Settlement::Applied]);
    assert_eq!(h.state(&claim.receipt.id).await, State::Succeeded);
    assert_eq!(h.settle(&claim, dead()).await, Settlement::Stale);
}
