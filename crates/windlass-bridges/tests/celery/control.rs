//! What operators ask over the broker, and what monitors hear.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use windlass_bridges::celery::Options;
use windlass_core::State;
use windlass_redis::foreign::Channels;
use windlass_wire::Frame;
use windlass_wire::celery::control::{self, Command, Destination, Reply, ReplyTo, Request};
use windlass_wire::celery::event::Kind;
use windlass_wire::celery::{Event, TimeLimit};
use windlass_wire::kombu;

use crate::rig::{NODE, PATIENCE, Rig, message};

/// Asks as a client does: binds a reply queue, broadcasts, waits for the reply.
pub(crate) async fn ask(rig: &Rig, command: Command) -> Value {
    let client = windlass_core::TaskId::random().to_string();
    let queue = format!("{client}.{}", control::REPLY_EXCHANGE);
    rig.ask(&["SADD", &kombu::bindings(control::REPLY_EXCHANGE), &kombu::binding(&client, &queue)]).await;
    broadcast(
        rig,
        command,
        Some(ReplyTo { exchange: control::REPLY_EXCHANGE.to_owned(), routing_key: client.clone() }),
    )
    .await;
    let waited = rig.ask(&["BRPOP", &queue, "10"]).await.list().into_iter().nth(1);
    let element = waited.and_then(windlass_redis::foreign::Reply::bytes).expect("a reply");
    let reply = Reply::decode(&kombu::decode(&element).expect("a frame")).expect("a reply");
    assert_eq!(reply.ticket.as_deref(), Some("ticket-1"), "without it a client drops the answer");
    reply.answers[NODE].clone()
}

async fn broadcast(rig: &Rig, command: Command, reply_to: Option<ReplyTo>) {
    let request = Request {
        command,
        destination: Destination::All,
        ticket: reply_to.as_ref().map(|_| "ticket-1".to_owned()),
        reply_to,
        clock: 41,
        expires: None,
    };
    let element = kombu::encode(&request.frame(Some("tag")));
    rig.until_so("the node listens", async || {
        rig.ask(&["PUBLISH", "/0.celery.pidbox", &element]).await.number() == Some(1)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_answers_what_it_is_and_what_it_has() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    rig.send(&message("endless", "run-1", json!([]))).await;
    let mut later = message("add", "later-1", json!([1, 1]));
    later.request.eta = Some("2031-01-01T00:00:00Z".parse().expect("a time"));
    rig.send(&later).await;
    rig.until_so("both are there", async || {
        let states: Vec<State> = rig.records().await.iter().map(|record| record.state).collect();
        states.contains(&State::Running) && states.contains(&State::Scheduled)
    })
    .await;
    assert_eq!(ask(&rig, Command::Ping).await, json!({"ok": "pong"}));
    assert_eq!(ask(&rig, Command::Active { safe: false }).await[0]["id"], json!("run-1"));
    assert_eq!(ask(&rig, Command::Scheduled).await[0]["request"]["id"], json!("later-1"));
    assert_eq!(ask(&rig, Command::Reserved).await, json!([]));
    let registered = ask(&rig, Command::Registered { items: Vec::new(), builtins: false }).await;
    assert_eq!(registered, json!(["add", "busy", "endless", "fail", "flaky", "sum"]));
    let all = ask(&rig, Command::Registered { items: Vec::new(), builtins: true }).await;
    assert_eq!(all, json!(["add", "busy", "celery.map", "celery.starmap", "endless", "fail", "flaky", "sum"]));
    assert_eq!(ask(&rig, Command::ActiveQueues).await[0]["name"], json!("celery"));
    let found = ask(&rig, Command::QueryTask { ids: vec!["run-1".to_owned(), "nobody".to_owned()] }).await;
    assert_eq!((found["run-1"][0].clone(), found.get("nobody")), (json!("active"), None));
    let stats = ask(&rig, Command::Stats).await;
    assert!(stats["clock"].is_string() && stats["pool"]["max-concurrency"].as_u64() > Some(0));
    let unknown = Command::Unknown { method: "nope".to_owned(), arguments: serde_json::Map::new() };
    assert_eq!(ask(&rig, unknown).await, json!({"error": "KeyError('nope')"}));
    let revoke = Command::Revoke { ids: vec!["run-1".to_owned()], terminate: true, signal: "SIGTERM".to_owned() };
    assert_eq!(ask(&rig, revoke).await, json!({"ok": "terminate: run-1"}));
    let error = rig.until("run-1", "REVOKED").await.exception().expect("an exception");
    assert_eq!(error.exc_message, [json!("terminated")]);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_revoked_before_it_comes_or_while_it_waits_never_runs() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    let revoke =
        |id: &str| Command::Revoke { ids: vec![id.to_owned()], terminate: false, signal: "SIGTERM".to_owned() };
    ask(&rig, revoke("before-1")).await;
    rig.until("before-1", "REVOKED").await;
    rig.send(&message("add", "before-1", json!([1, 1]))).await;
    let mut later = message("add", "waits-1", json!([1, 1]));
    later.request.eta = Some("2031-01-01T00:00:00Z".parse().expect("a time"));
    rig.send(&later).await;
    rig.until_so("it waits", async || !rig.records().await.is_empty()).await;
    ask(&rig, revoke("waits-1")).await;
    rig.until("waits-1", "REVOKED").await;
    rig.until_so("the message is gone", async || rig.ask(&["LLEN", "celery"]).await.number() == Some(0)).await;
    let states: Vec<State> = rig.records().await.iter().map(|record| record.state).collect();
    assert_eq!(states, [State::Cancelled], "only the one that waited was ever stored");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn queues_slots_and_limits_change_while_a_node_works() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    let add =
        Command::AddConsumer { queue: "other".to_owned(), exchange: None, exchange_type: None, routing_key: None };
    assert_eq!(ask(&rig, add).await, json!({"ok": "add consumer other"}));
    rig.ask(&["LPUSH", "other", &Rig::element(&message("add", "q-1", json!([1, 1])), "other")]).await;
    rig.until("q-1", "SUCCESS").await;
    let rate = |limit: Option<&str>| Command::RateLimit { task: "add".to_owned(), limit: limit.map(ToOwned::to_owned) };
    assert_eq!(ask(&rig, rate(Some("10/m"))).await, json!({"ok": "new rate limit set successfully"}));
    assert!(
        ask(&rig, rate(Some("often"))).await["error"].as_str().expect("an error").starts_with("Invalid rate limit")
    );
    assert_eq!(ask(&rig, rate(None)).await, json!({"ok": "rate limit disabled successfully"}));
    let before = ask(&rig, Command::Stats).await["pool"]["max-concurrency"].as_u64().expect("slots");
    assert_eq!(ask(&rig, Command::PoolGrow { by: 3 }).await, json!({"ok": "pool will grow"}));
    rig.until_so("it has grown", async || {
        let node = windlass_core::Backend::nodes(&rig.store).await.expect("nodes").remove(0);
        node.info.slots as u64 == before + 3
    })
    .await;
    broadcast(&rig, Command::Shutdown, None).await;
    rig.until_so("it has ended", async || working.has_ended()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limits_of_a_node_hold_for_messages_without_any_of_their_own() {
    let rig = Rig::new().await;
    let secs = |secs| Some(Duration::from_secs(secs));
    let limits = TimeLimit { hard: secs(2), soft: secs(1) };
    let working = rig.work_with(Options { limits, ..rig.options() }).await;
    let mut messages = ["plain-1", "own-1", "told-1"].map(|id| message("add", id, json!([1, 1])));
    for message in &mut messages {
        message.request.eta = Some("2031-01-01T00:00:00Z".parse().expect("a time"));
    }
    let [plain, mut own, mut told] = messages;
    own.request.timelimit = TimeLimit { hard: secs(60), soft: None };
    rig.send(&plain).await;
    rig.send(&own).await;
    rig.until_so("both came", async || rig.records().await.len() == 2).await;
    told.request.task = "sum".to_owned();
    let limit = Command::TimeLimit { task: "sum".to_owned(), hard: Some(30.0), soft: None };
    assert_eq!(ask(&rig, limit).await, json!({"ok": "time limits set successfully"}));
    rig.send(&told).await;
    rig.until_so("all came", async || rig.records().await.len() == 3).await;
    let mut seen: Vec<_> = rig.records().await.into_iter().map(|record| record.envelope).collect();
    seen.sort_by_key(|envelope| envelope.id.to_string());
    let seen: Vec<_> = seen.iter().map(|envelope| (envelope.hard_limit, envelope.soft_limit)).collect();
    assert_eq!(seen, [(secs(60), secs(1)), (secs(2), secs(1)), (secs(30), secs(1))]);
    rig.send(&message("endless", "run-1", json!([]))).await;
    let error = rig.until("run-1", "FAILURE").await.exception().expect("an exception");
    assert_eq!(error.exc_message, [json!("stopped")], "it was asked to end");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn monitors_hear_of_the_node_and_of_each_step_of_a_task() {
    let rig = Rig::new().await;
    let mut channels = Channels::listen(Arc::clone(&rig.line), vec!["/0.celeryev/*".to_owned()]);
    let mut options = rig.options();
    options.events = true;
    let working = rig.work_with(options).await;
    let mut seen: Vec<String> = Vec::new();
    let mut sent = false;
    let listen = async {
        let mut clock = 0;
        while !seen.iter().any(|kind| kind == "task-succeeded") {
            let heard = channels.next().await.expect("it listens");
            let frame: Frame = kombu::decode(&heard.message).expect("a frame");
            for event in Event::decode(&frame.body).expect("events") {
                assert!(event.clock > clock, "the clock grows");
                clock = event.clock;
                if matches!(event.kind, Kind::WorkerHeartbeat(_)) && !sent {
                    sent = true;
                    rig.send(&message("add", "ev-1", json!([1, 1]))).await;
                }
                seen.push(event.kind.name().to_owned());
            }
        }
    };
    tokio::time::timeout(PATIENCE, listen).await.expect("every event");
    let of_task: Vec<&str> = seen.iter().map(String::as_str).filter(|kind| kind.starts_with("task-")).collect();
    assert_eq!(of_task, ["task-received", "task-started", "task-succeeded"]);
    working.end().await;
    let bye = async {
        loop {
            let heard = channels.next().await.expect("it listens");
            let frame = kombu::decode(&heard.message).expect("a frame");
            if Event::decode(&frame.body).expect("events").iter().any(|event| event.kind.name() == "worker-offline") {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(5), bye).await.expect("it says that it is gone");
}
