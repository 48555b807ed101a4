//! A clock that tests move.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use windlass_core::{Clock, Timestamp};

/// A clock that stands still until a test moves it. Clones show the same time.
///
/// Everything that Windlass measures (delays, leases, retention, schedules) is measured with the [`Clock`] that it was
/// given, so a test of a retry after an hour takes no time:
///
/// ```
/// use std::time::Duration;
/// use windlass_core::{Clock, Timestamp};
/// use windlass_testkit::TestClock;
///
/// let clock = TestClock::at(Timestamp::from_secs(1_800_000_000));
/// clock.advance(Duration::from_secs(3600));
/// assert_eq!(clock.now(), Timestamp::from_secs(1_800_003_600));
/// ```
///
/// It wakes nobody: a store acts on the new time with its next operation, such as a claim or a tick.
#[derive(Clone)]
pub struct TestClock {
    face: Arc<Mutex<Face>>,
    /// How far it was set from where it would be, in microseconds.
    set_by: Arc<AtomicI64>,
}

/// What the clock shows, and how.
#[derive(Clone, Copy)]
enum Face {
    Stands(Timestamp),
    /// It showed this time at that instant, and goes on from there.
    Goes(Timestamp, Instant),
}

impl Face {
    fn now(self) -> Timestamp {
        match self {
            Self::Stands(now) => now,
            Self::Goes(then, since) => then + since.elapsed(),
        }
    }
}

impl TestClock {
    /// A clock that stands at this time.
    pub fn at(now: Timestamp) -> Self {
        Self { face: Arc::new(Mutex::new(Face::Stands(now))), set_by: Arc::default() }
    }

    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        self.show(self.now() + by);
    }

    /// Sets it to a time, which may lie in the past: clocks of machines jump both ways. Unlike [`TestClock::advance`] no
    /// time passes.
    pub fn set(&self, now: Timestamp) {
        self.set_by.fetch_add(now.as_micros() - self.now().as_micros(), Ordering::Relaxed);
        self.show(now);
    }

    fn show(&self, now: Timestamp) {
        let mut face = self.face.lock();
        *face = match *face {
            Face::Stands(_) => Face::Stands(now),
            Face::Goes(..) => Face::Goes(now, Instant::now()),
        };
    }

    /// Lets it go from now on, as fast as tokio's time: real time, or the time of a paused runtime.
    pub fn go(&self) {
        let mut face = self.face.lock();
        *face = Face::Goes(face.now(), Instant::now());
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        self.face.lock().now()
    }

    fn steady(&self) -> Duration {
        let micros = self.now().as_micros() - self.set_by.load(Ordering::Relaxed);
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    }
}

impl fmt::Debug for TestClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TestClock").field(&self.now()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOON: Timestamp = Timestamp::from_secs(1_800_000_000);

    #[test]
    fn it_stands_still_until_it_is_moved() {
        let clock = TestClock::at(NOON);
        let other = clock.clone();
        clock.advance(Duration::from_millis(1500));
        assert_eq!(other.now(), NOON + Duration::from_millis(1500));
        other.set(NOON - Duration::from_secs(1));
        assert_eq!(clock.now(), NOON - Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn it_goes_with_the_time_of_the_runtime() {
        let clock = TestClock::at(NOON);
        clock.go();
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(clock.now(), NOON + Duration::from_secs(5));
        clock.advance(Duration::from_secs(60));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(clock.now(), NOON + Duration::from_secs(66));
    }
}
