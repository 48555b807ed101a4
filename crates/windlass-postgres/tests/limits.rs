//! Limits in a database that several processes share, and schemas that were made before there were limits.

mod common;

use std::sync::Arc;

use common::{Schema, client, demand, push, store, succeeded, task};
use futures_util::future::join_all;
use windlass_core::backend::{Backend, Pushed};
use windlass_core::limit::{Limit, LimitChange, Rule};
use windlass_core::{Args, Envelope, Key, OnConflict, Unique, UniqueKey};
use windlass_postgres::{Options, PostgresStore, SCHEMA_VERSION, push_in};

async fn set(store: &PostgresStore, subject: &str, rule: Rule) {
    let limit = Limit { subject: subject.parse().expect("a subject"), rule };
    store.limit(&LimitChange::Set(limit)).await.expect("a limit");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_pushes_fill_a_queue_exactly() {
    let schema = Schema::new();
    let stores = [Arc::new(store(&schema).await), Arc::new(store(&schema).await)];
    set(&stores[0], "queue:default", Rule { length: Some(50), ..Rule::default() }).await;
    let pushes = (0..16).map(|number| {
        let store = Arc::clone(&stores[number % 2]);
        async move { store.push(&push((0..10).map(|_| task()).collect())).await.expect("answered") }
    });
    let answers = join_all(pushes).await.concat();
    assert_eq!(answers.iter().filter(|answer| **answer == Pushed::Stored).count(), 50);
    assert_eq!(answers.iter().filter(|answer| **answer == Pushed::Full { limit: 50 }).count(), 110);
    assert_eq!(stores[0].counts().await.expect("counts").total().ready, 50);
}

#[tokio::test]
async fn a_push_in_a_transaction_is_answered_as_by_the_store() {
    let schema = Schema::new();
    let store = store(&schema).await;
    set(&store, "queue:default", Rule { length: Some(1), ..Rule::default() }).await;
    let unique = Unique { on_conflict: OnConflict::Replace, ..Unique::new(UniqueKey::known("k")) };
    let replacing =
        |text: &str| Envelope { unique: Some(unique.clone()), args: Args::parse(text).expect("JSON"), ..task() };
    let first = replacing(r#"{"n":1}"#);
    let mut client = client().await;
    let transaction = client.transaction().await.expect("a transaction");
    let all = push(vec![first.clone(), replacing(r#"{"n":2}"#), task()]);
    let pushed = push_in(&transaction, schema.name(), &all).await.expect("answered");
    transaction.commit().await.expect("committed");
    assert_eq!(pushed, [Pushed::Stored, Pushed::Replaced(first.id), Pushed::Full { limit: 1 }]);
    let claims = store.claim(&demand(5)).await.expect("claimed");
    assert_eq!(claims[0].envelope.args, replacing(r#"{"n":2}"#).args);
}

#[tokio::test]
async fn sql_is_refused_by_a_full_queue() {
    let schema = Schema::new();
    let store = store(&schema).await;
    set(&store, "queue:default", Rule { length: Some(0), ..Rule::default() }).await;
    let sql = format!("SELECT {}.enqueue('mail')", schema.name());
    let error = client().await.query_one(&sql, &[]).await.expect_err("it is full");
    let said = error.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default();
    assert!(said.contains("is full: its limit is 0"), "{said}");
}

#[tokio::test]
async fn a_schema_of_version_1_is_upgraded_with_its_tasks() {
    let schema = Schema::new();
    let pending = PostgresStore::pending(&schema.url()).await.expect("a plan");
    let client = client().await;
    client.batch_execute(&pending.sql[0]).await.expect("version 1");
    let enqueue = format!(
        "SELECT {0}.enqueue('plain'); SELECT {0}.enqueue('keyed', key => 'a'); SELECT {0}.enqueue('unique', unique_key => 'k')",
        schema.name()
    );
    client.batch_execute(&enqueue).await.expect("tasks of then");
    let pending = PostgresStore::pending(&schema.url()).await.expect("a plan");
    assert_eq!((pending.version, pending.steps.len()), (1, SCHEMA_VERSION as usize - 1));
    let store = PostgresStore::connect(&schema.url(), Options::default()).await.expect("upgraded");
    store.push(&push(vec![Envelope { key: Some(Key::known("a")), ..task() }])).await.expect("pushed");
    let claims = store.claim(&demand(10)).await.expect("claimed");
    assert_eq!(claims.len(), 4);
    assert!(claims.iter().all(|claim| claim.memo.is_empty()));
    store.settle(&claims.iter().map(succeeded).collect::<Vec<_>>()).await.expect("settled");
    assert_eq!(store.counts().await.expect("counts").total().succeeded, 4);
}
