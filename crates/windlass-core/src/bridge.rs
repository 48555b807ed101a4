//! Bridges: a store with a foreign transport in front of it, as one [`Backend`].
//! Long because a message and a claim go through all of it; what stands by itself is in files of its own.
//!
//! A worker on a bridge claims as from any store. What is claimed comes from the store, and the store gets it from the
//! transport as the worker has room for it:
//!
//! 1. wait for the transport and the store at once: a retry that falls due does not wait for a message, nor the reverse
//! 2. take at most as many messages as there are free slots; the transport keeps the rest
//! 3. adopt them and claim, in one step of the store ([`crate::adoption`]); what makes no sense becomes a dead letter
//! 4. accept at the transport what is stored, put back what had no place   5. hand the claims to the worker
//! 6. answer the producer, while the lease is held, then settle in the store
//!
//! A crash anywhere redelivers a message that the store knows, or one that it never had; it never loses one. How a task ended
//! is told before it is recorded: who dies in between leaves a task that runs again, never a producer that waits for ever.
//! While the transport cannot be reached nothing is settled, and the worker takes nothing more. What does not end
//! a task (it has begun, it will be retried) is told afterwards and may be lost with the process. What ends without a holder
//! is found in the store and told then (`bridge/unheld.rs`).

mod ahead;
mod answers;
mod holds;
mod letter;
mod pace;
mod transport;
mod unheld;
mod upkeep;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::adoption::{Adopted, Adopting, Adoption, Delivery};
use crate::backend::{
    Backend, Claim, Command, Commanded, Demand, Push, Pushed, Renewal, Renewed, ScheduleChange, ScheduleChanged,
    Settled, Settlement, StoreError, Ticked, WAIT_MAX,
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
pub use transport::{
    Answer, Concern, DELIVERED_AS, Identity, LetGo, Malformed, Message, News, Returned, Tag, Taken, Transport,
    TransportError,
};
use unheld::Unheld;

/// How often an adoption whose answer was lost is repeated before its messages are put back.
const ADOPT_TRIES: u32 = 3;
/// Between two of these.
const ADOPT_AGAIN: Duration = Duration::from_millis(50);
/// What fails is asked again after this long, at first and later: messages flow again soon after the other end is back.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));
/// What is asked of the transport besides messages may take this long; it must not keep a worker from its work.
const ASIDE_WITHIN: Duration = Duration::from_secs(2);
/// How tasks end may take this long to be told; then the settle is tried again.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// How long a delivery is remembered that the transport was told to let go and did not confirm, and how many of them.
const UNCONFIRMED: (Duration, usize) = (Duration::from_secs(60), 100_000);

/// A store behind a foreign transport.
#[derive(Debug)]
pub struct Bridge {
    store: Arc<dyn Backend>,
    transport: Arc<dyn Transport>,
    clock: Arc<dyn Clock>,
    answers: Answers,
    unheld: Unheld,
    /// How many messages are stored beyond the free slots.
    ahead: usize,
    state: Mutex<Messages>,
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
            answers: Answers::default(),
            unheld: Unheld::default(),
            ahead: 0,
            state: Mutex::new(Messages {
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
            }),
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
            () = self.transport.queues_changed() => {
                hush.cancel();
                tokio::join!(claims, taken)
            }
        };
        match claims {
            Ok(claims) => Ok((claims, taken)),
            Err(error) => {
                self.put_back(taken.into_iter().map(|taken| (taken.tag, Returned::Unstored)).collect()).await;
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
        for Delivery { envelope, flaw, .. } in &deliveries {
            if let Some(flaw) = flaw {
                warn!(queue = %envelope.queue, task = %envelope.name, %flaw, "a message becomes a dead letter");
            }
        }
        let mut adoption = Adoption { accepted: self.let_go(), deliveries, demand };
        let adopting = match self.adopt_again(&mut adoption).await {
            Ok(adopting) => adopting,
            Err(error) => {
                let why = if error.is_transient() { Returned::Doubtful } else { Returned::Unstored };
                self.put_back(taken.into_iter().map(|taken| (taken.tag, why)).collect()).await;
                let mut state = self.state.lock();
                state.store.failed(Instant::now(), fastrand::f64());
                state.let_go.extend(adoption.accepted);
                return Err(error);
            }
        };
        self.state.lock().store.worked();
        let (adopting, tries) = adopting;
        let Adopting { mut adopted, claims } = adopting;
        let mut deliveries = adoption.deliveries;
        if tries == 1 {
            self.adopt_what_says_the_same(&taken, &deliveries, &mut adopted).await;
        }
        let room = adoption.demand.as_ref().is_some_and(|demand| claims.len() < demand.max);
        self.note_what_waits(&deliveries, &adopted, &claims, room);
        let second_runs = self.adopt_under_other_ids(&mut deliveries, &mut adopted).await;
        let (mut done, mut without_place) = (Vec::new(), Vec::new());
        for ((taken, delivery), answer) in taken.into_iter().zip(deliveries).zip(&adopted) {
            if answer.is_done(&delivery.envelope.id) {
                done.push((taken.id, taken.tag));
                self.answer_flaw(delivery);
            } else {
                let full = matches!(answer, Adopted::Full { .. });
                without_place.push((taken.tag, if full { Returned::Unstored } else { second_runs }));
            }
        }
        // Before they are accepted: then somebody tells it who finds the delivery known.
        self.send_answers().await;
        self.accept(done).await;
        self.put_back(without_place).await;
        Ok(claims)
    }

    /// Adopts, and repeats it when the answer was lost: then what is stored is known.
    /// Answers how often it was asked, too.
    async fn adopt_again(&self, adoption: &mut Adoption) -> Result<(Adopting, u32), StoreError> {
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
                Ok(adopting) => return Ok((adopting, tries)),
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

    /// Of transports without identities: a message that nobody has had, and that is known all the same, is another one that
    /// says what an earlier one said. The earlier one is forgotten for it.
    async fn adopt_what_says_the_same(&self, taken: &[Taken], deliveries: &[Delivery], adopted: &mut [Adopted]) {
        let is_another = |place: &usize| taken[*place].identity == Identity::First && adopted[*place] == Adopted::Known;
        let places: Vec<usize> = (0..deliveries.len()).filter(is_another).collect();
        for place in places {
            // One by one: two of them may say the same.
            let delivery = deliveries[place].clone();
            let accepted = vec![delivery.id.clone()];
            let mut adoption = Adoption { accepted, deliveries: vec![delivery], demand: None };
            match self.adopt_again(&mut adoption).await {
                Ok((adopting, _)) => adopted[place] = adopting.adopted.into_iter().next().unwrap_or(Adopted::Known),
                // Put back, and delivered again as one that somebody has had: then it counts as known.
                Err(error) => warn!(%error, "a message that says what another one said was not stored"),
            }
        }
    }

    /// A producer has sent the id of a task again that has not ended: a second run, under an id of its own.
    /// Answers whether those that are still not stored may be.
    async fn adopt_under_other_ids(&self, deliveries: &mut [Delivery], adopted: &mut [Adopted]) -> Returned {
        let is_taken = |place: &usize| adopted[*place] == Adopted::Exists(deliveries[*place].envelope.id.clone());
        let places: Vec<usize> = (0..deliveries.len()).filter(is_taken).collect();
        if places.is_empty() {
            return Returned::Unstored;
        }
        let renamed = places.iter().map(|place| {
            let mut delivery = deliveries[*place].clone();
            let id = std::mem::replace(&mut delivery.envelope.id, TaskId::random());
            delivery.envelope.headers.entry(DELIVERED_AS.to_owned()).or_insert_with(|| id.to_string());
            delivery
        });
        let mut again = Adoption { deliveries: renamed.collect(), ..Adoption::default() };
        match self.adopt_again(&mut again).await {
            Ok((adopting, _)) => {
                for ((place, delivery), answer) in places.into_iter().zip(again.deliveries).zip(adopting.adopted) {
                    (deliveries[place], adopted[place]) = (delivery, answer);
                }
                Returned::Unstored
            }
            // They are put back, as those of a full queue.
            Err(error) => {
                warn!(%error, "second runs were not stored; their messages are put back");
                Returned::Doubtful
            }
        }
    }

    /// The producer of a message that makes no sense hears that it has failed.
    fn answer_flaw(&self, delivery: Delivery) {
        let Some(verdict) = delivery.verdict() else { return };
        if self.transport.concern(&delivery.envelope) != Concern::Nothing {
            let envelope = Arc::new(delivery.envelope);
            self.answers.add(Answer { envelope, attempt: 0, ran: Duration::ZERO, news: News::Settled(verdict) });
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
                let (mut state, believed_at) = (self.state.lock(), Instant::now() + UNCONFIRMED.0);
                for ((id, _), let_go) in stored.into_iter().zip(let_go) {
                    match let_go {
                        LetGo::Certainly => state.let_go.push(id),
                        LetGo::Unconfirmed => state.unconfirmed.push_back((believed_at, id)),
                        LetGo::Perhaps => {}
                    }
                }
            }
            None => self.state.lock().unaccepted.extend(stored),
        }
    }

    /// Gives messages back, or does so later.
    async fn put_back(&self, tags: Vec<(Tag, Returned)>) {
        let mut tags = tags;
        tags.extend(std::mem::take(&mut self.state.lock().unreturned));
        for why in [Returned::Unstored, Returned::Doubtful] {
            let these: Vec<Tag> = tags.iter().filter(|(_, of)| *of == why).map(|(tag, _)| tag.clone()).collect();
            if these.is_empty() {
                continue;
            }
            let said = self.aside(self.transport.put_back(&these, why)).await;
            if self.heard(said, "put back").is_none() {
                self.state.lock().unreturned.extend(these.into_iter().map(|tag| (tag, why)));
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

    /// Does what waits for the transport, if that can be reached.
    async fn catch_up(&self) {
        if self.state.lock().transport.shut_until(Instant::now()).is_some() {
            return;
        }
        self.accept(Vec::new()).await;
        self.put_back(Vec::new()).await;
        self.send_answers().await;
    }

    /// Tells how tasks end, before it is recorded.
    async fn tell_ends(&self, settled: &[Settled]) -> Result<(), StoreError> {
        if let Some((receipts, lease)) = self.answers.doubtful(settled, Instant::now()) {
            // Somebody else may have these: only who has a lease speaks for a task.
            let renewal = |receipt| Renewal { receipt, progress: None, memo: None };
            self.renew(&receipts.into_iter().map(renewal).collect::<Vec<_>>(), lease).await?;
        }
        let now = Instant::now();
        let ends = self.answers.before(settled, now);
        if ends.is_empty() {
            return Ok(());
        }
        // What was said of these tasks before goes first, unless it is on its way.
        let batch = self.answers.begin();
        let before = batch.as_ref().map_or(0, Vec::len);
        let mut all = batch.unwrap_or_default();
        all.extend(ends);
        let told = self.tell(ENDS_WITHIN, &all).await;
        all.truncate(before);
        self.answers.end_if_begun(all, before > 0, told.is_ok());
        told.map_err(|error| StoreError::Unreachable(error.into()))?;
        self.answers.told(settled, now);
        Ok(())
    }

    async fn send_answers(&self) {
        while let Some(batch) = self.answers.begin() {
            let told = self.tell(ASIDE_WITHIN, &batch).await.is_ok();
            self.answers.end(batch, told);
            if !told {
                return;
            }
        }
    }

    /// Tells producers. What the transport refuses must not hold up the others: each is tried by itself then, and what is
    /// refused is tried again later.
    async fn tell(&self, limit: Duration, answers: &[Answer]) -> Result<(), TransportError> {
        let error = match self.within(limit, self.transport.answer(answers)).await {
            Err(error @ TransportError::Refused(_)) => error,
            said => return self.spoken(said),
        };
        let _ = self.heard(Err::<(), _>(error), "answer");
        let mut refused = Vec::new();
        for answer in answers {
            match self.within(limit, self.transport.answer(std::slice::from_ref(answer))).await {
                Err(TransportError::Refused(_)) => refused.push(answer.clone()),
                said => self.spoken(said)?,
            }
        }
        self.answers.refuse(refused, 1);
        Ok(())
    }

    /// Notes how the transport does, and passes on what it said.
    fn spoken(&self, said: Result<(), TransportError>) -> Result<(), TransportError> {
        match said {
            Ok(()) => {
                let _ = self.heard(Ok(()), "answer");
                Ok(())
            }
            Err(error) => {
                let text = error.to_string();
                let _ = self.heard(Err::<(), _>(error), "answer");
                Err(TransportError::Unreachable(text.into()))
            }
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
