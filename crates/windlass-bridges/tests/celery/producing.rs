//! A Rust client on the side of Python's clients.

use std::time::Duration;

use serde_json::json;
use windlass_bridges::celery::producer::{Producer, SendError, Settings, WaitError};
use windlass_bridges::celery::{Celery, Options};
use windlass_core::view::Record;
use windlass_core::{Args, Envelope, QueueName, State, TaskName};
use windlass_wire::celery::Signature;
use windlass_wire::kombu;

use crate::rig::{PATIENCE, Rig, signature};

fn add(queue: &QueueName) -> Envelope {
    Envelope::new(TaskName::known("add"), queue.clone(), Args::parse("[2, 3]").expect("arguments"))
}

fn celery() -> QueueName {
    QueueName::known("celery")
}

fn settings(rig: &Rig) -> Settings {
    Settings { results: Some(rig.url.parse().expect("a URL")), ..Settings::default() }
}

fn producer(rig: &Rig) -> Producer {
    Producer::on_redis(rig.url.parse().expect("a URL"), settings(rig))
}

/// A queue of RabbitMQ that no other test has.
fn queue() -> QueueName {
    QueueName::known(&format!("celery-{:016x}", fastrand::u64(..)))
}

async fn producer_on_amqp(rig: &Rig, queue: &QueueName) -> Producer {
    let url = windlass_servers::rabbitmq_url();
    let settings = Settings { default_queue: queue.clone(), ..settings(rig) };
    Producer::on_amqp(url.parse().expect("a URL"), settings).await.expect("it opens")
}

async fn output(producer: &Producer, id: &str) -> String {
    producer.wait(id, PATIENCE).await.expect("a result").result.as_str().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_what_a_python_client_sends() {
    let rig = Rig::new().await;
    let id = producer(&rig).enqueue(&add(&celery())).await.expect("enqueued");
    let element = rig.ask(&["RPOP", "celery"]).await.bytes().expect("a message");
    let frame = kombu::decode(&element).expect("as kombu writes it");
    let header = |name: &str| frame.headers[name].clone();
    assert_eq!(frame.headers["id"], json!(id));
    assert_eq!(header("root_id"), json!(id));
    assert_eq!((header("argsrepr"), header("kwargsrepr")), (json!("(2, 3)"), json!("{}")));
    let properties = &frame.properties;
    assert_eq!(properties.correlation_id.as_deref(), Some(id.as_str()));
    assert_eq!((properties.delivery_mode, properties.priority), (Some(2), Some(0)));
    assert!(properties.delivery_tag.is_some() && properties.reply_to.is_some());
    assert_eq!(rig.texts(&["SMEMBERS", "_kombu.binding.celery"]).await, [kombu::binding("celery", "celery")]);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_chains_and_chords_go_out_and_results_come_back() {
    let rig = Rig::new().await;
    let producer = producer(&rig);
    let early = producer.enqueue(&add(&celery())).await.expect("enqueued");
    let unready = producer.wait(&early, Duration::ZERO).await;
    assert!(matches!(unready, Err(WaitError::Timeout { .. })), "{unready:?}");
    let working = rig.work().await;
    assert_eq!(output(&producer, &early).await, "5");

    let parts = [signature("add", "one", json!([1, 1])), signature("add", "two", json!([2, 2]))];
    let chord = Signature::chord("parts", &parts, &signature("sum", "body", json!([])));
    producer.send(&chord).await.expect("sent");
    assert_eq!(output(&producer, "body").await, "6");

    let first = signature("add", "first", json!([1, 2]));
    let chain = json!({"tasks": [first, signature("add", "second", json!([10]))]});
    let mut signature = Signature::new("celery.chain");
    signature.kwargs = windlass_core::Json::parse(&chain.to_string()).expect("JSON");
    signature.subtask_type = Some("chain".to_owned());
    producer.send(&signature).await.expect("sent");
    assert_eq!(output(&producer, "second").await, "13");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_go_through_rabbitmq_and_results_come_back_from_redis() {
    let (rig, queue) = (Rig::new().await, queue());
    let producer = producer_on_amqp(&rig, &queue).await;
    // The queue is declared by whoever is first, so nothing is lost that is sent before the first worker.
    let id = producer.enqueue(&add(&queue)).await.expect("enqueued");
    let options = Options { queues: vec![queue.clone()], default_queue: queue.to_string(), ..rig.options() };
    let store = std::sync::Arc::new(rig.store.clone());
    let url = windlass_servers::rabbitmq_url();
    let transport = Celery::on_amqp(url.parse().expect("a URL"), options, store).await.expect("opened");
    let working = rig.work_on_queue(std::sync::Arc::new(transport), &queue).await;
    assert_eq!(output(&producer, &id).await, "5");
    working.end().await;
    producer.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_dropped_and_counted() {
    let (rig, queue) = (Rig::new().await, queue());
    for producer in [producer(&rig), producer_on_amqp(&rig, &queue).await] {
        for _ in 0..3 {
            producer.enqueue(&add(&queue)).await.expect("enqueued");
        }
        let queues = [queue.clone(), QueueName::known("nobody-has-declared-it")];
        assert_eq!(producer.purge(&queues).await.expect("dropped"), 3);
        assert_eq!(producer.purge(&queues).await.expect("dropped"), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_sent_twice_is_run_twice() {
    let rig = Rig::new().await;
    let (producer, task) = (producer(&rig), add(&celery()));
    for _ in 0..2 {
        producer.enqueue(&task).await.expect("enqueued");
    }
    let working = rig.work().await;
    let has_succeeded = |record: &Record| record.state == State::Succeeded;
    rig.until_so("both run", async || rig.records().await.iter().filter(|one| has_succeeded(one)).count() == 2).await;
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_done_is_refused_before_anything_is_sent() {
    let rig = Rig::new().await;
    let settings = Settings::default();
    let producer = Producer::on_redis(rig.url.parse().expect("a URL"), settings);
    let parts = [signature("add", "one", json!([1, 1])), signature("add", "two", json!([2, 2]))];
    let chord = Signature::chord("parts", &parts, &signature("sum", "body", json!([])));
    let refused = producer.send(&chord).await;
    assert!(matches!(refused, Err(SendError::ChordWithoutResults)), "{refused:?}");
    assert_eq!(rig.ask(&["LLEN", "celery"]).await.number(), Some(0));
    let nowhere = producer.wait("one", PATIENCE).await;
    assert!(matches!(nowhere, Err(WaitError::NoResults)), "{nowhere:?}");
}
