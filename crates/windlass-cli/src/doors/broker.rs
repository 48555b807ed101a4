//! Brokers as the other programs name them, and the bridges that lead to them.

use std::fmt::Write as _;

use windlass::bridges::{BridgeUrl, OpenError, celery};
use windlass_core::bridge::TransportError;

use crate::exit::{Exit, Problem};

/// Where a door leads: the URL of a bridge, and which option or variable it comes from.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The URL of the bridge, with its password: not to be shown.
    pub(super) url: String,
    /// The option or the variable.
    pub(super) from: &'static str,
    /// What of the broker's URL is left out, and why.
    pub(super) left_out: Vec<String>,
}

impl Found {
    /// The bridge.
    pub(super) fn bridge(&self) -> Result<BridgeUrl, Problem> {
        self.url.parse().map_err(|wrong| {
            Problem::usage(
                format_args!("{}: {wrong}", self.from),
                "see docs/bridges.md for what the URL of a bridge may say",
            )
        })
    }

    /// Says one thing more of the bridge; what is said last counts.
    pub(super) fn say(&mut self, option: &str, value: &str) {
        let mark = if self.url.contains('?') { '&' } else { '?' };
        // Writing to a string cannot fail.
        let _ = write!(self.url, "{mark}{option}={}", encoded(value));
    }
}

/// A value as a URL carries it.
pub(super) fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/,".contains(&byte) {
            text.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(text, "%{byte:02X}");
        }
    }
    text
}

/// A broker that cannot be used.
pub(super) fn not_opened(error: OpenError) -> Problem {
    match error {
        OpenError::Transport(error) | OpenError::Celery(celery::OpenError::Broker(error)) => not_done(error),
        OpenError::Url(error) => Problem::usage(error, "see docs/bridges.md for what the URL of a bridge may say"),
    }
}

/// Something that a broker has not done.
pub(super) fn not_done(error: TransportError) -> Problem {
    match error {
        TransportError::Unreachable(_) => Problem::new(Exit::Unreachable, error, "check the address of the broker"),
        TransportError::Refused(_) => Problem::new(
            Exit::Failed,
            error,
            "correct the name of the queue or the rights of this user; docs/bridges.md says what each broker can do",
        ),
    }
}

/// The bridge of a wire to a broker that is named as kombu and the brokers of TaskIQ name it.
pub(super) fn bridge_to(wire: &'static str, broker: &str, from: &'static str) -> Result<Found, Problem> {
    let broker = broker.trim();
    if BridgeUrl::is_one(broker) {
        return Ok(Found { url: broker.to_owned(), from, left_out: Vec::new() });
    }
    let (server, left_out) = server_of(broker).map_err(|wrong| {
        Problem::usage(
            format_args!("the broker of {from} cannot be used: {wrong}"),
            "write redis://HOST:PORT/DB or amqp://USER:PASSWORD@HOST/VHOST",
        )
    })?;
    Ok(Found { url: format!("{wire}+{server}"), from, left_out })
}

/// The URL of a server as our drivers read it, and what was left out of it.
pub(super) fn server_of(broker: &str) -> Result<(String, Vec<String>), String> {
    let mut left_out = Vec::new();
    let mut places = broker.split(';').map(str::trim).filter(|place| !place.is_empty());
    let first = places.next().ok_or("it is empty")?;
    if places.next().is_some() {
        left_out.push("more than one broker is named: the first one is used".to_owned());
    }
    let (scheme, rest) = first.split_once("://").ok_or("it has no `://`")?;
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (scheme, place) = match scheme {
        "redis" | "rediss" | "valkey" | "valkeys" => {
            // A path of slashes is database 0.
            let bare = place.trim_end_matches('/');
            let (user, host) =
                bare.rsplit_once('@').map_or((String::new(), bare), |(user, host)| (format!("{user}@"), host));
            let host = if host.is_empty() || host.starts_with('/') || host.starts_with(':') {
                format!("localhost{host}")
            } else {
                host.to_owned()
            };
            (scheme, format!("{user}{host}"))
        }
        "redis+socket" | "unix" | "redis+unix" => ("redis+unix", place.to_owned()),
        "redis+sentinel" | "rediss+sentinel" | "redis+cluster" | "rediss+cluster" => (scheme, place.to_owned()),
        "amqp" | "pyamqp" | "py-amqp" | "librabbitmq" => ("amqp", place.to_owned()),
        "amqps" => ("amqps", place.to_owned()),
        "sentinel" => return Err("write sentinels as redis+sentinel://HOST:26379,HOST:26379/NAME/DB".to_owned()),
        other => return Err(format!("there is no way to a broker of the kind `{other}`")),
    };
    let mut kept = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match name {
            "virtual_host" | "db" if scheme == "redis+unix" => kept.push(format!("db={value}")),
            "ssl_ca_certs" => kept.push(format!("ca={value}")),
            "ssl_cert_reqs" if value.to_ascii_lowercase().ends_with("required") => {}
            "ssl_cert_reqs" => left_out.push(
                "ssl_cert_reqs: certificates are always verified; name your authority with ssl_ca_certs".to_owned(),
            ),
            "socket_timeout"
            | "socket_connect_timeout"
            | "socket_keepalive"
            | "retry_on_timeout"
            | "health_check_interval"
            | "max_connections"
            | "ssl_check_hostname"
            | "protocol" => {
                left_out.push(format!("{name}: the connection is looked after without it"));
            }
            _ => kept.push(pair.to_owned()),
        }
    }
    let query = if kept.is_empty() { String::new() } else { format!("?{}", kept.join("&")) };
    Ok((format!("{scheme}://{place}{query}"), left_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_named_as_the_other_programs_name_them() {
        for (broker, bridge) in [
            ("redis://localhost:6379/0", "celery+redis://localhost:6379/0"),
            ("redis://", "celery+redis://localhost"),
            ("redis:///3", "celery+redis://localhost/3"),
            ("redis://:pw@h:6379//", "celery+redis://:pw@h:6379"),
            ("rediss://h?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=/ca.pem", "celery+rediss://h?ca=/ca.pem"),
            ("redis+socket:///run/redis.sock?virtual_host=2", "celery+redis+unix:///run/redis.sock?db=2"),
            ("pyamqp://guest@h//", "celery+amqp://guest@h//"),
            ("amqps://u:p@h/v?heartbeat=5", "celery+amqps://u:p@h/v?heartbeat=5"),
            ("celery+redis://h?prefix=x", "celery+redis://h?prefix=x"),
        ] {
            let found = bridge_to("celery", broker, "--broker").unwrap_or_else(|error| panic!("{broker}: {error}"));
            assert_eq!((found.url.as_str(), found.left_out.len()), (bridge, 0), "{broker}");
        }
        for wrong in ["", "redis", "sqs://", "sentinel://h:26379", "memory://"] {
            assert!(bridge_to("celery", wrong, "--broker").is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_documentation_lists_every_option_of_a_bridge() {
        let documentation = include_str!("../../../../docs/bridges.md");
        for (option, _, _) in windlass::bridges::url::OPTIONS {
            assert!(
                documentation.contains(&format!("\n| `{option}` |")),
                "docs/bridges.md should have a row for `{option}`"
            );
        }
    }

    #[test]
    fn what_is_left_out_of_a_url_is_said() {
        let found = bridge_to("celery", "rediss://a;rediss://b", "--broker").expect("a broker");
        assert_eq!((found.url.as_str(), found.left_out.len()), ("celery+rediss://a", 1));
        let found =
            bridge_to("celery", "rediss://a?ssl_cert_reqs=none&socket_timeout=3", "--broker").expect("a broker");
        assert_eq!((found.url.as_str(), found.left_out.len()), ("celery+rediss://a", 2));
    }

    #[test]
    fn what_is_said_of_a_bridge_survives_its_url() {
        let mut found = bridge_to("celery", "redis://h/1", "--broker").expect("a broker");
        found.say("results", "redis://:p&ss@h2/2");
        found.say("events", "1");
        let bridge = found.bridge().expect("a bridge");
        assert_eq!((bridge.get("results"), bridge.is_on("events")), (Some("redis://:p&ss@h2/2"), Ok(true)));
        assert_eq!(bridge.server(), "redis://h/1");
    }
}
