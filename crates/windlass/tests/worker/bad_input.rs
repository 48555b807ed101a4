//! Whatever arrives or happens in a handler: a clear reason, nothing lost, the worker goes on.

use std::sync::LazyLock;

use windlass::prelude::*;
use windlass::retry::RetryPolicy;
use windlass::task::{Definition, Fields, Options};
use windlass::{Args, DeadReason, Envelope, Json, QueueName, State, TaskId, TaskName};

use crate::rig::{Rig, What, act, app};

/// Enqueues arguments as a producer in another language would: without our types.
async fn enqueue_raw(rig: &Rig, name: &str, args: &str) -> TaskId {
    let envelope = Envelope::new(TaskName::known(name), QueueName::default(), Args::parse(args).unwrap());
    let id = envelope.id.clone();
    rig.client.push(vec![envelope]).await.unwrap();
    id
}

/// The worker still works.
async fn goes_on(rig: &Rig) {
    let handle = rig.client.enqueue(act(What::Return(7))).await.unwrap();
    assert_eq!(handle.output(crate::rig::MINUTE).await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn arguments_that_do_not_fit_make_a_dead_letter_that_says_why() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    for (args, reason) in [
        (r#"{"what":7}"#, "argument `what`: expected value"),
        (r#"{"what":{"Return":"x"}}"#, "argument `what.Return`: invalid type: string \"x\", expected u64"),
        ("{}", "missing field `what`"),
        (r#"{"what":"Panic","waht":1}"#, "unknown argument `waht` (did you mean `what`?)"),
        (r#"["Panic",1,2]"#, "3 positional arguments were given, the task takes 2"),
        (r#"{"what":"Explode"}"#, "unknown variant `Explode`"),
    ] {
        let id = enqueue_raw(&rig, "act", args).await;
        let record = rig.until(&id, State::Dead).await;
        assert_eq!(record.reason, Some(DeadReason::Malformed), "{args}");
        let failure = record.failure.unwrap();
        assert!(failure.message.contains(reason), "{args}: {failure}");
        assert_eq!(record.attempt, 1, "no retry makes arguments fit");
    }
    goes_on(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_of_an_unknown_name_waits_for_a_node_that_knows_it() {
    #[derive(Task, Serialize, Deserialize)]
    #[task(name = "later")]
    struct Later {}
    async fn later(_task: Later, _cx: Cx) -> Result<(), TaskError> {
        Ok(())
    }

    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let id = enqueue_raw(&rig, "later", "{}").await;
    rig.until(&id, State::Parked).await;
    goes_on(&rig).await;
    let _newer = rig.worker_of("w2", app().task(later), |_| {}).await;
    let record = rig.until(&id, State::Succeeded).await;
    assert_eq!(record.attempt, 1, "the attempt that nobody could make does not count");
}

#[tokio::test(start_paused = true)]
async fn a_fallback_runs_what_has_no_handler_of_its_own_with_any_arguments() {
    static DEFINITION: LazyLock<Definition> = LazyLock::new(|| Definition {
        name: TaskName::known("anything"),
        doc: String::new(),
        fields: Fields::Any,
        options: Options { retry: RetryPolicy { attempts_max: 2, ..RetryPolicy::default() }, ..Options::default() },
        output: serde_json::Value::Null,
    });
    async fn anything(cx: Cx) -> Result<String, TaskError> {
        if cx.attempt == 1 {
            return Err(TaskError::failed("once more"));
        }
        Ok(format!("{} {:?}", cx.envelope.name, cx.envelope.args.positional().map(Json::as_str)))
    }

    let rig = Rig::new().await;
    let _worker = rig.worker_of("w1", app().fallback(&DEFINITION, anything), |_| {}).await;
    goes_on(&rig).await;
    let id = enqueue_raw(&rig, "elsewhere.add", "[1,2]").await;
    let record = rig.until(&id, State::Succeeded).await;
    assert_eq!(record.attempt, 2, "the options are those of the definition");
    assert_eq!(record.result.unwrap().as_str(), r#""elsewhere.add Some(\"[1,2]\")""#);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_nobody_ever_knows_becomes_a_dead_letter() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let id = enqueue_raw(&rig, "nobody", "{}").await;
    rig.until(&id, State::Parked).await;
    let record = rig.until(&id, State::Dead).await;
    assert_eq!(record.reason, Some(DeadReason::Unknown));
    assert!(record.failure.unwrap().message.contains("register it and retry"));
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_failed_attempt_with_the_text_of_the_panic() {
    std::panic::set_hook(Box::new(|_| {}));
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let handle = rig.client.enqueue(act(What::Panic)).await.unwrap();
    let record = rig.until(&handle.id, State::Dead).await;
    assert_eq!(record.reason, Some(DeadReason::AttemptsUsedUp));
    assert_eq!((record.attempt, record.history.len()), (4, 4), "one run and three retries");
    let failure = record.failure.unwrap();
    assert_eq!((failure.class.as_str(), failure.message.as_str()), ("panic", "scripted"));
    goes_on(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_returns_ends_at_its_hard_limit() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let handle = rig.client.enqueue(act(What::Hang)).retries(0).await.unwrap();
    let record = rig.until(&handle.id, State::Dead).await;
    assert_eq!(record.failure.unwrap().class, "timeout");
    let ran = record.finished_at.unwrap().since(record.started_at.unwrap());
    assert!(ran >= crate::rig::MINUTE && ran < crate::rig::MINUTE * 2, "{ran:?}");
    goes_on(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_is_retried_by_the_policy_and_then_kept_with_every_attempt() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let handle = rig.client.enqueue(act(What::Fail)).await.unwrap();
    let record = rig.until(&handle.id, State::Dead).await;
    let waits: Vec<u64> =
        record.history.windows(2).map(|pair| pair[1].started_at.unwrap().since(pair[0].ended_at).as_secs()).collect();
    assert_eq!(waits, [10, 10, 10]);
    assert!(record.history.iter().all(|attempt| attempt.failure.class == "scripted"));
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_that_is_retried_has_all_its_attempts_again() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let handle = rig.client.enqueue(act(What::Fail)).retries(0).await.unwrap();
    rig.until(&handle.id, State::Dead).await;
    let filter = windlass::view::Filter::in_states([State::Dead]);
    let retried = rig.client.command_all(&filter, windlass::backend::TaskAction::Retry).await.unwrap();
    assert_eq!(retried, 1);
    let record = rig.until_record(&handle.id, |record| record.history.len() == 2).await;
    assert_eq!(record.state, State::Dead);
}

#[tokio::test(start_paused = true)]
async fn snoozing_and_skipping_are_not_failures() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let snoozed = rig.client.enqueue(act(What::Snooze)).await.unwrap();
    assert_eq!(snoozed.output(crate::rig::MINUTE * 5).await.unwrap(), 1, "a snooze spends no attempt");
    let skipped = rig.client.enqueue(act(What::Skip)).await.unwrap();
    let record = rig.until(&skipped.id, State::Succeeded).await;
    assert_eq!(record.skipped.as_deref(), Some("nothing to do"));
    assert!(matches!(skipped.output(crate::rig::MINUTE).await, Err(windlass::WaitError::NoResult(Some(_)))));
}

#[tokio::test(start_paused = true)]
async fn a_result_over_the_limit_is_a_dead_letter_and_not_a_stuck_worker() {
    #[derive(Task, Serialize, Deserialize)]
    #[task(name = "huge", output = String)]
    struct Huge {
        size: usize,
    }
    async fn huge(task: Huge, _cx: Cx) -> Result<String, TaskError> {
        Ok("x".repeat(task.size))
    }
    let rig = Rig::new().await;
    let _worker = rig.worker_of("w1", app().task(huge), |_| {}).await;
    let max = windlass::envelope::RESULT_BYTES_MAX;
    let fits = rig.client.enqueue(Huge { size: max - 2 }).await.unwrap();
    assert_eq!(fits.output(crate::rig::MINUTE).await.unwrap().len(), max - 2);
    let over = rig.client.enqueue(Huge { size: max - 1 }).await.unwrap();
    let record = rig.until(&over.id, State::Dead).await;
    assert!(record.failure.unwrap().message.contains("return a reference"));
    goes_on(&rig).await;
}

#[tokio::test(start_paused = true)]
async fn ten_megabytes_of_arguments_are_refused_before_anything_is_stored() {
    let rig = Rig::new().await;
    let args = Args::parse(&format!(r#"{{"what":"{}"}}"#, "x".repeat(10 << 20))).unwrap();
    let envelope = Envelope::new(TaskName::known("act"), QueueName::default(), args);
    let error = rig.client.push(vec![envelope]).await.unwrap_err().to_string();
    assert!(error.contains("the limit is 4194304") && error.contains("send a reference"), "{error}");
    assert_eq!(rig.backend.counts().await.unwrap().total().live(), 0);
}

#[test]
fn json_that_nests_too_deeply_is_refused_without_using_the_stack() {
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    let error = Json::parse(&deep).unwrap_err().to_string();
    assert!(error.contains("nests more than 127 deep"), "{error}");
    assert!(Args::parse(&deep).is_err());
}
