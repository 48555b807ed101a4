//! The dispatcher: decides what a worker does next. One task, from `.enqueue()` to settled, is a straight line:
//!
//! ```text
//! producer   1  client.enqueue(SendEmail { .. })         client.rs      builder: .delay() .at() .priority() .unique() .key() .then()
//!            2  Envelope::of(&task, now)                 task.rs        pure
//!            3  middleware.on_push(&mut envelope)        middleware.rs  trace context, tenant
//!            4  backend.push(&push)                      a driver       durable when this returns
//! worker     5  next_event()                             mod.rs         select over a closed `enum Event`
//!            6  backend.claim(&demand)                   a driver       spawned, answers by an event; long-polls
//!            7  Dispatcher::start(claims)                here           registers the receipt, hands the batch to the executor
//!            8  executor::run(call)                      executor.rs    soft limit = asked to end, hard limit = dropped, panic caught
//!            9  Next::run() -> handler                   middleware.rs, registry.rs   arguments decoded here; failure = dead letter, not a crash
//!           10  retry::decide(policy, attempt, outcome)  retry.rs       pure
//!           11  flow::follow(&envelope, &verdict)        flow.rs        pure: next step, or arrival at a group
//!           12  Dispatcher::settle()                     here           batches what ended since the last settle: no timer
//!           13  backend.settle(&[settled])               a driver       one atomic step; Stale if the lease was lost; repeated until answered
//!           14  listener.on_event(&Settled { .. })       event.rs       metrics, log line, dashboard
//! ```
//!
//! [`Dispatcher::step`] is pure: an event and the time go in, effects come out. The loop in `mod.rs` performs them. At most
//! one claim and one settle are in flight, so batches form by themselves: what ends while a settle is on its way is the
//! next batch.

mod keeping;
mod stopping;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::executor::{self, Finished};
use super::guard::{Advice, Process, Why};
use super::{Settings, ShutdownStep};
use crate::backend::{BATCH_MAX, Claim, Demand, Renewal, Renewed, Settled, Settlement, Ticked};
use crate::call::{Call, StopReason, Surroundings};
use crate::error::Failure;
use crate::event::Event as Told;
use crate::flow::Follow;
use crate::registry::Registry;
use crate::state::{DeadReason, Verdict};
use crate::view::{NodeInfo, NodePhase};
use crate::{NodeId, QueueName, StoreError, TaskName};

/// How often housekeeping runs, and orders and cancellations are heard.
const TICK: Duration = Duration::from_secs(1);
/// How often the node says that it is alive, and for how long that holds.
const BEAT: Duration = Duration::from_secs(5);
const BEAT_TTL: Duration = Duration::from_secs(20);
/// How long a claim waits at the store before it answers with nothing.
const CLAIM_WAIT: Duration = Duration::from_secs(10);
/// After a store failed: the first wait, which doubles, and the longest.
const AGAIN: Duration = Duration::from_millis(50);
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// A handler that still runs this long after its hard limit blocks its thread; the dispatcher speaks for it.
pub(super) const OVERDUE: Duration = Duration::from_secs(1);
/// Nothing more is claimed while this many attempts wait to be settled.
const UNSETTLED_MAX: usize = 2 * BATCH_MAX;
/// Names that this node does not know, as far as it remembers them.
const EXCEPT_MAX: usize = 100;
/// How long handlers may take to end once they have been asked to because the worker stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// How long a worker that stops tries to settle after its last handler is gone.
const LEAVE_WITHIN: Duration = Duration::from_secs(10);

/// What can happen to a dispatcher.
#[derive(Debug)]
pub(crate) enum Event {
    Claimed(Result<Vec<Claim>, StoreError>),
    Finished(Vec<Finished>),
    Settled {
        batch: Batch,
        answer: Result<Vec<Settlement>, StoreError>,
    },
    Renewed {
        slots: Vec<usize>,
        answer: Result<Vec<Renewed>, StoreError>,
    },
    Ticked(Result<Ticked, StoreError>),
    Beaten(Result<(), StoreError>),
    /// What the guard of the process has seen.
    Looked(Advice),
    /// The time that [`Dispatcher::wake_at`] named has come.
    Woken,
    Shutdown(ShutdownStep),
}

/// What the loop does for a dispatcher.
#[derive(Debug)]
pub(crate) enum Effect {
    Claim(Demand),
    Start(Vec<Arc<Call>>),
    Settle(Batch),
    Renew {
        renewals: Vec<Renewal>,
        slots: Vec<usize>,
    },
    Tick,
    Beat(Box<NodeInfo>, Duration),
    Tell(Told),
    /// The earliest next slot of all schedules, for the schedule runner.
    NextSlot(Option<crate::Timestamp>),
    Leave,
}

/// Attempts that are settled together.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(crate) settled: Vec<Settled>,
    /// For each of them: where it is held, and how long its handler ran.
    places: Vec<(usize, Duration)>,
}

/// An attempt that this node holds: from the claim until it is settled *and* its handler is gone.
#[derive(Debug)]
struct Held {
    call: Arc<Call>,
    handler: Handler,
    ending: Ending,
    renewed_at: Instant,
    /// When the handler blocks its thread, if it still runs.
    overdue_at: Instant,
    /// When it is dropped after it was asked to end.
    drop_at: Option<(Instant, StopReason)>,
}

#[derive(Debug, PartialEq, Eq)]
enum Handler {
    Running,
    Gone,
}

#[derive(Debug)]
enum Ending {
    /// Nobody knows yet how it ends.
    Open,
    /// It waits for the next settle.
    Ended(Verdict, Follow, Duration),
    /// A settle is on its way.
    Settling,
    /// The store has answered, or the task belongs to somebody else.
    Over,
}

/// What a worker knows and decides. See the top of the file.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    settings: Settings,
    process: Process,
    surroundings: Arc<Surroundings>,
    registry: Arc<Registry>,
    info: NodeInfo,
    phase: NodePhase,
    /// Handlers that run, at most; an order may change it.
    slots: usize,
    busy: usize,
    held: Vec<Option<Held>>,
    vacant: Vec<usize>,
    /// Where attempts are held that wait for the next settle, in the order in which they ended.
    unsettled: Vec<usize>,
    /// Batches that the store failed to settle, to be repeated as they are.
    repeat: Vec<Batch>,
    except: Vec<TaskName>,
    /// Ends the waiting of the claim in flight.
    claiming: Option<CancellationToken>,
    settling: bool,
    renewing: bool,
    ticking: bool,
    beating: bool,
    claim_again: Backoff,
    settle_again: Backoff,
    /// When the store first failed, until a tick succeeds.
    store_failed_at: Option<Instant>,
    tick_at: Instant,
    beat_at: Instant,
    watch_at: Instant,
    /// When a worker that stops asks its handlers to end, and when it leaves whatever happens.
    ask_at: Option<Instant>,
    leave_at: Option<Instant>,
    why: Why,
    /// Whether the last beat waits for the answer to the one before.
    farewell_waits: bool,
    /// Attempts that have ended on blocking threads which go on, and when these must be free. Only in a process of its own.
    threads: Vec<(Arc<Call>, Instant)>,
    dice: fastrand::Rng,
}

/// The wait after a failure.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    fn failed(&mut self, now: Instant) -> Duration {
        let wait = AGAIN.saturating_mul(1 << self.failures.min(10)).min(AGAIN_MAX);
        self.failures += 1;
        self.until = Some(now + wait);
        wait
    }

    fn worked(&mut self) {
        *self = Self::default();
    }

    /// The store answers somebody: the next try need not wait. Should it fail, the wait after it is as long as ever.
    fn try_now(&mut self) {
        self.until = None;
    }

    /// A wait that is over must not wake the worker again.
    fn look_at_the_time(&mut self, now: Instant) {
        self.until = self.until.filter(|until| *until > now);
    }

    fn waits(&self) -> bool {
        self.until.is_some()
    }
}

impl Dispatcher {
    pub(crate) fn new(
        settings: Settings,
        process: Process,
        surroundings: Arc<Surroundings>,
        registry: Arc<Registry>,
        info: NodeInfo,
        now: Instant,
    ) -> Self {
        Self {
            process,
            why: Why::Told,
            farewell_waits: false,
            threads: Vec::new(),
            phase: NodePhase::Running,
            slots: settings.slots,
            busy: 0,
            held: Vec::new(),
            vacant: Vec::new(),
            unsettled: Vec::new(),
            repeat: Vec::new(),
            except: Vec::new(),
            claiming: None,
            settling: false,
            renewing: false,
            ticking: false,
            beating: false,
            claim_again: Backoff::default(),
            settle_again: Backoff::default(),
            store_failed_at: None,
            tick_at: now,
            beat_at: now,
            watch_at: now + TICK,
            ask_at: None,
            leave_at: None,
            dice: fastrand::Rng::with_seed(settings.seed),
            settings,
            surroundings,
            registry,
            info,
        }
    }

    /// Decides what follows from an event.
    pub(crate) fn step(&mut self, event: Event, now: Instant) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Claimed(answer) => self.claimed(answer, now, &mut effects),
            Event::Finished(finished) => self.finished(finished, now),
            Event::Settled { batch, answer } => self.settled(batch, answer, now, &mut effects),
            Event::Renewed { slots, answer } => self.renewed(&slots, answer, now, &mut effects),
            Event::Ticked(answer) => self.ticked(answer, now, &mut effects),
            Event::Beaten(answer) => self.beaten(answer, now, &mut effects),
            Event::Looked(advice) => self.looked(advice, now, &mut effects),
            Event::Woken => {}
            Event::Shutdown(step) => self.shut_down(step, now, &mut effects),
        }
        self.look_at_the_time(now, &mut effects);
        self.settle(&mut effects);
        self.claim(&mut effects);
        match self.phase {
            NodePhase::Running | NodePhase::Quiet => {}
            NodePhase::Stopping => self.leave(now, &mut effects),
            // The last beat is a courtesy.
            NodePhase::Stopped if self.leave_at.is_some_and(|leave_at| leave_at <= now) => effects.push(Effect::Leave),
            NodePhase::Stopped => {}
        }
        effects
    }

    /// When [`Event::Woken`] is due.
    pub(crate) fn wake_at(&self) -> Instant {
        // What is on its way is waited for by its answer: its time may have passed.
        let timers = [
            (!self.ticking).then_some(self.tick_at),
            (!self.beating).then_some(self.beat_at),
            Some(self.watch_at),
            self.claim_again.until,
            self.settle_again.until,
            self.ask_at,
            self.leave_at,
        ];
        timers.into_iter().flatten().min().unwrap_or(self.watch_at)
    }

    fn claim(&mut self, effects: &mut Vec<Effect>) {
        let free = self.slots.saturating_sub(self.busy);
        let unsettled = self.unsettled.len() + self.repeat.iter().map(|batch| batch.settled.len()).sum::<usize>();
        if self.phase != NodePhase::Running
            || self.claiming.is_some()
            || free == 0
            || unsettled >= UNSETTLED_MAX
            || self.claim_again.waits()
            // What ran and could not be settled runs again when this process dies: more must not come on top of it.
            || self.settle_again.waits()
        {
            return;
        }
        let hush = CancellationToken::new();
        self.claiming = Some(hush.clone());
        effects.push(Effect::Claim(Demand {
            node: self.surroundings.node.clone(),
            queues: self.queues_in_turn(),
            max: free.min(BATCH_MAX),
            lease: self.settings.lease,
            except: self.except.clone(),
            wait: CLAIM_WAIT,
            hush,
        }));
    }

    /// The queues in an order that is drawn anew for each claim: a queue of weight 3 comes before one of weight 1 in three
    /// claims out of four, so that a full queue does not starve the others.
    fn queues_in_turn(&mut self) -> Vec<QueueName> {
        let mut left = self.settings.queues.clone();
        let mut order = Vec::with_capacity(left.len());
        while left.len() > 1 {
            let total: u32 = left.iter().map(|(_, weight)| weight).sum();
            let mut drawn = self.dice.u32(0..total.max(1));
            let index = left.iter().position(|(_, weight)| {
                let hit = drawn < *weight;
                drawn = drawn.saturating_sub(*weight);
                hit
            });
            order.push(left.remove(index.unwrap_or(0)).0);
        }
        order.extend(left.into_iter().map(|(queue, _)| queue));
        order
    }

    fn claimed(&mut self, answer: Result<Vec<Claim>, StoreError>, now: Instant, effects: &mut Vec<Effect>) {
        self.claiming = None;
        match answer {
            Ok(claims) => {
                self.claim_again.worked();
                self.start(claims, now, effects);
            }
            Err(error) => {
                let again_in = self.claim_again.failed(now);
                self.store_failed("claim", error, again_in, now, effects);
            }
        }
    }

    /// Step 7 of the main line.
    fn start(&mut self, claims: Vec<Claim>, now: Instant, effects: &mut Vec<Effect>) {
        let started_at = self.surroundings.clock.now();
        let mut calls = Vec::with_capacity(claims.len());
        for claim in claims {
            let slot = self.vacant.pop().unwrap_or_else(|| {
                self.held.push(None);
                self.held.len() - 1
            });
            let call = Arc::new(Call::new(claim, slot, started_at, Arc::clone(&self.surroundings)));
            let overdue_at = now + executor::hard_limit(&call, &self.registry) + self.process.overdue();
            self.watch_at = self.watch_at.min(overdue_at);
            let mut held = Held {
                call: Arc::clone(&call),
                handler: Handler::Running,
                ending: Ending::Open,
                renewed_at: now,
                overdue_at,
                drop_at: None,
            };
            effects.push(Effect::Tell(Told::Started(Arc::clone(&call))));
            if self.phase == NodePhase::Running {
                self.busy += 1;
                calls.push(call);
            } else {
                // The claim was on its way when the worker was told to stop.
                held.handler = Handler::Gone;
                held.ending = Ending::Ended(Verdict::Released, Follow::default(), Duration::ZERO);
                self.unsettled.push(slot);
            }
            self.held[slot] = Some(held);
        }
        if !calls.is_empty() {
            effects.push(Effect::Start(calls));
        }
    }

    fn finished(&mut self, finished: Vec<Finished>, now: Instant) {
        for Finished { call, verdict, follow, ran } in finished {
            let slot = call.slot;
            let Some(held) = self.held[slot].as_mut().filter(|held| Arc::ptr_eq(&held.call, &call)) else { continue };
            held.handler = Handler::Gone;
            if self.process == Process::Own && call.has_thread() {
                let free_at = now + self.process.overdue();
                self.watch_at = self.watch_at.min(free_at);
                self.threads.push((Arc::clone(&call), free_at));
            }
            self.busy -= 1;
            if verdict == Verdict::Parked
                && !self.except.contains(&call.envelope.name)
                && self.except.len() < EXCEPT_MAX
            {
                self.except.push(call.envelope.name.clone());
            }
            match held.ending {
                Ending::Open => {
                    held.ending = Ending::Ended(verdict, follow, ran);
                    self.unsettled.push(slot);
                }
                // The dispatcher has spoken for it already.
                Ending::Ended(..) | Ending::Settling => {}
                Ending::Over => self.forget(slot),
            }
        }
    }

    /// Step 12 of the main line: everything that has ended since the last settle.
    fn settle(&mut self, effects: &mut Vec<Effect>) {
        if self.settling || self.settle_again.waits() {
            return;
        }
        let batch = match self.repeat.pop() {
            Some(batch) => batch,
            None => self.next_batch(),
        };
        if !batch.settled.is_empty() {
            self.settling = true;
            effects.push(Effect::Settle(batch));
        }
    }

    fn next_batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        let count = self.unsettled.len().min(BATCH_MAX);
        for slot in self.unsettled.drain(..count) {
            let Some(held) = self.held[slot].as_mut() else { continue };
            match std::mem::replace(&mut held.ending, Ending::Settling) {
                Ending::Ended(verdict, follow, ran) => {
                    batch.settled.push(Settled { receipt: held.call.receipt.clone(), verdict, follow });
                    batch.places.push((slot, ran));
                }
                other @ (Ending::Open | Ending::Settling | Ending::Over) => held.ending = other,
            }
        }
        batch
    }

    fn settled(
        &mut self,
        batch: Batch,
        answer: Result<Vec<Settlement>, StoreError>,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) {
        self.settling = false;
        let settlements = match answer {
            Ok(settlements) => settlements,
            Err(error) => return self.settle_failed(batch, error, now, effects),
        };
        self.settle_again.worked();
        debug_assert_eq!(settlements.len(), batch.settled.len(), "one answer for each");
        for ((settled, (slot, ran)), settlement) in batch.settled.into_iter().zip(batch.places).zip(settlements) {
            let Some(held) = self.held[slot].as_mut() else { continue };
            let (verdict, settlement) = match held.call.completed_with() {
                // The application has settled it in a transaction of its own.
                Some(completed) if settlement == Settlement::Stale => (completed, Settlement::Applied),
                Some(_) | None => (settled.verdict, settlement),
            };
            self.info.finished += 1;
            self.info.failed += u64::from(!matches!(verdict, Verdict::Succeeded { .. }));
            effects.push(Effect::Tell(Told::Settled { call: Arc::clone(&held.call), verdict, ran, settlement }));
            held.ending = Ending::Over;
            if held.handler == Handler::Gone {
                self.forget(slot);
            }
        }
    }

    /// The same receipts are sent again: what the store did the first time, if it did, makes them stale.
    fn settle_failed(&mut self, batch: Batch, error: StoreError, now: Instant, effects: &mut Vec<Effect>) {
        match error {
            StoreError::Rejected(reason) => self.repeat.extend(without_the_refused(batch, &reason)),
            StoreError::Unreachable(_)
            | StoreError::Busy(_)
            | StoreError::NoSpace(_)
            | StoreError::Denied(_)
            | StoreError::Broken(_) => {
                self.repeat.push(batch);
                let again_in = self.settle_again.failed(now);
                self.store_failed("settle", error, again_in, now, effects);
            }
        }
    }

    fn forget(&mut self, slot: usize) {
        self.held[slot] = None;
        self.vacant.push(slot);
    }

    pub(crate) fn lease(&self) -> Duration {
        self.settings.lease
    }

    /// How many handlers run at once, at most.
    pub(crate) fn slots(&self) -> usize {
        self.slots
    }

    pub(crate) fn phase(&self) -> NodePhase {
        self.phase
    }

    pub(crate) fn node(&self) -> &NodeId {
        &self.surroundings.node
    }

    /// Why this node leaves, once it does.
    pub(crate) fn why(&self) -> Why {
        self.why
    }

    /// How many attempts this node holds that are not settled; what is left when it leaves in spite of that.
    pub(crate) fn unsettled(&self) -> usize {
        self.held.iter().flatten().filter(|held| !matches!(held.ending, Ending::Over)).count()
    }
}

/// One verdict that the store refuses must not hold up the others: each goes alone, and one that is refused alone becomes
/// a dead letter that says so.
fn without_the_refused(batch: Batch, reason: &str) -> Vec<Batch> {
    let alone = batch.settled.len() == 1;
    let split = batch.settled.into_iter().zip(batch.places);
    split
        .map(|(settled, place)| {
            let settled = if alone { refused(settled, reason) } else { settled };
            Batch { settled: vec![settled], places: vec![place] }
        })
        .collect()
}

fn refused(settled: Settled, reason: &str) -> Settled {
    let failure = Failure::new("refused", format_args!("the store refused how the task ended: {reason}"));
    // A dead letter without anything that follows is as small as a settle can be.
    Settled { verdict: Verdict::Dead { reason: DeadReason::Fatal, failure }, follow: Follow::default(), ..settled }
}
