//! What a message that arrives asks for. Pure.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use uuid::Uuid;
use windlass_core::bridge::{Identity, Malformed, Message};
use windlass_core::{DeliveryId, Envelope, Failure, QueueName, TaskId, TaskName};
use windlass_wire::celery::{self, Broker, Reading, Request, TimeLimit};
use windlass_wire::{Frame, kombu};

use crate::carrier::{Carried, Content, delivery_id};

/// The class of the failure of a task that no handler is registered for.
pub(super) const NOT_REGISTERED: &str = "NotRegistered";

/// What is known here when a message arrives.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) broker: Broker,
    pub(super) reading: Reading,
    /// The names of the tasks that have a handler here.
    pub(super) registered: HashSet<String>,
}

/// How long a task may run whose message says nothing of it.
#[derive(Debug, Clone, Default)]
pub(super) struct TimeLimits {
    /// Every task.
    pub(super) every: TimeLimit,
    /// What an operator has set for some.
    pub(super) of: HashMap<String, TimeLimit>,
}

impl TimeLimits {
    /// Puts them where a message has said nothing.
    fn complete(&self, envelope: &mut Envelope) {
        let own = self.of.get(envelope.name.as_str()).copied().unwrap_or_default();
        envelope.hard_limit = envelope.hard_limit.or(own.hard).or(self.every.hard);
        envelope.soft_limit = envelope.soft_limit.or(own.soft).or(self.every.soft);
    }
}

/// A message as it arrived.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) id: DeliveryId,
    pub(super) identity: Identity,
    pub(super) message: Message,
    /// What it says of its task; `None` when it makes no sense.
    pub(super) request: Option<Box<Request>>,
}

impl Reader {
    /// Reads what a carrier brought.
    pub(super) fn read(&self, carried: &Carried, limits: &TimeLimits) -> Arrival {
        let message = match &carried.content {
            Content::Frame(frame) => celery::Message::decode(frame, &self.reading),
            Content::Unreadable(_, reason) => Err(reason.clone()),
            Content::Bytes(bytes) => celery::Message::of_element(bytes, &self.reading),
        };
        let read = message.and_then(|message| Ok((self.task(&message, &carried.queue, limits)?, message.request)));
        match read {
            Ok((message, request)) => {
                let (id, identity) = identity(carried, request.delivery_tag.as_deref());
                Arrival { id, identity, message, request: Some(Box::new(request)) }
            }
            Err(reason) => letter(carried, &reason),
        }
    }

    fn task(
        &self,
        message: &celery::Message,
        queue: &QueueName,
        limits: &TimeLimits,
    ) -> Result<Message, windlass_wire::Malformed> {
        let mut envelope = if TaskId::new(&message.request.id).is_ok() {
            message.envelope(self.broker, queue.clone())?
        } else {
            // Celery takes any text for an id: one that is none here gets another, and is answered under its own.
            let mut other = message.clone();
            other.request.id = Uuid::new_v5(&Uuid::NAMESPACE_OID, message.request.id.as_bytes()).to_string();
            other.envelope(self.broker, queue.clone())?
        };
        message.request.attach(&mut envelope)?;
        limits.complete(&mut envelope);
        let envelope = Box::new(envelope);
        if self.registered.contains(envelope.name.as_str()) {
            return Ok(Message::Task(envelope));
        }
        let failure =
            Failure::new(NOT_REGISTERED, format_args!("no handler for `{}` is registered here", envelope.name));
        Ok(Message::Refused(envelope, failure))
    }
}

/// A message that makes no sense.
fn letter(carried: &Carried, reason: &windlass_wire::Malformed) -> Arrival {
    let frame = frame_of(&carried.content);
    let frame = frame.as_deref();
    let header = |name: &str| frame.and_then(|frame| frame.headers.get(name)?.as_str());
    let (id, identity) = identity(carried, frame.and_then(|frame| frame.properties.delivery_tag.as_deref()));
    let malformed = Malformed {
        queue: carried.queue.clone(),
        name: header("task").and_then(|name| TaskName::new(name).ok()),
        id: header("id").and_then(|id| TaskId::new(id).ok()),
        reason: reason.to_string(),
        raw: carried.content.raw().to_vec(),
    };
    Arrival { id, identity, message: Message::Malformed(malformed), request: None }
}

/// What a carrier brought as a frame; `None` when it is none.
fn frame_of(content: &Content) -> Option<Cow<'_, Frame>> {
    match content {
        Content::Frame(frame) | Content::Unreadable(frame, _) => Some(Cow::Borrowed(frame)),
        Content::Bytes(bytes) => kombu::decode(bytes).ok().map(Cow::Owned),
    }
}

/// The identity of a message: the delivery tag that its producer gave it, what its carrier calls it, or what it says.
fn identity(carried: &Carried, tag: Option<&str>) -> (DeliveryId, Identity) {
    if let Some(tag) = tag {
        return (delivery_id(&format!("celery:{tag}")), Identity::Own);
    }
    if let Some(identity) = &carried.identity {
        return (delivery_id(&format!("celery:{identity}")), Identity::Own);
    }
    let said = match frame_of(&carried.content) {
        Some(frame) if frame.headers.get("id").is_some_and(serde_json::Value::is_string) => {
            let header = |name: &str| frame.headers.get(name).map(ToString::to_string).unwrap_or_default();
            format!("{}:{}:{}", carried.queue, header("id"), header("retries"))
        }
        Some(_) | None => {
            format!("{}:{}", carried.queue, Uuid::new_v5(&Uuid::NAMESPACE_OID, carried.content.raw()))
        }
    };
    let identity = if carried.again { Identity::Own } else { Identity::First };
    (delivery_id(&format!("celery:{said}")), identity)
}

/// How often the task of this envelope was run before its message was sent: what Celery calls `request.retries` of the
/// first attempt here.
///
/// 0 for tasks that are not Celery's.
pub fn retries_of(envelope: &Envelope) -> u32 {
    Request::of(envelope).ok().flatten().map_or(0, |request| request.retries)
}
