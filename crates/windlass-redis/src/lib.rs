//! The Redis and Valkey store of Windlass: durable tasks in a server that many machines share. Redis 6.2 or newer, or Valkey.
//!
//! ```no_run
//! use windlass_redis::{Location, Options, RedisStore};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let location: Location = "redis://user:password@127.0.0.1:6379/0?namespace=shop".parse()?;
//! let store = RedisStore::open(location, Options::default()).await?;
//! # Ok(()) }
//! ```
//!
//! Every verb is one script, which is atomic:
//!
//! ```text
//! push, claim, settle, ...    -->  link: one connection, made again when it broke; requests do not wait for each other
//!                                  scripts: functions where the server has them, `EVALSHA` elsewhere; `lua/` has the text
//! a claim that found nothing  -->  wake: leaves its name in the script that found nothing; a second connection hears
//! ```
//!
//! Where to look: `location` URLs; `open` what is checked once; `link` the connection; `scripts`, `lua/common.lua` the unit of work;
//! `push` is in `backend`, with `encode`; `claim`, `settle`, `command`, `fleet` (beat, nodes, tick), `schedules`, `limits`, `notes`,
//! `watch` one verb each; `listing`, `counts`, `info` what people see; `record` what scripts answer; `wake` waiting; `errors` what
//! a server's errors mean.
//!
//! # Keys
//!
//! All begin with `{NAMESPACE}:`, so a namespace is in one slot of a cluster, and so on one node: to use more nodes, use more
//! namespaces. Nothing but the names of waiting claims ever expires by itself.
//!
//! | key | holds |
//! |---|---|
//! | `meta`, `seq` | version and epoch; the last number of a task |
//! | `task`, `body`, `id` | by number: the packed task with a short body, longer bodies; number by id |
//! | `result`, `failure`, `history`, `progress`, `skipped`, `waits`, `extra`, `memo:NUMBER` | by number: what only some tasks have |
//! | `ready:QUEUE NAME`, `lanes:QUEUE` | ready tasks of a queue and a name by rank; the names of a queue that have some |
//! | `ready:QUEUE NAME KEY`, `names:QUEUE`, `keys:QUEUE NAME` | the same for tasks with a key; the keys of a name in their order |
//! | `keyed:QUEUE`, `turn` | ready tasks with a key by rank, for those who count and list; whose turn it is |
//! | `due:QUEUE`, `lease`, `parked`, `expires` | by time: scheduled, running, parked, with a date of expiry |
//! | `ended`, `forget`, `dead` | by time: what retention removes |
//! | `counts`, `queues`, `paused`, `blocks` | counters, known queues, pauses, tasks by thousands of numbers (for listings) |
//! | `key:KEY`, `flow:ID`, `taken`, `windows` | tasks of a key and of a workflow; unique keys |
//! | `group:ID`, `arrived:ID`, `groups` | workflows |
//! | `schedule:ID`, `schedules`, `slots` | schedules |
//! | `limits`, `rules`, `held`, `next`, `running` | limits; what there is of them; what is counted at gates (`lua/gates.lua`) |
//! | `notes`, `note`, `note_ends`, `note_version` | notes: in their order, what they say, when they end |
//! | `new_notes` | the names of notes that are not in the two orders yet: identities of deliveries, which live for a moment |
//! | `node`, `beats`, `alive`, `orders:NODE`, `cancel:NODE` | the fleet |
//! | `wait:QUEUE`, `watch`; channels `bell:HANDLE`, `ends` | who waits |
//!
//! A paused or excepted name is a lane that a claim does not look into, so it is never walked over. Tasks of one queue, name and key
//! pass the same gates: a lane that must wait is not looked into either. A claim looks at the gates of all lanes together, and
//! writes what it has counted once.
//!
//! # Time
//!
//! Leases, due times and retention are measured by the clock of the server ([`Time::Server`]), whatever the nodes show. When
//! that clock is moved, nobody is taken for dead for a while ([`windlass_core::time::LeaseGuard`]).
//!
//! # What a push survives
//!
//! What the server's append-only file survives: with `appendfsync always` a power cut, with `everysec` a stop of the
//! server and, but for up to 2 s, a crash and a power cut: while its disk is slow a server puts off its writes too. Without one, nothing. A failover to a replica may lose the newest tasks: Redis
//! replicates afterwards. [`windlass_core::Backend::info`] says what the server does. A server that evicts keys (`maxmemory-policy
//! allkeys-*`) is refused. A full one (`noeviction`) refuses pushes; on Redis 7 and newer, claims and settles go on.
//!
//! # What was measured
//!
//! CPU of the server's main thread for one no-op task with 50 bytes of arguments, Redis 7.0, append-only file synced every
//! second (`benches/measure.rs`). Two cores at 2.5 GHz that were busy with other work, where an instruction took 1.5 to 2.5
//! times what it takes on an idle one; best and worst of five runs:
//!
//! | | batch 1 | batch 100 | batch 1000 |
//! |---|---|---|---|
//! | push | 71 to 84 us | - | 9 to 15 us |
//! | claim and settle | 156 to 252 us | 19 to 28 us | 25 to 31 us, removing an older task for each |
//! | claim and settle, history of 1,000 full | - | 29 to 37 us | - |
//!
//! On the same machine with a load of 2 the scripts of an earlier state, with bodies in entries of their own, took 7.3 us for
//! a push and 13.2 us for a claim and settle at batch 100, 20.6 us with a full history. A task that is kept takes about 520
//! bytes. From push to claim at 200/s, between two handles of one process: 0.6 ms in the middle and 1.4 ms at p99 with a load
//! of 2; 0.7 ms and 10 to 18 ms with a load of 10. A claim that waits asks once a second.
//!
//! Limits and keys, batch 100, on two cores with a load of 3 to 6: a claim and settle took 26 to 31 us without either, 2 to 7 us
//! more with a rate and a concurrency of its queue and of its name that never bound, and about twice as much when each of the 100
//! tasks had another key. A claim that found the tasks of 3,000 keys shut by the limit of their name took 0.3 ms.
//!
//! What it came from: commands are variadic (a command from Lua costs about 1 us, each further value a part of that); scripts
//! are functions, which are defined once (20 us of each call); scores that many tasks share are written as text once; short
//! bodies are packed with their task.

mod backend;
mod claim;
mod command;
mod counts;
mod encode;
mod errors;
mod fleet;
pub mod foreign;
mod info;
mod limits;
mod link;
mod listing;
mod location;
mod notes;
mod open;
mod record;
mod schedules;
mod scripts;
mod settle;
mod transfer;
mod wake;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use redis::{Cmd, Value};
use windlass_core::StoreError;
use windlass_core::view::Retention;

pub use location::{InvalidUrl, Location};
pub use open::{Eviction, Options, Time};

/// The version of the layout of keys that this program writes and reads.
pub const VERSION: u32 = 2;

/// A task store in a Redis or Valkey server.
#[derive(Debug)]
pub struct RedisStore {
    shared: Arc<Shared>,
}

/// What all parts of a store know.
#[derive(Debug)]
struct Shared {
    link: link::Link,
    bell: wake::Bell,
    retention: Retention,
    time: Time,
    watchman: fleet::Watchman,
    opened_at: Instant,
    /// Changes when somebody empties the store.
    epoch: Mutex<String>,
}

impl Shared {
    /// Runs a script: the time and what is kept, then what `fill` adds.
    async fn run(&self, script: scripts::Script, fill: impl Fn(&mut Cmd) + Sync) -> Result<Value, StoreError> {
        let now = match &self.time {
            Time::Server => String::new(),
            Time::Given(clock) => clock.now().as_micros().to_string(),
        };
        let Retention { finished, finished_max, dead } = self.retention;
        let filled = |cmd: &mut Cmd| {
            cmd.arg(&now).arg(encode::micros(finished)).arg(finished_max).arg(encode::micros(dead));
            fill(cmd);
        };
        self.link.run(script, &filled).await
    }

    /// A key of this store.
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.link.location().prefix())
    }
}

impl Drop for RedisStore {
    fn drop(&mut self) {
        self.shared.bell.close();
    }
}
