//! Publishes messages for TaskIQ's workers, as a Python client would, and awaits their results.
//!
//! Knows no call of the suite: it takes messages, and could stand in any program.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use windlass_amqp::{Amqp, AmqpError, Binding, Exchange, Queue, Topology};
use windlass_core::StoreError;
use windlass_redis::foreign::{Command, Line, Stream};
use windlass_wire::Malformed;
use windlass_wire::taskiq::{Message, Route, STREAM_FIELD, Serializer, TaskResult, amqp_frame, result_key};

use crate::amqp;

/// The exchange of taskiq-aio-pika.
const EXCHANGE: &str = "taskiq";
/// Where its queues send what they give up.
const DEAD_LETTERS: &str = "taskiq.dead_letter";
/// The group of consumers of the stream broker; a client makes it too, so that nothing is sent before it is there.
const GROUP: &str = "taskiq";
/// Nothing announces a result: it is looked for, at first often.
const LOOK_FIRST: Duration = Duration::from_millis(20);
const LOOK_SELDOM: Duration = Duration::from_millis(500);

/// How messages get to the workers.
#[derive(Debug)]
pub enum Transport {
    /// A list.
    List(Arc<Line>),
    /// A stream.
    Stream(Arc<Line>),
    /// A channel.
    PubSub(Arc<Line>),
    /// An exchange of RabbitMQ.
    Amqp(Amqp),
}

/// Why a message was not sent, or a result not read.
#[derive(Debug, thiserror::Error)]
pub enum ProduceError {
    /// Redis did not do it. After a transient error it may or may not have happened.
    #[error("the server does not take it: {0}")]
    Redis(#[from] StoreError),
    /// RabbitMQ did not do it.
    #[error("the broker does not take it: {0}")]
    Amqp(#[from] AmqpError),
    /// RabbitMQ has not taken the message.
    #[error("the broker has not taken the message: {0}")]
    NotPublished(String),
    /// There is no way to hold a message back.
    #[error("a task with the label `delay` needs a queue for delayed messages, and there is none")]
    Delayed,
    /// The result is none, or is written by another serializer.
    #[error("the result of `{id}` cannot be read: {reason}")]
    Result {
        /// Whose result.
        id: String,
        /// What is wrong with it.
        reason: Malformed,
    },
}

/// Publishes messages and awaits results.
#[derive(Debug)]
pub struct Producer {
    transport: Transport,
    queue: String,
    results: Arc<Line>,
    serializer: Serializer,
}

impl Producer {
    /// A producer for one queue; its label `queue_name` sends a message to another, but on RabbitMQ.
    ///
    /// # Errors
    /// [`ProduceError`] when the group of a stream or a queue of RabbitMQ cannot be made.
    pub async fn open(
        transport: Transport,
        queue: &str,
        results: Arc<Line>,
        serializer: Serializer,
    ) -> Result<Self, ProduceError> {
        match &transport {
            Transport::List(_) | Transport::PubSub(_) => {}
            Transport::Stream(line) => make_group(line, queue).await?,
            Transport::Amqp(amqp) => amqp.declare(&topology(queue)).await?,
        }
        Ok(Self { transport, queue: queue.to_owned(), results, serializer })
    }

    /// Sends a message.
    ///
    /// # Errors
    /// [`ProduceError`].
    pub async fn send(&self, message: &Message) -> Result<(), ProduceError> {
        let named = message.labels.0.get("queue_name").map(windlass_wire::taskiq::Label::text);
        let queue = named.as_deref().unwrap_or(&self.queue);
        let body = message.encode();
        match &self.transport {
            Transport::List(line) => line.ask(&words(["LPUSH", queue, &body])).await.map(drop)?,
            Transport::PubSub(line) => line.ask(&words(["PUBLISH", queue, &body])).await.map(drop)?,
            Transport::Stream(line) => {
                if queue != self.queue {
                    make_group(line, queue).await?;
                }
                line.ask(&words(["XADD", queue, "*", STREAM_FIELD, &body])).await.map(drop)?;
            }
            Transport::Amqp(amqp) => self.publish(amqp, message).await?,
        }
        Ok(())
    }

    async fn publish(&self, amqp: &Amqp, message: &Message) -> Result<(), ProduceError> {
        if message.labels.delay().is_some() {
            return Err(ProduceError::Delayed);
        }
        let message_id = uuid::Uuid::new_v4().simple().to_string();
        let route = Route { exchange: EXCHANGE, routing_key: &self.queue, delay: None, message_id: &message_id };
        let published = amqp.publish(vec![amqp::message(amqp_frame(message, &route))]).await;
        amqp::all_confirmed(&published).map_err(ProduceError::NotPublished)
    }

    /// Waits for a result for up to `limit`; `None` when there is none by then.
    ///
    /// # Errors
    /// [`ProduceError`].
    pub async fn wait(&self, id: &str, limit: Duration) -> Result<Option<TaskResult>, ProduceError> {
        let key = result_key(None, id);
        let until = Instant::now() + limit;
        let mut pause = LOOK_FIRST;
        loop {
            if let Some(bytes) = self.results.ask(&words(["GET", &key])).await?.bytes() {
                let result = TaskResult::decode(&bytes, self.serializer);
                return result.map(Some).map_err(|reason| ProduceError::Result { id: id.to_owned(), reason });
            }
            if Instant::now() >= until {
                return Ok(None);
            }
            tokio::time::sleep_until(until.min(Instant::now() + pause)).await;
            pause = (pause * 2).min(LOOK_SELDOM);
        }
    }

    /// Ends its connections in order.
    pub async fn close(&self) {
        if let Transport::Amqp(amqp) = &self.transport {
            amqp.close().await;
        }
    }
}

async fn make_group(line: &Arc<Line>, stream: &str) -> Result<(), ProduceError> {
    Ok(Stream::new(Arc::clone(line), vec![stream.to_owned()], GROUP, "producer").make_group("$").await?)
}

/// What taskiq-aio-pika declares, so that a message has a queue whoever comes first.
fn topology(queue: &str) -> Topology {
    let task_queue = Queue::new(queue)
        .with("x-dead-letter-exchange", "")
        .with("x-dead-letter-routing-key", DEAD_LETTERS)
        .with("x-queue-type", "quorum");
    Topology {
        exchanges: vec![Exchange::new(EXCHANGE, "topic")],
        queues: vec![Queue::new(DEAD_LETTERS).with("x-queue-type", "quorum"), task_queue],
        bindings: vec![Binding::new(queue, EXCHANGE, queue)],
        ..Topology::default()
    }
}

fn words<const N: usize>(words: [&str; N]) -> Command {
    words.map(|word| word.as_bytes().to_vec()).into()
}
