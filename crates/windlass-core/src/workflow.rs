//! How workflows are written down: [`chain`] and [`group`], which become [`flow`](crate::flow) data when they are started.

pub mod view;

use crate::backend::Push;
use crate::client::PushError;
use crate::envelope::Envelope;
use crate::flow::{FailurePolicy, Flow, GroupStep, Step, start_group};
use crate::graph::Graph;
use crate::task::Task;
use crate::{GroupId, TaskId, Timestamp};

/// A task and what follows it.
///
/// ```
/// # extern crate windlass_core as windlass;
/// # use serde::{Deserialize, Serialize};
/// # use windlass_core::{Task, workflow::{chain, group}};
/// # #[derive(Task, Serialize, Deserialize)] struct Fetch { page: u32 }
/// # #[derive(Task, Serialize, Deserialize)] #[task(input = "pages")] struct Index { #[serde(default)] pages: Vec<u32> }
/// # #[derive(Task, Serialize, Deserialize)] struct Login {}
/// // Log in; fetch three pages side by side; index what they returned.
/// let workflow = chain(Login {})
///     .then(group((1..=3).map(|page| Fetch { page })))
///     .then(Index { pages: vec![] });
/// ```
pub fn chain<T: Task>(first: T) -> Chain {
    match Envelope::of(&first, Timestamp::MIN) {
        Ok(envelope) => Chain::starting_with(envelope),
        Err(error) => Chain { first: Err(error.into()), flow: Flow::default() },
    }
}

/// Tasks side by side. With something after it, that waits for all of them: a chord.
pub fn group<I>(tasks: I) -> Group
where
    I: IntoIterator,
    I::Item: IntoMember,
{
    let tasks = tasks.into_iter().map(IntoMember::into_member).collect();
    Group { tasks, policy: FailurePolicy::All, rest: Flow::default(), mistake: None }
}

/// A task and what follows it; made by [`chain`].
#[derive(Debug)]
pub struct Chain {
    first: Result<Envelope, PushError>,
    flow: Flow,
}

/// Tasks side by side and what follows them; made by [`group`].
#[derive(Debug)]
pub struct Group {
    tasks: Result<Vec<Envelope>, PushError>,
    policy: FailurePolicy,
    rest: Flow,
    mistake: Option<PushError>,
}

/// A workflow that can be started.
#[derive(Debug)]
pub enum Workflow {
    /// It starts with one task.
    Chain(Chain),
    /// It starts with several.
    Group(Group),
    /// A graph.
    Graph(Graph),
}

/// What can follow a task: a task, a group.
pub trait IntoStep {
    /// As a step.
    ///
    /// # Errors
    /// [`PushError`] when its arguments are not acceptable.
    fn into_step(self) -> Result<Vec<Step>, PushError>;
}

/// What can be part of a group: a task, a chain.
pub trait IntoMember {
    /// As a member.
    ///
    /// # Errors
    /// [`PushError`] when its arguments are not acceptable.
    fn into_member(self) -> Result<Envelope, PushError>;
}

impl<T: Task> IntoStep for T {
    fn into_step(self) -> Result<Vec<Step>, PushError> {
        Ok(vec![Step::Task(Box::new(without_expiry(Envelope::of(&self, Timestamp::MIN)?)))])
    }
}

/// An envelope as it is: for producers that know tasks by name only, or want another queue or priority than the task's
/// own. Made at [`Timestamp::MIN`], as the envelope of a schedule is; an expiry counts from the start of the workflow.
impl IntoStep for Envelope {
    fn into_step(self) -> Result<Vec<Step>, PushError> {
        Ok(vec![Step::Task(Box::new(without_expiry(self)))])
    }
}

impl IntoStep for Group {
    fn into_step(self) -> Result<Vec<Step>, PushError> {
        if let Some(mistake) = self.mistake {
            return Err(mistake);
        }
        let tasks = self.tasks?.into_iter().map(without_expiry).collect();
        let group = GroupStep { id: GroupId::random(), policy: self.policy, tasks };
        Ok([vec![Step::Group(Box::new(group))], self.rest.then].concat())
    }
}

impl<T: Task> IntoMember for T {
    fn into_member(self) -> Result<Envelope, PushError> {
        Ok(Envelope::of(&self, Timestamp::MIN)?)
    }
}

/// An envelope as it is; see [`IntoStep`] for `Envelope`.
impl IntoMember for Envelope {
    fn into_member(self) -> Result<Envelope, PushError> {
        Ok(self)
    }
}

impl IntoMember for Chain {
    fn into_member(self) -> Result<Envelope, PushError> {
        self.into_envelope()
    }
}

impl Chain {
    pub(crate) fn starting_with(first: Envelope) -> Self {
        Self { first: Ok(first), flow: Flow::default() }
    }

    pub(crate) fn first_mut(&mut self) -> Option<&mut Envelope> {
        self.first.as_mut().ok()
    }

    /// Adds the next step.
    #[must_use]
    pub fn then(mut self, step: impl IntoStep) -> Self {
        match step.into_step() {
            Ok(steps) => self.flow.then.extend(steps),
            Err(mistake) => self.first = self.first.and(Err(mistake)),
        }
        self
    }

    /// Adds a task that is enqueued when a step gives up; it gets the failure as its input.
    #[must_use]
    pub fn otherwise<T: Task>(mut self, task: T) -> Self {
        match task.into_member() {
            Ok(envelope) => self.flow.otherwise.push(without_expiry(envelope)),
            Err(mistake) => self.first = self.first.and(Err(mistake)),
        }
        self
    }

    fn into_envelope(self) -> Result<Envelope, PushError> {
        let mut first = self.first?;
        if self.flow != Flow::default() {
            first.flow = Some(Box::new(self.flow));
        }
        Ok(first)
    }
}

impl Group {
    /// What a failed member means; `All` without it.
    #[must_use]
    pub fn policy(mut self, policy: FailurePolicy) -> Self {
        self.policy = policy;
        self
    }

    /// What starts when the group is complete, with the results of its members as input.
    #[must_use]
    pub fn then(mut self, step: impl IntoStep) -> Self {
        match step.into_step() {
            Ok(steps) => self.rest.then.extend(steps),
            Err(mistake) => self.mistake = Some(mistake),
        }
        self
    }

    /// Adds a task that is enqueued when the group fails, or a step after it; it gets the failure as its input.
    #[must_use]
    pub fn otherwise<T: Task>(mut self, task: T) -> Self {
        match task.into_member() {
            Ok(envelope) => self.rest.otherwise.push(without_expiry(envelope)),
            Err(mistake) => self.mistake = Some(mistake),
        }
        self
    }
}

impl From<Chain> for Workflow {
    fn from(chain: Chain) -> Self {
        Self::Chain(chain)
    }
}

impl From<Group> for Workflow {
    fn from(group: Group) -> Self {
        Self::Group(group)
    }
}

impl From<Graph> for Workflow {
    fn from(graph: Graph) -> Self {
        Self::Graph(graph)
    }
}

impl Workflow {
    /// What is pushed when it starts, and its id.
    ///
    /// # Errors
    /// [`PushError::Invalid`] for a workflow over a limit.
    pub fn into_push(self, now: Timestamp) -> Result<(TaskId, Push), PushError> {
        match self {
            Self::Chain(chain) => {
                let mut envelope = starting(chain.into_envelope()?, now);
                let id = envelope.id.clone();
                if envelope.flow.is_some() {
                    envelope.workflow = Some(id.clone());
                }
                Ok((id, Push { envelopes: vec![envelope], groups: Vec::new() }))
            }
            Self::Graph(graph) => graph.into_push(now),
            Self::Group(group) => {
                if let Some(mistake) = group.mistake {
                    return Err(mistake);
                }
                let tasks = group.tasks?.into_iter().map(|task| starting(task, now)).collect();
                let step = GroupStep { id: GroupId::random(), policy: group.policy, tasks };
                step.check(now)?;
                group.rest.check(now)?;
                let id = step.id.clone();
                let after = start_group(step, group.rest, &id);
                Ok((id, Push { envelopes: after.push, groups: after.groups }))
            }
        }
    }
}

/// Until a workflow starts, nobody knows the time: its tasks are made at time zero, and an expiry is relative to that.
pub(crate) fn starting(mut task: Envelope, now: Timestamp) -> Envelope {
    task.expires = task.expires.map(|expires| now + expires.since(Timestamp::MIN));
    task
}

/// A later step starts when the step before has ended, whenever that is.
pub(crate) fn without_expiry(mut task: Envelope) -> Envelope {
    task.expires = None;
    task
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Args, Priority, QueueName, TaskName};

    #[test]
    fn an_envelope_is_a_member_and_a_step_with_its_own_queue_and_priority() {
        let envelope = |name| Envelope {
            priority: Priority::FIRST,
            expires: Some(Timestamp::from_secs(60)),
            ..Envelope::new(TaskName::known(name), QueueName::known("urgent"), Args::none())
        };
        let now = Timestamp::from_secs(1_000);
        let (_, push) =
            Workflow::from(group([envelope("a"), envelope("b")]).then(envelope("c"))).into_push(now).unwrap();
        for member in &push.envelopes {
            assert_eq!((member.queue.as_str(), member.priority), ("urgent", Priority::FIRST));
            assert_eq!(member.expires, Some(Timestamp::from_secs(1_060)), "it counts from the start");
        }
        assert_eq!((push.envelopes.len(), push.groups.len()), (2, 1));
    }
}
