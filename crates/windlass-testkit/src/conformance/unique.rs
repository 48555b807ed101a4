//! What unique keys promise: what must not be queued twice is not queued twice.

use std::time::Duration;

use futures_util::future::join;
use windlass_core::backend::{Push, Pushed, TaskAction};
use windlass_core::{Args, Due, Envelope, OnConflict, Priority, State, Unique, UniqueHold, UniqueKey, Verdict};

use super::harness::{Harness, RETENTION, START, answer};
use super::make::{LEASE, MICRO, again, dead, demand, just_under, ok, queue, secs, task};

/// A key is taken while its task has not ended, whatever that is doing.
pub async fn a_key_is_taken_while_its_task_lives(h: &Harness) {
    let id = h.push(unique("k")).await;
    let taken = [Pushed::Exists(id.clone())];
    assert_eq!(h.try_push([unique("k")]).await, taken, "ready");
    let claim = h.claim_one().await;
    assert_eq!(h.try_push([unique("k")]).await, taken, "running");
    h.settle(&claim, again(secs(5))).await;
    assert_eq!(h.try_push([unique("k")]).await, taken, "scheduled");
    h.clock.advance(secs(5));
    h.run_one(Verdict::Parked).await;
    assert_eq!(h.try_push([unique("k")]).await, taken, "parked");
    assert_eq!(h.list(&windlass_core::view::Filter::all()).await.len(), 1);
}

/// A key is free when its task has ended, whatever with.
pub async fn a_key_is_free_when_its_task_has_ended(h: &Harness) {
    for verdict in [ok("1"), dead(), Verdict::Cancelled, Verdict::Expired] {
        h.push_and_run(unique("k"), verdict).await;
    }
    h.push(unique("k")).await;
}

/// A task that ends without a holder gives its key back.
pub async fn a_key_is_free_when_its_task_ended_without_a_holder(h: &Harness) {
    let cancelled = h.push(unique("k")).await;
    h.act_on(&cancelled, TaskAction::Cancel).await;
    h.push(Envelope { expires: Some(START + secs(1)), ..unique("k") }).await;
    h.tick_after(secs(1)).await;
    h.push(unique("k")).await;
    for _ in 0..windlass_core::state::CRASHES_MAX {
        h.claim_one().await;
        h.tick_after(LEASE).await;
    }
    h.push(unique("k")).await;
}

/// Of equal keys in one batch the first is stored.
pub async fn a_key_twice_in_one_batch_is_stored_once(h: &Harness) {
    let (first, second) = (unique("k"), unique("k"));
    let pushed = h.try_push([first.clone(), second, unique("other")]).await;
    assert_eq!(pushed, [Pushed::Stored, Pushed::Exists(first.id), Pushed::Stored]);
}

/// A key is one for the whole store: neither queue nor name makes a difference.
pub async fn a_key_is_one_for_the_whole_store(h: &Harness) {
    let id = h.push(unique("k")).await;
    let elsewhere = Envelope { queue: queue("other"), unique: unique("k").unique, ..task("other") };
    assert_eq!(h.try_push([elsewhere]).await, [Pushed::Exists(id)]);
}

/// Of two pushes through two handles at the same time one is stored.
pub async fn two_producers_store_a_key_once(h: &Harness) {
    for round in 0..20 {
        let push = || Push { envelopes: vec![unique(&format!("k{round}"))], groups: Vec::new() };
        let (ours, theirs) = (push(), push());
        let (first, second) = join(h.store.push(&ours), h.second.push(&theirs)).await;
        let stored =
            [answer(first), answer(second)].concat().iter().filter(|pushed| **pushed == Pushed::Stored).count();
        assert_eq!(stored, 1);
    }
}

/// A window keeps the key taken from the push on, also when the task has ended or is forgotten.
pub async fn a_window_outlives_its_task(h: &Harness) {
    let first = h.push_and_run(unique_for("k", secs(60)), ok("1")).await;
    h.act_on(&first, TaskAction::Discard).await;
    h.clock.advance(just_under(secs(60)));
    assert_eq!(h.try_push([unique_for("k", secs(60))]).await, [Pushed::Exists(first)]);
    h.clock.advance(MICRO);
    h.push(unique_for("k", secs(60))).await;
}

/// A window ends when it is over, also when the task still lives.
pub async fn a_window_ends_while_its_task_lives(h: &Harness) {
    let first = h.push(unique_for("k", secs(60))).await;
    h.clock.advance(secs(60));
    let second = h.push(unique_for("k", secs(60))).await;
    h.run_one(ok("1")).await;
    assert_eq!(h.state(&first).await, State::Succeeded);
    assert_eq!(h.try_push([unique("k")]).await, [Pushed::Exists(second)], "the end of the first frees nothing");
}

/// A window longer than the history is kept all the same.
pub async fn a_window_outlives_the_history(h: &Harness) {
    let window = RETENTION.finished * 3;
    let first = h.push_and_run(unique_for("k", window), ok("1")).await;
    h.tick_after(just_under(window)).await;
    assert_eq!(h.find(&first).await, None);
    assert_eq!(h.try_push([unique("k")]).await, [Pushed::Exists(first)]);
    h.tick_after(MICRO).await;
    h.push(unique("k")).await;
}

/// A push that was refused takes no key, and does not lengthen a window.
pub async fn a_refused_push_takes_nothing(h: &Harness) {
    h.push(unique_for("k", secs(60))).await;
    h.clock.advance(secs(50));
    h.try_push([unique_for("k", secs(60))]).await;
    h.clock.advance(secs(10));
    h.push(unique("k")).await;
}

/// A task that starts over takes its key again.
pub async fn a_retried_task_takes_its_key_again(h: &Harness) {
    let id = h.push_and_run(unique("k"), dead()).await;
    h.act_on(&id, TaskAction::Retry).await;
    assert_eq!(h.try_push([unique("k")]).await, [Pushed::Exists(id)]);
    h.run_one(ok("1")).await;
    h.push(unique("k")).await;
}

/// A task cannot start over while another one has its key.
pub async fn a_task_whose_key_is_taken_is_not_retried(h: &Harness) {
    let first = h.push_and_run(unique("k"), dead()).await;
    let second = h.push(unique("k")).await;
    let commanded = h.act(std::slice::from_ref(&first), TaskAction::Retry).await;
    assert_eq!((commanded.changed, commanded.unchanged), (0, vec![(first.clone(), Some(State::Dead))]));
    h.run_one(ok("1")).await;
    h.act_on(&first, TaskAction::Retry).await;
    assert_eq!((h.state(&first).await, h.state(&second).await), (State::Ready, State::Succeeded));
}

/// Of two dead letters with one key, one at a time starts over.
pub async fn of_two_tasks_with_one_key_one_is_retried(h: &Harness) {
    let first = h.push_and_run(unique("k"), dead()).await;
    let second = h.push_and_run(unique("k"), dead()).await;
    let commanded = h.act(&[first.clone(), second.clone()], TaskAction::Retry).await;
    assert_eq!((commanded.changed, commanded.unchanged), (1, vec![(second, Some(State::Dead))]));
    assert_eq!(h.claim_ids(demand(10)).await, [first]);
}

/// A key that is held until the start is free as soon as its task runs, and stays free for its retry.
pub async fn a_key_until_the_start_is_free_when_its_task_runs(h: &Harness) {
    let until_started = || with("k", |unique| unique.hold = UniqueHold::Started);
    let first = h.push(until_started()).await;
    assert_eq!(h.try_push([until_started()]).await, [Pushed::Exists(first.clone())]);
    let claim = h.claim_one().await;
    let second = h.push(until_started()).await;
    h.settle(&claim, again(Duration::ZERO)).await;
    assert_eq!(h.try_push([until_started()]).await, [Pushed::Exists(second)], "the end of the first frees nothing");
    assert_eq!(h.claim(demand(10)).await.len(), 2);
    h.push(until_started()).await;
}

/// A push that replaces gives its arguments, headers and priority to the task that waits, and leaves its time alone.
pub async fn a_push_replaces_what_waits(h: &Harness) {
    let first = h.push(Envelope { due: Due::After(secs(60)), ..replacing("1") }).await;
    let other = Envelope { priority: Priority::HIGH, ..replacing("2") };
    let pushed = h.try_push([other]).await;
    assert_eq!(pushed, [Pushed::Replaced(first.clone())]);
    let record = h.record(&first).await;
    assert_eq!((record.state, record.due_at), (State::Scheduled, Some(START + secs(60))));
    assert_eq!((record.envelope.args.clone(), record.envelope.priority), (replacing("2").args, Priority::HIGH));
    assert_eq!(record.envelope.headers, replacing("2").headers);
    h.clock.advance(secs(60));
    let claim = h.claim_one().await;
    assert_eq!(claim.envelope.args, replacing("2").args);
    assert_eq!(h.try_push([replacing("3")]).await, [Pushed::Exists(first)], "what runs is not touched");
    assert_eq!(h.list(&windlass_core::view::Filter::all()).await.len(), 1);
}

/// A ready task is replaced where it stands: among those of its new priority.
pub async fn a_ready_task_is_replaced_in_its_place(h: &Harness) {
    let first = h.push(Envelope { priority: Priority::LOW, ..replacing("1") }).await;
    let plain = h.push(task("work")).await;
    h.try_push([Envelope { priority: Priority::HIGH, ..replacing("2") }]).await;
    assert_eq!(h.claim_ids(demand(10)).await, [first, plain]);
    assert_eq!(h.default_counts().await.ready, 0);
}

/// A push that debounces puts the task off: it starts after a quiet time, with the newest arguments.
pub async fn a_debounced_task_starts_after_a_quiet_time(h: &Harness) {
    let push = |text: &str| Envelope {
        due: Due::After(secs(10)),
        ..with_args(text, |unique| unique.on_conflict = OnConflict::Debounce)
    };
    let id = h.push(push("1")).await;
    h.clock.advance(secs(6));
    assert_eq!(h.try_push([push("2")]).await, [Pushed::Replaced(id)]);
    h.clock.advance(secs(6));
    assert_eq!(h.claim_ids(demand(1)).await, []);
    h.clock.advance(secs(4));
    assert_eq!(h.claim_one().await.envelope.args, push("2").args);
}

/// A window ends the putting off.
pub async fn a_debounced_task_is_put_off_by_its_window_at_most(h: &Harness) {
    let push = || Envelope {
        due: Due::After(secs(10)),
        ..with("k", |unique| {
            unique.on_conflict = OnConflict::Debounce;
            unique.window = Some(secs(15));
        })
    };
    let id = h.push(push()).await;
    h.clock.advance(secs(9));
    assert_eq!(h.try_push([push()]).await, [Pushed::Replaced(id.clone())]);
    assert_eq!(h.record(&id).await.due_at, Some(START + secs(15)));
}

fn with(key: &str, change: impl FnOnce(&mut Unique)) -> Envelope {
    let mut unique = Unique::new(UniqueKey::known(key));
    change(&mut unique);
    Envelope { unique: Some(unique), ..task("work") }
}

fn with_args(text: &str, change: impl FnOnce(&mut Unique)) -> Envelope {
    let headers = [("h".to_owned(), text.to_owned())].into();
    let args = Args::parse(&format!("{{\"n\":{text}}}")).expect("arguments");
    Envelope { args, headers, ..with("k", change) }
}

fn replacing(text: &str) -> Envelope {
    with_args(text, |unique| unique.on_conflict = OnConflict::Replace)
}

fn unique(key: &str) -> Envelope {
    Envelope { unique: Some(Unique::new(UniqueKey::known(key))), ..task("work") }
}

fn unique_for(key: &str, window: Duration) -> Envelope {
    Envelope { unique: Some(Unique::new(UniqueKey::known(key)).for_window(window)), ..task("work") }
}
