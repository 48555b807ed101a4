//! The outbox in a PostgreSQL database: for applications whose tasks are in a store elsewhere. See
//! [`windlass_core::outbox`] for what it promises.
//!
//! The table is the application's: [`SQL`] makes it, in the schema that comes first in the application's `search_path`. A relay
//! finds it by the same path: `postgres://host/shop?options=-csearch_path%3Dshop`. The relay needs one connection, on which it
//! also listens; behind a pooler that swallows notifications it looks once a second.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::poll_fn;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_postgres::{AsyncMessage, Client, Row as SqlRow, Transaction};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::debug;
use windlass_core::backend::Push;
use windlass_core::outbox::{Outbox, Row, TAKE_BYTES_MAX, TAKE_ROWS_MAX, Taken, queue_of, to_text};
use windlass_core::{QueueName, StoreError};

use crate::PushInError;
use crate::address::Address;
use crate::connection::{CONNECT_MAX, REQUEST_MAX, Values};
use crate::errors::{Fault, store_error};
use crate::rows::storable;
use crate::tls;

/// Makes the table; for the migrations of the application. To run it again changes nothing.
pub const SQL: &str = include_str!("sql/outbox.sql");

/// A relay that is stopped or cut off in the middle of a batch keeps its rows for this long at most.
const SET_UP: &str = "\
SET default_transaction_isolation = 'read committed'; SET statement_timeout = '15s'; SET lock_timeout = '5s'; \
SET idle_in_transaction_session_timeout = '60s'; SET client_min_messages = warning; LISTEN windlass_outbox";

/// Writes a push into the outbox, in the caller's transaction: it goes to the store when that commits, and never was when it
/// rolls back.
///
/// # Errors
/// [`PushInError::Rejected`] when a limit is broken, [`PushInError::Database`] when the table is missing: run [`SQL`] once.
pub async fn push_in(transaction: &Transaction<'_>, push: &Push) -> Result<(), PushInError> {
    let (queue, text) = (queue_of(push), to_text(push)?);
    transaction
        .execute("INSERT INTO windlass_outbox (queue, push) VALUES ($1, $2)", &[&queue.as_str(), &text])
        .await
        .map(drop)
        .map_err(PushInError::Database)
}

/// The outbox of an application, for a [`Relay`](windlass_core::outbox::Relay).
pub struct PostgresOutbox(Arc<Shared>);

struct Shared {
    address: Address,
    connector: MakeRustlsConnect,
    /// The connection, while no batch has it.
    idle: Mutex<Option<Client>>,
    told: Notify,
}

impl PostgresOutbox {
    /// The outbox in the database with this URL, which is read as that of a store; `schema` and `connections` mean nothing here.
    /// Connects when rows are taken.
    ///
    /// # Errors
    /// [`StoreError::Broken`] when the URL is wrong.
    pub fn at(url: &str) -> Result<Self, StoreError> {
        let address = Address::parse(url)?;
        let connector = tls::connector(&address)?;
        Ok(Self(Arc::new(Shared { address, connector, idle: Mutex::default(), told: Notify::new() })))
    }
}

impl std::fmt::Debug for PostgresOutbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOutbox").field("place", &self.0.address.shown).finish_non_exhaustive()
    }
}

impl Shared {
    fn explained(&self, fault: &Fault) -> StoreError {
        match fault {
            Fault::Sql(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNDEFINED_TABLE) => {
                StoreError::Broken(format!(
                    "{} has no table windlass_outbox in its search_path; the application makes it with the SQL of its driver, \
                     and `?options=-csearch_path%3DNAME` in the URL names another schema",
                    self.address.shown
                ))
            }
            fault => fault.to_store_error(&self.address.shown),
        }
    }

    async fn connect(self: &Arc<Self>) -> Result<Client, StoreError> {
        let in_words = |error: tokio_postgres::Error| store_error(&error, &self.address.shown);
        let (client, mut connection) = self.address.config.connect(self.connector.clone()).await.map_err(in_words)?;
        let shared = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                let message = poll_fn(|context| connection.poll_message(context)).await;
                let Some(shared) = shared.upgrade() else { return };
                match message {
                    Some(Ok(AsyncMessage::Notification(_))) => shared.told.notify_one(),
                    Some(Ok(_)) => {}
                    // Whoever waits connects again, and sees what was written meanwhile.
                    Some(Err(_)) | None => {
                        debug!("the connection to an outbox ended");
                        return shared.told.notify_one();
                    }
                }
            }
        });
        client.batch_execute(SET_UP).await.map_err(in_words)?;
        Ok(client)
    }

    async fn client(self: &Arc<Self>) -> Result<Client, StoreError> {
        let idle = self.idle.lock().take().filter(|client| !client.is_closed());
        match idle {
            Some(client) => Ok(client),
            None => match timeout(CONNECT_MAX, self.connect()).await {
                Ok(connected) => connected,
                Err(_) => Err(self.explained(&Fault::Silent)),
            },
        }
    }

    async fn in_time<T>(
        &self,
        request: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        let answer = match timeout(REQUEST_MAX, request).await {
            Ok(answer) => answer.map_err(Fault::Sql),
            Err(_) => Err(Fault::Silent),
        };
        answer.map_err(|fault| self.explained(&fault))
    }

    async fn query(&self, client: &Client, sql: &str, values: Values<'_>) -> Result<Vec<SqlRow>, StoreError> {
        self.in_time(client.query(sql, values)).await
    }
}

#[async_trait]
impl Outbox for PostgresOutbox {
    async fn take(&self, except: &[QueueName]) -> Result<Option<Box<dyn Taken>>, StoreError> {
        let shared = &self.0;
        // Not given back after an error: the server rolls back what a lost connection has begun.
        let client = shared.client().await?;
        shared.in_time(client.batch_execute("BEGIN")).await?;
        let except: Vec<&str> = except.iter().map(QueueName::as_str).collect();
        let sizes = "SELECT place, octet_length(push) FROM windlass_outbox \
                     WHERE refused IS NULL AND queue <> ALL($1) ORDER BY place LIMIT $2 FOR UPDATE SKIP LOCKED";
        let sizes = shared.query(&client, sizes, &[&except, &(TAKE_ROWS_MAX as i64)]).await?;
        let (mut places, mut bytes) = (Vec::new(), 0);
        for row in &sizes {
            bytes += usize::try_from(row.get::<_, i32>(1)).unwrap_or(0);
            if !places.is_empty() && bytes > TAKE_BYTES_MAX {
                break;
            }
            places.push(row.get::<_, i64>(0));
        }
        if places.is_empty() {
            shared.in_time(client.batch_execute("ROLLBACK")).await?;
            *shared.idle.lock() = Some(client);
            return Ok(None);
        }
        let rows = "SELECT place, greatest(0, extract(epoch FROM clock_timestamp() - written_at) * 1000000)::bigint, push \
                    FROM windlass_outbox WHERE place = ANY($1) ORDER BY place";
        let rows = shared.query(&client, rows, &[&places]).await?;
        let rows = rows.iter().map(|row| Row {
            place: row.get(0),
            age: Duration::from_micros(u64::try_from(row.get::<_, i64>(1)).unwrap_or(0)),
            text: row.get(2),
        });
        Ok(Some(Box::new(Batch { rows: rows.collect(), client, shared: Arc::clone(shared) })))
    }

    async fn written(&self, wait: Duration) {
        // A note that came before is kept for this.
        let _ = timeout(wait, self.0.told.notified()).await;
    }
}

/// Rows that are locked by a transaction. Dropped with its connection, which rolls back.
struct Batch {
    rows: Vec<Row>,
    client: Client,
    shared: Arc<Shared>,
}

#[async_trait]
impl Taken for Batch {
    fn rows(&self) -> &[Row] {
        &self.rows
    }

    async fn settle(self: Box<Self>, moved: &[i64], refused: &[(i64, String)]) -> Result<(), StoreError> {
        let Self { client, shared, .. } = *self;
        if !moved.is_empty() {
            shared.query(&client, "DELETE FROM windlass_outbox WHERE place = ANY($1)", &[&moved]).await?;
        }
        if !refused.is_empty() {
            let (places, reasons): (Vec<i64>, Vec<String>) =
                refused.iter().map(|(place, why)| (*place, storable(why))).unzip();
            let sql = "UPDATE windlass_outbox o SET refused = r.why FROM unnest($1::bigint[], $2::text[]) AS r(place, why) \
                       WHERE o.place = r.place";
            shared.query(&client, sql, &[&places, &reasons]).await?;
        }
        shared.in_time(client.batch_execute("COMMIT")).await?;
        *shared.idle.lock() = Some(client);
        Ok(())
    }
}
