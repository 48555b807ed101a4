//! A bank in the file of a store.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, Transaction, TransactionBehavior, params};
use windlass::TaskError;
use windlass::call::Call;
use windlass_sqlite::complete_in;

use super::{Bank, Books, Step, Transfer};

/// How long a transfer waits for others that write.
const PATIENCE: Duration = Duration::from_secs(10);

/// One connection for each process: only one transaction writes at a time anyway.
#[derive(Debug)]
pub(super) struct SqliteBank(Mutex<Connection>);

impl SqliteBank {
    pub(super) fn open(file: &Path) -> Result<Self> {
        let db = Connection::open(file)?;
        db.busy_timeout(PATIENCE)?;
        Ok(Self(Mutex::new(db)))
    }
}

#[async_trait]
impl Bank for SqliteBank {
    async fn found(&self, accounts: u32, balance: i64) -> Result<()> {
        let mut db = self.0.lock();
        let transaction = begin(&mut db)?;
        transaction.execute_batch(
            "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER NOT NULL); \
             CREATE TABLE book (task TEXT NOT NULL, number INTEGER NOT NULL)",
        )?;
        for id in 0..accounts {
            transaction.execute("INSERT INTO account VALUES (?1, ?2)", params![id, balance])?;
        }
        transaction.commit()?;
        Ok(())
    }

    async fn transfer(&self, task: &Transfer, call: &Call, passed: &(dyn Fn(Step) + Sync)) -> Result<(), TaskError> {
        // The lock, and so the thread, is kept for as long as others write; nothing here waits for another task.
        let mut db = self.0.lock();
        passed(Step::Started);
        let transaction = begin(&mut db)?;
        let debit = "UPDATE account SET balance = balance - ?2 WHERE id = ?1";
        transaction.execute(debit, params![task.from, task.amount])?;
        passed(Step::Debited);
        let credit = "UPDATE account SET balance = balance + ?2 WHERE id = ?1";
        transaction.execute(credit, params![task.to, task.amount])?;
        transaction.execute("INSERT INTO book VALUES (?1, ?2)", params![call.id().to_string(), task.number])?;
        passed(Step::Credited);
        complete_in(&transaction, call, &task.number)?;
        passed(Step::Completed);
        transaction.commit()?;
        passed(Step::Committed);
        Ok(())
    }

    async fn books(&self) -> Result<Books> {
        let db = self.0.lock();
        let mut accounts = db.prepare("SELECT id, balance FROM account")?;
        let balances = accounts.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let mut book = db.prepare("SELECT task FROM book ORDER BY task")?;
        let booked = book.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        Ok(Books { balances, booked })
    }
}

fn begin(db: &mut Connection) -> rusqlite::Result<Transaction<'_>> {
    db.transaction_with_behavior(TransactionBehavior::Immediate)
}
