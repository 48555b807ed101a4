//! The tasks of the suite, called as foreign messages call them: by position, by name, with a count of retries.

use std::time::Duration;

use serde_json::{Value, json};
use windlass::view::Record;
use windlass::{Args, Envelope, Json, QueueName, TaskName};
use windlass_testkit::TestApp;
use windlass_testkit::harness::RUN_MAX;
use windlass_wire::celery::Request;
use windlass_wire::taskiq::{Label, Labels};

fn envelope(name: &str, args: &Value, kwargs: &Value) -> Envelope {
    let json = |value: &Value| Some(Json::of(value).unwrap());
    let args = Args::new(json(args), json(kwargs)).unwrap();
    Envelope::new(TaskName::new(format!("interop.{name}")).unwrap(), QueueName::default(), args)
}

async fn run(envelope: Envelope) -> Record {
    let app = TestApp::start(windlass_interop::tasks::app()).await.unwrap();
    let id = envelope.id.clone();
    app.client().push(vec![envelope]).await.unwrap();
    app.client().watch_all(&[id], RUN_MAX).await.unwrap().remove(0)
}

async fn answer(name: &str, args: Value, kwargs: Value) -> Value {
    run(envelope(name, &args, &kwargs)).await.result.expect("it succeeds").to().unwrap()
}

async fn class_of_failure(envelope: Envelope) -> (String, String) {
    let failure = run(envelope).await.failure.expect("it fails");
    (failure.class, failure.message)
}

#[tokio::test(start_paused = true)]
async fn numbers_texts_and_lists_are_added_by_position_and_by_name() {
    assert_eq!(answer("add", json!([2, 3]), json!({})).await, json!(5));
    assert_eq!(answer("add", json!([1]), json!({"y": 1.5})).await, json!(2.5));
    assert_eq!(answer("add", json!(["a"]), json!({"y": "b"})).await, json!("ab"));
    assert_eq!(answer("add", json!([[1], [2]]), json!({})).await, json!([1, 2]));
}

#[tokio::test(start_paused = true)]
async fn an_echo_takes_any_arguments() {
    let (args, kwargs) = (json!([1, null, {"a": [true]}]), json!({"x": 1.0, "y": "z"}));
    assert_eq!(answer("echo", args.clone(), kwargs.clone()).await, json!({"args": args, "kwargs": kwargs}));
    assert_eq!(answer("echo", json!([]), json!({})).await, json!({"args": [], "kwargs": {}}));
}

#[tokio::test(start_paused = true)]
async fn arguments_that_do_not_fit_are_a_type_error() {
    for (name, args) in
        [("add", json!([1])), ("add", json!([1, 2, 3])), ("sum_list", json!([1])), ("add", json!([1, "a"]))]
    {
        let (class, _) = class_of_failure(envelope(name, &args, &json!({}))).await;
        assert_eq!(class, "TypeError", "{name}{args}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_a_value_error_with_its_message() {
    let failure = class_of_failure(envelope("fail", &json!(["broken"]), &json!({}))).await;
    assert_eq!(failure, ("ValueError".to_owned(), "broken".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_slept_number_comes_back_as_it_was() {
    let record = run(envelope("sleep", &json!([2.0]), &json!({}))).await;
    assert_eq!(record.result.unwrap().as_str(), "2.0");
    assert!(record.finished_at.unwrap().since(record.started_at.unwrap()) >= Duration::from_secs(2));
}

fn of_celery(fail_times: u32, retries: u32) -> Envelope {
    let mut envelope = envelope("flaky", &json!(["k", fail_times]), &json!({}));
    let request = Request { retries, ..Request::new("interop.flaky", envelope.id.to_string()) };
    request.attach(&mut envelope).unwrap();
    envelope
}

#[tokio::test(start_paused = true)]
async fn retries_that_a_celery_message_brings_are_counted() {
    for (fail_times, retries, attempts) in [(0, 0, 1), (2, 0, 3), (4, 0, 5), (2, 1, 3), (1, 3, 4)] {
        let record = run(of_celery(fail_times, retries)).await;
        let answer: Value = record.result.expect("it succeeds").to().unwrap();
        assert_eq!(answer, json!({"key": "k", "attempts": attempts}), "{fail_times} failures, {retries} retries");
    }
}

#[tokio::test(start_paused = true)]
async fn a_celery_task_is_retried_four_times_at_most() {
    for (retries, attempts) in [(0, 5), (3, 2), (4, 1)] {
        let record = run(of_celery(100, retries)).await;
        assert_eq!(record.attempt, attempts, "{retries} retries before");
        assert_eq!(record.failure.expect("it fails").class, "RuntimeError");
    }
}

#[tokio::test(start_paused = true)]
async fn a_taskiq_task_is_retried_when_its_label_says_so() {
    let labelled = |again: bool, retries: u32| {
        let mut envelope = envelope("flaky", &json!(["k", 1]), &json!({}));
        let labels = [("retry_on_error", Label::Bool(again)), ("_retries", Label::Int(i64::from(retries)))];
        Labels(labels.map(|(name, label)| (name.to_owned(), label)).into()).attach(&mut envelope).unwrap();
        envelope
    };
    assert_eq!(run(labelled(true, 0)).await.attempt, 2);
    let record = run(labelled(false, 0)).await;
    assert_eq!((record.attempt, record.failure.expect("it fails").message), (1, "flaky k".to_owned()));
    let record = run(labelled(true, 1)).await;
    assert_eq!(record.result.expect("it succeeds").to::<Value>().unwrap()["attempts"], 2);
}
