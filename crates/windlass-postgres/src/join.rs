//! Enqueueing within a transaction of the application's own.

use std::collections::BTreeSet;

use tokio_postgres::Transaction;
use windlass_core::backend::{Push, Pushed};
use windlass_core::flow::NewGroup;
use windlass_core::{StoreError, TaskId};

use crate::address::check_schema;
use crate::push::NewTask;
use crate::rows::to_json;

/// Why nothing was pushed.
#[derive(Debug, thiserror::Error)]
pub enum PushInError {
    /// The push breaks a limit, or the schema has no valid name.
    #[error(transparent)]
    Rejected(#[from] StoreError),
    /// The database refused; the transaction can only be rolled back.
    #[error("the database refused the push: {0}")]
    Database(#[from] tokio_postgres::Error),
}

/// Stores tasks and groups in the caller's transaction: they are there when it commits, and never were when it rolls back.
/// Workers hear of them with the commit.
///
/// The schema is that of the store's URL, [`SCHEMA`](crate::SCHEMA) when that names none. The answers are in the order of the
/// envelopes. A task whose unique key another open transaction has just taken waits for the end of that.
///
/// # Errors
/// [`PushInError`].
pub async fn push_in(transaction: &Transaction<'_>, schema: &str, push: &Push) -> Result<Vec<Pushed>, PushInError> {
    check_schema(schema)?;
    push.check()?;
    // Everybody takes rows in one order.
    let groups: BTreeSet<&TaskId> = push.groups.iter().map(|group| &group.id).collect();
    for id in groups {
        for group in push.groups.iter().filter(|group| group.id == *id) {
            create_group(transaction, schema, group).await?;
        }
    }
    let tasks: Vec<NewTask> = push.envelopes.iter().map(NewTask::of).collect();
    // Sent together, answered together.
    let answers = futures_util::future::join_all(tasks.iter().map(|task| task.push_in(transaction, schema))).await;
    answers
        .into_iter()
        .map(|holder| match holder? {
            None => Ok(Pushed::Stored),
            Some(holder) => {
                let holder = TaskId::new(&holder)
                    .map_err(|error| StoreError::Broken(format!("the store holds a damaged task id: {error}")))?;
                Ok(Pushed::Exists(holder))
            }
        })
        .collect()
}

async fn create_group(transaction: &Transaction<'_>, schema: &str, group: &NewGroup) -> Result<(), PushInError> {
    let sql = format!(
        "INSERT INTO {schema}.groups (id, size, policy, after, touched_at) VALUES ($1, $2, $3, $4, {schema}.micros()) \
         ON CONFLICT (id) DO NOTHING"
    );
    let (id, size) = (group.id.to_string(), group.size as i32);
    transaction.execute(&sql, &[&id, &size, &group.policy.as_str(), &to_json(&group.after)]).await?;
    Ok(())
}
