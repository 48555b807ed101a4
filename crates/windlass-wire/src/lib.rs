//! The formats of Celery, TaskIQ and bare JSON as pure codecs: a frame in, an envelope out, and back.
//!
//! A *transport* (a Redis list or stream, AMQP) moves [`Frame`]s; this crate knows what is in them. It has no socket, no
//! runtime and no clock. A bridge puts the two together:
//!
//! ```
//! use windlass_core::QueueName;
//! use windlass_wire::celery::{Broker, Message, Reading};
//! use windlass_wire::kombu;
//!
//! let element = br#"{"body": "W1syLCAzXSwge30sIHt9XQ==", "content-encoding": "utf-8",
//!     "content-type": "application/json", "headers": {"task": "add", "id": "42"},
//!     "properties": {"priority": 3, "body_encoding": "base64", "delivery_tag": "t1"}}"#;
//! let frame = kombu::decode(element)?;                                     // transport -> frame
//! let message = Message::decode(&frame, &Reading::default())?;             // frame -> message
//! let envelope = message.envelope(Broker::Redis, QueueName::known("celery"))?; // message -> task
//! assert_eq!(envelope.args.positional().unwrap().as_str(), "[2,3]".replace(',', ", "));
//! assert_eq!(envelope.priority.level(), 6, "3 of 0-first is 6 of 9-first");
//! # Ok::<(), windlass_wire::Malformed>(())
//! ```
//!
//! | module | format |
//! |---|---|
//! | [`celery`] | tasks (protocol 2; 1 is read), signatures and canvas, results, events, remote control |
//! | [`kombu`] | how Celery's frames look as elements of Redis lists and channels, and what the keys are called |
//! | [`taskiq`] | tasks with labels, results in JSON and in a safe subset of pickle, schedules, progress |
//! | [`python`] | which exception of Python a failure is |
//! | [`raw`] | bare JSON objects |
//!
//! # What is refused
//!
//! Every decoder takes any bytes: it answers with a value or with a [`Malformed`] that says what is wrong and what to do,
//! and never panics. Sizes, depths and counts are bounded by the constants beside the types. A bridge makes a dead letter
//! of what is refused and keeps the bytes.

pub mod celery;
mod error;
mod frame;
mod json;
pub mod kombu;
pub mod python;
pub mod raw;
pub mod taskiq;

pub use error::Malformed;
pub use frame::{FRAME_BYTES_MAX, Frame, HEADERS_MAX, Properties};
pub use json::BODY_BYTES_MAX;
