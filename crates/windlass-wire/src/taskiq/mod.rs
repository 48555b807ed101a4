//! TaskIQ's formats: messages with labels, results in JSON and pickle, progress, schedules.
//!
//! Source: bytes recorded from taskiq 0.13.0, taskiq-redis 1.2.4 and taskiq-aio-pika 0.6.1; those of 0.11.18, 1.0.9 and 0.4.2
//! are the same.
//!
//! Every broker carries the same bytes: one JSON object. A list element and a published message are these bytes, an entry of
//! a stream has them in its only field [`STREAM_FIELD`], AMQP in its body. A message that cannot be read is acknowledged and
//! becomes a dead letter; left pending, it would come back for ever.
//!
//! | when | what to call |
//! |---|---|
//! | bytes arrive | [`Message::decode`], [`Message::envelope`] |
//! | the task has ended, perhaps on another node | [`Labels::of`], [`TaskResult`], [`result_key`] |
//! | it is retried by a new message | [`Message::retry`] |
//! | a Rust client enqueues for Python workers | [`Message::of`], [`Message::encode`], [`amqp_frame`] |
//!
//! # Pickle
//!
//! Results and schedules are pickled by default. [`pickle`] reads and writes plain data by a list of allowed opcodes: no
//! name is looked up, nothing is imported and nothing is called, so a pickle from a stranger is as harmless as JSON.

mod amqp;
mod label;
mod message;
pub mod pickle;
mod result;
pub mod schedule;

pub use crate::celery::Broker;
pub use amqp::{Delay, Route, amqp_frame};
pub use label::{LABELS_HEADER, LABELS_MAX, Label, Labels};
pub use message::{Message, Unsendable};
pub use result::{ErrorObject, Progress, Serializer, TaskResult, progress_key, result_key};

/// The only field of an entry in a stream.
pub const STREAM_FIELD: &str = "data";
