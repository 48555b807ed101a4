//! Enqueueing within the caller's transaction.

use std::collections::BTreeMap;
use std::time::Duration;

use sqlx_core::query::{Query, query};
use sqlx_core::row::Row;
use sqlx_core::sql_str::AssertSqlSafe;
use sqlx_postgres::{PgArguments, PgConnection, Postgres};
use windlass_core::backend::{Push, Pushed};
use windlass_core::envelope::InvalidEnvelope;
use windlass_core::flow::NewGroup;
use windlass_core::{Due, Envelope, StoreError, TaskId, Timestamp};

use crate::{SCHEMA, is_schema, shown};

/// Why nothing was enqueued.
#[derive(Debug, thiserror::Error)]
pub enum EnqueueError {
    /// The task breaks a limit.
    #[error(transparent)]
    Invalid(#[from] InvalidEnvelope),
    /// The push breaks a limit.
    #[error(transparent)]
    Rejected(#[from] StoreError),
    /// The schema has no valid name.
    #[error("the schema `{0}` is not made of a-z, 0-9 and _; use the one of the store's URL")]
    Schema(String),
    /// The database refused; the transaction can only be rolled back. When it has no such function, the store was never opened
    /// in this schema by a program of this version: run `windlass migrate up`.
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
    check(schema, envelope)?;
    push_task(connection, schema, envelope).await
}

/// Stores tasks and groups in the caller's transaction: what [`Enqueue::prepare`](windlass_core::client::Enqueue::prepare) and
/// [`Client::prepare`](windlass_core::Client::prepare) have made. The answers are those of [`enqueue`], in the order of the
/// envelopes; tasks of groups are stored all or none.
///
/// # Errors
/// [`EnqueueError`].
pub async fn push_in(connection: &mut PgConnection, schema: &str, push: &Push) -> Result<Vec<Pushed>, EnqueueError> {
    push.check()?;
    push.envelopes.iter().try_for_each(|envelope| check(schema, envelope))?;
    if !push.groups.is_empty() {
        // A group of which members are missing would be waited for without end.
        if let Some(limit) = full(connection, schema, push).await? {
            return Ok(vec![Pushed::Full { limit }; push.envelopes.len()]);
        }
        for group in &push.groups {
            add_group(connection, schema, group).await?;
        }
    }
    let mut pushed = Vec::with_capacity(push.envelopes.len());
    for envelope in &push.envelopes {
        pushed.push(push_task(connection, schema, envelope).await?);
    }
    Ok(pushed)
}

fn check(schema: &str, envelope: &Envelope) -> Result<(), EnqueueError> {
    if !is_schema(schema) {
        return Err(EnqueueError::Schema(shown(schema)));
    }
    // The store's time is not known here: an absolute due time is taken as it is.
    envelope.check(match envelope.due {
        Due::Now | Due::After(_) => Timestamp::MIN,
        Due::At(due) => due,
    })?;
    Ok(())
}

async fn push_task(connection: &mut PgConnection, schema: &str, envelope: &Envelope) -> Result<Pushed, EnqueueError> {
    let sql = format!("SELECT {schema}.push_task($1, $2, $3, $4, $5, $6, $7, $8, $13, $14, $9, $10, $11, $12)");
    let unique = envelope.unique.as_ref();
    let row = task_columns(sql, envelope)
        .bind(unique.map(|unique| unique.key.as_str()))
        .bind(unique.and_then(|unique| unique.window).map(micros))
        .fetch_one(connection)
        .await?;
    let holder: Option<String> = row.try_get(0)?;
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

/// A statement with what is stored of a task as `$1` to `$12`: id, name, queue, priority, delay, due time, expiry, how long its
/// result is kept, key, workflow, whether something follows, body.
pub(crate) fn task_columns(sql: String, envelope: &Envelope) -> Query<'_, Postgres, PgArguments> {
    let (after, at) = match envelope.due {
        Due::Now => (None, None),
        Due::After(delay) => (Some(micros(delay)), None),
        Due::At(due) => (None, Some(due.as_micros())),
    };
    query(AssertSqlSafe(sql))
        .bind(envelope.id.to_string())
        .bind(envelope.name.as_str())
        .bind(envelope.queue.as_str())
        .bind(i32::from(envelope.priority.level()))
        .bind(after)
        .bind(at)
        .bind(envelope.expires.map(Timestamp::as_micros))
        .bind(envelope.result_ttl.map(micros))
        .bind(envelope.key.as_ref().map(windlass_core::Key::as_str))
        .bind(envelope.workflow.as_ref().map(ToString::to_string))
        .bind(envelope.flow.is_some())
        .bind(envelope.to_body())
}

/// Creates a group unless it is known.
pub(crate) async fn add_group(
    connection: &mut PgConnection,
    schema: &str,
    group: &NewGroup,
) -> Result<(), sqlx_core::Error> {
    // Plain data becomes text without fail: every key is text.
    let after = serde_json::to_string(&group.after).unwrap_or_else(|error| unreachable!("a group is data: {error}"));
    query(AssertSqlSafe(format!("SELECT {schema}.add_group($1, $2, $3, $4)")))
        .bind(group.id.to_string())
        .bind(group.size as i32)
        .bind(group.policy.as_str())
        .bind(after)
        .execute(connection)
        .await
        .map(drop)
}

/// The length of a queue that has no place for its part of a push.
async fn full(connection: &mut PgConnection, schema: &str, push: &Push) -> Result<Option<u64>, EnqueueError> {
    let mut wanted: BTreeMap<&str, i64> = BTreeMap::new();
    for envelope in &push.envelopes {
        *wanted.entry(envelope.queue.as_str()).or_default() += 1;
    }
    // Everybody locks limits in one order.
    for (queue, wanted) in wanted {
        let sql = format!("SELECT most, waiting FROM {schema}.room_in($1)");
        let row = query(AssertSqlSafe(sql)).bind(queue).fetch_one(&mut *connection).await?;
        let (most, waiting): (Option<i64>, Option<i64>) = (row.try_get(0)?, row.try_get(1)?);
        if let (Some(most), Some(waiting)) = (most, waiting)
            && waiting + wanted > most
        {
            return Ok(Some(most as u64));
        }
    }
    Ok(None)
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}
