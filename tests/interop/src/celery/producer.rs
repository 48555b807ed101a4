//! Publishes calls for Celery's workers, as a Python client would, and awaits their results.
//!
//! 1. unfold the call   2. write the counters of its chords   3. publish its messages, all or none on Redis
//!
//! Knows no call of the suite: it takes signatures, and could stand in any program.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use windlass_amqp::{Amqp, AmqpError, Binding, Exchange, Queue, Topology};
use windlass_core::{QueueName, StoreError, Timestamp};
use windlass_redis::foreign::{Channels, Command, Line};
use windlass_wire::celery::follow::{self, ChordStart, Outgoing, Publisher};
use windlass_wire::celery::{ResultDocument, Sending, Signature, result};
use windlass_wire::{Malformed, kombu};

use crate::amqp;

/// How long the counter of a chord is kept: a day, as Celery keeps it.
const CHORD_SECONDS: u64 = 86_400;
/// A result is announced; who has missed it looks again after this long.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// How messages get to the workers.
#[derive(Debug)]
pub enum Transport {
    /// Lists of a Redis.
    Redis(Arc<Line>),
    /// Queues of a RabbitMQ.
    Amqp(Amqp),
}

/// How queues are declared on RabbitMQ; it must be as the workers declare them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Queues {
    /// `x-max-priority`.
    pub max_priority: Option<u8>,
    /// `x-queue-type: quorum`.
    pub quorum: bool,
}

/// What a producer must know of the application that it calls.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The queue of a task that names none.
    pub default_queue: QueueName,
    /// In front of every key, as `global_keyprefix` of both transports.
    pub key_prefix: String,
    /// How queues are declared.
    pub queues: Queues,
    /// `gen<pid>@<host>`, for display.
    pub origin: String,
}

/// Why a call was not sent, or its result not read.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// The call makes no sense; nothing was sent.
    #[error(transparent)]
    Call(#[from] Malformed),
    /// A chord needs a Redis for its counters; nothing was sent.
    #[error("a chord needs results in Redis: it is counted there")]
    ChordWithoutResults,
    /// Results are not kept where others can read them.
    #[error("results are replies to the client that has sent the task: no other process can await them")]
    NoResults,
    /// Redis did not do it. After a transient error it may or may not have happened.
    #[error("the server does not take it: {0}")]
    Redis(#[from] StoreError),
    /// RabbitMQ did not do it.
    #[error("the broker does not take it: {0}")]
    Amqp(#[from] AmqpError),
    /// RabbitMQ has not taken a message.
    #[error("the broker has not taken a message: {0}")]
    NotPublished(String),
    /// The result is no document of Celery's.
    #[error("the result of `{id}` cannot be read: {reason}")]
    Result {
        /// Whose result.
        id: String,
        /// What is wrong with it.
        reason: Malformed,
    },
}

/// Publishes calls and awaits results.
#[derive(Debug)]
pub struct Producer {
    transport: Transport,
    /// Where results are kept; `None` for `rpc://`.
    results: Option<Arc<Line>>,
    settings: Settings,
    /// Queues that were declared here already.
    declared: Mutex<BTreeSet<String>>,
}

impl Producer {
    /// A producer; it connects to a Redis when it sends for the first time.
    pub fn new(transport: Transport, results: Option<Arc<Line>>, settings: Settings) -> Self {
        Self { transport, results, settings, declared: Mutex::default() }
    }

    /// Sends a signature: a task, or the first messages of a workflow. Every task that somebody will await must name its
    /// `task_id` in its options.
    ///
    /// # Errors
    /// [`ProduceError`]; on Redis nothing was sent but after a transient error, on RabbitMQ some messages may have been.
    pub async fn send(&self, signature: &Signature, now: Timestamp) -> Result<(), ProduceError> {
        let mut new_id = || uuid::Uuid::new_v4().to_string();
        let mut publisher = Publisher { new_id: &mut new_id, now, origin: &self.settings.origin };
        let follow = follow::start(signature, &mut publisher)?;
        // Before any part can end.
        self.begin_chords(&follow.chords).await?;
        match &self.transport {
            Transport::Redis(line) => self.push(line, &follow.publish, now).await,
            Transport::Amqp(amqp) => self.publish(amqp, &follow.publish, now).await,
        }
    }

    /// Waits for a task to end, for up to `limit`. Answers its last document; `None` when it has none yet.
    ///
    /// # Errors
    /// [`ProduceError`].
    pub async fn wait(&self, id: &str, limit: Duration) -> Result<Option<ResultDocument>, ProduceError> {
        let line = self.results.as_ref().ok_or(ProduceError::NoResults)?;
        let key = result::key(&self.settings.key_prefix, id);
        let until = Instant::now() + limit;
        // First listen, then look: what ends in between is heard. Listening begins in its own time, so it is looked again.
        let mut announcements = Channels::listen(Arc::clone(line), vec![without_patterns(&key)]);
        loop {
            let document = line.ask(&words(["GET", &key])).await?.bytes();
            let document = document.map(|bytes| ResultDocument::decode(&bytes)).transpose();
            let document = document.map_err(|reason| ProduceError::Result { id: id.to_owned(), reason })?;
            let is_ready = document.as_ref().is_some_and(|document| document.status.is_ready());
            if is_ready || Instant::now() >= until {
                return Ok(document);
            }
            tokio::select! {
                _ = announcements.next() => {}
                () = tokio::time::sleep_until(until.min(Instant::now() + LOOK_EVERY)) => {}
            }
        }
    }

    /// Ends its connections in order.
    pub async fn close(&self) {
        if let Transport::Amqp(amqp) = &self.transport {
            amqp.close().await;
        }
    }

    /// Writes how many parts each chord waits for, and forgets what an older chord of this id has left.
    async fn begin_chords(&self, chords: &[ChordStart]) -> Result<(), ProduceError> {
        if chords.is_empty() {
            return Ok(());
        }
        let line = self.results.as_ref().ok_or(ProduceError::ChordWithoutResults)?;
        let mut commands = Vec::with_capacity(2 * chords.len());
        for chord in chords {
            let key = result::group_key(&self.settings.key_prefix, &chord.group);
            commands.push(words(["DEL", &format!("{key}.c")]));
            let (size, seconds) = (chord.size.to_string(), CHORD_SECONDS.to_string());
            commands.push(words(["SET", &format!("{key}.s"), &size, "EX", &seconds]));
        }
        line.ask_all(&commands).await?;
        Ok(())
    }

    async fn push(&self, line: &Line, messages: &[Outgoing], now: Timestamp) -> Result<(), ProduceError> {
        let prefix = &self.settings.key_prefix;
        let mut commands: Vec<Command> = vec![words(["MULTI"])];
        for outgoing in messages {
            let queue = self.queue_of(outgoing);
            if self.is_new(queue) {
                // Other tools find queues by these.
                let binding = kombu::binding(queue, queue);
                for bindings in [kombu::bindings(queue), kombu::permanent_bindings(queue)] {
                    commands.push(words(["SADD", &format!("{prefix}{bindings}"), &binding]));
                }
            }
            let tag = uuid::Uuid::new_v4().to_string();
            let sending = Sending { exchange: "", routing_key: queue, delivery_tag: Some(&tag), now };
            let element = kombu::encode(&outgoing.message.frame(&sending));
            let list = kombu::list(queue, outgoing.message.request.priority);
            commands.push(words(["LPUSH", &format!("{prefix}{list}"), &element]));
        }
        commands.push(words(["EXEC"]));
        line.ask_all(&commands).await?;
        Ok(())
    }

    async fn publish(&self, amqp: &Amqp, messages: &[Outgoing], now: Timestamp) -> Result<(), ProduceError> {
        let mut topology = Topology::default();
        let mut publish = Vec::with_capacity(messages.len());
        for outgoing in messages {
            let queue = self.queue_of(outgoing);
            if self.is_new(queue) {
                topology.exchanges.push(Exchange::new(queue, "direct"));
                topology.queues.push(self.settings.queues.declaration(queue));
                topology.bindings.push(Binding::new(queue, queue, queue));
            }
            let sending = Sending { exchange: "", routing_key: queue, delivery_tag: None, now };
            publish.push(amqp::message(outgoing.message.frame(&sending)));
        }
        if !topology.queues.is_empty() {
            amqp.declare(&topology).await?;
        }
        amqp::all_confirmed(&amqp.publish(publish).await).map_err(ProduceError::NotPublished)
    }

    fn queue_of<'a>(&'a self, outgoing: &'a Outgoing) -> &'a str {
        let named = outgoing.queue.as_deref().or(outgoing.routing_key.as_deref());
        named.unwrap_or_else(|| self.settings.default_queue.as_str())
    }

    fn is_new(&self, queue: &str) -> bool {
        self.declared.lock().insert(queue.to_owned())
    }
}

impl Queues {
    fn declaration(self, name: &str) -> Queue {
        let mut queue = Queue::new(name);
        if let Some(max) = self.max_priority {
            queue = queue.with("x-max-priority", max);
        }
        if self.quorum {
            queue = queue.with("x-queue-type", "quorum");
        }
        queue
    }
}

fn words<const N: usize>(words: [&str; N]) -> Command {
    words.map(|word| word.as_bytes().to_vec()).into()
}

/// A pattern that only this channel matches.
fn without_patterns(channel: &str) -> String {
    channel.chars().fold(String::with_capacity(channel.len()), |mut pattern, char| {
        if matches!(char, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(char);
        pattern
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_no_pattern() {
        assert_eq!(without_patterns("a*[b]?"), r"a\*\[b\]\?");
    }
}
