//! The supervisor in the fleet: it is listed as a node of its own, and hears orders that people give to it.
//!
//! Its slots in the list are the children that are wanted, and those that take tasks are busy. It works without a store just
//! as well: then it hears signals only.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use windlass::backend::{Command as StoreCommand, Order};
use windlass::config::Loaded;
use windlass::view::{Node, NodeInfo, NodePhase};
use windlass::{Backend, Clock, NodeId, StoreError, SystemClock};

use super::crew::Told;
use crate::settings::{self, Missing};

/// How often orders are heard, as by every node.
const LISTEN_EVERY: Duration = Duration::from_secs(1);
/// How often it says that it is alive, in times that it listens, and for how long that holds.
const BEAT_EVERY: u32 = 5;
const BEAT_TTL: Duration = Duration::from_secs(20);
/// The wait before the store is opened again.
const OPEN_AGAIN: Duration = Duration::from_secs(5);

/// What is shown of a supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) wanted: usize,
    pub(super) ready: usize,
    pub(super) phase: NodePhase,
}

/// Whether this node is a supervisor. A worker has a queue at least, a scheduler too.
pub(crate) fn is_supervisor(node: &Node) -> bool {
    node.info.queues.is_empty()
}

/// Hears orders until the supervisor has stopped.
pub(super) async fn hear(loaded: Loaded, node: NodeId, shown: watch::Receiver<Shown>, told: mpsc::Sender<Told>) {
    let mut stop = shown.clone();
    let backend = tokio::select! {
        backend = open(&loaded) => backend,
        _ = stop.wait_for(|shown| shown.phase == NodePhase::Stopped) => return,
    };
    let started_at = SystemClock.now();
    // What is dropped half-way here are a beat and a tick, of somebody who leaves.
    tokio::select! {
        () = serve(&backend, &node, shown.clone(), started_at, &told) => {}
        _ = stop.wait_for(|shown| shown.phase == NodePhase::Stopped) => {}
    }
    let last = *shown.borrow();
    beat(&backend, &info(&node, last, started_at)).await;
}

async fn open(loaded: &Loaded) -> Arc<dyn Backend> {
    loop {
        match settings::open(loaded, Missing::Create).await {
            Ok(backend) => return backend,
            // The children say it as well, and louder.
            Err(problem) => tracing::debug!(event = "orders_unheard", error = %problem, "no store to hear orders from"),
        }
        tokio::time::sleep(OPEN_AGAIN).await;
    }
}

async fn serve(
    backend: &Arc<dyn Backend>,
    node: &NodeId,
    mut shown: watch::Receiver<Shown>,
    started_at: windlass::Timestamp,
    told: &mpsc::Sender<Told>,
) {
    for round in 0_u32.. {
        if round.is_multiple_of(BEAT_EVERY) || shown.has_changed().unwrap_or(false) {
            let now_shown = *shown.borrow_and_update();
            beat(backend, &info(node, now_shown, started_at)).await;
        }
        match backend.tick(node).await {
            Ok(ticked) => {
                for order in ticked.orders {
                    if obey(backend, node, order, told).await.is_err() {
                        return;
                    }
                }
            }
            Err(error) => tracing::debug!(event = "orders_unheard", %error, "the store gives no orders"),
        }
        tokio::time::sleep(LISTEN_EVERY).await;
    }
}

async fn beat(backend: &Arc<dyn Backend>, info: &NodeInfo) {
    if let Err(error) = backend.beat(info, BEAT_TTL).await {
        tracing::debug!(event = "orders_unheard", %error, "the store takes no beat");
    }
}

/// # Errors
/// When the supervisor has left.
async fn obey(
    backend: &Arc<dyn Backend>,
    node: &NodeId,
    order: Order,
    told: &mpsc::Sender<Told>,
) -> Result<(), mpsc::error::SendError<Told>> {
    tracing::info!(event = "order", order = ?order, "told by an order");
    match order {
        Order::Quiet => told.send(Told::Quiet).await,
        Order::Stop => told.send(Told::Stop).await,
        Order::Resize(children) => told.send(Told::Resize(children)).await,
        Order::Resume => {
            told.send(Told::Resume).await?;
            if let Err(error) = resume_children(backend, node).await {
                tracing::warn!(event = "resume_failed", %error, "not every child was told to take tasks again");
            }
            Ok(())
        }
    }
}

/// Children hear this order as all workers do.
async fn resume_children(backend: &Arc<dyn Backend>, node: &NodeId) -> Result<(), StoreError> {
    for child in backend.nodes().await?.iter().filter(|child| child.alive && is_child(&child.info.id, node)) {
        backend.command(&StoreCommand::Order { node: child.info.id.clone(), order: Order::Resume }).await?;
    }
    Ok(())
}

fn is_child(child: &NodeId, node: &NodeId) -> bool {
    let number = child.as_str().strip_prefix(node.as_str()).and_then(|rest| rest.strip_prefix('-'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn info(node: &NodeId, shown: Shown, started_at: windlass::Timestamp) -> NodeInfo {
    NodeInfo {
        id: node.clone(),
        host: crate::commands::worker::host(),
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        started_at,
        queues: Vec::new(),
        tasks: Vec::new(),
        slots: shown.wanted,
        busy: shown.ready,
        finished: 0,
        failed: 0,
        phase: shown.phase,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_children_of_a_supervisor_are_known_by_their_names() {
        let node = NodeId::known("w1");
        assert!(is_child(&NodeId::known("w1-1"), &node) && is_child(&NodeId::known("w1-12"), &node));
        for other in ["w1", "w1-", "w1-a", "w10-1", "w2-1"] {
            assert!(!is_child(&NodeId::known(other), &node), "{other}");
        }
    }
}
