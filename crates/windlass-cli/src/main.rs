//! The `windlass` program: every command, with the built-in tasks.

use std::process::ExitCode;

/// A task is allocated on one thread and freed on another, all day long; this allocator is made for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    windlass_cli::run(windlass_cli::builtin::app())
}
