//! Foreign producers and consumers: a worker of ours for the queues of Celery, TaskIQ, or of nobody's framework.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use windlass::prelude::*;
//! use windlass::bridges::{self, Side};
//!
//! # async fn example(app: App) -> Result<(), Box<dyn std::error::Error>> {
//! let store = windlass::connect("redis://localhost").await?; // what every node of the fleet shares
//! let url = "celery+redis://localhost".parse()?;
//! let registry = bridges::with_builtins(&url, app.build().await?);
//! let node = NodeId::known("celery@web-1");
//! let tasks = registry.names().iter().map(ToString::to_string).collect();
//! let side = Side { node: node.clone(), queues: vec![QueueName::known("celery")], tasks };
//! let bridge = bridges::open(&url, side, store).await?;
//!
//! let settings = Settings { queues: vec![(QueueName::known("celery"), 1)], ..Settings::new(node) };
//! Worker::new(bridge, registry, settings).start(Shutdown::new()).await?;
//! # Ok(()) }
//! ```
//!
//! The same URL leads the other way, to a client of the workers at its other end ([`celery::producer`], [`taskiq::producer`]):
//!
//! ```no_run
//! # use std::time::Duration;
//! # use windlass::{Args, Envelope, QueueName, TaskName, bridges};
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let url = "celery+amqp://localhost?results=redis://localhost/1".parse()?;
//! let producer = bridges::celery_producer(&url, "orders@web-1").await?;
//! let add = Envelope::new(TaskName::known("app.add"), QueueName::known("celery"), Args::parse("[2, 3]")?);
//! let task_id = producer.enqueue(&add).await?;
//! assert_eq!(producer.wait(&task_id, Duration::from_secs(5)).await?.result.as_str(), "5");
//! # Ok(()) }
//! ```
//!
//! [`OPTIONS`](url::OPTIONS) lists what the URL of a bridge may say.

pub use windlass_bridges::{
    BridgeUrl, OpenError, Outgoing, Side, bare, celery, celery_producer, open, relay, taskiq, taskiq_producer,
    taskiq_scheduler, url, with_builtins,
};
/// Redis with the messages of other programs in it: for whoever asks or tells those programs something.
pub use windlass_redis::{Location as RedisLocation, foreign as redis};
/// The formats of those programs as pure codecs.
pub use windlass_wire as wire;
