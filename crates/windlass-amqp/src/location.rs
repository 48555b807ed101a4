//! Where the broker is: URLs, and what they say without their secrets.
//!
//! ```text
//! amqp://[user:password@]host[:port][/vhost]    the vhost is percent-encoded: /%2f is `/`, and so is none
//! amqps://...                                   TLS, verified; ?ca=FILE for a private authority
//! ?heartbeat=SECONDS                            1 to 3600; 10 by default
//! ```

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The user and the password without any in the URL: those of a fresh RabbitMQ, which lets them in from its own machine only.
const GUEST: &str = "guest";
/// A broker that says nothing for twice as long is gone. Its own default of a minute is long for tasks that
/// somebody waits for; below five seconds a busy machine is taken for a dead one.
const HEARTBEAT_SECS: u16 = 10;
const HEARTBEAT_SECS_MAX: u16 = 3600;

/// A broker and a vhost in it, from a URL.
#[derive(Clone, PartialEq, Eq)]
pub struct Location {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: Tls,
    pub(crate) user: String,
    pub(crate) password: String,
    pub(crate) vhost: String,
    pub(crate) heartbeat_secs: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tls {
    Off,
    /// With the roots of this machine, or those of Mozilla where it has none.
    Public,
    /// With the authority in this file.
    Private(PathBuf),
}

/// A URL that names no broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the URL of the AMQP broker cannot be used: {0}")]
pub struct InvalidUrl(String);

impl Location {
    /// The name of the server and its port.
    pub fn server(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// The user that it is entered as.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls != Tls::Off
    }

    /// The vhost, decoded: `/` without any in the URL.
    pub fn vhost(&self) -> &str {
        &self.vhost
    }
}

impl FromStr for Location {
    type Err = InvalidUrl;
    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        let wrong = |text: &str| InvalidUrl(text.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no `://`"))?;
        let (tls, default_port) = match scheme {
            "amqp" => (Tls::Off, 5672),
            "amqps" => (Tls::Public, 5671),
            _ => return Err(wrong("write amqp:// or amqps://")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user_info, host) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
        let (host, port) = host_of(host, default_port)?;
        // Many programs write the vhost `/` as a second slash.
        let path = if path == "/" { "" } else { path };
        if path.contains('/') {
            return Err(wrong("the vhost holds a `/`: write it as %2f"));
        }
        let or = |text: String, default: &str| if text.is_empty() { default.to_owned() } else { text };
        let mut location = Self {
            host,
            port,
            tls,
            user: or(decoded(user)?, GUEST),
            password: or(decoded(password)?, if user.is_empty() { GUEST } else { "" }),
            vhost: or(decoded(path)?, "/"),
            heartbeat_secs: HEARTBEAT_SECS,
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value)?;
            match name {
                "ca" if location.tls != Tls::Off => location.tls = Tls::Private(PathBuf::from(value)),
                "ca" => return Err(wrong("`ca` is for TLS: write amqps://")),
                "heartbeat" => {
                    let seconds = value.parse().ok().filter(|seconds| (1..=HEARTBEAT_SECS_MAX).contains(seconds));
                    location.heartbeat_secs = seconds
                        .ok_or_else(|| InvalidUrl(format!("heartbeat= is a number from 1 to {HEARTBEAT_SECS_MAX}")))?;
                }
                _ => return Err(InvalidUrl(format!("`{name}` is not known: write ca= or heartbeat="))),
            }
        }
        Ok(location)
    }
}

fn host_of(text: &str, default_port: u16) -> Result<(String, u16), InvalidUrl> {
    let (name, port) = match text.rsplit_once(':') {
        // The colons of an address in brackets are its own.
        Some((name, digits)) if !digits.ends_with(']') => {
            (name, digits.parse().map_err(|_| InvalidUrl("a port is a number up to 65535".to_owned()))?)
        }
        _ => (text, default_port),
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    if name.is_empty() {
        return Err(InvalidUrl("the host is missing".to_owned()));
    }
    Ok((name.to_owned(), port))
}

fn decoded(text: &str) -> Result<String, InvalidUrl> {
    windlass_core::url::decoded(text).map_err(|wrong| InvalidUrl(wrong.to_owned()))
}

/// Without user, password and authority.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secure = if self.tls == Tls::Off { "" } else { "s" };
        let (open, close) = if self.host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "amqp{secure}://{open}{}{close}:{}/", self.host, self.port)?;
        f.write_str(&self.vhost.replace('%', "%25").replace('/', "%2f"))
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn location(url: &str) -> Location {
        url.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
    }

    #[test]
    fn every_form_of_a_url_is_read() {
        let plain = location("amqp://host");
        assert_eq!((plain.host.as_str(), plain.port, plain.vhost(), plain.tls.clone()), ("host", 5672, "/", Tls::Off));
        assert_eq!((plain.user.as_str(), plain.password.as_str(), plain.heartbeat_secs), ("guest", "guest", 10));
        let full = location("amqps://me:p%40ss:w%2f@[::1]:7000/sh%2fop?ca=/etc/ca.pem&heartbeat=3");
        assert_eq!((full.host.as_str(), full.port, full.vhost()), ("::1", 7000, "sh/op"));
        assert_eq!((full.user.as_str(), full.password.as_str(), full.heartbeat_secs), ("me", "p@ss:w/", 3));
        assert_eq!(full.tls, Tls::Private(PathBuf::from("/etc/ca.pem")));
        assert_eq!(location("amqps://host/").port, 5671);
        assert_eq!((location("amqp://host/%2F").vhost(), location("amqp://host/").vhost()), ("/", "/"));
        assert_eq!(location("amqp://me@host").password, "", "not that of a guest");
    }

    #[test]
    fn a_location_is_shown_without_its_secrets() {
        for (url, shown) in [
            ("amqp://me:secret@host:7000/shop", "amqp://host:7000/shop"),
            ("amqps://:secret@[::1]/a%2fb", "amqps://[::1]:5671/a%2fb"),
        ] {
            assert_eq!(location(url).to_string(), shown);
            assert!(!format!("{:?}", location(url)).contains("secret"));
        }
    }

    #[test]
    fn a_url_that_cannot_be_used_says_why_and_shows_no_secret() {
        for (url, part) in [
            ("host:5672", "://"),
            ("http://host", "write amqp://"),
            ("amqp://", "host is missing"),
            ("amqp://me:secret@", "host is missing"),
            ("amqp://host:99999", "port"),
            ("amqp://host/a/b", "%2f"),
            ("amqp://host?colour=secret", "colour"),
            ("amqp://host?ca=x", "amqps"),
            ("amqp://host?heartbeat=0", "heartbeat"),
            ("amqp://%zz:secret@a", "%"),
        ] {
            let error = url.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
