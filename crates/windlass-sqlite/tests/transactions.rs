//! Tasks that are enqueued within the application's own transaction.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{demand, open, place, task};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use windlass_core::backend::{Backend, Push, Pushed};
use windlass_core::envelope::PUSH_MAX;
use windlass_core::flow::{After, FailurePolicy, NewGroup};
use windlass_core::{Due, Envelope, State, StoreError, TaskId, Unique, UniqueKey};
use windlass_sqlite::push_in;

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
