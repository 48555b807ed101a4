//! The connection to the server: made when it is needed, made again when it broke, and the scripts that are run over it.
//!
//! One connection carries everything that the store asks; requests do not wait for each other. Nothing is ever repeated by
//! itself, except for a script that the server does not know (any more): it was not run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use redis::aio::{ConnectionLike, MultiplexedConnection};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ErrorKind, IntoConnectionInfo, Pipeline, ProtocolVersion,
    PushInfo, PushKind, RedisConnectionInfo, RedisError, ServerErrorKind, TlsCertificates, Value,
};
use tokio::sync::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tracing::debug;
use windlass_core::StoreError;

use crate::errors::{store_error, too_old};
use crate::location::{Host, Location, Place, Tls};
use crate::scripts::{Library, Script};

/// A server that cannot be connected to within this time counts as unreachable.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// A server that does not answer for this long counts as unreachable. Scripts take milliseconds; the largest push less than
/// a second.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The way to the server.
#[derive(Debug)]
pub(crate) struct Link {
    location: Location,
    /// The server as messages name it.
    at: String,
    meta_key: String,
    slot: Mutex<Slot>,
}

/// The connection, and how the last attempt to make one ended.
#[derive(Debug, Default)]
struct Slot {
    live: Option<Live>,
    failed: Option<(Instant, StoreError)>,
}

/// A connection that works, as far as anybody knows.
#[derive(Clone)]
struct Live {
    connection: MultiplexedConnection,
    scripts: Arc<Loaded>,
    broken: Arc<AtomicBool>,
}

/// What the server calls our scripts, in the order of [`Script::ALL`].
struct Loaded {
    /// `FCALL` or `EVALSHA`.
    command: &'static str,
    names: Vec<String>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("broken", &self.broken).finish_non_exhaustive()
    }
}

impl Link {
    pub(crate) fn new(location: Location) -> Self {
        let at = format!("`{location}`");
        let meta_key = format!("{}meta", location.prefix());
        Self { location, at, meta_key, slot: Mutex::default() }
    }

    pub(crate) fn location(&self) -> &Location {
        &self.location
    }

    /// What a server's error means.
    pub(crate) fn fault(&self, error: &RedisError) -> StoreError {
        store_error(error, &self.at)
    }

    /// Runs a script; `fill` adds its arguments.
    pub(crate) async fn run(&self, script: Script, fill: &(dyn Fn(&mut Cmd) + Sync)) -> Result<Value, StoreError> {
        let live = self.live().await?;
        match self.evaluate(&live, script, fill).await {
            Err(error) if is_unknown_script(&error) => {
                // Somebody emptied the cache or removed the functions; it was not run.
                self.give_up(&live).await;
                let live = self.live().await?;
                self.evaluate(&live, script, fill).await.map_err(|error| self.fault(&error))
            }
            answer => answer.map_err(|error| self.fault(&error)),
        }
    }

    async fn evaluate(
        &self,
        live: &Live,
        script: Script,
        fill: &(dyn Fn(&mut Cmd) + Sync),
    ) -> Result<Value, RedisError> {
        let mut cmd = redis::cmd(live.scripts.command);
        cmd.arg(&live.scripts.names[script as usize]).arg(1).arg(&self.meta_key);
        fill(&mut cmd);
        let answer = send(&mut live.connection.clone(), &cmd).await;
        self.look_at(live, &answer).await;
        answer
    }

    /// Asks for something without a script.
    pub(crate) async fn ask(&self, cmd: &Cmd) -> Result<Value, StoreError> {
        let live = self.live().await?;
        let answer = send(&mut live.connection.clone(), cmd).await;
        self.look_at(&live, &answer).await;
        answer.map_err(|error| self.fault(&error))
    }

    /// Asks for several things at once.
    pub(crate) async fn ask_all(&self, pipeline: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let live = self.live().await?;
        let answer = live.connection.clone().req_packed_commands(pipeline, 0, pipeline.len()).await;
        self.look_at(&live, &answer).await;
        let values = answer.map_err(|error| self.fault(&error))?;
        values.into_iter().map(|value| value.extract_error().map_err(|error| self.fault(&error))).collect()
    }

    /// Gives a connection up that an answer shows to be of no use: broken, stalled, or to a server that is no primary any more.
    async fn look_at<T>(&self, live: &Live, answer: &Result<T, RedisError>) {
        let Err(error) = answer else { return };
        let elsewhere = matches!(
            error.kind(),
            ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::Moved | ServerErrorKind::ClusterDown)
        );
        if elsewhere || error.is_io_error() || error.is_timeout() || error.is_unrecoverable_error() {
            self.give_up(live).await;
        }
    }

    async fn give_up(&self, gone: &Live) {
        let mut slot = self.slot.lock().await;
        if slot.live.as_ref().is_some_and(|live| Arc::ptr_eq(&live.broken, &gone.broken)) {
            slot.live = None;
        }
    }

    async fn live(&self) -> Result<Live, StoreError> {
        let asked_at = Instant::now();
        let mut slot = self.slot.lock().await;
        if let Some(live) = slot.live.as_ref().filter(|live| !live.broken.load(Ordering::Acquire)) {
            return Ok(live.clone());
        }
        slot.live = None;
        // Whoever waited for an attempt that failed is told of that one: one attempt of each, one after the other, would take
        // as many times the limit as there are requests.
        if let Some((failed_at, error)) = &slot.failed
            && *failed_at >= asked_at
        {
            return Err(again(error));
        }
        match self.make().await {
            Ok(live) => Ok(slot.live.insert(live).clone()),
            Err(error) => {
                slot.failed = Some((Instant::now(), again(&error)));
                Err(error)
            }
        }
    }

    async fn make(&self) -> Result<Live, StoreError> {
        let broken = Arc::new(AtomicBool::new(false));
        let notice = Arc::clone(&broken);
        let on_push = move |push: PushInfo| -> Result<(), std::convert::Infallible> {
            if push.kind == PushKind::Disconnection {
                notice.store(true, Ordering::Release);
            }
            Ok(())
        };
        let mut connection = self.connect(config().set_push_sender(on_push)).await?;
        let major = self.check(&mut connection).await?;
        let scripts = Arc::new(self.load(&mut connection, major).await?);
        Ok(Live { connection, scripts, broken })
    }

    /// A connection of its own, for whoever listens.
    pub(crate) async fn listen(&self, heard: UnboundedSender<PushInfo>) -> Result<MultiplexedConnection, StoreError> {
        self.connect(config().set_push_sender(heard)).await
    }

    async fn connect(&self, config: AsyncConnectionConfig) -> Result<MultiplexedConnection, StoreError> {
        let connecting = async {
            match &self.location.place {
                Place::Server(host) => self.connect_to(self.address(host)?, &config).await,
                Place::Socket(path) => self.connect_to(ConnectionAddr::Unix(path.clone()), &config).await,
                Place::Cluster(hosts) => self.connect_in_cluster(hosts, &config).await,
                Place::Sentinel { sentinels, name } => self.connect_to_primary(sentinels, name, &config).await,
            }
        };
        // Several attempts may be necessary; each has its own limit, this one is for all of them.
        tokio::time::timeout(CONNECT_WITHIN * 2, connecting).await.unwrap_or_else(|_| {
            Err(StoreError::Unreachable(format!("{} does not answer; look whether it is stopped", self.at).into()))
        })
    }

    async fn connect_to(
        &self,
        address: ConnectionAddr,
        config: &AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, StoreError> {
        self.connect_as(address, self.settings(self.location.db), config).await.map_err(|error| self.fault(&error))
    }

    async fn connect_as(
        &self,
        address: ConnectionAddr,
        settings: RedisConnectionInfo,
        config: &AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, RedisError> {
        let info = address.into_connection_info()?.set_redis_settings(settings);
        let client = match &self.location.tls {
            Tls::Off => Client::open(info)?,
            Tls::Public => {
                use_ring();
                Client::open(info)?
            }
            Tls::Private(path) => {
                use_ring();
                let root_cert = std::fs::read(path).map_err(|error| {
                    let text = format!("the file `{}` cannot be read: {error}", path.display());
                    RedisError::from((ErrorKind::InvalidClientConfig, "certificate authority", text))
                })?;
                Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert: Some(root_cert) })?
            }
        };
        client.get_multiplexed_async_connection_with_config(config).await
    }

    fn settings(&self, db: i64) -> RedisConnectionInfo {
        let mut settings = RedisConnectionInfo::default().set_db(db).set_protocol(ProtocolVersion::RESP3);
        if let Some(user) = &self.location.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.location.password {
            settings = settings.set_password(password);
        }
        settings
    }

    fn address(&self, host: &Host) -> Result<ConnectionAddr, StoreError> {
        let Host { name, port } = host.clone();
        let address = match self.location.tls {
            Tls::Off => ConnectionAddr::Tcp(name, port),
            Tls::Public | Tls::Private(_) => {
                ConnectionAddr::TcpTls { host: name, port, insecure: false, tls_params: None }
            }
        };
        if address.is_supported() {
            Ok(address)
        } else {
            Err(StoreError::Broken(format!("this build cannot connect to {}", self.at)))
        }
    }

    /// The node of a cluster that has the slot of the namespace: whoever is asked names it.
    async fn connect_in_cluster(
        &self,
        hosts: &[Host],
        config: &AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, StoreError> {
        let mut failed = None;
        for host in hosts {
            let mut asked = host.clone();
            // A slot that moves is in at most two places.
            for _ in 0..3 {
                let mut connection = match self.connect_to(self.address(&asked)?, config).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        failed = Some(error);
                        break;
                    }
                };
                match send(&mut connection, redis::cmd("EXISTS").arg(&self.meta_key)).await {
                    Ok(_) => return Ok(connection),
                    Err(error) => {
                        let moved = error.redirect_node().and_then(|(node, _)| node.rsplit_once(':'));
                        failed = Some(self.fault(&error));
                        let Some((name, Ok(port))) = moved.map(|(name, port)| (name, port.parse())) else { break };
                        // A node that does not know its own name leaves it out.
                        let name = if name.is_empty() { asked.name.clone() } else { name.to_owned() };
                        asked = Host { name, port };
                    }
                }
            }
        }
        Err(failed.unwrap_or_else(|| StoreError::Broken(format!("{} names no node", self.at))))
    }

    /// The primary that the sentinels name.
    async fn connect_to_primary(
        &self,
        sentinels: &[Host],
        name: &str,
        config: &AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, StoreError> {
        let mut failed = None;
        for sentinel in sentinels {
            match self.primary_of(sentinel, name).await {
                Ok(Some(primary)) => return self.connect_to(self.address(&primary)?, config).await,
                Ok(None) => {
                    failed = Some(StoreError::Broken(format!("the sentinels of {} know no primary `{name}`", self.at)));
                }
                Err(error) => failed = Some(self.fault(&error)),
            }
        }
        Err(failed.unwrap_or_else(|| StoreError::Broken(format!("{} names no sentinel", self.at))))
    }

    async fn primary_of(&self, sentinel: &Host, name: &str) -> Result<Option<Host>, RedisError> {
        let address = || {
            self.address(sentinel)
                .map_err(|error| RedisError::from((ErrorKind::InvalidClientConfig, "sentinel", error.to_string())))
        };
        // Most sentinels want no password; those that do have the one of the servers.
        let open = RedisConnectionInfo::default().set_protocol(ProtocolVersion::RESP3);
        let asking = redis::cmd("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(name).clone();
        let mut connection = match self.connect_as(address()?, open, &config()).await {
            Ok(connection) => connection,
            Err(error) if self.location.password.is_some() && !error.is_io_error() => {
                self.connect_as(address()?, self.settings(0), &config()).await?
            }
            Err(error) => return Err(error),
        };
        let answer: Option<(String, u16)> = redis::from_redis_value(send(&mut connection, &asking).await?)?;
        Ok(answer.map(|(name, port)| Host { name, port }))
    }

    /// Refuses servers that are too old or no primary; answers the major version.
    async fn check(&self, connection: &mut MultiplexedConnection) -> Result<u32, StoreError> {
        let mut about = String::new();
        for section in ["server", "replication"] {
            let answer = send(connection, redis::cmd("INFO").arg(section)).await;
            let text: String = answer
                .and_then(|value| redis::from_redis_value(value).map_err(RedisError::from))
                .map_err(|error| self.fault(&error))?;
            about.push_str(&text);
        }
        let version = info_field(&about, "redis_version").unwrap_or("unknown");
        let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let (major, minor) = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if (major, minor) < (6, 2) {
            return Err(too_old(&self.at, &format!("Redis {version}")));
        }
        if info_field(&about, "role") == Some("slave") {
            let primary = info_field(&about, "master_host").unwrap_or("unknown");
            return Err(StoreError::Denied(format!(
                "{} is a read-only replica of `{primary}`; give the URL of the primary, or use redis+sentinel://",
                self.at
            )));
        }
        Ok(major)
    }

    /// Tells the server our scripts: as functions where it has those and lets this user define some.
    async fn load(&self, connection: &mut MultiplexedConnection, major: u32) -> Result<Loaded, StoreError> {
        if major >= 7 {
            let library = Library::new();
            let defining = redis::cmd("FUNCTION").arg("LOAD").arg(&library.text).clone();
            match send(connection, &defining).await {
                Err(error) if error.is_io_error() || error.is_unrecoverable_error() => return Err(self.fault(&error)),
                Err(error) if !error.to_string().contains("already exists") => {
                    debug!(error = %self.fault(&error), "no functions here; scripts do the same");
                }
                // Others with the same text may have defined it.
                Ok(_) | Err(_) => {
                    let names = Script::ALL.map(|script| library.function(script)).to_vec();
                    return Ok(Loaded { command: "FCALL", names });
                }
            }
        }
        let mut pipeline = redis::pipe();
        for script in Script::ALL {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script.text(major));
        }
        let names = pipeline.query_async(connection).await.map_err(|error| self.fault(&error))?;
        Ok(Loaded { command: "EVALSHA", names })
    }
}

/// A copy of an error; its source, when it has one, as text.
fn again(error: &StoreError) -> StoreError {
    match error {
        StoreError::Unreachable(source) => StoreError::Unreachable(source.to_string().into()),
        StoreError::Busy(text) => StoreError::Busy(text.clone()),
        StoreError::NoSpace(text) => StoreError::NoSpace(text.clone()),
        StoreError::Denied(text) => StoreError::Denied(text.clone()),
        StoreError::Broken(text) => StoreError::Broken(text.clone()),
        StoreError::Rejected(text) => StoreError::Rejected(text.clone()),
    }
}

/// Whether the server does not know (any more) what it was to run.
fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) || error.to_string().contains("Function not found")
}

/// Sends a command. The client library hands the error of a server over as an answer.
pub(crate) async fn send(connection: &mut MultiplexedConnection, cmd: &Cmd) -> Result<Value, RedisError> {
    connection.req_packed_command(cmd).await?.extract_error()
}

fn config() -> AsyncConnectionConfig {
    AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_WITHIN)).set_response_timeout(Some(ANSWER_WITHIN))
}

/// TLS asks the process for its cryptography; ring unless the program has chosen.
fn use_ring() {
    if rustls::crypto::CryptoProvider::get_default().is_none() {
        // An error means that somebody else has chosen in this moment.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
}

/// A field of what `INFO` says.
pub(crate) fn info_field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
