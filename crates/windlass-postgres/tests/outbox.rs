//! An outbox in a database: what its transaction wrote gets into the store once, by one relay or by several.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Schema, client, push, server, task, until};
use tokio::sync::oneshot;
use tokio_postgres::Client;
use windlass_core::backend::Push;
use windlass_core::outbox::{Outbox, Relay, Relayed};
use windlass_core::view::{Filter, Page};
use windlass_core::{Backend, Due, SystemClock, TaskId};
use windlass_memory::MemoryStore;
use windlass_postgres::PushInError;
use windlass_postgres::outbox::{PostgresOutbox, SQL, push_in};

/// A schema of an application, and a connection that works in it.
struct Shop {
    schema: Schema,
    db: Client,
}

impl Shop {
    async fn open() -> Self {
        let (schema, db) = (Schema::new(), client().await);
        let name = schema.name();
        db.batch_execute(&format!("CREATE SCHEMA {name}; SET search_path = {name}")).await.expect("a schema");
        db.batch_execute(SQL).await.expect("the table");
        db.batch_execute(SQL).await.expect("to make it again changes nothing");
        Self { schema, db }
    }

    fn outbox(&self) -> Arc<dyn Outbox> {
        Arc::new(PostgresOutbox::at(&outbox_url(self.schema.name())).expect("a URL"))
    }

    async fn write(&mut self, pushes: &[Push]) {
        let transaction = self.db.transaction().await.expect("a transaction");
        for push in pushes {
            push_in(&transaction, push).await.expect("written");
        }
        transaction.commit().await.expect("committed");
    }

    async fn rows(&self) -> i64 {
        self.db.query_one("SELECT count(*) FROM windlass_outbox", &[]).await.expect("a count").get(0)
    }
}

fn outbox_url(schema: &str) -> String {
    let joint = if server().contains('?') { '&' } else { '?' };
    format!("{}{joint}options=-csearch_path%3D{schema}", server())
}

fn memory() -> Arc<dyn Backend> {
    Arc::new(MemoryStore::new(Arc::new(SystemClock)))
}

fn pushes(count: usize) -> Vec<Push> {
    (0..count).map(|_| push(vec![task()])).collect()
}

fn ids(pushes: &[Push]) -> Vec<TaskId> {
    pushes.iter().flat_map(|push| push.envelopes.iter().map(|envelope| envelope.id.clone())).collect()
}

/// The ids in the store, oldest first.
async fn stored(store: &dyn Backend) -> Vec<TaskId> {
    let listing = store.list(&Filter::all(), &Page::first(1_000)).await.expect("a listing");
    listing.tasks.into_iter().rev().map(|record| record.envelope.id).collect()
}

#[tokio::test]
async fn what_a_committed_transaction_wrote_is_moved_in_its_order() {
    let (mut shop, store) = (Shop::open().await, memory());
    let written = pushes(900);
    shop.write(&written).await;
    let dropped = shop.db.transaction().await.expect("a transaction");
    push_in(&dropped, &push(vec![task()])).await.expect("written");
    dropped.rollback().await.expect("rolled back");
    let relay = Relay::new(shop.outbox(), Arc::clone(&store));
    assert_eq!(relay.drain().await.expect("moved"), Relayed { moved: 900, ..Relayed::default() });
    assert_eq!((stored(&*store).await, shop.rows().await), (ids(&written), 0));
}

#[tokio::test]
async fn relays_share_the_rows_and_what_a_dead_one_held_comes_back() {
    let mut shop = Shop::open().await;
    let written = pushes(700);
    shop.write(&written).await;
    let (one, other) = (shop.outbox(), shop.outbox());
    let first = one.take(&[]).await.expect("taken").expect("rows");
    let second = other.take(&[]).await.expect("taken").expect("rows");
    assert_eq!((first.rows().len(), second.rows().len()), (500, 200), "nobody waits for anybody");
    assert_eq!((first.rows()[499].place, second.rows()[0].place), (500, 501), "the oldest first");
    let taken: Vec<i64> = first.rows().iter().map(|row| row.place).collect();
    second.settle(&[], &[]).await.expect("given back");
    // It dies between push and settle.
    drop(first);
    until("the rows of a dead relay", || async {
        let again = other.take(&[]).await.expect("taken").expect("rows");
        again.rows().iter().map(|row| row.place).eq(taken.iter().copied())
    })
    .await;
    assert_eq!(shop.rows().await, 700);
}

#[tokio::test]
async fn a_row_that_can_never_be_pushed_is_set_aside_with_its_reason() {
    let (mut shop, store) = (Shop::open().await, memory());
    let written = pushes(2);
    shop.write(&written[..1]).await;
    let damaged = "INSERT INTO windlass_outbox (queue, push) VALUES ('default', 'what is this')";
    shop.db.batch_execute(damaged).await.expect("a row");
    shop.write(&written[1..]).await;
    let relay = Relay::new(shop.outbox(), Arc::clone(&store));
    let relayed = relay.drain().await.expect("moved");
    assert_eq!(relayed, Relayed { moved: 2, refused: 1, ..Relayed::default() });
    assert_eq!(stored(&*store).await, ids(&written));
    let refused = shop.db.query_one("SELECT refused FROM windlass_outbox", &[]).await.expect("it is there");
    assert!(refused.get::<_, &str>(0).contains("damaged"), "{refused:?}");
    assert_eq!(relay.drain().await.expect("nothing"), Relayed::default(), "it is left alone");
}

#[tokio::test]
async fn a_delay_counts_from_the_moment_of_writing() {
    let (mut shop, store) = (Shop::open().await, memory());
    let late = || windlass_core::Envelope { due: Due::After(Duration::from_secs(3_600)), ..task() };
    shop.write(&[push(vec![late()]), push(vec![late()])]).await;
    let age = "UPDATE windlass_outbox SET written_at = written_at - interval '2 hours' WHERE place = 1";
    shop.db.batch_execute(age).await.expect("an old row");
    Relay::new(shop.outbox(), Arc::clone(&store)).drain().await.expect("moved");
    let counts = store.counts().await.expect("counts").total();
    assert_eq!((counts.ready, counts.scheduled), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn running_relays_are_woken_by_a_commit_and_stop_when_told_to() {
    let (mut shop, store) = (Shop::open().await, memory());
    let stops: Vec<_> = (0..2)
        .map(|_| {
            let relay = Relay::new(shop.outbox(), Arc::clone(&store));
            let (stop, stopped) = oneshot::channel::<()>();
            (stop, tokio::spawn(async move { relay.run(async { drop(stopped.await) }).await }))
        })
        .collect();
    let mut took = Vec::new();
    for written in 1..=10 {
        let began = std::time::Instant::now();
        shop.write(&pushes(1)).await;
        until("a row", || async { stored(&*store).await.len() == written }).await;
        took.push(began.elapsed());
    }
    took.sort();
    assert!(took[5] < Duration::from_millis(500), "they do not wait for their look: {took:?}");
    // A connection that is lost is opened again.
    let killed = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE '%windlass_outbox%' \
                  AND pid <> pg_backend_pid() AND application_name = 'windlass'";
    shop.db.query_one(killed, &[]).await.expect("killed");
    shop.write(&pushes(5)).await;
    until("the rows after that", || async { stored(&*store).await.len() == 15 }).await;
    for (stop, running) in stops {
        drop(stop);
        running.await.expect("it ends when told to");
    }
    assert_eq!(shop.rows().await, 0);
}

#[tokio::test]
async fn a_database_without_the_table_says_what_to_do() {
    let schema = Schema::new();
    let mut db = client().await;
    db.batch_execute(&format!("CREATE SCHEMA {0}; SET search_path = {0}", schema.name())).await.expect("a schema");
    let outbox = PostgresOutbox::at(&outbox_url(schema.name())).expect("a URL");
    let error = outbox.take(&[]).await.err().expect("no table").to_string();
    assert!(error.contains("windlass_outbox") && error.contains("search_path"), "{error}");
    let transaction = db.transaction().await.expect("a transaction");
    let error = push_in(&transaction, &push(vec![task()])).await.expect_err("no table");
    assert!(matches!(error, PushInError::Database(_)), "{error:?}");
    let error = push_in(&transaction, &Push::default()).await.expect_err("nothing in it");
    assert!(matches!(error, PushInError::Rejected(_)), "{error:?}");
}
