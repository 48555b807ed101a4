//! What every measurement stands on: a store of its own, a worker as in production, and tasks for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use windlass::backend::{Settlement, TaskAction};
use windlass::event::{self, Event, Listener};
use windlass::limit::{LimitChange, Subject};
use windlass::view::{Filter, Retention};
use windlass::worker::{Ended, Settings, Shutdown, ShutdownStep, Worker};
use windlass::{
    App, Backend, Client, Clock, ConnectOptions, Cx, Envelope, Key, Location, NodeId, QueueName, Registry, SystemClock,
    Task, TaskError, Timestamp, Verdict, connect_with,
};

use super::measured::{Measured, Tally};
use super::server::{Cpu, Server};
use super::stats::Histogram;
use crate::exit::{Exit, Problem};

/// Which store is measured.
#[derive(Debug, Clone)]
pub(super) enum Place {
    /// A fresh one in this process.
    Memory,
    /// A fresh file in a folder that is removed afterwards.
    Temporary,
    /// A fresh room in a server: a namespace of Redis or a schema of PostgreSQL that is removed afterwards.
    Room(Arc<Server>),
    /// One that somebody named: a file, or a server and a room in it.
    Given(Location, Option<Arc<Server>>),
}

impl Place {
    /// What `--store` asks for; a fresh SQLite file without it. The configuration is not asked: nobody wants to measure
    /// the store of a running service by accident.
    pub(super) fn of(store: Option<&str>) -> Result<Self, Problem> {
        let location = match store {
            None | Some("sqlite" | "sqlite:") => return Ok(Self::Temporary),
            Some("memory" | "memory:") => return Ok(Self::Memory),
            Some(url) => url.parse::<Location>()?,
        };
        match Server::of(&location).map(Arc::new) {
            Some(server) if !server.names_a_room() => Ok(Self::Room(server)),
            server => Ok(Self::Given(location, server)),
        }
    }

    /// The kind of store.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Memory | Self::Given(Location::Memory, _) => "memory",
            Self::Room(server) | Self::Given(_, Some(server)) => server.kind().name(),
            Self::Temporary | Self::Given(_, None) => "sqlite",
        }
    }

    /// The server that it is in.
    pub(super) fn server(&self) -> Option<&Arc<Server>> {
        match self {
            Self::Room(server) => Some(server),
            Self::Given(_, server) => server.as_ref(),
            Self::Memory | Self::Temporary => None,
        }
    }

    /// Where its files are, or would be.
    pub(super) fn folder(&self) -> PathBuf {
        if let Self::Given(Location::Sqlite(path), _) = self {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            return parent.map_or_else(|| PathBuf::from("."), Path::to_path_buf);
        }
        PathBuf::from(".")
    }

    /// A folder on the same disk that is removed when it is dropped.
    pub(super) fn temporary_folder(&self) -> Result<tempfile::TempDir, Problem> {
        temporary_folder_in(&self.folder())
    }

    /// CPU time that the server has used until now.
    pub(super) async fn server_cpu(&self) -> Result<Cpu, Problem> {
        match self.server() {
            Some(server) => server.cpu().await,
            None => Ok(None),
        }
    }

    /// Opens it, with this retention when it is a fresh one: what somebody else keeps in a store is not removed.
    pub(super) async fn open(&self, retention: Retention) -> Result<Open, Problem> {
        let (mut room, mut folder) = (None, None);
        let location = match self {
            Self::Memory => Location::Memory,
            Self::Temporary => {
                let fresh = folder.insert(self.temporary_folder()?);
                Location::Sqlite(fresh.path().join("bench.db"))
            }
            Self::Room(server) => {
                let (_, name) = room.insert((Arc::clone(server), server.new_room()));
                server.url_of(name).parse()?
            }
            Self::Given(location, _) => location.clone(),
        };
        let is_given = matches!(self, Self::Given(..));
        let retention = if is_given { keep_everything() } else { retention };
        let options = ConnectOptions { retention, ..ConnectOptions::default() };
        let (backend, tally) = Measured::around(connect_with(&location, options).await?);
        Ok(Open { backend, tally, location, room, is_given, _folder: folder })
    }

    /// Removes every room that was opened in its server and is still there.
    pub(super) async fn clean(&self) -> Result<(), Problem> {
        match self.server() {
            Some(server) => server.clean().await,
            None => Ok(()),
        }
    }
}

/// A folder in this one that is removed when it is dropped.
pub(super) fn temporary_folder_in(folder: &Path) -> Result<tempfile::TempDir, Problem> {
    Ok(tempfile::Builder::new().prefix(".windlass-bench-").tempdir_in(folder)?)
}

/// A store that is open. Its temporary files go with it.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) tally: Arc<Tally>,
    pub(super) location: Location,
    room: Option<(Arc<Server>, String)>,
    is_given: bool,
    _folder: Option<tempfile::TempDir>,
}

impl Open {
    /// The file of the store, when it has one.
    pub(super) fn file(&self) -> Option<&Path> {
        match &self.location {
            Location::Sqlite(path) => Some(path),
            Location::Memory | Location::Redis(_) | Location::Postgres(_) => None,
        }
    }

    /// Removes what was measured: the room, or the tasks and the limits of this queue in a store that somebody named.
    pub(super) async fn close(self, queue: &QueueName) -> Result<(), Problem> {
        if let Some((server, room)) = self.room {
            drop(self.backend);
            return server.remove(&room).await;
        }
        if self.is_given {
            let filter = Filter { queues: vec![queue.clone()], ..Filter::default() };
            for subject in [Subject::Queue(queue.clone()), Subject::KeysOfQueue(queue.clone())] {
                self.backend.limit(&LimitChange::Remove(subject)).await?;
            }
            Client::new(self.backend).command_all(&filter, TaskAction::Discard).await?;
        }
        Ok(())
    }
}

/// A retention under which nothing is removed.
pub(super) fn keep_everything() -> Retention {
    const YEARS: Duration = Duration::from_secs(10 * 365 * 86_400);
    Retention { finished: YEARS, finished_max: u64::from(u32::MAX), dead: YEARS }
}

/// A queue that nobody else uses.
pub(super) fn own_queue() -> Result<QueueName, Problem> {
    let name = format!("bench-{:08x}", fastrand::u32(..));
    name.parse().map_err(|error| Problem::new(Exit::Failed, error, "please report this"))
}

/// Does nothing, with arguments of a size.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "bench.noop")]
pub(super) struct Noop {
    payload: String,
}

/// The application whose tasks do nothing.
pub(super) async fn noop_registry() -> Result<Registry, Problem> {
    async fn noop(_: Noop, _: Cx) -> Result<(), TaskError> {
        Ok(())
    }
    Ok(App::new("bench").task(noop).build().await?)
}

/// Tasks that do nothing.
pub(super) fn noops(queue: &QueueName, count: usize, payload: usize) -> Result<Vec<Envelope>, Problem> {
    let task = Noop { payload: "x".repeat(payload) };
    (0..count).map(|_| envelope(&task, queue)).collect()
}

/// The key of a tenant.
pub(super) fn key_of(number: u32) -> Result<Key, Problem> {
    format!("tenant-{number}").parse().map_err(|error| Problem::new(Exit::Failed, error, "please report this"))
}

/// A task in a queue of its own.
pub(super) fn envelope<T: Task>(task: &T, queue: &QueueName) -> Result<Envelope, Problem> {
    let made = Envelope::of(task, SystemClock.now());
    let mut envelope = made.map_err(|error| Problem::usage(error, "choose a smaller `--payload`"))?;
    envelope.queue = queue.clone();
    Ok(envelope)
}

/// Hears what becomes of tasks.
#[derive(Debug, Default)]
pub(super) struct Watch {
    settled: AtomicU64,
    wrong: AtomicU64,
    /// From the claim to the store's answer to the settle, in microseconds.
    held: Mutex<Histogram>,
    /// When the last one ended, in microseconds since 1970.
    last_at: AtomicI64,
    target: AtomicU64,
    reached: Notify,
}

impl Watch {
    /// Tasks that have ended well, so far.
    pub(super) fn settled(&self) -> u64 {
        self.settled.load(Ordering::Relaxed)
    }

    /// When the last one ended, in microseconds since 1970; zero before the first.
    pub(super) fn last_at(&self) -> i64 {
        self.last_at.load(Ordering::Relaxed)
    }

    /// Attempts that did not end well.
    pub(super) fn wrong(&self) -> u64 {
        self.wrong.load(Ordering::Relaxed)
    }

    /// How long they were held.
    pub(super) fn held(&self) -> Histogram {
        self.held.lock().clone()
    }

    /// Waits until so many have ended.
    pub(super) async fn until(&self, target: u64) {
        self.target.store(target, Ordering::SeqCst);
        while self.settled.load(Ordering::SeqCst) < target {
            self.reached.notified().await;
        }
    }

    pub(super) fn check(&self) -> Result<(), Problem> {
        all_well(self.wrong())
    }
}

/// Whatever was measured is worth nothing when tasks did not end as they should.
pub(super) fn all_well(wrong: u64) -> Result<(), Problem> {
    match wrong {
        0 => Ok(()),
        wrong => Err(Problem::new(
            Exit::Failed,
            format_args!("{wrong} attempts did not end well, so the numbers mean nothing"),
            "run it again with `-v` to see why",
        )),
    }
}

/// The part of [`Watch`] that the worker owns.
struct Ear(Arc<Watch>);

impl Listener for Ear {
    fn on_event(&self, event: &Event) {
        let Event::Settled { call, verdict, settlement, .. } = event else { return };
        match (verdict, settlement) {
            (Verdict::Succeeded { .. }, Settlement::Applied) => {}
            // A worker that is stopped before a backlog gives back what it has not begun.
            (Verdict::Released, _) => return,
            _ => {
                self.0.wrong.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
        let now = SystemClock.now();
        self.0.held.lock().add(now.since(call.started_at).as_micros() as u64);
        self.0.last_at.fetch_max(now.as_micros(), Ordering::Relaxed);
        let settled = self.0.settled.fetch_add(1, Ordering::SeqCst) + 1;
        if settled == self.0.target.load(Ordering::SeqCst) {
            self.0.reached.notify_one();
        }
    }
}

/// A worker at work, as `windlass worker` starts it: engine thread, the handlers on this runtime, the log as a
/// listener.
#[derive(Debug)]
pub(super) struct Working {
    shutdown: Shutdown,
    ended: JoinHandle<std::io::Result<Ended>>,
}

impl Working {
    pub(super) fn start(
        backend: &Arc<dyn Backend>,
        registry: Registry,
        queue: &QueueName,
        slots: Option<usize>,
        watch: &Arc<Watch>,
    ) -> Self {
        let name = format!("bench-{}-{:04x}", std::process::id(), fastrand::u16(..));
        let mut settings = Settings::new(NodeId::known(&name));
        settings.queues = vec![(queue.clone(), 1)];
        settings.slots = slots.unwrap_or(settings.slots);
        let worker = Worker::new(Arc::clone(backend), registry, settings);
        let worker = worker.listener(event::Log).listener(Ear(Arc::clone(watch)));
        let shutdown = Shutdown::new();
        Self { ended: tokio::spawn(worker.start(shutdown.clone())), shutdown }
    }

    pub(super) async fn stop(self) -> Result<(), Problem> {
        self.shutdown.begin(ShutdownStep::Graceful);
        let ended = self.ended.await.map_err(std::io::Error::other)??;
        if ended.left_behind > 0 {
            return Err(Problem::new(
                Exit::Failed,
                format_args!("the worker left {} attempts behind", ended.left_behind),
                "run `windlass doctor` to see what is wrong with the store",
            ));
        }
        Ok(())
    }
}

/// Now, on the clock that all processes of this machine share.
pub(super) fn now() -> Timestamp {
    SystemClock.now()
}
