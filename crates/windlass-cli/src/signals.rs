//! What a worker does when it is sent a signal.
//!
//! | signal | means |
//! |---|---|
//! | TERM, INT | stop: claim nothing more and finish what runs; the second one gives back what runs at once |
//! | TSTP, USR1 | quiet: claim nothing more and stay |
//! | USR2 | log what runs |

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use windlass::view::{Filter, PAGE_MAX, Page};
use windlass::worker::{Shutdown, ShutdownStep};
use windlass::{Backend, NodeId, State};

use crate::exit::Exit;

/// How often and by what the process was told to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stops(Arc<(AtomicU8, AtomicU8)>);

impl Stops {
    /// Notes one more; answers which step of the shutdown that is.
    pub(crate) fn add(&self, exit: Exit) -> ShutdownStep {
        self.0.1.store(exit.code(), Ordering::Relaxed);
        if self.0.0.fetch_add(1, Ordering::Relaxed) == 0 { ShutdownStep::Graceful } else { ShutdownStep::Immediate }
    }

    /// How the process ends: well after one signal, as the signal says when it was told twice.
    pub(crate) fn exit(&self) -> Exit {
        match (self.0.0.load(Ordering::Relaxed), self.0.1.load(Ordering::Relaxed)) {
            (0 | 1, _) => Exit::Ok,
            (_, code) if code == Exit::Interrupted.code() => Exit::Interrupted,
            (_, _) => Exit::Terminated,
        }
    }
}

/// The signals of a worker. From when this exists, none of them ends the process by itself.
///
/// It is made first of all: process 1 of a container has no default actions, so a signal that comes while the store is
/// opened would otherwise be ignored.
#[derive(Debug)]
pub(crate) struct Signals(Option<Kinds>);

impl Signals {
    pub(crate) fn catch() -> Self {
        let kinds = Kinds::catch();
        if let Err(error) = &kinds {
            tracing::warn!(
                event = "signals_unavailable",
                %error,
                "signals cannot be received: stop this worker with `node stop`"
            );
        }
        Self(kinds.ok())
    }

    /// Waits for what must be there before anything runs; `None` when the process was told to stop before.
    pub(crate) async fn unless_stopped<T>(&mut self, start: impl Future<Output = T>) -> Option<T> {
        let Some(kinds) = &mut self.0 else { return Some(start.await) };
        tokio::select! {
            started = start => Some(started),
            () = kinds.stopped() => {
                tracing::info!(event = "signal", "told to stop before it has started");
                None
            }
        }
    }

    /// Waits until the process is told to stop; for ever when it cannot be told.
    pub(crate) async fn stopped(self) {
        match self.0 {
            Some(mut kinds) => {
                kinds.stopped().await;
                tracing::info!(event = "signal", "told to stop");
            }
            None => std::future::pending().await,
        }
    }

    /// Heeds them until the process ends.
    pub(crate) fn heed(self, backend: Arc<dyn Backend>, node: NodeId, shutdown: Shutdown) -> Stops {
        let stops = Stops::default();
        if let Some(kinds) = self.0 {
            tokio::spawn(heed(kinds, backend, node, shutdown, stops.clone()));
        }
        stops
    }
}

/// What was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Stop(Exit),
    Quiet,
    Dump,
}

/// SIGTSTP, which has no constant in tokio; its number is the same on Linux for every processor but MIPS and SPARC.
#[cfg(unix)]
pub(crate) fn stop_kind() -> tokio::signal::unix::SignalKind {
    let number = if cfg!(any(target_os = "macos", target_os = "freebsd")) { 18 } else { 20 };
    tokio::signal::unix::SignalKind::from_raw(number)
}

#[cfg(unix)]
#[derive(Debug)]
struct Kinds {
    term: tokio::signal::unix::Signal,
    int: tokio::signal::unix::Signal,
    tstp: tokio::signal::unix::Signal,
    usr1: tokio::signal::unix::Signal,
    usr2: tokio::signal::unix::Signal,
}

#[cfg(unix)]
impl Kinds {
    fn catch() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            tstp: signal(stop_kind())?,
            usr1: signal(SignalKind::user_defined1())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }

    /// The next signal; `None` when none can come any more.
    async fn next(&mut self) -> Option<Told> {
        tokio::select! {
            Some(()) = self.term.recv() => Some(Told::Stop(Exit::Terminated)),
            Some(()) = self.int.recv() => Some(Told::Stop(Exit::Interrupted)),
            Some(()) = self.tstp.recv() => Some(Told::Quiet),
            Some(()) = self.usr1.recv() => Some(Told::Quiet),
            Some(()) = self.usr2.recv() => Some(Told::Dump),
            else => None,
        }
    }
}

#[cfg(not(unix))]
#[derive(Debug)]
struct Kinds;

#[cfg(not(unix))]
impl Kinds {
    fn catch() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) -> Option<Told> {
        tokio::signal::ctrl_c().await.ok().map(|()| Told::Stop(Exit::Interrupted))
    }
}

impl Kinds {
    async fn stopped(&mut self) {
        loop {
            match self.next().await {
                Some(Told::Stop(_)) => return,
                Some(Told::Quiet | Told::Dump) => {}
                None => std::future::pending().await,
            }
        }
    }
}

async fn heed(mut kinds: Kinds, backend: Arc<dyn Backend>, node: NodeId, shutdown: Shutdown, stops: Stops) {
    while let Some(told) = kinds.next().await {
        match told {
            Told::Stop(exit) => stop_on(&shutdown, &stops, exit),
            Told::Quiet => shutdown.begin(ShutdownStep::Quiet),
            Told::Dump => dump(&backend, &node).await,
        }
    }
}

fn stop_on(shutdown: &Shutdown, stops: &Stops, exit: Exit) {
    let step = stops.add(exit);
    match step {
        ShutdownStep::Quiet => tracing::info!(event = "signal", "told to be quiet: claiming nothing more"),
        ShutdownStep::Graceful => {
            tracing::info!(event = "signal", "told to stop: finishing what runs; once more gives it back at once");
        }
        ShutdownStep::Immediate => tracing::warn!(event = "signal", "told to stop at once: giving back what runs"),
    }
    shutdown.begin(step);
}

/// Asks the store and not the engine, so that nothing is counted per task for the sake of a rare signal.
async fn dump(backend: &Arc<dyn Backend>, node: &NodeId) {
    let (mut count, mut after) = (0, None);
    loop {
        let page = Page { after, limit: PAGE_MAX };
        let listing = match backend.list(&Filter::in_states([State::Running]), &page).await {
            Ok(listing) => listing,
            Err(error) => return tracing::warn!(event = "signal", %error, "cannot say what runs: the store failed"),
        };
        for record in listing.tasks.iter().filter(|record| record.node.as_ref() == Some(node)) {
            count += 1;
            tracing::info!(
                event = "task_running",
                task_name = %record.envelope.name,
                task_id = %record.envelope.id,
                queue = %record.envelope.queue,
                attempt = record.attempt,
                started_at = %record.started_at.map(|at| at.to_string()).unwrap_or_default(),
                "runs"
            );
        }
        after = listing.next;
        if after.is_none() {
            return tracing::info!(event = "tasks_running", count, "that is what runs here");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_signal_is_immediate_and_decides_the_exit_code() {
        let stops = Stops::default();
        assert_eq!(stops.exit(), Exit::Ok);
        assert_eq!(stops.add(Exit::Terminated), ShutdownStep::Graceful);
        assert_eq!(stops.exit(), Exit::Ok);
        assert_eq!(stops.add(Exit::Interrupted), ShutdownStep::Immediate);
        assert_eq!(stops.exit(), Exit::Interrupted);
    }
}
