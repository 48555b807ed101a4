//! Producers hear of tasks that ended while nobody held them.

use std::collections::BTreeSet;
use std::time::Duration;

use windlass_core::backend::{Backend as _, Command, Push, Settled, Target, TaskAction};
use windlass_core::bridge::{Answer, Bridge, News};
use windlass_core::flow;
use windlass_core::state::{CRASHES_MAX, DeadReason, PARKED_FOR};
use windlass_core::{Due, Envelope, Failure, TaskId, Verdict};

use super::{LEASE, Rig, answered, claim, node, task};

/// What producers heard of ends without a holder: the name of the task, its attempts, and how it ended.
fn ends(rig: &Rig) -> Vec<(String, u32, Verdict)> {
    let ended = |answer: Answer| match answer.news {
        News::Ended(verdict) => Some((answer.envelope.name.to_string(), answer.attempt, verdict)),
        News::Started(_) | News::Settled(_) => None,
    };
    rig.transport.answers().into_iter().filter_map(ended).collect()
}

async fn tick(bridge: &Bridge) {
    bridge.tick(&node("n1")).await.expect("it ticks");
}

async fn cancel(rig: &Rig, id: &TaskId) {
    let command = Command::Tasks { target: Target::Ids(vec![id.clone()]), action: TaskAction::Cancel };
    assert_eq!(rig.store.command(&command).await.expect("commanded").changed, 1);
}

/// A task that waits in the store for an hour, and came from the transport.
async fn waiting_task(rig: &Rig, bridge: &Bridge, envelope: Envelope) -> TaskId {
    let envelope = Envelope { due: Due::After(Duration::from_secs(3_600)), ..envelope };
    let id = envelope.id.clone();
    rig.transport.send(&format!("t:{id}"), envelope);
    assert!(claim(bridge, 1).await.is_empty());
    id
}

#[tokio::test(start_paused = true)]
async fn the_producer_of_a_task_that_is_cancelled_while_it_waits_hears_of_it_once() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let id = waiting_task(&rig, &bridge, answered("work")).await;
    tick(&bridge).await;
    cancel(&rig, &id).await;
    assert_eq!(ends(&rig), []);
    for _ in 0..10 {
        tokio::time::advance(Duration::from_secs(5)).await;
        tick(&bridge).await;
    }
    assert_eq!(ends(&rig), [("work".to_owned(), 0, Verdict::Cancelled)]);
}

#[tokio::test(start_paused = true)]
async fn the_producer_of_a_task_that_expires_while_it_waits_hears_of_it_with_the_tick_that_ends_it() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let expires = Some(rig.clock.now() + Duration::from_secs(7));
    waiting_task(&rig, &bridge, Envelope { expires, ..answered("late") }).await;
    tokio::time::advance(Duration::from_secs(6)).await;
    tick(&bridge).await;
    assert_eq!(ends(&rig), []);
    tokio::time::advance(Duration::from_secs(1)).await;
    tick(&bridge).await;
    assert_eq!(ends(&rig), [("late".to_owned(), 0, Verdict::Expired)]);
}

#[tokio::test(start_paused = true)]
async fn the_producer_of_poison_hears_that_it_is_dead_and_after_how_many_attempts() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.transport.send("t:1", answered("deadly"));
    for _ in 0..CRASHES_MAX {
        assert_eq!(claim(&bridge, 1).await.len(), 1);
        tokio::time::advance(LEASE).await;
        tick(&bridge).await;
    }
    let (name, attempt, verdict) = ends(&rig).remove(0);
    assert_eq!((name.as_str(), attempt, ends(&rig).len()), ("deadly", CRASHES_MAX, 1));
    assert!(matches!(verdict, Verdict::Dead { reason: DeadReason::Poison, .. }), "{verdict:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_parked_for_too_long_is_told_as_dead() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.transport.send("t:1", answered("strange"));
    let claims = claim(&bridge, 1).await;
    let parked = Settled {
        receipt: claims[0].receipt.clone(),
        follow: windlass_core::flow::Follow::default(),
        verdict: Verdict::Parked,
    };
    bridge.settle(&[parked]).await.expect("settled");
    tokio::time::advance(PARKED_FOR).await;
    tick(&bridge).await;
    let told = ends(&rig);
    assert!(matches!(&told[..], [(_, 0, Verdict::Dead { reason: DeadReason::Unknown, .. })]), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn a_node_tells_what_another_one_has_ended() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let expires = Some(rig.clock.now() + Duration::from_secs(1));
    waiting_task(&rig, &bridge, Envelope { expires, ..answered("late") }).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(rig.store.tick(&node("n2")).await.expect("it ticks").ended, 1);
    tick(&bridge).await;
    assert_eq!(ends(&rig), [("late".to_owned(), 0, Verdict::Expired)]);
}

#[tokio::test(start_paused = true)]
async fn what_ended_while_no_node_was_there_is_told_by_the_next_one_up_to_a_minute_later() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let (old, new) =
        (waiting_task(&rig, &bridge, answered("old")).await, waiting_task(&rig, &bridge, answered("new")).await);
    drop(bridge);
    cancel(&rig, &old).await;
    tokio::time::advance(Duration::from_secs(61)).await;
    cancel(&rig, &new).await;
    tick(&rig.bridge()).await;
    assert_eq!(ends(&rig), [("new".to_owned(), 0, Verdict::Cancelled)]);
}

#[tokio::test(start_paused = true)]
async fn what_concerns_nobody_or_was_told_by_its_holder_is_not_told_as_an_end_without_one() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let unheard = waiting_task(&rig, &bridge, task("unheard")).await;
    cancel(&rig, &unheard).await;
    rig.transport.send("t:1", answered("dead"));
    rig.transport.send("t:2", answered("cancelled"));
    let claims = claim(&bridge, 2).await;
    let dead = Verdict::Dead { reason: DeadReason::Fatal, failure: Failure::new("x", "no") };
    let settled = [dead, Verdict::Cancelled].into_iter().zip(&claims).map(|(verdict, claim)| Settled {
        receipt: claim.receipt.clone(),
        follow: flow::follow(&claim.envelope, &verdict),
        verdict,
    });
    bridge.settle(&settled.collect::<Vec<_>>()).await.expect("settled");
    for _ in 0..3 {
        tokio::time::advance(Duration::from_secs(5)).await;
        tick(&bridge).await;
    }
    assert_eq!(ends(&rig), []);
}

#[tokio::test(start_paused = true)]
async fn an_end_that_cannot_be_told_is_told_when_the_transport_is_back() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let id = waiting_task(&rig, &bridge, answered("work")).await;
    cancel(&rig, &id).await;
    rig.transport.cut();
    for _ in 0..20 {
        tokio::time::advance(Duration::from_secs(5)).await;
        tick(&bridge).await;
    }
    assert_eq!(ends(&rig), []);
    rig.transport.mend();
    tokio::time::advance(Duration::from_secs(10)).await;
    tick(&bridge).await;
    assert_eq!(ends(&rig), [("work".to_owned(), 0, Verdict::Cancelled)]);
}

#[tokio::test(start_paused = true)]
async fn however_many_end_at_once_all_are_told_some_with_each_tick() {
    const MANY: usize = 2_500;
    let rig = Rig::new();
    let bridge = rig.bridge();
    let expires = Some(rig.clock.now() + Duration::from_secs(1));
    let waits = || Envelope { due: Due::After(Duration::from_secs(60)), expires, ..answered("late") };
    for _ in 0..MANY / 500 {
        let envelopes = (0..500).map(|_| waits()).collect();
        rig.store.push(&Push { envelopes, groups: vec![] }).await.expect("pushed");
    }
    tokio::time::advance(Duration::from_secs(1)).await;
    while rig.store.tick(&node("n2")).await.expect("it ticks").ended > 0 {}
    tick(&bridge).await;
    assert_eq!(ends(&rig).len(), 1_000);
    for _ in 0..2 {
        tick(&bridge).await;
    }
    let told: BTreeSet<String> = rig.transport.answers().iter().map(Answer::id).collect();
    assert_eq!((ends(&rig).len(), told.len()), (MANY, MANY));
}
