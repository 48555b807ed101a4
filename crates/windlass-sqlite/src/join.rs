//! Enqueueing, and completing a task, within a transaction of the application's own, when its tables are in the file of the
//! store.

use std::path::Path;

use rusqlite::Transaction;
use serde::Serialize;
use windlass_core::backend::{Push, Pushed, Settlement};
use windlass_core::call::Call;
use windlass_core::view::Retention;
use windlass_core::{Clock, StoreError, SystemClock, TaskError};

use crate::errors::Fault;
use crate::push::{self, NewTask, PreparedGroup};
use crate::schema;
use crate::settle::{self, PreparedSettle};
use crate::statements::Statements;
use crate::tx::{Memory, Tx};

/// Stores tasks and groups in the caller's transaction: they are there when it commits, and never were when it rolls back.
/// Workers of every process hear of them with the commit.
///
/// The answers are in the order of the envelopes. Begin the transaction with
/// [`TransactionBehavior::Immediate`](rusqlite::TransactionBehavior::Immediate): one that has read before it writes is refused
/// by SQLite when another process has written in between. Keep it short, since nobody else can write meanwhile, and give the
/// connection a busy timeout. How durable the tasks are is the `PRAGMA synchronous` of that connection; the store itself uses
/// `FULL`.
///
/// # Errors
/// [`StoreError`]. Nothing of the push remains then, and the transaction may go on. [`StoreError::Broken`] when the file has no
/// tables of this version: open the store once, or run `windlass migrate up`.
///
/// # Example
/// ```
/// use rusqlite::{Connection, TransactionBehavior};
/// use windlass_core::backend::Push;
/// use windlass_core::{Args, Envelope, QueueName, TaskName};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?;
/// # let file = folder.path().join("shop.db");
/// # windlass_sqlite::SqliteStore::migrate(&file)?;
/// let mut shop = Connection::open(&file)?;
/// shop.busy_timeout(std::time::Duration::from_secs(5))?;
/// shop.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY, total TEXT)")?;
///
/// let args = Args::of(&serde_json::json!({ "order": 7 }))?;
/// let receipt = Envelope::new(TaskName::new("send_receipt")?, QueueName::default(), args);
/// let transaction = shop.transaction_with_behavior(TransactionBehavior::Immediate)?;
/// transaction.execute("INSERT INTO orders VALUES (7, '12.50')", [])?;
/// windlass_sqlite::push_in(&transaction, &Push { envelopes: vec![receipt], groups: Vec::new() })?;
/// transaction.commit()?; // the task is there if, and only if, the order is
/// # Ok(()) }
/// ```
pub fn push_in(transaction: &Transaction<'_>, push: &Push) -> Result<Vec<Pushed>, StoreError> {
    push.check()?;
    let groups: Vec<_> = push.groups.iter().map(PreparedGroup::of).collect();
    let tasks: Vec<_> = push.envelopes.iter().map(NewTask::of).collect();
    within(transaction, |tx| push::push_all(tx, &groups, &tasks))
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
    /// The store refused, as it may refuse a push.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Completes the task of this attempt in the caller's transaction, with everything that follows it: when the transaction
/// commits, the task has succeeded together with the effects that the application has written there; when it rolls back,
/// neither has happened. The handler returns the same output after the commit. One that returns without a commit has failed,
/// and the task runs again.
///
/// So the effects of a task on tables in the file of the store happen exactly once, whenever a worker dies. What voids that:
/// effects outside of this transaction, such as a mail or another file; a commit after an error of this function; a
/// connection whose `PRAGMA synchronous` forgets commits when the machine loses its power (the store itself uses `FULL`).
///
/// Begin and commit as for [`push_in`], complete last, and commit at once: meanwhile nobody else writes, and that includes the
/// renewal of the lease.
///
/// # Errors
/// [`CompleteInError`]; roll back, whatever it is.
///
/// # Example
/// ```
/// use rusqlite::{Connection, TransactionBehavior};
/// use windlass_core::{TaskError, call::Call};
/// # fn example(shop: &mut Connection, call: &Call) -> Result<usize, TaskError> {
/// let transaction = shop.transaction_with_behavior(TransactionBehavior::Immediate)?;
/// let moved = transaction.execute("UPDATE account SET balance = balance - 100 WHERE id = 1", [])?;
/// windlass_sqlite::complete_in(&transaction, call, &moved)?;
/// transaction.commit()?;
/// Ok(moved)
/// # }
/// ```
pub fn complete_in<T: Serialize>(
    transaction: &Transaction<'_>,
    call: &Call,
    output: &T,
) -> Result<(), CompleteInError> {
    let settled = call.completion(output).map_err(|error| match error {
        TaskError::Fatal(failure) | TaskError::Failed(failure) => CompleteInError::Output(failure.message),
        other => CompleteInError::Output(format!("{other:?}")),
    })?;
    let settled = PreparedSettle::of(&settled);
    match within(transaction, |tx| settle::settle(tx, &settled))? {
        Settlement::Applied => Ok(()),
        Settlement::Stale => Err(CompleteInError::Stale),
    }
}

/// Does something in the caller's transaction, or nothing.
fn within<T>(
    transaction: &Transaction<'_>,
    change: impl FnOnce(&mut Tx<'_>) -> Result<T, Fault>,
) -> Result<T, StoreError> {
    let path = transaction.path().unwrap_or("the database").to_owned();
    let path = Path::new(&path);
    let attempt = || -> Result<T, Fault> {
        transaction.execute_batch("SAVEPOINT windlass")?;
        let changed = change_on(transaction, path, change);
        let end = if changed.is_ok() { "RELEASE windlass" } else { "ROLLBACK TO windlass; RELEASE windlass" };
        // SQLite rolls everything back by itself after some errors, such as a full disk: then there is nothing to end.
        if !transaction.is_autocommit() {
            transaction.execute_batch(end)?;
        }
        changed
    };
    attempt().map_err(|fault| explained(fault).into_store_error(path))
}

fn change_on<T>(
    transaction: &Transaction<'_>,
    path: &Path,
    change: impl FnOnce(&mut Tx<'_>) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let pending = schema::pending(schema::version(transaction)?, path)?;
    if !pending.steps.is_empty() {
        return Err(Fault::Store(StoreError::Broken(format!(
            "`{}` has no store of this version; open it with `SqliteStore::open` once, or run `windlass migrate up`",
            path.display()
        ))));
    }
    let (mut memory, retention) = (Memory::default(), Retention::default());
    let mut tx = Tx {
        db: transaction,
        now: SystemClock.now(),
        retention: &retention,
        memory: &mut memory,
        statements: Statements::default(),
    };
    let changed = change(&mut tx)?;
    tx.flush()?;
    Ok(changed)
}

/// What SQLite means by busy when no patience would help.
fn explained(fault: Fault) -> Fault {
    match fault {
        Fault::Sql(rusqlite::Error::SqliteFailure(failure, _))
            if failure.extended_code == rusqlite::ffi::SQLITE_BUSY_SNAPSHOT =>
        {
            Fault::Store(StoreError::Busy(
                "the transaction has read and others have written since; \
                 roll it back, and begin it with `TransactionBehavior::Immediate`"
                    .to_owned(),
            ))
        }
        other => other,
    }
}
