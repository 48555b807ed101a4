//! The outbox: for applications whose data are in PostgreSQL and whose tasks are in a store elsewhere. See
//! [`windlass_core::outbox`] for what it promises.
//!
//! A relay moves the rows: `windlass_postgres::outbox::PostgresOutbox` with the URL of the same database.

use sqlx_core::query::query;
use sqlx_postgres::PgConnection;
use windlass_core::backend::Push;
use windlass_core::outbox::{queue_of, to_text};

use crate::EnqueueError;

/// Makes the table `windlass_outbox`; for the migrations of the application. To run it again changes nothing. The same text as
/// that of `windlass_postgres::outbox`.
pub const SQL: &str = include_str!("outbox.sql");

/// Writes a push into the outbox, in the caller's transaction: it goes to the store when that commits, and never was when it
/// rolls back.
///
/// # Errors
/// [`EnqueueError::Rejected`] when a limit is broken, [`EnqueueError::Database`] when the table is missing: run [`SQL`] once.
pub async fn push_in(connection: &mut PgConnection, push: &Push) -> Result<(), EnqueueError> {
    let (queue, text) = (queue_of(push), to_text(push)?);
    query("INSERT INTO windlass_outbox (queue, push) VALUES ($1, $2)")
        .bind(queue.as_str())
        .bind(text)
        .execute(connection)
        .await?;
    Ok(())
}
