//! Frames as messages of RabbitMQ, and what became of them.

use std::time::Duration;

use windlass_amqp::{Message, Properties, Published, Storage, Unrouted};
use windlass_wire::Frame;

/// The mode of delivery of a message that does not survive a restart of the broker.
const TRANSIENT: u8 = 1;

/// A frame as a message. A priority beyond 0 to 255 counts as the nearest of them.
pub(crate) fn message(frame: Frame) -> Message {
    let Frame { headers, properties, body } = frame;
    let storage = if properties.delivery_mode == Some(TRANSIENT) { Storage::Transient } else { Storage::Persistent };
    let millis = properties.expiration.as_deref().and_then(|text| text.parse().ok());
    Message {
        exchange: properties.exchange,
        routing_key: properties.routing_key,
        body,
        properties: Properties {
            content_type: properties.content_type,
            content_encoding: properties.content_encoding,
            headers,
            storage,
            priority: properties.priority.map(|priority| priority.clamp(0, 255) as u8),
            correlation_id: properties.correlation_id,
            reply_to: properties.reply_to,
            expiration: millis.map(Duration::from_millis),
            message_id: properties.message_id,
            ..Properties::default()
        },
        unrouted: Unrouted::Report,
    }
}

/// Whether the broker has all of them; else what became of the first one that it does not have.
pub(crate) fn all_confirmed(published: &[Published]) -> Result<(), String> {
    let reason = published.iter().find_map(|published| match published {
        Published::Confirmed => None,
        Published::Unroutable(said) => Some(format!("no queue takes it: {said}")),
        Published::Refused(error) => Some(format!("it is refused: {error}")),
        Published::Unknown(error) => Some(format!("the connection ended before it was confirmed: {error}")),
        Published::NotSent(error) => Some(format!("it was not sent: {error}")),
    });
    reason.map_or(Ok(()), Err)
}
