//! A first task: a producer enqueues it, a worker runs it, the producer waits for the result.
//!
//! ```sh
//! cargo run -p windlass --example hello
//! ```

use std::time::Duration;

use windlass::prelude::*;

/// Greets somebody. The fields are the task's arguments; the handler returns its output.
#[derive(Task, Serialize, Deserialize)]
#[task(output = String)]
struct Hello {
    name: String,
}

async fn hello(task: Hello, cx: Cx) -> Result<String, TaskError> {
    println!("worker:   attempt {} of `{}`", cx.attempt, cx.envelope.name);
    Ok(format!("Hello, {}!", task.name))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    // The store is one file, and there is no server. A real service names a file that stays.
    let folder = tempfile::tempdir()?;
    let store = windlass::connect(&format!("sqlite:{}", folder.path().join("tasks.db").display())).await?;

    // The producer. When `enqueue` has returned, the task is on disk, whether or not a worker is there.
    let client = Client::new(store.clone());
    let handle = client.enqueue(Hello { name: "Ada".to_owned() }).await?;
    println!("producer: enqueued");

    // The worker. It may as well be another process, on the same file.
    let registry = App::new("greeter").task(hello).build().await?;
    let shutdown = Shutdown::new();
    let worker = Worker::new(store, registry, Settings::new(NodeId::known("worker-1")));
    let worker = tokio::spawn(worker.start(shutdown.clone()));
    println!("producer: {}", handle.output(Duration::from_secs(5)).await?);

    // Stop: finish what runs, settle it, leave.
    shutdown.begin(ShutdownStep::Graceful);
    let ended = worker.await??;
    println!("worker:   stopped, {} tasks left behind", ended.left_behind);
    Ok(())
}
