//! What a worker answers to probes, on real sockets.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{House, Worker};

/// Long enough for a store to be found gone, and short enough for a test that fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A worker that is ready, and where it answers.
fn worker(house: &House) -> (Worker, String) {
    let mut worker = house.starting_worker("w1", &["--listen", "127.0.0.1:0", "--grace", "20s"]);
    let address = worker.wait_for("probes_ready")["address"].as_str().expect("an address").to_owned();
    worker.wait_for("worker_ready");
    (worker, address)
}

/// The status and the body of an answer.
fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).expect("the worker listens");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n").expect("a request is sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("the answer is text");
    let status = answer.split_whitespace().nth(1).and_then(|word| word.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
    (status, body)
}

/// Asks until the status is this one.
fn until(address: &str, path: &str, status: u16) -> String {
    let began = Instant::now();
    loop {
        let (found, body) = get(address, path);
        if found == status {
            return body;
        }
        assert!(began.elapsed() < PATIENCE, "{path} still answers {found}: {body}");
    }
}

#[test]
fn a_worker_answers_probes_and_metrics() {
    let house = House::new();
    let (worker, address) = worker(&house);
    for path in
        ["/livez", "/readyz", "/startupz", "/health", "/healthz", "/healthcheck", "/health/live", "/health/ready"]
    {
        assert_eq!(get(&address, path), (200, "ok\n".to_owned()), "{path}");
    }
    let (status, body) = get(&address, "/readyz?verbose");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((status, &body["status"], &body["checks"][0]["name"]), (200, &"ok".into(), &"store".into()));
    assert_eq!(house.run(&["enqueue", "noop", "--wait=1m"]).code, 0);
    house.run(&["limit", "set", "queue:mail", "--rate", "10/h burst 5"]);
    house.run(&["breaker", "open", "payments"]);
    let (status, metrics) = get(&address, "/metrics");
    assert_eq!(status, 200);
    for line in [
        "windlass_worker_up 1",
        "windlass_backend_up 1",
        "windlass_tasks_finished_total{",
        r#"windlass_rate_limit_tokens{limiter="queue:mail"} 5"#,
        r#"windlass_circuit_breaker_state{breaker="payments"} 2"#,
        "# EOF",
    ] {
        assert!(metrics.contains(line), "`{line}` is not in {metrics}");
    }
    assert_eq!(get(&address, "/secret").0, 404);
    worker.signal("TERM");
    assert_eq!(worker.end(), Some(0));
}

#[test]
fn a_worker_that_takes_no_tasks_is_not_ready_and_lives() {
    let house = House::new();
    let (worker, address) = worker(&house);
    house.until_listed("w1");
    assert_eq!(house.run(&["node", "quiet", "w1"]).code, 0);
    assert!(until(&address, "/readyz", 503).contains("it takes no more tasks"));
    assert_eq!(house.run(&["node", "resume", "w1"]).code, 0);
    until(&address, "/readyz", 200);
    house.run(&["enqueue", "sleep", "--arg", "duration=10s"]);
    let began = Instant::now();
    while house.json(&["task", "ls", "-q", "state:running"])["tasks"].as_array().is_none_or(Vec::is_empty) {
        assert!(began.elapsed() < PATIENCE, "the task has not begun");
    }
    worker.signal("TERM");
    assert!(until(&address, "/readyz", 503).contains("it finishes what it has"));
    assert_eq!(get(&address, "/livez").0, 200);
    worker.signal("TERM");
    assert_eq!(worker.end(), Some(143), "a second signal ends it at once");
}

#[test]
fn a_worker_whose_store_is_gone_is_not_ready_and_lives() {
    let house = House::new();
    let (worker, address) = worker(&house);
    let (file, away) = (house.path().join("windlass.db"), house.path().join("away.db"));
    std::fs::rename(&file, &away).expect("the file is moved");
    assert!(until(&address, "/readyz", 503).contains("store: "), "the check is named");
    assert_eq!(get(&address, "/livez").0, 200);
    std::fs::rename(&away, &file).expect("the file is moved back");
    until(&address, "/readyz", 200);
    drop(worker);
}

#[test]
fn an_address_that_is_taken_or_wrong_is_refused() {
    let house = House::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let said = house.run(&["worker", "--listen", &address]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("nobody can listen at") && said.err.contains("--listen"), "{said:?}");
    let said = house.run(&["worker", "--listen", "everywhere"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("`everywhere`"), "{said:?}");
}
