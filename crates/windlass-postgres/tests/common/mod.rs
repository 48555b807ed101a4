//! What the tests of this crate share: a server, and a schema for each test.

#![allow(dead_code, reason = "each test file uses a part of it")]

use tokio_postgres::{Client, NoTls};

/// The server of the tests, as its superuser.
pub(crate) fn server() -> String {
    std::env::var("WINDLASS_TEST_POSTGRES_URL").unwrap_or_else(|_| {
        panic!(
            "WINDLASS_TEST_POSTGRES_URL is not set; run `cargo xtask servers -- cargo nextest run -p windlass-postgres`"
        )
    })
}

/// A connection of the test's own.
pub(crate) async fn client() -> Client {
    let (client, connection) = tokio_postgres::connect(&server(), NoTls).await.expect("the server of the tests");
    tokio::spawn(connection);
    client
}

/// A schema that is dropped with this.
#[derive(Debug)]
pub(crate) struct Schema {
    name: String,
}

impl Schema {
    pub(crate) fn new() -> Self {
        Self { name: format!("t_{}", uuid::Uuid::now_v7().simple()) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The URL of a store in this schema.
    pub(crate) fn url(&self) -> String {
        self.url_with("connections=2")
    }

    /// The URL of a store in this schema, with further parameters.
    pub(crate) fn url_with(&self, parameters: &str) -> String {
        let server = server();
        let joint = if server.contains('?') { '&' } else { '?' };
        format!("{server}{joint}schema={}&{parameters}", self.name)
    }
}

impl Drop for Schema {
    fn drop(&mut self) {
        let sql = format!("DROP SCHEMA IF EXISTS {} CASCADE", self.name);
        // The runtime of the test ends with the test: this needs one of its own.
        let dropped = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async { client().await.batch_execute(&sql).await })
        });
        if !std::thread::panicking() {
            dropped.join().expect("the schema can be dropped").expect("the schema can be dropped");
        }
    }
}
