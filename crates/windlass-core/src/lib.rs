//! The engine of Windlass: typed tasks, the store port, the worker, schedules and workflows.
//!
//! This crate knows no driver, no socket, no HTTP and no clock but [`Clock`]. Users depend on the crate `windlass`.

// `#[derive(Task)]` writes `::windlass`, the crate that users depend on; inside of this one it is this one.
#[allow(unused_extern_crates, reason = "the derive is used in documentation and tests")]
extern crate self as windlass;

pub mod adoption;
pub mod args;
pub mod backend;
pub mod batch;
pub mod breaker;
pub mod bridge;
pub mod call;
pub mod client;
pub mod composite;
pub mod config;
pub mod envelope;
pub mod error;
pub mod event;
pub mod fair;
pub mod flow;
pub mod graph;
pub mod json;
pub mod limit;
pub mod memo;
pub mod metrics;
pub mod middleware;
pub mod names;
pub mod note;
pub mod once;
pub mod outbox;
pub mod redact;
pub mod registry;
pub mod retry;
pub mod schedule;
pub mod state;
pub mod steps;
pub mod task;
pub mod time;
pub mod transfer;
pub mod url;
pub mod view;
pub mod worker;
pub mod workflow;

pub use args::{Args, Feed, InvalidArgs};
pub use backend::{Backend, StoreError};
pub use batch::{Batch, BatchCx, Item};
pub use call::Cx;
pub use client::{Client, Handle, PushError, WaitError};
pub use envelope::{Due, Envelope, InvalidEnvelope, OnConflict, Source, Unique, UniqueHold};
pub use error::{BoxError, Failure, TaskError};
pub use json::{InvalidJson, Json};
pub use limit::{Gate, Limit, Rate, Rule, Subject};
pub use names::{
    DeliveryId, GroupId, InvalidName, Key, NodeId, Priority, QueueName, ScheduleId, SignalName, TaskId, TaskName,
    UniqueKey,
};
pub use redact::Secret;
pub use registry::{App, Registry};
pub use retry::{Backoff, RetryPolicy};
pub use state::{DeadReason, State, Verdict};
pub use task::{Definition, Task};
pub use time::{Clock, InvalidDuration, SystemClock, Timestamp, format_duration, parse_duration};
pub use windlass_macros::Task;
pub use worker::{Settings, Shutdown, Worker};
