//! The Redis and Valkey store of Windlass: durable tasks in a server that many machines share. Redis 6.2 or newer, or Valkey.

mod backend;
mod claim;
mod command;
mod counts;
mod encode;
mod errors;
mod fleet;
mod info;
mod link;
mod listing;
mod location;
mod open;
mod record;
mod schedules;
mod scripts;
mod settle;
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
pub const VERSION: u32 = 1;

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
