//! The other way: a Rust client enqueues for Python's workers, and reads their results.
//!
//! An [`Outlet`] sends messages to one kind of broker; a [`Producer`] makes messages of tasks and waits for results.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::Duration;
//! use windlass_bridges::taskiq::ResultOptions;
//! use windlass_bridges::taskiq::producer::{Kind, Producer, RedisOutlet};
//! use windlass_core::{Args, Envelope, QueueName, TaskName};
//! use windlass_redis::Location;
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let server: Location = "redis://localhost".parse()?;
//! let outlet = Arc::new(RedisOutlet::new(server.clone(), Kind::List));
//! let producer = Producer::new(outlet, Some(&ResultOptions::new(server)));
//! let add = Envelope::new(TaskName::known("app:add"), QueueName::known("taskiq"), Args::parse("[2, 3]")?);
//! let task_id = producer.enqueue(&add).await?;
//! let result = producer.wait(&task_id, Duration::from_secs(5)).await?;
//! assert_eq!(result.return_value.as_str(), "5");
//! # Ok(())
//! # }
//! ```

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use uuid::Uuid;
use windlass_amqp::{Amqp, Unrouted};
use windlass_core::bridge::TransportError;
use windlass_core::{Envelope, QueueName};
use windlass_redis::Location;
use windlass_redis::foreign::{Command, Line, Reply};
use windlass_wire::taskiq::{Broker, Delay, Message, Route, STREAM_FIELD, TaskResult, Unsendable, amqp_frame};

use super::options::ResultOptions;
use super::results::{Results, WaitError};
use crate::carrier::{Beside, Outgoing, TaskiqTopology, all_confirmed, of_store, publish};

/// Sends messages to one broker.
#[async_trait]
pub trait Outlet: Send + Sync + std::fmt::Debug {
    /// What priorities and delays mean there.
    fn broker(&self) -> Broker;

    /// Sends a message to a queue.
    ///
    /// # Errors
    /// [`TransportError`]; after [`TransportError::Unreachable`] it may have been sent or not.
    async fn send(&self, message: &Message, queue: &QueueName) -> Result<(), TransportError>;
}

/// What a queue is in Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A list: `ListQueueBroker`.
    List,
    /// A stream: `RedisStreamBroker`.
    Stream {
        /// The group that its workers are in, `taskiq` by default: made before the first message, or none of them sees it.
        group: String,
        /// About how many entries are kept. Without a limit the stream grows for ever: workers do not delete entries.
        length_max: Option<u64>,
    },
    /// A channel: `PubSubBroker`. Who does not listen now never hears of it; when nobody does, that is refused.
    Channel,
}

/// Sends to the workers of taskiq-redis.
#[derive(Debug)]
pub struct RedisOutlet {
    line: Line,
    kind: Kind,
    /// Streams whose group is there.
    grouped: Mutex<BTreeSet<QueueName>>,
}

impl RedisOutlet {
    /// Sends to queues of this kind; the server is asked when there is something to send.
    pub fn new(location: Location, kind: Kind) -> Self {
        Self { line: Line::to(location), kind, grouped: Mutex::default() }
    }

    async fn broadcast(&self, channel: &str, text: &str) -> Result<(), TransportError> {
        let heard = self.line.ask(&words(&["PUBLISH", channel, text])).await.map_err(of_store)?;
        if heard.number() == Some(0) {
            let why = format!("nobody listens to the channel `{channel}`: the message is gone");
            return Err(TransportError::Refused(why));
        }
        Ok(())
    }

    async fn make_group(&self, queue: &QueueName, group: &str) -> Result<(), TransportError> {
        if self.grouped.lock().contains(queue) {
            return Ok(());
        }
        match self.line.ask(&words(&["XGROUP", "CREATE", queue.as_str(), group, "$", "MKSTREAM"])).await {
            Err(error) if !error.to_string().contains("BUSYGROUP") => Err(of_store(error)),
            Ok(_) | Err(_) => {
                self.grouped.lock().insert(queue.clone());
                Ok(())
            }
        }
    }
}

#[async_trait]
impl Outlet for RedisOutlet {
    fn broker(&self) -> Broker {
        Broker::Redis
    }

    async fn send(&self, message: &Message, queue: &QueueName) -> Result<(), TransportError> {
        let text = message.encode();
        let (queue_name, text) = (queue.as_str(), text.as_str());
        let command = match &self.kind {
            Kind::List => words(&["LPUSH", queue_name, text]),
            Kind::Channel => return self.broadcast(queue_name, text).await,
            Kind::Stream { group, length_max } => {
                self.make_group(queue, group).await?;
                match length_max {
                    None => words(&["XADD", queue_name, "*", STREAM_FIELD, text]),
                    Some(most) => {
                        words(&["XADD", queue_name, "MAXLEN", "~", &most.to_string(), "*", STREAM_FIELD, text])
                    }
                }
            }
        };
        self.line.ask(&command).await.map(drop).map_err(of_store)
    }
}

/// Sends to the workers of taskiq-aio-pika. What it publishes to must be there: declare it when the transport is opened.
#[derive(Debug)]
pub struct AmqpOutlet {
    amqp: Arc<Amqp>,
    exchange: String,
    delay_queue: Option<Beside>,
}

impl AmqpOutlet {
    /// Publishes to the exchange of this topology; what has the label `delay` waits in its delay queue, if there is one.
    pub fn new(amqp: Arc<Amqp>, topology: &TaskiqTopology) -> Self {
        let TaskiqTopology { exchange, delay_queue, .. } = topology;
        Self { amqp, exchange: exchange.clone(), delay_queue: delay_queue.clone() }
    }

    /// A message on its way: directly, or by the delay queue.
    fn outgoing(&self, message: &Message, queue: &QueueName) -> Result<Outgoing, TransportError> {
        let delays = message.labels.delay().is_some_and(|delay| !delay.is_zero());
        if delays && self.delay_queue.is_none() {
            return Err(TransportError::Refused("there is no delay queue for a task with a delay".to_owned()));
        }
        let delay_queue = self.delay_queue.as_ref().map(|beside| beside.name_for(queue));
        let route = Route {
            exchange: &self.exchange,
            routing_key: queue.as_str(),
            delay: delay_queue.as_deref().map(Delay::Queue),
            message_id: &Uuid::new_v4().simple().to_string(),
        };
        let frame = amqp_frame(message, &route);
        let (exchange, routing_key) = (frame.properties.exchange.clone(), frame.properties.routing_key.clone());
        Ok(Outgoing { exchange, routing_key, unrouted: Unrouted::Report, frame })
    }
}

#[async_trait]
impl Outlet for AmqpOutlet {
    fn broker(&self) -> Broker {
        Broker::Amqp
    }

    async fn send(&self, message: &Message, queue: &QueueName) -> Result<(), TransportError> {
        all_confirmed(&publish(&self.amqp, vec![self.outgoing(message, queue)?]).await)
    }
}

/// A task that was not enqueued.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// TaskIQ has no message for it.
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
    /// The broker does not take it.
    #[error("the broker did not take `{task_id}`: {error}")]
    Transport {
        /// Of which task.
        task_id: String,
        /// Why.
        #[source]
        error: TransportError,
    },
}

/// A client of Python's workers.
#[derive(Debug)]
pub struct Producer {
    outlet: Arc<dyn Outlet>,
    results: Option<Results>,
}

impl Producer {
    /// A client that sends through this outlet; without a place for results it cannot wait for them.
    pub fn new(outlet: Arc<dyn Outlet>, results: Option<&ResultOptions>) -> Self {
        Self { outlet, results: results.map(Results::new) }
    }

    /// Sends a task to its queue and answers its id. Headers become labels.
    ///
    /// # Errors
    /// [`SendError`].
    pub async fn enqueue(&self, envelope: &Envelope) -> Result<String, SendError> {
        let message = Message::of(envelope, self.outlet.broker())?;
        self.send(&message, &envelope.queue).await?;
        Ok(message.task_id)
    }

    /// Sends a message to a queue.
    ///
    /// # Errors
    /// [`SendError::Transport`].
    pub async fn send(&self, message: &Message, queue: &QueueName) -> Result<(), SendError> {
        let sent = self.outlet.send(message, queue).await;
        sent.map_err(|error| SendError::Transport { task_id: message.task_id.clone(), error })
    }

    /// Where results are looked for.
    pub fn results(&self) -> Option<&Results> {
        self.results.as_ref()
    }

    /// Waits for the result of a task, up to a limit. The task itself goes on.
    ///
    /// # Errors
    /// [`WaitError`]; [`WaitError::Timeout`] at once when there is no place for results.
    pub async fn wait(&self, task_id: &str, limit: Duration) -> Result<TaskResult, WaitError> {
        match &self.results {
            Some(results) => results.wait(task_id, limit).await,
            None => Err(WaitError::Timeout { task_id: task_id.to_owned(), limit: Duration::ZERO }),
        }
    }
}

pub(super) fn words(words: &[&str]) -> Command {
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

/// The texts of a list of the server.
pub(super) fn texts(reply: Reply) -> Vec<String> {
    reply.list().into_iter().filter_map(|text| String::from_utf8(text.bytes()?).ok()).collect()
}
