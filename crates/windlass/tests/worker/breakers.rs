//! Circuit breakers: a service that fails is left alone by every node, and nothing is lost meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use windlass::breaker::{self, Breaker, Position};
use windlass::metrics::Metrics;
use windlass::prelude::*;
use windlass::{State, TaskId, TaskName};

use crate::rig::{MINUTE, Rig, Running};

/// Calls the service once.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "visit", retries = 100, backoff = "1s", jitter = 0.0)]
struct Visit {}

#[derive(Debug, thiserror::Error)]
#[error("the service is down")]
struct Down;

/// A service that is down at first, and the breaker in front of it.
struct Service {
    up: AtomicBool,
    calls: AtomicU64,
    breaker: Breaker,
}

impl Service {
    fn down() -> Arc<Self> {
        Arc::new(Self { up: AtomicBool::new(false), calls: AtomicU64::new(0), breaker: Breaker::new("payments") })
    }

    fn answer(&self) -> Result<(), Down> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if self.up.load(Ordering::Relaxed) { Ok(()) } else { Err(Down) }
    }
}

async fn visit(_: Visit, cx: Cx<Arc<Service>>) -> Result<(), TaskError> {
    let service = cx.state();
    service.breaker.call(cx.client(), async || service.answer()).await?;
    Ok(())
}

async fn visit_plainly(_: Visit, cx: Cx<Arc<Service>>) -> Result<(), TaskError> {
    Ok(cx.state().answer()?)
}

async fn worker(rig: &Rig, node: &str, service: &Arc<Service>) -> Running {
    rig.worker_of(node, App::new("test").with_state(Arc::clone(service)).task(visit), |_| {}).await
}

async fn push(rig: &Rig, tasks: usize) -> Vec<TaskId> {
    let handles = rig.client.enqueue_all((0..tasks).map(|_| Visit {})).await.expect("pushed");
    handles.into_iter().map(|handle| handle.id).collect()
}

/// How the breaker stands for everybody.
async fn position(rig: &Rig) -> Position {
    let all = breaker::list(&*rig.backend).await.expect("listed");
    all.first().map_or(Position::Closed, |(_, standing)| standing.position)
}

async fn until_position(rig: &Rig, wanted: Position) {
    while position(rig).await != wanted {
        // tidy: allow(sleep): simulated time, which passes only when every task waits
        tokio::time::sleep(MINUTE / 60).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_spares_the_service_and_the_attempts_and_closes_when_it_is_back() {
    let (rig, service) = (Rig::new().await, Service::down());
    let _worker = worker(&rig, "w1", &service).await;
    let ids = push(&rig, 20).await;
    until_position(&rig, Position::Open).await;
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(10 * MINUTE).await;
    let calls = service.calls.load(Ordering::Relaxed);
    assert!(calls < 40, "{calls} calls in ten minutes, of 20 tasks that are retried each second");
    service.up.store(true, Ordering::Relaxed);
    for id in &ids {
        let record = rig.until(id, State::Succeeded).await;
        assert!(record.attempt < 20, "{} attempts", record.attempt);
    }
    assert_eq!(position(&rig).await, Position::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_one_node_opened_is_open_for_the_others() {
    let (rig, bad, good) = (Rig::new().await, Service::down(), Service::down());
    good.up.store(true, Ordering::Relaxed);
    let first = worker(&rig, "w1", &bad).await;
    push(&rig, 10).await;
    until_position(&rig, Position::Open).await;
    first.stop().await;
    // The other node would get an answer, but does not ask before the time has come.
    let before = good.calls.load(Ordering::Relaxed);
    let refused = good.breaker.call(&rig.client, async || good.answer()).await;
    assert!(matches!(refused, Err(breaker::Broken::Open { .. })));
    assert_eq!(good.calls.load(Ordering::Relaxed), before);
}

#[tokio::test(start_paused = true)]
async fn an_operator_forces_a_breaker_open_and_gives_it_back() {
    let (rig, service) = (Rig::new().await, Service::down());
    service.up.store(true, Ordering::Relaxed);
    breaker::force(&*rig.backend, "payments", Some(Position::Open)).await.expect("forced");
    let _worker = worker(&rig, "w1", &service).await;
    let ids = push(&rig, 1).await;
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!((rig.record(&ids[0]).await.state, service.calls.load(Ordering::Relaxed)), (State::Scheduled, 0));
    breaker::force(&*rig.backend, "payments", None).await.expect("given back");
    rig.until(&ids[0], State::Succeeded).await;
    assert!(breaker::list(&*rig.backend).await.expect("listed").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_an_operator_opens_for_a_time_is_tried_after_it() {
    let (rig, service) = (Rig::new().await, Service::down());
    service.up.store(true, Ordering::Relaxed);
    let until = rig.client.now() + 5 * MINUTE;
    breaker::open_until(&*rig.backend, "payments", until).await.expect("opened");
    let _worker = worker(&rig, "w1", &service).await;
    let ids = push(&rig, 1).await;
    let record = rig.until(&ids[0], State::Succeeded).await;
    let waited = record.finished_at.expect("it has ended").since(record.enqueued_at);
    assert!(waited >= 5 * MINUTE && waited < 6 * MINUTE, "{waited:?}");
    assert_eq!((record.attempt, position(&rig).await), (1, Position::Closed));
}

#[tokio::test(start_paused = true)]
async fn every_change_that_a_worker_makes_of_a_breaker_is_counted() {
    let (rig, service) = (Rig::new().await, Service::down());
    let metrics = Metrics::new();
    let registry = App::new("test").with_state(Arc::clone(&service)).task(visit).build().await.expect("an application");
    let worker = Worker::new(rig.backend.clone(), registry, Settings::new(NodeId::known("w1")))
        .clock(Arc::new(rig.clock.clone()))
        .listener(metrics.clone());
    let shutdown = Shutdown::new();
    let ended = tokio::spawn(worker.run(shutdown.clone()));
    let ids = push(&rig, 10).await;
    until_position(&rig, Position::Open).await;
    service.up.store(true, Ordering::Relaxed);
    for id in &ids {
        rig.until(id, State::Succeeded).await;
    }
    shutdown.begin(ShutdownStep::Graceful);
    ended.await.expect("it ends");
    let text = metrics.encode();
    for to in ["open", "half_open", "closed"] {
        let line = format!("windlass_circuit_breaker_transitions_total{{breaker=\"payments\",to=\"{to}\"}} 1");
        assert!(text.contains(&line), "{line} is missing in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_forced_closed_lets_every_call_pass() {
    let (rig, service) = (Rig::new().await, Service::down());
    breaker::force(&*rig.backend, "payments", Some(Position::Closed)).await.expect("forced");
    let _worker = worker(&rig, "w1", &service).await;
    push(&rig, 10).await;
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(MINUTE / 2).await;
    assert!(service.calls.load(Ordering::Relaxed) > 100);
    assert_eq!(position(&rig).await, Position::Closed);
}

#[tokio::test(start_paused = true)]
async fn middleware_takes_attempts_for_calls() {
    let (rig, service) = (Rig::new().await, Service::down());
    let around = service.breaker.around([TaskName::known("visit")]);
    let app = App::new("test").with_state(Arc::clone(&service)).task(visit_plainly).middleware(around);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let ids = push(&rig, 10).await;
    until_position(&rig, Position::Open).await;
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(10 * MINUTE).await;
    assert!(service.calls.load(Ordering::Relaxed) < 40);
    service.up.store(true, Ordering::Relaxed);
    for id in &ids {
        rig.until(id, State::Succeeded).await;
    }
}
