//! Durable steps, signals and receipts: what a task has done stays done, whatever becomes of its attempts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use windlass::prelude::*;
use windlass::{Json, SignalName, State, TaskId};

use crate::rig::{MINUTE, Rig};

const KEPT: Duration = Duration::from_secs(86_400);

/// Runs one of the plans below.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "plan", retries = 3, backoff = "10s", jitter = 0.0, output = String)]
struct Plan {
    what: String,
}

/// How often each effect has happened.
#[derive(Default)]
struct Effects {
    first: AtomicU64,
    second: AtomicU64,
}

fn count(of: &AtomicU64) -> u64 {
    of.fetch_add(1, Ordering::Relaxed) + 1
}

async fn plan(task: Plan, cx: Cx<Arc<Effects>>) -> Result<String, TaskError> {
    let effects = cx.state();
    match task.what.as_str() {
        // The second step fails until its third attempt.
        "steps" => {
            let first: u64 = cx.step("first", async || Ok(count(&effects.first))).await?;
            let second: u64 = cx
                .step("second", async || match count(&effects.second) {
                    3 => Ok(3),
                    failed => Err(TaskError::failed(format_args!("attempt {failed}"))),
                })
                .await?;
            Ok(format!("{first} {second}"))
        }
        "sleep" => {
            count(&effects.first);
            let began = cx.enqueued_at;
            cx.sleep("an hour", 60 * MINUTE).await?;
            Ok(format!("{}", cx.now().since(began).as_secs() >= 3600))
        }
        "wait" => {
            count(&effects.first);
            let go = SignalName::known("go");
            let one = cx.wait_for::<u64>(&go, 10 * MINUTE).await?;
            let two = cx.wait_for::<u64>(&go, 10 * MINUTE).await?;
            Ok(format!("{one:?} {two:?}"))
        }
        "large" => {
            let text: String = cx.step("large", async || Ok("x".repeat(2 * 1024 * 1024))).await?;
            Ok(text)
        }
        "once" => {
            let number: u64 = cx.once("invoice 7", KEPT, async || Ok(count(&effects.first))).await?;
            Ok(number.to_string())
        }
        "once, in the end" => {
            let effect = async || match count(&effects.first) {
                2 => Ok(2),
                _ => Err(TaskError::failed("not yet")),
            };
            let number: u64 = cx.once("invoice 8", KEPT, effect).await?;
            Ok(number.to_string())
        }
        "once, slowly" => {
            let slow = async || {
                // tidy: allow(sleep): the work of a handler, in simulated time
                tokio::time::sleep(MINUTE).await;
                Ok(count(&effects.first))
            };
            let number: u64 = cx.once("invoice 9", KEPT, slow).await?;
            Ok(number.to_string())
        }
        "complete and forget" => {
            cx.completion(&"done".to_owned())?;
            Ok("done".to_owned())
        }
        other => Err(TaskError::fatal(format_args!("no plan {other}"))),
    }
}

struct Stage {
    rig: Rig,
    effects: Arc<Effects>,
    _worker: crate::rig::Running,
}

async fn stage() -> Stage {
    let rig = Rig::new().await;
    let effects = Arc::new(Effects::default());
    let app = App::new("test").with_state(Arc::clone(&effects)).task(plan);
    let worker = rig.worker_of("w1", app, |_| {}).await;
    Stage { rig, effects, _worker: worker }
}

impl Stage {
    async fn push(&self, what: &str) -> TaskId {
        self.rig.client.enqueue(Plan { what: what.to_owned() }).await.expect("pushed").id
    }

    /// What the task returns in the end.
    async fn result(&self, id: &TaskId) -> String {
        let record = self.rig.until_record(id, |record| record.state.is_final()).await;
        assert_eq!(record.state, State::Succeeded, "{:?}", record.failure);
        record.result.expect("a result").to().expect("text")
    }
}

#[tokio::test(start_paused = true)]
async fn a_step_that_is_done_is_not_done_again_by_a_later_attempt() {
    let stage = stage().await;
    let id = stage.push("steps").await;
    assert_eq!(stage.result(&id).await, "1 3");
    assert_eq!(stage.effects.first.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_sleeps_holds_no_slot_and_spends_no_attempt() {
    let stage = stage().await;
    let id = stage.push("sleep").await;
    let record = stage.rig.until(&id, State::Scheduled).await;
    assert_eq!((record.attempt, record.node.is_some()), (0, true));
    assert_eq!(stage.result(&id).await, "true");
    assert_eq!(stage.effects.first.load(Ordering::Relaxed), 2, "it ran once before and once after");
}

#[tokio::test(start_paused = true)]
async fn each_wait_takes_one_signal_and_the_last_runs_out_of_time() {
    let stage = stage().await;
    let id = stage.push("wait").await;
    let go = SignalName::known("go");
    stage.rig.until_record(&id, |record| record.waits_for.as_ref() == Some(&go)).await;
    assert!(stage.rig.client.signal(&id, go.clone(), Json::trusted("7")).await.expect("sent"));
    assert_eq!(stage.result(&id).await, "Some(7) None");
    assert!(!stage.rig.client.signal(&id, go, Json::trusted("8")).await.expect("sent"), "it has ended");
}

#[tokio::test(start_paused = true)]
async fn signals_that_come_before_the_waits_count() {
    let stage = stage().await;
    let plan = Plan { what: "wait".to_owned() };
    let id = stage.rig.client.enqueue(plan).delay(MINUTE).await.expect("pushed").id;
    for value in ["1", "2"] {
        assert!(stage.rig.client.signal(&id, SignalName::known("go"), Json::trusted(value)).await.expect("sent"));
    }
    assert_eq!(stage.result(&id).await, "Some(1) Some(2)");
    assert_eq!(stage.effects.first.load(Ordering::Relaxed), 1, "it never had to wait");
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_does_not_fit_makes_a_dead_letter_that_says_why() {
    let stage = stage().await;
    let id = stage.push("wait").await;
    stage.rig.until(&id, State::Scheduled).await;
    stage.rig.client.signal(&id, SignalName::known("go"), Json::trusted("\"text\"")).await.expect("sent");
    let record = stage.rig.until(&id, State::Dead).await;
    assert!(record.failure.expect("a failure").message.contains("`go` does not fit"));
}

#[tokio::test(start_paused = true)]
async fn a_result_that_is_too_large_for_a_memo_makes_a_dead_letter_that_says_why() {
    let stage = stage().await;
    let id = stage.push("large").await;
    let record = stage.rig.until(&id, State::Dead).await;
    assert!(record.failure.expect("a failure").message.contains("store the data elsewhere"));
}

#[tokio::test(start_paused = true)]
async fn what_is_done_once_is_done_once_for_all_tasks() {
    let stage = stage().await;
    for _ in 0..3 {
        let id = stage.push("once").await;
        assert_eq!(stage.result(&id).await, "1");
    }
    assert_eq!(stage.effects.first.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn an_effect_that_failed_leaves_no_receipt() {
    let stage = stage().await;
    let id = stage.push("once, in the end").await;
    assert_eq!(stage.result(&id).await, "2");
}

#[tokio::test(start_paused = true)]
async fn while_one_task_is_at_it_the_others_come_back_without_an_attempt() {
    let stage = stage().await;
    let ids = [stage.push("once, slowly").await, stage.push("once, slowly").await, stage.push("once, slowly").await];
    for id in &ids {
        assert_eq!(stage.result(id).await, "1");
        assert_eq!(stage.rig.record(id).await.attempt, 1);
    }
    assert_eq!(stage.effects.first.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_completion_that_was_never_committed_is_a_failed_attempt() {
    let stage = stage().await;
    let id = stage.push("complete and forget").await;
    let record = stage.rig.until(&id, State::Dead).await;
    assert_eq!(record.failure.expect("a failure").class, "not_committed");
    assert_eq!(record.attempt, 4, "it was tried again");
}
