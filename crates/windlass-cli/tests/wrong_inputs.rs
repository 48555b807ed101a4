//! Whatever is wrong with a command line, it is said clearly, with the documented exit code, and nothing is changed.

mod support;

use support::House;

/// Arguments, exit code, what standard error says.
type Case = (&'static [&'static str], i32, &'static str);

const CASES: &[Case] = &[
    (&["workr"], 2, "'worker'"),
    (&["task", "lss"], 2, "some similar subcommands exist: 'list', 'ls'"),
    (&["task", "ls", "--limt", "5"], 2, "'--limit'"),
    (&["task", "ls", "--limit", "0"], 2, "from 1 to 1000"),
    (&["task", "ls", "--limit", "1001"], 2, "from 1 to 1000"),
    (&["task", "ls", "-q", "nonsense"], 2, "`nonsense` is not part of a filter"),
    (&["task", "ls", "-q", "state:gone"], 2, "unknown state `gone`"),
    (&["task", "ls", "--tz", "Europe/Berlino"], 2, "did you mean `Europe/Berlin`?"),
    (&["task", "show", "nope"], 3, "nope is not known"),
    (&["task", "show", "two words"], 2, "invalid task id"),
    (&["task", "wait", "nope"], 3, "task `nope` is not known"),
    (&["task", "result", "nope"], 3, "task `nope` is not known"),
    (&["task", "result", "waits"], 4, "has not ended yet"),
    (&["task", "cancel"], 2, "nothing is selected to cancel"),
    (&["task", "cancel", "nope"], 3, "nope is not known"),
    (&["task", "cancel", "-q", "queue:default"], 6, "add `--yes`"),
    (&["task", "retry", "waits"], 4, "waits is scheduled: it cannot be retried"),
    (&["task", "retry", "-q", "state:running"], 2, "tasks that are running cannot be retried"),
    (&["task", "move", "waits", "--to", "two words"], 2, "invalid queue name"),
    (&["task", "prioritise", "waits", "--to", "11"], 2, "0 (last) to 9 (first)"),
    (&["task", "definitions", "nop"], 3, "did you mean `noop`?"),
    (&["dlq", "ls", "-q", "state:ready"], 2, "in the state dead only"),
    (&["dlq", "retry", "waits"], 4, "waits is scheduled"),
    (&["queue", "show", "defualt"], 3, "did you mean `default`?"),
    (&["node", "show", "nope"], 3, "no node `nope`"),
    (&["node", "stop", "nope"], 3, "no node `nope`"),
    (&["node", "resize", "nope", "--slots", "20000"], 2, "more than a node can have"),
    (&["schedule", "show", "nope"], 3, "no schedule `nope`"),
    (&["schedule", "add", "x", "noop"], 2, "it is not said when it fires"),
    (&["schedule", "add", "x", "noop", "--every", "10ms"], 2, "from 1s to 366d"),
    (&["schedule", "add", "x", "noop", "--cron", "61 * * * *"], 2, "`61` in the minute field"),
    (&["schedule", "add", "x", "nop", "--every", "1m"], 3, "did you mean `noop`?"),
    (&["schedule", "add", "x", "noop", "--at", "2001-01-01T00:00:00Z"], 2, "its only time has passed"),
    (&["schedule", "next"], 2, "no schedule is named"),
    (&["enqueue", "nop"], 3, "did you mean `noop`?"),
    (&["enqueue", "no such"], 2, "invalid task name"),
    (&["enqueue", "sleep"], 2, "missing argument `duration`"),
    (&["enqueue", "sleep", "--arg", "duratoin=5s"], 2, "did you mean `duration`?"),
    (&["enqueue", "sleep", "--arg", "duration=5"], 2, "invalid duration `5`"),
    (
        &["enqueue", "sleep", "--args", r#"{"duration": 5}"#],
        2,
        "argument `duration`: text is expected, not the number 5",
    ),
    (&["enqueue", "sleep", "--args", r#"["1s", "2s"]"#], 2, "2 positional arguments were given, the task takes 1"),
    (&["enqueue", "noop", "--args", "{"], 2, "not valid JSON"),
    (&["enqueue", "noop", "--args", "5"], 2, "must be a JSON object"),
    (&["enqueue", "noop", "--args", "@nofile"], 2, "cannot read `nofile`"),
    (&["enqueue", "noop", "--at", "tomorrow"], 2, "invalid time `tomorrow`"),
    (&["enqueue", "noop", "--delay", "5"], 2, "invalid duration `5`"),
    (&["enqueue", "noop", "--delay", "5000d"], 2, "due in more than ten years"),
    (&["enqueue", "noop", "--retries", "100000"], 2, "retries"),
    (&["enqueue", "noop", "--header", "x"], 2, "NAME=VALUE"),
    (&["enqueue", "noop", "--from", "nofile"], 2, "cannot read `nofile`"),
    (&["enqueue", "noop", "--rate", "5/s"], 2, "--from"),
    (&["enqueue", "noop", "--from", "-", "--rate", "5/x"], 2, "50/s, 3000/m or 10/h"),
    (&["enqueue", "noop", "--store", "memory:"], 2, "lives as long as this command"),
    (&["enqueue", "noop", "--store", "no/such/folder/x.db"], 5, "no/such/folder"),
    (&["enqueue", "noop", "--store", "."], 5, "try:"),
    (&["run", "nop"], 3, "did you mean `noop`?"),
    (&["worker", "-c", "0"], 2, "flag --concurrency: worker.slots"),
    (&["worker", "--lease", "1s"], 2, "write a duration from 3s"),
    (&["worker", "-Q", "a,a"], 2, "named twice"),
    (&["worker", "--store", "mysql://root:hunter2@db/x"], 2, "is not the URL of a store"),
    (&["worker", "--config", "nofile.toml"], 2, "nofile.toml"),
    (&["config", "show", "worker.slot"], 3, "did you mean `worker.slots`?"),
    (&["completions", "tcsh"], 2, "possible values"),
];

#[test]
fn every_wrong_input_is_answered_with_its_exit_code_and_the_next_step() {
    let house = House::new();
    assert_eq!(house.run(&["enqueue", "noop", "--id", "waits", "--delay", "1h"]).code, 0);
    for (args, code, text) in CASES {
        let said = house.run(args);
        assert_eq!(said.code, *code, "{args:?}: {said:?}");
        assert!(said.err.contains(text), "{args:?}: `{text}` is not in {}", said.err);
        assert!(!said.err.contains("panic") && !said.err.contains("hunter2"), "{args:?}: {}", said.err);
        let next = ["  try: ", "try '--help'", "tip:", "is not known"];
        assert!(
            next.iter().any(|next| said.err.contains(next)) || said.err.contains("cannot be"),
            "{args:?}: {}",
            said.err
        );
    }
    let tasks = house.json(&["task", "ls"]);
    assert_eq!(tasks["tasks"].as_array().map(Vec::len), Some(1), "nothing was changed: {tasks}");
}

#[test]
fn a_store_that_is_not_there_is_not_made_by_looking_at_it() {
    let house = House::empty();
    for args in [&["task", "ls"][..], &["queue", "ls"], &["node", "ls"], &["schedule", "ls"], &["migrate", "status"]] {
        let said = house.run(args);
        assert_eq!(said.code, 5, "{args:?}: {said:?}");
        assert!(said.err.contains("there is no store at `windlass.db`"), "{args:?}: {}", said.err);
    }
    assert_eq!(house.run(&["health"]).code, 1);
    assert_eq!(house.run(&["doctor"]).code, 1);
    assert!(!house.path().join("windlass.db").exists());
}

#[test]
fn a_file_that_is_no_store_is_refused_and_left_alone() {
    let house = House::empty();
    let content = "this is not a database, it only has its name ".repeat(100);
    house.write("windlass.db", &content);
    for args in [&["task", "ls"][..], &["enqueue", "noop"], &["worker"]] {
        let said = house.run(args);
        assert_eq!(said.code, 5, "{args:?}: {said:?}");
        assert!(said.err.contains("try:"), "{args:?}: {}", said.err);
    }
    let left = std::fs::read_to_string(house.path().join("windlass.db")).expect("it is still there");
    assert_eq!(left, content);
}

#[test]
fn every_problem_of_the_configuration_is_reported_at_once() {
    let house = House::new();
    house.write("windlass.toml", "stroe = \"x\"\n[worker]\nslots = \"many\"\n");
    let said = house.run(&["task", "ls"]);
    assert_eq!(said.code, 2, "{said:?}");
    for text in ["windlass.toml:1", "did you mean `store`?", "windlass.toml:3", "worker.slots"] {
        assert!(said.err.contains(text), "`{text}` is not in {}", said.err);
    }
    assert_eq!(house.run(&["config", "check"]).code, 2);
    assert_eq!(house.run(&["doctor"]).code, 1);
}

#[test]
fn arguments_that_are_hostile_are_refused() {
    let house = House::new();
    let deep = "[".repeat(10_000) + &"]".repeat(10_000);
    let said = house.feed(&["enqueue", "noop", "--args", "-"], deep);
    assert!(said.code == 2 && said.err.contains("deep"), "{said:?}");
    let said = house.feed(&["enqueue", "noop", "--args", "-"], vec![b'x'; 5 << 20]);
    assert!(said.code == 2 && said.err.contains("arguments take more than"), "{said:?}");
    let said = house.feed(&["enqueue", "noop", "--args", "-"], b"\"\xff\"".to_vec());
    assert!(said.code == 2 && said.err.contains("not UTF-8"), "{said:?}");
    assert_eq!(house.json(&["task", "ls"])["tasks"], serde_json::json!([]));
}
