//! The commands on a real store: what they print, what they change, how they end.

mod support;

use std::io::Read;
use std::process::Stdio;

use serde_json::json;
use support::House;

#[test]
fn a_task_goes_from_enqueue_to_its_result() {
    let house = House::new();
    let worker = house.worker(&[]);
    let task = house.json(&["enqueue", "sleep", "--arg", "duration=1ms", "--key", "acme"]);
    assert_eq!((&task["name"], &task["fresh"], &task["schema_version"]), (&json!("sleep"), &json!(true), &json!(1)));
    let id = task["id"].as_str().expect("an id");
    assert_eq!(house.run(&["task", "wait", id, "--timeout", "1m"]).code, 0);
    assert_eq!(house.json(&["task", "result", id])["state"], "succeeded");
    assert_eq!(house.json(&["task", "ls", "-q", "key:acme state:succeeded"])["tasks"][0]["id"], id);
    assert_eq!(house.run(&["run", "noop", "--timeout", "1m"]).out, "null\n");
    let nodes = house.json(&["node", "ls"]);
    assert_eq!((&nodes["nodes"][0]["id"], &nodes["nodes"][0]["alive"]), (&json!("w1"), &json!(true)));
    assert_eq!(house.run(&["health", "--node", "w1"]).code, 0);
    worker.signal("TERM");
    assert_eq!(worker.end(), Some(0));
    assert_eq!(house.run(&["health"]).code, 1, "nobody works any more");
}

#[test]
fn a_task_that_gives_up_is_found_counted_and_replayed() {
    let house = House::new();
    let worker = house.worker(&[]);
    let said =
        house.run(&["enqueue", "fail", "--arg", "message=boom", "--arg", "fatal=true", "--id", "f1", "--wait=1m"]);
    assert_eq!(said.code, 1, "{said:?}");
    assert!(said.err.contains("the task gave up") && said.err.contains("boom"), "{said:?}");
    worker.signal("TERM");
    worker.end();
    let task = house.json(&["task", "show", "f1"]);
    assert_eq!((&task["state"], &task["failure"]["message"]), (&json!("dead"), &json!("boom")));
    let stats = house.json(&["dlq", "stats"]);
    assert_eq!((&stats["total"], &stats["groups"][0]["task"]), (&json!(1), &json!("fail")));
    let exported = house.run(&["dlq", "export"]);
    assert_eq!(exported.out.lines().count(), 1);
    assert_eq!(house.run(&["dlq", "retry", "--all", "--dry-run"]).out, "1 task would be retried\n");
    assert_eq!(house.run(&["dlq", "retry", "--all"]).code, 6);
    assert_eq!(house.run(&["dlq", "retry", "--all", "--yes"]).out, "1 task retried\n");
    assert_eq!(house.json(&["task", "show", "f1"])["state"], "ready");
}

#[test]
fn tasks_are_changed_by_id_by_query_and_from_standard_input() {
    let house = House::new();
    for id in ["a", "b", "c"] {
        assert_eq!(house.run(&["enqueue", "noop", "--id", id, "--delay", "1h"]).out, format!("{id}\n"));
    }
    assert_eq!(house.run(&["task", "move", "a", "--to", "slow"]).code, 0);
    assert_eq!(house.run(&["task", "prioritise", "a", "--to", "9"]).code, 0);
    assert_eq!(house.run(&["task", "now", "-q", "queue:slow", "--yes"]).out, "1 task started\n");
    let task = house.json(&["task", "show", "a"]);
    assert_eq!((&task["queue"], &task["priority"], &task["state"]), (&json!("slow"), &json!(9), &json!("ready")));
    let ids = house.run(&["task", "ls", "-q", "queue:default", "-o", "id"]).out;
    assert_eq!(ids, "c\nb\n");
    assert_eq!(house.feed(&["task", "cancel", "--stdin"], ids).out, "2 tasks cancelled\n");
    let said = house.run(&["task", "cancel", "a", "b", "nope", "--json"]);
    assert_eq!(said.code, 7);
    let said: serde_json::Value = serde_json::from_str(&said.out).expect("JSON");
    assert_eq!(said["changed"], 1);
    assert_eq!(said["unchanged"], json!([{"id": "b", "state": "cancelled"}, {"id": "nope", "state": null}]));
}

#[test]
fn everything_is_moved_to_another_store_and_the_old_one_stays_closed() {
    let house = House::new();
    let worker = house.worker(&[]);
    assert_eq!(house.run(&["enqueue", "noop", "--id", "done", "--wait=1m"]).code, 0);
    assert_eq!(house.run(&["enqueue", "fail", "--arg", "fatal=true", "--id", "letter", "--wait=1m"]).code, 1);
    house.run(&["enqueue", "sleep", "--arg", "duration=300ms", "--id", "running"]);
    house.run(&["enqueue", "noop", "--id", "later", "--delay", "1h"]);
    house.run(&["queue", "pause", "slow"]);
    house.run(&["schedule", "add", "nightly", "noop", "--cron", "0 3 * * *"]);
    let old = ["--from", "windlass.db", "--to", "sqlite:new.db"];
    let seen = house.json(&[&["transfer", "--dry-run"], &old[..]].concat());
    assert_eq!((&seen["scheduled"], &seen["dead"], &seen["schedules"]), (&json!(1), &json!(1), &json!(1)));
    assert_eq!(house.run(&[&["transfer"], &old[..]].concat()).code, 6, "nobody is there to be asked");

    // The worker holds a task: that is waited for.
    let moved = house.json(&[&["transfer", "--yes"], &old[..]].concat());
    assert_eq!(
        (&moved["live"], &moved["dead"], &moved["ended"], &moved["schedules"]),
        (&json!(1), &json!(1), &json!(2), &json!(1))
    );
    let new = |args: &[&str]| house.json(&[args, &["--store", "new.db"]].concat());
    for (id, state) in [("done", "succeeded"), ("letter", "dead"), ("running", "succeeded"), ("later", "scheduled")] {
        assert_eq!(new(&["task", "show", id])["state"], state, "{id}");
    }
    assert_eq!(new(&["schedule", "show", "nightly"])["id"], "nightly");
    assert_eq!(new(&["queue", "show", "slow"])["paused"], true);
    assert_eq!(house.json(&["task", "ls"])["tasks"], json!([]));

    // What is pushed to the old store is not started there, and is moved by the next run.
    house.run(&["enqueue", "noop", "--id", "late"]);
    assert_eq!(house.run(&["task", "wait", "late", "--timeout", "300ms"]).code, 8);
    let again = house.json(&[&["transfer", "--yes"], &old[..]].concat());
    assert_eq!((&again["live"], &again["known"]), (&json!(1), &json!(0)));
    assert_eq!(house.json(&["queue", "ls"])["closed"], true);
    assert_eq!(house.json(&["transfer", "--reopen", "windlass.db"])["opened"], true);
    assert_eq!(house.run(&["enqueue", "noop", "--wait=1m"]).code, 0);
    worker.signal("TERM");
    worker.end();
}

#[test]
fn a_store_is_not_moved_into_itself() {
    let house = House::new();
    house.run(&["enqueue", "noop", "--id", "a"]);
    let said = house.run(&["transfer", "--yes", "--from", "windlass.db", "--to", "./windlass.db"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("the same store"), "{said:?}");
    assert_eq!(house.json(&["task", "show", "a"])["state"], "ready");
    assert_eq!(house.json(&["queue", "ls"])["closed"], false);
}

#[test]
fn a_listing_goes_on_where_it_ended() {
    let house = House::new();
    house.feed(&["enqueue", "noop", "--from", "-"], "{}\n".repeat(5));
    let first = house.json(&["task", "ls", "--limit", "3"]);
    let next = first["next"].as_str().expect("there is more");
    let second = house.json(&["task", "ls", "--limit", "3", "--after", next]);
    assert_eq!(first["tasks"].as_array().map(Vec::len), Some(3));
    assert_eq!(second["tasks"].as_array().map(Vec::len), Some(2));
    assert_ne!(first["tasks"][2]["id"], second["tasks"][0]["id"]);
}

#[test]
fn lines_that_do_not_fit_are_named_and_the_rest_is_enqueued() {
    let house = House::new();
    let lines = b"{\"duration\": \"1s\"}\n[\"2s\"]\nnonsense\n\xff\n{\"args\": [\"1s\"], \"id\": \"own\", \"delay\": \"1h\"}\n{\"duration\": 5}\n";
    let said = house.feed(&["enqueue", "sleep", "--from", "-"], lines.to_vec());
    assert_eq!(said.code, 7, "{said:?}");
    assert_eq!(said.out.lines().count(), 3);
    for text in
        ["line 3: ", "line 4: it is not UTF-8", "line 6: argument `duration`", "enqueued 3 tasks, 3 lines refused"]
    {
        assert!(said.err.contains(text), "`{text}` is not in {}", said.err);
    }
    assert_eq!(house.json(&["task", "show", "own"])["state"], "scheduled");
    let said = house.feed(&["enqueue", "sleep", "--from", "-"], "nonsense\n");
    assert_eq!(said.code, 1, "{said:?}");
    let said = house.feed(&["enqueue", "sleep", "--from", "-", "--json"], "[\"1s\"]\n");
    let printed: serde_json::Value = serde_json::from_str(&said.out).expect("one object");
    assert_eq!((&printed["enqueued"], &printed["tasks"][0]["line"]), (&json!(1), &json!(1)));
}

#[test]
fn a_unique_key_and_an_id_are_taken_once() {
    let house = House::new();
    let first = house.json(&["enqueue", "noop", "--unique", "nightly"]);
    let second = house.json(&["enqueue", "noop", "--unique", "nightly"]);
    assert_eq!((&second["fresh"], &second["id"]), (&json!(false), &first["id"]));
    let other = house.json(&["enqueue", "sleep", "--arg", "duration=1s", "--unique", "nightly"]);
    assert_eq!(other["fresh"], true, "keys of different tasks never meet");
}

#[test]
fn a_task_of_another_program_is_enqueued_only_when_that_is_said() {
    let house = House::new();
    assert_eq!(house.run(&["enqueue", "send_mail", "--arg", "to=x"]).code, 3);
    assert_eq!(house.run(&["enqueue", "send_mail", "--arg", "to=x", "--unregistered"]).code, 0);
    assert_eq!(house.json(&["task", "ls"])["tasks"][0]["arguments"], json!({"to": "x"}));
}

#[test]
fn a_task_runs_without_a_store() {
    let house = House::empty();
    assert_eq!(house.run(&["run", "noop", "--inline"]).out, "null\n");
    let said = house.run(&["run", "fail", "--inline", "--arg", "message=boom"]);
    assert!(said.code == 1 && said.err.contains("boom"), "{said:?}");
    let said = house.run(&["run", "sleep", "--inline", "--arg", "duration=1h", "--timeout", "50ms"]);
    assert_eq!(said.code, 8, "{said:?}");
    assert!(!house.path().join("windlass.db").exists());
}

#[test]
fn queues_and_tasks_are_paused_and_resumed() {
    let house = House::new();
    assert_eq!(house.run(&["queue", "pause", "mail"]).out, "paused\n");
    assert_eq!(house.run(&["queue", "pause", "mail"]).out, "paused; 1 of 1 had been already\n");
    assert_eq!(house.json(&["queue", "show", "mail"])["paused"], true);
    assert_eq!(house.run(&["task", "pause", "noop"]).code, 0);
    assert_eq!(house.json(&["queue", "ls"])["paused_tasks"], json!(["noop"]));
    assert_eq!(house.run(&["task", "resume", "noop"]).code, 0);
    assert_eq!(house.run(&["queue", "resume", "mail"]).out, "resumed\n");
    assert_eq!(house.json(&["queue", "ls"])["queues"], json!([]), "it never had a task");
}

#[test]
fn a_schedule_is_made_changed_paused_run_and_removed() {
    let house = House::new();
    let add = ["schedule", "add", "nightly", "sleep", "--cron", "0 3 * * *", "--zone", "Europe/Berlin"];
    assert_eq!(house.run(&[&add[..], &["--arg", "duration=1ms", "--overlap", "skip"]].concat()).code, 0);
    assert_eq!(house.run(&[&add[..], &["--arg", "duration=1ms"]].concat()).code, 4);
    let shown = house.json(&["schedule", "show", "nightly"]);
    assert_eq!((&shown["words"], &shown["overlap"]), (&json!("every day at 03:00 in Europe/Berlin"), &json!("skip")));
    assert_eq!(house.run(&["schedule", "edit", "nightly", "--cron", "30 4 * * *", "--jitter", "5s"]).code, 0);
    let shown = house.json(&["schedule", "show", "nightly"]);
    assert_eq!((&shown["words"], &shown["jitter"]), (&json!("every day at 04:30 in Europe/Berlin"), &json!("5s")));
    assert_eq!(shown["overlap"], "skip", "what is not named stays");
    assert_eq!(house.run(&["schedule", "edit", "nightly"]).code, 2);
    assert_eq!(house.run(&["schedule", "pause", "nightly"]).out, "1 schedule paused\n");
    let pushed = house.json(&["schedule", "run", "nightly"]);
    let task = house.json(&["task", "show", pushed["id"].as_str().expect("an id")]);
    assert_eq!((&task["name"], &task["source"]["schedule"]["id"]), (&json!("sleep"), &json!("nightly")));
    let slots = house.json(&["schedule", "next", "nightly", "-n", "3", "--after", "2026-03-28T00:00:00Z"]);
    assert_eq!(slots["slots"][1]["slot"], "2026-03-29T02:30:00.000000Z");
    assert_eq!(house.run(&["schedule", "rm", "nightly"]).code, 0);
    assert_eq!(house.json(&["schedule", "ls"])["schedules"], json!([]));
}

#[test]
fn a_second_signal_gives_back_what_runs_at_once() {
    let house = House::new();
    let mut worker = house.worker(&["--grace", "1h"]);
    house.run(&["enqueue", "sleep", "--id", "long", "--arg", "duration=1h", "--wait=1ms"]);
    // Whoever asks what runs until it does waits for an event of the store, not for a time.
    while house.json(&["task", "show", "long"])["state"] != "running" {}
    worker.signal("USR2");
    assert_eq!(worker.wait_for("task_running")["task_id"], "long");
    worker.signal("INT");
    worker.wait_for("worker_draining");
    worker.signal("INT");
    assert_eq!(worker.end(), Some(130));
    let task = house.json(&["task", "show", "long"]);
    assert_eq!((&task["state"], &task["attempt"]), (&json!("ready"), &json!(0)), "given back, no attempt spent");
}

#[test]
fn a_quiet_node_takes_tasks_again_when_it_is_told_so() {
    let house = House::new();
    let mut worker = house.worker(&[]);
    worker.signal("USR1");
    worker.wait_for("worker_quiet");
    house.until_listed("w1");
    assert_eq!(house.run(&["node", "resume", "w1"]).code, 0);
    worker.wait_for("worker_ready");
    assert_eq!(house.run(&["node", "stop", "w1"]).code, 0);
    assert_eq!(worker.end(), Some(0));
}

#[test]
fn log_lines_carry_the_documented_fields() {
    let house = House::new();
    let mut worker = house.worker(&["-v"]);
    house.run(&["enqueue", "noop", "--id", "n1"]);
    let line = worker.wait_for("task_succeeded");
    for field in [
        "timestamp",
        "level",
        "event",
        "message",
        "task_name",
        "task_id",
        "queue",
        "attempt",
        "duration_ms",
        "wait_ms",
        "worker_id",
        "service",
        "version",
    ] {
        assert!(line.get(field).is_some(), "{field}: {line}");
    }
    assert_eq!((&line["level"], &line["task_id"], &line["worker_id"]), (&json!("debug"), &json!("n1"), &json!("w1")));
    worker.signal("TERM");
    assert_eq!(worker.end(), Some(0));
}

#[test]
fn a_reader_that_leaves_is_no_mistake_of_ours() {
    let house = House::new();
    house.feed(&["enqueue", "noop", "--from", "-"], "{}\n".repeat(500));
    for args in [&["task", "ls", "--limit", "500"][..], &["task", "definitions", "--json"], &["completions", "zsh"]] {
        let mut child = house.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        drop(child.stdout.take());
        let mut said = String::new();
        child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
        assert!(child.wait().expect("it ends").success(), "{args:?}: {said}");
        assert!(!said.contains("panic"), "{args:?}: {said}");
    }
}

#[test]
fn the_configuration_is_shown_with_where_it_comes_from() {
    let house = House::empty();
    assert_eq!(house.run(&["config", "path"]).code, 3);
    assert_eq!(house.run(&["config", "init"]).code, 0);
    assert_eq!(house.run(&["config", "init"]).code, 4);
    assert_eq!(house.run(&["config", "init", "--force"]).code, 0);
    assert_eq!(house.run(&["config", "check"]).code, 0);
    house.write("windlass.toml", "[worker]\nslots = 4\n");
    assert_eq!(house.run(&["config", "path"]).out, "windlass.toml\n");
    let shown = house.json(&["config", "show", "worker.slots", "--origin"]);
    assert_eq!(
        (&shown["settings"][0]["value"], &shown["settings"][0]["origin"]),
        (&json!("4"), &json!("windlass.toml:2"))
    );
    assert_eq!(house.run(&["config", "show", "worker.slots", "-o", "id"]).out, "4\n");
}

#[test]
fn the_doctor_says_what_to_do() {
    let house = House::new();
    house.run(&["enqueue", "noop", "--queue", "mail"]);
    let report = house.json(&["doctor"]);
    assert_eq!(report["status"], "warn");
    let checks = report["checks"].as_array().expect("checks");
    let find =
        |name: &str| checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"));
    assert!(find("nodes")["advice"].as_str().expect("text").contains("windlass worker"));
    assert!(find("stuck queue")["advice"].as_str().expect("text").contains("-Q mail"));
    assert_eq!(find("durability")["status"], "ok");
}

#[test]
fn completions_are_made_for_every_shell() {
    let house = House::empty();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let said = house.run(&["completions", shell]);
        assert!(said.code == 0 && said.out.contains("prioritise"), "{shell}: {}", said.err);
    }
}

#[test]
fn colours_appear_only_when_they_are_asked_for() {
    let house = House::new();
    assert!(!house.run(&["task", "definitions"]).out.contains('\u{1b}'));
    assert!(house.run(&["task", "definitions", "--color", "always"]).out.contains('\u{1b}'));
}
