//! A worker dies at each point; nothing is lost, and nothing runs twice that was stored.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use windlass_bridges::celery::Celery;
use windlass_core::backend::Demand;
use windlass_core::bridge::{Answer, Concern, LetGo, News, Returned, Tag, Taken, Transport, TransportError};
use windlass_core::{Envelope, Json, NodeId, QueueName, State, Verdict};
use windlass_wire::kombu;

use crate::rig::{Rig, message, signature};

fn demand() -> Demand {
    Demand {
        node: NodeId::known("n"),
        queues: vec![QueueName::known("celery")],
        max: 10,
        lease: Duration::from_secs(10),
        except: Vec::new(),
        wait: Duration::ZERO,
        hush: tokio_util::sync::CancellationToken::new(),
    }
}

/// A transport whose process dies before it accepts anything.
#[derive(Debug)]
struct NeverAccepts(Celery);

#[async_trait]
impl Transport for NeverAccepts {
    async fn take(&self, demand: &Demand) -> Result<Vec<Taken>, TransportError> {
        self.0.take(demand).await
    }
    async fn accept(&self, _tags: &[Tag]) -> Result<Vec<LetGo>, TransportError> {
        Err(TransportError::Unreachable("the process dies here".into()))
    }
    async fn put_back(&self, tags: &[Tag], why: Returned) -> Result<(), TransportError> {
        self.0.put_back(tags, why).await
    }
    fn concern(&self, envelope: &Envelope) -> Concern {
        self.0.concern(envelope)
    }
    async fn answer(&self, answers: &[Answer]) -> Result<(), TransportError> {
        self.0.answer(answers).await
    }
    async fn recover(&self, living: &[NodeId]) -> Result<u64, TransportError> {
        self.0.recover(living).await
    }
}

/// Lets others find out that a session is silent, then makes them look.
async fn recovered(rig: &Rig, by: &Celery) {
    rig.until_so("what the dead one held is taken over", async || by.recover(&[]).await.expect("an answer") > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_process_had_taken_and_not_stored_is_run_by_another() {
    let rig = Rig::new().await;
    rig.send(&message("add", "d-1", json!([1, 2]))).await;
    let dies = rig.celery(rig.options()).await;
    assert_eq!(dies.take(&demand()).await.expect("taken").len(), 1);
    drop(dies);
    let lives = rig.celery(rig.options()).await;
    recovered(&rig, &lives).await;
    let working = rig.work_on(Arc::new(lives)).await;
    assert_eq!(rig.until("d-1", "SUCCESS").await.result.as_str(), "3");
    assert_eq!(rig.texts(&["KEYS", "windlass.held*"]).await, [""; 0]);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_process_had_stored_and_not_accepted_is_known_and_runs_once() {
    let rig = Rig::new().await;
    rig.send(&message("add", "d-2", json!([1, 2]))).await;
    let dies = rig.work_on(Arc::new(NeverAccepts(rig.celery(rig.options()).await))).await;
    rig.until("d-2", "SUCCESS").await;
    dies.end().await;
    let lives = rig.celery(rig.options()).await;
    recovered(&rig, &lives).await;
    let working = rig.work_on(Arc::new(lives)).await;
    rig.until_so("it is accepted", async || rig.texts(&["KEYS", "windlass.held*"]).await.is_empty()).await;
    let runs = rig.records().await;
    assert_eq!(runs.iter().map(|record| (record.state, record.attempt)).collect::<Vec<_>>(), [(State::Succeeded, 1)]);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_task_is_published_once_however_often_its_end_is_told() {
    let rig = Rig::new().await;
    let mut first = message("add", "o-1", json!([1, 2]));
    first.request.canvas.chain = vec![signature("add", "o-2", json!([1]))];
    rig.send(&first).await;
    let celery = rig.celery(rig.options()).await;
    let taken = celery.take(&demand()).await.expect("taken").remove(0);
    let windlass_core::bridge::Message::Task(envelope) = taken.message else { panic!("a task") };
    let verdict = Verdict::Succeeded { result: Json::trusted("3"), skipped: None };
    let answer =
        Answer { envelope: Arc::from(envelope), attempt: 1, ran: Duration::ZERO, news: News::Settled(verdict) };
    for _ in 0..3 {
        celery.answer(std::slice::from_ref(&answer)).await.expect("told");
    }
    assert_eq!(rig.ask(&["LLEN", "celery"]).await.number(), Some(1));
    let next = rig.ask(&["RPOP", "celery"]).await.bytes().expect("a message");
    let next = kombu::decode(&next).expect("a frame");
    assert_eq!(next.headers["id"], json!("o-2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stored_success_is_never_written_over() {
    let rig = Rig::new().await;
    rig.send(&message("add", "s-1", json!([1, 2]))).await;
    let celery = rig.celery(rig.options()).await;
    let taken = celery.take(&demand()).await.expect("taken").remove(0);
    let windlass_core::bridge::Message::Task(envelope) = taken.message else { panic!("a task") };
    let envelope = Arc::from(envelope);
    let tell = async |news| {
        let answer = Answer { envelope: Arc::clone(&envelope), attempt: 1, ran: Duration::ZERO, news };
        celery.answer(&[answer]).await.expect("told");
    };
    tell(News::Settled(Verdict::Succeeded { result: Json::trusted("3"), skipped: None })).await;
    tell(News::Settled(Verdict::Cancelled)).await;
    tell(News::Ended(Verdict::Expired)).await;
    assert_eq!(rig.until("s-1", "SUCCESS").await.result.as_str(), "3");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_python_worker_had_not_acknowledged_is_given_back_to_all() {
    let rig = Rig::new().await;
    let element = Rig::element(&message("add", "u-1", json!([1, 2])), "celery");
    let entry = kombu::unacked_entry(&element, "", "celery");
    rig.ask(&["HSET", "unacked", "tag-1", &entry]).await;
    rig.ask(&["ZADD", "unacked_index", "1000", "tag-1"]).await;
    let celery = rig.celery(rig.options()).await;
    celery.recover(&[]).await.expect("an answer");
    let back = rig.ask(&["RPOP", "celery"]).await.bytes().expect("it is back");
    assert!(kombu::decode(&back).expect("a frame").properties.redelivered);
    assert_eq!(rig.ask(&["EXISTS", "unacked", "unacked_index", "unacked_mutex"]).await.number(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_living_python_worker_holds_is_left_to_it() {
    let rig = Rig::new().await;
    let element = Rig::element(&message("add", "u-2", json!([1, 2])), "celery");
    rig.ask(&["HSET", "unacked", "tag-1", &kombu::unacked_entry(&element, "", "celery")]).await;
    rig.ask(&["ZADD", "unacked_index", "99999999999", "tag-1"]).await;
    let celery = rig.celery(rig.options()).await;
    celery.recover(&[]).await.expect("an answer");
    assert_eq!(rig.ask(&["LLEN", "celery"]).await.number(), Some(0));
    assert_eq!(rig.ask(&["HLEN", "unacked"]).await.number(), Some(1));
}
