//! Opening a store: what may be chosen, and what is checked once.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use redis::Value;
use tracing::warn;
use windlass_core::view::Retention;
use windlass_core::{Clock, StoreError, TaskId};

use crate::link::{Link, info_field};
use crate::location::Location;
use crate::record::{list, parse, text};
use crate::scripts::Script;
use crate::{RedisStore, Shared, VERSION};

/// What may be chosen when a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long it keeps what has ended.
    pub retention: Retention,
    /// Who says what time it is.
    pub time: Time,
    /// Whether a server that drops keys when it is full may be used.
    pub eviction: Eviction,
}

impl Default for Options {
    fn default() -> Self {
        Self { retention: Retention::default(), time: Time::Server, eviction: Eviction::Refuse }
    }
}

/// Who says what time it is.
#[derive(Debug, Clone, Default)]
pub enum Time {
    /// The server: one clock for all nodes, however theirs are set.
    #[default]
    Server,
    /// This clock; for tests.
    Given(Arc<dyn Clock>),
}

/// Whether a server that drops keys when it is full may be used. All tasks would be gone at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Eviction {
    /// It is refused.
    #[default]
    Refuse,
    /// Somebody knows better.
    Allow,
}

impl RedisStore {
    /// Opens a store; makes it when the namespace is empty.
    ///
    /// # Errors
    /// [`StoreError::Unreachable`] when no server answers. [`StoreError::Denied`] when it refuses the password, does not allow
    /// this user what we need, or is a replica. [`StoreError::Broken`] when it cannot be used: it is older than Redis 6.2, drops
    /// keys when it is full, or holds the store of a newer version.
    pub async fn open(location: Location, options: Options) -> Result<Self, StoreError> {
        let link = Link::new(location);
        let shared = Shared {
            bell: crate::wake::Bell::new(),
            retention: options.retention,
            time: options.time,
            watchman: crate::fleet::Watchman::default(),
            opened_at: Instant::now(),
            epoch: Mutex::default(),
            link,
        };
        check_eviction(&shared, options.eviction).await?;
        let answer = shared
            .run(Script::Open, |cmd| {
                cmd.arg(VERSION).arg(TaskId::random().to_string());
            })
            .await?;
        let mut parts = list(answer)?.into_iter();
        let version: u32 = parse("version", &text(parts.next().unwrap_or(Value::Nil))?)?;
        if version > VERSION {
            return Err(StoreError::Broken(format!(
                "the store `{}` has version {version}, this program knows up to {VERSION}: a newer program wrote it, upgrade \
                 this one",
                shared.link.location()
            )));
        }
        *shared.epoch.lock() = text(parts.next().unwrap_or(Value::Nil))?;
        Ok(Self { shared: Arc::new(shared) })
    }
}

async fn check_eviction(shared: &Shared, eviction: Eviction) -> Result<(), StoreError> {
    let about = text(shared.link.ask(redis::cmd("INFO").arg("memory")).await?)?;
    let policy = info_field(&about, "maxmemory_policy").unwrap_or("noeviction");
    if !policy.starts_with("allkeys") {
        return Ok(());
    }
    let location = shared.link.location();
    match eviction {
        Eviction::Refuse => Err(StoreError::Broken(format!(
            "the server of `{location}` has `maxmemory-policy {policy}`: when it is full it drops tasks; set noeviction"
        ))),
        Eviction::Allow => {
            warn!(event = "eviction_allowed", store = %location, policy, "a full server will drop tasks");
            Ok(())
        }
    }
}
