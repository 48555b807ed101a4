//! What follows a task that ended: pushes, stranded tasks, groups and arrivals, in the transaction of the settle.
//!
//! A group that becomes complete starts something, which may arrive at another group, and so on: a list of work, not a
//! recursion.

use std::collections::VecDeque;
use std::time::Duration;

use rusqlite::params;
use windlass_core::flow::{After, Arrival, FailurePolicy, FanIn, Follow, fan_in, join};
use windlass_core::{Failure, GroupId};

use crate::errors::Fault;
use crate::push::{self, NewTask, PreparedGroup};
use crate::rows::{Id, from_json, text, to_json};
use crate::tx::Tx;

/// How exactly a group knows when something last arrived.
const TOUCH: Duration = Duration::from_secs(3600);

/// What follows, encoded by the task that calls.
#[derive(Debug, Default)]
pub(crate) struct PreparedFollow {
    push: Vec<NewTask>,
    stranded: Vec<NewTask>,
    cause: Option<Failure>,
    groups: Vec<PreparedGroup>,
    arrive: Vec<Arrival>,
}

impl PreparedFollow {
    pub(crate) fn of(follow: &Follow) -> Self {
        Self {
            push: follow.push.iter().map(NewTask::of).collect(),
            stranded: follow.stranded.iter().map(NewTask::of).collect(),
            cause: follow.cause.clone(),
            groups: follow.groups.iter().map(PreparedGroup::of).collect(),
            arrive: follow.arrive.clone(),
        }
    }

    /// About how many rows it changes.
    pub(crate) fn rows(&self) -> usize {
        self.push.len() + self.stranded.len() + self.groups.len() + self.arrive.len()
    }
}

/// Does what follows, to the end.
pub(crate) fn apply(tx: &mut Tx<'_>, follow: &PreparedFollow) -> Result<(), Fault> {
    let mut rest: VecDeque<Follow> = one_step(tx, follow)?.into();
    while let Some(follow) = rest.pop_front() {
        rest.extend(one_step(tx, &PreparedFollow::of(&follow))?);
    }
    Ok(())
}

fn one_step(tx: &mut Tx<'_>, follow: &PreparedFollow) -> Result<Vec<Follow>, Fault> {
    for group in &follow.groups {
        push::create_group(tx, group)?;
    }
    for task in &follow.push {
        push::push_following(tx, task)?;
    }
    for task in &follow.stranded {
        push::strand(tx, task, follow.cause.as_ref())?;
    }
    let mut started = Vec::new();
    for arrival in &follow.arrive {
        started.extend(arrive(tx, arrival)?);
    }
    Ok(started)
}

struct Group {
    number: i64,
    size: u32,
    policy: FailurePolicy,
    succeeded: u32,
    failed: u32,
    completed: bool,
    broken: bool,
}

/// Counts a member that ended and answers what its group starts.
fn arrive(tx: &mut Tx<'_>, arrival: &Arrival) -> Result<Vec<Follow>, Fault> {
    let Some(mut group) = group_of(tx, &arrival.member.group)? else { return Ok(Vec::new()) };
    // The results of a complete group are gone: what followed has them.
    if group.completed || arrival.member.index >= group.size || !count(tx, &mut group, arrival)? {
        return Ok(Vec::new());
    }
    let follow = match fan_in(group.policy, group.size, group.succeeded, group.failed) {
        FanIn::Complete => {
            let after = after_of(tx, group.number)?;
            let results = joined(tx, &group)?;
            group.completed = true;
            tx.execute("DELETE FROM windlass_arrival WHERE number = ?1", [group.number])?;
            vec![after.complete(results)]
        }
        FanIn::Failed if !group.broken => {
            group.broken = true;
            vec![after_of(tx, group.number)?.fail(&first_failure(tx, group.number)?)]
        }
        FanIn::Failed | FanIn::Waiting => Vec::new(),
    };
    // Its age matters by days: an index entry need not move with every member.
    let fresh = (tx.now - TOUCH).as_micros();
    tx.execute(
        "UPDATE windlass_group SET succeeded = ?2, failed = ?3, completed = ?4, broken = ?5, \
         touched_at = CASE WHEN ?4 OR touched_at < ?7 THEN ?6 ELSE touched_at END WHERE number = ?1",
        params![group.number, group.succeeded, group.failed, group.completed, group.broken, tx.now_micros(), fresh],
    )?;
    Ok(follow)
}

/// Each member counts once, by its latest arrival; a success is never replaced. Answers whether anything changed.
fn count(tx: &Tx<'_>, group: &mut Group, arrival: &Arrival) -> Result<bool, Fault> {
    let place = arrival.member.index;
    let mut select = tx.prepare("SELECT succeeded FROM windlass_arrival WHERE number = ?1 AND place = ?2")?;
    let mut rows = select.query(params![group.number, place])?;
    match rows.next()?.map(|row| row.get::<_, bool>(0)).transpose()? {
        Some(true) => return Ok(false),
        Some(false) => group.failed -= 1,
        None => {}
    }
    let (succeeded, outcome) = match &arrival.outcome {
        Ok(result) => (true, result.as_str().to_owned()),
        Err(failure) => (false, to_json(failure)),
    };
    if succeeded {
        group.succeeded += 1;
    } else {
        group.failed += 1;
    }
    tx.execute(
        "INSERT OR REPLACE INTO windlass_arrival (number, place, succeeded, outcome) VALUES (?1, ?2, ?3, ?4)",
        params![group.number, place, succeeded, outcome],
    )?;
    Ok(true)
}

fn group_of(tx: &Tx<'_>, id: &GroupId) -> Result<Option<Group>, Fault> {
    let mut select = tx.prepare(
        "SELECT number, size, policy, succeeded, failed, completed, broken FROM windlass_group WHERE id = ?1",
    )?;
    let mut rows = select.query([Id(id)])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    Ok(Some(Group {
        number: row.get(0)?,
        size: row.get(1)?,
        policy: policy_of(text(row, 2)?)?,
        succeeded: row.get(3)?,
        failed: row.get(4)?,
        completed: row.get(5)?,
        broken: row.get(6)?,
    }))
}

/// The stored policy.
pub(crate) fn policy_of(stored: &str) -> Result<FailurePolicy, Fault> {
    [FailurePolicy::All, FailurePolicy::Any, FailurePolicy::Collect]
        .into_iter()
        .find(|policy| policy.as_str() == stored)
        .ok_or_else(|| Fault::damaged("group", "its policy is unknown"))
}

fn after_of(tx: &Tx<'_>, number: i64) -> Result<After, Fault> {
    let mut select = tx.prepare("SELECT after FROM windlass_group WHERE number = ?1")?;
    let mut rows = select.query([number])?;
    let row = rows.next()?.ok_or_else(|| Fault::damaged("group", "it is gone"))?;
    from_json("group", text(row, 0)?)
}

/// What the members ended with, in the order of their places.
fn joined(tx: &Tx<'_>, group: &Group) -> Result<windlass_core::Json, Fault> {
    let mut select = tx.prepare("SELECT succeeded, outcome FROM windlass_arrival WHERE number = ?1 ORDER BY place")?;
    let mut rows = select.query([group.number])?;
    let mut outcomes: Vec<Result<String, Failure>> = Vec::with_capacity(group.size as usize);
    while let Some(row) = rows.next()? {
        outcomes.push(if row.get(0)? { Ok(row.get(1)?) } else { Err(from_json("failure", text(row, 1)?)?) });
    }
    Ok(join(group.policy, outcomes.iter().map(|outcome| outcome.as_deref())))
}

fn first_failure(tx: &Tx<'_>, number: i64) -> Result<Failure, Fault> {
    let mut select =
        tx.prepare("SELECT outcome FROM windlass_arrival WHERE number = ?1 AND succeeded = 0 ORDER BY place LIMIT 1")?;
    let mut rows = select.query([number])?;
    let row = rows.next()?.ok_or_else(|| Fault::damaged("group", "its failure is gone"))?;
    from_json("failure", text(row, 0)?)
}
