//! What people see of a store: tasks, listings, counts, nodes and schedules. Plain data; every store fills it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::envelope::Envelope;
use crate::error::Failure;
use crate::schedule::Schedule;
use crate::state::DeadReason;
use crate::{Json, Key, NodeId, QueueName, SignalName, State, TaskId, TaskName, Timestamp};

/// The most tasks on one page of a listing.
pub const PAGE_MAX: usize = 1_000;
/// The most attempts that a task remembers; the oldest go first.
pub const HISTORY_MAX: usize = 20;
/// The longest text of a progress report, in bytes.
pub const PROGRESS_TEXT_BYTES_MAX: usize = 512;

/// A task as the store knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The task itself.
    pub envelope: Envelope,
    /// Where it is in its life.
    pub state: State,
    /// Attempts that were claimed and count.
    pub attempt: u32,
    /// Workers that were lost while they ran it, in a row.
    pub crashes: u32,
    /// When it was pushed.
    pub enqueued_at: Timestamp,
    /// When it may start; of a scheduled task.
    pub due_at: Option<Timestamp>,
    /// When the last attempt was claimed.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Who holds it, or held it last.
    pub node: Option<NodeId>,
    /// What its handler reported last.
    pub progress: Option<Progress>,
    /// Whether somebody asked to cancel it while it runs.
    pub cancel_requested: bool,
    /// What it returned; of a succeeded task whose result is kept.
    pub result: Option<Json>,
    /// Why there was nothing to do; of a succeeded task that said so.
    pub skipped: Option<String>,
    /// Why it is a dead letter.
    pub reason: Option<DeadReason>,
    /// What went wrong last.
    pub failure: Option<Failure>,
    /// The attempts that went wrong, oldest first; at most [`HISTORY_MAX`].
    pub history: Vec<AttemptRecord>,
    /// The steps it has done and the signals sent to it: lines of [`crate::memo`].
    pub memo: String,
    /// The signal that a scheduled task waits for.
    pub waits_for: Option<SignalName>,
}

/// An attempt that did not end the task, or ended it badly.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// Its number, from 1.
    pub number: u32,
    /// Who ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// When it was claimed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Timestamp,
    /// What went wrong.
    pub failure: Failure,
}

/// Adds an attempt to a history and drops the oldest over [`HISTORY_MAX`].
pub fn remember_attempt(history: &mut Vec<AttemptRecord>, attempt: AttemptRecord) {
    history.push(attempt);
    if history.len() > HISTORY_MAX {
        history.drain(..history.len() - HISTORY_MAX);
    }
}

/// How far a handler is, by its own report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Steps done.
    pub done: u64,
    /// Steps in all, when known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    /// What it does now; at most [`PROGRESS_TEXT_BYTES_MAX`] bytes.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub text: String,
}

impl Progress {
    /// The same with a text of at most [`PROGRESS_TEXT_BYTES_MAX`] bytes; for drivers.
    #[must_use]
    pub fn shortened(&self) -> Self {
        let longest = self.text.len().min(PROGRESS_TEXT_BYTES_MAX);
        // Zero is always a boundary of characters.
        let end = (0..=longest).rev().find(|at| self.text.is_char_boundary(*at)).unwrap_or(0);
        Self { text: self.text[..end].to_owned(), ..*self }
    }
}

/// Which tasks; every part that is given must match.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Filter {
    /// In one of these states; all when empty.
    pub states: Vec<State>,
    /// In one of these queues; all when empty.
    pub queues: Vec<QueueName>,
    /// With one of these names; all when empty.
    pub names: Vec<TaskName>,
    /// With this key.
    pub key: Option<Key>,
    /// Part of this workflow.
    pub workflow: Option<TaskId>,
    /// Dead for this reason.
    pub reason: Option<DeadReason>,
    /// Pushed at or after this time.
    pub since: Option<Timestamp>,
    /// Pushed before this time.
    pub until: Option<Timestamp>,
    /// Ended at or after this time; what has not ended does not match.
    pub finished_since: Option<Timestamp>,
}

impl Filter {
    /// Every task.
    pub fn all() -> Self {
        Self::default()
    }

    /// Tasks in one of these states.
    pub fn in_states(states: impl IntoIterator<Item = State>) -> Self {
        Self { states: states.into_iter().collect(), ..Self::default() }
    }

    /// Whether a task matches; what stores without an index use, and what the conformance suite compares with.
    pub fn matches(&self, record: &Record) -> bool {
        let envelope = &record.envelope;
        (self.states.is_empty() || self.states.contains(&record.state))
            && (self.queues.is_empty() || self.queues.contains(&envelope.queue))
            && (self.names.is_empty() || self.names.contains(&envelope.name))
            && self.key.as_ref().is_none_or(|key| envelope.key.as_ref() == Some(key))
            && self
                .workflow
                .as_ref()
                .is_none_or(|workflow| envelope.workflow.as_ref() == Some(workflow) || envelope.id == *workflow)
            && self.reason.is_none_or(|reason| record.reason == Some(reason))
            && self.since.is_none_or(|since| record.enqueued_at >= since)
            && self.until.is_none_or(|until| record.enqueued_at < until)
            && self.finished_since.is_none_or(|since| record.finished_at.is_some_and(|at| at >= since))
    }

    /// The states that can match: those of the filter, and of these only the final ones when it says since when tasks have
    /// ended; for drivers.
    pub fn possible_states(&self) -> Vec<State> {
        let can = |state: &State| {
            (self.states.is_empty() || self.states.contains(state))
                && (self.finished_since.is_none() || state.is_final())
        };
        State::ALL.into_iter().filter(can).collect()
    }
}

/// Reads `state:dead,expired queue:mail name:send key:k workflow:ID reason:poison since:2026-01-01T00:00:00Z`, and `until:` and
/// `finished-since:` with a time.
impl FromStr for Filter {
    type Err = InvalidFilter;
    fn from_str(text: &str) -> Result<Self, InvalidFilter> {
        let mut filter = Self::default();
        for word in text.split_whitespace() {
            let (part, value) = word.split_once(':').ok_or_else(|| InvalidFilter::not_a_part(word))?;
            let wrong = |error: &dyn fmt::Display| InvalidFilter(format!("`{}`: {error}", crate::error::cut(word, 80)));
            match part {
                "state" => for_each(value, |text| filter.states.push_parsed(text)).map_err(|e| wrong(&e))?,
                "queue" => for_each(value, |text| filter.queues.push_parsed(text)).map_err(|e| wrong(&e))?,
                "name" => for_each(value, |text| filter.names.push_parsed(text)).map_err(|e| wrong(&e))?,
                "key" => filter.key = Some(value.parse().map_err(|e| wrong(&e))?),
                "workflow" => filter.workflow = Some(value.parse().map_err(|e| wrong(&e))?),
                "reason" => filter.reason = Some(value.parse().map_err(|e| wrong(&e))?),
                "since" => filter.since = Some(value.parse().map_err(|e| wrong(&e))?),
                "until" => filter.until = Some(value.parse().map_err(|e| wrong(&e))?),
                "finished-since" => filter.finished_since = Some(value.parse().map_err(|e| wrong(&e))?),
                _ => return Err(InvalidFilter::not_a_part(word)),
            }
        }
        Ok(filter)
    }
}

trait PushParsed<T: FromStr> {
    fn push_parsed(&mut self, text: &str) -> Result<(), T::Err>;
}

impl<T: FromStr> PushParsed<T> for Vec<T> {
    fn push_parsed(&mut self, text: &str) -> Result<(), T::Err> {
        self.push(text.parse()?);
        Ok(())
    }
}

fn for_each<E>(values: &str, mut add: impl FnMut(&str) -> Result<(), E>) -> Result<(), E> {
    values.split(',').try_for_each(&mut add)
}

/// A filter that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidFilter(String);

impl InvalidFilter {
    fn not_a_part(word: &str) -> Self {
        Self(format!(
            "`{}` is not part of a filter; write state:, queue:, name:, key:, workflow:, reason:, since:, until: or \
             finished-since:",
            crate::error::cut(word, 80)
        ))
    }
}

/// Where a listing goes on: made by a store, meaningless to everybody else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cursor(pub String);

/// Which page of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// After this one; from the start without.
    pub after: Option<Cursor>,
    /// At most this many tasks; up to [`PAGE_MAX`].
    pub limit: usize,
}

impl Page {
    /// The first page.
    pub fn first(limit: usize) -> Self {
        Self { after: None, limit }
    }
}

/// One page of a listing, newest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Listing {
    /// The tasks.
    pub tasks: Vec<Record>,
    /// The page after this one, when there may be one.
    pub next: Option<Cursor>,
}

/// How many tasks there are.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Counts {
    /// By queue; queues that ever had a task, or are paused.
    pub queues: BTreeMap<QueueName, QueueCounts>,
    /// Names that are paused.
    pub paused_tasks: Vec<TaskName>,
    /// Whether the store is closed, because it is being moved or was: nothing is started, no schedule fires.
    pub closed: bool,
}

impl Counts {
    /// The sums over all queues.
    pub fn total(&self) -> QueueCounts {
        let mut total = QueueCounts::default();
        for counts in self.queues.values() {
            for state in State::ALL {
                *total.of_mut(state) += counts.of(state);
            }
            total.oldest_ready_at = [total.oldest_ready_at, counts.oldest_ready_at].into_iter().flatten().min();
        }
        total
    }
}

/// The tasks of one queue by state. Of the states that end a task: all that ever ended so, except for `dead`, which is
/// what is kept as a dead letter now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct QueueCounts {
    /// Waiting for their time.
    pub scheduled: u64,
    /// Waiting for a slot.
    pub ready: u64,
    /// Held by a worker.
    pub running: u64,
    /// Waiting for a node that knows their name.
    pub parked: u64,
    /// Ever ended well.
    pub succeeded: u64,
    /// Dead letters now.
    pub dead: u64,
    /// Ever cancelled.
    pub cancelled: u64,
    /// Ever expired.
    pub expired: u64,
    /// Whether the queue is paused.
    pub paused: bool,
    /// Since when the task waits that is claimed next; that is the oldest one unless priorities differ.
    pub oldest_ready_at: Option<Timestamp>,
}

impl QueueCounts {
    /// The count of a state.
    pub fn of(&self, state: State) -> u64 {
        match state {
            State::Scheduled => self.scheduled,
            State::Ready => self.ready,
            State::Running => self.running,
            State::Parked => self.parked,
            State::Succeeded => self.succeeded,
            State::Dead => self.dead,
            State::Cancelled => self.cancelled,
            State::Expired => self.expired,
        }
    }

    /// The count of a state, to be changed.
    pub fn of_mut(&mut self, state: State) -> &mut u64 {
        match state {
            State::Scheduled => &mut self.scheduled,
            State::Ready => &mut self.ready,
            State::Running => &mut self.running,
            State::Parked => &mut self.parked,
            State::Succeeded => &mut self.succeeded,
            State::Dead => &mut self.dead,
            State::Cancelled => &mut self.cancelled,
            State::Expired => &mut self.expired,
        }
    }

    /// Tasks that have not ended.
    pub fn live(&self) -> u64 {
        self.scheduled + self.ready + self.running + self.parked
    }
}

/// What a node says of itself with every beat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Its identity.
    pub id: NodeId,
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The version of the program.
    pub version: String,
    /// When it started.
    pub started_at: Timestamp,
    /// The queues that it takes tasks from.
    pub queues: Vec<QueueName>,
    /// The tasks that it knows.
    pub tasks: Vec<TaskName>,
    /// How many tasks it runs at once, at most.
    pub slots: usize,
    /// How many it runs now.
    pub busy: usize,
    /// How many it has ended.
    pub finished: u64,
    /// How many of these did not succeed.
    pub failed: u64,
    /// What it does.
    pub phase: NodePhase,
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodePhase {
    /// It claims tasks.
    #[default]
    Running,
    /// It finishes what it has and stays.
    Quiet,
    /// It finishes what it has and leaves.
    Stopping,
    /// It has left.
    Stopped,
}

/// A node as the fleet sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Node {
    /// What it said last.
    pub info: NodeInfo,
    /// When it said so.
    pub beat_at: Timestamp,
    /// Whether that is recent enough.
    pub alive: bool,
}

/// A schedule as the store knows it.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduleRecord {
    /// The definition.
    pub schedule: Schedule,
    /// The next slot; none when it has ended.
    pub next: Option<Timestamp>,
    /// Whether it is paused.
    pub paused: bool,
    /// When it last pushed something.
    pub last_fired_at: Option<Timestamp>,
    /// What it pushed last.
    pub last_task: Option<TaskId>,
    /// How many tasks it has pushed.
    pub fired: u64,
    /// How many slots were left out.
    pub missed: u64,
}

/// What a store is and how well it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Info {
    /// `memory`, `sqlite` and so on.
    pub kind: &'static str,
    /// Where it is; without secrets.
    pub location: String,
    /// What a push that returned survives, in words.
    pub durability: String,
    /// Its size, in bytes, when it knows.
    pub size_bytes: Option<u64>,
    /// What was checked.
    pub checks: Vec<Check>,
}

/// One thing that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What.
    pub name: &'static str,
    /// With which outcome.
    pub health: Health,
    /// What was seen, and what to do about it.
    pub detail: String,
}

/// The outcome of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Good,
    /// It works, but somebody should look.
    Warning,
    /// It does not work.
    Bad,
}

/// How long stores keep what has ended; the newest are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Succeeded, cancelled and expired tasks with their results; 1 h.
    pub finished: Duration,
    /// At most this many of them; 100,000.
    pub finished_max: u64,
    /// Dead letters; 30 days.
    pub dead: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { finished: Duration::from_secs(3600), finished_max: 100_000, dead: Duration::from_secs(30 * 86_400) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_read_from_words() {
        let filter: Filter = "state:dead,expired queue:mail reason:poison".parse().unwrap();
        assert_eq!(filter.states, [State::Dead, State::Expired]);
        assert_eq!(filter.queues, [QueueName::known("mail")]);
        assert_eq!(filter.reason, Some(DeadReason::Poison));
        assert_eq!("".parse(), Ok(Filter::all()));
        let filter: Filter = "finished-since:2027-01-15T08:00:00Z".parse().unwrap();
        assert_eq!(filter.finished_since, Some(Timestamp::from_secs(1_800_000_000)));
    }

    #[test]
    fn only_what_has_ended_can_have_ended_since_a_time() {
        let since = Some(Timestamp::from_secs(5));
        let states = |states: &[State], finished_since| {
            Filter { finished_since, ..Filter::in_states(states.iter().copied()) }.possible_states()
        };
        assert_eq!(states(&[], None), State::ALL);
        assert_eq!(states(&[], since), [State::Succeeded, State::Dead, State::Cancelled, State::Expired]);
        assert_eq!(states(&[State::Dead, State::Ready], since), [State::Dead]);
        assert_eq!(states(&[State::Ready], since), []);
    }

    #[test]
    fn a_filter_that_cannot_be_read_says_which_word() {
        for (text, part) in
            [("dead", "`dead` is not part"), ("state:gone", "unknown state `gone`"), ("colour:red", "`colour:red`")]
        {
            let error = text.parse::<Filter>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_history_keeps_the_newest_attempts() {
        let mut history = Vec::new();
        for number in 1..=HISTORY_MAX as u32 + 1 {
            let failure = Failure::new("x", "y");
            remember_attempt(
                &mut history,
                AttemptRecord { number, node: None, started_at: None, ended_at: Timestamp::MIN, failure },
            );
        }
        assert_eq!((history.len(), history[0].number), (HISTORY_MAX, 2));
    }
}
