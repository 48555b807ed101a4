//! The command lines of other programs, on a real broker.

mod support;

use serde_json::Value;
use support::{House, Worker};
use windlass_servers::{Aof, Redis};

/// A broker of its own: requests to all workers reach every worker of a server.
fn broker() -> (Redis, String) {
    let redis = Redis::start(Aof::EverySec).expect("a Redis server");
    let url = format!("redis://{}/0", redis.address());
    (redis, url)
}

fn celery(house: &House, broker: &str, args: &[&str]) -> support::Said {
    house.run(&[&["celery", "-b", broker], args].concat())
}

fn ready(house: &House, args: &[&str]) -> Worker {
    let mut worker = house.node(args);
    worker.wait_for("worker_ready");
    worker
}

#[test]
fn a_worker_is_started_asked_and_ended_with_celerys_words() {
    let ((_redis, broker), house) = (broker(), House::empty());
    let broker = broker.as_str();
    assert_eq!(celery(&house, broker, &["status", "-t", "0.2"]).code, 69, "nobody is there");

    let mut worker = house.node(&["celery", "-b", broker, "worker", "-n", "w1@test", "-c", "2", "-l", "INFO"]);
    let starting = worker.wait_for("worker_starting");
    assert_eq!(starting["bridge"], format!("celery+{broker}"));
    assert_eq!(starting["store"], broker, "the store is the Redis of the broker");
    assert_eq!(starting["queues"], "celery=1000");
    worker.wait_for("worker_ready");

    let id = celery(&house, broker, &["call", "sleep", "-k", r#"{"duration": "1ms"}"#]);
    assert_eq!(id.code, 0, "{id:?}");
    let result = celery(&house, broker, &["result", id.out.trim()]);
    assert_eq!((result.code, result.out.trim()), (0, "null"), "{result:?}");

    let id = celery(&house, broker, &["call", "fail", "-k", r#"{"message": "boom", "fatal": true}"#]);
    let result = celery(&house, broker, &["result", id.out.trim()]);
    assert_eq!(result.code, 1, "{result:?}");
    assert!(result.err.contains("FAILURE") && result.err.contains("boom"), "{result:?}");

    let ping = celery(&house, broker, &["inspect", "ping", "-d", "w1@test", "-t", "30"]);
    assert_eq!(ping.out, "->  w1@test: OK\n        pong\n\n1 node online.\n", "{ping:?}");
    let registered = celery(&house, broker, &["inspect", "registered", "-d", "w1@test", "-t", "30", "-j"]);
    let registered: Value = serde_json::from_str(&registered.out).expect("JSON");
    assert!(registered["w1@test"].as_array().is_some_and(|names| names.contains(&"sleep".into())), "{registered}");
    let status = celery(&house, broker, &["status", "-d", "w1@test", "-t", "30"]);
    assert_eq!(status.out, "w1@test: OK\n\n1 node online.\n");
    let bindings = celery(&house, broker, &["list", "bindings"]);
    assert!(bindings.out.contains("celery"), "{bindings:?}");

    assert_eq!(celery(&house, broker, &["control", "shutdown", "-d", "w1@test", "-t", "0.1"]).code, 0);
    assert_eq!(worker.end(), Some(0));
}

#[test]
fn what_waits_in_a_queue_is_dropped_when_that_is_meant() {
    let ((_redis, broker), house) = (broker(), House::empty());
    let broker = broker.as_str();
    for _ in 0..3 {
        assert_eq!(celery(&house, broker, &["call", "shop.add", "-a", "[1, 2]", "--queue", "mail"]).code, 0);
    }
    assert_eq!(celery(&house, broker, &["purge", "-Q", "mail"]).code, 6, "nobody is there to be asked");
    assert_eq!(celery(&house, broker, &["purge", "-f", "-Q", "mail"]).out, "3 messages dropped from mail\n");
    assert_eq!(celery(&house, broker, &["purge", "-f"]).out, "0 messages dropped from celery\n");
}

#[test]
fn the_same_is_asked_and_told_over_rabbitmq() {
    let ((_redis, store), house) = (broker(), House::empty());
    let broker = windlass_servers::rabbitmq_url();
    let (queue, node) = (format!("doors-{:016x}", fastrand::u64(..)), format!("w{:016x}@test", fastrand::u64(..)));
    let celery = |args: &[&str]| {
        let variables = [("CELERY_BROKER_URL", broker.as_str()), ("CELERY_RESULT_BACKEND", &store)];
        house.run_with(&variables, &[&["celery"], args].concat())
    };
    for _ in 0..2 {
        assert_eq!(celery(&["call", "shop.add", "-a", "[1, 2]", "--queue", &queue]).code, 0);
    }
    assert_eq!(celery(&["purge", "-f", "-Q", &queue]).out, format!("2 messages dropped from {queue}\n"));
    let nowhere = celery(&["call", "noop", "--exchange", "nobody-has-declared-it", "--routing-key", "x"]);
    assert_eq!(nowhere.code, 1, "{nowhere:?}");

    let id = celery(&["call", "sleep", "-k", r#"{"duration": "1ms"}"#, "--queue", &queue]);
    let bridge = format!("celery+{broker}?results={store}");
    let mut worker = house.node(&["worker", "--name", &node, "--bridge", &bridge, "--store", &store, "-Q", &queue]);
    worker.wait_for("worker_ready");
    let result = celery(&["result", id.out.trim()]);
    assert_eq!((result.code, result.out.trim()), (0, "null"), "{result:?}");
    let ping = celery(&["inspect", "ping", "-d", &node, "-t", "30"]);
    assert_eq!(ping.out, format!("->  {node}: OK\n        pong\n\n1 node online.\n"), "{ping:?}");
    let bindings = celery(&["list", "bindings"]);
    assert!(bindings.err.contains("rabbitmqctl"), "{bindings:?}");
    assert_eq!(celery(&["control", "shutdown", "-d", &node, "-t", "0.1"]).code, 0);
    assert_eq!(worker.end(), Some(0));
}

#[test]
fn a_task_for_taskiq_is_sent_over_streams_and_rabbitmq() {
    let ((_redis, store), house) = (broker(), House::empty());
    let queue = format!("doors-{:016x}", fastrand::u64(..));
    let amqp = windlass_servers::rabbitmq_url();
    for url in [format!("{store}?kind=stream"), format!("taskiq+{amqp}?results={store}")] {
        let variable: &[(&str, &str)] = &[("TASKIQ_BROKER_URL", &url)];
        let sent = house.run_with(variable, &["taskiq", "task", "noop", "--queue", &queue]);
        assert_eq!(sent.code, 0, "{sent:?}");
        let bridge = if url.starts_with("taskiq+") { url.clone() } else { format!("taskiq+{url}") };
        let worker = ready(&house, &["worker", "--bridge", &bridge, "--store", &store, "-Q", &queue]);
        // It is in the store once it was taken.
        let state = || house.run(&["task", "show", sent.out.trim(), "--store", &store, "--json"]);
        while !state().out.contains("succeeded") {}
        worker.signal("TERM");
        assert_eq!(worker.end(), Some(0));
    }
    let silent = format!("{store}?kind=pubsub");
    let unheard = house.run_with(&[("TASKIQ_BROKER_URL", &silent)], &["taskiq", "task", "noop"]);
    assert_eq!(unheard.code, 1, "{unheard:?}");
    assert!(unheard.err.contains("nobody listens"), "{unheard:?}");
}

#[test]
#[cfg(unix)]
fn a_link_called_celery_is_celery_and_its_children_too() {
    let ((_redis, broker), house) = (broker(), House::empty());
    let broker = broker.as_str();
    let link = house.link("celery");
    let mut worker =
        house.node_of(&link, &["-b", broker, "worker", "-n", "w1@test", "-c", "1", "--max-tasks-per-child", "1"]);
    worker.wait_for("supervisor_starting");
    worker.wait_for("worker_ready");
    for _ in 0..2 {
        let id = celery(&house, broker, &["call", "noop"]);
        assert_eq!(celery(&house, broker, &["result", id.out.trim()]).out, "null\n");
    }
    worker.signal("TERM");
    assert_eq!(worker.end(), Some(0));
}

#[test]
fn a_node_takes_foreign_messages_without_the_door_too() {
    let ((_redis, broker), house) = (broker(), House::empty());
    let bridge = format!("celery+{broker}?prefix=shop:");
    let worker = ready(&house, &["worker", "--name", "w1@test", "--bridge", &bridge, "-Q", "mail"]);
    let id = celery(&house, &bridge, &["call", "noop", "--queue", "mail"]);
    assert_eq!(celery(&house, &bridge, &["result", id.out.trim()]).out, "null\n");
    // The task is in the store that every command of ours looks into.
    let task = house.json(&["task", "show", id.out.trim(), "--store", &broker]);
    assert_eq!((&task["state"], &task["queue"]), (&"succeeded".into(), &"mail".into()));
    let doctor = house.run_with(&[("WINDLASS_BRIDGE", &bridge)], &["doctor"]);
    assert!(doctor.out.contains("bridge") && doctor.out.contains("answers"), "{doctor:?}");
    worker.signal("TERM");
    assert_eq!(worker.end(), Some(0));
}

#[test]
fn what_cannot_be_done_is_refused_with_the_next_step() {
    let house = House::empty();
    for (args, says) in [
        (&["worker", "--bridge", "redis://h", "--lease", "1s"][..], "worker.lease"),
        (&["worker", "--bridge", "redis://h", "--lease", "1s"], "it begins with celery+redis://"),
        (&["worker", "--bridge", "celery+amqp://h"], "no store is named"),
        (&["config", "check", "--store", "x.db", "--profile", "none"], "no profile"),
        (&["celery", "worker"], "no broker is named"),
        (&["celery", "-b", "sqs://", "worker"], "a broker of the kind `sqs`"),
        (&["celery", "-b", "redis://h", "worker", "--detach"], "--detach"),
        (&["celery", "-b", "redis://h", "worker", "--concurency", "3"], "--concurrency"),
        (&["celery", "-b", "redis://h", "worker", "-Q", "a", "-X", "a"], "no queue is left"),
        (&["celery", "-b", "redis://h", "inspect", "pnig"], "did you mean `ping`?"),
        (&["celery", "flower"], "pip install flower"),
        (&["celery", "wroker"], "did you mean `worker`?"),
        (&["taskiq", "worker", "shop:broker"], "TASKIQ_BROKER_URL"),
        (&["taskiq", "worker"], "<MODULE:BROKER>"),
    ] {
        let said = house.run(args);
        assert_eq!(said.code, 2, "{args:?}: {said:?}");
        assert!(said.err.contains(says), "{args:?}: {said:?}");
    }
}

#[test]
fn a_bridge_shows_no_password_and_decides_what_nobody_has_set() {
    let house = House::empty();
    let bridge = "celery+redis://:hunter2@h/1?results=redis%3A%2F%2F%3Ahunter2%40h%2F2";
    let said = house.run_with(&[("WINDLASS_BRIDGE", bridge)], &["config", "show", "--origin", "--json"]);
    assert!(!said.out.contains("hunter2"), "{said:?}");
    let shown: Value = serde_json::from_str(&said.out).expect("JSON");
    let setting = |key: &str| {
        let settings = shown["settings"].as_array().expect("settings");
        let found = settings.iter().find(|one| one["key"] == key).expect("the key");
        (found["value"].clone(), found["origin"].clone())
    };
    assert_eq!(setting("store"), ("redis://***@h/1".into(), "follows from bridge".into()));
    assert_eq!(setting("worker.queues"), ("celery".into(), "follows from bridge".into()));
}

#[test]
fn a_worker_and_a_task_are_started_with_taskiqs_words() {
    let ((_redis, broker), house) = (broker(), House::empty());
    let variable: &[(&str, &str)] = &[("TASKIQ_BROKER_URL", &broker)];
    let mut command = house.command(&["taskiq", "worker", "shop.broker:broker", "--max-async-tasks", "3"]);
    let mut worker = Worker::of(command.envs(variable.iter().copied()));
    assert_eq!(worker.wait_for("worker_starting")["queues"], "taskiq=1000");
    worker.wait_for("worker_ready");
    let sent = house.run_with(variable, &["taskiq", "task", "noop", "--args", "[]"]);
    let id = sent.out.trim();
    // It is in the store once it was taken.
    let state = || house.run(&["task", "show", id, "--store", &broker, "--json"]);
    while !state().out.contains("succeeded") {}
    worker.signal("TERM");
    assert_eq!(worker.end(), Some(0));
}

#[test]
fn a_task_for_taskiq_is_sent_in_the_form_that_its_broker_reads() {
    let ((_redis, broker), house) = (broker(), House::empty());
    let url = format!("{broker}?kind=list");
    let variable: &[(&str, &str)] = &[("TASKIQ_BROKER_URL", &url)];
    let sent = house.run_with(variable, &["taskiq", "task", "shop.tasks:add", "--args", "[2, 3]"]);
    assert_eq!((sent.code, sent.out.trim().len()), (0, 36), "{sent:?}");
    let strange = format!("{broker}?kind=heap");
    let refused = house.run_with(&[("TASKIQ_BROKER_URL", &strange)], &["taskiq", "task", "shop.tasks:add"]);
    assert_eq!(refused.code, 2);
    assert!(refused.err.contains("ListQueueBroker"), "{refused:?}");
}
