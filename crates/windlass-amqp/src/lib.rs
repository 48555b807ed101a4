//! AMQP 0-9-1, the protocol of RabbitMQ, as a raw transport: bytes and properties in and out, and nothing of what they mean.
//!
//! [`Amqp`] takes at most as many messages as somebody has room for ([`Amqp::take`]), tells the broker what became of them
//! ([`Amqp::accept`], [`Amqp::put_back`], [`Amqp::reject`]), publishes with confirmations ([`Amqp::publish`]), empties queues
//! ([`Amqp::purge`]) and listens to control messages ([`Amqp::listen`]). It keeps two connections, one for each direction, and makes them again by itself.
//!
//! ```no_run
//! use std::time::Duration;
//! use tokio_util::sync::CancellationToken;
//! use windlass_amqp::{Amqp, Message, Options, Queue, Topology};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let topology = Topology { queues: vec![Queue::new("mails")], ..Topology::default() };
//! let options = Options { topology, consume: vec!["mails".to_owned()] };
//! let amqp = Amqp::open("amqp://localhost".parse()?, options).await?;
//! amqp.publish(vec![Message { routing_key: "mails".to_owned(), body: b"hello".to_vec(), ..Message::default() }]).await;
//! let taken = amqp.take(10, Duration::from_secs(1), &CancellationToken::new()).await?;
//! let tags: Vec<_> = taken.iter().map(|taken| taken.tag).collect();
//! amqp.accept(&tags).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # What holds
//!
//! - **No hidden backlog.** The broker never has more messages with us that are not acknowledged than are in hands and asked
//!   for; one more while nothing is asked for, and on quorum queues one for each queue. A tenth of a second after the last take
//!   they are back in their queues, where other workers see them.
//! - **A tag is void** when its channel is gone: the broker delivers the message again, with `redelivered`. Accepting a void
//!   tag is answered as such and harms nothing.
//! - **An acceptance is heard** before it is answered, though AMQP has no answer to it: one round trip for all messages of a
//!   call. [`Finished`] says what that is worth, and which were only told.
//! - **Nothing needs a restart.** A lost connection is made again with pauses of 50 ms to 2 s; what was declared is declared
//!   again and consumers are made again. A wrong password or a missing vhost is answered at once, and tried again all the same.
//! - **A publish has an answer for each message**: confirmed, unroutable, refused, or not known, when the connection ended
//!   before the answer.
//! - **What others have declared is used as it is**; the broker's word for what differs is in [`Amqp::differences`].
//!
//! # What was measured
//!
//! Messages of 200 bytes a second, RabbitMQ 3.10 on the same two cores at 2.5 GHz, which were busy with other work (load 3 to
//! 12); lowest and highest of ten runs of `cargo bench -p windlass-amqp`:
//!
//! | | classic queue | quorum queue |
//! |---|---|---|
//! | publish, persistent, one caller of 1000 | 7,000 to 9,800 | 19,000 to 33,000 |
//! | publish, persistent, 64 callers of one | 2,900 to 6,300 | 3,800 to 12,000 |
//! | take 10, accept, again | 4,200 to 9,700 | 1,100 to 6,600 |
//! | take 100, accept, again | 6,100 to 22,000 | 9,400 to 37,000 |
//! | take 1000, accept, again | 8,200 to 25,000 | 26,000 to 56,000 |
//!
//! The takes were measured before an acceptance waited until it is heard, which costs whoever accepts one round trip a call.
//!
//! A quorum queue costs two requests for each take that comes after an acceptance: its consumer is made anew.

mod consumer;
mod desk;
mod error;
mod intake;
mod line;
mod link;
mod listener;
mod location;
mod message;
mod outlet;
mod socket;
mod table;
mod topology;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::consumer::Prefetch;
use crate::intake::{Consumed, Ending, Intake};
use crate::link::Link;
use crate::outlet::Outlet;

pub use desk::{Finished, Tag};
pub use error::AmqpError;
pub use intake::TAKE_MAX;
pub use listener::Listener;
pub use location::{InvalidUrl, Location};
pub use message::{
    BODY_BYTES_MAX, BODY_BYTES_OF_TOO_LARGE, EXPIRATION_MAX, Message, Properties, Storage, Taken, Unrouted,
};
pub use outlet::Published;
pub use table::{DEPTH_MAX, SHORT_BYTES_MAX, VALUES_MAX};
pub use topology::{Binding, Difference, Exchange, ExchangeBinding, Lasting, Queue, Topology};

/// How long [`Amqp::open`], [`Amqp::declare`] and [`Amqp::listen`] wait for a broker that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a transport does from the beginning.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What is declared before anything else, on each connection.
    pub topology: Topology,
    /// The names of the queues that [`Amqp::take`] takes from, in turns.
    pub consume: Vec<String>,
}

/// A transport to one broker. Dropping it ends its connections; what is not accepted is delivered again.
#[derive(Debug)]
pub struct Amqp {
    location: Location,
    options: Options,
    /// Begun when they are needed: a producer has no connection for consuming.
    consuming: OnceLock<Arc<Link>>,
    publishing: OnceLock<Arc<Link>>,
    intake: OnceLock<Intake>,
    outlet: OnceLock<Outlet>,
}

impl Amqp {
    /// Connects and declares the topology: for consuming when there are queues to consume from, otherwise for publishing.
    ///
    /// # Errors
    /// [`AmqpError::Unreachable`] when the broker does not answer within 10 s, [`AmqpError::Denied`] and
    /// [`AmqpError::Broken`] when it does not let us in or does not have what is needed: at once.
    pub async fn open(location: Location, options: Options) -> Result<Self, AmqpError> {
        let amqp = Self {
            location,
            options,
            consuming: OnceLock::new(),
            publishing: OnceLock::new(),
            intake: OnceLock::new(),
            outlet: OnceLock::new(),
        };
        amqp.link().session(PATIENCE).await?;
        Ok(amqp)
    }

    /// Where the broker is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Takes up to `max` messages, at most [`TAKE_MAX`]: as soon as there is one, and nothing after `wait` or when `hush` is
    /// cancelled. A wait of less than 50 ms is as long.
    ///
    /// What is dropped before its answer leaves its messages to the next take.
    /// # Errors
    /// While the broker is down: after `wait`, unless somebody must act; then at once. The transport goes on by itself.
    pub async fn take(&self, max: usize, wait: Duration, hush: &CancellationToken) -> Result<Vec<Taken>, AmqpError> {
        self.intake().take(max, wait, hush).await
    }

    /// Takes from these queues from now on: others are let alone, and what has come of them and was not handed out goes back.
    /// What was handed out stays valid. In the same order or another, the queues of today cost nothing.
    ///
    /// A take that waits goes on with the new queues. When this answers, takes bring nothing from any other queue.
    /// # Errors
    /// [`AmqpError::Closed`], or that the transport was stuck; a broker that is down is no error.
    pub async fn consume(&self, queues: &[String]) -> Result<(), AmqpError> {
        let intake = self.intake();
        if intake.consumes(queues) {
            return Ok(());
        }
        intake.consume(Consumed::of(queues, self.prefetch_of(queues))).await
    }

    /// Tells the broker that messages are done with, and waits until it has heard: one round trip for all together. Those whose
    /// numbers follow each other cost one frame together.
    ///
    /// # Errors
    /// [`AmqpError::Closed`] only.
    pub async fn accept(&self, tags: &[Tag]) -> Result<Vec<Finished>, AmqpError> {
        self.intake().finish(tags, Ending::Accept).await
    }

    /// Puts messages back into their queues, where they come next again, with `redelivered`.
    ///
    /// # Errors
    /// [`AmqpError::Closed`] only.
    pub async fn put_back(&self, tags: &[Tag]) -> Result<Vec<Finished>, AmqpError> {
        self.intake().finish(tags, Ending::PutBack).await
    }

    /// Gives messages to the dead letter exchange of their queue; where it has none they are gone.
    ///
    /// # Errors
    /// [`AmqpError::Closed`] only.
    pub async fn reject(&self, tags: &[Tag]) -> Result<Vec<Finished>, AmqpError> {
        self.intake().finish(tags, Ending::Reject).await
    }

    /// Publishes messages and says what became of each. Callers at the same time share the way. Each 256 messages of a call keep
    /// their order; more may overtake each other.
    ///
    /// A message waits for a connection for at most 10 s, and for its confirmation for at most 30 s.
    pub async fn publish(&self, messages: Vec<Message>) -> Vec<Published> {
        self.outlet.get_or_init(|| Outlet::start(Arc::clone(self.publishing()))).publish(messages).await
    }

    /// Declares more, now and after every reconnection.
    ///
    /// # Errors
    /// What the broker refused. That something is there otherwise is no error: see [`Self::differences`].
    pub async fn declare(&self, topology: &Topology) -> Result<(), AmqpError> {
        self.link().declare(topology, PATIENCE).await
    }

    /// Drops the messages that wait in a queue, and answers how many those were. One that is not there has none; what was
    /// delivered to somebody and is not acknowledged stays.
    ///
    /// # Errors
    /// [`AmqpError::Unreachable`] when the broker does not answer within 10 s, or what it refused.
    pub async fn purge(&self, queue: &str) -> Result<u64, AmqpError> {
        let session = self.link().session(PATIENCE).await?;
        topology::purge(&session, queue).await
    }

    /// Deletes a queue and what waits in it; does nothing when it is not there.
    ///
    /// # Errors
    /// As [`Self::purge`].
    pub async fn delete(&self, queue: &str) -> Result<(), AmqpError> {
        let session = self.link().session(PATIENCE).await?;
        topology::delete(&session, queue).await
    }

    /// Listens to a queue of our own, which is declared for it: for control messages and events. It needs no acknowledgement
    /// and goes on through reconnections.
    ///
    /// # Errors
    /// What the broker refused at the first attempt, or [`AmqpError::Unreachable`] when it does not answer within 10 s.
    pub async fn listen(
        &self,
        queue: &Queue,
        exchanges: Vec<Exchange>,
        bindings: Vec<Binding>,
    ) -> Result<Listener, AmqpError> {
        let link = Arc::clone(self.consuming());
        link.session(PATIENCE).await?;
        Listener::start(link, queue, Topology { exchanges, bindings, ..Topology::default() }).await
    }

    /// What is there otherwise than it was declared, as far as the broker has said.
    pub fn differences(&self) -> Vec<Difference> {
        let mut differences: Vec<Difference> = self.links().flat_map(|link| link.reported().all()).collect();
        differences.sort();
        differences.dedup();
        differences
    }

    /// Ends the connections. What is not accepted is delivered again; whoever waits for messages is told.
    pub async fn close(&self) {
        for link in self.links() {
            link.close().await;
        }
    }

    /// The connection that is there from the beginning, or that consumes.
    fn link(&self) -> &Arc<Link> {
        let consumes = !self.options.consume.is_empty() || self.consuming.get().is_some();
        if consumes { self.consuming() } else { self.publishing() }
    }

    fn links(&self) -> impl Iterator<Item = &Arc<Link>> {
        [&self.consuming, &self.publishing].into_iter().filter_map(OnceLock::get)
    }

    fn consuming(&self) -> &Arc<Link> {
        self.consuming.get_or_init(|| Arc::new(Link::keep(&self.location, "consumes", self.options.topology.clone())))
    }

    fn publishing(&self) -> &Arc<Link> {
        self.publishing.get_or_init(|| Arc::new(Link::keep(&self.location, "publishes", self.options.topology.clone())))
    }

    fn intake(&self) -> &Intake {
        self.intake.get_or_init(|| {
            // Begun first: it knows what is declared.
            let (link, consume) = (Arc::clone(self.consuming()), &self.options.consume);
            Intake::start(link, Consumed::of(consume, self.prefetch_of(consume)))
        })
    }

    /// How the prefetch of these queues can be kept, as far as is known here; the broker says it of others.
    fn prefetch_of(&self, queues: &[String]) -> Prefetch {
        let is_known_as_classic = |queue: &String| self.links().all(|link| link.declares_no_other_than_classic(queue));
        if queues.iter().all(is_known_as_classic) { Prefetch::OfChannel } else { Prefetch::OfConsumers }
    }
}
