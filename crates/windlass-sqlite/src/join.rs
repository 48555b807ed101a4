//! Enqueueing within a transaction of the application's own, when its tables are in the file of the store.

use std::path::Path;

use rusqlite::Transaction;
use windlass_core::backend::{Push, Pushed};
use windlass_core::view::Retention;
use windlass_core::{Clock, StoreError, SystemClock};

use crate::errors::Fault;
use crate::push::{self, NewTask, PreparedGroup};
use crate::schema;
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
    let path = transaction.path().unwrap_or("the database").to_owned();
    let attempt = || -> Result<Vec<Pushed>, Fault> {
        transaction.execute_batch("SAVEPOINT windlass_push")?;
        let pushed = push_on(transaction, push, Path::new(&path));
        let end =
            if pushed.is_ok() { "RELEASE windlass_push" } else { "ROLLBACK TO windlass_push; RELEASE windlass_push" };
        // SQLite rolls everything back by itself after some errors, such as a full disk: then there is nothing to end.
        if !transaction.is_autocommit() {
            transaction.execute_batch(end)?;
        }
        pushed
    };
    attempt().map_err(|fault| explained(fault).into_store_error(Path::new(&path)))
}

fn push_on(transaction: &Transaction<'_>, push: &Push, path: &Path) -> Result<Vec<Pushed>, Fault> {
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
    for group in &push.groups {
        push::create_group(&mut tx, &PreparedGroup::of(group))?;
    }
    let answers = push.envelopes.iter().map(|envelope| push::push(&mut tx, &NewTask::of(envelope)));
    let pushed = answers.collect::<Result<Vec<_>, _>>()?;
    tx.flush()?;
    Ok(pushed)
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
