//! When something that failed is tried again: later and later, never at the same time as everybody else. Pure.

use std::time::Duration;

use tokio::time::Instant;

/// How long something is left alone.
#[derive(Debug)]
pub(super) struct Pace {
    first: Duration,
    most: Duration,
    failures: u32,
    opens_at: Option<Instant>,
}

impl Pace {
    /// `first` after the first failure, twice as long after each that follows, at most `most`.
    pub(super) const fn new(first: Duration, most: Duration) -> Self {
        Self { first, most, failures: 0, opens_at: None }
    }

    pub(super) fn failed(&mut self, now: Instant, dice: f64) {
        let pause = self.first.saturating_mul(2_u32.saturating_pow(self.failures)).min(self.most);
        self.failures = self.failures.saturating_add(1);
        self.opens_at = Some(now + pause.mul_f64(0.5 + dice / 2.0));
    }

    pub(super) fn worked(&mut self) {
        self.failures = 0;
        self.opens_at = None;
    }

    /// Until when it is left alone.
    pub(super) fn shut_until(&self, now: Instant) -> Option<Instant> {
        self.opens_at.filter(|opens_at| *opens_at > now)
    }

    /// Whether it worked the last time.
    pub(super) fn is_well(&self) -> bool {
        self.failures == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_up_to_its_most_and_is_over_when_something_worked() {
        let now = Instant::now();
        let mut pace = Pace::new(Duration::from_millis(100), Duration::from_secs(1));
        let mut pauses = Vec::new();
        for _ in 0..6 {
            pace.failed(now, 1.0);
            pauses.push((pace.shut_until(now).expect("shut") - now).as_millis());
        }
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(pace.shut_until(now + Duration::from_secs(1)), None);
        pace.worked();
        assert!(pace.is_well() && pace.shut_until(now).is_none());
    }
}
