//! What is kept at the limits: the largest, the longest and the deepest that the engine lets through.

use std::collections::BTreeMap;

use windlass_core::args::ARGS_BYTES_MAX;
use windlass_core::envelope::{DELAY_MAX, HEADERS_MAX, RESULT_BYTES_MAX};
use windlass_core::error::ERROR_TEXT_BYTES_MAX;
use windlass_core::flow::{FailurePolicy, Flow, GROUP_DEPTH_MAX, GroupStep, Step};
use windlass_core::names::NAME_BYTES_MAX;
use windlass_core::state::DeadReason;
use windlass_core::view::Filter;
use windlass_core::{
    Args, Due, Envelope, Failure, Json, Key, QueueName, State, TaskId, TaskName, Timestamp, Unique, UniqueKey, Verdict,
};

use super::harness::{Harness, START};
use super::make::{demand, demand_of, json, ok, task};

/// The largest arguments come back whole.
pub async fn the_largest_arguments_are_kept(h: &Harness) {
    let text = format!(r#"{{"a":"{}"}}"#, "x".repeat(ARGS_BYTES_MAX - 8));
    let args = Args::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    h.push(Envelope { args: args.clone(), ..task("work") }).await;
    assert!(h.claim_one().await.envelope.args == args, "4 MiB come back");
}

/// The largest result comes back whole.
pub async fn the_largest_result_is_kept(h: &Harness) {
    let text = format!("\"{}\"", "x".repeat(RESULT_BYTES_MAX - 2));
    let id = h.push_and_run(task("work"), ok(&text)).await;
    assert!(h.record(&id).await.result.is_some_and(|result| result.as_str() == text), "4 MiB come back");
}

/// JSON is kept to the letter: digits, order of keys, spaces, characters of every kind.
pub async fn json_is_kept_to_the_letter(h: &Harness) {
    let text = "{\"b\": 1.10, \"a\": 123456789012345678901234567890, \"\\u0000\": \"\\ud83d\\ude00 é 日本 \u{1f600}\"}";
    let id = h.push_and_run(task("work"), ok(text)).await;
    assert_eq!(h.record(&id).await.result.as_ref().map(Json::as_str), Some(text));
}

/// Names of the greatest length, and with every character that is allowed, are kept and found.
pub async fn the_longest_names_are_kept(h: &Harness) {
    let longest = "n".repeat(NAME_BYTES_MAX);
    let all: String = ('!'..='~').collect();
    for name in [longest.as_str(), &all] {
        let envelope = Envelope {
            id: TaskId::new(name).unwrap_or_else(|error| panic!("{error}")),
            queue: QueueName::known(name),
            key: Some(Key::known(name)),
            unique: Some(Unique::new(UniqueKey::known(name))),
            ..task(name)
        };
        h.push(envelope.clone()).await;
        let filter = Filter {
            queues: vec![QueueName::known(name)],
            names: vec![TaskName::known(name)],
            key: Some(Key::known(name)),
            ..Filter::default()
        };
        assert_eq!(h.list(&filter).await.into_iter().map(|record| record.envelope).collect::<Vec<_>>(), [envelope]);
        assert_eq!(h.claim(demand_of(&[name], 1)).await.len(), 1);
    }
}

/// Keys may hold any printable character.
pub async fn keys_of_any_script_are_kept(h: &Harness) {
    let key = Key::known("Ünïcode 日本 '\"; drop table");
    let id = h.push(Envelope { key: Some(key.clone()), ..task("work") }).await;
    let filter = Filter { key: Some(key), ..Filter::default() };
    assert_eq!(h.list(&filter).await.into_iter().map(|record| record.envelope.id).collect::<Vec<_>>(), [id]);
}

/// As many headers as are allowed come back.
pub async fn all_headers_are_kept(h: &Harness) {
    let headers: BTreeMap<String, String> =
        (0..HEADERS_MAX).map(|number| (format!("header {number}"), "värde\n".repeat(20))).collect();
    h.push(Envelope { headers: headers.clone(), ..task("work") }).await;
    assert_eq!(h.claim_one().await.envelope.headers, headers);
}

/// The longest error text comes back.
pub async fn the_longest_error_is_kept(h: &Harness) {
    let failure = Failure::new("class", "é".repeat(ERROR_TEXT_BYTES_MAX));
    let id = h.push_and_run(task("work"), Verdict::Dead { reason: DeadReason::Fatal, failure: failure.clone() }).await;
    assert_eq!(h.record(&id).await.failure, Some(failure));
}

/// The longest delay is kept to the microsecond.
pub async fn the_longest_delay_is_kept(h: &Harness) {
    let id = h.push(Envelope { due: Due::After(DELAY_MAX), ..task("work") }).await;
    assert_eq!(h.record(&id).await.due_at, Some(START + DELAY_MAX));
    let odd = Timestamp::from_micros(START.as_micros() + 1_234_567);
    let id = h.push(Envelope { due: Due::At(odd), ..task("work") }).await;
    assert_eq!(h.record(&id).await.due_at, Some(odd));
    h.clock.set(odd);
    assert_eq!(h.claim_one().await.ready_at, odd);
}

/// The deepest workflow comes back whole, and runs to its end.
pub async fn the_deepest_workflow_is_kept(h: &Harness) {
    let group = || GroupStep { id: TaskId::random(), policy: FailurePolicy::All, tasks: vec![task("member")] };
    let mut then: Vec<Step> = (0..GROUP_DEPTH_MAX).map(|_| Step::Group(Box::new(group()))).collect();
    then.push(Step::Task(Box::new(task("end"))));
    h.push_and_run(Envelope { flow: Some(Box::new(Flow { then, ..Flow::default() })), ..task("start") }, ok("1")).await;
    for _ in 0..GROUP_DEPTH_MAX {
        h.run_one(ok("1")).await;
    }
    let end = h.claim_one().await;
    assert_eq!((end.envelope.name.as_str(), end.envelope.input.clone()), ("end", Some(json("[1]"))));
}

/// Of many tasks, each is claimed and counted.
pub async fn many_tasks_are_all_there(h: &Harness) {
    for _ in 0..5 {
        h.push_all((0..1000).map(|_| task("work"))).await;
    }
    let mut ended = 0;
    loop {
        let claims = h.claim(demand(700)).await;
        if claims.is_empty() {
            break;
        }
        ended += claims.len();
        h.settle_all(claims.iter().map(|claim| (claim, ok("1")))).await;
    }
    assert_eq!((ended, h.default_counts().await.succeeded), (5000, 5000));
    assert_eq!(h.default_counts().await.of(State::Ready), 0);
}
