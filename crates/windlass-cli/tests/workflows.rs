//! Workflows, as an operator sees and changes them.

mod support;

use serde_json::{Value, json};
use support::House;
use windlass::workflow::group;
use windlass::{Args, Client, Envelope, QueueName, TaskName};

fn task(name: &str, args: &str) -> Envelope {
    Envelope::new(TaskName::known(name), QueueName::default(), Args::parse(args).expect("arguments"))
}

/// Starts: two tasks side by side, the second of which fails at once; then one that waits for both.
fn failing_workflow(house: &House) -> String {
    let path = house.path().join("windlass.db").display().to_string();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(async {
        let client = Client::new(windlass::connect(&format!("sqlite:{path}")).await.expect("the store"));
        let members = [task("noop", "{}"), task("fail", r#"{"message": "boom", "fatal": true}"#)];
        let started = client.start(group(members).then(task("sleep", r#"{"duration": "1ms"}"#))).await;
        started.expect("it starts").id.to_string()
    })
}

/// Runs a worker until nothing waits or runs any more.
fn work(house: &House) {
    let worker = house.worker(&[]);
    while house.json(&["task", "ls", "-q", "state:ready,scheduled,running"])["tasks"] != json!([]) {}
    worker.signal("TERM");
    worker.end();
}

#[test]
fn a_workflow_is_listed_shown_and_drawn() {
    let house = House::new();
    assert_eq!(house.json(&["workflow", "ls"])["workflows"], json!([]));
    let id = failing_workflow(&house);
    let graph = house.json(&["workflow", "graph", &id]);
    assert_eq!((&graph["schema_version"], &graph["standing"]), (&json!(1), &json!("running")));
    let nodes: Vec<(&Value, &Value)> =
        graph["nodes"].as_array().expect("nodes").iter().map(|node| (&node["name"], &node["state"])).collect();
    assert!(nodes.contains(&(&json!("sleep"), &json!("planned"))), "{nodes:?}");
    assert_eq!(graph["edges"].as_array().map(Vec::len), Some(2));
    work(&house);
    let listed = house.json(&["workflow", "ls"]);
    assert_eq!((&listed["workflows"][0]["id"], &listed["workflows"][0]["standing"]), (&json!(id), &json!("failed")));
    let shown = house.json(&["workflow", "show", &id]);
    assert_eq!(
        shown["progress"],
        json!({"tasks": 3, "ended": 3, "planned": 0, "by_state": {"succeeded": 1, "dead": 2}})
    );
    let text = house.run(&["workflow", "show", &id]).out;
    assert!(text.contains("3 of 3 tasks ended") && text.contains("boom"), "{text}");
    let dot = house.run(&["workflow", "graph", &id, "--dot"]).out;
    assert!(dot.starts_with("digraph workflow {") && dot.matches(" -> ").count() == 2, "{dot}");
    let tree = house.run(&["workflow", "graph", &id]).out;
    assert_eq!(tree.lines().count(), 3, "{tree}");
    assert_eq!(house.run(&["workflow", "show", "nope"]).code, 3);
}

#[test]
fn what_has_failed_of_a_workflow_is_retried_and_what_waits_for_it_is_not() {
    let house = House::new();
    let id = failing_workflow(&house);
    work(&house);
    assert_eq!(house.run(&["workflow", "retry", &id, "--dry-run"]).out, "1 task would be retried\n");
    assert_eq!(house.run(&["workflow", "retry", &id]).code, 6, "nobody is there to be asked");
    assert_eq!(house.run(&["workflow", "retry", &id, "--yes"]).out, "1 task retried\n");
    let states = house.json(&["workflow", "show", &id])["progress"]["by_state"].clone();
    assert_eq!(states, json!({"succeeded": 1, "ready": 1, "dead": 1}), "what is stranded waits for a success");
}

#[test]
fn a_workflow_is_cancelled_retried_and_discarded_as_a_whole() {
    let house = House::new();
    let id = failing_workflow(&house);
    house.run(&["enqueue", "noop", "--id", "other"]);
    assert_eq!(house.run(&["workflow", "signal", &id, "approved"]).out, "sent to 2 tasks\n");
    assert_eq!(house.run(&["workflow", "discard", &id, "--yes"]).code, 4, "it has not ended");
    assert_eq!(house.run(&["workflow", "cancel", &id, "--yes"]).out, "2 tasks cancelled\n");
    assert_eq!(house.json(&["workflow", "ls"])["workflows"][0]["standing"], "failed", "the last task is stranded");
    assert_eq!(house.run(&["workflow", "signal", &id, "approved"]).code, 4);
    assert_eq!(house.run(&["workflow", "retry", &id, "--yes"]).out, "2 tasks retried\n");
    house.run(&["workflow", "cancel", &id, "--yes"]);
    assert_eq!(house.run(&["workflow", "discard", &id, "--yes"]).out, "3 tasks discarded\n");
    assert_eq!(house.run(&["workflow", "show", &id]).code, 3);
    assert_eq!(house.json(&["task", "show", "other"])["state"], "ready");
}
