//! Accounts in the database of a store, and transfers between them that are made together with the end of their task.
//!
//! The program `chaos-bank` makes the transfers; [`Bank`] is all that it needs of a database.

mod postgres;
mod sqlite;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use windlass::call::Call;
use windlass::{Task, TaskError};

use postgres::PostgresBank;
use sqlite::SqliteBank;

/// Moves money.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(name = "chaos.transfer", retries = 20, backoff = "20ms", output = u32)]
pub struct Transfer {
    /// Which transfer; also the output.
    pub number: u32,
    /// From this account.
    pub from: u32,
    /// To this one.
    pub to: u32,
    /// So much.
    pub amount: i64,
}

/// How far a handler is: after each of these its process may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It has not begun its transaction.
    Started,
    /// The money has left the one account.
    Debited,
    /// It is in the other one, and the transfer is in the book.
    Credited,
    /// The task is completed; nothing is committed.
    Completed,
    /// Everything is committed, and nobody has heard of it.
    Committed,
}

impl Step {
    /// Every step, in order.
    pub const ALL: [Self; 5] = [Self::Started, Self::Debited, Self::Credited, Self::Completed, Self::Committed];
}

/// What is in a bank.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Books {
    /// By account.
    pub balances: BTreeMap<u32, i64>,
    /// The id of the task of each booking, as often as it was booked, in order.
    pub booked: Vec<String>,
}

/// Accounts in the database of a store.
#[async_trait]
pub trait Bank: Send + Sync + std::fmt::Debug {
    /// Opens this many accounts with this balance each, and a book that is empty. A task that is booked twice must be seen in
    /// the book, so it does not refuse that.
    async fn found(&self, accounts: u32, balance: i64) -> Result<()>;

    /// Debits, credits, books and completes the task in one transaction; its number is the output. Calls `passed` after each
    /// step, which may not return.
    async fn transfer(&self, task: &Transfer, call: &Call, passed: &(dyn Fn(Step) + Sync)) -> Result<(), TaskError>;

    /// Reads everything.
    async fn books(&self) -> Result<Books>;
}

/// The bank in the store with this URL.
///
/// # Errors
/// When the store has no transactions that an application can take part in, or does not answer.
pub fn bank(url: &str) -> Result<Box<dyn Bank>> {
    let (scheme, rest) = url.split_once(':').context("the URL of a store begins with its kind")?;
    match scheme {
        "sqlite" => Ok(Box::new(SqliteBank::open(rest.as_ref())?)),
        "postgres" | "postgresql" => Ok(Box::new(PostgresBank::open(url))),
        _ => bail!("there is no bank in a store of the kind `{scheme}`"),
    }
}
