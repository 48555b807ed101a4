//! Every recorded message, result, progress and schedule of TaskIQ is read, and written in an equivalent form.

mod common;

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use common::{Vector, amqp_frames, bytes, parsed, vector, vectors};
use serde_json::{Value, json};
use windlass_core::{Args, Due, Envelope, Json, Priority, QueueName, TaskName, Timestamp};
use windlass_wire::Malformed;
use windlass_wire::taskiq::schedule::{self, ScheduledTask};
use windlass_wire::taskiq::{
    Broker, Delay, ErrorObject, Label, Labels, Message, Progress, Route, STREAM_FIELD, Serializer, TaskResult,
    amqp_frame as frame_of, pickle, progress_key, result_key,
};

/// Every message in every recording, with the command or frame that it travelled in.
fn messages() -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for Vector { name, data } in vectors("taskiq", "") {
        let commands = ["client_commands", "worker_commands"].into_iter().filter_map(|member| data[member].as_array());
        for command in commands.flatten() {
            let arguments = command["cmd"].as_array().unwrap();
            let message = match arguments[0].as_str() {
                Some("LPUSH" | "PUBLISH") => arguments.last(),
                Some("XADD") => {
                    assert_eq!(arguments[arguments.len() - 2], STREAM_FIELD, "{name}");
                    arguments.last()
                }
                _ => None,
            };
            all.extend(message.map(|message| (name.clone(), bytes(message))));
        }
        for member in ["client_frames", "worker_frames"] {
            if data[member].is_array() {
                all.extend(amqp_frames(&data[member]).into_iter().map(|frame| (name.clone(), frame.body)));
            }
        }
    }
    all
}

fn message(name: &str) -> Message {
    let (_, bytes) = messages().into_iter().find(|(recorded, _)| recorded == name).expect(name);
    Message::decode(&bytes).unwrap()
}

#[test]
fn every_message_is_written_in_an_equivalent_form() {
    let all = messages();
    assert!(all.len() >= 30, "{} messages", all.len());
    for (name, bytes) in all {
        let message = Message::decode(&bytes).unwrap();
        let again = message.encode();
        assert_eq!(parsed(again.as_bytes()), parsed(&bytes), "{name}");
        if message.labels.0.is_empty() && !name.contains("jsonformatter") {
            assert_eq!(again, String::from_utf8(bytes).unwrap(), "{name}: byte for byte");
        }
    }
}

#[test]
fn every_message_becomes_the_task_that_it_asks_for_and_labels_come_back_typed() {
    for (name, bytes) in messages() {
        let message = Message::decode(&bytes).unwrap();
        let envelope = message.envelope(Broker::Redis, QueueName::known("taskiq")).unwrap();
        assert_eq!(envelope.id.to_string(), message.task_id, "{name}");
        assert_eq!(envelope.name.as_str(), message.task_name, "{name}");
        assert_eq!((envelope.due, envelope.priority), (Due::Now, Priority::NORMAL), "{name}");
        assert_eq!(Labels::of(&envelope).unwrap().unwrap(), message.labels, "{name}");
        assert_eq!(Message::of(&envelope, Broker::Redis).unwrap().task_id, message.task_id, "{name}");
    }
}

#[test]
fn labels_have_the_types_that_they_had() {
    let labels = message("msg-list-labels").labels;
    assert_eq!(labels.0["i"], Label::Int(5));
    assert_eq!(labels.0["f"], Label::Float(1.5));
    assert_eq!(labels.0["s"], Label::Text("5".to_owned()));
    assert_eq!(labels.0["t"], Label::Bool(true));
    assert_eq!(labels.0["b"], Label::Bytes(vec![1, 2]));
    assert_eq!(labels.0["l"], Label::Any("[1]".to_owned()));
    assert_eq!(labels.to_value()["i"], json!(5));
    assert_eq!(Label::from_value(json!([1, "a"])), Label::Any("[1, 'a']".to_owned()));
}

#[test]
fn a_label_cannot_take_the_name_of_the_header_that_types_travel_in() {
    let mut message = message("msg-list-args");
    message.labels.0.insert("taskiq".to_owned(), Label::Int(1));
    assert_eq!(message.envelope(Broker::Redis, QueueName::known("q")).unwrap_err().kind(), "shape");
}

#[test]
fn labels_that_change_behaviour_reach_the_task() {
    let envelope = |name: &str| message(name).envelope(Broker::Amqp, QueueName::known("q")).unwrap();
    assert_eq!(envelope("msg-list-timeout").hard_limit, Some(Duration::from_millis(1500)));
    assert_eq!(envelope("msg-list-retry-labels").retries, Some(2), "three runs are two retries");
    assert_eq!(
        message("msg-list-retry-labels").retry().envelope(Broker::Redis, QueueName::known("q")).unwrap().retries,
        Some(1)
    );
    assert_eq!(envelope("msg-list-args").retries, None, "the task's own affair");
    assert_eq!(message("msg-list-ack-type").labels.ack_type().as_deref(), Some("when_received"));
    assert_eq!(envelope("aiopika-priority").priority.level(), 7);
    assert_eq!(envelope("aiopika-plain").priority, Priority::LAST);
    assert_eq!(envelope("aiopika-delay").due, Due::Now, "the broker has waited already");
    assert_eq!(message("msg-list-unicode").args.to::<Value>().unwrap(), json!(["Привет 🚀"]));
}

#[test]
fn a_retry_is_the_message_that_was_recorded() {
    for name in ["flow-list-json-retry", "flow-stream-pickle-retry", "flow-aiopika-json-retry"] {
        let all: Vec<Message> = messages()
            .into_iter()
            .filter(|(recorded, _)| recorded == name)
            .map(|(_, bytes)| Message::decode(&bytes).unwrap())
            .collect();
        let second = all.iter().find(|message| message.labels.failed_runs() == 1).expect(name);
        let mut first = second.clone();
        first.labels.0.remove("_retries");
        assert_eq!(&first.retry(), second, "{name}");
    }
}

#[test]
fn frames_of_amqp_are_those_that_were_recorded() {
    for name in ["plain", "labels", "priority", "delay"] {
        let data = vector("taskiq", &format!("aiopika-{name}"));
        let theirs = amqp_frames(&data["client_frames"]).remove(0);
        let message = Message::decode(&theirs.body).unwrap();
        let route = Route {
            exchange: "taskiq",
            routing_key: "taskiq",
            delay: Some(Delay::Queue("taskiq.delay")),
            message_id: theirs.properties.message_id.as_deref().unwrap(),
        };
        let ours = frame_of(&message, &route);
        assert_eq!((&ours.headers, &ours.properties), (&theirs.headers, &theirs.properties), "{name}");
        assert_eq!(parsed(&ours.body), parsed(&theirs.body), "{name}");
        if name == "delay" {
            let plugin = frame_of(&message, &Route { delay: Some(Delay::Plugin("taskiq.plugin_delay")), ..route });
            assert_eq!(
                (&plugin.headers["x-delay"], plugin.properties.exchange.as_str()),
                (&json!(2500), "taskiq.plugin_delay")
            );
        }
    }
}

/// Every stored result: the serialiser, the bytes, and what Python sees in them.
fn results() -> Vec<(String, Serializer, Vec<u8>, Value)> {
    let stored = vectors("taskiq", "flow-").into_iter().filter_map(|Vector { name, data }| {
        let decoded = data["stored_decoded"].clone();
        match (data["stored_text"].as_str(), data["stored_pickle_b64"].as_str()) {
            (Some(text), _) => Some((name, Serializer::Json, text.as_bytes().to_vec(), decoded)),
            (None, Some(pickle)) => Some((name, Serializer::Pickle, STANDARD.decode(pickle).unwrap(), decoded)),
            (None, None) => None,
        }
    });
    stored.collect()
}

#[test]
fn every_result_is_read_and_written_in_an_equivalent_form() {
    let all = results();
    assert!(all.len() >= 20, "{}", all.len());
    for (name, serializer, bytes, python_sees) in all {
        let result = TaskResult::decode(&bytes, serializer).unwrap();
        let seen: Value = result.to_json().to().unwrap();
        assert_eq!(seen, python_sees, "{name}");
        let again = result.encode(serializer);
        assert_eq!(serializer.decode("result", &again).unwrap().to::<Value>().unwrap(), python_sees, "{name}");
        if serializer == Serializer::Json {
            assert_eq!(parsed(&again), parsed(&bytes), "{name}");
        }
    }
}

#[test]
fn results_of_ours_have_the_recorded_shape() {
    let labels = message("msg-list-labels").labels;
    let ran = Duration::from_millis(534);
    let success = TaskResult::success(Json::trusted("5"), &labels, ran);
    assert_eq!(
        success.to_json().as_str().split("\"labels\"").next().unwrap(),
        r#"{"is_err": false, "log": null, "return_value": 5, "execution_time": 0.53, "#
    );
    let timeout = TaskResult::failure(ErrorObject::timeout(), &labels, ran);
    let mut theirs = vector("taskiq", "flow-list-json-timeout")["stored_decoded"]["error"].clone();
    theirs["exc_context"] = Value::Null;
    assert_eq!(timeout.to_json().to::<Value>().unwrap()["error"], theirs);
    assert_eq!(ErrorObject::new("builtins", "ValueError", "boom").to_string(), "ValueError('boom')");
    assert_eq!((result_key(None, "1"), result_key(Some("app"), "1")), ("1".to_owned(), "app:1".to_owned()));
}

#[test]
fn progress_is_read_and_written() {
    for (name, serializer) in [("progress-json", Serializer::Json), ("progress-pickle", Serializer::Pickle)] {
        let command = vector("taskiq", name)["client_commands"][0]["cmd"].clone();
        let progress = Progress::decode(&bytes(&command[2]), serializer).unwrap();
        assert_eq!((progress.state.as_str(), progress.meta.to::<Value>().unwrap()), ("STARTED", json!({"done": 3})));
        assert_eq!(Progress::decode(&progress.encode(serializer), serializer).unwrap().state, "STARTED");
        assert_eq!(command[1], progress_key(Some("app"), "some-id"));
    }
}

#[test]
fn every_schedule_is_read_and_written_in_an_equivalent_form() {
    let mut count = 0;
    for Vector { name, data } in vectors("taskiq", "schedule-") {
        let commands = data["client_commands"].as_array().unwrap();
        let Some(set) = commands.iter().find(|command| command["cmd"][0] == "SET") else { continue };
        let serializer = if name.ends_with("pickle") { Serializer::Pickle } else { Serializer::Json };
        let stored = bytes(&set["cmd"][2]);
        let schedule = ScheduledTask::decode(&stored, serializer).unwrap();
        let (ours, theirs) = (schedule.encode(serializer), serializer.decode("schedule", &stored).unwrap());
        let ours: Value = serializer.decode("schedule", &ours).unwrap().to().unwrap();
        let mut theirs: Value = theirs.to().unwrap();
        if name.ends_with("interval") {
            // Both spellings are read; a number is written.
            theirs["interval"] = json!(schedule.interval.unwrap().as_secs());
        }
        assert_eq!(ours, theirs, "{name}");
        let prefix = set["cmd"][1].as_str().unwrap().split(':').next().unwrap();
        if let Some(push) = commands.iter().find(|command| command["cmd"][0] == "RPUSH") {
            assert_eq!(json!(schedule.index_keys(prefix)), json!([push["cmd"][1]]), "{name}");
            assert_eq!(set["cmd"][1], schedule::data_key(prefix, &schedule.schedule_id), "{name}");
        }
        assert_eq!(schedule.specs(Timestamp::from_secs(0)).unwrap().len(), 1, "{name}");
        count += 1;
    }
    assert_eq!(count, 5);
}

#[test]
fn a_schedule_that_fires_sends_a_message_that_names_it() {
    let text = br#"{"task_name": "t", "labels": {"a": "1"}, "args": [1], "kwargs": {}, "schedule_id": "s", "cron": "0 3 * * *", "cron_offset": "Europe/Berlin"}"#;
    let schedule = ScheduledTask::decode(text, Serializer::Json).unwrap();
    let message = schedule.message("new");
    assert_eq!((message.task_id.as_str(), message.labels.0["schedule_id"].text().as_str()), ("new", "s"));
    assert_eq!(message.labels.0["a"], Label::Text("1".to_owned()));
    let spec = schedule.specs(Timestamp::from_secs(0)).unwrap().remove(0);
    assert_eq!(spec.next("2026-11-24T02:00:00Z".parse().unwrap()).unwrap().to_string(), "2026-11-25T02:00:00.000Z");
    let never = br#"{"task_name": "t", "args": [], "kwargs": {}, "schedule_id": "s"}"#;
    assert_eq!(ScheduledTask::decode(never, Serializer::Json).unwrap_err().kind(), "missing");
}

#[test]
fn messages_that_cannot_be_read_are_refused_with_a_reason() {
    let good = r#"{"task_id": "1", "task_name": "a:b", "labels": {"n": "x"}, "labels_types": {"n": 3}, "args": [], "kwargs": {}}"#;
    assert!(Message::decode(good.as_bytes()).is_ok());
    for (bytes, reason) in [
        (String::new(), "message is not JSON"),
        ("[1]".to_owned(), "message must be a JSON object"),
        ("{}".to_owned(), "message is not JSON that can be read: missing field `task_id`"),
        (good.replace("\"1\"", "1"), "message is not JSON that can be read: invalid type: integer `1`"),
        (good.replace("[]", "{}"), "`args` must be an array"),
        (good.replace(r#""kwargs": {}"#, r#""kwargs": []"#), "`kwargs` must be an object"),
        (good.replace("3}", "2}"), "label of type 2 must be a whole number"),
        (good.replace("3}", "4}"), "label of type 4 must be a number"),
        (good.replace("3}", "6}"), "label of type 6 is damaged"),
        (good.replace("3}", "7}"), "code of a label must be 1 to 6"),
        (good.replace("3}", "\"3\"}"), "code of a label must be 1 to 6"),
    ] {
        let error = Message::decode(bytes.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(reason), "`{error}` should begin with `{reason}`");
    }
    let without_types = good.replace(r#""labels_types": {"n": 3}, "#, "");
    assert_eq!(Message::decode(without_types.as_bytes()).unwrap().labels.0["n"], Label::Untyped(json!("x")));
}

#[test]
fn what_a_client_of_ours_sends_is_what_a_python_client_would_send() {
    let theirs = message("msg-list-args");
    let args = Args::parse("[2, 3]").unwrap();
    let mut envelope = Envelope::new(TaskName::known("interop.add"), QueueName::known("taskiq"), args);
    envelope.id = theirs.task_id.parse().unwrap();
    assert_eq!(Message::of(&envelope, Broker::Redis).unwrap(), theirs);
    envelope.due = Due::After(Duration::from_millis(2500));
    assert!(Message::of(&envelope, Broker::Redis).is_err(), "Redis brokers cannot delay");
    let delayed = Message::of(&envelope, Broker::Amqp).unwrap();
    assert_eq!(delayed.labels.delay(), Some(Duration::from_millis(2500)));
}

/// What Python makes of it, and the pickle that Python 3.11 wrote.
const PICKLES: [(&[u8], &str); 10] = [
    (b"\x80\x04\x95\x04\x00\x00\x00\x00\x00\x00\x00K\x01K\x02\x86\x94.", "[1,2]"),
    (b"\x80\x02K\x05.", "5"),
    (b"\x80\x04M\xff\xffJ\xff\xff\xff\xff\x86.", "[65535,-1]"),
    (b"\x80\x04\x8a\x08\x00\x00\x00\x00\x00\x00\x00\x80.", "-9223372036854775808"),
    (b"\x80\x04\x8a\x00.", "0"),
    (
        b"\x80\x02]q\x00(\x8a\x0d\0\0\0\0\0\0\0\0\0\0\0\0\x10\x8a\x0d\0\0\0@\xea\xedtF\xd0\x9c,\x9f\x0ce.",
        "[1267650600228229401496703205376,1000000000000000000000000000000]",
    ),
    (b"\x80\x04G\x7f\xf8\x00\x00\x00\x00\x00\x00.", "null"),
    (b"\x80\x04C\x02\xff\x41.", "\"\u{fffd}A\""),
    (b"\x80\x04}\x94(K\x01\x88N\x89u.", r#"{"1":true,"null":false}"#),
    (b"\x80\x04]\x94(\x8c\x01a\x94h\x01e.", r#"["a","a"]"#),
];

#[test]
fn pickles_of_plain_data_are_read() {
    for (bytes, json) in PICKLES {
        assert_eq!(pickle::decode(bytes).unwrap().as_str(), json);
    }
    let big = pickle::encode(&Json::trusted("[18446744073709551615, -9223372036854775808, 2147483648, -1]"));
    let read = pickle::decode(&big).unwrap();
    assert_eq!(read.as_str(), "[18446744073709551615,-9223372036854775808,2147483648,-1]");
}

#[test]
fn whole_numbers_of_any_size_keep_every_digit_in_a_pickle() {
    let long = format!(r#"{{"a":[{},-{}]}}"#, "7".repeat(4_300), "1234567890".repeat(100));
    for json in ["[1267650600228229401496703205376, -18446744073709551616]", "1000000000000000000000000000000", &long] {
        let read = pickle::decode(&pickle::encode(&Json::parse(json).unwrap())).unwrap();
        assert_eq!(read.as_str(), json.replace(' ', ""));
    }
    // As Python writes it: the shortest form.
    let written = pickle::encode(&Json::trusted("1267650600228229401496703205376"));
    assert_eq!(written, b"\x80\x02\x8a\x0d\0\0\0\0\0\0\0\0\0\0\0\0\x10.");
    let endless = pickle::decode(&pickle::encode(&Json::trusted("7".repeat(4_301)))).unwrap();
    assert_eq!(endless.as_str(), "null", "a float that is too large");
}

#[test]
fn many_long_whole_numbers_are_refused_and_many_short_ones_are_not() {
    let long = [&b"\x8b\xfa\x06\0\0"[..], &[1; 1_786]].concat();
    let refused = pickle::decode(&[&b"\x80\x02"[..], &long.repeat(600)].concat()).unwrap_err();
    assert!(refused.to_string().contains("long whole numbers take more than 1048576 bytes"), "{refused}");
    let many = format!("[{}1]", "1099511627776,".repeat(200_000));
    assert_eq!(pickle::decode(&pickle::encode(&Json::parse(&many).unwrap())).unwrap().as_str(), many);
}

#[test]
fn every_form_of_json_is_written_and_what_is_no_text_is_none() {
    let all = r#"{"a\n":[null,true,false,-1,0.5,"🚀",[],{}],"":{"b":[[1],{"c":"\""}]}}"#;
    let spaced = all.replace(',', " ,\n ").replace(':', " : ");
    for json in [all, &spaced] {
        assert_eq!(pickle::decode(&pickle::encode(&Json::parse(json).unwrap())).unwrap().as_str(), all);
    }
    assert_eq!(pickle::encode(&Json::trusted(r#"["\ud800"]"#)), b"\x80\x02N.");
}

#[test]
fn pickles_that_would_run_code_are_refused_and_nothing_runs() {
    for (bytes, instruction) in [
        (&b"\x80\x04cposix\nsystem\n\x8c\x04true\x85R."[..], "GLOBAL looks up or calls `posix system`"),
        (b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.", "STACK_GLOBAL looks up or calls `posix system`"),
        (b"\x80\x04)R.", "REDUCE looks up or calls something"),
        (b"\x80\x04}}b.", "BUILD looks up or calls something"),
        (b"\x80\x04(iposix\nsystem\n.", "INST looks up or calls `posix system`"),
        (b"\x80\x04(o.", "OBJ looks up or calls something"),
        (b"\x80\x04)\x81.", "NEWOBJ looks up or calls something"),
        (b"\x80\x04))}\x92.", "NEWOBJ_EX looks up or calls something"),
        (b"\x80\x04\x82\x01.", "EXT looks up or calls something"),
        (b"\x80\x04P1\n.", "PERSID looks up or calls something"),
        (b"\x80\x04\x8f.", "instruction 0x8f does not build plain data"),
    ] {
        let error = pickle::decode(bytes).unwrap_err().to_string();
        assert!(error.contains(instruction), "{error}");
    }
}

#[test]
fn damaged_and_hostile_pickles_end_in_an_error() {
    let bomb = {
        // Each list holds the one before it ten times: 10^30 values.
        let mut bytes = b"\x80\x04]\x94".to_vec();
        for level in 0..30_u8 {
            bytes.extend_from_slice(b"](");
            bytes.extend((0..10).flat_map(|_| [b'h', level]));
            bytes.extend_from_slice(b"e\x94");
        }
        bytes.push(b'.');
        bytes
    };
    let endless = b"\x80\x04]\x94h\x00a.".to_vec();
    let deep = [&b"\x80\x04"[..], &b"]".repeat(100_000), &b"a".repeat(99_999), b"."].concat();
    let long = [&b"\x80\x04\x8b"[..], &1_787_u32.to_le_bytes(), &[1; 1_787], b"."].concat();
    for (bytes, kind) in [
        (Vec::new(), "pickle"),
        (b".".to_vec(), "pickle"),
        (b"\x80\x09.".to_vec(), "pickle"),
        (b"\x80\x04(.".to_vec(), "pickle"),
        (b"\x80\x04e.".to_vec(), "pickle"),
        (b"\x80\x04K\x01(K\x02e.".to_vec(), "pickle"),
        (b"\x80\x04h\x09.".to_vec(), "pickle"),
        (b"\x80\x04X\xff\xff\xff\xffa.".to_vec(), "pickle"),
        (b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff.".to_vec(), "pickle"),
        (b"\x80\x04}(K\x01u.".to_vec(), "pickle"),
        (b"\x80\x04})Ns.".to_vec(), "pickle"),
        (endless, "pickle"),
        (deep, "pickle"),
        (long, "pickle"),
        (bomb, "too_large"),
        (vec![b'N'; pickle::NODES_MAX + 2], "too_large"),
        (vec![b'N'; pickle::PICKLE_BYTES_MAX + 1], "too_large"),
    ] {
        let error = pickle::decode(&bytes).unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().len() < 200);
    }
    assert!(matches!(TaskResult::decode(b"\x80\x04K\x05.", Serializer::Pickle), Err(Malformed::Shape { .. })));
}
