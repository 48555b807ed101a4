//! The data that cases are made of, in few words.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use windlass_core::backend::Demand;
use windlass_core::state::{DeadReason, Spent};
use windlass_core::view::{NodeInfo, NodePhase};
use windlass_core::{Args, Due, Envelope, Failure, Json, NodeId, QueueName, TaskName, Timestamp, Verdict};

/// The lease of most claims.
pub(crate) const LEASE: Duration = secs(30);

/// The least that a store's clock can tell apart.
pub(crate) const MICRO: Duration = Duration::from_micros(1);

/// As long as a case can wait and still be before the end of `duration`.
pub(crate) const fn just_under(duration: Duration) -> Duration {
    duration.saturating_sub(MICRO)
}

/// How long a case waits for nothing to happen.
pub(crate) const SHORT: Duration = Duration::from_millis(50);

pub(crate) const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub(crate) fn queue(name: &str) -> QueueName {
    QueueName::known(name)
}

/// The node of most claims.
pub(crate) fn node() -> NodeId {
    NodeId::known("node-1")
}

pub(crate) fn other_node() -> NodeId {
    NodeId::known("node-2")
}

/// A task of this name in the queue `default`.
pub(crate) fn task(name: &str) -> Envelope {
    Envelope::new(TaskName::known(name), QueueName::default(), Args::none())
}

/// A task in this queue.
pub(crate) fn task_in(queue: &str) -> Envelope {
    Envelope { queue: QueueName::known(queue), ..task("work") }
}

/// A task that starts after a delay.
pub(crate) fn delayed(delay: Duration) -> Envelope {
    Envelope { due: Due::After(delay), ..task("work") }
}

/// Equal tasks, as many as you like.
pub(crate) fn tasks(count: usize) -> Vec<Envelope> {
    (0..count).map(|_| task("work")).collect()
}

/// A demand for up to `max` tasks of the queue `default` that does not wait.
pub(crate) fn demand(max: usize) -> Demand {
    demand_of(&["default"], max)
}

/// A demand for up to `max` tasks of these queues that does not wait.
pub(crate) fn demand_of(queues: &[&str], max: usize) -> Demand {
    Demand {
        node: node(),
        queues: queues.iter().map(|name| queue(name)).collect(),
        max,
        lease: LEASE,
        except: Vec::new(),
        wait: Duration::ZERO,
        hush: CancellationToken::new(),
    }
}

/// A demand for one task of the queue `default` that waits.
pub(crate) fn waiting(wait: Duration) -> Demand {
    Demand { wait, ..demand(1) }
}

pub(crate) fn json(text: &str) -> Json {
    Json::trusted(text)
}

pub(crate) fn ok(result: &str) -> Verdict {
    Verdict::Succeeded { result: json(result), skipped: None }
}

pub(crate) fn failure() -> Failure {
    Failure::new("timeout", "the mail server did not answer")
}

pub(crate) fn dead() -> Verdict {
    Verdict::Dead { reason: DeadReason::Fatal, failure: failure() }
}

/// A failed attempt that is repeated after a delay.
pub(crate) fn again(after: Duration) -> Verdict {
    Verdict::Again { after, spent: Spent::Yes, failure: Some(failure()) }
}

/// A task that is not ready yet: nothing failed and no attempt is spent.
pub(crate) fn snooze(after: Duration) -> Verdict {
    Verdict::Again { after, spent: Spent::No, failure: None }
}

/// What a node says that knows these tasks.
pub(crate) fn node_info(id: &NodeId, names: &[&str]) -> NodeInfo {
    NodeInfo {
        id: id.clone(),
        host: "host".to_owned(),
        pid: 1,
        version: "1.0".to_owned(),
        started_at: Timestamp::from_secs(1_700_000_000),
        queues: vec![QueueName::default()],
        tasks: names.iter().map(|name| TaskName::known(name)).collect(),
        slots: 10,
        busy: 1,
        finished: 7,
        failed: 2,
        phase: NodePhase::Running,
    }
}
