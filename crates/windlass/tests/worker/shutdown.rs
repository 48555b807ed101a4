//! The three steps of a shutdown.

use std::time::Duration;

use windlass::State;
use windlass::prelude::*;
use windlass::worker::{Ended, Why};

use crate::rig::{MINUTE, Rig, What, act, app};

const CLEAN: Ended = Ended { left_behind: 0, why: Why::Told };

#[tokio::test(start_paused = true)]
async fn after_the_first_signal_what_runs_is_finished_and_nothing_is_started() {
    let rig = Rig::new().await;
    let worker = rig.worker().await;
    let running = rig.client.enqueue(act(What::Work(Duration::from_secs(20)))).await.unwrap();
    rig.until(&running.id, State::Running).await;
    worker.shutdown.begin(ShutdownStep::Graceful);
    let late = rig.client.enqueue(act(What::Return(1))).await.unwrap();
    assert_eq!(worker.ended.await.unwrap(), CLEAN);
    assert_eq!(rig.record(&running.id).await.state, State::Succeeded);
    assert_eq!(rig.record(&late.id).await.state, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn after_the_grace_handlers_are_asked_and_then_given_back_without_an_attempt() {
    let rig = Rig::new().await;
    let worker = rig.worker().await;
    let listens = rig.client.enqueue(act(What::HangUntilAsked)).limits(None, MINUTE * 60).await.unwrap();
    let deaf = rig.client.enqueue(act(What::Hang)).limits(None, MINUTE * 60).await.unwrap();
    rig.until(&deaf.id, State::Running).await;
    let began = tokio::time::Instant::now();
    assert_eq!(worker.stop().await, CLEAN);
    let took = began.elapsed();
    assert!(took >= Duration::from_secs(25) && took < Duration::from_secs(35), "{took:?}");
    for handle in [listens, deaf] {
        let record = rig.record(&handle.id).await;
        assert_eq!((record.state, record.attempt), (State::Ready, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_second_signal_everything_is_given_back_at_once() {
    let rig = Rig::new().await;
    let worker = rig.worker().await;
    let handle = rig.client.enqueue(act(What::Hang)).await.unwrap();
    rig.until(&handle.id, State::Running).await;
    worker.shutdown.begin(ShutdownStep::Graceful);
    worker.shutdown.begin(ShutdownStep::Immediate);
    let began = tokio::time::Instant::now();
    assert_eq!(worker.ended.await.unwrap(), CLEAN);
    assert!(began.elapsed() < Duration::from_secs(1));
    let record = rig.record(&handle.id).await;
    assert_eq!((record.state, record.attempt), (State::Ready, 0));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_left_is_listed_as_gone() {
    let rig = Rig::new().await;
    let worker = rig.worker().await;
    let handle = rig.client.enqueue(act(What::Return(1))).await.unwrap();
    handle.output(MINUTE).await.unwrap();
    assert!(rig.backend.nodes().await.unwrap()[0].alive);
    worker.stop().await;
    assert!(!rig.backend.nodes().await.unwrap()[0].alive);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_holds_nothing_leaves_at_once() {
    let rig = Rig::new().await;
    let worker = rig.worker_of("w1", app(), |_| {}).await;
    tokio::time::advance(MINUTE).await;
    let began = tokio::time::Instant::now();
    worker.stop().await;
    assert!(began.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_that_began_before_the_worker_ends_it() {
    let rig = Rig::new().await;
    let worker = rig.worker().await;
    // The worker has not had a turn yet.
    assert_eq!(worker.stop().await, CLEAN);
}
