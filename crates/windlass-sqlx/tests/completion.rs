//! Tasks that are completed within the application's own transaction: both have happened, or neither.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{connection, forget};
use serde::{Deserialize, Serialize};
use sqlx_core::connection::Connection as _;
use sqlx_core::query::query;
use sqlx_core::row::Row as _;
use sqlx_core::sql_str::AssertSqlSafe;
use sqlx_postgres::PgConnection;
use tokio::task::JoinHandle;
use windlass_core::backend::Pushed;
use windlass_core::flow::FailurePolicy;
use windlass_core::limit::{Limit, LimitChange, Rule};
use windlass_core::view::{Filter, Page, Record};
use windlass_core::worker::{Ended, Settings, Shutdown, ShutdownStep, Worker};
use windlass_core::workflow::{chain, group};
use windlass_core::{App, Backend, Client, Cx, Json, NodeId, State, Task, TaskError};
use windlass_sqlx::{CompleteInError, complete_in, push_in};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the handler does in its first attempt; later ones commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum First {
    Commits,
    RollsBack,
    CompletesTwice,
    LosesItsLease,
}

/// Adds to a balance.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "credit", retries = 3, backoff = "10ms", output = i64)]
struct Credit {
    amount: i64,
    first: First,
}

/// Adds up credits.
#[derive(Debug, Clone, Default, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "total", output = i64, input = "balances")]
struct Total {
    #[serde(default)]
    balances: Vec<Option<i64>>,
}

/// Follows a credit.
#[derive(Debug, Clone, Default, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "receipt", output = i64, input = "balance")]
struct Receipt {
    #[serde(default)]
    balance: i64,
}

struct Bank {
    schema: String,
}

fn sql(text: String) -> sqlx_core::query::Query<'static, sqlx_postgres::Postgres, sqlx_postgres::PgArguments> {
    query(AssertSqlSafe(text))
}

async fn balance_in(connection: &mut PgConnection, schema: &str) -> i64 {
    let row = sql(format!("SELECT balance FROM {schema}.account")).fetch_one(connection).await;
    row.expect("the account").get(0)
}

async fn credit(task: Credit, cx: Cx<Bank>) -> Result<i64, TaskError> {
    let schema = &cx.state().schema;
    let first = if cx.attempt == 1 { task.first } else { First::Commits };
    if task.amount == 0 {
        return Err(TaskError::fatal("nothing to credit"));
    }
    let mut connection = connection().await;
    let mut transaction = connection.begin().await?;
    sql(format!("UPDATE {schema}.account SET balance = balance + $1"))
        .bind(task.amount)
        .execute(&mut *transaction)
        .await?;
    if first == First::LosesItsLease {
        // As if the lease had run out and somebody else had claimed the task meanwhile.
        let stolen = sql(format!("UPDATE {schema}.live SET fence = fence + 1 WHERE id = $1")).bind(cx.id().to_string());
        stolen.execute(&mut *transaction).await?;
    }
    let completed = complete_in(&mut transaction, schema, &cx, &task.amount).await;
    match first {
        First::Commits => {
            completed?;
            transaction.commit().await?;
        }
        First::RollsBack => {
            completed?;
            transaction.rollback().await?;
        }
        First::CompletesTwice => {
            completed?;
            let again = complete_in(&mut transaction, schema, &cx, &task.amount).await;
            assert!(matches!(again, Err(CompleteInError::Stale)), "{again:?}");
            transaction.rollback().await?;
        }
        First::LosesItsLease => {
            assert!(matches!(completed, Err(CompleteInError::Stale)), "{completed:?}");
            transaction.rollback().await?;
        }
    }
    Ok(task.amount)
}

async fn receipt(task: Receipt, _cx: Cx<Bank>) -> Result<i64, TaskError> {
    Ok(task.balance)
}

async fn total(task: Total, _cx: Cx<Bank>) -> Result<i64, TaskError> {
    Ok(task.balances.into_iter().flatten().sum())
}

/// A worker of these tasks and a client of their store.
struct Running {
    client: Client,
    backend: Arc<dyn Backend>,
    shutdown: Shutdown,
    working: JoinHandle<Ended>,
    schema: String,
}

impl Running {
    async fn start() -> Self {
        let (store, schema) = common::store().await;
        let backend: Arc<dyn Backend> = Arc::new(store);
        let mut connection = connection().await;
        sql(format!("CREATE TABLE {schema}.account AS SELECT 0::bigint AS balance"))
            .execute(&mut connection)
            .await
            .expect("an account");
        let name = schema.clone();
        let app = App::new("bank")
            .state(async move || Ok::<_, std::convert::Infallible>(Bank { schema: name }))
            .task(credit)
            .task(receipt)
            .task(total);
        let registry = app.build().await.expect("a registry");
        let client = Client::new(Arc::clone(&backend));
        let shutdown = Shutdown::new();
        let worker = Worker::new(Arc::clone(&backend), registry, Settings::new(NodeId::known("bank-1")));
        let working = tokio::spawn(worker.run(shutdown.clone()));
        Self { client, backend, shutdown, working, schema }
    }

    async fn run(&self, first: First) -> Record {
        let handle = self.client.enqueue(Credit { amount: 100, first }).await.expect("enqueued");
        handle.ended(PATIENCE).await.expect("it ends")
    }

    async fn balance(&self) -> i64 {
        balance_in(&mut connection().await, &self.schema).await
    }

    /// Nothing waits or runs any more, and the counts say so.
    async fn end(self) {
        assert_eq!(self.backend.counts().await.expect("counts").total().live(), 0);
        self.shutdown.begin(ShutdownStep::Immediate);
        self.working.await.expect("the worker ends in order");
        forget(&self.schema).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committed_completion_ends_the_task() {
    let running = Running::start().await;
    let record = running.run(First::Commits).await;
    assert_eq!((record.state, record.attempt, record.history.len()), (State::Succeeded, 1, 0));
    assert_eq!(record.result.as_ref().map(Json::as_str), Some("100"));
    assert_eq!(running.balance().await, 100);
    let counts = running.backend.counts().await.expect("counts").total();
    assert_eq!((counts.succeeded, counts.running), (1, 0));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_that_is_rolled_back_is_a_failed_attempt() {
    let running = Running::start().await;
    let record = running.run(First::RollsBack).await;
    assert_eq!(record.attempt, 2);
    assert_eq!(record.history[0].failure.class, "not_committed");
    assert_eq!(running.balance().await, 100, "only what was committed counts");
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_not_completed_twice() {
    let running = Running::start().await;
    let record = running.run(First::CompletesTwice).await;
    assert_eq!((record.attempt, running.balance().await), (2, 100));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_has_lost_its_lease_completes_nothing() {
    let running = Running::start().await;
    let record = running.run(First::LosesItsLease).await;
    assert_eq!((record.attempt, running.balance().await), (2, 100));
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_a_completion_starts_with_the_commit() {
    let running = Running::start().await;
    let steps = chain(Credit { amount: 7, first: First::RollsBack }).then(Receipt::default());
    let started = running.client.start(steps).await.expect("started");
    assert_eq!(started.output::<Receipt>(PATIENCE).await.expect("it ends"), 7);
    assert_eq!(running.balance().await, 7);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_member_that_is_completed_completes_its_group() {
    let running = Running::start().await;
    // The members arrive at the group from their own transactions, side by side.
    let credits = (1..=8).map(|amount| Credit { amount, first: First::Commits });
    let started = running.client.start(group(credits).then(Total::default())).await.expect("started");
    assert_eq!(started.output::<Total>(PATIENCE).await.expect("it ends"), 36);
    assert_eq!(running.balance().await, 36);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_failed_is_left_out_by_policy() {
    let running = Running::start().await;
    let credits = [3, 0, 4].map(|amount| Credit { amount, first: First::Commits });
    let chord = group(credits).policy(FailurePolicy::Any).then(Total::default());
    let started = running.client.start(chord).await.expect("started");
    assert_eq!(started.output::<Total>(PATIENCE).await.expect("it ends"), 7);
    running.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_workflow_starts_with_the_transaction_that_pushed_it() {
    let running = Running::start().await;
    let credits = (1..=3).map(|amount| Credit { amount, first: First::Commits });
    let push = running.client.prepare(group(credits).then(Total::default())).expect("prepared");
    let mut connection = connection().await;
    let mut transaction = connection.begin().await.expect("a transaction");
    let pushed = push_in(&mut transaction, &running.schema, &push).await.expect("pushed");
    assert_eq!(pushed, [Pushed::Stored, Pushed::Stored, Pushed::Stored]);
    let nothing = running.backend.list(&Filter::all(), &Page::first(10)).await.expect("a listing");
    assert_eq!(nothing.tasks, [], "nobody sees it before");
    transaction.commit().await.expect("committed");
    let workflow = push.envelopes[0].workflow.clone();
    let totals = Filter { workflow, names: vec![Total::definition().name.clone()], ..Filter::all() };
    let began = std::time::Instant::now();
    loop {
        let listing = running.backend.list(&totals, &Page::first(1)).await.expect("a listing");
        if let Some(record) = listing.tasks.first().filter(|record| record.state.is_final()) {
            assert_eq!(record.result.as_ref().map(Json::as_str), Some("6"));
            break;
        }
        assert!(began.elapsed() < PATIENCE, "the group does not become complete");
        // tidy: allow(sleep): the pause between two looks at a server
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    running.end().await;
}

#[tokio::test]
async fn a_group_for_which_a_queue_has_no_place_is_not_stored_in_part() {
    let (store, schema) = common::store().await;
    let length = Rule { length: Some(2), ..Rule::default() };
    let limit = Limit { subject: "queue:default".parse().expect("a subject"), rule: length };
    store.limit(&LimitChange::Set(limit)).await.expect("a limit");
    let client = Client::new(Arc::new(store));
    let credits = (1..=3).map(|amount| Credit { amount, first: First::Commits });
    let push = client.prepare(group(credits).then(Total::default())).expect("prepared");
    let pushed = push_in(&mut connection().await, &schema, &push).await.expect("asked");
    assert_eq!(pushed, [Pushed::Full { limit: 2 }, Pushed::Full { limit: 2 }, Pushed::Full { limit: 2 }]);
    assert_eq!(client.backend().counts().await.expect("counts").total().live(), 0);
    forget(&schema).await;
}
