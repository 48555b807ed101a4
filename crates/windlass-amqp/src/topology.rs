//! Exchanges, queues and bindings: what must be there, as data, and how it is brought about.
//!
//! Others own most of them: a queue that a Python worker has declared is used as it is. So each thing is
//!
//! 1. looked for (a passive declaration, which needs no rights)   2. made, when it is missing
//! 3. compared, when it is there: the broker names an argument that differs, which is reported and changes nothing

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use lapin::options::{
    ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
    QueuePurgeOptions,
};
use lapin::types::FieldTable;
use lapin::{Channel, Error, ExchangeKind};
use parking_lot::Mutex;
use serde_json::{Map, Value};
use tracing::{debug, warn};

use crate::AmqpError;
use crate::error;
use crate::link::Session;
use crate::table::{self, short};

/// What must be there before anything is published or consumed; declared again after every reconnection.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Topology {
    /// Declared first.
    pub exchanges: Vec<Exchange>,
    /// Declared next.
    pub queues: Vec<Queue>,
    /// Made next.
    pub bindings: Vec<Binding>,
    /// Made last.
    pub exchange_bindings: Vec<ExchangeBinding>,
}

/// One exchange.
#[derive(Debug, Clone, PartialEq)]
pub struct Exchange {
    /// At most 255 bytes; not empty.
    pub name: String,
    /// `direct`, `fanout`, `topic`, `headers`, or what a plugin calls its own.
    pub kind: String,
    /// Whether it survives a restart of the broker.
    pub lasting: Lasting,
    /// Arguments of the declaration.
    pub arguments: Map<String, Value>,
}

/// One queue. A name that is empty is none: the broker would choose another after every reconnection.
#[derive(Debug, Clone, PartialEq)]
pub struct Queue {
    /// At most 255 bytes; not empty.
    pub name: String,
    /// How long it lives.
    pub lasting: Lasting,
    /// Arguments of the declaration: `x-max-priority`, `x-queue-type`, `x-expires`, `x-message-ttl`, `x-dead-letter-exchange`.
    pub arguments: Map<String, Value>,
}

/// How long an exchange or a queue lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lasting {
    /// Through restarts of the broker.
    #[default]
    Durable,
    /// Until the broker ends.
    Transient,
    /// Until its last consumer or binding goes, or the broker ends.
    AutoDelete,
    /// For a queue: as long as its connection, which alone may consume from it. For an exchange as [`Self::AutoDelete`].
    Exclusive,
}

/// What an exchange sends to a queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Binding {
    /// The queue.
    pub queue: String,
    /// The exchange. The default one, whose name is empty, has a binding for every queue and takes no others.
    pub exchange: String,
    /// The key or the pattern.
    pub routing_key: String,
    /// Arguments of the binding, for exchanges of headers.
    pub arguments: Map<String, Value>,
}

/// What an exchange sends to another one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExchangeBinding {
    /// Where it comes from.
    pub from: String,
    /// Where it goes to.
    pub to: String,
    /// The key or the pattern.
    pub routing_key: String,
}

/// Something that is there otherwise than it was declared; it is used as it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Difference {
    /// `queue` or `exchange`.
    pub what: &'static str,
    /// Its name.
    pub name: String,
    /// The argument that differs, such as `x-max-priority` or `durable`; empty when the broker does not say.
    pub argument: String,
    /// What the broker says.
    pub said: String,
}

impl Exchange {
    /// A durable exchange of a kind.
    pub fn new(name: &str, kind: &str) -> Self {
        Self { name: name.to_owned(), kind: kind.to_owned(), lasting: Lasting::Durable, arguments: Map::new() }
    }
}

impl Queue {
    /// A durable classic queue.
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), lasting: Lasting::Durable, arguments: Map::new() }
    }

    /// The same with one argument of the declaration more.
    #[must_use]
    pub fn with(mut self, argument: &str, value: impl Into<Value>) -> Self {
        self.arguments.insert(argument.to_owned(), value.into());
        self
    }

    /// Whether it is a classic queue, which it is when nothing else is asked for.
    pub(crate) fn is_classic(&self) -> bool {
        let kind = self.arguments.get("x-queue-type").and_then(Value::as_str);
        kind.is_none_or(|kind| kind == "classic")
    }

    /// The same with another life.
    #[must_use]
    pub fn lasting(mut self, lasting: Lasting) -> Self {
        self.lasting = lasting;
        self
    }
}

impl Binding {
    /// A binding without arguments.
    pub fn new(queue: &str, exchange: &str, routing_key: &str) -> Self {
        let [queue, exchange, routing_key] = [queue, exchange, routing_key].map(str::to_owned);
        Self { queue, exchange, routing_key, arguments: Map::new() }
    }
}

impl ExchangeBinding {
    /// A binding from an exchange to another.
    pub fn new(from: &str, to: &str, routing_key: &str) -> Self {
        let [from, to, routing_key] = [from, to, routing_key].map(str::to_owned);
        Self { from, to, routing_key }
    }
}

impl Topology {
    /// Adds what another has and this one does not.
    pub fn join(&mut self, other: &Topology) {
        fn add<T: PartialEq + Clone>(to: &mut Vec<T>, from: &[T]) {
            for one in from {
                if !to.contains(one) {
                    to.push(one.clone());
                }
            }
        }
        add(&mut self.exchanges, &other.exchanges);
        add(&mut self.queues, &other.queues);
        add(&mut self.bindings, &other.bindings);
        add(&mut self.exchange_bindings, &other.exchange_bindings);
    }
}

/// The differences that were reported: each once, not after every reconnection.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reported(Arc<Mutex<BTreeSet<Difference>>>);

impl Reported {
    fn report(&self, difference: Difference) {
        let Difference { what, name, argument, said } = &difference;
        if !self.0.lock().insert(difference.clone()) {
            return;
        }
        warn!(event = "amqp_differs", what, name, argument, said, "it is used as it is; declare it so, or delete it");
    }

    pub(crate) fn all(&self) -> Vec<Difference> {
        self.0.lock().iter().cloned().collect()
    }
}

/// Brings everything about.
///
/// # Errors
/// What the broker refused, unless it was that something is there otherwise.
pub(crate) async fn declare(session: &Session, topology: &Topology, reported: &Reported) -> Result<(), AmqpError> {
    let mut declarer = Declarer { session, reported, channel: None };
    for exchange in topology.exchanges.iter().filter(|exchange| !exchange.name.is_empty()) {
        declarer.bring_about(Thing::Exchange(exchange)).await?;
    }
    for queue in &topology.queues {
        declarer.bring_about(Thing::Queue(queue)).await?;
    }
    for binding in topology.bindings.iter().filter(|binding| !binding.exchange.is_empty()) {
        declarer.bind(binding).await?;
    }
    for binding in &topology.exchange_bindings {
        declarer.bind_exchange(binding).await?;
    }
    Ok(())
}

/// Drops what waits in a queue, and answers how many messages those were.
///
/// # Errors
/// What the broker refused, unless it was that there is no such queue.
pub(crate) async fn purge(session: &Session, queue: &str) -> Result<u64, AmqpError> {
    let channel = session.channel().await?;
    let purged = channel.queue_purge(short("a queue", queue)?, QueuePurgeOptions::default());
    match session.answered(purged).await? {
        Ok(count) => Ok(u64::from(count)),
        Err(error) if error::is_not_found(&error) => Ok(0),
        Err(error) => Err(session.error(&error)),
    }
}

/// Deletes a queue, whoever uses it.
///
/// # Errors
/// What the broker refused, unless it was that there is no such queue.
pub(crate) async fn delete(session: &Session, queue: &str) -> Result<(), AmqpError> {
    let channel = session.channel().await?;
    let deleted = channel.queue_delete(short("a queue", queue)?, QueueDeleteOptions::default());
    match session.answered(deleted).await? {
        Ok(_) => Ok(()),
        Err(error) if error::is_not_found(&error) => Ok(()),
        Err(error) => Err(session.error(&error)),
    }
}

struct Declarer<'a> {
    session: &'a Session,
    reported: &'a Reported,
    /// The broker ends it with every refusal.
    channel: Option<Channel>,
}

/// How something is declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Look,
    Make,
}

/// What is brought about in the same way.
#[derive(Debug, Clone, Copy)]
enum Thing<'a> {
    Exchange(&'a Exchange),
    Queue(&'a Queue),
}

impl Thing<'_> {
    fn what(self) -> &'static str {
        match self {
            Self::Exchange(_) => "exchange",
            Self::Queue(_) => "queue",
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Exchange(exchange) => &exchange.name,
            Self::Queue(queue) => &queue.name,
        }
    }

    /// The declaration, to be waited for.
    fn declare(self, channel: &Channel, how: How) -> Result<BoxFuture<'static, lapin::Result<()>>, AmqpError> {
        let (lasting, arguments) = match self {
            Self::Exchange(Exchange { lasting, arguments, .. }) | Self::Queue(Queue { lasting, arguments, .. }) => {
                (*lasting, arguments)
            }
        };
        // Looking compares nothing, so what it would be made with stays away.
        let arguments = if how == How::Look { FieldTable::default() } else { table::table(arguments)? };
        let (passive, durable) = (how == How::Look, lasting == Lasting::Durable);
        let auto_delete = matches!(lasting, Lasting::AutoDelete | Lasting::Exclusive);
        let (name, channel) = (short(self.what(), self.name())?, channel.clone());
        Ok(match self {
            Self::Exchange(exchange) => {
                let options =
                    ExchangeDeclareOptions { passive, durable, auto_delete, ..ExchangeDeclareOptions::default() };
                let kind = match exchange.kind.as_str() {
                    "direct" => ExchangeKind::Direct,
                    "fanout" => ExchangeKind::Fanout,
                    "topic" => ExchangeKind::Topic,
                    "headers" => ExchangeKind::Headers,
                    other => ExchangeKind::Custom(other.to_owned()),
                };
                async move { channel.exchange_declare(name, kind, options, arguments).await }.boxed()
            }
            Self::Queue(_) => {
                let exclusive = lasting == Lasting::Exclusive;
                let options = QueueDeclareOptions { passive, durable, exclusive, auto_delete, nowait: false };
                async move { channel.queue_declare(name, options, arguments).await.map(drop) }.boxed()
            }
        })
    }
}

impl Declarer<'_> {
    async fn bind(&mut self, binding: &Binding) -> Result<(), AmqpError> {
        let queue = short("a queue", &binding.queue)?;
        let exchange = short("an exchange", &binding.exchange)?;
        let routing_key = short("a routing key", &binding.routing_key)?;
        let arguments = table::table(&binding.arguments)?;
        let channel = self.channel().await?;
        let bound = channel.queue_bind(queue, exchange, routing_key, QueueBindOptions::default(), arguments);
        self.session.answered(bound).await?.map_err(|error| self.failed(&error))
    }

    async fn bind_exchange(&mut self, binding: &ExchangeBinding) -> Result<(), AmqpError> {
        let (from, to) = (short("an exchange", &binding.from)?, short("an exchange", &binding.to)?);
        let routing_key = short("a routing key", &binding.routing_key)?;
        let channel = self.channel().await?;
        let options = ExchangeBindOptions::default();
        let bound = channel.exchange_bind(to, from, routing_key, options, FieldTable::default());
        self.session.answered(bound).await?.map_err(|error| self.failed(&error))
    }

    async fn bring_about(&mut self, thing: Thing<'_>) -> Result<(), AmqpError> {
        let (what, name) = (thing.what(), thing.name());
        let channel = self.channel().await?;
        match self.session.answered(thing.declare(&channel, How::Look)?).await? {
            Ok(()) => {}
            Err(error) if error::is_not_found(&error) => self.channel = None,
            Err(error) => return Err(self.failed(&error)),
        }
        let is_there = self.channel.is_some();
        let channel = self.channel().await?;
        let made = self.session.answered(thing.declare(&channel, How::Make)?).await?;
        let Err(error) = made else { return Ok(()) };
        let refusal = self.failed(&error);
        if error::is_precondition(&error) {
            let said = error.to_string();
            let argument = error::different_argument(&said).unwrap_or_default().to_owned();
            self.reported.report(Difference { what, name: name.to_owned(), argument, said });
            return Ok(());
        }
        if is_there && error::is_access_refused(&error) {
            debug!(event = "amqp_not_compared", what, name, "this user may use it and not declare it");
            return Ok(());
        }
        Err(refusal)
    }

    async fn channel(&mut self) -> Result<Channel, AmqpError> {
        if let Some(channel) = &self.channel {
            return Ok(channel.clone());
        }
        let channel = self.session.channel().await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    fn failed(&mut self, error: &Error) -> AmqpError {
        self.channel = None;
        self.session.error(error)
    }
}
