//! Transports to the shared RabbitMQ or to one of their own, messages in few words, and a look from outside.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use lapin::{Channel, Connection, ConnectionProperties};
use tokio_util::sync::CancellationToken;
use windlass_amqp::{Amqp, AmqpError, Message, Options, Published, Queue, Tag, Taken, Topology};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A name that no other test has.
pub(crate) fn name(of: &str) -> String {
    format!("{of}-{:016x}", fastrand::u64(..))
}

/// A transport that declares these queues and consumes from them.
pub(crate) async fn consuming(url: &str, queues: &[Queue]) -> Amqp {
    let consume = queues.iter().map(|queue| queue.name.clone()).collect();
    let topology = Topology { queues: queues.to_vec(), ..Topology::default() };
    open(url, Options { topology, consume }).await.unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) async fn open(url: &str, options: Options) -> Result<Amqp, AmqpError> {
    Amqp::open(url.parse().expect("a URL"), options).await
}

/// A message to a queue by the default exchange.
pub(crate) fn message(queue: &str, body: impl Into<Vec<u8>>) -> Message {
    Message { routing_key: queue.to_owned(), body: body.into(), ..Message::default() }
}

pub(crate) async fn publish(amqp: &Amqp, messages: impl IntoIterator<Item = Message>) {
    let published = amqp.publish(messages.into_iter().collect()).await;
    assert!(published.iter().all(|published| *published == Published::Confirmed), "{published:?}");
}

/// Numbers as bodies.
pub(crate) fn numbered(queue: &str, count: usize) -> Vec<Message> {
    (0..count).map(|number| message(queue, number.to_string())).collect()
}

pub(crate) async fn take(amqp: &Amqp, max: usize, wait: Duration) -> Vec<Taken> {
    amqp.take(max, wait, &CancellationToken::new()).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Takes exactly so many, however many calls it needs.
pub(crate) async fn take_all(amqp: &Amqp, count: usize) -> Vec<Taken> {
    let mut all = Vec::new();
    while all.len() < count {
        let taken = take(amqp, count - all.len(), PATIENCE).await;
        assert!(!taken.is_empty(), "{} of {count} came", all.len());
        all.extend(taken);
    }
    all
}

pub(crate) fn tags(taken: &[Taken]) -> Vec<Tag> {
    taken.iter().map(|taken| taken.tag).collect()
}

pub(crate) fn bodies(taken: &[Taken]) -> Vec<String> {
    taken.iter().map(|taken| String::from_utf8_lossy(&taken.body).into_owned()).collect()
}

/// Takes and accepts until every one of these bodies has come, however often the connection breaks.
pub(crate) async fn drain_until(amqp: &Amqp, wanted: impl IntoIterator<Item = String>) {
    let mut missing: BTreeSet<String> = wanted.into_iter().collect();
    let began = Instant::now();
    while !missing.is_empty() {
        assert!(began.elapsed() < PATIENCE, "{} are missing", missing.len());
        let taken = match amqp.take(100, Duration::from_millis(500), &CancellationToken::new()).await {
            Ok(taken) => taken,
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                continue;
            }
        };
        for body in bodies(&taken) {
            missing.remove(&body);
        }
        amqp.accept(&tags(&taken)).await.expect("it is open");
    }
}

/// Somebody who looks from outside, with a connection of their own.
pub(crate) struct Observer {
    channel: Channel,
    _connection: Connection,
}

impl Observer {
    pub(crate) async fn at(url: &str) -> Self {
        let connection = Connection::connect(url, ConnectionProperties::default()).await.expect("it connects");
        let channel = connection.create_channel().await.expect("a channel");
        Self { channel, _connection: connection }
    }

    /// How many messages lie in a queue and are with nobody.
    pub(crate) async fn ready(&self, queue: &str) -> usize {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let queue = self.channel.queue_declare(queue.into(), options, FieldTable::default()).await;
        queue.expect("it is there").message_count() as usize
    }

    /// Waits until so many lie there.
    pub(crate) async fn until_ready(&self, queue: &str, wanted: usize) {
        self.until(queue, |ready| ready == wanted).await;
    }

    /// Waits until the number of those that lie there is as it must be. A broker tells nobody how long its queues are, so it
    /// is asked again with each of its answers.
    pub(crate) async fn until(&self, queue: &str, is_right: impl Fn(usize) -> bool) {
        let began = Instant::now();
        loop {
            let ready = self.ready(queue).await;
            if is_right(ready) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{ready} lie there");
        }
    }

    pub(crate) async fn declare(&self, queue: &str, options: QueueDeclareOptions, arguments: FieldTable) {
        self.channel.queue_declare(queue.into(), options, arguments).await.expect("it is declared");
    }

    pub(crate) async fn delete(&self, queue: &str) {
        self.channel.queue_delete(queue.into(), lapin::options::QueueDeleteOptions::default()).await.expect("deleted");
    }
}
