//! The engine of Windlass: typed tasks, the store port, the worker, schedules and workflows.
//!
//! This crate knows no driver, no socket, no HTTP and no clock but [`Clock`]. Users depend on the crate `windlass`.

// `#[derive(Task)]` writes `::windlass`, the crate that users depend on; inside of this one it is this one.
#[allow(unused_extern_crates, reason = "the derive is used in documentation and tests")]
extern crate self as windlass;

pub mod args;
pub mod backend;
pub mod call;
pub mod client;
pub mod config;
pub mod envelope;
pub mod error;
pub mod event;
pub mod flow;
pub mod json;
pub mod metrics;
pub mod middleware;
pub mod names;
pub mod redact;
pub mod registry;
pub mod retry;
pub mod schedule;
pub mod state;
pub mod task;
pub mod time;
pub mod transfer;
pub mod view;
pub mod worker;
pub mod workflow;

pub use args::{Args, Feed, InvalidArgs};
pub use backend::{Backend, StoreError};
pub use call::Cx;
pub use client::{Client, Handle, PushError, WaitError};
pub use envelope::{Due, Envelope, InvalidEnvelope, Source, Unique};
pub use error::{BoxError, Failure, TaskError};
pub use json::{InvalidJson, Json};
pub use names::{GroupId, InvalidName, Key, NodeId, Priority, QueueName, ScheduleId, TaskId, TaskName, UniqueKey};
pub use redact::Secret;
pub use registry::{App, Registry};
pub use retry::{Backoff, RetryPolicy};
pub use state::{DeadReason, State, Verdict};
pub use task::{Definition, Task};
pub use time::{Clock, InvalidDuration, SystemClock, Timestamp, format_duration, parse_duration};
pub use windlass_macros::Task;
pub use worker::{Settings, Shutdown, Worker};
