//! Limits, circuit breakers, signals and unique keys, as an operator works with them.

mod support;

use serde_json::{Value, json};
use support::House;

#[test]
fn a_limit_is_set_listed_changed_and_removed() {
    let house = House::new();
    let set = house.json(&["limit", "set", "queue:mail", "--rate", "100/m burst 10", "--concurrency", "4"]);
    let expected = json!({
        "schema_version": 1, "subject": "queue:mail", "rate": "100/m burst 10", "concurrency": 4, "length": null,
        "weight": null, "set_by": "operator",
    });
    assert_eq!(set, expected);
    let set = house.json(&["limit", "set", "queue:mail", "--rate", "none", "--length", "50"]);
    assert_eq!((&set["rate"], &set["concurrency"], &set["length"]), (&Value::Null, &json!(4), &json!(50)));
    house.run(&["limit", "set", "key:acme", "--weight", "3"]);
    let listed = house.json(&["limit", "ls"]);
    assert_eq!(listed["limits"][0]["subject"], "queue:mail");
    assert_eq!((&listed["limits"][1]["weight"], &listed["gates"]), (&json!(3), &json!([])));
    let table = house.run(&["limit", "ls"]).out;
    assert!(table.contains("SET BY") && table.contains("queue:mail") && table.contains("operator"), "{table}");
    assert_eq!(house.run(&["limit", "rm", "queue:mail", "key:acme"]).out, "removed\n");
    assert_eq!(house.json(&["limit", "ls"])["limits"], json!([]));
}

#[test]
fn a_limit_that_makes_no_sense_is_refused_with_what_to_write() {
    let house = House::new();
    for (args, code, text) in [
        (&["limit", "set", "mail", "--rate", "1/s"][..], 2, "write queue:NAME"),
        (&["limit", "set", "queue:mail", "--rate", "often"], 2, "write it as 100/m"),
        (&["limit", "set", "queue:mail"], 2, "limits nothing"),
        (&["limit", "set", "task:send", "--length", "5"], 2, "a length is for a queue"),
        (&["limit", "rm", "queue:mail"], 3, "there is no limit for `queue:mail`"),
        (&["limit", "hold", "queue:mail", "400d"], 2, "a gate is held for at most"),
    ] {
        let said = house.run(args);
        assert!(said.code == code && said.err.contains(text), "{args:?}: {said:?}");
    }
}

#[test]
fn a_key_that_is_held_starts_nothing_until_it_is_reset() {
    let house = House::new();
    let held = house.json(&["limit", "hold", "key:acme", "1h"]);
    assert_eq!((&held["gate"], &held["changed"]), (&json!("key:acme"), &json!(true)));
    assert!(house.run(&["limit", "hold", "key:acme", "1s"]).out.contains("for longer already"));
    let worker = house.worker(&[]);
    house.run(&["enqueue", "noop", "--id", "a", "--key", "acme"]);
    assert_eq!(house.run(&["enqueue", "noop", "--wait=1m"]).code, 0, "others go on");
    assert_eq!(house.json(&["task", "show", "a"])["state"], "ready");
    assert_eq!(house.json(&["limit", "ls"])["gates"][0]["held_until"], held["held_until"]);
    assert_eq!(house.run(&["limit", "reset", "key:acme"]).out, "reset\n");
    assert_eq!(house.run(&["task", "wait", "a", "--timeout", "1m"]).code, 0);
    worker.signal("TERM");
    worker.end();
}

#[test]
fn a_breaker_is_opened_closed_and_given_back() {
    let house = House::new();
    assert_eq!(house.json(&["breaker", "ls"])["breakers"], json!([]));
    assert_eq!(house.run(&["breaker", "reset", "payments"]).code, 3);
    let said = house.run(&["breaker", "open", "payments"]);
    assert!(said.out == "open\n" && said.err.contains("see that this is its name"), "{said:?}");
    let forced = json!({"name": "payments", "state": "open", "until": null, "opened": 0, "forced": true});
    assert_eq!(house.json(&["breaker", "ls"])["breakers"], json!([forced]));
    assert_eq!(house.run(&["breaker", "close", "payments"]).err, "", "the name is known");
    assert_eq!(house.json(&["breaker", "ls"])["breakers"][0]["state"], "closed");
    house.run(&["breaker", "open", "payments", "--for", "10m"]);
    let open = &house.json(&["breaker", "ls"])["breakers"][0];
    assert!(open["forced"] == false && open["until"].is_string(), "{open}");
    assert_eq!(house.run(&["breaker", "reset", "payments"]).out, "reset\n");
    assert_eq!(house.json(&["breaker", "ls"])["breakers"], json!([]));
}

#[test]
fn a_signal_is_kept_by_a_task_that_has_not_ended() {
    let house = House::new();
    house.run(&["enqueue", "noop", "--id", "a", "--delay", "1h"]);
    let sent = house.json(&["task", "signal", "a", "approved", r#"{"by": "ada"}"#]);
    assert_eq!((&sent["signal"], &sent["sent"]), (&json!("approved"), &json!(true)));
    assert_eq!(house.run(&["task", "signal", "a", "seen"]).out, "sent\n");
    let task = house.json(&["task", "show", "a"]);
    assert_eq!((&task["signals"], &task["waits_for"]), (&json!(["approved", "seen"]), &Value::Null));
    assert_eq!(house.run(&["task", "signal", "nope", "approved"]).code, 3);
    house.run(&["task", "cancel", "a"]);
    assert_eq!(house.run(&["task", "signal", "a", "approved"]).code, 4);
    let said = house.run(&["task", "signal", "a", "approved", "yes"]);
    assert!(said.code == 2 && said.err.contains("quotes"), "{said:?}");
}

#[test]
fn a_second_task_with_a_unique_key_replaces_what_waits_when_it_says_so() {
    let house = House::new();
    let enqueue = |duration: &str, more: &[&str]| {
        let argument = format!("duration={duration}");
        house.json(&[&["enqueue", "sleep", "--arg", &argument, "--unique", "report"], more].concat())
    };
    let first = enqueue("1s", &["--delay", "1h"]);
    assert_eq!(enqueue("2s", &["--on-conflict", "keep"])["id"], first["id"]);
    let task = || house.json(&["task", "show", first["id"].as_str().expect("an id")]);
    assert_eq!(task()["arguments"]["duration"], "1s");
    let due = task()["due_at"].clone();
    assert_eq!(enqueue("3s", &["--on-conflict", "replace"])["id"], first["id"]);
    assert_eq!((&task()["arguments"]["duration"], &task()["due_at"]), (&json!("3s"), &due));
    enqueue("4s", &["--on-conflict", "debounce", "--delay", "2h"]);
    assert_eq!(task()["arguments"]["duration"], "4s");
    assert_ne!(task()["due_at"], due);
    let said = house.run(&["enqueue", "noop", "--on-conflict", "keep"]);
    assert_eq!(said.code, 2, "an option of a key needs the key: {said:?}");
}

#[test]
fn a_key_that_is_held_until_the_start_is_free_while_its_task_runs() {
    let house = House::new();
    let worker = house.worker(&["-c", "1"]);
    let enqueue = |id: &str| {
        let args = ["enqueue", "sleep", "--arg", "duration=1h", "--unique", "x", "--until-started", "--id", id];
        house.json(&args)["fresh"].clone()
    };
    assert_eq!(enqueue("first"), true);
    while house.json(&["task", "show", "first"])["state"] != "running" {}
    assert_eq!((enqueue("second"), enqueue("third")), (json!(true), json!(false)));
    worker.signal("TERM");
    worker.signal("TERM");
    worker.end();
}
