//! The signals of a supervisor.
//!
//! | signal | means |
//! |---|---|
//! | TERM, INT | every child finishes what runs, then all end; the second one: every child gives back what runs |
//! | TSTP, USR1 | no child takes more tasks; all stay |
//! | TTIN, TTOU | one child more, one fewer |
//! | USR2 | every child logs what runs |
//! | CHLD | a process has ended |

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Exit;
use crate::signals::stop_kind;

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Stop(Exit),
    Quiet,
    More,
    Fewer,
    Dump,
    ChildEnded,
}

/// From when this exists, none of the signals ends the process by itself.
#[derive(Debug)]
pub(super) struct Ears {
    signals: Vec<(Signal, Heard)>,
}

impl Ears {
    /// # Errors
    /// When the system gives no signals: nobody could then stop the supervisor, or hear of a child that has ended.
    pub(super) fn open() -> io::Result<Self> {
        // Their numbers are the same on Linux, macOS and the BSDs.
        let (ttin, ttou) = (SignalKind::from_raw(21), SignalKind::from_raw(22));
        let kinds = [
            (SignalKind::terminate(), Heard::Stop(Exit::Terminated)),
            (SignalKind::interrupt(), Heard::Stop(Exit::Interrupted)),
            (stop_kind(), Heard::Quiet),
            (SignalKind::user_defined1(), Heard::Quiet),
            (ttin, Heard::More),
            (ttou, Heard::Fewer),
            (SignalKind::user_defined2(), Heard::Dump),
            (SignalKind::child(), Heard::ChildEnded),
        ];
        let signals = kinds.into_iter().map(|(kind, heard)| Ok((signal(kind)?, heard)));
        Ok(Self { signals: signals.collect::<io::Result<_>>()? })
    }

    pub(super) async fn next(&mut self) -> Heard {
        std::future::poll_fn(|context| {
            let heard = self.signals.iter_mut().find_map(|(signal, heard)| {
                // None of them ever ends.
                signal.poll_recv(context).is_ready().then_some(*heard)
            });
            heard.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        })
        .await
    }
}
