//! Publishing: what many callers publish at the same time goes out in flights, and each message has an answer of its own.
//!
//! 1. messages wait in one line   2. a flight takes what waits, on a channel of its own   3. all of it is written at once
//! 4. when the broker has confirmed all, what came back unroutable is matched and everybody is answered
//!
//! Flights overlap, so a caller never waits for a flight to fill. A channel carries one flight at a time: the broker returns
//! a message before it confirms it, but the client library may attach it to the confirmation of another one.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use lapin::message::BasicReturnMessage;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::AmqpError;
use crate::error;
use crate::link::{Link, Session};
use crate::message::{Message, Unrouted};

/// How many messages fly together, at least when so many wait. The broker confirms 100 messages ten times as fast as one by one, 1000 little faster.
const FLIGHT_MAX: usize = 256;
/// How many flights are under way at most.
const FLIGHTS: usize = 4;
/// How many parts of at most a flight wait before their callers wait to wait.
const PARTS_WAITING_MAX: usize = 64;
/// How long a message waits for a connection, or for a broker that takes none now.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the broker may take to confirm: it answers when a disk, or a quorum of them, has the message.
const CONFIRM_LIMIT: Duration = Duration::from_secs(30);

/// What became of one message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// The broker has it: in a durable queue, with a persistent message, on its disk.
    Confirmed,
    /// No queue takes it; it is nowhere. With what the broker says.
    Unroutable(String),
    /// The broker refuses it, or the protocol cannot carry it; it is nowhere. Repeat it when the error passes by itself.
    Refused(AmqpError),
    /// The connection ended, or the broker was silent for too long: it may have it or not. Repeat it; readers know a message
    /// that comes twice.
    Unknown(AmqpError),
    /// There was no connection in time, or the broker takes nothing now; it is nowhere. Repeat it.
    NotSent(AmqpError),
}

/// The door to the task that publishes.
#[derive(Debug)]
pub(crate) struct Outlet {
    line: mpsc::Sender<Vec<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    message: Message,
    answer: oneshot::Sender<Published>,
    until: Instant,
}

impl Outlet {
    pub(crate) fn start(link: Arc<Link>) -> Self {
        let (line, receiver) = mpsc::channel(PARTS_WAITING_MAX);
        tokio::spawn(run(link, receiver));
        Self { line }
    }

    /// Publishes messages and answers for each. Those of one part keep their order.
    pub(crate) async fn publish(&self, messages: Vec<Message>) -> Vec<Published> {
        let until = Instant::now() + PATIENCE;
        let mut answers = Vec::with_capacity(messages.len());
        let mut messages = messages.into_iter();
        loop {
            let part = messages.by_ref().take(FLIGHT_MAX).map(|message| {
                let (answer, receiver) = oneshot::channel();
                answers.push(receiver);
                Waiting { message, answer, until }
            });
            let part: Vec<Waiting> = part.collect();
            if part.is_empty() {
                break;
            }
            // When it fails the receivers know.
            let _ = self.line.send(part).await;
        }
        let closed = || Published::NotSent(AmqpError::Closed);
        join_all(answers).await.into_iter().map(|answer| answer.unwrap_or_else(|_| closed())).collect()
    }
}

/// A channel that confirms, and the session that it is of.
struct Lane {
    session: Arc<Session>,
    channel: Channel,
}

async fn run(link: Arc<Link>, mut line: mpsc::Receiver<Vec<Waiting>>) {
    let mut free: Vec<Lane> = Vec::new();
    let mut flights = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(lane) = flights.next(), if !flights.is_empty() => free.extend(lane),
            part = line.recv(), if flights.len() < FLIGHTS => {
                let Some(mut flight) = part else { break };
                while flight.len() < FLIGHT_MAX && let Ok(part) = line.try_recv() {
                    flight.extend(part);
                }
                free.retain(Lane::is_usable);
                flights.push(fly(&link, free.pop(), flight));
            }
        }
    }
    while flights.next().await.is_some() {}
}

/// One flight; answers with its channel when it can be used again.
async fn fly(link: &Link, lane: Option<Lane>, mut flight: Vec<Waiting>) -> Option<Lane> {
    let Some(until) = flight.iter().map(|waiting| waiting.until).min() else { return lane };
    let lane = match lane_for(link, lane, until).await {
        Ok(lane) => lane,
        Err(error) => {
            answer_all(flight, &Published::NotSent(error));
            return None;
        }
    };
    let answers = lane.send(&flight).await;
    let mut again = Vec::new();
    for (waiting, answer) in flight.drain(..).zip(answers) {
        match answer {
            Sent::Answered(published) => drop(waiting.answer.send(published)),
            Sent::ChannelClosed(_) => again.push(waiting),
        }
    }
    // One of them made the broker close the channel, and the others were not looked at. Alone each has its own answer.
    for waiting in again {
        let published = alone(&lane.session, &waiting).await;
        drop(waiting.answer.send(published));
    }
    lane.is_usable().then_some(lane)
}

async fn lane_for(link: &Link, lane: Option<Lane>, until: Instant) -> Result<Lane, AmqpError> {
    if let Some(lane) = lane {
        return unblocked(&lane.session, until).await.map(|()| lane);
    }
    loop {
        let session = link.session(until.saturating_duration_since(Instant::now())).await?;
        // A broker that takes no messages does not answer either on a connection that publishes.
        unblocked(&session, until).await?;
        match Lane::open(&session).await {
            Ok(lane) => return Ok(lane),
            // It may have ended a moment ago; its link notices, too.
            Err(error) if error.is_transient() && Instant::now() < until => {
                let over = session.is_over().clone();
                tokio::select! {
                    () = over.cancelled() => {}
                    () = sleep_until(until.min(Instant::now() + Duration::from_millis(100))) => {}
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Waits until the broker takes messages.
async fn unblocked(session: &Session, until: Instant) -> Result<(), AmqpError> {
    let mut blocked = session.blocked();
    let waited = timeout_at(until, blocked.wait_for(Option::is_none)).await.is_ok();
    if waited {
        return Ok(());
    }
    let reason = blocked.borrow().clone().unwrap_or_default();
    Err(AmqpError::Busy(format!("it takes no messages ({reason}); look at its memory and disk, it goes on by itself")))
}

async fn alone(session: &Arc<Session>, waiting: &Waiting) -> Published {
    let lane = match Lane::open(session).await {
        Ok(lane) => lane,
        Err(error) => return Published::Unknown(error),
    };
    match lane.send(std::slice::from_ref(waiting)).await.pop() {
        Some(Sent::Answered(published)) => published,
        Some(Sent::ChannelClosed(error)) => Published::Refused(error),
        None => Published::NotSent(AmqpError::Closed),
    }
}

fn answer_all(flight: Vec<Waiting>, published: &Published) {
    for waiting in flight {
        drop(waiting.answer.send(published.clone()));
    }
}

/// What a flight says of one of its messages.
enum Sent {
    Answered(Published),
    /// The broker closed the channel before it confirmed this one: with its reason, which may be another message.
    ChannelClosed(AmqpError),
}

/// A message as the protocol has it.
type Wire = (ShortString, ShortString, BasicProperties);

impl Lane {
    async fn open(session: &Arc<Session>) -> Result<Self, AmqpError> {
        let channel = session.channel().await?;
        // Without it every publish would be reported as done that nobody has seen.
        session.limited(channel.confirm_select(ConfirmSelectOptions::default())).await?;
        Ok(Self { session: Arc::clone(session), channel })
    }

    fn is_usable(&self) -> bool {
        self.channel.status().connected() && !self.session.is_over().is_cancelled()
    }

    /// Writes all messages and waits for all confirmations.
    async fn send(&self, flight: &[Waiting]) -> Vec<Sent> {
        let wires: Vec<Result<Wire, AmqpError>> = flight.iter().map(|waiting| waiting.message.to_wire()).collect();
        let mut confirming = FuturesUnordered::new();
        for (position, (waiting, wire)) in flight.iter().zip(&wires).enumerate() {
            if let Ok(wire) = wire {
                // They are begun in this order, and what begins is in the line of the channel.
                confirming.push(self.send_one(position, &waiting.message, wire.clone()));
            }
        }
        let mut answers: Vec<Option<Sent>> = wires
            .iter()
            .map(|wire| wire.as_ref().err().map(|error| Sent::Answered(Published::Refused(error.clone()))))
            .collect();
        let mut returned = Vec::new();
        let limit = Instant::now() + CONFIRM_LIMIT;
        while let Ok(Some((position, confirmed))) = timeout_at(limit, confirming.next()).await {
            answers[position] = Some(match confirmed {
                Ok(Confirmation::Ack(message)) => {
                    returned.extend(message);
                    Sent::Answered(Published::Confirmed)
                }
                Ok(Confirmation::Nack(message)) => {
                    returned.extend(message);
                    Sent::Answered(Published::Refused(AmqpError::Busy(
                        "its queue did not take the message: it is full (`x-overflow`), or has an error".to_owned(),
                    )))
                }
                Ok(Confirmation::NotRequested) => {
                    Sent::Answered(Published::Unknown(AmqpError::Broken("the broker does not confirm".to_owned())))
                }
                Err(error) if error::ends_channel_only(&error) => Sent::ChannelClosed(self.session.error(&error)),
                Err(error) => Sent::Answered(Published::Unknown(self.session.error(&error))),
            });
        }
        if answers.iter().any(Option::is_none) {
            // Silent for so long, it is not there; what it still has to say would go to the wrong flight.
            self.session.give_up();
        }
        let silent =
            || Published::Unknown(AmqpError::Unreachable(format!("it did not confirm within {CONFIRM_LIMIT:?}")));
        let mut answers: Vec<Sent> =
            answers.into_iter().map(|answer| answer.unwrap_or_else(|| Sent::Answered(silent()))).collect();
        for message in returned {
            let is_it = |position: &usize| {
                matches!(answers[*position], Sent::Answered(Published::Confirmed))
                    && wires[*position].as_ref().is_ok_and(|wire| is_same(wire, &flight[*position].message, &message))
            };
            if let Some(position) = (0..flight.len()).find(is_it) {
                answers[position] = Sent::Answered(Published::Unroutable(message.reply_text.to_string()));
            }
        }
        answers
    }

    async fn send_one(
        &self,
        position: usize,
        message: &Message,
        (exchange, routing_key, properties): Wire,
    ) -> (usize, lapin::Result<Confirmation>) {
        let options = BasicPublishOptions { mandatory: message.unrouted == Unrouted::Report, immediate: false };
        let sent = self.channel.basic_publish(exchange, routing_key, options, &message.body, properties).await;
        let confirmed = match sent {
            Ok(confirmation) => confirmation.await,
            Err(error) => Err(error),
        };
        (position, confirmed)
    }
}

/// Whether this is the message that came back. Of two that are the same in every way either may be it.
fn is_same((exchange, routing_key, properties): &Wire, message: &Message, returned: &BasicReturnMessage) -> bool {
    let delivery = &returned.delivery;
    delivery.exchange == *exchange
        && delivery.routing_key == *routing_key
        && delivery.data == message.body
        && delivery.properties == *properties
}
