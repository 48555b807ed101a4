//! Every recorded task message is read as the task that it asks for, and written as an equivalent frame.

mod common;

use std::time::Duration;

use common::{Vector, amqp_frames, bytes, message_frame, parsed, vector, vectors};
use serde_json::{Value, json};
use windlass_core::envelope::ORIGIN_BYTES_MAX;
use windlass_core::{Due, QueueName, Timestamp};
use windlass_wire::celery::{Broker, Message, Protocol, Reading, Request, Sending, Signature, TimeLimit};
use windlass_wire::{Frame, Malformed, kombu};

/// Messages that are not JSON.
const REFUSED: &str = "pickle-body";

fn messages() -> Vec<(String, Broker, Frame)> {
    let mut all = Vec::new();
    for Vector { name, data } in vectors("celery", "msg-") {
        let broker = if name.contains("redis") { Broker::Redis } else { Broker::Amqp };
        for message in data["messages"].as_array().unwrap() {
            all.push((name.clone(), broker, message_frame(message)));
        }
    }
    all.push(("beat-message".to_owned(), Broker::Redis, message_frame(&vector("celery", "beat-message"))));
    all
}

fn decode(frame: &Frame) -> Message {
    Message::decode(frame, &Reading::default()).unwrap()
}

fn message(name: &str) -> Message {
    decode(&message_frame(&vector("celery", name)["messages"][0]))
}

/// Headers and properties whose absence means `null` or a default.
fn with_defaults(headers: &Value) -> Value {
    let mut headers = headers.clone();
    headers.as_object_mut().unwrap().remove("compression");
    for time in ["eta", "expires"] {
        if let Some(text) = headers[time].as_str() {
            let at = windlass_wire::celery::parse_time("time", text, &jiff::tz::TimeZone::UTC).unwrap();
            headers[time] = json!(at.to_string());
        }
    }
    headers
}

/// An empty list of signatures is `null` or `[]`.
fn body(bytes: &[u8]) -> Value {
    let mut body = parsed(bytes);
    if body[2]["chain"] == json!([]) {
        body[2]["chain"] = Value::Null;
    }
    body
}

#[test]
fn every_message_is_written_as_an_equivalent_frame() {
    let mut count = 0;
    for (name, _, frame) in messages() {
        if name.ends_with(REFUSED) {
            continue;
        }
        let message = decode(&frame);
        let sending = Sending {
            exchange: &frame.properties.exchange,
            routing_key: &frame.properties.routing_key,
            delivery_tag: frame.properties.delivery_tag.as_deref(),
            now: Timestamp::from_secs(1_795_000_000),
        };
        let again = message.frame(&sending);
        if message.request.protocol == Protocol::One {
            assert_eq!(decode(&again).args, message.args, "{name}");
            continue;
        }
        assert_eq!(with_defaults(&json!(again.headers)), with_defaults(&json!(frame.headers)), "{name}");
        let properties =
            windlass_wire::Properties { expiration: frame.properties.expiration.clone(), ..again.properties.clone() };
        assert_eq!(properties, frame.properties, "{name}");
        assert_eq!(again.properties.expiration.is_some(), frame.properties.expiration.is_some(), "{name}");
        if !name.ends_with("zlib") {
            assert_eq!(body(&again.body), body(&frame.body), "{name}");
            if message.request.canvas.is_empty() {
                let (ours, theirs) = (String::from_utf8(again.body), String::from_utf8(frame.body));
                assert_eq!(ours.unwrap(), theirs.unwrap(), "{name}: byte for byte");
            }
        }
        count += 1;
    }
    assert!(count >= 80, "{count} messages");
}

#[test]
fn every_element_of_a_list_is_written_as_it_was_read() {
    for Vector { name, data } in vectors("celery", "msg-redis-") {
        for message in data["messages"].as_array().unwrap() {
            let element = bytes(&message["list_item"]);
            let again = kombu::encode(&kombu::decode(&element).unwrap());
            assert_eq!(parsed(again.as_bytes()), parsed(&element), "{name}");
            let list = message["redis_list"].as_str().unwrap();
            let frame = kombu::decode(&element).unwrap();
            let priority = frame.properties.priority.unwrap();
            assert_eq!(kombu::list(&frame.properties.routing_key, priority), list, "{name}");
        }
    }
}

#[test]
fn every_message_becomes_the_task_that_it_asks_for() {
    for (name, broker, frame) in messages() {
        if name.ends_with(REFUSED) {
            continue;
        }
        let message = decode(&frame);
        let envelope = message.envelope(broker, QueueName::known("q")).unwrap();
        let request = &message.request;
        assert_eq!(envelope.id.to_string(), request.id, "{name}");
        assert_eq!(envelope.name.as_str(), request.task, "{name}");
        assert_eq!(envelope.retries, None, "{name}: runs that were are no limit of runs");
        assert_eq!(envelope.due, request.eta.map_or(Due::Now, Due::At), "{name}");
        assert_eq!(envelope.expires, request.expires, "{name}");
        let wire = frame.properties.priority.unwrap_or(0);
        assert_eq!(broker.wire_priority(envelope.priority), wire.clamp(0, 9), "{name}");
    }
}

#[test]
fn every_request_travels_in_a_header_and_comes_back_as_it_was() {
    for (name, broker, frame) in messages() {
        if name.ends_with(REFUSED) {
            continue;
        }
        let message = decode(&frame);
        let mut envelope = message.envelope(broker, QueueName::known("q")).unwrap();
        message.request.attach(&mut envelope).unwrap();
        let stored = envelope.to_body();
        let envelope = windlass_core::Envelope::from_body(
            envelope.id.clone(),
            envelope.name.clone(),
            envelope.queue.clone(),
            envelope.priority,
            &stored,
        )
        .unwrap();
        assert_eq!(Request::of(&envelope).unwrap().as_ref(), Some(&message.request), "{name}");
    }
}

/// The text of a request as older versions wrote it: every member, whatever its value.
fn text_of_an_older_version(message: &Message) -> String {
    let request = &message.request;
    let sending = Sending { exchange: "", routing_key: "", delivery_tag: None, now: Timestamp::from_secs(0) };
    let frame = message.frame(&sending);
    let protocol = if request.protocol == Protocol::One { 1 } else { 2 };
    let headers = json!(frame.headers);
    let properties = json!({
        "correlation_id": request.correlation_id,
        "reply_to": request.reply_to,
        "delivery_mode": request.delivery_mode,
        "priority": request.priority,
        "exchange": request.exchange,
        "routing_key": request.routing_key,
        "redelivered": request.redelivered,
        "delivery_tag": request.delivery_tag,
    });
    let body: Vec<windlass_core::Json> = serde_json::from_slice(&frame.body).unwrap();
    let embed = if request.canvas.is_empty() { "null" } else { body[2].as_str() };
    format!(
        r#"{{"wire":"celery","v":1,"protocol":{protocol},"headers":{headers},"properties":{properties},"embed":{embed}}}"#
    )
}

/// Adds members that are not there.
fn complete(object: &mut Value, defaults: &Value) {
    let object = object.as_object_mut().unwrap();
    for (name, value) in defaults.as_object().unwrap() {
        object.entry(name).or_insert_with(|| value.clone());
    }
}

fn every_readable_message() -> impl Iterator<Item = (String, Message)> {
    let readable = messages().into_iter().filter(|(name, ..)| !name.ends_with(REFUSED));
    let mut messages: Vec<_> = readable.map(|(name, _, frame)| (name, decode(&frame))).collect();
    // None of the recorded ones has all of it.
    let (_, mut full) = messages[0].clone();
    let request = &mut full.request;
    (request.retries, request.replaced_task_nesting, request.priority, request.delivery_mode) = (3, 2, 5, 1);
    (request.parent_id, request.group, request.shadow) = (Some("p".into()), Some("g".into()), Some(String::new()));
    (request.root_id, request.origin, request.correlation_id) = (None, None, None);
    (request.group_index, request.ignore_result, request.redelivered) = (Some(-1), Some(false), true);
    (request.eta, request.expires) = (Some(Timestamp::from_micros(1)), Some(Timestamp::from_secs(7)));
    request.timelimit = TimeLimit { hard: Some(Duration::from_millis(1500)), soft: None };
    (request.stamped_headers, request.exchange) = (Some(Vec::new()), "\u{43f} \"x\"".into());
    request.extra.insert("x-null".to_owned(), Value::Null);
    messages.push(("with everything".to_owned(), full));
    messages.into_iter()
}

#[test]
fn a_request_that_an_older_version_wrote_is_still_read() {
    for (name, message) in every_readable_message() {
        let text = text_of_an_older_version(&message);
        assert_eq!(Request::from_text(&text).as_ref(), Ok(&message.request), "{name}");
    }
}

#[test]
fn a_written_request_lacks_only_what_older_versions_read_as_its_default() {
    let headers = json!({
        "lang": "py", "shadow": null, "eta": null, "expires": null, "group": null, "group_index": null, "retries": 0,
        "timelimit": [null, null], "root_id": null, "parent_id": null, "argsrepr": "", "kwargsrepr": "", "origin": null,
        "ignore_result": null, "replaced_task_nesting": 0, "stamped_headers": null, "stamps": {},
    });
    let properties = json!({
        "correlation_id": null, "reply_to": null, "delivery_mode": 2, "priority": 0, "exchange": "", "routing_key": "",
        "redelivered": false, "delivery_tag": null,
    });
    let embed = json!({"callbacks": null, "errbacks": null, "chain": null, "chord": null});
    for (name, message) in every_readable_message() {
        let mut text = parsed(message.request.to_text().as_bytes());
        complete(&mut text, &json!({"embed": null}));
        complete(&mut text["headers"], &headers);
        complete(&mut text["properties"], &properties);
        if !text["embed"].is_null() {
            complete(&mut text["embed"], &embed);
        }
        assert_eq!(text, parsed(text_of_an_older_version(&message).as_bytes()), "{name}");
    }
}

#[test]
fn a_request_without_options_is_written_and_read_in_its_shortest_form() {
    let mut request = Request::new("", "7");
    (request.root_id, request.correlation_id) = (None, None);
    let text = request.to_text();
    assert_eq!(text, r#"{"wire":"celery","v":1,"protocol":2,"headers":{"task":"","id":"7"},"properties":{}}"#);
    assert_eq!(Request::from_text(&text), Ok(request));
}

#[test]
fn a_header_of_the_caller_never_replaces_one_of_celery() {
    let mut request = Request::new("add", "7");
    for name in ["task", "eta", "lang", "x"] {
        request.extra.insert(name.to_owned(), json!("stranger"));
    }
    let read = Request::from_text(&request.to_text()).unwrap();
    assert_eq!((read.task.as_str(), read.eta), ("add", None));
    assert_eq!(read.extra.into_iter().collect::<Vec<_>>(), [("x".to_owned(), json!("stranger"))]);
}

#[test]
fn of_members_with_the_same_name_the_last_one_counts() {
    let text = r#"{"wire": "celery", "v": 1, "protocol": 2,
        "headers": {"task": "a", "id": "1", "task": "b", "x": 1, "x": 2, "t\u0061sk": "c"},
        "properties": {"priority": 1, "priority": 3, "reply_to": "q", "reply_to": 5},
        "embed": {"chain": 5, "chain": null, "later": 1}}"#;
    let request = Request::from_text(text).unwrap();
    assert_eq!((request.task.as_str(), &request.extra["x"]), ("c", &json!(2)));
    assert_eq!((request.priority, request.reply_to), (3, None), "the wrong type counts as absent");
    assert!(request.canvas.is_empty());
}

#[test]
fn the_origin_of_another_wire_is_none_of_celery_whatever_its_members_are() {
    let envelope = message("msg-redis-delay-args").envelope(Broker::Redis, QueueName::known("q")).unwrap();
    let of = |origin: &str| {
        let origin = Some(windlass_core::Json::parse(origin).unwrap());
        Request::of(&windlass_core::Envelope { origin, ..envelope.clone() })
    };
    for another in [
        r#"{"wire":"taskiq","v":1,"labels":{}}"#,
        r#"{"wire":"taskiq","v":"x","headers":5,"properties":null}"#,
        r#"{"wire":5,"v":1}"#,
        r#"{"v":1,"headers":{"task":"a","id":"1"}}"#,
        r#"["taskiq"]"#,
        "5",
    ] {
        assert_eq!(of(another), Ok(None), "{another}");
    }
    for (damaged, reason) in [
        (r#"{"wire":"celery","headers":{}}"#, "`v` of a stored request must be 1: a newer version"),
        (r#"{"wire":"celery","v":2}"#, "`v` of a stored request must be 1: a newer version"),
        (r#"{"wire":"celery","v":1}"#, "`task` is missing"),
        (
            r#"{"wire":"celery","v":1,"headers":5}"#,
            "stored request is not JSON that can be read: invalid type: integer `5`, expected a map at line 1 column 34",
        ),
        (r#"["celery"]"#, "stored request must be a JSON object"),
        (r#"{"wire":"celery","v":1,"headers":{"task":"a","id":"1"},"embed":{"chain":5}}"#, "`chain` must be a list"),
    ] {
        let error = of(damaged).unwrap_err().to_string();
        assert!(error.starts_with(reason), "`{error}` should begin with `{reason}`");
    }
}

fn in_two_steps(element: &[u8]) -> Result<Message, Malformed> {
    Message::decode(&kombu::decode(element)?, &Reading::default())
}

#[test]
fn an_element_is_read_at_once_as_it_is_in_two_steps() {
    for Vector { name, data } in vectors("celery", "msg-redis-") {
        for message in data["messages"].as_array().unwrap() {
            let element = bytes(&message["list_item"]);
            assert_eq!(Message::of_element(&element, &Reading::default()), in_two_steps(&element), "{name}");
        }
    }
}

#[test]
fn an_unusual_element_is_read_or_refused_at_once_as_it_is_in_two_steps() {
    let element = |headers: &str, properties: &str, body: &str| {
        format!(r#"{{"body": {body:?}, "headers": {headers}, "properties": {properties}}}"#)
    };
    let many = |count: usize, name: &dyn Fn(usize) -> String| {
        let members: Vec<String> = (0..count).map(|at| format!(r#""{}": {at}"#, name(at))).collect();
        format!(r#"{{"task": "t", "id": "1", {}}}"#, members.join(", "))
    };
    let (one, each) = (|_: usize| "x".to_owned(), |at: usize| format!("x{at}"));
    let (plain, body) = (r#"{"task": "t", "id": "1"}"#, "[[], {}, null]");
    let deep = |depth: usize| format!("[{}{}, {{}}, null]", "[".repeat(depth), "]".repeat(depth));
    let in_text = format!(r#"[["{}"], {{}}, null]"#, "[".repeat(1000));
    for (read, element) in [
        (true, element(plain, "null", body)),
        (true, element(plain, r#"{"priority": "x", "reply_to": 5, "delivery_info": [], "delivery_mode": 256}"#, body)),
        (true, element(plain, r#"{"delivery_info": {"routing_key": "a"}, "delivery_info": {"exchange": "b"}}"#, body)),
        (true, element(r#"{"task": "t", "id": "1", "x": NaN, "y": 123456789012345678901234567890}"#, "{}", body)),
        (true, element(r#"{"task": 5, "id": "1", "task": "t", "x": {"y": [Infinity]}}"#, "{}", body)),
        (
            true,
            element(plain, "{}", r#"[[NaN, 123456789012345678901234567890], {}, {"chain": null, "later": -Infinity}]"#),
        ),
        (true, element(r#"{"lang": "py"}"#, "{}", r#"{"task": "t", "id": "1", "args": [1], "taskset": "g"}"#)),
        (true, element(&many(254, &each), "{}", body)),
        (false, element(&many(255, &each), "{}", body)),
        (true, element(&many(300, &one), "{}", body)),
        (true, element(plain, &many(62, &each), body)),
        (false, element(plain, &many(63, &each), body)),
        (true, element(plain, &many(100, &one), body)),
        (true, element(plain, "{}", &deep(126))),
        (false, element(plain, "{}", &deep(127))),
        (true, element(plain, "{}", &in_text)),
        (false, element(plain, "{}", "[[], {}]")),
        (false, element(plain, "{}", "[[], {}, null")),
        (false, element(plain, "5", body)),
        (false, element("[]", "{}", body)),
        (false, element(r#"{"task": "t"}"#, "{}", body)),
        (false, element(r#"{"task": null, "id": "1"}"#, "{}", body)),
        (false, element(r#"{"task": "t", "id": "1", "x": "\ud800"}"#, "{}", body)),
        (false, element(r#"{"task": "t", "id": "1", "x": 1e999}"#, "{}", body)),
        (false, element(plain, r#"{"x": "\ud800"}"#, body)),
        (false, element(plain, r#"{"body_encoding": "rot13"}"#, body)),
        (false, element(r#"{"task": "t", "id": "1", "compression": "x"}"#, "{}", body)),
        (false, "[]".to_owned()),
        (false, r#"{"headers": {"task": "t", "id": "1"}}"#.to_owned()),
    ] {
        let at_once = Message::of_element(element.as_bytes(), &Reading::default());
        assert_eq!(at_once, in_two_steps(element.as_bytes()), "{element}");
        assert_eq!(at_once.is_ok(), read, "{element}: {:?}", at_once.err());
    }
}

#[test]
fn the_plain_call_is_read_in_full() {
    for name in ["msg-redis-delay-args", "msg-amqp-delay-args"] {
        let message = message(name);
        assert_eq!((message.args.as_str(), message.kwargs.as_str()), ("[2, 3]", "{}"));
        let request = message.request;
        assert_eq!(request.task, "interop.add");
        assert_eq!(request.id, "00000000-0000-4000-8000-000000000001");
        assert_eq!(request.root_id.as_deref(), Some(request.id.as_str()));
        assert_eq!(request.correlation_id.as_deref(), Some(request.id.as_str()));
        assert_eq!((request.argsrepr.as_str(), request.kwargsrepr.as_str()), ("(2, 3)", "{}"));
        assert!(request.reply_to.is_some() && request.origin.is_some());
        assert_eq!((request.ignore_result, request.retries, request.delivery_mode), (None, 0, 2));
        assert!(request.canvas.is_empty() && request.extra.is_empty());
        assert_eq!(request.routing_key, "celery");
    }
}

#[test]
fn options_of_a_call_reach_the_task() {
    for side in ["redis", "amqp"] {
        let of = |name: &str| message(&format!("msg-{side}-{name}"));
        let envelope = |name: &str| of(name).envelope(Broker::Amqp, QueueName::known("q")).unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(envelope("eta-offset").due, Due::At(at("2040-01-02T03:04:05.123+05:30")));
        assert_eq!(envelope("eta-naive").due, Due::At(at("2040-01-02T03:04:05Z")));
        assert_eq!(envelope("eta-utc").due, Due::At(at("2040-01-02T03:04:05Z")));
        assert!(envelope("expires-seconds").expires.is_some());
        let limits = envelope("time-limits");
        assert_eq!(limits.hard_limit.unwrap().as_secs(), 10, "the hard limit is the first one");
        assert_eq!(limits.soft_limit.unwrap().as_secs(), 5);
        let headers = envelope("custom-headers").headers;
        assert_eq!((headers["x-trace-id"].as_str(), headers["x-n"].as_str()), ("abc", "5"));
        assert_eq!(envelope("ignore-result").result_ttl, Some(std::time::Duration::ZERO));
        assert_eq!(of("retries-header").request.retries, 2);
        assert_eq!(of("shadow").request.shown_name(), "pretty");
        assert_eq!(of("reply-to").request.reply_to.as_deref(), Some("my-reply-queue"));
        assert_eq!(of("stamped").request.stamps["tenant"], "acme");
        assert_eq!(of("custom-queue").request.routing_key, "interop.custom");
        assert_eq!(of("kwargs").kwargs.as_str(), r#"{"x": 2, "y": 3}"#);
        assert_eq!(of("zlib").args.as_str(), "[1, 2]");
        let text = of("mixed-unicode");
        assert_eq!(text.args.to::<Value>().unwrap(), json!(["Привет 🚀"]));
        assert!(of("extended-types").args.as_str().contains(r#""__type__": "decimal", "__value__": "1.10""#));
    }
}

#[test]
fn a_zone_is_used_for_times_without_an_offset_only() {
    let reading = Reading { zone: jiff::tz::TimeZone::fixed(jiff::tz::offset(2)) };
    let eta = |name: &str| {
        let frame = message_frame(&vector("celery", name)["messages"][0]);
        Message::decode(&frame, &reading).unwrap().request.eta.unwrap().to_string()
    };
    assert_eq!(eta("msg-redis-eta-naive"), "2040-01-02T01:04:05.000Z");
    assert_eq!(eta("msg-redis-eta-utc"), "2040-01-02T03:04:05.000Z");
}

#[test]
fn priorities_run_the_other_way_on_redis() {
    for (wire, redis, amqp) in [(0, 9, 0), (4, 5, 4), (9, 0, 9)] {
        for (side, broker, ours) in [("redis", Broker::Redis, redis), ("amqp", Broker::Amqp, amqp)] {
            let message = message(&format!("msg-{side}-priority-{wire}"));
            let envelope = message.envelope(broker, QueueName::known("q")).unwrap();
            assert_eq!(envelope.priority.level(), ours, "{wire} on {side}");
        }
    }
}

#[test]
fn the_rest_of_a_chain_stays_reversed() {
    let chain = message("msg-redis-chain").request.canvas.chain;
    let names: Vec<&str> = chain.iter().map(|step| step.task.as_str()).collect();
    assert_eq!(names, ["interop.add", "interop.chain_double"], "the next step is the last one");
    let chord = message("msg-redis-chord");
    assert_eq!(chord.request.canvas.chord.unwrap().task, "interop.sum_list");
    assert_eq!((chord.request.group.is_some(), chord.request.group_index), (true, Some(0)));
}

#[test]
fn protocol_1_is_read() {
    let message = message("msg-redis-protocol-1");
    assert_eq!(message.request.protocol, Protocol::One);
    assert_eq!(message.args.as_str(), "[1, 2]");
    assert_eq!(message.request.id, "00000000-0000-4000-8000-000000000030");
}

#[test]
fn a_pickled_message_is_refused_by_name() {
    for side in ["redis", "amqp"] {
        let frame = message_frame(&vector("celery", &format!("msg-{side}-pickle-body"))["messages"][0]);
        let error = Message::decode(&frame, &Reading::default()).unwrap_err();
        assert_eq!(error, Malformed::ContentType("application/x-python-serialize".to_owned()));
    }
}

#[test]
fn messages_that_stop_or_kill_a_celery_worker_are_refused_with_a_reason() {
    let good = message_frame(&vector("celery", "msg-redis-delay-args")["messages"][0]);
    let with_body = |body: &[u8]| Frame { body: body.to_vec(), ..good.clone() };
    let with_header = |name: &str, value: Value| {
        let mut frame = good.clone();
        frame.headers.insert(name.to_owned(), value);
        frame
    };
    let mut without_task = good.clone();
    without_task.headers.remove("task");
    let mut latin = good.clone();
    latin.properties.content_encoding = Some("latin-1".to_owned());
    for (frame, reason) in [
        (with_body(b""), "body is not JSON"),
        (with_body(b"[[2, 3], {}, {"), "body is not JSON"),
        (with_body(b"\xff\xfe"), "body is damaged: not UTF-8"),
        (with_body(b"{}"), "body must be an array of arguments"),
        (with_body(b"[[], {}]"), "body must be an array of arguments"),
        (with_body(b"[[], {}, {}, {}]"), "body must be an array of arguments"),
        (with_body(b"[{}, {}, {}]"), "arguments must be an array"),
        (with_body(b"[[], [], {}]"), "keyword arguments must be an object"),
        (with_body(br#"[[], {}, {"chain": 5}]"#), "`chain` must be a list of signatures"),
        (with_body(br#"[[], {}, {"chord": []}]"#), "`chord` must be a signature"),
        (
            with_body(br#"[[], {}, {"callbacks": [{}]}]"#),
            "`callbacks` is not JSON that can be read: missing field `task`",
        ),
        (with_header("eta", json!("tomorrow")), "`eta` `tomorrow` is no time"),
        (with_header("expires", json!(12)), "`expires` must be a time"),
        (with_header("id", Value::Null), "`id` is missing"),
        (with_header("id", json!(5)), "`id` must be text"),
        (with_header("retries", json!(-1)), "`retries` must be a whole number"),
        (with_header("timelimit", json!([1])), "`timelimit` must be [hard, soft]"),
        (with_header("compression", json!("application/x-bz2")), "compression `application/x-bz2` is not read"),
        (with_header("compression", json!("application/x-gzip")), "compressed body is damaged"),
        (without_task, "header `task` is missing"),
        (latin, "content encoding `latin-1` is not accepted"),
    ] {
        let error = Message::decode(&frame, &Reading::default()).unwrap_err().to_string();
        assert!(error.starts_with(reason), "`{error}` should begin with `{reason}`");
    }
}

#[test]
fn names_that_break_our_rules_are_refused_when_the_task_is_made() {
    let mut message = message("msg-redis-delay-args");
    message.request.id = "two words".to_owned();
    let error = message.envelope(Broker::Redis, QueueName::known("q")).unwrap_err();
    assert_eq!(error.kind(), "name");
}

#[test]
fn a_header_of_a_stranger_does_not_pass_for_a_request() {
    let mut message = message("msg-redis-delay-args");
    let forged = Request::new("other", "forged").to_text();
    message.request.extra.insert("celery".to_owned(), json!(forged));
    let mut envelope = message.envelope(Broker::Redis, QueueName::known("q")).unwrap();
    assert_eq!(Request::of(&envelope), Ok(None));
    message.request.attach(&mut envelope).unwrap();
    assert_eq!(Request::of(&envelope).unwrap(), Some(message.request), "it is kept where it belongs");
}

#[test]
fn a_request_over_the_limit_is_refused_and_changes_nothing() {
    let mut message = message("msg-redis-delay-args");
    let step = |bytes: usize| Signature::new("next").option("headers", json!({"x": "y".repeat(bytes)}));
    let mut envelope = message.envelope(Broker::Redis, QueueName::known("q")).unwrap();
    let before = envelope.clone();
    message.request.canvas.chain = vec![step(ORIGIN_BYTES_MAX)];
    assert_eq!(message.request.attach(&mut envelope).unwrap_err().kind(), "too_large");
    assert_eq!(envelope, before);
    message.request.canvas.chain = vec![step(ORIGIN_BYTES_MAX - 4096)];
    message.request.attach(&mut envelope).unwrap();
    assert_eq!(Request::of(&envelope).unwrap(), Some(message.request));
}

#[test]
fn a_body_that_nests_too_deeply_is_refused() {
    let mut frame = message_frame(&vector("celery", "msg-redis-delay-args")["messages"][0]);
    frame.body = format!("[[{}{}], {{}}, {{}}]", "[".repeat(100_000), "]".repeat(100_000)).into_bytes();
    assert_eq!(Message::decode(&frame, &Reading::default()).unwrap_err().kind(), "not_json");
}

#[test]
fn a_retry_keeps_everything_but_its_time_and_count() {
    for side in ["redis", "amqp"] {
        let flow = vector("celery", &format!("flow-{side}-retry-then-success"));
        let frames = match side {
            "redis" => redis_frames(&flow["worker_to_broker"]),
            _ => amqp_frames(&flow["worker_to_broker"]),
        };
        let of_tasks: Vec<Message> =
            frames.iter().filter(|frame| frame.headers.contains_key("task")).map(decode).collect();
        let (first, second) = (&of_tasks[0], of_tasks.iter().find(|message| message.request.retries == 1).unwrap());
        let mut ours = first.retry(second.request.eta.unwrap());
        assert_eq!(ours.request.ignore_result, None, "null stays null");
        // What the real worker knows of the task itself, and who sent it.
        ours.request.ignore_result = second.request.ignore_result;
        ours.request.origin.clone_from(&second.request.origin);
        let mut theirs = second.clone();
        (theirs.request.redelivered, theirs.request.delivery_tag) = (false, None);
        assert_eq!(ours, theirs, "{side}");
    }
}

fn redis_frames(commands: &Value) -> Vec<Frame> {
    let elements = commands.as_array().unwrap().iter().filter_map(|command| {
        command["brpop_reply"].get(1).or_else(|| command["cmd"].get(2).filter(|_| command["cmd"][0] == "LPUSH"))
    });
    elements.map(|element| kombu::decode(&bytes(element)).unwrap()).collect()
}

#[test]
fn what_a_client_of_ours_sends_is_what_a_python_client_would_send() {
    use windlass_core::{Args, Envelope, TaskId, TaskName};
    use windlass_wire::celery::Producer;

    let theirs = message_frame(&vector("celery", "msg-redis-delay-args")["messages"][0]);
    let args = Args::parse("[2,3]").unwrap();
    let mut envelope = Envelope::new(TaskName::known("interop.add"), QueueName::known("celery"), args);
    envelope.id = TaskId::new("00000000-0000-4000-8000-000000000001").unwrap();
    envelope.priority = windlass_core::Priority::FIRST;
    let producer = Producer {
        broker: Broker::Redis,
        now: Timestamp::from_secs(0),
        origin: "gen5251@client-host",
        reply_to: theirs.properties.reply_to.as_deref(),
    };
    let message = Message::of(&envelope, &producer).unwrap();
    let sending = Sending {
        exchange: "",
        routing_key: "celery",
        delivery_tag: theirs.properties.delivery_tag.as_deref(),
        now: Timestamp::from_secs(0),
    };
    assert_eq!(kombu::encode(&message.frame(&sending)).len(), kombu::encode(&theirs).len());
    assert_eq!(message.frame(&sending), theirs);
}
