//! What `beat`, `nodes` and orders promise: the fleet is seen as it is, and each node hears what it is told, once.

use std::sync::Arc;
use std::time::Duration;

use windlass_core::backend::{Command, Order};
use windlass_core::view::{Node, NodeInfo, NodePhase};
use windlass_core::{NodeId, State, TaskName, Verdict};

use super::harness::{Harness, PATIENCE, START, answer, begun, soon};
use super::make::{MICRO, demand, just_under, node, node_info, other_node, secs, task, waiting};

const TTL: Duration = secs(30);
const DAY: Duration = secs(86_400);

/// A node is seen as it described itself last.
pub async fn a_node_is_seen_as_it_described_itself(h: &Harness) {
    beat(h, node_info(&node(), &["mail"])).await;
    h.clock.advance(secs(5));
    let newer = NodeInfo { busy: 9, phase: NodePhase::Quiet, ..node_info(&node(), &["mail", "sync"]) };
    beat(h, newer.clone()).await;
    assert_eq!(nodes(h).await, [Node { info: newer, beat_at: START + secs(5), alive: true }]);
}

/// A node lives as long as its last beat said.
pub async fn a_node_lives_until_its_time_is_over(h: &Harness) {
    beat(h, node_info(&node(), &[])).await;
    h.clock.advance(just_under(TTL));
    assert!(nodes(h).await[0].alive);
    h.clock.advance(MICRO);
    assert!(!nodes(h).await[0].alive);
    beat(h, node_info(&node(), &[])).await;
    assert!(nodes(h).await[0].alive);
}

/// A node that says that it stopped is not alive.
pub async fn a_stopped_node_is_not_alive(h: &Harness) {
    for (phase, alive) in [(NodePhase::Quiet, true), (NodePhase::Stopping, true), (NodePhase::Stopped, false)] {
        beat(h, NodeInfo { phase, ..node_info(&node(), &[]) }).await;
        assert_eq!(nodes(h).await[0].alive, alive, "{phase:?}");
    }
}

/// The living come first, then order is by name.
pub async fn living_nodes_come_first(h: &Harness) {
    for name in ["b", "a"] {
        beat(h, NodeInfo { phase: NodePhase::Stopped, ..node_info(&NodeId::known(name), &[]) }).await;
    }
    for name in ["d", "c"] {
        beat(h, node_info(&NodeId::known(name), &[])).await;
    }
    let names: Vec<String> = nodes(h).await.into_iter().map(|node| node.info.id.to_string()).collect();
    assert_eq!(names, ["c", "d", "a", "b"]);
}

/// A node is remembered for a day.
pub async fn a_node_is_remembered_for_a_day(h: &Harness) {
    beat(h, node_info(&node(), &[])).await;
    h.clock.advance(just_under(DAY));
    assert_eq!(nodes(h).await.len(), 1);
    h.clock.advance(MICRO * 2);
    assert_eq!(nodes(h).await, []);
}

/// Parked tasks whose name a node declares are ready again; the others go on waiting.
pub async fn parked_tasks_are_offered_to_a_node_that_knows_them(h: &Harness) {
    let known = h.push_and_run(task("mail"), Verdict::Parked).await;
    let unknown = h.push_and_run(task("sync"), Verdict::Parked).await;
    beat(h, node_info(&node(), &["mail", "work"])).await;
    assert_eq!((h.state(&known).await, h.state(&unknown).await), (State::Ready, State::Parked));
    assert_eq!(h.claim_one().await.attempt, 1, "parking spent no attempt");
}

/// A task that is offered again stands where it stood before it was parked, in whatever queue.
pub async fn a_parked_task_gets_its_place_back(h: &Harness) {
    let parked = h.push_and_run(task("mail"), Verdict::Parked).await;
    h.clock.advance(secs(5));
    let later = h.push(task("work")).await;
    beat(h, NodeInfo { queues: Vec::new(), ..node_info(&node(), &["mail"]) }).await;
    let claims = h.claim(demand(2)).await;
    assert_eq!((&claims[0].receipt.id, &claims[1].receipt.id), (&parked, &later));
    assert_eq!(claims[0].ready_at, START);
}

/// A node that has stopped is offered nothing.
pub async fn a_stopped_node_is_offered_nothing(h: &Harness) {
    let parked = h.push_and_run(task("mail"), Verdict::Parked).await;
    beat(h, NodeInfo { phase: NodePhase::Stopped, ..node_info(&node(), &["mail"]) }).await;
    assert_eq!(h.state(&parked).await, State::Parked);
}

/// A beat that makes parked tasks ready wakes a claim that waits.
pub async fn a_waiting_claim_is_woken_by_a_beat(h: &Harness) {
    let parked = h.push_and_run(task("mail"), Verdict::Parked).await;
    let store = Arc::clone(&h.store);
    let claim = begun(async move { store.claim(&waiting(PATIENCE * 2)).await });
    beat(h, node_info(&node(), &["mail"])).await;
    let claims = answer(soon(claim).await);
    assert_eq!((claims.len(), &claims[0].receipt.id), (1, &parked));
    assert_eq!(claims[0].envelope.name, TaskName::known("mail"));
}

/// Orders reach their node with its next tick, in their order, and once.
pub async fn orders_are_delivered_once(h: &Harness) {
    beat(h, node_info(&node(), &[])).await;
    let orders = [Order::Quiet, Order::Resize(7), Order::Resume, Order::Stop];
    for order in orders {
        assert_eq!(h.command(Command::Order { node: node(), order }).await.changed, 1);
    }
    assert_eq!(h.tick().await.orders, orders);
    assert_eq!(h.tick().await.orders, []);
}

/// An order waits for its node however often that beats in between, and through whatever handle it was given.
pub async fn an_order_waits_for_its_node(h: &Harness) {
    beat(h, node_info(&node(), &[])).await;
    answer(h.second.command(&Command::Order { node: node(), order: Order::Quiet }).await);
    beat(h, node_info(&node(), &["mail"])).await;
    assert_eq!(h.tick().await.orders, [Order::Quiet]);
}

/// An order reaches nobody else.
pub async fn an_order_is_for_one_node(h: &Harness) {
    beat(h, node_info(&node(), &[])).await;
    beat(h, node_info(&other_node(), &[])).await;
    h.command(Command::Order { node: other_node(), order: Order::Stop }).await;
    assert_eq!(h.tick().await.orders, []);
    assert_eq!(answer(h.store.tick(&other_node()).await).orders, [Order::Stop]);
}

/// An order to a node that nobody knows changes nothing.
pub async fn an_order_to_an_unknown_node_changes_nothing(h: &Harness) {
    assert_eq!(h.command(Command::Order { node: node(), order: Order::Stop }).await.changed, 0);
    beat(h, node_info(&node(), &[])).await;
    assert_eq!(h.tick().await.orders, []);
}

async fn beat(h: &Harness, info: NodeInfo) {
    answer(h.store.beat(&info, TTL).await);
}

async fn nodes(h: &Harness) -> Vec<Node> {
    answer(h.store.nodes().await)
}
