//! TaskIQ's messages as tasks of ours, and the results that its clients wait for.
//!
//! ```text
//! take      carrier -> arrival (pure) -> the bridge adopts
//! answer    results: what is stored for a client (pure) -> SET
//! ```
//!
//! | file | owns |
//! |---|---|
//! | `arrival.rs` | a message: which task, which identity, or why not |
//! | `results.rs` | the keys where clients look |
//! | `options.rs` | how a bridge is set up, and opened on any broker |
//! | [`schedules`] | what `taskiq scheduler` does, for its schedules in Redis |
//! | [`producer`] | the other way: Rust enqueues for Python workers |
//!
//! # What is as in a worker of TaskIQ, and what is better
//!
//! - A message that makes no sense, or names a task without a handler here, is accepted and not answered. It is not dropped: it is a
//!   dead letter of the store.
//! - A message is accepted when its task is stored, whatever `ack_type` its labels or a worker's settings ask for. All four
//!   kinds say after which step a crash no longer brings the task back; here the store does, at every step: a task whose node
//!   dies runs again when its lease ends, and its result is written before its end is recorded.
//! - Retries are ours: a task that fails waits in the store under its id, and no second message is sent. `max_retries` is the
//!   number of runs, and the labels of the result say `_retries`, as if TaskIQ's retry middleware had sent the task again.
//! - A task that is cancelled or expires has a result, an error of the class `TaskCancelled` or `TaskExpired` in a module
//!   `windlass` that no client has imported: clients make an exception of that name. It is not `CancelledError`, which would
//!   cancel whoever waits for the result.
//! - A task that fails with the class `NoResultError` stores no result, as one that raises it.

mod arrival;
mod options;
pub mod producer;
mod results;
pub mod schedules;

use std::collections::HashSet;
use std::sync::Arc;

use async_trait::async_trait;
use windlass_core::Envelope;
use windlass_core::NodeId;
use windlass_core::backend::Demand;
use windlass_core::bridge::{Answer, Concern, LetGo, Returned, Tag, Taken, Transport, TransportError};
use windlass_wire::taskiq::{Broker, LABELS_HEADER};

use crate::carrier::Carrier;
pub use options::{Groups, Options, ResultOptions, open, open_amqp, open_channels, open_lists, open_streams};
pub use results::{Keep, ProgressKeys, Results, WaitError};

/// A bridge's transport for TaskIQ's messages.
#[derive(Debug)]
pub struct TaskIq {
    carrier: Arc<dyn Carrier>,
    broker: Broker,
    registered: HashSet<String>,
    results: Option<Results>,
}

impl TaskIq {
    /// A transport over this carrier, whose kind decides what priorities mean.
    pub fn new(carrier: Arc<dyn Carrier>, broker: Broker, options: Options) -> Self {
        let Options { registered, results, .. } = options;
        Self {
            carrier,
            broker,
            registered: registered.into_iter().collect(),
            results: results.map(|results| Results::new(&results)),
        }
    }

    /// Whether a client may wait for this task.
    fn concerns(&self, envelope: &Envelope) -> bool {
        envelope.headers.contains_key(LABELS_HEADER) && self.registered.contains(envelope.name.as_str())
    }
}

#[async_trait]
impl Transport for TaskIq {
    async fn take(&self, demand: &Demand) -> Result<Vec<Taken>, TransportError> {
        let carried = self.carrier.take(&demand.queues, demand.max, demand.wait, &demand.hush).await?;
        Ok(carried.into_iter().map(|carried| arrival::read(carried, self.broker, &self.registered)).collect())
    }

    async fn accept(&self, tags: &[Tag]) -> Result<Vec<LetGo>, TransportError> {
        self.carrier.accept(tags).await
    }

    async fn put_back(&self, tags: &[Tag], why: Returned) -> Result<(), TransportError> {
        self.carrier.put_back(tags, why).await
    }

    fn concern(&self, envelope: &Envelope) -> Concern {
        match &self.results {
            Some(results) if self.concerns(envelope) => results.concern(),
            Some(_) | None => Concern::Nothing,
        }
    }

    async fn answer(&self, answers: &[Answer]) -> Result<(), TransportError> {
        let Some(results) = &self.results else { return Ok(()) };
        let concerning = answers.iter().filter(|answer| self.concerns(&answer.envelope));
        results.tell(concerning).await
    }

    async fn recover(&self, _living: &[NodeId]) -> Result<u64, TransportError> {
        self.carrier.recover().await
    }
}
