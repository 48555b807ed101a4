//! Bridges: a store with a foreign transport in front of it, as one [`Backend`].
//!
//! A worker on a bridge claims as from any store. What is claimed comes from the store, and the store gets it from the
//! transport as the worker has room for it:
//!
//! 1. wait for the transport and the store at once: a retry that falls due does not wait for a message, nor the reverse
//! 2. take at most as many messages as there are free slots; the transport keeps the rest
//! 3. adopt them and claim, in one step of the store ([`crate::adoption`]); what makes no sense becomes a dead letter
//! 4. accept at the transport what is stored, put back what had no place   5. hand the claims to the worker
//! 6. settle in the store, then answer the producer
//!
//! A crash anywhere redelivers a message that the store knows, or one that it never had; it never loses one. An answer is
//! sent after the store has recorded it, and again while the transport cannot be reached; one that waits is lost with its
//! process, the result in the store is not. What ends without a holder is not answered.

mod answers;
mod holds;
mod letter;
mod pace;
mod transport;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::adoption::{Adopted, Adopting, Adoption, Delivery};
use crate::backend::{
    BATCH_MAX, Backend, Claim, Command, Commanded, Demand, Push, Pushed, Renewal, Renewed, ScheduleChange,
    ScheduleChanged, Settled, Settlement, StoreError, Ticked, WAIT_MAX,
};
use crate::limit::{LimitChange, LimitsView};
use crate::note::{NoteAnswer, NoteAsk};
use crate::transfer::{Transfer, Transferred};
use crate::view::{Check, Counts, Filter, Health, Info, Listing, Node, NodeInfo, Page, Record, ScheduleRecord};
use crate::{Clock, DeliveryId, NodeId, QueueName, SystemClock, TaskId};

pub use answers::ANSWERS_MAX;
use answers::Answers;
use holds::Holds;
pub use letter::RAW_BYTES_MAX;
use pace::Pace;
pub use transport::{Answer, DELIVERED_AS, LetGo, Malformed, Message, News, Tag, Taken, Transport, TransportError};

/// How often an adoption whose answer was lost is repeated before its messages are put back.
const ADOPT_TRIES: u32 = 3;
/// Between two of these.
const ADOPT_AGAIN: Duration = Duration::from_millis(50);
/// What fails is asked again after this long, at first and later.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// What is asked of the transport besides messages may take this long; it must not keep a worker from its work.
const ASIDE_WITHIN: Duration = Duration::from_secs(2);
/// How often a node looks for messages of the dead.
const RECOVER_EVERY: Duration = Duration::from_secs(15);

/// A store behind a foreign transport.
#[derive(Debug)]
pub struct Bridge {
    store: Arc<dyn Backend>,
    transport: Arc<dyn Transport>,
    clock: Arc<dyn Clock>,
    answers: Answers,
    state: Mutex<Messages>,
}

/// Where messages are on their way.
#[derive(Debug)]
struct Messages {
    /// Stored, and still to be accepted.
    unaccepted: Vec<(DeliveryId, Tag)>,
    /// Still to be put back.
    unreturned: Vec<Tag>,
    /// Let go by the transport for certain, and still remembered by the store.
    let_go: Vec<DeliveryId>,
    /// How the transport does.
    transport: Pace,
    /// How well the store takes messages.
    store: Pace,
    /// Queues of which the transport keeps its messages.
    holds: Holds,
    /// The last request to the store failed: it is asked before anything is taken for it.
    doubtful: bool,
    recovered_at: Option<Instant>,
}

impl Bridge {
    /// A bridge from this transport into this store.
    pub fn new(store: Arc<dyn Backend>, transport: Arc<dyn Transport>) -> Self {
        Self {
            store,
            transport,
            clock: Arc::new(SystemClock),
            answers: Answers::default(),
            state: Mutex::new(Messages {
                unaccepted: Vec::new(),
                unreturned: Vec::new(),
                let_go: Vec::new(),
                transport: Pace::new(AGAIN.0, AGAIN.1),
                store: Pace::new(AGAIN.0, AGAIN.1),
                holds: Holds::default(),
                doubtful: false,
                recovered_at: None,
            }),
        }
    }

    /// Reads the time elsewhere than from the wall clock.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Claims and messages, whichever comes first; both when they come together.
    async fn wait_for_either(&self, demand: &Demand, wait: Duration) -> Result<(Vec<Claim>, Vec<Taken>), StoreError> {
        let at_once = Demand { wait: Duration::ZERO, ..demand.clone() };
        if self.state.lock().doubtful {
            let claims = self.ask_store(&at_once).await?;
            if !claims.is_empty() {
                return Ok((claims, Vec::new()));
            }
        }
        // While messages come in a stream nobody need ask the store: their adoption claims what it has as well.
        let (open, _) = self.open_queues(&demand.queues);
        if !open.is_empty() {
            let taken = self.ask_transport(&Demand { queues: open, ..at_once }).await;
            if !taken.is_empty() {
                return Ok((Vec::new(), taken));
            }
        }
        let hush = demand.hush.child_token();
        let waiting = Demand { wait, hush: hush.clone(), ..demand.clone() };
        let (claims, taken) = (self.ask_store(&waiting), self.take_when_open(&waiting));
        tokio::pin!(claims, taken);
        // Neither is dropped half-way: the slower one is hushed, and answers soon.
        let (claims, taken) = tokio::select! {
            biased;
            taken = &mut taken => {
                if !taken.is_empty() {
                    hush.cancel();
                }
                (claims.await, taken)
            }
            claims = &mut claims => {
                hush.cancel();
                (claims, taken.await)
            }
        };
        match claims {
            Ok(claims) => Ok((claims, taken)),
            Err(error) => {
                self.put_back(taken.into_iter().map(|taken| taken.tag).collect()).await;
                Err(error)
            }
        }
    }

    async fn ask_store(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
        let claims = self.store.claim(demand).await;
        self.state.lock().doubtful = claims.is_err();
        claims
    }

    /// Takes messages, and goes on asking while the transport cannot be reached or the store takes none.
    async fn take_when_open(&self, demand: &Demand) -> Vec<Taken> {
        let deadline = Instant::now() + demand.wait;
        loop {
            let (open, opens_at) = self.open_queues(&demand.queues);
            let until = opens_at.unwrap_or(deadline).min(deadline);
            let taken = if open.is_empty() {
                tokio::select! {
                    () = demand.hush.cancelled() => {}
                    () = tokio::time::sleep_until(until) => {}
                }
                Vec::new()
            } else {
                let wait = until.saturating_duration_since(Instant::now());
                self.ask_transport(&Demand { queues: open, wait, ..demand.clone() }).await
            };
            if !taken.is_empty() || demand.hush.is_cancelled() || Instant::now() >= deadline {
                return taken;
            }
        }
    }

    async fn ask_transport(&self, demand: &Demand) -> Vec<Taken> {
        let taken = self.transport.take(demand).await;
        self.heard(taken, "take").unwrap_or_default()
    }

    /// The queues from which messages are taken now, and when the first of the others opens.
    fn open_queues(&self, queues: &[QueueName]) -> (Vec<QueueName>, Option<Instant>) {
        let (state, now) = (self.state.lock(), Instant::now());
        match state.transport.shut_until(now).max(state.store.shut_until(now)) {
            Some(until) => (Vec::new(), Some(until)),
            None => state.holds.open_of(queues, now),
        }
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

    /// Stores messages, accepts or returns them, and claims with what is left of the demand.
    async fn adopt_taken(&self, demand: Option<Demand>, taken: Vec<Taken>) -> Result<Vec<Claim>, StoreError> {
        let now = self.clock.now();
        let deliveries: Vec<Delivery> = taken.iter().map(|taken| letter::delivery(taken, now)).collect();
        let mut adoption = Adoption { accepted: self.let_go(), deliveries, demand };
        let adopting = match self.adopt_again(&mut adoption).await {
            Ok(adopting) => adopting,
            Err(error) => {
                self.put_back(taken.into_iter().map(|taken| taken.tag).collect()).await;
                let mut state = self.state.lock();
                state.store.failed(Instant::now(), fastrand::f64());
                state.let_go.extend(adoption.accepted);
                return Err(error);
            }
        };
        self.state.lock().store.worked();
        let Adopting { mut adopted, claims } = adopting;
        let mut deliveries = adoption.deliveries;
        let room = adoption.demand.as_ref().is_some_and(|demand| claims.len() < demand.max);
        self.note_what_waits(&deliveries, &adopted, &claims, room);
        self.adopt_under_other_ids(&mut deliveries, &mut adopted).await;
        let (mut done, mut without_place) = (Vec::new(), Vec::new());
        for ((taken, delivery), answer) in taken.into_iter().zip(&deliveries).zip(&adopted) {
            if answer.is_done(&delivery.envelope.id) {
                done.push((taken.id, taken.tag));
            } else {
                without_place.push(taken.tag);
            }
        }
        self.accept(done).await;
        self.put_back(without_place).await;
        Ok(claims)
    }

    /// Adopts, and repeats it when the answer was lost: then what is stored is known.
    async fn adopt_again(&self, adoption: &mut Adoption) -> Result<Adopting, StoreError> {
        let accepted: HashSet<&DeliveryId> = adoption.accepted.iter().collect();
        if adoption.deliveries.iter().any(|delivery| accepted.contains(&delivery.id)) {
            // What is forgotten and stored in one step could not be repeated.
            let first = Adoption { accepted: adoption.accepted.clone(), ..Adoption::default() };
            self.store.adopt(&first).await?;
            adoption.accepted.clear();
        }
        let mut tries = 0;
        loop {
            tries += 1;
            match self.store.adopt(adoption).await {
                Ok(adopting) => return Ok(adopting),
                Err(error) if error.is_transient() && tries < ADOPT_TRIES => {
                    debug!(%error, tries, "an adoption failed; it is repeated");
                    tokio::time::sleep(ADOPT_AGAIN * tries).await;
                }
                Err(error) => {
                    self.state.lock().doubtful = true;
                    return Err(error);
                }
            }
        }
    }

    /// A producer has sent the id of a task again that has not ended: a second run, under an id of its own.
    async fn adopt_under_other_ids(&self, deliveries: &mut [Delivery], adopted: &mut [Adopted]) {
        let is_taken = |place: &usize| adopted[*place] == Adopted::Exists(deliveries[*place].envelope.id.clone());
        let places: Vec<usize> = (0..deliveries.len()).filter(is_taken).collect();
        if places.is_empty() {
            return;
        }
        let renamed = places.iter().map(|place| {
            let mut delivery = deliveries[*place].clone();
            let id = std::mem::replace(&mut delivery.envelope.id, TaskId::random());
            delivery.envelope.headers.entry(DELIVERED_AS.to_owned()).or_insert_with(|| id.to_string());
            delivery
        });
        let mut again = Adoption { deliveries: renamed.collect(), ..Adoption::default() };
        match self.adopt_again(&mut again).await {
            Ok(adopting) => {
                for ((place, delivery), answer) in places.into_iter().zip(again.deliveries).zip(adopting.adopted) {
                    (deliveries[place], adopted[place]) = (delivery, answer);
                }
            }
            // They are put back, as those of a full queue.
            Err(error) => warn!(%error, "second runs were not stored; their messages are put back"),
        }
    }

    /// Of queues that had no place for all, or from which nothing may start although there is room, the transport keeps the
    /// next messages for a while.
    fn note_what_waits(&self, deliveries: &[Delivery], adopted: &[Adopted], claims: &[Claim], room: bool) {
        let started: HashSet<&TaskId> = claims.iter().map(|claim| &claim.receipt.id).collect();
        let time = self.clock.now();
        let mut waits: HashMap<&QueueName, Option<HashSet<TaskId>>> = HashMap::new();
        for (Delivery { envelope, flaw, .. }, answer) in deliveries.iter().zip(adopted) {
            let of_queue = waits.entry(&envelope.queue).or_default();
            let may_start = flaw.is_none() && envelope.due.instant(time).is_none();
            match answer {
                Adopted::Full { .. } => drop(of_queue.get_or_insert_default()),
                Adopted::Stored if room && may_start && !started.contains(&envelope.id) => {
                    of_queue.get_or_insert_default().insert(envelope.id.clone());
                }
                Adopted::Stored | Adopted::Known | Adopted::Exists(_) | Adopted::Replaced(_) => {}
            }
        }
        let (mut state, now) = (self.state.lock(), Instant::now());
        for (queue, waits) in waits {
            match waits {
                Some(waits) => state.holds.wait(queue, waits, now, fastrand::f64()),
                None => state.holds.open(queue),
            }
        }
    }

    /// What was claimed from the store may open queues again.
    fn started(&self, claims: &[Claim]) {
        let mut state = self.state.lock();
        for claim in claims {
            state.holds.started(&claim.envelope.queue, &claim.receipt.id);
        }
    }

    /// Lets messages go, or does so later.
    async fn accept(&self, stored: Vec<(DeliveryId, Tag)>) {
        let mut stored = stored;
        stored.extend(std::mem::take(&mut self.state.lock().unaccepted));
        if stored.is_empty() {
            return;
        }
        let tags: Vec<Tag> = stored.iter().map(|(_, tag)| tag.clone()).collect();
        let said = self.aside(self.transport.accept(&tags)).await;
        match self.heard(said, "accept") {
            Some(let_go) => {
                let certain = stored.into_iter().zip(let_go).filter(|(_, let_go)| *let_go == LetGo::Certainly);
                self.state.lock().let_go.extend(certain.map(|((id, _), _)| id));
            }
            None => self.state.lock().unaccepted.extend(stored),
        }
    }

    /// Gives messages back, or does so later.
    async fn put_back(&self, tags: Vec<Tag>) {
        let mut tags = tags;
        tags.extend(std::mem::take(&mut self.state.lock().unreturned));
        if tags.is_empty() {
            return;
        }
        let said = self.aside(self.transport.put_back(&tags)).await;
        if self.heard(said, "put back").is_none() {
            self.state.lock().unreturned.extend(tags);
        }
    }

    /// What the transport says within the time for what is not urgent.
    async fn aside<T>(&self, question: impl Future<Output = Result<T, TransportError>>) -> Result<T, TransportError> {
        match tokio::time::timeout(ASIDE_WITHIN, question).await {
            Ok(said) => said,
            Err(late) => Err(TransportError::Unreachable(late.into())),
        }
    }

    /// Does what waits for the transport, if that can be reached.
    async fn catch_up(&self) {
        if self.state.lock().transport.shut_until(Instant::now()).is_some() {
            return;
        }
        self.accept(Vec::new()).await;
        self.put_back(Vec::new()).await;
        self.send_answers().await;
    }

    async fn send_answers(&self) {
        while let Some(batch) = self.answers.begin() {
            let said = self.aside(self.transport.answer(&batch)).await;
            let sent = self.heard(said, "answer").is_some();
            self.answers.end(batch, sent);
            if !sent {
                return;
            }
        }
    }

    /// Takes out what the store need remember no longer; as many as one adoption names.
    fn let_go(&self) -> Vec<DeliveryId> {
        let let_go = &mut self.state.lock().let_go;
        let amount = let_go.len().min(BATCH_MAX);
        let_go.drain(..amount).collect()
    }

    /// Lets the store forget what the transport has let go, when no message comes that would do so on the way.
    async fn forget(&self) -> Result<(), StoreError> {
        let adoption = Adoption { accepted: self.let_go(), ..Adoption::default() };
        if adoption.accepted.is_empty() {
            return Ok(());
        }
        let forgotten = self.store.adopt(&adoption).await;
        if forgotten.is_err() {
            self.state.lock().let_go.extend(adoption.accepted);
        }
        forgotten.map(drop)
    }

    /// Brings messages back that dead nodes have taken.
    async fn recover(&self, node: &NodeId) -> Result<(), StoreError> {
        let now = Instant::now();
        {
            let mut state = self.state.lock();
            let early = state.recovered_at.is_some_and(|at| now.saturating_duration_since(at) < RECOVER_EVERY);
            if early || state.transport.shut_until(now).is_some() {
                return Ok(());
            }
            state.recovered_at = Some(now);
        }
        let nodes = self.store.nodes().await?;
        let living = nodes.into_iter().filter(|node| node.alive).map(|node| node.info.id);
        let living: Vec<NodeId> = living.chain([node.clone()]).collect();
        let said = self.aside(self.transport.recover(&living)).await;
        if let Some(messages @ 1..) = self.heard(said, "recover") {
            warn!(messages, "messages of dead nodes are delivered again");
        }
        Ok(())
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
            let wait = deadline.saturating_duration_since(Instant::now());
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
                let concerning = claims.iter().filter(|claim| self.transport.concerns(&claim.envelope));
                self.answers.claimed(concerning, &demand.node);
                return Ok(claims);
            }
        }
    }

    async fn adopt(&self, adoption: &Adoption) -> Result<Adopting, StoreError> {
        self.store.adopt(adoption).await
    }

    async fn renew(&self, renewals: &[Renewal], lease: Duration) -> Result<Vec<Renewed>, StoreError> {
        let renewed = self.store.renew(renewals, lease).await?;
        for (renewal, renewed) in renewals.iter().zip(&renewed) {
            if *renewed == Renewed::Lost {
                self.answers.lost(&renewal.receipt);
            }
        }
        Ok(renewed)
    }

    async fn settle(&self, settled: &[Settled]) -> Result<Vec<Settlement>, StoreError> {
        let settlements = match self.store.settle(settled).await {
            Ok(settlements) => settlements,
            Err(error) => {
                self.answers.doubt(settled);
                return Err(error);
            }
        };
        let doubtful = self.answers.settled(settled, &settlements);
        if !doubtful.is_empty() {
            // The answer to the settle before this one was lost: what is recorded now tells whether it counted.
            let ids: Vec<TaskId> = doubtful.iter().map(|answer| answer.envelope.id.clone()).collect();
            match self.store.find(&ids).await {
                Ok(records) => self.answers.resolve(doubtful, &records),
                Err(error) => warn!(%error, tasks = ids.len(), "what became of tasks is not known; nobody is told"),
            }
        }
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
        self.store.beat(info, ttl).await
    }

    async fn nodes(&self) -> Result<Vec<Node>, StoreError> {
        self.store.nodes().await
    }

    async fn tick(&self, node: &NodeId) -> Result<Ticked, StoreError> {
        let ticked = self.store.tick(node).await?;
        self.catch_up().await;
        // The orders in the answer come once: what fails besides must not lose them.
        for aside in [self.forget().await, self.recover(node).await] {
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
