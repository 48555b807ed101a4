//! A URL becomes a store: the only place that knows every driver.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use windlass_core::outbox::Outbox;
use windlass_core::view::Retention;
use windlass_core::{Backend, Clock, StoreError, SystemClock, redact};

/// Opens a store with the default options.
///
/// | URL | store |
/// |---|---|
/// | `sqlite:tasks.db`, or just a path | one file, made when it is not there |
/// | `redis://[user:password@]host[:port][/db]`, `rediss://` with TLS, `redis+sentinel://`, `redis+cluster://`, `redis+unix://` | Redis or Valkey; `?namespace=NAME` keeps stores apart |
/// | `postgres://user[:password]@host[:port]/database` | PostgreSQL; `?schema=NAME` keeps stores apart |
/// | `memory:` | lives as long as the process |
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(url: &str) -> Result<Arc<dyn Backend>, ConnectError> {
    connect_with(&url.parse()?, ConnectOptions::default()).await
}

/// Opens a store.
///
/// # Errors
/// [`ConnectError::Store`].
pub async fn connect_with(location: &Location, options: ConnectOptions) -> Result<Arc<dyn Backend>, ConnectError> {
    match location {
        Location::Memory => Ok(memory(options)),
        Location::Sqlite(path) => Ok(sqlite(path, options).await?),
        #[cfg(feature = "redis")]
        Location::Redis(url) => redis(url, options).await,
        #[cfg(not(feature = "redis"))]
        Location::Redis(url) => Err(not_built(url, "Redis", "redis")),
        #[cfg(feature = "postgres")]
        Location::Postgres(url) => postgres(url, options).await,
        #[cfg(not(feature = "postgres"))]
        Location::Postgres(url) => Err(not_built(url, "PostgreSQL", "postgres")),
    }
}

/// The outbox of an application, for a [`Relay`](windlass_core::outbox::Relay): the table `windlass_outbox` in the SQLite file or
/// the PostgreSQL database with this URL. In PostgreSQL it is found by the `search_path`:
/// `postgres://host/shop?options=-csearch_path%3Dshop`.
///
/// # Errors
/// [`ConnectError`]; [`ConnectError::NoOutbox`] when the URL names a place that has no transactions of applications.
pub async fn connect_outbox(url: &str) -> Result<Arc<dyn Outbox>, ConnectError> {
    match url.parse()? {
        #[cfg(feature = "sqlite")]
        Location::Sqlite(path) => {
            let opened = tokio::task::spawn_blocking(move || windlass_sqlite::outbox::SqliteOutbox::open(path)).await;
            let opened = opened.map_err(|error| StoreError::Broken(format!("the outbox cannot be opened: {error}")))?;
            Ok(Arc::new(opened?))
        }
        #[cfg(feature = "postgres")]
        Location::Postgres(url) => Ok(Arc::new(windlass_postgres::outbox::PostgresOutbox::at(url.secret())?)),
        other => Err(ConnectError::NoOutbox(other.to_string())),
    }
}

/// What is to be done before this program can use a store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    /// The version of the store's layout; 0 when there is no store yet.
    pub version: u32,
    /// What is to be done, in this order, in words; nothing when the store is up to date.
    pub steps: Vec<&'static str>,
    /// The same for those who apply it themselves; only of stores that are made by SQL of a user with rights.
    pub sql: Option<String>,
}

/// Looks at the layout of a store, and changes nothing. Opening a store does what is pending.
///
/// # Errors
/// [`ConnectError`], when a newer program wrote the store too.
pub async fn pending(location: &Location) -> Result<Pending, ConnectError> {
    match location {
        #[cfg(feature = "sqlite")]
        Location::Sqlite(path) => {
            let path = path.clone();
            let looked = tokio::task::spawn_blocking(move || windlass_sqlite::SqliteStore::pending(path)).await;
            let pending =
                looked.map_err(|error| StoreError::Broken(format!("the store cannot be read: {error}")))??;
            Ok(Pending { version: pending.version, steps: pending.steps, sql: None })
        }
        #[cfg(feature = "postgres")]
        Location::Postgres(url) => {
            let pending = windlass_postgres::PostgresStore::pending(url.secret()).await?;
            Ok(Pending { version: pending.version, steps: pending.steps, sql: Some(pending.sql.concat()) })
        }
        // Nothing has to be made before, or opening says why it cannot be used.
        _ => Ok(Pending { version: 1, steps: Vec::new(), sql: None }),
    }
}

/// Where a store is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// In this process.
    Memory,
    /// In this file.
    Sqlite(PathBuf),
    /// In this Redis or Valkey server.
    Redis(ServerUrl),
    /// In this PostgreSQL database.
    Postgres(ServerUrl),
}

impl Location {
    /// The URL with its password, for a process that is to open the same store. To show it, format the location.
    pub fn url(&self) -> String {
        match self {
            Self::Memory | Self::Sqlite(_) => self.to_string(),
            Self::Redis(url) | Self::Postgres(url) => url.secret().to_owned(),
        }
    }

    /// Whether other processes see the same tasks.
    pub fn is_shared(&self) -> bool {
        *self != Self::Memory
    }
}

/// The URL of a server. It may hold a password, so it is shown without one.
#[derive(Clone, PartialEq, Eq)]
pub struct ServerUrl(Arc<str>);

impl ServerUrl {
    /// With its password.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&redact::url(&self.0))
    }
}

impl std::fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl FromStr for Location {
    type Err = ConnectError;
    fn from_str(url: &str) -> Result<Self, ConnectError> {
        let (scheme, rest) = match url.split_once(':') {
            // A path on a drive is not a URL.
            Some((scheme, rest)) if scheme.len() > 1 => (scheme, rest),
            _ => ("sqlite", url),
        };
        match scheme {
            "memory" => Ok(Self::Memory),
            "sqlite" => {
                let path = rest.strip_prefix("//").unwrap_or(rest);
                if path.is_empty() {
                    return Err(ConnectError::NoPath);
                }
                Ok(Self::Sqlite(PathBuf::from(path)))
            }
            "redis" | "rediss" | "valkey" | "valkeys" | "redis+unix" | "redis+sentinel" | "rediss+sentinel"
            | "redis+cluster" | "rediss+cluster" => Ok(Self::Redis(ServerUrl(url.into()))),
            "postgres" | "postgresql" => Ok(Self::Postgres(ServerUrl(url.into()))),
            _ => Err(ConnectError::UnknownScheme(redact::text(url))),
        }
    }
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Memory => f.write_str("memory:"),
            Self::Sqlite(path) => write!(f, "sqlite:{}", path.display()),
            Self::Redis(url) | Self::Postgres(url) => url.fmt(f),
        }
    }
}

/// What may be chosen when a store is opened.
#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// How long it keeps what has ended.
    pub retention: Retention,
    /// What time it is, for stores in this process and in a file. Servers have a clock of their own.
    pub clock: Arc<dyn Clock>,
    /// How long SQLite waits for other processes; 5 s.
    pub busy_timeout: Duration,
    /// Whether a SQLite file may be on a network file system, where locks may not work.
    pub network_files: NetworkFiles,
}

/// Whether a SQLite file may be on a network file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkFiles {
    /// It is refused.
    #[default]
    Refuse,
    /// Somebody knows better.
    Allow,
}

impl Default for ConnectOptions {
    fn default() -> Self {
        Self {
            retention: Retention::default(),
            clock: Arc::new(SystemClock),
            busy_timeout: Duration::from_secs(5),
            network_files: NetworkFiles::Refuse,
        }
    }
}

/// A store that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The URL names a store that this build does not know.
    #[error("`{0}` is not the URL of a store: it begins with sqlite:, redis://, postgres:// or memory:")]
    UnknownScheme(String),
    /// The URL of a server that cannot be read.
    #[error("{0}")]
    InvalidUrl(String),
    /// A SQLite URL without a file.
    #[error("`sqlite:` needs the path of a file, such as sqlite:tasks.db")]
    NoPath,
    /// No outbox can be there, or this build cannot read it.
    #[error(
        "there is no outbox in `{0}`: it is a table in a SQLite file or a PostgreSQL database (features `sqlite`, `postgres`)"
    )]
    NoOutbox(String),
    /// The store is there but cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn memory(options: ConnectOptions) -> Arc<dyn Backend> {
    Arc::new(windlass_memory::MemoryStore::new(options.clock).with_retention(options.retention))
}

#[cfg(feature = "sqlite")]
async fn sqlite(path: &std::path::Path, options: ConnectOptions) -> Result<Arc<dyn Backend>, StoreError> {
    use windlass_sqlite::{NetworkFiles as Files, Options, SqliteStore};
    let path = path.to_owned();
    let options = Options {
        retention: options.retention,
        clock: options.clock,
        busy_timeout: options.busy_timeout,
        network_files: match options.network_files {
            NetworkFiles::Refuse => Files::Refuse,
            NetworkFiles::Allow => Files::Accept,
        },
        ..Options::default()
    };
    // Opening waits for other processes and the disk.
    let opened = tokio::task::spawn_blocking(move || SqliteStore::open(path, options)).await;
    let opened = opened.map_err(|error| StoreError::Broken(format!("the store cannot be opened: {error}")))?;
    Ok(Arc::new(opened?))
}

#[cfg(not(feature = "sqlite"))]
async fn sqlite(path: &std::path::Path, _: ConnectOptions) -> Result<Arc<dyn Backend>, StoreError> {
    let path = path.display();
    Err(StoreError::Broken(format!(
        "`{path}` is a SQLite store: build with the feature `sqlite` of the crate `windlass`"
    )))
}

#[cfg(feature = "redis")]
async fn redis(url: &ServerUrl, options: ConnectOptions) -> Result<Arc<dyn Backend>, ConnectError> {
    use windlass_redis::{Location, Options, RedisStore};
    let location: Location = url.secret().parse().map_err(|error| ConnectError::InvalidUrl(format!("{error}")))?;
    let options = Options { retention: options.retention, ..Options::default() };
    Ok(Arc::new(RedisStore::open(location, options).await?))
}

#[cfg(feature = "postgres")]
async fn postgres(url: &ServerUrl, options: ConnectOptions) -> Result<Arc<dyn Backend>, ConnectError> {
    use windlass_postgres::{Options, PostgresStore};
    let options = Options { retention: options.retention, ..Options::default() };
    Ok(Arc::new(PostgresStore::connect(url.secret(), options).await?))
}

#[cfg(not(all(feature = "redis", feature = "postgres")))]
fn not_built(url: &ServerUrl, product: &str, feature: &str) -> ConnectError {
    ConnectError::InvalidUrl(format!(
        "`{url}` is a {product} store: build with the feature `{feature}` of the crate `windlass`"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_a_store() {
        assert_eq!("memory:".parse::<Location>().unwrap(), Location::Memory);
        for (url, path) in [
            ("sqlite:a.db", "a.db"),
            ("sqlite:///var/a.db", "/var/a.db"),
            ("a/b.db", "a/b.db"),
            ("sqlite://a.db", "a.db"),
        ] {
            assert_eq!(url.parse::<Location>().unwrap(), Location::Sqlite(path.into()), "{url}");
        }
    }

    #[test]
    fn the_url_of_a_server_is_shown_without_its_password() {
        for url in ["redis://app:hunter2@db:6379/1", "postgres://app:hunter2@db/tasks?schema=x"] {
            let location = url.parse::<Location>().unwrap();
            for shown in [format!("{location}"), format!("{location:?}")] {
                assert!(shown.contains("@db") && !shown.contains("hunter2"), "{shown}");
            }
            assert_eq!(location.url(), url);
        }
    }

    #[test]
    fn what_is_not_a_store_is_refused_without_showing_its_password() {
        let error = "mysql://root:hunter2@db/x".parse::<Location>().unwrap_err().to_string();
        assert!(error.contains("mysql") && !error.contains("hunter2"), "{error}");
        assert!(matches!("sqlite:".parse::<Location>(), Err(ConnectError::NoPath)));
    }

    #[tokio::test]
    async fn a_url_opens_its_store() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        for (url, kind) in [("memory:".to_owned(), "memory"), (format!("sqlite:{}", path.display()), "sqlite")] {
            assert_eq!(connect(&url).await.unwrap().info().await.unwrap().kind, kind, "{url}");
        }
        let nowhere = folder.path().join("missing/a.db");
        let error = connect(&nowhere.display().to_string()).await.unwrap_err().to_string();
        assert!(error.contains("missing"), "{error}");
    }
}
