//! Enqueueing, and completing a task, within a transaction of the application's own.

use serde::Serialize;
use tokio_postgres::Transaction;
use windlass_core::backend::{Push, Pushed, Settlement};
use windlass_core::call::Call;
use windlass_core::{StoreError, TaskError};

use crate::address::check_schema;
use crate::errors::Fault;
use crate::offer;
use crate::push::NewTask;
use crate::settle;
use crate::tx::Tx;

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

/// Why a task was not completed. The transaction must be rolled back.
#[derive(Debug, thiserror::Error)]
pub enum CompleteInError {
    /// The attempt has lost its lease, or was completed before: another one may run, and the effects of this one must not stay.
    #[error("the task is not held by this attempt any more")]
    Stale,
    /// The output cannot be stored.
    #[error("{0}")]
    Output(String),
    /// The schema has no valid name, or the store is damaged.
    #[error(transparent)]
    Rejected(#[from] StoreError),
    /// The database refused; the transaction can only be rolled back.
    #[error("the database refused the completion: {0}")]
    Database(#[from] tokio_postgres::Error),
}

/// Stores tasks and groups in the caller's transaction: they are there when it commits, and never were when it rolls back.
/// Workers hear of them with the commit.
///
/// The schema is that of the store's URL, [`SCHEMA`](crate::SCHEMA) when that names none. The answers are those that the store
/// itself gives, in the order of the envelopes: a task that exists or for which its queue has no place is not stored, and the
/// transaction can go on. A task whose unique key another open transaction has just taken waits for the end of that; so does
/// one for a queue that has a length, when another open transaction has pushed into it.
///
/// # Errors
/// [`PushInError`].
pub async fn push_in(transaction: &Transaction<'_>, schema: &str, push: &Push) -> Result<Vec<Pushed>, PushInError> {
    check_schema(schema)?;
    push.check()?;
    let tasks: Vec<NewTask> = push.envelopes.iter().map(NewTask::of).collect();
    let pushed = async {
        let mut tx = Tx::of_application(transaction.client(), schema).await?;
        let pushed = offer::offer(&mut tx, &tasks, &push.groups).await?;
        tx.flush().await.map(|()| pushed)
    };
    pushed.await.map_err(|fault| match fault {
        Fault::Sql(error) => PushInError::Database(error),
        other => PushInError::Rejected(other.to_store_error(schema)),
    })
}

/// Completes the task of this attempt in the caller's transaction, with everything that follows it: the task has succeeded,
/// together with the effects that the application has written there, when the transaction commits; and neither has happened
/// when it rolls back. Then the handler returns the same output. A handler that returns without a commit has failed, and
/// the task runs again.
///
/// The schema is that of the store's URL, [`SCHEMA`](crate::SCHEMA) when that names none. The application's database must be the
/// one that the store is in, its transaction `READ COMMITTED`, as transactions are by default: a stricter one fails when the
/// lease is renewed beside it. Until the commit, the task and the groups that it is part of are locked, and whoever renews the
/// lease waits: complete last, and commit at once.
///
/// # Errors
/// [`CompleteInError`]; roll back, whatever it is.
///
/// # Example
/// ```
/// # use windlass_core::{TaskError, call::Call};
/// # async fn example(database: &mut tokio_postgres::Client, call: &Call) -> Result<u64, TaskError> {
/// let transaction = database.transaction().await?;
/// let moved = transaction.execute("UPDATE account SET balance = balance - 100 WHERE id = 1", &[]).await?;
/// windlass_postgres::complete_in(&transaction, windlass_postgres::SCHEMA, call, &moved).await?;
/// transaction.commit().await?;
/// Ok(moved)
/// # }
/// ```
pub async fn complete_in<T: Serialize + Sync>(
    transaction: &Transaction<'_>,
    schema: &str,
    call: &Call,
    output: &T,
) -> Result<(), CompleteInError> {
    check_schema(schema)?;
    let settled = call.completion(output).map_err(|error| match error {
        TaskError::Fatal(failure) | TaskError::Failed(failure) => CompleteInError::Output(failure.message),
        other => CompleteInError::Output(format!("{other:?}")),
    })?;
    let applied = async {
        let mut tx = Tx::of_application(transaction.client(), schema).await?;
        let applied = settle::settle(&mut tx, &[&settled]).await?;
        tx.flush().await.map(|()| applied)
    };
    match applied.await {
        Ok(applied) if applied == [Settlement::Applied] => Ok(()),
        Ok(_) => Err(CompleteInError::Stale),
        Err(Fault::Sql(error)) => Err(CompleteInError::Database(error)),
        Err(other) => Err(CompleteInError::Rejected(other.to_store_error(schema))),
    }
}
