//! A process that ends with the one that started it.

use std::io::Read;
use std::time::Duration;

use windlass::worker::{Shutdown, ShutdownStep};

/// What the process that started this one means for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Nothing.
    Any,
    /// It holds standard input, and this process ends with it.
    HoldsStdin,
}

/// How long the engine may take to give back what runs.
const END_LIMIT: Duration = Duration::from_secs(10);

/// Begins a shutdown when standard input closes: its other end is held by the process that started this one, and closes
/// however that one ends. What runs is given back at once, because whoever wanted it is gone.
pub(crate) fn end_with_stdin(shutdown: Shutdown) {
    // A thread of its own: reading standard input cannot be broken off, and must not hold up the end of the runtime.
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        let mut input = std::io::stdin().lock();
        while input.read(&mut buffer).is_ok_and(|read| read > 0) {}
        tracing::info!(event = "parent_gone", "standard input has closed: giving back what runs");
        shutdown.begin(ShutdownStep::Immediate);
        std::thread::sleep(END_LIMIT);
        // The store does not answer, and nobody is left to be told: leases return what could not be given back.
        std::process::exit(1);
    });
}
