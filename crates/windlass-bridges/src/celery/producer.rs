//! The other way: a Rust client enqueues for Celery's workers, and reads their results.
//!
//! 1. make messages: of a task of ours, or of a signature with all that Celery's canvas has   2. write the counters of chords
//! 3. declare the queue   4. publish: on Redis all messages of a call or none
//!
//! `asking.rs` is the client's end of remote control, `bindings.rs` tells which queue gets what.
//!
//! ```no_run
//! use std::time::Duration;
//! use windlass_bridges::celery::producer::{Producer, Settings};
//! use windlass_core::{Args, Envelope, QueueName, TaskName};
//! use windlass_redis::Location;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let server: Location = "redis://localhost".parse()?;
//! let producer = Producer::on_redis(server.clone(), Settings { results: Some(server), ..Settings::default() });
//! let add = Envelope::new(TaskName::known("app.add"), QueueName::known("celery"), Args::parse("[2, 3]")?);
//! let task_id = producer.enqueue(&add).await?;
//! let result = producer.wait(&task_id, Duration::from_secs(5)).await?;
//! assert_eq!(result.result.as_str(), "5");
//! # Ok(())
//! # }
//! ```

mod asking;
mod bindings;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;
use windlass_amqp::Amqp;
use windlass_core::bridge::TransportError;
use windlass_core::{Clock, Envelope, Priority, QueueName, StoreError, SystemClock, Timestamp};
use windlass_redis::Location;
use windlass_redis::foreign::{Channels, Line};
use windlass_wire::celery::control::answer::BrokerInfo;
use windlass_wire::celery::follow::{self, Outgoing, Publisher};
use windlass_wire::celery::{
    Message, Producer as Producing, Request, ResultDocument, Sending, Signature, Unsendable, result,
};
use windlass_wire::{Frame, Malformed, Properties, kombu};

use super::broker::{AmqpBroker, Broker, KombuBroker};
use super::plan::Letter;
use super::results::{RedisResults, words};
use crate::carrier::amqp::{CeleryQueues, of_amqp};
use crate::carrier::of_store;

pub use bindings::Binding;

/// A result is announced; who has missed it looks again after this long.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// Drops the elements of lists and counts them, in one step: what comes meanwhile is kept whole.
const DROP: &str = include_str!("lua/drop.lua");

/// What a producer must know of the application that it sends to. The defaults are Celery's own.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where a signature goes that names no queue: `celery`.
    pub default_queue: QueueName,
    /// Where the workers keep their results: `result_backend = redis://…`. Without it nobody can wait, and there are no
    /// chords.
    pub results: Option<Location>,
    /// How long the counters of chords are kept: a day. Zero keeps them for ever.
    pub result_expires: Duration,
    /// In front of every key in Redis: `global_keyprefix`.
    pub key_prefix: String,
    /// On RabbitMQ: how queues are declared that are not there.
    pub declared: CeleryQueues,
    /// Who sends, for display: `gen<pid>@<host>`.
    pub origin: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            default_queue: QueueName::known("celery"),
            results: None,
            result_expires: Duration::from_secs(86_400),
            key_prefix: String::new(),
            declared: CeleryQueues::Classic { max_priority: None },
            origin: format!("gen{}@windlass", std::process::id()),
        }
    }
}

/// A task that was not sent.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// Celery has no message for it; nothing was sent.
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
    /// The signature makes no sense; nothing was sent.
    #[error(transparent)]
    Signature(#[from] Malformed),
    /// Chords are counted in Redis; nothing was sent.
    #[error("a chord needs results in Redis: it is counted there")]
    ChordWithoutResults,
    /// The broker does not take it. After [`TransportError::Unreachable`] it may have been sent or not; of several messages
    /// RabbitMQ may have taken some.
    #[error("the broker did not take it: {0}")]
    Transport(#[from] TransportError),
}

/// A result that was not there.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The task may go on; ask again.
    #[error("`{task_id}` has not ended after {limit:?}")]
    Timeout {
        /// Which task.
        task_id: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// Results are kept nowhere, or are replies to the client that has sent the task.
    #[error(
        "results are kept nowhere, or are replies to the client that has sent the task: no other process can await them"
    )]
    NoResults,
    /// The server does not answer, or refuses.
    #[error("the result of `{task_id}` cannot be asked for: {error}")]
    Unreachable {
        /// Of which task.
        task_id: String,
        /// Why.
        #[source]
        error: StoreError,
    },
    /// What is stored is no document of Celery's.
    #[error("what is stored of `{task_id}` cannot be read: {reason}")]
    Malformed {
        /// Of which task.
        task_id: String,
        /// Why.
        #[source]
        reason: Malformed,
    },
}

/// A client of Celery's workers.
#[derive(Debug)]
pub struct Producer {
    broker: Arc<dyn Broker>,
    over: Over,
    results: Option<RedisResults>,
    settings: Settings,
}

/// What moves the messages.
#[derive(Debug)]
pub(super) enum Over {
    Redis { line: Arc<Line>, location: Location },
    Amqp(Arc<Amqp>),
}

impl Producer {
    /// A client over Redis; the server is asked when there is something to send.
    pub fn on_redis(location: Location, settings: Settings) -> Self {
        let line = Arc::new(Line::to(location.clone()));
        // A producer gives nothing back that others have taken, and tells nobody where its broker is.
        let (visibility, info) = (Duration::MAX, BrokerInfo::default());
        let broker = KombuBroker::new(Arc::clone(&line), &settings.key_prefix, visibility, info);
        Self::over(Arc::new(broker), Over::Redis { line, location }, settings)
    }

    /// A client over RabbitMQ. Every publish is confirmed, and a queue that is not there is declared before.
    ///
    /// # Errors
    /// [`TransportError`] when the broker cannot be used now; later it is waited for.
    pub async fn on_amqp(location: windlass_amqp::Location, settings: Settings) -> Result<Self, TransportError> {
        let amqp = Amqp::open(location, windlass_amqp::Options::default()).await.map_err(of_amqp)?;
        let amqp = Arc::new(amqp);
        let broker = AmqpBroker::new(Arc::clone(&amqp), settings.declared, BrokerInfo::default());
        Ok(Self::over(Arc::new(broker), Over::Amqp(amqp), settings))
    }

    /// A client over what somebody else uses as well.
    pub(super) fn over(broker: Arc<dyn Broker>, over: Over, settings: Settings) -> Self {
        let results = settings.results.clone().map(|location| RedisResults {
            line: Arc::new(Line::to(location)),
            prefix: settings.key_prefix.clone(),
            expires: settings.result_expires,
        });
        Self { broker, over, results, settings }
    }

    /// Sends a task to its queue, with what follows it, and answers its id.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn enqueue(&self, envelope: &Envelope) -> Result<String, SendError> {
        self.enqueue_to(envelope, "", envelope.queue.as_str()).await
    }

    /// The same through an exchange, to the queues that are bound to it with this routing key.
    ///
    /// # Errors
    /// [`SendError`]; [`TransportError::Refused`] when no queue is.
    pub async fn enqueue_to(
        &self,
        envelope: &Envelope,
        exchange: &str,
        routing_key: &str,
    ) -> Result<String, SendError> {
        let (now, origin) = (SystemClock.now(), self.settings.origin.as_str());
        let producing = Producing { broker: self.broker.kind(), now, origin, reply_to: None };
        let mut message = Message::of(envelope, &producing)?;
        if envelope.priority == Priority::default() && !matches!(Request::of(envelope), Ok(Some(_))) {
            // As a client that names no priority. What has come from Celery keeps its own.
            message.request.priority = 0;
        }
        let tag = Uuid::new_v4().to_string();
        let frame = message.frame(&Sending { exchange, routing_key, delivery_tag: Some(&tag), now });
        self.publish(vec![frame]).await?;
        Ok(message.request.id)
    }

    /// Sends a signature: a task, or the first messages of a workflow. A task that somebody is to wait for must name its
    /// `task_id` in its options.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn send(&self, signature: &Signature) -> Result<(), SendError> {
        let (now, origin) = (SystemClock.now(), self.settings.origin.as_str());
        let mut new_id = || Uuid::new_v4().to_string();
        let follow = follow::start(signature, &mut Publisher { new_id: &mut new_id, now, origin })?;
        // Before any part can end.
        if !follow.chords.is_empty() {
            let counters = self.results.as_ref().ok_or(SendError::ChordWithoutResults)?;
            let chords: Vec<_> = follow.chords.into_iter().map(|chord| (chord.group, chord.size)).collect();
            counters.begin(&chords).await?;
        }
        Ok(self.publish(follow.publish.iter().map(|outgoing| self.frame(outgoing, now)).collect()).await?)
    }

    /// Waits for a task to end, up to a limit, and answers its last document. The task itself goes on.
    ///
    /// # Errors
    /// [`WaitError`].
    pub async fn wait(&self, task_id: &str, limit: Duration) -> Result<ResultDocument, WaitError> {
        let RedisResults { line, prefix, .. } = self.results.as_ref().ok_or(WaitError::NoResults)?;
        let until = Instant::now() + limit;
        // First listen, then look: what ends in between is heard. Listening begins in its own time, so it is looked again.
        let announced = literal(&result::key(prefix, task_id));
        let mut announcements = Channels::listen(Arc::clone(line), vec![announced]);
        loop {
            let now = Instant::now();
            match self.find(task_id).await {
                Ok(Some(document)) if document.status.is_ready() => return Ok(document),
                Err(WaitError::Unreachable { error, .. }) if error.is_transient() && now < until => {}
                Err(error) => return Err(error),
                Ok(_) if now >= until => return Err(WaitError::Timeout { task_id: task_id.to_owned(), limit }),
                Ok(_) => {}
            }
            let again = until.min(now + LOOK_EVERY);
            tokio::select! {
                heard = announcements.next() => if heard.is_none() { tokio::time::sleep_until(again).await },
                () = tokio::time::sleep_until(again) => {}
            }
        }
    }

    /// What is stored of a task now, whether it has ended or not.
    ///
    /// # Errors
    /// [`WaitError`], never [`WaitError::Timeout`].
    pub async fn find(&self, task_id: &str) -> Result<Option<ResultDocument>, WaitError> {
        let RedisResults { line, prefix, .. } = self.results.as_ref().ok_or(WaitError::NoResults)?;
        let answer = line.ask(&words(["GET", &result::key(prefix, task_id)])).await;
        let answer = answer.map_err(|error| WaitError::Unreachable { task_id: task_id.to_owned(), error })?;
        let document = answer.bytes().map(|bytes| ResultDocument::decode(&bytes)).transpose();
        document.map_err(|reason| WaitError::Malformed { task_id: task_id.to_owned(), reason })
    }

    /// Drops what waits in queues, and answers how many messages that were. What a worker has taken stays with it.
    ///
    /// # Errors
    /// [`TransportError`]; on RabbitMQ some of the queues may be empty then. A queue that is not there is empty.
    pub async fn purge(&self, queues: &[QueueName]) -> Result<u64, TransportError> {
        match &self.over {
            Over::Redis { line, .. } => {
                let lists = queues.iter().flat_map(|queue| kombu::lists(queue.as_str()));
                let keys: Vec<_> = lists.map(|list| self.key(&list).into_bytes()).collect();
                let dropped = line.run(DROP, &keys, &[]).await.map_err(of_store)?.number();
                Ok(dropped.and_then(|dropped| u64::try_from(dropped).ok()).unwrap_or(0))
            }
            Over::Amqp(amqp) => {
                let mut dropped = 0;
                for queue in queues {
                    dropped += amqp.purge(queue.as_str()).await.map_err(of_amqp)?;
                }
                Ok(dropped)
            }
        }
    }

    /// Deletes a queue and what waits in it, whoever uses it; does nothing when it is not there.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn delete(&self, queue: &QueueName) -> Result<(), TransportError> {
        match &self.over {
            Over::Redis { line, .. } => {
                let keys = kombu::lists(queue.as_str()).into_iter().chain([kombu::bindings(queue.as_str())]);
                let keys = keys.map(|key| self.key(&key).into_bytes());
                let command: Vec<Vec<u8>> = std::iter::once(b"DEL".to_vec()).chain(keys).collect();
                line.ask(&command).await.map(drop).map_err(of_store)
            }
            Over::Amqp(amqp) => amqp.delete(queue.as_str()).await.map_err(of_amqp),
        }
    }

    /// Ends its connections in order.
    pub async fn close(&self) {
        match &self.over {
            Over::Redis { .. } => {}
            Over::Amqp(amqp) => amqp.close().await,
        }
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.settings.key_prefix)
    }

    fn frame(&self, outgoing: &Outgoing, now: Timestamp) -> Frame {
        let Outgoing { message, queue, exchange, routing_key } = outgoing;
        // A queue is reached through the default exchange by its name, whatever exchange it is bound to.
        let (exchange, routing_key) = match (queue, exchange) {
            (Some(queue), _) => ("", queue.as_str()),
            (None, Some(exchange)) => (exchange.as_str(), routing_key.as_deref().unwrap_or_default()),
            (None, None) => ("", routing_key.as_deref().unwrap_or(self.settings.default_queue.as_str())),
        };
        let tag = Uuid::new_v4().to_string();
        message.frame(&Sending { exchange, routing_key, delivery_tag: Some(&tag), now })
    }

    /// RabbitMQ says by itself that no queue takes a message.
    async fn must_be_bound(&self, line: &Line, properties: &Properties) -> Result<(), TransportError> {
        let Properties { exchange, routing_key, .. } = properties;
        let bound = self.bound_to(line, exchange).await?;
        if bound.iter().any(|one| one.routing_key == *routing_key) {
            return Ok(());
        }
        let why = format!("no queue is bound to the exchange `{exchange}` with the routing key `{routing_key}`");
        Err(TransportError::Refused(why))
    }

    async fn publish(&self, frames: Vec<Frame>) -> Result<(), TransportError> {
        match &self.over {
            Over::Redis { line, .. } => {
                for frame in frames.iter().filter(|frame| !frame.properties.exchange.is_empty()) {
                    self.must_be_bound(line, &frame.properties).await?;
                }
                let direct = frames.iter().filter(|frame| frame.properties.exchange.is_empty());
                let mut queues: Vec<QueueName> =
                    direct.filter_map(|frame| QueueName::new(&frame.properties.routing_key).ok()).collect();
                queues.sort();
                queues.dedup();
                // Other tools find queues by that.
                self.broker.declare(&queues).await?;
                // Not as a letter that is remembered: who sends the same id twice means it.
                self.broker.reply(&frames).await
            }
            Over::Amqp(_) => self.broker.send(&[Letter { once: String::new(), frames }]).await,
        }
    }
}

/// A text as a pattern that matches nothing else.
fn literal(text: &str) -> String {
    let special = |char| matches!(char, '*' | '?' | '[' | ']' | '\\');
    text.chars().flat_map(|char| special(char).then_some('\\').into_iter().chain([char])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_no_pattern() {
        assert_eq!(literal("a*[b]?"), r"a\*\[b\]\?");
    }
}
