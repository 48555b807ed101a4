//! What a bridge asks of a foreign transport.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::backend::Demand;
use crate::error::BoxError;
use crate::view::NodeInfo;
use crate::{DeliveryId, Envelope, Failure, NodeId, QueueName, TaskId, TaskName, Verdict};

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
    ///
    /// A transport whose messages have no identity of their own must deliver those that are [`Returned::Doubtful`] under the
    /// same [`DeliveryId`] again: the store may have them.
    async fn put_back(&self, tags: &[Tag], why: Returned) -> Result<(), TransportError>;

    /// What somebody at the other end wants to hear of this task. Cheap.
    fn concern(&self, envelope: &Envelope) -> Concern;

    /// Tells what became of tasks, in their producers' format; in this order. After an error the same answers come again, and
    /// after a crash some of them do: an answer that was given already must do no harm.
    async fn answer(&self, answers: &[Answer]) -> Result<(), TransportError>;

    /// Makes messages deliverable again that other nodes than these have taken: they are dead, and some of them may have died
    /// before anybody knew of them. A node that has just begun may be missing here; what it has taken is then known, or new, to
    /// whoever gets it again. Answers how many.
    async fn recover(&self, living: &[NodeId]) -> Result<u64, TransportError>;

    /// The queues that a node takes from which was started with these: somebody at the other end may have changed them.
    fn queues(&self, begun_with: &[QueueName]) -> Vec<QueueName> {
        begun_with.to_vec()
    }

    /// Ends when [`Transport::queues`] answers something else than before.
    async fn queues_changed(&self) {
        std::future::pending::<()>().await;
    }

    /// What the node is and does now: it has just said so to the store. The last time before it leaves, it has stopped.
    async fn beat(&self, _node: &NodeInfo) {}
}

/// Why messages are put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Returned {
    /// They are not stored.
    Unstored,
    /// Nobody knows whether they are stored: the store did not answer.
    Doubtful,
}

/// What somebody wants to hear of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concern {
    /// Nothing.
    Nothing,
    /// What became of each attempt.
    Ends,
    /// When an attempt begins, besides.
    Everything,
}

/// A message that was taken.
#[derive(Debug, Clone)]
pub struct Taken {
    /// The transport's own identity of the delivery.
    pub id: DeliveryId,
    /// What the identity is worth.
    pub identity: Identity,
    /// How the transport finds it again.
    pub tag: Tag,
    /// What it says.
    pub message: Message,
}

/// What a transport's identity of a delivery is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// It is that of one message: who knows it has the message.
    Own,
    /// The transport has none, and this one is made of what the message says. Nobody has been given this message before, so
    /// one that is known is an earlier one that says the same.
    First,
}

/// What only the transport understands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Tag(pub Arc<[u8]>);

/// What a message says.
#[derive(Debug, Clone)]
pub enum Message {
    /// It asks for a task.
    Task(Box<Envelope>),
    /// It asks for a task that the other end does not expect to be run: it becomes a dead letter, which can be retried, and is
    /// answered as one that has failed.
    Refused(Box<Envelope>, Failure),
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
    /// It cannot, unless the other end loses what it was told just now: it does not say that it has heard. The store remembers
    /// the delivery for a minute more.
    Unconfirmed,
    /// It was delivered before, or was taken away meanwhile: somebody who is slow, and was thought dead, may still have it.
    Perhaps,
}

/// What became of a task, for its producer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The task.
    pub envelope: Arc<Envelope>,
    /// The number of the attempt; 0 when none has begun.
    pub attempt: u32,
    /// For how long this attempt has been held.
    pub ran: Duration,
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
    /// An attempt ended so. One that ends its task is told **before** the store records it, while its lease is held: a node
    /// that dies in between has the task run again, and its producer hears of it twice rather than never. One that does not end
    /// its task, or whose lease may have been lost, is told when it is recorded.
    Settled(Verdict),
    /// The task ended so without a holder: it was cancelled or expired while it waited, or was poison. Every node of the bridge
    /// may say it; who has said something final of the task before is not contradicted.
    Ended(Verdict),
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
