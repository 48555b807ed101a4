//! A store that fails: the worker waits, keeps what it knows, and loses nothing.

use std::sync::Arc;
use std::time::Duration;

use windlass::State;
use windlass::backend::Backend;
use windlass_testkit::{Faults, FaultyStore};

use crate::rig::{MINUTE, Rig, What, act, app};

/// Slots of the workers of a rig.
const SLOTS: u64 = 4;
const DOWN: Faults = Faults { lost_requests: 1.0, ..Faults::NONE };

#[tokio::test(start_paused = true)]
async fn what_ended_while_the_store_was_down_is_settled_when_it_is_back() {
    let rig = Rig::new().await;
    let line = Arc::new(FaultyStore::new(rig.backend.clone(), 1, Faults::NONE));
    let _worker = rig.worker_over(line.clone() as Arc<dyn Backend>, "w1", app(), |_| {}).await;
    let handle = rig.client.enqueue(act(What::Work(Duration::from_secs(5)))).await.unwrap();
    rig.until(&handle.id, State::Running).await;
    line.set(DOWN);
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(rig.record(&handle.id).await.state, State::Running);
    line.set(Faults::NONE);
    let record = rig.until(&handle.id, State::Succeeded).await;
    assert_eq!(record.attempt, 1, "it ran once");
}

#[tokio::test(start_paused = true)]
async fn the_first_tick_after_an_outage_ends_the_wait_of_a_settle() {
    let rig = Rig::new().await;
    let line = Arc::new(FaultyStore::new(rig.backend.clone(), 1, Faults::NONE));
    let _worker = rig.worker_over(line.clone() as Arc<dyn Backend>, "w1", app(), |_| {}).await;
    // By then the settle is tried every five seconds, and a tick every second.
    for outage_secs in 10..16 {
        let handle = rig.client.enqueue(act(What::Work(Duration::from_secs(1)))).await.unwrap();
        rig.until(&handle.id, State::Running).await;
        line.set(DOWN);
        // tidy: allow(sleep): simulated time
        tokio::time::sleep(Duration::from_secs(outage_secs)).await;
        line.set(Faults::NONE);
        let back = tokio::time::Instant::now();
        rig.until(&handle.id, State::Succeeded).await;
        assert!(back.elapsed() <= Duration::from_millis(1_200), "{:?} after {outage_secs} s", back.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_whose_settle_waits_to_be_sent_again_takes_nothing_more() {
    let rig = Rig::new().await;
    let line = Arc::new(FaultyStore::new(rig.backend.clone(), 1, Faults::NONE));
    let _worker = rig.worker_over(line.clone() as Arc<dyn Backend>, "w1", app(), |_| {}).await;
    let first = rig.client.enqueue(act(What::Work(Duration::from_millis(300)))).await.unwrap();
    rig.until(&first.id, State::Running).await;
    // The claim for the other slots waits at the store all the time; only the settle fails.
    line.set(DOWN);
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(Duration::from_millis(3_050)).await;
    line.set(Faults::NONE);
    let quick = || act(What::Work(Duration::from_millis(10)));
    rig.client.enqueue_all((0..200).map(|_| quick())).await.unwrap();
    let mut most = 0;
    loop {
        let counts = rig.backend.counts().await.unwrap().total();
        if counts.live() == 0 {
            break;
        }
        most = most.max(counts.running);
        // tidy: allow(sleep): simulated time
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(most <= SLOTS, "{most} tasks were held at once");
}

#[tokio::test(start_paused = true)]
async fn a_task_whose_worker_is_cut_off_runs_elsewhere_and_the_old_verdict_does_not_count() {
    let rig = Rig::new().await;
    let line = Arc::new(FaultyStore::new(rig.backend.clone(), 1, Faults::NONE));
    let _cut_off = rig.worker_over(line.clone() as Arc<dyn Backend>, "w1", app(), |_| {}).await;
    let handle = rig.client.enqueue(act(What::Work(MINUTE / 2))).await.unwrap();
    rig.until(&handle.id, State::Running).await;
    line.set(DOWN);
    let _other = rig.worker_of("w2", app(), |_| {}).await;
    let record = rig.until(&handle.id, State::Succeeded).await;
    assert_eq!((record.attempt, record.node.unwrap().as_str()), (2, "w2"));
    line.set(Faults::NONE);
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(MINUTE).await;
    let after = rig.record(&handle.id).await;
    assert_eq!((after.attempt, after.node.unwrap().as_str()), (2, "w2"));
}

#[tokio::test(start_paused = true)]
async fn a_push_is_repeated_until_its_deadline_and_stores_its_task_once() {
    let rig = Rig::new().await;
    let line = Arc::new(FaultyStore::new(rig.backend.clone(), 1, Faults { lost_replies: 1.0, ..Faults::NONE }));
    let client = windlass::Client::new(line.clone());
    let pushed = tokio::spawn(async move { client.enqueue(act(What::Return(1))).await });
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(Duration::from_secs(1)).await;
    line.set(Faults::NONE);
    let handle = pushed.await.unwrap().unwrap();
    assert_eq!(handle.fresh, windlass::client::Fresh::New);
    assert_eq!(rig.backend.counts().await.unwrap().total().ready, 1);
}

#[tokio::test(start_paused = true)]
async fn a_push_to_a_store_that_stays_down_fails_at_its_deadline() {
    let rig = Rig::new().await;
    let client = windlass::Client::new(Arc::new(FaultyStore::new(rig.backend.clone(), 1, DOWN)));
    let began = tokio::time::Instant::now();
    let error = client.enqueue(act(What::Return(1))).await.unwrap_err();
    assert!(began.elapsed() <= windlass::client::PUSH_DEADLINE, "{error}");
    assert!(error.to_string().contains("not enqueued"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_cannot_settle_leaves_in_bounded_time_and_says_what_it_left() {
    let rig = Rig::new().await;
    let line = Arc::new(FaultyStore::new(rig.backend.clone(), 1, Faults::NONE));
    let worker = rig.worker_over(line.clone() as Arc<dyn Backend>, "w1", app(), |_| {}).await;
    let handle = rig.client.enqueue(act(What::Work(Duration::from_secs(5)))).await.unwrap();
    rig.until(&handle.id, State::Running).await;
    line.set(DOWN);
    let began = tokio::time::Instant::now();
    assert_eq!(worker.stop().await.left_behind, 1);
    assert!(began.elapsed() < MINUTE);
    let _other = rig.worker_of("w2", app(), |_| {}).await;
    rig.until(&handle.id, State::Succeeded).await;
}
