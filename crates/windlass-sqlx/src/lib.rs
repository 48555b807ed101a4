//! Enqueues Windlass tasks, and completes them, within a transaction of an application that uses sqlx and PostgreSQL.
//!
//! What is enqueued is there when the transaction commits and never was when it rolls back; workers hear of it with the commit.
//! A task that is completed has succeeded together with the effects that its handler has written in the same transaction, or
//! neither has happened. The tables are those of the store `windlass-postgres`, which made them when it was opened for the first
//! time; [`outbox`] has one of its own, for tasks that go to another store. Nothing but `sqlx-core` and `sqlx-postgres` 0.9 is needed, so that an application gets no further driver; they need
//! Rust 1.94.
//!
//! ```no_run
//! # extern crate windlass_core as windlass;
//! # use serde::{Deserialize, Serialize};
//! # use windlass_core::{Client, Task};
//! # #[derive(Task, Serialize, Deserialize)] struct SendInvoice { order: u64 }
//! # async fn order(client: &Client, connection: &mut sqlx_postgres::PgConnection) -> Result<(), Box<dyn std::error::Error>> {
//! use sqlx_core::connection::Connection;
//!
//! let mut transaction = connection.begin().await?;
//! sqlx_core::query::query("INSERT INTO orders (id) VALUES (1017)").execute(&mut *transaction).await?;
//! let push = client.enqueue(SendInvoice { order: 1017 }).prepare()?;
//! windlass_sqlx::push_in(&mut transaction, windlass_sqlx::SCHEMA, &push).await?;
//! transaction.commit().await?;
//! # Ok(()) }
//! ```

mod complete;
pub mod outbox;
mod push;

pub use complete::{CompleteInError, complete_in};
pub use push::{EnqueueError, enqueue, enqueue_in, push_in};

/// The schema of a store whose URL names none.
pub const SCHEMA: &str = "windlass";

/// Whether a schema can be written into a statement as it is.
fn is_schema(schema: &str) -> bool {
    !schema.is_empty() && schema.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// A text that is no schema, fit to be shown.
fn shown(schema: &str) -> String {
    schema.chars().take(40).flat_map(char::escape_debug).collect()
}
