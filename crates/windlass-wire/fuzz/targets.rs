//! One function for each decoder: it takes any bytes, and what it reads it must be able to write and read again.
//!
//! The test `tests/fuzz.rs` and the targets for libFuzzer share this file.

use jiff::tz::TimeZone;
use serde_json::{Map, Value};
use windlass_core::{Json, QueueName, TaskName, Timestamp};
use windlass_wire::celery::control::{self, Command};
use windlass_wire::celery::follow::{self, Publisher};
use windlass_wire::celery::{
    Broker, ChordPart, Event, Message, Reading, Request, ResultDocument, Sending, parse_time, undelayed_routing_key,
};
use windlass_wire::taskiq::schedule::ScheduledTask;
use windlass_wire::taskiq::{self, Progress, Serializer, TaskResult, pickle};
use windlass_wire::{Frame, Properties, kombu, raw};

/// One decoder: it panics when something is wrong.
pub(crate) type Target = fn(&[u8]);

/// Every decoder by its name.
pub(crate) const TARGETS: [(&str, Target); 12] = [
    ("kombu_element", kombu_element),
    ("kombu_restored", kombu_restored),
    ("celery_message", celery_message),
    ("celery_request", celery_request),
    ("celery_result", celery_result),
    ("celery_event", celery_event),
    ("celery_control", celery_control),
    ("taskiq_message", taskiq_message),
    ("taskiq_result", taskiq_result),
    ("taskiq_schedule", taskiq_schedule),
    ("pickle_data", pickle_data),
    ("raw_json", raw_json),
];

/// An element of a Redis list, and the task in it.
pub(crate) fn kombu_element(bytes: &[u8]) {
    let reading = Reading::default();
    let in_two_steps = kombu::decode(bytes).and_then(|frame| Message::decode(&frame, &reading));
    assert_eq!(Message::of_element(bytes, &reading), in_two_steps, "at once");
    let Ok(frame) = kombu::decode(bytes) else { return };
    let again = kombu::decode(kombu::encode(&frame).as_bytes()).expect("what was written is read");
    assert_eq!(again.body, frame.body);
    task(&frame);
}

/// An entry of the hash of unacknowledged deliveries.
pub(crate) fn kombu_restored(bytes: &[u8]) {
    if let Ok(restored) = kombu::restored(bytes) {
        let entry = kombu::unacked_entry(&restored.element, &restored.exchange, &restored.routing_key);
        assert_eq!(kombu::restored(entry.as_bytes()).as_ref(), Ok(&restored));
    }
}

/// A frame of AMQP: the first line is the headers as JSON, the rest is the body.
pub(crate) fn celery_message(bytes: &[u8]) {
    let mut parts = bytes.splitn(2, |byte| *byte == b'\n');
    let (Some(headers), Some(body)) = (parts.next(), parts.next()) else { return };
    let headers: Map<String, Value> = serde_json::from_slice(headers).unwrap_or_default();
    let text = |name: &str| headers.get(name).and_then(Value::as_str).map(ToOwned::to_owned);
    let properties = Properties {
        content_type: text("content_type"),
        content_encoding: text("content_encoding"),
        ..Properties::default()
    };
    task(&Frame { headers, properties, body: body.to_vec() });
}

fn task(frame: &Frame) {
    let Ok(message) = Message::decode(frame, &Reading::default()) else { return };
    let sending = Sending { exchange: "", routing_key: "q", delivery_tag: Some("t"), now: Timestamp::from_secs(0) };
    let again = message.clone().frame(&sending);
    if let Ok(again) = Message::decode(&again, &Reading::default()) {
        assert_eq!(again.request.id, message.request.id);
    }
    let Ok(mut envelope) = message.envelope(Broker::Redis, QueueName::known("q")) else { return };
    if message.request.attach(&mut envelope).is_ok()
        && let Ok(request) = Request::of(&envelope)
    {
        assert_eq!(request.map(|request| request.id), Some(message.request.id.clone()));
    }
    follow_all(&message.request);
}

/// What follows a task whatever its canvas says.
fn follow_all(request: &Request) {
    let mut count = 0_u32;
    let mut new_id = || {
        count += 1;
        format!("id-{count}")
    };
    let mut publisher = Publisher { new_id: &mut new_id, now: Timestamp::from_secs(0), origin: "gen1@host" };
    let _ = follow::success(request, &Json::trusted("[1]"), &mut publisher);
    let _ = follow::failure(request, &mut publisher);
    if let Some(body) = &request.canvas.chord {
        let _ = follow::chord_body(body, &[Json::trusted("1")], request, &mut publisher);
        let _ = follow::chord_failure(body, request, &mut publisher);
    }
}

/// A request as it travels in an envelope; times and routing keys.
pub(crate) fn celery_request(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = parse_time("time", text, &TimeZone::UTC);
    let _ = undelayed_routing_key(text);
    if let Ok(request) = Request::from_text(text) {
        let again = Request::from_text(&request.to_text()).expect("what was written is read");
        assert_eq!(again.id, request.id);
        follow_all(&request);
    }
}

/// A result document and a part of a chord.
pub(crate) fn celery_result(bytes: &[u8]) {
    if let Ok(document) = ResultDocument::decode(bytes) {
        let again = ResultDocument::decode(document.encode().as_bytes()).expect("what was written is read");
        assert_eq!(again.status, document.status);
        let _ = document.exception().map(|exception| exception.to_string());
        let _ = ChordPart::of(&document).encode();
    }
    if let Ok(part) = ChordPart::decode(bytes) {
        assert_eq!(ChordPart::decode(part.encode().as_bytes()).map(|part| part.task_id), Ok(part.task_id));
    }
}

/// Events, one or many.
pub(crate) fn celery_event(bytes: &[u8]) {
    let Ok(events) = Event::decode(bytes) else { return };
    let again = Event::decode(&Event::batch(&events, "node", None).body).expect("what was written is read");
    assert_eq!(again.len(), events.len());
    for event in &events {
        let _ = (event.kind.task(), event.frame(None));
    }
}

/// A control request and an answer.
pub(crate) fn celery_control(bytes: &[u8]) {
    let frame = Frame { body: bytes.to_vec(), ..Frame::default() };
    if let Ok(request) = control::Request::decode(&frame) {
        let _ = request.is_for("w1@host");
        let _ = request.reply("w1@host", &control::answer::pong(), 1, None);
        let again = control::Request::decode(&request.frame(None)).expect("what was written is read");
        if !matches!(request.command, Command::Invalid { .. }) {
            assert_eq!(again.command.method(), request.command.method());
        }
    }
    let _ = control::Reply::decode(&frame);
}

/// A message with labels.
pub(crate) fn taskiq_message(bytes: &[u8]) {
    let Ok(message) = taskiq::Message::decode(bytes) else { return };
    let again = taskiq::Message::decode(message.encode().as_bytes()).expect("what was written is read");
    assert_eq!(again.task_id, message.task_id);
    let Ok(envelope) = message.envelope(Broker::Amqp, QueueName::known("q")) else { return };
    let labels = taskiq::Labels::of(&envelope).expect("what was attached is read").expect("it is there");
    assert_eq!(labels.0.len(), message.labels.0.len());
    let _ = (message.retry().encode(), labels.timeout(), labels.delay());
}

/// A result and a progress, in JSON and as a pickle.
pub(crate) fn taskiq_result(bytes: &[u8]) {
    for serializer in [Serializer::Json, Serializer::Pickle] {
        if let Ok(result) = TaskResult::decode(bytes, serializer) {
            let again = TaskResult::decode(&result.encode(serializer), serializer).expect("what was written is read");
            assert_eq!(again.error.is_some(), result.error.is_some());
        }
        if let Ok(progress) = Progress::decode(bytes, serializer) {
            let again = Progress::decode(&progress.encode(serializer), serializer).expect("what was written is read");
            assert_eq!(again.state, progress.state);
        }
    }
}

/// A schedule, in JSON and as a pickle.
pub(crate) fn taskiq_schedule(bytes: &[u8]) {
    for serializer in [Serializer::Json, Serializer::Pickle] {
        if let Ok(schedule) = ScheduledTask::decode(bytes, serializer) {
            let again =
                ScheduledTask::decode(&schedule.encode(serializer), serializer).expect("what was written is read");
            assert_eq!(again.schedule_id, schedule.schedule_id);
            let _ = (schedule.specs(Timestamp::from_secs(0)), schedule.message("id").encode());
        }
    }
}

/// A pickle.
pub(crate) fn pickle_data(bytes: &[u8]) {
    if let Ok(json) = pickle::decode(bytes) {
        Json::parse(json.as_str()).expect("a pickle becomes JSON");
        pickle::decode(&pickle::encode(&json)).expect("what was written is read");
    }
}

/// Bare JSON in each shape.
pub(crate) fn raw_json(bytes: &[u8]) {
    let task = TaskName::known("task");
    for shape in [
        raw::Shape::Described,
        raw::Shape::Arguments { task: task.clone(), id: None },
        raw::Shape::Whole { task, argument: "message".to_owned(), id: Some("id".to_owned()) },
    ] {
        if let Ok(envelope) = raw::decode(bytes, &shape, QueueName::known("q")) {
            let again = raw::decode(raw::encode(&envelope).as_bytes(), &raw::Shape::Described, QueueName::known("q"));
            assert_eq!(again.map(|again| again.id), Ok(envelope.id));
        }
    }
}
