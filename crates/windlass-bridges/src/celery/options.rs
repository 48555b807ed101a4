//! How a bridge for Celery is set up.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use windlass_core::bridge::TransportError;
use windlass_core::{Backend, QueueName};
use windlass_redis::Location;
use windlass_redis::foreign::Line;
use windlass_wire::celery::control::answer::BrokerInfo;
use windlass_wire::celery::{Reading, TimeLimit};

use super::Celery;
use super::arrival::Reader;
use super::broker::{AmqpBroker, Broker, KombuBroker, task_lists};
use super::plan::Teller;
use super::producer::{Over, Producer, Settings};
use super::results::{RedisResults, Results};
use crate::carrier::RedisLists;
use crate::carrier::amqp::{AmqpQueues, CeleryQueues, celery_topology};

/// How a bridge for Celery works. The defaults are Celery's own.
#[derive(Debug, Clone)]
pub struct Options {
    /// The name of the node, as `celery inspect` and Flower show it: `celery@host`.
    pub node: String,
    /// The queues that it takes from.
    pub queues: Vec<QueueName>,
    /// Where what follows a task goes when it names no queue: `celery`.
    pub default_queue: String,
    /// The names of the tasks that have a handler; the others are refused with `NotRegistered`.
    pub registered: Vec<String>,
    /// Where results go.
    pub results: ResultPlace,
    /// How long results are kept: a day. Zero keeps them for ever.
    pub result_expires: Duration,
    /// In front of every key in Redis: `global_keyprefix`.
    pub key_prefix: String,
    /// Whether `STARTED` is stored.
    pub track_started: bool,
    /// Whether results of tasks that do not say so themselves are ignored.
    pub ignore_results: bool,
    /// Whether results say name, arguments, worker and queue of their task: `result_extended`.
    pub extended: bool,
    /// Whether events of tasks are sent from the beginning; `enable_events` does it later.
    pub events: bool,
    /// On Redis: after how long without a sign of life what a worker has taken is given to others. For those of Celery it is
    /// the `visibility_timeout`.
    pub visibility: Duration,
    /// The zone of times without one.
    pub zone: TimeZone,
    /// On RabbitMQ: how the queues are declared where they are not there.
    pub declared: CeleryQueues,
    /// How long a task may run whose message says nothing of it, in place of what its definition says.
    pub limits: TimeLimit,
    /// Whether the other workers are asked at the start what was revoked. Celery calls it mingle.
    pub mingle: bool,
}

impl Options {
    /// Celery's defaults for a node of this name.
    pub fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            queues: vec![QueueName::known("celery")],
            default_queue: "celery".to_owned(),
            registered: Vec::new(),
            results: ResultPlace::Nowhere,
            result_expires: Duration::from_secs(86_400),
            key_prefix: String::new(),
            track_started: false,
            ignore_results: false,
            extended: false,
            events: false,
            visibility: Duration::from_secs(3_600),
            zone: TimeZone::UTC,
            declared: CeleryQueues::Classic { max_priority: None },
            limits: TimeLimit::default(),
            mingle: true,
        }
    }

    /// A client of the other workers, over what this one uses.
    fn neighbours(&self, broker: &Arc<dyn Broker>, over: Over) -> Option<Producer> {
        let settings = Settings { key_prefix: self.key_prefix.clone(), ..Settings::default() };
        self.mingle.then(|| Producer::over(Arc::clone(broker), over, settings))
    }

    pub(super) fn teller(&self) -> Teller {
        Teller {
            hostname: self.node.clone(),
            pid: std::process::id(),
            default_queue: self.default_queue.clone(),
            track_started: self.track_started,
            ignore_results: self.ignore_results,
            extended: self.extended,
        }
    }

    pub(super) fn reader(&self, broker: &dyn Broker) -> Reader {
        Reader {
            broker: broker.kind(),
            reading: Reading { zone: self.zone.clone() },
            registered: self.registered.iter().cloned().collect(),
        }
    }

    pub(super) fn results(&self) -> Results {
        match &self.results {
            ResultPlace::Redis(location) => Results::Redis(RedisResults {
                line: Arc::new(Line::to(location.clone())),
                prefix: self.key_prefix.clone(),
                expires: self.result_expires,
            }),
            ResultPlace::Replies => Results::Replies,
            ResultPlace::Nowhere => Results::Nowhere,
        }
    }
}

/// Where results go.
#[derive(Debug, Clone, Default)]
pub enum ResultPlace {
    /// Into keys of this Redis server: `result_backend = redis://…`.
    Redis(Location),
    /// Into the queue that each request names: `rpc://`. There are no chords.
    Replies,
    /// They are not kept.
    #[default]
    Nowhere,
}

/// A bridge that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The broker does not answer, or does not let us in.
    #[error("the broker cannot be used: {0}")]
    Broker(#[from] TransportError),
}

/// No process holds messages without a sign of life for longer than this: those of dead nodes are soon with others.
const SILENT_AFTER: Duration = Duration::from_secs(60);

impl Celery {
    /// A transport to Celery's programs over this Redis server.
    ///
    /// # Errors
    /// [`OpenError`] when the server cannot be used now; later it is waited for.
    pub async fn on_redis(location: Location, options: Options, store: Arc<dyn Backend>) -> Result<Self, OpenError> {
        let line = Arc::new(Line::to(location.clone()));
        let (host, port) = location.server().unwrap_or_default();
        let info = BrokerInfo {
            hostname: host.to_owned(),
            port,
            transport: "redis".to_owned(),
            userid: location.user().map(ToOwned::to_owned),
            virtual_host: line.database().to_string(),
            ssl: location.is_tls(),
        };
        let broker = KombuBroker::new(Arc::clone(&line), &options.key_prefix, options.visibility, info);
        broker.declare(&options.queues).await?;
        let silent_after = options.visibility.clamp(Duration::from_secs(1), SILENT_AFTER);
        let carrier = RedisLists::new(Arc::clone(&line), &options.key_prefix, task_lists, silent_after);
        let broker: Arc<dyn Broker> = Arc::new(broker);
        let neighbours = options.neighbours(&broker, Over::Redis { line, location });
        Ok(Self::start(Arc::new(carrier), broker, neighbours, options, store))
    }

    /// A transport to Celery's programs over this RabbitMQ server.
    ///
    /// # Errors
    /// [`OpenError`] when the server cannot be used now; later it is waited for.
    pub async fn on_amqp(
        location: windlass_amqp::Location,
        options: Options,
        store: Arc<dyn Backend>,
    ) -> Result<Self, OpenError> {
        let (host, port) = location.server();
        let info = BrokerInfo {
            hostname: host.to_owned(),
            port,
            transport: "amqp".to_owned(),
            userid: Some(location.user().to_owned()),
            virtual_host: location.vhost().to_owned(),
            ssl: location.is_tls(),
        };
        let topology = celery_topology(&options.queues, options.declared);
        let carrier = AmqpQueues::open(location, &topology, &options.queues).await?;
        let broker: Arc<dyn Broker> = Arc::new(AmqpBroker::new(Arc::clone(carrier.amqp()), options.declared, info));
        let neighbours = options.neighbours(&broker, Over::Amqp(Arc::clone(carrier.amqp())));
        Ok(Self::start(Arc::new(carrier), broker, neighbours, options, store))
    }
}
