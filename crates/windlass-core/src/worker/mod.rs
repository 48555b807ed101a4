//! A worker: claims tasks, runs them, settles them, until it is told to stop.
//!
//! [`Worker::run`] is the one event loop: it waits for a closed set of events, asks the `dispatcher` what follows, and
//! performs the effects. Whatever has an effect at the store is spawned and answers by an event; it is never dropped
//! half-way.
//!
//! [`Worker::start`] gives the loop a thread of its own. Handlers that compute for too long can then delay each other, but
//! never the renewal of a lease.

mod dispatcher;
mod executor;
mod guard;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::backend::Backend;
use crate::call::Surroundings;
use crate::client::Client;
use crate::event::{Event as Told, Listener};
use crate::limit::declare::Declaring;
use crate::registry::Registry;
use crate::schedule::runner::Runner;
use crate::view::{NodeInfo, NodePhase};
use crate::{Clock, NodeId, QueueName, StoreError, SystemClock};
use dispatcher::{Dispatcher, Effect, Event};
use executor::Done;
pub(crate) use executor::limits;
use guard::Process;
pub use guard::{Advice, Guard, LOOK_EVERY, Why};

/// The most handlers that one worker runs at once.
pub const SLOTS_MAX: usize = 10_000;
/// The highest weight of a queue.
pub const WEIGHT_MAX: u32 = 1_000;

/// How a worker works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its name in the fleet; unique.
    pub node: NodeId,
    /// The queues that it takes tasks from, each with its weight: how often it comes first. Only these: a task that waits in
    /// another queue is left to others, whether or not its handler is registered here.
    pub queues: Vec<(QueueName, u32)>,
    /// How many handlers run at once; up to [`SLOTS_MAX`]. With none it only keeps house and fires schedules.
    pub slots: usize,
    /// How long a task may go without a sign of life from here before others take it; 30 s. A third of it passes between
    /// two renewals.
    pub lease: Duration,
    /// How long running handlers may go on after the first signal; 25 s.
    pub grace: Duration,
    /// How long a cancelled handler may take to end; 10 s.
    pub cancel_grace: Duration,
    /// Whether this node fires schedules.
    pub schedules: Schedules,
    /// Where the order of queues is drawn from.
    pub seed: u64,
}

/// Whether a node fires schedules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedules {
    /// It does; any number of nodes may.
    Fire,
    /// It leaves that to others.
    Leave,
}

impl Settings {
    /// The defaults for a node of this name: the queue `default`, eight slots a core, no schedules.
    pub fn new(node: NodeId) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            node,
            queues: vec![(QueueName::default(), 1)],
            slots: (8 * cores).max(16),
            lease: Duration::from_secs(30),
            grace: Duration::from_secs(25),
            cancel_grace: Duration::from_secs(10),
            schedules: Schedules::Leave,
            seed: fastrand::u64(..),
        }
    }
}

/// How far a shutdown has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ShutdownStep {
    /// Claim nothing more, and stay; an order to resume undoes it.
    Quiet,
    /// Claim nothing more and finish what runs; after the grace, ask handlers to end; then give back what still runs.
    Graceful,
    /// Give back what runs now.
    Immediate,
}

/// Tells workers to stop; cheap to clone.
#[derive(Debug, Clone)]
pub struct Shutdown(Arc<watch::Sender<Option<ShutdownStep>>>);

impl Shutdown {
    /// A shutdown that has not begun.
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }

    /// Begins it, or takes it to a later step.
    pub fn begin(&self, step: ShutdownStep) {
        self.0.send_if_modified(|now| {
            // A node that has resumed since may be made quiet again.
            let again = *now == Some(ShutdownStep::Quiet) && step == ShutdownStep::Quiet;
            let further = again || now.is_none_or(|now| now < step);
            if further {
                *now = Some(step);
            }
            further
        });
    }
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

/// A worker that has not been started.
///
/// ```no_run
/// # use std::sync::Arc;
/// # use windlass_core::{App, Backend, NodeId, worker::{Settings, Shutdown, Worker}};
/// # async fn example(backend: Arc<dyn Backend>) -> Result<(), Box<dyn std::error::Error>> {
/// let registry = App::new("mail").build().await?;
/// let shutdown = Shutdown::new();
/// let worker = Worker::new(backend, registry, Settings::new(NodeId::known("mail-1")));
/// worker.run(shutdown).await;
/// # Ok(()) }
/// ```
pub struct Worker {
    backend: Arc<dyn Backend>,
    registry: Arc<Registry>,
    settings: Settings,
    clock: Arc<dyn Clock>,
    listeners: Vec<Arc<dyn Listener>>,
    guard: Option<Arc<dyn Guard>>,
    host: String,
}

impl Worker {
    /// A worker of this store, with the wall clock and without listeners.
    pub fn new(backend: Arc<dyn Backend>, registry: Registry, settings: Settings) -> Self {
        Self {
            backend,
            registry: Arc::new(registry),
            settings,
            clock: Arc::new(SystemClock),
            listeners: Vec::new(),
            guard: None,
            host: String::new(),
        }
    }

    /// Another clock than the wall clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Adds somebody who hears of everything that happens.
    #[must_use]
    pub fn listener(mut self, listener: impl Listener + 'static) -> Self {
        self.listeners.push(Arc::new(listener));
        self
    }

    /// Lets the worker end for the sake of a single handler, because it has its process to itself. See [`Guard`].
    #[must_use]
    pub fn guard(mut self, guard: Arc<dyn Guard>) -> Self {
        self.guard = Some(guard);
        self
    }

    /// The name of the machine, for the list of nodes.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    /// Runs until `shutdown` has been begun and everything is settled or given back. The event loop is on a thread of its
    /// own, handlers run on the runtime that this is called in.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be made.
    pub async fn start(self, shutdown: Shutdown) -> std::io::Result<Ended> {
        let handlers = Handle::current();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (send, ended) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name("windlass-engine".to_owned()).spawn(move || {
            let outcome = runtime.block_on(self.run_on(handlers, shutdown));
            // Nobody waits any more when the caller was dropped.
            let _ = send.send(outcome);
        })?;
        ended.await.map_err(|_| std::io::Error::other("the engine's thread ended early"))
    }

    /// As [`Worker::start`], with the event loop in the runtime that this is called in: for tests and simulations.
    pub async fn run(self, shutdown: Shutdown) -> Ended {
        self.run_on(Handle::current(), shutdown).await
    }

    async fn run_on(self, handlers: Handle, shutdown: Shutdown) -> Ended {
        let listeners: Arc<[Arc<dyn Listener>]> = self.listeners.into();
        let client = Client::of_worker(
            Arc::clone(&self.backend),
            Arc::clone(&self.clock),
            Arc::clone(self.registry.middleware()),
            Arc::clone(&listeners),
        );
        let node = self.settings.node.clone();
        let lease = self.settings.lease;
        let surroundings = Arc::new(Surroundings { node, client, clock: Arc::clone(&self.clock), lease });
        let info = NodeInfo {
            id: self.settings.node.clone(),
            host: self.host,
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: self.clock.now(),
            queues: self.settings.queues.iter().map(|(queue, _)| queue.clone()).collect(),
            tasks: self.registry.names(),
            slots: self.settings.slots,
            busy: 0,
            finished: 0,
            failed: 0,
            phase: NodePhase::Running,
        };
        // Before the first claim: a limit that is not there yet would let tasks pass.
        let declaring = Declaring {
            backend: Arc::clone(&self.backend),
            clock: Arc::clone(&self.clock),
            listeners: Arc::clone(&listeners),
            application: self.registry.name().to_owned(),
            limits: self.registry.limits().to_vec(),
        };
        let mut steps = shutdown.0.subscribe();
        tokio::select! {
            biased;
            () = declaring.run() => {}
            // Every step of it is safe to repeat, and whoever waits for a store that fails must be able to leave.
            _ = steps.wait_for(Option::is_some) => {}
        }
        let (next_slot, slots) = watch::channel(None);
        let stop_firing = CancellationToken::new();
        if self.settings.schedules == Schedules::Fire {
            let runner = Runner {
                backend: Arc::clone(&self.backend),
                clock: Arc::clone(&self.clock),
                listeners: Arc::clone(&listeners),
            };
            tokio::spawn(runner.run(self.registry.schedules().to_vec(), slots, stop_firing.clone()));
        }
        // tidy: allow(unbounded): it holds at most one claim, settle, renewal, tick and beat at once
        let (events, inbox) = mpsc::unbounded_channel();
        let now = tokio::time::Instant::now();
        let process = if self.guard.is_some() { Process::Own } else { Process::Shared };
        let dispatcher = Dispatcher::new(self.settings, process, surroundings, Arc::clone(&self.registry), info, now);
        let engine = Engine {
            backend: self.backend,
            registry: self.registry,
            dispatcher,
            handlers,
            done: Arc::default(),
            events,
            inbox,
            listeners,
            guard: self.guard,
            look_at: now,
            next_slot,
            stop_firing,
        };
        engine.run(shutdown).await
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("backend", &self.backend)
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// How a worker ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Attempts that could neither be settled nor given back: the store did not answer. Their leases run out, then other
    /// nodes run them again.
    pub left_behind: usize,
    /// Why it has left.
    pub why: Why,
}

/// The event loop.
struct Engine {
    backend: Arc<dyn Backend>,
    registry: Arc<Registry>,
    dispatcher: Dispatcher,
    /// Where handlers run.
    handlers: Handle,
    done: Arc<Done>,
    /// Not bounded, because what can be in it is: one claim, one settle, one renewal, one tick, one beat.
    events: mpsc::UnboundedSender<Event>,
    inbox: mpsc::UnboundedReceiver<Event>,
    listeners: Arc<[Arc<dyn Listener>]>,
    guard: Option<Arc<dyn Guard>>,
    /// When the guard is asked again.
    look_at: tokio::time::Instant,
    next_slot: watch::Sender<Option<crate::Timestamp>>,
    stop_firing: CancellationToken,
}

impl Engine {
    async fn run(mut self, shutdown: Shutdown) -> Ended {
        let mut steps = shutdown.0.subscribe();
        // It may have begun before this worker did.
        steps.mark_changed();
        self.tell(&Told::Phase(NodePhase::Running));
        self.tell_of_small_batches();
        let mut event = Event::Woken;
        loop {
            let effects = self.dispatcher.step(event, tokio::time::Instant::now());
            // Batches that collect wait no longer than more tasks can come.
            self.registry.room().look(self.dispatcher.slots(), self.dispatcher.phase());
            for effect in effects {
                if matches!(effect, Effect::Leave) {
                    self.stop_firing.cancel();
                    return Ended { left_behind: self.dispatcher.unsettled(), why: self.dispatcher.why() };
                }
                self.perform(effect);
            }
            event = self.next_event(&mut steps).await;
        }
    }

    /// Step 5 of the main line. Everything that is waited for here may be dropped: it has no effect at the other end.
    async fn next_event(&mut self, steps: &mut watch::Receiver<Option<ShutdownStep>>) -> Event {
        let wake_at = self.dispatcher.wake_at();
        if let Some(guard) = &self.guard
            && self.look_at <= tokio::time::Instant::now()
        {
            self.look_at = tokio::time::Instant::now() + LOOK_EVERY;
            return Event::Looked(guard.look());
        }
        let wake_at = if self.guard.is_some() { wake_at.min(self.look_at) } else { wake_at };
        tokio::select! {
            biased;
            Some(event) = self.inbox.recv() => event,
            finished = self.done.take() => Event::Finished(finished),
            Ok(()) = steps.changed() => match *steps.borrow_and_update() {
                Some(step) => Event::Shutdown(step),
                None => Event::Woken,
            },
            () = tokio::time::sleep_until(wake_at) => Event::Woken,
        }
    }

    fn perform(&self, effect: Effect) {
        match effect {
            Effect::Claim(demand) => {
                self.ask(async move |backend: Arc<dyn Backend>| Event::Claimed(guarded(backend.claim(&demand)).await));
            }
            Effect::Start(calls) => {
                let (registry, done) = (Arc::clone(&self.registry), Arc::clone(&self.done));
                executor::start_batch(calls, registry, done, &self.handlers);
            }
            Effect::Settle(batch) => self.ask(async move |backend: Arc<dyn Backend>| {
                let answer = guarded(backend.settle(&batch.settled)).await;
                Event::Settled { batch, answer }
            }),
            Effect::Renew { renewals, slots } => {
                let lease = self.dispatcher.lease();
                self.ask(async move |backend: Arc<dyn Backend>| {
                    let answer = guarded(backend.renew(&renewals, lease)).await;
                    Event::Renewed { slots, answer }
                });
            }
            Effect::Tick => {
                let node = self.dispatcher.node().clone();
                self.ask(async move |backend: Arc<dyn Backend>| Event::Ticked(guarded(backend.tick(&node)).await));
            }
            Effect::Beat(info, ttl) => {
                self.ask(async move |backend: Arc<dyn Backend>| Event::Beaten(guarded(backend.beat(&info, ttl)).await));
            }
            Effect::Tell(told) => {
                if matches!(told, Told::Phase(NodePhase::Stopping | NodePhase::Quiet)) {
                    self.stop_firing.cancel();
                }
                self.tell(&told);
            }
            Effect::NextSlot(next) => {
                self.next_slot.send_if_modified(|slot| std::mem::replace(slot, next) != next);
            }
            Effect::Leave => unreachable!("the loop ends before"),
        }
    }

    fn tell_of_small_batches(&self) {
        let slots = self.dispatcher.slots();
        // Without slots it runs no task at all, and is not meant to.
        if slots > 0 {
            for (task, takes) in self.registry.larger_batches(slots) {
                self.tell(&Told::SmallBatches { task: task.clone(), takes, slots });
            }
        }
    }

    fn tell(&self, told: &Told) {
        for listener in self.listeners.iter() {
            listener.on_event(told);
        }
    }

    /// Asks the store something; the answer is an event.
    fn ask<F>(&self, question: impl FnOnce(Arc<dyn Backend>) -> F)
    where
        F: Future<Output = Event> + Send + 'static,
    {
        let answer = question(Arc::clone(&self.backend));
        let events = self.events.clone();
        tokio::spawn(async move {
            // Only an engine that has left does not listen.
            let _ = events.send(answer.await);
        });
    }
}

/// A driver that panics is a store that is broken: the engine hears of it like of any other failure.
async fn guarded<T>(request: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    match AssertUnwindSafe(request).catch_unwind().await {
        Ok(answer) => answer,
        Err(panic) => {
            let text = crate::registry::panic_text(&*panic);
            Err(StoreError::Broken(format!("the store's driver panicked: {text}; this is a bug, please report it")))
        }
    }
}
