//! An application under test, as users test theirs.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use windlass_core::schedule::cron;
use windlass_core::state::Verdict;
use windlass_core::{App, Cx, State, Task, TaskError, WaitError};
use windlass_testkit::TestApp;
use windlass_testkit::harness::START;

// The derive writes the crate that users depend on.
extern crate windlass_core as windlass;

#[derive(Task, Serialize, Deserialize)]
#[task(queue = "slow", retries = 1, backoff = "1h", jitter = 0.0, output = u32)]
struct Count {
    good_from: u32,
}

async fn count(task: Count, cx: Cx<u32>) -> Result<u32, TaskError> {
    if cx.attempt >= task.good_from { Ok(cx.attempt + cx.state()) } else { Err(TaskError::failed("not yet")) }
}

fn app() -> App<u32> {
    App::new("counter").with_state(40).task(count).schedule("hourly", cron("0 * * * *"), Count { good_from: 1 })
}

#[tokio::test(start_paused = true)]
async fn a_task_runs_to_its_end_with_its_retries() {
    let app = TestApp::start(app()).await.unwrap();
    assert_eq!(app.now(), START);
    assert_eq!(app.output(Count { good_from: 2 }).await.unwrap(), 42);
    assert_eq!(app.now().since(START).as_secs(), 3600, "the retry was waited for, in simulated time");
    let record = app.run(Count { good_from: 3 }).await;
    assert_eq!((record.state, record.attempt), (State::Dead, 2));
    assert!(matches!(app.output(Count { good_from: 3 }).await, Err(WaitError::Dead(_))));
}

#[tokio::test(start_paused = true)]
async fn one_attempt_has_one_verdict() {
    let app = TestApp::start(app()).await.unwrap();
    assert!(matches!(app.attempt(Count { good_from: 1 }).await, Verdict::Succeeded { .. }));
    assert!(matches!(app.attempt(Count { good_from: 2 }).await, Verdict::Again { .. }));
    assert_eq!(app.now().since(START).as_secs(), 0, "nobody waits for the retry");
}

#[tokio::test(start_paused = true)]
async fn schedules_fire_as_time_passes() {
    let app = TestApp::start_at(app(), START).await.unwrap();
    app.advance(Duration::from_secs(3 * 3600 + 60)).await;
    assert_eq!(app.client().backend().schedules().await.unwrap()[0].fired, 3);
}
