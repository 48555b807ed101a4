//! What schedules promise: every slot fires once, however many nodes try.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use windlass_core::backend::{ScheduleChange, ScheduleChanged};
use windlass_core::schedule::{Missed, Overlap, Schedule, cron, every};
use windlass_core::view::ScheduleRecord;
use windlass_core::{Envelope, Priority, ScheduleId, State, TaskId, Timestamp};

use super::harness::{Harness, PATIENCE, START, answer, begun, is_rejected, soon};
use super::make::{demand, ok, secs, task, tasks, waiting};

const MINUTE: Duration = secs(60);

/// A new schedule is there as it was defined, and has not fired.
pub async fn a_new_schedule_is_kept_as_it_was_defined(h: &Harness) {
    let nightly = cron("0 3 * * *")
        .zone("Europe/Berlin")
        .missed(Missed::Skip)
        .overlap(Overlap::Skip)
        .jitter(secs(30))
        .schedule("nightly", Envelope { priority: Priority::HIGH, ..task("report") })
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(put(h, &nightly, Some(START)).await, ScheduleChanged::Done);
    let record = ScheduleRecord {
        schedule: nightly,
        next: Some(START),
        paused: false,
        last_fired_at: None,
        last_task: None,
        fired: 0,
        missed: 0,
    };
    assert_eq!(answer(h.store.schedules().await), [record]);
}

/// Schedules are listed by their ids.
pub async fn schedules_are_listed_by_id(h: &Harness) {
    for id in ["b", "c", "a"] {
        put(h, &minutely(id), Some(START)).await;
    }
    let ids: Vec<String> =
        answer(h.store.schedules().await).iter().map(|record| record.schedule.id.to_string()).collect();
    assert_eq!(ids, ["a", "b", "c"]);
}

/// A definition that is repeated changes nothing: every node may declare it at its start.
pub async fn an_equal_definition_changes_nothing(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    change(h, ScheduleChange::Pause(id("m"))).await;
    let before = record(h, "m").await;
    assert_eq!(put(h, &minutely("m"), Some(START + MINUTE)).await, ScheduleChanged::Unchanged);
    assert_eq!(record(h, "m").await, before);
}

/// Another definition replaces the one before; its next slot is new, and what is known otherwise stays.
pub async fn another_definition_replaces_the_first(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    fire(h, "m", START, Some(START + MINUTE), vec![task("report")], 3).await;
    change(h, ScheduleChange::Pause(id("m"))).await;
    let before = record(h, "m").await;
    let hourly = every("1h").schedule("m", template()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(put(h, &hourly, Some(START + secs(3600))).await, ScheduleChanged::Done);
    let after = ScheduleRecord { schedule: hourly, next: Some(START + secs(3600)), ..before };
    assert_eq!(record(h, "m").await, after);
    assert!(after.paused, "an edit does not resume it");
}

/// A slot fires: its tasks are pushed, the schedule moves on, and both are seen together.
pub async fn a_slot_fires(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    h.clock.advance(secs(1));
    let pushed = tasks(2);
    let ids: Vec<TaskId> = pushed.iter().map(|task| task.id.clone()).collect();
    assert_eq!(fire(h, "m", START, Some(START + MINUTE), pushed, 3).await, ScheduleChanged::Done);
    assert_eq!(h.claim_ids(demand(10)).await, ids);
    let record = record(h, "m").await;
    assert_eq!((record.next, record.fired, record.missed), (Some(START + MINUTE), 2, 3));
    assert_eq!((record.last_fired_at, record.last_task), (Some(START + secs(1)), Some(ids[1].clone())));
}

/// Numbers go up with every firing.
pub async fn firings_and_missed_slots_add_up(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    fire(h, "m", START, Some(START + MINUTE), tasks(2), 3).await;
    fire(h, "m", START + MINUTE, Some(START + MINUTE * 2), tasks(1), 4).await;
    let record = record(h, "m").await;
    assert_eq!((record.fired, record.missed), (3, 7));
}

/// A slot that has fired does not fire again.
pub async fn a_slot_fires_once(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    fire(h, "m", START, Some(START + MINUTE), tasks(1), 0).await;
    let before = record(h, "m").await;
    assert_eq!(fire(h, "m", START, Some(START + MINUTE), tasks(1), 1).await, ScheduleChanged::Raced);
    assert_eq!(record(h, "m").await, before);
    assert_eq!(h.default_counts().await.ready, 1);
}

/// Of two nodes that fire the same slot at the same time one does.
pub async fn two_nodes_fire_a_slot_once(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    for slot in 0..20 {
        let expected = START + MINUTE * slot;
        let change =
            || ScheduleChange::Fire { id: id("m"), expected, next: Some(expected + MINUTE), push: tasks(1), missed: 0 };
        let (ours, theirs) = (change(), change());
        let (first, second) = join(h.store.schedule(&ours), h.second.schedule(&theirs)).await;
        let changed = [answer(first), answer(second)];
        assert!(changed.contains(&ScheduleChanged::Done) && changed.contains(&ScheduleChanged::Raced), "{changed:?}");
    }
    assert_eq!((h.default_counts().await.ready, record(h, "m").await.fired), (20, 20));
}

/// A paused schedule does not fire; resumed, it goes on from the slot that it is given.
pub async fn a_paused_schedule_does_not_fire(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    assert_eq!(change(h, ScheduleChange::Pause(id("m"))).await, ScheduleChanged::Done);
    assert_eq!(fire(h, "m", START, Some(START + MINUTE), tasks(1), 0).await, ScheduleChanged::Raced);
    let resume = ScheduleChange::Resume { id: id("m"), next: Some(START + MINUTE) };
    assert_eq!(change(h, resume).await, ScheduleChanged::Done);
    assert_eq!(record(h, "m").await.next, Some(START + MINUTE));
    assert_eq!(fire(h, "m", START, Some(START + MINUTE), tasks(1), 0).await, ScheduleChanged::Raced);
    assert_eq!(fire(h, "m", START + MINUTE, None, tasks(1), 0).await, ScheduleChanged::Done);
}

/// Pausing what is paused and resuming what is not changes nothing.
pub async fn a_pause_that_is_in_force_changes_nothing(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    let resume = ScheduleChange::Resume { id: id("m"), next: Some(START + MINUTE) };
    assert_eq!(change(h, resume).await, ScheduleChanged::Unchanged);
    assert_eq!(record(h, "m").await.next, Some(START));
    change(h, ScheduleChange::Pause(id("m"))).await;
    assert_eq!(change(h, ScheduleChange::Pause(id("m"))).await, ScheduleChanged::Unchanged);
}

/// A schedule that nobody knows cannot be changed.
pub async fn an_unknown_schedule_is_named_as_such(h: &Harness) {
    for unknown in [
        ScheduleChange::Pause(id("m")),
        ScheduleChange::Resume { id: id("m"), next: None },
        ScheduleChange::Remove(id("m")),
    ] {
        assert_eq!(change(h, unknown).await, ScheduleChanged::Unknown);
    }
    assert_eq!(fire(h, "m", START, None, tasks(1), 0).await, ScheduleChanged::Unknown);
    assert_eq!(h.default_counts().await.ready, 0);
}

/// A schedule that was removed is forgotten; the tasks that it pushed go on.
pub async fn the_tasks_of_a_removed_schedule_go_on(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    fire(h, "m", START, Some(START + MINUTE), tasks(1), 0).await;
    assert_eq!(change(h, ScheduleChange::Remove(id("m"))).await, ScheduleChanged::Done);
    assert_eq!(answer(h.store.schedules().await), []);
    h.run_one(ok("1")).await;
}

/// A schedule that is over has no next slot, and does not fire.
pub async fn a_schedule_that_is_over_does_not_fire(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    assert_eq!(fire(h, "m", START, None, tasks(1), 0).await, ScheduleChanged::Done);
    assert_eq!(record(h, "m").await.next, None);
    assert_eq!(fire(h, "m", START, None, tasks(1), 0).await, ScheduleChanged::Raced);
    assert_eq!(h.tick().await.next_slot, None);
}

/// A task that was pushed before is not pushed again, and not counted.
pub async fn a_task_that_is_known_is_not_fired_again(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    let known = task("report");
    h.push_and_run(known.clone(), ok("1")).await;
    assert_eq!(fire(h, "m", START, Some(START + MINUTE), vec![known.clone()], 0).await, ScheduleChanged::Done);
    assert_eq!(h.state(&known.id).await, State::Succeeded);
    let record = record(h, "m").await;
    assert_eq!((record.fired, record.last_fired_at, record.last_task), (0, None, None));
}

/// Slots that are left out by policy move the schedule on without a task.
pub async fn slots_can_be_left_out(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    assert_eq!(fire(h, "m", START, Some(START + MINUTE), vec![], 5).await, ScheduleChanged::Done);
    let record = record(h, "m").await;
    assert_eq!((record.next, record.missed, record.fired), (Some(START + MINUTE), 5, 0));
    assert_eq!(record.last_fired_at, None);
}

/// A tick tells the earliest slot of all schedules that fire.
pub async fn a_tick_tells_the_next_slot(h: &Harness) {
    assert_eq!(h.tick().await.next_slot, None);
    put(h, &minutely("a"), Some(START + MINUTE)).await;
    put(h, &minutely("b"), Some(START + secs(5))).await;
    put(h, &minutely("c"), None).await;
    assert_eq!(h.tick().await.next_slot, Some(START + secs(5)));
    change(h, ScheduleChange::Pause(id("b"))).await;
    assert_eq!(h.tick().await.next_slot, Some(START + MINUTE));
}

/// A slot that fires wakes a claim that waits.
pub async fn a_waiting_claim_is_woken_by_a_slot(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    let store = Arc::clone(&h.store);
    let claim = begun(async move { store.claim(&waiting(PATIENCE * 2)).await });
    fire(h, "m", START, None, tasks(1), 0).await;
    assert_eq!(answer(soon(claim).await).len(), 1);
}

/// A slot fires as many tasks as a push may have; more are refused, and the schedule stays where it is.
pub async fn a_slot_is_limited(h: &Harness) {
    put(h, &minutely("m"), Some(START)).await;
    let push = tasks(windlass_core::envelope::PUSH_MAX + 1);
    let too_many = ScheduleChange::Fire { id: id("m"), expected: START, next: None, push, missed: 0 };
    assert!(is_rejected(h.store.schedule(&too_many).await));
    assert_eq!((record(h, "m").await.next, h.default_counts().await.ready), (Some(START), 0));
}

fn id(id: &str) -> ScheduleId {
    ScheduleId::known(id)
}

/// What a schedule pushes. Its id must be the same in equal definitions.
fn template() -> Envelope {
    Envelope { id: TaskId::from_bytes([7; 16]), ..task("report") }
}

fn minutely(id: &str) -> Schedule {
    every("1m").schedule(id, template()).unwrap_or_else(|error| panic!("{error}"))
}

async fn put(h: &Harness, schedule: &Schedule, next: Option<Timestamp>) -> ScheduleChanged {
    change(h, ScheduleChange::Put { schedule: schedule.clone(), next }).await
}

async fn change(h: &Harness, change: ScheduleChange) -> ScheduleChanged {
    answer(h.store.schedule(&change).await)
}

async fn fire(
    h: &Harness,
    name: &str,
    expected: Timestamp,
    next: Option<Timestamp>,
    push: Vec<Envelope>,
    missed: u64,
) -> ScheduleChanged {
    change(h, ScheduleChange::Fire { id: id(name), expected, next, push, missed }).await
}

async fn record(h: &Harness, name: &str) -> ScheduleRecord {
    let records = answer(h.store.schedules().await);
    let found = records.into_iter().find(|record| record.schedule.id.as_str() == name);
    found.unwrap_or_else(|| panic!("the store knows the schedule {name}"))
}
