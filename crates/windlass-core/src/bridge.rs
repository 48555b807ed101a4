//! Bridges: a store with a foreign transport in front of it, as one [`Backend`].
//!
//! A worker on a bridge claims as from any store. What is claimed comes from the store, and the store gets it from the
//! transport as the worker has room for it:
//!
//! 1. wait for the transport and the store at once: a retry that falls due does not wait for a message, nor the reverse
//! 2. take at most as many messages as there are free slots; the transport keeps the rest (`bridge/taking.rs`)
//! 3. adopt them and claim, in one step of the store ([`crate::adoption`]); what makes no sense becomes a dead letter
//!    (`bridge/adopting.rs`)
//! 4. put back what had no place, hand the claims to the worker
//! 5. accept at the transport what is stored, while the worker is at it (`bridge/letting_go.rs`)
//! 6. answer the producer, while the lease is held, then settle in the store (`bridge/telling.rs`)
//!
//! A crash anywhere redelivers a message that the store knows, or one that it never had; it never loses one. How a task ended
//! is told before it is recorded: who dies in between leaves a task that runs again, never a producer that waits for ever.
//! While the transport cannot be reached nothing is settled, and the worker takes nothing more. What does not end
//! a task (it has begun, it will be retried) is told afterwards and may be lost with the process. What ends without a holder
//! is found in the store and told then (`bridge/unheld.rs`).

mod adopting;
mod ahead;
mod answers;
mod holds;
mod letter;
mod letting_go;
mod pace;
mod taking;
mod telling;
mod transport;
mod unheld;
mod upkeep;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::adoption::{Adopting, Adoption};
use crate::backend::{
    Backend, Claim, Command, Commanded, Demand, Push, Pushed, Renewal, Renewed, ScheduleChange, ScheduleChanged,
    Settled, Settlement, StoreError, Ticked, WAIT_MAX,
};
use crate::limit::{LimitChange, LimitsView};
use crate::note::{NoteAnswer, NoteAsk};
use crate::transfer::{Transfer, Transferred};
use crate::view::{
    Check, Counts, Filter, Health, Info, Listing, Node, NodeInfo, NodePhase, Page, Record, ScheduleRecord,
};
use crate::{Clock, DeliveryId, NodeId, SystemClock, TaskId};

pub use answers::ANSWERS_MAX;
use answers::Answers;
use holds::Holds;
pub use letter::RAW_BYTES_MAX;
use pace::Pace;
pub use transport::{
    Answer, Concern, DELIVERED_AS, Identity, LetGo, Malformed, Message, News, Returned, Tag, Taken, Transport,
    TransportError,
};
use unheld::Unheld;

/// What fails is asked again after this long, at first and later: messages flow again soon after the other end is back.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// What is asked of the transport besides messages may take this long; it must not keep a worker from its work.
const ASIDE_WITHIN: Duration = Duration::from_secs(2);

/// A store behind a foreign transport. A clone is the same bridge.
#[derive(Debug, Clone)]
pub struct Bridge {
    store: Arc<dyn Backend>,
    transport: Arc<dyn Transport>,
    clock: Arc<dyn Clock>,
    answers: Arc<Answers>,
    unheld: Arc<Unheld>,
    /// How many messages are stored beyond the free slots.
    ahead: usize,
    state: Arc<Mutex<Messages>>,
    /// How many batches are being accepted while their claims are at work.
    leaving: watch::Sender<usize>,
}

/// Where messages are on their way.
#[derive(Debug)]
struct Messages {
    /// Stored, and still to be accepted.
    unaccepted: Vec<(DeliveryId, Tag)>,
    /// Still to be put back.
    unreturned: Vec<(Tag, Returned)>,
    /// Let go by the transport for certain, and still remembered by the store.
    let_go: Vec<DeliveryId>,
    /// Probably let go, and when that is believed.
    unconfirmed: VecDeque<(Instant, DeliveryId)>,
    /// How the transport does.
    transport: Pace,
    /// How well the store takes messages.
    store: Pace,
    /// Queues of which the transport keeps its messages.
    holds: Holds,
    /// The last request to the store failed: it is asked before anything is taken for it.
    doubtful: bool,
    recovered_at: Option<Instant>,
    /// The last demand of this node: what it takes from.
    demand: Option<Demand>,
}

impl Bridge {
    /// A bridge from this transport into this store.
    pub fn new(store: Arc<dyn Backend>, transport: Arc<dyn Transport>) -> Self {
        Self {
            store,
            transport,
            clock: Arc::new(SystemClock),
            answers: Arc::default(),
            unheld: Arc::default(),
            ahead: 0,
            leaving: watch::Sender::default(),
            state: Arc::new(Mutex::new(Messages {
                unaccepted: Vec::new(),
                unreturned: Vec::new(),
                let_go: Vec::new(),
                unconfirmed: VecDeque::new(),
                transport: Pace::new(AGAIN.0, AGAIN.1),
                store: Pace::new(AGAIN.0, AGAIN.1),
                holds: Holds::default(),
                doubtful: false,
                recovered_at: None,
                demand: None,
            })),
        }
    }

    /// Stores up to so many messages more than this node has free slots for: they wait in the store, where every node and every
    /// tool sees them, and not at the transport. None by default.
    #[must_use]
    pub fn with_ahead(self, ahead: usize) -> Self {
        Self { ahead, ..self }
    }

    /// Reads the time elsewhere than from the wall clock.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// What the transport said, and what follows from that for the next question.
    fn heard<T>(&self, said: Result<T, TransportError>, asked: &str) -> Option<T> {
        let mut state = self.state.lock();
        match said {
            Ok(answer) => {
                state.transport.worked();
                Some(answer)
            }
            Err(error) => {
                if state.transport.is_well() {
                    warn!(%error, asked, "the transport failed; it is asked again, later and later");
                } else {
                    debug!(%error, asked, "the transport still fails");
                }
                state.transport.failed(Instant::now(), fastrand::f64());
                None
            }
        }
    }

    /// What the transport says within the time for what is not urgent.
    async fn aside<T>(&self, question: impl Future<Output = Result<T, TransportError>>) -> Result<T, TransportError> {
        self.within(ASIDE_WITHIN, question).await
    }

    async fn within<T>(
        &self,
        limit: Duration,
        question: impl Future<Output = Result<T, TransportError>>,
    ) -> Result<T, TransportError> {
        match tokio::time::timeout(limit, question).await {
            Ok(said) => said,
            Err(late) => Err(TransportError::Unreachable(late.into())),
        }
    }
}

#[async_trait]
impl Backend for Bridge {
    async fn push(&self, push: &Push) -> Result<Vec<Pushed>, StoreError> {
        self.store.push(push).await
    }

    async fn claim(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
        demand.check()?;
        if demand.max == 0 {
            return Ok(Vec::new());
        }
        let deadline = Instant::now() + demand.wait.min(WAIT_MAX);
        self.catch_up().await;
        loop {
            if demand.hush.is_cancelled() {
                return Ok(Vec::new());
            }
            let asked_at = Instant::now();
            let demand = &Demand { queues: self.transport.queues(&demand.queues), ..demand.clone() };
            if self.ahead > 0 {
                self.state.lock().demand = Some(demand.clone());
            }
            let wait = deadline.saturating_duration_since(asked_at);
            let (mut claims, taken) = self.wait_for_either(demand, wait).await?;
            if !taken.is_empty() {
                let rest = demand.max.saturating_sub(claims.len());
                let demand = (rest > 0).then(|| Demand { max: rest, ..demand.clone() });
                match self.adopt_taken(demand, taken).await {
                    Ok(more) => claims.extend(more),
                    Err(error) if claims.is_empty() => return Err(error),
                    Err(error) => warn!(%error, "messages were put back; what was claimed goes on"),
                }
            }
            if !claims.is_empty() || demand.hush.is_cancelled() || Instant::now() >= deadline {
                self.started(&claims);
                let concerning = claims.iter().map(|claim| (claim, self.transport.concern(&claim.envelope)));
                self.answers.claimed(concerning, &demand.node, demand.lease, asked_at);
                self.send_answers().await;
                return Ok(claims);
            }
        }
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopting, StoreError> {
        self.store.adopt(adoption).await
    }

    async fn renew(&self, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError> {
        let asked_at = Instant::now();
        let renewed = self.store.renew(renewals, lease).await?;
        for (renewal, renewed) in renewals.iter().zip(&renewed) {
            self.answers.renewed(&renewal.receipt, *renewed, lease, asked_at);
        }
        Ok(renewed)
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError> {
        self.tell_ends(settled).await?;
        let settlements = self.store.settle(settled).await?;
        self.unheld.held(settled, &settlements, self.clock.now());
        self.answers.settled(settled, &settlements);
        self.catch_up().await;
        Ok(settlements)
    }

    async fn find(&self, ids: &[TaskId]) -> Result<Vec<Option<Record>>, StoreError> {
        self.store.find(ids).await
    }

    async fn list(&self, filter: &Filter, page: &Page) -> Result<Listing, StoreError> {
        self.store.list(filter, page).await
    }

    async fn counts(&self) -> Result<Counts, StoreError> {
        self.store.counts().await
    }

    async fn command(&self, command: &Command) -> Result<Commanded, StoreError> {
        self.store.command(command).await
    }

    async fn beat(&self, info: &NodeInfo, ttl: Duration) -> Result<(), StoreError> {
        self.store.beat(info, ttl).await?;
        if info.phase == NodePhase::Stopped {
            self.all_left().await;
        }
        self.transport.beat(info).await;
        Ok(())
    }

    async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.store.nodes().await
    }

    async fn tick(&self, node: &NodeId) -> Result<Ticked, StoreError> {
        let ticked = self.store.tick(node).await?;
        self.catch_up().await;
        // The orders in the answer come once: what fails besides must not lose them.
        let asides = [
            self.tell_unheld(ticked.ended).await,
            self.forget().await,
            self.recover(node).await,
            self.take_ahead(node).await,
        ];
        self.tell_refused().await;
        for aside in asides {
            if let Err(error) = aside {
                warn!(%error, "housekeeping of the bridge failed; the next tick does it");
            }
        }
        Ok(ticked)
    }

    async fn schedules(&self) -> Result<Vec<ScheduleRecord>, StoreError> {
        self.store.schedules().await
    }

    async fn schedule(&self, change: &ScheduleChange) -> Result<ScheduleChanged, StoreError> {
        self.store.schedule(change).await
    }

    async fn limits(&self) -> Result<LimitsView, StoreError> {
        self.store.limits().await
    }

    async fn limit(&self, change: &LimitChange) -> Result<bool, StoreError> {
        self.store.limit(change).await
    }

    async fn note(&self, ask: &NoteAsk) -> Result<NoteAnswer, StoreError> {
        self.store.note(ask).await
    }

    async fn watch(&self, ids: &[TaskId], wait: Duration) -> Result<Vec<Record>, StoreError> {
        self.store.watch(ids, wait).await
    }

    async fn transfer(&self, step: &Transfer) -> Result<Transferred, StoreError> {
        self.store.transfer(step).await
    }

    async fn info(&self) -> Result<Info, StoreError> {
        let mut info = self.store.info().await?;
        let state = self.state.lock();
        let waiting = format!(
            "{} messages to be accepted, {} to be put back, {} answers to be sent",
            state.unaccepted.len(),
            state.unreturned.len(),
            self.answers.waiting()
        );
        let (health, detail) = if state.transport.is_well() {
            (Health::Good, format!("the transport answers; {waiting}"))
        } else {
            (Health::Bad, format!("the transport does not answer and is asked again; {waiting}"))
        };
        info.checks.push(Check { name: "transport", health, detail });
        Ok(info)
    }
}
