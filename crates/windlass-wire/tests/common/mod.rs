//! The recorded frames.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use windlass_wire::{Frame, Properties, kombu};

/// One recorded file.
pub(crate) struct Vector {
    /// Its name without the extension: `msg-redis-chain`.
    pub(crate) name: String,
    /// What was recorded.
    pub(crate) data: Value,
}

/// The recorded files of a folder whose name begins with `prefix`, in the order of their names.
pub(crate) fn vectors(folder: &str, prefix: &str) -> Vec<Vector> {
    let root: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "vectors", folder].iter().collect();
    let mut vectors: Vec<Vector> = fs::read_dir(&root)
        .expect("the recorded frames are there")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "json"))
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into_owned(), path))
        .filter(|(name, _)| name.starts_with(prefix))
        .map(|(name, path)| Vector { name, data: serde_json::from_slice(&fs::read(path).unwrap()).unwrap() })
        .collect();
    vectors.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(!vectors.is_empty(), "no recorded frames {folder}/{prefix}*");
    vectors
}

/// One recorded file by its name.
pub(crate) fn vector(folder: &str, name: &str) -> Value {
    vectors(folder, name).into_iter().find(|vector| vector.name == name).expect(name).data
}

/// Recorded bytes: text, or base64 of what is no text.
pub(crate) fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        value => STANDARD.decode(value["b64"].as_str().expect("text or base64")).unwrap(),
    }
}

/// A frame of AMQP as it was recorded: `{"properties", "headers", "body"}`, headers perhaps inside of the properties.
pub(crate) fn amqp_frame(recorded: &Value, exchange: &str, routing_key: &str) -> Frame {
    let properties = &recorded["properties"];
    let text = |name: &str| properties[name].as_str().map(ToOwned::to_owned);
    let headers = recorded["headers"].as_object().or(properties["headers"].as_object());
    Frame {
        headers: headers.cloned().unwrap_or_default(),
        properties: Properties {
            content_type: text("content_type"),
            content_encoding: text("content_encoding"),
            correlation_id: text("correlation_id"),
            reply_to: text("reply_to"),
            delivery_mode: properties["delivery_mode"].as_u64().map(|mode| mode as u8),
            priority: properties["priority"].as_i64(),
            expiration: text("expiration"),
            message_id: text("message_id"),
            delivery_tag: None,
            exchange: exchange.to_owned(),
            routing_key: routing_key.to_owned(),
            redelivered: false,
        },
        body: bytes(&recorded["body"]),
    }
}

/// The frame of one entry of `messages`.
pub(crate) fn message_frame(message: &Value) -> Frame {
    match message.get("list_item") {
        Some(item) => kombu::decode(&bytes(item)).expect("a recorded element"),
        None => amqp_frame(message, message["exchange"].as_str().unwrap(), message["routing_key"].as_str().unwrap()),
    }
}

/// The frames that a recording of AMQP published or delivered: a method frame is followed by its content on the same
/// channel.
pub(crate) fn amqp_frames(recorded: &Value) -> Vec<Frame> {
    let mut address = Map::new();
    let mut frames = Vec::new();
    for entry in recorded.as_array().expect("a list of frames") {
        let on = format!("{}/{}/{}", entry["conn"], entry["ch"], entry["dir"]);
        if matches!(entry["method"].as_str(), Some("Basic.Publish" | "Basic.Deliver")) {
            address.insert(on, entry["args"].clone());
        } else if let Some(content) = entry.get("content")
            && let Some(args) = address.get(&on)
        {
            frames.push(amqp_frame(content, args["exchange"].as_str().unwrap(), args["routing_key"].as_str().unwrap()));
        }
    }
    frames
}

/// The same JSON with every number, object and array in one form: what two frames are compared by.
pub(crate) fn parsed(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

/// The element without what is different at every recording.
pub(crate) fn masked(mut value: Value, members: &[&str]) -> Value {
    mask(&mut value, members);
    value
}

fn mask(value: &mut Value, members: &[&str]) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                if members.contains(&name.as_str()) { *value = Value::from("*") } else { mask(value, members) }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| mask(value, members)),
        _ => {}
    }
}
