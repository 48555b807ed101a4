//! What nodes tell each other when one of them starts.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use windlass_bridges::celery::producer::{Producer, Settings};
use windlass_bridges::celery::{Celery, Options};
use windlass_core::QueueName;
use windlass_wire::celery::control::{Command, Destination};

use crate::rig::{NODE, Rig, message};

/// Long enough for an answer.
const A_MOMENT: Duration = Duration::from_millis(500);
const SECOND: &str = "celery@second";

/// Asks one node; one that does not listen yet has nothing to say, and is asked again.
async fn ask(producer: &Producer, node: &str, command: Command) -> Value {
    let destination = Destination::Nodes(vec![node.to_owned()]);
    let mut answers = producer.ask(command, destination, A_MOMENT).await.expect("asked");
    answers.remove(node).unwrap_or_default()
}

fn revoke(id: &str) -> Command {
    Command::Revoke { ids: vec![id.to_owned()], terminate: false, signal: "SIGTERM".to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_knows_what_was_revoked_before_and_goes_on_knowing_it() {
    let rig = Rig::new().await;
    let client = Producer::on_redis(rig.url.parse().expect("a URL"), Settings::default());
    let first = rig.work().await;
    rig.until_so("the first listens", async || !ask(&client, NODE, Command::Ping).await.is_null()).await;
    ask(&client, NODE, revoke("m-1")).await;
    rig.until("m-1", "REVOKED").await;
    let transport = rig.celery(Options { node: SECOND.to_owned(), ..rig.options() }).await;
    let second = rig.work_as(SECOND, Arc::new(transport), &QueueName::known("celery")).await;
    rig.until_so("it is told", async || ask(&client, SECOND, Command::Revoked).await == json!(["m-1"])).await;
    first.end().await;
    // What the first has said when it heard of it.
    rig.ask(&["DEL", "celery-task-meta-m-1"]).await;
    rig.send(&message("add", "m-1", json!([1, 1]))).await;
    rig.until("m-1", "REVOKED").await;
    assert!(rig.records().await.is_empty(), "it was never stored");
    second.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_starts_without_asking_knows_nothing() {
    let rig = Rig::new().await;
    let client = Producer::on_redis(rig.url.parse().expect("a URL"), Settings::default());
    let first = rig.work().await;
    rig.until_so("the first listens", async || !ask(&client, NODE, Command::Ping).await.is_null()).await;
    ask(&client, NODE, revoke("m-1")).await;
    let transport = rig.celery(Options { node: SECOND.to_owned(), mingle: false, ..rig.options() }).await;
    let second = rig.work_as(SECOND, Arc::new(transport), &QueueName::known("celery")).await;
    rig.until_so("the second listens", async || !ask(&client, SECOND, Command::Ping).await.is_null()).await;
    rig.send(&message("add", "after-1", json!([1, 1]))).await;
    rig.until("after-1", "SUCCESS").await;
    assert_eq!(ask(&client, SECOND, Command::Revoked).await, json!([]));
    second.end().await;
    first.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_tell_each_other_over_rabbitmq_too() {
    let rig = Rig::new().await;
    let url = windlass_servers::rabbitmq_url();
    let queue = QueueName::new(format!("mingle-{}", windlass_core::TaskId::random())).expect("a name");
    let nodes = [format!("first@{queue}"), format!("second@{queue}")];
    let client = Producer::on_amqp(url.parse().expect("a URL"), Settings::default()).await.expect("opened");
    let mut working = Vec::new();
    for (place, node) in nodes.iter().enumerate() {
        let options = Options { node: node.clone(), queues: vec![queue.clone()], ..rig.options() };
        let store = Arc::new(rig.store.clone());
        let transport = Celery::on_amqp(url.parse().expect("a URL"), options, store).await.expect("opened");
        working.push(rig.work_as(node, Arc::new(transport), &queue).await);
        rig.until_so("it listens", async || !ask(&client, node, Command::Ping).await.is_null()).await;
        if place == 0 {
            ask(&client, node, revoke(queue.as_str())).await;
        }
    }
    let is_told = async || {
        let revoked = ask(&client, &nodes[1], Command::Revoked).await;
        revoked.as_array().is_some_and(|ids| ids.contains(&json!(queue.as_str())))
    };
    rig.until_so("it is told", is_told).await;
    for node in working {
        node.end().await;
    }
    client.close().await;
}
