//! A workflow as people see it: the graph of its tasks with their states, and how far it is. Pure: records in, graph out.
//!
//! What is known comes from the tasks themselves. A chain tells its later steps, and a member of a group what starts when the
//! group is complete. So what has not been pushed is shown as far as the next fan-in that something pushed leads to. Tasks
//! that retention has removed are shown where another task names them, and are missing elsewhere.
//!
//! ```
//! use windlass_core::workflow::view::WorkflowView;
//! # let records = vec![];
//! let view = WorkflowView::of(&records);
//! println!("{} of {} tasks have ended", view.progress.ended, view.progress.tasks);
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;

use crate::envelope::Envelope;
use crate::flow::{Flow, Step};
use crate::view::Record;
use crate::{GroupId, QueueName, State, TaskId, TaskName};

/// A workflow as a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WorkflowView {
    /// Its tasks: those that the store knows in the order in which they were pushed, then the others, then the joins.
    pub nodes: Vec<NodeView>,
    /// What follows what.
    pub edges: Vec<Edge>,
    /// How far it is.
    pub progress: Progress,
}

/// A task of a workflow, or a place where several meet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NodeView {
    /// The id of the task, or of the group.
    pub id: TaskId,
    /// What it is.
    #[serde(flatten)]
    pub kind: NodeKind,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NodeKind {
    /// A task.
    Task {
        /// Its name.
        name: TaskName,
        /// Its queue, when the store knows it.
        queue: Option<QueueName>,
        /// Where it is in its life.
        state: NodeState,
        /// How often it was begun.
        attempt: u32,
    },
    /// Several tasks end before several others start. Where either is one task, the edges run from task to task instead.
    Join,
}

/// The state of a task in a workflow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeState {
    /// The store knows it.
    Known(State),
    /// It has not been pushed: it waits for others.
    Planned,
    /// It was pushed, and is not kept any more.
    Gone,
}

impl NodeState {
    /// As listings write it: the state, `planned` or `gone`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Known(state) => state.as_str(),
            Self::Planned => "planned",
            Self::Gone => "gone",
        }
    }
}

impl Serialize for NodeState {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What follows a task.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Edge {
    /// After this one.
    pub from: TaskId,
    /// This one.
    pub to: TaskId,
    /// When.
    pub when: When,
}

/// When what follows starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// When the one before has succeeded, or as the failure policy of its group says.
    Success,
    /// When the one before, or a step after it, has given up.
    Failure,
}

/// How far a workflow is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Progress {
    /// Tasks that the store knows, and planned ones that are known of.
    pub tasks: usize,
    /// Tasks that have ended.
    pub ended: usize,
    /// Tasks that have not been pushed.
    pub planned: usize,
    /// Tasks that the store knows, by state.
    pub by_state: BTreeMap<&'static str, usize>,
}

impl Progress {
    /// Counts a task that the store knows.
    pub fn add(&mut self, state: State) {
        self.tasks += 1;
        self.ended += usize::from(state.is_final());
        *self.by_state.entry(state.as_str()).or_default() += 1;
    }

    /// How many tasks are in this state.
    pub fn of(&self, state: State) -> usize {
        self.by_state.get(state.as_str()).copied().unwrap_or(0)
    }

    /// How the workflow stands.
    pub fn standing(&self) -> Standing {
        if self.by_state.values().sum::<usize>() > self.ended {
            Standing::Running
        } else if self.of(State::Dead) + self.of(State::Expired) > 0 {
            Standing::Failed
        } else if self.of(State::Cancelled) > 0 {
            Standing::Cancelled
        } else {
            Standing::Succeeded
        }
    }
}

/// How a workflow stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// A task of it has not ended.
    Running,
    /// Every task that was started has succeeded.
    Succeeded,
    /// Tasks of it gave up or expired. A group whose policy allows for that may have gone on without them.
    Failed,
    /// Tasks of it were cancelled.
    Cancelled,
}

impl Standing {
    /// As listings write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl WorkflowView {
    /// The graph of these tasks, which are those of one workflow, in any order.
    pub fn of(records: &[Record]) -> Self {
        let mut sorted: Vec<&Record> = records.iter().collect();
        sorted.sort_by_key(|record| (record.enqueued_at, &record.envelope.id));
        let known = sorted.iter().map(|record| (record.envelope.id.clone(), record.state)).collect();
        let mut drawing = Drawing { known, ..Drawing::default() };
        for Record { envelope, state, attempt, .. } in sorted {
            drawing.nodes.push(NodeView {
                id: envelope.id.clone(),
                kind: NodeKind::Task {
                    name: envelope.name.clone(),
                    queue: Some(envelope.queue.clone()),
                    state: NodeState::Known(*state),
                    attempt: *attempt,
                },
            });
            if let Some(flow) = envelope.flow.as_deref() {
                drawing.task(&envelope.id, flow);
            }
        }
        drawing.finish()
    }
}

/// The graph while it is put together. Groups are nodes at first.
#[derive(Default)]
struct Drawing {
    nodes: Vec<NodeView>,
    known: HashMap<TaskId, State>,
    /// Tasks that others name and the store does not know.
    unknown: BTreeMap<TaskId, TaskName>,
    groups: BTreeSet<GroupId>,
    /// The members of each group that the store knows.
    members: BTreeMap<GroupId, Vec<TaskId>>,
    /// Groups whose members are what starts after another group.
    opens: Vec<(GroupId, GroupId)>,
    after: Arrows,
    before: Arrows,
    on_failure: BTreeSet<(TaskId, TaskId)>,
}

type Arrows = BTreeMap<TaskId, BTreeSet<TaskId>>;

/// Where a part of a workflow ends.
enum End {
    Task(TaskId),
    /// Side by side: the ends of the members of this group.
    Group(GroupId, Vec<TaskId>),
}

impl Drawing {
    /// Draws what follows a task that the store knows.
    fn task(&mut self, id: &TaskId, flow: &Flow) {
        let end = self.steps(id, &flow.then);
        if let Some(member) = &flow.member {
            self.members.entry(member.group.clone()).or_default().push(id.clone());
            let end = self.close(end);
            self.arrive(&end, &member.group);
        }
        for member in &flow.joins {
            self.arrive(id, &member.group);
        }
        for lead in &flow.leads {
            for (task, name) in &lead.tasks {
                self.name(task, name);
                self.arrow(&lead.group, task);
            }
            if let Some(outer) = &lead.into {
                self.arrive(&lead.group, outer);
            }
            if let Some(next) = &lead.opens {
                self.opens.push((lead.group.clone(), next.clone()));
            }
        }
        let handlers = flow.otherwise.iter().filter(|task| self.known.contains_key(&task.id));
        self.on_failure.extend(handlers.map(|task| (id.clone(), task.id.clone())));
    }

    /// Draws steps one after the other, and answers where they end.
    fn steps(&mut self, from: &TaskId, steps: &[Step]) -> End {
        let mut end = End::Task(from.clone());
        for step in steps {
            let from = self.close(end);
            end = match step {
                Step::Task(task) => {
                    self.name(&task.id, &task.name);
                    self.arrow(&from, &task.id);
                    End::Task(task.id.clone())
                }
                Step::Group(group) => {
                    let ends = group.tasks.iter().map(|task| self.member(&from, task)).collect();
                    End::Group(group.id.clone(), ends)
                }
            };
        }
        end
    }

    /// Draws a member of a group that may not have been pushed, and answers where it ends.
    fn member(&mut self, from: &TaskId, task: &Envelope) -> TaskId {
        self.name(&task.id, &task.name);
        self.arrow(from, &task.id);
        let steps = task.flow.as_deref().map_or(&[][..], |flow| &flow.then);
        let end = self.steps(&task.id, steps);
        self.close(end)
    }

    /// One node for an end that something follows.
    fn close(&mut self, end: End) -> TaskId {
        match end {
            End::Task(id) => id,
            End::Group(group, ends) => {
                for end in &ends {
                    self.arrive(end, &group);
                }
                group
            }
        }
    }

    fn arrive(&mut self, from: &TaskId, group: &GroupId) {
        self.groups.insert(group.clone());
        self.arrow(from, group);
    }

    fn arrow(&mut self, from: &TaskId, to: &TaskId) {
        self.after.entry(from.clone()).or_default().insert(to.clone());
        self.before.entry(to.clone()).or_default().insert(from.clone());
    }

    fn name(&mut self, id: &TaskId, name: &TaskName) {
        if !self.known.contains_key(id) {
            self.unknown.insert(id.clone(), name.clone());
        }
    }

    fn finish(mut self) -> WorkflowView {
        for (group, next) in std::mem::take(&mut self.opens) {
            for member in self.members.get(&next).cloned().unwrap_or_default() {
                self.arrow(&group, &member);
            }
        }
        let joins: Vec<GroupId> = self.groups.clone().into_iter().filter(|group| !self.dissolve(group)).collect();
        let mut progress = Progress::default();
        self.known.values().for_each(|state| progress.add(*state));
        for (id, name) in std::mem::take(&mut self.unknown) {
            let state = if self.was_pushed(&id) { NodeState::Gone } else { NodeState::Planned };
            let planned = usize::from(state == NodeState::Planned);
            progress.tasks += planned;
            progress.planned += planned;
            self.nodes.push(NodeView { id, kind: NodeKind::Task { name, queue: None, state, attempt: 0 } });
        }
        self.nodes.extend(joins.into_iter().map(|id| NodeView { id, kind: NodeKind::Join }));
        let success = self.after.iter().flat_map(|(from, all)| all.iter().map(move |to| (from, to, When::Success)));
        let failure = self.on_failure.iter().map(|(from, to)| (from, to, When::Failure));
        let edges = success.chain(failure).map(|(from, to, when)| Edge { from: from.clone(), to: to.clone(), when });
        WorkflowView { edges: edges.collect(), nodes: self.nodes, progress }
    }

    /// Replaces a group by arrows from task to task, unless that would be many; answers whether it is gone.
    fn dissolve(&mut self, group: &GroupId) -> bool {
        let ends = |arrows: &Arrows| arrows.get(group).cloned().unwrap_or_default();
        let (before, after) = (ends(&self.before), ends(&self.after));
        if after.is_empty() || (before.len() > 1 && after.len() > 1) {
            return false;
        }
        for from in &before {
            self.after.entry(from.clone()).or_default().remove(group);
        }
        for to in &after {
            self.before.entry(to.clone()).or_default().remove(group);
        }
        self.after.remove(group);
        self.before.remove(group);
        for (from, to) in before.iter().flat_map(|from| after.iter().map(move |to| (from, to))) {
            self.arrow(from, to);
        }
        true
    }

    /// Whether a task that the store does not know was there: all before it have succeeded, or one behind it was pushed.
    fn was_pushed(&self, id: &TaskId) -> bool {
        let known = |id: &TaskId| self.known.get(id).copied();
        let before = self.before.get(id).filter(|before| !before.is_empty());
        before.is_some_and(|before| before.iter().all(|id| known(id) == Some(State::Succeeded)))
            || self.after.get(id).is_some_and(|after| after.iter().any(|id| known(id).is_some()))
    }
}

#[cfg(test)]
mod tests;
