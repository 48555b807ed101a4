//! What TaskIQ's users type is accepted, one option after the other.

use clap::{CommandFactory, FromArgMatches};

use super::*;

fn parse(line: &str) -> Result<Door, clap::Error> {
    let words = line.split(' ').map(OsString::from).collect::<Vec<_>>();
    let words = std::iter::once(OsString::from("taskiq")).chain(words.iter().map(spelt_out));
    let matches = Door::command().try_get_matches_from(words)?;
    Door::from_arg_matches(&matches)
}

fn worker_of(line: &str) -> Box<Worker> {
    match parse(line) {
        Ok(Door { verb: Verb::Worker(args) }) => args,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn every_option_of_taskiq_is_read() {
    // From `--help` of both commands of TaskIQ 0.13.0.
    for line in [
        "worker shop.broker:broker",
        "worker shop.broker:broker shop.tasks shop.more -fsd -tp **/jobs.py",
        "worker --app-dir src --receiver taskiq.receiver:Receiver --receiver_arg a=1 --receiver_arg b=2 shop.broker:broker",
        "worker b:b -d src --tasks-pattern **/tasks.py --fs-discover --log-level WARNING --log-format %(message)s",
        "worker b:b --workers 4 --no-parse --no-propagate-errors --max-threadpool-threads 5 --shutdown-timeout 5",
        "worker b:b -w 2 --reload --reload-dir src --reload-dir lib --do-not-use-gitignore",
        "worker b:b -r --max-async-tasks 50 --max-async-tasks-jitter 3 --max-prefetch 1 --no-configure-logging",
        "worker b:b --max-fails -1 --ack-type when_received --max-tasks-per-child 100 --wait-tasks-timeout 30",
        "worker b:b --hardkill-count 3 --use-process-pool --max-process-pool-processes 2",
        "scheduler shop.scheduler:scheduler shop.tasks -fsd -tp x -d src --log-level INFO --no-configure-logging",
        "scheduler s:s -Q reports,mail",
        "scheduler s:s --skip-first-run --update-interval 5 --loop-interval 1 --send-timeout 3",
        "task shop.tasks:add --args [2,3] --kwargs {} --label tenant=acme --queue q",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_a_worker_is_told_becomes_keys_of_the_configuration() {
    let found = broker::bridge_to("taskiq", "redis://h?kind=list", BROKER).expect("a broker");
    assert_eq!(found.url, "taskiq+redis://h?kind=list");
    let told = |line: &str| -> Vec<(&'static str, String)> {
        overrides(&worker_of(line), &found).into_iter().skip(1).map(|one| (one.key, one.value)).collect()
    };
    assert_eq!(told("worker b:b"), []);
    assert_eq!(
        told("worker b:b --workers 4 --max-async-tasks 50 --log-level ERROR --wait-tasks-timeout 2.5"),
        [("log.level", "error"), ("worker.slots", "50"), ("worker.grace", "2500ms"), ("worker.processes", "4")]
            .map(|(key, value)| (key, value.to_owned()))
    );
    assert_eq!(
        told("worker b:b --workers 1 --max-tasks-per-child 9"),
        [("worker.recycle_tasks", "9"), ("worker.processes", "1")].map(|(key, value)| (key, value.to_owned()))
    );
}

#[test]
fn what_has_no_meaning_is_said_once_each() {
    let idle = |line: &str| worker_of(line).idle().iter().map(|(option, _)| *option).collect::<Vec<_>>();
    assert_eq!(idle("worker b:b --workers 2 --ack-type when_saved"), [""; 0]);
    assert_eq!(
        idle("worker b:b m -fsd -r --ack-type when_received"),
        ["--fs-discover", "a module to look for tasks in", "--reload", "--ack-type"]
    );
}

#[test]
fn every_option_says_what_it_does() {
    let mut door = Door::command();
    door.build();
    door.clone().debug_assert();
    for command in door.get_subcommands() {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for argument in command.get_arguments() {
            assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
        }
    }
}
