//! One connection: how it is opened and set up, its prepared statements, and the deadline of every request on it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, Statement};
use tracing::debug;
use windlass_core::StoreError;

use crate::errors::{Fault, store_error};
use crate::{Shared, claim, push, schema, settle};

/// No answer for this long means that the connection is dead, whatever TCP says. The server gives up before.
pub(crate) const REQUEST_MAX: Duration = Duration::from_secs(20);
/// The oldest server that has what we use.
const SERVER_MIN: i32 = 13;

/// What makes a session ours.
///
/// Plans are made once and walk indices: with statistics of an empty queue the planner would read whole tables, and a queue
/// is empty or has a million rows from one minute to the next. Commits are synced even where the server's default is not
/// to; stronger settings stay.
pub(crate) const SET_UP: &str = "\
SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_bitmapscan = off; \
SET enable_hashjoin = off; SET enable_mergejoin = off; SET jit = off; \
SET default_transaction_isolation = 'read committed'; SET statement_timeout = '15s'; SET lock_timeout = '5s'; \
SET idle_in_transaction_session_timeout = '30s'; SET client_min_messages = warning; \
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') IN ('off', 'local');";

/// Values of a statement.
pub(crate) type Values<'a> = &'a [&'a (dyn ToSql + Sync)];

/// An open connection: our own, or one on which the application has a transaction open.
pub(crate) struct Connection<'c> {
    client: Handle<'c>,
    schema: String,
    channel: String,
    prepared: Mutex<HashMap<&'static str, Statement>>,
}

enum Handle<'c> {
    Ours(Client),
    Theirs(&'c Client),
}

impl std::fmt::Debug for Connection<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// A connection that is not open after this long is given up: a server that accepts and says nothing must not hold a lane.
pub(crate) const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Opens a connection and makes the session ours.
pub(crate) async fn connect(shared: &Shared) -> Result<Client, StoreError> {
    match timeout(CONNECT_MAX, connect_at_all(shared)).await {
        Ok(connected) => connected,
        Err(_) => Err(Fault::Silent.to_store_error(&shared.address.shown)),
    }
}

async fn connect_at_all(shared: &Shared) -> Result<Client, StoreError> {
    let in_words = |error: tokio_postgres::Error| store_error(&error, &shared.address.shown);
    let (client, connection) = shared.address.config.connect(shared.connector.clone()).await.map_err(in_words)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "a connection to the store ended");
        }
    });
    let version = client.simple_query("SHOW server_version_num").await.map_err(in_words)?;
    let version = version.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0)?.parse::<i32>().ok(),
        _ => None,
    });
    let major = version.unwrap_or_default() / 10_000;
    if major < SERVER_MIN {
        return Err(StoreError::Broken(format!(
            "{} is PostgreSQL {major}, this program needs {SERVER_MIN} or newer; upgrade the server",
            shared.address.shown
        )));
    }
    client.batch_execute(SET_UP).await.map_err(in_words)?;
    Ok(client)
}

impl<'c> Connection<'c> {
    /// Opens a connection and prepares what is used all the time.
    pub(crate) async fn open(shared: &Arc<Shared>) -> Result<Self, StoreError> {
        Self::on(connect(shared).await?, shared).await
    }

    /// Goes on with an open connection.
    pub(crate) async fn on(client: Client, shared: &Arc<Shared>) -> Result<Self, StoreError> {
        let (schema, channel) = (shared.address.schema.clone(), shared.channel.clone());
        let connection = Self { client: Handle::Ours(client), schema, channel, prepared: Mutex::default() };
        let hot = [
            push::INSERT,
            push::FORGET_KNOWN,
            settle::END,
            settle::SEND_BACK,
            claim::PROMOTE,
            claim::CLAIM,
            claim::CLAIM_BY_NAME,
            claim::RENEW,
        ];
        connection.prepare_all(&hot).await.map_err(|fault| fault.to_store_error(&shared.address.shown))?;
        Ok(connection)
    }

    /// Prepares statements that are not.
    pub(crate) async fn prepare_all(&self, statements: &[&'static str]) -> Result<(), Fault> {
        let missing = |sql: &&&'static str| !self.prepared.lock().contains_key(**sql);
        try_join_all(statements.iter().filter(missing).map(|sql| self.prepare(sql))).await.map(drop)
    }

    /// Takes part in what the application does on a connection of its own, with its settings.
    pub(crate) fn of_application(client: &'c Client, schema: &str) -> Self {
        let (schema, channel) = (schema.to_owned(), schema::channel(schema));
        Self { client: Handle::Theirs(client), schema, channel, prepared: Mutex::default() }
    }

    fn client(&self) -> &Client {
        match &self.client {
            Handle::Ours(client) => client,
            Handle::Theirs(client) => client,
        }
    }

    fn sql(&self, text: &str) -> String {
        schema::for_schema(text, &self.schema, &self.channel)
    }

    /// Whether the server or the network has ended it.
    pub(crate) fn is_closed(&self) -> bool {
        self.client().is_closed()
    }

    async fn prepare(&self, sql: &'static str) -> Result<Statement, Fault> {
        if let Some(statement) = self.prepared.lock().get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.in_time(self.client().prepare(&self.sql(sql))).await?;
        self.prepared.lock().insert(sql, statement.clone());
        Ok(statement)
    }

    /// Runs a statement, prepared once for the life of the connection.
    pub(crate) async fn query(&self, sql: &'static str, values: Values<'_>) -> Result<Vec<Row>, Fault> {
        let statement = self.prepare(sql).await?;
        self.in_time(self.client().query(&statement, values)).await
    }

    /// Runs a statement and answers how many rows it changed.
    pub(crate) async fn execute(&self, sql: &'static str, values: Values<'_>) -> Result<u64, Fault> {
        let statement = self.prepare(sql).await?;
        self.in_time(self.client().execute(&statement, values)).await
    }

    /// Runs a statement that was put together for this question alone.
    pub(crate) async fn query_once(&self, sql: &str, values: Values<'_>) -> Result<Vec<Row>, Fault> {
        self.in_time(self.client().query(&self.sql(sql), values)).await
    }

    /// Runs statements without values or answers.
    pub(crate) async fn run(&self, sql: &str) -> Result<(), Fault> {
        self.in_time(self.client().batch_execute(sql)).await
    }

    /// A request of ours must end. In the application's transaction, the application says how long something takes.
    async fn in_time<T>(&self, request: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, Fault> {
        match &self.client {
            Handle::Theirs(_) => Ok(request.await?),
            Handle::Ours(_) => match timeout(REQUEST_MAX, request).await {
                Ok(answer) => Ok(answer?),
                Err(_) => Err(Fault::Silent),
            },
        }
    }
}
