//! The way to Celery's workers from Rust: calls as data, and a producer that publishes them and awaits their results.

mod call;
mod producer;

pub use call::{Call, InvalidCall};
pub use producer::{ProduceError, Producer, Queues, Settings, Transport};
