//! What `push` promises: tasks are stored once, as they were written.

use std::collections::BTreeMap;

use windlass_core::backend::{Push, Pushed, TaskAction};
use windlass_core::envelope::PUSH_MAX;
use windlass_core::flow::{After, FailurePolicy, Flow, GROUP_MAX, Lead, Member, NewGroup, Step};
use windlass_core::{Args, Backoff, Due, Envelope, Feed, Key, Priority, Source, State, TaskId, TaskName};

use super::harness::{Harness, START, answer, is_rejected};
use super::make::{delayed, demand, json, ok, secs, task, tasks};

/// A task without a due time can be claimed at once.
pub async fn a_task_without_a_delay_is_ready_at_once(h: &Harness) {
    let id = h.push(task("work")).await;
    let record = h.record(&id).await;
    assert_eq!((record.state, record.enqueued_at, record.due_at), (State::Ready, START, None));
    assert_eq!((record.attempt, record.crashes, record.started_at, record.finished_at), (0, 0, None, None));
}

/// A delay counts from the moment the store has the task, by the store's clock.
pub async fn a_delayed_task_is_scheduled_for_its_time(h: &Harness) {
    let id = h.push(delayed(secs(60))).await;
    let record = h.record(&id).await;
    assert_eq!((record.state, record.due_at), (State::Scheduled, Some(START + secs(60))));
    assert_eq!(h.claim_ids(demand(10)).await, []);
}

/// An absolute due time is kept as it is.
pub async fn a_task_for_a_time_is_scheduled_for_that_time(h: &Harness) {
    let id = h.push(Envelope { due: Due::At(START + secs(5)), ..task("work") }).await;
    assert_eq!(h.record(&id).await.due_at, Some(START + secs(5)));
}

/// A due time that is not in the future means now.
pub async fn a_due_time_that_has_passed_is_now(h: &Harness) {
    for due in [Due::At(START - secs(5)), Due::At(START), Due::After(secs(0))] {
        let id = h.push(Envelope { due, ..task("work") }).await;
        assert_eq!(h.state(&id).await, State::Ready, "{due:?}");
        assert_eq!(h.claim_one().await.ready_at, START, "it is ready since it was pushed");
    }
}

/// Every option of an envelope comes back as it was written, in records and in claims; the due time is the store's own.
pub async fn a_task_is_kept_as_it_was_written(h: &Harness) {
    let written = with_every_option();
    let id = h.push(Envelope { due: Due::At(START - secs(1)), ..written.clone() }).await;
    assert_eq!(h.record(&id).await.envelope, written);
    assert_eq!(*h.claim_one().await.envelope, written);
}

fn with_every_option() -> Envelope {
    let member = Member { group: TaskId::random(), index: 7 };
    let then = vec![Step::Task(Box::new(task("next")))];
    Envelope {
        priority: Priority::HIGH,
        args: Args::new(Some(json("[1,2]")), Some(json(r#"{"b":"ü","a":9007199254740993}"#))).expect("valid arguments"),
        feed: Feed::Field("input".to_owned()),
        input: Some(json("[1, 2]")),
        expires: Some(START + secs(3600)),
        key: Some(Key::known("tenant 1")),
        retries: Some(3),
        backoff: Some(Backoff::formula("1s * 2^n")),
        soft_limit: Some(secs(4)),
        hard_limit: Some(secs(5)),
        result_ttl: Some(secs(60)),
        headers: BTreeMap::from([("traceparent".to_owned(), "00-1-2-01".to_owned())]),
        flow: Some(Box::new(Flow {
            then,
            otherwise: vec![task("mend")],
            member: Some(member.clone()),
            joins: vec![member.clone()],
            leads: vec![Lead {
                group: member.group,
                tasks: vec![(TaskId::random(), TaskName::known("next"))],
                opens: Some(TaskId::random()),
                into: Some(TaskId::random()),
            }],
        })),
        workflow: Some(TaskId::random()),
        source: Source::Workflow,
        ..task("work")
    }
}

/// An id comes back exactly as its producer wrote it, whatever it looks like.
pub async fn an_id_is_kept_as_it_was_written(h: &Harness) {
    let texts = ["0192e4a5-7d6c-7000-8000-000000000001", "0192E4A5-7D6C-7000-8000-000000000001", "order-1017", "42"];
    let ids: Vec<TaskId> = texts.iter().map(|text| TaskId::new(text).expect("a valid id")).collect();
    h.push_all(ids.iter().map(|id| Envelope { id: id.clone(), ..task("work") })).await;
    assert_eq!(h.claim_ids(demand(10)).await, ids);
}

/// A push that is repeated, because its answer was lost, changes nothing.
pub async fn a_repeated_push_changes_nothing(h: &Harness) {
    let first = task("work");
    h.push(first.clone()).await;
    let before = h.record(&first.id).await;
    h.clock.advance(secs(5));
    let repeated = Envelope { priority: Priority::FIRST, ..first.clone() };
    assert_eq!(h.try_push([repeated]).await, [Pushed::Exists(first.id.clone())]);
    assert_eq!(h.record(&first.id).await, before);
    assert_eq!(h.default_counts().await.ready, 1);
}

/// An id stays taken as long as the finished task is kept.
pub async fn the_id_of_a_finished_task_is_taken(h: &Harness) {
    let first = task("work");
    h.push_and_run(first.clone(), ok("1")).await;
    assert_eq!(h.try_push([first.clone()]).await, [Pushed::Exists(first.id.clone())]);
    assert_eq!(h.state(&first.id).await, State::Succeeded);
}

/// An id is free again when the task was discarded.
pub async fn the_id_of_a_discarded_task_is_free(h: &Harness) {
    let first = task("work");
    h.push_and_run(first.clone(), ok("1")).await;
    h.act_on(&first.id, TaskAction::Discard).await;
    assert_eq!(h.try_push([first.clone()]).await, [Pushed::Stored]);
    assert_eq!(h.claim_one().await.attempt, 1);
}

/// Of equal ids in one batch the first is stored.
pub async fn an_id_twice_in_one_batch_is_stored_once(h: &Harness) {
    let first = task("first");
    let second = Envelope { id: first.id.clone(), ..task("second") };
    let pushed = h.try_push([first.clone(), second]).await;
    assert_eq!(pushed, [Pushed::Stored, Pushed::Exists(first.id.clone())]);
    assert_eq!(h.record(&first.id).await.envelope.name, first.name);
}

/// A task that is known does not keep the others of its batch out, and each answer stands in the place of its envelope.
pub async fn the_others_of_a_batch_are_stored(h: &Harness) {
    let known = task("work");
    h.push(known.clone()).await;
    let pushed = h.try_push([task("work"), known.clone(), task("work")]).await;
    assert_eq!(pushed, [Pushed::Stored, Pushed::Exists(known.id), Pushed::Stored]);
    assert_eq!(h.default_counts().await.ready, 3);
}

/// A push of nothing is a push.
pub async fn an_empty_push_stores_nothing(h: &Harness) {
    assert_eq!(h.try_push([]).await, []);
}

/// A batch at its limit is stored; one over is refused and nothing of it is stored.
pub async fn a_batch_is_stored_up_to_its_limit(h: &Harness) {
    assert_eq!(h.push_all(tasks(PUSH_MAX)).await.len(), PUSH_MAX);
    let too_many = Push { envelopes: tasks(PUSH_MAX + 1), groups: Vec::new() };
    assert!(is_rejected(h.store.push(&too_many).await));
    assert_eq!(h.default_counts().await.ready, PUSH_MAX as u64);
}

/// A group is pushed whole: with one, the limit of a batch is that of a group.
pub async fn a_batch_with_a_group_is_stored_up_to_the_limit_of_a_group(h: &Harness) {
    let of = |size: usize| {
        let after = After { push: vec![task("body")], ..After::default() };
        let group = NewGroup { id: TaskId::random(), size: size as u32, policy: FailurePolicy::All, after };
        Push { envelopes: tasks(size), groups: vec![group] }
    };
    assert!(is_rejected(h.store.push(&of(GROUP_MAX + 1)).await));
    assert_eq!(answer(h.store.push(&of(PUSH_MAX + 1)).await).len(), PUSH_MAX + 1);
    assert_eq!(h.default_counts().await.ready, PUSH_MAX as u64 + 1);
}

/// What was pushed through one handle is there for the other.
pub async fn a_push_is_seen_through_every_handle(h: &Harness) {
    let id = h.push(task("work")).await;
    let found = answer(h.second.find(std::slice::from_ref(&id)).await).remove(0);
    assert_eq!(found.map(|record| record.state), Some(State::Ready));
    assert_eq!(answer(h.second.claim(&demand(1)).await).len(), 1);
}
