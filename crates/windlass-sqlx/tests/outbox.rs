//! Tasks that are written into the outbox with sqlx.

mod common;

use std::sync::Arc;

use common::{connection, forget, outbox_url};
use sqlx_core::connection::Connection as _;
use sqlx_core::raw_sql::raw_sql;
use sqlx_core::sql_str::AssertSqlSafe;
use windlass_core::backend::{Backend, Push};
use windlass_core::outbox::{Relay, Relayed};
use windlass_core::{Args, Envelope, QueueName, SystemClock, TaskName};
use windlass_memory::MemoryStore;
use windlass_postgres::outbox::PostgresOutbox;
use windlass_sqlx::outbox::{SQL, push_in};

fn task() -> Push {
    Push::from(Envelope::new(TaskName::known("send_invoice"), QueueName::default(), Args::none()))
}

#[test]
fn the_table_is_that_of_the_other_driver() {
    assert_eq!(SQL, windlass_postgres::outbox::SQL);
}

#[tokio::test]
async fn what_a_committed_transaction_wrote_is_moved() {
    let schema = common::new_schema();
    let mut connection = connection().await;
    let table = format!("CREATE SCHEMA {schema}; SET search_path = {schema}; {SQL}");
    raw_sql(AssertSqlSafe(table)).execute(&mut connection).await.expect("the table");
    let mut transaction = connection.begin().await.expect("a transaction");
    push_in(&mut transaction, &task()).await.expect("written");
    transaction.commit().await.expect("committed");
    let mut transaction = connection.begin().await.expect("a transaction");
    push_in(&mut transaction, &task()).await.expect("written");
    transaction.rollback().await.expect("rolled back");
    let store: Arc<dyn Backend> = Arc::new(MemoryStore::new(Arc::new(SystemClock)));
    let outbox = Arc::new(PostgresOutbox::at(&outbox_url(&schema)).expect("a URL"));
    let relayed = Relay::new(outbox, Arc::clone(&store)).drain().await.expect("moved");
    assert_eq!(relayed, Relayed { moved: 1, ..Relayed::default() });
    assert_eq!(store.counts().await.expect("counts").total().ready, 1);
    forget(&schema).await;
}
