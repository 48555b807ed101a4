//! Schedules of TaskIQ in Redis: read and written as its `ListRedisScheduleSource` does, fired as `taskiq scheduler` does.
//!
//! [`Source`] knows the keys. [`Scheduler`] looks at the clock and sends what is due, as ordinary messages with the label
//! `schedule_id`, to whoever works for that broker: nodes of ours, or Python's workers. A Rust client that adds a schedule to
//! the source has it fired by whichever scheduler is there.
//!
//! # Several schedulers
//!
//! TaskIQ's own fire everything as often as there are schedulers. Any number of ours fire each slot once: who fires sets the key
//! `windlass.fired:<prefix>:<schedule>:<slot>` with `NX`, sends, and then marks it as sent. Who finds it unmarked
//! looks again: after a minute the key of one that died in between is gone, and the slot is fired once more, with the same
//! task id. So a slot is sent once while nobody dies, and at least once when somebody does. They do not know of a
//! `taskiq scheduler` beside them: run one kind or the other.
//!
//! # What differs from TaskIQ's
//!
//! Intervals count from 1970 and not from the start of the scheduler, so that all schedulers have the same slots. A slot that
//! passed less than a minute before anybody looked is fired late; of several, the last.

mod scheduler;
mod source;

pub use scheduler::{Scheduler, SchedulerOptions};
pub use source::{PastTimes, SCHEDULES_MAX, ScheduleError, Source};
