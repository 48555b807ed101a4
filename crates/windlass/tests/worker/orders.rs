//! What operators tell nodes, queues and tasks.

use std::time::Duration;

use windlass::backend::{Command, Order};
use windlass::prelude::*;
use windlass::{QueueName, State};

use crate::rig::{MINUTE, Rig, What, act};

async fn order(rig: &Rig, order: Order) {
    let command = Command::Order { node: NodeId::known("w1"), order };
    assert_eq!(rig.backend.command(&command).await.unwrap().changed, 1);
    // Orders are heard with the next tick.
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(Duration::from_secs(2)).await;
}

async fn works(rig: &Rig) {
    let handle = rig.client.enqueue(act(What::Return(1))).await.unwrap();
    assert_eq!(handle.output(MINUTE).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_node_claims_nothing_until_it_resumes() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    works(&rig).await;
    order(&rig, Order::Quiet).await;
    let handle = rig.client.enqueue(act(What::Return(1))).await.unwrap();
    assert!(handle.output(MINUTE).await.is_err());
    order(&rig, Order::Resume).await;
    assert_eq!(handle.output(MINUTE).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_ordered_to_stop_ends_like_after_a_signal() {
    let rig = Rig::new().await;
    let worker = rig.worker().await;
    works(&rig).await;
    order(&rig, Order::Stop).await;
    assert_eq!(worker.ended.await.unwrap().left_behind, 0);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_resized_runs_as_many_handlers_as_it_was_told() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    works(&rig).await;
    order(&rig, Order::Resize(1)).await;
    let tasks = (0..3).map(|_| act(What::Work(Duration::from_secs(10))));
    let handles = rig.client.enqueue_all(tasks).await.unwrap();
    rig.until(&handles[0].id, State::Running).await;
    assert_eq!(rig.backend.counts().await.unwrap().total().running, 1);
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_paused_queue_is_started() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    rig.backend.command(&Command::PauseQueue(QueueName::default())).await.unwrap();
    let handle = rig.client.enqueue(act(What::Return(1))).await.unwrap();
    assert!(handle.output(MINUTE).await.is_err());
    rig.backend.command(&Command::ResumeQueue(QueueName::default())).await.unwrap();
    assert_eq!(handle.output(MINUTE).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_heavier_queue_comes_first_more_often_and_starves_nobody() {
    let rig = Rig::new().await;
    for queue in ["heavy", "light"] {
        for _ in 0..200 {
            rig.client.enqueue(act(What::Work(Duration::from_secs(1)))).queue(QueueName::known(queue)).await.unwrap();
        }
    }
    let _worker = rig
        .worker_of("w1", crate::rig::app(), |settings| {
            settings.slots = 1;
            settings.seed = 4711;
            settings.queues = vec![(QueueName::known("heavy"), 3), (QueueName::known("light"), 1)];
        })
        .await;
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(Duration::from_secs(200)).await;
    let counts = rig.backend.counts().await.unwrap();
    let done = |queue| counts.queues[&QueueName::known(queue)].succeeded;
    assert!(done("heavy") > 2 * done("light") && done("light") > 20, "{} and {}", done("heavy"), done("light"));
}
