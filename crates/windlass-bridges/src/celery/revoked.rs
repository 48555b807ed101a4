//! Ids that somebody has revoked, also of tasks that have not come yet.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How many are remembered, and for how long; as Celery's workers do it.
const REMEMBERED: (usize, Duration) = (50_000, Duration::from_secs(3 * 3600));

/// Bounded: the oldest go.
#[derive(Debug, Default)]
pub(super) struct Revoked(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    since: HashMap<String, Instant>,
    order: VecDeque<(Instant, String)>,
}

impl Revoked {
    pub(super) fn add(&self, ids: impl IntoIterator<Item = String>) {
        let now = Instant::now();
        let mut inner = self.0.lock();
        for id in ids {
            if inner.since.insert(id.clone(), now).is_none() {
                inner.order.push_back((now, id));
            }
        }
        inner.forget_old(now);
    }

    pub(super) fn contains(&self, id: &str) -> bool {
        let inner = self.0.lock();
        inner.since.get(id).is_some_and(|since| since.elapsed() < REMEMBERED.1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().since.is_empty()
    }

    /// All of them, the oldest first.
    pub(super) fn all(&self) -> Vec<String> {
        let mut inner = self.0.lock();
        inner.forget_old(Instant::now());
        inner.order.iter().map(|(_, id)| id.clone()).collect()
    }
}

impl Inner {
    fn forget_old(&mut self, now: Instant) {
        while self.order.len() > REMEMBERED.0
            || self.order.front().is_some_and(|(since, _)| now.saturating_duration_since(*since) >= REMEMBERED.1)
        {
            if let Some((_, id)) = self.order.pop_front() {
                self.since.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_oldest_are_forgotten_when_there_are_too_many_and_after_three_hours() {
        let revoked = Revoked::default();
        revoked.add((0..REMEMBERED.0 + 2).map(|number| number.to_string()));
        assert!(!revoked.contains("0") && !revoked.contains("1") && revoked.contains("2"));
        assert_eq!(revoked.all().len(), REMEMBERED.0);
        tokio::time::advance(REMEMBERED.1).await;
        assert!(!revoked.contains("2") && revoked.all().is_empty());
    }
}
