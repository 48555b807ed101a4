//! The PostgreSQL store of Windlass: durable tasks in a schema of your database, any number of processes.
//!
//! ```text
//! push, claim, settle, renew  -->  lanes: a few connections, group commit, one round trip for all that waited
//! everything else             -->  tx: a transaction on a borrowed connection
//! a claim that found nothing  -->  wake: rung by the lanes of this process, or by the listener for other processes
//! ```
//!
//! Where to look: `sql/` the tables, `schema` their versions; `address` the URL, `tls`, `connection`, `open`; `lanes`, `tx` what a
//! transaction is; `push`, `claim`, `settle`, `flow`, `command`, `tick`, `retention`, `fleet`, `schedules` one verb each; `read`,
//! `listing`, `info` what people see; `wake`, `listen` waiting; `errors` what PostgreSQL's errors mean.

mod address;
mod backend;
mod claim;
mod command;
mod connection;
mod errors;
mod fleet;
mod flow;
mod info;
mod join;
mod lanes;
mod listen;
mod listing;
mod open;
mod push;
mod read;
mod retention;
mod rows;
mod schedules;
mod schema;
mod settle;
mod tick;
mod tls;
mod tx;
mod wake;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio_postgres_rustls::MakeRustlsConnect;
use windlass_core::time::LeaseGuard;
use windlass_core::view::Retention;
use windlass_core::{Clock, Timestamp};

pub use address::{CONNECTIONS, CONNECTIONS_MAX, SCHEMA};
pub use join::{PushInError, push_in};
pub use open::{Migrations, Options, Time};
pub use schema::{Pending, SCHEMA_VERSION};

/// A task store in a PostgreSQL database.
///
/// It lives on the runtime that it was opened on, which must live as long. Dropping it closes its connections.
#[derive(Debug)]
pub struct PostgresStore {
    lanes: lanes::Lanes,
    listener: listen::Listener,
    shared: Arc<Shared>,
}

/// What all connections of a store know.
struct Shared {
    address: address::Address,
    connector: MakeRustlsConnect,
    retention: Retention,
    time: Time,
    leases: LeaseGuard,
    bell: Arc<wake::Bell>,
    /// Under this name the handle is in the table of those who wait.
    handle: String,
    channel: String,
    /// Whether some names are paused, as far as is known: then claims go by name.
    names_paused: AtomicBool,
    /// Transactions since the counts were added up.
    changes: AtomicU64,
    upkeep: retention::Upkeep,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("place", &self.address.shown).finish_non_exhaustive()
    }
}

impl Shared {
    /// A statement for this store: `windlass.` stands for its schema, `@channel` for its channel.
    fn sql(&self, text: &str) -> String {
        schema::for_schema(text, &self.address.schema, &self.channel)
    }

    /// The time, when it is not the server's.
    fn given_now(&self) -> Option<i64> {
        match &self.time {
            Time::Server => None,
            Time::Given(clock) => Some(clock.now().as_micros()),
        }
    }

    /// Notes what a claim saw.
    fn names_paused(&self, paused: bool, looked: bool) {
        if looked {
            self.names_paused.store(paused, Ordering::Relaxed);
        }
    }

    /// Counts a transaction.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }
}

/// A moment by the server's clock and by one that nobody moves.
#[derive(Debug)]
struct Moment {
    now: Timestamp,
    steady: std::time::Duration,
}

impl Clock for Moment {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn steady(&self) -> std::time::Duration {
        self.steady
    }
}

impl PostgresStore {
    /// Host, port, database and schema; without secrets.
    pub fn location(&self) -> &str {
        &self.shared.address.shown
    }
}
