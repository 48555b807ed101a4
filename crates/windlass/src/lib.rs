//! Background tasks for services: durable, fast, and nothing is ever lost.
//!
//! A task is a struct. A producer enqueues it; a worker runs its handler. The store in between is one SQLite file to begin
//! with.
//!
//! ```
//! use std::time::Duration;
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
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let backend = windlass::connect("memory:").await?; // or "sqlite:tasks.db"
//! let client = Client::new(backend.clone());
//!
//! let registry = App::new("calculator").task(add).build().await?;
//! let shutdown = Shutdown::new();
//! let worker = Worker::new(backend, registry, Settings::new(NodeId::known("w1")));
//! let worker = tokio::spawn(worker.start(shutdown.clone()));
//!
//! let sum = client.enqueue(Add { a: 2, b: 3 }).await?.output(Duration::from_secs(5)).await?;
//! assert_eq!(sum, 5);
//!
//! shutdown.begin(ShutdownStep::Graceful);
//! worker.await??;
//! # Ok(()) }
//! ```
//!
//! The crate `windlass-cli` turns an [`App`] into a program with a worker, a scheduler and every command; the crate
//! `windlass-testkit` tests tasks without waiting.

#[cfg(feature = "bridges")]
pub mod bridges;
mod connect;

pub use connect::{
    ConnectError, ConnectOptions, Location, NetworkFiles, Pending, ServerUrl, connect, connect_outbox, connect_with,
    pending,
};
pub use windlass_core::*;

/// The documents whose code is compiled.
#[cfg(doctest)]
mod documents {
    #[doc = include_str!("../../../docs/batches.md")]
    struct Batches;
    #[doc = include_str!("../../../docs/breakers.md")]
    struct Breakers;
    #[doc = include_str!("../../../docs/flow-control.md")]
    struct FlowControl;
    #[doc = include_str!("../../../docs/steps.md")]
    struct Steps;
}

/// What nearly every file that declares or enqueues tasks needs.
pub mod prelude {
    pub use serde::{Deserialize, Serialize};
    pub use windlass_core::schedule::{cron, every};
    pub use windlass_core::worker::{Settings, Shutdown, ShutdownStep, Worker};
    pub use windlass_core::workflow::{chain, group};
    pub use windlass_core::{
        App, Batch, BatchCx, Client, Cx, Item, Key, NodeId, Priority, QueueName, Rate, Rule, Secret, State, Task,
        TaskError,
    };
}
