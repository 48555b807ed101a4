//! `windlass bench` on the real program: small runs, whose numbers must make sense. No speed is asserted.

mod support;

use serde_json::Value;
use support::House;

/// What is left in a folder in which nothing should be left.
fn left_in(house: &House) -> Vec<String> {
    let entries = std::fs::read_dir(house.path()).expect("the folder is there");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} is a number in {value}"))
}

#[test]
fn drain_measures_the_engine_alone() {
    let house = House::empty();
    let report = house.json(&["bench", "drain", "--store", "memory", "--tasks", "500", "--runs", "2", "--slots", "50"]);
    assert_eq!((&report["store"], &report["tasks"], &report["runs"]), (&"memory".into(), &500.into(), &2.into()));
    assert!(number(&report, "/drain_tasks_per_s/median") > 0.0 && number(&report, "/enqueue_tasks_per_s/min") > 0.0);
    assert!(number(&report, "/ns_per_task") > 0.0);
    assert_eq!(number(&report, "/claim_to_settled/count") as u64, 1_000, "every task of both runs is counted");
    assert!(number(&report, "/claim_to_settled/p50_us") <= number(&report, "/claim_to_settled/max_us"));
    assert!(number(&report, "/claim_batch_tasks/max") as u64 <= 50, "a claim takes at most the free slots");
    assert!(number(&report, "/machine/cores") >= 1.0 && report["machine"]["version"].is_string());
}

#[test]
fn drain_compares_sqlite_with_itself_and_leaves_nothing_behind() {
    let house = House::empty();
    let report = house.json(&["bench", "drain", "--tasks", "300", "--runs", "1", "--payload", "100", "--warm-up"]);
    assert_eq!((&report["store"], &report["payload_bytes"]), (&"sqlite".into(), &100.into()));
    let share = number(&report, "/share_of_limit_percent/median");
    let ours = number(&report, "/drain_tasks_per_s/median") / number(&report, "/limit_drain_tasks_per_s/median");
    assert!((share - ours * 100.0).abs() < 1.0, "the share is ours over SQLite's: {report}");
    assert_eq!(left_in(&house), Vec::<String>::new());
}

#[test]
fn drain_leaves_the_tasks_of_a_store_that_somebody_named() {
    let house = House::new();
    assert_eq!(house.run(&["--store", "windlass.db", "enqueue", "noop"]).code, 0);
    let report = house.json(&["bench", "drain", "--store", "windlass.db", "--tasks", "200", "--runs", "1"]);
    assert_eq!(report["store"], "sqlite");
    let tasks = house.json(&["--store", "windlass.db", "task", "ls"]);
    assert_eq!(tasks["tasks"].as_array().map(Vec::len), Some(1), "{tasks}");
    assert_eq!(tasks["tasks"][0]["state"], "ready");
}

#[test]
fn people_see_a_unit_with_every_number() {
    let said = House::empty().run(&["bench", "drain", "--store", "memory", "--tasks", "100", "--runs", "1"]);
    assert_eq!(said.code, 0, "{said:?}");
    for expected in ["tasks/s", "us a task", "s per 1,000 tasks", "ns: the engine", "MiB", "cores ("] {
        assert!(said.out.contains(expected), "{expected}: {}", said.out);
    }
    assert!(said.err.contains("run 1 of 1"), "progress is on standard error: {}", said.err);
}

#[test]
fn a_backlog_is_compared_with_a_run_without_it() {
    let flags = ["--store", "memory", "--tasks", "300", "--backlog", "700", "--runs", "1", "--slots", "20"];
    let report = House::empty().json(&[&["bench", "drain"], &flags[..]].concat());
    assert_eq!(number(&report, "/backlog_tasks") as u64, 700);
    assert!(number(&report, "/of_the_rate_without_backlog_percent/median") > 0.0);
    assert!(number(&report, "/claim_to_settled/count") as u64 >= 300);
}

#[test]
fn a_drain_in_processes_counts_what_each_of_them_has_done() {
    let house = House::empty();
    let flags = ["--processes", "2", "--tasks", "400", "--runs", "1", "--concurrency", "20"];
    let report = house.json(&[&["bench", "drain"], &flags[..]].concat());
    assert_eq!((&report["processes"], &report["slots"]), (&2.into(), &20.into()));
    assert_eq!(number(&report, "/claim_to_settled/count") as u64, 400, "every task of both processes is counted");
    let least = number(&report, "/least_of_a_process_percent/median");
    assert!((0.0..=100.0).contains(&least), "nobody can do more than its fair share and still be the least: {report}");
    assert!(number(&report, "/claim_batch_tasks/max") as u64 <= 20);
    assert_eq!(left_in(&house), Vec::<String>::new());
}

#[test]
fn a_drain_in_processes_needs_a_store_that_they_share() {
    let said = House::empty().run(&["bench", "drain", "--store", "memory", "--processes", "2", "--tasks", "10"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("one process"), "{}", said.err);
}

#[test]
fn latency_is_measured_inside_one_process_and_across_two() {
    let house = House::empty();
    for processes in ["1", "2"] {
        let flags = ["--processes", processes, "--rate", "50/s", "--seconds", "1", "--runs", "2"];
        let report = house.json(&[&["bench", "latency"], &flags[..]].concat());
        assert_eq!(report["store"], "sqlite");
        assert_eq!(number(&report, "/enqueue_to_start/count") as u64, 100, "every task of both runs is counted");
        assert_eq!(number(&report, "/store_alone/count") as u64, 100, "the store alone does the same");
        let (p50, p99) = (number(&report, "/enqueue_to_start/p50_us"), number(&report, "/enqueue_to_start/p99_us"));
        assert!(0.0 < p50 && p50 <= p99 && p99 < 30e6, "{report}");
        let run = number(&report, "/enqueue_to_start/runs/p99_us/median");
        assert!(run <= number(&report, "/enqueue_to_start/max_us"), "{report}");
        assert_eq!(report["goals"].as_array().map(Vec::len), Some(2), "{report}");
    }
    assert_eq!(left_in(&house), Vec::<String>::new());
}

#[test]
fn enqueue_is_measured_one_by_one_by_many_and_in_bulk() {
    let house = House::empty();
    let flags = ["--tasks", "200", "--callers", "4", "--batch", "50", "--runs", "1"];
    let report = house.json(&[&["bench", "enqueue"], &flags[..]].concat());
    assert_eq!(number(&report, "/one_by_one_took/count") as u64, 20, "a tenth");
    assert_eq!(number(&report, "/concurrent_took/count") as u64, 20, "a tenth, by four callers");
    for rate in ["one_by_one", "concurrent", "bulk", "limit_bulk"] {
        assert!(number(&report, &format!("/{rate}_tasks_per_s/median")) > 0.0, "{rate}: {report}");
    }
    assert_eq!(left_in(&house), Vec::<String>::new());
}

#[test]
fn round_trips_are_measured_alone_and_together() {
    let flags = ["--store", "memory", "--tasks", "20", "--outstanding", "5", "--runs", "1"];
    let report = House::empty().json(&[&["bench", "roundtrip"], &flags[..]].concat());
    assert_eq!(number(&report, "/one_outstanding/count") as u64, 20);
    assert_eq!(number(&report, "/many_outstanding/count") as u64, 100, "five times as many");
    assert!(number(&report, "/one_outstanding_per_s/median") > 0.0);
}

#[test]
fn lateness_is_that_of_every_delayed_task() {
    let flags = ["--store", "memory", "--rate", "50/s", "--seconds", "1", "--runs", "1"];
    let report = House::empty().json(&[&["bench", "scheduled"], &flags[..]].concat());
    assert_eq!(number(&report, "/lateness/count") as u64, 50);
    assert_eq!(report["goals"][0]["what"], "scheduled lateness p99");
}

/// The lines of a report on limits, by what they say.
fn lines<'a>(report: &'a Value, what: &str) -> Vec<&'a Value> {
    let lines = report["cases"].as_array().expect("lines");
    lines.iter().filter(|line| line["what"].as_str().is_some_and(|text| text.starts_with(what))).collect()
}

const LIMITS: [&str; 10] =
    ["bench", "limits", "--tasks", "60", "--batches", "1,20", "--connections", "1,2", "--runs", "1"];

#[test]
fn the_limits_of_sqlite_are_measured_at_each_batch() {
    let house = House::empty();
    let report = house.json(&LIMITS);
    assert_eq!((lines(&report, "enqueue").len(), lines(&report, "drain").len()), (2, 4), "kept and forgotten");
    assert_eq!(number(lines(&report, "wake-up")[0], "/times/count") as u64, 60);
    assert!(lines(&report, "drain").iter().all(|line| number(line, "/tasks_per_s/median") > 0.0));
    assert_eq!(left_in(&house), Vec::<String>::new());
    assert_eq!(house.run(&["bench", "limits", "--store", "memory"]).code, 2, "nothing is below memory");
}

#[test]
fn the_limits_of_redis_are_measured_at_each_batch_and_number_of_connections() {
    let url = windlass_servers::redis_url();
    let report = House::empty().json(&[&LIMITS[..], &["--store", &url]].concat());
    assert_eq!(lines(&report, "drain: id list + body hash + lease set, one script").len(), 4, "{report}");
    assert_eq!(lines(&report, "drain: XREADGROUP + XACK + XDEL").len(), 4, "{report}");
    assert_eq!(number(lines(&report, "wake-up")[0], "/times/count") as u64, 60);
    for line in lines(&report, "") {
        assert!(number(line, "/server_cpu_us_per_task") >= 0.0, "Redis says what it uses: {line}");
    }
    assert!(report["server"]["version"].is_string() && report["server"]["appendfsync"].is_string(), "{report}");
}

#[test]
fn the_limits_of_postgres_are_measured_at_each_batch_and_number_of_connections() {
    let url = windlass_servers::postgres_url();
    let report = House::empty().json(&[&LIMITS[..], &["--store", &url]].concat());
    assert_eq!(lines(&report, "drain: ack + claim in one statement").len(), 4, "{report}");
    assert_eq!(lines(&report, "enqueue: single rows").len(), 1, "{report}");
    assert_eq!(number(lines(&report, "wake-up")[0], "/times/count") as u64, 60);
    assert!(lines(&report, "drain").iter().all(|line| number(line, "/tasks_per_s/median") > 0.0));
    assert!(report["server"]["fsync"].is_string(), "{report}");
}

/// Everything small, in a server; answers the reports.
fn measure_all(house: &House, url: &str) -> Vec<Value> {
    let small = ["--store", url, "--runs", "1"];
    let measured = [
        &["bench", "drain", "--tasks", "300", "--payload", "50"][..],
        &["bench", "drain", "--tasks", "300", "--processes", "2"],
        &["bench", "enqueue", "--tasks", "100", "--batch", "50"],
        &["bench", "latency", "--rate", "50/s", "--seconds", "1", "--processes", "2"],
        &["bench", "roundtrip", "--tasks", "10", "--outstanding", "5"],
        &["bench", "scheduled", "--rate", "50/s", "--seconds", "1"],
        &["bench", "idle", "--seconds", "1"],
        &["bench", "gates", "--tasks", "300", "--keys", "3"],
        &["bench", "fairness", "--backlog", "3000", "--rate", "1000/s"],
    ];
    let mut reports: Vec<Value> = measured.iter().map(|args| house.json(&[args, &small[..]].concat())).collect();
    let soak = ["bench", "soak", "--tasks", "1000", "--backlog", "500", "--store", url];
    reports.push(house.json(&soak));
    for report in &reports[..2] {
        assert_eq!(number(report, "/claim_to_settled/count") as u64, 300, "{report}");
        assert!(number(report, "/server_cpu_us_per_task/median") >= 0.0, "{report}");
        assert!(number(report, "/share_of_limit_percent/median") > 0.0, "{report}");
    }
    assert_eq!(number(&reports[3], "/enqueue_to_start/count") as u64, 50, "{}", reports[3]);
    assert_eq!(number(&reports[3], "/store_alone/count") as u64, 50, "{}", reports[3]);
    assert_eq!(number(&reports[5], "/lateness/count") as u64, 50, "{}", reports[5]);
    reports
}

#[test]
fn a_redis_server_is_left_as_it_was() {
    let server = windlass_servers::Redis::start(windlass_servers::Aof::EverySec).expect("a server");
    let reports = measure_all(&House::empty(), &server.url());
    assert!(reports.iter().all(|report| report["store"] == "redis"));
    assert_eq!(server.cli(&["DBSIZE"]).expect("an answer").trim(), "0");
}

#[test]
fn a_postgres_server_is_left_as_it_was() {
    let server = windlass_servers::Postgres::start().expect("a server");
    let reports = measure_all(&House::empty(), &server.url("postgres"));
    assert!(reports.iter().all(|report| report["store"] == "postgres"));
    let left = server.psql("postgres", "SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'windlass%'");
    assert_eq!(left.expect("an answer").trim(), "0");
}

#[test]
fn stores_are_compared_with_the_first_of_them() {
    let flags = ["--store", "memory", "--store", "sqlite", "--tasks", "200", "--seconds", "1", "--runs", "1"];
    let house = House::empty();
    let report = house.json(&[&["bench", "compare"], &flags[..]].concat());
    let names: Vec<_> = report["compared"].as_array().expect("stores").iter().map(|store| &store["name"]).collect();
    assert_eq!(names, ["memory", "sqlite"]);
    assert_eq!(number(&report, "/compared/0/of_the_first") as u64, 1);
    let ratio = number(&report, "/compared/1/drain_tasks_per_s/median")
        / number(&report, "/compared/0/drain_tasks_per_s/median");
    assert!((number(&report, "/compared/1/of_the_first") - ratio).abs() < 0.01, "{report}");
    assert!(number(&report, "/compared/1/enqueue_to_start/count") > 0.0);
    assert_eq!(left_in(&house), Vec::<String>::new());
}

#[test]
fn a_product_that_is_not_installed_is_answered_with_how_to_install_it() {
    let house = House::empty();
    std::fs::create_dir_all(house.path().join("bench/peers/bullmq")).expect("a folder");
    house.write("bench/peers/bullmq/peer.mjs", "");
    let said = house.run(&["bench", "compare", "--store", "redis://127.0.0.1:1/0", "--peer", "bullmq"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("npm ci --prefix bench/peers/bullmq"), "{}", said.err);
}

#[test]
fn latency_in_memory_has_one_process() {
    let said = House::empty().run(&["bench", "latency", "--store", "memory", "--processes", "2"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("one process"), "{}", said.err);
}

#[test]
fn gates_compares_a_queue_with_limits_to_one_without() {
    let house = House::empty();
    for keys in ["0", "3"] {
        let flags = ["--tasks", "300", "--runs", "2", "--keys", keys, "--slots", "20"];
        let report = house.json(&[&["bench", "gates"], &flags[..]].concat());
        let (with, without) =
            (number(&report, "/limited_tasks_per_s/max"), number(&report, "/unlimited_tasks_per_s/max"));
        assert!(with > 0.0 && without > 0.0, "{report}");
        assert!(number(&report, "/of_the_unlimited_rate_percent/median") > 0.0);
    }
    assert_eq!(left_in(&house), Vec::<String>::new());
}

#[test]
fn gates_takes_its_limits_out_of_a_store_that_somebody_named() {
    let house = House::new();
    assert_eq!(house.run(&["--store", "windlass.db", "enqueue", "noop"]).code, 0);
    house.json(&["bench", "gates", "--store", "windlass.db", "--tasks", "200", "--runs", "1"]);
    let tasks = house.json(&["--store", "windlass.db", "task", "ls"]);
    assert_eq!(tasks["tasks"].as_array().map(Vec::len), Some(1), "{tasks}");
    let file = rusqlite::Connection::open(house.path().join("windlass.db")).expect("the file");
    let left: i64 = file.query_row("SELECT count(*) FROM windlass_limit", [], |row| row.get(0)).expect("a number");
    assert_eq!(left, 0);
}

#[test]
fn fairness_measures_every_task_that_waited_behind_the_backlog() {
    let flags = ["--store", "memory", "--backlog", "20000", "--rate", "5000/s", "--slots", "10", "--runs", "1"];
    let report = House::empty().json(&[&["bench", "fairness"], &flags[..]].concat());
    let (counted, not) = (number(&report, "/counted"), number(&report, "/not_counted"));
    assert_eq!((counted + not) as u64, 20, "a thousandth of the backlog: {report}");
    assert_eq!(number(&report, "/enqueue_to_start/count") as u64, counted as u64);
    assert!(number(&report, "/drain_tasks_per_s/median") > 0.0);
}

#[test]
fn soak_shows_the_series_and_both_ends() {
    let house = House::empty();
    let flags = ["--tasks", "3000", "--backlog", "500", "--slots", "50", "--retention", "1s"];
    let report = house.json(&[&["bench", "soak"], &flags[..]].concat());
    let series = report["series"].as_array().expect("a series");
    assert!(series.len() >= 2);
    let last = series.last().expect("a last sample");
    assert_eq!(number(last, "/tasks") as u64, 3_000);
    assert!(number(last, "/memory_bytes") > 0.0 && number(last, "/file_bytes") + number(last, "/log_bytes") > 0.0);
    assert!(number(&report, "/first_tenth_tasks_per_s") > 0.0 && number(&report, "/last_tenth_tasks_per_s") > 0.0);
    assert_eq!(report["goals"].as_array().map(Vec::len), Some(3), "{report}");
    assert_eq!(left_in(&house), Vec::<String>::new());
}

#[test]
fn soak_does_not_touch_a_store_that_somebody_named() {
    let said = House::new().run(&["bench", "soak", "--store", "windlass.db"]);
    assert_eq!(said.code, 2, "{said:?}");
    assert!(said.err.contains("a store of its own"), "{}", said.err);
}

#[test]
fn idle_counts_what_a_worker_asks_for() {
    let report = House::empty().json(&["bench", "idle", "--seconds", "1", "--runs", "1"]);
    let calls = number(&report, "/store_calls_per_s/median");
    assert!(0.0 < calls && calls < 100.0, "a worker keeps house once a second: {report}");
    assert!(number(&report, "/cpu_percent/median") >= 0.0 && number(&report, "/memory_bytes") > 0.0);
}

#[test]
fn a_missed_goal_fails_the_command_only_when_that_is_asked_for() {
    // No worker does 40,000 tasks in batches of one in a second.
    let drain = ["bench", "drain", "--tasks", "50", "--runs", "1", "--slots", "1"];
    let house = House::empty();
    let relaxed = house.run(&drain);
    assert_eq!(relaxed.code, 0, "{relaxed:?}");
    assert!(relaxed.out.contains("goal missed"), "{}", relaxed.out);
    let strict = house.run(&[&drain[..], &["--check"]].concat());
    assert_eq!(strict.code, 1, "{strict:?}");
    assert!(
        strict.err.contains("drain through SQLite") && strict.err.contains("at least 40,000 tasks/s"),
        "{}",
        strict.err
    );
}
