//! `cargo xtask servers`: the servers that the tests of the stores share, for as long as a command runs.
//!
//! 1. install what is missing   2. start what the environment does not name   3. run the command, or wait for a signal
//! 4. stop what was started
//!
//! `cargo xtask test` does the same around its step `test`. Nothing is ever sent to a server that runs on the machine
//! already, unless its variable names it. Tests that kill or fill a server start one of their own.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use windlass_servers::{
    Aof, POSTGRES_URL, Postgres, Proxy, RABBITMQ_URL, REDIS_ALWAYS_URL, REDIS_URL, RabbitMq, RabbitMqOnDemand, Redis,
};

use crate::{machine, process};

/// Shown below the help.
pub(crate) const EXAMPLES: &str = "Examples:
  cargo xtask servers -- cargo nextest run -p windlass-redis
  cargo xtask servers --trouble restarts -- cargo nextest run -p windlass-postgres --test conformance --retries 3
  cargo xtask servers -- sh -c 'psql \"$WINDLASS_TEST_POSTGRES_URL\"'
  cargo xtask servers    (in a terminal of its own; paste what it prints into another)";

/// A test that has a pool of connections runs on every processor of a large machine.
const POSTGRES_CONNECTIONS: &str = "max_connections=500";

/// The servers that were started, and the URLs of all.
///
/// Dropping it stops those that were started.
#[derive(Debug)]
pub(crate) struct Servers {
    redis: Vec<Redis>,
    postgres: Option<Postgres>,
    /// Costs nothing until somebody connects; then seconds and 120 MiB, which most runs do not need.
    _rabbitmq: Option<RabbitMqOnDemand>,
    variables: BTreeMap<&'static str, String>,
}

impl Servers {
    /// Starts a server for every variable that is not set.
    ///
    /// # Errors
    /// When one is not installed or does not start; those that were started are stopped.
    pub(crate) fn start() -> Result<Self> {
        let mut variables = BTreeMap::new();
        let mut started = Vec::new();
        for (variable, aof, what) in [
            (REDIS_URL, Aof::EverySec, "Redis that syncs every second"),
            (REDIS_ALWAYS_URL, Aof::Always, "Redis that syncs every write"),
        ] {
            if let Some(url) = given(variable) {
                variables.insert(variable, url);
                continue;
            }
            let redis = Redis::start(aof).with_context(|| format!("cannot start a {what}"))?;
            eprintln!("servers: a {what} on {}", redis.address());
            variables.insert(variable, redis.url());
            started.push(redis);
        }
        let rabbitmq = if let Some(url) = given(RABBITMQ_URL) {
            variables.insert(RABBITMQ_URL, url);
            None
        } else {
            let rabbitmq = RabbitMqOnDemand::listen().context("cannot listen for those who need a RabbitMQ")?;
            variables.insert(RABBITMQ_URL, rabbitmq.url());
            Some(rabbitmq)
        };
        let postgres = if let Some(url) = given(POSTGRES_URL) {
            variables.insert(POSTGRES_URL, url);
            None
        } else {
            let postgres = Postgres::start_with(&[POSTGRES_CONNECTIONS]).context("cannot start a PostgreSQL")?;
            eprintln!("servers: a PostgreSQL on {}", postgres.address());
            variables.insert(POSTGRES_URL, postgres.url("postgres"));
            Some(postgres)
        };
        Ok(Self { redis: started, postgres, _rabbitmq: rabbitmq, variables })
    }

    /// Where the tests find every server: names and URLs of the environment.
    pub(crate) fn variables(&self) -> &BTreeMap<&'static str, String> {
        &self.variables
    }
}

/// Installs the servers that [`Servers::start`] would miss. Answers with what there is.
///
/// # Errors
/// When one is missing and cannot be installed from here; the text says what to install.
pub(crate) fn install_missing() -> Result<&'static str> {
    let needs_redis = [REDIS_URL, REDIS_ALWAYS_URL].iter().any(|variable| given(variable).is_none());
    if needs_redis && !Redis::is_installed() {
        install("redis-server", "redis-server", "Redis (tests of its store need one)")?;
    }
    if given(POSTGRES_URL).is_none() && !Postgres::is_installed() {
        install("postgresql", "postgresql", "PostgreSQL (tests of its store need one)")?;
    }
    if given(RABBITMQ_URL).is_none() && !RabbitMq::is_installed() {
        install("rabbitmq-server", "rabbitmq-server", "RabbitMQ (tests of the AMQP transport need one)")?;
    }
    Ok("Redis, PostgreSQL, RabbitMQ")
}

/// Installs a package and stops the server that it may have started.
fn install(package: &str, service: &str, what: &str) -> Result<()> {
    machine::install(package, what)?;
    // It was not there a moment ago, so nobody needs it. Where packages start nothing this has nothing to do.
    let stopped = Command::new("service").args([service, "stop"]).output();
    if stopped.is_err() {
        eprintln!("servers: installing {package} may have started a server of its own; tests do not use it");
    }
    Ok(())
}

/// Runs a command with the servers, or prints where they are and waits for a signal.
///
/// # Errors
/// When a server does not start, or there is no such command.
pub(crate) fn run(command: &[OsString], trouble: Option<Trouble>) -> Result<ExitCode> {
    // From here on a signal ends no more than the waiting, so that the servers are stopped in every case.
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot listen to signals")?;
    install_missing()?;
    let mut servers = Servers::start()?;
    let code = match (command.split_first(), trouble) {
        (Some((program, arguments)), Some(trouble)) => {
            in_trouble(&mut servers, trouble, |variables| run_with(variables, program, arguments, signals))??
        }
        (Some((program, arguments)), None) => run_with(servers.variables(), program, arguments, signals)?,
        (None, _) => stay_with(&servers, signals),
    };
    eprintln!("servers: stopping");
    drop(servers);
    Ok(code)
}

/// Runs a command to its end. A signal that ends us ends the command instead, and with it us.
fn run_with(
    variables: &BTreeMap<&'static str, String>,
    program: &OsString,
    arguments: &[OsString],
    mut signals: Signals,
) -> Result<ExitCode> {
    let mut command = Command::new(program);
    command.args(arguments).envs(variables);
    process::forget_our_package(&mut command);
    let mut child = command.spawn().with_context(|| format!("cannot run `{}`: is it installed?", program.display()))?;
    let listening = signals.handle();
    let id = child.id();
    let listener = thread::spawn(move || {
        for signal in signals.forever() {
            // A terminal sends Ctrl-C to the command as well, and some read the second one as an order to leave all behind.
            if signal != SIGINT {
                process::send_signal("-TERM", &[id]);
            }
        }
    });
    let status = child.wait().context("cannot wait for the command");
    listening.close();
    drop(listener.join());
    Ok(exit_code(status?))
}

/// What happens to the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Trouble {
    /// They are restarted again and again: Redis in order, PostgreSQL as after a crash.
    Restarts,
    /// They are reached through a line that is cut and stands still again and again.
    Cuts,
}

/// Makes the conformance suite ask again.
const PATIENT: &str = "WINDLASS_TEST_PATIENT";
/// Between two restarts, and between two cuts.
const RESTART_EVERY: Duration = Duration::from_secs(3);
const CUT_EVERY: Duration = Duration::from_millis(700);
/// How long a line stands still.
const STILL: Duration = Duration::from_millis(300);

/// Runs something with the URLs of servers that are in trouble.
fn in_trouble<T>(
    servers: &mut Servers,
    trouble: Trouble,
    run: impl FnOnce(&BTreeMap<&'static str, String>) -> T,
) -> Result<T> {
    let Servers { redis, postgres, variables, .. } = servers;
    let mut variables = variables.clone();
    variables.insert(PATIENT, "1".to_owned());
    let mut lines = Vec::new();
    if trouble == Trouble::Cuts {
        let addresses = redis.iter().map(Redis::address).chain(postgres.iter().map(Postgres::address));
        for address in addresses {
            let line = Proxy::to(address).context("cannot put a line between a server and its clients")?;
            for url in variables.values_mut() {
                *url = url.replace(&address.to_string(), &line.address().to_string());
            }
            lines.push(line);
        }
    }
    let over = AtomicBool::new(false);
    let mut count = 0;
    let answer = thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut count = 0_u32;
            let mut next = Instant::now();
            while !over.load(Ordering::Relaxed) {
                // tidy: allow(sleep): trouble comes by the clock
                thread::sleep(Duration::from_millis(50));
                if next > Instant::now() {
                    continue;
                }
                count += 1;
                match trouble {
                    Trouble::Restarts => {
                        next = Instant::now() + RESTART_EVERY;
                        let restarted = redis.iter_mut().try_for_each(|redis| {
                            redis.stop();
                            redis.start_again()
                        });
                        let restarted =
                            restarted.and_then(|()| postgres.iter_mut().try_for_each(Postgres::restart_immediately));
                        if let Err(error) = restarted {
                            eprintln!("servers: a server did not start again: {error}");
                        }
                    }
                    Trouble::Cuts => {
                        next = Instant::now() + CUT_EVERY;
                        if count.is_multiple_of(2) {
                            lines.iter().for_each(Proxy::cut);
                        } else {
                            lines.iter().for_each(Proxy::stall);
                            // tidy: allow(sleep): for so long nothing comes through
                            thread::sleep(STILL);
                            lines.iter().for_each(Proxy::resume);
                        }
                    }
                }
            }
            count
        });
        let answer = run(&variables);
        over.store(true, Ordering::Relaxed);
        count = worker.join().unwrap_or(0);
        answer
    });
    eprintln!("servers: trouble came {count} times");
    Ok(answer)
}

fn stay_with(servers: &Servers, mut signals: Signals) -> ExitCode {
    for (name, url) in servers.variables() {
        println!("{}", export(name, url));
    }
    eprintln!("servers: they stay until Ctrl-C");
    signals.forever().next();
    ExitCode::SUCCESS
}

/// The value of a variable, when it has one.
fn given(variable: &str) -> Option<String> {
    std::env::var(variable).ok().filter(|url| !url.is_empty())
}

/// A line for a shell, whatever stands in the value.
fn export(name: &str, value: &str) -> String {
    format!("export {name}='{}'", value.replace('\'', r"'\''"))
}

/// The exit code of the command; that of a shell when a signal ended it.
fn exit_code(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    // Always within a byte on Unix; should it not be, it is a failure.
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_export_survives_the_shell() {
        assert_eq!(export("NAME", "redis://127.0.0.1:1/0"), "export NAME='redis://127.0.0.1:1/0'");
        let shell = format!("{}; printf %s \"$NAME\"", export("NAME", "it's $HOME"));
        let output = Command::new("sh").args(["-c", &shell]).output().expect("a shell");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it's $HOME");
    }

    #[test]
    fn the_exit_code_is_that_of_the_command() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), ExitCode::from(3));
        assert_eq!(exit_code(ExitStatus::from_raw(15)), ExitCode::from(143));
        assert_eq!(exit_code(ExitStatus::from_raw(0)), ExitCode::SUCCESS);
    }
}
