//! Extra consumers for control messages and events: a queue of their own, no acknowledgement, and a stream that goes on
//! through reconnections.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::AmqpError;
use crate::desk::Tag;
use crate::link::{Link, Session, Standing};
use crate::message::{self, Taken};
use crate::table::short;
use crate::topology::{self, Queue, Topology};

/// How many messages wait for a reader that is busy. More are dropped, and counted in a log line: control messages are
/// answered within a second or not at all.
const UNREAD_MAX: usize = 1024;
/// Before a consumer that the broker has refused or cancelled is made again. A queue of a lost connection is held until the
/// broker notices that.
const PAUSE: Duration = Duration::from_millis(500);

/// What comes to one queue. Dropping it ends the consumer, and with it a queue that deletes itself.
#[derive(Debug)]
pub struct Listener {
    unread: mpsc::Receiver<Taken>,
}

impl Listener {
    /// The next message; nothing when the transport is closed. Its tag is void: there is nothing to accept.
    ///
    /// What is published while the connection is down is lost, unless the queue lives on.
    pub async fn next(&mut self) -> Option<Taken> {
        self.unread.recv().await
    }

    /// Begins to listen, and answers when the broker has made the consumer.
    pub(crate) async fn start(link: Arc<Link>, queue: &Queue, around: Topology) -> Result<Self, AmqpError> {
        let (sender, unread) = mpsc::channel(UNREAD_MAX);
        let (begun, begins) = oneshot::channel();
        let topology = Topology { queues: vec![queue.clone()], ..around };
        let listening = Listening { link, queue: queue.name.as_str().into(), topology, sender, begun: Some(begun) };
        tokio::spawn(listening.run());
        begins.await.unwrap_or(Err(AmqpError::Closed)).map(|()| Self { unread })
    }
}

struct Listening {
    link: Arc<Link>,
    queue: Arc<str>,
    topology: Topology,
    sender: mpsc::Sender<Taken>,
    /// Says once whether the first consumer was made.
    begun: Option<oneshot::Sender<Result<(), AmqpError>>>,
}

impl Listening {
    async fn run(mut self) {
        let (mut standing, reader) = (self.link.standing(), self.sender.clone());
        while let Some(session) = next_session(&mut standing).await {
            let error = tokio::select! {
                listened = self.listen(&session) => listened.err(),
                () = session.is_over().cancelled() => None,
                () = reader.closed() => return,
            };
            if let (Some(error), Some(begun)) = (&error, self.begun.take()) {
                drop(begun.send(Err(error.clone())));
                return;
            }
            if let Some(error) = error {
                debug!(event = "amqp_listener_lost", queue = %self.queue, %error, "it listens again");
            }
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = session.is_over().cancelled() => {}
                () = reader.closed() => return,
            }
        }
    }

    async fn listen(&mut self, session: &Session) -> Result<(), AmqpError> {
        topology::declare(session, &self.topology, self.link.reported()).await?;
        let channel = session.channel().await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let queue = short("a queue", &self.queue)?;
        let made = channel.basic_consume(queue, "".into(), options, FieldTable::default());
        let mut consumer = session.limited(made).await?;
        if let Some(begun) = self.begun.take() {
            drop(begun.send(Ok(())));
        }
        let mut dropped: u64 = 0;
        while let Some(delivery) = consumer.next().await {
            let delivery = delivery.map_err(|error| session.error(&error))?;
            let taken = message::taken(delivery, Tag::default(), Arc::clone(&self.queue));
            if let Err(mpsc::error::TrySendError::Full(_)) = self.sender.try_send(taken) {
                dropped += 1;
                if dropped.is_power_of_two() {
                    warn!(event = "amqp_unread", queue = %self.queue, dropped, "nobody reads them fast enough");
                }
            }
        }
        Err(AmqpError::Broken("the broker cancelled the consumer: its queue was deleted".to_owned()))
    }
}

/// Waits for a session that is not over. Nothing when the transport is closed.
async fn next_session(standing: &mut watch::Receiver<Standing>) -> Option<Arc<Session>> {
    loop {
        match &*standing.borrow_and_update() {
            Standing::Up(session) if !session.is_over().is_cancelled() => return Some(Arc::clone(session)),
            Standing::Closed => return None,
            Standing::Up(_) | Standing::Down(_) => {}
        }
        standing.changed().await.ok()?;
    }
}
