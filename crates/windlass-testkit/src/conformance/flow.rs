//! What workflows promise: every step follows in the same atomic step as the end of the one before, and starts once.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use windlass_core::backend::{Claim, Pushed, Settlement, TaskAction};
use windlass_core::flow::{After, FailurePolicy, Flow, GroupStep, Member, NewGroup, Step};
use windlass_core::state::{CRASHES_MAX, DeadReason, PARKED_FOR};
use windlass_core::view::{Filter, Record};
use windlass_core::{Clock as _, Due, Envelope, Failure, Json, State, TaskId, Verdict};

use super::harness::{Harness, START, answer, settled};
use super::make::{LEASE, again, dead, demand, json, ok, secs, task};

/// The next step is pushed when a task succeeds, with its result as input.
pub async fn the_next_step_gets_the_result(h: &Harness) {
    let first = chain(task("first"), vec![step("second"), step("third")]);
    h.push_and_run(first.clone(), ok("1")).await;
    let second = h.claim_one().await;
    assert_eq!((second.envelope.name.as_str(), &second.envelope.input), ("second", &Some(json("1"))));
    assert_eq!(second.envelope.workflow, Some(first.id));
    h.settle(&second, ok("2")).await;
    let third = h.claim_one().await;
    assert_eq!((third.envelope.name.as_str(), &third.envelope.input), ("third", &Some(json("2"))));
}

/// An attempt that will be repeated starts nothing.
pub async fn an_attempt_that_is_repeated_starts_nothing(h: &Harness) {
    h.push(chain(task("first"), vec![step("second")])).await;
    for verdict in [again(Duration::ZERO), Verdict::Released, again(Duration::ZERO)] {
        h.run_one(verdict).await;
    }
    assert_eq!(h.list(&Filter::all()).await.len(), 1);
}

/// A settle that is stale starts nothing.
pub async fn a_stale_settle_starts_nothing(h: &Harness) {
    let old = h.push_and_claim(chain(task("first"), vec![step("second")])).await;
    h.tick_after(LEASE).await;
    assert_eq!(h.settle(&old, ok("1")).await, Settlement::Stale);
    assert_eq!(h.list(&Filter::all()).await.len(), 1);
}

/// A step that gives up starts its error handlers with the failure as input; the steps after it are not started.
pub async fn a_step_that_gives_up_starts_its_error_handlers(h: &Harness) {
    let flow = Flow { then: vec![step("second")], otherwise: vec![task("mend")], ..Flow::default() };
    h.push_and_run(Envelope { flow: Some(Box::new(flow)), ..task("first") }, dead()).await;
    let claims = h.claim(demand(10)).await;
    assert_eq!(names(&claims), ["mend"]);
    let input: Failure =
        claims[0].envelope.input.as_ref().and_then(|input| input.to().ok()).unwrap_or_else(|| panic!("a failure"));
    assert_eq!(input, super::make::failure());
}

/// A step that ran before is not started again when the one before it is repeated.
pub async fn a_step_that_is_known_is_not_started_again(h: &Harness) {
    let first = h.push_and_run(chain(task("first"), vec![step("second")]), ok("1")).await;
    let second = h.run_one(ok("2")).await;
    h.act_on(&first, TaskAction::Retry).await;
    h.run_one(ok("3")).await;
    assert_eq!(h.claim_ids(demand(10)).await, []);
    assert_eq!(h.record(&second).await.envelope.input, Some(json("1")));
}

/// What follows a group starts when its last member has arrived, with the results in the order of the members.
pub async fn a_group_is_complete_with_its_last_member(h: &Harness) {
    let body = push_chord(h, FailurePolicy::All, 3).await;
    let claims = h.claim(demand(3)).await;
    for (place, result) in [(2, "3"), (0, "1")] {
        h.settle(&claims[place], ok(result)).await;
        assert_eq!(h.find(&body).await, None, "a member is missing");
    }
    h.settle(&claims[1], ok("2")).await;
    assert_eq!(input_of(&h.claim_one().await), "[1,2,3]");
}

/// Members that end in one batch complete their group once.
pub async fn a_group_is_complete_once_in_a_batch(h: &Harness) {
    let body = push_chord(h, FailurePolicy::All, 50).await;
    let claims = h.claim(demand(50)).await;
    h.settle_all(claims.iter().map(|claim| (claim, ok("1")))).await;
    assert_eq!(h.claim_ids(demand(10)).await, [body]);
}

/// Members that end at the same time on several nodes complete their group once.
pub async fn a_group_is_complete_once_on_many_nodes(h: &Harness) {
    let body = push_chord(h, FailurePolicy::All, 20).await;
    let claims = h.claim(demand(20)).await;
    let settles = claims.into_iter().enumerate().map(|(number, claim)| {
        let store = Arc::clone(if number % 2 == 0 { &h.store } else { &h.second });
        tokio::spawn(async move { answer(store.settle(&[settled(&claim, ok(&number.to_string()))]).await) })
    });
    assert!(join_all(settles).await.into_iter().all(|settled| settled.is_ok_and(|one| one == [Settlement::Applied])));
    let claim = h.claim_one().await;
    let expected: Vec<String> = (0..20).map(|number| number.to_string()).collect();
    assert_eq!((&claim.receipt.id, input_of(&claim)), (&body, format!("[{}]", expected.join(","))));
}

/// A group whose members are pushed by a step is counted as one that a client pushed.
pub async fn a_group_can_follow_a_task(h: &Harness) {
    h.push_and_run(chain(task("first"), vec![group(FailurePolicy::All, &["a", "b"]), step("body")]), ok("1")).await;
    let members = h.claim(demand(10)).await;
    assert_eq!(names(&members), ["a", "b"]);
    assert!(members.iter().all(|member| member.envelope.input == Some(json("1"))), "each gets the result");
    h.settle_all([(&members[1], ok("3")), (&members[0], ok("2"))]).await;
    let body = h.claim_one().await;
    assert_eq!((body.envelope.name.as_str(), input_of(&body)), ("body", "[2,3]".to_owned()));
}

/// A group can follow a group.
pub async fn a_group_can_follow_a_group(h: &Harness) {
    let steps = vec![group(FailurePolicy::All, &["a", "b"]), group(FailurePolicy::All, &["c", "d"]), step("body")];
    h.push_and_run(chain(task("first"), steps), ok("0")).await;
    let claims = h.claim(demand(10)).await;
    h.settle_all(claims.iter().zip([ok("1"), ok("2")])).await;
    let claims = h.claim(demand(10)).await;
    assert_eq!((names(&claims), input_of(&claims[0])), (vec!["c", "d"], "[1,2]".to_owned()));
    h.settle_all(claims.iter().zip([ok("3"), ok("4")])).await;
    assert_eq!(input_of(&h.claim_one().await), "[3,4]");
}

/// A group inside of a group arrives as one member, with its results as one result; both end in the same step.
pub async fn a_group_inside_of_a_group_is_one_member(h: &Harness) {
    push_nested(h).await;
    h.run_one(ok("0")).await;
    let claims = h.claim(demand(10)).await;
    assert_eq!(names(&claims), ["plain", "x", "y"]);
    h.settle_all([(&claims[0], ok("3")), (&claims[1], ok("1")), (&claims[2], ok("2"))]).await;
    assert_eq!(input_of(&h.claim_one().await), "[[1,2],3]");
}

/// A failed member of an inner group fails the outer one as well, and is known to whoever looks at what never ran.
pub async fn a_failure_in_an_inner_group_reaches_the_outer_one(h: &Harness) {
    let body = push_nested(h).await;
    h.run_one(ok("0")).await;
    let claims = h.claim(demand(10)).await;
    h.settle(&claims[1], dead()).await;
    assert_stranded(&h.record(&body).await);
}

/// By the policy `all`, one failed member strands what follows, and starts the error handlers of the group.
pub async fn a_failed_member_strands_what_follows(h: &Harness) {
    let (body, mend) = (task("body"), task("mend"));
    let after = After { push: vec![body.clone()], otherwise: vec![mend.clone()], ..After::default() };
    push_group(h, FailurePolicy::All, 3, after).await;
    h.run_one(dead()).await;
    assert_stranded(&h.record(&body.id).await);
    let mends = Filter { names: vec![mend.name], ..Filter::default() };
    assert_eq!(h.list(&mends).await.len(), 1);
    h.run_one(dead()).await;
    assert_eq!(h.list(&mends).await.len(), 1, "a group fails once");
}

/// What is stranded is a dead letter that says why, is found as such and counted as such.
pub async fn a_stranded_task_is_a_dead_letter(h: &Harness) {
    let body = push_chord(h, FailurePolicy::All, 1).await;
    h.clock.advance(secs(5));
    h.run_one(dead()).await;
    let record = h.record(&body).await;
    assert_stranded(&record);
    assert_eq!((record.attempt, record.finished_at), (0, Some(START + secs(5))));
    assert!(record.failure.as_ref().is_some_and(|failure| failure.message.contains("the mail server did not answer")));
    let upstream = Filter { reason: Some(DeadReason::Upstream), ..Filter::default() };
    assert_eq!(h.list(&upstream).await, [record]);
    assert_eq!(h.default_counts().await.dead, 2);
}

/// A step that lives already is not stranded.
pub async fn a_step_that_is_known_is_not_stranded(h: &Harness) {
    let body = task("body");
    push_group(h, FailurePolicy::All, 1, After { push: vec![body.clone()], ..After::default() }).await;
    let member = h.claim_one().await;
    h.push(body.clone()).await;
    h.settle(&member, dead()).await;
    assert_eq!((h.state(&body.id).await, h.default_counts().await.dead), (State::Ready, 1));
}

/// By the policy `any`, one success is enough; failed members are null.
pub async fn by_any_one_success_is_enough(h: &Harness) {
    let body = push_chord(h, FailurePolicy::Any, 3).await;
    let claims = h.claim(demand(3)).await;
    h.settle_all([(&claims[0], dead()), (&claims[1], ok("2"))]).await;
    assert_eq!(h.find(&body).await, None, "it is decided when every member has ended");
    h.settle(&claims[2], dead()).await;
    assert_eq!(input_of(&h.claim_one().await), "[null,2,null]");
}

/// By the policy `any`, a group without a success has failed, for the reason of its first member.
pub async fn by_any_no_success_is_a_failure(h: &Harness) {
    let body = push_chord(h, FailurePolicy::Any, 2).await;
    let claims = h.claim(demand(2)).await;
    let of = |text: &str| Verdict::Dead { reason: DeadReason::Fatal, failure: Failure::new("error", text) };
    h.settle_all([(&claims[1], of("second"))]).await;
    h.settle_all([(&claims[0], of("first"))]).await;
    let record = h.record(&body).await;
    assert_stranded(&record);
    assert!(record.failure.is_some_and(|failure| failure.message.contains("first")), "by place, not by time");
}

/// By the policy `collect`, failures are data.
pub async fn by_collect_failures_are_data(h: &Harness) {
    push_chord(h, FailurePolicy::Collect, 2).await;
    let claims = h.claim(demand(2)).await;
    h.settle_all([(&claims[0], dead()), (&claims[1], ok("2"))]).await;
    let error = r#"{"class":"timeout","message":"the mail server did not answer"}"#;
    assert_eq!(input_of(&h.claim_one().await), format!(r#"[{{"error":{error}}},{{"ok":2}}]"#));
}

/// A member that is retried and succeeds mends its group: what was stranded comes back to life with the results.
pub async fn a_member_that_is_retried_mends_its_group(h: &Harness) {
    let body = push_chord(h, FailurePolicy::All, 2).await;
    let claims = h.claim(demand(2)).await;
    h.settle_all([(&claims[0], dead()), (&claims[1], ok("2"))]).await;
    assert_stranded(&h.record(&body).await);
    h.act_on(&claims[0].receipt.id, TaskAction::Retry).await;
    h.run_one(ok("1")).await;
    let claim = h.claim_one().await;
    assert_eq!((&claim.receipt.id, claim.attempt, input_of(&claim)), (&body, 1, "[1,2]".to_owned()));
    let record = h.record(&body).await;
    assert_eq!((record.reason, record.failure, record.finished_at), (None, None, None));
    assert_eq!(h.default_counts().await.dead, 0);
}

/// A group that was mended before its other members ended is complete with the last of them.
pub async fn a_mended_group_waits_for_the_others(h: &Harness) {
    let body = push_chord(h, FailurePolicy::All, 2).await;
    let claims = h.claim(demand(2)).await;
    h.settle(&claims[0], dead()).await;
    h.act_on(&claims[0].receipt.id, TaskAction::Retry).await;
    h.run_one(ok("1")).await;
    assert_eq!(h.state(&body).await, State::Dead);
    h.settle(&claims[1], ok("2")).await;
    assert_eq!(input_of(&h.claim_one().await), "[1,2]");
}

/// A client cannot bring a stranded task to life by pushing it; the end of what it waited for can.
pub async fn a_client_does_not_revive_what_is_stranded(h: &Harness) {
    let body = push_chord(h, FailurePolicy::All, 1).await;
    h.run_one(dead()).await;
    let pushed = h.try_push([Envelope { id: body.clone(), ..task("body") }]).await;
    assert_eq!(pushed, [Pushed::Exists(body.clone())]);
    assert_eq!(h.state(&body).await, State::Dead);
}

/// A stranded task that an operator started by hand is left alone when its group is mended.
pub async fn a_stranded_task_that_was_started_by_hand_is_left_alone(h: &Harness) {
    let body = push_chord(h, FailurePolicy::All, 1).await;
    let member = h.run_one(dead()).await;
    h.act_on(&body, TaskAction::Retry).await;
    h.run_one(ok("9")).await;
    h.act_on(&member, TaskAction::Retry).await;
    h.run_one(ok("1")).await;
    let record = h.record(&body).await;
    assert_eq!((record.state, record.result.as_ref().map(Json::as_str)), (State::Succeeded, Some("9")));
}

/// A group that was stranded with its members comes to life with them.
pub async fn a_stranded_group_comes_back_to_life(h: &Harness) {
    let steps = vec![group(FailurePolicy::All, &["a"]), group(FailurePolicy::All, &["b", "c"]), step("body")];
    h.push_and_run(chain(task("first"), steps), ok("0")).await;
    let member = h.run_one(dead()).await;
    assert_eq!(h.list(&Filter { reason: Some(DeadReason::Upstream), ..Filter::default() }).await.len(), 2);
    h.act_on(&member, TaskAction::Retry).await;
    h.run_one(ok("1")).await;
    let claims = h.claim(demand(10)).await;
    assert_eq!(claims.len(), 2);
    h.settle_all(claims.iter().map(|claim| (claim, ok("2")))).await;
    assert_eq!(input_of(&h.claim_one().await), "[2,2]");
}

/// Each member counts once: a success that is repeated changes nothing, and a later failure does not undo it.
pub async fn a_success_is_never_replaced(h: &Harness) {
    let body = push_chord(h, FailurePolicy::All, 2).await;
    let first = h.run_one(ok("1")).await;
    for verdict in [ok("8"), dead()] {
        h.act_on(&first, TaskAction::Retry).await;
        let claims = h.claim(demand(10)).await;
        for claim in claims {
            let verdict = if claim.receipt.id == first { verdict.clone() } else { Verdict::Released };
            h.settle(&claim, verdict).await;
        }
        assert_eq!(h.find(&body).await, None);
    }
    h.run_one(ok("2")).await;
    assert_eq!(input_of(&h.claim_one().await), "[1,2]");
}

/// Of several failures of one member the latest counts.
pub async fn a_later_failure_replaces_an_earlier_one(h: &Harness) {
    push_chord(h, FailurePolicy::Collect, 2).await;
    let claims = h.claim(demand(2)).await;
    h.settle(&claims[0], dead()).await;
    h.act_on(&claims[0].receipt.id, TaskAction::Retry).await;
    let failure = Failure::new("later", "again");
    h.run_one(Verdict::Dead { reason: DeadReason::Fatal, failure }).await;
    h.settle(&claims[1], ok("2")).await;
    assert_eq!(input_of(&h.claim_one().await), r#"[{"error":{"class":"later","message":"again"}},{"ok":2}]"#);
}

/// A group that is complete is complete: a member that runs again starts nothing.
pub async fn a_complete_group_stays_complete(h: &Harness) {
    let body = push_chord(h, FailurePolicy::Any, 2).await;
    let claims = h.claim(demand(2)).await;
    h.settle_all([(&claims[0], ok("1")), (&claims[1], dead())]).await;
    h.run_one(ok("9")).await;
    h.act_on(&claims[1].receipt.id, TaskAction::Retry).await;
    h.run_one(ok("2")).await;
    assert_eq!(h.claim_ids(demand(10)).await, []);
    assert_eq!(h.record(&body).await.envelope.input, Some(json("[1,null]")));
}

/// A member of a group that nobody knows ends like any other task.
pub async fn an_arrival_at_an_unknown_group_is_ignored(h: &Harness) {
    let id = h.push_and_run(member(&TaskId::random(), 0), ok("1")).await;
    assert_eq!(h.state(&id).await, State::Succeeded);
}

/// A group that is pushed again is left alone, with those who arrived.
pub async fn a_known_group_is_left_alone(h: &Harness) {
    let body = task("body");
    let after = After { push: vec![body.clone()], ..After::default() };
    let new = NewGroup { id: TaskId::random(), size: 2, policy: FailurePolicy::All, after };
    let members = [member(&new.id, 0), member(&new.id, 1)];
    h.push_group(members.to_vec(), new.clone()).await;
    h.run_one(ok("1")).await;
    let repeated = NewGroup { size: 1, after: After::default(), ..new };
    let pushed = h.push_group(members.to_vec(), repeated).await;
    assert_eq!(pushed, members.map(|member| Pushed::Exists(member.id)));
    h.run_one(ok("2")).await;
    assert_eq!(input_of(&h.claim_one().await), "[1,2]");
}

/// A member that is cancelled while it waits arrives as a failure.
pub async fn a_member_that_is_cancelled_arrives(h: &Harness) {
    let body = push_chord(h, FailurePolicy::Collect, 1).await;
    let members = h.list(&Filter::all()).await;
    h.act_on(&members[0].envelope.id, TaskAction::Cancel).await;
    let claim = h.claim_one().await;
    assert_eq!((&claim.receipt.id, class_of(&input_of(&claim))), (&body, "cancelled".to_owned()));
}

/// Members that expire arrive as failures, ready or scheduled.
pub async fn members_that_expire_arrive(h: &Harness) {
    for due in [Due::Now, Due::After(secs(3600))] {
        push_expiring(h, due).await;
        h.tick_after(secs(10)).await;
        assert_eq!(class_of(&input_of(&h.claim_one().await)), "expired");
    }
}

/// A member that a claim finds expired arrives as well.
pub async fn a_member_that_a_claim_finds_expired_arrives(h: &Harness) {
    push_expiring(h, Due::Now).await;
    h.clock.advance(secs(10));
    // The claim that ends the member may find what follows at once, or leave it to the next.
    let mut claims = h.claim(demand(1)).await;
    claims.extend(h.claim(demand(1)).await);
    assert_eq!(claims.len(), 1);
    assert_eq!(class_of(&input_of(&claims[0])), "expired");
}

/// A member that takes its workers down arrives as a failure.
pub async fn a_member_that_is_poison_arrives(h: &Harness) {
    push_chord(h, FailurePolicy::Collect, 1).await;
    for _ in 0..CRASHES_MAX {
        h.claim_one().await;
        h.tick_after(LEASE).await;
    }
    assert_eq!(class_of(&input_of(&h.claim_one().await)), "worker_lost");
}

/// A member that nobody knows arrives as a failure when its time is over.
pub async fn a_member_that_nobody_knows_arrives(h: &Harness) {
    push_chord(h, FailurePolicy::Collect, 1).await;
    h.run_one(Verdict::Parked).await;
    h.tick_after(PARKED_FOR).await;
    assert_eq!(class_of(&input_of(&h.claim_one().await)), "unknown_task");
}

/// A member that was to be cancelled arrives as such, whether its holder gives it back or is lost.
pub async fn a_member_that_was_to_be_cancelled_arrives(h: &Harness) {
    for lost in [false, true] {
        push_chord(h, FailurePolicy::Collect, 1).await;
        let claim = h.claim_one().await;
        h.act_on(&claim.receipt.id, TaskAction::Cancel).await;
        if lost {
            h.tick_after(LEASE).await;
        } else {
            h.settle(&claim, again(secs(60))).await;
        }
        assert_eq!(class_of(&input_of(&h.claim_one().await)), "cancelled");
    }
}

/// Error handlers start also when it is the store that ends a task.
pub async fn error_handlers_start_when_the_store_ends_a_task(h: &Harness) {
    let flow = Flow { otherwise: vec![task("mend")], ..Flow::default() };
    let id = h.push(Envelope { flow: Some(Box::new(flow)), ..task("work") }).await;
    h.act_on(&id, TaskAction::Cancel).await;
    assert_eq!(names(&h.claim(demand(10)).await), ["mend"]);
}

/// A member whose own steps follow arrives with the result of the last of them.
pub async fn a_member_arrives_with_the_result_of_its_last_step(h: &Harness) {
    let tasks = vec![chain(task("a"), vec![step("a2")]), task("b")];
    let group = Step::Group(Box::new(GroupStep { id: TaskId::random(), policy: FailurePolicy::All, tasks }));
    h.push_and_run(chain(task("first"), vec![group, step("body")]), ok("0")).await;
    let claims = h.claim(demand(10)).await;
    h.settle_all(claims.iter().zip([ok("1"), ok("2")])).await;
    let second = h.claim_one().await;
    assert_eq!((second.envelope.name.as_str(), input_of(&second)), ("a2", "1".to_owned()));
    h.settle(&second, ok("3")).await;
    assert_eq!(input_of(&h.claim_one().await), "[3,2]");
}

/// A group is not forgotten while its members live, however long they take.
pub async fn a_group_waits_for_its_members(h: &Harness) {
    push_chord(h, FailurePolicy::All, 2).await;
    h.run_one(ok("1")).await;
    for _ in 0..34 {
        h.tick_after(secs(86_400)).await;
    }
    h.run_one(ok("2")).await;
    assert_eq!(input_of(&h.claim_one().await), "[1,2]");
}

/// Members of several groups end in one batch: each group is completed, in the order of the batch.
pub async fn many_members_of_many_groups_end_in_one_batch(h: &Harness) {
    let mut bodies = Vec::new();
    for _ in 0..10 {
        bodies.push(push_chord(h, FailurePolicy::All, 10).await);
    }
    let claims = h.claim(demand(100)).await;
    h.settle_all(claims.iter().map(|claim| (claim, ok("1")))).await;
    assert_eq!(h.claim_ids(demand(100)).await, bodies);
}

fn step(name: &str) -> Step {
    Step::Task(Box::new(task(name)))
}

fn group(policy: FailurePolicy, names: &[&str]) -> Step {
    let tasks = names.iter().map(|name| task(name)).collect();
    Step::Group(Box::new(GroupStep { id: TaskId::random(), policy, tasks }))
}

fn chain(first: Envelope, then: Vec<Step>) -> Envelope {
    Envelope { flow: Some(Box::new(Flow { then, ..Flow::default() })), ..first }
}

fn member(group: &TaskId, index: u32) -> Envelope {
    let member = Member { group: group.clone(), index };
    Envelope { flow: Some(Box::new(Flow { member: Some(member), ..Flow::default() })), ..task("member") }
}

/// A task of a graph starts when the last of those it waits for has succeeded, with their results.
pub async fn a_graph_goes_on_where_everything_has_arrived(h: &Harness) {
    push_diamond(h).await;
    h.settle_all([(&h.claim_one().await, ok("1"))]).await;
    let middle = h.claim(demand(10)).await;
    assert_eq!((names(&middle), input_of(&middle[0])), (vec!["b", "c"], "[1]".to_owned()));
    h.settle(&middle[1], ok("3")).await;
    assert_eq!(h.claim_ids(demand(10)).await, []);
    h.settle(&middle[0], ok("2")).await;
    let last = h.claim_one().await;
    assert_eq!((last.envelope.name.as_str(), input_of(&last)), ("d", "[1,2,3]".to_owned()));
}

/// A task that gives up strands everything behind it; a retry that succeeds brings it back to life.
pub async fn a_graph_is_mended_by_a_retry(h: &Harness) {
    push_diamond(h).await;
    h.run_one(ok("1")).await;
    let middle = h.claim(demand(10)).await;
    h.settle_all([(&middle[0], dead()), (&middle[1], ok("3"))]).await;
    let all = h.list(&Filter::in_states([State::Dead])).await;
    assert_eq!(all.len(), 2);
    assert_stranded(all.iter().find(|record| record.envelope.name.as_str() == "d").expect("it is recorded"));
    h.act_on(&middle[0].receipt.id, TaskAction::Retry).await;
    h.run_one(ok("2")).await;
    let last = h.claim_one().await;
    assert_eq!((last.envelope.name.as_str(), input_of(&last)), ("d", "[1,2,3]".to_owned()));
}

/// Whatever is behind a root that gives up is stranded, however far away.
pub async fn a_graph_whose_root_gives_up_is_stranded_whole(h: &Harness) {
    push_diamond(h).await;
    h.run_one(dead()).await;
    let dead = h.list(&Filter::in_states([State::Dead])).await;
    assert_eq!(dead.len(), 4);
    assert_eq!(h.claim_ids(demand(10)).await, []);
}

/// Pushes a; b and c, which wait for it; and d, which waits for all three.
async fn push_diamond(h: &Harness) {
    let mut graph = windlass_core::graph::Graph::new();
    let a = graph.add(task("a"));
    let b = graph.add_after(task("b"), &[a]);
    let c = graph.add_after(task("c"), &[a]);
    graph.add_after(task("d"), &[a, b, c]);
    let (_, push) = windlass_core::workflow::Workflow::from(graph).into_push(h.clock.now()).expect("a graph");
    assert_eq!(answer(h.store.push(&push).await), [Pushed::Stored]);
}

/// A group and its members.
fn group_of(policy: FailurePolicy, size: u32, after: After) -> (NewGroup, Vec<Envelope>) {
    let new = NewGroup { id: TaskId::random(), size, policy, after };
    let members = (0..size).map(|index| member(&new.id, index)).collect();
    (new, members)
}

async fn push_group(h: &Harness, policy: FailurePolicy, size: u32, after: After) {
    let (new, members) = group_of(policy, size, after);
    let pushed = h.push_group(members, new).await;
    assert!(pushed.iter().all(|pushed| *pushed == Pushed::Stored));
}

/// Pushes a group that is followed by one task; answers the id of that task.
async fn push_chord(h: &Harness, policy: FailurePolicy, size: u32) -> TaskId {
    let body = task("body");
    push_group(h, policy, size, After { push: vec![body.clone()], ..After::default() }).await;
    body.id
}

/// Pushes a group of a chain that ends in a group of `x` and `y`, and of `plain`; answers the id of what follows both.
async fn push_nested(h: &Harness) -> TaskId {
    let inner = chain(task("inner"), vec![group(FailurePolicy::All, &["x", "y"])]);
    let body = task("body");
    let outer = GroupStep { id: TaskId::random(), policy: FailurePolicy::All, tasks: vec![inner, task("plain")] };
    let steps = vec![Step::Group(Box::new(outer)), Step::Task(Box::new(body.clone()))];
    h.push_and_run(chain(task("first"), steps), ok("0")).await;
    body.id
}

/// Pushes a group by the policy `collect` whose only member expires in ten seconds.
async fn push_expiring(h: &Harness, due: Due) {
    let after = After { push: vec![task("body")], ..After::default() };
    let (new, mut members) = group_of(FailurePolicy::Collect, 1, after);
    members[0].due = due;
    members[0].expires = Some(h.clock.now() + secs(10));
    h.push_group(members, new).await;
}

fn names(claims: &[Claim]) -> Vec<&str> {
    claims.iter().map(|claim| claim.envelope.name.as_str()).collect()
}

fn input_of(claim: &Claim) -> String {
    claim.envelope.input.as_ref().map(|input| input.as_str().to_owned()).unwrap_or_default()
}

/// The class of the only failure in the results of a group by the policy `collect`.
fn class_of(results: &str) -> String {
    let parts = results.split_once(r#"{"class":""#).and_then(|(_, rest)| rest.split_once('"'));
    parts.map_or_else(|| panic!("a failure: {results}"), |(class, _)| class.to_owned())
}

#[track_caller]
fn assert_stranded(record: &Record) {
    assert_eq!((record.state, record.reason), (State::Dead, Some(DeadReason::Upstream)));
}
