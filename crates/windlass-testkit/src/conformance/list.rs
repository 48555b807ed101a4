//! What `list` promises: every task once, newest first, whatever happens between two pages.

use fastrand::Rng;
use windlass_core::backend::TaskAction;
use windlass_core::state::DeadReason;
use windlass_core::view::{Cursor, Filter, PAGE_MAX, Page, Record};
use windlass_core::{Clock as _, Envelope, Key, QueueName, State, TaskId, TaskName, Timestamp, Verdict};

use super::harness::{Harness, START, answer, is_rejected};
use super::make::{MICRO, dead, delayed, demand_of, failure, ok, queue, secs, snooze, task, tasks};

/// The task that was pushed last comes first, whatever state it is in.
pub async fn tasks_are_listed_newest_first(h: &Harness) {
    let done = h.push_and_run(task("work"), ok("1")).await;
    h.clock.advance(secs(1));
    let waiting = h.push_all(tasks(2)).await;
    assert_eq!(ids(&h.list(&Filter::all()).await), [waiting[1].clone(), waiting[0].clone(), done]);
}

/// A listing shows what a question by id shows.
pub async fn a_listing_shows_whole_records(h: &Harness) {
    let id = h.push_and_run(task("work"), dead()).await;
    assert_eq!(h.list(&Filter::all()).await, [h.record(&id).await]);
}

/// A listing of nothing has no next page.
pub async fn an_empty_listing_ends(h: &Harness) {
    let listing = answer(h.store.list(&Filter::all(), &Page::first(10)).await);
    assert_eq!((listing.tasks.len(), listing.next), (0, None));
}

/// Page by page, a listing shows every task once.
pub async fn pages_show_every_task_once(h: &Harness) {
    let pushed = h.push_all(tasks(10)).await;
    for limit in [1, 3, 5, 10, 11] {
        let listed = ids(&all_pages(h, &Filter::all(), limit).await);
        assert!(listed.iter().eq(pushed.iter().rev()), "pages of {limit}");
    }
}

/// Tasks that are pushed between two pages do not move the tasks of the next page.
pub async fn pages_stay_in_place_when_tasks_are_pushed(h: &Harness) {
    let pushed = h.push_all(tasks(6)).await;
    let first = answer(h.store.list(&Filter::all(), &Page::first(3)).await);
    h.push_all(tasks(4)).await;
    let second = answer(h.store.list(&Filter::all(), &Page { after: first.next, limit: 3 }).await);
    let listed = [ids(&first.tasks), ids(&second.tasks)].concat();
    assert!(listed.iter().eq(pushed.iter().rev()));
}

/// Tasks that end between two pages are neither shown twice nor left out.
pub async fn pages_stay_in_place_when_tasks_end(h: &Harness) {
    let pushed = h.push_all(tasks(6)).await;
    let first = answer(h.store.list(&Filter::all(), &Page::first(3)).await);
    for _ in 0..5 {
        h.run_one(ok("1")).await;
    }
    let second = answer(h.store.list(&Filter::all(), &Page { after: first.next, limit: 10 }).await);
    let listed = [ids(&first.tasks), ids(&second.tasks)].concat();
    assert!(listed.iter().eq(pushed.iter().rev()));
}

/// A page goes on after a task that was forgotten meanwhile.
pub async fn a_page_goes_on_after_a_forgotten_task(h: &Harness) {
    let pushed = h.push_all(tasks(4)).await;
    h.act(&pushed, TaskAction::Cancel).await;
    let first = answer(h.store.list(&Filter::all(), &Page::first(2)).await);
    h.act_on(&pushed[2], TaskAction::Discard).await;
    let second = answer(h.store.list(&Filter::all(), &Page { after: first.next, limit: 2 }).await);
    assert_eq!(ids(&second.tasks), [pushed[1].clone(), pushed[0].clone()]);
}

/// A task that starts over keeps its place.
pub async fn a_retried_task_keeps_its_place(h: &Harness) {
    let first = h.push_and_run(task("work"), dead()).await;
    let second = h.push(task("work")).await;
    h.act_on(&first, TaskAction::Retry).await;
    assert_eq!(ids(&h.list(&Filter::all()).await), [second, first]);
}

/// A page of rare tasks is full when there are enough of them, however many others stand between.
pub async fn rare_tasks_are_found_among_many(h: &Harness) {
    let mut rare = Vec::new();
    for _ in 0..5 {
        h.push_all(tasks(100)).await;
        rare.push(h.push(task("rare")).await);
    }
    let filter = Filter { names: vec![TaskName::known("rare")], ..Filter::default() };
    let listing = answer(h.store.list(&filter, &Page::first(5)).await);
    assert!(ids(&listing.tasks).iter().eq(rare.iter().rev()));
    assert!(ids(&all_pages(h, &filter, 2).await).iter().eq(rare.iter().rev()));
}

/// Every filter finds exactly the tasks that it matches.
pub async fn a_filter_finds_exactly_what_it_matches(h: &Harness) {
    let seed = fastrand::u64(..);
    let mut rng = Rng::with_seed(seed);
    let workflows: Vec<TaskId> = populate(h, &mut rng).await;
    let all = h.list(&Filter::all()).await;
    for _ in 0..200 {
        let filter = random_filter(&mut rng, &workflows);
        let expected: Vec<Record> = all.iter().filter(|record| filter.matches(record)).cloned().collect();
        assert_eq!(all_pages(h, &filter, rng.usize(1..40)).await, expected, "seed {seed}: {filter:?}");
    }
}

/// What ended at a time ended since that time, and not a moment later.
pub async fn a_task_is_found_by_when_it_ended(h: &Harness) {
    let early = h.push_and_run(task("work"), ok("1")).await;
    h.clock.advance(secs(10));
    let late = h.push_and_run(task("work"), dead()).await;
    let ended_at = h.record(&late).await.finished_at.expect("it ended");
    for (since, found) in [
        (START, vec![late.clone(), early.clone()]),
        (ended_at - secs(5), vec![late.clone()]),
        (ended_at, vec![late]),
        (ended_at + MICRO, vec![]),
    ] {
        assert_eq!(ids(&h.list(&ended_since(since, &[])).await), found, "since {since}");
    }
}

/// What has not ended has ended since no time, whatever states are asked for.
pub async fn only_ended_tasks_ended_since_a_time(h: &Harness) {
    let ended = h.push_and_run(task("work"), ok("1")).await;
    h.push_and_claim(task("work")).await;
    h.push(task("work")).await;
    h.push(delayed(secs(1_000))).await;
    assert_eq!(ids(&h.list(&ended_since(START, &[])).await), [ended]);
    assert_eq!(h.list(&ended_since(START, &[State::Ready, State::Running])).await, []);
    assert_eq!(h.list(&ended_since(START, &[State::Ready, State::Dead])).await, []);
}

/// Each of the states that end a task is found by the time that it was entered, with those of the same time beside it.
pub async fn states_are_found_by_when_they_were_entered(h: &Harness) {
    let kept = || Envelope { result_ttl: Some(secs(1_000)), ..task("work") };
    let mut expected = Vec::new();
    for round in 0..3 {
        h.clock.advance(secs(10));
        let since = h.clock.now();
        let waiting = h.push(Envelope { queue: queue("slow"), ..task("work") }).await;
        let cancelled = h.push(Envelope { queue: queue("slow"), ..task("work") }).await;
        h.act_on(&cancelled, TaskAction::Cancel).await;
        let succeeded = h.push_and_run(task("work"), ok("1")).await;
        let with_result = h.push_and_run(kept(), ok("1")).await;
        let died = h.push_and_run(task("work"), dead()).await;
        let expired = h.push_and_run(task("work"), Verdict::Expired).await;
        expected = vec![expired, died, with_result, succeeded, cancelled];
        assert_eq!(ids(&h.list(&ended_since(since, &[])).await), expected, "round {round}");
        assert_eq!(h.state(&waiting).await, State::Ready);
        let bad = [State::Cancelled, State::Expired, State::Dead];
        let of_bad = [&expected[0], &expected[1], &expected[4]].map(Clone::clone);
        assert_eq!(ids(&h.list(&ended_since(since, &bad)).await), of_bad, "round {round}");
        assert_eq!(ids(&h.list(&ended_since(since, &[State::Succeeded])).await), expected[2..4], "round {round}");
    }
    // One that starts over has not ended, and when it ends again it counts from then on.
    let cancelled = &expected[4];
    h.act_on(cancelled, TaskAction::Retry).await;
    let before = ended_since(START, &[State::Cancelled]);
    assert_eq!(h.list(&before).await.len(), 2);
    h.clock.advance(secs(10));
    let again_at = h.clock.now();
    h.act_on(cancelled, TaskAction::Cancel).await;
    assert_eq!(ids(&h.list(&ended_since(again_at, &[])).await), [cancelled.clone()]);
    h.act_on(cancelled, TaskAction::Discard).await;
    assert_eq!(h.list(&before).await.len(), 2);
}

/// Page by page, what ended since a time is shown once, in the order of the push and not in that of the endings.
pub async fn pages_of_ended_tasks_show_each_once(h: &Harness) {
    let pushed = h.push_all(tasks(12)).await;
    h.act(&pushed[..2], TaskAction::Cancel).await;
    h.clock.advance(secs(10));
    let since = h.clock.now();
    for id in [7, 3, 11, 5, 2].map(|at: usize| &pushed[at]) {
        h.clock.advance(secs(1));
        h.act_on(id, TaskAction::Cancel).await;
    }
    let expected = [11, 7, 5, 3, 2].map(|at: usize| pushed[at].clone());
    for limit in [1, 2, 4, 5, 6] {
        let listed = all_pages(h, &ended_since(since, &[State::Cancelled, State::Dead]), limit).await;
        assert_eq!(ids(&listed), expected, "pages of {limit}");
    }
}

fn ended_since(since: Timestamp, states: &[State]) -> Filter {
    Filter { finished_since: Some(since), ..Filter::in_states(states.iter().copied()) }
}

/// A page has 1 to [`PAGE_MAX`] tasks.
pub async fn a_page_is_limited(h: &Harness) {
    h.push_all(tasks(PAGE_MAX)).await;
    h.push(task("work")).await;
    for limit in [0, PAGE_MAX + 1] {
        assert!(is_rejected(h.store.list(&Filter::all(), &Page::first(limit)).await), "{limit}");
    }
    assert_eq!(h.list(&Filter::all()).await.len(), PAGE_MAX);
}

/// A cursor that no store made is refused.
pub async fn a_foreign_cursor_is_refused(h: &Harness) {
    for text in ["", "nonsense", "' or 1=1"] {
        let page = Page { after: Some(Cursor(text.to_owned())), limit: 10 };
        assert!(is_rejected(h.store.list(&Filter::all(), &page).await), "{text:?}");
    }
}

fn ids(records: &[Record]) -> Vec<TaskId> {
    records.iter().map(|record| record.envelope.id.clone()).collect()
}

async fn all_pages(h: &Harness, filter: &Filter, limit: usize) -> Vec<Record> {
    let mut page = Page::first(limit);
    let mut records = Vec::new();
    loop {
        let listing = answer(h.store.list(filter, &page).await);
        assert!(listing.tasks.len() <= limit, "a page is not longer than it was asked to be");
        records.extend(listing.tasks);
        match listing.next {
            Some(next) => page.after = Some(next),
            None => return records,
        }
    }
}

const QUEUES: [&str; 3] = ["default", "mail", "images"];
const NAMES: [&str; 3] = ["send", "resize", "sync"];
const KEYS: [&str; 2] = ["tenant 1", "tenant 2"];

/// Tasks of every kind in every state; answers the workflows that some of them belong to.
async fn populate(h: &Harness, rng: &mut Rng) -> Vec<TaskId> {
    let workflows: Vec<TaskId> = (0..2).map(|_| TaskId::random()).collect();
    // A workflow is named after its first task, which a filter finds as well.
    h.push_all(workflows.iter().map(|id| Envelope { id: id.clone(), ..task("first") })).await;
    for _ in 0..60 {
        h.clock.advance(secs(rng.u64(0..3)));
        h.push(random_task(rng, &workflows)).await;
        let claims = h.claim(demand_of(&QUEUES, rng.usize(0..3))).await;
        for claim in claims {
            h.settle(&claim, random_verdict(rng)).await;
        }
    }
    workflows
}

fn random_task(rng: &mut Rng, workflows: &[TaskId]) -> Envelope {
    let in_workflow = rng.bool();
    Envelope {
        queue: queue(pick(rng, &QUEUES)),
        key: rng.bool().then(|| Key::known(pick(rng, &KEYS))),
        workflow: rng.choice(workflows).filter(|_| in_workflow).cloned(),
        ..task(pick(rng, &NAMES))
    }
}

fn random_verdict(rng: &mut Rng) -> Verdict {
    match rng.u8(0..7) {
        0 | 1 => ok("1"),
        2 => dead(),
        3 => Verdict::Dead { reason: DeadReason::TooOld, failure: failure() },
        4 => Verdict::Cancelled,
        5 => Verdict::Parked,
        _ => snooze(secs(3600)),
    }
}

fn random_filter(rng: &mut Rng, workflows: &[TaskId]) -> Filter {
    let mut given = |one_in: u8| rng.u8(0..one_in) == 0;
    let (states, queues, names, key) = (given(2), given(3), given(3), given(4));
    let (workflow, reason, since, until, finished_since) = (given(5), given(6), given(4), given(4), given(3));
    let some = |wanted: bool, count: usize| if wanted { count } else { 0 };
    let moment = |rng: &mut Rng| START + secs(rng.u64(0..60));
    Filter {
        states: (0..some(states, 2)).filter_map(|_| rng.choice(State::ALL)).collect(),
        queues: (0..some(queues, 2)).map(|_| QueueName::known(pick(rng, &QUEUES))).collect(),
        names: (0..some(names, 1)).map(|_| TaskName::known(pick(rng, &NAMES))).collect(),
        key: key.then(|| Key::known(pick(rng, &KEYS))),
        workflow: rng.choice(workflows).filter(|_| workflow).cloned(),
        reason: rng.choice([DeadReason::Fatal, DeadReason::TooOld]).filter(|_| reason),
        since: since.then(|| moment(rng)),
        until: until.then(|| moment(rng)),
        finished_since: finished_since.then(|| moment(rng)),
    }
}

fn pick<'a>(rng: &mut Rng, words: &[&'a str]) -> &'a str {
    words[rng.usize(..words.len())]
}
