//! What is published to channels: heard by whoever listens at that moment, and by nobody later.

use std::sync::Arc;
use std::time::Duration;

use redis::{PushInfo, PushKind, Value};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::debug;

use super::line::Line;

/// What nobody has heard yet; what comes beyond that is dropped.
const HEARD_MAX: usize = 10_000;
/// Between two attempts to listen.
const AGAIN_AFTER: Duration = Duration::from_millis(250);
/// A connection whose other end is gone without a word looks like one on which nothing happens; so it is asked this often.
const PING_EVERY: Duration = Duration::from_secs(5);

/// A published message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Where.
    pub channel: String,
    /// What.
    pub message: Vec<u8>,
}

/// Listens to channels until it is dropped; again and again when the connection breaks.
#[derive(Debug)]
pub struct Channels {
    heard: mpsc::Receiver<Heard>,
    listener: JoinHandle<()>,
}

impl Channels {
    /// Begins to listen to channels whose names match these patterns.
    pub fn listen(line: Arc<Line>, patterns: Vec<String>) -> Self {
        let (sender, heard) = mpsc::channel(HEARD_MAX);
        let listener = tokio::spawn(async move {
            loop {
                hear(&line, &patterns, &sender).await;
                if sender.is_closed() {
                    return;
                }
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        });
        Self { heard, listener }
    }

    /// The next message. What is published while the connection is broken is not heard.
    pub async fn next(&mut self) -> Option<Heard> {
        self.heard.recv().await
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

/// Listens until the connection breaks.
async fn hear(line: &Line, patterns: &[String], heard: &mpsc::Sender<Heard>) {
    // tidy: allow(unbounded): the client library hands messages over without waiting; they are taken at once
    let (sender, mut pushes) = mpsc::unbounded_channel();
    let mut connection = match line.listen(sender).await {
        Ok(connection) => connection,
        Err(error) => {
            debug!(%error, "cannot listen to channels");
            return;
        }
    };
    if let Err(error) = connection.psubscribe(patterns).await {
        debug!(error = %line.fault(&error), "cannot listen to channels");
        return;
    }
    loop {
        match tokio::time::timeout(PING_EVERY, pushes.recv()).await {
            Err(_) => {
                if crate::link::send(&mut connection, &redis::cmd("PING")).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Ok(Some(push)) if push.kind == PushKind::Disconnection => return,
            Ok(Some(push)) => {
                let Some(message) = published(push) else { continue };
                match heard.try_send(message) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(_)) => debug!("nobody hears what is published; it is dropped"),
                    Err(mpsc::error::TrySendError::Closed(_)) => return,
                }
            }
        }
    }
}

/// Pattern, channel, message.
fn published(push: PushInfo) -> Option<Heard> {
    if push.kind != PushKind::PMessage {
        return None;
    }
    let mut parts = push.data.into_iter().skip(1).map(|part| match part {
        Value::BulkString(bytes) => Some(bytes),
        Value::SimpleString(text) => Some(text.into_bytes()),
        _ => None,
    });
    let channel = String::from_utf8(parts.next()??).ok()?;
    Some(Heard { channel, message: parts.next()?? })
}
