//! What a move promises beyond the contract of all stores.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Schema, client};
use windlass_core::backend::Backend;
use windlass_core::transfer::{Parcel, Parcelled, Transfer, Transferred};
use windlass_core::view::{Record, Retention};
use windlass_core::{Args, Clock, Envelope, Json, NodeId, QueueName, State, SystemClock, TaskName, Timestamp};
use windlass_postgres::{Options, PostgresStore};

const DAY: Duration = Duration::from_secs(86_400);

/// A task that ended well at this time.
fn ended(at: Timestamp) -> Parcelled {
    let envelope = Envelope::new(TaskName::known("work"), QueueName::default(), Args::none());
    let record = Record {
        envelope,
        state: State::Succeeded,
        attempt: 1,
        crashes: 0,
        enqueued_at: at,
        due_at: None,
        started_at: Some(at),
        finished_at: Some(at),
        node: None,
        progress: None,
        cancel_requested: false,
        result: Some(Json::null()),
        skipped: None,
        reason: None,
        failure: None,
        history: Vec::new(),
        memo: String::new(),
        waits_for: None,
    };
    Parcelled { record, ready_at: at }
}

#[tokio::test]
async fn closing_waits_for_who_has_found_the_store_open() {
    let schema = Schema::new();
    let store = Arc::new(PostgresStore::connect(&schema.url(), Options::default()).await.expect("a store"));
    // A claim that is not committed yet.
    let claiming = client().await;
    let look = format!("BEGIN; SELECT 1 FROM {}.meta WHERE key = 'closed'", schema.name());
    claiming.batch_execute(&look).await.expect("a look");
    let closing = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.transfer(&Transfer::Close).await }
    });
    let waits = format!("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = '{}.meta'::regclass", schema.name());
    while client().await.query(&waits, &[]).await.expect("the locks").is_empty() {
        assert!(!closing.is_finished(), "it does not wait");
    }
    claiming.batch_execute("COMMIT").await.expect("a commit");
    let closed = closing.await.expect("it ends").expect("it is closed");
    assert_eq!(closed, Transferred::Changed(1));
}

#[tokio::test]
async fn what_ended_days_ago_in_another_store_is_forgotten_in_time() {
    let schema = Schema::new();
    let retention = Retention { finished: DAY * 10, ..Retention::default() };
    let options = Options { retention, ..Options::default() };
    let store = PostgresStore::connect(&schema.url(), options).await.expect("a store");
    let now = SystemClock.now();
    let tasks = vec![ended(now - DAY * 11), ended(now - DAY * 9)];
    let ids: Vec<_> = tasks.iter().map(|task| task.record.envelope.id.clone()).collect();
    let parcel = Parcel { tasks, groups: Vec::new() };
    assert_eq!(store.transfer(&Transfer::Import(parcel)).await.expect("imported"), Transferred::Changed(2));
    assert_eq!(store.tick(&NodeId::known("node-1")).await.expect("a tick").pruned, 1);
    let found = store.find(&ids).await.expect("found");
    assert_eq!((found[0].is_some(), found[1].is_some()), (false, true));
}
