//! What producers are told: of the tasks that this node holds, and what waits to be sent.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::warn;

use super::transport::{Answer, Concern, News};
use crate::backend::{BATCH_MAX, Claim, Receipt, Renewed, Settled, Settlement};
use crate::{Envelope, NodeId};

/// The most answers that wait while the transport cannot be reached; then the oldest go.
pub const ANSWERS_MAX: usize = 10_000;

/// How often an answer is tried that the transport refuses, once a tick: long enough for somebody to mend a wrong password.
const REFUSED_TIMES_MAX: u32 = 600;
/// How many of those are tried with one tick.
const REFUSED_TOGETHER: usize = 10;

/// The tasks whose producers hear of them, and what is to be said.
#[derive(Debug, Default)]
pub(super) struct Answers {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    held: HashMap<Receipt, Held>,
    waiting: VecDeque<Answer>,
    /// What the transport refused, and how often; it is tried again apart from the others.
    refused: VecDeque<(Answer, u32)>,
    /// Somebody sends: answers stay in their order.
    sending: bool,
}

#[derive(Debug)]
struct Held {
    envelope: Arc<Envelope>,
    attempt: u32,
    since: Instant,
    /// Until then nobody else can have it.
    surely_until: Instant,
    lease: Duration,
    /// Its end was told before it was recorded.
    told: bool,
}

impl Held {
    fn answer(&self, news: News, now: Instant) -> Answer {
        let ran = now.saturating_duration_since(self.since);
        Answer { envelope: Arc::clone(&self.envelope), attempt: self.attempt, ran, news }
    }
}

impl Answers {
    /// These tasks begin on this node. The lease counts from before they were claimed.
    pub(super) fn claimed<'a>(
        &self,
        claims: impl Iterator<Item = (&'a Claim, Concern)>,
        node: &NodeId,
        lease: Duration,
        asked_at: Instant,
    ) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        for (claim, concern) in claims {
            if concern == Concern::Nothing {
                continue;
            }
            let held = Held {
                envelope: Arc::clone(&claim.envelope),
                attempt: claim.attempt,
                since: now,
                surely_until: asked_at + lease,
                lease,
                told: false,
            };
            if concern == Concern::Everything {
                inner.add(held.answer(News::Started(node.clone()), now));
            }
            inner.held.insert(claim.receipt.clone(), held);
        }
    }

    /// What became of a lease that was asked for then.
    pub(super) fn renewed(&self, receipt: &Receipt, renewed: Renewed, lease: Duration, asked_at: Instant) {
        let mut inner = self.inner.lock();
        match renewed {
            Renewed::Lost => drop(inner.held.remove(receipt)),
            Renewed::Held | Renewed::Cancelled => {
                if let Some(held) = inner.held.get_mut(receipt) {
                    held.surely_until = asked_at + lease;
                }
            }
        }
    }

    /// Of these, the ends that are still to be told, of tasks that somebody else may have by now; and the lease to ask for.
    pub(super) fn doubtful(&self, settled: &[Settled], now: Instant) -> Option<(Vec<Receipt>, Duration)> {
        let inner = self.inner.lock();
        let doubtful = |one: &&Settled| inner.untold(one).is_some_and(|held| held.surely_until <= now);
        let receipts: Vec<Receipt> = settled.iter().filter(doubtful).map(|one| one.receipt.clone()).collect();
        let lease = receipts.first().and_then(|receipt| inner.held.get(receipt))?.lease;
        Some((receipts, lease))
    }

    /// What is told before these are recorded: ends of tasks that nobody else can have.
    pub(super) fn before(&self, settled: &[Settled], now: Instant) -> Vec<Answer> {
        let inner = self.inner.lock();
        let ends = settled.iter().filter_map(|one| {
            let held = inner.untold(one).filter(|held| now < held.surely_until)?;
            Some(held.answer(News::Settled(one.verdict.clone()), now))
        });
        ends.collect()
    }

    /// What [`Answers::before`] said at that time was told.
    pub(super) fn told(&self, settled: &[Settled], now: Instant) {
        let mut inner = self.inner.lock();
        for one in settled.iter().filter(|one| one.verdict.state().is_final()) {
            if let Some(held) = inner.held.get_mut(&one.receipt).filter(|held| now < held.surely_until) {
                held.told = true;
            }
        }
    }

    /// These are settled: what was not told yet is told now, if it counts.
    pub(super) fn settled(&self, settled: &[Settled], settlements: &[Settlement]) {
        let now = Instant::now();
        let mut inner = self.inner.lock();
        for (one, settlement) in settled.iter().zip(settlements) {
            let Some(held) = inner.held.remove(&one.receipt) else { continue };
            if !held.told && *settlement == Settlement::Applied {
                inner.add(held.answer(News::Settled(one.verdict.clone()), now));
            }
        }
    }

    /// Something that is to be told in its turn.
    pub(super) fn add(&self, answer: Answer) {
        self.inner.lock().add(answer);
    }

    /// The next answers to be sent, unless somebody else sends.
    pub(super) fn begin(&self) -> Option<Vec<Answer>> {
        let mut inner = self.inner.lock();
        if inner.sending || inner.waiting.is_empty() {
            return None;
        }
        inner.sending = true;
        let most = inner.waiting.len().min(BATCH_MAX);
        Some(inner.waiting.drain(..most).collect())
    }

    /// These were sent, or are to be sent again.
    pub(super) fn end(&self, batch: Vec<Answer>, sent: bool) {
        let mut inner = self.inner.lock();
        inner.sending = false;
        if !sent {
            batch.into_iter().rev().for_each(|answer| inner.waiting.push_front(answer));
        }
    }

    /// As [`Answers::end`], when something was begun.
    pub(super) fn end_if_begun(&self, batch: Vec<Answer>, begun: bool, sent: bool) {
        if begun {
            self.end(batch, sent);
        }
    }

    /// The transport refused these, for this many times by now.
    pub(super) fn refuse(&self, refused: Vec<Answer>, times: u32) {
        let mut inner = self.inner.lock();
        for answer in refused {
            if times >= REFUSED_TIMES_MAX || inner.refused.len() >= ANSWERS_MAX {
                warn!(task = %answer.envelope.id, "the transport refuses to tell what became of a task; its producer hears nothing");
            } else {
                inner.refused.push_back((answer, times));
            }
        }
    }

    /// Takes what was refused, to be tried again.
    pub(super) fn refused(&self) -> Vec<(Answer, u32)> {
        let refused = &mut self.inner.lock().refused;
        let amount = refused.len().min(REFUSED_TOGETHER);
        refused.drain(..amount).collect()
    }

    pub(super) fn waiting(&self) -> usize {
        self.inner.lock().waiting.len()
    }
}

impl Inner {
    /// The task of an end that was not told yet.
    fn untold(&self, settled: &Settled) -> Option<&Held> {
        let held = self.held.get(&settled.receipt).filter(|held| !held.told)?;
        settled.verdict.state().is_final().then_some(held)
    }

    fn add(&mut self, answer: Answer) {
        if self.waiting.len() >= ANSWERS_MAX {
            warn!("answers wait for too long; the oldest is given up, its task is in the store");
            self.waiting.pop_front();
        }
        self.waiting.push_back(answer);
    }
}
