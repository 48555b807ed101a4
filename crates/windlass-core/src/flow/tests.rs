//! What follows what, as tables and small workflows.

use super::*;
use crate::args::Args;
use crate::{QueueName, TaskName};

fn task(name: &str) -> Envelope {
    Envelope::new(TaskName::known(name), QueueName::default(), Args::none())
}

fn group(policy: FailurePolicy, names: &[&str]) -> Step {
    let tasks = names.iter().map(|name| task(name)).collect();
    Step::Group(Box::new(GroupStep { id: GroupId::random(), policy, tasks }))
}

fn chain(then: Vec<Step>) -> Envelope {
    Envelope { flow: Some(Box::new(Flow { then, ..Flow::default() })), ..task("a") }
}

fn ok(result: &str) -> Verdict {
    Verdict::Succeeded { result: Json::trusted(result), skipped: None }
}

fn dead() -> Verdict {
    Verdict::Dead { reason: DeadReason::Fatal, failure: Failure::new("x", "broken") }
}

fn names(envelopes: &[Envelope]) -> Vec<&str> {
    envelopes.iter().map(|envelope| envelope.name.as_str()).collect()
}

#[test]
fn a_chain_hands_each_result_to_the_next_step() {
    let first = chain(vec![Step::Task(Box::new(task("b"))), Step::Task(Box::new(task("c")))]);
    let second = follow(&first, &ok("1")).push.remove(0);
    assert_eq!((second.name.as_str(), second.input.as_ref().unwrap().as_str()), ("b", "1"));
    assert_eq!(second.workflow, Some(first.id));
    let third = follow(&second, &ok("2")).push.remove(0);
    assert_eq!((third.name.as_str(), third.input.as_ref().unwrap().as_str()), ("c", "2"));
    assert!(follow(&third, &ok("3")).is_empty());
}

#[test]
fn a_task_that_runs_again_starts_nothing() {
    let first = chain(vec![Step::Task(Box::new(task("b")))]);
    for verdict in [Verdict::Released, Verdict::Parked] {
        assert!(follow(&first, &verdict).is_empty());
    }
}

#[test]
fn a_chord_starts_its_body_with_the_joined_results() {
    let first = chain(vec![group(FailurePolicy::All, &["b", "c"]), Step::Task(Box::new(task("body")))]);
    let mut started = follow(&first, &ok("0"));
    assert_eq!(names(&started.push), ["b", "c"]);
    let created = started.groups.remove(0);
    assert_eq!(created.size, 2);
    let arrived = follow(&started.push[1], &ok("7")).arrive.remove(0);
    assert_eq!(arrived.member, Member { group: created.id.clone(), index: 1 });
    assert_eq!(arrived.outcome.unwrap().as_str(), "7");
    let body = created.after.complete(join(FailurePolicy::All, [Ok("6"), Ok("7")])).push.remove(0);
    assert_eq!((body.name.as_str(), body.input.unwrap().as_str()), ("body", "[6,7]"));
}

#[test]
fn a_group_at_the_end_is_not_counted() {
    let first = chain(vec![group(FailurePolicy::All, &["b", "c"])]);
    let started = follow(&first, &ok("0"));
    assert!(started.groups.is_empty() && started.push.iter().all(|task| task.flow.is_none()));
}

#[test]
fn a_group_inside_of_a_group_reports_to_the_outer_one() {
    let inner = chain(vec![group(FailurePolicy::All, &["x", "y"])]);
    let outer = GroupStep { id: GroupId::random(), policy: FailurePolicy::Collect, tasks: vec![inner, task("b")] };
    let first = chain(vec![Step::Group(Box::new(outer)), Step::Task(Box::new(task("body")))]);
    let started = follow(&first, &ok("0"));
    let inner_started = follow(&started.push[0], &ok("1"));
    assert_eq!(names(&inner_started.push), ["x", "y"]);
    let arrived = inner_started.groups[0].after.clone().complete(Json::trusted("[1,2]")).arrive.remove(0);
    assert_eq!(arrived.member, Member { group: started.groups[0].id.clone(), index: 0 });
}

#[test]
fn every_place_in_a_group_tells_where_it_leads() {
    let leads = |task: &Envelope| task.flow.as_deref().map(|flow| flow.leads.clone()).unwrap_or_default();
    let body = task("body");
    let members = chain(vec![group(FailurePolicy::All, &["b", "c"]), Step::Task(Box::new(body.clone()))]);
    let started = follow(&members, &ok("0"));
    let lead = Lead { group: started.groups[0].id.clone(), tasks: vec![(body.id, body.name)], opens: None, into: None };
    assert!(started.push.iter().all(|task| leads(task) == [lead.clone()]));

    let inner = chain(vec![Step::Task(Box::new(task("x"))), group(FailurePolicy::All, &["y", "z"])]);
    let outer = GroupStep { id: GroupId::random(), policy: FailurePolicy::All, tasks: vec![inner, task("b")] };
    let started = follow(&chain(vec![Step::Group(Box::new(outer)), Step::Task(Box::new(task("end")))]), &ok("0"));
    let of_outer = leads(&started.push[0]);
    let x = follow(&started.push[0], &ok("1")).push.remove(0);
    assert_eq!(leads(&x), of_outer, "it is handed on to the steps of a member");
    let inner = follow(&x, &ok("2"));
    let lead = &leads(&inner.push[0])[0];
    assert_eq!((&lead.into, lead.tasks.len()), (&Some(of_outer[0].group.clone()), 0));
}

#[test]
fn a_step_that_gives_up_starts_the_error_handlers_and_fails_its_group() {
    let member = Member { group: GroupId::random(), index: 0 };
    let flow = Flow {
        then: vec![Step::Task(Box::new(task("b")))],
        otherwise: vec![task("mend")],
        member: Some(member.clone()),
        ..Flow::default()
    };
    let first = Envelope { flow: Some(Box::new(flow)), ..task("a") };
    let follow = follow(&first, &dead());
    assert_eq!(names(&follow.push), ["mend"]);
    assert_eq!(follow.push[0].input.as_ref().unwrap().as_str(), r#"{"class":"x","message":"broken"}"#);
    assert_eq!(follow.arrive[0].member, member);
}

#[test]
fn a_failed_group_strands_its_body() {
    let first = chain(vec![group(FailurePolicy::All, &["b", "c"]), Step::Task(Box::new(task("body")))]);
    let started = follow(&first, &ok("0"));
    let failed = started.groups[0].after.clone().fail(&Failure::new("x", "broken"));
    assert_eq!(names(&failed.stranded), ["body"]);
    assert!(failed.push.is_empty());
}

#[test]
fn counts_decide_by_policy() {
    use FailurePolicy::{All, Any, Collect};
    for (policy, succeeded, failed, decided) in [
        (All, 0, 0, FanIn::Waiting),
        (All, 1, 0, FanIn::Waiting),
        (All, 2, 0, FanIn::Complete),
        (All, 0, 1, FanIn::Failed),
        (All, 1, 1, FanIn::Failed),
        (Any, 1, 0, FanIn::Waiting),
        (Any, 1, 1, FanIn::Complete),
        (Any, 0, 2, FanIn::Failed),
        (Collect, 0, 1, FanIn::Waiting),
        (Collect, 0, 2, FanIn::Complete),
    ] {
        assert_eq!(fan_in(policy, 2, succeeded, failed), decided, "{policy} {succeeded} {failed}");
    }
}

#[test]
fn results_are_joined_by_policy() {
    let failure = Failure::new("x", "broken");
    let joined = |policy| join(policy, [Ok("1"), Err(&failure)]);
    assert_eq!(joined(FailurePolicy::Any).as_str(), "[1,null]");
    assert_eq!(joined(FailurePolicy::Collect).as_str(), r#"[{"ok":1},{"error":{"class":"x","message":"broken"}}]"#);
}

#[test]
fn what_comes_after_the_deepest_workflow_survives_storage() {
    let steps: Vec<Step> = (0..GROUP_DEPTH_MAX).map(|_| group(FailurePolicy::All, &["b", "c"])).collect();
    let first = chain([steps, vec![Step::Task(Box::new(task("body")))]].concat());
    assert_eq!(first.check(Timestamp::MIN), Ok(()));
    let created = follow(&first, &ok("0")).groups.remove(0);
    let stored = serde_json::to_string(&created).unwrap();
    assert_eq!(serde_json::from_str::<NewGroup>(&stored).unwrap(), created);
}

#[test]
fn a_step_with_a_unique_key_is_refused() {
    let unique = crate::Unique::new(crate::UniqueKey::known("k"));
    let step = Step::Task(Box::new(Envelope { unique: Some(unique), ..task("b") }));
    assert!(matches!(chain(vec![step]).check(Timestamp::MIN), Err(InvalidEnvelope::Flow(_))));
}

#[test]
fn limits_hold_at_the_limit_and_one_over() {
    let check = |then| chain(then).check(Timestamp::MIN);
    let steps = |count| (0..count).map(|_| Step::Task(Box::new(task("b")))).collect::<Vec<_>>();
    assert_eq!(check(steps(STEPS_MAX)), Ok(()));
    assert!(matches!(check(steps(STEPS_MAX + 1)), Err(InvalidEnvelope::Flow(_))));
    let members = |count: usize| vec![group(FailurePolicy::All, &vec!["b"; count])];
    assert!(matches!(check(members(0)), Err(InvalidEnvelope::Flow(_))));
    assert_eq!(check(members(GROUP_MAX)), Ok(()));
    assert!(matches!(check(members(GROUP_MAX + 1)), Err(InvalidEnvelope::Flow(_))));
    let groups = |count| (0..count).map(|_| group(FailurePolicy::All, &["b"])).collect::<Vec<_>>();
    assert!(matches!(check(groups(GROUP_DEPTH_MAX + 1)), Err(InvalidEnvelope::Flow(_))));
}
