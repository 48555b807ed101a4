//! One task in durable steps: what is done stays done when the attempt fails, a wait for a signal holds no slot, and the
//! confirmation is sent once however often the task is enqueued.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use windlass::prelude::*;
use windlass::{Json, SignalName};

/// Fulfils an order: charge, wait until it is packed, ship, confirm.
#[derive(Task, Serialize, Deserialize)]
#[task(retries = 3, backoff = "20ms", jitter = 0.0, output = String)]
struct Fulfil {
    order: u64,
}

/// The services around it, and how often they were called.
#[derive(Default)]
struct Services {
    attempts: AtomicU32,
    charges: AtomicU32,
    shipments: AtomicU32,
    mails: AtomicU32,
}

async fn fulfil(task: Fulfil, cx: Cx<Arc<Services>>) -> Result<String, TaskError> {
    let services = cx.state();
    let run = services.attempts.fetch_add(1, Ordering::Relaxed) + 1;

    // The result is stored before this returns. A later attempt gets it without charging again.
    let payment: String = cx
        .step("charge", || async {
            services.charges.fetch_add(1, Ordering::Relaxed);
            Ok(format!("payment-{}", task.order))
        })
        .await?;
    if run == 1 {
        return Err(TaskError::failed("the worker lost its network").class("network"));
    }

    // The slot is free while it waits, for a day if need be. On the command line: `windlass task signal`.
    let packed = SignalName::known("packed");
    let Some(parcel) = cx.wait_for::<String>(&packed, Duration::from_secs(86_400)).await? else {
        return Err(TaskError::fatal("nobody packed it within a day"));
    };
    cx.step("ship", || async {
        services.shipments.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })
    .await?;
    // A parcel takes its time.
    cx.sleep("on its way", Duration::from_millis(50)).await?;

    // A receipt is for the whole store, not for this task only.
    cx.once(&format!("confirmation {}", task.order), Duration::from_secs(86_400), || async {
        services.mails.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })
    .await?;
    Ok(format!("{payment}, {parcel}"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (store, services) = (windlass::connect("memory:").await?, Arc::new(Services::default()));
    let registry = App::new("shop").with_state(services.clone()).task(fulfil).build().await?;
    let shutdown = Shutdown::new();
    let worker = Worker::new(store.clone(), registry, Settings::new(NodeId::known("worker-1")));
    let worker = tokio::spawn(worker.start(shutdown.clone()));
    let client = Client::new(store);

    // Twice by mistake, both with the same order.
    for parcel in ["parcel-1", "parcel-2"] {
        let handle = client.enqueue(Fulfil { order: 1017 }).await?;
        // A signal may come before the task waits for it.
        client.signal(&handle.id, SignalName::known("packed"), Json::of(&parcel)?).await?;
        let record = handle.ended(Duration::from_secs(5)).await?;
        let result = record.result.as_ref().map_or("nothing", |result| result.as_str());
        println!(
            "{}: {result}, at attempt {}",
            if record.state == State::Succeeded { "done" } else { "not done" },
            record.attempt
        );
    }
    let count = |counter: &AtomicU32| counter.load(Ordering::Relaxed);
    println!("charged {} times, shipped {} times", count(&services.charges), count(&services.shipments));
    println!("confirmed {} time", count(&services.mails));

    shutdown.begin(ShutdownStep::Graceful);
    worker.await??;
    Ok(())
}
