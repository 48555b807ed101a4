//! The PostgreSQL store of Windlass: durable tasks in a schema of your database, any number of processes.
//!
//! ```text
//! push, claim, settle, renew  -->  lanes: a few connections, group commit, one round trip for all that waited
//! everything else             -->  tx: a transaction on a borrowed connection
//! a claim that found nothing  -->  wake: rung by the lanes of this process, or by the listener for other processes
//! ```
//!
//! Where to look: `sql/` the tables, `schema` their versions; `address` the URL, `tls`, `connection`, `open`; `lanes`, `tx` what a
//! transaction is; `offer`, `push`, `claim`, `settle`, `flow`, `command`, `tick`, `retention`, `fleet`, `schedules`, `limits`, `notes`, `transfer`
//! one verb each; `turns`, `ring` claims past gates and in the turns of keys; `read`, `listing`, `info` what people see; `wake`,
//! `listen` waiting; `errors` what PostgreSQL's errors mean. `join` pushes and completes within a transaction of the application's
//! own; the function `windlass.enqueue` of the schema pushes for every language. [`outbox`] is for tasks that go to another store.
//!
//! # What holds
//!
//! - A push that returned is committed with `synchronous_commit` on, or stronger where the server has it so; so is a claim: a
//!   lost claim could give one fence to two holders.
//! - Leases, delays and retention go by the server's clock.
//! - No statement reads history to count it, and no row is written by everybody: transactions leave changes of the counts
//!   behind, ticks add them up.
//! - `NOTIFY` takes a lock of the whole server at its commit: it is sent only while somebody waits.
//! - A claim asks once whether a limit, a hold or a key concerns its queues. Without any it is one statement; otherwise it goes
//!   past the gates under advisory locks, in three round trips that it shares with other work: one such claim of a queue at a
//!   time, and one of the database while a limit of names or keys holds for several queues.
//! - What runs is counted for each claim that a concurrency limits, in the rows themselves; a task counts until the commit
//!   that ends it. The length of a queue is counted under a lock: pushes into such a queue go one after the other.
//! - A request whose connection was lost answers [`StoreError::Unreachable`](windlass_core::StoreError::Unreachable): it may have
//!   taken effect, and every verb is safe to repeat. Deadlocks and serialization failures are repeated here.
//! - With `Retention::finished` beyond two days, what has ended goes by whole days, up to a day late; below, row by row.
//!
//! # What was measured
//!
//! No-op tasks with a small body through [`Backend`](windlass_core::Backend), each lane settling its last batch while it claims the
//! next; PostgreSQL 15 with `fsync` and `synchronous_commit` on, server and client on the same two cores, which did other things
//! as well (load 6 to 8); median (range) of five runs, limit and store in turn (`benches/limit.rs`). The limit is a bare table
//! in which one statement deletes the last batch and claims the next; this store keeps what has ended.
//!
//! | batch | lanes | limit, tasks/s | store, tasks/s | share |
//! |---|---|---|---|---|
//! | 100 | 1 | 16.2 k (11.9 k to 19.3 k) | 8.1 k (6.9 k to 11.6 k) | 50 % |
//! | 100 | 2 | 15.7 k (14.0 k to 19.1 k) | 14.8 k (14.1 k to 15.4 k) | 95 % |
//! | 100 | 4 | 29.6 k (23.4 k to 35.1 k) | 20.1 k (17.0 k to 21.0 k) | 68 % |
//! | 500 | 1 | 38.8 k (32.7 k to 42.0 k) | 21.1 k (15.1 k to 21.9 k) | 54 % |
//! | 500 | 2 | 36.5 k (32.9 k to 40.3 k) | 24.8 k (23.3 k to 29.8 k) | 68 % |
//! | 500 | 4 | 49.8 k (39.0 k to 55.9 k) | 27.2 k (22.6 k to 32.0 k) | 55 % |
//!
//! Concurrent single pushes share commits: 0.2 k/s from one caller, 2.1 k/s from 16, 9.3 k/s from 64; 24 k/s in batches of 1,000.
//!
//! A claim of 100 takes 7.6 ms (3.3 to 15.7) with a backlog of ten thousand and 7.7 ms (3.5 to 24.5) with a million, the commit
//! included, on the same busy machine.
//!
//! Where the time goes, from the server's own account of a batch of 500: of 15 ms, 6.4 ms are rows and the three indices of
//! the history, 4.2 ms the claimed rows and their three index entries, 1.8 ms the deleted rows, 0.5 ms the walk of the queue. So
//! the distance to the limit is the history, which the limit does not keep.

mod address;
mod adopt;
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
mod limits;
mod listen;
mod listing;
mod notes;
mod offer;
mod open;
pub mod outbox;
mod push;
mod read;
mod retention;
mod ring;
mod rows;
mod schedules;
mod schema;
mod settle;
mod tick;
mod tls;
mod transfer;
mod turns;
mod tx;
mod wake;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio_postgres_rustls::MakeRustlsConnect;
use windlass_core::time::LeaseGuard;
use windlass_core::view::Retention;
use windlass_core::{Clock, QueueName, Timestamp};

pub use address::{CONNECTIONS, CONNECTIONS_MAX, SCHEMA};
pub use join::{CompleteInError, PushInError, complete_in, push_in};
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
    limits: limits::Cache,
    /// Queues in which the last claim found gates or keys to look at.
    in_turns: Mutex<HashSet<QueueName>>,
    /// Transactions since the counts were added up.
    changes: AtomicU64,
    upkeep: retention::Upkeep,
    turnover: retention::Turnover,
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

    /// Whether a claim of these queues begins by looking at gates and keys.
    fn goes_in_turns(&self, queues: &[QueueName]) -> bool {
        let known = self.in_turns.lock();
        !known.is_empty() && queues.iter().any(|queue| known.contains(queue))
    }

    /// Notes what a claim of these queues found.
    fn go_in_turns(&self, queues: &[QueueName]) {
        self.in_turns.lock().extend(queues.iter().cloned());
    }

    /// The opposite.
    fn go_alone(&self, queues: &[QueueName]) {
        self.in_turns.lock().retain(|queue| !queues.contains(queue));
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
