//! From a URL to a bridge.

mod producers;

use std::sync::Arc;

use jiff::tz::TimeZone;
use windlass_core::bridge::{Bridge, Transport, TransportError};
use windlass_core::{Backend, NodeId, QueueName, Registry, TaskName};
use windlass_wire::celery::TimeLimit;
use windlass_wire::raw::Shape;
use windlass_wire::taskiq::Serializer;

use crate::bare::Bare;
use crate::carrier::{CeleryQueues, TaskiqProfile, TaskiqTopology};
use crate::celery::{self, Celery, ResultPlace};
use crate::taskiq;
use crate::url::{BridgeUrl, InvalidUrl, Over, Wire};

pub use producers::{celery_producer, taskiq_producer, taskiq_scheduler};

/// This side of a bridge: the node that works on it.
#[derive(Debug, Clone)]
pub struct Side {
    /// Its name in the fleet, which foreign tools show as well.
    pub node: NodeId,
    /// The queues that it takes from.
    pub queues: Vec<QueueName>,
    /// The names of the tasks that it has handlers for.
    pub tasks: Vec<String>,
}

/// A bridge that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The URL says something that has no meaning.
    #[error(transparent)]
    Url(#[from] InvalidUrl),
    /// The broker of Celery cannot be used.
    #[error(transparent)]
    Celery(#[from] celery::OpenError),
    /// The other end cannot be used.
    #[error("the other end cannot be used: {0}")]
    Transport(#[from] TransportError),
}

/// Opens a bridge into a store, which is that of every node of the fleet.
///
/// # Errors
/// [`OpenError`]. What fails later is waited for.
pub async fn open(url: &BridgeUrl, side: Side, store: Arc<dyn Backend>) -> Result<Arc<dyn Backend>, OpenError> {
    let ahead = match url.get("ahead") {
        None => 0,
        Some(text) => text.parse().map_err(|_| InvalidUrl(format!("`ahead={text}`: write how many messages")))?,
    };
    let transport: Arc<dyn Transport> = match (url.wire, url.over) {
        (Wire::Celery, Over::Redis) => {
            Arc::new(Celery::on_redis(redis(url)?, celery_options(url, side)?, Arc::clone(&store)).await?)
        }
        (Wire::Celery, Over::Amqp) => {
            Arc::new(Celery::on_amqp(amqp(url)?, celery_options(url, side)?, Arc::clone(&store)).await?)
        }
        (Wire::TaskIq, Over::Redis) => taskiq_on_redis(url, side).await?,
        (Wire::TaskIq, Over::Amqp) => taskiq_on_amqp(url, side).await?,
        (Wire::Bare, _) => Arc::new(Bare::on_redis(redis(url)?, shape(url)?).await?),
    };
    Ok(Arc::new(Bridge::new(store, transport).with_ahead(ahead)))
}

/// An application with the tasks that workers at the other end have built in; what [`Side::tasks`] names is to be this one's.
pub fn with_builtins(url: &BridgeUrl, registry: Registry) -> Registry {
    match url.wire {
        Wire::Celery => celery::with_builtins(registry),
        Wire::TaskIq | Wire::Bare => registry,
    }
}

fn redis(url: &BridgeUrl) -> Result<windlass_redis::Location, InvalidUrl> {
    url.server().parse().map_err(|error| InvalidUrl(format!("{error}")))
}

fn amqp(url: &BridgeUrl) -> Result<windlass_amqp::Location, InvalidUrl> {
    url.server().parse().map_err(|error| InvalidUrl(format!("{error}")))
}

/// What bare objects mean.
fn shape(url: &BridgeUrl) -> Result<Shape, InvalidUrl> {
    let id = url.get("id").map(ToOwned::to_owned);
    let Some(task) = url.get("task") else {
        return match (url.get("argument"), id) {
            (None, None) => Ok(Shape::Described),
            _ => Err(InvalidUrl("`argument` and `id` are for objects of one task: name it with `task`".to_owned())),
        };
    };
    let task = TaskName::new(task).map_err(|error| InvalidUrl(format!("`task`: {error}")))?;
    Ok(match url.get("argument") {
        Some(argument) => Shape::Whole { task, argument: argument.to_owned(), id },
        None => Shape::Arguments { task, id },
    })
}

async fn taskiq_on_redis(url: &BridgeUrl, side: Side) -> Result<Arc<dyn Transport>, OpenError> {
    let mut groups = taskiq::Groups::default();
    if let Some(group) = url.get("group") {
        group.clone_into(&mut groups.group);
    }
    if let Some(idle) = url.duration("idle")? {
        groups.idle = idle;
    }
    let options = taskiq_options(url, side)?;
    Ok(match url.get("kind") {
        None | Some("list") => taskiq::open_lists(redis(url)?, options).await?,
        Some("stream") => taskiq::open_streams(redis(url)?, groups, options).await?,
        Some("pubsub") => taskiq::open_channels(redis(url)?, options).await?,
        Some(other) => return Err(no_kind(other).into()),
    })
}

fn no_kind(other: &str) -> InvalidUrl {
    InvalidUrl(format!(
        "`kind={other}`: write list (ListQueueBroker), stream (RedisStreamBroker) or pubsub (PubSubBroker)"
    ))
}

async fn taskiq_on_amqp(url: &BridgeUrl, side: Side) -> Result<Arc<dyn Transport>, OpenError> {
    let topology = taskiq_topology_of(url, &side.queues)?;
    Ok(taskiq::open_amqp(amqp(url)?, &topology, taskiq_options(url, side)?).await?)
}

/// What the application at the other end declares on RabbitMQ.
fn taskiq_topology_of(url: &BridgeUrl, queues: &[QueueName]) -> Result<TaskiqTopology, InvalidUrl> {
    let profile = match url.get("profile") {
        None | Some("0.6") => TaskiqProfile::V0_6,
        Some("0.4") => TaskiqProfile::V0_4,
        Some(other) => return Err(InvalidUrl(format!("`profile={other}`: write 0.6 or 0.4"))),
    };
    let mut topology = TaskiqTopology { queues: queues.to_vec(), ..TaskiqTopology::of(profile) };
    if let Some(max) = max_priority(url)? {
        topology.arguments.insert("x-max-priority".to_owned(), max.into());
    }
    Ok(topology)
}

/// What a URL says of a bridge for TaskIQ.
fn taskiq_options(url: &BridgeUrl, side: Side) -> Result<taskiq::Options, InvalidUrl> {
    let location = match url.get("results") {
        Some("none") => None,
        Some(server) => Some(server.parse().map_err(|error| InvalidUrl(format!("`results`: {error}")))?),
        None if url.over == Over::Amqp => None,
        None => Some(redis(url)?),
    };
    let serializer = serializer(url)?;
    let keep = match url.duration("results-expire")? {
        None => taskiq::Keep::ForEver,
        Some(time) if time.is_zero() => taskiq::Keep::ForEver,
        Some(time) => taskiq::Keep::For(time),
    };
    let results = location.map(|location| taskiq::ResultOptions {
        prefix: url.get("prefix").map(ToOwned::to_owned),
        keep,
        serializer,
        ..taskiq::ResultOptions::new(location)
    });
    Ok(taskiq::Options { queues: side.queues, registered: side.tasks, results, ..taskiq::Options::default() })
}

fn serializer(url: &BridgeUrl) -> Result<Serializer, InvalidUrl> {
    match url.get("serializer") {
        None | Some("pickle") => Ok(Serializer::Pickle),
        Some("json") => Ok(Serializer::Json),
        Some(other) => Err(InvalidUrl(format!("`serializer={other}`: write pickle or json"))),
    }
}

fn max_priority(url: &BridgeUrl) -> Result<Option<u8>, InvalidUrl> {
    let read = |text: &str| {
        text.parse::<u8>().map_err(|_| InvalidUrl(format!("`max-priority={text}`: write a number from 1 to 255")))
    };
    url.get("max-priority").map(read).transpose()
}

/// What a URL says of a bridge for Celery.
fn celery_options(url: &BridgeUrl, side: Side) -> Result<celery::Options, InvalidUrl> {
    let mut options = celery::Options::new(side.node.as_str());
    if let Some(first) = side.queues.first() {
        options.default_queue = first.to_string();
    }
    if let Some(queue) = url.get("default-queue") {
        queue.clone_into(&mut options.default_queue);
    }
    options.queues = side.queues;
    options.registered = side.tasks;
    options.results = match url.get("results") {
        Some("none") => ResultPlace::Nowhere,
        Some("rpc" | "rpc://") => ResultPlace::Replies,
        Some(server) => ResultPlace::Redis(server.parse().map_err(|error| InvalidUrl(format!("`results`: {error}")))?),
        None if url.over == Over::Amqp => ResultPlace::Replies,
        None => ResultPlace::Redis(url.server().parse().map_err(|error| InvalidUrl(format!("{error}")))?),
    };
    if let Some(expires) = url.duration("results-expire")? {
        options.result_expires = expires;
    }
    if let Some(visibility) = url.duration("visibility")? {
        options.visibility = visibility;
    }
    if let Some(prefix) = url.get("prefix") {
        prefix.clone_into(&mut options.key_prefix);
    }
    if let Some(zone) = url.get("timezone") {
        options.zone = TimeZone::get(zone).map_err(|error| InvalidUrl(format!("`timezone`: {error}")))?;
    }
    options.track_started = url.is_on("track-started")?;
    options.ignore_results = url.is_on("ignore-results")?;
    options.extended = url.is_on("extended")?;
    options.events = url.is_on("events")?;
    let limit = |option| url.duration(option).map(|limit| limit.filter(|limit| !limit.is_zero()));
    options.limits = TimeLimit { hard: limit("time-limit")?, soft: limit("soft-time-limit")? };
    options.mingle = url.get("mingle").is_none() || url.is_on("mingle")?;
    options.declared = match url.get("quorum") {
        Some("topic") => CeleryQueues::QuorumDelayed,
        _ if url.is_on("quorum")? => CeleryQueues::Quorum,
        _ => CeleryQueues::Classic { max_priority: max_priority(url)? },
    };
    Ok(options)
}
