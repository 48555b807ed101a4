//! What Celery's users type is accepted, one option after the other.

use clap::{CommandFactory, FromArgMatches};

use super::grammar::{Door, Verb, Worker};
use super::*;
use crate::commands::worker::host;
use crate::settings::Override;

fn parse(line: &str) -> Result<Door, clap::Error> {
    let matches = Door::command().try_get_matches_from(std::iter::once("celery").chain(line.split(' ')))?;
    Door::from_arg_matches(&matches)
}

fn out() -> Out {
    let global = crate::doors::knock(&["windlass".into(), "celery".into()])
        .and_then(|knock| knock.global("windlass").ok())
        .expect("flags of ours");
    Out::of(&global).expect("a way to print")
}

fn worker_of(line: &str) -> (Top, Box<Worker>) {
    match parse(line) {
        Ok(Door { top, verb: Verb::Worker(args) }) => (top, args),
        Ok(other) => panic!("{line}: {other:?}"),
        Err(error) => panic!("{line}: {error}"),
    }
}

/// What a worker is told, without the broker and the name.
fn told(line: &str) -> Vec<(&'static str, String)> {
    let (_, args) = worker_of(line);
    let found = crate::doors::broker::bridge_to("celery", "redis://h", "--broker").expect("a broker");
    let queues = words::names(args.queues.as_deref());
    let overrides = worker::overrides(&args, &found, &queues, "celery@h", &out());
    let rest = overrides.into_iter().filter(|one: &Override| !matches!(one.key, "bridge" | "worker.node"));
    rest.map(|one| (one.key, one.value)).collect()
}

#[test]
fn every_option_of_celery_is_read() {
    // From `--help` of every command of Celery 5.7.0.
    for line in [
        "-A shop -b redis://h --result-backend redis://h --loader app --config settings --workdir /tmp -C -q --skip-checks worker",
        "--app shop.celery:app --broker redis://h --no-color --quiet status",
        "worker -A shop -b redis://h",
        "worker -n w1@%h -S state.db -l INFO -O fair --prefetch-multiplier 1 --disable-prefetch",
        "worker --hostname w1@%h --statedb state.db --loglevel warning --optimization default",
        "worker -D -c 4 -P gevent -E --time-limit 300 --soft-time-limit 240.5 --max-tasks-per-child 100",
        "worker --detach --concurrency auto --pool solo --task-events --pool-start-method spawn --max-memory-per-child 200000",
        "worker --events --purge -Q a,b -X b -I shop.tasks,shop.more",
        "worker --discard --queues a --exclude-queues b --include shop.tasks",
        "worker --without-gossip --without-mingle --without-heartbeat --heartbeat-interval 10 --autoscale 10,3",
        "worker -B -s schedule.db --scheduler shop.Scheduler",
        "worker --beat --schedule-filename schedule.db",
        "worker --beat --schedule schedule.db -f %n.log --pidfile %n.pid --uid app --gid app --umask 022 --executable python3",
        "beat --detach -s schedule.db -S shop.Scheduler --max-interval 5 -n b@%h -l DEBUG -f b.log --pidfile b.pid",
        "beat --schedule s --scheduler x --enable-remote-control --hostname b --loglevel CRITICAL --logfile b --uid 1 --gid 1",
        "beat -Q reports,mail",
        "beat --no-enable-remote-control --umask 0 --executable python3",
        "inspect -t 2.5 -d w1@h,w2@h -j active",
        "inspect --timeout 2 --destination w1@h --json registered rate_limit",
        "inspect --list",
        "control -t 1 -d w1@h -j rate_limit shop.add 10/m",
        "control --list",
        "call shop.add -a [2,3] -k {\"x\":1} --countdown 3.5 --expires 60 --serializer json --queue q",
        "call shop.add --args [] --kwargs {} --eta 2030-01-01T00:00:00 --exchange e --routing-key k",
        "result 42 -t shop.add --traceback",
        "result 42 --task shop.add",
        "purge -f -Q a,b -X b",
        "purge --force --queues a --exclude-queues b",
        "status -t 1 -d w1@h -j",
        "list bindings",
        "report",
    ] {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn every_request_of_inspect_and_control_is_known() {
    for line in [
        "inspect active",
        "inspect active_queues",
        "inspect clock",
        "inspect conf",
        "inspect conf true",
        "inspect memdump 5",
        "inspect memsample",
        "inspect objgraph Request 200 10",
        "inspect ping",
        "inspect query_task a b",
        "inspect registered",
        "inspect registered rate_limit",
        "inspect report",
        "inspect reserved",
        "inspect revoked",
        "inspect scheduled",
        "inspect stats",
        "inspect active-queues",
        "control add_consumer q",
        "control add_consumer q e direct k",
        "control autoscale 10 3",
        "control cancel_consumer q",
        "control disable_events",
        "control election 1 topic action",
        "control enable_events",
        "control heartbeat",
        "control pool_grow",
        "control pool_grow 2",
        "control pool_restart",
        "control pool_shrink 1",
        "control rate_limit shop.add 10/m",
        "control revoke a b",
        "control revoke_by_stamped_headers k=v k=w",
        "control shutdown",
        "control terminate SIGKILL a",
        "control time_limit shop.add 10",
        "control time_limit shop.add 10 20",
    ] {
        let remote = match parse(line).map(|door| door.verb) {
            Ok(Verb::Inspect(args)) => args.remote(remote::INSPECT),
            Ok(Verb::Control(args)) => args.remote(remote::CONTROL),
            other => panic!("{line}: {other:?}"),
        };
        assert!(remote.is_ok(), "{line}: {remote:?}");
    }
    for (line, says) in [
        ("inspect actve", "did you mean `active`?"),
        ("inspect ping 3", "write `ping`"),
        ("inspect revoke a", "celery control revoke"),
        ("inspect zzzzzz", "--list"),
    ] {
        let Ok(Door { verb: Verb::Inspect(args), .. }) = parse(line) else { panic!("{line}") };
        let problem = args.remote(remote::INSPECT).expect_err(line);
        assert!(problem.next_step().contains(says), "{line}: {}", problem.next_step());
        assert_eq!(problem.exit_code(), Exit::Usage);
    }
}

#[test]
fn what_a_worker_is_told_becomes_keys_of_the_configuration() {
    for (line, keys) in [
        (
            "worker -Q a,b -c 4 -l WARNING",
            &[("worker.queues", "a,b"), ("worker.slots", "4"), ("log.level", "warn")][..],
        ),
        ("worker -c auto", &[]),
        ("worker --autoscale 3,10", &[("worker.slots", "10")]),
        ("worker -P solo -c 8", &[("worker.slots", "1")]),
        ("worker -B", &[("worker.schedules", "true")]),
        (
            "worker -c 4 --max-tasks-per-child 100",
            &[("worker.slots", "4"), ("worker.recycle_tasks", "400"), ("worker.processes", "1")],
        ),
        (
            "worker -c 2 --max-memory-per-child 200000",
            &[("worker.slots", "2"), ("worker.recycle_memory", "409600000"), ("worker.processes", "1")],
        ),
        ("worker --max-memory-per-child 12000", &[("worker.recycle_memory", "33554432"), ("worker.processes", "1")]),
    ] {
        let keys: Vec<_> = keys.iter().map(|(key, value)| (*key, (*value).to_owned())).collect();
        assert_eq!(told(line), keys, "{line}");
    }
}

#[test]
fn what_a_worker_is_told_is_valid() {
    let (_, args) = worker_of("worker -Q a,b -c 4 -l INFO -B --max-tasks-per-child 9 --max-memory-per-child 100");
    let found = crate::doors::broker::bridge_to("celery", "redis://h", "--broker").expect("a broker");
    let overrides = worker::overrides(&args, &found, &["a".to_owned()], "celery@h", &out());
    let sources = overrides
        .into_iter()
        .fold(windlass::config::Sources::new(), |sources, one| sources.flag(one.key, one.flag, one.value));
    sources.load().expect("a configuration");
}

#[test]
fn what_has_no_meaning_is_said_once_each() {
    let idle = |line: &str| worker_of(line).1.idle().iter().map(|(option, _)| *option).collect::<Vec<_>>();
    assert_eq!(idle("worker -c 4 -Q a -O fair --without-gossip --without-mingle --disable-prefetch -E"), [""; 0]);
    assert_eq!(
        idle("worker -P prefork -S s.db --time-limit 3 --heartbeat-interval 2"),
        ["--statedb", "--pool", "--heartbeat-interval"]
    );
    assert_eq!(worker_of("--loader x --config y worker").0.idle().len(), 2);
}

#[test]
fn limits_of_a_worker_are_said_of_its_bridge() {
    let (_, args) = worker_of("worker --time-limit 300 --soft-time-limit 240.5");
    let mut found = crate::doors::broker::bridge_to("celery", "redis://h", "--broker").expect("a broker");
    worker::say_limits(&mut found, &args);
    assert_eq!(found.url, "celery+redis://h?time-limit=300&soft-time-limit=240.5");
}

#[test]
fn names_are_made_as_celery_makes_them() {
    for (wanted, name) in [
        (None, "celery@web1.shop"),
        (Some("w1@%h"), "w1@web1.shop"),
        (Some("w1@%%h"), "w1@web1.shop"),
        (Some("w1@%n.%d"), "w1@web1.shop"),
        (Some("w1"), "celery@w1"),
        (Some("%n%i"), "celery@web1"),
    ] {
        assert_eq!(worker::node_name(wanted, "celery", "web1.shop"), name);
    }
    assert!(worker::node_name(None, "celery", &host()).starts_with("celery@"));
}

#[test]
fn what_is_not_known_is_refused_with_the_next_step() {
    let error = parse("worker --concurency 4").expect_err("a typing mistake").to_string();
    assert!(error.contains("--concurrency"), "{error}");
    for (typed, says) in [("flower", "pip install flower"), ("wroker", "did you mean `worker`?"), ("zzz", "--help")] {
        let problem = elsewhere(&[typed.into()]);
        assert!(problem.next_step().contains(says), "{typed}: {}", problem.next_step());
        assert_eq!(problem.exit_code(), Exit::Usage);
    }
    for backend in ["db+postgresql://h/db", "cache+memcached://h", "mongodb://h"] {
        let problem = results(backend, "--result-backend").expect_err(backend);
        assert!(problem.next_step().contains("redis://"), "{backend}");
    }
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
