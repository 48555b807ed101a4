//! RabbitMQ as Celery's programs use it.

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use windlass_amqp::{Amqp, Binding, Exchange, Lasting, Queue, Topology, Unrouted};
use windlass_core::QueueName;
use windlass_core::bridge::TransportError;
use windlass_wire::Frame;
use windlass_wire::celery::Broker as Kind;
use windlass_wire::celery::control::answer::BrokerInfo;
use windlass_wire::celery::{control, event};

use super::super::plan::Letter;
use super::Broker;
use crate::carrier::amqp::{CeleryQueues, Outgoing, all_confirmed, celery_topology, frame_of, of_amqp, publish};

/// Control requests that nobody has read yet.
const REQUESTS_MAX: usize = 1_000;
/// How long the queue of a node that is gone stays, and a request in it, in milliseconds; as Celery declares it.
const PIDBOX: (u32, u32) = (10_000, 300_000);

/// A RabbitMQ server as a broker. It has no memory of what was published: after a crash, what follows a task may be published
/// again.
#[derive(Debug)]
pub(in crate::celery) struct AmqpBroker {
    amqp: Arc<Amqp>,
    queues: CeleryQueues,
    /// Queues and exchanges that are known to be there.
    known: Mutex<HashSet<String>>,
    info: BrokerInfo,
}

impl AmqpBroker {
    pub(in crate::celery) fn new(amqp: Arc<Amqp>, queues: CeleryQueues, info: BrokerInfo) -> Self {
        Self { amqp, queues, known: Mutex::default(), info }
    }

    /// Declares what messages go to and nobody has declared here yet.
    async fn make_known(&self, name: &str, topology: impl FnOnce() -> Topology) -> Result<(), TransportError> {
        if self.known.lock().contains(name) {
            return Ok(());
        }
        self.amqp.declare(&topology()).await.map_err(of_amqp)?;
        self.known.lock().insert(name.to_owned());
        Ok(())
    }

    async fn publish_all(&self, outgoing: Vec<Outgoing>) -> Result<(), TransportError> {
        if outgoing.is_empty() { Ok(()) } else { all_confirmed(&publish(&self.amqp, outgoing).await) }
    }
}

fn to_exchange(frame: &Frame, unrouted: Unrouted) -> Outgoing {
    Outgoing {
        exchange: frame.properties.exchange.clone(),
        routing_key: frame.properties.routing_key.clone(),
        unrouted,
        frame: frame.clone(),
    }
}

#[async_trait]
impl Broker for AmqpBroker {
    fn kind(&self) -> Kind {
        Kind::Amqp
    }

    async fn declare(&self, queues: &[QueueName]) -> Result<(), TransportError> {
        self.amqp.declare(&celery_topology(queues, self.queues)).await.map_err(of_amqp)?;
        self.known.lock().extend(queues.iter().map(ToString::to_string));
        Ok(())
    }

    async fn send(&self, letters: &[Letter]) -> Result<(), TransportError> {
        let frames: Vec<&Frame> = letters.iter().flat_map(|letter| &letter.frames).collect();
        for frame in &frames {
            let queue = &frame.properties.routing_key;
            // As Celery's own producers do it: a queue that is not there would lose its message.
            if frame.properties.exchange.is_empty()
                && let Ok(name) = QueueName::new(queue)
            {
                self.make_known(queue, || celery_topology(&[name], self.queues)).await?;
            }
        }
        self.publish_all(frames.into_iter().map(|frame| to_exchange(frame, Unrouted::Report)).collect()).await
    }

    async fn reply(&self, frames: &[Frame]) -> Result<(), TransportError> {
        let outgoing = frames.iter().map(|frame| match frame.properties.exchange.as_str() {
            "" => Outgoing::answer(&frame.properties.routing_key, frame.clone()),
            _ => to_exchange(frame, Unrouted::Drop),
        });
        self.publish_all(outgoing.collect()).await
    }

    async fn emit(&self, frames: &[Frame]) -> Result<(), TransportError> {
        let exchange = || Topology { exchanges: vec![Exchange::new(event::EXCHANGE, "topic")], ..Topology::default() };
        self.make_known(event::EXCHANGE, exchange).await?;
        self.publish_all(frames.iter().map(|frame| to_exchange(frame, Unrouted::Drop)).collect()).await
    }

    async fn requests(&self, node: &str) -> Result<mpsc::Receiver<Frame>, TransportError> {
        let transient = |name: &str, kind: &str| Exchange { lasting: Lasting::Transient, ..Exchange::new(name, kind) };
        let exchanges = vec![transient(control::EXCHANGE, "fanout"), transient(control::REPLY_EXCHANGE, "direct")];
        let name = format!("{node}.{}", control::EXCHANGE);
        let queue = Queue { lasting: Lasting::Exclusive, ..Queue::new(&name) };
        let queue = queue.with("x-expires", PIDBOX.0).with("x-message-ttl", PIDBOX.1);
        let binding = Binding::new(&name, control::EXCHANGE, "");
        let mut listener = self.amqp.listen(&queue, exchanges, vec![binding]).await.map_err(of_amqp)?;
        let (send, requests) = mpsc::channel(REQUESTS_MAX);
        tokio::spawn(async move {
            loop {
                let heard = tokio::select! {
                    heard = listener.next() => heard,
                    () = send.closed() => None,
                };
                let Some(taken) = heard else { return };
                if let Some(frame) = frame_of(taken) {
                    drop(send.try_send(frame));
                }
            }
        });
        Ok(requests)
    }

    async fn tidy_up(&self) -> Result<(), TransportError> {
        // The broker gives back by itself what a worker that is gone has not acknowledged.
        Ok(())
    }

    fn info(&self) -> BrokerInfo {
        self.info.clone()
    }
}
