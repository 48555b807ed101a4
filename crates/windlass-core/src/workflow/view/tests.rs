use super::*;
use crate::flow::{FanIn, Follow, NewGroup, fan_in, follow, join};
use crate::graph::Graph;
use crate::state::Verdict;
use crate::workflow::{IntoMember, Workflow, chain, group};
use crate::{Args, Failure, Json, Timestamp};

/// A store that runs what is pushed.
#[derive(Default)]
struct Played {
    records: Vec<Record>,
    groups: Vec<(NewGroup, usize)>,
}

fn task(name: &str) -> Envelope {
    Envelope::new(TaskName::known(name), QueueName::default(), Args::none())
}

impl Played {
    fn start(workflow: impl Into<Workflow>) -> Self {
        let (_, push) = workflow.into().into_push(Timestamp::from_secs(1_000)).expect("a workflow");
        let mut played = Self::default();
        played.follow(Follow { push: push.envelopes, groups: push.groups, ..Follow::default() });
        played
    }

    fn follow(&mut self, follow: Follow) {
        self.groups.extend(follow.groups.into_iter().map(|group| (group, 0)));
        for envelope in follow.push {
            let at = Timestamp::from_secs(2_000 + self.records.len() as i64);
            self.records.push(record(envelope, at));
        }
        for arrival in follow.arrive {
            let Some((group, arrived)) = self.groups.iter_mut().find(|(group, _)| group.id == arrival.member.group)
            else {
                continue;
            };
            *arrived += 1;
            if fan_in(group.policy, group.size, *arrived as u32, 0) == FanIn::Complete {
                let results = join(group.policy, vec![Ok("1"); group.size as usize]);
                let after = group.after.clone().complete(results);
                self.follow(after);
            }
        }
    }

    fn end(&mut self, name: &str, state: State) {
        let verdict = match state {
            State::Succeeded => Verdict::Succeeded { result: Json::trusted("1"), skipped: None },
            _ => Verdict::Dead { reason: crate::DeadReason::Fatal, failure: Failure::new("x", "broken") },
        };
        let record = self.records.iter_mut().find(|record| record.envelope.name.as_str() == name).expect(name);
        record.state = state;
        let follow = follow(&record.envelope, &verdict);
        self.follow(follow);
    }

    fn succeed(mut self, names: &[&str]) -> Self {
        for name in names {
            self.end(name, State::Succeeded);
        }
        self
    }

    fn forget(mut self, name: &str) -> Self {
        self.records.retain(|record| record.envelope.name.as_str() != name);
        self
    }

    /// The edges by name, `*` is a join; then the states.
    fn drawn(&self) -> (Vec<String>, String) {
        let view = WorkflowView::of(&self.records);
        let name = |id: &TaskId| match view.nodes.iter().find(|node| node.id == *id).map(|node| &node.kind) {
            Some(NodeKind::Task { name, .. }) => name.to_string(),
            Some(NodeKind::Join) => "*".to_owned(),
            None => panic!("an edge to nowhere"),
        };
        let arrow = |edge: &Edge| match edge.when {
            When::Success => format!("{} -> {}", name(&edge.from), name(&edge.to)),
            When::Failure => format!("{} !> {}", name(&edge.from), name(&edge.to)),
        };
        let mut edges: Vec<String> = view.edges.iter().map(arrow).collect();
        edges.sort();
        let state = |node: &NodeView| match &node.kind {
            NodeKind::Task { name, state, .. } => Some(format!("{name} {}", state.as_str())),
            NodeKind::Join => None,
        };
        let mut states: Vec<String> = view.nodes.iter().filter_map(state).collect();
        states.sort();
        (edges, states.join(", "))
    }
}

fn record(envelope: Envelope, at: Timestamp) -> Record {
    Record {
        envelope,
        state: State::Ready,
        attempt: 0,
        crashes: 0,
        enqueued_at: at,
        due_at: None,
        started_at: None,
        finished_at: None,
        node: None,
        progress: None,
        cancel_requested: false,
        result: None,
        skipped: None,
        reason: None,
        failure: None,
        history: Vec::new(),
        memo: String::new(),
        waits_for: None,
    }
}

/// a, then b and c side by side, then d.
fn chord() -> Workflow {
    crate::workflow::Chain::starting_with(task("a")).then(group([task("b"), task("c")])).then(task("d")).into()
}

#[test]
fn a_workflow_that_has_just_begun_shows_what_is_planned() {
    let (edges, states) = Played::start(chord()).drawn();
    assert_eq!(edges, ["a -> b", "a -> c", "b -> d", "c -> d"]);
    assert_eq!(states, "a ready, b planned, c planned, d planned");
}

#[test]
fn the_graph_stays_the_same_while_the_workflow_goes_on() {
    let begun = Played::start(chord()).drawn().0;
    let half = Played::start(chord()).succeed(&["a", "b"]);
    assert_eq!(half.drawn(), (begun.clone(), "a succeeded, b succeeded, c ready, d planned".to_owned()));
    let played = half.succeed(&["c", "d"]);
    assert_eq!(played.drawn(), (begun, "a succeeded, b succeeded, c succeeded, d succeeded".to_owned()));
    let view = WorkflowView::of(&played.records);
    assert_eq!((view.progress.tasks, view.progress.ended), (4, 4));
    assert_eq!(view.progress.standing(), Standing::Succeeded);
}

#[test]
fn a_group_at_the_start_tells_what_follows_it() {
    let workflow = || Workflow::from(group([task("a"), task("b")]).then(task("c")));
    let expected = ["a -> c", "b -> c"];
    assert_eq!(Played::start(workflow()).drawn().0, expected);
    assert_eq!(Played::start(workflow()).succeed(&["a", "b"]).drawn().0, expected);
}

#[test]
fn groups_after_each_other_meet_in_one_place() {
    let workflow = || Workflow::from(group([task("a"), task("b")]).then(group([task("c"), task("d")])));
    let expected = ["* -> c", "* -> d", "a -> *", "b -> *"];
    assert_eq!(Played::start(workflow()).drawn().0, expected);
    assert_eq!(Played::start(workflow()).succeed(&["a", "b"]).drawn().0, expected);
}

#[test]
fn a_chain_with_a_group_inside_of_a_group_leads_on_from_its_last_tasks() {
    let inner = || crate::workflow::Chain::starting_with(task("x")).then(group([task("y"), task("z")]));
    let workflow = || {
        let outer = group([inner().into_member().expect("a member"), task("b")]);
        Workflow::from(crate::workflow::Chain::starting_with(task("a")).then(outer).then(task("end")))
    };
    let expected = ["a -> b", "a -> x", "b -> end", "x -> y", "x -> z", "y -> end", "z -> end"];
    assert_eq!(Played::start(workflow()).drawn().0, expected);
    assert_eq!(Played::start(workflow()).succeed(&["a", "x", "y"]).drawn().0, expected);
}

#[test]
fn a_graph_shows_one_fan_in_ahead_of_what_was_pushed() {
    let start = || {
        let mut graph = Graph::new();
        let a = graph.add(task("a"));
        let b = graph.add_after(task("b"), &[a]);
        let c = graph.add_after(task("c"), &[a]);
        graph.add_after(task("d"), &[b, c]);
        Played::start(graph)
    };
    assert_eq!(start().drawn().0, ["a -> b", "a -> c"]);
    let (edges, states) = start().succeed(&["a", "b"]).drawn();
    assert_eq!(edges, ["a -> b", "a -> c", "b -> d", "c -> d"]);
    assert_eq!(states, "a succeeded, b succeeded, c ready, d planned");
}

#[test]
fn what_is_not_kept_any_more_is_told_from_what_is_to_come() {
    let played = Played::start(chord()).succeed(&["a", "b", "c"]).forget("b").forget("c");
    assert_eq!(played.drawn().1, "a succeeded, b gone, c gone, d ready");
    let mut failed = Played::start(chord());
    failed.end("a", State::Dead);
    assert_eq!(failed.drawn().1, "a dead, b planned, c planned, d planned");
    assert_eq!(WorkflowView::of(&failed.records).progress.standing(), Standing::Failed);
}

#[test]
fn a_handler_of_failures_is_shown_when_it_was_started() {
    #[derive(crate::Task, serde::Serialize, serde::Deserialize)]
    #[task(crate = "crate")]
    struct Mend {}
    #[derive(crate::Task, serde::Serialize, serde::Deserialize)]
    #[task(crate = "crate")]
    struct Work {}
    let mut played = Played::start(chain(Work {}).then(task("next")).otherwise(Mend {}));
    assert_eq!(played.drawn().0, ["work -> next"]);
    played.end("work", State::Dead);
    assert_eq!(played.drawn().0, ["work !> mend", "work -> next"]);
}
