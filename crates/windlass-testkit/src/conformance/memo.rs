//! What a memo promises: steps that a holder remembers and signals that are sent reach every later attempt.

use windlass_core::backend::{Claim, Renewal, Renewed, TaskAction};
use windlass_core::memo::{Line, MEMO_BYTES_MAX, lines};
use windlass_core::{Due, Envelope, Json, SignalName, State, Verdict};

use super::harness::{Harness, PATIENCE, START, answer, begun, soon};
use super::make::{LEASE, again, demand, json, ok, secs, task, waiting};

/// What an attempt remembered is there for the next one, and for everybody to see.
pub async fn a_step_reaches_the_next_attempt(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    assert_eq!(claim.memo, "");
    assert_eq!(remember(h, &claim, "a").await, Renewed::Held);
    assert_eq!(remember(h, &claim, "b").await, Renewed::Held);
    h.settle(&claim, again(secs(5))).await;
    h.clock.advance(secs(5));
    let next = h.claim_one().await;
    assert_eq!(next.memo, step("a") + &step("b"));
    assert_eq!(h.record(&next.receipt.id).await.memo, next.memo);
}

/// What was remembered survives the worker.
pub async fn a_step_survives_a_lost_lease(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    remember(h, &claim, "a").await;
    h.tick_after(LEASE).await;
    assert_eq!(h.claim_one().await.memo, step("a"));
    assert_eq!(remember(h, &claim, "late").await, Renewed::Lost);
    assert_eq!(h.record(&claim.receipt.id).await.memo, step("a"), "an old holder adds nothing");
}

/// A retry by command keeps what was done; only a discarded task is forgotten with its memo.
pub async fn a_retried_task_keeps_its_steps(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    remember(h, &claim, "a").await;
    h.settle(&claim, ok("1")).await;
    h.act_on(&claim.receipt.id, TaskAction::Retry).await;
    let again = h.claim_one().await;
    assert_eq!(again.memo, step("a"));
    h.settle(&again, ok("1")).await;
    h.act_on(&claim.receipt.id, TaskAction::Discard).await;
    let id = claim.receipt.id;
    h.push(Envelope { id, ..task("work") }).await;
    assert_eq!(h.claim_one().await.memo, "");
}

/// A signal that comes when the wait is over leaves the task in its place in line.
pub async fn a_signal_after_the_wait_moves_nothing(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    h.settle(&claim, awaits("go", 0)).await;
    h.tick_after(secs(60)).await;
    h.clock.advance(secs(1));
    let later = h.push(task("work")).await;
    h.act_on(&claim.receipt.id, signal("go", "1")).await;
    assert_eq!(h.record(&claim.receipt.id).await.waits_for, None);
    assert_eq!(h.claim_ids(demand(10)).await, [claim.receipt.id, later]);
}

/// A signal to a task that waits for it makes it ready at once.
pub async fn a_signal_ends_a_wait(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let id = claim.receipt.id.clone();
    h.settle(&claim, awaits("go", 0)).await;
    let record = h.record(&id).await;
    assert_eq!((record.state, record.attempt, record.due_at), (State::Scheduled, 0, Some(START + secs(60))));
    assert_eq!(record.waits_for, Some(SignalName::known("go")));
    let store = h.second.clone();
    let waiting = begun(async move { store.claim(&waiting(PATIENCE)).await });
    h.act_on(&id, signal("go", "[1]")).await;
    let claims = answer(soon(waiting).await);
    assert_eq!(claims[0].memo, signal_line("go", "[1]"));
    assert_eq!(h.record(&id).await.waits_for, None);
}

/// Another signal is kept, and leaves the task waiting.
pub async fn another_signal_does_not_end_a_wait(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    h.settle(&claim, awaits("go", 0)).await;
    h.act_on(&claim.receipt.id, signal("stop", "null")).await;
    assert_eq!(h.state(&claim.receipt.id).await, State::Scheduled);
    h.clock.advance(secs(60));
    assert_eq!(h.claim_one().await.memo, signal_line("stop", "null"));
}

/// A wait ends when its time has passed.
pub async fn a_wait_ends_by_itself(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    h.settle(&claim, awaits("go", 0)).await;
    assert_eq!(h.claim_ids(demand(1)).await, []);
    h.clock.advance(secs(60));
    assert_eq!(h.claim_one().await.attempt, 1, "no attempt was spent");
}

/// A signal that comes while the task runs is not missed by the wait that follows.
pub async fn a_signal_to_a_running_task_is_not_missed(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    remember(h, &claim, "a").await;
    h.act_on(&claim.receipt.id, signal("go", "1")).await;
    h.settle(&claim, awaits("go", step("a").len())).await;
    let next = h.claim_one().await;
    assert_eq!(lines(&next.memo).count(), 2);
    h.settle(&next, awaits("go", next.memo.len())).await;
    assert_eq!(h.state(&claim.receipt.id).await, State::Scheduled, "everything was seen");
}

/// A delayed task is not woken by a signal that it does not wait for yet.
pub async fn a_signal_before_its_time_starts_nothing(h: &Harness) {
    let id = h.push(Envelope { due: Due::After(secs(60)), ..task("work") }).await;
    h.act_on(&id, signal("go", "1")).await;
    assert_eq!(h.state(&id).await, State::Scheduled);
    h.clock.advance(secs(60));
    assert_eq!(h.claim_one().await.memo, signal_line("go", "1"));
}

/// A task that has ended, or whose memo is full, takes no signal.
pub async fn a_signal_without_room_or_receiver_is_refused(h: &Harness) {
    let id = h.push(task("work")).await;
    let large = format!("\"{}\"", "x".repeat(MEMO_BYTES_MAX - 60));
    h.act_on(&id, signal("go", &large)).await;
    let refused = h.act(std::slice::from_ref(&id), signal("go", &large)).await;
    assert_eq!((refused.changed, refused.unchanged), (0, vec![(id.clone(), Some(State::Ready))]));
    h.run_one(ok("1")).await;
    let refused = h.act(std::slice::from_ref(&id), signal("go", "1")).await;
    assert_eq!((refused.changed, refused.unchanged), (0, vec![(id, Some(State::Succeeded))]));
}

/// What waits for a signal can be cancelled, and run at once.
pub async fn what_waits_for_a_signal_obeys_commands(h: &Harness) {
    let first = h.push_and_claim(task("work")).await;
    h.settle(&first, awaits("go", 0)).await;
    h.act_on(&first.receipt.id, TaskAction::RunNow).await;
    assert_eq!(h.record(&first.receipt.id).await.waits_for, None);
    let again = h.claim_one().await;
    h.settle(&again, awaits("go", 0)).await;
    h.act_on(&first.receipt.id, TaskAction::Cancel).await;
    assert_eq!(h.state(&first.receipt.id).await, State::Cancelled);
}

async fn remember(h: &Harness, claim: &Claim, name: &str) -> Renewed {
    let renewal = Renewal { receipt: claim.receipt.clone(), progress: None, memo: Some(step(name)) };
    answer(h.store.renew(&[renewal], LEASE).await).remove(0)
}

fn step(name: &str) -> String {
    Line::Step { step: name.to_owned(), value: json("1") }.to_text()
}

fn signal(name: &str, value: &str) -> TaskAction {
    TaskAction::Signal { name: SignalName::known(name), value: Json::trusted(value) }
}

fn signal_line(name: &str, value: &str) -> String {
    Line::Signal { signal: SignalName::known(name), value: json(value) }.to_text()
}

fn awaits(name: &str, seen: usize) -> Verdict {
    Verdict::Awaits { signal: SignalName::known(name), seen, at_most: secs(60) }
}
