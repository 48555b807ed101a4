//! What clients find where they look.

use serde_json::json;
use windlass_core::State;
use windlass_core::state::DeadReason;
use windlass_wire::celery::Request;
use windlass_wire::kombu;

use crate::rig::{Rig, message, signature};

#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_stored_published_and_expires() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    rig.send(&message("add", "a-1", json!([2, 3]))).await;
    let document = rig.until("a-1", "SUCCESS").await;
    assert_eq!((document.result.as_str(), document.children, document.traceback), ("5", Some(vec![]), None));
    let left = rig.ask(&["TTL", "celery-task-meta-a-1"]).await.number().expect("a number");
    assert!((86_000..=86_400).contains(&left), "{left}");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_arrive_as_the_exceptions_that_python_knows() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    rig.send(&message("fail", "f-1", json!(["boom"]))).await;
    let error = rig.until("f-1", "FAILURE").await.exception().expect("an exception");
    assert_eq!(error.exc_message, [json!("boom")]);
    rig.send(&message("add", "f-2", json!([1]))).await;
    let error = rig.until("f-2", "FAILURE").await.exception().expect("an exception");
    assert_eq!((error.exc_type.as_str(), error.exc_module.as_deref()), ("TypeError", Some("builtins")));
    rig.send(&message("nobody.knows", "f-3", json!([]))).await;
    let error = rig.until("f-3", "FAILURE").await.exception().expect("an exception");
    assert_eq!((error.exc_type.as_str(), error.exc_message), ("NotRegistered", vec![json!("nobody.knows")]));
    let dead = rig.records().await.into_iter().find(|record| record.envelope.name.as_str() == "nobody.knows");
    assert_eq!(dead.expect("kept").reason, Some(DeadReason::Malformed), "it can be replayed when a worker knows it");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_is_told_and_waits_in_the_store_without_a_second_message() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    rig.send(&message("flaky", "r-1", json!([]))).await;
    assert_eq!(rig.until("r-1", "SUCCESS").await.result.as_str(), "2");
    assert_eq!(rig.ask(&["LLEN", "celery"]).await.number(), Some(0));
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_task_runs_with_its_result_in_front() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    let mut first = message("add", "c-1", json!([1, 2]));
    // The next step is the last element.
    first.request.canvas.chain = vec![signature("add", "c-3", json!([100])), signature("add", "c-2", json!([10]))];
    first.request.canvas.callbacks = vec![signature("add", "c-4", json!([1000]))];
    rig.send(&first).await;
    assert_eq!(rig.until("c-3", "SUCCESS").await.result.as_str(), "113");
    assert_eq!(rig.until("c-4", "SUCCESS").await.result.as_str(), "1003");
    let children = rig.until("c-1", "SUCCESS").await.children.expect("children");
    assert_eq!(children.len(), 2);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_step_fails_the_rest_is_answered_and_the_errbacks_run() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    let mut first = message("fail", "e-1", json!(["no"]));
    first.request.canvas.chain = vec![signature("add", "e-3", json!([1])), signature("add", "e-2", json!([1]))];
    first.request.canvas.errbacks = vec![signature("fail", "e-4", json!([]))];
    rig.send(&first).await;
    for id in ["e-2", "e-3"] {
        let error = rig.until(id, "FAILURE").await.exception().expect("an exception");
        assert_eq!(error.exc_message, [json!("no")], "{id}");
    }
    let error = rig.until("e-4", "FAILURE").await.exception().expect("an exception");
    assert_eq!(error.exc_message, [json!("e-1")], "it gets the id of the task that failed");
    working.end().await;
}

/// The parts of a chord as a client sends them, with the counter written before.
async fn send_chord(rig: &Rig, group: &str, parts: &[(&str, serde_json::Value)], body: &str) {
    let key = windlass_wire::celery::result::group_key("", group);
    rig.ask(&["SET", &format!("{key}.s"), &parts.len().to_string(), "EX", "100"]).await;
    for (index, (task, args)) in parts.iter().enumerate() {
        let mut part = message(task, &format!("{group}-{index}"), args.clone());
        part.request.group = Some(group.to_owned());
        part.request.group_index = Some(index as i64);
        part.request.canvas.chord = Some(Box::new(signature("sum", body, json!([]))));
        rig.send(&part).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_of_a_chord_runs_once_with_the_results_in_their_order() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    let parts: Vec<_> = (0..20).map(|number| ("add", json!([number, 1]))).collect();
    send_chord(&rig, "g-1", &parts, "body-1").await;
    assert_eq!(rig.until("body-1", "SUCCESS").await.result.as_str(), "210");
    assert_eq!(rig.texts(&["KEYS", "celery-taskset-meta-g-1.*"]).await, ["celery-taskset-meta-g-1.c"]);
    assert_eq!(rig.records().await.iter().filter(|record| record.envelope.name.as_str() == "sum").count(), 1);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chord_with_a_part_that_fails_fails_and_says_which() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    send_chord(&rig, "g-2", &[("add", json!([1, 1])), ("fail", json!(["x"]))], "body-2").await;
    let error = rig.until("body-2", "FAILURE").await.exception().expect("an exception");
    assert_eq!(error.exc_type, "ChordError");
    assert_eq!(error.exc_message, [json!("Dependency g-2-1 raised ValueError('x')")]);
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_canvas_of_many_steps_and_a_megabyte_goes_through() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    let mut first = message("add", "big-1", json!([1, 2]));
    let blob = "x".repeat(1_000_000);
    first.request.canvas.chain =
        vec![signature("fail", "big-2", json!([blob])).option("link", json!([])).option("immutable", json!(true))];
    first.request.canvas.chain[0].immutable = true;
    rig.send(&first).await;
    let error = rig.until("big-2", "FAILURE").await.exception().expect("an exception");
    assert_eq!(error.exc_type, "ValueError");
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_that_nobody_wants_are_not_stored_and_what_follows_goes_on() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    let mut first = message("add", "i-1", json!([1, 2]));
    first.request.ignore_result = Some(true);
    first.request.canvas.chain = vec![signature("add", "i-2", json!([1]))];
    rig.send(&first).await;
    assert_eq!(rig.until("i-2", "SUCCESS").await.result.as_str(), "4");
    assert_eq!(rig.ask(&["EXISTS", "celery-task-meta-i-1"]).await.number(), Some(0));
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_id_sent_twice_is_a_second_run_under_the_same_id() {
    let rig = Rig::new().await;
    for _ in 0..2 {
        rig.send(&message("add", "twice", json!([1, 1]))).await;
    }
    let working = rig.work().await;
    rig.until("twice", "SUCCESS").await;
    rig.until_so("two runs", async || {
        rig.records().await.iter().filter(|record| record.state == State::Succeeded).count() == 2
    })
    .await;
    working.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_in_front_of_every_key() {
    let rig = Rig::new().await;
    let mut options = rig.options();
    "shop:".clone_into(&mut options.key_prefix);
    let working = rig.work_with(options).await;
    rig.ask(&["LPUSH", "shop:celery", &Rig::element(&message("add", "p-1", json!([1, 1])), "celery")]).await;
    rig.until_under("shop:", "p-1", "SUCCESS").await;
    working.end().await;
    for key in rig.texts(&["KEYS", "*"]).await {
        assert!(key.starts_with("shop:"), "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lower_numbers_are_served_first() {
    let rig = Rig::new().await;
    for (priority, id) in [(9, "last"), (0, "first"), (3, "second")] {
        let mut message = message("add", id, json!([1, 1]));
        message.request.priority = priority;
        rig.ask(&["LPUSH", &kombu::list("celery", priority), &Rig::element(&message, "celery")]).await;
    }
    let celery = rig.celery(rig.options()).await;
    let demand = windlass_core::backend::Demand {
        node: windlass_core::NodeId::known("n"),
        queues: vec![windlass_core::QueueName::known("celery")],
        max: 10,
        lease: std::time::Duration::from_secs(10),
        except: Vec::new(),
        wait: std::time::Duration::ZERO,
        hush: tokio_util::sync::CancellationToken::new(),
    };
    let taken = windlass_core::bridge::Transport::take(&celery, &demand).await.expect("taken");
    let ids: Vec<String> = taken
        .iter()
        .map(|taken| match &taken.message {
            windlass_core::bridge::Message::Task(envelope) => {
                Request::of(envelope).expect("readable").expect("Celery's").id
            }
            other => panic!("a task, not {other:?}"),
        })
        .collect();
    assert_eq!(ids, ["first", "second", "last"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_makes_no_sense_becomes_a_dead_letter_and_the_worker_lives_on() {
    let rig = Rig::new().await;
    let working = rig.work().await;
    let sound = Rig::element(&message("add", "x", json!([1, 1])), "celery");
    let with_body = |body: &str| {
        let mut element: serde_json::Value = serde_json::from_str(&sound).expect("JSON");
        element["body"] = json!(body);
        element["properties"]["body_encoding"] = json!(null);
        element["properties"]["delivery_tag"] = json!(windlass_core::TaskId::random().to_string());
        element.to_string()
    };
    let mut pickled: serde_json::Value = serde_json::from_str(&with_body("[[], {}, {}]")).expect("JSON");
    pickled["content-type"] = json!("application/x-python-serialize");
    let malformed = [
        "no JSON".to_owned(),
        "[1]".to_owned(),
        "{}".to_owned(),
        with_body(""),
        with_body("[1, 2"),
        with_body("[[], {}]"),
        with_body(r#"{"task": 1}"#),
        pickled.to_string(),
    ];
    for element in &malformed {
        rig.ask(&["LPUSH", "celery", element]).await;
    }
    rig.send(&message("add", "alive", json!([1, 1]))).await;
    rig.until("alive", "SUCCESS").await;
    rig.until_so("all are dead letters", async || {
        let dead = rig.records().await.into_iter().filter(|record| record.reason == Some(DeadReason::Malformed));
        dead.count() == malformed.len()
    })
    .await;
    assert_eq!(rig.ask(&["LLEN", "celery"]).await.number(), Some(0));
    working.end().await;
}
