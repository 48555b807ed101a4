//! Batches: many tasks, one request to a service that takes many at once. Each task keeps its own result, its own retries
//! and its own dead letter.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use windlass::prelude::*;

/// Adds a document to the search index; the output is its version there.
#[derive(Task, Serialize, Deserialize)]
#[task(retries = 3, backoff = "10ms", jitter = 0.0, output = u32)]
struct IndexDocument {
    text: String,
}

/// A search service with a bulk interface: one request, one answer for each document.
#[derive(Default)]
struct Search {
    requests: AtomicU32,
}

impl Search {
    fn bulk(&self, documents: &[&str]) -> Result<Vec<Result<u32, &'static str>>, std::io::Error> {
        let request = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        println!("request {request}: documents {}", documents.len());
        if request == 1 {
            return Err(std::io::Error::other("the service restarts"));
        }
        let index = |document: &&str| match (*document, request) {
            ("", _) => Err("empty"),
            ("a busy shard", 2) => Err("busy"),
            _ => Ok(request),
        };
        Ok(documents.iter().map(index).collect())
    }
}

async fn index_documents(batch: Vec<Item<IndexDocument>>, cx: BatchCx<Arc<Search>>) -> Result<(), TaskError> {
    let documents: Vec<&str> = batch.iter().map(|item| item.task.text.as_str()).collect();
    // When the whole request fails, `?` fails every task of the batch, and each is retried by its own policy.
    let answers = cx.state().bulk(&documents)?;
    for (item, answer) in batch.into_iter().zip(answers) {
        match answer {
            Ok(version) => item.done(version),
            // No retry will help this one; the others are not held up by it.
            Err("empty") => item.fail(TaskError::fatal("nothing to index").class("empty")),
            Err(error) => item.fail(TaskError::failed(error).class("search")),
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let store = windlass::connect("memory:").await?;
    let client = Client::new(store.clone());
    let texts = ["sails", "a busy shard", "", "ropes", "anchors"];
    let handles = client.enqueue_all(texts.map(|text| IndexDocument { text: text.to_owned() })).await?;

    // Up to five at a time. A batch that does not become full begins 100 ms after its first task. Each task that waits holds
    // a slot, so the worker needs at least as many slots as a batch takes.
    let size = Batch::up_to(5).within(Duration::from_millis(100));
    let search = Arc::new(Search::default());
    let registry = App::new("library").with_state(search).batch_task(size, index_documents).build().await?;
    let mut settings = Settings::new(NodeId::known("worker-1"));
    settings.slots = 10;
    let shutdown = Shutdown::new();
    let worker = tokio::spawn(Worker::new(store, registry, settings).start(shutdown.clone()));

    let mut records = Vec::new();
    for handle in handles {
        records.push(handle.ended(Duration::from_secs(5)).await?);
    }
    for (text, record) in texts.iter().zip(records) {
        let result = match (record.result, record.failure) {
            (Some(version), _) => format!("version {}", version.as_str()),
            (None, Some(failure)) => failure.to_string(),
            (None, None) => "no result".to_owned(),
        };
        println!("`{text}`: {} at attempt {}, {result}", record.state, record.attempt);
    }
    shutdown.begin(ShutdownStep::Graceful);
    worker.await??;
    Ok(())
}
