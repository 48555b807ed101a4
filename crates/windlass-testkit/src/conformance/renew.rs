//! What `renew` promises: a holder that renews in time keeps its task, and hears what happened to it.

use std::time::Duration;

use windlass_core::State;
use windlass_core::backend::{BATCH_MAX, LEASE_MAX, Receipt, Renewal, Renewed, TaskAction};
use windlass_core::view::{PROGRESS_TEXT_BYTES_MAX, Progress};

use super::harness::{Harness, answer, is_rejected};
use super::make::{LEASE, MICRO, again, demand, just_under, ok, secs, task, tasks};

/// A renewed lease counts from now on, not from its old end.
pub async fn a_renewed_lease_counts_from_now(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    h.clock.advance(secs(20));
    assert_eq!(h.renew(&claim, LEASE).await, Renewed::Held);
    assert_eq!(h.tick_after(just_under(LEASE)).await.rescued, 0);
    assert_eq!(h.tick_after(MICRO).await.rescued, 1);
}

/// A renewal can be shorter than the lease that it replaces.
pub async fn a_lease_can_be_shortened(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    assert_eq!(h.renew(&claim, secs(1)).await, Renewed::Held);
    assert_eq!(h.tick_after(secs(1)).await.rescued, 1);
}

/// A lease that ran out is still held while nobody took the task away.
pub async fn a_late_renewal_holds_a_task_that_nobody_took(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    h.clock.advance(secs(3600));
    assert_eq!(h.renew(&claim, LEASE).await, Renewed::Held);
    assert_eq!(h.tick().await.rescued, 0);
    assert_eq!(h.state(&claim.receipt.id).await, State::Running);
}

/// A task that a tick gave back is lost to its holder, before and after somebody else claims it.
pub async fn a_rescued_task_is_lost_to_its_holder(h: &Harness) {
    let old = h.push_and_claim(task("work")).await;
    h.tick_after(LEASE).await;
    assert_eq!(h.renew(&old, LEASE).await, Renewed::Lost);
    let new = h.claim_one().await;
    assert_eq!(h.renew(&old, LEASE).await, Renewed::Lost);
    assert_eq!(h.renew(&new, LEASE).await, Renewed::Held);
}

/// A claim that was settled is held by nobody.
pub async fn a_settled_claim_is_lost(h: &Harness) {
    for verdict in [ok("1"), again(secs(5))] {
        let claim = h.push_and_claim(task("work")).await;
        h.settle(&claim, verdict).await;
        assert_eq!(h.renew(&claim, LEASE).await, Renewed::Lost);
    }
}

/// A receipt of a task that was never there is lost.
pub async fn an_unknown_receipt_is_lost(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let receipt = Receipt { id: task("other").id, ..claim.receipt };
    let renewal = Renewal { receipt, progress: None, memo: None };
    assert_eq!(answer(h.store.renew(&[renewal], LEASE).await), [Renewed::Lost]);
}

/// The holder of a task that somebody asked to cancel hears it with every renewal, and goes on holding it.
pub async fn a_holder_hears_of_a_cancel(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    h.act_on(&claim.receipt.id, TaskAction::Cancel).await;
    h.clock.advance(secs(20));
    assert_eq!(h.renew(&claim, LEASE).await, Renewed::Cancelled);
    h.tick_after(secs(20)).await;
    assert_eq!(h.state(&claim.receipt.id).await, State::Running, "the lease was renewed all the same");
    assert_eq!(h.renew(&claim, LEASE).await, Renewed::Cancelled);
}

/// Progress is kept until there is newer progress.
pub async fn progress_is_kept_until_there_is_newer(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let first = Progress { done: 3, total: Some(10), text: "reading".to_owned() };
    report(h, &claim.receipt, first.clone()).await;
    h.renew(&claim, LEASE).await;
    assert_eq!(h.record(&claim.receipt.id).await.progress, Some(first));
    let second = Progress { done: 4, total: None, text: String::new() };
    report(h, &claim.receipt, second.clone()).await;
    assert_eq!(h.record(&claim.receipt.id).await.progress, Some(second.clone()));
    h.settle(&claim, ok("1")).await;
    assert_eq!(h.record(&claim.receipt.id).await.progress, Some(second), "the last report outlives the attempt");
}

/// Each attempt reports for itself.
pub async fn a_new_attempt_starts_without_progress(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    report(h, &claim.receipt, Progress { done: 3, total: None, text: String::new() }).await;
    h.settle(&claim, again(Duration::ZERO)).await;
    h.claim_one().await;
    assert_eq!(h.record(&claim.receipt.id).await.progress, None);
}

/// A progress text is kept up to its limit and cut at a character beyond it.
pub async fn a_long_progress_text_is_cut(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let longest = "x".repeat(PROGRESS_TEXT_BYTES_MAX);
    let of_two_bytes = format!("x{}", "é".repeat(PROGRESS_TEXT_BYTES_MAX));
    for (text, kept) in [
        (longest.clone(), longest.as_str()),
        (format!("{longest}y"), &longest),
        (of_two_bytes.clone(), &of_two_bytes[..PROGRESS_TEXT_BYTES_MAX - 1]),
    ] {
        report(h, &claim.receipt, Progress { done: 0, total: None, text }).await;
        let progress = h.record(&claim.receipt.id).await.progress;
        assert_eq!(progress.map(|progress| progress.text).as_deref(), Some(kept));
    }
}

/// The progress of a holder that lost its task is not recorded.
pub async fn progress_of_a_lost_task_is_not_recorded(h: &Harness) {
    let old = h.push_and_claim(task("work")).await;
    h.tick_after(LEASE).await;
    h.claim_one().await;
    report(h, &old.receipt, Progress { done: 99, total: None, text: String::new() }).await;
    assert_eq!(h.record(&old.receipt.id).await.progress, None);
}

/// The answers of a batch stand in the places of its renewals.
pub async fn renewals_are_answered_in_their_order(h: &Harness) {
    h.push_all(tasks(3)).await;
    let claims = h.claim(demand(3)).await;
    h.settle(&claims[0], ok("1")).await;
    h.act_on(&claims[2].receipt.id, TaskAction::Cancel).await;
    let renewals: Vec<Renewal> =
        claims.iter().map(|claim| Renewal { receipt: claim.receipt.clone(), progress: None, memo: None }).collect();
    let renewed = answer(h.store.renew(&renewals, LEASE).await);
    assert_eq!(renewed, [Renewed::Lost, Renewed::Held, Renewed::Cancelled]);
}

/// Renewals are taken up to the limit of a batch, for leases up to a day.
pub async fn renewals_are_limited(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let renewal = Renewal { receipt: claim.receipt, progress: None, memo: None };
    assert_eq!(answer(h.store.renew(&vec![renewal.clone(); BATCH_MAX], LEASE_MAX).await).len(), BATCH_MAX);
    assert!(is_rejected(h.store.renew(&vec![renewal.clone(); BATCH_MAX + 1], LEASE).await));
    assert!(is_rejected(h.store.renew(std::slice::from_ref(&renewal), LEASE_MAX + MICRO).await));
    assert!(is_rejected(h.store.renew(&[renewal], Duration::ZERO).await));
}

async fn report(h: &Harness, receipt: &Receipt, progress: Progress) {
    let renewal = Renewal { receipt: receipt.clone(), progress: Some(progress), memo: None };
    answer(h.store.renew(&[renewal], LEASE).await);
}
