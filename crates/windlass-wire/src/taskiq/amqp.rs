//! Messages on AMQP, as taskiq-aio-pika sends them.

use std::time::Duration;

use serde_json::{Map, Value};

use super::label::Label;
use super::message::Message;
use crate::frame::{Frame, Properties};

/// How a delayed message is held back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delay<'d> {
    /// In a queue whose dead letters are the task queue's messages: through the default exchange.
    Queue(&'d str),
    /// By the plugin for delayed messages: through this exchange.
    Plugin(&'d str),
}

/// Where messages go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route<'r> {
    /// The exchange, `taskiq` by default.
    pub exchange: &'r str,
    /// The routing key: the name of the queue, `taskiq` by default.
    pub routing_key: &'r str,
    /// How a message with the label `delay` is held back; without a way it is sent at once.
    pub delay: Option<Delay<'r>>,
    /// An id of the message, not of the task.
    pub message_id: &'r str,
}

/// The frame of a message: the headers repeat the id, the name and every label as text.
pub fn amqp_frame(message: &Message, route: &Route<'_>) -> Frame {
    let mut headers: Map<String, Value> =
        message.labels.0.iter().map(|(name, label)| (name.clone(), Value::from(label.text()))).collect();
    headers.insert("task_id".to_owned(), Value::from(message.task_id.as_str()));
    headers.insert("task_name".to_owned(), Value::from(message.task_name.as_str()));
    let priority = message.labels.0.get("priority").map(Label::text).and_then(|text| text.parse().ok());
    let mut properties = Properties {
        delivery_mode: Some(2),
        priority: Some(priority.unwrap_or(0)),
        message_id: Some(route.message_id.to_owned()),
        exchange: route.exchange.to_owned(),
        routing_key: route.routing_key.to_owned(),
        ..Properties::default()
    };
    let delay = message.labels.delay().filter(|delay| *delay > Duration::ZERO);
    match (delay, route.delay) {
        (Some(delay), Some(Delay::Queue(queue))) => {
            properties.expiration = Some(delay.as_millis().min(u128::from(u32::MAX)).to_string());
            properties.exchange = String::new();
            queue.clone_into(&mut properties.routing_key);
        }
        (Some(delay), Some(Delay::Plugin(exchange))) => {
            let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
            headers.insert("x-delay".to_owned(), Value::from(millis));
            exchange.clone_into(&mut properties.exchange);
        }
        (None, _) | (_, None) => {}
    }
    Frame { headers, properties, body: message.encode().into_bytes() }
}
