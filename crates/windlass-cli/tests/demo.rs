//! `windlass demo` as a user runs it, small.

#![cfg(unix)]

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

fn demo(folder: &Path, flags: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_windlass"));
    // What is set for this shell must not matter, and least of all which store it names.
    command.args(["demo", "--tasks", "300"]).args(flags).current_dir(folder);
    command.env("TMPDIR", folder).env("WINDLASS_STORE", "sqlite:/nowhere/at/all.db");
    command
}

fn run(folder: &Path, flags: &[&str]) -> Output {
    demo(folder, flags).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The processes that this one has started.
fn children_of(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|number| parent_of(*number) == Some(parent)).collect()
}

/// `None` when the process has ended, also when nobody has taken note of that yet.
fn parent_of(process: u32) -> Option<u32> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut fields = fields.split(' ');
    if fields.next()? == "Z" {
        return None;
    }
    fields.next()?.parse().ok()
}

fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let give_up_at = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < give_up_at, "waited for too long: {what}");
        // tidy: allow(sleep): other processes have no event to wait for
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Starts a demo and waits until its two workers and its scheduler run.
fn started(folder: &Path) -> (Child, Vec<u32>) {
    let child = demo(folder, &[]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("three processes", || children_of(child.id()).len() == 3);
    let children = children_of(child.id());
    (child, children)
}

#[test]
fn every_check_of_the_demo_holds_and_nothing_is_left_behind() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{error}: {} {}", text(&output.stdout), text(&output.stderr));
    });
    assert!(output.status.success() && report["holds"] == true, "{report:#}");
    assert_eq!(report["checks"].as_array().unwrap().len(), 10);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "the temporary folder is gone");
}

#[test]
fn it_runs_in_a_store_of_choice_and_takes_its_schedule_out_again() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["--store", "chosen.db"]);
    assert!(output.status.success(), "{} {}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("All 10 checks hold"), "{}", text(&output.stdout));
    let schedules = Command::new(env!("CARGO_BIN_EXE_windlass"))
        .args(["schedule", "ls", "--json", "--store", "chosen.db"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert!(schedules.status.success() && !text(&schedules.stdout).contains("tick"), "{}", text(&schedules.stdout));
}

#[test]
fn a_store_in_memory_is_refused_with_a_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let output = run(folder.path(), &["--store", "memory:"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("sqlite:"), "{}", text(&output.stderr));
}

#[test]
fn when_the_demo_is_killed_its_processes_end() {
    let folder = tempfile::tempdir().unwrap();
    let (mut demo, children) = started(folder.path());
    demo.kill().unwrap();
    demo.wait().unwrap();
    wait_until("the processes of a demo that was killed", || children.iter().all(|child| parent_of(*child).is_none()));
}

#[test]
fn ctrl_c_ends_it_and_its_processes() {
    let folder = tempfile::tempdir().unwrap();
    let (mut demo, children) = started(folder.path());
    let process = rustix::process::Pid::from_raw(demo.id().cast_signed()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    assert_eq!(demo.wait().unwrap().code(), Some(130));
    let mut said = String::new();
    demo.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
    wait_until("the processes of a demo that was ended", || children.iter().all(|child| parent_of(*child).is_none()));
}
