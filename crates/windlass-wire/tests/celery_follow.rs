//! What a real worker published after each task is what the rules of canvas say.

mod common;

use common::{amqp_frames, bytes, vector, vectors};
use serde_json::{Value, json};
use windlass_core::flow::{FailurePolicy, Flow, GroupStep, Step};
use windlass_core::{Args, Envelope, Feed, Json, QueueName, TaskId, TaskName, Timestamp};
use windlass_wire::celery::follow::{self, ChordStart, Follow, Publisher};
use windlass_wire::celery::result::{ChordPart, ResultDocument, State};
use windlass_wire::celery::{Broker, Message, Producer, Reading, Request, Sending, Signature};
use windlass_wire::{Frame, kombu};

/// A recorded flow: the messages that went through the broker in their order, and the results that were stored.
struct Recorded {
    messages: Vec<Message>,
    results: Vec<ResultDocument>,
}

fn recorded(name: &str) -> Recorded {
    let data = vector("celery", name);
    let frames: Vec<Frame> = if name.starts_with("flow-redis") {
        let commands = data["worker_to_broker"].as_array().unwrap();
        let elements = commands.iter().filter_map(|command| {
            command["brpop_reply"].get(1).or_else(|| command["cmd"].get(2).filter(|_| command["cmd"][0] == "LPUSH"))
        });
        elements.map(|element| kombu::decode(&bytes(element)).unwrap()).collect()
    } else {
        amqp_frames(&data["worker_to_broker"])
    };
    let mut messages: Vec<Message> = Vec::new();
    for frame in frames.iter().filter(|frame| frame.headers.contains_key("task")) {
        // One recording is of a message that nobody can read.
        let Ok(message) = Message::decode(frame, &Reading::default()) else { continue };
        if !messages.iter().any(|known| known.request.id == message.request.id) {
            messages.push(message);
        }
    }
    let commands = data["worker_to_result_redis"].as_array().unwrap();
    let stored = commands.iter().filter(|command| command["cmd"][0] == "SETEX");
    let results = stored.map(|command| ResultDocument::decode(&bytes(&command["cmd"][3])).unwrap()).collect();
    Recorded { messages, results }
}

impl Recorded {
    /// The last stored result of a task.
    fn result(&self, id: &str) -> &ResultDocument {
        self.results.iter().rfind(|document| document.task_id.as_deref() == Some(id)).expect("a stored result")
    }

    fn message(&self, id: &str) -> &Message {
        self.messages.iter().find(|message| message.request.id == id).expect("a recorded message")
    }
}

fn with_publisher<T>(call: impl FnOnce(&mut Publisher<'_>) -> T) -> T {
    let mut count = 0;
    let mut new_id = || {
        count += 1;
        format!("new-{count}")
    };
    call(&mut Publisher { new_id: &mut new_id, now: Timestamp::from_secs(0), origin: "gen1@host" })
}

fn success(request: &Request, result: &Json) -> Follow {
    with_publisher(|publisher| follow::success(request, result, publisher)).unwrap()
}

/// What both say of a message; a real worker knows besides what the task itself says of its results.
fn compared(message: &Message) -> Value {
    let request = &message.request;
    let body: Value = serde_json::to_value([
        json!(request.canvas.callbacks),
        json!(request.canvas.errbacks),
        json!(request.canvas.chain),
        json!(request.canvas.chord.as_ref().map(|body| {
            let mut body = body.clone();
            // A real worker writes `"priority": null` there; both mean that there is none.
            body.options.retain(|_, value| !value.is_null());
            body
        })),
    ])
    .unwrap();
    json!([
        request.task,
        request.id,
        request.root_id,
        request.parent_id,
        request.group,
        request.group_index,
        request.retries,
        request.argsrepr,
        request.kwargsrepr,
        message.args,
        message.kwargs,
        body,
    ])
}

#[test]
fn every_successful_task_is_followed_by_what_its_worker_published() {
    let mut published = 0;
    for name in vectors("celery", "flow-").into_iter().map(|vector| vector.name) {
        if name.ends_with("startup") || name.ends_with("restore-after-kill") {
            continue;
        }
        let recorded = recorded(&name);
        for message in &recorded.messages {
            let stored = recorded.results.iter().rfind(|result| result.task_id.as_ref() == Some(&message.request.id));
            let Some(result) = stored.filter(|result| result.status == State::Success) else { continue };
            let follow = success(&message.request, &result.result);
            for ours in &follow.publish {
                let theirs = recorded.message(&ours.message.request.id);
                assert_eq!(compared(&ours.message), compared(theirs), "{name}");
                published += 1;
            }
            assert_eq!(json!(follow.children), json!(result.children), "{name}: children");
        }
    }
    assert!(published == 14, "{published} messages");
}

#[test]
fn a_chord_inside_of_a_chain_says_how_many_parts_it_waits_for() {
    let recorded = recorded("flow-redis-task-group-task");
    let first = &recorded.messages[0].request;
    let follow = success(first, &recorded.result(&first.id).result);
    let group = follow.publish[0].message.request.group.clone().unwrap();
    assert_eq!(follow.chords, [ChordStart { group, size: 2 }]);
}

#[test]
fn the_body_of_a_chord_gets_the_results_in_their_order() {
    for name in ["flow-redis-chord", "flow-redis-task-group-task", "flow-amqp-chord"] {
        let recorded = recorded(name);
        let parts: Vec<&Message> =
            recorded.messages.iter().filter(|message| message.request.canvas.chord.is_some()).collect();
        let body = parts[0].request.canvas.chord.as_deref().unwrap();
        let results: Vec<Json> = parts.iter().map(|part| recorded.result(&part.request.id).result.clone()).collect();
        let id = body.options["task_id"].as_str().unwrap();
        let theirs = recorded.message(id);
        let last = recorded.message(theirs.request.parent_id.as_deref().unwrap());
        let follow = with_publisher(|publisher| follow::chord_body(body, &results, &last.request, publisher)).unwrap();
        assert_eq!(compared(&follow.publish[0].message), compared(theirs), "{name}");
    }
}

#[test]
fn an_errback_gets_the_id_of_the_task_that_failed() {
    for name in ["flow-redis-errback", "flow-amqp-errback"] {
        let recorded = recorded(name);
        let failed = &recorded.messages[0].request;
        let follow = with_publisher(|publisher| follow::failure(failed, publisher)).unwrap();
        let ours = &follow.publish[0].message;
        let theirs = recorded.message(&ours.request.id);
        assert_eq!((&ours.args, &ours.request.parent_id), (&theirs.args, &theirs.request.parent_id), "{name}");
        assert_eq!((&ours.request.root_id, ours.request.group_index), (&theirs.request.root_id, Some(0)), "{name}");
        assert!(theirs.request.group.is_some() && ours.request.group.is_some(), "{name}: in a group of their own");
    }
}

#[test]
fn the_rest_of_a_failed_chain_is_answered_with_the_same_failure() {
    for name in ["flow-redis-chain-failure", "flow-amqp-chain-failure"] {
        let recorded = recorded(name);
        let failed = &recorded.messages[0].request;
        let follow = with_publisher(|publisher| follow::failure(failed, publisher)).unwrap();
        assert_eq!(follow.publish.len(), 0);
        let ids: Vec<&str> = follow.stranded.iter().map(|stranded| stranded.id.as_str()).collect();
        assert_eq!(ids.len(), 1);
        let (first, rest) = (recorded.result(&failed.id), recorded.result(ids[0]));
        assert_eq!((&first.status, &first.result), (&rest.status, &rest.result), "{name}");
    }
}

#[test]
fn a_part_of_a_chord_counts_with_its_state_and_result() {
    let recorded = recorded("flow-redis-chord-failure");
    let failed = recorded.results.iter().find(|document| document.status == State::Failure).unwrap();
    let part = ChordPart::of(failed);
    let members: Vec<String> = {
        let data = vector("celery", "flow-redis-chord-failure");
        let commands = data["worker_to_result_redis"].as_array().unwrap().clone();
        commands.iter().filter_map(|command| command["cmd"].get(10)?.as_str().map(ToOwned::to_owned)).collect()
    };
    assert!(members.contains(&part.encode()), "{members:?} holds {}", part.encode());
}

#[test]
fn options_of_a_signature_mean_what_they_mean_in_a_call() {
    let signature = Signature::new("a")
        .option("queue", "q2")
        .option("countdown", 3)
        .option("expires", 60)
        .option("priority", 4)
        .option("time_limit", 10)
        .option("ignore_result", true)
        .option("headers", json!({"x": 1}))
        .option("stamped_headers", json!(["tenant"]))
        .option("tenant", "acme");
    let follow = with_publisher(|publisher| follow::start(&signature, publisher)).unwrap();
    let sent = &follow.publish[0];
    let request = &sent.message.request;
    assert_eq!(sent.queue.as_deref(), Some("q2"));
    assert_eq!((request.eta, request.expires), (Some(Timestamp::from_secs(3)), Some(Timestamp::from_secs(60))));
    assert_eq!((request.priority, request.ignore_result), (4, Some(true)));
    assert_eq!(request.timelimit.hard.unwrap().as_secs(), 10);
    assert_eq!((&request.extra["x"], &request.stamps["tenant"]), (&json!(1), &json!("acme")));
    assert_eq!((request.id.as_str(), request.root_id.as_deref()), ("new-1", Some("new-1")));
}

#[test]
fn whole_numbers_of_any_size_keep_every_digit_on_their_way_through_a_canvas() {
    const BIG: &str = "1000000000000000000000000000001";
    let step = |id: &str| format!(r#"{{"task": "t", "args": [{BIG}], "options": {{"task_id": "{id}"}}}}"#);
    let embed = format!(r#"{{"chain": [{}, {}], "chord": {}}}"#, step("c"), step("b"), step("body"));
    let message = Message { args: Json::trusted("[]"), kwargs: Json::trusted("{}"), request: Request::new("t", "a") };
    let now = Timestamp::from_secs(0);
    let mut frame = message.frame(&Sending { exchange: "", routing_key: "q", delivery_tag: None, now });
    frame.body = format!("[[], {{}}, {embed}]").into_bytes();
    let message = Message::decode(&frame, &Reading::default()).unwrap();
    // As the store keeps it until the task has ended.
    let request = Request::from_text(&message.request.to_text()).unwrap();
    assert_eq!(request, message.request);
    assert_eq!(request.canvas.chord.as_ref().unwrap().args.as_str(), format!("[{BIG}]"));
    let follow = success(&request, &Json::trusted(BIG));
    let next = &follow.publish[0].message;
    assert_eq!(next.args.as_str(), format!("[{BIG}, {BIG}]"));
    assert_eq!(next.request.canvas.chain[0].args.as_str(), format!("[{BIG}]"));
}

#[test]
fn an_immutable_signature_takes_its_arguments_as_they_are() {
    let mut request = Request::new("first", "1");
    let mut callback = Signature::new("second").with_args(Json::trusted("[[1]]")).unwrap();
    request.canvas.callbacks = vec![callback.clone()];
    assert_eq!(success(&request, &Json::trusted("[0]")).publish[0].message.args.as_str(), "[[0], [1]]");
    callback.immutable = true;
    request.canvas.callbacks = vec![callback, Signature::new("third")];
    let follow = success(&request, &Json::trusted("[0]"));
    assert_eq!(follow.publish[0].message.args.as_str(), "[[1]]");
    assert_eq!(follow.publish[1].message.args.as_str(), "[[0]]");
}

#[test]
fn a_chain_inside_of_a_chord_counts_with_its_last_task() {
    let chain = Signature {
        kwargs: Json::trusted(json!({"tasks": [Signature::new("a"), Signature::new("b")]}).to_string()),
        ..Signature::new("celery.chain")
    };
    let chord = Signature::chord("g", &[chain, Signature::new("c")], &Signature::new("body"));
    let follow = with_publisher(|publisher| follow::start(&chord, publisher)).unwrap();
    assert_eq!(follow.chords, [ChordStart { group: "g".to_owned(), size: 2 }]);
    let first = &follow.publish[0].message.request;
    assert_eq!((first.task.as_str(), first.canvas.chord.is_none(), &first.group), ("a", true, &None));
    let last = &first.canvas.chain[0];
    assert_eq!((last.options["group_id"].as_str(), last.options["group_index"].as_i64()), (Some("g"), Some(0)));
    let next = success(first, &Json::trusted("1")).publish.remove(0).message.request;
    assert_eq!((next.task.as_str(), next.group.as_deref(), next.group_index), ("b", Some("g"), Some(0)));
    assert_eq!(next.canvas.chord.unwrap().task, "body");
}

#[test]
fn a_chord_without_parts_goes_on_with_its_body() {
    let chord = Signature::chord("g", &[], &Signature::new("body"));
    let follow = with_publisher(|publisher| follow::start(&chord, publisher)).unwrap();
    assert_eq!((follow.publish[0].message.args.as_str(), follow.chords.len()), ("[[]]", 0));
}

#[test]
fn a_small_message_cannot_be_followed_by_a_flood() {
    let body = Signature::new("body").with_args(Json::trusted(format!("[\"{}\"]", "x".repeat(50_000)))).unwrap();
    let parts: Vec<Signature> = (0..5_000).map(|_| Signature::new("part")).collect();
    let chord = Signature::chord("g", &parts, &body);
    let error = with_publisher(|publisher| follow::start(&chord, publisher)).unwrap_err();
    assert_eq!(error.kind(), "too_large");
    let mut deep = Signature::new("a");
    for _ in 0..100 {
        deep = Signature::group("g", &[deep]);
        if deep.kwargs.as_str().len() > 1 << 20 {
            break;
        }
    }
    assert!(with_publisher(|publisher| follow::start(&deep, publisher)).is_err());
}

#[test]
fn a_workflow_of_ours_becomes_a_canvas_of_the_same_meaning() {
    let task = |name: &str| {
        let mut task = Envelope::new(TaskName::known(name), QueueName::known("celery"), Args::none());
        task.id = TaskId::new(name).unwrap();
        task.feed = Feed::First;
        task
    };
    let group =
        GroupStep { id: TaskId::new("g").unwrap(), policy: FailurePolicy::All, tasks: vec![task("c"), task("d")] };
    let mut first = task("a");
    first.flow = Some(Box::new(Flow {
        then: vec![Step::Task(Box::new(task("b"))), Step::Group(Box::new(group)), Step::Task(Box::new(task("e")))],
        otherwise: vec![task("oops")],
        ..Flow::default()
    }));
    let producer = Producer { broker: Broker::Amqp, now: Timestamp::from_secs(0), origin: "gen1@host", reply_to: None };
    let message = Message::of(&first, &producer).unwrap();
    assert_eq!(message.request.canvas.errbacks[0].task, "oops");
    let b = success(&message.request, &Json::trusted("1")).publish.remove(0).message;
    assert_eq!((b.request.task.as_str(), b.args.as_str()), ("b", "[1]"));
    assert_eq!(b.request.canvas.errbacks.len(), 1, "a step that fails is reported too");
    let follow = success(&b.request, &Json::trusted("2"));
    let parts: Vec<&str> = follow.publish.iter().map(|sent| sent.message.request.task.as_str()).collect();
    assert_eq!(parts, ["c", "d"]);
    assert_eq!(follow.chords, [ChordStart { group: "g".to_owned(), size: 2 }]);
    let body = follow.publish[0].message.request.canvas.chord.clone().unwrap();
    assert_eq!(body.task, "e");
    let any = GroupStep { id: TaskId::new("g").unwrap(), policy: FailurePolicy::Any, tasks: vec![task("c")] };
    first.flow = Some(Box::new(Flow { then: vec![Step::Group(Box::new(any))], ..Flow::default() }));
    assert!(Message::of(&first, &producer).is_err());
}
