//! Somebody who watches over a process that a worker has to itself, and may therefore end.
//!
//! A thread cannot be ended, a process can. So a worker with a guard does not live on with a handler that blocks its thread
//! beyond its limits: it settles what that handler did, gives back what else runs, and leaves. Whoever started the process
//! starts another.

use std::time::Duration;

/// How often a guard is asked.
pub const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Watches over the process of a worker.
pub trait Guard: Send + Sync {
    /// Asked on the engine's thread every [`LOOK_EVERY`], also while every handler blocks: it must not block.
    fn look(&self) -> Advice;
}

/// What a guard has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// All is well.
    GoOn,
    /// The process uses more memory than it may: what runs has failed with the class `memory_limit`, and the worker
    /// leaves.
    OutOfMemory {
        /// What it uses, in bytes.
        used: u64,
        /// What it may use.
        limit: u64,
    },
}

/// Why a worker has left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It was told to.
    Told,
    /// A handler does not give its thread back; only with a guard.
    Stuck,
    /// Its guard said [`Advice::OutOfMemory`].
    OutOfMemory,
}

/// Whether a worker may end its process for the sake of one handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Process {
    /// It shares it with others.
    Shared,
    /// It has it to itself.
    Own,
}

impl Process {
    /// A handler that still runs this long after it should have ended blocks its thread. Where that ends the process it
    /// is noticed early: the others of the process wait for it.
    pub(crate) const fn overdue(self) -> Duration {
        match self {
            Self::Shared => super::dispatcher::OVERDUE,
            Self::Own => Duration::from_millis(250),
        }
    }
}
