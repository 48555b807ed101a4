//! What fairness promises: the keys of a queue take turns, so no backlog of one delays another by more than a turn.

use windlass_core::backend::Demand;
use windlass_core::limit::{Limit, LimitChange, Rule};
use windlass_core::{Envelope, Key, Priority, TaskName, Verdict};

use super::harness::{Harness, PATIENCE, answer, begun, soon};
use super::make::{demand, ok, task, waiting};

/// Ten tasks behind a thousand of another key wait no longer than a turn each.
pub async fn a_small_key_is_not_delayed_by_a_large_one(h: &Harness) {
    h.push_all((0..1_000).map(|_| keyed("large"))).await;
    h.push_all((0..10).map(|_| keyed("small"))).await;
    let mut small = 0;
    for _ in 0..20 {
        small += usize::from(key_of(&h.claim_one().await.envelope) == "small");
    }
    assert_eq!(small, 10, "every second place was theirs");
}

/// A claim of many shares its places among the keys.
pub async fn a_large_claim_is_shared(h: &Harness) {
    h.push_all((0..100).map(|_| keyed("a"))).await;
    h.push_all((0..100).map(|_| keyed("b"))).await;
    h.push_all((0..3).map(|_| keyed("c"))).await;
    let counts = counts(h, demand(43)).await;
    assert_eq!(counts, [("a", 20), ("b", 20), ("c", 3)]);
}

/// A key alone gets every place.
pub async fn a_key_alone_gets_everything(h: &Harness) {
    let ids = h.push_all((0..50).map(|_| keyed("only"))).await;
    assert_eq!(h.claim_ids(demand(50)).await, ids);
}

/// Tasks without a key are one participant.
pub async fn tasks_without_a_key_take_turns_with_the_keys(h: &Harness) {
    h.push_all((0..100).map(|_| task("work"))).await;
    h.push_all((0..100).map(|_| keyed("a"))).await;
    let counts = counts(h, demand(40)).await;
    assert_eq!(counts, [("", 20), ("a", 20)]);
}

/// A key of weight 3 gets three places where others get one, in claims of one as in claims of many.
pub async fn a_key_has_as_many_turns_as_its_weight(h: &Harness) {
    let limit =
        Limit { subject: "key:heavy".parse().expect("a subject"), rule: Rule { weight: Some(3), ..Rule::default() } };
    answer(h.store.limit(&LimitChange::Set(limit)).await);
    h.push_all((0..100).map(|_| keyed("heavy"))).await;
    h.push_all((0..100).map(|_| keyed("light"))).await;
    let mut heavy = 0;
    for _ in 0..40 {
        heavy += usize::from(key_of(&h.claim_one().await.envelope) == "heavy");
    }
    assert_eq!(heavy, 30);
    assert_eq!(counts(h, demand(40)).await, [("heavy", 30), ("light", 10)]);
}

/// Within a key, priority and age decide.
pub async fn within_a_key_priority_decides(h: &Harness) {
    let low = h.push(Envelope { priority: Priority::LOW, ..keyed("a") }).await;
    let high = h.push(Envelope { priority: Priority::HIGH, name: TaskName::known("other"), ..keyed("a") }).await;
    assert_eq!(h.claim_ids(demand(10)).await, [high, low]);
}

/// Turns are counted for the whole queue, whoever claims.
pub async fn turns_are_shared_by_all_workers(h: &Harness) {
    h.push_all((0..10).map(|_| keyed("a"))).await;
    h.push_all((0..10).map(|_| keyed("b"))).await;
    let mut of_a = 0;
    for round in 0..10 {
        let store = if round % 2 == 0 { &h.store } else { &h.second };
        let claims = answer(store.claim(&demand(1)).await);
        of_a += claims.iter().filter(|claim| key_of(&claim.envelope) == "a").count();
    }
    assert_eq!(of_a, 5);
}

/// A name that is left to others is passed over in every key.
pub async fn excepted_names_are_passed_over_in_every_key(h: &Harness) {
    h.push_all([keyed("a"), keyed("b")]).await;
    let other = h.push(Envelope { name: TaskName::known("other"), ..keyed("b") }).await;
    let except = vec![TaskName::known("work")];
    assert_eq!(h.claim_ids(Demand { except, ..demand(10) }).await, [other]);
    assert_eq!(h.claim(demand(10)).await.len(), 2);
}

/// Keyed tasks that are given back, retried or fall due find their turn again.
pub async fn a_keyed_task_comes_back_to_its_key(h: &Harness) {
    let id = h.push(keyed("a")).await;
    h.run_one(Verdict::Released).await;
    assert_eq!(h.claim_ids(demand(1)).await, [id]);
}

/// A keyed task wakes a claim that waits, as any other.
pub async fn a_keyed_task_wakes_a_waiting_claim(h: &Harness) {
    let store = h.second.clone();
    let claim = begun(async move { store.claim(&waiting(PATIENCE)).await });
    let id = h.push(keyed("a")).await;
    let claims = answer(soon(claim).await);
    assert_eq!(claims.iter().map(|claim| claim.receipt.id.clone()).collect::<Vec<_>>(), [id]);
}

/// A queue that lets only one task start at a time lets each key have its turn, however much a claim asks for.
pub async fn keys_take_turns_at_the_gate_of_their_queue(h: &Harness) {
    let limit = Limit {
        subject: "queue:default".parse().expect("a subject"),
        rule: Rule { concurrency: Some(1), ..Rule::default() },
    };
    answer(h.store.limit(&LimitChange::Set(limit)).await);
    h.push_all(["a", "b", "c", "d", "e"].iter().flat_map(|key| [keyed(key), keyed(key)])).await;
    let mut served = Vec::new();
    for _ in 0..5 {
        let claims = h.claim(demand(10)).await;
        assert_eq!(claims.len(), 1);
        h.settle(&claims[0], ok("1")).await;
        served.push(key_of(&claims[0].envelope).to_owned());
    }
    served.sort();
    assert_eq!(served, ["a", "b", "c", "d", "e"]);
}

/// Many keys with a task each are all served, each once.
pub async fn many_keys_are_all_served(h: &Harness) {
    let ids = h.push_all((0..500).map(|number| keyed(&format!("key {number}")))).await;
    let mut taken = Vec::new();
    while taken.len() < ids.len() {
        let claims = h.claim(demand(37)).await;
        assert!(!claims.is_empty(), "{} of {} are left", ids.len() - taken.len(), ids.len());
        h.settle_all(claims.iter().map(|claim| (claim, ok("1")))).await;
        taken.extend(claims.into_iter().map(|claim| claim.receipt.id));
    }
    taken.sort_by_key(ToString::to_string);
    taken.dedup();
    assert_eq!(taken.len(), ids.len());
}

fn keyed(key: &str) -> Envelope {
    Envelope { key: Some(Key::known(key)), ..task("work") }
}

fn key_of(envelope: &Envelope) -> &str {
    envelope.key.as_ref().map_or("", Key::as_str)
}

/// How many tasks of each key the demand takes.
async fn counts(h: &Harness, demand: Demand) -> Vec<(&'static str, usize)> {
    let claims = h.claim(demand).await;
    let of = |key| claims.iter().filter(|claim| key_of(&claim.envelope) == key).count();
    let keys = ["", "a", "b", "c", "heavy", "light"];
    keys.into_iter().map(|key| (key, of(key))).filter(|(_, count)| *count > 0).collect()
}
