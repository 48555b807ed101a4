//! What producers use: enqueue tasks, wait for their results, change them.

mod outcome;
mod started;

use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::args::InvalidArgs;
use crate::backend::{Backend, Command, Commanded, Push, Pushed, StoreError, Target, TaskAction, WAIT_MAX};
use crate::envelope::{Due, Envelope, InvalidEnvelope, OnConflict, PUSH_MAX, Unique, UniqueHold};
use crate::event::{Event, Listener};
use crate::middleware::Middleware;
use crate::retry::Backoff;
use crate::task::Task;
use crate::view::{Filter, Record};
use crate::workflow::{Chain, IntoStep, Workflow, chain};
use crate::{
    Clock, InvalidName, Json, Key, Priority, QueueName, SignalName, SystemClock, TaskId, Timestamp, UniqueKey,
};

pub use outcome::WaitError;
use outcome::output_of;
pub use started::Started;

/// How long a push tries before it gives up.
pub const PUSH_DEADLINE: Duration = Duration::from_secs(5);
/// The wait between two tries of a push that failed for now; it doubles up to a second.
const TRY_AGAIN: Duration = Duration::from_millis(20);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(1);

/// A producer's connection to a store; cheap to clone.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    backend: Arc<dyn Backend>,
    clock: Arc<dyn Clock>,
    middleware: Arc<[Arc<dyn Middleware>]>,
    deadline: Duration,
    /// Those of the worker that it belongs to; none of a producer's own.
    listeners: Arc<[Arc<dyn Listener>]>,
}

impl Client {
    /// A client of this store, with the wall clock, without middleware, with [`PUSH_DEADLINE`].
    pub fn new(backend: Arc<dyn Backend>) -> Self {
        Self::with(backend, Arc::new(SystemClock), Arc::from([]), PUSH_DEADLINE)
    }

    /// A client with everything named.
    pub fn with(
        backend: Arc<dyn Backend>,
        clock: Arc<dyn Clock>,
        middleware: Arc<[Arc<dyn Middleware>]>,
        deadline: Duration,
    ) -> Self {
        Self { inner: Arc::new(Inner { backend, clock, middleware, deadline, listeners: Arc::from([]) }) }
    }

    /// The client of a worker: what happens through it is told to the worker's listeners.
    pub(crate) fn of_worker(
        backend: Arc<dyn Backend>,
        clock: Arc<dyn Clock>,
        middleware: Arc<[Arc<dyn Middleware>]>,
        listeners: Arc<[Arc<dyn Listener>]>,
    ) -> Self {
        Self { inner: Arc::new(Inner { backend, clock, middleware, deadline: PUSH_DEADLINE, listeners }) }
    }

    pub(crate) fn tell(&self, event: &Event) {
        for listener in self.inner.listeners.iter() {
            listener.on_event(event);
        }
    }

    /// The store behind it, for everything that a client has no words for.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.inner.backend
    }

    /// The time by the client's clock.
    pub fn now(&self) -> Timestamp {
        self.inner.clock.now()
    }

    /// Sends a signal to a task that has not ended; see [`Call::wait_for`](crate::call::Call::wait_for). Answers whether it
    /// was taken: a task that has ended, that is not known, or whose memo is full takes none.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn signal(&self, id: &TaskId, name: SignalName, value: Json) -> Result<bool, StoreError> {
        let (target, action) = (Target::Ids(vec![id.clone()]), TaskAction::Signal { name, value });
        Ok(self.inner.backend.command(&Command::Tasks { target, action }).await?.changed == 1)
    }

    /// Enqueues a task. Await the builder; nothing happens before that.
    pub fn enqueue<T: Task>(&self, task: T) -> Enqueue<T> {
        Enqueue { client: self.clone(), chain: chain(task), mistake: None, output: PhantomData }
    }

    /// Enqueues many tasks of one type with the defaults of the task; in batches of [`PUSH_MAX`], each stored whole or
    /// not at all.
    ///
    /// # Errors
    /// [`PushError`]; batches before the one that failed are stored, and of a full queue the tasks that fitted.
    pub async fn enqueue_all<T: Task>(&self, tasks: impl IntoIterator<Item = T>) -> Result<Vec<Handle<T>>, PushError> {
        let now = self.inner.clock.now();
        let envelopes: Vec<Envelope> =
            tasks.into_iter().map(|task| Envelope::of(&task, now)).collect::<Result<_, _>>()?;
        let queues: Vec<QueueName> = envelopes.iter().map(|envelope| envelope.queue.clone()).collect();
        let pushed = self.push(envelopes).await?;
        queues.into_iter().zip(pushed).map(|(queue, (id, pushed))| Handle::of(self, queue, id, pushed)).collect()
    }

    /// Enqueues envelopes as they are: for producers that know tasks by name only. In batches of [`PUSH_MAX`].
    ///
    /// # Errors
    /// [`PushError`]; an envelope over a limit refuses all before anything is stored, a store that fails refuses its
    /// batch and those after it.
    pub async fn push(&self, envelopes: Vec<Envelope>) -> Result<Vec<(TaskId, Pushed)>, PushError> {
        let mut envelopes = envelopes;
        self.check(&mut envelopes)?;
        let mut answers = Vec::with_capacity(envelopes.len());
        while !envelopes.is_empty() {
            let rest = envelopes.split_off(envelopes.len().min(PUSH_MAX));
            let push = Push { envelopes, groups: Vec::new() };
            let pushed = self.store(&push).await?;
            answers.extend(push.envelopes.into_iter().map(|envelope| envelope.id).zip(pushed));
            envelopes = rest;
        }
        Ok(answers)
    }

    /// Starts a workflow: a chain, or a group and what follows it. Stored whole or not at all.
    ///
    /// # Errors
    /// [`PushError`].
    pub async fn start(&self, workflow: impl Into<Workflow>) -> Result<Started, PushError> {
        let (id, mut push) = workflow.into().into_push(self.inner.clock.now())?;
        self.check(&mut push.envelopes)?;
        let pushed = self.store(&push).await?;
        for (envelope, pushed) in push.envelopes.iter().zip(pushed) {
            if let Pushed::Full { limit } = pushed {
                return Err(PushError::Full { queue: envelope.queue.clone(), limit });
            }
        }
        let tasks = push.envelopes.into_iter().map(|envelope| envelope.id).collect();
        Ok(Started::of(self, id, tasks))
    }

    /// A workflow as it would be pushed, after middleware and checked: for `push_in` of the stores and of an outbox, in a
    /// transaction of the application. For a single task see [`Enqueue::prepare`].
    ///
    /// # Errors
    /// [`PushError`], for a workflow over a limit.
    pub fn prepare(&self, workflow: impl Into<Workflow>) -> Result<Push, PushError> {
        let (_, mut push) = workflow.into().into_push(self.inner.clock.now())?;
        self.check(&mut push.envelopes)?;
        Ok(push)
    }

    /// A task that was enqueued before, by its id.
    pub fn handle<T: Task>(&self, id: TaskId) -> Handle<T> {
        Handle { id, fresh: Fresh::New, client: self.clone(), output: PhantomData }
    }

    /// What the store knows of a task; `None` when it knows nothing (any more).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn find(&self, id: &TaskId) -> Result<Option<Record>, StoreError> {
        Ok(self.inner.backend.find(std::slice::from_ref(id)).await?.pop().flatten())
    }

    /// Cancels tasks: those that wait at once, those that run as soon as their workers hear of it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cancel(&self, ids: Vec<TaskId>) -> Result<Commanded, StoreError> {
        let command = Command::Tasks { target: Target::Ids(ids), action: TaskAction::Cancel };
        self.inner.backend.command(&command).await
    }

    /// Step 3 of the main line, and the limits.
    fn check(&self, envelopes: &mut [Envelope]) -> Result<(), PushError> {
        let now = self.inner.clock.now();
        for envelope in envelopes.iter_mut() {
            for middleware in self.inner.middleware.iter() {
                middleware.on_push(envelope);
            }
            envelope.check(now)?;
        }
        Ok(())
    }

    /// Step 4 of the main line: repeats while the store cannot, up to the deadline. A push is safe to repeat, because its
    /// tasks have their ids already; the answer to a repeated push may be that a task exists: then it is the same task.
    async fn store(&self, push: &Push) -> Result<Vec<Pushed>, PushError> {
        let give_up_at = Instant::now() + self.inner.deadline;
        let mut wait = TRY_AGAIN;
        let mut repeated = false;
        loop {
            let answer = tokio::time::timeout_at(give_up_at, self.inner.backend.push(push)).await;
            let error = match answer {
                Ok(Ok(mut pushed)) => {
                    if repeated {
                        forget_own_repetition(push, &mut pushed);
                    }
                    return Ok(pushed);
                }
                Ok(Err(error)) if error.is_transient() && Instant::now() + wait < give_up_at => error,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(PushError::Deadline(self.inner.deadline)),
            };
            tracing::debug!(%error, "push failed for now");
            repeated = true;
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(TRY_AGAIN_MAX);
        }
    }
}

/// A push that was repeated finds the tasks that its first try has stored.
fn forget_own_repetition(push: &Push, pushed: &mut [Pushed]) {
    for (envelope, answer) in push.envelopes.iter().zip(pushed) {
        if matches!(answer, Pushed::Exists(id) if *id == envelope.id) {
            *answer = Pushed::Stored;
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("backend", &self.inner.backend).finish_non_exhaustive()
    }
}

/// A task that is about to be enqueued.
#[must_use = "nothing is enqueued until the builder is awaited"]
pub struct Enqueue<T> {
    client: Client,
    chain: Chain,
    mistake: Option<PushError>,
    output: PhantomData<fn() -> T>,
}

impl<T: Task> Enqueue<T> {
    /// Starts it this long after the store has it. Up to ten years.
    pub fn delay(self, delay: Duration) -> Self {
        self.with(|envelope| envelope.due = Due::After(delay))
    }

    /// Starts it at this time, by the store's clock.
    pub fn at(self, due: Timestamp) -> Self {
        self.with(|envelope| envelope.due = Due::At(due))
    }

    /// How much it matters.
    pub fn priority(self, priority: Priority) -> Self {
        self.with(|envelope| envelope.priority = priority)
    }

    /// Another queue than the task's own.
    pub fn queue(self, queue: QueueName) -> Self {
        self.with(|envelope| envelope.queue = queue)
    }

    /// An id of the producer's own: enqueueing the same id twice enqueues once.
    pub fn id(self, id: TaskId) -> Self {
        self.with(|envelope| envelope.id = id)
    }

    /// Refuses a second task of this kind with the same key while the first has not ended.
    pub fn unique(self, key: &str) -> Self {
        self.try_with(|envelope| {
            envelope.unique = Some(Unique::new(unique_key(envelope, key)?));
            Ok(())
        })
    }

    /// Refuses a second task of this kind with the same key for this long, whether or not the first has ended.
    pub fn unique_for(self, key: &str, window: Duration) -> Self {
        self.try_with(|envelope| {
            envelope.unique = Some(Unique::new(unique_key(envelope, key)?).for_window(window));
            Ok(())
        })
    }

    /// What a second push does while the key is taken; [`OnConflict::Keep`] without it. Comes after [`Enqueue::unique`].
    pub fn on_conflict(self, on_conflict: OnConflict) -> Self {
        self.with_unique("on_conflict", |unique| unique.on_conflict = on_conflict)
    }

    /// Gives the key back when the task is claimed for the first time, so that one may wait while another runs. Comes after
    /// [`Enqueue::unique`].
    pub fn until_started(self) -> Self {
        self.with_unique("until_started", |unique| unique.hold = UniqueHold::Started)
    }

    fn with_unique(self, option: &'static str, change: impl FnOnce(&mut Unique)) -> Self {
        self.try_with(|envelope| match &mut envelope.unique {
            Some(unique) => {
                change(unique);
                Ok(())
            }
            None => Err(PushError::NoUniqueKey(option)),
        })
    }

    /// What it belongs to: a tenant, an order. Listings find it by that.
    pub fn key(self, key: Key) -> Self {
        self.with(|envelope| envelope.key = Some(key))
    }

    /// It is not started any more after this long.
    pub fn expires(self, after: Duration) -> Self {
        self.with(|envelope| envelope.expires = Some(Timestamp::MIN + after))
    }

    /// Data beside the arguments: trace context, tenant. At most 64 headers and 16 KiB.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.with(|envelope| {
            envelope.headers.insert(name.to_owned(), value.to_owned());
        })
    }

    /// Another number of retries than the task's own.
    pub fn retries(self, retries: u32) -> Self {
        self.with(|envelope| envelope.retries = Some(retries))
    }

    /// Another backoff than the task's own.
    pub fn backoff(self, backoff: Backoff) -> Self {
        self.with(|envelope| envelope.backoff = Some(backoff))
    }

    /// Another soft and hard limit than the task's own.
    pub fn limits(self, soft: Option<Duration>, hard: Duration) -> Self {
        self.with(|envelope| (envelope.soft_limit, envelope.hard_limit) = (soft, Some(hard)))
    }

    /// What follows it: a task, or a group of tasks. Each step gets the result of the one before, in the argument that
    /// its task names as `input`.
    pub fn then(mut self, step: impl IntoStep) -> Self {
        self.chain = self.chain.then(step);
        self
    }

    /// What is enqueued when this task, or a step after it, gives up; it gets the failure as its input.
    pub fn otherwise<U: Task>(mut self, task: U) -> Self {
        self.chain = self.chain.otherwise(task);
        self
    }

    fn with(self, change: impl FnOnce(&mut Envelope)) -> Self {
        self.try_with(|envelope| {
            change(envelope);
            Ok(())
        })
    }

    /// The first mistake is kept; it comes out when the builder is awaited.
    fn try_with(mut self, change: impl FnOnce(&mut Envelope) -> Result<(), PushError>) -> Self {
        if let Some(first) = self.chain.first_mut()
            && let Err(mistake) = change(first)
        {
            self.mistake.get_or_insert(mistake);
        }
        self
    }

    /// The task as it would be pushed, after middleware and checked: for `push_in` of the stores and of an outbox, in a
    /// transaction of the application. Nothing is enqueued here, and the store is not asked.
    ///
    /// ```
    /// # extern crate windlass_core as windlass;
    /// # use serde::{Deserialize, Serialize};
    /// # use std::time::Duration;
    /// # use windlass_core::{Client, PushError, Task, backend::Push};
    /// # #[derive(Task, Serialize, Deserialize)] struct SendReceipt { order: u64 }
    /// # fn example(client: &Client) -> Result<Push, PushError> {
    /// let push = client.enqueue(SendReceipt { order: 7 }).delay(Duration::from_secs(60)).prepare()?;
    /// // windlass_postgres::push_in(&transaction, windlass_postgres::SCHEMA, &push).await?;
    /// # Ok(push) }
    /// ```
    ///
    /// # Errors
    /// [`PushError`], for a task over a limit or a mistake in its options.
    pub fn prepare(self) -> Result<Push, PushError> {
        match self.mistake {
            Some(mistake) => Err(mistake),
            None => self.client.prepare(self.chain),
        }
    }

    async fn send(self) -> Result<Handle<T>, PushError> {
        if let Some(mistake) = self.mistake {
            return Err(mistake);
        }
        let (_, push) = Workflow::from(self.chain).into_push(self.client.inner.clock.now())?;
        let nothing = || StoreError::Broken("the store answered nothing".to_owned());
        let queue = push.envelopes.first().ok_or_else(nothing)?.queue.clone();
        let (id, pushed) = self.client.push(push.envelopes).await?.pop().ok_or_else(nothing)?;
        Handle::of(&self.client, queue, id, pushed)
    }
}

fn unique_key(envelope: &Envelope, key: &str) -> Result<UniqueKey, PushError> {
    Ok(UniqueKey::new(format!("{}:{key}", envelope.name))?)
}

impl<T: Task> IntoFuture for Enqueue<T> {
    type Output = Result<Handle<T>, PushError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;
    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.send())
    }
}

impl<T> fmt::Debug for Enqueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enqueue").field("chain", &self.chain).finish_non_exhaustive()
    }
}

/// A task that was not enqueued.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// It breaks a limit.
    #[error(transparent)]
    Invalid(#[from] InvalidEnvelope),
    /// Its key breaks the rule of keys.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// An option of unique keys was given before the key.
    #[error("`{0}` is an option of a unique key: call `unique` or `unique_for` first")]
    NoUniqueKey(&'static str),
    /// Its queue holds as many waiting tasks as it may. Nothing is stored: wait, or shed load.
    #[error("the queue `{queue}` is full: {limit} tasks wait in it")]
    Full {
        /// Which queue.
        queue: QueueName,
        /// How many it may hold.
        limit: u64,
    },
    /// The store could not, until the deadline. Nothing is stored, or, when its answer was lost, everything.
    #[error("the task is not enqueued: {0}")]
    Store(#[from] StoreError),
    /// The store did not answer until the deadline. Enqueue again with the same id, or look for it.
    #[error("the store did not answer within {}", crate::format_duration(*.0))]
    Deadline(Duration),
}

impl From<InvalidArgs> for PushError {
    fn from(error: InvalidArgs) -> Self {
        Self::Invalid(error.into())
    }
}

/// A task that was enqueued.
pub struct Handle<T> {
    /// Its id; of the other task, when the id or the unique key was taken.
    pub id: TaskId,
    /// Whether it is the task that was just enqueued.
    pub fresh: Fresh,
    client: Client,
    output: PhantomData<fn() -> T>,
}

/// Whether an enqueued task is new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fresh {
    /// It is.
    New,
    /// A task with this id or unique key was there already, and nothing was stored.
    Existing,
    /// A task with this unique key waits, and has got the new arguments.
    Replaced,
}

impl<T> Handle<T> {
    /// The handle of what the store answered to a push into `queue`.
    fn of(client: &Client, queue: QueueName, id: TaskId, pushed: Pushed) -> Result<Self, PushError> {
        let (id, fresh) = match pushed {
            Pushed::Stored => (id, Fresh::New),
            Pushed::Exists(other) => (other, Fresh::Existing),
            Pushed::Replaced(other) => (other, Fresh::Replaced),
            Pushed::Full { limit } => return Err(PushError::Full { queue, limit }),
        };
        Ok(Self { id, fresh, client: client.clone(), output: PhantomData })
    }

    /// What the store knows of it now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn record(&self) -> Result<Option<Record>, StoreError> {
        self.client.find(&self.id).await
    }

    /// Cancels it.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cancel(&self) -> Result<Commanded, StoreError> {
        self.client.cancel(vec![self.id.clone()]).await
    }

    /// Waits until it has ended, up to `limit`. The store wakes the waiting where it can.
    ///
    /// # Errors
    /// [`WaitError::Timeout`] after `limit`; the task itself goes on.
    pub async fn ended(&self, limit: Duration) -> Result<Record, WaitError> {
        let record = self.client.watch_all(std::slice::from_ref(&self.id), limit).await?.pop();
        record.ok_or(WaitError::Timeout(limit))
    }
}

impl<T: Task> Handle<T> {
    /// Waits until it has ended, up to `limit`, and returns its output.
    ///
    /// # Errors
    /// [`WaitError::Timeout`] after `limit`; the task itself goes on. [`WaitError::Dead`] with the last error when it
    /// gave up.
    pub async fn output(&self, limit: Duration) -> Result<T::Output, WaitError> {
        output_of(&self.ended(limit).await?)
    }
}

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("id", &self.id).field("fresh", &self.fresh).finish_non_exhaustive()
    }
}

impl Client {
    /// Changes every task that matches, in bounded steps. Answers how many were changed.
    ///
    /// # Errors
    /// [`StoreError`]; steps before the one that failed are done.
    pub async fn command_all(&self, filter: &Filter, action: TaskAction) -> Result<u64, StoreError> {
        let (mut changed, mut after) = (0, None);
        loop {
            let target = Target::Matching { filter: filter.clone(), after };
            let done = self.backend().command(&Command::Tasks { target, action: action.clone() }).await?;
            changed += done.changed;
            after = done.next;
            if after.is_none() {
                return Ok(changed);
            }
        }
    }

    /// Waits for all of these, up to `limit`; answers those that have ended by then, in no order.
    ///
    /// # Errors
    /// [`WaitError::Store`].
    pub async fn watch_all(&self, ids: &[TaskId], limit: Duration) -> Result<Vec<Record>, WaitError> {
        let give_up_at = Instant::now() + limit;
        let mut missing: Vec<TaskId> = ids.to_vec();
        let mut ended = Vec::with_capacity(ids.len());
        loop {
            let left = give_up_at.saturating_duration_since(Instant::now());
            let asked = &missing[..missing.len().min(crate::backend::BATCH_MAX)];
            let records = match self.backend().watch(asked, left.min(WAIT_MAX)).await {
                Ok(records) => records,
                Err(error) if error.is_transient() && !left.is_zero() => {
                    tracing::debug!(%error, "watch failed for now");
                    tokio::time::sleep(TRY_AGAIN.min(left)).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            missing.retain(|id| !records.iter().any(|record| record.envelope.id == *id));
            ended.extend(records);
            if missing.is_empty() || left.is_zero() {
                return Ok(ended);
            }
        }
    }
}
