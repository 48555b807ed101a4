//! What Celery's programs share besides task messages: queues that are declared, messages that are published, control
//! requests and events that are broadcast.

mod amqp;
mod redis;

use async_trait::async_trait;
use tokio::sync::mpsc;
use windlass_core::QueueName;
use windlass_core::bridge::TransportError;
use windlass_wire::Frame;
use windlass_wire::celery::Broker as Kind;
use windlass_wire::celery::control::answer::BrokerInfo;

pub(super) use amqp::AmqpBroker;
pub(super) use redis::{KombuBroker, task_lists};

use super::plan::Letter;

/// A broker that Celery's programs are connected to.
#[async_trait]
pub(super) trait Broker: Send + Sync + std::fmt::Debug {
    /// Which way its priorities run.
    fn kind(&self) -> Kind;

    /// Declares queues as Celery's own workers do.
    async fn declare(&self, queues: &[QueueName]) -> Result<(), TransportError>;

    /// Publishes messages of tasks. What was published before under the same `once` is not published again, as far as the
    /// broker can tell.
    async fn send(&self, letters: &[Letter]) -> Result<(), TransportError>;

    /// Publishes answers to queues of clients; one that is gone is no error.
    async fn reply(&self, frames: &[Frame]) -> Result<(), TransportError>;

    /// Publishes events to whoever listens: frames with the exchange of events and a routing key.
    async fn emit(&self, frames: &[Frame]) -> Result<(), TransportError>;

    /// Control requests, as long as the receiver is kept. `node` is the name of this node.
    async fn requests(&self, node: &str) -> Result<mpsc::Receiver<Frame>, TransportError>;

    /// Housekeeping that workers of Celery do: gives back what a dead one has taken and not acknowledged.
    async fn tidy_up(&self) -> Result<(), TransportError>;

    /// Which broker it is; never with its password.
    fn info(&self) -> BrokerInfo;
}
