//! What a bridge asks of a foreign transport.

use std::sync::Arc;

use async_trait::async_trait;

use crate::backend::Demand;
use crate::error::BoxError;
use crate::{DeliveryId, Envelope, NodeId, QueueName, TaskId, TaskName, Verdict};

/// The header of an envelope that was stored under another id than its producer gave it: that id.
pub const DELIVERED_AS: &str = "windlass-delivered-as";

/// A transport that keeps messages of its own: a broker, a list, a stream.
///
/// A message that was taken stays the transport's until it is accepted: when its taker dies or is silent for too long, the
/// transport delivers it again, with the same [`DeliveryId`]. Every request ends by itself, with an error when the other end does not
/// answer; a request to take is dropped only with the whole bridge, others may be dropped when they are late.
#[async_trait]
pub trait Transport: Send + Sync + std::fmt::Debug {
    /// Takes up to [`Demand::max`] messages for the node from the queues of the demand. Waits for the first one up to
    /// [`Demand::wait`]; answers soon when it is hushed, with what it has taken by then.
    async fn take(&self, demand: &Demand) -> Result<Vec<Taken>, TransportError>;

    /// Lets messages go that are stored. Safe to repeat; answers for each.
    async fn accept(&self, tags: &[Tag]) -> Result<Vec<LetGo>, TransportError>;

    /// Gives messages back: they are delivered again, to anybody. Safe to repeat.
    async fn put_back(&self, tags: &[Tag]) -> Result<(), TransportError>;

    /// Whether somebody at the other end hears of what becomes of this task. Cheap.
    fn concerns(&self, envelope: &Envelope) -> bool;

    /// Tells what became of tasks, in their producers' format; in this order. After an error the same answers come again.
    async fn answer(&self, answers: &[Answer]) -> Result<(), TransportError>;

    /// Makes messages deliverable again that other nodes than these have taken: they are dead, and some of them may have died
    /// before anybody knew of them. A node that has just begun may be missing here; what it has taken is then known, or new, to
    /// whoever gets it again. Answers how many.
    async fn recover(&self, living: &[NodeId]) -> Result<u64, TransportError>;
}

/// A message that was taken.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The transport's own identity of the delivery.
    pub id: DeliveryId,
    /// How the transport finds it again.
    pub tag: Tag,
    /// What it says.
    pub message: Message,
}

/// What only the transport understands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag(pub Arc<[u8]>);

/// What a message says.
#[derive(Debug, Clone)]
pub enum Message {
    /// It asks for a task.
    Task(Box<Envelope>),
    /// It makes no sense: it becomes a dead letter.
    Malformed(Malformed),
}

/// A message that makes no sense, with what could be read of it.
#[derive(Debug, Clone)]
pub struct Malformed {
    /// Where it was.
    pub queue: QueueName,
    /// The task that it may have meant.
    pub name: Option<TaskName>,
    /// The id of that task.
    pub id: Option<TaskId>,
    /// What is wrong with it.
    pub reason: String,
    /// The message itself; what is kept of it is bounded.
    pub raw: Vec<u8>,
}

/// Whether a message that was accepted may yet reach the store again. While it may, the store remembers the delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetGo {
    /// It cannot: it was taken once, and this taker still had it.
    Certainly,
    /// It was delivered before, or was taken away meanwhile: somebody who is slow, and was thought dead, may still have it.
    Perhaps,
}

/// What became of a task, for its producer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The task.
    pub envelope: Arc<Envelope>,
    /// The number of the attempt.
    pub attempt: u32,
    /// What happened.
    pub news: News,
}

impl Answer {
    /// The id that the producer knows the task by.
    pub fn id(&self) -> String {
        self.envelope.headers.get(DELIVERED_AS).cloned().unwrap_or_else(|| self.envelope.id.to_string())
    }
}

/// What happened to a task.
#[derive(Debug, Clone, PartialEq)]
pub enum News {
    /// An attempt begins on this node.
    Started(NodeId),
    /// An attempt ended so, and the store has recorded it.
    Settled(Verdict),
}

/// A transport that cannot do what it was asked. It is asked again, later and later.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// It does not answer.
    #[error("the transport is unreachable: {0}")]
    Unreachable(#[source] BoxError),
    /// It does not let us in, or refuses what we ask. Somebody must act.
    #[error("the transport refused: {0}")]
    Refused(String),
}
