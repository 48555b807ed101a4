//! A bank in the database of a store.

use anyhow::{Context, Result};
use async_trait::async_trait;
use tokio::sync::Mutex;
use tokio_postgres::{Client, NoTls};
use windlass::TaskError;
use windlass::call::Call;
use windlass_postgres::{SCHEMA, complete_in};

use super::{Bank, Books, Step, Transfer};

/// Connections that wait for their next transfer. One whose transfer failed is not used again: its transaction ends with it.
pub(super) struct PostgresBank {
    url: String,
    idle: Mutex<Vec<Client>>,
}

impl std::fmt::Debug for PostgresBank {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PostgresBank")
    }
}

impl PostgresBank {
    pub(super) fn open(url: &str) -> Self {
        Self { url: url.to_owned(), idle: Mutex::default() }
    }

    async fn connection(&self) -> Result<Client> {
        if let Some(client) = self.idle.lock().await.pop() {
            return Ok(client);
        }
        let (client, connection) = tokio_postgres::connect(&self.url, NoTls).await.context("the bank is closed")?;
        tokio::spawn(connection);
        Ok(client)
    }
}

#[async_trait]
impl Bank for PostgresBank {
    async fn found(&self, accounts: u32, balance: i64) -> Result<()> {
        let client = self.connection().await?;
        let sql = format!(
            "CREATE TABLE account (id bigint PRIMARY KEY, balance bigint NOT NULL); \
             CREATE TABLE book (task text NOT NULL, number bigint NOT NULL); \
             INSERT INTO account SELECT id, {balance} FROM generate_series(0, {accounts} - 1) AS id"
        );
        client.batch_execute(&sql).await?;
        Ok(())
    }

    async fn transfer(&self, task: &Transfer, call: &Call, passed: &(dyn Fn(Step) + Sync)) -> Result<(), TaskError> {
        let mut client = self.connection().await.map_err(TaskError::failed)?;
        passed(Step::Started);
        let transaction = client.transaction().await?;
        let debit = "UPDATE account SET balance = balance - $2 WHERE id = $1";
        transaction.execute(debit, &[&i64::from(task.from), &task.amount]).await?;
        passed(Step::Debited);
        // Two that cross each other are a deadlock: PostgreSQL refuses one of them, which is tried again.
        let credit = "UPDATE account SET balance = balance + $2 WHERE id = $1";
        transaction.execute(credit, &[&i64::from(task.to), &task.amount]).await?;
        let book = "INSERT INTO book VALUES ($1, $2)";
        transaction.execute(book, &[&call.id().to_string(), &i64::from(task.number)]).await?;
        passed(Step::Credited);
        complete_in(&transaction, SCHEMA, call, &task.number).await?;
        passed(Step::Completed);
        transaction.commit().await?;
        passed(Step::Committed);
        self.idle.lock().await.push(client);
        Ok(())
    }

    async fn books(&self) -> Result<Books> {
        let client = self.connection().await?;
        let mut books = Books::default();
        for row in client.query("SELECT id, balance FROM account", &[]).await? {
            books.balances.insert(u32::try_from(row.get::<_, i64>(0))?, row.get(1));
        }
        let booked = client.query("SELECT task FROM book ORDER BY task COLLATE \"C\"", &[]).await?;
        books.booked = booked.iter().map(|row| row.get(0)).collect();
        Ok(books)
    }
}
