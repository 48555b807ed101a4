//! The shared servers of a test run, named by the environment.
//!
//! `cargo xtask servers` and `cargo xtask test` set the variables. Without them a test fails: a test that is skipped where
//! a server is missing proves nothing.

use crate::rabbitmq;

/// Names a Redis that syncs its log every second.
pub const REDIS_URL: &str = "WINDLASS_TEST_REDIS_URL";
/// Names a Redis that syncs its log with every write.
pub const REDIS_ALWAYS_URL: &str = "WINDLASS_TEST_REDIS_ALWAYS_URL";
/// Names a PostgreSQL with a database, as superuser.
pub const POSTGRES_URL: &str = "WINDLASS_TEST_POSTGRES_URL";

/// Names a RabbitMQ, which is started when somebody connects.
pub const RABBITMQ_URL: &str = "WINDLASS_TEST_RABBITMQ_URL";

/// The Redis of this run; its append-only log is synced every second. Other tests use it too: choose keys of your own.
///
/// # Panics
/// When the environment names none; the text says how to start one.
pub fn redis_url() -> String {
    named(REDIS_URL)
}

/// The Redis of this run that syncs with every write. Other tests use it too: choose keys of your own.
///
/// # Panics
/// When the environment names none; the text says how to start one.
pub fn redis_always_url() -> String {
    named(REDIS_ALWAYS_URL)
}

/// The PostgreSQL of this run, as superuser. Other tests use it too: make a database or a schema of your own.
///
/// # Panics
/// When the environment names none; the text says how to start one.
pub fn postgres_url() -> String {
    named(POSTGRES_URL)
}

/// The RabbitMQ of this run, as a user who may do everything in the vhost `/`. Other tests use it too: choose names of your
/// own. The first call of a run waits until it is started.
///
/// # Panics
/// When the environment names none, or it does not start; the text says how to start one.
pub fn rabbitmq_url() -> String {
    let url = named(RABBITMQ_URL);
    let address =
        url.rsplit('@').next().and_then(|rest| rest.split('/').next()).and_then(|address| address.parse().ok());
    // Another form is somebody's own server, which runs.
    assert!(
        address.is_none_or(rabbitmq::wait_for),
        "the RabbitMQ of {RABBITMQ_URL} does not start: see what `servers` says"
    );
    url
}

fn named(variable: &str) -> String {
    match std::env::var(variable) {
        Ok(url) if !url.is_empty() => url,
        _ => panic!("{}", advice(variable, std::env::var("CARGO_PKG_NAME").ok().as_deref())),
    }
}

/// What to do when a variable is missing. Cargo tells its tests the name of their crate.
fn advice(variable: &str, of_crate: Option<&str>) -> String {
    let of_crate = of_crate.unwrap_or("CRATE");
    format!("{variable} is not set: run `cargo xtask servers -- cargo nextest run -p {of_crate}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_variable_is_answered_with_the_command_to_run() {
        let text = advice(REDIS_URL, Some("windlass-redis"));
        assert_eq!(
            text,
            "WINDLASS_TEST_REDIS_URL is not set: run `cargo xtask servers -- cargo nextest run -p windlass-redis`"
        );
        assert!(advice(REDIS_URL, None).ends_with("-p CRATE`"));
    }
}
