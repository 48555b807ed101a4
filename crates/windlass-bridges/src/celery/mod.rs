//! Celery's messages as tasks of ours, and everything that its clients, workers and monitors expect in return.
//!
//! ```text
//! take      carrier -> arrival (pure) -> the bridge adopts
//! answer    plan (pure): what is to be published, stored and counted, in Celery's order -> broker, results, chords, events
//! control   a request that is broadcast -> the store, or what is kept here -> a reply
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `arrival.rs` | a message: which task, which identity, or why not |
//! | `plan.rs`, `chord.rs` | what follows when something has happened to a task |
//! | `builtins.rs` | the tasks that Celery's workers have built in: `celery.map`, `celery.starmap` |
//! | `results.rs` | the keys where clients look |
//! | `broker/` | what Celery's programs share over a broker besides task messages |
//! | `events.rs`, `control/`, `revoked.rs` | monitors and operators |
//! | [`producer`] | the other way: Rust enqueues for Python workers |
//!
//! Retries are ours: a task that fails waits in the store, under its id, and no second message is sent. What follows a task
//! (`link`, `chain`, the body of a chord) is published to the broker, because a Python worker may be the one who runs it.

mod arrival;
mod broker;
mod builtins;
mod chord;
mod control;
mod events;
mod options;
mod plan;
pub mod producer;
mod results;
mod revoked;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, warn};
use windlass_core::backend::Demand;
use windlass_core::bridge::{Answer, Concern, LetGo, Message, News, Returned, Tag, Taken, Transport, TransportError};
use windlass_core::view::{NodeInfo, NodePhase};
use windlass_core::{Backend, Clock, Envelope, NodeId, QueueName, SystemClock, Verdict};
use windlass_wire::celery::Request;
use windlass_wire::celery::event::{Announced, Kind};

use crate::carrier::{Carried, Carrier};
pub use arrival::retries_of;
use arrival::{Arrival, Reader, TimeLimits};
use broker::Broker;
pub use builtins::with_builtins;
use events::Events;
pub use options::{OpenError, Options, ResultPlace};
use plan::{Plan, Teller};
use producer::Producer;
use results::Results;
use revoked::Revoked;

/// A bridge's transport for Celery's messages.
#[derive(Debug)]
pub struct Celery {
    carrier: Arc<dyn Carrier>,
    desk: Arc<Desk>,
    _stop: DropGuard,
}

/// What answers, control and events share.
#[derive(Debug)]
struct Desk {
    reader: Reader,
    teller: Teller,
    broker: Arc<dyn Broker>,
    /// The other workers, when they are asked what was revoked.
    neighbours: Option<Producer>,
    results: Results,
    events: Arc<Events>,
    revoked: Revoked,
    time_limits: Mutex<TimeLimits>,
    queues: Queues,
    /// Tasks that ended here, by name.
    ended: Mutex<std::collections::BTreeMap<String, u64>>,
    node: Mutex<Option<NodeInfo>>,
    /// How many slots it was told to have, while it has not said so.
    slots_wanted: Mutex<Option<usize>>,
}

/// The reply to an operator does not wait longer for a queue to be left.
const LEFT_WITHIN: std::time::Duration = std::time::Duration::from_millis(500);

/// The queues of this node, as operators have changed them.
#[derive(Debug)]
struct Queues {
    changed: AtomicBool,
    now: Mutex<Vec<QueueName>>,
    bell: tokio::sync::Notify,
    /// Those that messages were taken from last.
    taken_from: tokio::sync::watch::Sender<Vec<QueueName>>,
}

impl Queues {
    fn of(queues: Vec<QueueName>) -> Self {
        Self {
            changed: AtomicBool::new(false),
            now: Mutex::new(queues.clone()),
            bell: tokio::sync::Notify::new(),
            taken_from: tokio::sync::watch::Sender::new(queues),
        }
    }

    /// Changes them; the node hears of it.
    fn change(&self, change: impl FnOnce(&mut Vec<QueueName>)) {
        change(&mut self.now.lock());
        self.changed.store(true, Ordering::Relaxed);
        self.bell.notify_one();
    }

    /// Waits until nothing is taken from a queue any more, or for as long as an operator waits: while every slot is busy
    /// nothing is taken at all.
    async fn until_left(&self, queue: &str) {
        let mut taken_from = self.taken_from.subscribe();
        taken_from.mark_unchanged();
        let left = taken_from.wait_for(|queues| queues.iter().all(|name| name.as_str() != queue));
        drop(tokio::time::timeout(LEFT_WITHIN, left).await);
    }
}

impl Celery {
    fn start(
        carrier: Arc<dyn Carrier>,
        broker: Arc<dyn Broker>,
        neighbours: Option<Producer>,
        options: Options,
        store: Arc<dyn Backend>,
    ) -> Self {
        let stop = CancellationToken::new();
        let events = Events::start(&options.node, options.events, Arc::clone(&broker), stop.child_token());
        let desk = Arc::new(Desk {
            teller: options.teller(),
            reader: options.reader(&*broker),
            broker,
            neighbours,
            results: options.results(),
            events,
            revoked: Revoked::default(),
            time_limits: Mutex::new(TimeLimits { every: options.limits, ..TimeLimits::default() }),
            queues: Queues::of(options.queues),
            ended: Mutex::default(),
            node: Mutex::default(),
            slots_wanted: Mutex::default(),
        });
        tokio::spawn(control::serve(Arc::clone(&desk), store, stop.child_token()));
        Self { carrier, desk, _stop: stop.drop_guard() }
    }

    /// Messages that need not be run: their producers hear so at once, and they are let go.
    async fn turn_away(&self, turned_away: Vec<(Tag, Box<Envelope>, Verdict)>) -> Result<(), TransportError> {
        if turned_away.is_empty() {
            return Ok(());
        }
        let (tags, answers): (Vec<Tag>, Vec<Answer>) = turned_away
            .into_iter()
            .map(|(tag, envelope, verdict)| {
                let ran = std::time::Duration::ZERO;
                (tag, Answer { envelope: Arc::from(envelope), attempt: 0, ran, news: News::Ended(verdict) })
            })
            .unzip();
        if let Err(error) = self.desk.answer(&answers).await {
            self.carrier.put_back(&tags, Returned::Unstored).await?;
            return Err(error);
        }
        self.carrier.accept(&tags).await.map(drop)
    }

    /// Whether a task need not be run at all.
    fn verdict_before(&self, request: &Request) -> Option<Verdict> {
        if !self.desk.revoked.is_empty() && self.desk.revoked.contains(&request.id) {
            return Some(Verdict::Cancelled);
        }
        let is_late = request.expires.is_some_and(|expires| expires <= SystemClock.now());
        is_late.then_some(Verdict::Expired)
    }
}

#[async_trait]
impl Transport for Celery {
    async fn take(&self, demand: &Demand) -> Result<Vec<Taken>, TransportError> {
        let Demand { queues, max, wait, hush, .. } = demand;
        if self.desk.queues.changed.load(Ordering::Relaxed) {
            self.carrier.turn_to(queues).await?;
            self.desk.queues.taken_from.send_replace(queues.clone());
        }
        let carried: Vec<Carried> = self.carrier.take(queues, *max, *wait, hush).await?;
        let limits = self.desk.time_limits.lock().clone();
        let (mut taken, mut turned_away, mut received) = (Vec::with_capacity(carried.len()), Vec::new(), Vec::new());
        for carried in carried {
            let Arrival { id, identity, message, request } = self.desk.reader.read(&carried, &limits);
            if let Some(request) = &request {
                received.push(Kind::Received(Announced::of(request)));
                if let (Some(verdict), Message::Task(envelope)) = (self.verdict_before(request), &message) {
                    turned_away.push((carried.tag, envelope.clone(), verdict));
                    continue;
                }
            }
            taken.push(Taken { id, identity, tag: carried.tag, message });
        }
        self.desk.events.tell(received);
        if let Err(error) = self.turn_away(turned_away).await {
            warn!(%error, "messages that need not be run could not be answered; they come again");
        }
        Ok(taken)
    }

    async fn accept(&self, tags: &[Tag]) -> Result<Vec<LetGo>, TransportError> {
        self.carrier.accept(tags).await
    }

    async fn put_back(&self, tags: &[Tag], why: Returned) -> Result<(), TransportError> {
        self.carrier.put_back(tags, why).await
    }

    fn concern(&self, envelope: &Envelope) -> Concern {
        match &envelope.origin {
            None => Concern::Nothing,
            Some(_) if self.desk.teller.track_started || self.desk.events.of_tasks() => Concern::Everything,
            Some(_) => Concern::Ends,
        }
    }

    async fn answer(&self, answers: &[Answer]) -> Result<(), TransportError> {
        self.desk.answer(answers).await
    }

    async fn recover(&self, _living: &[NodeId]) -> Result<u64, TransportError> {
        self.desk.broker.tidy_up().await?;
        self.carrier.recover().await
    }

    fn queues(&self, begun_with: &[QueueName]) -> Vec<QueueName> {
        if self.desk.queues.changed.load(Ordering::Relaxed) {
            self.desk.queues.now.lock().clone()
        } else {
            begun_with.to_vec()
        }
    }

    async fn queues_changed(&self) {
        self.desk.queues.bell.notified().await;
    }

    async fn beat(&self, node: &NodeInfo) {
        self.desk.events.beat(node);
        *self.desk.node.lock() = Some(node.clone());
        self.desk.slots_wanted.lock().take_if(|wanted| *wanted == node.slots);
        if node.phase == NodePhase::Stopped {
            self.desk.events.say_goodbye().await;
        }
    }
}

impl Desk {
    async fn answer(&self, answers: &[Answer]) -> Result<(), TransportError> {
        let now = SystemClock.now();
        let mut plan = Plan::default();
        for answer in answers {
            if let Err(reason) = self.teller.plan(answer, now, &mut plan) {
                warn!(task = %answer.envelope.id, %reason, "what its message said cannot be read; its producer hears nothing");
            }
        }
        for (id, reason) in plan.unreadable.drain(..) {
            warn!(id, %reason, "what follows a task cannot be read; nothing follows it");
        }
        self.count_ended(answers);
        self.carry_out(plan).await
    }

    /// Does what a plan says, and what follows from chords that it completes.
    async fn carry_out(&self, plan: Plan) -> Result<(), TransportError> {
        let mut plans = vec![(plan, None::<String>)];
        while let Some((plan, completes)) = plans.pop() {
            let Plan { chords, letters, documents, parts, events, .. } = plan;
            let counters = self.results.chords();
            if let Some(counters) = counters
                && !chords.is_empty()
            {
                counters.begin(&chords).await?;
            }
            self.broker.send(&letters).await?;
            let (replies, of_results) = self.results.write(documents).await?;
            self.broker.reply(&replies).await?;
            self.events.tell(events.into_iter().chain(of_results));
            if let (Some(counters), Some(group)) = (counters, completes) {
                counters.end(&group).await?;
            }
            for part in parts {
                let Some(counters) = counters else {
                    debug!(group = part.group, "chords need results in Redis; a part is not counted");
                    continue;
                };
                if let Some(next) = chord::count(counters, &self.teller, &part, SystemClock.now()).await? {
                    plans.push((next, Some(part.group.clone())));
                }
            }
        }
        Ok(())
    }

    fn count_ended(&self, answers: &[Answer]) {
        let mut ended = self.ended.lock();
        for answer in answers {
            if let News::Settled(Verdict::Succeeded { .. } | Verdict::Dead { .. }) = &answer.news {
                *ended.entry(answer.envelope.name.to_string()).or_default() += 1;
            }
        }
    }
}
