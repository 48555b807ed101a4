//! How to test your own tasks: the real worker over a store in memory, in simulated time. Nothing waits.
//!
//! In a test, write `#[tokio::test(start_paused = true)]`; the rest is the same.

use std::time::Duration;

use windlass::State;
use windlass::prelude::*;
use windlass::state::{DeadReason, Verdict};
use windlass_testkit::TestApp;

/// Reminds somebody of an unpaid invoice.
#[derive(Task, Serialize, Deserialize)]
#[task(retries = 1, backoff = "1h", jitter = 0.0, hard_limit = "1m", output = String)]
struct Remind {
    invoice: u32,
}

/// The system under test.
async fn remind(task: Remind, cx: Cx) -> Result<String, TaskError> {
    match task.invoice {
        0 => Err(TaskError::fatal("no such invoice")),
        1 => std::future::pending().await,
        2 if cx.attempt == 1 => Err(TaskError::failed("mail server is busy")),
        invoice => Ok(format!("reminded of invoice {invoice}")),
    }
}

fn app() -> App {
    App::new("billing").task(remind).schedule("daily", cron("0 9 * * *"), Remind { invoice: 9 })
}

#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let app = TestApp::start(app()).await?;

    // One attempt, and the verdict on it.
    let verdict = app.attempt(Remind { invoice: 0 }).await;
    assert!(matches!(verdict, Verdict::Dead { reason: DeadReason::Fatal, .. }));
    println!("an unknown invoice is never tried again");

    let verdict = app.attempt(Remind { invoice: 2 }).await;
    assert!(matches!(verdict, Verdict::Again { after, .. } if after == Duration::from_secs(3600)));
    println!("a busy mail server is tried again after an hour");

    // Every attempt, to the end: the retry an hour later takes no time.
    let began = app.now();
    let record = app.run(Remind { invoice: 2 }).await;
    assert_eq!((record.state, record.attempt), (State::Succeeded, 2));
    assert_eq!(app.now().since(began).as_secs(), 3600);
    println!("the second attempt succeeds");

    // A handler that hangs is ended by the hard limit of its task.
    let record = app.run(Remind { invoice: 1 }).await;
    assert_eq!(record.failure.map(|failure| failure.class).as_deref(), Some("timeout"));
    println!("a handler that hangs is ended");

    assert_eq!(app.output(Remind { invoice: 7 }).await?, "reminded of invoice 7");

    // Schedules fire as time passes. It began at eight o'clock, the retries took two hours: this is the second morning.
    app.advance(Duration::from_secs(86_400)).await;
    let daily = app.client().backend().schedules().await?.remove(0);
    assert_eq!(daily.fired, 2);
    println!("a day later, the schedule has fired twice");
    Ok(())
}
