//! The same messages on lists, streams and channels.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use windlass_bridges::taskiq::{self, Groups, Options};
use windlass_core::view::{Filter, Page};
use windlass_core::{Backend, DeadReason, QueueName, State, SystemClock};
use windlass_memory::MemoryStore;
use windlass_redis::foreign::Reply;

use crate::rig::{Rig, client_commands, message, until};

/// Sends what a Python client has sent, as it did.
async fn replay(rig: &Rig, name: &str) {
    for command in client_commands(name) {
        rig.line.ask(&command).await.expect("an answer");
    }
}

fn groups(idle: Duration) -> Groups {
    Groups { idle, ..Groups::default() }
}

async fn pending(rig: &Rig, stream: &str) -> i64 {
    let answer = rig.ask(&[b"XPENDING", stream.as_bytes(), b"taskiq"]).await.list();
    answer.first().and_then(Reply::number).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recorded_message_of_a_list_is_run_and_answered() {
    let rig = Rig::new();
    let options = Options { queues: vec![QueueName::known("taskiq"), QueueName::known("other")], ..rig.options() };
    let transport = taskiq::open_lists(rig.location(), options).await.expect("it opens");
    let node = rig.node_of("lists-1", transport, &["taskiq", "other"]).await;
    for (name, number, value) in [
        ("msg-list-args", "1", json!(5)),
        ("msg-list-kwargs", "2", json!(5)),
        ("msg-list-unicode", "3", json!(["Привет 🚀", [1, null, 1.5, true]])),
        ("msg-list-labels", "4", json!(2)),
        ("msg-list-queue-name", "7", json!(2)),
        ("msg-list-ack-type", "8", json!(2)),
        ("msg-list-dataclass", "9", json!({"a": 1, "b": "x"})),
        ("msg-list-jsonformatter", "d", json!("ы")),
    ] {
        replay(&rig, name).await;
        let result = rig.result(&format!("{number:0>32}")).await;
        assert_eq!(result.error, None, "{name}");
        assert_eq!(result.return_value.to::<serde_json::Value>().expect("JSON"), value, "{name}");
    }
    rig.until_accepted().await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_in_the_group_of_its_python_workers() {
    let rig = Rig::new();
    let transport = taskiq::open_streams(rig.location(), Groups::default(), rig.options()).await.expect("it opens");
    let node = rig.node("streams-1", transport).await;
    // The second also says how long the stream may become.
    for (name, number) in [("msg-stream", "b"), ("msg-stream-maxlen", "c")] {
        replay(&rig, name).await;
        assert_eq!(rig.result(&format!("{number:0>32}")).await.return_value.as_str(), "2", "{name}");
    }
    until("both are acknowledged", async || (pending(&rig, "taskiq").await == 0).then_some(())).await;
    assert_eq!(rig.ask(&[b"XLEN", b"taskiq"]).await, Reply::Number(2), "entries are not deleted");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_begins_where_it_is_told_to() {
    let rig = Rig::new();
    replay(&rig, "msg-stream").await;
    let from_now = taskiq::open_streams(rig.location(), Groups::default(), rig.options()).await.expect("it opens");
    drop(from_now);
    let from_first = Groups { group: "all".to_owned(), from: "0".to_owned(), ..Groups::default() };
    let transport = taskiq::open_streams(rig.location(), from_first, rig.options()).await.expect("it opens");
    let node = rig.node("streams-1", transport).await;
    assert_eq!(rig.result(&format!("{:0>32}", "b")).await.return_value.as_str(), "2");
    let unseen = rig.ask(&[b"XREADGROUP", b"GROUP", b"taskiq", b"c", b"STREAMS", b"taskiq", b">"]).await;
    assert_eq!(unseen, Reply::Nil, "what came before a group that begins now is not in it");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_python_worker_has_read_is_taken_over() {
    let rig = Rig::new();
    rig.ask(&[b"XGROUP", b"CREATE", b"taskiq", b"taskiq", b"$", b"MKSTREAM"]).await;
    replay(&rig, "msg-stream").await;
    let read = rig.ask(&[b"XREADGROUP", b"GROUP", b"taskiq", b"python", b"STREAMS", b"taskiq", b">"]).await;
    assert_ne!(read, Reply::Nil);
    let transport =
        taskiq::open_streams(rig.location(), groups(Duration::from_millis(1)), rig.options()).await.expect("it opens");
    let node = rig.node("streams-1", transport).await;
    assert_eq!(rig.result(&format!("{:0>32}", "b")).await.return_value.as_str(), "2");
    until("it is acknowledged", async || (pending(&rig, "taskiq").await == 0).then_some(())).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_was_deleted_is_read_on_when_it_is_there_again() {
    let rig = Rig::new();
    let transport = taskiq::open_streams(rig.location(), Groups::default(), rig.options()).await.expect("it opens");
    let node = rig.node("streams-1", transport).await;
    replay(&rig, "msg-stream").await;
    rig.result(&format!("{:0>32}", "b")).await;
    rig.ask(&[b"DEL", b"taskiq"]).await;
    // The producer does not make the group again.
    replay(&rig, "msg-stream-maxlen").await;
    assert_eq!(rig.result(&format!("{:0>32}", "c")).await.return_value.as_str(), "2");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_streams_share_the_slots_and_none_is_forgotten() {
    let rig = Rig::new();
    let queues = ["taskiq", "mail", "slow"];
    let options = Options { queues: queues.map(QueueName::known).to_vec(), ..rig.options() };
    let transport = taskiq::open_streams(rig.location(), Groups::default(), options).await.expect("it opens");
    for number in 0..60 {
        let text = message(&format!("t{number}"), "interop.add", &[], &format!("[{number}, 1]"));
        let stream = queues[number % queues.len()].as_bytes();
        rig.ask(&[b"XADD", stream, b"*", b"data", text.as_bytes()]).await;
    }
    let node = rig.node_of("streams-1", transport, &queues).await;
    for number in 0..60 {
        assert_eq!(rig.result(&format!("t{number}")).await.return_value.as_str(), (number + 1).to_string());
    }
    assert_eq!(rig.records().await.len(), 60);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_runs_what_is_published() {
    let rig = Rig::new();
    let (mut nodes, mut stores) = (Vec::new(), Vec::new());
    for name in ["channels-1", "channels-2"] {
        let transport = taskiq::open_channels(rig.location(), rig.options()).await.expect("it opens");
        let store = MemoryStore::new(Arc::new(SystemClock));
        nodes.push(rig.node_over(Arc::new(store.clone()), name, transport, &["taskiq"]).await);
        stores.push(store);
    }
    rig.listeners(2).await;
    let [command] = client_commands("msg-pubsub").try_into().expect("one command");
    assert_eq!(rig.line.ask(&command).await.expect("an answer"), Reply::Number(2));
    assert_eq!(rig.result(&format!("{:0>32}", "a")).await.return_value.as_str(), "2");
    for store in stores {
        until("it has run it", async || {
            let records = store.list(&Filter::all(), &Page::first(10)).await.expect("listed").tasks;
            records.first().filter(|record| record.state == State::Succeeded).map(|_| ())
        })
        .await;
    }
    for node in nodes {
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_published_while_all_slots_are_busy_waits() {
    let rig = Rig::new();
    let transport = taskiq::open_channels(rig.location(), rig.options()).await.expect("it opens");
    let node = rig.node("channels-1", transport).await;
    rig.listeners(1).await;
    // Three times as many as there are slots, at once.
    for number in 0..24 {
        let text = message(&format!("t{number}"), "interop.sleep", &[], "[0.05]");
        assert_eq!(rig.ask(&[b"PUBLISH", b"taskiq", text.as_bytes()]).await, Reply::Number(1));
    }
    for number in 0..24 {
        assert_eq!(rig.result(&format!("t{number}")).await.error, None);
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_and_what_nobody_knows_become_dead_letters_without_a_result() {
    let rig = Rig::new();
    let node = rig.list_node().await;
    rig.lpush("taskiq", b"\xff\xfe not JSON").await;
    rig.lpush("taskiq", r#"{"task_id": "half", "task_name": "interop.add"}"#).await;
    rig.lpush("taskiq", message("stranger", "app.nobody:knows", &[], "[]")).await;
    rig.lpush("taskiq", message("after", "interop.add", &[], "[1, 2]")).await;
    assert_eq!(rig.result("after").await.return_value.as_str(), "3", "the worker goes on");
    let dead = rig.until_records(3, State::Dead).await;
    assert!(dead.iter().all(|record| record.reason == Some(DeadReason::Malformed)), "{dead:?}");
    assert!(dead.iter().any(|record| record.envelope.name.as_str() == "app.nobody:knows"));
    rig.until_accepted().await;
    for key in ["half", "stranger"] {
        assert_eq!(rig.ask(&[b"EXISTS", key.as_bytes()]).await, Reply::Number(0), "{key}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_without_the_field_is_acknowledged_and_kept_as_a_dead_letter() {
    let rig = Rig::new();
    let transport = taskiq::open_streams(rig.location(), Groups::default(), rig.options()).await.expect("it opens");
    let node = rig.node("streams-1", transport).await;
    rig.ask(&[b"XADD", b"taskiq", b"*", b"other", b"x"]).await;
    rig.until_records(1, State::Dead).await;
    until("it is acknowledged", async || (pending(&rig, "taskiq").await == 0).then_some(())).await;
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_id_that_no_store_would_take_is_answered_under_its_own() {
    let rig = Rig::new();
    let node = rig.list_node().await;
    rig.lpush("taskiq", message("no. 5 é", "interop.add", &[], "[1, 2]")).await;
    assert_eq!(rig.result("no. 5 é").await.return_value.as_str(), "3");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_sent_twice_is_run_twice() {
    let rig = Rig::new();
    for _ in 0..2 {
        rig.lpush("taskiq", message("twice", "interop.add", &[], "[1, 2]")).await;
    }
    let node = rig.list_node().await;
    rig.until_records(2, State::Succeeded).await;
    assert_eq!(rig.result("twice").await.return_value.as_str(), "3");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_is_no_stream_is_refused_when_the_bridge_is_opened() {
    let rig = Rig::new();
    rig.lpush("taskiq", "x").await;
    let refused = taskiq::open_streams(rig.location(), Groups::default(), rig.options()).await;
    assert!(refused.expect_err("it is a list").to_string().contains("WRONGTYPE"));
}
