//! What moving promises: nothing starts in a closed store, and what is exported, evicted and imported is as it was.

use std::sync::Arc;
use std::time::Duration;

use windlass_core::backend::{Pushed, Renewed, ScheduleChange, ScheduleChanged, Settlement, TaskAction};
use windlass_core::flow::{After, FailurePolicy, Flow, Member, NewGroup, Step};
use windlass_core::schedule::every;
use windlass_core::transfer::{PARCEL_TASKS_MAX, Parcel, Transfer, Transferred};
use windlass_core::view::Filter;
use windlass_core::{Due, Envelope, Key, Priority, ScheduleId, State, TaskId, Unique, UniqueKey, Verdict};

use super::harness::{Harness, RETENTION, START, answer, begun, is_rejected, soon};
use super::make::{LEASE, again, dead, delayed, demand, failure, json, ok, secs, task, tasks, waiting};

/// Nothing is claimed from a closed store, by nobody; what is pushed is kept, and an opened store goes on.
pub async fn a_closed_store_starts_nothing(h: &Harness) {
    let before = h.push(task("work")).await;
    assert_eq!(step(h, Transfer::Close).await, Transferred::Changed(1));
    assert_eq!(step(h, Transfer::Close).await, Transferred::Changed(0), "it is closed already");
    let after = h.push(task("work")).await;
    assert!(answer(h.second.counts().await).closed);
    assert!(answer(h.second.claim(&demand(10)).await).is_empty());
    assert_eq!(h.claim_ids(demand(10)).await, []);
    assert_eq!(step(h, Transfer::Open).await, Transferred::Changed(1));
    assert_eq!(step(h, Transfer::Open).await, Transferred::Changed(0), "it is open already");
    assert!(!answer(h.store.counts().await).closed);
    assert_eq!(h.claim_ids(demand(10)).await, [before, after]);
}

/// A task that falls due in a closed store is not started.
pub async fn a_due_task_of_a_closed_store_waits(h: &Harness) {
    h.push(delayed(secs(5))).await;
    step(h, Transfer::Close).await;
    h.tick_after(secs(6)).await;
    assert_eq!(h.claim_ids(demand(1)).await, []);
    step(h, Transfer::Open).await;
    assert_eq!(h.claim(demand(1)).await.len(), 1);
}

/// A schedule of a closed store does not fire, and nobody is told that its slot comes.
pub async fn a_schedule_of_a_closed_store_does_not_fire(h: &Harness) {
    let schedule = every("1m").schedule("minutely", task("work")).unwrap_or_else(|error| panic!("{error}"));
    answer(h.store.schedule(&ScheduleChange::Put { schedule, next: Some(START) }).await);
    step(h, Transfer::Close).await;
    assert_eq!(h.tick().await.next_slot, None);
    let fire = ScheduleChange::Fire {
        id: ScheduleId::known("minutely"),
        expected: START,
        next: Some(START + secs(60)),
        push: vec![task("work")],
        missed: 0,
    };
    assert_eq!(answer(h.store.schedule(&fire).await), ScheduleChanged::Raced);
    assert_eq!(h.list(&Filter::all()).await, []);
    step(h, Transfer::Open).await;
    assert_eq!(h.tick().await.next_slot, Some(START));
    assert_eq!(answer(h.store.schedule(&fire).await), ScheduleChanged::Done);
}

/// What runs when the store is closed goes on: it is renewed and settled, and what follows it is stored.
pub async fn what_runs_in_a_closed_store_ends_there(h: &Harness) {
    let flow = Flow { then: vec![Step::Task(Box::new(task("second")))], ..Flow::default() };
    let claim = h.push_and_claim(Envelope { flow: Some(Box::new(flow)), ..task("first") }).await;
    step(h, Transfer::Close).await;
    assert_eq!(h.renew(&claim, LEASE).await, Renewed::Held);
    assert_eq!(h.settle(&claim, ok("1")).await, Settlement::Applied);
    assert_eq!(h.default_counts().await.ready, 1, "the next step waits");
}

/// A task whose holder dies while the store is closed is ready again after its lease, and is not started.
pub async fn a_lost_task_of_a_closed_store_is_rescued(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    step(h, Transfer::Close).await;
    h.tick_after(LEASE).await;
    assert_eq!(h.state(&claim.receipt.id).await, State::Ready);
    assert_eq!(h.claim_ids(demand(1)).await, []);
}

/// A claim that waits at a closed store gets a task when it is opened.
pub async fn a_waiting_claim_is_woken_when_the_store_is_opened(h: &Harness) {
    step(h, Transfer::Close).await;
    let id = h.push(task("work")).await;
    let (store, demand) = (Arc::clone(&h.store), waiting(secs(30)));
    let waiting = begun(async move { answer(store.claim(&demand).await) });
    step(h, Transfer::Open).await;
    assert_eq!(soon(waiting).await[0].receipt.id, id);
}

/// Tasks of every state come back as they were.
pub async fn every_task_comes_back_as_it_was(h: &Harness) {
    let mut ids = vec![h.push_and_run(task("work"), ok("[1, 2.50]")).await];
    ids.push(h.push_and_run(task("work"), dead()).await);
    ids.push(h.push_and_run(task("work"), Verdict::Cancelled).await);
    ids.push(h.push_and_run(task("work"), Verdict::Expired).await);
    let skipped = Verdict::Succeeded { result: json("null"), skipped: Some("nothing to do".to_owned()) };
    ids.push(h.push_and_run(task("work"), skipped).await);
    ids.push(h.push_and_run(task("unknown"), Verdict::Parked).await);
    ids.push(h.push_and_run(task("work"), again(secs(60))).await);
    ids.push(h.push(delayed(secs(90))).await);
    ids.push(h.push_and_run(task("work"), again(Duration::ZERO)).await);
    ids.push(h.push(Envelope { priority: Priority::HIGH, key: Some(Key::known("k")), ..task("work") }).await);
    h.clock.advance(secs(3));
    let before = h.records(&ids).await;
    let counts = h.default_counts().await;
    let parcel = take_out(h).await;
    assert_eq!(parcel.tasks.len(), ids.len());
    assert!(h.records(&ids).await.iter().all(Option::is_none));
    put_in(h, parcel).await;
    let after = h.records(&ids).await;
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(after, before);
    }
    let after = h.default_counts().await;
    assert_eq!(
        (after.scheduled, after.ready, after.parked, after.dead),
        (counts.scheduled, counts.ready, counts.parked, counts.dead)
    );
    assert_eq!(after.oldest_ready_at, counts.oldest_ready_at);
}

/// Ready tasks keep their order, which need not be that of their ids.
pub async fn ready_tasks_keep_their_places(h: &Harness) {
    let low = h.push(Envelope { priority: Priority::LOW, ..task("work") }).await;
    let first = h.push(task("work")).await;
    h.clock.advance(secs(1));
    let second = h.push(task("work")).await;
    let high = h.push(Envelope { priority: Priority::HIGH, ..task("work") }).await;
    let parcel = take_out(h).await;
    h.clock.advance(secs(10));
    put_in(h, parcel).await;
    assert_eq!(h.claim_ids(demand(10)).await, [high, first, second, low]);
}

/// A task that was imported is claimed, retried and ended like every other.
pub async fn an_imported_task_goes_on(h: &Harness) {
    let letter = h.push_and_run(task("work"), dead()).await;
    let id = h.push_and_run(task("work"), again(Duration::ZERO)).await;
    let parcel = take_out(h).await;
    put_in(h, parcel).await;
    let claim = h.claim_one().await;
    assert_eq!((&claim.receipt.id, claim.attempt), (&id, 2), "the attempt before counts");
    assert_eq!(h.settle(&claim, ok("1")).await, Settlement::Applied);
    h.act_on(&letter, TaskAction::Retry).await;
    assert_eq!(h.run_one(ok("2")).await, letter);
}

/// A parcel that is imported twice is there once; what has gone on meanwhile is left alone.
pub async fn a_parcel_is_imported_once(h: &Harness) {
    let ids = h.push_all(tasks(3)).await;
    let Transferred::Parcel(parcel) = step(h, Transfer::Export).await else { panic!("an export is a parcel") };
    assert_eq!(step(h, Transfer::Import(parcel.clone())).await, Transferred::Changed(0), "everything is known");
    evict(h, &parcel).await;
    assert_eq!(step(h, Transfer::Import(parcel.clone())).await, Transferred::Changed(3));
    let run = h.run_one(ok("1")).await;
    assert_eq!(step(h, Transfer::Import(parcel)).await, Transferred::Changed(0));
    assert_eq!((run, h.state(&ids[0]).await), (ids[0].clone(), State::Succeeded));
    assert_eq!(h.default_counts().await.ready, 2);
}

/// What somebody holds is neither exported nor evicted.
pub async fn what_runs_stays(h: &Harness) {
    let claim = h.push_and_claim(task("work")).await;
    let Transferred::Parcel(parcel) = step(h, Transfer::Export).await else { panic!("an export is a parcel") };
    assert_eq!(parcel, Parcel::default());
    let evict = Transfer::Evict { tasks: vec![claim.receipt.id.clone()], groups: Vec::new() };
    assert_eq!(step(h, evict).await, Transferred::Changed(0));
    assert_eq!(h.settle(&claim, ok("1")).await, Settlement::Applied);
}

/// The oldest tasks are exported first, at most so many.
pub async fn a_parcel_has_the_oldest_tasks(h: &Harness) {
    let ids = h.push_all(tasks(PARCEL_TASKS_MAX + 1)).await;
    let first = take_one_out(h).await;
    let exported: Vec<TaskId> = first.tasks.iter().map(|task| task.record.envelope.id.clone()).collect();
    assert_eq!(exported, ids[..PARCEL_TASKS_MAX]);
    let rest = take_one_out(h).await;
    assert_eq!(rest.tasks.len(), 1);
    assert_eq!(take_one_out(h).await, Parcel::default());
}

/// Nothing follows from an eviction: no step is stranded, no group hears of it.
pub async fn an_eviction_starts_nothing(h: &Harness) {
    let flow = Flow { then: vec![Step::Task(Box::new(task("second")))], ..Flow::default() };
    let first = h.push(Envelope { flow: Some(Box::new(flow)), ..task("first") }).await;
    let evict = Transfer::Evict { tasks: vec![first], groups: Vec::new() };
    assert_eq!(step(h, evict).await, Transferred::Changed(1));
    assert_eq!(h.list(&Filter::all()).await, []);
    assert_eq!(h.default_counts().await.live(), 0);
    assert_eq!(h.default_counts().await.cancelled, 0);
}

/// A group is exported before its members, and completes with those that arrived in the other store.
pub async fn a_group_comes_back_with_what_has_arrived(h: &Harness) {
    let (members, group) = chord(3);
    h.push_group(members, group.clone()).await;
    h.run_one(ok("1")).await;
    let Transferred::Parcel(groups) = step(h, Transfer::Export).await else { panic!("an export is a parcel") };
    assert_eq!((groups.groups.len(), groups.tasks.len()), (1, 0));
    assert_eq!(groups.groups[0].group, group);
    assert_eq!(groups.groups[0].arrived, [(0, Ok(json("1")))]);
    let parcel = take_out(h).await;
    put_in(h, parcel).await;
    h.run_one(ok("2")).await;
    h.run_one(ok("3")).await;
    assert_eq!(h.claim_one().await.envelope.input, Some(json("[1,2,3]")));
}

/// A group whose failure has been acted upon does not act twice, and a member that is retried still mends it.
pub async fn a_failed_group_comes_back_failed(h: &Harness) {
    let (members, group) = chord(2);
    h.push_group(members, group).await;
    let failed = h.run_one(dead()).await;
    let parcel = take_out(h).await;
    assert_eq!(parcel.groups[0].arrived, [(0, Err(failure()))]);
    put_in(h, parcel).await;
    h.run_one(ok("2")).await;
    h.act_on(&failed, TaskAction::Retry).await;
    h.run_one(ok("1")).await;
    assert_eq!(h.claim_one().await.envelope.input, Some(json("[1,2]")));
}

/// A unique key goes with its task, and is free where the task was.
pub async fn a_unique_key_goes_with_its_task(h: &Harness) {
    let unique =
        |window| Envelope { unique: Some(Unique { window, ..Unique::new(UniqueKey::known("k")) }), ..task("work") };
    let id = h.push(unique(None)).await;
    let parcel = take_out(h).await;
    let other = h.push(unique(None)).await;
    h.act_on(&other, TaskAction::Cancel).await;
    put_in(h, parcel).await;
    assert_eq!(h.try_push([unique(None)]).await, [Pushed::Exists(id)]);
    h.run_one(ok("1")).await;
    assert_eq!(h.try_push([unique(None)]).await, [Pushed::Stored]);
}

/// A window is counted from the push on, wherever that was.
pub async fn a_window_of_a_unique_key_goes_with_its_task(h: &Harness) {
    let unique = || Envelope { unique: Some(Unique::new(UniqueKey::known("k")).for_window(secs(60))), ..task("work") };
    let id = h.push_and_run(unique(), ok("1")).await;
    h.clock.advance(secs(30));
    let parcel = take_out(h).await;
    put_in(h, parcel).await;
    assert_eq!(h.try_push([unique()]).await, [Pushed::Exists(id)]);
    h.clock.advance(secs(31));
    assert_eq!(h.try_push([unique()]).await, [Pushed::Stored]);
}

/// What had ended is forgotten when it would have been.
pub async fn an_imported_result_is_kept_for_what_is_left(h: &Harness) {
    let usual = h.push_and_run(task("work"), ok("1")).await;
    let own = h.push_and_run(Envelope { result_ttl: Some(RETENTION.finished * 2), ..task("work") }, ok("2")).await;
    h.clock.advance(RETENTION.finished.saturating_sub(secs(1)));
    let parcel = take_out(h).await;
    put_in(h, parcel).await;
    h.tick().await;
    assert_eq!(h.state(&usual).await, State::Succeeded);
    h.tick_after(secs(2)).await;
    assert_eq!((h.find(&usual).await, h.state(&own).await), (None, State::Succeeded));
    h.tick_after(RETENTION.finished).await;
    assert_eq!(h.find(&own).await, None);
}

/// Parcels are limited.
pub async fn parcels_are_limited(h: &Harness) {
    let ids: Vec<TaskId> = tasks(PARCEL_TASKS_MAX + 1).into_iter().map(|envelope| envelope.id).collect();
    assert!(is_rejected(h.store.transfer(&Transfer::Evict { tasks: ids, groups: Vec::new() }).await));
}

async fn step(h: &Harness, step: Transfer) -> Transferred {
    answer(h.store.transfer(&step).await)
}

async fn evict(h: &Harness, parcel: &Parcel) {
    let tasks = parcel.tasks.iter().map(|task| task.record.envelope.id.clone()).collect();
    let groups = parcel.groups.iter().map(|group| group.group.id.clone()).collect();
    step(h, Transfer::Evict { tasks, groups }).await;
}

/// The next parcel, which is not in the store any more.
async fn take_one_out(h: &Harness) -> Parcel {
    let Transferred::Parcel(parcel) = step(h, Transfer::Export).await else { panic!("an export is a parcel") };
    evict(h, &parcel).await;
    parcel
}

/// Everything that nobody holds.
async fn take_out(h: &Harness) -> Parcel {
    let mut all = Parcel::default();
    loop {
        let parcel = take_one_out(h).await;
        if parcel.is_empty() {
            return all;
        }
        all.groups.extend(parcel.groups);
        all.tasks.extend(parcel.tasks);
    }
}

async fn put_in(h: &Harness, parcel: Parcel) {
    let things = (parcel.tasks.len() + parcel.groups.len()) as u64;
    assert_eq!(step(h, Transfer::Import(parcel)).await, Transferred::Changed(things));
}

/// Members and the group that they report to, which is followed by one task.
fn chord(size: u32) -> (Vec<Envelope>, NewGroup) {
    let id = task("group").id;
    let members = (0..size).map(|index| {
        let member = Some(Member { group: id.clone(), index });
        Envelope { flow: Some(Box::new(Flow { member, ..Flow::default() })), ..task("member") }
    });
    let after = After { push: vec![Envelope { due: Due::Now, ..task("body") }], ..After::default() };
    (members.collect(), NewGroup { id: id.clone(), size, policy: FailurePolicy::All, after })
}
