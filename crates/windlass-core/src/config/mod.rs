//! The configuration: what it holds, and how a file, `.env`, the environment and flags make it up.
//!
//! From lowest to highest: built-in default, file, profile of the file, `.env`, environment, flag. In the file `${VAR}`,
//! `${VAR:-default}` and `${VAR:?message}` stand for variables, before a value is typed. Every problem is reported at
//! once, with the line, variable or flag it comes from.
//!
//! | file | what it owns |
//! |---|---|
//! | `keys.rs` | the one table of keys: names, meaning, limits, defaults |
//! | `key.rs` | a row of it, and how text becomes a value |
//! | `spelling.rs` | every way to write a key, and suggestions |
//! | `file.rs`, `dotenv.rs`, `interpolate.rs` | the three formats |
//! | `sources.rs` | who wins |
//! | `disk.rs` | the only place that reads anything |
//!
//! ```
//! use windlass_core::config::Sources;
//! let errors = Sources::new()
//!     .file("windlass.toml", "[worker]\nslot = 4\nlease = 30\n")
//!     .environment([("WINDLASS_CLIENT__DEADLINE", "soon")])
//!     .load()
//!     .unwrap_err();
//! assert_eq!(errors.to_string(), "\
//! windlass.toml:2: worker.slot: is unknown: did you mean `worker.slots`?
//! windlass.toml:3: worker.lease: `30` has no unit: write a duration from 3s to 1d, such as 30s, 5m or 1h30m
//! environment WINDLASS_CLIENT__DEADLINE: client.deadline: `soon` does not fit: \
//! write a duration from 10ms to 10m, such as 30s, 5m or 1h30m");
//! ```

mod disk;
mod dotenv;
mod file;
mod interpolate;
mod key;
mod keys;
mod problem;
mod sources;
mod spelling;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub use self::key::{Alias, Exposure, Key, KeyInfo, Kind, Preset, Word};
pub use self::keys::{KEYS, RESERVED_VARIABLES};
pub use self::problem::{ConfigErrors, Origin, Problem};
pub use self::sources::Sources;
use crate::names::{NodeId, QueueName};
use crate::redact::{self, Secret};
use crate::view::Retention;

/// Far more than every key with a comment takes; a larger file is something else.
pub const FILE_BYTES_MAX: usize = 1024 * 1024;
/// Enough for a certificate chain in a value, after variables are put in.
pub const VALUE_BYTES_MAX: usize = 64 * 1024;
/// How every variable of ours begins. One that is unknown is refused.
pub const VARIABLE_PREFIX: &str = "WINDLASS_";
/// Names the configuration file.
pub const CONFIG_VARIABLE: &str = "WINDLASS_CONFIG";
/// Chooses a profile of the configuration file.
pub const PROFILE_VARIABLE: &str = "WINDLASS_PROFILE";

/// The configuration of the engine. Limits and defaults of each field are in [`KEYS`].
#[derive(Clone, PartialEq)]
pub struct Config {
    /// Where tasks live: a URL or a path. May hold a password: show it by [`redact::url`].
    pub store: String,
    /// The URL of the bridge that messages of other programs come over. May hold passwords: show it by [`redact::url`].
    pub bridge: Option<String>,
    /// The queues whose tasks a scheduler sends to the other end of the bridge.
    pub relay: Vec<QueueName>,
    /// How this process works on tasks.
    pub worker: WorkerConfig,
    /// How this process talks to the store.
    pub client: ClientConfig,
    /// How long stores keep what has ended.
    pub retention: Retention,
    /// What is logged and how.
    pub log: LogConfig,
    /// What the built-in tasks may do.
    pub tasks: TasksConfig,
    /// What only the store in a file knows.
    // tidy: allow(name): the section of one store's own settings, carried and never interpreted here
    pub sqlite: FileStoreConfig,
}

/// How this process works on tasks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerConfig {
    /// The queues to work on, at least one, each once; earlier ones are emptied first unless one has a weight.
    pub queues: Vec<QueueName>,
    /// The share of a queue, 1 to 100; empty when no queue has one, and 1 for those that are missing otherwise.
    pub weights: BTreeMap<QueueName, u32>,
    /// How many tasks run at the same time, 1 to 1,000.
    pub slots: usize,
    /// How many threads run them.
    pub threads: usize,
    /// How long a claim is held without a renewal, 3 s to 24 h.
    pub lease: Duration,
    /// How long running tasks may go on after the signal to stop.
    pub grace: Duration,
    /// How long a task may go on after it was told that it is cancelled.
    pub cancel_grace: Duration,
    /// The name of this worker; made up when it is `None`.
    pub node: Option<NodeId>,
    /// Also fire schedules.
    pub schedules: bool,
    /// Where probes and metrics are answered; nowhere when it is `None`.
    pub listen: Option<std::net::SocketAddr>,
    /// How many processes share the work under a supervisor; with 0 the work is done in this process.
    pub processes: usize,
    /// After how many tasks such a process is replaced; never with 0.
    pub recycle_tasks: u64,
    /// From how many bytes of memory on such a process is replaced; never when it is `None`.
    pub recycle_memory: Option<u64>,
    /// The most bytes of memory that such a process may use; any when it is `None`.
    pub memory_max: Option<u64>,
}

/// How this process talks to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientConfig {
    /// How long one call may take before the store counts as unreachable.
    pub deadline: Duration,
}

/// What is logged and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level or levels by part of the program, as `tracing` filters are written: `info,windlass_core=debug`.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// [`LogFormat::Pretty`] on a terminal, [`LogFormat::Json`] elsewhere.
    Auto,
    /// For people.
    Pretty,
    /// One JSON object a line.
    Json,
}

/// What the built-in tasks may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TasksConfig {
    /// Whether `shell.run` may run commands.
    pub shell: bool,
    /// The built-in HTTP task.
    pub http: HttpConfig,
}

/// What the built-in HTTP task may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpConfig {
    /// Whether it may call loopback, private and link-local addresses.
    pub allow_private: bool,
    /// How long it waits for a whole answer.
    pub timeout: Duration,
    /// What it calls itself: printable ASCII.
    pub user_agent: String,
    /// How much of an answer it keeps.
    pub max_response_bytes: usize,
    /// Signs its requests.
    pub signing_key: Option<Secret<String>>,
}

/// What only the store in a file knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileStoreConfig {
    /// How long to wait for another process that writes to the same file.
    pub busy_timeout: Duration,
    /// Whether the file may be on a network file system.
    pub allow_network_fs: bool,
}

impl Config {
    /// What the defaults are put into. Never handed out: nothing in it is within its limits.
    fn blank() -> Self {
        Self {
            store: String::new(),
            bridge: None,
            relay: Vec::new(),
            worker: WorkerConfig {
                queues: Vec::new(),
                weights: BTreeMap::new(),
                slots: 0,
                threads: 0,
                lease: Duration::ZERO,
                grace: Duration::ZERO,
                cancel_grace: Duration::ZERO,
                node: None,
                schedules: false,
                listen: None,
                processes: 0,
                recycle_tasks: 0,
                recycle_memory: None,
                memory_max: None,
            },
            client: ClientConfig { deadline: Duration::ZERO },
            retention: Retention::default(),
            log: LogConfig { level: String::new(), format: LogFormat::Auto },
            tasks: TasksConfig {
                shell: false,
                http: HttpConfig {
                    allow_private: false,
                    timeout: Duration::ZERO,
                    user_agent: String::new(),
                    max_response_bytes: 0,
                    signing_key: None,
                },
            },
            // tidy: allow(name): the section of one store's own settings, carried and never interpreted here
            sqlite: FileStoreConfig { busy_timeout: Duration::ZERO, allow_network_fs: false },
        }
    }
}

impl Default for Config {
    /// The built-in defaults.
    fn default() -> Self {
        Sources::new().load().expect("the built-in defaults are within their own limits").config
    }
}

impl fmt::Debug for Config {
    /// Without the passwords in URLs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("store", &redact::url(&self.store))
            .field("bridge", &self.bridge.as_deref().map(redact::url))
            .field("relay", &self.relay)
            .field("worker", &self.worker)
            .field("client", &self.client)
            .field("retention", &self.retention)
            .field("log", &self.log)
            .field("tasks", &self.tasks)
            // tidy: allow(name): the section of one store's own settings, carried and never interpreted here
            .field("sqlite", &self.sqlite)
            .finish()
    }
}

/// The configuration, and where each value of it came from.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    origins: Vec<Setting>,
}

impl Loaded {
    /// Every key in the order of the tables, those of the application last.
    pub fn origins(&self) -> &[Setting] {
        &self.origins
    }

    /// Whether somebody has set a key: it is not at its default.
    pub fn is_set(&self, key: &str) -> bool {
        self.origins.iter().any(|setting| setting.info.name == key && setting.origin != Origin::BuiltIn)
    }

    /// Makes another key decide about the store, unless somebody has set it.
    pub fn store_follows(&mut self, key: &'static str, store: &str) {
        let own = |setting: &&mut Setting| setting.info.name == "store" && setting.origin == Origin::BuiltIn;
        if let Some(setting) = self.origins.iter_mut().find(own) {
            setting.value = Some(redact::url(store));
            setting.origin = Origin::Follows(key);
            store.clone_into(&mut self.config.store);
        }
    }

    /// Makes another key decide about the queues to work on, unless somebody has set them.
    pub fn queue_follows(&mut self, key: &'static str, queue: QueueName) {
        let own = |setting: &&mut Setting| setting.info.name == "worker.queues" && setting.origin == Origin::BuiltIn;
        if let Some(setting) = self.origins.iter_mut().find(own) {
            setting.value = Some(queue.to_string());
            setting.origin = Origin::Follows(key);
            self.config.worker.queues = vec![queue];
        }
    }
}

/// One key, what it is set to, and where.
#[derive(Debug, Clone)]
pub struct Setting {
    /// The key.
    pub info: KeyInfo,
    /// Its value as it may be shown: without passwords. `None` when it is not set.
    pub value: Option<String>,
    /// Where the value came from.
    pub origin: Origin,
}
