//! What breaks while tasks are under way: connections, the server, its memory, its data.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{
    Ask as _, PATIENCE, claim_one, demand, line_to, node, open, push_of, redis, settled, succeeded, task, until_back,
};
use windlass_core::adoption::{Adoption, Delivery};
use windlass_core::backend::{Backend, Pushed, Renewal, Renewed, Settlement};
use windlass_core::view::Retention;
use windlass_core::{Args, DeliveryId, Due, Envelope, State, StoreError, TaskId, Timestamp};
use windlass_redis::{Location, Options, RedisStore};
use windlass_servers::{Redis, redis_url};

#[tokio::test]
async fn times_are_those_of_the_server() {
    let redis = redis();
    let time = || {
        let said = redis.ask(&["TIME"]);
        let mut numbers = said.lines().map(|number| number.parse::<i64>().expect("a number"));
        let (secs, micros) = (numbers.next().expect("seconds"), numbers.next().expect("microseconds"));
        Timestamp::from_micros(secs * 1_000_000 + micros)
    };
    let store = open(&redis.url()).await;
    let before = time();
    let later = Envelope { due: Due::After(Duration::from_secs(60)), ..task("later") };
    store.push(&push_of([task("work"), later.clone()])).await.expect("the store answers");
    let after = time();
    let records = store.find(&[later.id]).await.expect("the store answers");
    let record = records.into_iter().next().flatten().expect("it is known");
    assert!(record.enqueued_at >= before && record.enqueued_at <= after, "{before} {} {after}", record.enqueued_at);
    assert_eq!(record.due_at, Some(record.enqueued_at + Duration::from_secs(60)));
}

#[tokio::test]
async fn a_lease_ends_by_the_clock_of_the_server() {
    let store = open(&redis_url()).await;
    store.push(&push_of([task("work")])).await.expect("the store answers");
    let lease = Duration::from_millis(300);
    let began = Instant::now();
    let short = windlass_core::backend::Demand { lease, ..demand(1, Duration::ZERO) };
    let claims = store.claim(&short).await.expect("the store answers");
    while store.tick(&node()).await.expect("the store answers").rescued == 0 {
        assert!(began.elapsed() < PATIENCE, "the lease ends");
        // tidy: allow(sleep): the time is the server's own
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(began.elapsed() >= lease, "not before its end");
    let renewal = Renewal { receipt: claims[0].receipt.clone(), progress: None, memo: None };
    assert_eq!(store.renew(&[renewal], lease).await.expect("the store answers"), [Renewed::Lost]);
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_told_again() {
    let redis = redis();
    let store = open(&redis.url()).await;
    for _ in 0..2 {
        store.push(&push_of([task("work")])).await.expect("the store answers");
        redis.ask(&["FUNCTION", "FLUSH"]);
        redis.ask(&["SCRIPT", "FLUSH"]);
        let claim = claim_one(&store).await;
        redis.ask(&["FUNCTION", "FLUSH"]);
        redis.ask(&["SCRIPT", "FLUSH"]);
        let answer = store.settle(&[settled(&claim, succeeded())]).await.expect("the store answers");
        assert_eq!(answer, [Settlement::Applied]);
    }
}

#[tokio::test]
async fn a_push_whose_answer_was_lost_is_repeated_without_harm() {
    let redis = redis();
    let (proxy, url) = line_to(&redis);
    let store = open(&url).await;
    let push = push_of([task("work")]);
    proxy.cut_after_next_request();
    let error = store.push(&push).await.expect_err("the answer is lost");
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
    let again = until_back(|| store.push(&push)).await;
    assert_eq!(again, [Pushed::Exists(push.envelopes[0].id.clone())], "the first push had arrived");
    assert_eq!(store.counts().await.expect("the store answers").total().ready, 1);
}

#[tokio::test]
async fn a_settle_whose_answer_was_lost_counts_once() {
    let redis = redis();
    let (proxy, url) = line_to(&redis);
    let store = open(&url).await;
    store.push(&push_of([task("work")])).await.expect("the store answers");
    let claim = claim_one(&store).await;
    let settled = [settled(&claim, succeeded())];
    proxy.cut_after_next_request();
    let error = store.settle(&settled).await.expect_err("the answer is lost");
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
    assert_eq!(until_back(|| store.settle(&settled)).await, [Settlement::Stale]);
    assert_eq!(store.counts().await.expect("the store answers").total().succeeded, 1);
}

#[tokio::test]
async fn a_connection_that_broke_while_nothing_happened_costs_nobody_an_error() {
    let redis = redis();
    let (proxy, url) = line_to(&redis);
    let store = open(&url).await;
    store.push(&push_of([task("work")])).await.expect("the store answers");
    proxy.cut();
    // The end of a connection arrives like everything else: a moment later.
    // tidy: allow(sleep): the end of a connection arrives a moment later, without an event
    tokio::time::sleep(Duration::from_millis(100)).await;
    store.push(&push_of([task("work")])).await.expect("the store answers over a new connection");
}

#[tokio::test]
async fn a_server_that_stalls_is_unreachable_and_not_waited_for_for_ever() {
    let redis = redis();
    let (proxy, url) = line_to(&redis);
    let store = open(&url).await;
    proxy.stall();
    let began = Instant::now();
    let error = store.push(&push_of([task("work")])).await.expect_err("nothing comes back");
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    proxy.resume();
    let push = push_of([task("work")]);
    until_back(|| store.push(&push)).await;
}

#[tokio::test]
async fn requests_that_wait_for_one_connection_fail_together() {
    let redis = redis();
    let (proxy, url) = line_to(&redis);
    let store = Arc::new(open(&url).await);
    proxy.stall();
    proxy.cut();
    let began = Instant::now();
    let pushes = (0..4).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.push(&push_of([task("work")])).await })
    });
    for pushed in pushes.collect::<Vec<_>>() {
        let error = pushed.await.expect("it does not panic").expect_err("nothing comes back");
        assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
    }
    assert!(began.elapsed() < Duration::from_secs(12), "not one after the other: {:?}", began.elapsed());
}

#[tokio::test]
async fn a_claim_can_be_settled_after_the_server_was_killed() {
    let mut redis = redis();
    let store = open(&redis.url()).await;
    store.push(&push_of([task("work"), task("work")])).await.expect("the store answers");
    let claim = claim_one(&store).await;
    redis.kill();
    let settled = [settled(&claim, succeeded())];
    let error = store.settle(&settled).await.expect_err("nobody answers");
    assert!(error.is_transient(), "{error}");
    redis.start_again().expect("it starts again");
    assert_eq!(until_back(|| store.settle(&settled)).await, [Settlement::Applied]);
    let total = store.counts().await.expect("the store answers").total();
    assert_eq!((total.ready, total.running, total.succeeded), (1, 0, 1));
}

#[tokio::test]
async fn a_claim_goes_on_waiting_while_the_server_is_started_again() {
    let mut redis = redis();
    let url = redis.url();
    let store = Arc::new(open(&url).await);
    let waiting = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.claim(&demand(1, PATIENCE)).await })
    };
    wait_for_waiting_claims(&redis, 1).await;
    redis.kill();
    redis.start_again().expect("it starts again");
    let push = push_of([task("work")]);
    until_back(|| store.push(&push)).await;
    let claims = tokio::time::timeout(PATIENCE, waiting).await.expect("it is woken").expect("it does not panic");
    assert_eq!(claims.expect("it went on by itself")[0].receipt.id, push.envelopes[0].id);
}

#[tokio::test]
async fn a_claim_is_woken_though_its_listening_connection_was_killed() {
    let redis = redis();
    let store = Arc::new(open(&redis.url()).await);
    for _ in 0..3 {
        let waiting = {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.claim(&demand(1, PATIENCE)).await })
        };
        wait_for_waiting_claims(&redis, 1).await;
        redis.ask(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        let began = Instant::now();
        store.push(&push_of([task("work")])).await.expect("the store answers");
        let claims = waiting.await.expect("it does not panic").expect("the store answers");
        assert_eq!(claims.len(), 1);
        assert!(began.elapsed() < Duration::from_secs(3), "a look each second finds what no message told");
    }
}

#[test]
fn a_store_outlives_the_runtime_that_opened_it() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let redis = redis();
    let first = runtime();
    let store = Arc::new(first.block_on(open(&redis.url())));
    let nothing = first.block_on(store.claim(&demand(1, Duration::from_millis(20)))).expect("the store answers");
    assert!(nothing.is_empty());
    drop(first);
    runtime().block_on(async {
        // The connection ended with the runtime that it was made in.
        until_back(|| store.counts()).await;
        // The claim of that runtime may have left its name behind.
        redis.ask(&["DEL", redis.ask(&["KEYS", "*:wait:default"]).as_str()]);
        let waiting = {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.claim(&demand(1, PATIENCE)).await })
        };
        wait_for_waiting_claims(&redis, 1).await;
        let began = Instant::now();
        store.push(&push_of([task("work")])).await.expect("the store answers");
        assert_eq!(waiting.await.expect("it does not panic").expect("the store answers").len(), 1);
        assert!(began.elapsed() < Duration::from_millis(600), "woken, not found by a look: {:?}", began.elapsed());
    });
}

/// Waits until so many claims have left their names.
async fn wait_for_waiting_claims(redis: &Redis, wanted: usize) {
    let began = Instant::now();
    loop {
        let keys = redis.ask(&["KEYS", "*:wait:default"]);
        if !keys.is_empty() && redis.ask(&["ZCARD", keys.trim()]).parse() == Ok(wanted) {
            return;
        }
        assert!(began.elapsed() < PATIENCE, "a claim waits");
        // tidy: allow(sleep): the server tells nobody who waits
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_full_server_refuses_new_tasks_and_lets_the_others_be_worked_off() {
    let redis = redis();
    let store = open(&redis.url()).await;
    store.push(&push_of((0..10).map(|_| task("work")))).await.expect("the store answers");
    let before = store.counts().await.expect("the store answers");
    redis.ask(&["CONFIG", "SET", "maxmemory", "1mb"]);
    let args = Args::parse(&format!(r#"{{"a":"{}"}}"#, "x".repeat(1000))).expect("arguments");
    let error = store.push(&push_of([Envelope { args, ..task("large") }])).await.expect_err("there is no memory");
    assert!(matches!(error, StoreError::NoSpace(_)) && error.to_string().contains("maxmemory"), "{error}");
    assert_eq!(store.counts().await.expect("the store answers"), before, "nothing of it was stored");
    let delivery = Delivery { id: DeliveryId::known("bridge:1"), envelope: task("work"), flaw: None };
    let adoption = Adoption { deliveries: vec![delivery], ..Adoption::default() };
    let error = store.adopt(&adoption).await.expect_err("there is no memory");
    assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
    assert_eq!(store.counts().await.expect("the store answers"), before, "nothing of it was stored");
    // A worker that is started now can help.
    open(&redis.url()).await;
    for _ in 0..10 {
        let claim = claim_one(&store).await;
        let answer = store.settle(&[settled(&claim, succeeded())]).await.expect("what makes room is let through");
        assert_eq!(answer, [Settlement::Applied]);
    }
    store.tick(&node()).await.expect("the store answers");
    redis.ask(&["CONFIG", "SET", "maxmemory", "0"]);
    store.push(&push_of([task("work")])).await.expect("there is memory again");
}

#[tokio::test]
async fn a_store_that_was_emptied_goes_on_with_new_tasks() {
    let redis = redis();
    let store = open(&redis.url()).await;
    let envelope = task("work");
    store.push(&push_of([envelope.clone()])).await.expect("the store answers");
    store.tick(&node()).await.expect("the store answers");
    let old = claim_one(&store).await;
    redis.ask(&["FLUSHALL"]);
    store.tick(&node()).await.expect("the store answers");
    assert_eq!(store.push(&push_of([envelope])).await.expect("the store answers"), [Pushed::Stored]);
    let new = claim_one(&store).await;
    assert_eq!(store.settle(&[settled(&old, succeeded())]).await.expect("the store answers"), [Settlement::Stale]);
    assert_eq!(store.settle(&[settled(&new, succeeded())]).await.expect("the store answers"), [Settlement::Applied]);
}

#[tokio::test]
async fn nothing_is_left_of_tasks_that_retention_removed() {
    let redis = redis();
    let retention =
        Retention { finished: Duration::from_millis(1), finished_max: 1000, dead: Duration::from_millis(1) };
    let location: Location = redis.url().parse().expect("a URL");
    let store = RedisStore::open(location, Options { retention, ..Options::default() }).await.expect("a new store");
    let mut sizes = Vec::new();
    for _ in 0..3 {
        let with_everything = |_| Envelope {
            key: Some(windlass_core::Key::known("tenant")),
            workflow: Some(TaskId::random()),
            expires: Some(Timestamp::MAX),
            unique: Some(windlass_core::Unique::new(
                windlass_core::UniqueKey::new(TaskId::random().to_string()).expect("a key"),
            )),
            ..task("work")
        };
        store.push(&push_of((0..500).map(with_everything))).await.expect("the store answers");
        let claims = store.claim(&demand(1000, Duration::ZERO)).await.expect("the store answers");
        let renewals: Vec<_> = claims
            .iter()
            .map(|claim| Renewal { receipt: claim.receipt.clone(), progress: None, memo: Some("{}\n".to_owned()) })
            .collect();
        store.renew(&renewals, Duration::from_secs(30)).await.expect("the store answers");
        let failure = windlass_core::Failure::new("error", "it failed");
        let dead = windlass_core::Verdict::Dead { reason: windlass_core::DeadReason::Fatal, failure };
        let ends: Vec<_> = claims
            .iter()
            .enumerate()
            .map(|(number, claim)| settled(claim, if number % 2 == 0 { succeeded() } else { dead.clone() }))
            .collect();
        store.settle(&ends).await.expect("the store answers");
        // tidy: allow(sleep): the time is the server's own
        tokio::time::sleep(Duration::from_millis(5)).await;
        let began = Instant::now();
        while redis.ask(&["HLEN", "{windlass}:task"]) != "0" {
            store.tick(&node()).await.expect("the store answers");
            assert!(began.elapsed() < PATIENCE, "ticks remove what has ended");
        }
        sizes.push(redis.ask(&["KEYS", "*"]).lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>());
    }
    let left: Vec<&str> = sizes[0].iter().filter_map(|key| key.strip_prefix("{windlass}:")).collect();
    assert_eq!(left, ["counts", "meta", "queues", "seq", "turn"], "what is left does not grow with tasks");
    assert!(sizes.iter().all(|keys| *keys == sizes[0]));
    assert_eq!(store.counts().await.expect("the store answers").total().of(State::Dead), 0);
}
