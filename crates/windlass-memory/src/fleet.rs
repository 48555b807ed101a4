//! Nodes: who beats, who is alive, and what each was ordered to do.

use std::collections::BTreeMap;
use std::time::Duration;

use windlass_core::backend::Order;
use windlass_core::view::{Node, NodeInfo, NodePhase};
use windlass_core::{NodeId, Timestamp};

use crate::data::{Data, Stage};

/// How long a node that no longer beats is remembered.
const REMEMBERED: Duration = Duration::from_secs(86_400);
/// The most orders that wait for one node; the oldest go first.
const ORDERS_MAX: usize = 100;

/// The nodes of the last day.
#[derive(Default)]
pub(crate) struct Fleet {
    nodes: BTreeMap<NodeId, Beaten>,
}

/// What a node said last.
struct Beaten {
    info: NodeInfo,
    beat_at: Timestamp,
    alive_until: Timestamp,
    orders: Vec<Order>,
}

/// Whether an order reached a node.
pub(crate) enum Ordered {
    Kept,
    UnknownNode,
}

impl Fleet {
    fn forget_old(&mut self, now: Timestamp) {
        self.nodes.retain(|_, node| node.beat_at + REMEMBERED >= now);
    }

    /// Keeps an order until the node's next tick.
    pub(crate) fn order(&mut self, node: &NodeId, order: Order, now: Timestamp) -> Ordered {
        self.forget_old(now);
        let Some(node) = self.nodes.get_mut(node) else { return Ordered::UnknownNode };
        if node.orders.len() == ORDERS_MAX {
            node.orders.remove(0);
        }
        node.orders.push(order);
        Ordered::Kept
    }

    /// What this node was ordered since it last asked.
    pub(crate) fn take_orders(&mut self, node: &NodeId) -> Vec<Order> {
        self.nodes.get_mut(node).map(|node| std::mem::take(&mut node.orders)).unwrap_or_default()
    }
}

impl Data {
    pub(crate) fn beat(&mut self, info: &NodeInfo, ttl: Duration, now: Timestamp) {
        self.fleet.forget_old(now);
        let orders = self.fleet.take_orders(&info.id);
        let node = Beaten { info: info.clone(), beat_at: now, alive_until: now + ttl, orders };
        self.fleet.nodes.insert(info.id.clone(), node);
        // A node that has left takes nothing; its names would only be parked again.
        if info.phase == NodePhase::Stopped || self.parked_by_name.is_empty() {
            return;
        }
        for name in &info.tasks {
            for slot in self.parked_by_name.get(name).cloned().unwrap_or_default() {
                self.change(slot, Stage::Ready);
            }
        }
    }

    pub(crate) fn nodes(&mut self, now: Timestamp) -> Vec<Node> {
        self.fleet.forget_old(now);
        let node_of = |beaten: &Beaten| Node {
            info: beaten.info.clone(),
            beat_at: beaten.beat_at,
            alive: beaten.alive_until > now && beaten.info.phase != NodePhase::Stopped,
        };
        let (mut living, dead): (Vec<Node>, Vec<Node>) =
            self.fleet.nodes.values().map(node_of).partition(|node| node.alive);
        living.extend(dead);
        living
    }
}
