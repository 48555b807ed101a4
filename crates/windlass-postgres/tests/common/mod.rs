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
            runtime.block_on(async {
                let client = client().await;
                // Statements that a closed store has sent are done to their end, and may be in the way.
                while let Err(error) = client.batch_execute(&sql).await {
                    if error.code() != Some(&tokio_postgres::error::SqlState::T_R_DEADLOCK_DETECTED) {
                        return Err(error);
                    }
                }
                Ok(())
            })
        });
        if !std::thread::panicking() {
            dropped.join().expect("the schema can be dropped").expect("the schema can be dropped");
        }
    }
}

/// A store in a schema, by the server's clock.
pub(crate) async fn store(schema: &Schema) -> windlass_postgres::PostgresStore {
    windlass_postgres::PostgresStore::connect(&schema.url(), windlass_postgres::Options::default())
        .await
        .expect("a store in its schema")
}

/// A task in the queue `default`.
pub(crate) fn task() -> windlass_core::Envelope {
    windlass_core::Envelope::new(
        windlass_core::TaskName::known("work"),
        windlass_core::QueueName::default(),
        windlass_core::Args::none(),
    )
}

/// A push of these tasks alone.
pub(crate) fn push(envelopes: Vec<windlass_core::Envelope>) -> windlass_core::backend::Push {
    windlass_core::backend::Push { envelopes, groups: Vec::new() }
}

/// A demand for up to `max` tasks of the queue `default` that does not wait.
pub(crate) fn demand(max: usize) -> windlass_core::backend::Demand {
    windlass_core::backend::Demand {
        node: windlass_core::NodeId::known("node-1"),
        queues: vec![windlass_core::QueueName::default()],
        max,
        lease: std::time::Duration::from_secs(30),
        except: Vec::new(),
        wait: std::time::Duration::ZERO,
        hush: tokio_util::sync::CancellationToken::new(),
    }
}

/// What a settle says of a claim that succeeded.
pub(crate) fn succeeded(claim: &windlass_core::backend::Claim) -> windlass_core::backend::Settled {
    windlass_core::backend::Settled {
        receipt: claim.receipt.clone(),
        verdict: windlass_core::Verdict::Succeeded { result: windlass_core::Json::null(), skipped: None },
        follow: windlass_core::flow::Follow::default(),
    }
}

/// Waits until something is seen that must come.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut seen: impl FnMut() -> F) {
    let began = std::time::Instant::now();
    while !seen().await {
        assert!(began.elapsed() < std::time::Duration::from_secs(20), "{what}: it does not come");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}
