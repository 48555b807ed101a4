//! One connection that is always being kept: made, watched, given up, and made again.
//!
//! 1. connect, log in   2. declare the topology   3. hand out the session   4. wait for its end   5. pause, again from 1
//!
//! Consuming and publishing have a link each: the broker stops reading from a connection that publishes too fast, or while
//! it has no memory, and then hears no acknowledgement on it either. What consumes or publishes watches for the next session
//! and makes its channels anew.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio};
use futures_util::StreamExt as _;
use lapin::tcp::AsyncTcpStream;
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, Event};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use crate::AmqpError;
use crate::error;
use crate::location::Location;
use crate::socket::{Cord, Socket, Sockets};
use crate::topology::{self, Queue, Reported, Topology};

/// Logging in. A broker that starts takes connections a moment before it answers on them.
const LOGIN_LIMIT: Duration = Duration::from_secs(5);
/// Anything else that the broker answers to at once: a channel, a consumer, a queue. Longer than a failover of a quorum.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_secs(15);
/// Saying goodbye.
const GOODBYE_LIMIT: Duration = Duration::from_secs(2);
/// Before the first attempt after a lost connection, and before the second, third, ...: up to this.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
/// With the limits above, a broker that returns is found within five seconds.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The end of a connection is an event; should one be missed, this finds it.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A connection that works, or worked a moment ago.
pub(crate) struct Session {
    connection: Connection,
    cord: Cord,
    at: String,
    blocked: watch::Sender<Option<Arc<str>>>,
    is_over: CancellationToken,
}

/// What there is at the moment.
#[derive(Clone)]
pub(crate) enum Standing {
    /// No session, since the beginning or for this reason.
    Down(Option<AmqpError>),
    Up(Arc<Session>),
    /// There will be none.
    Closed,
}

/// Keeps one connection. Dropping it ends the connection.
#[derive(Debug)]
pub(crate) struct Link {
    standing: watch::Receiver<Standing>,
    topology: Arc<Mutex<Topology>>,
    reported: Reported,
    closing: CancellationToken,
    _closes_when_dropped: DropGuard,
}

impl std::fmt::Debug for Standing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Down(_) => "Down",
            Self::Up(_) => "Up",
            Self::Closed => "Closed",
        })
    }
}

impl Link {
    /// Begins to keep a connection. `purpose` is shown in the broker's list of connections.
    pub(crate) fn keep(location: &Location, purpose: &'static str, topology: Topology) -> Self {
        let (sender, standing) = watch::channel(Standing::Down(None));
        let closing = CancellationToken::new();
        let (topology, reported) = (Arc::new(Mutex::new(topology)), Reported::default());
        let keeper = Keeper {
            location: location.clone(),
            purpose,
            topology: Arc::clone(&topology),
            reported: reported.clone(),
            standing: sender,
            closing: closing.clone(),
        };
        tokio::spawn(keeper.run());
        Self { standing, topology, reported, _closes_when_dropped: closing.clone().drop_guard(), closing }
    }

    pub(crate) fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.clone()
    }

    /// Waits for a session. An error that lasts is answered at once, one that passes after `patience`.
    pub(crate) async fn session(&self, patience: Duration) -> Result<Arc<Session>, AmqpError> {
        let mut standing = self.standing.clone();
        let arrives = async {
            loop {
                match &*standing.borrow_and_update() {
                    Standing::Up(session) => return Ok(Arc::clone(session)),
                    Standing::Down(Some(error)) if !error.is_transient() => return Err(error.clone()),
                    Standing::Down(_) => {}
                    Standing::Closed => return Err(AmqpError::Closed),
                }
                if standing.changed().await.is_err() {
                    return Err(AmqpError::Closed);
                }
            }
        };
        match timeout(patience, arrives).await {
            Ok(session) => session,
            Err(_) => Err(self.trouble()),
        }
    }

    /// Cuts the connection that there is; another is made.
    pub(crate) fn give_up(&self) {
        if let Standing::Up(session) = &*self.standing.borrow() {
            session.give_up();
        }
    }

    /// Why there is no session.
    pub(crate) fn trouble(&self) -> AmqpError {
        match &*self.standing.borrow() {
            Standing::Down(Some(error)) => error.clone(),
            Standing::Down(None) | Standing::Up(_) => AmqpError::Unreachable("it has not answered yet".to_owned()),
            Standing::Closed => AmqpError::Closed,
        }
    }

    /// Declares more, now and after every reconnection.
    pub(crate) async fn declare(&self, more: &Topology, patience: Duration) -> Result<(), AmqpError> {
        self.topology.lock().join(more);
        let session = self.session(patience).await?;
        topology::declare(&session, more, &self.reported).await
    }

    /// Declares everything again in a session that goes on: somebody has deleted a part of it.
    pub(crate) async fn declare_again(&self, session: &Session) -> Result<(), AmqpError> {
        let topology = self.topology.lock().clone();
        topology::declare(session, &topology, &self.reported).await
    }

    /// Whether this queue is a classic one, or what it is was not said.
    pub(crate) fn declares_no_other_than_classic(&self, queue: &str) -> bool {
        let topology = self.topology.lock();
        topology.queues.iter().filter(|known| known.name == queue).all(Queue::is_classic)
    }

    pub(crate) fn reported(&self) -> &Reported {
        &self.reported
    }

    /// Ends the connection and waits for its end.
    pub(crate) async fn close(&self) {
        self.closing.cancel();
        let mut standing = self.standing.clone();
        // The keeper limits how long its goodbye may take.
        let _ = standing.wait_for(|standing| matches!(standing, Standing::Closed)).await;
    }
}

impl Session {
    /// Opens a channel.
    pub(crate) async fn channel(&self) -> Result<Channel, AmqpError> {
        self.limited(self.connection.create_channel()).await
    }

    /// Waits for an answer of the broker, not for ever: a broker that does not answer is given up.
    pub(crate) async fn limited<T>(&self, answer: impl Future<Output = lapin::Result<T>>) -> Result<T, AmqpError> {
        self.answered(answer).await?.map_err(|error| self.error(&error))
    }

    /// The same, with the broker's own words.
    pub(crate) async fn answered<T>(
        &self,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> Result<lapin::Result<T>, AmqpError> {
        match timeout(ANSWER_LIMIT, answer).await {
            Ok(answer) => Ok(answer),
            Err(_) if self.blocked.borrow().is_some() => {
                Err(AmqpError::Busy(format!("{} takes no messages now, and answers nothing", self.at)))
            }
            Err(_) => {
                self.give_up();
                Err(AmqpError::Unreachable(format!("{} has not answered for {ANSWER_LIMIT:?}", self.at)))
            }
        }
    }

    /// What an error of the client library means.
    pub(crate) fn error(&self, error: &lapin::Error) -> AmqpError {
        error::of(error, &self.at)
    }

    /// Why the broker takes no messages at the moment, while it does not.
    pub(crate) fn blocked(&self) -> watch::Receiver<Option<Arc<str>>> {
        self.blocked.subscribe()
    }

    /// Ends when the session does.
    pub(crate) fn is_over(&self) -> &CancellationToken {
        &self.is_over
    }

    /// Cuts the connection: nobody answers at its other end. Its link makes another.
    pub(crate) fn give_up(&self) {
        self.cord.pull();
        self.is_over.cancel();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The client library would say goodbye and wait for the answer.
        self.cord.pull();
    }
}

struct Keeper {
    location: Location,
    purpose: &'static str,
    topology: Arc<Mutex<Topology>>,
    reported: Reported,
    standing: watch::Sender<Standing>,
    closing: CancellationToken,
}

impl Keeper {
    async fn run(self) {
        let mut attempts = 0;
        let mut was_said = None;
        while !self.closing.is_cancelled() {
            let attempt = tokio::select! {
                attempt = self.attempt() => attempt,
                () = self.closing.cancelled() => break,
            };
            let error = match attempt {
                Ok(session) => {
                    info!(event = "amqp_connected", broker = %self.location, purpose = self.purpose, "connected");
                    (attempts, was_said) = (0, None);
                    let session = Arc::new(session);
                    self.standing.send_replace(Standing::Up(Arc::clone(&session)));
                    self.watch(&session).await
                }
                Err(error) => error,
            };
            if self.closing.is_cancelled() {
                break;
            }
            // The same news again and again is no news.
            if was_said.as_ref() != Some(&error) {
                warn!(event = "amqp_down", broker = %self.location, purpose = self.purpose, %error, "connecting again");
                was_said = Some(error.clone());
            }
            self.standing.send_replace(Standing::Down(Some(error)));
            tokio::select! {
                () = sleep(pause_before(attempts, fastrand::f64())) => attempts += 1,
                () = self.closing.cancelled() => break,
            }
        }
        self.standing.send_replace(Standing::Closed);
    }

    /// Waits for the end of a session and says why it ended.
    async fn watch(&self, session: &Session) -> AmqpError {
        let mut events = session.connection.events_listener();
        let broke = |said: Option<AmqpError>| {
            said.unwrap_or_else(|| AmqpError::Unreachable(format!("the connection to {} ended", session.at)))
        };
        let error = loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = sleep(LOOK_EVERY) => None,
                () = session.is_over.cancelled() => break broke(None),
                () = self.closing.cancelled() => {
                    let goodbye = session.connection.close(200, "closed".into());
                    let _ = timeout(GOODBYE_LIMIT, goodbye).await;
                    break AmqpError::Closed;
                }
            };
            let is_connected = session.connection.status().connected();
            match event {
                Some(Event::ConnectionBlocked(reason)) => {
                    warn!(event = "amqp_blocked", broker = %self.location, reason, "the broker takes no messages now");
                    session.blocked.send_replace(Some(reason.into()));
                }
                Some(Event::ConnectionUnblocked) => {
                    info!(event = "amqp_unblocked", broker = %self.location, "the broker takes messages again");
                    session.blocked.send_replace(None);
                }
                // Errors of channels come here, too: those who own the channels deal with them.
                Some(Event::Error(error)) if !is_connected => break broke(Some(session.error(&error))),
                _ if !is_connected => break broke(None),
                _ => {}
            }
        };
        session.give_up();
        error
    }

    async fn attempt(&self) -> Result<Session, AmqpError> {
        let began = Instant::now();
        let session = self.connect().await?;
        let topology = self.topology.lock().clone();
        let declared = topology::declare(&session, &topology, &self.reported).await;
        debug!(event = "amqp_declared", took = ?began.elapsed(), is_ok = declared.is_ok(), "the topology is declared");
        declared.map(|()| session)
    }

    async fn connect(&self) -> Result<Session, AmqpError> {
        let at = format!("`{}`", self.location);
        let socket = Socket::connect(&self.location).await?;
        let cord = socket.cord();
        let socket = Mutex::new(Some(socket));
        // The library asks for a socket once, on a thread of its own.
        let take = async move |_: AMQPUri, _: Runtime<_>| {
            let socket = socket.lock().take().ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected))?;
            lapin::Result::Ok(AsyncTcpStream::Plain(socket))
        };
        let runtime = Runtime::new(RuntimeParts::new(Tokio::current(), Sockets(Tokio::current())));
        let name = format!("windlass {}", self.purpose);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let login = Connection::connector(self.uri(), runtime, take, properties);
        let connection = match timeout(LOGIN_LIMIT, login).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                cord.pull();
                return Err(error::of(&error, &at));
            }
            Err(_) => {
                cord.pull();
                return Err(AmqpError::Unreachable(format!(
                    "{at} takes connections and does not answer on them; it is starting, or it is no AMQP port"
                )));
            }
        };
        Ok(Session { connection, cord, at, blocked: watch::Sender::new(None), is_over: CancellationToken::new() })
    }

    fn uri(&self) -> AMQPUri {
        let Location { host, port, user, password, vhost, heartbeat_secs, .. } = self.location.clone();
        AMQPUri {
            // Whatever is below is ours.
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority { userinfo: AMQPUserInfo { username: user, password }, host, port },
            vhost,
            query: AMQPQueryString { heartbeat: Some(heartbeat_secs), ..AMQPQueryString::default() },
        }
    }
}

/// The pause before another attempt: doubling, capped, and shortened by up to a half so that a fleet does not come at once.
fn pause_before(attempts: u32, luck: f64) -> Duration {
    let full = PAUSE_FIRST.saturating_mul(1_u32 << attempts.min(16)).min(PAUSE_MAX);
    full.mul_f64(1.0 - luck / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_cap_and_differ_by_luck() {
        let millis = |attempts, luck| pause_before(attempts, luck).as_millis();
        assert_eq!([0, 1, 2, 5, 6, 40].map(|attempts| millis(attempts, 0.0)), [50, 100, 200, 1600, 2000, 2000]);
        assert_eq!(millis(40, 1.0), 1000);
    }
}
