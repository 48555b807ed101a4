//! A worker inside a service that has its own runtime: one process answers requests, enqueues and runs tasks. It tells
//! its load balancer whether it is well, and it stops without losing what runs.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use windlass::prelude::*;
use windlass::view::Health;
use windlass::{Backend, StoreError};

/// Renders a document.
#[derive(Task, Serialize, Deserialize)]
#[task(queue = "documents", output = String, soft_limit = "30s", hard_limit = "1m")]
struct Render {
    title: String,
}

async fn render(task: Render, cx: Cx<Arc<Notify>>) -> Result<String, TaskError> {
    cx.state().notify_one();
    tokio::time::sleep(Duration::from_millis(300)).await;
    Ok(format!("{}.pdf", task.title))
}

/// What the service shares between its requests. Handlers of any web framework would use it in the same way.
struct Service {
    client: Client,
    node: NodeId,
}

impl Service {
    /// `POST /documents`: when this returns, the task is stored, whatever happens to this process.
    async fn post_document(&self, title: &str) -> Result<windlass::client::Handle<Render>, windlass::PushError> {
        self.client.enqueue(Render { title: title.to_owned() }).await
    }

    /// `GET /health`: the store answers, nothing is wrong with it, and our worker has been seen lately.
    async fn get_health(&self) -> Result<u16, StoreError> {
        let store: &Arc<dyn Backend> = self.client.backend();
        let well = store.info().await?.checks.iter().all(|check| check.health != Health::Bad);
        let alive = store.nodes().await?.iter().any(|node| node.info.id == self.node && node.alive);
        Ok(if well && alive { 200 } else { 503 })
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = windlass::connect("memory:").await?; // a service that stays names a file: "sqlite:/var/lib/shop/tasks.db"
    let service = Service { client: Client::new(store.clone()), node: NodeId::known("shop-1") };
    println!("GET /health: {} before the worker starts", service.get_health().await?);

    // The event loop gets a thread of its own; handlers run on the runtime of the service.
    let started = Arc::new(Notify::new());
    let registry = App::new("shop").with_state(started.clone()).task(render).build().await?;
    let mut settings = Settings::new(service.node.clone());
    settings.queues = vec![("documents".parse()?, 1)];
    settings.slots = 4;
    settings.grace = Duration::from_secs(20); // shorter than the orchestrator waits before it kills
    let shutdown = Shutdown::new();
    let worker = tokio::spawn(Worker::new(store, registry, settings).start(shutdown.clone()));
    while service.get_health().await? != 200 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("GET /health: 200");

    let handle = service.post_document("invoice-1").await?;
    started.notified().await;

    // The service is told to stop, by a signal for example, while the task runs: it is finished and settled first.
    shutdown.begin(ShutdownStep::Graceful);
    println!("left behind: {}", worker.await??.left_behind);
    println!("rendered:    {}", handle.output(Duration::ZERO).await?);
    println!("GET /health: {} after the worker has left", service.get_health().await?);
    Ok(())
}
