//! The engine of Windlass: typed tasks, the store port, the worker, schedules and workflows.
//!
//! This crate knows no driver, no socket, no HTTP and no clock but [`Clock`]. Users depend on the crate `windlass`.

// `#[derive(Task)]` writes `::windlass`, the crate that users depend on; inside of this one it is this one.
#[allow(unused_extern_crates, reason = "the derive is used in documentation and tests")]
extern crate self as windlass;

pub mod args;
pub mod backend;
pub mod envelope;
pub mod error;
pub mod flow;
pub mod json;
pub mod names;
pub mod redact;
pub mod retry;
pub mod schedule {
    //! stub
    use serde::{Serialize, Deserialize};
    /// stub
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    pub struct Schedule { 
        /// stub
        pub id: crate::ScheduleId }
}
pub mod state;
pub mod task;
pub mod time;
pub mod view;

pub use args::{Args, Feed, InvalidArgs};
pub use backend::{Backend, StoreError};
pub use envelope::{Due, Envelope, InvalidEnvelope, Source, Unique};
pub use error::{BoxError, Failure, TaskError};
pub use json::{InvalidJson, Json};
pub use names::{GroupId, InvalidName, Key, NodeId, Priority, QueueName, ScheduleId, TaskId, TaskName, UniqueKey};
pub use redact::Secret;
pub use retry::{Backoff, RetryPolicy};
pub use state::{DeadReason, State, Verdict};
pub use task::{Definition, Task};
pub use time::{Clock, SystemClock, Timestamp, format_duration, parse_duration};
pub use windlass_macros::Task;
