//! What the stores themselves allow: for each, the least that an honest at-least-once queue must do, without an engine.
//!
//! Each file says exactly what it does. This one gives the measurements a small interface: [`Raw::limit`] is the
//! yardstick for a drain, [`Raw::wake_ups`] that for a latency, and [`Raw::cases`] is everything that `bench limits`
//! shows. All of it happens in a fresh file, or in a room of its own in the server ([`Server`](super::server)), which
//! is removed afterwards.

pub(super) mod postgres;
pub(super) mod redis;
mod sqlite;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bed::Place;
use super::machine;
use super::server::{Cpu, Kind, Server, micros_per_task};
use super::stats::Histogram;
use crate::exit::{Exit, Problem};
pub(super) use sqlite::Ended;

/// Each case takes at most so many turns: a batch of one needs a commit for each task.
const TURNS_MAX: usize = 2_000;
/// Connections on which single rows are inserted at once.
const SINGLES_CONNECTIONS: usize = 16;
/// Wake-ups: how many, and how often.
const WAKE_UPS: usize = 500;
const WAKE_UP_EVERY: Duration = Duration::from_millis(5);

/// A store without an engine.
#[derive(Debug, Clone)]
pub(super) enum Raw {
    /// In a fresh file in this folder.
    Sqlite(PathBuf),
    /// In a room of its own.
    Redis(Arc<Server>),
    /// In a room of its own.
    Postgres(Arc<Server>),
}

/// What is pushed and drained.
#[derive(Debug, Clone)]
pub(super) struct Load {
    pub(super) tasks: usize,
    pub(super) body: String,
    pub(super) push_batch: usize,
    pub(super) batch: usize,
    pub(super) connections: usize,
}

/// Tasks per second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit {
    pub(super) enqueue: f64,
    pub(super) drain: f64,
}

/// One line of `bench limits`, before it is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) kind: CaseKind,
    pub(super) batch: usize,
    pub(super) connections: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CaseKind {
    /// Pushes and drains by the yardstick.
    Yardstick,
    /// The yardstick of SQLite without remembering what has ended.
    Forgetting,
    /// Streams of Redis.
    Stream,
    /// Single rows on several connections.
    Singles,
    /// From a push to the reader that waits for it.
    WakeUp,
}

/// What a case has given.
#[derive(Debug, Clone)]
pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) batch: usize,
    pub(super) connections: usize,
    pub(super) found: Found,
    /// Microseconds of CPU for each task; `None` where nobody knows.
    pub(super) server_cpu: Option<f64>,
    pub(super) client_cpu: Option<f64>,
}

#[derive(Debug, Clone)]
pub(super) enum Found {
    /// Tasks per second.
    Rate(f64),
    /// Microseconds.
    Times(Histogram),
}

impl Load {
    /// The numbers of the tasks, cut into batches.
    fn batches(&self, size: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let (tasks, size) = (self.tasks, size.max(1));
        (0..tasks).step_by(size).map(move |start| start..tasks.min(start + size))
    }
}

/// Sixteen bytes in the order of time, random behind it: as the ids of the stores are.
fn id(at: usize) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&(at as u64).to_be_bytes());
    bytes[8..].copy_from_slice(&fastrand::u64(..).to_be_bytes());
    bytes
}

impl Raw {
    /// What is below a place; there is nothing below memory.
    pub(super) fn of(place: &Place) -> Option<Self> {
        match place.server() {
            Some(server) => Some(match server.kind() {
                Kind::Redis => Self::Redis(Arc::clone(server)),
                Kind::Postgres => Self::Postgres(Arc::clone(server)),
            }),
            None => (place.kind() == "sqlite").then(|| Self::Sqlite(place.folder())),
        }
    }

    /// As people write it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "SQLite",
            Self::Redis(_) => "Redis",
            Self::Postgres(_) => "PostgreSQL",
        }
    }

    /// Pushes and drains a load by the yardstick of the store.
    pub(super) async fn limit(&self, load: &Load) -> Result<Limit, Problem> {
        let rows = self.yardstick(load).await?;
        let rate = |row: &Row| match &row.found {
            Found::Rate(rate) => *rate,
            Found::Times(_) => 0.0,
        };
        Ok(Limit { enqueue: rate(&rows[0]), drain: rate(&rows[1]) })
    }

    /// From before a push to when the store has handed it over to somebody who waits, at a steady rate, in
    /// microseconds.
    pub(super) async fn wake_ups(&self, tasks: usize, every: Duration, body: &str) -> Result<Histogram, Problem> {
        match self {
            Self::Sqlite(folder) => {
                let body = body.to_owned();
                in_fresh_file(folder, move |path| sqlite::starts(path, tasks, &body, every)).await
            }
            Self::Redis(server) => {
                let name = server.new_room();
                let room = redis::Room::new(server.url(), &name);
                let times = redis::blocking(move || room.wake_ups(tasks, every)).await?;
                server.remove(&name).await?;
                Ok(times)
            }
            Self::Postgres(server) => {
                let name = server.new_room();
                let times = postgres::Room::new(server.url(), &name).await?.wake_ups(tasks, every).await?;
                server.remove(&name).await?;
                Ok(times)
            }
        }
    }

    /// Everything that is worth knowing about the store, for these sizes of batches and numbers of connections.
    pub(super) fn cases(&self, batches: &[usize], connections: &[usize]) -> Vec<Case> {
        let of = |kind: CaseKind, connections: &[usize]| -> Vec<Case> {
            let pairs = batches.iter().flat_map(|batch| connections.iter().map(move |count| (*batch, *count)));
            pairs.map(|(batch, connections)| Case { kind, batch, connections }).collect()
        };
        let wake_up = Case { kind: CaseKind::WakeUp, batch: 1, connections: 2 };
        match self {
            // One process has one connection that writes.
            Self::Sqlite(_) => [of(CaseKind::Yardstick, &[1]), of(CaseKind::Forgetting, &[1]), vec![wake_up]].concat(),
            Self::Redis(_) => {
                [of(CaseKind::Yardstick, connections), of(CaseKind::Stream, connections), vec![wake_up]].concat()
            }
            Self::Postgres(_) => {
                let singles = Case { kind: CaseKind::Singles, batch: 1, connections: SINGLES_CONNECTIONS };
                [of(CaseKind::Yardstick, connections), vec![singles, wake_up]].concat()
            }
        }
    }

    /// Measures a case with at most this many tasks.
    pub(super) async fn measure(&self, case: Case, tasks: usize, body: &str) -> Result<Vec<Row>, Problem> {
        let tasks = tasks.min(case.batch.saturating_mul(TURNS_MAX)).max(1);
        let load = Load {
            tasks,
            body: body.to_owned(),
            push_batch: case.batch,
            batch: case.batch,
            connections: case.connections,
        };
        match case.kind {
            CaseKind::Yardstick => self.yardstick(&load).await,
            CaseKind::Forgetting => {
                let Self::Sqlite(folder) = self else { return Ok(Vec::new()) };
                let rows = sqlite_rows(folder, &load, Ended::Forgotten).await?;
                Ok(rows.into_iter().skip(1).collect())
            }
            CaseKind::Stream => match self {
                Self::Redis(server) => redis_rows(server, &load, Structure::Stream).await,
                Self::Sqlite(_) | Self::Postgres(_) => Ok(Vec::new()),
            },
            CaseKind::Singles => match self {
                Self::Postgres(server) => postgres_singles(server, &load).await,
                Self::Sqlite(_) | Self::Redis(_) => Ok(Vec::new()),
            },
            CaseKind::WakeUp => {
                let before = self.cpu().await?;
                let times = self.wake_ups(tasks.min(WAKE_UPS), WAKE_UP_EVERY, body).await?;
                let what = match self {
                    Self::Sqlite(_) => "wake-up: push and claim, two commits",
                    Self::Redis(_) => "wake-up: push to BLMOVE",
                    Self::Postgres(_) => "wake-up: insert and NOTIFY to LISTEN",
                };
                let count = times.count();
                Ok(vec![row(what, &load, Found::Times(times), before, self.cpu().await?, count)])
            }
        }
    }

    /// Two rows: the pushes and the drain.
    async fn yardstick(&self, load: &Load) -> Result<Vec<Row>, Problem> {
        match self {
            Self::Sqlite(folder) => sqlite_rows(folder, load, Ended::Kept).await,
            Self::Redis(server) => redis_rows(server, load, Structure::IdsAndBodies).await,
            Self::Postgres(server) => postgres_rows(server, load).await,
        }
    }

    async fn cpu(&self) -> Result<Spent, Problem> {
        match self {
            Self::Sqlite(_) => Ok(Spent::of(None)),
            Self::Redis(server) | Self::Postgres(server) => Ok(Spent::of(server.cpu().await?)),
        }
    }
}

/// CPU time until some moment, in seconds.
#[derive(Debug, Clone, Copy)]
struct Spent {
    server: Cpu,
    client: Cpu,
}

impl Spent {
    fn of(server: Cpu) -> Self {
        Self { server, client: machine::cpu_seconds() }
    }

    async fn on(server: &Server) -> Result<Self, Problem> {
        Ok(Self::of(server.cpu().await?))
    }
}

fn row(what: &'static str, load: &Load, found: Found, before: Spent, after: Spent, tasks: u64) -> Row {
    Row {
        what,
        batch: load.batch,
        connections: load.connections,
        found,
        server_cpu: micros_per_task(before.server, after.server, tasks),
        client_cpu: micros_per_task(before.client, after.client, tasks),
    }
}

fn rate_of(tasks: usize, took: Duration) -> Found {
    Found::Rate(tasks as f64 / took.as_secs_f64().max(1e-9))
}

/// Whatever was measured is worth nothing when tasks are missing.
fn check(drained: u64, load: &Load) -> Result<(), Problem> {
    if drained == load.tasks as u64 {
        return Ok(());
    }
    Err(Problem::new(
        Exit::Failed,
        format_args!("{drained} of {} tasks were drained, so the numbers mean nothing", load.tasks),
        "measure on a server that nobody restarts or empties meanwhile",
    ))
}

/// Works in a fresh folder that is removed afterwards, on a thread that may wait.
async fn in_fresh_file<T: Send + 'static>(
    folder: &Path,
    work: impl FnOnce(&Path) -> rusqlite::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let folder = super::bed::temporary_folder_in(folder)?;
    // The folder stays with this future: it goes when the measurement is interrupted.
    let path = folder.path().to_owned();
    let done = tokio::task::spawn_blocking(move || work(&path)).await.map_err(anyhow::Error::from)?;
    Ok(done.map_err(anyhow::Error::from)?)
}

async fn sqlite_rows(folder: &Path, load: &Load, ended: Ended) -> Result<Vec<Row>, Problem> {
    let own = load.clone();
    let drain = match ended {
        Ended::Kept => "drain: end and claim, results kept",
        Ended::Forgotten => "drain: end and claim, results forgotten",
    };
    in_fresh_file(folder, move |path| {
        let file = sqlite::File::new(path)?;
        let (before, began) = (Spent::of(None), Instant::now());
        file.push(own.tasks, &own.body, own.push_batch)?;
        let (between, pushed) = (Spent::of(None), Instant::now());
        file.drain(own.batch, ended)?;
        let (after, drained) = (Spent::of(None), Instant::now());
        let (push_rate, drain_rate) = (rate_of(own.tasks, pushed - began), rate_of(own.tasks, drained - pushed));
        let tasks = own.tasks as u64;
        Ok(vec![
            row("enqueue: inserts in one transaction", &own, push_rate, before, between, tasks),
            row(drain, &own, drain_rate, between, after, tasks),
        ])
    })
    .await
}

/// How Redis keeps tasks.
#[derive(Debug, Clone, Copy)]
enum Structure {
    IdsAndBodies,
    Stream,
}

async fn redis_rows(server: &Arc<Server>, load: &Load, structure: Structure) -> Result<Vec<Row>, Problem> {
    let name = server.new_room();
    let room = redis::Room::new(server.url(), &name);
    let before = Spent::on(server).await?;
    let (pushing, to_push) = (room.clone(), load.clone());
    let push_took = redis::blocking(move || {
        let began = Instant::now();
        match structure {
            Structure::IdsAndBodies => pushing.push(&to_push)?,
            Structure::Stream => pushing.push_stream(&to_push)?,
        }
        Ok(began.elapsed())
    })
    .await?;
    let between = Spent::on(server).await?;
    let (batch, connections) = (load.batch, load.connections);
    let (drained, drain_took) = redis::blocking(move || {
        let began = Instant::now();
        let drained = match structure {
            Structure::IdsAndBodies => room.drain(batch, connections)?,
            Structure::Stream => room.drain_stream(batch, connections)?,
        };
        Ok((drained, began.elapsed()))
    })
    .await?;
    let after = Spent::on(server).await?;
    check(drained, load)?;
    server.remove(&name).await?;
    let (push, drain) = match structure {
        Structure::IdsAndBodies => {
            ("enqueue: HSET bodies, RPUSH ids", "drain: id list + body hash + lease set, one script")
        }
        Structure::Stream => ("enqueue: XADD pipelined", "drain: XREADGROUP + XACK + XDEL in one trip"),
    };
    let tasks = load.tasks as u64;
    let one_connection = Load { connections: 1, ..load.clone() };
    Ok(vec![
        row(push, &one_connection, rate_of(load.tasks, push_took), before, between, tasks),
        row(drain, load, rate_of(load.tasks, drain_took), between, after, tasks),
    ])
}

async fn postgres_rows(server: &Arc<Server>, load: &Load) -> Result<Vec<Row>, Problem> {
    let name = server.new_room();
    let room = postgres::Room::new(server.url(), &name).await?;
    let before = Spent::on(server).await?;
    let push_took = room.push(load).await?;
    let between = Spent::on(server).await?;
    let (drained, drain_took) = room.drain(load.batch, load.connections).await?;
    let after = Spent::on(server).await?;
    check(drained, load)?;
    server.remove(&name).await?;
    let tasks = load.tasks as u64;
    Ok(vec![
        row("enqueue: INSERT of unnest()", load, rate_of(load.tasks, push_took), before, between, tasks),
        row("drain: ack + claim in one statement", load, rate_of(load.tasks, drain_took), between, after, tasks),
    ])
}

async fn postgres_singles(server: &Arc<Server>, load: &Load) -> Result<Vec<Row>, Problem> {
    let name = server.new_room();
    let room = postgres::Room::new(server.url(), &name).await?;
    let before = Spent::on(server).await?;
    let took = room.push(load).await?;
    let after = Spent::on(server).await?;
    server.remove(&name).await?;
    let tasks = load.tasks as u64;
    Ok(vec![row("enqueue: single rows", load, rate_of(load.tasks, took), before, after, tasks)])
}
