//! Messages leave the transport once they are stored, while their tasks are at work.

use std::time::Duration;

use windlass_core::backend::Backend as _;
use windlass_core::view::{NodeInfo, NodePhase};

use super::{Rig, claim, demand, info, node, task};

#[tokio::test(start_paused = true)]
async fn what_the_transport_has_let_go_is_forgotten_by_the_store() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.transport.send("t:1", task("work"));
    rig.transport.send("t:2", task("work"));
    claim(&bridge, 1).await;
    assert_eq!(rig.remembered().await, 1);
    claim(&bridge, 1).await;
    assert_eq!(rig.remembered().await, 1, "the first was forgotten with the second");
    bridge.tick(&node("n1")).await.expect("it ticks");
    assert_eq!(rig.remembered().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_could_not_be_accepted_is_accepted_later() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.transport.send("t:1", task("work"));
    rig.transport.fail_accepts();
    assert_eq!(claim(&bridge, 1).await.len(), 1, "the claim goes on");
    assert_eq!(rig.transport.held(), 1);
    rig.transport.mend();
    tokio::time::advance(Duration::from_secs(1)).await;
    bridge.tick(&node("n1")).await.expect("it ticks");
    assert_eq!((rig.transport.held(), rig.remembered().await), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_node_says_goodbye_when_its_messages_have_left_the_transport() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.transport.send("t:1", task("work"));
    assert_eq!(bridge.claim(&demand(1, Duration::ZERO)).await.expect("claimed").len(), 1);
    assert_eq!(rig.transport.held(), 1, "the worker does not wait for the transport");
    let stopped = NodeInfo { phase: NodePhase::Stopped, ..info("n1") };
    bridge.beat(&stopped, Duration::from_secs(10)).await.expect("heard");
    assert_eq!(rig.transport.held(), 0);
    // One that does not answer is not waited for without end.
    rig.transport.hang_accepts();
    rig.transport.send("t:2", task("work"));
    assert_eq!(bridge.claim(&demand(1, Duration::ZERO)).await.expect("claimed").len(), 1);
    bridge.beat(&stopped, Duration::from_secs(10)).await.expect("heard");
    assert_eq!(rig.transport.held(), 1);
}
