//! What limits promise: no gate ever lets more pass than its rule, and what must wait takes no place of what need not.

use std::time::Duration;

use futures_util::future::join_all;
use windlass_core::backend::{Demand, Pushed, TaskAction};
use windlass_core::limit::{Gate, Limit, LimitChange, Rule, SetBy, Subject};
use windlass_core::{Clock as _, Due, Envelope, Key, NodeId, TaskId, TaskName, Timestamp, Verdict};

use super::harness::{Harness, PATIENCE, START, answer, begun, is_rejected, soon};
use super::make::{
    LEASE, MICRO, SHORT, again, demand, demand_of, just_under, ok, queue, secs, snooze, task, task_in, tasks, waiting,
};

/// No more run at once than the concurrency of their queue allows, and each that ends lets another start.
pub async fn a_queue_runs_no_more_at_once_than_its_concurrency(h: &Harness) {
    set(h, "queue:default", r#"{"concurrency":2}"#).await;
    let ids = h.push_all(tasks(4)).await;
    let claims = h.claim(demand(10)).await;
    assert_eq!(claims.iter().map(|claim| claim.receipt.id.clone()).collect::<Vec<_>>(), ids[..2]);
    assert_eq!(h.claim_ids(demand(10)).await, []);
    h.settle(&claims[0], ok("1")).await;
    assert_eq!(h.claim_ids(demand(10)).await, [ids[2].clone()]);
}

/// Every way out of running makes room: an end, a retry, a return, a lease that ran out.
pub async fn every_end_of_an_attempt_makes_room(h: &Harness) {
    set(h, "task:work", r#"{"concurrency":1}"#).await;
    h.push(task("work")).await;
    for verdict in [again(Duration::ZERO), Verdict::Released, snooze(Duration::ZERO)] {
        let claim = h.claim_one().await;
        assert_eq!(h.claim_ids(demand(1)).await, []);
        h.settle(&claim, verdict).await;
    }
    h.claim_one().await;
    h.tick_after(LEASE).await;
    h.claim_one().await;
}

/// A task that must wait leaves its place to those behind it that need not.
pub async fn what_must_wait_is_passed_over(h: &Harness) {
    set(h, "task:slow", r#"{"concurrency":1}"#).await;
    let slow = h.push_all([task("slow"), task("slow"), task("slow")]).await;
    let quick = h.push_all([task("quick"), task("quick")]).await;
    assert_eq!(h.claim_ids(demand(10)).await, [slow[0].clone(), quick[0].clone(), quick[1].clone()]);
}

/// The limit of a name holds for all queues together.
pub async fn a_name_is_limited_across_queues(h: &Harness) {
    set(h, "task:work", r#"{"concurrency":2}"#).await;
    h.push_all([task_in("a"), task_in("a"), task_in("b"), task_in("b")]).await;
    assert_eq!(h.claim(demand_of(&["a"], 1)).await.len(), 1);
    assert_eq!(h.claim(demand_of(&["a", "b"], 10)).await.len(), 1);
}

/// The limit for each key of a name leaves the other keys, names and tasks without a key alone.
pub async fn each_key_is_limited_by_itself(h: &Harness) {
    set(h, "keys-of-task:work", r#"{"concurrency":1}"#).await;
    let a = h.push_all([keyed("a"), keyed("a")]).await;
    let b = h.push_all([keyed("b"), keyed("b")]).await;
    let free = h.push_all([task("work"), task("work"), Envelope { key: keyed("a").key, ..task("other") }]).await;
    let mut expected = vec![a[0].clone(), b[0].clone()];
    expected.extend(free);
    same_set(&h.claim_ids(demand(10)).await, &expected);
    assert_eq!(h.claim_ids(demand(10)).await, []);
}

/// The limit for each key of a queue counts all names of the key together, and only in that queue.
pub async fn each_key_of_a_queue_is_limited_by_itself(h: &Harness) {
    set(h, "keys-of-queue:default", r#"{"concurrency":1}"#).await;
    h.push_all([keyed("a"), Envelope { name: TaskName::known("other"), ..keyed("a") }]).await;
    let elsewhere = h.push_all([Envelope { queue: queue("elsewhere"), ..keyed("a") }]).await;
    assert_eq!(h.claim(demand(10)).await.len(), 1);
    assert_eq!(h.claim_ids(demand_of(&["default", "elsewhere"], 10)).await, elsewhere);
}

/// The limit of one key holds for all queues and names.
pub async fn a_key_is_limited_everywhere(h: &Harness) {
    set(h, "key:a", r#"{"concurrency":1}"#).await;
    h.push_all([keyed("a"), Envelope { queue: queue("other"), ..keyed("a") }]).await;
    let b = h.push(keyed("b")).await;
    let first = h.claim_ids(demand_of(&["default", "other"], 10)).await;
    assert_eq!(first.len(), 2);
    assert!(first.contains(&b));
}

/// Several limits hold at once: the tightest decides.
pub async fn the_tightest_of_several_limits_decides(h: &Harness) {
    set(h, "queue:default", r#"{"concurrency":5}"#).await;
    set(h, "task:work", r#"{"concurrency":3,"rate":"1/s burst 4"}"#).await;
    set(h, "keys-of-task:work", r#"{"concurrency":1}"#).await;
    h.push_all([keyed("a"), keyed("a"), keyed("b"), keyed("c"), keyed("d")]).await;
    h.push_all([task("other"), task("other"), task("other")]).await;
    let claims = h.claim(demand(10)).await;
    let of = |name: &str| claims.iter().filter(|claim| claim.envelope.name.as_str() == name).count();
    assert!(of("work") <= 3 && claims.len() == 5, "{} of {}", of("work"), claims.len());
}

/// Starts are spread as the rate says, and nothing starts earlier.
pub async fn a_rate_spreads_starts(h: &Harness) {
    set(h, "queue:default", r#"{"rate":"60/m"}"#).await;
    h.push_all(tasks(3)).await;
    assert_eq!(h.claim(demand(10)).await.len(), 1);
    h.clock.advance(just_under(secs(1)));
    assert_eq!(h.claim(demand(10)).await.len(), 0);
    h.clock.advance(MICRO);
    assert_eq!(h.claim(demand(10)).await.len(), 1);
    h.clock.advance(secs(5));
    assert_eq!(h.claim(demand(10)).await.len(), 1, "time that nobody used is not saved up");
}

/// After a pause as many start at once as the burst allows.
pub async fn a_burst_starts_at_once(h: &Harness) {
    set(h, "task:work", r#"{"rate":"10/s burst 3"}"#).await;
    h.push_all(tasks(10)).await;
    assert_eq!(h.claim(demand(10)).await.len(), 3);
    h.clock.advance(Duration::from_millis(200));
    assert_eq!(h.claim(demand(10)).await.len(), 2);
}

/// The rate of each key is counted by itself.
pub async fn each_key_has_a_rate_of_its_own(h: &Harness) {
    set(h, "keys-of-queue:default", r#"{"rate":"1/s"}"#).await;
    h.push_all([keyed("a"), keyed("a"), keyed("b"), keyed("b"), keyed("c")]).await;
    assert_eq!(h.claim(demand(10)).await.len(), 3);
    assert_eq!(h.claim(demand(10)).await.len(), 0);
    h.clock.advance(secs(1));
    assert_eq!(h.claim(demand(10)).await.len(), 2);
}

/// A claim that waits takes a task as soon as its rate lets it start.
pub async fn a_waiting_claim_takes_a_task_when_its_rate_opens(h: &Harness) {
    set(h, "queue:default", r#"{"rate":"10/s"}"#).await;
    h.push_all(tasks(2)).await;
    h.claim_one().await;
    let (store, clock) = (h.second.clone(), h.clock.clone());
    let claim = begun(async move { store.claim(&waiting(PATIENCE)).await });
    clock.advance(Duration::from_millis(100));
    assert_eq!(answer(soon(claim).await).len(), 1);
}

/// A claim that waits takes a task as soon as another one ends.
pub async fn a_waiting_claim_takes_a_task_when_another_ends(h: &Harness) {
    set(h, "queue:default", r#"{"concurrency":1}"#).await;
    h.push_all(tasks(2)).await;
    let first = h.claim_one().await;
    let store = h.second.clone();
    let claim = begun(async move { store.claim(&waiting(PATIENCE)).await });
    h.settle(&first, ok("1")).await;
    assert_eq!(answer(soon(claim).await).len(), 1);
}

/// A limit can be changed at any time, and holds from the next claim on; what runs counts.
pub async fn a_limit_is_changed_while_tasks_run(h: &Harness) {
    h.push_all(tasks(6)).await;
    assert_eq!(h.claim(demand(2)).await.len(), 2);
    assert!(set(h, "queue:default", r#"{"concurrency":3}"#).await);
    assert!(!set(h, "queue:default", r#"{"concurrency":3}"#).await, "it was so already");
    assert_eq!(h.claim(demand(10)).await.len(), 1);
    set(h, "queue:default", r#"{"concurrency":4}"#).await;
    assert_eq!(h.claim(demand(10)).await.len(), 1);
    assert!(change(h, LimitChange::Remove(subject("queue:default"))).await);
    assert!(!change(h, LimitChange::Remove(subject("queue:default"))).await);
    assert_eq!(h.claim(demand(10)).await.len(), 2);
}

/// Raising a limit wakes a claim that waits.
pub async fn a_raised_limit_wakes_a_waiting_claim(h: &Harness) {
    set(h, "queue:default", r#"{"concurrency":0}"#).await;
    h.push(task("work")).await;
    let store = h.second.clone();
    let claim = begun(async move { store.claim(&waiting(PATIENCE)).await });
    set(h, "queue:default", r#"{"concurrency":1}"#).await;
    assert_eq!(answer(soon(claim).await).len(), 1);
}

/// What an application declares does not replace what an operator has set.
pub async fn an_operator_has_the_last_word(h: &Harness) {
    let declared = |concurrency| Rule { concurrency: Some(concurrency), set_by: SetBy::Application, ..Rule::default() };
    let declare = |rule| change(h, LimitChange::Set(Limit { subject: subject("task:work"), rule }));
    assert!(declare(declared(1)).await);
    assert!(declare(declared(2)).await, "an application may change its mind");
    assert!(set(h, "task:work", r#"{"concurrency":3}"#).await);
    assert!(!declare(declared(2)).await);
    assert_eq!(answer(h.second.limits().await).limits[0].rule.concurrency, Some(3));
}

/// What an application declares no more is forgotten; what an operator has set stays.
pub async fn a_declaration_is_withdrawn_unless_an_operator_has_set_it(h: &Harness) {
    let rule = Rule { concurrency: Some(1), set_by: SetBy::Application, ..Rule::default() };
    let withdraw = || change(h, LimitChange::Withdraw(subject("task:work")));
    assert!(!withdraw().await, "there is none");
    assert!(change(h, LimitChange::Set(Limit { subject: subject("task:work"), rule })).await);
    h.push_all(tasks(2)).await;
    h.claim_one().await;
    assert_eq!(h.claim_ids(demand(10)).await, []);
    assert!(withdraw().await);
    assert_eq!(h.claim(demand(10)).await.len(), 1, "the gate is gone");
    assert!(set(h, "task:work", r#"{"concurrency":3}"#).await);
    assert!(!withdraw().await);
    assert_eq!(answer(h.second.limits().await).limits[0].rule.concurrency, Some(3));
}

/// While a gate is held nothing passes it, through whatever handle; then everything goes on.
pub async fn a_held_gate_lets_nothing_pass(h: &Harness) {
    h.push_all([keyed("a"), keyed("b"), task("other")]).await;
    assert!(hold(h, "key-of-task:work a", secs(60)).await);
    assert!(!hold(h, "key-of-task:work a", secs(30)).await, "the longer one stays");
    assert_eq!(answer(h.second.claim(&demand(10)).await).len(), 2);
    h.clock.advance(just_under(secs(60)));
    assert_eq!(h.claim(demand(10)).await.len(), 0);
    h.clock.advance(MICRO);
    assert_eq!(h.claim(demand(10)).await.len(), 1);
}

/// Every kind of gate can be held, and a claim that waits goes on when the hold ends.
pub async fn a_hold_ends_by_itself(h: &Harness) {
    for gate in ["queue:default", "task:work", "key:a", "key-of-queue:default a", "key-of-task:work a"] {
        h.push(keyed("a")).await;
        hold(h, gate, secs(5)).await;
        assert_eq!(h.claim(demand(10)).await.len(), 0, "{gate}");
        let (store, clock) = (h.second.clone(), h.clock.clone());
        let claim = begun(async move { store.claim(&waiting(PATIENCE)).await });
        clock.advance(secs(5));
        assert_eq!(answer(soon(claim).await).len(), 1, "{gate}");
    }
}

/// A reset ends a hold and forgets what a rate has counted.
pub async fn a_reset_opens_a_gate(h: &Harness) {
    set(h, "queue:default", r#"{"rate":"1/h"}"#).await;
    h.push_all(tasks(3)).await;
    h.claim_one().await;
    assert!(change(h, LimitChange::Reset(gate("queue:default"))).await);
    h.claim_one().await;
    hold(h, "task:work", secs(60)).await;
    change(h, LimitChange::Reset(gate("queue:default"))).await;
    assert_eq!(h.claim(demand(1)).await.len(), 0);
    assert!(change(h, LimitChange::Reset(gate("task:work"))).await);
    assert!(!change(h, LimitChange::Reset(gate("task:work"))).await);
    h.claim_one().await;
}

/// A queue that is full refuses what is too much, by name, and takes it when there is room.
pub async fn a_full_queue_refuses_a_push(h: &Harness) {
    set(h, "queue:default", r#"{"length":3}"#).await;
    let delayed = Envelope { due: Due::After(secs(60)), ..task("work") };
    let full = Pushed::Full { limit: 3 };
    assert_eq!(
        h.try_push([delayed, task("work"), task("work"), task("work"), task_in("other")]).await,
        [Pushed::Stored, Pushed::Stored, Pushed::Stored, full.clone(), Pushed::Stored]
    );
    assert_eq!(h.try_push([task("work")]).await, [full]);
    let claim = h.claim_one().await;
    assert_eq!(h.try_push([task("work")]).await, [Pushed::Stored], "what runs does not wait");
    h.settle(&claim, again(Duration::ZERO)).await;
    assert_eq!(h.default_counts().await.ready, 3, "a retry is never refused");
}

/// A task that is there already is answered as such, however full its queue is.
pub async fn a_repeated_push_into_a_full_queue_is_known(h: &Harness) {
    set(h, "queue:default", r#"{"length":1}"#).await;
    let first = task("work");
    h.push(first.clone()).await;
    assert_eq!(h.try_push([first.clone()]).await, [Pushed::Exists(first.id)]);
}

/// Limits are there for everybody to see, with what is counted.
pub async fn limits_are_listed_with_what_they_count(h: &Harness) {
    set(h, "task:work", r#"{"rate":"1/s burst 2","concurrency":5}"#).await;
    set(h, "key:a", r#"{"weight":3}"#).await;
    h.push_all(tasks(3)).await;
    assert_eq!(h.claim(demand(10)).await.len(), 2);
    hold(h, "key:b", secs(60)).await;
    let view = answer(h.second.limits().await);
    let subjects: Vec<String> = view.limits.iter().map(|limit| limit.subject.to_string()).collect();
    assert_eq!(subjects.len(), 2, "{subjects:?}");
    let of = |text: &str| view.gates.iter().find(|view| view.gate == gate(text)).cloned();
    let work = of("task:work").expect("it counts");
    assert_eq!((work.running, work.next), (Some(2), Some(START + secs(2))));
    assert_eq!(of("key:b").expect("it is held").held_until, Some(START + secs(60)));
}

/// A limit that makes no sense is refused.
pub async fn a_limit_without_sense_is_refused(h: &Harness) {
    let set = |subject, rule: Rule| LimitChange::Set(Limit { subject, rule });
    let empty = set(subject("queue:default"), Rule::default());
    assert!(is_rejected(h.store.limit(&empty).await));
    let length = set(subject("task:work"), Rule { length: Some(1), ..Rule::default() });
    assert!(is_rejected(h.store.limit(&length).await));
    let hold = LimitChange::Hold { gate: gate("queue:default"), time: windlass_core::limit::HOLD_MAX + secs(1) };
    assert!(is_rejected(h.store.limit(&hold).await));
}

/// Four workers at once, claims of random size, ends in random order: no window sees more starts than the rate allows, and
/// no moment more tasks of a key than its concurrency.
pub async fn four_workers_never_exceed_a_limit(h: &Harness) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let rate: windlass_core::Rate = "50/s burst 4".parse().expect("a rate");
    set(h, "task:work", r#"{"rate":"50/s burst 4"}"#).await;
    set(h, "keys-of-task:work", r#"{"concurrency":2}"#).await;
    set(h, "queue:default", r#"{"concurrency":6}"#).await;
    let keys = ["a", "b", "c", "d", "e"];
    h.push_all((0..200).map(|number| keyed(keys[number % keys.len()]))).await;
    let mut dice = fastrand::Rng::with_seed(seed);
    let (mut held, mut starts): (Vec<windlass_core::backend::Claim>, Vec<Timestamp>) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        h.clock.advance(Duration::from_millis(dice.u64(0..60)));
        let now = h.clock.now();
        let asks: Vec<Demand> = (0..4)
            .map(|worker| Demand { node: NodeId::known(&format!("worker-{worker}")), ..demand(dice.usize(1..5)) })
            .collect();
        let claims = asks.iter().enumerate().map(|(worker, ask)| {
            let store = if worker % 2 == 0 { &h.store } else { &h.second };
            async move { answer(store.claim(ask).await) }
        });
        for claim in join_all(claims).await.into_iter().flatten() {
            starts.push(now);
            held.push(claim);
        }
        assert!(held.len() <= 6, "{} run at once", held.len());
        for key in keys {
            let of_key = held.iter().filter(|claim| claim.envelope.key == keyed(key).key).count();
            assert!(of_key <= 2, "{of_key} of key {key} run at once");
        }
        for _ in 0..dice.usize(0..=held.len()) {
            let claim = held.swap_remove(dice.usize(0..held.len()));
            h.settle(&claim, if dice.bool() { ok("1") } else { again(Duration::ZERO) }).await;
        }
    }
    assert!(starts.len() > 20, "only {} starts", starts.len());
    for (first, from) in starts.iter().enumerate() {
        for (last, to) in starts.iter().enumerate().skip(first) {
            let window = to.since(*from).as_micros() as i64;
            let allowed = i64::from(rate.burst) + window / rate.interval_micros();
            assert!((last - first + 1) as i64 <= allowed, "{} starts within {window} us", last - first + 1);
        }
    }
}

/// A command that makes a task ready does not let it pass its gates.
pub async fn a_command_opens_no_gate(h: &Harness) {
    set(h, "task:work", r#"{"concurrency":0}"#).await;
    let id = h.push(Envelope { due: Due::After(secs(60)), ..task("work") }).await;
    h.act_on(&id, TaskAction::RunNow).await;
    assert_eq!(h.claim_ids(Demand { wait: SHORT, ..demand(1) }).await, []);
}

fn same_set(found: &[TaskId], expected: &[TaskId]) {
    let sorted = |ids: &[TaskId]| {
        let mut ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        ids.sort();
        ids
    };
    assert_eq!(sorted(found), sorted(expected));
}

fn keyed(key: &str) -> Envelope {
    Envelope { key: Some(Key::known(key)), ..task("work") }
}

fn subject(text: &str) -> Subject {
    text.parse().expect("a subject")
}

fn gate(text: &str) -> Gate {
    text.parse().expect("a gate")
}

async fn set(h: &Harness, about: &str, rule: &str) -> bool {
    let rule = Rule::from_text(rule).expect("a rule");
    change(h, LimitChange::Set(Limit { subject: subject(about), rule })).await
}

async fn hold(h: &Harness, text: &str, time: Duration) -> bool {
    change(h, LimitChange::Hold { gate: gate(text), time }).await
}

async fn change(h: &Harness, change: LimitChange) -> bool {
    answer(h.store.limit(&change).await)
}
