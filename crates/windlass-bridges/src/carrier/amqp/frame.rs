//! Frames from what a broker delivers, and back. Pure.

use std::time::Duration;

use windlass_amqp::{AmqpError, BODY_BYTES_MAX, DEPTH_MAX, Message, Storage, Taken, VALUES_MAX};
use windlass_wire::celery::undelayed_routing_key;
use windlass_wire::{Frame, Malformed, Properties};

use super::Outgoing;
use crate::carrier::Content;

/// A message that survives a restart of the broker.
const PERSISTENT: u8 = 2;
/// One that does not.
pub(super) const TRANSIENT: u8 = 1;

/// What a delivered message is.
pub(super) fn content(taken: Taken) -> Content {
    let trouble = if taken.is_too_large() {
        Some(Malformed::TooLarge { part: "the body", size: taken.body_bytes, max: BODY_BYTES_MAX })
    } else if taken.headers_are_cut {
        let reason = format!("it has more than {VALUES_MAX} values, or they lie more than {DEPTH_MAX} deep");
        Some(Malformed::Damaged { part: "the table of headers", reason })
    } else {
        None
    };
    let frame = Box::new(frame(taken));
    match trouble {
        Some(malformed) => Content::Unreadable(frame, malformed),
        None => Content::Frame(frame),
    }
}

/// The frame of a delivered message, without the delay in front of its routing key.
fn frame(taken: Taken) -> Frame {
    let Taken { exchange, routing_key, redelivered, properties, body, .. } = taken;
    Frame {
        headers: properties.headers,
        properties: Properties {
            content_type: properties.content_type,
            content_encoding: properties.content_encoding,
            correlation_id: properties.correlation_id,
            reply_to: properties.reply_to,
            delivery_mode: Some(match properties.storage {
                Storage::Persistent => PERSISTENT,
                Storage::Transient => TRANSIENT,
            }),
            priority: properties.priority.map(i64::from),
            expiration: properties.expiration.map(|expiration| expiration.as_millis().to_string()),
            message_id: properties.message_id,
            // A number of the channel: it says nothing of the message.
            delivery_tag: None,
            exchange,
            routing_key: undelayed_routing_key(&routing_key).to_owned(),
            redelivered,
        },
        body,
    }
}

/// A message as it is published.
///
/// # Errors
/// [`AmqpError::Refused`] when its expiration is not a number of milliseconds.
pub(super) fn message(outgoing: Outgoing) -> Result<Message, AmqpError> {
    let Outgoing { exchange, routing_key, unrouted, frame: Frame { headers, properties, body } } = outgoing;
    let expiration = properties.expiration.as_deref().map(milliseconds).transpose()?;
    let storage = if properties.delivery_mode == Some(TRANSIENT) { Storage::Transient } else { Storage::Persistent };
    // Out of range it would be none: the nearest is what was meant.
    let priority = properties.priority.map(|priority| priority.clamp(0, i64::from(u8::MAX)) as u8);
    let properties = windlass_amqp::Properties {
        content_type: properties.content_type,
        content_encoding: properties.content_encoding,
        headers,
        storage,
        priority,
        correlation_id: properties.correlation_id,
        reply_to: properties.reply_to,
        expiration,
        message_id: properties.message_id,
        ..windlass_amqp::Properties::default()
    };
    Ok(Message { exchange, routing_key, body, properties, unrouted })
}

fn milliseconds(text: &str) -> Result<Duration, AmqpError> {
    let millis = text.parse().map_err(|_| {
        AmqpError::Refused("its expiration is not a number of milliseconds, which is what the broker reads".to_owned())
    })?;
    Ok(Duration::from_millis(millis))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use windlass_amqp::Tag;
    use windlass_wire::celery::delayed_routing_key;

    use super::*;

    /// What a broker delivers of what was published.
    fn delivered(message: Message) -> Taken {
        Taken {
            tag: Tag::default(),
            queue: "q".into(),
            exchange: message.exchange,
            routing_key: message.routing_key,
            redelivered: false,
            properties: message.properties,
            headers_are_cut: false,
            body_bytes: message.body.len(),
            body: message.body,
        }
    }

    fn full() -> Frame {
        let text = |text: &str| Some(text.to_owned());
        Frame {
            headers: json!({"task": "сложить", "retries": 0}).as_object().cloned().unwrap_or_default(),
            properties: Properties {
                content_type: text("application/json"),
                content_encoding: text("utf-8"),
                correlation_id: text("id"),
                reply_to: text("answers"),
                delivery_mode: Some(TRANSIENT),
                priority: Some(9),
                expiration: text("1500"),
                message_id: text("m"),
                delivery_tag: None,
                exchange: String::new(),
                routing_key: "q".to_owned(),
                redelivered: false,
            },
            body: b"[[1], {}, {}]".to_vec(),
        }
    }

    #[test]
    fn a_frame_comes_back_as_it_was() {
        let persistent = Frame {
            properties: Properties {
                delivery_mode: Some(PERSISTENT),
                routing_key: "q".to_owned(),
                ..Properties::default()
            },
            ..Frame::default()
        };
        for sent in [full(), persistent] {
            let message = message(Outgoing::to_queue("q", sent.clone())).expect("it can be written");
            assert_eq!(frame(delivered(message)), sent);
        }
    }

    #[test]
    fn what_must_not_be_lost_is_persistent_and_an_answer_is_not() {
        let storage_of = |outgoing| message(outgoing).expect("it can be written").properties.storage;
        assert_eq!(storage_of(Outgoing::to_queue("q", Frame::default())), Storage::Persistent);
        assert_eq!(storage_of(Outgoing::answer("q", Frame::default())), Storage::Transient);
    }

    #[test]
    fn a_priority_out_of_range_is_the_nearest_and_an_expiration_that_is_no_number_is_refused() {
        let with = |priority, expiration: &str| {
            let properties = Properties {
                priority: Some(priority),
                expiration: Some(expiration.to_owned()),
                ..Properties::default()
            };
            message(Outgoing::to_queue("q", Frame { properties, ..Frame::default() }))
        };
        for (priority, sent) in [(-1, 0), (255, 255), (256, 255), (i64::MAX, 255)] {
            assert_eq!(with(priority, "0").expect("it can be written").properties.priority, Some(sent));
        }
        for wrong in ["", "soon", "-1", "1.5"] {
            let error = with(0, wrong).expect_err(wrong);
            assert!(error.to_string().contains("expiration") && !error.is_transient(), "{error}");
        }
    }

    #[test]
    fn the_delay_in_front_of_a_routing_key_is_taken_off() {
        let mut taken = delivered(message(Outgoing::to_queue("q", Frame::default())).expect("it can be written"));
        taken.routing_key = delayed_routing_key(5, "interop.q");
        assert_eq!(frame(taken).properties.routing_key, "interop.q");
    }

    #[test]
    fn what_was_cut_says_why_and_keeps_what_it_is_known_by() {
        let sent = message(Outgoing::to_queue("q", full())).expect("it can be written");
        let too_large = Taken { body_bytes: BODY_BYTES_MAX + 1, ..delivered(sent.clone()) };
        let too_many = Taken { headers_are_cut: true, ..delivered(sent) };
        for (taken, part) in [(too_large, "the body takes 16777217 bytes"), (too_many, "4096 values")] {
            let Content::Unreadable(frame, malformed) = content(taken) else { panic!("it can be read") };
            assert!(malformed.to_string().contains(part), "{malformed}");
            assert_eq!(*frame, full());
        }
    }
}
