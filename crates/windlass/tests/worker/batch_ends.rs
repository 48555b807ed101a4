//! How a batch ends before its handler does: cancelled members, limits, shutdown; and what each member keeps meanwhile.

use std::time::Duration;

use windlass::prelude::*;

use crate::batches::{How, Index, SOON, WAIT, app, enqueue, took};
use crate::rig::{MINUTE, Rig};

#[tokio::test(start_paused = true)]
async fn a_task_that_is_cancelled_leaves_a_batch_that_has_not_begun() {
    let rig = Rig::new().await;
    let (app, seen) = app(3);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = enqueue(&rig, &[How::Done, How::Done]).await;
    rig.until(&handles[1].id, State::Running).await;
    handles[0].cancel().await.unwrap();
    assert!(took(&rig.until(&handles[0].id, State::Cancelled).await) < SOON);
    assert_eq!(rig.record(&handles[1].id).await.state, State::Running, "the other one waits on");
    let late = enqueue(&rig, &[How::Done, How::Done]).await;
    assert!(took(&rig.until(&late[1].id, State::Succeeded).await) < SOON, "its place is free for others");
    rig.until(&handles[1].id, State::Succeeded).await;
    assert_eq!(seen.batches(), [[2, 1, 2]]);
}

#[tokio::test(start_paused = true)]
async fn when_the_last_one_has_left_the_next_begins_a_wait_of_its_own() {
    let rig = Rig::new().await;
    let (app, seen) = app(3);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let first = enqueue(&rig, &[How::Done]).await.remove(0);
    rig.until(&first.id, State::Running).await;
    tokio::time::advance(WAIT / 2).await;
    first.cancel().await.unwrap();
    rig.until(&first.id, State::Cancelled).await;
    let next = enqueue(&rig, &[How::Done]).await.remove(0);
    assert!(took(&rig.until(&next.id, State::Succeeded).await) >= WAIT);
    assert_eq!(seen.batches(), [[1]]);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_cancelled_in_a_running_batch_is_asked_through_its_item() {
    let rig = Rig::new().await;
    let (app, _seen) = app(3);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = enqueue(&rig, &[How::Done, How::UntilAsked, How::Done]).await;
    rig.until(&handles[0].id, State::Succeeded).await;
    assert_eq!(
        rig.record(&handles[1].id).await.state,
        State::Running,
        "what has an answer is settled before the others"
    );
    handles[1].cancel().await.unwrap();
    assert!(took(&rig.until(&handles[1].id, State::Cancelled).await) < SOON);
    assert_eq!(rig.until(&handles[2].id, State::Succeeded).await.attempt, 1);
}

#[tokio::test(start_paused = true)]
async fn after_its_grace_a_cancelled_task_is_over_and_the_batch_goes_on_without_it() {
    let rig = Rig::new().await;
    let (app, seen) = app(2);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = enqueue(&rig, &[How::Slow(MINUTE), How::Done]).await;
    rig.until(&handles[0].id, State::Running).await;
    handles[0].cancel().await.unwrap();
    let grace = Duration::from_secs(10);
    let ended = took(&rig.until(&handles[0].id, State::Cancelled).await);
    assert!(ended >= grace && ended < grace + SOON, "{ended:?}");
    let other = took(&rig.until(&handles[1].id, State::Succeeded).await);
    assert!(other >= MINUTE && other < MINUTE + SOON, "{other:?}");
    assert_eq!(*seen.1.lock().unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_works_for_nobody_any_more_is_dropped() {
    let rig = Rig::new().await;
    let (app, seen) = app(2);
    let worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = enqueue(&rig, &[How::Hang, How::Hang]).await;
    rig.until(&handles[1].id, State::Running).await;
    for handle in &handles {
        handle.cancel().await.unwrap();
    }
    for handle in &handles {
        rig.until(&handle.id, State::Cancelled).await;
    }
    assert_eq!(worker.stop().await.left_behind, 0);
    assert_eq!(*seen.1.lock().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_first_hard_limit_that_passes_ends_every_task_of_the_batch() {
    let rig = Rig::new().await;
    let (app, seen) = app(3);
    let answered = rig.client.enqueue(Index { number: 1, how: How::Done }).await.unwrap();
    let strict = rig.client.enqueue(Index { number: 2, how: How::Hang }).retries(0).limits(None, MINUTE).await.unwrap();
    let other = rig.client.enqueue(Index { number: 3, how: How::Hang }).retries(0).await.unwrap();
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    rig.until(&answered.id, State::Succeeded).await;
    for handle in [strict, other] {
        let record = rig.until(&handle.id, State::Dead).await;
        assert!(took(&record) >= MINUTE && took(&record) < MINUTE + SOON, "{record:?}");
        assert_eq!(record.failure.unwrap().to_string(), "timeout: ran longer than its hard limit of 1m");
    }
    assert_eq!(*seen.1.lock().unwrap(), 1, "the handler was dropped");
}

#[tokio::test(start_paused = true)]
async fn at_the_soft_limit_of_one_task_its_item_and_the_batch_are_asked() {
    for how in [How::UntilAsked, How::UntilAllAreAsked] {
        let rig = Rig::new().await;
        let (app, _seen) = app(2);
        let task = Index { number: 1, how };
        let strict = rig.client.enqueue(task).retries(0).limits(Some(MINUTE), MINUTE * 2).await.unwrap();
        let other = enqueue(&rig, &[How::Done]).await.remove(0);
        let _worker = rig.worker_of("w1", app, |_| {}).await;
        let record = rig.until(&strict.id, State::Dead).await;
        assert!(took(&record) >= MINUTE && took(&record) < MINUTE + SOON, "{record:?}");
        assert!(record.failure.unwrap().message.contains("the soft limit has passed"));
        rig.until(&other.id, State::Succeeded).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_gives_back_what_was_collected_without_an_attempt_spent() {
    let rig = Rig::new().await;
    let (app, seen) = app(3);
    let worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = enqueue(&rig, &[How::Done, How::Done]).await;
    rig.until(&handles[1].id, State::Running).await;
    let began = tokio::time::Instant::now();
    assert_eq!(worker.stop().await.left_behind, 0);
    assert!(began.elapsed() < SOON);
    for handle in handles {
        let record = rig.record(&handle.id).await;
        assert_eq!((record.state, record.attempt), (State::Ready, 0));
    }
    assert_eq!(seen.batches(), Vec::<Vec<u64>>::new());
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_finishes_the_batch_that_runs() {
    let rig = Rig::new().await;
    let (app, _seen) = app(2);
    let worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = enqueue(&rig, &[How::Slow(WAIT / 3), How::Done]).await;
    rig.until(&handles[1].id, State::Running).await;
    assert_eq!(worker.stop().await.left_behind, 0);
    for handle in handles {
        assert_eq!(rig.record(&handle.id).await.state, State::Succeeded);
    }
}

#[tokio::test(start_paused = true)]
async fn after_the_grace_of_a_shutdown_a_running_batch_is_given_back() {
    for how in [How::UntilAllAreAsked, How::Hang] {
        let rig = Rig::new().await;
        let (app, _seen) = app(2);
        let worker = rig.worker_of("w1", app, |_| {}).await;
        let handles = enqueue(&rig, &[how.clone(), how]).await;
        rig.until(&handles[1].id, State::Running).await;
        assert_eq!(worker.stop().await.left_behind, 0);
        for handle in handles {
            let record = rig.record(&handle.id).await;
            assert_eq!((record.state, record.attempt), (State::Ready, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_is_made_quiet_begins_what_was_collected() {
    let rig = Rig::new().await;
    let (app, seen) = app(3);
    let worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = enqueue(&rig, &[How::Done, How::Done]).await;
    rig.until(&handles[1].id, State::Running).await;
    worker.shutdown.begin(ShutdownStep::Quiet);
    assert!(took(&rig.until(&handles[1].id, State::Succeeded).await) < SOON);
    assert_eq!(seen.batches(), [[1, 2]]);
}

#[tokio::test(start_paused = true)]
async fn tasks_keep_their_leases_while_they_wait_and_while_their_batch_runs() {
    let rig = Rig::new().await;
    let short = |settings: &mut Settings| settings.lease = Duration::from_secs(6);
    let _worker = rig.worker_of("w1", app(3).0, short).await;
    let handles = enqueue(&rig, &[How::Slow(MINUTE * 20), How::Done]).await;
    rig.until(&handles[1].id, State::Running).await;
    let _other = rig.worker_of("w2", app(1).0, short).await;
    for handle in handles {
        let record = rig.until(&handle.id, State::Succeeded).await;
        assert_eq!((record.attempt, record.crashes), (1, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn each_task_of_a_batch_reports_its_own_progress() {
    let rig = Rig::new().await;
    let (app, _seen) = app(2);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = enqueue(&rig, &[How::Report, How::Report]).await;
    for (handle, done) in handles.iter().zip([1, 2]) {
        let record = rig.until_record(&handle.id, |record| record.progress.is_some()).await;
        assert_eq!((record.state, record.progress.unwrap().done), (State::Running, done));
    }
}
