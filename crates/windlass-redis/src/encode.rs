//! Tasks, groups and what follows, in the form that the scripts read. Numbers are text: Lua would write them with too few
//! digits.

use std::time::Duration;

use redis::Cmd;
use serde_json::{Map, Value, json};
use windlass_core::adoption::{Adoption, DELIVERY_SPACE, DELIVERY_TTL, Delivery};
use windlass_core::flow::{After, Arrival, Follow, Member, NewGroup, stranded_verdict};
use windlass_core::{DeliveryId, Due, Envelope, Failure, Json, OnConflict, StoreError, Timestamp, UniqueHold, Verdict};

use crate::notes;
use crate::record::{parse, to_json};

/// A result that is kept for longer than this is kept for this long: times stay exact in doubles.
const KEEP_MAX: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Adds a new task to a script's arguments: id, queue, name, priority, due, extra, body.
pub(crate) fn add_task(cmd: &mut Cmd, envelope: &Envelope) {
    cmd.arg(envelope.id.to_string())
        .arg(envelope.queue.as_str())
        .arg(envelope.name.as_str())
        .arg(envelope.priority.level())
        .arg(due(envelope.due))
        .arg(extra(envelope))
        .arg(envelope.to_body());
}

/// Adds deliveries to a script's arguments, as `adopt_deliveries` in `adoption.lua` reads them.
pub(crate) fn add_adoption(cmd: &mut Cmd, adoption: &Adoption) {
    let note = |id: &DeliveryId| notes::place(DELIVERY_SPACE, id.as_str());
    cmd.arg(micros(DELIVERY_TTL)).arg(adoption.accepted.len());
    for id in &adoption.accepted {
        cmd.arg(note(id));
    }
    cmd.arg(adoption.deliveries.len());
    for Delivery { id, flaw, .. } in &adoption.deliveries {
        let flaw = flaw.as_ref().map(to_json).unwrap_or_default();
        cmd.arg(note(id)).arg(flaw);
    }
    adoption.deliveries.iter().for_each(|delivery| add_task(cmd, &delivery.envelope));
}

/// When it may start: empty for now, `+` and microseconds for a delay, or microseconds since 1970.
fn due(due: Due) -> String {
    match due {
        Due::Now => String::new(),
        Due::After(delay) => format!("+{}", micros(delay)),
        Due::At(at) => at.as_micros().to_string(),
    }
}

/// The opposite of [`due`].
pub(crate) fn due_of(text: &str) -> Result<Due, StoreError> {
    let micros = |digits: &str| parse::<u64>("due time", digits);
    match text.strip_prefix('+') {
        Some(digits) => Ok(Due::After(Duration::from_micros(micros(digits)?))),
        None if text.is_empty() => Ok(Due::Now),
        None => parse("due time", text).map(Timestamp::from_micros).map(Due::At),
    }
}

/// What most tasks lack, as JSON; empty when there is nothing.
fn extra(envelope: &Envelope) -> String {
    let mut parts = Map::new();
    if envelope.flow.is_some() {
        parts.insert("flow".to_owned(), json!("1"));
    }
    match envelope.result_ttl {
        None => {}
        Some(Duration::ZERO) => {
            parts.insert("mute".to_owned(), json!("1"));
        }
        Some(keep) => {
            parts.insert("keep".to_owned(), json!(micros(keep.min(KEEP_MAX)).to_string()));
        }
    }
    if let Some(expires) = envelope.expires {
        parts.insert("expires".to_owned(), json!(expires.as_micros().to_string()));
    }
    if let Some(unique) = &envelope.unique {
        parts.insert("guard".to_owned(), json!(unique.key.as_str()));
        if let Some(window) = unique.window {
            parts.insert("window".to_owned(), json!(micros(window.min(KEEP_MAX)).to_string()));
        } else if unique.hold == UniqueHold::Started {
            parts.insert("started".to_owned(), json!("1"));
        }
        match unique.on_conflict {
            OnConflict::Keep => None,
            OnConflict::Replace => parts.insert("conflict".to_owned(), json!("replace")),
            OnConflict::Debounce => parts.insert("conflict".to_owned(), json!("debounce")),
        };
    }
    if let Some(key) = &envelope.key {
        parts.insert("key".to_owned(), json!(key.as_str()));
    }
    if let Some(workflow) = &envelope.workflow {
        parts.insert("workflow".to_owned(), json!(workflow.to_string()));
    }
    if parts.is_empty() { String::new() } else { Value::Object(parts).to_string() }
}

/// Groups as JSON; empty when there are none.
pub(crate) fn groups(groups: &[NewGroup]) -> String {
    if groups.is_empty() { String::new() } else { Value::Array(groups.iter().map(group).collect()).to_string() }
}

/// What follows a task, as JSON; empty when nothing does.
pub(crate) fn follow(follow: &Follow) -> String {
    if follow.is_empty() {
        return String::new();
    }
    let mut parts = Map::new();
    insert_list(&mut parts, "groups", &follow.groups, group);
    insert_list(&mut parts, "push", &follow.push, |envelope| task(envelope, [envelope.to_body()]));
    insert_list(&mut parts, "stranded", &follow.stranded, |envelope| task(envelope, [envelope.to_body()]));
    if !follow.stranded.is_empty() {
        parts.insert("cause".to_owned(), json!(stranded(follow.cause.as_ref())));
    }
    insert_list(&mut parts, "arrive", &follow.arrive, arrival);
    Value::Object(parts).to_string()
}

fn arrival(Arrival { member, outcome }: &Arrival) -> Value {
    let mut at = place(member);
    match outcome {
        Ok(result) => {
            at.insert("result".to_owned(), json!(result.as_str()));
        }
        Err(failure) => {
            at.insert("failure".to_owned(), json!(to_json(failure)));
            at.insert("cause".to_owned(), json!(stranded(Some(failure))));
        }
    }
    Value::Object(at)
}

/// What is recorded with a task that never runs because of this failure.
pub(crate) fn stranded(cause: Option<&Failure>) -> String {
    match stranded_verdict(cause) {
        Verdict::Dead { failure, .. } => to_json(&failure),
        verdict => unreachable!("a stranded task is a dead letter, not {verdict:?}"),
    }
}

fn insert_list<T>(parts: &mut Map<String, Value>, name: &str, items: &[T], encode: impl Fn(&T) -> Value) {
    // An empty list and an empty object are the same to Lua: it is left out.
    if !items.is_empty() {
        parts.insert(name.to_owned(), Value::Array(items.iter().map(encode).collect()));
    }
}

fn place(member: &Member) -> Map<String, Value> {
    let mut at = Map::new();
    at.insert("group".to_owned(), json!(member.group.to_string()));
    at.insert("index".to_owned(), json!(member.index.to_string()));
    at
}

pub(crate) fn group(new: &NewGroup) -> Value {
    json!({
        "id": new.id.to_string(),
        "size": new.size.to_string(),
        "policy": new.policy.as_str(),
        "after": after(&new.after),
    })
}

fn after(after: &After) -> Value {
    let mut parts = Map::new();
    insert_list(&mut parts, "push", &after.push, with_room);
    insert_list(&mut parts, "otherwise", &after.otherwise, with_room);
    insert_list(&mut parts, "groups", &after.groups, group);
    if let Some(member) = &after.member {
        parts.insert("member".to_owned(), Value::Object(place(member)));
    }
    insert_list(&mut parts, "fails", &places_of_failure(after), |member| Value::Object(place(member)));
    Value::Object(parts)
}

/// Where a group arrives when it fails: at its own place, and at those of whoever waits for what will never run.
fn places_of_failure(after: &After) -> Vec<Member> {
    let failed = After { push: after.push.clone(), member: after.member.clone(), ..After::default() };
    failed.fail(&Failure::new("", "")).arrive.into_iter().map(|arrival| arrival.member).collect()
}

/// A task whose input is not known yet: its body in two parts, between which the input goes.
fn with_room(envelope: &Envelope) -> Value {
    // Nobody else knows this text, so it stands in the body once.
    let mark = format!("\"{}\"", windlass_core::TaskId::random());
    let marked = Envelope { input: Some(Json::trusted(mark.as_str())), ..envelope.clone() };
    let body = marked.to_body();
    let (before, behind) = body.split_once(&mark).unwrap_or((&body, ""));
    task(envelope, [before.to_owned(), behind.to_owned()])
}

fn task<const N: usize>(envelope: &Envelope, body: [String; N]) -> Value {
    let mut parts = vec![
        json!(envelope.id.to_string()),
        json!(envelope.queue.as_str()),
        json!(envelope.name.as_str()),
        json!(envelope.priority.level().to_string()),
        json!(due(envelope.due)),
        json!(extra(envelope)),
    ];
    parts.extend(body.into_iter().map(Value::String));
    Value::Array(parts)
}

/// Microseconds as the scripts count them.
pub(crate) fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

/// A time that may be missing, as text.
pub(crate) fn optional_time(time: Option<Timestamp>) -> String {
    time.map(|time| time.as_micros().to_string()).unwrap_or_default()
}
