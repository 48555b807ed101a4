//! What real programs have sent, as it was recorded.

use std::collections::BTreeMap;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use windlass_amqp::{Binding, Exchange, ExchangeBinding, Lasting, Queue, Topology};
use windlass_wire::{Frame, Properties};

fn folder(of: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "windlass-wire", "tests", "vectors", of].iter().collect()
}

/// One recording.
pub(crate) fn recording(of: &str, name: &str) -> Value {
    let path = folder(of).join(name).with_extension("json");
    serde_json::from_slice(&std::fs::read(path).expect(name)).expect("JSON")
}

/// Every message that a Celery client published to RabbitMQ, by the name of its recording.
pub(crate) fn messages() -> BTreeMap<String, Frame> {
    let files =
        std::fs::read_dir(folder("celery")).expect("the recordings are there").map(|file| file.expect("a file").path());
    let names = files.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()));
    let mut messages = BTreeMap::new();
    for name in names.filter(|name| name.starts_with("msg-amqp-")) {
        let recording = recording("celery", &name);
        for (number, message) in recording["messages"].as_array().expect("messages").iter().enumerate() {
            messages.insert(format!("{name} {number}"), frame(message));
        }
    }
    assert!(messages.len() > 30, "{} recorded messages", messages.len());
    messages
}

fn frame(message: &Value) -> Frame {
    let properties = &message["properties"];
    let text = |name: &str| properties[name].as_str().map(ToOwned::to_owned);
    let body = match &message["body"] {
        Value::String(text) => text.clone().into_bytes(),
        bytes => STANDARD.decode(bytes["b64"].as_str().expect("text or base64")).expect("base64"),
    };
    Frame {
        headers: message["headers"].as_object().cloned().unwrap_or_default(),
        properties: Properties {
            content_type: text("content_type"),
            content_encoding: text("content_encoding"),
            correlation_id: text("correlation_id"),
            reply_to: text("reply_to"),
            delivery_mode: properties["delivery_mode"].as_u64().map(|mode| mode as u8),
            priority: properties["priority"].as_i64(),
            expiration: text("expiration"),
            message_id: text("message_id"),
            ..Properties::default()
        },
        body,
    }
}

/// What a program declared, without what is not for tasks: queues of control messages and events.
pub(crate) fn declared(frames: &Value) -> Topology {
    let mut topology = Topology::default();
    for frame in frames.as_array().expect("a list of frames") {
        let args = &frame["args"];
        let text = |name: &str| args[name].as_str().unwrap_or_default().to_owned();
        if ["exchange", "queue"].iter().any(|name| text(name).contains("pidbox") || text(name).starts_with("celeryev"))
        {
            continue;
        }
        let lasting = if args["durable"] == true { Lasting::Durable } else { Lasting::Transient };
        let arguments: Map<String, Value> = args["arguments"].as_object().cloned().unwrap_or_default();
        match frame["method"].as_str().unwrap_or_default() {
            "Exchange.Declare" => {
                let (name, kind) = (text("exchange"), text("exchange_type"));
                topology.join(&Topology {
                    exchanges: vec![Exchange { name, kind, lasting, arguments }],
                    ..Topology::default()
                });
            }
            "Queue.Declare" => {
                let queue = Queue { name: text("queue"), lasting, arguments };
                topology.join(&Topology { queues: vec![queue], ..Topology::default() });
            }
            "Queue.Bind" => {
                topology.bindings.push(Binding::new(&text("queue"), &text("exchange"), &text("routing_key")));
            }
            "Exchange.Bind" => {
                let binding = ExchangeBinding::new(&text("source"), &text("destination"), &text("routing_key"));
                topology.exchange_bindings.push(binding);
            }
            _ => {}
        }
    }
    topology
}
