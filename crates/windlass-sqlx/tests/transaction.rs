//! A task belongs to the transaction that enqueued it.

mod common;

use std::time::Duration;

use common::{connection, forget, store};
use sqlx_core::connection::Connection as _;
use windlass_core::backend::{Backend, Pushed};
use windlass_core::limit::{Limit, LimitChange, Rule};
use windlass_core::view::{Filter, Page};
use windlass_core::{Args, Due, Envelope, QueueName, State, TaskName, Unique, UniqueKey};
use windlass_postgres::PostgresStore;
use windlass_sqlx::{EnqueueError, enqueue_in};

fn task() -> Envelope {
    Envelope::new(
        TaskName::known("send_invoice"),
        QueueName::default(),
        Args::parse(r#"{"order":1017}"#).expect("JSON"),
    )
}

async fn tasks(store: &PostgresStore) -> Vec<(Envelope, State)> {
    let listing = store.list(&Filter::all(), &Page::first(10)).await.expect("a listing");
    listing.tasks.into_iter().map(|record| (record.envelope, record.state)).collect()
}

#[tokio::test]
async fn a_task_is_there_when_its_transaction_commits() {
    let (store, schema) = store().await;
    let mut connection = connection().await;
    let mut transaction = connection.begin().await.expect("a transaction");
    let (now, later) = (task(), Envelope { due: Due::After(Duration::from_secs(90)), ..task() });
    assert_eq!(enqueue_in(&mut transaction, &schema, &now).await.expect("enqueued"), Pushed::Stored);
    assert_eq!(enqueue_in(&mut transaction, &schema, &later).await.expect("enqueued"), Pushed::Stored);
    assert_eq!(tasks(&store).await, [], "nobody sees it before");
    transaction.commit().await.expect("committed");
    let later = Envelope { due: Due::Now, ..later };
    assert_eq!(tasks(&store).await, [(later, State::Scheduled), (now, State::Ready)]);
    let counts = store.counts().await.expect("counts").total();
    assert_eq!((counts.ready, counts.scheduled), (1, 1));
    forget(&schema).await;
}

#[tokio::test]
async fn a_task_never_was_when_its_transaction_rolls_back() {
    let (store, schema) = store().await;
    let mut connection = connection().await;
    let mut transaction = connection.begin().await.expect("a transaction");
    enqueue_in(&mut transaction, &schema, &task()).await.expect("enqueued");
    transaction.rollback().await.expect("rolled back");
    assert_eq!(tasks(&store).await, []);
    assert_eq!(store.counts().await.expect("counts").total().live(), 0);
    forget(&schema).await;
}

#[tokio::test]
async fn a_taken_id_and_a_taken_key_are_answered_with_who_has_them() {
    let (_store, schema) = store().await;
    let mut connection = connection().await;
    let unique = || Some(Unique::new(UniqueKey::known("k")));
    let first = Envelope { unique: unique(), ..task() };
    assert_eq!(enqueue_in(&mut connection, &schema, &first).await.expect("enqueued"), Pushed::Stored);
    assert_eq!(enqueue_in(&mut connection, &schema, &first).await.expect("asked"), Pushed::Exists(first.id.clone()));
    let second = Envelope { unique: unique(), ..task() };
    assert_eq!(enqueue_in(&mut connection, &schema, &second).await.expect("asked"), Pushed::Exists(first.id));
    forget(&schema).await;
}

#[tokio::test]
async fn a_schema_that_is_none_is_refused() {
    let mut connection = connection().await;
    let refused = enqueue_in(&mut connection, "a; DROP TABLE b", &task()).await;
    assert!(matches!(refused, Err(EnqueueError::Schema(_))), "{refused:?}");
    let refused = enqueue_in(&mut connection, "no_such_schema", &task()).await;
    assert!(matches!(refused, Err(EnqueueError::Database(_))), "{refused:?}");
}

#[tokio::test]
async fn a_full_queue_refuses_a_task() {
    let (store, schema) = store().await;
    let limit = Limit {
        subject: "queue:default".parse().expect("a subject"),
        rule: Rule { length: Some(1), ..Rule::default() },
    };
    store.limit(&LimitChange::Set(limit)).await.expect("a limit");
    let mut connection = connection().await;
    let first = task();
    assert_eq!(enqueue_in(&mut connection, &schema, &first).await.expect("enqueued"), Pushed::Stored);
    assert_eq!(enqueue_in(&mut connection, &schema, &task()).await.expect("asked"), Pushed::Full { limit: 1 });
    let again = enqueue_in(&mut connection, &schema, &first).await.expect("asked");
    assert_eq!(again, Pushed::Exists(first.id.clone()), "it is there already");
    assert_eq!(tasks(&store).await.len(), 1);
    forget(&schema).await;
}
