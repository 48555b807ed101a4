//! Log lines: for people on a terminal, JSON elsewhere.

/// Starts to write log lines.
pub(crate) fn start() {
    // Only the first call counts: a test may run several commands in one process.
    let _ = tracing_subscriber::fmt().with_max_level(tracing::Level::INFO).try_init();
}
