//! What waits in the store is sent to Celery's workers.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use windlass_bridges::{BridgeUrl, OpenError, relay};
use windlass_core::envelope::Due;
use windlass_core::flow::{Flow, Step};
use windlass_core::view::Record;
use windlass_core::worker::{Settings, Shutdown, ShutdownStep, Worker};
use windlass_core::{
    Args, Backend, Client, DeadReason, Envelope, Json, NodeId, QueueName, State, SystemClock, TaskId, TaskName,
};
use windlass_memory::MemoryStore;
use windlass_servers::{Aof, Redis};

use crate::rig::{PATIENCE, Rig, message};

/// A node that sends what waits in the queue `celery` of a store of its own.
struct Relay {
    client: Client,
    shutdown: Shutdown,
    ended: tokio::task::JoinHandle<()>,
}

impl Relay {
    async fn to(url: &str) -> Self {
        Self::of(Arc::new(MemoryStore::new(Arc::new(SystemClock))), url).await
    }

    async fn of(store: Arc<dyn Backend>, url: &str) -> Self {
        let (url, queue): (BridgeUrl, _) = (url.parse().expect("a URL"), QueueName::known("celery"));
        let app = relay(&url, std::slice::from_ref(&queue), "gen1@test").await.expect("opened");
        let settings = Settings { queues: vec![(queue, 1)], ..Settings::new(NodeId::known("beat")) };
        let worker = Worker::new(Arc::clone(&store), app.build().await.expect("declared well"), settings);
        let shutdown = Shutdown::new();
        let run = worker.start(shutdown.clone());
        let ended = tokio::spawn(async move {
            run.await.expect("a thread");
        });
        Self { client: Client::new(store), shutdown, ended }
    }

    async fn push(&self, envelope: Envelope) -> TaskId {
        let id = envelope.id.clone();
        self.client.push(vec![envelope]).await.expect("pushed");
        id
    }

    async fn ended(&self, id: &TaskId) -> Record {
        let ended = self.client.watch_all(std::slice::from_ref(id), PATIENCE).await.expect("it ends");
        ended.into_iter().next().expect("a record")
    }

    async fn until(&self, id: &TaskId, is_so: impl Fn(&Record) -> bool) -> Record {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(record) = self.client.find(id).await.expect("found").filter(&is_so) {
                return record;
            }
            assert!(tokio::time::Instant::now() < deadline, "it never is so");
            tokio::task::yield_now().await;
        }
    }

    async fn end(self) {
        self.shutdown.begin(ShutdownStep::Graceful);
        self.ended.await.expect("it ends in order");
    }
}

fn add() -> Envelope {
    Envelope::new(TaskName::known("add"), QueueName::known("celery"), Args::parse("[2, 3]").expect("arguments"))
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_is_sent_and_run_at_the_other_end_under_its_own_id() {
    let rig = Rig::new().await;
    let relay = Relay::to(&format!("celery+{}", rig.url)).await;
    let soon = Envelope { due: Due::After(Duration::from_millis(50)), ..add() };
    for envelope in [add(), soon] {
        let id = relay.push(envelope).await;
        let record = relay.ended(&id).await;
        assert_eq!(record.state, State::Succeeded);
        assert_eq!(record.result.expect("a result").as_str(), format!("\"{id}\""));
        let working = rig.work().await;
        let document = rig.until(&id.to_string(), "SUCCESS").await;
        assert_eq!(document.result.as_str(), "5");
        working.end().await;
    }
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_sent_when_a_broker_that_was_away_is_back() {
    let mut server = Redis::start(Aof::Always).expect("a server");
    let relay = Relay::to(&format!("celery+{}", server.url())).await;
    server.kill();
    let id = relay.push(add()).await;
    let failed = relay.until(&id, |record| !record.history.is_empty()).await;
    assert_eq!((failed.state, failed.history[0].failure.class.as_str()), (State::Scheduled, "unreachable"));
    server.start_again().expect("it starts");
    assert_eq!(relay.ended(&id).await.state, State::Succeeded);
    assert_eq!(server.cli(&["LLEN", "celery"]).expect("an answer").trim(), "1");
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_others_follow_is_a_dead_letter_and_not_sent() {
    let rig = Rig::new().await;
    let relay = Relay::to(&format!("celery+{}", rig.url)).await;
    let flow = Flow { then: vec![Step::Task(Box::new(add()))], ..Flow::default() };
    let id = relay.push(Envelope { flow: Some(Box::new(flow)), ..add() }).await;
    let record = relay.ended(&id).await;
    assert_eq!((record.state, record.reason), (State::Dead, Some(DeadReason::Fatal)));
    assert!(record.failure.expect("a failure").message.contains("is not relayed"));
    assert_eq!(rig.ask(&["LLEN", "celery"]).await.number(), Some(0));
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_knows_the_workers_of_bare_lists() {
    let url: BridgeUrl = "list+redis://localhost".parse().expect("a URL");
    assert!(matches!(relay(&url, &[QueueName::known("q")], "gen1@test").await, Err(OpenError::Url(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_come_over_a_bridge_is_left_to_the_workers_that_it_is_for() {
    let rig = Rig::new().await;
    let relay = Relay::to(&format!("celery+{}", rig.url)).await;
    let id = relay.push(Envelope { origin: Some(Json::trusted("{}")), ..add() }).await;
    let record = relay.until(&id, |record| record.state == State::Scheduled).await;
    assert!(record.history.is_empty(), "{record:?}");
    assert_eq!(rig.ask(&["LLEN", "celery"]).await.number(), Some(0));
    relay.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_beside_a_relay_of_its_queue_goes_on_counting_its_attempts() {
    let rig = Rig::new().await;
    let relay = Relay::of(Arc::new(rig.store.clone()), &format!("celery+{}", rig.url)).await;
    let working = rig.work().await;
    for number in 0..4 {
        rig.send(&message("flaky", &format!("r-{number}"), json!([]))).await;
    }
    for number in 0..4 {
        assert_eq!(rig.until(&format!("r-{number}"), "SUCCESS").await.result.as_str(), "2");
    }
    assert_eq!(rig.records().await.len(), 4, "none was sent again");
    relay.end().await;
    working.end().await;
}
