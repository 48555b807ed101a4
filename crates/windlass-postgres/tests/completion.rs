//! Tasks that are completed within the application's own transaction: both have happened, or neither.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Schema, client, store};
use serde::{Deserialize, Serialize};
use windlass_core::view::{Filter, Page, Record};
use windlass_core::worker::{Settings, Shutdown, ShutdownStep, Worker};
use windlass_core::{App, Backend, Client, Cx, NodeId, Task, TaskError, TaskName};
use windlass_postgres::{CompleteInError, PostgresStore, complete_in};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the handler does in its first attempt; later ones commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum First {
    Commits,
    RollsBack,
    CompletesTwice,
}

/// Adds to a balance.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "credit", retries = 3, backoff = "10ms", output = i64)]
struct Credit {
    amount: i64,
    first: First,
}

/// Follows a credit.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "receipt", output = i64, input = "balance")]
struct Receipt {
    #[serde(default)]
    balance: i64,
}

struct Bank {
    schema: String,
}

async fn credit(task: Credit, cx: Cx<Bank>) -> Result<i64, TaskError> {
    let schema = &cx.state().schema;
    let mut client = client().await;
    let transaction = client.transaction().await?;
    let sql = format!("UPDATE {schema}.account SET balance = balance + $1 RETURNING balance");
    let balance: i64 = transaction.query_one(&sql, &[&task.amount]).await?.get(0);
    complete_in(&transaction, schema, &cx, &balance).await?;
    let first = if cx.attempt == 1 { task.first } else { First::Commits };
    match first {
        First::Commits => transaction.commit().await?,
        First::RollsBack => transaction.rollback().await?,
        First::CompletesTwice => {
            let again = complete_in(&transaction, schema, &cx, &balance).await;
            assert!(matches!(again, Err(CompleteInError::Stale)), "{again:?}");
            transaction.rollback().await?;
        }
    }
    Ok(balance)
}

async fn receipt(task: Receipt, _cx: Cx<Bank>) -> Result<i64, TaskError> {
    Ok(task.balance)
}

/// A worker of these tasks and a client of their store.
struct Running {
    client: Client,
    backend: Arc<dyn Backend>,
    shutdown: Shutdown,
    schema: Schema,
}

impl Running {
    async fn start() -> Self {
        let schema = Schema::new();
        let store: Arc<PostgresStore> = Arc::new(store(&schema).await);
        let sql = format!(
            "CREATE TABLE {0}.account (balance bigint NOT NULL); INSERT INTO {0}.account VALUES (0)",
            schema.name()
        );
        client().await.batch_execute(&sql).await.expect("an account");
        let name = schema.name().to_owned();
        let app = App::new("bank")
            .state(async move || Ok::<_, std::convert::Infallible>(Bank { schema: name }))
            .task(credit)
            .task(receipt);
        let registry = app.build().await.expect("a registry");
        let backend: Arc<dyn Backend> = store;
        let client = Client::with(
            Arc::clone(&backend),
            Arc::new(windlass_core::SystemClock),
            Arc::clone(registry.middleware()),
            PATIENCE,
        );
        let shutdown = Shutdown::new();
        let worker = Worker::new(Arc::clone(&backend), registry, Settings::new(NodeId::known("bank-1")));
        tokio::spawn(worker.run(shutdown.clone()));
        Self { client, backend, shutdown, schema }
    }

    async fn run(&self, first: First) -> Record {
        let handle = self.client.enqueue(Credit { amount: 100, first }).await.expect("enqueued");
        handle.ended(PATIENCE).await.expect("it ends")
    }

    async fn balance(&self) -> i64 {
        let sql = format!("SELECT balance FROM {}.account", self.schema.name());
        client().await.query_one(&sql, &[]).await.expect("the account").get(0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.shutdown.begin(ShutdownStep::Immediate);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committed_completion_ends_the_task() {
    let running = Running::start().await;
    let record = running.run(First::Commits).await;
    assert_eq!((record.attempt, record.history.len()), (1, 0));
    assert_eq!(record.result.as_ref().map(windlass_core::Json::as_str), Some("100"));
    assert_eq!(running.balance().await, 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_that_is_rolled_back_is_a_failed_attempt() {
    let running = Running::start().await;
    let record = running.run(First::RollsBack).await;
    assert_eq!(record.attempt, 2);
    assert_eq!(record.history[0].failure.class, "not_committed");
    assert_eq!(running.balance().await, 100, "only what was committed counts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_not_completed_twice() {
    let running = Running::start().await;
    let record = running.run(First::CompletesTwice).await;
    assert_eq!((record.attempt, running.balance().await), (2, 100));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_a_completion_starts_with_the_commit() {
    let running = Running::start().await;
    let credit = Credit { amount: 7, first: First::Commits };
    let first = running.client.enqueue(credit).then(Receipt { balance: 0 }).await.expect("enqueued");
    first.ended(PATIENCE).await.expect("it ends");
    let receipts = Filter { names: vec![TaskName::known("receipt")], ..Filter::all() };
    let began = std::time::Instant::now();
    common::until("the receipt", || async {
        let listing = running.backend.list(&receipts, &Page::first(10)).await.expect("a listing");
        listing.tasks.iter().any(|record| record.result.as_ref().is_some_and(|result| result.as_str() == "7"))
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(1), "the commit wakes a worker");
    assert_eq!(running.balance().await, 7);
}
