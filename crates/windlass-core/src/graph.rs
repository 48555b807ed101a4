//! Graphs: tasks that wait for several others, written down as a directed acyclic graph.
//!
//! A task that waits for others is kept in a group of those others ([`crate::flow`]): each arrives there in the step in which
//! it ends, and the last one starts it. A task can only wait for tasks that were added before it, so there are no circles.

use crate::backend::Push;
use crate::client::PushError;
use crate::envelope::{Envelope, InvalidEnvelope, Source};
use crate::flow::{After, FailurePolicy, Flow, Lead, Member, NewGroup};
use crate::workflow::{IntoMember, starting, without_expiry};
use crate::{GroupId, TaskId, Timestamp};

/// The most tasks in one graph.
pub const GRAPH_TASKS_MAX: usize = 1_000;
/// The most waits in one graph.
pub const GRAPH_EDGES_MAX: usize = 10_000;

/// Tasks and which of them wait for which.
///
/// ```
/// # extern crate windlass_core as windlass;
/// # use serde::{Deserialize, Serialize};
/// # use windlass_core::{Task, graph::Graph};
/// # #[derive(Task, Serialize, Deserialize)] struct Fetch { url: String }
/// # #[derive(Task, Serialize, Deserialize)] struct Parse {}
/// # #[derive(Task, Serialize, Deserialize)] #[task(input = "parts")] struct Report { #[serde(default)] parts: Vec<u64> }
/// let mut graph = Graph::new();
/// let prices = graph.add(Fetch { url: "prices".into() });
/// let stock = graph.add(Fetch { url: "stock".into() });
/// let parsed = graph.add_after(Parse {}, &[prices]);
/// // Gets the results of both, in this order.
/// graph.add_after(Report { parts: vec![] }, &[parsed, stock]);
/// ```
#[derive(Debug, Default)]
pub struct Graph {
    nodes: Vec<Planned>,
    mistake: Option<PushError>,
}

/// A task of a [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node(usize);

#[derive(Debug)]
struct Planned {
    task: Envelope,
    after: Vec<Node>,
    policy: FailurePolicy,
}

impl Graph {
    /// Without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a task that starts at once.
    pub fn add(&mut self, task: impl IntoMember) -> Node {
        self.add_after(task, &[])
    }

    /// Adds a task that starts when all of these have succeeded. Its input is the list of their results, in this order, also
    /// when it is only one. When one of them gives up, the task is recorded as stranded, and so is everything behind it;
    /// it comes back to life when that one is retried and succeeds.
    pub fn add_after(&mut self, task: impl IntoMember, after: &[Node]) -> Node {
        self.add_after_with(task, after, FailurePolicy::All)
    }

    /// As [`Graph::add_after`] with another meaning of failures.
    pub fn add_after_with(&mut self, task: impl IntoMember, after: &[Node], policy: FailurePolicy) -> Node {
        let node = Node(self.nodes.len());
        match task.into_member() {
            Ok(task) => {
                if task.flow.is_some() {
                    self.refuse(format!("`{}` has steps of its own: add them to the graph", task.name));
                }
                if task.unique.is_some() {
                    self.refuse(format!("`{}` has a unique key: tasks of a graph take none", task.name));
                }
                if after.iter().any(|other| other.0 >= node.0) {
                    self.refuse(format!("`{}` waits for a task of another graph", task.name));
                }
                self.nodes.push(Planned { task, after: after.to_vec(), policy });
            }
            Err(mistake) => {
                self.mistake.get_or_insert(mistake);
            }
        }
        node
    }

    fn refuse(&mut self, text: String) {
        self.mistake.get_or_insert(InvalidEnvelope::Flow(text).into());
    }

    /// What is pushed when it starts, and its id.
    pub(crate) fn into_push(self, now: Timestamp) -> Result<(TaskId, Push), PushError> {
        if let Some(mistake) = self.mistake {
            return Err(mistake);
        }
        let edges: usize = self.nodes.iter().map(|node| node.after.len()).sum();
        if self.nodes.is_empty() || self.nodes.len() > GRAPH_TASKS_MAX || edges > GRAPH_EDGES_MAX {
            return Err(InvalidEnvelope::Flow(format!(
                "a graph has {} tasks and {edges} waits; it takes 1 to {GRAPH_TASKS_MAX} tasks and up to {GRAPH_EDGES_MAX} waits",
                self.nodes.len()
            ))
            .into());
        }
        let id = GroupId::random();
        let mut joins: Vec<(Vec<Member>, Vec<Lead>)> = vec![(Vec::new(), Vec::new()); self.nodes.len()];
        let groups: Vec<Option<GroupId>> = self
            .nodes
            .iter()
            .map(|node| {
                let group = (!node.after.is_empty()).then(GroupId::random)?;
                let starts = vec![(node.task.id.clone(), node.task.name.clone())];
                let lead = Lead { group: group.clone(), tasks: starts, opens: None, into: None };
                for (index, other) in node.after.iter().enumerate() {
                    let (joins, leads) = &mut joins[other.0];
                    joins.push(Member { group: group.clone(), index: index as u32 });
                    leads.push(lead.clone());
                }
                Some(group)
            })
            .collect();
        let mut push = Push::default();
        for ((node, (joins, leads)), group) in self.nodes.into_iter().zip(joins).zip(groups) {
            let flow = (!joins.is_empty()).then(|| Box::new(Flow { joins, leads, ..Flow::default() }));
            let task = Envelope { flow, workflow: Some(id.clone()), source: Source::Workflow, ..node.task };
            match group {
                None => push.envelopes.push(starting(task, now)),
                Some(group) => {
                    let task = without_expiry(task);
                    task.check(now)?;
                    let after = After { push: vec![task], ..After::default() };
                    let size = node.after.len() as u32;
                    push.groups.push(NewGroup { id: group, size, policy: node.policy, after });
                }
            }
        }
        Ok((id, push))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::{FanIn, fan_in, follow};
    use crate::state::Verdict;
    use crate::{Args, Failure, Json, QueueName, TaskName};

    fn task(name: &str) -> Envelope {
        Envelope::new(TaskName::known(name), QueueName::default(), Args::none())
    }

    /// a -> b, c; b, c -> d; a, d -> e.
    fn diamond() -> Push {
        let mut graph = Graph::new();
        let a = graph.add(task("a"));
        let b = graph.add_after(task("b"), &[a]);
        let c = graph.add_after(task("c"), &[a]);
        let d = graph.add_after(task("d"), &[b, c]);
        graph.add_after(task("e"), &[a, d]);
        graph.into_push(Timestamp::from_secs(1_000)).expect("a graph").1
    }

    #[test]
    fn every_task_reports_to_those_that_wait_for_it() {
        let push = diamond();
        assert_eq!(push.envelopes.len(), 1);
        assert_eq!(push.groups.iter().map(|group| group.size).collect::<Vec<_>>(), [1, 1, 2, 2]);
        let done = Verdict::Succeeded { result: Json::trusted("7"), skipped: None };
        let followed = follow(&push.envelopes[0], &done);
        let arrived: Vec<&GroupId> = followed.arrive.iter().map(|arrival| &arrival.member.group).collect();
        assert_eq!(arrived, [&push.groups[0].id, &push.groups[1].id, &push.groups[3].id]);
        assert!(followed.push.is_empty());
    }

    #[test]
    fn a_failure_strands_everything_behind_it() {
        let push = diamond();
        let failure = Failure::new("x", "broken");
        let dead = Verdict::Dead { reason: crate::DeadReason::Fatal, failure: failure.clone() };
        let mut failed: Vec<GroupId> =
            follow(&push.envelopes[0], &dead).arrive.into_iter().map(|arrival| arrival.member.group).collect();
        let mut stranded = Vec::new();
        while let Some(id) = failed.pop() {
            let group = push.groups.iter().find(|group| group.id == id).expect("a group of the graph");
            assert_eq!(fan_in(group.policy, group.size, 0, 1), FanIn::Failed);
            let after = group.after.clone().fail(&failure);
            for task in after.stranded {
                if !stranded.contains(&task.name) {
                    stranded.push(task.name);
                    failed.extend(after.arrive.iter().map(|arrival| arrival.member.group.clone()));
                }
            }
        }
        stranded.sort();
        assert_eq!(stranded.iter().map(TaskName::as_str).collect::<Vec<_>>(), ["b", "c", "d", "e"]);
    }

    #[test]
    fn a_graph_that_makes_no_sense_is_refused() {
        let refused = |graph: Graph| graph.into_push(Timestamp::from_secs(1)).is_err();
        assert!(refused(Graph::new()));
        let mut foreign = Graph::new();
        foreign.add_after(task("a"), &[Node(3)]);
        assert!(refused(foreign));
        let mut wide = Graph::new();
        for _ in 0..=GRAPH_TASKS_MAX {
            wide.add(task("a"));
        }
        assert!(refused(wide));
    }
}
