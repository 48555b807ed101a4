//! Messages that are published to Redis channels: every listener hears each, and nobody hears it later.
//!
//! There is nothing to accept, and what a process holds dies with it. What is heard while nobody has room waits here, up to
//! a limit; then the newest is dropped, as it would be if nobody listened.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use uuid::Uuid;
use windlass_core::QueueName;
use windlass_core::bridge::{LetGo, Returned, Tag, TransportError};
use windlass_redis::foreign::{Channels, Heard, Line};

use super::{Carried, Carrier, Content, tag, text_of};

/// The most messages that wait for room, and how many bytes they may have together.
const WAITING_MAX: (usize, usize) = (10_000, 64 * 1024 * 1024);

/// Hears what is published to channels whose names are those of the queues.
#[derive(Debug)]
pub struct RedisChannels {
    line: Arc<Line>,
    heard: Arc<Messages>,
    listeners: Mutex<Vec<JoinHandle<()>>>,
}

/// What was heard.
#[derive(Debug)]
struct Messages {
    /// Nobody else hears under this name: every listener has a copy of its own of each message.
    session: Uuid,
    inner: Mutex<Inner>,
    bell: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    listened_to: BTreeSet<String>,
    waiting: VecDeque<Message>,
    waiting_bytes: usize,
    /// What is handed out and not let go.
    held: HashMap<String, Message>,
    count: u64,
}

#[derive(Debug, Clone)]
struct Message {
    identity: String,
    again: bool,
    heard: Heard,
}

impl RedisChannels {
    /// Begins to listen to these queues.
    pub fn new(line: Arc<Line>, queues: &[QueueName]) -> Self {
        let heard = Messages { session: Uuid::new_v4(), inner: Mutex::default(), bell: Notify::new() };
        let channels = Self { line, heard: Arc::new(heard), listeners: Mutex::default() };
        channels.listen(queues);
        channels
    }

    /// Listens to those of these queues that are new.
    fn listen(&self, queues: &[QueueName]) {
        let patterns: Vec<String> = {
            let mut inner = self.heard.inner.lock();
            let new = queues.iter().filter(|queue| inner.listened_to.insert(queue.to_string()));
            new.map(|queue| pattern(queue.as_str())).collect()
        };
        if patterns.is_empty() {
            return;
        }
        let (line, heard) = (Arc::clone(&self.line), Arc::clone(&self.heard));
        let listener = tokio::spawn(async move {
            let mut channels = Channels::listen(line, patterns);
            while let Some(message) = channels.next().await {
                heard.hear(message);
            }
        });
        self.listeners.lock().push(listener);
    }
}

impl Drop for RedisChannels {
    fn drop(&mut self) {
        self.listeners.lock().iter().for_each(JoinHandle::abort);
    }
}

impl Messages {
    fn hear(&self, heard: Heard) {
        let mut inner = self.inner.lock();
        let bytes = inner.waiting_bytes + heard.message.len();
        if inner.waiting.len() >= WAITING_MAX.0 || bytes > WAITING_MAX.1 {
            warn!(channel = heard.channel, "nobody has room for what is published; it is dropped");
            return;
        }
        inner.count += 1;
        inner.waiting_bytes = bytes;
        let identity = format!("{}:{}", self.session.simple(), inner.count);
        inner.waiting.push_back(Message { identity, again: false, heard });
        drop(inner);
        self.bell.notify_one();
    }

    /// Hands out what waits for these queues.
    fn hand_out(&self, queues: &[QueueName], max: usize) -> Vec<Carried> {
        let mut inner = self.inner.lock();
        let (mut carried, mut rest) = (Vec::new(), VecDeque::new());
        for message in std::mem::take(&mut inner.waiting) {
            let queue = queues.iter().find(|queue| queue.as_str() == message.heard.channel);
            let Some(queue) = queue.filter(|_| carried.len() < max) else {
                rest.push_back(message);
                continue;
            };
            inner.waiting_bytes = inner.waiting_bytes.saturating_sub(message.heard.message.len());
            carried.push(Carried {
                tag: tag(&message.identity),
                identity: Some(message.identity.clone()),
                again: message.again,
                queue: queue.clone(),
                content: Content::Bytes(message.heard.message.clone()),
            });
            inner.held.insert(message.identity.clone(), message);
        }
        inner.waiting = rest;
        carried
    }
}

/// The pattern that a name alone matches.
fn pattern(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for char in name.chars() {
        if matches!(char, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(char);
    }
    pattern
}

#[async_trait]
impl Carrier for RedisChannels {
    async fn take(
        &self,
        queues: &[QueueName],
        max: usize,
        wait: Duration,
        hush: &CancellationToken,
    ) -> Result<Vec<Carried>, TransportError> {
        self.listen(queues);
        let until = Instant::now() + wait;
        loop {
            let carried = self.heard.hand_out(queues, max);
            if !carried.is_empty() || hush.is_cancelled() || Instant::now() >= until {
                return Ok(carried);
            }
            tokio::select! {
                () = self.heard.bell.notified() => {}
                () = hush.cancelled() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    async fn accept(&self, tags: &[Tag]) -> Result<Vec<LetGo>, TransportError> {
        let mut inner = self.heard.inner.lock();
        let let_go = |tag| {
            inner.held.remove(&text_of(tag));
            // Nobody else has ever had it.
            LetGo::Certainly
        };
        Ok(tags.iter().map(let_go).collect())
    }

    /// They wait here again, before all others: there is nobody else to give them to.
    async fn put_back(&self, tags: &[Tag], _why: Returned) -> Result<(), TransportError> {
        let mut inner = self.heard.inner.lock();
        for tag in tags.iter().rev() {
            if let Some(message) = inner.held.remove(&text_of(tag)) {
                inner.waiting_bytes += message.heard.message.len();
                inner.waiting.push_front(Message { again: true, ..message });
            }
        }
        drop(inner);
        self.heard.bell.notify_one();
        Ok(())
    }

    async fn recover(&self) -> Result<u64, TransportError> {
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_the_name_and_nothing_else() {
        assert_eq!(pattern("taskiq:mail"), "taskiq:mail");
        assert_eq!(pattern(r"a*[b]?\"), r"a\*\[b\]\?\\");
    }
}
