//! Turns and limits together, against the model of the engine.

mod common;

use std::time::Duration;

use common::{demand, open, push_of, settled, succeeded, task};
use windlass_core::backend::{Backend, Claim};
use windlass_core::fair::deal;
use windlass_core::limit::{Limit, LimitChange, Rule};
use windlass_core::{Envelope, Key};
use windlass_redis::RedisStore;
use windlass_servers::redis_url;

fn keyed(key: &str) -> Envelope {
    Envelope { key: Some(Key::known(key)), ..task("work") }
}

async fn limit(store: &RedisStore, subject: &str, rule: Rule) {
    let subject = subject.parse().expect("a subject");
    assert!(store.limit(&LimitChange::Set(Limit { subject, rule })).await.expect("the store answers"));
}

async fn claims(store: &RedisStore, max: usize) -> Vec<Claim> {
    store.claim(&demand(max, Duration::ZERO)).await.expect("the store answers")
}

fn count(claims: &[Claim], key: &str) -> usize {
    claims.iter().filter(|claim| claim.envelope.key.as_ref().is_some_and(|known| known.as_str() == key)).count()
}

/// Claims of random size from queues of random weights share their places as the engine deals them.
#[tokio::test]
async fn claims_deal_as_the_engine_does() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    for _ in 0..8 {
        let store = open(&redis_url()).await;
        let weights: Vec<u32> = (0..dice.usize(1..6)).map(|_| dice.u32(1..5)).collect();
        let keys: Vec<String> = (0..weights.len()).map(|number| format!("key {number} \u{e9}")).collect();
        for (key, weight) in keys.iter().zip(&weights) {
            limit(&store, &format!("key:{key}"), Rule { weight: Some(*weight), ..Rule::default() }).await;
            store.push(&push_of((0..500).map(|_| keyed(key)))).await.expect("the store answers");
        }
        let (mut turn, mut left) = (0, weights[0]);
        for _ in 0..10 {
            let room = dice.usize(1..12);
            let order: Vec<usize> = (0..weights.len()).map(|step| (turn + step) % weights.len()).collect();
            let turned: Vec<u32> = order.iter().map(|index| weights[*index]).collect();
            let (shares, (next, rest)) = deal(&turned, left, room);
            let taken = claims(&store, room).await;
            let found: Vec<usize> = order.iter().map(|index| count(&taken, &keys[*index])).collect();
            assert_eq!(found, shares, "weights {weights:?}, turn {turn}, left {left}, room {room}");
            (turn, left) = (order[next], rest);
        }
    }
}

/// A limit that all keys share is no reason to serve the first of them again and again.
#[tokio::test]
async fn keys_take_turns_at_a_limit_that_they_share() {
    for subject in ["queue:default", "task:work"] {
        let store = open(&redis_url()).await;
        limit(&store, subject, Rule { concurrency: Some(1), ..Rule::default() }).await;
        limit(&store, "key:b", Rule { weight: Some(2), ..Rule::default() }).await;
        store
            .push(&push_of(["a", "b", "c"].into_iter().flat_map(|key| (0..20).map(move |_| keyed(key)))))
            .await
            .expect("push");
        let mut served = Vec::new();
        for _ in 0..12 {
            let taken = claims(&store, 10).await;
            assert_eq!(taken.len(), 1, "{subject}");
            served.extend(taken.iter().filter_map(|claim| claim.envelope.key.clone()));
            store.settle(&[settled(&taken[0], succeeded())]).await.expect("the store answers");
        }
        let of = |key: &str| served.iter().filter(|known| known.as_str() == key).count();
        assert_eq!((of("a"), of("b"), of("c")), (3, 6, 3), "{subject}: {served:?}");
    }
}

/// Keys may contain what names and lanes are told apart by.
#[tokio::test]
async fn keys_with_spaces_are_not_mixed_up() {
    let store = open(&redis_url()).await;
    let names = ["work", "a"];
    let keys = ["a", "a a", "work", " ", "a ", "work a", "[", "(", "+", "-"];
    let every = names
        .iter()
        .flat_map(|name| keys.iter().map(|key| Envelope { name: windlass_core::TaskName::known(name), ..keyed(key) }));
    store.push(&push_of(every)).await.expect("the store answers");
    limit(&store, "keys-of-task:work", Rule { concurrency: Some(0), ..Rule::default() }).await;
    let taken = claims(&store, 100).await;
    assert_eq!(taken.len(), keys.len());
    assert!(taken.iter().all(|claim| claim.envelope.name.as_str() == "a"));
    limit(&store, "keys-of-task:work", Rule { concurrency: Some(1), ..Rule::default() }).await;
    assert_eq!(claims(&store, 100).await.len(), keys.len());
    assert_eq!(store.counts().await.expect("the store answers").total().ready, 0);
}

/// Thousands of keys that must wait are passed over, and the one that need not is found.
#[tokio::test]
async fn what_may_start_is_found_behind_many_keys_that_must_wait() {
    let store = open(&redis_url()).await;
    limit(&store, "task:work", Rule { concurrency: Some(0), ..Rule::default() }).await;
    for thousand in 0..3 {
        let many = (0..1_000).map(|number| keyed(&format!("{thousand} {number}")));
        store.push(&push_of(many)).await.expect("the store answers");
    }
    let other = Envelope { name: windlass_core::TaskName::known("other"), ..keyed("z") };
    store.push(&push_of([other])).await.expect("the store answers");
    let taken = claims(&store, 1).await;
    assert_eq!(taken.iter().map(|claim| claim.envelope.name.as_str()).collect::<Vec<_>>(), ["other"]);
    let began = std::time::Instant::now();
    assert_eq!(claims(&store, 1).await.len(), 0);
    println!("a claim that found 3,000 keys shut took {:?}", began.elapsed());
}
