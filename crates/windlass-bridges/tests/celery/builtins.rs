//! Tasks that Celery's workers have built in.

use serde_json::{Value, json};
use windlass_core::{Json, State};
use windlass_wire::celery::control::Command;
use windlass_wire::celery::{Message, ResultDocument};
use windlass_wire::kombu;

use crate::control::ask;
use crate::rig::{Rig, message, signature};

/// What `task.map(it)` sends, or `task.starmap(it)`.
fn over(how: &str, task: &str, id: &str, it: Value) -> Message {
    let kwargs =
        json!({"task": {"task": task, "args": [], "kwargs": {}, "options": {}, "subtask_type": null}, "it": it});
    Message { kwargs: Json::parse(&kwargs.to_string()).expect("JSON"), ..message(how, id, json!([])) }
}

fn shown(document: &ResultDocument) -> (String, Vec<Value>) {
    let error = document.exception().expect("an exception");
    (error.exc_type, error.exc_message)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_and_a_starmap_answer_the_results_of_their_items_in_order() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    rig.send(&over("celery.map", "sum", "m-1", json!([[1, 2], [], [3]]))).await;
    assert_eq!(rig.until("m-1", "SUCCESS").await.result.as_str(), "[3, 0, 3]");
    rig.send(&over("celery.starmap", "add", "s-1", json!([[1, 2], [3, 4]]))).await;
    assert_eq!(rig.until("s-1", "SUCCESS").await.result.as_str(), "[3, 7]");
    rig.send(&over("celery.map", "sum", "m-2", json!([]))).await;
    assert_eq!(rig.until("m-2", "SUCCESS").await.result.as_str(), "[]");
    assert_eq!(rig.records().await.len(), 3, "a task each, and none for their items");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recorded_starmap_is_refused_by_the_name_of_the_task_that_nobody_has() {
    let recorded = include_str!("../../../windlass-wire/tests/vectors/celery/msg-redis-starmap.json");
    let recorded: Value = serde_json::from_str(recorded).expect("JSON");
    let element = recorded["messages"][0]["list_item"].as_str().expect("an element");
    let id = kombu::decode(element.as_bytes()).expect("a frame").headers["id"].as_str().expect("an id").to_owned();
    let rig = Rig::new().await;
    let working = rig.work().await;
    rig.ask(&["LPUSH", "celery", element]).await;
    let refused = ("NotRegistered".to_owned(), vec![json!("interop.add")]);
    assert_eq!(shown(&rig.until(&id, "FAILURE").await), refused);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_item_that_fails_is_the_failure_of_the_whole() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    rig.send(&over("celery.map", "fail", "f-1", json!(["one", "two"]))).await;
    assert_eq!(shown(&rig.until("f-1", "FAILURE").await), ("ValueError".to_owned(), vec![json!("one")]));
    rig.send(&over("celery.starmap", "add", "f-2", json!([[1, 2], [1]]))).await;
    let direct = message("add", "f-3", json!([1]));
    rig.send(&direct).await;
    let (class, says) = shown(&rig.until("f-2", "FAILURE").await);
    assert_eq!((class.as_str(), &says), ("TypeError", &shown(&rig.until("f-3", "FAILURE").await).1));
    rig.send(&over("celery.starmap", "add", "f-4", json!([7]))).await;
    assert_eq!(shown(&rig.until("f-4", "FAILURE").await).0, "TypeError");
    rig.send(&over("celery.map", "flaky", "f-5", json!([{}]))).await;
    assert_eq!(shown(&rig.until("f-5", "FAILURE").await).0, "TypeError");
    rig.send(&message("celery.map", "f-6", json!([]))).await;
    assert_eq!(shown(&rig.until("f-6", "FAILURE").await).0, "TypeError");
    rig.send(&over("celery.starmap", "flaky", "f-7", json!([[], []]))).await;
    let (class, says) = shown(&rig.until("f-7", "FAILURE").await);
    assert_eq!((class.as_str(), says), ("RuntimeError", vec![json!("not yet")]), "an item is not tried again alone");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_that_is_throttled_is_waited_for_and_those_before_it_do_not_run_again() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    rig.send(&over("celery.map", "busy", "t-1", json!([1, 2, 3]))).await;
    assert_eq!(rig.until("t-1", "SUCCESS").await.result.as_str(), "[1, 3, 4]");
    assert_eq!(rig.records().await[0].attempt, 1);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_map_that_runs_is_terminated_with_the_item_that_runs() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    rig.send(&over("celery.starmap", "endless", "e-1", json!([[], []]))).await;
    rig.until_so("it runs", async || rig.records().await.iter().any(|record| record.state == State::Running)).await;
    let revoke = Command::Revoke { ids: vec!["e-1".to_owned()], terminate: true, signal: "SIGTERM".to_owned() };
    assert_eq!(ask(&rig, revoke).await, json!({"ok": "terminate: e-1"}));
    assert_eq!(shown(&rig.until("e-1", "REVOKED").await).1, [json!("terminated")]);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_map_gets_its_results() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    let mut map = over("celery.starmap", "add", "c-1", json!([[1, 2], [3, 4]]));
    map.request.canvas.chain = vec![signature("sum", "c-2", json!([]))];
    rig.send(&map).await;
    assert_eq!(rig.until("c-2", "SUCCESS").await.result.as_str(), "10");
    working.end().await;
}
