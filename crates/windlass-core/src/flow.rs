//! Workflows: what a task that ended starts next. Pure; the stores apply what is decided here in the same atomic step
//! as the settle.
//!
//! A task carries the rest of its workflow in its own envelope, so no coordinator exists: [`follow`] reads it when the
//! task ends. Two things can come out. The next step is pushed, with the result as its input. Or the task was a member
//! of a group: it *arrives* there, the store counts, and [`fan_in`] says whether the group is complete.
//!
//! Everything that happens after a group is computed when the group is created and kept with it ([`After`]), so that a
//! store only has to count, to join the results, and to push what is already written.
//!
//! ```text
//! then: [B, group(C1, C2), D]      A ok --> push B;  B ok --> push C1, C2 and the group;  both arrived --> push D
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, InvalidEnvelope, Source};
use crate::error::Failure;
use crate::state::{DeadReason, Verdict};
use crate::{GroupId, Json, TaskId, TaskName, Timestamp};

/// The most tasks in one group.
pub const GROUP_MAX: usize = 10_000;
/// The most steps after a task.
pub const STEPS_MAX: usize = 1_000;
/// The most groups in one workflow that follow each other or contain each other: what comes after a group is stored
/// inside of it, and stored data has a limit of depth.
pub const GROUP_DEPTH_MAX: usize = 12;
/// The arguments of all tasks that one envelope carries along, in bytes.
pub const FLOW_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The most tasks that a place in a group tells it leads to: every member of the group carries them.
pub const LEAD_TASKS_MAX: usize = 16;

/// What follows a task.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Flow {
    /// The steps after it, in their order; each gets the result of the one before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub then: Vec<Step>,
    /// Pushed when a step gives up, with the failure as input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub otherwise: Vec<Envelope>,
    /// The place in a group that the last step reports to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<Member>,
    /// The places in groups that this very task reports to, whatever follows it: in a graph, those of the tasks that wait for
    /// it and for others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joins: Vec<Member>,
    /// Where those places lead, for people who look at the workflow ([`crate::workflow::view`]). Nothing is decided by it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub leads: Vec<Lead>,
}

/// Where a place in a group leads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lead {
    /// Which group.
    pub group: GroupId,
    /// What starts when it is complete, up to [`LEAD_TASKS_MAX`] tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tasks: Vec<(TaskId, TaskName)>,
    /// The group whose members start, when they are too many to be named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opens: Option<GroupId>,
    /// The group that its results arrive at, when nothing starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub into: Option<GroupId>,
}

/// One step of a workflow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// One task.
    Task(Box<Envelope>),
    /// Several tasks side by side.
    Group(Box<GroupStep>),
}

/// Tasks side by side, and what their failures mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct GroupStep {
    /// Its identity.
    pub id: GroupId,
    /// What a failed member means.
    #[serde(default)]
    pub policy: FailurePolicy,
    /// Its members; each may be followed by steps of its own.
    pub tasks: Vec<Envelope>,
}

/// What a failed member means for its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailurePolicy {
    /// The group needs every member: the first failure fails it. A member that is retried later and succeeds mends it.
    #[default]
    All,
    /// One success is enough; failed members are `null` in the results. Decided when every member has ended.
    Any,
    /// Failures are data: each entry is `{"ok": result}` or `{"error": {"class", "message"}}`.
    Collect,
}

impl FailurePolicy {
    /// The policy as stores keep it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Any => "any",
            Self::Collect => "collect",
        }
    }
}

impl fmt::Display for FailurePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A place in a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Which group.
    pub group: GroupId,
    /// The position of its result, from 0.
    pub index: u32,
}

/// What a store does in the atomic step in which a task ends.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Follow {
    /// Pushed; a task whose id is known already is left alone, but one that died of [`DeadReason::Upstream`] is revived.
    pub push: Vec<Envelope>,
    /// Recorded as dead letters of [`DeadReason::Upstream`], so that an operator sees what never ran; ids that are known
    /// already are left alone.
    pub stranded: Vec<Envelope>,
    /// Why they are stranded.
    pub cause: Option<Failure>,
    /// Created before anything arrives at them; a group that is known already is left alone.
    pub groups: Vec<NewGroup>,
    /// Counted at their groups.
    pub arrive: Vec<Arrival>,
}

impl Follow {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.push.is_empty() && self.stranded.is_empty() && self.groups.is_empty() && self.arrive.is_empty()
    }
}

/// A group to be created.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NewGroup {
    /// Its identity.
    pub id: GroupId,
    /// How many members it has.
    pub size: u32,
    /// What a failed member means.
    pub policy: FailurePolicy,
    /// What happens when it is complete or has failed.
    pub after: After,
}

/// What happens after a group, computed when it is created.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct After {
    /// Pushed when it is complete, each with the joined results as input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub push: Vec<Envelope>,
    /// Created when it is complete: the group that the next step consists of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<NewGroup>,
    /// Where the results arrive when nothing else follows, and in any case where a failure arrives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<Member>,
    /// Pushed when it has failed, each with the failure as input.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub otherwise: Vec<Envelope>,
}

/// A member that ended, with what it ended with.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// Its place.
    pub member: Member,
    /// Its result, or why there is none.
    pub outcome: Result<Json, Failure>,
}

/// What a group's counts mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FanIn {
    /// Members are missing.
    Waiting,
    /// What follows it starts now.
    Complete,
    /// It cannot become complete, unless a failed member is retried.
    Failed,
}

/// Decides a group from its counts. Each member counts once, by its latest arrival.
///
/// ```
/// use windlass_core::flow::{FailurePolicy, FanIn, fan_in};
/// assert_eq!(fan_in(FailurePolicy::All, 3, 2, 0), FanIn::Waiting);
/// assert_eq!(fan_in(FailurePolicy::All, 3, 0, 1), FanIn::Failed);
/// assert_eq!(fan_in(FailurePolicy::Any, 3, 1, 2), FanIn::Complete);
/// ```
pub fn fan_in(policy: FailurePolicy, size: u32, succeeded: u32, failed: u32) -> FanIn {
    debug_assert!(succeeded + failed <= size, "each member counts once");
    let ended = succeeded + failed == size;
    match policy {
        FailurePolicy::All if failed > 0 => FanIn::Failed,
        FailurePolicy::Any if ended && succeeded == 0 => FanIn::Failed,
        FailurePolicy::All | FailurePolicy::Any | FailurePolicy::Collect if ended => FanIn::Complete,
        FailurePolicy::All | FailurePolicy::Any | FailurePolicy::Collect => FanIn::Waiting,
    }
}

/// Joins what the members of a group ended with, in the order of their places: the input of what follows.
pub fn join<'a>(policy: FailurePolicy, outcomes: impl IntoIterator<Item = Result<&'a str, &'a Failure>>) -> Json {
    let mut text = String::from("[");
    for (index, outcome) in outcomes.into_iter().enumerate() {
        if index > 0 {
            text.push(',');
        }
        match (policy, outcome) {
            (FailurePolicy::Collect, Ok(result)) => {
                text.push_str("{\"ok\":");
                text.push_str(result);
                text.push('}');
            }
            (FailurePolicy::Collect, Err(failure)) => {
                text.push_str("{\"error\":");
                text.push_str(failure_json(failure).as_str());
                text.push('}');
            }
            (FailurePolicy::All | FailurePolicy::Any, Ok(result)) => text.push_str(result),
            (FailurePolicy::All | FailurePolicy::Any, Err(_)) => text.push_str("null"),
        }
    }
    text.push(']');
    Json::trusted(text)
}

impl After {
    /// Where a place in the group leads that this comes after.
    fn lead_of(&self, group: &GroupId) -> Lead {
        let few = self.push.len() <= LEAD_TASKS_MAX;
        let tasks = self.push.iter().filter(|_| few).map(|task| (task.id.clone(), task.name.clone()));
        let opens = self.groups.first().filter(|_| !few).map(|group| group.id.clone());
        let into = self.member.as_ref().filter(|_| self.push.is_empty()).map(|member| member.group.clone());
        Lead { group: group.clone(), tasks: tasks.collect(), opens, into }
    }

    /// What a complete group starts.
    pub fn complete(self, results: Json) -> Follow {
        let nothing_follows = self.push.is_empty();
        let arrive = self.member.filter(|_| nothing_follows);
        Follow {
            arrive: arrive.map(|member| Arrival { member, outcome: Ok(results.clone()) }).into_iter().collect(),
            push: self.push.into_iter().map(|envelope| Envelope { input: Some(results.clone()), ..envelope }).collect(),
            groups: self.groups,
            ..Follow::default()
        }
    }

    /// What a failed group starts.
    pub fn fail(self, failure: &Failure) -> Follow {
        let input = failure_json(failure);
        // Whoever waits for one of the tasks that will never run must hear of it.
        let joins = self.push.iter().filter_map(|task| task.flow.as_deref()).flat_map(joins_of);
        let members = self.member.iter().cloned().chain(joins);
        Follow {
            arrive: members.map(|member| Arrival { member, outcome: Err(failure.clone()) }).collect(),
            push: self.otherwise.into_iter().map(|task| Envelope { input: Some(input.clone()), ..task }).collect(),
            stranded: self.push,
            cause: Some(failure.clone()),
            groups: Vec::new(),
        }
    }
}

/// What follows a task that ended with this verdict. Nothing, while it has not ended.
pub fn follow(envelope: &Envelope, verdict: &Verdict) -> Follow {
    let Some(flow) = &envelope.flow else { return Follow::default() };
    match verdict {
        Verdict::Succeeded { result, .. } => {
            let mut follow = continue_with(flow, envelope).complete(result.clone());
            let joins = flow.joins.iter().cloned();
            follow.arrive.extend(joins.map(|member| Arrival { member, outcome: Ok(result.clone()) }));
            follow
        }
        Verdict::Dead { failure, .. } => give_up(flow, envelope, failure),
        Verdict::Cancelled => give_up(flow, envelope, &Failure::new("cancelled", "the task was cancelled")),
        Verdict::Expired => give_up(flow, envelope, &Failure::new("expired", "the task was not started in time")),
        Verdict::Again { .. } | Verdict::Awaits { .. } | Verdict::Released | Verdict::Parked => Follow::default(),
    }
}

/// What starting a workflow with a group pushes; `first` carries what follows the group.
pub fn start_group(group: GroupStep, first: Flow, workflow: &GroupId) -> After {
    let mut steps = vec![Step::Group(Box::new(group))];
    steps.extend(first.then.iter().cloned());
    after(&steps, &Behind::of(&first), workflow)
}

fn workflow_of(envelope: &Envelope) -> &GroupId {
    envelope.workflow.as_ref().unwrap_or(&envelope.id)
}

fn continue_with(flow: &Flow, envelope: &Envelope) -> After {
    after(&flow.then, &Behind::of(flow), workflow_of(envelope))
}

/// A task of a chain that gave up: the steps after it stay in its envelope, for the day it is retried.
fn give_up(flow: &Flow, envelope: &Envelope, failure: &Failure) -> Follow {
    let otherwise = part_of(&flow.otherwise, workflow_of(envelope));
    let mut follow = After { member: flow.member.clone(), otherwise, ..After::default() }.fail(failure);
    follow.arrive.extend(joins_of(flow).map(|member| Arrival { member, outcome: Err(failure.clone()) }));
    follow
}

/// The places in groups that a task and everything after it report to, besides the one that its last step reports to.
fn joins_of(flow: &Flow) -> Box<dyn Iterator<Item = Member> + '_> {
    let tasks = flow.then.iter().flat_map(|step| match step {
        Step::Task(task) => std::slice::from_ref(&**task),
        Step::Group(group) => &group.tasks,
    });
    let later = tasks.filter_map(|task| task.flow.as_deref()).flat_map(joins_of);
    Box::new(flow.joins.iter().cloned().chain(later))
}

/// Tasks as part of a workflow.
fn part_of(tasks: &[Envelope], workflow: &GroupId) -> Vec<Envelope> {
    let part =
        |task: &Envelope| Envelope { workflow: Some(workflow.clone()), source: Source::Workflow, ..task.clone() };
    tasks.iter().map(part).collect()
}

/// What is behind all of the steps after a task.
struct Behind<'f> {
    /// When one of them gives up.
    otherwise: &'f [Envelope],
    /// Where the last one reports to.
    member: Option<&'f Member>,
    /// Where that leads.
    lead: Option<&'f Lead>,
}

impl<'f> Behind<'f> {
    fn of(flow: &'f Flow) -> Self {
        let member = flow.member.as_ref();
        let lead = flow.leads.iter().find(|lead| member.is_some_and(|member| lead.group == member.group));
        Self { otherwise: &flow.otherwise, member, lead }
    }
}

fn after(then: &[Step], behind: &Behind<'_>, workflow: &GroupId) -> After {
    let Behind { otherwise, member, lead } = behind;
    let member = member.cloned();
    let Some((next, rest)) = then.split_first() else {
        return After { member, otherwise: part_of(otherwise, workflow), ..After::default() };
    };
    let step_of = |task: &Envelope, flow: Flow| Envelope {
        flow: (flow != Flow::default()).then(|| Box::new(flow)),
        workflow: Some(workflow.clone()),
        source: Source::Workflow,
        ..task.clone()
    };
    match next {
        Step::Task(task) => {
            let Flow { joins, mut leads, .. } = task.flow.as_deref().cloned().unwrap_or_default();
            leads.extend(lead.cloned());
            let flow =
                Flow { then: rest.to_vec(), otherwise: otherwise.to_vec(), member: member.clone(), joins, leads };
            After {
                push: vec![step_of(task, flow)],
                groups: Vec::new(),
                member,
                otherwise: part_of(otherwise, workflow),
            }
        }
        Step::Group(group) => {
            let following = after(rest, behind, workflow);
            // A group that nobody waits for needs no fan-in.
            let counted = following != After::default();
            let lead = following.lead_of(&group.id);
            let members = group.tasks.iter().enumerate().map(|(index, task)| {
                let mut flow = task.flow.as_deref().cloned().unwrap_or_default();
                flow.member = counted.then(|| Member { group: group.id.clone(), index: index as u32 });
                flow.leads.extend(counted.then(|| lead.clone()));
                step_of(task, flow)
            });
            After {
                push: members.collect(),
                groups: if counted {
                    let size = group.tasks.len() as u32;
                    vec![NewGroup { id: group.id.clone(), size, policy: group.policy, after: following }]
                } else {
                    Vec::new()
                },
                member,
                otherwise: part_of(otherwise, workflow),
            }
        }
    }
}

fn failure_json(failure: &Failure) -> Json {
    Json::of(failure).unwrap_or_else(|_| Json::null())
}

impl Flow {
    /// Whether anything but the places it reports to follows.
    fn has_steps(&self) -> bool {
        !self.then.is_empty() || !self.otherwise.is_empty() || self.member.is_some()
    }

    /// Checks the limits of a workflow and of every task in it.
    ///
    /// # Errors
    /// [`InvalidEnvelope`]: [`InvalidEnvelope::Flow`] for the workflow's own limits.
    pub fn check(&self, now: Timestamp) -> Result<(), InvalidEnvelope> {
        let mut bytes = 0;
        self.check_inside(now, 0, &mut bytes)
    }

    fn check_inside(&self, now: Timestamp, depth: usize, bytes: &mut usize) -> Result<(), InvalidEnvelope> {
        let refuse = |text: String| Err(InvalidEnvelope::Flow(text));
        if self.then.len() > STEPS_MAX {
            return refuse(format!(
                "a workflow has {} steps after one task, the limit is {STEPS_MAX}",
                self.then.len()
            ));
        }
        let mut groups = depth;
        for step in &self.then {
            match step {
                Step::Task(task) if task.flow.as_deref().is_some_and(Flow::has_steps) => {
                    return refuse(format!(
                        "the step `{}` has steps of its own: put them into the same chain",
                        task.name
                    ));
                }
                Step::Task(task) => check_task(task, now, groups, bytes)?,
                Step::Group(group) => {
                    groups += 1;
                    group.check_inside(now, groups, bytes)?;
                }
            }
        }
        for task in &self.otherwise {
            check_task(task, now, groups, bytes)?;
        }
        Ok(())
    }
}

impl GroupStep {
    /// Checks the limits of a group that starts a workflow.
    ///
    /// # Errors
    /// As [`Flow::check`].
    pub fn check(&self, now: Timestamp) -> Result<(), InvalidEnvelope> {
        self.check_inside(now, 1, &mut 0)
    }

    fn check_inside(&self, now: Timestamp, depth: usize, bytes: &mut usize) -> Result<(), InvalidEnvelope> {
        if depth > GROUP_DEPTH_MAX {
            return Err(InvalidEnvelope::Flow(format!(
                "more than {GROUP_DEPTH_MAX} groups follow or contain each other in one workflow"
            )));
        }
        if self.tasks.is_empty() || self.tasks.len() > GROUP_MAX {
            return Err(InvalidEnvelope::Flow(format!(
                "a group has {} tasks; it takes 1 to {GROUP_MAX}",
                self.tasks.len()
            )));
        }
        self.tasks.iter().try_for_each(|task| check_task(task, now, depth, bytes))
    }
}

fn check_task(task: &Envelope, now: Timestamp, depth: usize, bytes: &mut usize) -> Result<(), InvalidEnvelope> {
    *bytes += task.args.size();
    if *bytes > FLOW_BYTES_MAX {
        return Err(InvalidEnvelope::Flow(format!(
            "the arguments of a workflow take more than {FLOW_BYTES_MAX} bytes; store the data elsewhere and send references"
        )));
    }
    task.check_alone(now)?;
    if task.unique.is_some() {
        // Left out because its key is taken, it would be waited for without end.
        return Err(InvalidEnvelope::Flow(format!(
            "`{}` has a unique key: steps and members of a workflow take none",
            task.name
        )));
    }
    match &task.flow {
        Some(flow) => flow.check_inside(now, depth, bytes),
        None => Ok(()),
    }
}

/// The reason that a stranded task is recorded with.
pub fn stranded_verdict(cause: Option<&Failure>) -> Verdict {
    let failure = match cause {
        Some(cause) => Failure::new("upstream", format_args!("a task that it waited for gave up: {cause}")),
        None => Failure::new("upstream", "a task that it waited for gave up"),
    };
    Verdict::Dead { reason: DeadReason::Upstream, failure }
}

#[cfg(test)]
mod tests;
