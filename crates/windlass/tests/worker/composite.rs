//! A task whose handler runs the handlers of others within its own attempt.

use std::sync::Arc;
use std::time::Duration;

use windlass::composite::Handlers;
use windlass::prelude::*;
use windlass::retry::Outcome;
use windlass::{Args, DeadReason, Json, State, TaskName};

use crate::rig::{MINUTE, Rig, Running, What, act, app};

/// Runs `act` for each of these, and answers the outcome of each until one is not done.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "each", retries = 0, soft_limit = "10m", hard_limit = "20m", output = Vec<u64>)]
struct Each {
    name: String,
    whats: Vec<What>,
}

fn each(whats: impl Into<Vec<What>>) -> Each {
    Each { name: "act".to_owned(), whats: whats.into() }
}

async fn run_each(task: Each, mut handlers: Handlers) -> Outcome {
    let name = TaskName::new(&task.name).unwrap();
    let mut results = Vec::new();
    for what in task.whats {
        match handlers.run(&name, Args::of(&act(what)).unwrap()).await {
            Outcome::Done(result) => results.push(result),
            other => return other,
        }
    }
    Outcome::Done(Json::of(&results).unwrap())
}

async fn worker(rig: &Rig, app: App<impl Send + Sync + 'static>) -> Running {
    let registry = app.build().await.unwrap().with_composite(run_each);
    rig.worker_with(rig.backend.clone(), "w1", registry, |_| {})
}

/// What every part of an attempt saw.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(name = "look", output = (String, String))]
struct Look {
    what: What,
    before: u64,
}

#[tokio::test(start_paused = true)]
async fn its_result_is_made_of_theirs_and_nothing_else_is_stored() {
    let rig = Rig::new().await;
    let _worker = worker(&rig, app()).await;
    let handle = rig.client.enqueue(each([1, 2, 3].map(What::Return))).await.unwrap();
    assert_eq!(handle.output(MINUTE).await.unwrap(), [1, 2, 3]);
    let stored = rig.backend.list(&windlass::view::Filter::all(), &windlass::view::Page::first(9)).await.unwrap();
    assert_eq!(stored.tasks.len(), 1);
    assert_eq!(rig.record(&handle.id).await.attempt, 1);
}

#[tokio::test(start_paused = true)]
async fn what_becomes_of_a_part_can_be_what_becomes_of_the_whole() {
    let rig = Rig::new().await;
    let _worker = worker(&rig, app()).await;
    for (what, says) in [(What::Fail, "scripted: scripted"), (What::Panic, "panic: scripted")] {
        let handle = rig.client.enqueue(each([What::Return(1), what, What::Hang])).await.unwrap();
        let record = rig.until(&handle.id, State::Dead).await;
        assert_eq!(record.failure.unwrap().to_string(), says);
    }
    let unknown = Each { name: "nobody".to_owned(), ..each([What::Hang]) };
    let handle = rig.client.enqueue(unknown).await.unwrap();
    rig.until(&handle.id, State::Parked).await;
}

#[tokio::test(start_paused = true)]
async fn a_part_with_wrong_arguments_makes_malformed_what_its_handler_never_saw() {
    /// Sends what `act` does not take.
    #[derive(Debug, Task, Serialize, Deserialize)]
    #[task(name = "wrong", output = u64)]
    struct Wrong {}
    let wrong = async |_: Wrong, mut handlers: Handlers| {
        handlers.run(&TaskName::known("act"), Args::parse(r#"{"where": 1}"#).unwrap()).await
    };
    let rig = Rig::new().await;
    let registry = app().build().await.unwrap().with_composite(wrong);
    let _worker = rig.worker_with(rig.backend.clone(), "w1", registry, |_| {});
    let handle = rig.client.enqueue(Wrong {}).await.unwrap();
    let record = rig.until(&handle.id, State::Dead).await;
    assert_eq!(record.reason, Some(DeadReason::Malformed));
    assert!(record.failure.unwrap().message.contains("unknown argument `where`"));
}

#[tokio::test(start_paused = true)]
async fn a_cancel_and_the_soft_limit_reach_the_part_that_runs() {
    let rig = Rig::new().await;
    let _worker = worker(&rig, app()).await;
    let handle = rig.client.enqueue(each([What::HangUntilAsked])).limits(None, MINUTE * 60).await.unwrap();
    rig.until(&handle.id, State::Running).await;
    handle.cancel().await.unwrap();
    rig.until(&handle.id, State::Cancelled).await;
    let soft = Some(Duration::from_secs(10));
    let handle = rig.client.enqueue(each([What::HangUntilAsked])).limits(soft, MINUTE * 60).await.unwrap();
    let record = rig.until(&handle.id, State::Dead).await;
    assert!(record.failure.unwrap().message.contains("the soft limit has passed"));
}

// In real time: simulated time stands still while somebody has something to do.
#[tokio::test]
async fn parts_that_return_at_once_do_not_keep_the_hard_limit_from_its_turn() {
    /// Runs parts without an end.
    #[derive(Debug, Task, Serialize, Deserialize)]
    #[task(name = "endless", retries = 0, hard_limit = "50ms", output = u64)]
    struct Endless {}
    let endless = async |_: Endless, mut handlers: Handlers| {
        loop {
            handlers.run(&TaskName::known("act"), Args::of(&act(What::Return(1))).unwrap()).await;
        }
    };
    let rig = Rig::new().await;
    let registry = app().build().await.unwrap().with_composite(endless);
    let _worker = rig.worker_with(rig.backend.clone(), "w1", registry, |_| {});
    let handle = rig.client.enqueue(Endless {}).await.unwrap();
    let record = rig.until(&handle.id, State::Dead).await;
    assert_eq!(record.failure.unwrap().class, "timeout");
}

#[tokio::test(start_paused = true)]
async fn the_hard_limit_of_a_part_holds_for_it() {
    let rig = Rig::new().await;
    let _worker = worker(&rig, app()).await;
    let handle = rig.client.enqueue(each([What::Work(MINUTE / 2), What::Work(MINUTE / 2), What::Hang])).await.unwrap();
    let record = rig.until(&handle.id, State::Dead).await;
    assert_eq!(record.failure.unwrap().class, "timeout");
    let ran = record.finished_at.unwrap().since(record.started_at.unwrap());
    assert!(ran >= 2 * MINUTE && ran < 3 * MINUTE, "two halves of a minute, then a whole one: {ran:?}");
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_stops_gives_the_whole_back() {
    let rig = Rig::new().await;
    let first = worker(&rig, app()).await;
    let handle =
        rig.client.enqueue(each([What::Return(1), What::HangUntilAsked])).limits(None, MINUTE * 60).await.unwrap();
    rig.until(&handle.id, State::Running).await;
    first.stop().await;
    assert_eq!(rig.record(&handle.id).await.state, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn parts_have_middleware_ids_and_steps_of_their_own() {
    /// Remembers its id in a step, and is run again once.
    async fn look(task: Look, cx: Cx) -> Result<(String, String), TaskError> {
        let before = cx.step("id", async || Ok(format!("{} {}", cx.id(), cx.attempt))).await?;
        if task.what == What::Snooze && cx.now().since(cx.enqueued_at) < MINUTE {
            return Err(TaskError::Snooze { after: MINUTE });
        }
        Ok((before, cx.id().to_string()))
    }
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let names = Names(Arc::clone(&seen));
    let rig = Rig::new().await;
    let _worker = worker(&rig, App::new("test").task(look).middleware(names)).await;
    let task = Each { name: "look".to_owned(), whats: vec![What::Return(1), What::Snooze] };
    let handle = rig.client.enqueue(task).id("whole".parse().unwrap()).await.unwrap();
    let result: Json = rig.until(&handle.id, State::Succeeded).await.result.unwrap();
    let expected = r#"[["whole.0 1","whole.0"],["whole.1 1","whole.1"]]"#;
    assert_eq!(result.as_str(), expected, "the second run of the whole finds the steps of the first, each its own");
    assert_eq!(seen.lock().unwrap()[..3], ["each", "look", "look"]);
}

/// The names of what runs.
struct Names(Arc<std::sync::Mutex<Vec<String>>>);

#[async_trait::async_trait]
impl windlass::middleware::Middleware for Names {
    async fn run(&self, call: &windlass::call::Call, next: windlass::middleware::Next<'_>) -> Outcome {
        self.0.lock().unwrap().push(call.envelope.name.to_string());
        next.run().await
    }
}
