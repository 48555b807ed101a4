//! Limits that an application declares: they are there before the first claim, and gone with their declaration.

use std::sync::Arc;

use windlass::Clock as _;
use windlass::limit::{Limit, LimitChange, SetBy};
use windlass::prelude::*;
use windlass_testkit::{Faults, FaultyStore};

use crate::rig::{MINUTE, Rig, What, act, app, handle};

/// Works for a second; two of them at once, and one of each key.
#[derive(Task, Serialize, Deserialize)]
#[task(concurrency = 2, key_concurrency = 1)]
struct Render {}

async fn render(_: Render, _cx: Cx) -> Result<(), TaskError> {
    // tidy: allow(sleep): the work of a handler, in simulated time
    tokio::time::sleep(MINUTE / 60).await;
    Ok(())
}

fn at_most(concurrency: u32) -> Rule {
    Rule { concurrency: Some(concurrency), ..Rule::default() }
}

/// Starts and stops a node of an application.
async fn visit(rig: &Rig, node: &str, app: App) {
    let worker = rig.worker_of(node, app, |_| {}).await;
    rig.client.enqueue(act(What::Return(1))).await.unwrap().output(MINUTE).await.unwrap();
    worker.stop().await;
}

/// Every rule as `subject: concurrency`.
async fn rules(rig: &Rig) -> Vec<String> {
    let limits = rig.backend.limits().await.unwrap().limits;
    limits.iter().map(|limit| format!("{}: {}", limit.subject, limit.rule.concurrency.unwrap())).collect()
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_a_task_hold_from_its_first_claim_on() {
    let rig = Rig::new().await;
    let handles = rig.client.enqueue_all((0..4).map(|_| Render {})).await.unwrap();
    let began = rig.clock.now();
    let _worker = rig.worker_of("w1", App::new("test").task(render), |_| {}).await;
    for handle in handles {
        handle.ended(MINUTE).await.unwrap();
    }
    assert!(rig.clock.now().since(began) >= MINUTE / 30, "two after two");
    assert_eq!(rules(&rig).await, ["task:render: 2", "keys-of-task:render: 1"]);
    let limits = rig.backend.limits().await.unwrap().limits;
    assert!(limits.iter().all(|limit| limit.rule.set_by == SetBy::Application));
}

#[tokio::test(start_paused = true)]
async fn a_declaration_that_was_changed_or_removed_is_so_in_the_store_after_the_next_start() {
    let rig = Rig::new().await;
    visit(&rig, "w1", app().limit("queue:mail", at_most(1)).limit("key:acme", at_most(2))).await;
    assert_eq!(rules(&rig).await, ["queue:mail: 1", "key:acme: 2"]);
    visit(&rig, "w2", app().limit("queue:mail", at_most(3))).await;
    assert_eq!(rules(&rig).await, ["queue:mail: 3"]);
    visit(&rig, "w3", app()).await;
    assert!(rules(&rig).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_has_set_is_neither_replaced_nor_removed() {
    let rig = Rig::new().await;
    visit(&rig, "w1", app().limit("queue:mail", at_most(1))).await;
    let by_operator = Limit { subject: "queue:mail".parse().unwrap(), rule: at_most(9) };
    assert!(rig.backend.limit(&LimitChange::Set(by_operator)).await.unwrap());
    visit(&rig, "w2", app().limit("queue:mail", at_most(2))).await;
    visit(&rig, "w3", app()).await;
    assert_eq!(rules(&rig).await, ["queue:mail: 9"]);
}

#[tokio::test(start_paused = true)]
async fn applications_that_share_a_store_leave_the_limits_of_the_others_alone() {
    let rig = Rig::new().await;
    visit(&rig, "w1", app().limit("queue:mail", at_most(1)).limit("queue:both", at_most(1))).await;
    let other = || App::new("other").task(handle);
    visit(&rig, "w2", other().limit("queue:both", at_most(5))).await;
    assert_eq!(rules(&rig).await, ["queue:both: 5", "queue:mail: 1"], "the last one to start decides");
    visit(&rig, "w3", other()).await;
    assert_eq!(rules(&rig).await, ["queue:both: 5", "queue:mail: 1"], "the first one declares it still");
    visit(&rig, "w4", app()).await;
    assert!(rules(&rig).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_declaration_that_makes_no_sense_is_a_mistake_of_the_application() {
    for (app, text) in [
        (app().limit("mail", at_most(1)), "is not the subject of a limit"),
        (app().limit("queue:mail", Rule::default()), "limits nothing"),
        (app().limit("task:act", Rule { length: Some(5), ..Rule::default() }), "a length is for a queue"),
        (App::new("test").task(render).limit("task:render", at_most(1)), "`task:render` is declared twice"),
        ((0..=200).fold(app(), |app, key| app.limit(&*format!("key:{key}"), at_most(1))), "at most 200"),
    ] {
        let mistake = app.build().await.expect_err("it is refused").to_string();
        assert!(mistake.contains(text), "{text}: {mistake}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_node_whose_store_does_not_answer_still_stops() {
    let rig = Rig::new().await;
    let line = Arc::new(FaultyStore::new(rig.backend.clone(), 1, Faults::NONE));
    line.cut();
    let worker = rig.worker_over(line, "w1", app().limit("queue:mail", at_most(1)), |_| {}).await;
    worker.stop().await;
    assert!(rules(&rig).await.is_empty());
}
