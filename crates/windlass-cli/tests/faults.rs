//! Real processes that are killed, and a file that goes away: nothing is lost, and whoever is left says what is wrong.

mod support;

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use support::House;

fn enqueue(house: &House, args: &[&str]) -> String {
    let said = house.run(&[&["enqueue"], args].concat());
    assert_eq!(said.code, 0, "{said:?}");
    said.out.trim().to_owned()
}

fn state(house: &House, id: &str) -> String {
    house.json(&["task", "show", id])["state"].as_str().expect("a state").to_owned()
}

#[test]
fn a_worker_that_is_killed_loses_no_task_in_any_state() {
    let house = House::new();
    let scheduled = enqueue(&house, &["noop", "--delay", "1h"]);
    let ready = enqueue(&house, &["noop", "--queue", "nobody-listens"]);
    let succeeded = enqueue(&house, &["noop"]);
    let dead = enqueue(&house, &["fail", "--arg", "message=on purpose", "--arg", "fatal=true"]);
    let parked = enqueue(&house, &["unheard-of", "--unregistered"]);
    let running = enqueue(&house, &["sleep", "--arg", "duration=1s"]);
    let mut first = house.worker(&["--lease", "3s", "-v"]);
    while first.wait_for("task_started")["task_id"] != running.as_str() {}
    for id in [&succeeded, &dead] {
        assert!(house.run(&["task", "wait", id, "--timeout", "30s"]).code < 2);
    }
    first.signal("KILL");
    drop(first);

    for (id, expected) in
        [(&scheduled, "scheduled"), (&ready, "ready"), (&succeeded, "succeeded"), (&dead, "dead"), (&parked, "parked")]
    {
        assert_eq!(state(&house, id), expected);
    }
    assert_eq!(state(&house, &running), "running", "its lease holds for a while");
    let _second = house.worker_named("w2", &["--lease", "3s"]);
    assert_eq!(house.run(&["task", "wait", &running, "--timeout", "60s"]).code, 0);
    let record = house.json(&["task", "show", &running]);
    assert_eq!((record["attempt"].as_u64(), record["crashes"].as_u64()), (Some(2), Some(0)));
    assert_eq!(record["history"][0]["failure"]["class"], "worker_lost");
}

#[test]
fn every_id_that_a_killed_producer_printed_is_stored() {
    let house = House::new();
    house.write("tasks.ndjson", "{}\n".repeat(200_000));
    let mut producer = house
        .command(&["enqueue", "noop", "--from", "tasks.ndjson"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut lines = BufReader::new(producer.stdout.take().expect("its output is piped")).lines();
    let mut printed: Vec<String> = (&mut lines).take(2_000).map(|line| line.expect("text")).collect();
    producer.kill().expect("it is still at work");
    producer.wait().expect("it ends");
    // What was in the pipe when it died was printed as well; its last line may be half of one.
    printed.extend(lines.map_while(Result::ok).filter(|line| line.len() == 36));
    let stored = house.json(&["queue", "show", "default"])["ready"].as_u64().expect("a count");
    assert!(stored >= printed.len() as u64, "{} printed, {stored} stored", printed.len());
    for id in [&printed[0], &printed[1_999], &printed[printed.len() - 1]] {
        assert_eq!(state(&house, id), "ready");
    }
}

#[test]
fn a_worker_whose_file_is_deleted_says_so_and_still_stops_when_it_is_told_to() {
    let house = House::new();
    let mut worker = house.worker(&["--grace", "1s"]);
    for name in ["windlass.db", "windlass.db-wal", "windlass.db-shm"] {
        std::fs::remove_file(house.path().join(name)).expect("the store is made of these files");
    }
    let line = worker.wait_for("store_failed");
    let error = line["error"].as_str().expect("a text");
    assert!(error.contains("windlass.db") && (error.contains("gone") || error.contains("deleted")), "{error}");
    worker.signal("TERM");
    assert!(worker.end().is_some(), "it ended by itself");
}

#[test]
fn a_worker_whose_stopped_process_goes_on_settles_nothing_twice() {
    let house = House::new();
    let id = enqueue(&house, &["sleep", "--arg", "duration=2s"]);
    let mut first = house.worker(&["--lease", "3s", "-v"]);
    first.wait_for("task_started");
    first.signal("STOP");
    let _second = house.worker_named("w2", &["--lease", "3s"]);
    assert_eq!(house.run(&["task", "wait", &id, "--timeout", "60s"]).code, 0);
    first.signal("CONT");
    // It learns from its next renewal or settle that the task is not its own any more.
    first.signal("TERM");
    assert_eq!(first.end(), Some(0));
    let record = house.json(&["task", "show", &id]);
    assert_eq!((record["attempt"].as_u64(), record["node"].as_str()), (Some(2), Some("w2")));
    assert_eq!(house.json(&["queue", "show", "default"])["succeeded"], 1);
}

#[test]
fn a_worker_that_is_told_to_stop_before_its_store_has_opened_ends_in_order() {
    let house = House::empty();
    // A server that takes the connection and never says a word.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("redis://{}", silent.local_addr().expect("it is bound"));
    let worker = house.starting_worker("w1", &["--store", &url]);
    let _connected = silent.accept().expect("the worker connects");
    worker.signal("TERM");
    let began = std::time::Instant::now();
    assert_eq!(worker.end(), Some(0));
    assert!(began.elapsed() < std::time::Duration::from_secs(3), "it has waited for the store: {:?}", began.elapsed());
}
