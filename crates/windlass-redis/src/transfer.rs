//! Moving everything to another store, and from one.
//!
//! What changes something is a script. An export reads tasks block by block, as a listing does, but the oldest first.

use redis::{Cmd, Value};
use serde_json::json;
use windlass_core::flow::{After, FailurePolicy, Member, NewGroup};
use windlass_core::transfer::{
    PARCEL_GROUPS_MAX, PARCEL_TASKS_MAX, Parcel, Parcelled, ParcelledGroup, Transfer, Transferred,
};
use windlass_core::view::AttemptRecord;
use windlass_core::{Due, Envelope, Failure, Json, Priority, State, StoreError, Timestamp};

use crate::Shared;
use crate::encode::{self, add_task};
use crate::errors::damaged;
use crate::listing;
use crate::record::{Packed, from_json, integer, list, parse, row_text, text, texts, to_json};
use crate::scripts::Script;
use crate::settle::reason_code;

/// Takes a step.
pub(crate) async fn transfer(shared: &Shared, step: &Transfer) -> Result<Transferred, StoreError> {
    step.check()?;
    let answer = match step {
        Transfer::Close => ask(shared, "close").await?,
        Transfer::Open => ask(shared, "open").await?,
        Transfer::Export => return export(shared).await.map(Transferred::Parcel),
        Transfer::Import(parcel) => {
            let groups = groups_text(&parcel.groups);
            shared
                .run(Script::Import, |cmd| {
                    cmd.arg(&groups).arg(parcel.tasks.len());
                    parcel.tasks.iter().for_each(|task| add_parcelled(cmd, task));
                })
                .await?
        }
        Transfer::Evict { tasks, groups } => {
            shared
                .run(Script::Transfer, |cmd| {
                    cmd.arg("evict").arg(groups.len());
                    for group in groups {
                        cmd.arg(group.to_string());
                    }
                    for task in tasks {
                        cmd.arg(task.to_string());
                    }
                })
                .await?
        }
    };
    Ok(Transferred::Changed(u64::try_from(integer(&answer)?).unwrap_or(0)))
}

async fn ask(shared: &Shared, step: &str) -> Result<Value, StoreError> {
    shared
        .run(Script::Transfer, |cmd| {
            cmd.arg(step);
        })
        .await
}

async fn export(shared: &Shared) -> Result<Parcel, StoreError> {
    let open = shared
        .run(Script::Transfer, |cmd| {
            cmd.arg("groups").arg(PARCEL_GROUPS_MAX);
        })
        .await?;
    let groups = list(open)?.into_iter().map(group_of).collect::<Result<Vec<_>, _>>()?;
    if !groups.is_empty() {
        return Ok(Parcel { groups, tasks: Vec::new() });
    }
    let oldest = listing::oldest(shared, PARCEL_TASKS_MAX, |packed| packed.state != State::Running).await?;
    let names: Vec<String> = oldest.iter().map(|(row, _)| row_text(*row)).collect();
    let records = listing::read(shared, "row", "", &names).await?;
    let tasks = oldest.iter().zip(records).filter_map(|((_, packed), found)| {
        // Somebody may have taken or removed it meanwhile.
        let (_, record) = found.filter(|(_, record)| record.state != State::Running)?;
        Some(Parcelled { record, ready_at: Packed::ready_at(packed) })
    });
    Ok(Parcel { groups, tasks: tasks.collect() })
}

/// Adds a task to the arguments of `import.lua`.
fn add_parcelled(cmd: &mut Cmd, parcelled: &Parcelled) {
    let Parcelled { record, ready_at } = parcelled;
    add_task(cmd, &Envelope { due: Due::Now, ..record.envelope.clone() });
    // A running task is in no parcel; should one be, nobody holds it here.
    let state = if record.state == State::Running { State::Ready } else { record.state };
    let at = match state {
        State::Scheduled => record.due_at.unwrap_or(*ready_at).as_micros(),
        State::Succeeded | State::Dead | State::Cancelled | State::Expired => {
            record.finished_at.unwrap_or(*ready_at).as_micros()
        }
        State::Ready | State::Running | State::Parked => 0,
    };
    cmd.arg(State::ALL.iter().position(|known| *known == state).unwrap_or_default())
        .arg(at)
        .arg(ready_at.as_micros())
        .arg(record.enqueued_at.as_micros())
        .arg(record.started_at.map_or(0, Timestamp::as_micros))
        .arg(record.attempt)
        .arg(record.crashes)
        .arg(record.node.as_ref().map(ToString::to_string).unwrap_or_default())
        .arg(record.reason.map(|reason| reason_code(reason).to_string()).unwrap_or_default())
        .arg(record.result.as_ref().map(Json::as_str).unwrap_or_default())
        .arg(record.failure.as_ref().map(to_json).unwrap_or_default())
        .arg(record.history.iter().map(line_of).collect::<Vec<_>>().join("\n"))
        .arg(record.progress.as_ref().map(to_json).unwrap_or_default())
        .arg(record.skipped.as_deref().unwrap_or_default())
        .arg(&record.memo)
        .arg(record.waits_for.as_ref().map(ToString::to_string).unwrap_or_default());
}

/// An attempt as `remember` in `common.lua` writes it.
fn line_of(attempt: &AttemptRecord) -> String {
    format!(
        "{}\t{}\t{}\t{}\t{}",
        attempt.number,
        attempt.node.as_ref().map(ToString::to_string).unwrap_or_default(),
        attempt.started_at.map_or(0, Timestamp::as_micros),
        attempt.ended_at.as_micros(),
        to_json(&attempt.failure)
    )
}

/// Groups as JSON for `import.lua`; empty when there are none.
fn groups_text(groups: &[ParcelledGroup]) -> String {
    if groups.is_empty() {
        return String::new();
    }
    let groups = groups.iter().map(|ParcelledGroup { group, arrived, failed }| {
        let arrived = arrived.iter().flat_map(|(place, outcome)| [place.to_string(), outcome_text(outcome)]);
        let mut parts = encode::group(group);
        parts["arrived"] = json!(arrived.collect::<Vec<_>>());
        parts["phase"] = json!(if *failed { "failed" } else { "open" });
        parts
    });
    serde_json::Value::Array(groups.collect()).to_string()
}

/// What a member ended with, as `arrive` in `flow.lua` writes it.
fn outcome_text(outcome: &Result<Json, Failure>) -> String {
    match outcome {
        Ok(result) => format!("+{}", result.as_str()),
        Err(failure) => format!("-{}", json!([to_json(failure), encode::stranded(Some(failure))])),
    }
}

fn outcome_of(stored: &str) -> Result<Result<Json, Failure>, StoreError> {
    if let Some(result) = stored.strip_prefix('+') {
        return Json::parse(result).map(Ok).map_err(|error| damaged("result", error));
    }
    let (failure, _): (String, String) = from_json("failure", stored.strip_prefix('-').unwrap_or(stored))?;
    from_json("failure", &failure).map(Err)
}

/// A group from an answer of `transfer.lua`.
fn group_of(answer: Value) -> Result<ParcelledGroup, StoreError> {
    let mut parts = list(answer)?.into_iter();
    let mut next = || parts.next().unwrap_or(Value::Nil);
    let [id, size, policy, after, phase] = [next(), next(), next(), next(), next()].map(text);
    let stored = from_json::<StoredAfter>("group", &after?)?;
    let group = StoredGroup { id: id?, size: size?, policy: policy?, after: stored }.read()?;
    let mut outcomes = texts(next())?.into_iter();
    let mut arrived = Vec::new();
    while let (Some(place), Some(outcome)) = (outcomes.next(), outcomes.next()) {
        arrived.push((parse("arrival", &place)?, outcome_of(&outcome)?));
    }
    arrived.sort_unstable_by_key(|(place, _)| *place);
    Ok(ParcelledGroup { group, arrived, failed: phase? == "failed" })
}

/// A group as [`encode::groups`] writes it.
#[derive(Debug, serde::Deserialize)]
struct StoredGroup {
    id: String,
    size: String,
    policy: String,
    after: StoredAfter,
}

#[derive(Debug, serde::Deserialize)]
struct StoredAfter {
    #[serde(default)]
    push: Vec<StoredTask>,
    #[serde(default)]
    otherwise: Vec<StoredTask>,
    #[serde(default)]
    groups: Vec<StoredGroup>,
    member: Option<StoredMember>,
}

#[derive(Debug, serde::Deserialize)]
struct StoredMember {
    group: String,
    index: String,
}

/// Id, queue, name, priority, due, extra, and the body in two parts.
type StoredTask = (String, String, String, String, String, String, String, String);

impl StoredGroup {
    fn read(self) -> Result<NewGroup, StoreError> {
        let policies = [FailurePolicy::All, FailurePolicy::Any, FailurePolicy::Collect];
        let policy = policies.into_iter().find(|policy| policy.as_str() == self.policy);
        let StoredAfter { push, otherwise, groups, member } = self.after;
        let member = member.map(|StoredMember { group, index }| -> Result<Member, StoreError> {
            Ok(Member { group: parse("group", &group)?, index: parse("group", &index)? })
        });
        Ok(NewGroup {
            id: parse("group", &self.id)?,
            size: parse("group", &self.size)?,
            policy: policy.ok_or_else(|| damaged("group", "its policy is unknown"))?,
            after: After {
                push: push.into_iter().map(read_task).collect::<Result<_, _>>()?,
                otherwise: otherwise.into_iter().map(read_task).collect::<Result<_, _>>()?,
                groups: groups.into_iter().map(Self::read).collect::<Result<_, _>>()?,
                member: member.transpose()?,
            },
        })
    }
}

/// A task that has no input yet.
fn read_task(stored: StoredTask) -> Result<Envelope, StoreError> {
    let (id, queue, name, priority, due, _, before, behind) = stored;
    let priority: u8 = parse("priority", &priority)?;
    let envelope = Envelope::from_body(
        parse("task id", &id)?,
        parse("task name", &name)?,
        parse("queue name", &queue)?,
        Priority::new(priority).map_err(|error| damaged("group", error))?,
        &format!("{before}null{behind}"),
    )
    .map_err(|error| damaged("group", error))?;
    Ok(Envelope { due: encode::due_of(&due)?, input: None, ..envelope })
}
