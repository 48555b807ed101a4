//! Private servers and a faulty network for the tests of Windlass.
//!
//! A test that only talks to a server takes the shared one of the run ([`redis_url`], [`postgres_url`], [`rabbitmq_url`];
//! `cargo xtask servers` starts them). A test that kills, stops or fills a server starts its own: [`Redis`], [`Postgres`],
//! [`RabbitMq`]. A test that needs a broken network puts a [`Proxy`] in between.
//!
//! Every server listens on 127.0.0.1 only, keeps its data in a temporary folder of its own, and ends with the value that
//! started it. When the test program itself is killed, the servers end with it (where `setpriv` of util-linux is
//! installed: on any Linux); its folders are removed by the next program that starts a server.
//!
//! ```no_run
//! use windlass_servers::{Aof, Proxy, Redis};
//!
//! let mut redis = Redis::start(Aof::EverySec)?;
//! let proxy = Proxy::to(redis.address())?;
//! // ... connect to proxy.address() ...
//! proxy.cut();
//! redis.kill();
//! redis.start_again()?;
//! # Ok::<(), windlass_servers::Error>(())
//! ```
//!
//! One file a server: a new one is built on `child` (a process that ends with us), `folder` and `port`, as `redis` is.

mod child;
mod environment;
mod error;
mod folder;
mod port;
mod postgres;
mod proxy;
mod rabbitmq;
mod redis;

pub use environment::{
    POSTGRES_URL, RABBITMQ_URL, REDIS_ALWAYS_URL, REDIS_URL, postgres_url, rabbitmq_url, redis_always_url, redis_url,
};
pub use error::Error;
pub use postgres::{Postgres, Stop};
pub use proxy::{Counts, Proxy};
pub use rabbitmq::{RabbitMq, RabbitMqOnDemand};
pub use redis::{Aof, Redis};
