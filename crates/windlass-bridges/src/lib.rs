//! Bridges: foreign formats on foreign transports, in front of a store.
//!
//! A bridge of the engine ([`windlass_core::bridge`]) asks a [`Transport`](windlass_core::bridge::Transport) for messages and
//! tells it what became of them. Here are those transports: each joins a **carrier**, which moves bytes and knows when they
//! are safe ([`carrier`]), and a **wire**, which knows what the bytes mean ([`windlass_wire`]).
//!
//! | module | who sends | over |
//! |---|---|---|
//! | [`celery`] | Celery producers, beat, other Celery workers | Redis lists, RabbitMQ |
//! | [`taskiq`] | TaskIQ's producers and schedulers | Redis lists, streams and channels, RabbitMQ |
//!
//! Whoever depends on this crate gets every driver that a bridge may need; applications use `windlass::connect`.
//!
//! [`open`](open()) takes a URL to a bridge; [`url`] says what it may hold. [`celery_producer`] and [`taskiq_producer`] take
//! the same URL the other way: to a client of the workers at its other end. [`relay`] is a node that is such a client: it sends
//! what schedules and others have put into queues of the store.

// `#[derive(Task)]` writes `::windlass`, the crate that users depend on.
extern crate windlass_core as windlass;

pub mod bare;
pub mod carrier;
pub mod celery;
mod open;
mod relay;
pub mod taskiq;
pub mod url;

pub use open::{OpenError, Side, celery_producer, open, taskiq_producer, taskiq_scheduler, with_builtins};
pub use relay::{Outgoing, relay};
pub use url::BridgeUrl;
