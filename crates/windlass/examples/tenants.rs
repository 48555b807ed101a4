//! Tenants that share a queue: each gets its turn whatever the others have enqueued, none has more running than it may, a
//! service that says "later" to one of them holds only that one, and a queue that is full says so to the producer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use windlass::limit::{Gate, Limit, LimitChange, Rule, Subject};
use windlass::prelude::*;
use windlass::{Handle, PushError, Timestamp};

/// Renders a report for a tenant. The tenant is the key of the task, which the producer sets.
#[derive(Task, Serialize, Deserialize)]
#[task(queue = "reports")]
struct RenderReport {
    number: u32,
}

/// What the handlers have seen.
#[derive(Default)]
struct Seen {
    /// The tenants, in the order in which their reports were started.
    starts: Vec<String>,
    running: BTreeMap<String, u32>,
    most_at_once: u32,
    throttled_until: Option<Timestamp>,
}

async fn render_report(task: RenderReport, cx: Cx<Arc<Mutex<Seen>>>) -> Result<(), TaskError> {
    let Some(tenant) = cx.envelope.key.clone() else { return Err(TaskError::fatal("a report belongs to a tenant")) };
    let name = tenant.as_str().to_owned();
    {
        let mut seen = cx.state().lock().await;
        // The storage of one tenant asks for a pause, once.
        if name == "cargill" && seen.throttled_until.is_none() {
            let after = Duration::from_millis(300);
            seen.throttled_until = Some(cx.now() + after);
            // Every worker leaves this tenant's reports where they are until then. No slot waits, no attempt is spent.
            cx.hold(Gate::KeyOfQueue(cx.envelope.queue.clone(), tenant), after).await?;
            return Err(TaskError::Throttled { after });
        }
        seen.starts.push(name.clone());
        let running = seen.running.entry(name.clone()).or_default();
        *running += 1;
        let running = *running;
        seen.most_at_once = seen.most_at_once.max(running);
    }
    tokio::time::sleep(Duration::from_millis(5 + u64::from(task.number % 3))).await;
    if let Some(running) = cx.state().lock().await.running.get_mut(&name) {
        *running -= 1;
    }
    Ok(())
}

async fn request(
    client: &Client,
    tenant: &str,
    count: u32,
) -> Result<Vec<Handle<RenderReport>>, Box<dyn std::error::Error>> {
    let mut handles = Vec::new();
    for number in 0..count {
        handles.push(client.enqueue(RenderReport { number }).key(Key::new(tenant)?).await?);
    }
    Ok(handles)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = windlass::connect("memory:").await?;
    let client = Client::new(store.clone());

    // Each tenant has at most two reports in work, and at most 60 wait. On the command line: `windlass limit set`.
    let of_each = Rule { concurrency: Some(2), ..Rule::default() };
    let of_all = Rule { length: Some(60), ..Rule::default() };
    let reports: QueueName = "reports".parse()?;
    for (subject, rule) in [(Subject::KeysOfQueue(reports.clone()), of_each), (Subject::Queue(reports), of_all)] {
        store.limit(&LimitChange::Set(Limit { subject, rule })).await?;
    }

    // A large tenant was here first. The small ones come later, and do not wait for it.
    let mut handles = request(&client, "acme", 50).await?;
    handles.extend(request(&client, "bolt", 3).await?);
    handles.extend(request(&client, "cargill", 3).await?);

    // Five more of the large one: the queue takes four, and says so to whoever asks for the fifth.
    handles.extend(request(&client, "acme", 4).await?);
    match client.enqueue(RenderReport { number: 0 }).key(Key::new("acme")?).await {
        Err(PushError::Full { queue, limit }) => println!("`{queue}` is full: {limit} wait"),
        other => println!("not refused: {other:?}"),
    }

    let seen = Arc::new(Mutex::new(Seen::default()));
    let registry = App::new("reports").with_state(seen.clone()).task(render_report).build().await?;
    let mut settings = Settings::new(NodeId::known("worker-1"));
    settings.queues = vec![("reports".parse()?, 1)];
    settings.slots = 8;
    let shutdown = Shutdown::new();
    let worker = tokio::spawn(Worker::new(store, registry, settings).start(shutdown.clone()));
    for handle in &handles {
        handle.ended(Duration::from_secs(10)).await?;
    }

    let seen = seen.lock().await;
    let last = |tenant: &str| seen.starts.iter().rposition(|name| name == tenant).map_or(0, |index| index + 1);
    println!("started in all: {}", seen.starts.len());
    println!("bolt's reports were among the first 10: {}", last("bolt") <= 10);
    println!("most reports of one tenant at once: {}", seen.most_at_once);
    let cargill = handles[54].record().await?;
    println!(
        "cargill's was held: {}, attempts spent: {}",
        seen.throttled_until.is_some(),
        cargill.map_or(0, |record| record.attempt)
    );

    shutdown.begin(ShutdownStep::Graceful);
    worker.await??;
    Ok(())
}
