//! What happens when a task fails: retries by policy, a failure that no retry can help, a delay that the other side
//! names, and a dead letter that is replayed once its cause is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use windlass::State;
use windlass::backend::TaskAction;
use windlass::prelude::*;
use windlass::view::{Filter, Record};

/// Charges a card: three attempts in all, 10 ms and 20 ms apart.
#[derive(Task, Serialize, Deserialize)]
#[task(retries = 2, backoff = "10ms * 2^n", jitter = 0.0)]
struct Charge {
    card: String,
}

/// The state of the application: whether the payment service is up.
type Payments = Arc<AtomicBool>;

async fn charge(task: Charge, cx: Cx<Payments>) -> Result<(), TaskError> {
    match task.card.as_str() {
        // An ordinary failure, as `?` makes it of any error: the policy of the task decides.
        "shaky" if cx.attempt <= 2 => Err(TaskError::failed("connection reset").class("network")),
        // No retry will help: a dead letter at once.
        "expired" => Err(TaskError::fatal("the card has expired").class("declined")),
        // The other side says when to come back, instead of the policy.
        "busy" if cx.attempt == 1 => Err(TaskError::retry_after(Duration::from_millis(30), "busy").class("limit")),
        "offline" if !cx.state().load(Ordering::Relaxed) => Err(TaskError::failed("service is down").class("network")),
        _ => Ok(()),
    }
}

fn print(card: &str, record: &Record) {
    let reason = record.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    println!("{card}: {}{reason}, attempt {}", record.state, record.attempt);
    for attempt in &record.history {
        println!("  attempt {} failed: {}", attempt.number, attempt.failure);
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let limit = Duration::from_secs(5);
    let (store, payments) = (windlass::connect("memory:").await?, Payments::default());
    let registry = App::new("shop").with_state(payments.clone()).task(charge).build().await?;
    let shutdown = Shutdown::new();
    let worker = Worker::new(store.clone(), registry, Settings::new(NodeId::known("worker-1")));
    let worker = tokio::spawn(worker.start(shutdown.clone()));

    let client = Client::new(store.clone());
    for card in ["shaky", "expired", "busy", "offline"] {
        let handle = client.enqueue(Charge { card: card.to_owned() }).await?;
        print(card, &handle.ended(limit).await?);
    }

    // A dead letter keeps its arguments, its attempts and its reason. Once the service is up, every task that gave up
    // after its last attempt is replayed; on the command line: `windlass dlq retry -q reason:attempts_used_up`.
    payments.store(true, Ordering::Relaxed);
    let dead = Filter { reason: Some(windlass::DeadReason::AttemptsUsedUp), ..Filter::in_states([State::Dead]) };
    let offline = store.list(&dead, &windlass::view::Page::first(10)).await?.tasks.remove(0).envelope.id;
    println!("replayed: {}", client.command_all(&dead, TaskAction::Retry).await?);
    print("offline", &client.handle::<Charge>(offline).ended(limit).await?);

    shutdown.begin(ShutdownStep::Graceful);
    worker.await??;
    Ok(())
}
