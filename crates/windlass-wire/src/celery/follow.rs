//! What to publish when a task has ended: Celery's rules of canvas, pure.
//!
//! | ended | published |
//! |---|---|
//! | [`success`] | every callback, and the next step of the chain with the rest of it; each gets the result in front |
//! | [`failure`] | every errback, with the id of the task in front; the rest of the chain is answered with the same failure |
//! | all parts of a chord: [`chord_body`] | the body, with the array of results in front |
//! | a part of a chord failed: [`chord_failure`] | the errbacks of the body, with the id of the body in front |
//!
//! Groups, chords and chains inside of a chain are unfolded here: a client sends only the first task of a workflow. A
//! signature of an unknown task is published all the same, because another worker may know it.

use serde_json::{Map, Value, json};
use windlass_core::{Json, Timestamp};

use super::message::Message;
use super::request::{Request, TimeLimit};
use super::signature::Signature;
use super::time::parse_time;
use crate::error::Malformed;
use crate::json;

/// The size of everything that one task may publish, in bytes: a chord copies its body into each of its parts.
pub const PUBLISH_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Who publishes, and when.
pub struct Publisher<'p> {
    /// Names tasks that have no id yet: a UUID, different at each call.
    pub new_id: &'p mut dyn FnMut() -> String,
    /// Now: countdowns begin here.
    pub now: Timestamp,
    /// `gen<pid>@<host>`, for display.
    pub origin: &'p str,
}

/// A message to publish, and where to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    /// What to publish.
    pub message: Message,
    /// The queue that the signature names; without one it goes where the application sends this task.
    pub queue: Option<String>,
    /// The exchange that it names.
    pub exchange: Option<String>,
    /// The routing key that it names.
    pub routing_key: Option<String>,
}

/// A chord that begins: its counter is written before its parts are published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChordStart {
    /// The group of its parts.
    pub group: String,
    /// How many parts it waits for.
    pub size: usize,
}

/// What follows a task.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Follow {
    /// Write these counters first.
    pub chords: Vec<ChordStart>,
    /// Then publish these.
    pub publish: Vec<Outgoing>,
    /// Then store the result with these as its `children`: result tuples, `[[id, parent], children]`.
    pub children: Vec<Value>,
    /// Tasks that will never run; each is answered with the failure of the one that failed.
    pub stranded: Vec<Stranded>,
}

/// A task that will never run, because one before it failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Stranded {
    /// Its id.
    pub id: String,
    /// The chord that waits for it: its failure counts there.
    pub chord: Option<Box<Signature>>,
    /// The group of that chord.
    pub group: Option<String>,
    /// Its position in the group.
    pub group_index: Option<i64>,
}

/// What follows a task that succeeded.
///
/// # Errors
/// [`Malformed`] when a signature cannot be read or when too much would be published.
pub fn success(request: &Request, result: &Json, publisher: &mut Publisher<'_>) -> Result<Follow, Malformed> {
    let mut unfolding = Unfolding::of(request, publisher);
    for callback in &request.canvas.callbacks {
        unfolding.child(callback, result, Place::default())?;
    }
    let mut chain = request.canvas.chain.clone();
    if let Some(next) = chain.pop() {
        unfolding.child(&next, result, Place { chain, ..Place::default() })?;
    }
    Ok(unfolding.follow)
}

/// What follows a task that gave up.
///
/// # Errors
/// As [`success`].
pub fn failure(request: &Request, publisher: &mut Publisher<'_>) -> Result<Follow, Malformed> {
    let mut follow = errbacks(&request.canvas.errbacks, &request.id, request, publisher)?;
    // The next step is the last element.
    for step in request.canvas.chain.iter().rev() {
        strand(step, &mut follow.stranded, 0)?;
    }
    Ok(follow)
}

/// The body of a chord whose parts have all succeeded; `last` is the part that completed it.
///
/// # Errors
/// As [`success`].
pub fn chord_body(
    body: &Signature,
    results: &[Json],
    last: &Request,
    publisher: &mut Publisher<'_>,
) -> Result<Follow, Malformed> {
    let texts: Vec<&str> = results.iter().map(Json::as_str).collect();
    let joined = json::value("results of the chord", &format!("[{}]", texts.join(", ")))?;
    let mut unfolding = Unfolding::of(last, publisher);
    unfolding.child(body, &joined, Place::default())?;
    Ok(unfolding.follow)
}

/// What follows when a part of a chord failed: the errbacks of its body. The body itself is answered with `ChordError`
/// under its id, which is [`Signature`]'s option `task_id`.
///
/// # Errors
/// As [`success`].
pub fn chord_failure(body: &Signature, part: &Request, publisher: &mut Publisher<'_>) -> Result<Follow, Malformed> {
    let id = body.text("task_id").unwrap_or_default().to_owned();
    let mut follow = errbacks(&body.signatures("link_error")?, &id, part, publisher)?;
    for step in body.signatures("chain")?.iter().rev() {
        strand(step, &mut follow.stranded, 0)?;
    }
    Ok(follow)
}

/// Unfolds a signature that a client sends: the messages of a group, of a chord, the first of a chain.
///
/// Without a request there is no result to put in front and no parent.
/// # Errors
/// As [`success`].
pub fn start(signature: &Signature, publisher: &mut Publisher<'_>) -> Result<Follow, Malformed> {
    let mut unfolding = Unfolding::begin(publisher);
    let child = unfolding.send(signature, None, Place::default(), 0)?;
    unfolding.follow.children.push(child);
    Ok(unfolding.follow)
}

fn errbacks(
    signatures: &[Signature],
    failed: &str,
    request: &Request,
    publisher: &mut Publisher<'_>,
) -> Result<Follow, Malformed> {
    if signatures.is_empty() {
        return Ok(Follow::default());
    }
    let id = Json::trusted(json::quoted(failed));
    let group = (publisher.new_id)();
    let mut unfolding = Unfolding::of(request, publisher);
    failed.clone_into(&mut unfolding.lineage.parent);
    for (index, errback) in signatures.iter().enumerate() {
        let place = Place { group: Some((group.clone(), Some(index as i64))), ..Place::default() };
        unfolding.send(errback, Some(&id), place, 0)?;
    }
    Ok(unfolding.follow)
}

/// Collects the tasks that will never run: a step, and the bodies of the chords in it.
fn strand(step: &Signature, stranded: &mut Vec<Stranded>, depth: usize) -> Result<(), Malformed> {
    let body = step.inner_body()?;
    let chord = step.counts_for()?;
    if let Some(id) = step.text("task_id") {
        stranded.push(Stranded {
            id: id.to_owned(),
            chord,
            group: step.text("group_id").map(ToOwned::to_owned),
            group_index: step.options.get("group_index").and_then(Value::as_i64),
        });
    }
    match body {
        Some(body) if depth < DEPTH_MAX => strand(&body, stranded, depth + 1),
        _ => Ok(()),
    }
}

/// Signatures inside of signatures; JSON is not read deeper either.
const DEPTH_MAX: usize = 64;

/// Where a signature stands: what follows it and what it counts for.
#[derive(Debug, Clone, Default)]
struct Place {
    /// The rest of the chain, in reverse order.
    chain: Vec<Signature>,
    /// The group and the position in it.
    group: Option<(String, Option<i64>)>,
    /// The chord that waits for it.
    chord: Option<Box<Signature>>,
}

/// What everything that is published has in common.
struct Lineage {
    root: Option<String>,
    parent: String,
    reply_to: Option<String>,
    stamped_headers: Option<Vec<String>>,
    stamps: Map<String, Value>,
}

struct Unfolding<'u, 'p> {
    lineage: Lineage,
    publisher: &'u mut Publisher<'p>,
    follow: Follow,
    bytes: usize,
}

impl<'u, 'p> Unfolding<'u, 'p> {
    /// Of what follows this request.
    fn of(request: &Request, publisher: &'u mut Publisher<'p>) -> Self {
        let lineage = Lineage {
            root: Some(request.root_id.clone().unwrap_or_else(|| request.id.clone())),
            parent: request.id.clone(),
            reply_to: request.reply_to.clone(),
            stamped_headers: request.stamped_headers.clone(),
            stamps: request.stamps.clone(),
        };
        Self { lineage, publisher, follow: Follow::default(), bytes: 0 }
    }

    /// Of something new.
    fn begin(publisher: &'u mut Publisher<'p>) -> Self {
        let lineage =
            Lineage { root: None, parent: String::new(), reply_to: None, stamped_headers: None, stamps: Map::new() };
        Self { lineage, publisher, follow: Follow::default(), bytes: 0 }
    }

    fn child(&mut self, signature: &Signature, feed: &Json, place: Place) -> Result<(), Malformed> {
        let child = self.send(signature, Some(feed), place, 0)?;
        self.follow.children.push(child);
        Ok(())
    }

    /// Publishes what a signature stands for and answers its result tuple.
    fn send(
        &mut self,
        signature: &Signature,
        feed: Option<&Json>,
        mut place: Place,
        depth: usize,
    ) -> Result<Value, Malformed> {
        if depth > DEPTH_MAX {
            return Err(Malformed::TooMany { part: "levels of the canvas", max: DEPTH_MAX });
        }
        if place.group.is_none() {
            let index = signature.options.get("group_index").and_then(Value::as_i64);
            place.group = signature.text("group_id").map(|group| (group.to_owned(), index));
        }
        if place.chord.is_none() {
            place.chord = signature.counts_for()?;
        }
        place.chain.extend(signature.signatures("chain")?);
        match signature.task.as_str() {
            "celery.group" => self.group(signature, feed, place, depth),
            "celery.chord" => self.chord(signature, feed, place, depth),
            "celery.chain" => self.chain(signature, feed, place, depth),
            _ => self.task(signature, feed, place),
        }
    }

    fn group(
        &mut self,
        signature: &Signature,
        feed: Option<&Json>,
        mut place: Place,
        depth: usize,
    ) -> Result<Value, Malformed> {
        let members = signature.inner("tasks")?;
        let id = self.id_of(signature);
        // A group that is followed by a task is a chord.
        if let Some(body) = place.chain.pop() {
            return self.parts(&id, &members, body, feed, place, depth);
        }
        let mut children = Vec::with_capacity(members.len());
        for (index, member) in members.iter().enumerate() {
            let index = member.options.get("group_index").and_then(Value::as_i64).unwrap_or(index as i64);
            // Inside of a chord its members count for the chord; there is one index for all of them.
            let group = match &place.chord {
                Some(_) => place.group.clone(),
                None => Some((id.clone(), Some(index))),
            };
            let place = Place { chain: Vec::new(), group, chord: place.chord.clone() };
            children.push(self.send(member, feed, place, depth + 1)?);
        }
        Ok(json!([[id, null], children]))
    }

    fn chord(
        &mut self,
        signature: &Signature,
        feed: Option<&Json>,
        place: Place,
        depth: usize,
    ) -> Result<Value, Malformed> {
        let body = signature.inner_body()?.ok_or(Malformed::Missing("`body` of a chord"))?;
        let mut header = signature.inner("header")?;
        let mut id = signature.text("task_id").map(ToOwned::to_owned);
        if let [group] = header.as_slice()
            && group.task == "celery.group"
        {
            id = group.text("task_id").map(ToOwned::to_owned).or(id);
            header = group.inner("tasks")?;
        }
        let id = id.unwrap_or_else(|| (self.publisher.new_id)());
        let mut body = body;
        if let Some(errbacks) = signature.options.get("link_error").filter(|errbacks| !errbacks.is_null()) {
            body.options.entry("link_error").or_insert_with(|| errbacks.clone());
        }
        self.parts(&id, &header, body, feed, place, depth)
    }

    /// The parts of a chord. What followed the chord follows its body.
    fn parts(
        &mut self,
        id: &str,
        header: &[Signature],
        mut body: Signature,
        feed: Option<&Json>,
        place: Place,
        depth: usize,
    ) -> Result<Value, Malformed> {
        if header.is_empty() {
            return self.send(&body, Some(&Json::trusted("[]")), place, depth + 1);
        }
        let mut chain = place.chain;
        chain.extend(body.signatures("chain")?);
        let body_id = self.id_of(&body);
        let chain = json::tree("chain of a chord", &chain)?;
        let mut option = |name: &str, value: Value| body.options.insert(name.to_owned(), value);
        option("task_id", Value::from(body_id));
        option("chain", chain);
        if let Some(root) = &self.lineage.root {
            option("root_id", Value::from(root.as_str()));
        }
        if let Some(outer) = place.chord {
            option("chord", json::tree("body of a chord", &outer)?);
        }
        match place.group {
            Some((group, index)) => {
                option("group_id", Value::from(group));
                option("group_index", json!(index));
            }
            None => {
                option("group_id", Value::from(id));
            }
        }
        let body = Box::new(body);
        let copy = json::written(&body).len();
        self.grow(copy.saturating_mul(header.len()))?;
        let size = header.iter().try_fold(0, |sum, part| parts_of(part, 0).map(|parts| sum + parts))?;
        self.follow.chords.push(ChordStart { group: id.to_owned(), size });
        let mut children = Vec::with_capacity(header.len());
        for (index, part) in header.iter().enumerate() {
            let index = part.options.get("group_index").and_then(Value::as_i64).unwrap_or(index as i64);
            let group = Some((id.to_owned(), Some(index)));
            let place = Place { chain: Vec::new(), group, chord: Some(body.clone()) };
            children.push(self.send(part, feed, place, depth + 1)?);
        }
        Ok(json!([[id, null], children]))
    }

    /// The first step of a chain; only the last one counts for a group or a chord.
    fn chain(
        &mut self,
        signature: &Signature,
        feed: Option<&Json>,
        place: Place,
        depth: usize,
    ) -> Result<Value, Malformed> {
        let mut steps = signature.inner("tasks")?;
        steps.reverse();
        let Some(first) = steps.pop() else { return Err(Malformed::Missing("`tasks` of a chain")) };
        let Place { mut chain, group, chord } = place;
        let Some(last) = steps.first_mut().filter(|_| group.is_some() || chord.is_some()) else {
            chain.extend(steps);
            return self.send(&first, feed, Place { chain, group, chord }, depth + 1);
        };
        if let Some(chord) = chord {
            last.options.insert("chord".to_owned(), json::tree("body of a chord", &chord)?);
        }
        if let Some((group, index)) = group {
            last.options.insert("group_id".to_owned(), Value::from(group));
            last.options.insert("group_index".to_owned(), json!(index));
        }
        chain.extend(steps);
        self.send(&first, feed, Place { chain, ..Place::default() }, depth + 1)
    }

    fn task(&mut self, signature: &Signature, feed: Option<&Json>, place: Place) -> Result<Value, Malformed> {
        let args = match feed.filter(|_| !signature.immutable) {
            None => signature.args.clone(),
            Some(feed) => in_front(feed, &signature.args),
        };
        self.grow(args.as_str().len() + signature.kwargs.as_str().len())?;
        let id = self.id_of(signature);
        let mut request = Request::new(signature.task.clone(), id.clone());
        request.root_id = Some(self.lineage.root.clone().unwrap_or_else(|| id.clone()));
        request.parent_id = Some(self.lineage.parent.clone()).filter(|parent| !parent.is_empty());
        request.reply_to = signature.text("reply_to").map(ToOwned::to_owned).or_else(|| self.lineage.reply_to.clone());
        request.origin = Some(self.publisher.origin.to_owned());
        if let Some((group, index)) = place.group {
            (request.group, request.group_index) = (Some(group), index);
        }
        request.canvas.callbacks = signature.signatures("link")?;
        request.canvas.errbacks = signature.signatures("link_error")?;
        request.canvas.chain = place.chain;
        request.canvas.chord = place.chord;
        self.options(signature, &mut request)?;
        let text = |name| signature.text(name).filter(|text| !text.is_empty()).map(ToOwned::to_owned);
        let message = Message { args, kwargs: signature.kwargs.clone(), request }.with_reprs();
        self.follow.publish.push(Outgoing {
            message,
            queue: text("queue"),
            exchange: text("exchange"),
            routing_key: text("routing_key"),
        });
        Ok(json!([[id, null], null]))
    }

    /// Options that mean the same as in a direct call.
    fn options(&self, signature: &Signature, request: &mut Request) -> Result<(), Malformed> {
        let now = self.publisher.now;
        let utc = jiff::tz::TimeZone::UTC;
        request.eta = match (signature.seconds("countdown"), signature.text("eta")) {
            (Some(countdown), _) => Some(now + countdown),
            (None, Some(eta)) => Some(parse_time("`eta`", eta, &utc)?),
            (None, None) => None,
        };
        request.expires = match (signature.seconds("expires"), signature.text("expires")) {
            (Some(after), _) => Some(now + after),
            (None, Some(expires)) => Some(parse_time("`expires`", expires, &utc)?),
            (None, None) => None,
        };
        request.timelimit =
            TimeLimit { hard: signature.seconds("time_limit"), soft: signature.seconds("soft_time_limit") };
        request.priority = signature.options.get("priority").and_then(Value::as_i64).unwrap_or(0);
        request.ignore_result = signature.options.get("ignore_result").and_then(Value::as_bool);
        request.shadow = signature.text("shadow").map(ToOwned::to_owned);
        if let Some(Value::Object(headers)) = signature.options.get("headers") {
            request.extra.clone_from(headers);
        }
        self.stamp(signature, request);
        Ok(())
    }

    /// The stamps of the task before, and those of the signature.
    fn stamp(&self, signature: &Signature, request: &mut Request) {
        request.stamped_headers.clone_from(&self.lineage.stamped_headers);
        request.stamps.clone_from(&self.lineage.stamps);
        let Some(Value::Array(names)) = signature.options.get("stamped_headers") else { return };
        let stamped = request.stamped_headers.get_or_insert_default();
        for name in names.iter().filter_map(Value::as_str) {
            if let Some(stamp) = signature.options.get(name) {
                request.stamps.insert(name.to_owned(), stamp.clone());
            }
            if !stamped.iter().any(|known| known == name) {
                stamped.push(name.to_owned());
            }
        }
    }

    fn id_of(&mut self, signature: &Signature) -> String {
        signature.text("task_id").map_or_else(|| (self.publisher.new_id)(), ToOwned::to_owned)
    }

    fn grow(&mut self, bytes: usize) -> Result<(), Malformed> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > PUBLISH_BYTES_MAX {
            return Err(Malformed::TooLarge {
                part: "what follows the task",
                size: self.bytes,
                max: PUBLISH_BYTES_MAX,
            });
        }
        Ok(())
    }
}

/// How many results a part of a chord gives: its last tasks count.
fn parts_of(part: &Signature, depth: usize) -> Result<usize, Malformed> {
    if depth > DEPTH_MAX {
        return Err(Malformed::TooMany { part: "levels of the canvas", max: DEPTH_MAX });
    }
    match part.task.as_str() {
        "celery.group" => {
            part.inner("tasks")?.iter().try_fold(0, |sum, part| parts_of(part, depth + 1).map(|parts| sum + parts))
        }
        "celery.chain" => part.inner("tasks")?.last().map_or(Ok(1), |last| parts_of(last, depth + 1)),
        _ => Ok(1),
    }
}

/// An array with one more element at its beginning.
pub(super) fn in_front(first: &Json, array: &Json) -> Json {
    let inside = array.as_str().strip_prefix('[').unwrap_or("]").trim_ascii_start();
    let separator = if inside == "]" { "" } else { ", " };
    Json::trusted(format!("[{}{separator}{inside}", first.as_str()))
}
