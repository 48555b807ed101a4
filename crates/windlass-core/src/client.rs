//! What producers use: enqueue tasks, wait for their results, change them.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::args::InvalidArgs;
use crate::backend::{Backend, Command, Commanded, Push, Pushed, StoreError, Target, TaskAction, WAIT_MAX};
use crate::envelope::{Due, Envelope, InvalidEnvelope, PUSH_MAX, Unique};
use crate::middleware::Middleware;
use crate::retry::Backoff;
use crate::task::Task;
use crate::view::{Filter, Page, Record};
use crate::workflow::{Chain, IntoStep, Workflow, chain};
use crate::{
    Clock, Failure, InvalidName, Json, Key, Priority, QueueName, State, SystemClock, TaskId, Timestamp, UniqueKey,
};

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
        Self { inner: Arc::new(Inner { backend, clock, middleware, deadline }) }
    }

    /// The store behind it, for everything that a client has no words for.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.inner.backend
    }

    /// Enqueues a task. Await the builder; nothing happens before that.
    pub fn enqueue<T: Task>(&self, task: T) -> Enqueue<T> {
        Enqueue { client: self.clone(), chain: chain(task), mistake: None, output: PhantomData }
    }

    /// Enqueues many tasks of one type with the defaults of the task; in batches of [`PUSH_MAX`], each stored whole or
    /// not at all.
    ///
    /// # Errors
    /// [`PushError`]; batches before the one that failed are stored.
    pub async fn enqueue_all<T: Task>(&self, tasks: impl IntoIterator<Item = T>) -> Result<Vec<Handle<T>>, PushError> {
        let now = self.inner.clock.now();
        let envelopes: Vec<Envelope> =
            tasks.into_iter().map(|task| Envelope::of(&task, now)).collect::<Result<_, _>>()?;
        let pushed = self.push(envelopes).await?;
        Ok(pushed.into_iter().map(|(id, pushed)| Handle::new(self, id, pushed)).collect())
    }

    /// Enqueues envelopes as they are: for producers that know tasks by name only. In batches of [`PUSH_MAX`].
    ///
    /// # Errors
    /// [`PushError`]; an envelope over a limit refuses all before anything is stored, a store that fails refuses its
    /// batch and those after it.
    pub async fn push(&self, envelopes: Vec<Envelope>) -> Result<Vec<(TaskId, Pushed)>, PushError> {
        let mut envelopes = envelopes;
        self.prepare(&mut envelopes)?;
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
        self.prepare(&mut push.envelopes)?;
        self.store(&push).await?;
        let tasks = push.envelopes.into_iter().map(|envelope| envelope.id).collect();
        Ok(Started { id, tasks, client: self.clone() })
    }

    /// A task that was enqueued before, by its id.
    pub fn handle<T: Task>(&self, id: TaskId) -> Handle<T> {
        Handle::new(self, id, Pushed::Stored)
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
    fn prepare(&self, envelopes: &mut [Envelope]) -> Result<(), PushError> {
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
            envelope.unique = Some(Unique { key: unique_key(envelope, key)?, window: None });
            Ok(())
        })
    }

    /// Refuses a second task of this kind with the same key for this long, whether or not the first has ended.
    pub fn unique_for(self, key: &str, window: Duration) -> Self {
        self.try_with(|envelope| {
            envelope.unique = Some(Unique { key: unique_key(envelope, key)?, window: Some(window) });
            Ok(())
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

    async fn send(self) -> Result<Handle<T>, PushError> {
        if let Some(mistake) = self.mistake {
            return Err(mistake);
        }
        let (_, push) = Workflow::from(self.chain).into_push(self.client.inner.clock.now())?;
        let mut pushed = self.client.push(push.envelopes).await?;
        let (id, pushed) = pushed.pop().ok_or_else(|| StoreError::Broken("the store answered nothing".to_owned()))?;
        Ok(Handle::new(&self.client, id, pushed))
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
}

impl<T> Handle<T> {
    fn new(client: &Client, id: TaskId, pushed: Pushed) -> Self {
        let (id, fresh) = match pushed {
            Pushed::Stored => (id, Fresh::New),
            Pushed::Exists(other) => (other, Fresh::Existing),
        };
        Self { id, fresh, client: client.clone(), output: PhantomData }
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

/// A workflow that was started.
#[derive(Debug)]
pub struct Started {
    /// The workflow: listings and commands find all of its tasks by it.
    pub id: TaskId,
    /// The tasks that it starts with.
    pub tasks: Vec<TaskId>,
    client: Client,
}

impl Started {
    /// Waits until every task that it started with has ended, up to `limit`, and returns their results in order; that is
    /// the whole of a group that nothing follows.
    ///
    /// # Errors
    /// [`WaitError`]; the first member that gave up decides.
    pub async fn results(&self, limit: Duration) -> Result<Vec<Json>, WaitError> {
        let records = self.client.watch_all(&self.tasks, limit).await?;
        if records.len() < self.tasks.len() {
            return Err(WaitError::Timeout(limit));
        }
        let find = |id: &TaskId| records.iter().find(|record| record.envelope.id == *id);
        self.tasks.iter().filter_map(find).map(result_of).collect()
    }

    /// Waits until the step with this task's name has ended, up to `limit`, and returns its output.
    ///
    /// # Errors
    /// [`WaitError`].
    pub async fn output<T: Task>(&self, limit: Duration) -> Result<T::Output, WaitError> {
        let name = &T::definition().name;
        let filter = Filter { workflow: Some(self.id.clone()), names: vec![name.clone()], ..Filter::default() };
        let give_up_at = Instant::now() + limit;
        let mut wait = TRY_AGAIN;
        // A later step does not exist yet: it appears when the one before has ended.
        loop {
            let listing = self.client.backend().list(&filter, &Page::first(1)).await?;
            let left = give_up_at.saturating_duration_since(Instant::now());
            if let Some(record) = listing.tasks.first() {
                let handle = self.client.handle::<T>(record.envelope.id.clone());
                return handle.output(left).await;
            }
            if left.is_zero() {
                return Err(WaitError::Timeout(limit));
            }
            tokio::time::sleep(wait.min(left)).await;
            wait = (wait * 2).min(TRY_AGAIN_MAX);
        }
    }

    /// Cancels every task of it that has not ended.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn cancel(&self) -> Result<u64, StoreError> {
        let filter = Filter { workflow: Some(self.id.clone()), ..Filter::default() };
        self.client.command_all(&filter, TaskAction::Cancel).await
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

/// Why there is no output.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// It has not ended in time; it goes on.
    #[error("the task has not ended within {}", crate::format_duration(*.0))]
    Timeout(Duration),
    /// It gave up.
    #[error("the task gave up: {0}")]
    Dead(Failure),
    /// It was cancelled, or was not started in time.
    #[error("the task is {0}")]
    Ended(State),
    /// It ended well, but its result was not kept, or it said that there was nothing to do.
    #[error("the task has no result{}", .0.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default())]
    NoResult(Option<String>),
    /// Its result has another shape than the task's output.
    #[error("the result does not fit the task's output: {0}")]
    Shape(crate::InvalidJson),
    /// The store could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn result_of(record: &Record) -> Result<Json, WaitError> {
    match record.state {
        State::Succeeded => match (&record.result, &record.skipped) {
            (Some(result), None) => Ok(result.clone()),
            (_, skipped) => Err(WaitError::NoResult(skipped.clone())),
        },
        State::Dead => {
            let failure = record.failure.clone();
            Err(WaitError::Dead(failure.unwrap_or_else(|| Failure::new("unknown", "no failure is recorded"))))
        }
        state @ (State::Scheduled
        | State::Ready
        | State::Running
        | State::Parked
        | State::Cancelled
        | State::Expired) => Err(WaitError::Ended(state)),
    }
}

fn output_of<O: serde::de::DeserializeOwned>(record: &Record) -> Result<O, WaitError> {
    result_of(record)?.to().map_err(WaitError::Shape)
}
