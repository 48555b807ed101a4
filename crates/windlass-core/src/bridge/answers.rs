//! What producers are told: of the tasks that this node holds, and what waits to be sent.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use tracing::warn;

use super::transport::{Answer, News};
use crate::backend::{BATCH_MAX, Claim, Receipt, Settled, Settlement};
use crate::view::Record;
use crate::{Envelope, NodeId};

/// The most answers that wait while the transport cannot be reached; then the oldest go.
pub const ANSWERS_MAX: usize = 10_000;

/// The tasks whose producers hear of them, and what is to be said.
#[derive(Debug, Default)]
pub(super) struct Answers {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    held: HashMap<Receipt, Held>,
    waiting: VecDeque<Answer>,
    /// Somebody sends: answers stay in their order.
    sending: bool,
}

#[derive(Debug)]
struct Held {
    envelope: Arc<Envelope>,
    attempt: u32,
    /// A settle of it failed, and may have been recorded.
    doubtful: bool,
}

impl Answers {
    /// These tasks begin on this node.
    pub(super) fn claimed<'a>(&self, claims: impl Iterator<Item = &'a Claim>, node: &NodeId) {
        let mut inner = self.inner.lock();
        for claim in claims {
            let (envelope, attempt) = (Arc::clone(&claim.envelope), claim.attempt);
            let held = Held { envelope: Arc::clone(&envelope), attempt, doubtful: false };
            inner.held.insert(claim.receipt.clone(), held);
            inner.add(Answer { envelope, attempt, news: News::Started(node.clone()) });
        }
    }

    /// This one is somebody else's now.
    pub(super) fn lost(&self, receipt: &Receipt) {
        self.inner.lock().held.remove(receipt);
    }

    /// A settle of these failed.
    pub(super) fn doubt(&self, settled: &[Settled]) {
        let mut inner = self.inner.lock();
        for one in settled {
            if let Some(held) = inner.held.get_mut(&one.receipt) {
                held.doubtful = true;
            }
        }
    }

    /// These are settled. Answers what there would be to say of those that are stale, though an earlier settle of them may
    /// have counted.
    pub(super) fn settled(&self, settled: &[Settled], settlements: &[Settlement]) -> Vec<Answer> {
        let mut inner = self.inner.lock();
        let mut doubtful = Vec::new();
        for (one, settlement) in settled.iter().zip(settlements) {
            let Some(held) = inner.held.remove(&one.receipt) else { continue };
            let news = News::Settled(one.verdict.clone());
            let answer = Answer { envelope: held.envelope, attempt: held.attempt, news };
            match settlement {
                Settlement::Applied => inner.add(answer),
                Settlement::Stale if held.doubtful => doubtful.push(answer),
                Settlement::Stale => {}
            }
        }
        doubtful
    }

    /// Of these answers, those are true that their tasks' records bear out.
    pub(super) fn resolve(&self, doubtful: Vec<Answer>, records: &[Option<Record>]) {
        let mut inner = self.inner.lock();
        for (answer, record) in doubtful.into_iter().zip(records) {
            let News::Settled(verdict) = &answer.news else { continue };
            if record.as_ref().is_some_and(|record| record.state == verdict.state() && record.attempt == answer.attempt)
            {
                inner.add(answer);
            }
        }
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

    pub(super) fn waiting(&self) -> usize {
        self.inner.lock().waiting.len()
    }
}

impl Inner {
    fn add(&mut self, answer: Answer) {
        if self.waiting.len() >= ANSWERS_MAX {
            warn!("answers wait for too long; the oldest is given up, its task is in the store");
            self.waiting.pop_front();
        }
        self.waiting.push_back(answer);
    }
}
