//! What `claim` promises: the right tasks in the right order, each to one holder, and no time lost.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{join_all, select_all};
use tokio_util::sync::CancellationToken;
use windlass_core::backend::{BATCH_MAX, Claim, Demand, LEASE_MAX, TaskAction};
use windlass_core::flow::{Flow, Step};
use windlass_core::{Due, Envelope, State, TaskName};

use super::harness::{Harness, PATIENCE, START, answer, begun, is_rejected, soon};
use super::make::{
    MICRO, SHORT, again, dead, delayed, demand, demand_of, just_under, node, ok, other_node, queue, secs, task,
    task_in, tasks, waiting,
};

/// Tasks of one queue and priority are claimed in the order in which they were pushed.
pub async fn tasks_are_claimed_in_the_order_of_their_push(h: &Harness) {
    let mut pushed = h.push_all(tasks(3)).await;
    h.clock.advance(secs(1));
    pushed.extend(h.push_all(tasks(2)).await);
    assert_eq!(h.claim_ids(demand(10)).await, pushed);
}

/// The queues are emptied in the order in which the demand names them.
pub async fn queues_are_emptied_in_the_order_of_the_demand(h: &Harness) {
    let slow = h.push(task_in("slow")).await;
    h.clock.advance(secs(1));
    let fast = h.push_all([task_in("fast"), task_in("fast")]).await;
    let claimed = h.claim_ids(demand_of(&["fast", "slow"], 10)).await;
    assert_eq!(claimed, [fast[0].clone(), fast[1].clone(), slow]);
}

/// A claim takes no more than it asks for.
pub async fn a_claim_takes_no_more_than_its_maximum(h: &Harness) {
    let pushed = h.push_all(tasks(5)).await;
    assert_eq!(h.claim_ids(demand(2)).await, pushed[..2]);
    assert_eq!(h.claim_ids(demand(10)).await, pushed[2..]);
}

/// A queue that the demand does not name is left alone.
pub async fn other_queues_are_left_alone(h: &Harness) {
    h.push(task_in("other")).await;
    assert_eq!(h.claim_ids(demand(10)).await, []);
    assert_eq!(h.counts(&queue("other")).await.ready, 1);
}

/// A claim that does not wait answers at once, with nothing when there is nothing.
pub async fn a_claim_that_does_not_wait_asks_once(h: &Harness) {
    assert_eq!(soon(h.claim_ids(demand(10))).await, []);
}

/// A claim tells everything that its holder needs.
pub async fn a_claim_says_what_it_is(h: &Harness) {
    let id = h.push(task("mail")).await;
    h.clock.advance(secs(5));
    let claim = h.claim_one().await;
    assert_eq!((&claim.envelope.id, &claim.receipt.id, claim.envelope.name.as_str()), (&id, &id, "mail"));
    assert_eq!((claim.attempt, claim.enqueued_at, claim.ready_at), (1, START, START));
}

/// A claimed task is running, and the record says whose it is.
pub async fn a_claimed_task_is_running(h: &Harness) {
    let id = h.push(task("work")).await;
    h.clock.advance(secs(5));
    h.claim_one().await;
    let record = h.record(&id).await;
    assert_eq!((record.state, record.node, record.started_at), (State::Running, Some(node()), Some(START + secs(5))));
    assert_eq!((record.attempt, record.finished_at), (1, None));
}

/// A task that somebody holds is not given to anybody else.
pub async fn a_held_task_is_not_claimed_again(h: &Harness) {
    h.push_and_claim(task("work")).await;
    let other = Demand { node: other_node(), ..demand(10) };
    assert_eq!(h.claim_ids(other).await, []);
}

/// A lease that ran out is taken back by a tick, not by the next claim.
pub async fn a_lease_that_ran_out_is_not_taken_by_a_claim(h: &Harness) {
    h.push_and_claim(task("work")).await;
    h.clock.advance(secs(31));
    assert_eq!(h.claim_ids(demand(10)).await, []);
}

/// A scheduled task is claimed from its due time on, also when no tick has run.
pub async fn a_due_task_is_claimed_without_a_tick(h: &Harness) {
    let id = h.push(delayed(secs(60))).await;
    h.clock.advance(just_under(secs(60)));
    assert_eq!(h.claim_ids(demand(10)).await, []);
    h.clock.advance(MICRO);
    assert_eq!(h.claim_ids(demand(10)).await, [id]);
}

/// A scheduled task is ready since its due time, whenever somebody looks.
pub async fn a_due_task_is_ready_since_its_due_time(h: &Harness) {
    h.push(delayed(secs(60))).await;
    h.clock.advance(secs(100));
    assert_eq!(h.claim_one().await.ready_at, START + secs(60));
}

/// Due tasks stand where they would stand had they been pushed at their due time.
pub async fn due_tasks_take_their_place_by_their_due_time(h: &Harness) {
    let late = h.push(delayed(secs(30))).await;
    let early = h.push(delayed(secs(10))).await;
    h.clock.advance(secs(20));
    let between = h.push(task("work")).await;
    h.clock.advance(secs(20));
    let last = h.push(task("work")).await;
    assert_eq!(h.claim_ids(demand(10)).await, [early, between, late, last]);
}

/// Names that the demand leaves to others are skipped; what stands behind them is not.
pub async fn excepted_names_are_left_to_others(h: &Harness) {
    let skipped = h.push(task("unknown")).await;
    let taken = h.push(task("known")).await;
    let demand_except = Demand { except: vec![TaskName::known("unknown")], ..demand(10) };
    assert_eq!(h.claim_ids(demand_except).await, [taken]);
    assert_eq!(h.claim_ids(demand(10)).await, [skipped]);
}

/// A task is handed out until it expires, and not from then on.
pub async fn a_task_is_claimed_until_it_expires(h: &Harness) {
    let expiring = || Envelope { expires: Some(START + secs(10)), ..task("work") };
    let ids = h.push_all([expiring(), expiring()]).await;
    h.clock.advance(just_under(secs(10)));
    assert_eq!(h.claim_ids(demand(1)).await, ids[..1]);
    h.clock.advance(MICRO);
    assert_eq!(h.claim_ids(demand(1)).await, []);
}

/// Expired tasks take no room in a claim: those behind them are found.
pub async fn tasks_behind_expired_ones_are_claimed(h: &Harness) {
    let expiring = (0..20).map(|_| Envelope { expires: Some(START + secs(10)), ..task("work") });
    h.push_all(expiring).await;
    let good = h.push_all(tasks(2)).await;
    h.clock.advance(secs(10));
    assert_eq!(h.claim_ids(demand(2)).await, good);
}

/// Every claim counts an attempt and raises the fence.
pub async fn every_claim_counts_an_attempt_and_raises_the_fence(h: &Harness) {
    let first = h.push_and_claim(task("work")).await;
    h.settle(&first, again(Duration::ZERO)).await;
    let second = h.claim_one().await;
    assert_eq!((first.attempt, second.attempt), (1, 2));
    assert!(first.receipt.fence < second.receipt.fence);
}

/// The fence goes on rising when a task is retried from the start.
pub async fn a_retry_does_not_reset_the_fence(h: &Harness) {
    let first = h.push_and_claim(task("work")).await;
    h.settle(&first, dead()).await;
    h.act_on(&first.receipt.id, TaskAction::Retry).await;
    let second = h.claim_one().await;
    assert_eq!(second.attempt, 1, "the attempts start again");
    assert!(first.receipt.fence < second.receipt.fence);
}

/// A push wakes a claim that waits.
pub async fn a_waiting_claim_is_woken_by_a_push(h: &Harness) {
    let claim = begin(h, waiting(PATIENCE * 2));
    let id = h.push(task("work")).await;
    assert_eq!(ids(soon(claim).await), [id]);
}

/// A push through another handle wakes a claim that waits.
pub async fn a_waiting_claim_is_woken_by_a_push_through_another_handle(h: &Harness) {
    let second = Arc::clone(&h.second);
    let claim = begun(async move { second.claim(&waiting(PATIENCE * 2)).await });
    let id = h.push(task("work")).await;
    assert_eq!(ids(answer(soon(claim).await)), [id]);
}

/// A settle that makes a task ready wakes a claim that waits.
pub async fn a_waiting_claim_is_woken_by_a_retry_without_delay(h: &Harness) {
    let held = h.push_and_claim(task("work")).await;
    let claim = begin(h, waiting(PATIENCE * 2));
    h.settle(&held, again(Duration::ZERO)).await;
    assert_eq!(ids(soon(claim).await), [held.receipt.id]);
}

/// The next step of a workflow wakes a claim that waits.
pub async fn a_waiting_claim_is_woken_by_the_next_step(h: &Harness) {
    let next = task("next");
    let flow = Flow { then: vec![Step::Task(Box::new(next.clone()))], ..Flow::default() };
    let held = h.push_and_claim(Envelope { flow: Some(Box::new(flow)), ..task("first") }).await;
    let claim = begin(h, waiting(PATIENCE * 2));
    h.settle(&held, ok("1")).await;
    assert_eq!(ids(soon(claim).await), [next.id]);
}

/// A command that makes a task ready wakes a claim that waits.
pub async fn a_waiting_claim_is_woken_by_a_command(h: &Harness) {
    for action in [TaskAction::Retry, TaskAction::RunNow] {
        let id = match action {
            TaskAction::Retry => h.push_and_run(task("work"), dead()).await,
            _ => h.push(delayed(secs(60))).await,
        };
        let claim = begin(h, waiting(PATIENCE * 2));
        h.act_on(&id, action).await;
        assert_eq!(ids(soon(claim).await), [id]);
    }
}

/// A tick that finds due tasks or gives tasks of lost workers back wakes a claim that waits.
pub async fn a_waiting_claim_is_woken_by_a_tick(h: &Harness) {
    let lost = h.push_and_claim(task("work")).await;
    let due = h.push(delayed(secs(60))).await;
    let both = begin(h, Demand { max: 2, ..waiting(PATIENCE * 2) });
    h.tick_after(secs(60)).await;
    let mut claimed = ids(soon(both).await);
    claimed.extend(h.claim_ids(demand(2)).await);
    // A store that waits by itself may see that the scheduled one is due before the tick finds the lost one.
    claimed.sort();
    let mut both = [lost.receipt.id, due];
    both.sort();
    assert_eq!(claimed, both);
}

/// A claim that waits takes a scheduled task when its time comes, without anybody's help.
pub async fn a_waiting_claim_takes_a_task_that_falls_due(h: &Harness) {
    h.clock.go();
    let early = begin(h, waiting(PATIENCE * 2));
    let id = h.push(delayed(SHORT)).await;
    assert_eq!(ids(soon(early).await), [id], "the task came after the claim");
    let id = h.push(delayed(SHORT)).await;
    let late = begin(h, waiting(PATIENCE * 2));
    assert_eq!(ids(soon(late).await), [id], "the claim came after the task");
}

/// A claim that waits in vain answers nothing when its time is over.
pub async fn a_waiting_claim_answers_nothing_in_the_end(h: &Harness) {
    let began = tokio::time::Instant::now();
    assert_eq!(soon(h.claim_ids(waiting(SHORT))).await, []);
    assert!(began.elapsed() >= SHORT);
}

/// A claim that waits answers nothing as soon as it is hushed.
pub async fn a_hushed_claim_answers_nothing(h: &Harness) {
    let hush = CancellationToken::new();
    let claim = begin(h, Demand { hush: hush.clone(), ..waiting(PATIENCE * 2) });
    hush.cancel();
    assert_eq!(ids(soon(claim).await), []);
}

/// A claim that was hushed does not keep a task from the claims that go on waiting.
pub async fn a_task_goes_to_a_claim_that_was_not_hushed(h: &Harness) {
    let hush = CancellationToken::new();
    let hushed = begin(h, Demand { hush: hush.clone(), ..waiting(PATIENCE * 2) });
    let waits = begin(h, waiting(PATIENCE * 2));
    hush.cancel();
    let id = h.push(task("work")).await;
    // A push and a hush at the same time: the hushed claim may have been faster, never both and never none.
    let hushed = ids(soon(hushed).await);
    let claimed = if hushed.is_empty() { ids(soon(waits).await) } else { hushed };
    assert_eq!(claimed, [id]);
}

/// A claim that leaves a task to others does not keep them from being woken for it.
pub async fn a_task_wakes_a_claim_that_wants_it(h: &Harness) {
    let picky = Demand { except: vec![TaskName::known("unknown")], ..waiting(SHORT) };
    let picky = begin(h, picky);
    let takes_all = begin(h, waiting(PATIENCE * 2));
    let id = h.push(task("unknown")).await;
    assert_eq!(ids(soon(takes_all).await), [id]);
    assert_eq!(ids(soon(picky).await), []);
}

/// Claims that wait for several queues are woken by each of them, and no task is left behind while one waits.
pub async fn every_task_finds_one_of_the_waiting_claims(h: &Harness) {
    let demands =
        [["a", "b"], ["b", "c"], ["c", "a"]].map(|queues| Demand { wait: PATIENCE * 2, ..demand_of(&queues, 1) });
    let claims: Vec<_> = demands.into_iter().map(|demand| begin(h, demand)).collect();
    let pushed = h.push_all([task_in("a"), task_in("b"), task_in("c")]).await;
    let claimed: HashSet<_> = soon(join_all(claims)).await.into_iter().flat_map(ids).collect();
    assert_eq!(claimed, pushed.into_iter().collect());
}

/// A claim that was woken for one task and takes another leaves the first to whoever waits for it.
pub async fn a_task_that_is_passed_over_wakes_the_next_claim(h: &Harness) {
    let queues: [&[&str]; 3] = [&["a", "b"], &["a"], &["b"]];
    let waiting = queues.map(|queues| Demand { wait: PATIENCE * 2, ..demand_of(queues, 1) });
    let claims = waiting.map(|demand| begin(h, demand).boxed());
    let pushed = [h.push(task_in("b")).await, h.push(task_in("a")).await];
    let (first, _, others) = soon(select_all(claims)).await;
    let (second, ..) = soon(select_all(others)).await;
    let claimed: HashSet<_> = [ids(first), ids(second)].concat().into_iter().collect();
    assert_eq!(claimed, HashSet::from(pushed));
}

/// However many claim at once, every task has one holder.
pub async fn concurrent_claims_never_share_a_task(h: &Harness) {
    h.push_all(tasks(100)).await;
    let claims = (0..20).map(|number| {
        let store = Arc::clone(if number % 2 == 0 { &h.store } else { &h.second });
        tokio::spawn(async move { answer(store.claim(&demand(7)).await) })
    });
    let claimed = join_all(claims).await.into_iter().flat_map(|claims| ids(claims.expect("a claim does not panic")));
    let claimed: Vec<_> = claimed.collect();
    assert_eq!((claimed.len(), claimed.iter().collect::<HashSet<_>>().len()), (100, 100));
}

/// A claim takes tasks up to the limit of a batch; one that asks for more is refused.
pub async fn a_claim_is_limited(h: &Harness) {
    h.push_all(tasks(BATCH_MAX)).await;
    assert!(is_rejected(h.store.claim(&demand(BATCH_MAX + 1)).await));
    assert_eq!(h.claim_ids(demand(BATCH_MAX)).await.len(), BATCH_MAX);
}

/// A lease is longer than zero and at most a day.
pub async fn a_lease_is_limited(h: &Harness) {
    h.push(task("work")).await;
    for lease in [Duration::ZERO, LEASE_MAX + MICRO] {
        assert!(is_rejected(h.store.claim(&Demand { lease, ..demand(1) }).await), "{lease:?}");
    }
    assert_eq!(h.claim_ids(Demand { lease: LEASE_MAX, ..demand(1) }).await.len(), 1);
}

/// A task that is due at a time before the store's clock is not older than those pushed before it.
pub async fn a_task_due_in_the_past_waits_in_line(h: &Harness) {
    let first = h.push(task("work")).await;
    let second = h.push(Envelope { due: Due::At(START - secs(3600)), ..task("work") }).await;
    assert_eq!(h.claim_ids(demand(10)).await, [first, second]);
}

fn begin(h: &Harness, demand: Demand) -> impl Future<Output = Vec<Claim>> + use<> {
    let store = Arc::clone(&h.store);
    let claim = begun(async move { store.claim(&demand).await });
    async move { answer(claim.await) }
}

fn ids(claims: Vec<Claim>) -> Vec<windlass_core::TaskId> {
    claims.into_iter().map(|claim| claim.receipt.id).collect()
}
