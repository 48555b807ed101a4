//! Soft limits, cancellation, expiry, progress, handlers that block.

use std::time::Duration;

use windlass::State;
use windlass::prelude::*;

use crate::rig::{MINUTE, Rig, What, act, app};

#[tokio::test(start_paused = true)]
async fn at_its_soft_limit_a_handler_is_asked_to_end() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let handle = rig.client.enqueue(act(What::HangUntilAsked)).retries(0).await.unwrap();
    let record = rig.until(&handle.id, State::Dead).await;
    assert!(record.failure.unwrap().message.contains("the soft limit has passed"));
    let ran = record.finished_at.unwrap().since(record.started_at.unwrap());
    assert!(ran >= MINUTE / 2 && ran < MINUTE, "{ran:?}");
}

#[tokio::test(start_paused = true)]
async fn a_running_task_that_is_cancelled_is_asked_within_seconds() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let handle = rig.client.enqueue(act(What::HangUntilAsked)).limits(None, MINUTE * 60).await.unwrap();
    rig.until(&handle.id, State::Running).await;
    let asked_at = windlass::Clock::now(&rig.clock);
    assert_eq!(handle.cancel().await.unwrap().changed, 1);
    let record = rig.until(&handle.id, State::Cancelled).await;
    assert!(record.finished_at.unwrap().since(asked_at) < Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_handler_that_does_not_listen_is_dropped_after_its_grace() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let handle = rig.client.enqueue(act(What::Hang)).limits(None, MINUTE * 60).await.unwrap();
    rig.until(&handle.id, State::Running).await;
    handle.cancel().await.unwrap();
    let record = rig.until(&handle.id, State::Cancelled).await;
    let ran = record.finished_at.unwrap().since(record.started_at.unwrap());
    assert!(ran >= Duration::from_secs(10) && ran < Duration::from_secs(15), "{ran:?}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_is_cancelled_at_once() {
    let rig = Rig::new().await;
    let handle = rig.client.enqueue(act(What::Return(1))).delay(MINUTE).await.unwrap();
    handle.cancel().await.unwrap();
    assert_eq!(rig.record(&handle.id).await.state, State::Cancelled);
}

#[tokio::test(start_paused = true)]
async fn a_task_is_not_started_after_it_has_expired() {
    let rig = Rig::new().await;
    let handle = rig.client.enqueue(act(What::Return(1))).expires(MINUTE).await.unwrap();
    tokio::time::advance(MINUTE).await;
    let _worker = rig.worker().await;
    rig.until(&handle.id, State::Expired).await;
}

#[tokio::test(start_paused = true)]
async fn a_long_handler_keeps_its_lease_however_long_it_runs() {
    let rig = Rig::new().await;
    let _worker = rig.worker_of("w1", app(), |settings| settings.lease = Duration::from_secs(6)).await;
    let _other = rig.worker_of("w2", app(), |settings| settings.lease = Duration::from_secs(6)).await;
    let handle = rig.client.enqueue(act(What::Work(MINUTE * 30))).limits(None, MINUTE * 60).await.unwrap();
    let record = rig.until(&handle.id, State::Succeeded).await;
    assert_eq!((record.attempt, record.crashes), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_handler_reports_is_seen_while_it_runs() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let handle = rig.client.enqueue(act(What::Report)).await.unwrap();
    let record = rig.until_record(&handle.id, |record| record.progress.is_some()).await;
    assert_eq!(record.state, State::Running);
    let progress = record.progress.unwrap();
    assert_eq!((progress.done, progress.total, progress.text.as_str()), (3, Some(10), "third of ten"));
}

#[tokio::test(start_paused = true)]
async fn never_more_handlers_run_than_there_are_slots() {
    let rig = Rig::new().await;
    let _worker = rig.worker_of("w1", app(), |settings| settings.slots = 2).await;
    let tasks = (0..6).map(|_| act(What::Work(Duration::from_secs(10))));
    let handles = rig.client.enqueue_all(tasks).await.unwrap();
    let first = rig.until(&handles[0].id, State::Running).await;
    assert_eq!(rig.backend.counts().await.unwrap().total().running, 2);
    let last = rig.until(&handles[5].id, State::Succeeded).await;
    let took = last.finished_at.unwrap().since(first.started_at.unwrap());
    assert!(took >= Duration::from_secs(30), "{took:?}");
}

/// In real time: threads that block do not know simulated time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_thread_is_ended_by_the_engine_and_others_go_on() {
    #[derive(Task, Serialize, Deserialize)]
    #[task(name = "block", retries = 0, hard_limit = "1s")]
    struct Block {}
    let (release, wait) = std::sync::mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(Some(wait));
    let block = move |_task: Block, _cx: Cx| {
        let wait = wait.lock().unwrap().take();
        async move {
            // A handler that does what it must not: it blocks a thread of the runtime.
            let _ = wait.map(|wait| wait.recv());
            Ok(())
        }
    };
    let backend = windlass::connect("memory:").await.unwrap();
    let client = Client::new(backend.clone());
    let registry = app().task(block).build().await.unwrap();
    let mut settings = Settings::new(NodeId::known("w1"));
    settings.slots = 4;
    let shutdown = Shutdown::new();
    let worker = tokio::spawn(Worker::new(backend, registry, settings).start(shutdown.clone()));
    let blocked = client.enqueue(Block {}).await.unwrap();
    let other = client.enqueue(act(What::Return(5))).await.unwrap();
    assert_eq!(other.output(MINUTE).await.unwrap(), 5, "other tasks go on");
    let record = blocked.ended(MINUTE).await.unwrap();
    assert_eq!((record.state, record.failure.unwrap().class.as_str()), (State::Dead, "timeout"));
    release.send(()).unwrap();
    shutdown.begin(ShutdownStep::Graceful);
    assert_eq!(worker.await.unwrap().unwrap().left_behind, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_handler_runs_off_the_async_threads() {
    #[derive(Task, Serialize, Deserialize)]
    #[task(name = "compute", output = u64)]
    struct Compute {
        up_to: u64,
    }
    let backend = windlass::connect("memory:").await.unwrap();
    let client = Client::new(backend.clone());
    let compute = |task: Compute, _cx: Cx| Ok((1..=task.up_to).sum());
    let registry = app().blocking_task(compute).build().await.unwrap();
    let shutdown = Shutdown::new();
    let worker = Worker::new(backend, registry, Settings::new(NodeId::known("w1")));
    let worker = tokio::spawn(worker.start(shutdown.clone()));
    let handle = client.enqueue(Compute { up_to: 100 }).await.unwrap();
    assert_eq!(handle.output(MINUTE).await.unwrap(), 5050);
    shutdown.begin(ShutdownStep::Graceful);
    worker.await.unwrap().unwrap();
}
