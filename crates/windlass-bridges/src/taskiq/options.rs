//! How a bridge for TaskIQ is set up and opened.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;
use windlass_core::QueueName;
use windlass_core::bridge::{Transport, TransportError};
use windlass_redis::Location;
use windlass_redis::foreign::{Line, SILENT_AFTER};
use windlass_wire::taskiq::{Broker, STREAM_FIELD, Serializer};

use super::TaskIq;
use super::results::{Keep, ProgressKeys};
use crate::carrier::{
    AmqpQueues, Carrier, RedisChannels, RedisLists, RedisStreams, StreamReading, TaskiqTopology, of_store, one_list,
    taskiq_topology,
};

/// How a bridge for TaskIQ works. The defaults are TaskIQ's own.
#[derive(Debug, Clone)]
pub struct Options {
    /// The queues that are there from the beginning: the names of lists, streams or channels. `taskiq`.
    pub queues: Vec<QueueName>,
    /// The names of the tasks that have a handler; messages for others become dead letters.
    pub registered: Vec<String>,
    /// Where results go: nowhere, as long as there is no result backend.
    pub results: Option<ResultOptions>,
    /// On lists: after how long without a sign of life what another node has taken is given to others. A minute.
    pub silent_after: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queues: vec![QueueName::known("taskiq")],
            registered: Vec::new(),
            results: None,
            silent_after: SILENT_AFTER,
        }
    }
}

/// A `RedisAsyncResultBackend`.
#[derive(Debug, Clone)]
pub struct ResultOptions {
    /// Its server.
    pub location: Location,
    /// `prefix_str`: in front of each key, with a colon. Nothing.
    pub prefix: Option<String>,
    /// `result_ex_time` and `result_px_time`: for ever. Whoever runs it in production sets a time.
    pub keep: Keep,
    /// `serializer`: pickles. Both sides have to agree.
    pub serializer: Serializer,
    /// Whether progress is written besides: no.
    pub progress: ProgressKeys,
}

impl ResultOptions {
    /// TaskIQ's defaults on this server.
    pub fn new(location: Location) -> Self {
        Self {
            location,
            prefix: None,
            keep: Keep::ForEver,
            serializer: Serializer::Pickle,
            progress: ProgressKeys::Leave,
        }
    }
}

/// How streams are read: what a `RedisStreamBroker` is told.
#[derive(Debug, Clone)]
pub struct Groups {
    /// `consumer_group_name`: `taskiq`.
    pub group: String,
    /// `consumer_name`: unique, and new for each process.
    pub consumer: String,
    /// `consumer_id`: where a group begins that is not there yet. `$`: what was sent before is not seen.
    pub from: String,
    /// `idle_timeout`: what has been pending for so long is taken over. Ten minutes.
    pub idle: Duration,
}

impl Default for Groups {
    fn default() -> Self {
        Self {
            group: "taskiq".to_owned(),
            consumer: Uuid::new_v4().to_string(),
            from: "$".to_owned(),
            idle: Duration::from_secs(600),
        }
    }
}

/// A transport over any carrier.
pub fn open(carrier: Arc<dyn Carrier>, broker: Broker, options: Options) -> Arc<dyn Transport> {
    Arc::new(TaskIq::new(carrier, broker, options))
}

/// A transport to the programs of a `ListQueueBroker`. What is taken is held in Redis until it is stored: unlike there, a node
/// that dies loses nothing.
///
/// # Errors
/// [`TransportError`] when the server cannot be used now; later it is waited for.
pub async fn open_lists(location: Location, options: Options) -> Result<Arc<dyn Transport>, TransportError> {
    let line = line_to(location).await?;
    let carrier = RedisLists::new(line, "", one_list, options.silent_after);
    Ok(open(Arc::new(carrier), Broker::Redis, options))
}

/// A transport to the programs of a `RedisStreamBroker`.
///
/// # Errors
/// [`TransportError`] when the server cannot be used now, or a queue is no stream.
pub async fn open_streams(
    location: Location,
    groups: Groups,
    options: Options,
) -> Result<Arc<dyn Transport>, TransportError> {
    let Groups { group, consumer, from, idle } = groups;
    let reading = StreamReading { group, consumer, from, field: STREAM_FIELD.to_owned(), idle };
    let carrier = RedisStreams::new(Arc::new(Line::to(location)), reading);
    carrier.declare(&options.queues).await?;
    Ok(open(Arc::new(carrier), Broker::Redis, options))
}

/// A transport to the programs of a `PubSubBroker`: each node runs each task, and what is sent while none listens is lost.
///
/// # Errors
/// [`TransportError`] when the server cannot be used now; later it is waited for.
pub async fn open_channels(location: Location, options: Options) -> Result<Arc<dyn Transport>, TransportError> {
    let carrier = RedisChannels::new(line_to(location).await?, &options.queues);
    Ok(open(Arc::new(carrier), Broker::Redis, options))
}

/// A transport to the programs of an `AioPikaBroker`. Its queues are those of the topology.
///
/// # Errors
/// [`TransportError`] when the broker cannot be used now; later it is waited for.
pub async fn open_amqp(
    location: windlass_amqp::Location,
    topology: &TaskiqTopology,
    options: Options,
) -> Result<Arc<dyn Transport>, TransportError> {
    let carrier = AmqpQueues::open(location, &taskiq_topology(topology), &topology.queues).await?;
    Ok(open(Arc::new(carrier), Broker::Amqp, options))
}

/// A line to a server that answers.
async fn line_to(location: Location) -> Result<Arc<Line>, TransportError> {
    let line = Line::to(location);
    line.ask(&[b"PING".to_vec()]).await.map_err(of_store)?;
    Ok(Arc::new(line))
}
