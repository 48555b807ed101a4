//! The life of a task: its states, the verdict that ends an attempt, and every legal transition.
//!
//! ```text
//! push --> Scheduled --tick--> Ready --claim--> Running --settle--> Succeeded | Dead | Cancelled | Expired
//!   \------------------------>                    |  again / snooze --> Scheduled      released --> Ready (no attempt spent)
//! Running --lease ran out, tick--> Ready (attempt counted) or Dead (poison)
//! Running --unknown name--> Parked --a node declares the name--> Ready, or Dead after a while
//! Dead | Cancelled | Succeeded | Expired --command retry--> Ready      Scheduled | Ready | Parked --command cancel--> Cancelled
//! ```

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{Failure, Json, Priority, SignalName, Timestamp};

/// Waiting this long is worth one level of priority: the lowest priority overtakes the highest after 45 minutes.
pub const AGING: Duration = Duration::from_secs(5 * 60);

/// How often a task may take its worker down with it before it is a dead letter of reason `poison`.
pub const CRASHES_MAX: u32 = 3;

/// How long a task with an unknown name waits for a node that declares it, before it is a dead letter.
pub const PARKED_FOR: Duration = Duration::from_secs(3600);

/// Where a task is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Waits for its time: delayed, or between two attempts.
    Scheduled,
    /// Waits for a free slot.
    Ready,
    /// A worker holds it.
    Running,
    /// Waits for a node that knows its name.
    Parked,
    /// Ended well.
    Succeeded,
    /// Gave up: a dead letter, which can be retried.
    Dead,
    /// Was cancelled.
    Cancelled,
    /// Was not started in time.
    Expired,
}

impl State {
    /// Every state, in the order of a task's life.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Ready,
        Self::Running,
        Self::Parked,
        Self::Succeeded,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
    ];

    /// Whether the task has ended; only the command `retry` revives it.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Dead | Self::Cancelled | Self::Expired)
    }

    /// The state as one word, as listings and filters write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Parked => "parked",
            Self::Succeeded => "succeeded",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown state `{0}`: it is one of scheduled, ready, running, parked, succeeded, dead, cancelled, expired")]
pub struct UnknownState(String);

impl FromStr for State {
    type Err = UnknownState;
    fn from_str(text: &str) -> Result<Self, UnknownState> {
        Self::ALL
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or_else(|| UnknownState(text.chars().take(40).collect()))
    }
}

/// Whether an attempt counts against the task's attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spent {
    /// It counts.
    Yes,
    /// It was not the task's fault: the count goes back.
    No,
}

/// Why a task became a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// Every attempt failed.
    AttemptsUsedUp,
    /// The handler said, or the policy says, that no retry can help.
    Fatal,
    /// The arguments do not fit the task.
    Malformed,
    /// No node declared its name in time.
    Unknown,
    /// It took its worker down too often.
    Poison,
    /// The next retry would start later than its policy allows.
    TooOld,
    /// A task that it waited for gave up.
    Upstream,
}

impl DeadReason {
    /// Every reason.
    pub const ALL: [Self; 7] =
        [Self::AttemptsUsedUp, Self::Fatal, Self::Malformed, Self::Unknown, Self::Poison, Self::TooOld, Self::Upstream];

    /// The reason as listings and metrics write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AttemptsUsedUp => "attempts_used_up",
            Self::Fatal => "fatal",
            Self::Malformed => "malformed",
            Self::Unknown => "unknown",
            Self::Poison => "poison",
            Self::TooOld => "too_old",
            Self::Upstream => "upstream",
        }
    }
}

impl fmt::Display for DeadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A word that is not a reason of a dead letter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown reason `{0}`: it is one of attempts_used_up, fatal, malformed, unknown, poison, too_old, upstream")]
pub struct UnknownReason(String);

impl FromStr for DeadReason {
    type Err = UnknownReason;
    fn from_str(text: &str) -> Result<Self, UnknownReason> {
        Self::ALL
            .into_iter()
            .find(|reason| reason.as_str() == text)
            .ok_or_else(|| UnknownReason(text.chars().take(40).collect()))
    }
}

/// What became of an attempt. A settle records it in one atomic step with everything that follows from it.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It ended well.
    Succeeded {
        /// What the handler returned.
        result: Json,
        /// Why there was nothing to do, when the handler said so.
        skipped: Option<String>,
    },
    /// It runs again later.
    Again {
        /// How long it waits, by the store's clock.
        after: Duration,
        /// Whether this attempt counts.
        spent: Spent,
        /// What went wrong, when something did.
        failure: Option<Failure>,
    },
    /// It waits for a signal; no attempt spent.
    Awaits {
        /// Which.
        signal: SignalName,
        /// How much of its memo the holder has seen, in bytes: if there is more, a signal has come meanwhile and the task is
        /// ready at once.
        seen: usize,
        /// It is ready after this long in any case.
        at_most: Duration,
    },
    /// It gave up.
    Dead {
        /// Why no retry follows.
        reason: DeadReason,
        /// What went wrong last.
        failure: Failure,
    },
    /// It was cancelled while it ran.
    Cancelled,
    /// It was too late to start it.
    Expired,
    /// The worker gives it back as it was; no attempt spent.
    Released,
    /// Nobody here knows its name; no attempt spent.
    Parked,
}

impl Verdict {
    /// The state that a task has after this verdict.
    pub fn state(&self) -> State {
        match self {
            Self::Succeeded { .. } => State::Succeeded,
            Self::Again { after, .. } if after.is_zero() => State::Ready,
            Self::Again { .. } | Self::Awaits { .. } => State::Scheduled,
            Self::Dead { .. } => State::Dead,
            Self::Cancelled => State::Cancelled,
            Self::Expired => State::Expired,
            Self::Released => State::Ready,
            Self::Parked => State::Parked,
        }
    }

    /// Whether the attempt counts against the task's attempts.
    pub fn spent(&self) -> Spent {
        match self {
            Self::Released | Self::Parked | Self::Awaits { .. } => Spent::No,
            Self::Again { spent, .. } => *spent,
            Self::Succeeded { .. } | Self::Dead { .. } | Self::Cancelled | Self::Expired => Spent::Yes,
        }
    }
}

/// The place of a task among the ready ones of its queue: lower ranks are claimed first.
///
/// Priority and waiting time are one number, so the order needs no clock and one index serves it: a level of priority is
/// worth [`AGING`] of waiting.
///
/// ```
/// use windlass_core::{Priority, Timestamp, state::rank};
/// let now = Timestamp::from_secs(1_000_000);
/// assert!(rank(Priority::HIGH, now) < rank(Priority::LOW, now));
/// assert!(rank(Priority::LOW, Timestamp::from_secs(990_000)) < rank(Priority::HIGH, now), "it has waited long enough");
/// ```
pub fn rank(priority: Priority, ready_at: Timestamp) -> i64 {
    ready_at.as_micros() - i64::from(priority.level()) * AGING.as_micros() as i64
}

/// What the store does with a task whose lease ran out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rescue {
    /// Back to the ready ones; the attempt stays counted.
    Ready,
    /// A dead letter: it has taken down [`CRASHES_MAX`] workers, this one included.
    Poison,
    /// It had been cancelled while the lost worker held it.
    Cancelled,
}

/// Decides what becomes of a task whose lease ran out. `crashes` counts this one.
pub fn rescue(crashes: u32, cancel_requested: bool) -> Rescue {
    if cancel_requested {
        Rescue::Cancelled
    } else if crashes >= CRASHES_MAX {
        Rescue::Poison
    } else {
        Rescue::Ready
    }
}

/// The failure that is recorded when a task becomes poison.
pub fn poison_failure(crashes: u32) -> Failure {
    Failure::new("worker_lost", format_args!("the worker that ran it was lost {crashes} times"))
}

/// The failure that is recorded when nobody declared the name of a parked task in time.
pub fn unknown_failure(name: &str) -> Failure {
    Failure::new("unknown_task", format_args!("no node declared the task `{name}` in time; register it and retry"))
}
