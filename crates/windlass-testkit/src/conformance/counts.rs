//! What `counts` promises: the numbers are those that a recount would give.

use std::time::Duration;

use fastrand::Rng;
use windlass_core::backend::{Claim, TaskAction};
use windlass_core::view::{Counts, Filter, QueueCounts};
use windlass_core::{Due, Envelope, Priority, QueueName, State, TaskId, Verdict};

use super::harness::{Harness, START, answer};
use super::make::{LEASE, again, dead, delayed, demand, demand_of, ok, queue, secs, snooze, task, task_in, tasks};

/// The counters follow a task through its life.
pub async fn the_counters_follow_a_task_through_its_life(h: &Harness) {
    let is = |state: State| move |counts: QueueCounts| (counts.of(state), counts.live()) == (1, 1);
    h.push(delayed(secs(60))).await;
    assert!(is(State::Scheduled)(h.default_counts().await));
    h.tick_after(secs(60)).await;
    assert!(is(State::Ready)(h.default_counts().await));
    let claim = h.claim_one().await;
    assert!(is(State::Running)(h.default_counts().await));
    h.settle(&claim, Verdict::Parked).await;
    assert!(is(State::Parked)(h.default_counts().await));
    h.act_on(&claim.receipt.id, TaskAction::Cancel).await;
    assert_eq!((h.default_counts().await.cancelled, h.default_counts().await.live()), (1, 0));
}

/// Each queue has its own counters.
pub async fn queues_are_counted_apart(h: &Harness) {
    h.push_all([task_in("mail"), task_in("mail"), task_in("images")]).await;
    assert_eq!((h.counts(&queue("mail")).await.ready, h.counts(&queue("images")).await.ready), (2, 1));
    assert_eq!(answer(h.store.counts().await).total().ready, 3);
}

/// A store without tasks has no queues; one that was emptied still has them.
pub async fn a_queue_is_counted_from_its_first_task_on(h: &Harness) {
    assert_eq!(answer(h.store.counts().await), Counts::default());
    h.claim(demand_of(&["never"], 1)).await;
    let id = h.push(task_in("mail")).await;
    h.act_on(&id, TaskAction::Cancel).await;
    h.act_on(&id, TaskAction::Discard).await;
    let queues: Vec<QueueName> = answer(h.store.counts().await).queues.into_keys().collect();
    assert_eq!(queues, [queue("mail")]);
}

/// Dead letters are counted as long as they are kept as such.
pub async fn dead_letters_are_counted_as_they_are_now(h: &Harness) {
    let ids = [h.push_and_run(task("work"), dead()).await, h.push_and_run(task("work"), dead()).await];
    h.clock.advance(secs(1));
    h.push_and_run(task("work"), dead()).await;
    assert_eq!(h.default_counts().await.dead, 3);
    h.act_on(&ids[0], TaskAction::Retry).await;
    assert_eq!(h.default_counts().await.dead, 2);
    h.act_on(&ids[1], TaskAction::Discard).await;
    assert_eq!(h.default_counts().await.dead, 1);
    h.tick_after(super::RETENTION.dead).await;
    assert_eq!(h.default_counts().await.dead, 0);
}

/// Everything else that ended is counted for ever, also when it was retried, discarded or forgotten.
pub async fn what_ended_otherwise_is_counted_for_ever(h: &Harness) {
    let retried = h.push_and_run(task("work"), ok("1")).await;
    let discarded = h.push_and_run(task("work"), Verdict::Cancelled).await;
    h.push_and_run(task("work"), Verdict::Expired).await;
    h.act_on(&retried, TaskAction::Retry).await;
    h.act_on(&discarded, TaskAction::Discard).await;
    h.run_one(ok("2")).await;
    h.tick_after(super::RETENTION.finished).await;
    let counts = h.default_counts().await;
    assert_eq!((counts.succeeded, counts.cancelled, counts.expired), (2, 1, 1));
}

/// A queue tells since when the task waits that is claimed next.
pub async fn a_queue_tells_since_when_its_next_task_waits(h: &Harness) {
    assert_eq!(h.default_counts().await.oldest_ready_at, None);
    h.push(Envelope { priority: Priority::LAST, ..task("work") }).await;
    assert_eq!(h.default_counts().await.oldest_ready_at, Some(START));
    h.clock.advance(secs(1));
    h.push(Envelope { priority: Priority::FIRST, ..task("work") }).await;
    assert_eq!(h.default_counts().await.oldest_ready_at, Some(START + secs(1)));
    h.claim(demand(2)).await;
    assert_eq!(h.default_counts().await.oldest_ready_at, None);
}

/// A due time counts as the begin of the waiting.
pub async fn a_task_that_fell_due_waits_since_its_due_time(h: &Harness) {
    h.push(Envelope { due: Due::After(secs(60)), ..task("work") }).await;
    h.tick_after(secs(100)).await;
    assert_eq!(h.default_counts().await.oldest_ready_at, Some(START + secs(60)));
}

/// After any number of operations of every kind the counters are those of a recount.
pub async fn the_counters_are_those_of_a_recount(h: &Harness) {
    let seed = fastrand::u64(..);
    let mut rng = Rng::with_seed(seed);
    let mut held = Vec::new();
    for step in 0..300 {
        random_step(h, &mut rng, &mut held).await;
        if step % 20 == 19 {
            let counts = answer(h.store.counts().await);
            let recounted = recount(h).await;
            assert_eq!(kept_now(&counts), kept_now(&recounted), "seed {seed}, step {step}");
            let total = (counts.total(), recounted.total());
            for state in [State::Succeeded, State::Cancelled, State::Expired] {
                assert!(total.0.of(state) >= total.1.of(state), "seed {seed}, step {step}: {state}");
            }
        }
    }
}

/// As long as nothing is retried or forgotten, every state is counted as a recount would count it.
pub async fn every_state_is_counted(h: &Harness) {
    h.push_all(tasks(9)).await;
    h.push(delayed(secs(60))).await;
    let verdicts =
        [ok("1"), dead(), Verdict::Cancelled, Verdict::Expired, Verdict::Parked, snooze(secs(5)), again(secs(0))];
    let claims = h.claim(demand(8)).await;
    h.settle_all(claims.iter().zip(verdicts)).await;
    let counts = answer(h.store.counts().await);
    let total = recount(h).await.total();
    assert_eq!(QueueCounts { oldest_ready_at: None, ..counts.total() }, total);
    assert_eq!(State::ALL.map(|state| total.of(state)), [2, 2, 1, 1, 1, 1, 1, 1]);
}

/// The counters that say what is there now, by queue; queues without tasks are left out.
fn kept_now(counts: &Counts) -> Vec<(QueueName, [u64; 5])> {
    let now = [State::Scheduled, State::Ready, State::Running, State::Parked, State::Dead];
    let numbers = counts.queues.iter().map(|(name, counts)| (name.clone(), now.map(|state| counts.of(state))));
    numbers.filter(|(_, numbers)| *numbers != [0; 5]).collect()
}

async fn recount(h: &Harness) -> Counts {
    let mut counts = Counts::default();
    for record in h.list(&Filter::all()).await {
        *counts.queues.entry(record.envelope.queue).or_default().of_mut(record.state) += 1;
    }
    counts
}

const QUEUES: [&str; 2] = ["default", "mail"];

async fn random_step(h: &Harness, rng: &mut Rng, held: &mut Vec<Claim>) {
    match rng.u8(0..10) {
        0..=2 => {
            h.push(random_task(rng)).await;
        }
        3 | 4 => held.extend(h.claim(demand_of(&QUEUES, rng.usize(1..4))).await),
        5 | 6 if !held.is_empty() => {
            let claim = held.swap_remove(rng.usize(..held.len()));
            h.settle(&claim, random_verdict(rng)).await;
        }
        7 => {
            let ids: Vec<TaskId> = h.list(&Filter::all()).await.into_iter().map(|record| record.envelope.id).collect();
            let some: Vec<TaskId> = (0..3).filter_map(|_| rng.choice(&ids).cloned()).collect();
            h.act(&some, random_action(rng)).await;
        }
        8 => h.clock.advance(Duration::from_secs(rng.u64(0..20))),
        _ => {
            h.tick().await;
        }
    }
}

fn random_task(rng: &mut Rng) -> Envelope {
    let now = rng.bool();
    Envelope {
        queue: queue(QUEUES[rng.usize(..QUEUES.len())]),
        due: if now { Due::Now } else { Due::After(secs(rng.u64(0..20))) },
        expires: (rng.u8(0..4) == 0).then(|| START + secs(rng.u64(0..600))),
        priority: Priority::new(rng.u8(0..=9)).unwrap_or_default(),
        ..task("work")
    }
}

fn random_verdict(rng: &mut Rng) -> Verdict {
    match rng.u8(0..8) {
        0 | 1 => ok("1"),
        2 => dead(),
        3 => Verdict::Cancelled,
        4 => Verdict::Parked,
        5 => Verdict::Released,
        6 => again(Duration::ZERO),
        _ => again(LEASE),
    }
}

fn random_action(rng: &mut Rng) -> TaskAction {
    match rng.u8(0..6) {
        0 => TaskAction::Cancel,
        1 => TaskAction::Retry,
        2 => TaskAction::Discard,
        3 => TaskAction::Move(queue(QUEUES[rng.usize(..QUEUES.len())])),
        4 => TaskAction::Reprioritise(Priority::LOW),
        _ => TaskAction::RunNow,
    }
}
