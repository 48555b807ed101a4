//! From an envelope to a message: a Rust client enqueues for Python workers.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use windlass_core::flow::{FailurePolicy, Flow, GroupStep, Step};
use windlass_core::{Due, Envelope, Feed, Json, QueueName, TaskId, Timestamp};

use super::message::{Broker, Message};
use super::request::{Request, TimeLimit};
use super::signature::{Signature, no_args, no_kwargs};
use super::time::iso_time;
use crate::error::Malformed;
use crate::json;

/// Who enqueues.
#[derive(Debug, Clone, Copy)]
pub struct Producer<'p> {
    /// Which way priorities run.
    pub broker: Broker,
    /// Now: delays begin here.
    pub now: Timestamp,
    /// `gen<pid>@<host>`, for display.
    pub origin: &'p str,
    /// The queue that results go to with the result backend `rpc://`.
    pub reply_to: Option<&'p str>,
}

/// A task that Celery has no message for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsendable {
    /// Its result goes to a group of ours.
    #[error("`{0}` is a member of a group that this store counts: send the whole group, or none of it")]
    Member(TaskId),
    /// It gets the result of the task before under a name.
    #[error("`{0}` takes the result of the task before as an argument with a name; Celery passes it as the first one")]
    FedByName(TaskId),
    /// A group that may fail in part.
    #[error("group `{0}` goes on when members fail; a chord needs all of them")]
    Policy(TaskId),
    /// Its arguments nest too deeply to be put into a canvas.
    #[error(transparent)]
    Nested(#[from] Malformed),
}

impl Message {
    /// The message for a task: what `apply_async` of a Python client would send.
    ///
    /// The steps after it become its chain, groups become chords, and `otherwise` becomes the errbacks of each task; an
    /// errback gets the id of the task that failed. A unique key, retries, backoff and the like are up to the worker and
    /// are not sent. An envelope with a [`Request`] of its own keeps what that says.
    /// # Errors
    /// [`Unsendable`] when the workflow has no canvas of the same meaning.
    pub fn of(envelope: &Envelope, producer: &Producer<'_>) -> Result<Self, Unsendable> {
        if let Ok(Some(request)) = Request::of(envelope) {
            let (args, kwargs) = arguments(envelope, Feed::Nothing)?;
            return Ok(Self { args, kwargs, request });
        }
        let mut request = Request::new(envelope.name.as_str(), envelope.id.to_string());
        request.eta = eta(envelope, producer.now);
        request.expires = envelope.expires;
        request.timelimit = TimeLimit { hard: envelope.hard_limit, soft: envelope.soft_limit };
        request.ignore_result = envelope.result_ttl.filter(std::time::Duration::is_zero).map(|_| true);
        request.priority = producer.broker.wire_priority(envelope.priority);
        request.origin = Some(producer.origin.to_owned());
        request.reply_to = Some(producer.reply_to.unwrap_or_default().to_owned());
        request.extra = headers(&envelope.headers);
        envelope.queue.as_str().clone_into(&mut request.routing_key);
        if let Some(workflow) = &envelope.workflow {
            request.root_id = Some(workflow.to_string());
        }
        if let Some(flow) = &envelope.flow {
            if flow.member.is_some() {
                return Err(Unsendable::Member(envelope.id.clone()));
            }
            request.canvas.errbacks = signatures(&flow.otherwise, producer)?;
            request.canvas.chain = chain(flow, producer)?;
        }
        let (args, kwargs) = arguments(envelope, envelope.feed.clone())?;
        Ok(Self { args, kwargs, request }.with_reprs())
    }
}

impl Signature {
    /// The signature of a task that is sent later, as a step or a member.
    ///
    /// # Errors
    /// [`Unsendable`] as for [`Message::of`].
    pub fn of(envelope: &Envelope, producer: &Producer<'_>) -> Result<Self, Unsendable> {
        let (args, kwargs) = arguments(envelope, Feed::Nothing)?;
        let mut signature = Self { args, kwargs, ..Self::new(envelope.name.as_str()) };
        signature.immutable = match &envelope.feed {
            Feed::Nothing => true,
            Feed::First => false,
            Feed::Field(_) => return Err(Unsendable::FedByName(envelope.id.clone())),
        };
        let mut option = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                signature.options.insert(name.to_owned(), value);
            }
        };
        let seconds = |limit: std::time::Duration| json!(limit.as_secs_f64());
        option("task_id", Some(Value::from(envelope.id.to_string())));
        option("queue", (envelope.queue != QueueName::default()).then(|| Value::from(envelope.queue.as_str())));
        option("reply_to", producer.reply_to.map(Value::from));
        option("priority", Some(Value::from(producer.broker.wire_priority(envelope.priority))));
        option("expires", envelope.expires.map(|at| Value::from(iso_time(at))));
        option("time_limit", envelope.hard_limit.map(seconds));
        option("soft_time_limit", envelope.soft_limit.map(seconds));
        option("ignore_result", envelope.result_ttl.filter(std::time::Duration::is_zero).map(|_| Value::Bool(true)));
        match envelope.due {
            Due::Now => {}
            Due::After(delay) => option("countdown", Some(seconds(delay))),
            Due::At(at) => option("eta", Some(Value::from(iso_time(at)))),
        }
        let headers = headers(&envelope.headers);
        option("headers", (!headers.is_empty()).then_some(Value::Object(headers)));
        if let Some(flow) = &envelope.flow {
            if flow.member.is_some() {
                return Err(Unsendable::Member(envelope.id.clone()));
            }
            let chain = chain(flow, producer)?;
            let errbacks = signatures(&flow.otherwise, producer)?;
            for (name, signatures) in [("chain", chain), ("link_error", errbacks)] {
                if !signatures.is_empty() {
                    option(name, Some(json::tree("workflow", &signatures)?));
                }
            }
        }
        Ok(signature)
    }

    /// The signature of a group of ours.
    ///
    /// # Errors
    /// [`Unsendable`] as for [`Message::of`].
    pub fn of_group(group: &GroupStep, producer: &Producer<'_>) -> Result<Self, Unsendable> {
        if group.policy != FailurePolicy::All {
            return Err(Unsendable::Policy(group.id.clone()));
        }
        Ok(Self::group(&group.id.to_string(), &signatures(&group.tasks, producer)?))
    }
}

/// The steps after a task in reverse order. A group that is followed by a task stays one: the worker makes it a chord.
fn chain(flow: &Flow, producer: &Producer<'_>) -> Result<Vec<Signature>, Unsendable> {
    let errbacks = signatures(&flow.otherwise, producer)?;
    let link_error = json::tree("workflow", &errbacks)?;
    flow.then
        .iter()
        .rev()
        .map(|step| match step {
            Step::Task(task) => {
                let signature = Signature::of(task, producer)?;
                Ok(if errbacks.is_empty() { signature } else { signature.option("link_error", link_error.clone()) })
            }
            Step::Group(group) => Signature::of_group(group, producer),
        })
        .collect()
}

fn signatures(tasks: &[Envelope], producer: &Producer<'_>) -> Result<Vec<Signature>, Unsendable> {
    tasks.iter().map(|task| Signature::of(task, producer)).collect()
}

fn eta(envelope: &Envelope, now: Timestamp) -> Option<Timestamp> {
    match envelope.due {
        Due::Now => None,
        Due::After(delay) => Some(now + delay),
        Due::At(at) => Some(at),
    }
}

/// The arguments, with what the task before left when there is something.
fn arguments(envelope: &Envelope, feed: Feed) -> Result<(Json, Json), Unsendable> {
    let args = envelope.args.positional().cloned().unwrap_or_else(no_args);
    let kwargs = envelope.args.keyword().cloned().unwrap_or_else(no_kwargs);
    match (feed, &envelope.input) {
        (Feed::Nothing, _) | (_, None) => Ok((args, kwargs)),
        (Feed::First, Some(input)) => Ok((super::follow::in_front(input, &args), kwargs)),
        (Feed::Field(_), Some(_)) => Err(Unsendable::FedByName(envelope.id.clone())),
    }
}

fn headers(headers: &BTreeMap<String, String>) -> Map<String, Value> {
    headers.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect()
}
