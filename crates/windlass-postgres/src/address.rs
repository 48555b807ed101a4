//! The URL of a store: what PostgreSQL's own clients understand, and what is ours.
//!
//! `postgres://user:password@host:5432/database?schema=windlass&connections=3&sslmode=verify-full&sslrootcert=ca.pem`

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use windlass_core::StoreError;

/// The schema of a store whose URL names none.
pub const SCHEMA: &str = "windlass";
/// The longest name of a schema: names of notification channels contain it.
const SCHEMA_BYTES_MAX: usize = 40;
/// Connections that work, of a store whose URL says nothing; one more listens.
pub const CONNECTIONS: usize = 3;
/// More connections make a server slower, not faster.
pub const CONNECTIONS_MAX: usize = 64;

/// A dead peer is noticed after about `KEEPALIVE_IDLE` + 3 * `KEEPALIVE_EVERY`, one that takes no bytes after `UNSENT_MAX`.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(3);
const UNSENT_MAX: Duration = Duration::from_secs(15);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// How far a connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tls {
    /// Not at all.
    Disable,
    /// Encrypted when the server can; nobody checks whose certificate it is.
    Prefer,
    /// Encrypted, or no connection; the certificate must be valid for the host.
    Verify,
}

/// Where a store is, and how it is reached.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    pub(crate) config: Config,
    pub(crate) schema: String,
    pub(crate) connections: usize,
    pub(crate) tls: Tls,
    pub(crate) root_certificate: Option<PathBuf>,
    /// Host, port, database and schema, for people.
    pub(crate) shown: String,
}

impl Address {
    /// Reads a URL.
    pub(crate) fn parse(url: &str) -> Result<Self, StoreError> {
        let (base, query) = url.split_once('?').unwrap_or((url, ""));
        if !base.starts_with("postgres://") && !base.starts_with("postgresql://") {
            return Err(wrong("it does not begin with postgres://"));
        }
        let (mut schema, mut connections, mut tls, mut root_certificate) =
            (SCHEMA.to_owned(), CONNECTIONS, Tls::Prefer, None);
        let mut theirs: Vec<&str> = Vec::new();
        for part in query.split('&').filter(|part| !part.is_empty()) {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            match name {
                "schema" => value.clone_into(&mut schema),
                "connections" => {
                    connections = value
                        .parse()
                        .ok()
                        .filter(|count| (1..=CONNECTIONS_MAX).contains(count))
                        .ok_or_else(|| wrong(format!("connections={value} is not 1 to {CONNECTIONS_MAX}")))?;
                }
                "sslmode" => tls = tls_of(value)?,
                "sslrootcert" => root_certificate = Some(PathBuf::from(value)),
                _ => theirs.push(part),
            }
        }
        check_schema(&schema)?;
        let plain = if theirs.is_empty() { base.to_owned() } else { format!("{base}?{}", theirs.join("&")) };
        // The parser's own message may repeat the URL, and with it the password.
        let mut config: Config = plain.parse().map_err(|_| wrong("the part after postgres:// cannot be read"))?;
        set_up(&mut config, tls);
        let shown = shown(&config, &schema);
        Ok(Self { config, schema, connections, tls, root_certificate, shown })
    }
}

/// Checks the name of a schema: it is written into statements as it is.
pub(crate) fn check_schema(schema: &str) -> Result<(), StoreError> {
    let starts_well = schema.starts_with(|first: char| first.is_ascii_lowercase() || first == '_');
    let holds = schema.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_');
    if starts_well && holds && schema.len() <= SCHEMA_BYTES_MAX && !schema.starts_with("pg_") {
        Ok(())
    } else {
        Err(wrong(format!(
            "the schema `{}` is not 1 to {SCHEMA_BYTES_MAX} of a-z, 0-9 and _, beginning with a letter",
            schema.chars().take(40).flat_map(char::escape_debug).collect::<String>()
        )))
    }
}

fn tls_of(value: &str) -> Result<Tls, StoreError> {
    match value {
        "disable" => Ok(Tls::Disable),
        "allow" | "prefer" => Ok(Tls::Prefer),
        "require" | "verify-ca" | "verify-full" => Ok(Tls::Verify),
        _ => Err(wrong(format!("sslmode={value} is none of disable, prefer, require, verify-full"))),
    }
}

fn set_up(config: &mut Config, tls: Tls) {
    config.ssl_mode(match tls {
        Tls::Disable => SslMode::Disable,
        Tls::Prefer => SslMode::Prefer,
        Tls::Verify => SslMode::Require,
    });
    if config.get_application_name().is_none() {
        config.application_name("windlass");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_WITHIN);
    }
    config.keepalives(true).keepalives_idle(KEEPALIVE_IDLE).keepalives_interval(KEEPALIVE_EVERY).keepalives_retries(3);
    config.tcp_user_timeout(UNSENT_MAX);
    // After a failover the old primary may still answer: it is left for one that takes writes.
    config.target_session_attrs(TargetSessionAttrs::ReadWrite);
}

fn shown(config: &Config, schema: &str) -> String {
    let hosts: Vec<String> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(index, host)| {
            let port = config.get_ports().get(index).or_else(|| config.get_ports().first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(host) => format!("{host}:{port}"),
                #[cfg(unix)]
                Host::Unix(path) => format!("{}:{port}", path.display()),
            }
        })
        .collect();
    let database = config.get_dbname().or_else(|| config.get_user()).unwrap_or("postgres");
    format!("postgres://{}/{database}?schema={schema}", hosts.join(","))
}

fn wrong(detail: impl std::fmt::Display) -> StoreError {
    StoreError::Broken(format!(
        "the URL of the store cannot be used: {detail}; write postgres://USER:PASSWORD@HOST:5432/DATABASE?schema=windlass"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_and_shown_without_secrets() {
        let address = Address::parse(
            "postgres://me:s3cret@db.example:6000/app?schema=jobs&connections=5&sslmode=verify-full&connect_timeout=3",
        )
        .unwrap();
        assert_eq!((address.schema.as_str(), address.connections, address.tls), ("jobs", 5, Tls::Verify));
        assert_eq!(address.shown, "postgres://db.example:6000/app?schema=jobs");
        assert_eq!(address.config.get_connect_timeout(), Some(&Duration::from_secs(3)));
        assert_eq!(
            Address::parse("postgres://localhost/app").unwrap().shown,
            "postgres://localhost:5432/app?schema=windlass"
        );
    }

    #[test]
    fn a_url_that_cannot_be_used_says_why_without_the_password() {
        for (url, part) in [
            ("mysql://x", "postgres://"),
            ("postgres://u:s3cret@h/d?connections=0", "1 to 64"),
            ("postgres://u:s3cret@h/d?sslmode=maybe", "sslmode=maybe"),
            ("postgres://u:s3cret@h/d?schema=a-b", "a-z"),
            ("postgres://u:s3cret@h/d?schema=pg_x", "a-z"),
            ("postgres://u:s3cret@h:port/d", "cannot be read"),
        ] {
            let said = Address::parse(url).unwrap_err().to_string();
            assert!(said.contains(part) && !said.contains("s3cret"), "{url}: {said}");
        }
    }
}
