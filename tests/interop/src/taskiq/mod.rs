//! The way to TaskIQ's workers from Rust: calls as data, and a producer that publishes them and awaits their results.

mod call;
mod producer;

pub use call::read_call;
pub use producer::{ProduceError, Producer, Transport};
