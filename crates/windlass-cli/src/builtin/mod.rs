//! The tasks that the `windlass` program knows without anybody writing Rust.

use windlass::App;

/// What the built-in tasks share.
#[derive(Debug, Default)]
pub struct Services;

/// The application of the `windlass` program.
pub fn app() -> App<Services> {
    App::new("windlass").state(async || Ok::<_, std::io::Error>(Services))
}
