//! The port: what the engine asks of a task store.
//!
//! A dozen methods that any store can implement with its own means; variety lives in the enums and in the envelope.
//! The contract of each method is written here and tested, case by case, by the conformance suite of the test kit.
//!
//! Rules that hold for every method:
//! - An answer means that the change is as durable as [`Info::durability`] says. An error means that nothing, or
//!   everything, has happened: the caller repeats, and every method is safe to repeat.
//! - Durations are measured by the store's clock. Nobody else's clock decides who owns a task.
//! - Batches are limited; a batch over its limit is [`StoreError::Rejected`], never cut.
//! - A future of [`Backend::claim`] or [`Backend::settle`] that is dropped half-way may have taken effect. The engine
//!   never drops one.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::adoption::{Adopting, Adoption};
use crate::envelope::Envelope;
use crate::error::BoxError;
use crate::flow::{Follow, NewGroup};
use crate::limit::{LimitChange, LimitsView};
use crate::note::{NoteAnswer, NoteAsk};
use crate::schedule::Schedule;
use crate::state::Verdict;
use crate::transfer::{Transfer, Transferred};
use crate::view::{Counts, Cursor, Filter, Info, Listing, Node, NodeInfo, Page, Progress, Record, ScheduleRecord};
use crate::{Json, NodeId, Priority, QueueName, ScheduleId, SignalName, State, TaskId, TaskName, Timestamp};

/// The most tasks in one claim, renewal or settle.
pub const BATCH_MAX: usize = 1_000;
/// The most tasks that one command changes; [`Commanded::next`] says where to go on.
pub const COMMAND_MAX: usize = 1_000;
/// The longest lease.
pub const LEASE_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest time that a claim or a watch waits before it answers with nothing.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// A task store.
#[async_trait]
pub trait Backend: Send + Sync + std::fmt::Debug {
    /// Stores tasks and groups, all or none. Durable when it returns.
    ///
    /// A task whose id or unique key is taken is [`Pushed::Exists`], or [`Pushed::Replaced`] when its unique key says so; one
    /// whose queue is full is [`Pushed::Full`]; the others of the batch are stored. At most
    /// [`PUSH_MAX`](crate::envelope::PUSH_MAX) envelopes, or [`GROUP_MAX`](crate::flow::GROUP_MAX) when a group is
    /// created with them. The answers are in the order of the envelopes.
    async fn push(&self, push: &Push) -> Result<Vec<Pushed>, StoreError>;

    /// Takes up to [`Demand::max`] ready tasks, oldest rank first, and leases them to the node. Waits for the first one
    /// up to [`Demand::wait`]; due tasks count as ready. Never takes a task of a paused queue or name, or one that
    /// has expired, and nothing from a store that is closed. Every gate of a task lets it pass, or it stays where it is
    /// ([`crate::limit`]); the keys of a queue take turns ([`crate::fair`]).
    async fn claim(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError>;

    /// Stores the deliveries of a foreign transport and claims for the node, in one atomic step; see [`crate::adoption`].
    ///
    /// A delivery that is remembered is known and changes nothing. The envelope of any other is pushed, as a push does it, with
    /// one exception: a task with its id that has ended is forgotten for it. What is stored, replaced or refused by
    /// its unique key is remembered with it, for [`DELIVERY_TTL`](crate::adoption::DELIVERY_TTL) or until the transport has let
    /// it go. Then the demand is served as a claim that does not wait; claims that wait elsewhere are woken for what is
    /// left.
    ///
    /// An adoption whose answer was lost is repeated, and finds its deliveries known. What it had claimed stays claimed until
    /// the lease ends, as with a claim whose answer was lost.
    async fn adopt(&self, adoption: &Adoption) -> Result<Adopting, StoreError>;

    /// Renews leases from now on for `lease`, and records progress. A holder that is renewed in time never loses its task.
    async fn renew(&self, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError>;

    /// Records what became of claims: verdict, result, follow-up tasks and group arrival in one atomic step, each claim
    /// by itself. A claim whose fence is not the newest is [`Settlement::Stale`] and changes nothing.
    async fn settle(&self, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError>;

    /// The tasks with these ids, in their order; `None` for those that are not known (any more).
    async fn find(&self, ids: &[TaskId]) -> Result<Vec<Option<Record>>, StoreError>;

    /// A page of tasks that match, newest first.
    async fn list(&self, filter: &Filter, page: &Page) -> Result<Listing, StoreError>;

    /// How many tasks of each state there are, by queue. Cheap however long the history is.
    async fn counts(&self) -> Result<Counts, StoreError>;

    /// Changes tasks that nobody holds, pauses and resumes, and gives orders to nodes.
    async fn command(&self, command: &Command) -> Result<Commanded, StoreError>;

    /// "I am alive": records what the node is and does, for `ttl`. Parked tasks whose name it declares become ready.
    async fn beat(&self, info: &NodeInfo, ttl: Duration) -> Result<(), StoreError>;

    /// Every node that beat in the last day, the living first.
    async fn nodes(&self) -> Result<Vec<Node>, StoreError>;

    /// Housekeeping, safe on every node at once and bounded in each call: makes due tasks ready, returns tasks whose
    /// lease ran out (or ends them as poison), ends what has expired and what was parked for too long, and removes what
    /// retention no longer keeps. Answers what `node` should know at once.
    async fn tick(&self, node: &NodeId) -> Result<Ticked, StoreError>;

    /// Every schedule, by id.
    async fn schedules(&self) -> Result<Vec<ScheduleRecord>, StoreError>;

    /// Creates, edits, pauses, removes or fires a schedule.
    async fn schedule(&self, change: &ScheduleChange) -> Result<ScheduleChanged, StoreError>;

    /// The limits, and what is counted for them now.
    async fn limits(&self) -> Result<LimitsView, StoreError>;

    /// Sets, removes, holds or resets a limit; answers whether anything has changed. Holds for every claim from here on.
    async fn limit(&self, change: &LimitChange) -> Result<bool, StoreError>;

    /// Reads and changes notes; see [`crate::note`].
    async fn note(&self, ask: &NoteAsk) -> Result<NoteAnswer, StoreError>;

    /// Waits until at least one of these tasks has ended, up to `wait`; answers those that have. An id that is not known
    /// counts as not ended.
    async fn watch(&self, ids: &[TaskId], wait: Duration) -> Result<Vec<Record>, StoreError>;

    /// Takes part in moving everything to another store; see [`crate::transfer`].
    async fn transfer(&self, step: &Transfer) -> Result<Transferred, StoreError>;

    /// What this store is and how well it is.
    async fn info(&self) -> Result<Info, StoreError>;
}

/// What a push stores.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Push {
    /// The tasks.
    pub envelopes: Vec<Envelope>,
    /// Groups that some of them are members of.
    pub groups: Vec<NewGroup>,
}

/// One task by itself.
impl From<Envelope> for Push {
    fn from(envelope: Envelope) -> Self {
        Self { envelopes: vec![envelope], groups: Vec::new() }
    }
}

/// What became of a pushed envelope.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pushed {
    /// It is stored.
    Stored,
    /// Its id or its unique key is taken by this task; nothing was stored.
    Exists(TaskId),
    /// Its unique key is taken by this task, which waits: that one has got its arguments.
    Replaced(TaskId),
    /// Its queue holds as many waiting tasks as it may; nothing was stored.
    Full {
        /// That many.
        limit: u64,
    },
}

/// What a worker asks for.
#[derive(Debug, Clone)]
pub struct Demand {
    /// Who asks.
    pub node: NodeId,
    /// From these queues; earlier ones are emptied first.
    pub queues: Vec<QueueName>,
    /// At most this many: the worker's free slots. 1 to [`BATCH_MAX`].
    pub max: usize,
    /// How long a claim is held without a renewal; up to [`LEASE_MAX`].
    pub lease: Duration,
    /// Tasks of these names are left for other nodes.
    pub except: Vec<TaskName>,
    /// How long to wait for the first task; zero asks once. Up to [`WAIT_MAX`].
    pub wait: Duration,
    /// Ends the waiting early.
    pub hush: CancellationToken,
}

/// A task that a worker holds.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The task.
    pub envelope: Arc<Envelope>,
    /// The proof that it is held.
    pub receipt: Receipt,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// When it was pushed.
    pub enqueued_at: Timestamp,
    /// When it could have been started.
    pub ready_at: Timestamp,
    /// What earlier attempts remembered, and the signals sent to it: lines of [`crate::memo`]. Mostly empty.
    pub memo: String,
}

/// The proof of a claim.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Receipt {
    /// The task.
    pub id: TaskId,
    /// Rises with every claim of a task; an old one is worthless.
    pub fence: i64,
    /// Where the store finds it again; means nothing to anybody else.
    pub row: i64,
}

/// A lease to be renewed.
#[derive(Debug, Clone, PartialEq)]
pub struct Renewal {
    /// Which claim.
    pub receipt: Receipt,
    /// What the handler reported since the last renewal.
    pub progress: Option<Progress>,
    /// Lines to be added to the task's memo ([`crate::memo`]); only when the lease is held.
    pub memo: Option<String>,
}

/// What became of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewed {
    /// It is held.
    Held,
    /// It is held, and somebody asked to cancel the task.
    Cancelled,
    /// Another node has the task, or it has ended.
    Lost,
}

/// What became of a claim.
#[derive(Debug, Clone, PartialEq)]
pub struct Settled {
    /// Which claim.
    pub receipt: Receipt,
    /// How it ended.
    pub verdict: Verdict,
    /// What follows: [`crate::flow::follow`] of the task and the verdict.
    pub follow: Follow,
}

/// The store's answer to a settle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settlement {
    /// It is recorded.
    Applied,
    /// The claim was not the newest, or has been settled before: nothing has changed.
    Stale,
}

/// A change that somebody asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Changes tasks.
    Tasks {
        /// Which.
        target: Target,
        /// How.
        action: TaskAction,
    },
    /// No task of this queue is started until it is resumed.
    PauseQueue(QueueName),
    /// The opposite of pausing.
    ResumeQueue(QueueName),
    /// No task of this name is started until it is resumed.
    PauseTask(TaskName),
    /// The opposite of pausing.
    ResumeTask(TaskName),
    /// Tells a node something; it hears it with its next tick.
    Order {
        /// Whom.
        node: NodeId,
        /// What.
        order: Order,
    },
}

/// Which tasks a command changes.
#[derive(Debug, Clone, PartialEq)]
pub enum Target {
    /// These; at most [`COMMAND_MAX`].
    Ids(Vec<TaskId>),
    /// Those that match, up to [`COMMAND_MAX`] of them, in the order of a listing.
    Matching {
        /// Which.
        filter: Filter,
        /// Go on after this one: [`Commanded::next`] of the command before.
        after: Option<Cursor>,
    },
}

/// What a command does to a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskAction {
    /// Ends a task that waits; marks one that runs, so that its holder ends it.
    Cancel,
    /// Makes an ended task ready again with all its attempts, whatever it ended with.
    Retry,
    /// Forgets an ended task.
    Discard,
    /// Puts a task that waits into another queue.
    Move(QueueName),
    /// Gives a task that waits another priority.
    Reprioritise(Priority),
    /// Makes a scheduled task ready at once.
    RunNow,
    /// Adds a signal to the memo of a task that has not ended, and makes it ready when it waits for that signal. A memo
    /// that is full takes none.
    Signal {
        /// Which.
        name: SignalName,
        /// What is sent with it.
        value: Json,
    },
}

impl TaskAction {
    /// Whether the action has a meaning for a task in this state.
    pub fn applies_to(&self, state: State) -> bool {
        match self {
            Self::Cancel | Self::Signal { .. } => !state.is_final(),
            Self::Retry | Self::Discard => state.is_final(),
            Self::Move(_) | Self::Reprioritise(_) => {
                matches!(state, State::Scheduled | State::Ready | State::Parked)
            }
            Self::RunNow => state == State::Scheduled,
        }
    }
}

/// What a command changed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Commanded {
    /// How many tasks, queues, names or nodes were changed. A pause that was in force already changes none.
    pub changed: u64,
    /// The named tasks that were not changed, and their state; `None` for ids that are not known.
    pub unchanged: Vec<(TaskId, Option<State>)>,
    /// More tasks may match; repeat the command from here.
    pub next: Option<Cursor>,
}

/// What a node is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Stop claiming; finish what runs; stay.
    Quiet,
    /// Claim again.
    Resume,
    /// Shut down in three steps, as after a first signal.
    Stop,
    /// Run this many tasks at once.
    Resize(usize),
}

/// What a tick did, and what its node should know.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Ticked {
    /// Tasks whose lease had run out and that are ready again.
    pub rescued: u64,
    /// Tasks that became dead letters or expired without a holder: poison, parked for too long, too late.
    pub ended: u64,
    /// Ended tasks that retention removed.
    pub pruned: u64,
    /// What somebody ordered this node to do since its last tick; each order is answered once.
    pub orders: Vec<Order>,
    /// Tasks that this node holds and that somebody asked to cancel.
    pub cancelled: Vec<TaskId>,
    /// The earliest next slot of all schedules that are not paused.
    pub next_slot: Option<Timestamp>,
}

/// A change of a schedule.
#[derive(Debug, Clone, PartialEq)]
pub enum ScheduleChange {
    /// Creates it, or replaces its definition when that differs; then `next` is its next slot. An equal definition
    /// changes nothing, so that every node can declare its schedules at its start.
    Put {
        /// The definition.
        schedule: Schedule,
        /// The first slot from now on.
        next: Option<Timestamp>,
    },
    /// Stops firing until it is resumed.
    Pause(ScheduleId),
    /// Fires again, from `next` on.
    Resume {
        /// Which.
        id: ScheduleId,
        /// The first slot from now on.
        next: Option<Timestamp>,
    },
    /// Forgets it.
    Remove(ScheduleId),
    /// Pushes the tasks of slots that are due and moves on, in one step. It happens once, however many nodes try.
    Fire {
        /// Which.
        id: ScheduleId,
        /// The slot that the caller saw as next; another one means that somebody was faster.
        expected: Timestamp,
        /// The next slot from here on.
        next: Option<Timestamp>,
        /// One task for each slot that fires.
        push: Vec<Envelope>,
        /// How many slots were left out by policy.
        missed: u64,
    },
}

/// What became of a change of a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleChanged {
    /// It is done.
    Done,
    /// It was so already.
    Unchanged,
    /// There is no such schedule.
    Unknown,
    /// Another node has fired this slot, or the schedule is paused.
    Raced,
}

/// A store that cannot do what it was asked; one variant for each thing that the caller can do about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The store does not answer. Repeat later.
    #[error("the store is unreachable: {0}")]
    Unreachable(#[source] BoxError),
    /// The store is there but others hold it for too long. Repeat soon.
    #[error("the store is busy: {0}")]
    Busy(String),
    /// No space is left. Nothing was stored; repeat when there is space.
    #[error("the store has no space left: {0}")]
    NoSpace(String),
    /// The store does not let us in, or not do what we must: password, rights. Somebody must act.
    #[error("{0}")]
    Denied(String),
    /// The store cannot be used as it is: damaged, read-only, written by a newer version. Somebody must act.
    #[error("{0}")]
    Broken(String),
    /// The request breaks a limit. Repeating it is useless.
    #[error("the store refused the request: {0}")]
    Rejected(String),
}

impl StoreError {
    /// A copy, for several callers that wait for one answer. The source, when there is one, becomes text.
    #[must_use]
    pub fn copy(&self) -> Self {
        match self {
            Self::Unreachable(source) => Self::Unreachable(source.to_string().into()),
            Self::Busy(text) => Self::Busy(text.clone()),
            Self::NoSpace(text) => Self::NoSpace(text.clone()),
            Self::Denied(text) => Self::Denied(text.clone()),
            Self::Broken(text) => Self::Broken(text.clone()),
            Self::Rejected(text) => Self::Rejected(text.clone()),
        }
    }

    /// Whether the same request may succeed later without anybody doing anything.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Busy(_) | Self::NoSpace(_) => true,
            Self::Denied(_) | Self::Broken(_) | Self::Rejected(_) => false,
        }
    }
}

/// Checks the size of a batch; for drivers.
///
/// # Errors
/// [`StoreError::Rejected`] when `len` is over `max`.
pub fn check_batch(what: &str, len: usize, max: usize) -> Result<(), StoreError> {
    if len > max {
        return Err(StoreError::Rejected(format!("{len} {what} in one request, the limit is {max}")));
    }
    Ok(())
}

impl Push {
    /// Checks the size of the batch; for drivers.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when it is too large.
    pub fn check(&self) -> Result<(), StoreError> {
        let max = if self.groups.is_empty() { crate::envelope::PUSH_MAX } else { crate::flow::GROUP_MAX };
        check_batch("tasks", self.envelopes.len(), max)
    }
}

impl Demand {
    /// Checks the limits of a demand; for drivers.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when one is broken.
    pub fn check(&self) -> Result<(), StoreError> {
        check_batch("tasks", self.max, BATCH_MAX)?;
        if self.lease.is_zero() || self.lease > LEASE_MAX {
            return Err(StoreError::Rejected("a lease is longer than zero and at most 24 h".to_owned()));
        }
        Ok(())
    }
}
