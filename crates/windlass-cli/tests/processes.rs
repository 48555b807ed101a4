//! `worker --processes`: children that are killed, stopped, too many, too few, or cannot start.

#![cfg(target_os = "linux")]

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::{House, Worker};

/// Long enough for everything that must happen soon.
const PATIENCE: Duration = Duration::from_secs(60);

/// A supervisor whose children take tasks; with the number of each child's process.
fn crew(house: &House, children: usize, flags: &[&str]) -> (Worker, Vec<String>) {
    let count = children.to_string();
    let mut worker = house.starting_worker("w1", &[&["--processes", &count], flags].concat());
    let pids = (0..children).map(|_| pid(&worker.wait_for("child_started"))).collect();
    for _ in 0..children {
        worker.wait_for("worker_ready");
    }
    (worker, pids)
}

fn pid(line: &Value) -> String {
    line["child_pid"].as_u64().expect("a number").to_string()
}

fn signal(name: &str, pid: &str) {
    let sent = std::process::Command::new("kill").args([&format!("-{name}"), pid]).status();
    assert!(sent.expect("`kill` is there").success());
}

/// Whether a process lives; one that nobody has taken away yet does not.
fn lives(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')))
}

/// The names of the nodes that live.
fn alive(house: &House) -> Vec<String> {
    let nodes = house.json(&["node", "ls", "--alive"]);
    let ids = nodes["nodes"].as_array().into_iter().flatten().filter_map(|node| node["id"].as_str());
    let mut names: Vec<String> = ids.map(str::to_owned).collect();
    names.sort_unstable();
    names
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        // tidy: allow(sleep): the pause between two looks at another process
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn children_share_the_load_and_a_signal_ends_all_of_them_in_order() {
    let house = House::new();
    let (worker, pids) = crew(&house, 2, &["--slots", "1"]);
    until("supervisor and children are in the fleet", || alive(&house) == ["w1", "w1-1", "w1-2"]);
    for id in ["a", "b"] {
        assert_eq!(house.run(&["enqueue", "sleep", "--arg", "duration=2s", "--id", id]).code, 0);
    }
    let node = |id: &str| house.json(&["task", "show", id])["node"].as_str().map(str::to_owned);
    until("each child has one of them", || node("a").is_some() && node("b").is_some() && node("a") != node("b"));
    worker.signal("TERM");
    assert_eq!(worker.end(), Some(0));
    for id in ["a", "b"] {
        assert_eq!(house.json(&["task", "show", id])["state"], "succeeded", "what ran was finished");
    }
    assert!(pids.iter().all(|pid| !lives(pid)));
}

#[test]
fn a_second_signal_gives_back_what_runs_at_once() {
    let house = House::new();
    let (mut worker, _) = crew(&house, 1, &["-v"]);
    assert_eq!(house.run(&["enqueue", "sleep", "--arg", "duration=1h", "--id", "long"]).code, 0);
    worker.wait_for("task_started");
    worker.signal("TERM");
    worker.wait_for("worker_draining");
    worker.signal("TERM");
    let began = Instant::now();
    assert_eq!(worker.end(), Some(143));
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let task = house.json(&["task", "show", "long"]);
    assert_eq!((&task["state"], &task["history"]), (&"ready".into(), &serde_json::json!([])));
}

#[test]
fn a_child_that_is_killed_is_replaced_and_nothing_of_its_tasks_stays_behind() {
    let house = House::new();
    house.write("windlass.toml", "[tasks]\nshell = true\n");
    let (mut worker, pids) = crew(&house, 1, &["--lease", "3s"]);
    let script = "echo $$ > shell.pid; (sleep 600) & wait";
    let script = format!("script={script}");
    assert_eq!(house.run(&["enqueue", "shell.run", "--arg", &script, "--id", "s"]).code, 0);
    let file = house.path().join("shell.pid");
    let shell = || std::fs::read_to_string(&file).unwrap_or_default().trim().to_owned();
    until("the shell runs", || !shell().is_empty());
    let first = shell();
    assert!(lives(&first));
    signal("KILL", &pids[0]);
    let ended = worker.wait_for("child_ended");
    assert_eq!((&ended["child"], &ended["signal"]), (&"w1-1".into(), &9.into()));
    until("the shell has ended too", || !lives(&first));
    assert_eq!(worker.wait_for("child_backoff")["again_in_ms"], 1_000);
    assert_ne!(pid(&worker.wait_for("child_started")), pids[0]);
    worker.wait_for("worker_ready");
    until("the task runs again, in the new child", || shell() != first && !shell().is_empty());
    worker.signal("TERM");
    worker.wait_for("worker_draining");
    worker.signal("TERM");
    worker.end();
}

#[test]
fn a_child_that_says_nothing_is_killed_and_replaced() {
    let house = House::new();
    let (mut worker, pids) = crew(&house, 2, &[]);
    signal("STOP", &pids[1]);
    let stopped_at = Instant::now();
    let killed = worker.wait_for("child_killed");
    assert_eq!(pid(&killed), pids[1]);
    let took = stopped_at.elapsed();
    println!("a silent child was killed after {took:?}");
    assert!(took > Duration::from_secs(8) && took < Duration::from_secs(25), "{took:?}");
    worker.wait_for("child_started");
    worker.wait_for("worker_ready");
    assert!(lives(&pids[0]) && !lives(&pids[1]));
    worker.signal("TERM");
    assert_eq!(worker.end(), Some(0));
}

#[test]
fn children_that_cannot_start_are_tried_again_later_and_later() {
    let house = House::empty();
    let mut worker = house.starting_worker("w1", &["--processes", "1", "--store", "redis://127.0.0.1:1"]);
    let waits: Vec<u64> =
        (0..3).map(|_| worker.wait_for("child_backoff")["again_in_ms"].as_u64().expect("a number")).collect();
    assert_eq!(waits, [1_000, 2_000, 4_000]);
    worker.signal("TERM");
    let began = Instant::now();
    assert_eq!(worker.end(), Some(0));
    assert!(began.elapsed() < Duration::from_secs(3), "it has waited for a child that is not there");
}

#[test]
fn signals_and_orders_make_the_crew_larger_and_smaller() {
    let house = House::new();
    let (mut worker, _) = crew(&house, 1, &[]);
    worker.signal("TTIN");
    assert_eq!(worker.wait_for("child_started")["child"], "w1-2");
    worker.wait_for("worker_ready");
    worker.signal("TTOU");
    assert_eq!(worker.wait_for("child_ended")["child"], "w1-2");
    assert_eq!(house.run(&["node", "resize", "w1", "--slots", "2"]).code, 2, "it is a supervisor");
    assert_eq!(house.run(&["node", "resize", "w1-1", "--processes", "2"]).code, 2, "it is none");
    assert_eq!(house.run(&["node", "resize", "w1", "--processes", "2"]).code, 0);
    assert_eq!(worker.wait_for("child_started")["child"], "w1-2");
    worker.wait_for("worker_ready");
    assert_eq!(house.run(&["node", "quiet", "w1"]).code, 0);
    worker.wait_for("worker_quiet");
    worker.wait_for("worker_quiet");
    assert_eq!(house.run(&["node", "resume", "w1"]).code, 0);
    worker.wait_for("worker_ready");
    worker.wait_for("worker_ready");
    assert_eq!(house.run(&["node", "resize", "w1", "--processes", "1"]).code, 0);
    assert_eq!(worker.wait_for("child_ended")["child"], "w1-2");
    worker.signal("USR1");
    assert_eq!(worker.wait_for("worker_quiet")["worker_id"], "w1-1");
    assert_eq!(house.run(&["node", "stop", "w1"]).code, 0);
    assert_eq!(worker.end(), Some(0));
    assert_eq!(alive(&house), Vec::<String>::new(), "it has said farewell");
}

#[test]
fn children_end_with_their_supervisor_however_it_ends() {
    let house = House::new();
    let (worker, pids) = crew(&house, 2, &[]);
    worker.signal("KILL");
    until("the children have ended", || pids.iter().all(|pid| !lives(pid)));
    let left = alive(&house);
    assert!(!left.iter().any(|name| name.starts_with("w1-")), "they have said that they leave: {left:?}");
}

#[test]
fn nobody_is_a_child_without_a_supervisor() {
    let house = House::new();
    let said = house.run(&["worker", "--child-number", "1", "--child-name", "w1-1"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("no supervisor") && said.err.contains("--processes"), "{said:?}");
}
