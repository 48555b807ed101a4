//! Where the server is: URLs, and what they say without their secrets.
//!
//! ```text
//! redis://[user:password@]host[:port][/db]      valkey:// means the same
//! rediss://...                                  TLS, verified; ?ca=FILE for a private authority
//! redis+unix:///path?db=N                       a socket of this machine
//! redis+sentinel://h1:26379,h2:26379/NAME[/db]  the primary that the sentinels name
//! redis+cluster://h1:7000,h2:7001               the node that has the namespace
//! ?namespace=NAME                               everywhere: stores side by side in one server
//! ```

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The namespace without `?namespace=`.
const NAMESPACE: &str = "windlass";
/// The longest namespace, in bytes: every key contains it.
const NAMESPACE_BYTES_MAX: usize = 64;

/// Where a store is, from its URL.
#[derive(Clone, PartialEq, Eq)]
pub struct Location {
    pub(crate) place: Place,
    pub(crate) tls: Tls,
    pub(crate) user: Option<String>,
    pub(crate) password: Option<String>,
    pub(crate) db: i64,
    pub(crate) namespace: String,
}

/// How the server is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Server(Host),
    Socket(PathBuf),
    Sentinel { sentinels: Vec<Host>, name: String },
    Cluster(Vec<Host>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Tls {
    Off,
    /// With the roots of this machine and of Mozilla.
    Public,
    /// With the authority in this file.
    Private(PathBuf),
}

/// A URL that names no store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the URL of the Redis store cannot be used: {0}")]
pub struct InvalidUrl(String);

impl Location {
    /// The same server, another namespace: letters, digits, `-`, `_`, `.` and `:`, at most 64.
    ///
    /// # Errors
    /// [`InvalidUrl`] when the namespace has other characters.
    pub fn with_namespace(mut self, namespace: &str) -> Result<Self, InvalidUrl> {
        self.namespace = checked_namespace(namespace)?;
        Ok(self)
    }

    /// The name of the server and its port; `None` when it is found otherwise.
    pub fn server(&self) -> Option<(&str, u16)> {
        match &self.place {
            Place::Server(host) => Some((&host.name, host.port)),
            Place::Socket(_) | Place::Sentinel { .. } | Place::Cluster(_) => None,
        }
    }

    /// The user that it is entered as.
    pub fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.tls != Tls::Off
    }

    /// What every key begins with.
    pub(crate) fn prefix(&self) -> String {
        format!("{{{}}}:", self.namespace)
    }
}

impl FromStr for Location {
    type Err = InvalidUrl;
    fn from_str(url: &str) -> Result<Self, InvalidUrl> {
        let wrong = |text: &str| InvalidUrl(text.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(|| wrong("it has no `://`"))?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user_info, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = user_info.split_once(':').unwrap_or((user_info, ""));
        let present = |text: String| Some(text).filter(|text| !text.is_empty());
        let mut location = Self {
            place: Place::Cluster(Vec::new()),
            tls: Tls::Off,
            user: present(decoded(user)?),
            password: present(decoded(password)?),
            db: 0,
            namespace: NAMESPACE.to_owned(),
        };
        let mut db = path;
        let (kind, tls) = match scheme {
            "redis" | "valkey" => ("", Tls::Off),
            "rediss" | "valkeys" => ("", Tls::Public),
            "redis+unix" | "valkey+unix" | "unix" => ("unix", Tls::Off),
            "redis+sentinel" | "valkey+sentinel" => ("sentinel", Tls::Off),
            "rediss+sentinel" | "valkeys+sentinel" => ("sentinel", Tls::Public),
            "redis+cluster" | "valkey+cluster" => ("cluster", Tls::Off),
            "rediss+cluster" | "valkeys+cluster" => ("cluster", Tls::Public),
            _ => return Err(wrong("write redis://, rediss://, redis+unix://, redis+sentinel:// or redis+cluster://")),
        };
        location.tls = tls;
        location.place = match kind {
            "unix" => {
                db = "";
                Place::Socket(PathBuf::from(format!("/{}", decoded(path)?)))
            }
            "sentinel" => {
                let (name, number) = path.split_once('/').unwrap_or((path, ""));
                db = number;
                if name.is_empty() {
                    return Err(wrong("the name of the primary is missing: redis+sentinel://HOST:26379/NAME"));
                }
                Place::Sentinel { sentinels: hosts_of(hosts, 26_379)?, name: decoded(name)? }
            }
            "cluster" => Place::Cluster(hosts_of(hosts, 6379)?),
            _ => match hosts_of(hosts, 6379)?.as_slice() {
                [host] => Place::Server(host.clone()),
                _ => return Err(wrong("several hosts need redis+cluster:// or redis+sentinel://")),
            },
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = decoded(value)?;
            match name {
                "namespace" => location.namespace = checked_namespace(&value)?,
                "ca" if location.tls != Tls::Off => location.tls = Tls::Private(PathBuf::from(value)),
                "ca" => return Err(wrong("`ca` is for TLS: write rediss://")),
                "db" => location.db = number_of(&value)?,
                _ => return Err(InvalidUrl(format!("`{name}` is not known: write namespace=, ca= or db="))),
            }
        }
        if !db.is_empty() {
            location.db = number_of(db)?;
        }
        if location.db != 0 && matches!(location.place, Place::Cluster(_)) {
            return Err(wrong("a cluster has one database, 0; use ?namespace= to keep stores apart"));
        }
        Ok(location)
    }
}

fn number_of(text: &str) -> Result<i64, InvalidUrl> {
    text.parse()
        .ok()
        .filter(|number| (0..=100_000).contains(number))
        .ok_or_else(|| InvalidUrl("the database is a number such as /0".to_owned()))
}

fn hosts_of(text: &str, port: u16) -> Result<Vec<Host>, InvalidUrl> {
    text.split(',')
        .map(|host| {
            let (name, port) = match host.rsplit_once(':') {
                // The colons of an address in brackets are its own.
                Some((name, digits)) if !digits.ends_with(']') => {
                    (name, digits.parse().map_err(|_| InvalidUrl("a port is a number up to 65535".to_owned()))?)
                }
                _ => (host, port),
            };
            let name = name.trim_start_matches('[').trim_end_matches(']');
            if name.is_empty() {
                return Err(InvalidUrl("the host is missing".to_owned()));
            }
            Ok(Host { name: name.to_owned(), port })
        })
        .collect()
}

fn checked_namespace(text: &str) -> Result<String, InvalidUrl> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':');
    if text.is_empty() || text.len() > NAMESPACE_BYTES_MAX || !text.bytes().all(allowed) {
        return Err(InvalidUrl(format!(
            "a namespace has 1 to {NAMESPACE_BYTES_MAX} letters, digits, `-`, `_`, `.` or `:`"
        )));
    }
    Ok(text.to_owned())
}

fn decoded(text: &str) -> Result<String, InvalidUrl> {
    windlass_core::url::decoded(text).map_err(|wrong| InvalidUrl(wrong.to_owned()))
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

/// Without user, password and authority.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secure = if self.tls == Tls::Off { "" } else { "s" };
        let listed = |hosts: &[Host]| hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match &self.place {
            Place::Server(host) => write!(f, "redis{secure}://{host}")?,
            Place::Socket(path) => write!(f, "redis+unix://{}", path.display())?,
            Place::Sentinel { sentinels, name } => {
                write!(f, "redis{secure}+sentinel://{}/{name}", listed(sentinels))?;
            }
            Place::Cluster(hosts) => write!(f, "redis{secure}+cluster://{}", listed(hosts))?,
        }
        match (&self.place, self.db) {
            (_, 0) => {}
            (Place::Socket(_), db) => write!(f, "?db={db}")?,
            (_, db) => write!(f, "/{db}")?,
        }
        if self.namespace != NAMESPACE {
            let first = if matches!(self.place, Place::Socket(_)) && self.db != 0 { '&' } else { '?' };
            write!(f, "{first}namespace={}", self.namespace)?;
        }
        Ok(())
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
        let plain = location("redis://host");
        assert_eq!(plain.place, Place::Server(Host { name: "host".to_owned(), port: 6379 }));
        assert_eq!((plain.db, plain.namespace.as_str(), plain.tls), (0, "windlass", Tls::Off));
        let full = location("rediss://me:p%40ss:w@[::1]:7000/3?namespace=shop&ca=/etc/ca.pem");
        assert_eq!(full.place, Place::Server(Host { name: "::1".to_owned(), port: 7000 }));
        assert_eq!((full.user.as_deref(), full.password.as_deref(), full.db), (Some("me"), Some("p@ss:w"), 3));
        assert_eq!((full.namespace.as_str(), &full.tls), ("shop", &Tls::Private(PathBuf::from("/etc/ca.pem"))));
        let socket = location("unix:///run/redis.sock?db=2");
        assert_eq!((socket.place, socket.db), (Place::Socket(PathBuf::from("/run/redis.sock")), 2));
        let sentinel = location("redis+sentinel://:pw@a,b:7/main/4");
        let Place::Sentinel { sentinels, name } = &sentinel.place else { panic!("{sentinel:?}") };
        assert_eq!((sentinels.len(), sentinels[0].port, name.as_str(), sentinel.db), (2, 26_379, "main", 4));
        assert!(matches!(location("redis+cluster://a:1,b:2").place, Place::Cluster(hosts) if hosts.len() == 2));
    }

    #[test]
    fn a_location_is_shown_without_its_secrets() {
        for (url, shown) in [
            ("redis://me:secret@host:7000/2?namespace=x", "redis://host:7000/2?namespace=x"),
            ("rediss://:secret@host", "rediss://host:6379"),
            ("redis+sentinel://:secret@a,b/main", "redis+sentinel://a:26379,b:26379/main"),
        ] {
            assert_eq!(location(url).to_string(), shown);
            assert!(!format!("{:?}", location(url)).contains("secret"));
        }
    }

    #[test]
    fn a_url_that_cannot_be_used_says_why() {
        for (url, part) in [
            ("host:6379", "://"),
            ("http://host", "write redis://"),
            ("redis://", "host is missing"),
            ("redis://host:99999", "port"),
            ("redis://host/x", "database"),
            ("redis://a,b", "several hosts"),
            ("redis+sentinel://a", "name of the primary"),
            ("redis+cluster://a/1", "one database"),
            ("redis://a?namespace={x}", "namespace"),
            ("redis://a?colour=red", "colour"),
            ("redis://a?ca=x", "rediss"),
            ("redis://%zz@a", "%"),
        ] {
            let error = url.parse::<Location>().unwrap_err().to_string();
            assert!(error.contains(part), "{url}: {error}");
        }
    }
}
