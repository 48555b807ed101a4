//! Enqueues Windlass tasks within a transaction of an application that uses sqlx and PostgreSQL.
//!
//! The tasks are there when the transaction commits and never were when it rolls back; workers hear of them with the commit.
//! The tables are those of the store `windlass-postgres`, which made them when it was opened for the first time. Nothing but
//! `sqlx-core` and `sqlx-postgres` 0.9 is needed, so that an application gets no further driver; they need Rust 1.94.
//!
//! ```no_run
//! # async fn order(connection: &mut sqlx_postgres::PgConnection) -> Result<(), Box<dyn std::error::Error>> {
//! use sqlx_core::connection::Connection;
//! use windlass_core::{Args, Envelope, QueueName, TaskName};
//!
//! let mut transaction = connection.begin().await?;
//! sqlx_core::query::query("INSERT INTO orders (id) VALUES (1017)").execute(&mut *transaction).await?;
//! let task = Envelope::new(TaskName::known("send_invoice"), QueueName::default(), Args::parse(r#"{"order":1017}"#)?);
//! windlass_sqlx::enqueue(&mut *transaction, &task).await?;
//! transaction.commit().await?;
//! # Ok(()) }
//! ```

use std::time::Duration;

use sqlx_core::query_scalar::query_scalar;
use sqlx_core::sql_str::AssertSqlSafe;
use sqlx_postgres::{PgConnection, Postgres};
use windlass_core::backend::Pushed;
use windlass_core::envelope::InvalidEnvelope;
use windlass_core::{Due, Envelope, TaskId, Timestamp};

/// The schema of a store whose URL names none.
pub const SCHEMA: &str = "windlass";

/// Why nothing was enqueued.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// The task breaks a limit.
    #[error(transparent)]
    Invalid(#[from] InvalidEnvelope),
    /// The schema has no valid name.
    #[error("the schema `{0}` is not made of a-z, 0-9 and _; use the one of the store's URL")]
    Schema(String),
    /// The database refused; the transaction can only be rolled back. When it has no such function, the store was never opened
    /// in this schema: run `windlass migrate up`.
    #[error("the database refused the task: {0}")]
    Database(#[from] sqlx_core::Error),
    /// The store holds an id or a limit that no version of ours wrote.
    #[error("the store is damaged: {0}")]
    Damaged(String),
}

/// Stores a task in the caller's transaction, in the schema [`SCHEMA`].
///
/// A task whose id or unique key is taken is [`Pushed::Exists`], and the first one stays as it is, whatever
/// [`OnConflict`](windlass_core::OnConflict) says: replacing is done by the client and by `windlass_postgres::push_in`. A task
/// for which its queue has no place is [`Pushed::Full`]. When another open transaction has just taken the key, or has pushed
/// into a queue that has a length, this waits for the end of that.
///
/// # Errors
/// [`EnqueueError`].
pub async fn enqueue(connection: &mut PgConnection, envelope: &Envelope) -> Result<Pushed, EnqueueError> {
    enqueue_in(connection, SCHEMA, envelope).await
}

/// As [`enqueue`], in another schema.
///
/// # Errors
/// [`EnqueueError`].
pub async fn enqueue_in(
    connection: &mut PgConnection,
    schema: &str,
    envelope: &Envelope,
) -> Result<Pushed, EnqueueError> {
    // It is written into the statement as it is.
    if schema.is_empty() || !schema.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_')) {
        return Err(EnqueueError::Schema(schema.chars().take(40).flat_map(char::escape_debug).collect()));
    }
    // The store's time is not known here: an absolute due time is taken as it is.
    envelope.check(match envelope.due {
        Due::Now | Due::After(_) => Timestamp::MIN,
        Due::At(due) => due,
    })?;
    let (after, at) = match envelope.due {
        Due::Now => (None, None),
        Due::After(delay) => (Some(micros(delay)), None),
        Due::At(due) => (None, Some(due.as_micros())),
    };
    let sql = format!("SELECT {schema}.push_task($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)");
    let unique = envelope.unique.as_ref();
    let holder: Option<String> = query_scalar::<Postgres, Option<String>>(AssertSqlSafe(sql))
        .bind(envelope.id.to_string())
        .bind(envelope.name.as_str())
        .bind(envelope.queue.as_str())
        .bind(i32::from(envelope.priority.level()))
        .bind(after)
        .bind(at)
        .bind(envelope.expires.map(Timestamp::as_micros))
        .bind(envelope.result_ttl.map(micros))
        .bind(unique.map(|unique| unique.key.as_str()))
        .bind(unique.and_then(|unique| unique.window).map(micros))
        .bind(envelope.key.as_ref().map(windlass_core::Key::as_str))
        .bind(envelope.workflow.as_ref().map(ToString::to_string))
        .bind(envelope.flow.is_some())
        .bind(envelope.to_body())
        .fetch_one(connection)
        .await?;
    // An id has no spaces.
    if let Some(limit) = holder.as_deref().and_then(|holder| holder.strip_prefix("full ")) {
        return match limit.parse() {
            Ok(limit) => Ok(Pushed::Full { limit }),
            Err(_) => Err(EnqueueError::Damaged(format!("the limit `{limit}` of a queue"))),
        };
    }
    match holder {
        None => Ok(Pushed::Stored),
        Some(holder) => match TaskId::new(&holder) {
            Ok(holder) => Ok(Pushed::Exists(holder)),
            Err(error) => Err(EnqueueError::Damaged(error.to_string())),
        },
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
