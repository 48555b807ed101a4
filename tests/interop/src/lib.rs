//! Windlass beside the programs that it works with: real Celery, kombu, Flower and TaskIQ, in both directions.
//!
//! The suite is in `python/` and is run by `cargo xtask interop`. It starts a worker, by default ours, and calls it with
//! the clients that Python services use. `INTEROP_PEER=python` runs it against a worker from Python instead: what fails
//! there is a mistake of the suite.
//!
//! | module | what it is |
//! |---|---|
//! | [`environment`] | what the suite tells the programs |
//! | [`tasks`] | the tasks that the suite calls |
//! | [`worker`] | our worker in the place of one from Python |
//! | [`celery`], [`taskiq`] | the calls of a client in Rust for workers from Python, whose producers are those of `windlass-bridges` |

pub mod celery;
pub mod environment;
pub mod taskiq;
pub mod tasks;
pub mod worker;
