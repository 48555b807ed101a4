//! Opening a store: the URL, the first connection, the version of its tables, the lanes and the listener.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

use tokio_postgres::Client;
use windlass_core::time::LeaseGuard;
use windlass_core::view::Retention;
use windlass_core::{Clock, StoreError, TaskId};

use crate::address::Address;
use crate::connection::{self, Connection};
use crate::lanes::Lanes;
use crate::listen::Listener;
use crate::retention::{self, Upkeep};
use crate::schema::{self, Pending, SCHEMA_VERSION};
use crate::wake::Bell;
use crate::{PostgresStore, Shared, tls};

/// What the client library says of a server that may not write.
const NO_WRITES: &str = "does not allow writes";

/// How a store is opened.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// How long ended tasks are kept.
    pub retention: Retention,
    /// Whose clock measures leases and delays; the server's.
    pub time: Time,
    /// Whether older tables are brought up to date; they are.
    pub migrations: Migrations,
}

/// Whose clock a store goes by.
#[derive(Debug, Clone, Default)]
pub enum Time {
    /// The server's: the one clock that all processes share.
    #[default]
    Server,
    /// This one: for tests.
    Given(Arc<dyn Clock>),
}

/// Whether older tables are brought up to date when a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Migrations {
    /// At once.
    #[default]
    Apply,
    /// The store is not opened; somebody runs [`PostgresStore::migrate`] first.
    Refuse,
}

impl PostgresStore {
    /// Opens the store in a schema of a database, and makes the schema when there is none.
    ///
    /// The URL: `postgres://USER:PASSWORD@HOST:5432/DATABASE`, and after a `?`
    /// - `schema`, where the tables are; `windlass`
    /// - `connections`, how many work; 3. One more listens while somebody waits.
    /// - `sslmode`: `disable`; `prefer`, the default: encrypted when the server can, which keeps passive listeners out, but
    ///   nobody checks whose certificate it is; `require` and `verify-full`: encrypted, with a certificate that is valid for
    ///   the host, or no connection at all.
    /// - `sslrootcert`, a PEM file with the certificates to trust instead of the machine's
    /// - everything else that `tokio-postgres` reads, such as `connect_timeout`, `application_name`, several hosts.
    ///
    /// Behind a pooler in transaction mode notifications are lost; what waits then looks once a second. The pooler must keep
    /// prepared statements (PgBouncer 1.21 and newer), and hands our session's planner settings to others: give Windlass a
    /// pool, better a direct connection, of its own.
    ///
    /// # Errors
    /// [`StoreError::Denied`] when the server does not let us in or not do what we must: a wrong user or password, missing
    /// rights, a standby. [`StoreError::Broken`] when somebody must act otherwise: a wrong URL or database, an old server, a
    /// newer schema, a certificate that cannot be trusted. [`StoreError::Unreachable`] when nobody answers.
    pub async fn connect(url: &str, options: Options) -> Result<Self, StoreError> {
        let shared = Arc::new(shared(url, options.retention, options.time)?);
        let client = first_connection(&shared).await?;
        let pending = schema::pending(schema::version(&client, &shared.address).await?, &shared.address)?;
        if !pending.steps.is_empty() {
            // A schema without tables is new: nobody's data is migrated.
            if options.migrations == Migrations::Refuse && pending.version > 0 {
                return Err(StoreError::Broken(format!(
                    "{} has schema version {}, this program needs version {SCHEMA_VERSION}; run `windlass migrate up`",
                    shared.address.shown, pending.version
                )));
            }
            schema::migrate(&client, &shared.address).await?;
        }
        retention::make_partitions(&shared, &client).await?;
        let first = Connection::on(client, &shared).await?;
        let lanes = Lanes::start(&shared, first);
        let listener = Listener::start(&shared);
        Ok(Self { lanes, listener, shared })
    }

    /// What is left to do before this program can use a schema; changes nothing.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`].
    pub async fn pending(url: &str) -> Result<Pending, StoreError> {
        let shared = shared(url, Retention::default(), Time::Server)?;
        let client = first_connection(&shared).await?;
        schema::pending(schema::version(&client, &shared.address).await?, &shared.address)
    }

    /// Brings a schema up to date, one transaction for each step, and answers how many steps that were.
    ///
    /// # Errors
    /// As [`PostgresStore::connect`].
    pub async fn migrate(url: &str) -> Result<usize, StoreError> {
        let shared = shared(url, Retention::default(), Time::Server)?;
        let client = first_connection(&shared).await?;
        schema::migrate(&client, &shared.address).await
    }
}

/// The first connection. A server that may not write is refused; one that becomes so while the store is open is waited for:
/// it may be a switch to another primary.
async fn first_connection(shared: &Shared) -> Result<Client, StoreError> {
    let place = &shared.address.shown;
    connection::connect(shared).await.map_err(|error| match error {
        StoreError::Unreachable(said) if said.to_string().contains(NO_WRITES) => StoreError::Denied(format!(
            "{place} is read-only, a standby or set so; point the URL at the primary server, or set \
             default_transaction_read_only = off"
        )),
        other => other,
    })
}

fn shared(url: &str, retention: Retention, time: Time) -> Result<Shared, StoreError> {
    let address = Address::parse(url)?;
    Ok(Shared {
        connector: tls::connector(&address)?,
        channel: schema::channel(&address.schema),
        address,
        retention,
        time,
        leases: LeaseGuard::default(),
        bell: Arc::new(Bell::default()),
        handle: TaskId::random().to_string(),
        names_paused: AtomicBool::new(false),
        limits: crate::limits::Cache::default(),
        in_turns: parking_lot::Mutex::default(),
        changes: AtomicU64::new(0),
        upkeep: Upkeep::default(),
        turnover: retention::Turnover::default(),
    })
}
