//! The client's end of remote control: a request to every worker, those in Python too, and what they answer in time.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::time::{Instant, timeout};
use uuid::Uuid;
use windlass_amqp::{Amqp, Binding, Exchange, Lasting, Listener, Queue, Topology, Unrouted};
use windlass_core::bridge::TransportError;
use windlass_core::{Clock, SystemClock};
use windlass_redis::foreign::{Line, Reply as Word};
use windlass_wire::celery::control::{Command, Destination, EXCHANGE, REPLY_EXCHANGE, Reply, ReplyTo, Request};
use windlass_wire::{Frame, kombu};

use super::super::results::words;
use super::{Over, Producer};
use crate::carrier::amqp::{Outgoing, all_confirmed, frame_of, of_amqp, publish};
use crate::carrier::of_store;

/// More answers than a fleet has workers.
const ANSWERS_MAX: usize = 10_000;
/// A request that nobody waits for any more is not to be answered; the clocks of machines may differ by this.
const SKEW: Duration = Duration::from_secs(5);
/// How long Redis is asked at once: a server answers no sooner than this when nothing comes.
const LOOK: Duration = Duration::from_millis(200);

impl Producer {
    /// Asks workers, and answers what they say by their names: when all who are named have answered, or `patience` is over.
    ///
    /// # Errors
    /// [`TransportError`]; the request may have been heard all the same.
    pub async fn ask(
        &self,
        command: Command,
        destination: Destination,
        patience: Duration,
    ) -> Result<Map<String, Value>, TransportError> {
        let expected = match &destination {
            Destination::Nodes(nodes) => nodes.len().min(ANSWERS_MAX),
            Destination::All | Destination::Pattern(..) => ANSWERS_MAX,
        };
        let mut answers = Map::new();
        self.hear(command, destination, patience, |said| {
            answers.extend(said);
            if answers.len() < expected { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })
        .await?;
        Ok(answers)
    }

    /// Asks workers, and hands on what they say as they say it, until that is enough or `patience` is over.
    ///
    /// # Errors
    /// As [`Producer::ask`].
    pub(in crate::celery) async fn hear(
        &self,
        command: Command,
        destination: Destination,
        patience: Duration,
        mut heard: impl FnMut(Map<String, Value>) -> ControlFlow<()> + Send,
    ) -> Result<(), TransportError> {
        let client = Uuid::new_v4().to_string();
        let ticket = Uuid::new_v4().to_string();
        let request = Request {
            command,
            destination,
            ticket: Some(ticket.clone()),
            reply_to: Some(ReplyTo { exchange: REPLY_EXCHANGE.to_owned(), routing_key: client.clone() }),
            clock: 1,
            expires: Some(SystemClock.now() + patience + SKEW),
        };
        let mut ear = self.listen(&client).await?;
        let until = Instant::now() + patience;
        let gathered = async {
            self.broadcast(&request.frame(Some(&Uuid::new_v4().to_string()))).await?;
            loop {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(());
                }
                // Another client's answer, or none: it is not for us.
                if let Some(frame) = ear.next(left).await?
                    && let Ok(reply) = Reply::decode(&frame)
                    && reply.ticket.as_deref() == Some(ticket.as_str())
                    && heard(reply.answers).is_break()
                {
                    return Ok(());
                }
            }
        }
        .await;
        ear.close().await?;
        gathered
    }

    /// Opens a place for answers to this client.
    async fn listen(&self, client: &str) -> Result<Ear, TransportError> {
        let queue = format!("{client}.{REPLY_EXCHANGE}");
        match &self.over {
            Over::Redis { line, location } => {
                let bindings = self.key(&kombu::bindings(REPLY_EXCHANGE));
                let member = kombu::binding(client, &queue);
                line.ask(&words(["SADD", &bindings, &member])).await.map_err(of_store)?;
                // A line of its own: who waits for an answer keeps nobody else waiting.
                let waiting = Line::to(location.clone());
                Ok(Ear::List { line: Arc::clone(line), waiting, list: self.key(&queue), bindings, member })
            }
            Over::Amqp(amqp) => {
                let binding = Binding::new(&queue, REPLY_EXCHANGE, client);
                let queue = Queue::new(&queue).lasting(Lasting::Exclusive);
                let listener = amqp.listen(&queue, exchanges(), vec![binding]).await.map_err(of_amqp)?;
                Ok(Ear::Queue(listener))
            }
        }
    }

    /// Publishes a request to every worker.
    async fn broadcast(&self, frame: &Frame) -> Result<(), TransportError> {
        match &self.over {
            Over::Redis { line, .. } => {
                let database = u32::try_from(line.database()).unwrap_or(0);
                let channel = self.key(&kombu::channel(database, EXCHANGE, ""));
                line.ask(&words(["PUBLISH", &channel, &kombu::encode(frame)])).await.map(drop).map_err(of_store)
            }
            Over::Amqp(amqp) => broadcast_on(amqp, frame.clone()).await,
        }
    }
}

async fn broadcast_on(amqp: &Amqp, frame: Frame) -> Result<(), TransportError> {
    // That nobody listens is no error: nobody answers then.
    let outgoing =
        Outgoing { exchange: EXCHANGE.to_owned(), routing_key: String::new(), unrouted: Unrouted::Drop, frame };
    amqp.declare(&Topology { exchanges: exchanges(), ..Topology::default() }).await.map_err(of_amqp)?;
    all_confirmed(&publish(amqp, vec![outgoing]).await)
}

/// As every worker declares them.
fn exchanges() -> Vec<Exchange> {
    let transient = |name: &str, kind: &str| Exchange { lasting: Lasting::Transient, ..Exchange::new(name, kind) };
    vec![transient(EXCHANGE, "fanout"), transient(REPLY_EXCHANGE, "direct")]
}

/// Where answers come.
#[derive(Debug)]
enum Ear {
    List { line: Arc<Line>, waiting: Line, list: String, bindings: String, member: String },
    Queue(Listener),
}

impl Ear {
    /// The next message; `None` when there is none for a moment, or what came cannot be read.
    async fn next(&mut self, wait: Duration) -> Result<Option<Frame>, TransportError> {
        match self {
            Self::List { waiting, list, .. } => {
                let seconds = wait.clamp(Duration::from_millis(10), LOOK).as_secs_f64().to_string();
                let heard = waiting.ask(&words(["BRPOP", list, &seconds])).await.map_err(of_store)?;
                let element = heard.list().into_iter().nth(1).and_then(Word::bytes);
                Ok(element.and_then(|element| kombu::decode(&element).ok()))
            }
            Self::Queue(listener) => match timeout(wait, listener.next()).await {
                Ok(Some(taken)) => Ok(frame_of(taken)),
                Ok(None) => Err(of_amqp(windlass_amqp::AmqpError::Closed)),
                Err(_) => Ok(None),
            },
        }
    }

    /// Takes the place for answers away, with those that came too late.
    async fn close(self) -> Result<(), TransportError> {
        match self {
            Self::List { line, list, bindings, member, .. } => {
                let forget = [words(["SREM", &bindings, &member]), words(["DEL", &list])];
                line.ask_all(&forget).await.map(drop).map_err(of_store)
            }
            // The queue deletes itself with its consumer.
            Self::Queue(_) => Ok(()),
        }
    }
}
