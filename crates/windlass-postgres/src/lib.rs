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
//! one verb each; `turns`, `ring` claims past gates and in the turns of keys, `wide` past gates that are far from shutting; `read`, `listing`, `info` what people see; `wake`,
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
//! - A claim asks once whether a limit, a hold or a key concerns its queues. Without any it is one statement. While the gates of its
//!   queues are far from shutting it is three or four, sent together, and claims go side by side (`wide`): for limits of whole
//!   queues and of each key of a queue. Otherwise it goes past the gates under advisory locks, in three round trips that it shares
//!   with other work: one such claim of a queue at a time, and one of the database while a limit of names or keys holds for
//!   several queues.
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
//!
//! # What limits cost
//!
//! The share of the rate without limits and keys that is kept, in the same run: medians of five rounds, the kinds of work in turn
//! (`SECTION=gates`, `benches/limit.rs`), on two cores with a load of 10, so a figure is worth no more than a tenth. *Limited*: the
//! queue has a rate and a concurrency that do not bind; *keys*: 50 keys take turns, without a limit, and with a rate and a
//! concurrency of each key that do not bind. In brackets: when all such claims went in turns, three rounds. A run has 4,000 tasks in
//! batches of 10, and 12,000 or, for 100 on four lanes, 30,000 in larger ones; what a lane does first, connecting and preparing
//! statements, is in it.
//!
//! | batch | lanes | limited | keys | keys, limited |
//! |---|---|---|---|---|
//! | 10 | 1 | 82 % | 95 % | 67 % |
//! | 10 | 4 | 80 % | 69 % | 59 % |
//! | 100 | 1 | 81 % (74 %) | 65 % (57 %) | 66 % (51 %) |
//! | 100 | 2 | 80 % (74 %) | 68 % (39 %) | 63 % (40 %) |
//! | 100 | 4 | 78 % (42 %) | 60 % (41 %) | 57 % (36 %) |
//! | 500 | 1 | 76 % | 72 % | 70 % |
//! | 500 | 2 | 94 % | 73 % | 60 % |
//! | 500 | 4 | 76 % | 53 % | 46 % |
//!
//! Before, of a hundred samples of `pg_stat_activity` while four lanes drained, a quarter was idle in the transaction that held
//! the lock, as it waited for the client, and a quarter was in `COMMIT`; meanwhile the claims of the other lanes waited. What a
//! limit costs now, by the server's account of a claim of 10 that takes 0.11 ms without, at best: 0.09 ms for the reservation, 0.10 ms
//! for the announcement, most of it `pg_locks`, 0.05 ms for what is looked at before something is taken. That counts what runs, which
//! grows with the batches and the lanes: of 1,521 claims of 100 on four lanes 20 went in turns, and the others took 6.9 ms each where
//! those without a limit took 5.4 ms. Dealing to 50 keys takes 0.23 ms, and then a row of `gate` for each when they have rates.
//!
//! Thought through, and left: a commit in turns that is not synced, with a synced one behind it (a sync takes 0.3 ms here, and the
//! round trips stay); starts that a lane keeps in stock for later claims (what was counted and is used after its time exceeds the
//! rate); a number of slots for claims instead of announcements (a concurrency below sixteen batches would never be far); one
//! counter of what runs (a row that every claim and every settle locks up to its commit).

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
mod wide;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_postgres_rustls::MakeRustlsConnect;
use windlass_core::backend::Demand;
use windlass_core::time::LeaseGuard;
use windlass_core::view::Retention;
use windlass_core::{Clock, QueueName, Timestamp};

use crate::claim::Walk;
use crate::wide::Wide;

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
    in_turns: Mutex<HashMap<QueueName, Found>>,
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

    /// How a claim begins that has to look at gates and keys, if it has to.
    fn past_gates(&self, demand: &Demand) -> Option<Walk> {
        let known = self.in_turns.lock();
        if !demand.queues.iter().any(|queue| known.contains_key(queue)) {
            return None;
        }
        let mut of_queues = demand.queues.iter().map(|queue| known.get(queue).map_or(Gates::Near, Found::gates));
        let first = of_queues.next().unwrap_or_default();
        let gates = if demand.except.is_empty() && of_queues.all(|gates| gates == first) { first } else { Gates::Near };
        drop(known);
        let limits = self.limits.last_known();
        Some(limits.and_then(|limits| Wide::of(&limits, &demand.queues, gates)).map_or(Walk::Turns, Walk::Wide))
    }

    /// Notes what a claim of these queues found.
    fn go_past_gates(&self, queues: &[QueueName], gates: Gates) {
        let mut known = self.in_turns.lock();
        for queue in queues {
            known.entry(queue.clone()).or_default().gates = gates;
        }
    }

    /// Notes that a claim of these queues was refused at gates that had been found far from shutting.
    fn go_in_turns_for_a_while(&self, queues: &[QueueName]) {
        let found = Found { gates: Gates::Near, refused: Some(Instant::now()) };
        self.in_turns.lock().extend(queues.iter().map(|queue| (queue.clone(), found)));
    }

    /// The opposite.
    fn go_alone(&self, queues: &[QueueName]) {
        self.in_turns.lock().retain(|queue, _| !queues.contains(queue));
    }

    /// Counts a transaction.
    fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }
}

/// How near the gates of a queue are to shutting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Gates {
    /// They may shut: claims go in turns.
    #[default]
    Near,
    /// They leave room for many more, and there are no keys: claims go side by side.
    Far,
    /// The same, and there are keys.
    KeysFar,
}

/// What claims of a queue have found.
#[derive(Debug, Clone, Copy, Default)]
struct Found {
    gates: Gates,
    refused: Option<Instant>,
}

/// So long claims go in turns after one was refused: what stands in its way may stay, and each refusal is a way for nothing.
const REFUSED_FOR: Duration = Duration::from_secs(1);

impl Found {
    fn gates(&self) -> Gates {
        if self.refused.is_some_and(|refused| refused.elapsed() < REFUSED_FOR) { Gates::Near } else { self.gates }
    }
}

/// A moment by the server's clock and by one that nobody moves.
#[derive(Debug)]
struct Moment {
    now: Timestamp,
    steady: Duration,
}

impl Clock for Moment {
    fn now(&self) -> Timestamp {
        self.now
    }

    fn steady(&self) -> Duration {
        self.steady
    }
}

impl PostgresStore {
    /// Host, port, database and schema; without secrets.
    pub fn location(&self) -> &str {
        &self.shared.address.shown
    }
}
