//! The other way: from the URL of a bridge to a client of the workers at its other end.

use std::sync::Arc;

use windlass_core::{NodeId, QueueName};

use super::{OpenError, Side, amqp, celery_options, no_kind, redis, serializer, taskiq_options, taskiq_topology_of};
use crate::carrier::{AmqpQueues, taskiq_topology};
use crate::celery::ResultPlace;
use crate::celery::producer::{Producer as CeleryProducer, Settings};
use crate::taskiq::producer::{AmqpOutlet, Kind, Outlet, Producer as TaskiqProducer, RedisOutlet};
use crate::taskiq::schedules::{PastTimes, Scheduler, SchedulerOptions, Source};
use crate::url::{BridgeUrl, InvalidUrl, Over, Wire};

/// A client of Celery's workers. `origin` says who sends, for display: `gen<pid>@<host>`.
///
/// # Errors
/// [`OpenError`]: a URL to others than Celery's workers, or a RabbitMQ that cannot be used now. Redis is asked when there is
/// something to send.
pub async fn celery_producer(url: &BridgeUrl, origin: &str) -> Result<CeleryProducer, OpenError> {
    if url.wire != Wire::Celery {
        return Err(InvalidUrl("it leads to others than Celery's workers".to_owned()).into());
    }
    let options = celery_options(url, nobody(&[]))?;
    let defaults = Settings::default();
    let settings = Settings {
        default_queue: match url.get("default-queue") {
            Some(name) => QueueName::new(name).map_err(|error| InvalidUrl(format!("`default-queue`: {error}")))?,
            None => defaults.default_queue,
        },
        results: match options.results {
            ResultPlace::Redis(location) => Some(location),
            ResultPlace::Replies | ResultPlace::Nowhere => None,
        },
        result_expires: options.result_expires,
        key_prefix: options.key_prefix,
        declared: options.declared,
        origin: origin.to_owned(),
    };
    Ok(match url.over {
        Over::Redis => CeleryProducer::on_redis(redis(url)?, settings),
        Over::Amqp => CeleryProducer::on_amqp(amqp(url)?, settings).await?,
    })
}

/// A client of TaskIQ's workers on these queues, which are declared on RabbitMQ; not empty.
///
/// # Errors
/// [`OpenError`]: a URL to others than TaskIQ's workers, or a RabbitMQ that cannot be used now. Redis is asked when there is
/// something to send.
pub async fn taskiq_producer(url: &BridgeUrl, queues: &[QueueName]) -> Result<TaskiqProducer, OpenError> {
    if url.wire != Wire::TaskIq {
        return Err(InvalidUrl("it leads to others than TaskIQ's workers".to_owned()).into());
    }
    let results = taskiq_options(url, nobody(queues))?.results;
    Ok(TaskiqProducer::new(outlet(url, queues).await?, results.as_ref()))
}

/// What fires the schedules that TaskIQ's producers keep in Redis; `None` when the URL says nothing of them.
///
/// # Errors
/// [`OpenError`]: a RabbitMQ that cannot be used now. Redis is waited for.
pub async fn taskiq_scheduler(url: &BridgeUrl) -> Result<Option<Scheduler>, OpenError> {
    let location = match (url.get("schedules"), url.over) {
        (None | Some("none"), _) => return Ok(None),
        (Some("broker"), Over::Redis) => redis(url)?,
        (Some(server), _) => server.parse().map_err(|error| InvalidUrl(format!("`schedules`: {error}")))?,
    };
    let prefix = url.get("schedules-prefix").unwrap_or("schedule");
    let source = Source::new(location, prefix, serializer(url)?, PastTimes::Fire);
    let options = SchedulerOptions::default();
    let outlet = outlet(url, std::slice::from_ref(&options.queue)).await?;
    Ok(Some(Scheduler::new(source, outlet, options)))
}

async fn outlet(url: &BridgeUrl, queues: &[QueueName]) -> Result<Arc<dyn Outlet>, OpenError> {
    Ok(match url.over {
        Over::Redis => Arc::new(RedisOutlet::new(redis(url)?, kind(url)?)),
        Over::Amqp => {
            let topology = taskiq_topology_of(url, queues)?;
            let carrier = AmqpQueues::open(amqp(url)?, &taskiq_topology(&topology), &[]).await?;
            Arc::new(AmqpOutlet::new(Arc::clone(carrier.amqp()), &topology))
        }
    })
}

fn kind(url: &BridgeUrl) -> Result<Kind, InvalidUrl> {
    match url.get("kind") {
        None | Some("list") => Ok(Kind::List),
        Some("stream") => {
            let group = url.get("group").unwrap_or("taskiq").to_owned();
            Ok(Kind::Stream { group, length_max: None })
        }
        Some("pubsub") => Ok(Kind::Channel),
        Some(other) => Err(no_kind(other)),
    }
}

/// Who only sends works on nothing.
fn nobody(queues: &[QueueName]) -> Side {
    Side { node: NodeId::known("producer"), queues: queues.to_vec(), tasks: Vec::new() }
}
