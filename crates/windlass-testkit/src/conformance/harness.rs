//! What a case works with: an empty store, the clock it reads, and the verbs of the port in the words of the cases.
//!
//! A verb fails the case when the store answers with an error, so that a case reads as what happens and not as error
//! handling. Cases about errors call the store itself.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use windlass_core::backend::{
    Backend, Claim, Command, Commanded, Demand, Push, Pushed, Renewal, Renewed, Settled, Settlement, StoreError,
    Target, TaskAction, Ticked,
};
use windlass_core::flow::{self, NewGroup};
use windlass_core::view::{Filter, Page, QueueCounts, Record, Retention};
use windlass_core::{Envelope, QueueName, State, TaskId, Timestamp, Verdict};

use super::make::{demand, node};
use crate::{PatientStore, TestClock};

/// How long a case waits for what must happen at once. Only a store that is broken makes a case wait so long.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// When every case begins.
pub const START: Timestamp = Timestamp::from_secs(1_800_000_000);

/// What the stores under test keep: the usual times, but a number of finished tasks that a case can exceed.
pub const RETENTION: Retention =
    Retention { finished: Duration::from_secs(3600), finished_max: 200, dead: Duration::from_secs(30 * 86_400) };

/// What a driver opens an empty store with.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Where the store reads the time.
    pub clock: TestClock,
    /// What it keeps: [`RETENTION`].
    pub retention: Retention,
}

/// An empty store, and what lives as long as it.
pub struct Opened {
    store: Arc<dyn Backend>,
    second: Option<Arc<dyn Backend>>,
    kept: Vec<Box<dyn Any + Send + Sync>>,
}

impl Opened {
    /// A store.
    pub fn new(store: impl Backend + 'static) -> Self {
        Self { store: Arc::new(store), second: None, kept: Vec::new() }
    }

    /// A second handle to the same data, as another process would open it. Without one, cases about several processes
    /// use the first twice.
    #[must_use]
    pub fn with_second(mut self, store: impl Backend + 'static) -> Self {
        self.second = Some(Arc::new(store));
        self
    }

    /// Keeps something until the case has ended: a temporary folder, a server.
    #[must_use]
    pub fn keep(mut self, thing: impl Any + Send + Sync) -> Self {
        self.kept.push(Box::new(thing));
        self
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("store", &self.store).field("second", &self.second).finish_non_exhaustive()
    }
}

/// An empty store and its clock.
#[derive(Debug)]
pub struct Harness {
    /// The store under test.
    pub store: Arc<dyn Backend>,
    /// The same data through a handle of its own, where the driver has one.
    pub second: Arc<dyn Backend>,
    /// The clock that both read.
    pub clock: TestClock,
    // The last field: it is dropped after the handles that use it.
    _opened: Opened,
}

impl Harness {
    /// Opens an empty store for one case.
    pub async fn open<F: Future<Output = Opened>>(open: impl FnOnce(Setup) -> F) -> Self {
        let clock = TestClock::at(START);
        let opened = open(Setup { clock: clock.clone(), retention: RETENTION }).await;
        let store = patiently(Arc::clone(&opened.store));
        let second = opened.second.clone().map_or_else(|| Arc::clone(&store), patiently);
        Self { store, second, clock, _opened: opened }
    }

    /// Pushes tasks and answers what became of each.
    pub async fn try_push(&self, envelopes: impl IntoIterator<Item = Envelope>) -> Vec<Pushed> {
        let push = Push { envelopes: envelopes.into_iter().collect(), groups: Vec::new() };
        answer(self.store.push(&push).await)
    }

    /// Pushes tasks that must all be new.
    pub async fn push_all(&self, envelopes: impl IntoIterator<Item = Envelope>) -> Vec<TaskId> {
        let envelopes: Vec<Envelope> = envelopes.into_iter().collect();
        let ids: Vec<TaskId> = envelopes.iter().map(|envelope| envelope.id.clone()).collect();
        let pushed = self.try_push(envelopes).await;
        assert!(pushed.iter().all(|pushed| *pushed == Pushed::Stored), "new tasks are stored: {pushed:?}");
        ids
    }

    /// Pushes a task that must be new.
    pub async fn push(&self, envelope: Envelope) -> TaskId {
        self.push_all([envelope]).await.remove(0)
    }

    /// Pushes members with the group that they report to.
    pub async fn push_group(&self, envelopes: Vec<Envelope>, group: NewGroup) -> Vec<Pushed> {
        answer(self.store.push(&Push { envelopes, groups: vec![group] }).await)
    }

    /// Takes what the demand may have.
    pub async fn claim(&self, demand: Demand) -> Vec<Claim> {
        answer(self.store.claim(&demand).await)
    }

    /// The ids that the demand takes, in the order of the claims.
    pub async fn claim_ids(&self, demand: Demand) -> Vec<TaskId> {
        self.claim(demand).await.into_iter().map(|claim| claim.receipt.id).collect()
    }

    /// Takes the next task of the queue `default`; there must be one.
    pub async fn claim_one(&self) -> Claim {
        let mut claims = self.claim(demand(1)).await;
        assert_eq!(claims.len(), 1, "there is a task to claim");
        claims.remove(0)
    }

    /// Pushes a task and takes it.
    pub async fn push_and_claim(&self, envelope: Envelope) -> Claim {
        let id = self.push(envelope).await;
        let claim = self.claim_one().await;
        assert_eq!(claim.receipt.id, id, "the only ready task is the one that was pushed");
        claim
    }

    /// Ends a claim with this verdict and what follows from it.
    pub async fn settle(&self, claim: &Claim, verdict: Verdict) -> Settlement {
        self.settle_all([(claim, verdict)]).await.remove(0)
    }

    /// Ends claims in one batch.
    pub async fn settle_all<'a>(&self, ends: impl IntoIterator<Item = (&'a Claim, Verdict)>) -> Vec<Settlement> {
        let settled: Vec<Settled> = ends.into_iter().map(|(claim, verdict)| settled(claim, verdict)).collect();
        answer(self.store.settle(&settled).await)
    }

    /// Takes the next task of the queue `default` and ends it; answers its id.
    pub async fn run_one(&self, verdict: Verdict) -> TaskId {
        let claim = self.claim_one().await;
        assert_eq!(self.settle(&claim, verdict).await, Settlement::Applied);
        claim.receipt.id
    }

    /// Pushes a task, takes it and ends it.
    pub async fn push_and_run(&self, envelope: Envelope, verdict: Verdict) -> TaskId {
        let claim = self.push_and_claim(envelope).await;
        assert_eq!(self.settle(&claim, verdict).await, Settlement::Applied);
        claim.receipt.id
    }

    /// Renews one lease.
    pub async fn renew(&self, claim: &Claim, lease: Duration) -> Renewed {
        let renewal = Renewal { receipt: claim.receipt.clone(), progress: None, memo: None };
        answer(self.store.renew(&[renewal], lease).await).remove(0)
    }

    /// What the store knows of a task; it must know it.
    pub async fn record(&self, id: &TaskId) -> Record {
        self.find(id).await.unwrap_or_else(|| panic!("the store knows the task {id}"))
    }

    /// What the store knows of a task.
    pub async fn find(&self, id: &TaskId) -> Option<Record> {
        answer(self.store.find(std::slice::from_ref(id)).await).remove(0)
    }

    /// What the store knows of these tasks.
    pub async fn records(&self, ids: &[TaskId]) -> Vec<Option<Record>> {
        answer(self.store.find(ids).await)
    }

    /// The state of a task that the store knows.
    pub async fn state(&self, id: &TaskId) -> State {
        self.record(id).await.state
    }

    /// The first tasks that match, newest first.
    pub async fn list(&self, filter: &Filter) -> Vec<Record> {
        answer(self.store.list(filter, &Page::first(windlass_core::view::PAGE_MAX)).await).tasks
    }

    /// The counters of a queue; all zero when the store does not know it.
    pub async fn counts(&self, queue: &QueueName) -> QueueCounts {
        answer(self.store.counts().await).queues.get(queue).copied().unwrap_or_default()
    }

    /// The counters of the queue `default`.
    pub async fn default_counts(&self) -> QueueCounts {
        self.counts(&QueueName::default()).await
    }

    /// Does an action to tasks by id.
    pub async fn act(&self, ids: &[TaskId], action: TaskAction) -> Commanded {
        self.command(Command::Tasks { target: Target::Ids(ids.to_vec()), action }).await
    }

    /// Does an action to one task; it must apply.
    pub async fn act_on(&self, id: &TaskId, action: TaskAction) {
        let commanded = self.act(std::slice::from_ref(id), action).await;
        assert_eq!(commanded.changed, 1, "the action applies: {:?}", commanded.unchanged);
    }

    /// Gives a command.
    pub async fn command(&self, command: Command) -> Commanded {
        answer(self.store.command(&command).await)
    }

    /// The housekeeping of the usual node.
    pub async fn tick(&self) -> Ticked {
        answer(self.store.tick(&node()).await)
    }

    /// Lets time pass and does the housekeeping.
    pub async fn tick_after(&self, passed: Duration) -> Ticked {
        self.clock.advance(passed);
        self.tick().await
    }
}

/// When this variable is set, cases ask again while the server below their store is away: for suites that run while servers
/// are restarted and connections are cut (`cargo xtask servers --trouble`).
pub const PATIENT: &str = "WINDLASS_TEST_PATIENT";

/// Opens a store for a case. When [`PATIENT`] is set it asks again while the server is away.
///
/// # Panics
/// When it cannot be opened.
pub async fn opened<T, F: Future<Output = Result<T, StoreError>>>(open: impl Fn() -> F) -> T {
    let began = tokio::time::Instant::now();
    loop {
        match open().await {
            Ok(store) => return store,
            Err(error)
                if error.is_transient() && std::env::var_os(PATIENT).is_some() && began.elapsed() < PATIENCE * 3 =>
            {
                // tidy: allow(sleep): a server that is away tells nobody when it is back
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(error) => panic!("the store cannot be opened: {error}"),
        }
    }
}

fn patiently(store: Arc<dyn Backend>) -> Arc<dyn Backend> {
    if std::env::var_os(PATIENT).is_some() { Arc::new(PatientStore::new(store)) } else { store }
}

/// What a settle says of a claim: the verdict and what follows from it.
pub(crate) fn settled(claim: &Claim, verdict: Verdict) -> Settled {
    let follow = flow::follow(&claim.envelope, &verdict);
    Settled { receipt: claim.receipt.clone(), verdict, follow }
}

/// The answer of a store that must not fail.
#[track_caller]
pub(crate) fn answer<T>(result: Result<T, StoreError>) -> T {
    match result {
        Ok(answer) => answer,
        Err(error) => panic!("the store failed: {error}"),
    }
}

/// Whether the store refused a request because it breaks a limit.
pub(crate) fn is_rejected<T>(result: Result<T, StoreError>) -> bool {
    matches!(result, Err(StoreError::Rejected(_)))
}

/// Starts something that must wait: it has no answer yet, and goes on by itself from here.
///
/// It runs as a task of its own because a future that is not polled may hold something that the others need, such as a
/// turn at the store's connections. No program leaves its futures lying like that, so no case does.
pub(crate) fn begun<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> + Send {
    let mut future: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(future);
    assert!((&mut future).now_or_never().is_none(), "there is nothing to answer yet");
    let task = tokio::spawn(future);
    async move { task.await.unwrap_or_else(|error| panic!("what was begun does not end: {error}")) }
}

/// Waits for what must happen at once.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    let answered = tokio::time::timeout(PATIENCE, future).await;
    answered.unwrap_or_else(|_| panic!("nothing happened within {PATIENCE:?}"))
}
