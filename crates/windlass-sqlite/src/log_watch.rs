//! Sleeping until somebody writes into the log of the file: other processes commit without telling anybody, but the
//! kernel tells who asks (inotify). An idle store then wakes up twice a second instead of a hundred times.
//!
//! Every commit is written into the log before it can be seen, so a write means "look soon, and again soon after"; when
//! exactly is the lookout's. Where the kernel cannot tell (another system, no watches left), nobody is heard and the
//! lookout looks by the clock.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a sleep has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Heard {
    /// Somebody wrote, or the store is being closed.
    Something,
    /// Nobody did anything.
    Nothing,
    /// Nobody listens: the sleep has not taken place.
    Deaf,
}

#[cfg(target_os = "linux")]
pub(crate) use linux::{LogWatch, Waker};
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{LogWatch, Waker};

#[cfg(target_os = "linux")]
mod linux {
    use std::mem::MaybeUninit;
    use std::os::fd::OwnedFd;

    use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
    use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
    use tracing::debug;

    use super::{Duration, Heard, Path, PathBuf};

    /// Ends a sleep from another thread, once and for all.
    #[derive(Debug)]
    pub(crate) struct Waker(Option<OwnedFd>);

    impl Waker {
        pub(crate) fn new() -> Self {
            Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok())
        }

        pub(crate) fn wake(&self) {
            if let Some(event) = &self.0 {
                // It fails when it was woken some 2^64 times before.
                let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
            }
        }
    }

    impl Default for Waker {
        fn default() -> Self {
            Self::new()
        }
    }

    /// An ear on the log.
    #[derive(Debug)]
    pub(crate) struct LogWatch {
        log: PathBuf,
        /// `None` until the log could be watched, and after it has gone.
        events: Option<OwnedFd>,
    }

    impl LogWatch {
        pub(crate) fn of(log: &Path) -> Self {
            Self { log: log.to_owned(), events: None }
        }

        /// Sleeps until somebody writes, at most this long.
        pub(crate) fn sleep(&mut self, most: Duration, waker: &Waker) -> Heard {
            if self.events.is_none() {
                self.events = watch(&self.log);
            }
            let (Some(events), Some(woken)) = (&self.events, &waker.0) else { return Heard::Deaf };
            let mut ears = [PollFd::new(events, PollFlags::IN), PollFd::new(woken, PollFlags::IN)];
            let most = Timespec::try_from(most).unwrap_or_default();
            match poll(&mut ears, Some(&most)) {
                Ok(0) => Heard::Nothing,
                Ok(_) => {
                    if gone(events) {
                        self.events = None;
                    }
                    Heard::Something
                }
                // A signal; who sleeps looks and sleeps again.
                Err(_) => Heard::Something,
            }
        }
    }

    fn watch(log: &Path) -> Option<OwnedFd> {
        let watched = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).and_then(|events| {
            let what = WatchFlags::MODIFY | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
            inotify::add_watch(&events, log, what).map(|_| events)
        });
        watched.inspect_err(|error| debug!(%error, "the log cannot be watched; it is looked at by the clock")).ok()
    }

    /// Forgets what was heard so far. Answers whether the log is not there any more.
    fn gone(events: &OwnedFd) -> bool {
        let mut buffer = [MaybeUninit::uninit(); 1024];
        let mut heard = inotify::Reader::new(events, &mut buffer);
        let mut gone = false;
        while let Ok(event) = heard.next() {
            gone |= event.events().intersects(ReadFlags::IGNORED | ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF);
        }
        gone
    }

    #[cfg(test)]
    mod tests {
        use std::io::Write;
        use std::time::Instant;

        use super::*;

        const LONG: Duration = Duration::from_secs(20);

        #[test]
        fn a_write_ends_the_sleep_and_silence_does_not() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.db-wal");
            let (mut watch, waker) = (LogWatch::of(&path), Waker::new());
            assert_eq!(watch.sleep(LONG, &waker), Heard::Deaf, "there is no log yet");

            let mut log = std::fs::File::create(&path).unwrap();
            assert_eq!(watch.sleep(Duration::ZERO, &waker), Heard::Nothing);
            let began = Instant::now();
            std::thread::scope(|scope| {
                scope.spawn(|| log.write_all(b"a commit").unwrap());
                assert_eq!(watch.sleep(LONG, &waker), Heard::Something);
            });
            assert!(began.elapsed() < LONG);
            assert_eq!(watch.sleep(Duration::ZERO, &waker), Heard::Nothing, "what was heard is forgotten");
        }

        #[test]
        fn a_log_that_was_removed_is_watched_again_when_it_is_back() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.db-wal");
            let (mut watch, waker) = (LogWatch::of(&path), Waker::new());
            std::fs::write(&path, "").unwrap();
            assert_eq!(watch.sleep(Duration::ZERO, &waker), Heard::Nothing);
            std::fs::remove_file(&path).unwrap();
            assert_eq!(watch.sleep(LONG, &waker), Heard::Something);
            assert_eq!(watch.sleep(LONG, &waker), Heard::Deaf);
            std::fs::write(&path, "").unwrap();
            assert_eq!(watch.sleep(Duration::ZERO, &waker), Heard::Nothing);
            std::fs::write(&path, "a commit").unwrap();
            assert_eq!(watch.sleep(LONG, &waker), Heard::Something);
        }

        #[test]
        fn a_waker_ends_the_sleep() {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("a.db-wal");
            std::fs::write(&path, "").unwrap();
            let (mut watch, waker) = (LogWatch::of(&path), Waker::new());
            waker.wake();
            assert_eq!(watch.sleep(LONG, &waker), Heard::Something);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use super::{Duration, Heard, Path};

    /// Nobody sleeps for long here.
    #[derive(Debug, Default)]
    pub(crate) struct Waker;

    impl Waker {
        pub(crate) fn wake(&self) {}
    }

    /// Deaf.
    #[derive(Debug)]
    pub(crate) struct LogWatch;

    impl LogWatch {
        pub(crate) fn of(_: &Path) -> Self {
            Self
        }

        pub(crate) fn sleep(&mut self, _: Duration, _: &Waker) -> Heard {
            Heard::Deaf
        }
    }
}
