//! What pauses promise: nothing of what is paused is started, nothing is lost, and resuming is noticed at once.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use windlass_core::backend::{Command, Demand, TaskAction};
use windlass_core::{Envelope, QueueName, State, TaskName};

use super::harness::{Harness, PATIENCE, START, answer, begun, soon};
use super::make::{LEASE, SHORT, delayed, demand, demand_of, ok, queue, secs, task, task_in, tasks, waiting};

/// Nothing of a paused queue is claimed; what is pushed meanwhile waits, and other queues go on.
pub async fn nothing_of_a_paused_queue_is_claimed(h: &Harness) {
    let before = h.push(task("work")).await;
    pause(h).await;
    let after = h.push(task("work")).await;
    let other = h.push(task_in("other")).await;
    assert_eq!(h.claim_ids(demand_of(&["default", "other"], 10)).await, [other]);
    assert_eq!(h.counts(&QueueName::default()).await.ready, 2);
    resume(h).await;
    assert_eq!(h.claim_ids(demand(10)).await, [before, after]);
}

/// Nothing of a paused name is claimed, from no queue; what stands behind it is.
pub async fn nothing_of_a_paused_name_is_claimed(h: &Harness) {
    let mails = h.push_all([task("mail"), Envelope { queue: queue("other"), ..task("mail") }]).await;
    let sync = h.push(task("sync")).await;
    h.command(Command::PauseTask(TaskName::known("mail"))).await;
    assert_eq!(h.claim_ids(demand_of(&["default", "other"], 10)).await, [sync]);
    h.command(Command::ResumeTask(TaskName::known("mail"))).await;
    assert_eq!(h.claim_ids(demand_of(&["default", "other"], 10)).await, mails);
}

/// A pause is seen by everybody.
pub async fn a_pause_holds_for_every_handle(h: &Harness) {
    h.push(task("work")).await;
    pause(h).await;
    assert_eq!(answer(h.second.claim(&demand(1)).await).len(), 0);
    answer(h.second.command(&Command::ResumeQueue(QueueName::default())).await);
    assert_eq!(h.claim(demand(1)).await.len(), 1);
}

/// A queue can be paused before it has its first task.
pub async fn a_queue_is_paused_before_its_first_task(h: &Harness) {
    let later = queue("later");
    assert_eq!(h.command(Command::PauseQueue(later.clone())).await.changed, 1);
    assert!(h.counts(&later).await.paused);
    h.push(task_in("later")).await;
    assert_eq!(h.claim_ids(demand_of(&["later"], 1)).await, []);
}

/// A pause that is in force already changes nothing, nor does resuming what is not paused.
pub async fn a_pause_in_force_changes_nothing(h: &Harness) {
    let (queue, name) = (QueueName::default(), TaskName::known("mail"));
    for (command, changed) in [
        (Command::ResumeQueue(queue.clone()), 0),
        (Command::PauseQueue(queue.clone()), 1),
        (Command::PauseQueue(queue.clone()), 0),
        (Command::ResumeQueue(queue), 1),
        (Command::ResumeTask(name.clone()), 0),
        (Command::PauseTask(name.clone()), 1),
        (Command::PauseTask(name.clone()), 0),
        (Command::ResumeTask(name), 1),
    ] {
        assert_eq!(h.command(command.clone()).await.changed, changed, "{command:?}");
    }
}

/// Counts show what is paused, and no more when it is resumed.
pub async fn counts_show_what_is_paused(h: &Harness) {
    pause(h).await;
    let name = TaskName::known("mail");
    h.command(Command::PauseTask(name.clone())).await;
    let counts = answer(h.store.counts().await);
    assert!(counts.queues[&QueueName::default()].paused);
    assert_eq!(counts.paused_tasks, std::slice::from_ref(&name));
    resume(h).await;
    h.command(Command::ResumeTask(name)).await;
    let counts = answer(h.store.counts().await);
    assert!(counts.queues.values().all(|queue| !queue.paused) && counts.paused_tasks.is_empty());
}

/// A claim that waits goes on waiting when something arrives in a paused queue, and can still be hushed.
pub async fn a_paused_queue_wakes_nobody(h: &Harness) {
    pause(h).await;
    let hush = CancellationToken::new();
    let hushed = begin(h, Demand { hush: hush.clone(), ..waiting(PATIENCE * 2) });
    let short = begin(h, waiting(SHORT));
    h.push_all(tasks(2)).await;
    assert_eq!(soon(short).await, 0);
    hush.cancel();
    assert_eq!(soon(hushed).await, 0);
}

/// Resuming a queue wakes a claim that waits.
pub async fn resuming_a_queue_wakes_a_waiting_claim(h: &Harness) {
    pause(h).await;
    h.push(task("work")).await;
    let claim = begin(h, waiting(PATIENCE * 2));
    resume(h).await;
    assert_eq!(soon(claim).await, 1);
}

/// Resuming a name wakes a claim that waits.
pub async fn resuming_a_name_wakes_a_waiting_claim(h: &Harness) {
    h.command(Command::PauseTask(TaskName::known("mail"))).await;
    h.push(task("mail")).await;
    let claim = begin(h, waiting(PATIENCE * 2));
    h.command(Command::ResumeTask(TaskName::known("mail"))).await;
    assert_eq!(soon(claim).await, 1);
}

/// A task that fell due while its queue was paused is claimed when that is resumed, by whoever waits.
pub async fn resuming_finds_tasks_that_fell_due(h: &Harness) {
    h.push(delayed(secs(60))).await;
    pause(h).await;
    h.clock.advance(secs(60));
    let claim = begin(h, waiting(PATIENCE * 2));
    resume(h).await;
    assert_eq!(soon(claim).await, 1);
}

/// A claim that waits takes a task that falls due after its queue was resumed.
pub async fn a_task_falls_due_after_its_queue_was_resumed(h: &Harness) {
    h.clock.go();
    pause(h).await;
    h.push(delayed(SHORT)).await;
    let claim = begin(h, waiting(PATIENCE * 2));
    resume(h).await;
    assert_eq!(soon(claim).await, 1);
}

/// What runs already is not touched by a pause.
pub async fn running_tasks_are_not_touched_by_a_pause(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    pause(h).await;
    h.renew(&claim, LEASE).await;
    h.settle(&claim, ok("1")).await;
    assert_eq!(h.state(&claim.receipt.id).await, State::Succeeded);
}

/// Housekeeping and commands go on in a paused queue.
pub async fn housekeeping_goes_on_in_a_paused_queue(h: &Harness) {
    let lost = h.push_and_claim(task("work")).await.receipt.id;
    let expired = h.push(Envelope { expires: Some(START + secs(10)), ..task("work") }).await;
    let cancelled = h.push(task("work")).await;
    pause(h).await;
    h.tick_after(LEASE).await;
    h.act_on(&cancelled, TaskAction::Cancel).await;
    assert_eq!((h.state(&lost).await, h.state(&expired).await), (State::Ready, State::Expired));
    assert_eq!(h.state(&cancelled).await, State::Cancelled);
}

async fn pause(h: &Harness) {
    h.command(Command::PauseQueue(QueueName::default())).await;
}

async fn resume(h: &Harness) {
    h.command(Command::ResumeQueue(QueueName::default())).await;
}

/// Begins a claim that has nothing to take yet; answers how many it took in the end.
fn begin(h: &Harness, demand: Demand) -> impl Future<Output = usize> + use<> {
    let store = Arc::clone(&h.store);
    let claim = begun(async move { store.claim(&demand).await });
    async move { answer(claim.await).len() }
}
