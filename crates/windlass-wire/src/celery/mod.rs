//! Celery's formats: task messages, canvas, results, events, remote control.
//!
//! Source: bytes recorded from Celery 5.7.0 and 5.3.6 (kombu 5.7.0 and 5.3.7). Both are read; the form of 5.7 is written,
//! which older workers and clients accept.
//!
//! # A task, and what is needed to answer it
//!
//! [`Message::decode`] reads a frame. A message is arguments and a [`Request`]: everything else that Celery says of a task.
//! [`Message::envelope`] makes the task of it. An envelope has no place for a group, a chord or a reply queue, and a task
//! may be retried by another node after a restart, so the request travels with the envelope: [`Request::attach`] makes it
//! its origin, in the same JSON as on the wire, and [`Request::of`] reads it back.
//!
//! The canvas (callbacks, the rest of a chain, the body of a chord) stays Celery's: its steps may belong to Python
//! workers, errbacks get the id of the task that failed, and every step is answered under its own id. [`follow`] says what
//! to publish when a task has ended, by Celery's own rules.
//!
//! | when | what to call |
//! |---|---|
//! | a frame arrives | [`Message::decode`], [`Message::envelope`], [`Request::attach`] |
//! | an element of a Redis list arrives | [`Message::of_element`], then the same |
//! | an attempt starts | [`ResultDocument::started`], [`Event`] |
//! | it succeeded | [`follow::success`], then [`ResultDocument::success`] with the children, then [`ChordPart`] |
//! | it gave up | [`ResultDocument::failure`], [`ChordPart`], [`follow::failure`] |
//! | it is retried by a new message | [`Message::retry`], [`ResultDocument::retry`] |
//! | a control request arrives | [`control::Request::decode`], [`control::Request::reply`] |
//! | a Rust client enqueues for Python workers | [`Message::of`], [`Message::frame`] |
//!
//! # Priorities
//!
//! Celery's priorities run in opposite directions: on Redis 0 is served first, on RabbitMQ 9. [`Broker::priority`] and
//! [`Broker::wire_priority`] convert, here and nowhere else. A producer that names no priority sends 0: first on Redis,
//! last on RabbitMQ.

mod body;
mod canvas;
pub mod control;
pub mod event;
pub mod follow;
mod headers;
mod message;
mod produce;
pub mod repr;
mod request;
pub mod result;
mod signature;
mod stored;
mod time;

pub use canvas::Canvas;
pub use event::Event;
pub use message::{Broker, Message, Reading, Sending};
pub use produce::{Producer, Unsendable};
pub use request::{Protocol, Request, TimeLimit};
pub use result::{ChordPart, Exception, ResultDocument, State};
pub use signature::{SIGNATURES_MAX, Signature};
pub use time::{delayed_routing_key, iso_time, parse_time, undelayed_routing_key};

/// Any value as Python shows it, cut at 1,024 characters: `{'a': None}`. For display in events and listings.
///
/// ```
/// use windlass_core::Json;
/// assert_eq!(windlass_wire::celery::repr_of(&Json::parse(r#"{"a":[true,"it's"]}"#).unwrap()), r#"{'a': [True, "it's"]}"#);
/// ```
pub fn repr_of(value: &windlass_core::Json) -> String {
    repr::value(value)
}
