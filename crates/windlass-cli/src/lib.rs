//! The command line of Windlass, for the `windlass` program and for every application that hands over its tasks.
//!
//! ```no_run
//! use std::process::ExitCode;
//! use windlass::prelude::*;
//!
//! /// Adds two numbers.
//! #[derive(Task, Serialize, Deserialize)]
//! #[task(output = i64)]
//! struct Add { a: i64, b: i64 }
//!
//! async fn add(task: Add, _cx: Cx) -> Result<i64, TaskError> {
//!     Ok(task.a + task.b)
//! }
//!
//! fn main() -> ExitCode {
//!     windlass_cli::run(App::new("calculator").task(add))
//! }
//! ```
//!
//! The program then has a worker, a scheduler and every command: `calculator worker`, `calculator enqueue add --args
//! '{"a": 2, "b": 3}'`, `calculator task ls`.

pub mod builtin;
pub mod demo;

mod args;
mod bench;
mod commands;
mod context;
mod doors;
mod exit;
mod json;
mod logs;
mod output;
mod parent;
mod probes;
mod program;
mod select;
mod settings;
mod signals;
mod supervisor;
mod task_args;

use std::process::ExitCode;

use windlass::App;

pub use exit::{Exit, Problem};

/// Runs the command that the command line names, with the tasks of this application.
pub fn run<S: Send + Sync + 'static>(app: App<S>) -> ExitCode {
    commands::main(program::Program::of(app))
}

/// The code in the README compiles; here, because this crate is the only one that has all of it.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
