//! The same over RabbitMQ, as taskiq-aio-pika has it.

use std::sync::Arc;

use windlass_bridges::carrier::{AmqpQueues, Beside, TaskiqProfile, TaskiqTopology, taskiq_topology};
use windlass_bridges::taskiq::producer::{AmqpOutlet, Producer};
use windlass_bridges::taskiq::{self, ResultOptions};
use windlass_core::{Args, Due, Envelope, QueueName, State, TaskName};
use windlass_wire::taskiq::{Label, Message};

use crate::rig::{Node, PATIENCE, Rig};

/// Exchange and queues that no other test has.
fn topology() -> TaskiqTopology {
    let id = fastrand::u64(..);
    TaskiqTopology {
        exchange: format!("taskiq-{id:016x}"),
        queues: vec![QueueName::known(&format!("taskiq-{id:016x}"))],
        dead_letter_queue: Beside::All(format!("taskiq-{id:016x}.dead_letter")),
        delay_queue: Some(Beside::All(format!("taskiq-{id:016x}.delay"))),
        ..TaskiqTopology::of(TaskiqProfile::V0_6)
    }
}

async fn node(rig: &Rig, url: &str, topology: &TaskiqTopology) -> Node {
    let location = url.parse().expect("a URL");
    let transport = taskiq::open_amqp(location, topology, rig.options()).await.expect("it opens");
    rig.node_of("rabbit-1", transport, &[topology.queues[0].as_str()]).await
}

async fn producer(rig: &Rig, url: &str, topology: &TaskiqTopology) -> Producer {
    let location = url.parse().expect("a URL");
    let carrier = AmqpQueues::open(location, &taskiq_topology(topology), &[]).await.expect("it opens");
    let outlet = AmqpOutlet::new(Arc::clone(carrier.amqp()), topology);
    Producer::new(Arc::new(outlet), Some(&ResultOptions::new(rig.location())))
}

fn add(topology: &TaskiqTopology) -> Envelope {
    let args = Args::parse("[2, 3]").expect("arguments");
    Envelope::new(TaskName::known("interop.add"), topology.queues[0].clone(), args)
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_go_through_rabbitmq_at_once_or_after_a_delay_and_results_come_back() {
    let (rig, topology, url) = (Rig::new(), topology(), windlass_servers::rabbitmq_url());
    let node = node(&rig, &url, &topology).await;
    let producer = producer(&rig, &url, &topology).await;
    let task_id = producer.enqueue(&add(&topology)).await.expect("enqueued");
    assert_eq!(producer.wait(&task_id, PATIENCE).await.expect("a result").return_value.as_str(), "5");
    let delayed = Envelope { due: Due::After(std::time::Duration::from_millis(300)), ..add(&topology) };
    let task_id = producer.enqueue(&delayed).await.expect("enqueued");
    let result = producer.wait(&task_id, PATIENCE).await.expect("a result");
    assert_eq!((result.return_value.as_str(), &result.labels["delay"]), ("5", &serde_json::json!(0.3)));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_sent_twice_is_run_twice_and_a_stranger_is_a_dead_letter() {
    let (rig, topology, url) = (Rig::new(), topology(), windlass_servers::rabbitmq_url());
    let producer = producer(&rig, &url, &topology).await;
    let task = add(&topology);
    for _ in 0..2 {
        producer.enqueue(&task).await.expect("enqueued");
    }
    let stranger = Envelope { name: TaskName::known("app.nobody:knows"), ..add(&topology) };
    producer.enqueue(&stranger).await.expect("enqueued");
    let node = node(&rig, &url, &topology).await;
    assert_eq!(rig.until_records(2, State::Succeeded).await.len(), 2);
    rig.until_records(1, State::Dead).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_with_a_delay_is_refused_where_nothing_delays() {
    let (rig, url) = (Rig::new(), windlass_servers::rabbitmq_url());
    let topology = TaskiqTopology { delay_queue: None, ..topology() };
    let producer = producer(&rig, &url, &topology).await;
    let mut message = Message::of(&add(&topology), windlass_wire::taskiq::Broker::Amqp).expect("it can be sent");
    message.labels.0.insert("delay".to_owned(), Label::Float(1.0));
    let refused = producer.send(&message, &topology.queues[0]).await.expect_err("refused").to_string();
    assert!(refused.contains("no delay queue"), "{refused}");
}
