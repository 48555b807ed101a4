//! What a message that arrives asks for. Pure.

use std::collections::HashSet;

use uuid::Uuid;
use windlass_core::bridge::{DELIVERED_AS, Identity, Malformed, Message, Taken};
use windlass_core::{DeliveryId, Envelope, Failure, QueueName, TaskId, TaskName};
use windlass_wire::taskiq::{self, Broker};

use crate::carrier::{Carried, Content, delivery_id};

/// The class of the failure of a task that no handler is registered for.
const NOT_REGISTERED: &str = "NotRegistered";
/// The longest id of a task that is answered under it, in bytes: a key of a result that somebody can still read.
const TASK_ID_BYTES_MAX: usize = 1_024;

/// Reads what a carrier brought.
pub(super) fn read(carried: Carried, broker: Broker, registered: &HashSet<String>) -> Taken {
    let decoded = match &carried.content {
        Content::Unreadable(_, reason) => Err(reason.clone()),
        Content::Bytes(_) | Content::Frame(_) => taskiq::Message::decode(carried.content.raw()),
    };
    let (id, identity) = identity(&carried, decoded.as_ref().ok());
    let message = decoded.and_then(|message| envelope(&message, broker, carried.queue.clone()));
    let message = match message {
        Ok(envelope) => task(envelope, registered),
        Err(reason) => Message::Malformed(letter(&carried, &reason)),
    };
    Taken { id, identity, tag: carried.tag, message }
}

fn task(envelope: Envelope, registered: &HashSet<String>) -> Message {
    let envelope = Box::new(envelope);
    if registered.contains(envelope.name.as_str()) {
        return Message::Task(envelope);
    }
    let text = format_args!("no handler for `{}` is registered here", envelope.name);
    let failure = Failure::new(NOT_REGISTERED, text);
    Message::Refused(envelope, failure)
}

/// The task of a message. TaskIQ takes any text for an id: one that is none here gets another, and is answered under its own.
fn envelope(message: &taskiq::Message, broker: Broker, queue: QueueName) -> Result<Envelope, windlass_wire::Malformed> {
    if TaskId::new(&message.task_id).is_ok() || message.task_id.len() > TASK_ID_BYTES_MAX {
        return message.envelope(broker, queue);
    }
    let task_id = hash(message.task_id.as_bytes());
    let mut envelope = taskiq::Message { task_id, ..message.clone() }.envelope(broker, queue)?;
    envelope.headers.insert(DELIVERED_AS.to_owned(), message.task_id.clone());
    Ok(envelope)
}

/// A message that makes no sense. On AMQP the headers say the id and the name once more.
fn letter(carried: &Carried, reason: &windlass_wire::Malformed) -> Malformed {
    let header = |name: &str| match &carried.content {
        Content::Frame(frame) | Content::Unreadable(frame, _) => frame.headers.get(name)?.as_str(),
        Content::Bytes(_) => None,
    };
    Malformed {
        queue: carried.queue.clone(),
        name: header("task_name").and_then(|name| TaskName::new(name).ok()),
        id: header("task_id").and_then(|id| TaskId::new(id).ok()),
        reason: reason.to_string(),
        raw: carried.content.raw().to_vec(),
    }
}

/// What a delivery is known by: the carrier's identity, or what tells one run of a task from the next.
fn identity(carried: &Carried, message: Option<&taskiq::Message>) -> (DeliveryId, Identity) {
    if let Some(identity) = &carried.identity {
        return (delivery_id(&format!("taskiq:{identity}")), Identity::Own);
    }
    let says = match message {
        Some(message) => format!("{}:{}", message.task_id, message.labels.failed_runs()),
        None => hash(carried.content.raw()),
    };
    let identity = if carried.again { Identity::Own } else { Identity::First };
    (delivery_id(&format!("taskiq:{}:{says}", carried.queue)), identity)
}

fn hash(bytes: &[u8]) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_OID, bytes).to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use windlass_core::bridge::Tag;
    use windlass_wire::Frame;

    use super::*;

    fn carried(body: &str, identity: Option<&str>) -> Carried {
        let frame = Frame { body: body.as_bytes().to_vec(), ..Frame::default() };
        Carried {
            tag: Tag(Arc::from([])),
            identity: identity.map(ToOwned::to_owned),
            again: false,
            queue: QueueName::known("taskiq"),
            content: Content::Frame(Box::new(frame)),
        }
    }

    fn message(id: &str, name: &str, labels: &str) -> String {
        format!(r#"{{"task_id": "{id}", "task_name": "{name}", "labels": {labels}, "args": [1], "kwargs": {{}}}}"#)
    }

    fn read(carried: Carried) -> Taken {
        super::read(carried, Broker::Amqp, &HashSet::from(["known".to_owned()]))
    }

    fn id_of(carried: Carried) -> String {
        read(carried).id.to_string()
    }

    #[test]
    fn a_message_for_a_handler_is_a_task_and_one_for_none_is_refused() {
        assert!(matches!(read(carried(&message("1", "known", "{}"), None)).message, Message::Task(_)));
        assert!(matches!(read(carried(&message("1", "other", "{}"), None)).message, Message::Refused(_, _)));
        assert!(matches!(read(carried("{]", None)).message, Message::Malformed(_)));
        assert!(matches!(read(carried(&message("1", "no name", "{}"), None)).message, Message::Malformed(_)));
    }

    #[test]
    fn the_carriers_identity_counts_and_without_one_the_run_of_the_task_does() {
        let first = message("1", "known", "{}");
        let second = message("1", "known", r#"{"_retries": "1"}"#);
        assert_eq!(id_of(carried(&first, Some("taskiq:5-0"))), "taskiq:taskiq:5-0");
        assert_eq!(id_of(carried(&first, None)), "taskiq:taskiq:1:0");
        assert_eq!(id_of(carried(&second, None)), "taskiq:taskiq:1:1");
        assert_eq!(read(carried(&first, None)).identity, Identity::First);
        let again = Carried { again: true, ..carried(&first, None) };
        assert_eq!(read(again).identity, Identity::Own);
        assert_eq!(id_of(carried("{]", None)), id_of(carried("{]", None)));
        assert_ne!(id_of(carried("{]", None)), id_of(carried("{}", None)));
    }

    #[test]
    fn what_is_too_long_for_an_identity_is_known_by_its_hash() {
        let long = message(&"x".repeat(300), "known", "{}");
        assert!(id_of(carried(&long, None)).len() < 60);
        assert_eq!(id_of(carried(&long, None)), id_of(carried(&long, None)));
        assert!(id_of(carried(&long, Some("a\nb"))).len() < 60);
    }

    #[test]
    fn an_id_that_is_none_here_is_answered_under_its_own() {
        let Message::Task(envelope) = read(carried(&message("no. 5 é", "known", "{}"), None)).message else {
            panic!("it is a task")
        };
        assert_eq!(envelope.headers[DELIVERED_AS], "no. 5 é");
        let too_long = message(&"é".repeat(TASK_ID_BYTES_MAX), "known", "{}");
        assert!(matches!(read(carried(&too_long, None)).message, Message::Malformed(_)));
    }
}
