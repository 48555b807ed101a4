//! A Rust client on the side of Python's clients.

use std::sync::Arc;

use windlass_bridges::taskiq::producer::{Kind, Producer, RedisOutlet, SendError};
use windlass_bridges::taskiq::{self, Groups, ResultOptions};
use windlass_core::bridge::Transport;
use windlass_core::{Args, Due, Envelope, QueueName, TaskName};

use crate::rig::{PATIENCE, Rig, client_commands};

fn add(x: i64, y: i64) -> Envelope {
    let args = Args::parse(&format!("[{x}, {y}]")).expect("arguments");
    Envelope::new(TaskName::known("interop.add"), QueueName::known("taskiq"), args)
}

fn producer(rig: &Rig, kind: Kind) -> Producer {
    Producer::new(Arc::new(RedisOutlet::new(rig.location(), kind)), Some(&ResultOptions::new(rig.location())))
}

fn stream(length_max: Option<u64>) -> Kind {
    Kind::Stream { group: "taskiq".to_owned(), length_max }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_what_a_python_client_sends() {
    let rig = Rig::new();
    let producer = producer(&rig, Kind::List);
    let task_id = producer.enqueue(&add(2, 3)).await.expect("enqueued");
    let sent = rig.ask(&[b"RPOP", b"taskiq"]).await.bytes().expect("a message");
    let recorded = client_commands("msg-list-args").remove(0).remove(2);
    let recorded = String::from_utf8(recorded).expect("text").replace("00000000000000000000000000000001", &task_id);
    assert_eq!(String::from_utf8(sent).expect("text"), recorded);
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_go_through_every_broker_and_results_come_back() {
    let rig = Rig::new();
    let lists = taskiq::open_lists(rig.location(), rig.options()).await.expect("it opens");
    goes_and_comes_back(&rig, lists, Kind::List).await;
    rig.ask(&[b"DEL", b"taskiq"]).await;
    // The producer makes the group, so nothing is missed that it sends before the first worker.
    let streamed = producer(&rig, stream(Some(1_000)));
    let early = streamed.enqueue(&add(5, 5)).await.expect("enqueued");
    let streams = taskiq::open_streams(rig.location(), Groups::default(), rig.options()).await.expect("it opens");
    goes_and_comes_back(&rig, streams, stream(None)).await;
    assert_eq!(streamed.wait(&early, PATIENCE).await.expect("a result").return_value.as_str(), "10");
    let channels = taskiq::open_channels(rig.location(), rig.options()).await.expect("it opens");
    rig.listeners(1).await;
    goes_and_comes_back(&rig, channels, Kind::Channel).await;
}

async fn goes_and_comes_back(rig: &Rig, transport: Arc<dyn Transport>, kind: Kind) {
    let node = rig.node("node-1", transport).await;
    let producer = producer(rig, kind.clone());
    let task_id = producer.enqueue(&add(2, 3)).await.expect("enqueued");
    let result = producer.wait(&task_id, PATIENCE).await.expect("a result");
    assert_eq!(result.return_value.as_str(), "5", "{kind:?}");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_taskiq_cannot_say_is_refused() {
    let rig = Rig::new();
    let producer = producer(&rig, Kind::List);
    let delayed = Envelope { due: Due::After(PATIENCE), ..add(1, 1) };
    let refused = producer.enqueue(&delayed).await;
    assert!(matches!(refused, Err(SendError::Unsendable(_))), "{refused:?}");
}
