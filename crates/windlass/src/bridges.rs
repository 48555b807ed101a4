//! Foreign producers and consumers: a worker of ours for the queues of Celery, TaskIQ, or of nobody's framework.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use windlass::prelude::*;
//! use windlass::bridges::{self, Side};
//!
//! # async fn example(app: App) -> Result<(), Box<dyn std::error::Error>> {
//! let store = windlass::connect("redis://localhost").await?; // what every node of the fleet shares
//! let registry = app.build().await?;
//! let node = NodeId::known("celery@web-1");
//! let tasks = registry.names().iter().map(ToString::to_string).collect();
//! let side = Side { node: node.clone(), queues: vec![QueueName::known("celery")], tasks };
//! let bridge = bridges::open(&"celery+redis://localhost".parse()?, side, store).await?;
//!
//! let settings = Settings { queues: vec![(QueueName::known("celery"), 1)], ..Settings::new(node) };
//! Worker::new(bridge, registry, settings).start(Shutdown::new()).await?;
//! # Ok(()) }
//! ```
//!
//! [`OPTIONS`](url::OPTIONS) lists what the URL of a bridge may say.

pub use windlass_bridges::{BridgeUrl, OpenError, Side, bare, celery, open, taskiq, url};
/// Redis with the messages of other programs in it: for whoever asks or tells those programs something.
pub use windlass_redis::{Location as RedisLocation, foreign as redis};
/// The formats of those programs as pure codecs.
pub use windlass_wire as wire;
