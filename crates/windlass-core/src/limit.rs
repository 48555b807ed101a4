//! Limits: how often and how many at once, for a queue, a task or a key; evaluated inside of the claim of every store.
//!
//! A [`Limit`] is a rule for a [`Subject`]. What it holds for is a [`Gate`]: the subject itself, or, for a rule about each
//! key, one key of it. A claim passes every gate of a task or leaves the task where it is, so that a task that must wait
//! takes no slot. All of it is pure; a store brings the state of a gate and keeps what comes out.
//!
//! Rates are counted by the generic cell rate algorithm (GCRA, ITU-T I.371): a gate remembers one instant, the theoretical
//! arrival time of the next start. In a window of any length `w` at most `burst + w / interval` tasks start, where the
//! interval is the time of the rate divided by its count. With the default burst of 1 that is the rate itself: starts are
//! evenly spread.
//!
//! ```
//! # use windlass_core::{Client, StoreError, limit::{Limit, LimitChange, Rule}};
//! # async fn example(client: &Client) -> Result<(), Box<dyn std::error::Error>> {
//! // Each tenant (the key of a task) has at most two of these running, and ten may start a second.
//! let rule = Rule { rate: Some("10/s burst 5".parse()?), concurrency: Some(2), ..Rule::default() };
//! let limit = Limit { subject: "keys-of-task:render".parse()?, rule };
//! client.backend().limit(&LimitChange::Set(limit)).await?;
//! # Ok(()) }
//! ```
//!
//! An application declares its own with [`App::limit`](crate::App::limit), or at its tasks: `#[task(rate = "100/m")]`.
//!
//! **What voids it.** A worker of a version before limits starts whatever it finds. A concurrency counts what is claimed: a
//! task whose lease ran out while it still runs is not counted any more.

mod admission;
pub(crate) mod declare;
mod rate;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{InvalidName, Key, QueueName, TaskName, Timestamp, format_duration};

pub use admission::{Admission, GateState, Rules};
pub use declare::{DECLARED_MAX, DECLARED_SPACE};
pub use rate::{RATE_COUNT_MAX, RATE_PER_MAX, Rate};

/// The highest weight of a key.
pub const KEY_WEIGHT_MAX: u32 = 100;
/// The most limits that a store keeps.
pub const LIMITS_MAX: usize = 10_000;
/// The longest time that a gate is held shut.
pub const HOLD_MAX: Duration = Duration::from_secs(31 * 86_400);

/// What a limit is about. As text: `queue:mail`, `task:send`, `key:acme`, `keys-of-queue:mail`, `keys-of-task:send`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// All tasks of a queue together.
    Queue(QueueName),
    /// All tasks of a name together.
    Task(TaskName),
    /// All tasks with this key together.
    Key(Key),
    /// The tasks of a queue, each key by itself. Tasks without a key are not limited.
    KeysOfQueue(QueueName),
    /// The tasks of a name, each key by itself. Tasks without a key are not limited.
    KeysOfTask(TaskName),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(queue) => write!(f, "queue:{queue}"),
            Self::Task(task) => write!(f, "task:{task}"),
            Self::Key(key) => write!(f, "key:{key}"),
            Self::KeysOfQueue(queue) => write!(f, "keys-of-queue:{queue}"),
            Self::KeysOfTask(task) => write!(f, "keys-of-task:{task}"),
        }
    }
}

impl TryFrom<&str> for Subject {
    type Error = InvalidLimit;
    fn try_from(text: &str) -> Result<Self, InvalidLimit> {
        text.parse()
    }
}

impl FromStr for Subject {
    type Err = InvalidLimit;
    fn from_str(text: &str) -> Result<Self, InvalidLimit> {
        let (kind, name) = text.split_once(':').ok_or_else(|| InvalidLimit::subject(text))?;
        Ok(match kind {
            "queue" => Self::Queue(name.parse()?),
            "task" => Self::Task(name.parse()?),
            "key" => Self::Key(name.parse()?),
            "keys-of-queue" => Self::KeysOfQueue(name.parse()?),
            "keys-of-task" => Self::KeysOfTask(name.parse()?),
            _ => return Err(InvalidLimit::subject(text)),
        })
    }
}

/// What is counted and held shut: a subject, or one key of it. As text: that of a subject, or `key-of-queue:mail acme`,
/// `key-of-task:send acme`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Gate {
    /// A queue.
    Queue(QueueName),
    /// A task name.
    Task(TaskName),
    /// A key.
    Key(Key),
    /// A key within a queue.
    KeyOfQueue(QueueName, Key),
    /// A key within a task name.
    KeyOfTask(TaskName, Key),
}

impl Gate {
    /// The rule that is evaluated at it.
    pub fn subject(&self) -> Subject {
        match self {
            Self::Queue(queue) => Subject::Queue(queue.clone()),
            Self::Task(task) => Subject::Task(task.clone()),
            Self::Key(key) => Subject::Key(key.clone()),
            Self::KeyOfQueue(queue, _) => Subject::KeysOfQueue(queue.clone()),
            Self::KeyOfTask(task, _) => Subject::KeysOfTask(task.clone()),
        }
    }

    /// Whether a task passes through it.
    pub fn is_of(&self, queue: &QueueName, name: &TaskName, key: Option<&Key>) -> bool {
        match self {
            Self::Queue(of) => of == queue,
            Self::Task(of) => of == name,
            Self::Key(of) => key == Some(of),
            Self::KeyOfQueue(in_queue, of) => in_queue == queue && key == Some(of),
            Self::KeyOfTask(with_name, of) => with_name == name && key == Some(of),
        }
    }
}

impl fmt::Display for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(queue) => write!(f, "queue:{queue}"),
            Self::Task(task) => write!(f, "task:{task}"),
            Self::Key(key) => write!(f, "key:{key}"),
            Self::KeyOfQueue(queue, key) => write!(f, "key-of-queue:{queue} {key}"),
            Self::KeyOfTask(task, key) => write!(f, "key-of-task:{task} {key}"),
        }
    }
}

impl FromStr for Gate {
    type Err = InvalidLimit;
    fn from_str(text: &str) -> Result<Self, InvalidLimit> {
        let (kind, name) = text.split_once(':').ok_or_else(|| InvalidLimit::gate(text))?;
        // Names of queues and tasks have no space, so the first one ends them.
        let both = || name.split_once(' ').ok_or_else(|| InvalidLimit::gate(text));
        Ok(match kind {
            "queue" => Self::Queue(name.parse()?),
            "task" => Self::Task(name.parse()?),
            "key" => Self::Key(name.parse()?),
            "key-of-queue" => both().and_then(|(queue, key)| Ok(Self::KeyOfQueue(queue.parse()?, key.parse()?)))?,
            "key-of-task" => both().and_then(|(task, key)| Ok(Self::KeyOfTask(task.parse()?, key.parse()?)))?,
            _ => return Err(InvalidLimit::gate(text)),
        })
    }
}

/// The rule for a subject; at least one part of it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// What it is about.
    pub subject: Subject,
    /// What is allowed.
    pub rule: Rule,
}

/// What a limit allows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// How often tasks start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// How many run at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// How many may wait in a queue; a push beyond it is refused. Only for [`Subject::Queue`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub length: Option<u64>,
    /// How many turns a key gets where others have one. Only for [`Subject::Key`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Who set it. What an operator has set is not changed by the declaration of an application.
    #[serde(default, skip_serializing_if = "SetBy::is_operator")]
    pub set_by: SetBy,
}

/// Who set a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetBy {
    /// An operator, at run time.
    #[default]
    Operator,
    /// An application, when it started.
    Application,
}

impl SetBy {
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks like this")]
    fn is_operator(&self) -> bool {
        *self == Self::Operator
    }
}

impl Rule {
    /// Whether no part of it is given.
    pub fn is_empty(&self) -> bool {
        let Self { rate, concurrency, length, weight, set_by: _ } = self;
        rate.is_none() && concurrency.is_none() && length.is_none() && weight.is_none()
    }
}

impl Limit {
    /// Checks a limit; the client and every store do.
    ///
    /// # Errors
    /// [`InvalidLimit`], with what is wrong.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let Rule { rate, length, weight, .. } = &self.rule;
        if self.rule.is_empty() {
            return Err(InvalidLimit(format!("the limit of `{}` limits nothing", self.subject)));
        }
        if let Some(rate) = rate {
            rate.check()?;
        }
        if length.is_some() && !matches!(self.subject, Subject::Queue(_)) {
            return Err(InvalidLimit("a length is for a queue".to_owned()));
        }
        if weight.is_some() && !matches!(self.subject, Subject::Key(_)) {
            return Err(InvalidLimit("a weight is for a key".to_owned()));
        }
        if weight.is_some_and(|weight| !(1..=KEY_WEIGHT_MAX).contains(&weight)) {
            return Err(InvalidLimit(format!("a weight is from 1 to {KEY_WEIGHT_MAX}")));
        }
        Ok(())
    }
}

/// A limit that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidLimit(String);

impl InvalidLimit {
    fn subject(text: &str) -> Self {
        let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
        Self(format!(
            "`{shown}` is not the subject of a limit: write queue:NAME, task:NAME, key:KEY, keys-of-queue:NAME or \
             keys-of-task:NAME"
        ))
    }

    fn gate(text: &str) -> Self {
        let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
        Self(format!(
            "`{shown}` cannot be held: write queue:NAME, task:NAME, key:KEY, `key-of-queue:NAME KEY` or \
             `key-of-task:NAME KEY`"
        ))
    }
}

impl From<InvalidName> for InvalidLimit {
    fn from(error: InvalidName) -> Self {
        Self(error.to_string())
    }
}

/// A change of limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitChange {
    /// Sets the rule of a subject. A rule of an application does not replace that of an operator.
    Set(Limit),
    /// Forgets the rule of a subject.
    Remove(Subject),
    /// Forgets the rule of a subject if an application has set it; what an operator has set stays.
    Withdraw(Subject),
    /// Nothing passes this gate for a time: what every worker does when a service answers "retry after".
    Hold {
        /// Which.
        gate: Gate,
        /// For this long from now on; up to [`HOLD_MAX`]. A hold that ends later stays.
        time: Duration,
    },
    /// Ends a hold, and forgets what a rate has counted.
    Reset(Gate),
}

impl LimitChange {
    /// Checks a change; for drivers.
    ///
    /// # Errors
    /// [`StoreError::Rejected`](crate::StoreError::Rejected) with what is wrong.
    pub fn check(&self) -> Result<(), crate::StoreError> {
        match self {
            Self::Set(limit) => limit.check().map_err(|error| crate::StoreError::Rejected(error.to_string())),
            Self::Hold { time, .. } if *time > HOLD_MAX => {
                Err(crate::StoreError::Rejected(format!("a gate is held for at most {}", format_duration(HOLD_MAX))))
            }
            Self::Hold { .. } | Self::Remove(_) | Self::Withdraw(_) | Self::Reset(_) => Ok(()),
        }
    }
}

/// The limits of a store, for people.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LimitsView {
    /// Every rule, by subject.
    pub limits: Vec<Limit>,
    /// The gates that are held, or at which something is counted now; at most [`LIMITS_MAX`].
    pub gates: Vec<GateView>,
}

/// What is counted at a gate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GateView {
    /// Which.
    pub gate: Gate,
    /// Nothing passes before this time.
    pub held_until: Option<Timestamp>,
    /// The next start is due then, by its rate.
    pub next: Option<Timestamp>,
    /// How many of it run; of gates with a concurrency.
    pub running: Option<u64>,
}

/// The stored form of a rule: JSON with the fields of [`Rule`].
impl Rule {
    /// For stores.
    pub fn to_text(&self) -> String {
        // Serialising plain data to a string cannot fail.
        serde_json::to_string(self).unwrap_or_else(|error| unreachable!("a rule is plain data: {error}"))
    }

    /// For stores.
    ///
    /// # Errors
    /// [`InvalidLimit`] when it is not what we wrote.
    pub fn from_text(text: &str) -> Result<Self, InvalidLimit> {
        serde_json::from_str(text).map_err(|error| InvalidLimit(format!("a stored limit is damaged: {error}")))
    }
}

#[cfg(test)]
mod tests;
