//! Carriers: how raw messages get here, and how they are let go.
//!
//! | carrier | takes from | a message is identified by |
//! |---|---|---|
//! | [`RedisLists`] | the right end of Redis lists | what the wire finds in it, or the token under which it is held |
//! | [`RedisStreams`] | Redis streams, as a consumer of a group | its stream and its id there |
//! | [`RedisChannels`] | what is published to Redis channels | a number of this listener: each has a copy of its own |
//! | [`AmqpQueues`] | queues of RabbitMQ | what it says |
//!
//! A carrier knows nothing of what is in a message. Its errors are those of a [`Transport`](windlass_core::bridge::Transport).

pub mod amqp;
mod channels;
mod lists;
mod streams;

use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use windlass_core::bridge::{LetGo, Returned, Tag, TransportError};
use windlass_core::{DeliveryId, QueueName, StoreError};
use windlass_wire::{Frame, Malformed};

pub use amqp::{
    AmqpQueues, Beside, CeleryQueues, Outgoing, TaskiqProfile, TaskiqTopology, all_confirmed, celery_topology, publish,
    taskiq_topology,
};
pub use channels::RedisChannels;
pub use lists::{ListsOf, RedisLists, one_list};
pub use streams::{RedisStreams, StreamReading};

/// Moves raw messages of one transport.
#[async_trait]
pub trait Carrier: Send + Sync + std::fmt::Debug {
    /// Takes from these queues from now on: when it is done, nothing more comes from others.
    async fn turn_to(&self, _queues: &[QueueName]) -> Result<(), TransportError> {
        Ok(())
    }

    /// Takes up to `max` messages from these queues. Waits for the first one up to `wait`, or until `hush`.
    async fn take(
        &self,
        queues: &[QueueName],
        max: usize,
        wait: Duration,
        hush: &CancellationToken,
    ) -> Result<Vec<Carried>, TransportError>;

    /// Lets messages go that are stored; answers for each.
    async fn accept(&self, tags: &[Tag]) -> Result<Vec<LetGo>, TransportError>;

    /// Gives messages back.
    async fn put_back(&self, tags: &[Tag], why: Returned) -> Result<(), TransportError>;

    /// Says that this process lives and makes messages deliverable again that dead ones have taken. Answers how many.
    async fn recover(&self) -> Result<u64, TransportError>;
}

/// A raw message that was taken.
#[derive(Debug, Clone)]
pub struct Carried {
    /// How the carrier finds it again.
    pub tag: Tag,
    /// The carrier's own identity of it; `None` when it has none and only what the message says can tell.
    pub identity: Option<String>,
    /// Somebody has, or may have, had it before.
    pub again: bool,
    /// Where it was.
    pub queue: QueueName,
    /// What it is.
    pub content: Content,
}

/// What a raw message is.
#[derive(Debug, Clone)]
pub enum Content {
    /// Bytes: an element of a list, the field of a stream.
    Bytes(Vec<u8>),
    /// Headers, properties and a body.
    Frame(Box<Frame>),
    /// The same, of which a part is missing: it is too large to be handed out.
    Unreadable(Box<Frame>, Malformed),
}

impl Content {
    /// The bytes, or those of the body: what a dead letter keeps.
    pub fn raw(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Frame(frame) | Self::Unreadable(frame, _) => &frame.body,
        }
    }
}

/// What a Redis server said, as the word of a transport.
pub(crate) fn of_store(error: StoreError) -> TransportError {
    if error.is_transient() {
        TransportError::Unreachable(error.into())
    } else {
        TransportError::Refused(error.to_string())
    }
}

/// A tag that is a text.
pub(crate) fn tag(text: &str) -> Tag {
    Tag(text.as_bytes().into())
}

/// The text of such a tag.
pub(crate) fn text_of(tag: &Tag) -> String {
    String::from_utf8_lossy(&tag.0).into_owned()
}

/// A text as an identity; one that is too long, or has characters that an identity has not, by its hash.
pub(crate) fn delivery_id(text: &str) -> DeliveryId {
    DeliveryId::new(text).unwrap_or_else(|_| {
        let wire = text.split(':').next().unwrap_or_default();
        DeliveryId::known(&format!("{wire}:{}", Uuid::new_v5(&Uuid::NAMESPACE_OID, text.as_bytes())))
    })
}
