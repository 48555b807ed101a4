//! A test program that is killed has no chance to clean up: its servers must end all the same.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use windlass_servers::{Aof, Postgres, RabbitMq, Redis};

/// Set in the program that starts servers and is killed; this test starts itself again.
const VICTIM: &str = "WINDLASS_SERVERS_TEST_VICTIM";
/// The kernel ends the servers at once; PostgreSQL's own processes notice within moments.
const LIMIT: Duration = Duration::from_secs(30);

#[test]
fn the_servers_of_a_killed_program_end_with_it() {
    if std::env::var_os(VICTIM).is_some() {
        return hold_servers();
    }
    let mut victim = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "the_servers_of_a_killed_program_end_with_it", "--nocapture"])
        .env(VICTIM, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("this program starts again");
    let mut lines = BufReader::new(victim.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let processes: Vec<PathBuf> = lines
        .find_map(|line| Some(line.split_once("processes:")?.1.to_owned()))
        .expect("the servers start")
        .split_whitespace()
        .map(|process| Path::new("/proc").join(process))
        .collect();
    assert!(processes.len() > 3 && processes.iter().all(|process| process.exists()), "{processes:?}");

    victim.kill().expect("it runs");
    victim.wait().expect("it is our child");

    let killed = Instant::now();
    while processes.iter().any(|process| is_alive(process)) {
        assert!(killed.elapsed() < LIMIT, "left behind: {processes:?}");
        std::thread::yield_now();
    }
}

/// Starts servers from a thread that ends, says which processes they are, and waits to be killed.
fn hold_servers() {
    let start = || {
        let rabbit = RabbitMq::start().expect("RabbitMQ");
        (Redis::start(Aof::EverySec).expect("Redis"), Postgres::start().expect("PostgreSQL"), rabbit)
    };
    let (redis, postgres, rabbit) = std::thread::spawn(start).join().expect("servers");
    let of_redis = redis.cli(&["INFO", "server"]).expect("info");
    let of_redis = of_redis.lines().find_map(|line| line.strip_prefix("process_id:")).expect("a process id");
    let theirs = "select pid from pg_stat_activity where pid <> pg_backend_pid()";
    let of_postgres = postgres.psql("postgres", theirs).expect("select");
    let of_rabbit = rabbit.eval("list_to_integer(os:getpid()).").expect("a process id");
    println!("processes:{of_redis} {of_rabbit} {}", of_postgres.replace('\n', " "));
    std::io::stdout().flush().expect("a pipe");
    // Ends with its parent when that fails before it kills us.
    std::io::stdin().read_to_end(&mut Vec::new()).expect("a pipe");
}

/// Whether a process runs: one that has ended and that nobody has asked about does not.
fn is_alive(process: &Path) -> bool {
    std::fs::read_to_string(process.join("stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
