//! What follows a task that ended: pushes, stranded tasks, groups and arrivals, in the transaction of the settle.
//!
//! A group that becomes complete starts something, which may arrive at another group, and so on: a list of work, not a
//! recursion. Arrivals at one group are counted together, so that a large group costs a few statements for each batch.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use windlass_core::flow::{After, Arrival, FailurePolicy, FanIn, Follow, fan_in, join};
use windlass_core::{Failure, GroupId, Json};

use crate::errors::Fault;
use crate::push::{self, NewTask};
use crate::rows::{from_json, to_json, value};
use crate::tx::Tx;

/// How exactly a group knows when something last arrived.
const TOUCH: Duration = Duration::from_secs(3600);

/// Does what follows, to the end.
pub(crate) async fn apply(tx: &mut Tx<'_>, follows: Vec<Follow>) -> Result<(), Fault> {
    let mut rest: VecDeque<Follow> = follows.into();
    while !rest.is_empty() {
        let mut arrivals: BTreeMap<GroupId, Vec<Arrival>> = BTreeMap::new();
        let mut new = Vec::new();
        for follow in rest.drain(..) {
            push::create_groups(tx, &follow.groups).await?;
            new.extend(follow.push.iter().map(NewTask::of));
            if !follow.stranded.is_empty() {
                let stranded: Vec<NewTask> = follow.stranded.iter().map(NewTask::of).collect();
                push::strand(tx, &stranded, follow.cause.as_ref()).await?;
            }
            for arrival in follow.arrive {
                arrivals.entry(arrival.member.group.clone()).or_default().push(arrival);
            }
        }
        if !new.is_empty() {
            push::push_following(tx, &new).await?;
        }
        // In the order of the groups, as everybody does.
        for (group, arrivals) in arrivals {
            rest.extend(arrive(tx, &group, arrivals).await?);
        }
    }
    Ok(())
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

/// Counts members that ended and answers what their group starts.
async fn arrive(tx: &mut Tx<'_>, id: &GroupId, arrivals: Vec<Arrival>) -> Result<Option<Follow>, Fault> {
    let Some(mut group) = group_of(tx, id).await? else { return Ok(None) };
    // The results of a complete group are gone: what followed has them.
    if group.completed || !count(tx, &mut group, arrivals).await? {
        return Ok(None);
    }
    let follow = match fan_in(group.policy, group.size, group.succeeded, group.failed) {
        FanIn::Complete => {
            let after = after_of(tx, group.number).await?;
            let results = joined(tx, &group).await?;
            group.completed = true;
            tx.execute("DELETE FROM windlass.arrival WHERE number = $1", &[&group.number]).await?;
            Some(after.complete(results))
        }
        FanIn::Failed if !group.broken => {
            group.broken = true;
            let failure = first_failure(tx, group.number).await?;
            Some(after_of(tx, group.number).await?.fail(&failure))
        }
        FanIn::Failed | FanIn::Waiting => None,
    };
    // Its age matters by days: an index entry need not move with every member.
    let (now, fresh) = (tx.now.as_micros(), (tx.now - TOUCH).as_micros());
    tx.execute(
        "UPDATE windlass.groups SET succeeded = $2, failed = $3, completed = $4, broken = $5, \
         touched_at = CASE WHEN $4 OR touched_at < $7 THEN $6 ELSE touched_at END WHERE number = $1",
        &[
            &group.number,
            &(group.succeeded as i32),
            &(group.failed as i32),
            &group.completed,
            &group.broken,
            &now,
            &fresh,
        ],
    )
    .await?;
    Ok(follow)
}

/// Each member counts once, by its latest arrival; a success is never replaced. Answers whether anything changed.
async fn count(tx: &Tx<'_>, group: &mut Group, arrivals: Vec<Arrival>) -> Result<bool, Fault> {
    let places: Vec<i32> = arrivals.iter().map(|arrival| arrival.member.index as i32).collect();
    let known = tx
        .query(
            "SELECT place, succeeded FROM windlass.arrival WHERE number = $1 AND place = ANY($2)",
            &[&group.number, &places],
        )
        .await?;
    let mut known: BTreeMap<i32, bool> =
        known.iter().map(|row| Ok((value(row, 0)?, value(row, 1)?))).collect::<Result<_, Fault>>()?;
    let mut changed: BTreeMap<i32, (bool, String)> = BTreeMap::new();
    for arrival in arrivals.into_iter().filter(|arrival| arrival.member.index < group.size) {
        let place = arrival.member.index as i32;
        match known.get(&place) {
            Some(true) => continue,
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
        known.insert(place, succeeded);
        changed.insert(place, (succeeded, outcome));
    }
    if changed.is_empty() {
        return Ok(false);
    }
    let places: Vec<i32> = changed.keys().copied().collect();
    let succeeded: Vec<bool> = changed.values().map(|(succeeded, _)| *succeeded).collect();
    let outcomes: Vec<&str> = changed.values().map(|(_, outcome)| outcome.as_str()).collect();
    tx.execute(
        "INSERT INTO windlass.arrival (number, place, succeeded, outcome) \
         SELECT $1, r.place, r.succeeded, r.outcome FROM unnest($2::int[], $3::boolean[], $4::text[]) AS r(place, succeeded, outcome) \
         ON CONFLICT (number, place) DO UPDATE SET succeeded = excluded.succeeded, outcome = excluded.outcome",
        &[&group.number, &places, &succeeded, &outcomes],
    )
    .await?;
    Ok(true)
}

async fn group_of(tx: &Tx<'_>, id: &GroupId) -> Result<Option<Group>, Fault> {
    let rows = tx
        .query(
            "SELECT number, size, policy, succeeded, failed, completed, broken FROM windlass.groups WHERE id = $1 FOR UPDATE",
            &[&id.to_string()],
        )
        .await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let number = |index: usize| -> Result<u32, Fault> { Ok(u32::try_from(value::<i32>(row, index)?).unwrap_or(0)) };
    Ok(Some(Group {
        number: value(row, 0)?,
        size: number(1)?,
        policy: policy_of(value(row, 2)?)?,
        succeeded: number(3)?,
        failed: number(4)?,
        completed: value(row, 5)?,
        broken: value(row, 6)?,
    }))
}

/// The policy with this name.
pub(crate) fn policy_of(stored: &str) -> Result<FailurePolicy, Fault> {
    [FailurePolicy::All, FailurePolicy::Any, FailurePolicy::Collect]
        .into_iter()
        .find(|policy| policy.as_str() == stored)
        .ok_or_else(|| Fault::damaged("group", "its policy is unknown"))
}

async fn after_of(tx: &Tx<'_>, number: i64) -> Result<After, Fault> {
    let rows = tx.query("SELECT after FROM windlass.groups WHERE number = $1", &[&number]).await?;
    let row = rows.first().ok_or_else(|| Fault::damaged("group", "it is gone"))?;
    from_json("group", value(row, 0)?)
}

/// What the members ended with, in the order of their places.
async fn joined(tx: &Tx<'_>, group: &Group) -> Result<Json, Fault> {
    let rows = tx
        .query("SELECT succeeded, outcome FROM windlass.arrival WHERE number = $1 ORDER BY place", &[&group.number])
        .await?;
    let mut outcomes: Vec<Result<&str, Failure>> = Vec::with_capacity(group.size as usize);
    for row in &rows {
        outcomes.push(if value(row, 0)? { Ok(value(row, 1)?) } else { Err(from_json("failure", value(row, 1)?)?) });
    }
    Ok(join(group.policy, outcomes.iter().map(|outcome| outcome.as_ref().map(|result| *result))))
}

async fn first_failure(tx: &Tx<'_>, number: i64) -> Result<Failure, Fault> {
    let rows = tx
        .query(
            "SELECT outcome FROM windlass.arrival WHERE number = $1 AND NOT succeeded ORDER BY place LIMIT 1",
            &[&number],
        )
        .await?;
    let row = rows.first().ok_or_else(|| Fault::damaged("group", "its failure is gone"))?;
    from_json("failure", value(row, 0)?)
}
