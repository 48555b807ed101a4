//! What the tests of this crate share: a server, and a schema for each test.

#![allow(dead_code, reason = "each test file uses a part of it")]

use sqlx_core::connection::ConnectOptions as _;
use sqlx_core::query::query;
use sqlx_core::sql_str::AssertSqlSafe;
use sqlx_postgres::{PgConnectOptions, PgConnection};
use windlass_postgres::{Options, PostgresStore};

/// `deadlock_detected` of PostgreSQL: the server has ended one of two statements that wait for each other.
const DEADLOCK_DETECTED: &str = "40P01";

fn server() -> String {
    std::env::var("WINDLASS_TEST_POSTGRES_URL").unwrap_or_else(|_| {
        panic!("WINDLASS_TEST_POSTGRES_URL is not set; run `cargo xtask servers -- cargo nextest run -p windlass-sqlx`")
    })
}

pub(crate) async fn connection() -> PgConnection {
    server().parse::<PgConnectOptions>().expect("a URL").connect().await.expect("the server of the tests")
}

/// A store in a schema of its own, and the schema; the test drops it with [`forget`].
pub(crate) async fn store() -> (PostgresStore, String) {
    let schema = new_schema();
    let joint = if server().contains('?') { '&' } else { '?' };
    let url = format!("{}{joint}schema={schema}&connections=1", server());
    (PostgresStore::connect(&url, Options::default()).await.expect("a new schema"), schema)
}

pub(crate) async fn forget(schema: &str) {
    let mut connection = connection().await;
    // Statements that a closed store has sent are done to their end, and may be in the way.
    while let Err(error) = query(AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"))).execute(&mut connection).await
    {
        let code = error.as_database_error().and_then(sqlx_core::error::DatabaseError::code);
        assert_eq!(code.as_deref(), Some(DEADLOCK_DETECTED), "the schema is not dropped: {error}");
    }
}

pub(crate) fn new_schema() -> String {
    format!("t_{}", uuid::Uuid::now_v7().simple())
}

/// The URL of an outbox in a schema.
pub(crate) fn outbox_url(schema: &str) -> String {
    let joint = if server().contains('?') { '&' } else { '?' };
    format!("{}{joint}options=-csearch_path%3D{schema}", server())
}
