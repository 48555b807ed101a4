//! The engine of Windlass: typed tasks, the store port, the worker, schedules and workflows.
//!
//! This crate knows no driver, no socket, no HTTP and no clock but [`Clock`]. Users depend on the crate `windlass`.

pub mod names;
pub mod schedule;
pub mod time;

pub use names::{GroupId, InvalidName, Key, NodeId, Priority, QueueName, ScheduleId, TaskId, TaskName, UniqueKey};
pub use time::{Clock, SystemClock, Timestamp, format_duration, parse_duration};
