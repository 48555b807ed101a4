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

/// Listens for signals until the process ends.
pub(crate) fn listen(backend: Arc<dyn Backend>, node: NodeId, shutdown: Shutdown) -> Stops {
    let stops = Stops::default();
    tokio::spawn(receive(backend, node, shutdown, stops.clone()));
    stops
}

#[cfg(unix)]
async fn receive(backend: Arc<dyn Backend>, node: NodeId, shutdown: Shutdown, stops: Stops) {
    use tokio::signal::unix::{SignalKind, signal};
    // SIGTSTP has no constant in tokio; its number is the same on Linux for every processor but MIPS and SPARC.
    let tstp = SignalKind::from_raw(if cfg!(any(target_os = "macos", target_os = "freebsd")) { 18 } else { 20 });
    let kinds =
        (SignalKind::terminate(), SignalKind::interrupt(), SignalKind::user_defined1(), SignalKind::user_defined2());
    let (Ok(mut term), Ok(mut int), Ok(mut usr1), Ok(mut usr2), Ok(mut stop)) =
        (signal(kinds.0), signal(kinds.1), signal(kinds.2), signal(kinds.3), signal(tstp))
    else {
        tracing::warn!(event = "signals_unavailable", "signals cannot be received: stop this worker with `node stop`");
        return;
    };
    loop {
        tokio::select! {
            Some(()) = term.recv() => stop_on(&shutdown, &stops, Exit::Terminated),
            Some(()) = int.recv() => stop_on(&shutdown, &stops, Exit::Interrupted),
            Some(()) = usr1.recv() => shutdown.begin(ShutdownStep::Quiet),
            Some(()) = stop.recv() => shutdown.begin(ShutdownStep::Quiet),
            Some(()) = usr2.recv() => dump(&backend, &node).await,
            else => return,
        }
    }
}

#[cfg(not(unix))]
async fn receive(_: Arc<dyn Backend>, _: NodeId, shutdown: Shutdown, stops: Stops) {
    while tokio::signal::ctrl_c().await.is_ok() {
        stop_on(&shutdown, &stops, Exit::Interrupted);
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
