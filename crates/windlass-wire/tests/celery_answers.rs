//! Every recorded result, event, control request and answer is read, and written in an equivalent form.

mod common;

use common::{Vector, amqp_frame, amqp_frames, bytes, parsed, vector, vectors};
use serde_json::{Value, json};
use windlass_core::{Failure, Timestamp};
use windlass_wire::celery::control::{self, Command, Destination, Meant, answer};
use windlass_wire::celery::event::Kind;
use windlass_wire::celery::result::{self, ChordPart, Exception, ResultDocument, State};
use windlass_wire::celery::{Event, Request};
use windlass_wire::{Frame, kombu};

/// Every result document in every recording, with the key that it was stored under.
fn stored_results() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for Vector { data, .. } in vectors("celery", "result-") {
        all.push((data["command"][1].as_str().unwrap().to_owned(), bytes(&data["command"][3])));
    }
    for Vector { data, .. } in vectors("celery", "flow-") {
        for command in data["worker_to_result_redis"].as_array().into_iter().flatten() {
            if command["cmd"][0] == "SETEX" {
                all.push((command["cmd"][1].as_str().unwrap().to_owned(), bytes(&command["cmd"][3])));
            }
        }
    }
    all
}

#[test]
fn every_result_document_is_written_byte_for_byte() {
    let all = stored_results();
    assert!(all.len() >= 150, "{}", all.len());
    for (key, text) in all {
        let document = ResultDocument::decode(&text).unwrap();
        assert_eq!(result::key("", document.task_id.as_deref().unwrap()), key);
        assert_eq!(document.encode(), String::from_utf8(text).unwrap());
        assert_eq!(document.status.is_exception(), document.exception().is_some(), "{key}");
    }
}

#[test]
fn documents_of_ours_have_the_recorded_shape() {
    let request = Request::new("interop.add", "42");
    let at = Timestamp::from_secs(1_795_000_000);
    let error = Exception::new("builtins", "ValueError", "boom");
    for (ours, name) in [
        (ResultDocument::started(&request, "w1@worker-host", 1), "STARTED"),
        (ResultDocument::success(&request, windlass_core::Json::trusted("5"), Vec::new(), at), "SUCCESS"),
        (ResultDocument::failure(&request, &error, Some("Traceback"), at), "FAILURE-ValueError"),
        (ResultDocument::retry(&request, &error, Some("Traceback")), "RETRY-RuntimeError"),
        (ResultDocument::revoked(&request, "terminated", at), "REVOKED-TaskRevokedError-terminated"),
        (ResultDocument::revoked(&request, "expired", at), "REVOKED-TaskRevokedError-expired"),
        (ResultDocument::revoked(&request, "revoked", at), "REVOKED-TaskRevokedError-revoked"),
        (ResultDocument::failure(&request, &Exception::not_registered("x"), None, at), "FAILURE-NotRegistered"),
        (
            ResultDocument::failure(&request, &Exception::hard_limit(std::time::Duration::from_secs(1)), None, at),
            "FAILURE-TimeLimitExceeded",
        ),
        (ResultDocument::failure(&request, &Exception::soft_limit(), Some("t"), at), "FAILURE-SoftTimeLimitExceeded"),
        (ResultDocument::failure(&request, &Exception::chord("1", &error), Some("t"), at), "FAILURE-ChordError"),
    ] {
        let theirs = vector("celery", &format!("result-{name}"))["document"].clone();
        let ours = parsed(ours.encode().as_bytes());
        let optional = ["group_id", "parent_id"];
        let members = |document: &Value| -> Vec<String> {
            document.as_object().unwrap().keys().filter(|key| !optional.contains(&key.as_str())).cloned().collect()
        };
        assert_eq!(members(&ours), members(&theirs), "{name}");
        for member in ["exc_type", "exc_module"] {
            if name != "RETRY-RuntimeError" {
                assert_eq!(ours["result"][member], theirs["result"][member], "{name}");
            }
        }
        for member in ["traceback", "date_done"] {
            assert_eq!(ours[member].is_null(), theirs[member].is_null(), "{name} {member}");
        }
    }
}

#[test]
fn messages_of_exceptions_are_those_that_were_recorded() {
    let of = |name: &str| vector("celery", &format!("result-{name}"))["document"]["result"].clone();
    let error = Exception::new("builtins", "ValueError", "hdr");
    let dependency = "abf00069-10e8-4d92-ad7f-0b84c4490ab9";
    assert_eq!(json!(Exception::chord(dependency, &error)), of("FAILURE-ChordError"));
    assert_eq!(json!(Exception::not_registered("interop.does_not_exist")), of("FAILURE-NotRegistered"));
    assert_eq!(json!(Exception::soft_limit()), of("FAILURE-SoftTimeLimitExceeded"));
    assert_eq!(json!(Exception::hard_limit(std::time::Duration::from_secs(1))), of("FAILURE-TimeLimitExceeded"));
}

#[test]
fn the_class_of_a_failure_becomes_a_name_that_python_can_make_a_class_of() {
    let name = |class: &str| Exception::of(&Failure::new(class, "text")).exc_type;
    assert_eq!(name("reqwest::Error"), "reqwest__Error");
    assert_eq!(name("5xx"), "Error_5xx");
    assert_eq!(name(""), "Error_");
    assert_eq!(Exception::of(&Failure::new("a", "text")).to_string(), "a('text')");
}

#[test]
fn documents_that_are_none_are_refused() {
    for text in
        [&b""[..], b"null", b"[]", b"{}", br#"{"status": 5}"#, b"\xff", br#"{"status": "SUCCESS", "children": 5}"#]
    {
        assert!(ResultDocument::decode(text).is_err(), "{}", String::from_utf8_lossy(text));
    }
    let custom = ResultDocument::decode(br#"{"status": "PROGRESS", "result": {"done": 3}}"#).unwrap();
    assert_eq!(custom.status, State::Custom("PROGRESS".to_owned()));
    assert!(!custom.status.is_ready());
}

#[test]
fn every_part_of_a_chord_is_written_byte_for_byte() {
    let mut count = 0;
    for Vector { name, data } in vectors("celery", "flow-") {
        for command in data["worker_to_result_redis"].as_array().into_iter().flatten() {
            let arguments = command["cmd"].as_array().unwrap();
            let group = arguments.get(3).and_then(Value::as_str).and_then(|key| key.strip_suffix(".j"));
            let (Some(group), Some(member)) = (group, arguments.get(10).and_then(Value::as_str)) else { continue };
            let part = ChordPart::decode(member.as_bytes()).unwrap();
            assert_eq!(part.encode(), member, "{name}");
            assert_eq!(part.task_id, arguments[9].as_str().unwrap(), "{name}");
            assert_eq!(group, result::group_key("", group.strip_prefix("celery-taskset-meta-").unwrap()));
            count += 1;
        }
    }
    assert!(count >= 10, "{count}");
    for text in ["", "[]", "[1, 2]", r#"{"a": 1}"#] {
        assert!(ChordPart::decode(text.as_bytes()).is_err(), "{text}");
    }
}

#[test]
fn results_over_a_reply_queue_are_the_frames_that_were_recorded() {
    let frames = amqp_frames(&vector("celery", "rpc-result")["client_frames"]);
    let replies: Vec<&Frame> = frames.iter().filter(|frame| !frame.headers.contains_key("task")).collect();
    assert_eq!(replies.len(), 4);
    for reply in replies {
        let document = ResultDocument::decode(&reply.body).unwrap();
        assert_eq!(&document.reply(&reply.properties.routing_key), reply);
    }
}

/// Clients send events too; theirs were recorded as the commands of a connection.
fn event_frame(name: &str, data: &Value) -> Frame {
    let wire = &data["wire"];
    if let Some(commands) = data["commands"].as_array() {
        let published = commands.iter().find(|command| command["cmd"][0] == "PUBLISH").expect(name);
        return kombu::decode(&bytes(&published["cmd"][2])).unwrap();
    }
    if name.starts_with("event-redis") {
        return kombu::decode(&bytes(&wire["redis"][2])).unwrap();
    }
    amqp_frame(wire, wire["exchange"].as_str().unwrap(), wire["routing_key"].as_str().unwrap())
}

#[test]
fn every_event_is_read_and_written_in_an_equivalent_form() {
    for Vector { name, data } in vectors("celery", "event-") {
        let frame = event_frame(&name, &data);
        let events = Event::decode(&frame.body).unwrap();
        assert!(events.iter().all(|event| !matches!(event.kind, Kind::Other(_))), "{name}: every type is known");
        let tag = frame.properties.delivery_tag.as_deref();
        let again = match frame.properties.routing_key.as_str() {
            "task.multi" => Event::batch(&events, &events[0].hostname, tag),
            _ => events[0].frame(tag),
        };
        assert_eq!(parsed(&again.body), parsed(&frame.body), "{name}");
        assert_eq!(again.headers, frame.headers, "{name}");
        assert_eq!(again.properties, frame.properties, "{name}");
    }
}

#[test]
fn events_are_read_one_by_one_or_many_at_once() {
    let one = br#"{"type": "task-started", "uuid": "1", "hostname": "w", "timestamp": 1.5, "clock": 3}"#;
    let many = [b"[", &one[..], b", ", &one[..], b"]"].concat();
    assert_eq!(Event::decode(one).unwrap().len(), 1);
    assert_eq!(Event::decode(&many).unwrap().len(), 2);
    assert_eq!(Event::decode(one).unwrap()[0].kind.task(), Some("1"));
    let custom =
        Event::decode(br#"{"type": "task-custom", "uuid": "1", "hostname": "w", "timestamp": 1, "x": 5}"#).unwrap();
    assert_eq!((custom[0].kind.name(), custom[0].kind.task()), ("task-custom", Some("1")));
    for text in ["", "5", "[5]", "{}", r#"{"type": "task-started"}"#, r#"[{"hostname": "w"}]"#] {
        assert!(Event::decode(text.as_bytes()).is_err(), "{text}");
    }
}

fn control_frames(data: &Value, member: &str) -> Vec<Frame> {
    let entries = data[member].as_array().cloned().unwrap_or_default();
    let frame = |entry: &Value| match entry.get("redis") {
        Some(command) => kombu::decode(&bytes(&command[2])).unwrap(),
        None => amqp_frame(entry, entry["exchange"].as_str().unwrap(), entry["routing_key"].as_str().unwrap()),
    };
    entries.iter().filter(|entry| entry.get("body_decoded").is_some()).map(frame).collect()
}

#[test]
fn every_control_request_is_read_and_its_recorded_answer_is_the_frame_of_ours() {
    let (mut requests, mut replies) = (0, 0);
    for Vector { name, data } in vectors("celery", "pidbox-") {
        let frame = control_frames(&data, "request").remove(0);
        let request = control::Request::decode(&frame).unwrap();
        requests += 1;
        let known = !matches!(request.command, Command::Unknown { .. } | Command::Invalid { .. });
        assert_eq!(known, !name.ends_with("unknown-command"), "{name}: {:?}", request.command);
        assert_eq!(request.is_for("w1@worker-host"), Meant::Yes, "{name}");
        assert_eq!(control::Request::decode(&request.frame(None)).unwrap(), request, "{name}");
        for theirs in control_frames(&data, "reply") {
            let reply = control::Reply::decode(&theirs).unwrap();
            assert_eq!(reply.ticket, request.ticket, "{name}");
            let (node, answer) = reply.answers.iter().next().unwrap();
            let ours = request.reply(node, answer, reply.clock, theirs.properties.delivery_tag.as_deref()).unwrap();
            assert_eq!(parsed(&ours.body), parsed(&theirs.body), "{name}");
            assert_eq!((&ours.headers, &ours.properties), (&theirs.headers, &theirs.properties), "{name}");
            replies += 1;
        }
    }
    assert!(requests == 60 && replies >= 50, "{requests} requests, {replies} replies");
}

/// What `name` was answered with.
fn answered(name: &str) -> Value {
    let data = vector("celery", &format!("pidbox-redis-{name}"));
    let reply = control::Reply::decode(&control_frames(&data, "reply")[0]).unwrap();
    reply.answers["w1@worker-host"].clone()
}

fn asked(name: &str) -> control::Request {
    let data = vector("celery", &format!("pidbox-redis-{name}"));
    control::Request::decode(&control_frames(&data, "request")[0]).unwrap()
}

#[test]
fn answers_of_ours_have_the_recorded_shape() {
    assert_eq!(answer::pong(), answered("ping"));
    assert_eq!(answer::unknown_method("nope"), answered("unknown-command"));
    assert_eq!(answer::terminated(&[]), answered("terminate-unknown"));
    assert_eq!(answer::revoked(&["11111111-1111-4111-8111-111111111111".to_owned()]), answered("revoke"));
    assert_eq!(json!([answer::queue("celery")]), answered("active_queues"));
    let shape = |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let mut request = Request::new("interop.add", "1");
    request.routing_key = "celery".to_owned();
    let info = answer::TaskInfo::of(&request, json!([1]), json!({}), "w1@worker-host");
    assert_eq!(shape(&json!(info)), shape(&answered("active")[0]));
    assert_eq!(shape(&answer::scheduled(Timestamp::from_secs(0), &info)), shape(&answered("scheduled")[0]));
    assert_eq!(answer::query_task(&[("active", info)])["1"][0], "active");
    let (ours, theirs) = (answer::Stats::default().to_value(), answered("stats"));
    assert_eq!(shape(&ours), shape(&theirs));
    assert!(ours["clock"].is_string() && ours["broker"]["alternates"].is_array());
    assert_eq!(shape(&ours["pool"]), shape(&theirs["pool"]));
}

#[test]
fn arguments_of_requests_are_typed() {
    let text = ToOwned::to_owned;
    assert_eq!(
        asked("rate_limit").command,
        Command::RateLimit { task: text("interop.echo"), limit: Some(text("10/m")) }
    );
    assert_eq!(
        asked("time_limit").command,
        Command::TimeLimit { task: text("interop.echo"), hard: Some(10.0), soft: Some(5.0) }
    );
    assert_eq!(
        asked("revoke-no-reply").command,
        Command::Revoke { ids: vec![text("a"), text("b")], terminate: false, signal: text("SIGTERM") }
    );
    assert_eq!(asked("revoke-no-reply").reply("w", &json!(1), 1, None), None, "nobody waits for an answer");
    assert_eq!(asked("pool_grow").command, Command::PoolGrow { by: 1 });
    assert_eq!(asked("active-safe").command, Command::Active { safe: true });
    assert_eq!(asked("hello").command, Command::Hello { from: text("other@node"), revoked: vec![text("some-id")] });
    assert_eq!(asked("destination").destination, Destination::Nodes(vec![text("w1@worker-host")]));
    assert_eq!(asked("destination").is_for("w2@worker-host"), Meant::No);
    assert_eq!(asked("pattern").is_for("x1@worker-host"), Meant::No);
    assert!(asked("ping").has_expired(Timestamp::from_secs(1_795_322_090)));
    assert!(!asked("ping").has_expired(Timestamp::from_secs(1_795_322_088)));
}

#[test]
fn what_was_revoked_is_a_list_or_with_older_workers_an_object() {
    let heard = |revoked: Value| control::answer::heard_of_hello(&json!({"revoked": revoked, "clock": 7}));
    let ids = || vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(heard(json!(["a", "b"])), (ids(), 7));
    assert_eq!(heard(json!({"a": [1.5, "a"], "b": [1.5, "b"]})), (ids(), 7));
    assert_eq!(heard(json!([5])), (Vec::new(), 7));
    assert_eq!(control::answer::heard_of_hello(&json!({"error": "no"})), (Vec::new(), 0));
    assert_eq!(control::answer::heard_of_hello(&control::answer::hello(&ids(), 7)), (ids(), 7));
}

#[test]
fn a_request_that_cannot_be_read_is_refused_and_one_with_wrong_arguments_is_answered() {
    let read = |body: &str| control::Request::decode(&Frame { body: body.as_bytes().to_vec(), ..Frame::default() });
    for body in ["", "5", "[]", "{}", r#"{"method": 5}"#, r#"{"method": "ping", "destination": 5}"#] {
        assert!(read(body).is_err(), "{body}");
    }
    let request = read(r#"{"method": "rate_limit", "arguments": {"rate_limit": "1/s"}}"#).unwrap();
    assert!(matches!(request.command, Command::Invalid { reason: "`task_name` is missing", .. }));
}
