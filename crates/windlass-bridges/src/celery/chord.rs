//! Chords: what happens when a part has ended, and when the last one has.

use windlass_core::bridge::TransportError;
use windlass_core::{Json, Timestamp};
use windlass_wire::Malformed;
use windlass_wire::celery::follow;
use windlass_wire::celery::result::{ChordPart, Exception, ResultDocument};
use windlass_wire::celery::{Request, State};

use super::plan::{Document, Over, Part, Plan, Teller, named, strand};
use super::results::{Counted, RedisResults, read_parts};

/// Counts a part. When it was the last one, answers what follows and the group that is complete.
pub(super) async fn count(
    results: &RedisResults,
    teller: &Teller,
    part: &Part,
    now: Timestamp,
) -> Result<Option<Plan>, TransportError> {
    // The same token when the same part is counted again: who has claimed the body goes on with it.
    let token = named(&format!("{}:{}", part.group, part.part.task_id));
    if results.count(part, &token).await? == Counted::Waits {
        return Ok(None);
    }
    let parts = results.parts(&part.group).await?;
    let mut plan = Plan::default();
    let joined = read_parts(&parts).and_then(|parts| complete(teller, part, &parts, now, &mut plan));
    if let Err(reason) = joined {
        plan = Plan::default();
        let error = Exception::new("celery.exceptions", "ChordError", format!("{reason}"));
        fail(teller, part, &error, now, &mut plan)
            .unwrap_or_else(|reason| tracing::warn!(%reason, group = part.group, "the body of a chord cannot be read"));
    }
    Ok(Some(plan))
}

/// What follows from all parts of a chord.
fn complete(
    teller: &Teller,
    last: &Part,
    parts: &[ChordPart],
    now: Timestamp,
    plan: &mut Plan,
) -> Result<(), Malformed> {
    if let Some(failed) = parts.iter().find(|part| part.state != State::Success) {
        let error = failed.result.to().unwrap_or_else(|_| Exception::new("builtins", "Exception", "unreadable"));
        let error = Exception::chord(&failed.task_id, &error);
        return fail(teller, last, &error, now, plan);
    }
    let results: Vec<Json> = parts.iter().map(|part| part.result.clone()).collect();
    let request = as_of_group(last);
    let follow =
        teller.follow(&request, now, |publisher| follow::chord_body(&last.body, &results, &last.request, publisher))?;
    teller.publish(plan, &request, follow, now);
    Ok(())
}

/// The body will never run: it is answered with the error, and so is what follows it.
fn fail(teller: &Teller, last: &Part, error: &Exception, now: Timestamp, plan: &mut Plan) -> Result<(), Malformed> {
    let request = as_of_group(last);
    let mut follow =
        teller.follow(&request, now, |publisher| follow::chord_failure(&last.body, &last.request, publisher))?;
    let stranded = std::mem::take(&mut follow.stranded);
    let id = last.body.text("task_id").map_or_else(|| named(&format!("body:{}", last.group)), ToOwned::to_owned);
    let mut body = Request::new(last.body.task.clone(), id);
    body.reply_to.clone_from(&last.request.reply_to);
    let document = ResultDocument::failure(&body, error, None, now);
    plan.documents.push(Document {
        document: document.clone(),
        reply_to: body.reply_to.clone(),
        over: Over::AllButSuccess,
        event: None,
    });
    // The body may be a part of another chord.
    if let (Some(chord), Some(group)) = (last.body.counts_for()?, last.body.text("group_id")) {
        plan.parts.push(Part {
            request: Box::new(body.clone()),
            group: group.to_owned(),
            index: last.body.options.get("group_index").and_then(serde_json::Value::as_i64),
            body: chord,
            part: ChordPart::of(&document),
        });
    }
    strand(plan, &body, stranded, error, "", now);
    teller.publish(plan, &request, follow, now);
    Ok(())
}

/// The request under whose name the body is sent: once for the chord, whoever counts the last part.
fn as_of_group(last: &Part) -> Request {
    let mut request = (*last.request).clone();
    request.id = format!("chord:{}", last.group);
    request.delivery_tag = None;
    request
}
