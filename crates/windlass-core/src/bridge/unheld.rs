//! Producers hear of tasks that ended while nobody held them: cancelled or expired while they waited, poison, parked for too long.
//!
//! Whoever ended such a task may know nothing of the bridge: a command of an operator, a node without one. So every node looks
//! every few seconds, and at once when its own tick has ended something:
//!
//! 1. list what was cancelled, expired or died since the last look, with an overlap: clocks differ, and commits take time
//! 2. tell those that concern somebody and that this node has not told
//!
//! A look takes a few pages with each tick and goes on with the next one, however much has ended. What a holder has ended
//! is told already: this node remembers its own, and dead letters say by their reason whether somebody held them. Others are
//! told again, and transports contradict nobody ([`News::Ended`]).

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::Bridge;
use super::transport::{Answer, Concern, News};
use crate::backend::{Settled, Settlement, StoreError};
use crate::view::{Cursor, Filter, Listing, Page, Record};
use crate::{DeadReason, Failure, State, TaskId, Timestamp, Verdict};

/// Between two looks, when nothing tells that something has ended.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// What ended so long before the last look began is looked at again: the clock of this node may be ahead of the store's.
const OVERLAP: Duration = Duration::from_secs(10);
/// How far the first look of a node goes back: what ended while it was replaced.
const FIRST_LOOK: Duration = Duration::from_secs(60);
/// Tasks on a page: as many as are listed in some milliseconds.
const PAGE: usize = 100;
/// Pages with one tick; the tick has more to do.
const PAGES_MAX: usize = 10;
/// The most ends that a node remembers to have told; then the oldest go, and may be told again.
const TOLD_MAX: usize = 20_000;

/// What was looked at, and what was told.
#[derive(Debug, Default)]
pub(super) struct Unheld(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    looked_at: Option<Instant>,
    /// When the last complete look began.
    seen_until: Option<Timestamp>,
    /// A look that is not complete.
    rest: Option<Look>,
    told: Told,
}

/// A walk over what has ended.
#[derive(Debug, Clone, PartialEq)]
struct Look {
    began: Timestamp,
    since: Timestamp,
    after: Option<Cursor>,
}

impl Look {
    fn filter(&self) -> Filter {
        let states = [State::Cancelled, State::Expired, State::Dead];
        Filter { finished_since: Some(self.since), ..Filter::in_states(states) }
    }
}

/// Ends that this node has told, and when they were.
#[derive(Debug, Default)]
struct Told {
    times: HashMap<TaskId, Timestamp>,
    order: VecDeque<TaskId>,
}

impl Told {
    fn add(&mut self, id: TaskId, at: Timestamp) {
        if self.times.insert(id.clone(), at).is_none() {
            self.order.push_back(id);
        }
        if self.order.len() > TOLD_MAX {
            let oldest = self.order.pop_front();
            oldest.map(|id| self.times.remove(&id));
        }
    }

    /// Whether this end was told. A task that was started over and ended again later has another.
    fn knows(&self, record: &Record) -> bool {
        let told_at = self.times.get(&record.envelope.id);
        told_at.is_some_and(|told_at| record.finished_at.is_none_or(|ended_at| ended_at <= *told_at + OVERLAP))
    }
}

impl Unheld {
    /// The look that is due, if one is.
    fn begin(&self, at: Instant, now: Timestamp, something_ended: bool) -> Option<Look> {
        let mut inner = self.0.lock();
        if let Some(rest) = inner.rest.take() {
            return Some(rest);
        }
        let is_early = inner.looked_at.is_some_and(|last| at.saturating_duration_since(last) < LOOK_EVERY);
        if is_early && !something_ended {
            return None;
        }
        inner.looked_at = Some(at);
        // The clock may have been moved back since.
        let since = inner.seen_until.map_or(now - FIRST_LOOK, |seen_until| seen_until.min(now) - OVERLAP);
        Some(Look { began: now, since, after: None })
    }

    /// The next tick goes on with it.
    fn put_off(&self, look: Look) {
        self.0.lock().rest = Some(look);
    }

    fn complete(&self, look: &Look) {
        self.0.lock().seen_until = Some(look.began);
    }

    /// What counts of these was told by its holder, this node.
    pub(super) fn held(&self, settled: &[Settled], settlements: &[Settlement], now: Timestamp) {
        let mut inner = self.0.lock();
        for (one, settlement) in settled.iter().zip(settlements) {
            if *settlement == Settlement::Applied && is_looked_for(&one.verdict) {
                inner.told.add(one.receipt.id.clone(), now);
            }
        }
    }

    /// Whether this end is still to be told by this node; afterwards it counts as told.
    fn is_news(&self, record: &Record) -> bool {
        let mut inner = self.0.lock();
        let is_news = !inner.told.knows(record);
        if let Some(ended_at) = record.finished_at.filter(|_| is_news) {
            inner.told.add(record.envelope.id.clone(), ended_at);
        }
        is_news
    }
}

/// Whether a look would find what has this verdict.
fn is_looked_for(verdict: &Verdict) -> bool {
    match verdict {
        Verdict::Dead { .. } | Verdict::Cancelled | Verdict::Expired => true,
        Verdict::Succeeded { .. }
        | Verdict::Again { .. }
        | Verdict::Awaits { .. }
        | Verdict::Released
        | Verdict::Parked => false,
    }
}

/// How a task ended that nobody may have held when it did.
fn verdict(record: &Record) -> Option<Verdict> {
    match record.state {
        State::Cancelled => Some(Verdict::Cancelled),
        State::Expired => Some(Verdict::Expired),
        State::Dead => {
            let reason = record.reason.filter(|reason| is_without_holder(*reason))?;
            let failure = record.failure.clone().unwrap_or_else(|| Failure::new(reason.as_str(), "it gave up"));
            Some(Verdict::Dead { reason, failure })
        }
        State::Scheduled | State::Ready | State::Running | State::Parked | State::Succeeded => None,
    }
}

/// Whether the store gives this reason by itself. Of the others a holder has told, or who has adopted the message.
fn is_without_holder(reason: DeadReason) -> bool {
    match reason {
        DeadReason::Poison | DeadReason::Unknown | DeadReason::Upstream => true,
        DeadReason::AttemptsUsedUp | DeadReason::Fatal | DeadReason::Malformed | DeadReason::TooOld => false,
    }
}

impl Bridge {
    /// Tells what has ended without a holder; `ended` tasks have in this node's own tick. While the transport cannot be reached
    /// what ended waits in the store.
    pub(super) async fn tell_unheld(&self, ended: u64) -> Result<(), StoreError> {
        if self.state.lock().transport.shut_until(Instant::now()).is_some() {
            return Ok(());
        }
        let Some(mut look) = self.unheld.begin(Instant::now(), self.clock.now(), ended > 0) else { return Ok(()) };
        for _ in 0..PAGES_MAX {
            let page = Page { after: look.after.clone(), limit: PAGE };
            let Listing { tasks, next } = match self.store.list(&look.filter(), &page).await {
                Ok(listing) => listing,
                Err(error) => {
                    self.unheld.put_off(look);
                    return Err(error);
                }
            };
            for record in tasks {
                self.tell_end(record);
            }
            self.send_answers().await;
            if next.is_none() {
                self.unheld.complete(&look);
                return Ok(());
            }
            look.after = next;
            if self.answers.waiting() > 0 {
                break;
            }
        }
        self.unheld.put_off(look);
        Ok(())
    }

    fn tell_end(&self, record: Record) {
        let Some(verdict) = verdict(&record) else { return };
        if self.transport.concern(&record.envelope) == Concern::Nothing || !self.unheld.is_news(&record) {
            return;
        }
        let (envelope, attempt) = (Arc::new(record.envelope), record.attempt);
        self.answers.add(Answer { envelope, attempt, ran: Duration::ZERO, news: News::Ended(verdict) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn look(since: Timestamp) -> Look {
        Look { began: NOW, since, after: None }
    }

    #[test]
    fn a_look_begins_every_few_seconds_and_at_once_when_something_has_ended() {
        let (unheld, at) = (Unheld::default(), Instant::now());
        assert_eq!(unheld.begin(at, NOW, false), Some(look(NOW - FIRST_LOOK)));
        assert_eq!(unheld.begin(at + Duration::from_secs(4), NOW, false), None);
        assert!(unheld.begin(at + Duration::from_secs(4), NOW, true).is_some());
        assert_eq!(unheld.begin(at + Duration::from_secs(8), NOW, false), None);
        assert!(unheld.begin(at + Duration::from_secs(9), NOW, false).is_some());
    }

    #[test]
    fn what_the_last_complete_look_did_not_see_is_looked_at() {
        let (unheld, at) = (Unheld::default(), Instant::now());
        let first = unheld.begin(at, NOW, false).expect("due");
        let later = NOW + Duration::from_secs(30);
        let again = unheld.begin(at + LOOK_EVERY, later, false).expect("due");
        assert_eq!(again.since, later - FIRST_LOOK, "the first was not complete");
        unheld.complete(&first);
        assert_eq!(unheld.begin(at + LOOK_EVERY * 2, later, false).expect("due").since, NOW - OVERLAP);
        let before = NOW - Duration::from_secs(3_600);
        assert_eq!(unheld.begin(at + LOOK_EVERY * 3, before, false).expect("due").since, before - OVERLAP);
    }

    #[test]
    fn a_look_that_was_put_off_goes_on_where_it_was() {
        let (unheld, at) = (Unheld::default(), Instant::now());
        let mut begun = unheld.begin(at, NOW, false).expect("due");
        begun.after = Some(Cursor("17".to_owned()));
        unheld.put_off(begun.clone());
        assert_eq!(unheld.begin(at, NOW, false), Some(begun));
        assert_eq!(unheld.begin(at, NOW, false), None);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut told = Told::default();
        let ids: Vec<TaskId> = (0..=TOLD_MAX).map(|_| TaskId::random()).collect();
        for id in &ids {
            told.add(id.clone(), NOW);
        }
        told.add(ids[TOLD_MAX].clone(), NOW);
        assert_eq!((told.order.len(), told.times.len()), (TOLD_MAX, TOLD_MAX));
        assert!(!told.times.contains_key(&ids[0]) && told.times.contains_key(&ids[1]));
    }
}
