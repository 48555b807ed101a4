//! Completing a task within the caller's transaction: the settle of a success, with what follows it.
//!
//! 1. end the task; stale when that changes nothing   2. what follows: groups, tasks
//! 3. arrivals at groups; a group that is complete starts something: 2 again
//!
//! Rows are changed by functions of the schema; what follows is decided by the engine, as in the store itself.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx_core::query::query;
use sqlx_core::row::Row;
use sqlx_core::sql_str::AssertSqlSafe;
use sqlx_postgres::PgConnection;
use windlass_core::call::Call;
use windlass_core::flow::{After, Arrival, FailurePolicy, FanIn, Follow, fan_in, join};
use windlass_core::{Failure, GroupId, Json, TaskError, Verdict};

use crate::push::{add_group, task_columns};
use crate::{is_schema, shown};

/// Why a task was not completed. The transaction must be rolled back.
#[derive(Debug, thiserror::Error)]
pub enum CompleteInError {
    /// The attempt has lost its lease, or was completed before: another one may run, and the effects of this one must not stay.
    #[error("the task is not held by this attempt any more")]
    Stale,
    /// The output cannot be stored.
    #[error("{0}")]
    Output(String),
    /// The schema has no valid name.
    #[error("the schema `{0}` is not made of a-z, 0-9 and _; use the one of the store's URL")]
    Schema(String),
    /// The database refused; the transaction can only be rolled back. When it has no such function, the store was never opened
    /// in this schema by a program of this version: run `windlass migrate up`.
    #[error("the database refused the completion: {0}")]
    Database(#[from] sqlx_core::Error),
    /// The store holds what no version of ours wrote.
    #[error("the store is damaged: {0}")]
    Damaged(String),
}

/// Completes the task of this attempt in the caller's transaction, with everything that follows it: the task has succeeded,
/// together with the effects that the application has written there, when the transaction commits; and neither has happened
/// when it rolls back. Then the handler returns the same output. A handler that returns without a commit has failed, and the
/// task runs again.
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
/// # use sqlx_core::connection::Connection;
/// # use windlass_core::{TaskError, call::Call};
/// # async fn example(connection: &mut sqlx_postgres::PgConnection, call: &Call) -> Result<u64, TaskError> {
/// let mut transaction = connection.begin().await?;
/// let debit = sqlx_core::query::query("UPDATE account SET balance = balance - 100 WHERE id = 1");
/// let moved = debit.execute(&mut *transaction).await?.rows_affected();
/// windlass_sqlx::complete_in(&mut transaction, windlass_sqlx::SCHEMA, call, &moved).await?;
/// transaction.commit().await?;
/// Ok(moved)
/// # }
/// ```
pub async fn complete_in<T: Serialize + Sync>(
    connection: &mut PgConnection,
    schema: &str,
    call: &Call,
    output: &T,
) -> Result<(), CompleteInError> {
    if !is_schema(schema) {
        return Err(CompleteInError::Schema(shown(schema)));
    }
    let settled = call.completion(output).map_err(|error| match error {
        TaskError::Fatal(failure) | TaskError::Failed(failure) => CompleteInError::Output(failure.message),
        other => CompleteInError::Output(format!("{other:?}")),
    })?;
    let Verdict::Succeeded { result, .. } = &settled.verdict else { unreachable!("a completion is a success") };
    let ended = query(AssertSqlSafe(format!("SELECT {schema}.complete_task($1, $2, $3, $4)")))
        .bind(settled.receipt.row)
        .bind(settled.receipt.id.to_string())
        .bind(settled.receipt.fence)
        .bind(result.as_str())
        .fetch_one(&mut *connection)
        .await?;
    if !ended.try_get::<bool, _>(0)? {
        return Err(CompleteInError::Stale);
    }
    Rows { connection, schema }.apply(settled.follow).await
}

/// The rows of a store in a transaction.
struct Rows<'c> {
    connection: &'c mut PgConnection,
    schema: &'c str,
}

impl Rows<'_> {
    /// Does what follows a success, to the end: nothing is stranded by it, and no group fails.
    async fn apply(&mut self, follow: Follow) -> Result<(), CompleteInError> {
        let mut rest = VecDeque::from([follow]);
        while let Some(follow) = rest.pop_front() {
            for group in &follow.groups {
                add_group(self.connection, self.schema, group).await?;
            }
            for envelope in &follow.push {
                let sql =
                    format!("SELECT {}.follow_task($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)", self.schema);
                task_columns(sql, envelope).execute(&mut *self.connection).await?;
            }
            let mut arrivals: BTreeMap<GroupId, Vec<Arrival>> = BTreeMap::new();
            for arrival in follow.arrive {
                arrivals.entry(arrival.member.group.clone()).or_default().push(arrival);
            }
            // In the order of the groups, as everybody does.
            for (group, arrivals) in arrivals {
                rest.extend(self.arrive(&group, &arrivals).await?);
            }
        }
        Ok(())
    }

    /// Counts members that ended and answers what their group starts.
    async fn arrive(&mut self, group: &GroupId, arrivals: &[Arrival]) -> Result<Option<Follow>, CompleteInError> {
        let mut counted = None;
        for arrival in arrivals {
            let Ok(result) = &arrival.outcome else { unreachable!("what follows a success arrives as one") };
            let sql = format!("SELECT size, policy, succeeded, failed, after FROM {}.arrive($1, $2, $3)", self.schema);
            let row = query(AssertSqlSafe(sql))
                .bind(group.to_string())
                .bind(arrival.member.index as i32)
                .bind(result.as_str())
                .fetch_optional(&mut *self.connection)
                .await?;
            counted = row.or(counted);
        }
        let Some(row) = counted else { return Ok(None) };
        let number = |index: usize| row.try_get::<i32, _>(index).map(|number| u32::try_from(number).unwrap_or(0));
        let policy = policy_of(row.try_get(1)?)?;
        match fan_in(policy, number(0)?, number(2)?, number(3)?) {
            FanIn::Complete => {
                let after: After = of_text("group", row.try_get(4)?)?;
                Ok(Some(after.complete(self.complete_group(group, policy).await?)))
            }
            // Whoever failed it has done what follows from that.
            FanIn::Failed | FanIn::Waiting => Ok(None),
        }
    }

    /// What the members of a group ended with, joined.
    async fn complete_group(&mut self, group: &GroupId, policy: FailurePolicy) -> Result<Json, CompleteInError> {
        let sql = format!("SELECT ok, said FROM {}.complete_group($1)", self.schema);
        let rows = query(AssertSqlSafe(sql)).bind(group.to_string()).fetch_all(&mut *self.connection).await?;
        let mut outcomes: Vec<Result<String, Failure>> = Vec::with_capacity(rows.len());
        for row in &rows {
            let said: String = row.try_get(1)?;
            outcomes.push(if row.try_get(0)? { Ok(said) } else { Err(of_text("failure", &said)?) });
        }
        Ok(join(policy, outcomes.iter().map(|outcome| outcome.as_deref())))
    }
}

fn policy_of(stored: &str) -> Result<FailurePolicy, CompleteInError> {
    [FailurePolicy::All, FailurePolicy::Any, FailurePolicy::Collect]
        .into_iter()
        .find(|policy| policy.as_str() == stored)
        .ok_or_else(|| damaged("group", "its policy is unknown"))
}

fn damaged(what: &str, why: impl fmt::Display) -> CompleteInError {
    CompleteInError::Damaged(format!("{what}: {why}"))
}

fn of_text<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, CompleteInError> {
    serde_json::from_str(text).map_err(|error| damaged(what, error))
}
