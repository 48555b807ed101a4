//! Waiting for a change of keys, without a poll: the server tells a connection that has read a key that it has changed.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{PushInfo, PushKind};
use tokio::sync::{Mutex, mpsc};
use tokio::time::Instant;
use tracing::debug;

use super::line::Line;
use crate::link::send;

/// How often somebody looks whom the server cannot tell.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// A connection whose other end is gone without a word looks like one on which nothing happens; so it is asked this often.
const ARM_EVERY: Duration = Duration::from_secs(5);

/// One who waits.
#[derive(Debug)]
pub(super) struct Wake {
    line: Arc<Line>,
    ear: Mutex<Option<Ear>>,
}

struct Ear {
    connection: MultiplexedConnection,
    heard: mpsc::UnboundedReceiver<PushInfo>,
}

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ear")
    }
}

impl Wake {
    pub(super) fn new(line: Arc<Line>) -> Self {
        Self { line, ear: Mutex::new(None) }
    }

    /// From here on changes of these keys are noticed: look once more, then wait.
    pub(super) async fn arm(&self, keys: &[Vec<u8>]) {
        let mut slot = self.ear.lock().await;
        if slot.is_none() {
            *slot = self.open().await;
        }
        let Some(ear) = slot.as_mut() else { return };
        // What came before does not count: who arms looks afterwards.
        while ear.heard.try_recv().is_ok() {}
        let mut reading = redis::cmd("EXISTS");
        reading.arg(keys);
        if let Err(error) = send(&mut ear.connection, &reading).await {
            debug!(error = %self.line.fault(&error), "cannot be told of changes");
            *slot = None;
        }
    }

    /// Waits for a change since [`Wake::arm`], or as long.
    pub(super) async fn changed(&self, until: Instant) {
        let mut slot = self.ear.lock().await;
        let Some(ear) = slot.as_mut() else {
            tokio::time::sleep_until(until.min(Instant::now() + LOOK_EVERY)).await;
            return;
        };
        let until = until.min(Instant::now() + ARM_EVERY);
        loop {
            match tokio::time::timeout_at(until, ear.heard.recv()).await {
                Err(_) => return,
                Ok(Some(push)) if push.kind == PushKind::Invalidate => return,
                Ok(Some(push)) if push.kind != PushKind::Disconnection => {}
                Ok(_) => {
                    *slot = None;
                    return;
                }
            }
        }
    }

    async fn open(&self) -> Option<Ear> {
        // tidy: allow(unbounded): the client library hands messages over without waiting; one comes for each key that was read
        let (sender, heard) = mpsc::unbounded_channel();
        let mut connection = match self.line.listen(sender).await {
            Ok(connection) => connection,
            Err(error) => {
                debug!(%error, "cannot be told of changes");
                return None;
            }
        };
        match send(&mut connection, redis::cmd("CLIENT").arg("TRACKING").arg("ON")).await {
            Ok(_) => Some(Ear { connection, heard }),
            Err(error) => {
                debug!(error = %self.line.fault(&error), "the server does not tell of changes");
                None
            }
        }
    }
}
