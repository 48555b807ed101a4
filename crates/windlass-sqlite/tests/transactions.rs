//! Tasks that are enqueued, and completed, within the application's own transaction.

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use common::{Place, demand, open, place, task};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use serde::{Deserialize, Serialize};
use windlass_core::backend::{Backend, Push, Pushed};
use windlass_core::envelope::PUSH_MAX;
use windlass_core::flow::{After, FailurePolicy, NewGroup};
use windlass_core::view::Record;
use windlass_core::worker::{Settings, Shutdown, ShutdownStep, Worker};
use windlass_core::{
    App, Client, Cx, Due, Envelope, NodeId, QueueName, State, StoreError, SystemClock, Task, TaskError, TaskId, Unique,
    UniqueKey,
};
use windlass_sqlite::{CompleteInError, complete_in, push_in};

const PATIENCE: Duration = Duration::from_secs(20);

/// A connection of the application's own, with a table of its own.
fn application(file: &std::path::Path) -> Connection {
    let db = Connection::open(file).expect("the file opens");
    db.busy_timeout(Duration::from_secs(5)).expect("set");
    db.execute_batch("CREATE TABLE IF NOT EXISTS orders (id INTEGER PRIMARY KEY)").expect("a table");
    db
}

fn begin(db: &mut Connection) -> Transaction<'_> {
    db.transaction_with_behavior(TransactionBehavior::Immediate).expect("a transaction")
}

fn of(envelopes: Vec<Envelope>) -> Push {
    Push { envelopes, groups: Vec::new() }
}

#[tokio::test]
async fn a_push_belongs_to_the_transaction_of_the_caller() {
    let place = place();
    let store = open(&place.file);
    let mut db = application(&place.file);
    for (commit, expected) in [(false, None), (true, Some(State::Ready))] {
        let envelope = task();
        let transaction = begin(&mut db);
        transaction.execute("INSERT INTO orders DEFAULT VALUES", []).expect("inserted");
        assert_eq!(push_in(&transaction, &of(vec![envelope.clone()])).expect("pushed"), [Pushed::Stored]);
        let ids = [envelope.id.clone()];
        assert_eq!(store.find(&ids).await.expect("asked"), [None], "nobody sees it before");
        if commit {
            transaction.commit().expect("committed");
        } else {
            transaction.rollback().expect("rolled back");
        }
        let found = store.find(&ids).await.expect("asked").remove(0);
        assert_eq!(found.map(|record| record.state), expected);
    }
    let orders: i64 = db.query_row("SELECT count(*) FROM orders", [], |row| row.get(0)).expect("counted");
    assert_eq!((orders, store.counts().await.expect("counts").total().ready), (1, 1));
}

#[tokio::test]
async fn a_waiting_claim_hears_of_the_commit() {
    let place = place();
    let store = Arc::new(open(&place.file));
    let waits = {
        let store = Arc::clone(&store);
        tokio::spawn(async move { store.claim(&demand(1, Duration::from_secs(30))).await })
    };
    let mut db = application(&place.file);
    let envelope = task();
    let transaction = begin(&mut db);
    push_in(&transaction, &of(vec![envelope.clone()])).expect("pushed");
    transaction.commit().expect("committed");
    let claims = waits.await.expect("it does not panic").expect("claimed");
    assert_eq!(claims[0].receipt.id, envelope.id);
}

#[tokio::test]
async fn a_push_with_every_kind_of_task_is_answered_as_by_the_store() {
    let place = place();
    let store = open(&place.file);
    let mut db = application(&place.file);
    let unique = || Some(Unique::new(UniqueKey::known("k")));
    let first = Envelope { unique: unique(), ..task() };
    let later = Envelope { due: Due::After(Duration::from_secs(60)), ..task() };
    let envelopes = vec![first.clone(), Envelope { unique: unique(), ..task() }, later.clone(), later.clone()];
    let group = NewGroup { id: TaskId::random(), size: 1, policy: FailurePolicy::All, after: After::default() };
    let transaction = begin(&mut db);
    let pushed = push_in(&transaction, &Push { envelopes, groups: vec![group] }).expect("pushed");
    transaction.commit().expect("committed");
    assert_eq!(
        pushed,
        [Pushed::Stored, Pushed::Exists(first.id.clone()), Pushed::Stored, Pushed::Exists(later.id.clone())]
    );
    let counts = store.counts().await.expect("counts").total();
    assert_eq!((counts.ready, counts.scheduled), (1, 1));
    let claim = store.claim(&demand(5, Duration::ZERO)).await.expect("claimed").remove(0);
    assert_eq!(*claim.envelope, first);
}

#[tokio::test]
async fn a_push_that_fails_leaves_the_transaction_as_it_was() {
    let place = place();
    let store = open(&place.file);
    let mut db = application(&place.file);
    // The third insert fails, as one on a damaged file would.
    db.execute_batch(
        "CREATE TRIGGER third BEFORE INSERT ON windlass_task WHEN (SELECT count(*) FROM windlass_task) = 2 \
         BEGIN SELECT RAISE(ABORT, 'no third'); END",
    )
    .expect("a trigger");
    let transaction = begin(&mut db);
    transaction.execute("INSERT INTO orders DEFAULT VALUES", []).expect("inserted");
    let error = push_in(&transaction, &of((0..3).map(|_| task()).collect())).expect_err("refused");
    assert!(error.to_string().contains("no third"), "{error}");
    let envelope = task();
    push_in(&transaction, &of(vec![envelope.clone()])).expect("pushed");
    transaction.commit().expect("committed");
    assert_eq!(store.counts().await.expect("counts").total().ready, 1);
    let claims = store.claim(&demand(5, Duration::ZERO)).await.expect("claimed");
    assert_eq!(claims.iter().map(|claim| &claim.receipt.id).collect::<Vec<_>>(), [&envelope.id]);
    let orders: i64 = db.query_row("SELECT count(*) FROM orders", [], |row| row.get(0)).expect("counted");
    assert_eq!(orders, 1);
}

#[tokio::test]
async fn a_transaction_that_read_before_others_wrote_is_told_how_to_begin() {
    let place = place();
    let store = open(&place.file);
    let mut db = application(&place.file);
    let transaction = db.transaction().expect("a transaction");
    let orders: i64 = transaction.query_row("SELECT count(*) FROM orders", [], |row| row.get(0)).expect("counted");
    assert_eq!(orders, 0);
    common::push(&store, vec![task()]).await;
    let error = push_in(&transaction, &of(vec![task()])).expect_err("refused");
    assert!(matches!(&error, StoreError::Busy(text) if text.contains("TransactionBehavior::Immediate")), "{error}");
    transaction.rollback().expect("rolled back");
    assert_eq!(store.counts().await.expect("counts").total().ready, 1);
}

#[test]
fn a_push_that_breaks_a_limit_or_finds_no_store_is_refused() {
    let place = place();
    let mut db = application(&place.file);
    let transaction = begin(&mut db);
    let too_many = of((0..=PUSH_MAX).map(|_| task()).collect());
    assert!(matches!(push_in(&transaction, &too_many), Err(StoreError::Rejected(_))));
    let error = push_in(&transaction, &of(vec![task()])).expect_err("refused");
    assert!(matches!(&error, StoreError::Broken(text) if text.contains("windlass migrate up")), "{error}");
    transaction.commit().expect("it goes on");
}

/// What the handler does in its first attempt; later ones commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum First {
    Commits,
    RollsBack,
    CompletesTwice,
    LosesItsLease,
    CompletesWithTooMuch,
}

/// Adds an order; its number is the output.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "order", retries = 3, backoff = "10ms", output = i64)]
struct Order {
    first: First,
}

/// Follows an order, in a queue that another process works on.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "receipt", queue = "receipts", output = i64, input = "order")]
struct Receipt {
    #[serde(default)]
    order: i64,
}

struct Shop {
    file: PathBuf,
}

fn order(task: Order, cx: Cx<Shop>) -> Result<i64, TaskError> {
    let mut db = application(&cx.state().file);
    let transaction = begin(&mut db);
    transaction.execute("INSERT INTO orders DEFAULT VALUES", [])?;
    let number = transaction.last_insert_rowid();
    let first = if cx.attempt == 1 { task.first } else { First::Commits };
    if first == First::LosesItsLease {
        // As if another worker had claimed the task meanwhile.
        transaction.execute("UPDATE windlass_task SET fence = fence + 1", [])?;
        let refused = complete_in(&transaction, &cx, &number);
        assert!(matches!(refused, Err(CompleteInError::Stale)), "{refused:?}");
        transaction.rollback()?;
        return Ok(number);
    }
    if first == First::CompletesWithTooMuch {
        let too_much = "x".repeat(windlass_core::envelope::RESULT_BYTES_MAX);
        let refused = complete_in(&transaction, &cx, &too_much);
        assert!(matches!(refused, Err(CompleteInError::Output(_))), "{refused:?}");
    }
    complete_in(&transaction, &cx, &number)?;
    match first {
        First::RollsBack => transaction.rollback()?,
        First::CompletesTwice => {
            let again = complete_in(&transaction, &cx, &number);
            assert!(matches!(again, Err(CompleteInError::Stale)), "{again:?}");
            transaction.rollback()?;
        }
        First::Commits | First::LosesItsLease | First::CompletesWithTooMuch => transaction.commit()?,
    }
    Ok(number)
}

async fn receipt(task: Receipt, _cx: Cx<Shop>) -> Result<i64, TaskError> {
    Ok(task.order)
}

/// Two workers on one file, each with a store of its own, as two processes have it: one for orders, one for receipts.
struct Running {
    client: Client,
    shutdown: Shutdown,
    place: Place,
}

impl Running {
    async fn start() -> Self {
        let place = place();
        let shutdown = Shutdown::new();
        let client = Self::work(&place, "default", &shutdown).await;
        Self::work(&place, "receipts", &shutdown).await;
        Self { client, shutdown, place }
    }

    async fn work(place: &Place, queue: &str, shutdown: &Shutdown) -> Client {
        let shop = Shop { file: place.file.clone() };
        let app = App::new("shop").with_state(shop).blocking_task(order).task(receipt);
        let registry = app.build().await.expect("a registry");
        let backend: Arc<dyn Backend> = Arc::new(open(&place.file));
        let middleware = Arc::clone(registry.middleware());
        let client = Client::with(Arc::clone(&backend), Arc::new(SystemClock), middleware, PATIENCE);
        let mut settings = Settings::new(NodeId::known(queue));
        settings.queues = vec![(QueueName::known(queue), 1)];
        tokio::spawn(Worker::new(backend, registry, settings).run(shutdown.clone()));
        client
    }

    async fn run(&self, first: First) -> Record {
        let handle = self.client.enqueue(Order { first }).await.expect("enqueued");
        handle.ended(PATIENCE).await.expect("it ends")
    }

    fn orders(&self) -> i64 {
        let db = application(&self.place.file);
        db.query_row("SELECT count(*) FROM orders", [], |row| row.get(0)).expect("counted")
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
    assert_eq!((record.state, record.attempt, record.history.len()), (State::Succeeded, 1, 0));
    assert_eq!(record.result.as_ref().map(windlass_core::Json::as_str), Some("1"));
    let counts = open(&running.place.file).counts().await.expect("counts").total();
    assert_eq!((counts.running, counts.succeeded, running.orders()), (0, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_that_is_rolled_back_is_a_failed_attempt() {
    let running = Running::start().await;
    let record = running.run(First::RollsBack).await;
    assert_eq!((record.state, record.attempt), (State::Succeeded, 2));
    assert_eq!(record.history[0].failure.class, "not_committed");
    assert_eq!(running.orders(), 1, "only what was committed counts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_not_completed_twice() {
    let running = Running::start().await;
    let record = running.run(First::CompletesTwice).await;
    assert_eq!((record.attempt, running.orders()), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_holder_completes_nothing() {
    let running = Running::start().await;
    let record = running.run(First::LosesItsLease).await;
    assert_eq!((record.state, record.attempt, running.orders()), (State::Succeeded, 2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_completion_that_was_refused_leaves_the_transaction_as_it_was() {
    let running = Running::start().await;
    let record = running.run(First::CompletesWithTooMuch).await;
    assert_eq!((record.state, record.attempt, running.orders()), (State::Succeeded, 1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_follows_a_completion_starts_with_the_commit_in_other_processes() {
    let running = Running::start().await;
    let first = running.client.enqueue(Order { first: First::Commits }).then(Receipt { order: 0 });
    let last = first.await.expect("enqueued");
    let record = last.ended(PATIENCE).await.expect("it ends");
    assert_eq!(record.state, State::Succeeded);
    let mut db = application(&running.place.file);
    let receipts =
        "SELECT result, node FROM windlass_task t JOIN windlass_name n ON n.id = t.name AND n.name = 'receipt'";
    let began = std::time::Instant::now();
    let result = loop {
        let look = db.transaction().expect("a look");
        let result: Option<String> = look.query_row(receipts, [], |row| row.get(0)).expect("it is there");
        drop(look);
        if result.is_some() || began.elapsed() > PATIENCE {
            break result;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(result.as_deref(), Some("1"), "it has the output of the order");
    assert!(began.elapsed() < Duration::from_secs(2), "the commit wakes the other worker");
}
