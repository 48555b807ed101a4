//! From a URL to a bridge.

use std::sync::Arc;

use jiff::tz::TimeZone;
use windlass_core::bridge::{Bridge, Transport};
use windlass_core::{Backend, NodeId, QueueName};

use crate::carrier::amqp::CeleryQueues;
use crate::celery::{self, Celery, ResultPlace};
use crate::url::{BridgeUrl, InvalidUrl, Over, Wire};

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
    /// The other end cannot be used.
    #[error(transparent)]
    Celery(#[from] celery::OpenError),
    /// This kind of bridge is not there.
    #[error("there is no bridge of this kind: `{0}`")]
    Unknown(String),
}

/// Opens a bridge into a store, which is that of every node of the fleet.
///
/// # Errors
/// [`OpenError`]. What fails later is waited for.
pub async fn open(url: &BridgeUrl, side: Side, store: Arc<dyn Backend>) -> Result<Arc<dyn Backend>, OpenError> {
    let transport: Arc<dyn Transport> = match (url.wire, url.over) {
        (Wire::Celery, Over::Redis) => {
            let location = url.server().parse().map_err(|error| InvalidUrl(format!("{error}")))?;
            Arc::new(Celery::on_redis(location, celery_options(url, side)?, Arc::clone(&store)).await?)
        }
        (Wire::Celery, Over::Amqp) => {
            let location = url.server().parse().map_err(|error| InvalidUrl(format!("{error}")))?;
            Arc::new(Celery::on_amqp(location, celery_options(url, side)?, Arc::clone(&store)).await?)
        }
        _ => return Err(OpenError::Unknown(url.to_string())),
    };
    Ok(Arc::new(Bridge::new(store, transport)))
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
    let max_priority = url.get("max-priority").map(|text| {
        text.parse::<u8>().map_err(|_| InvalidUrl(format!("`max-priority={text}`: write a number from 1 to 255")))
    });
    options.declared = match url.get("quorum") {
        Some("topic") => CeleryQueues::QuorumDelayed,
        _ if url.is_on("quorum")? => CeleryQueues::Quorum,
        _ => CeleryQueues::Classic { max_priority: max_priority.transpose()? },
    };
    Ok(options)
}
