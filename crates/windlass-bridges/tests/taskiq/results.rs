//! What clients find: the shapes that TaskIQ's own worker stores.

use std::time::Duration;

use serde_json::json;
use windlass_bridges::taskiq::{self, Keep, Options, ProgressKeys, ResultOptions, Results, WaitError};
use windlass_core::backend::{Command, Target, TaskAction};
use windlass_core::{Backend, State, TaskId};
use windlass_redis::foreign::Reply;
use windlass_wire::taskiq::{Serializer, TaskResult};

use crate::rig::{PATIENCE, Rig, comparable, found, message, until, vector};

#[tokio::test(flavor = "multi_thread")]
async fn results_have_the_shape_that_was_recorded_from_the_real_worker() {
    let rig = Rig::new();
    let node = rig.list_node().await;
    for (name, sent) in [
        ("success", message("success", "interop.add", &[("a", "1", 2)], "[2, 3]")),
        ("failure", message("failure", "interop.fail", &[], r#"["boom"]"#)),
        ("timeout", message("timeout", "interop.sleep", &[("timeout", "0.5", 4)], "[30]")),
        ("retry", message("retry", "interop.flaky", &[("retry_on_error", "True", 5)], r#"["k", 1]"#)),
        (
            "retry-exhausted",
            message(
                "retry-exhausted",
                "interop.flaky",
                &[("retry_on_error", "True", 5), ("max_retries", "2", 2)],
                r#"["k", 99]"#,
            ),
        ),
    ] {
        rig.lpush("taskiq", sent).await;
        let recorded = vector(&format!("flow-list-pickle-{name}"))["stored_decoded"].clone();
        assert_eq!(found(&rig.result(name).await), comparable(recorded), "{name}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_that_do_not_fit_are_a_type_error() {
    let rig = Rig::new();
    let node = rig.list_node().await;
    rig.lpush("taskiq", message("bad", "interop.add", &[], "[1, 2, 3]")).await;
    let error = rig.result("bad").await.error.expect("an error");
    assert_eq!((error.exc_type.as_str(), error.exc_module.as_deref()), ("TypeError", Some("builtins")));
    assert_eq!(error.exc_message, json!(["3 positional arguments were given, the task takes 2"]));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_of_a_python_worker_is_counted_on() {
    let rig = Rig::new();
    let node = rig.list_node().await;
    let labels = [("retry_on_error", "True", 5), ("max_retries", "3", 2), ("_retries", "1", 2)];
    rig.lpush("taskiq", message("second", "interop.flaky", &labels, r#"["k", 99]"#)).await;
    let result = rig.result("second").await;
    assert_eq!(result.labels["_retries"], 2, "one run there, two runs here");
    assert!(result.error.is_some());
    assert_eq!(rig.until_records(1, State::Dead).await[0].attempt, 2);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn json_a_prefix_an_expiry_and_progress_are_as_they_are_asked_for() {
    let rig = Rig::new();
    let results = ResultOptions {
        prefix: Some("app".to_owned()),
        keep: Keep::For(Duration::from_secs(3600)),
        serializer: Serializer::Json,
        progress: ProgressKeys::Write,
        ..ResultOptions::new(rig.location())
    };
    let options = Options { results: Some(results.clone()), ..rig.options() };
    let transport = taskiq::open_lists(rig.location(), options).await.expect("it opens");
    let node = rig.node("lists-1", transport).await;
    rig.lpush("taskiq", message("sleeps", "interop.sleep", &[], "[0.3]")).await;
    rig.lpush("taskiq", message("fails", "interop.fail", &[], r#"["boom"]"#)).await;
    let clients = Results::new(&results);
    let state = async |id: &str| clients.progress(id).await.expect("an answer").map(|progress| progress.state);
    until("it has begun", async || state("sleeps").await.filter(|state| state == "STARTED")).await;
    assert_eq!(clients.find("sleeps").await.expect("an answer"), None);
    clients.wait("sleeps", PATIENCE).await.expect("a result");
    assert_eq!(state("sleeps").await.as_deref(), Some("SUCCESS"));
    clients.wait("fails", PATIENCE).await.expect("a result");
    let progress = clients.progress("fails").await.expect("an answer").expect("a progress");
    assert_eq!((progress.state.as_str(), progress.meta.as_str()), ("FAILURE", "\"boom\""));
    let stored = rig.ask(&[b"GET", b"app:fails"]).await.bytes().expect("text");
    assert!(stored.starts_with(br#"{"is_err": true, "log": null, "#), "{}", String::from_utf8_lossy(&stored));
    for key in ["app:sleeps", "app:sleeps__progress"] {
        let ttl = rig.ask(&[b"TTL", key.as_bytes()]).await.number().expect("a number");
        assert!((3_500..=3_600).contains(&ttl), "{key}: {ttl}");
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_is_cancelled_while_it_runs_has_an_error_for_a_result() {
    let rig = Rig::new();
    let node = rig.list_node().await;
    rig.lpush("taskiq", message("long", "interop.sleep", &[], "[600]")).await;
    rig.until_records(1, State::Running).await;
    let id = TaskId::new("long").expect("an id");
    let cancel = Command::Tasks { target: Target::Ids(vec![id]), action: TaskAction::Cancel };
    rig.store.command(&cancel).await.expect("cancelled");
    let error = rig.result("long").await.error.expect("an error");
    assert_eq!((error.exc_type.as_str(), error.exc_module.as_deref()), ("TaskCancelled", Some("windlass")));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn classes_of_failures_are_classes_of_python() {
    let rig = Rig::new();
    let node = rig.list_node().await;
    for (id, class, module, name) in [
        ("a", "KeyError", "builtins", "KeyError"),
        ("b", "shop.errors.SoldOut", "shop.errors", "SoldOut"),
        ("c", "http_503", "windlass", "http_503"),
    ] {
        rig.lpush("taskiq", message(id, "interop.fail", &[], &format!(r#"["boom", "{class}"]"#))).await;
        let error = rig.result(id).await.error.expect("an error");
        assert_eq!((error.exc_module.as_deref(), error.exc_type.as_str()), (Some(module), name));
    }
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_asks_for_no_result_has_none() {
    let rig = Rig::new();
    let node = rig.list_node().await;
    rig.lpush("taskiq", message("none", "interop.fail", &[], r#"["", "NoResultError"]"#)).await;
    rig.until_records(1, State::Dead).await;
    assert_eq!(rig.ask(&[b"EXISTS", b"none"]).await, Reply::Number(0));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_in_vain_or_for_something_else_hears_so() {
    let rig = Rig::new();
    let results = Results::new(&ResultOptions::new(rig.location()));
    let late = results.wait("never", Duration::from_millis(120)).await;
    assert!(matches!(late, Err(WaitError::Timeout { .. })), "{late:?}");
    let json = TaskResult::decode(br#"{"is_err": false, "return_value": 1}"#, Serializer::Json).expect("a result");
    rig.ask(&[b"SET", b"other", &json.encode(Serializer::Json)]).await;
    let other = results.wait("other", PATIENCE).await;
    assert!(matches!(other, Err(WaitError::Malformed { .. })), "{other:?}");
}
