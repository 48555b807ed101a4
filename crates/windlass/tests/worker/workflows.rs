//! Chains, groups and chords from end to end, and schedules.

use std::time::Duration;

use windlass::backend::TaskAction;
use windlass::flow::FailurePolicy;
use windlass::prelude::*;
use windlass::view::Filter;
use windlass::worker::Schedules;
use windlass::{State, WaitError};

use crate::rig::{MINUTE, Rig, What, act, app};

/// Adds up what came before.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "sum", output = u64, input = "values")]
struct Sum {
    #[serde(default)]
    values: Vec<Option<u64>>,
}

async fn sum(task: Sum, _cx: Cx) -> Result<u64, TaskError> {
    Ok(task.values.into_iter().flatten().sum())
}

fn with_sum() -> App {
    app().task(sum)
}

#[tokio::test(start_paused = true)]
async fn a_chain_hands_on_every_result() {
    let rig = Rig::new().await;
    let _worker = rig.worker().await;
    let last = Act3::chain();
    let started = rig.client.start(last).await.unwrap();
    let filter = Filter { workflow: Some(started.id.clone()), ..Filter::default() };
    for _ in 0..3 {
        // tidy: allow(sleep): simulated time
        tokio::time::sleep(MINUTE).await;
    }
    let listing = rig.backend.list(&filter, &windlass::view::Page::first(10)).await.unwrap();
    let results: Vec<_> = listing.tasks.iter().map(|task| task.result.as_ref().unwrap().to::<u64>().unwrap()).collect();
    assert_eq!(results, [6, 3, 1], "newest first");
}

struct Act3;
impl Act3 {
    fn chain() -> windlass::workflow::Chain {
        chain(act(What::Return(1))).then(act(What::Return(2))).then(act(What::Return(3)))
    }
}

#[tokio::test(start_paused = true)]
async fn a_chord_waits_for_all_members_and_gets_their_results() {
    let rig = Rig::new().await;
    let _worker = rig.worker_of("w1", with_sum(), |_| {}).await;
    let members = (1..=100).map(|value| act(What::Return(value)));
    let started = rig.client.start(group(members).then(Sum { values: vec![] })).await.unwrap();
    assert_eq!(started.output::<Sum>(MINUTE).await.unwrap(), 5050);
}

#[tokio::test(start_paused = true)]
async fn a_failed_member_strands_the_body_until_it_is_retried_and_succeeds() {
    let rig = Rig::new().await;
    let _worker = rig.worker_of("w1", with_sum(), |_| {}).await;
    let members = [act(What::Return(1)), act(What::Snooze), act(What::Fail)];
    let started = rig.client.start(group(members).then(Sum { values: vec![] })).await.unwrap();
    let error = started.output::<Sum>(MINUTE * 5).await.unwrap_err();
    assert!(matches!(error, WaitError::Dead(_)), "{error}");
    let dead = Filter { states: vec![State::Dead], workflow: Some(started.id.clone()), ..Filter::default() };
    assert_eq!(rig.backend.list(&dead, &windlass::view::Page::first(10)).await.unwrap().tasks.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_group_of_policy_any_goes_on_with_what_succeeded() {
    let rig = Rig::new().await;
    let _worker = rig.worker_of("w1", with_sum(), |_| {}).await;
    let members = [act(What::Return(4)), act(What::Fail)];
    let workflow = group(members).policy(FailurePolicy::Any).then(Sum { values: vec![] });
    let started = rig.client.start(workflow).await.unwrap();
    assert_eq!(started.output::<Sum>(MINUTE * 5).await.unwrap(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_workflow_is_cancelled_as_a_whole() {
    let rig = Rig::new().await;
    let members = (0..20).map(|_| act(What::Return(1)));
    let started = rig.client.start(group(members).then(Sum { values: vec![] })).await.unwrap();
    assert!(started.cancel().await.unwrap() >= 20);
    assert_eq!(rig.backend.counts().await.unwrap().total().live(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_error_handler_of_a_chain_gets_the_failure() {
    #[derive(Task, Serialize, Deserialize)]
    #[task(name = "mend", output = String, input = "failure")]
    struct Mend {
        #[serde(default)]
        failure: Option<windlass::Failure>,
    }
    async fn mend(task: Mend, _cx: Cx) -> Result<String, TaskError> {
        Ok(task.failure.map(|failure| failure.class).unwrap_or_default())
    }
    let rig = Rig::new().await;
    let _worker = rig.worker_of("w1", app().task(mend), |_| {}).await;
    let workflow = chain(act(What::Fail)).then(act(What::Return(1))).otherwise(Mend { failure: None });
    let started = rig.client.start(workflow).await.unwrap();
    assert_eq!(started.output::<Mend>(MINUTE * 5).await.unwrap(), "scripted");
}

#[tokio::test(start_paused = true)]
async fn two_schedulers_fire_every_slot_once() {
    let rig = Rig::new().await;
    let declare = || app().schedule("tick", every("5s"), act(What::Return(1)));
    let fire = |settings: &mut Settings| settings.schedules = Schedules::Fire;
    let _one = rig.worker_of("w1", declare(), fire).await;
    let _two = rig.worker_of("w2", declare(), fire).await;
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(Duration::from_secs(601)).await;
    assert_eq!(rig.backend.counts().await.unwrap().total().succeeded, 120);
    assert_eq!(rig.backend.schedules().await.unwrap()[0].fired, 120);
}

#[tokio::test(start_paused = true)]
async fn slots_missed_while_no_scheduler_ran_follow_the_policy() {
    use windlass::schedule::Missed;
    let rig = Rig::new().await;
    let declare = || {
        app()
            .schedule("skip", cron("*/10 * * * *").missed(Missed::Skip), act(What::Return(1)))
            .schedule("once", cron("*/10 * * * *").missed(Missed::Once), act(What::Return(1)))
            .schedule("all", cron("*/10 * * * *").missed(Missed::All), act(What::Return(1)))
    };
    let fire = |settings: &mut Settings| settings.schedules = Schedules::Fire;
    let declared = rig.worker_of("w1", declare(), fire).await;
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(Duration::from_secs(1)).await;
    declared.stop().await;
    // Three hours without a scheduler, as seen by a clock that is moved.
    rig.clock.advance(Duration::from_secs(3 * 3600 + 5 * 60));
    let _worker = rig.worker_of("w2", declare(), fire).await;
    // tidy: allow(sleep): simulated time
    tokio::time::sleep(MINUTE).await;
    let fired: Vec<(String, u64)> =
        rig.backend.schedules().await.unwrap().into_iter().map(|s| (s.schedule.id.to_string(), s.fired)).collect();
    assert_eq!(fired, [("all".into(), 18), ("once".into(), 1), ("skip".into(), 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_retried_workflow_goes_on_where_it_stopped() {
    let rig = Rig::new().await;
    let _worker = rig.worker_of("w1", with_sum(), |_| {}).await;
    let started = rig.client.start(chain(act(What::Fail)).then(act(What::Return(2)))).await.unwrap();
    rig.until(&started.id, State::Dead).await;
    let dead = Filter { workflow: Some(started.id.clone()), ..Filter::in_states([State::Dead]) };
    assert_eq!(rig.client.command_all(&dead, TaskAction::Retry).await.unwrap(), 1);
    rig.until_record(&started.id, |record| record.history.len() == 8).await;
}
