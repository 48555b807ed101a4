//! The URL of a bridge: who sends, over what, and what differs from the defaults.
//!
//! ```text
//! celery+redis://[user:password@]host[:port][/db]     Celery over Redis          celery+amqp://…   over RabbitMQ
//! taskiq+redis://…    TaskIQ over Redis              taskiq+amqp://…   over RabbitMQ
//! list+redis://…      bare JSON in Redis lists
//! ```
//!
//! `rediss` and `amqps` in place of `redis` and `amqp` mean TLS. What follows `?` is said of the bridge when it is in
//! [`OPTIONS`], and of the server otherwise. Values are percent-encoded.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use windlass_core::redact;
use windlass_core::time::parse_duration;
use windlass_core::url::decoded;

/// Who sends the messages of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wire {
    /// Celery.
    Celery,
    /// TaskIQ.
    TaskIq,
    /// Anybody: JSON objects without a framework.
    Bare,
}

/// What moves the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// A Redis or Valkey server.
    Redis,
    /// RabbitMQ.
    Amqp,
}

/// What a URL may say of a bridge: for which wire, what, and in which form.
pub const OPTIONS: &[(&str, &[Wire], &str)] = {
    use Wire::{Bare, Celery, TaskIq};
    &[
        ("results", &[Celery, TaskIq], "where results go: a redis:// URL, `rpc` (Celery), or `none`"),
        ("ahead", &[Celery, TaskIq, Bare], "how many messages are stored beyond the free slots, 0 by default"),
        ("results-expire", &[Celery, TaskIq], "how long results are kept, as in 1h; 0 keeps them for ever"),
        ("prefix", &[Celery, TaskIq], "in front of every key (Celery) or of the keys of results (TaskIQ)"),
        ("default-queue", &[Celery], "where what follows a task goes when it names no queue"),
        ("track-started", &[Celery], "1: STARTED is stored"),
        ("ignore-results", &[Celery], "1: results of tasks that do not say so themselves are not kept"),
        ("extended", &[Celery], "1: results say name, arguments, worker and queue"),
        ("events", &[Celery], "1: events of tasks are sent from the beginning"),
        ("visibility", &[Celery], "how long a worker of Celery's may be silent before its messages are given back"),
        ("timezone", &[Celery], "the zone of times without one"),
        ("max-priority", &[Celery, TaskIq], "on RabbitMQ: x-max-priority of the queues, 1 to 255"),
        (
            "quorum",
            &[Celery],
            "1: the queues are quorum queues; topic: bound to topic exchanges, where Celery delays messages",
        ),
        ("time-limit", &[Celery], "how long a task may run whose message says nothing of it, as in 5m or in seconds"),
        ("soft-time-limit", &[Celery], "after how long such a task is asked to end"),
        ("mingle", &[Celery], "0: the other workers are not asked at the start what was revoked"),
        ("kind", &[TaskIq], "on Redis: list, stream or pubsub"),
        ("serializer", &[TaskIq], "of results and schedules: pickle or json"),
        (
            "schedules",
            &[TaskIq],
            "whose schedules a scheduler fires: those of a ListRedisScheduleSource in this redis:// URL, or `broker`",
        ),
        ("schedules-prefix", &[TaskIq], "in front of the keys of schedules, `schedule` by default"),
        ("group", &[TaskIq], "of streams: the consumer group"),
        ("idle", &[TaskIq], "of streams: how long an entry is pending before it is claimed by others"),
        ("profile", &[TaskIq], "on RabbitMQ: the version of taskiq-aio-pika whose topology is declared, 0.6 or 0.4"),
        ("task", &[Bare], "the task that every object is for; without it an object names its own"),
        ("argument", &[Bare], "the argument that gets the whole object"),
        ("id", &[Bare], "the member of an object that is the id of its task"),
    ]
};

/// The URL of a bridge.
#[derive(Clone, PartialEq, Eq)]
pub struct BridgeUrl {
    /// Who sends.
    pub wire: Wire,
    /// Over what.
    pub over: Over,
    /// The URL of the server, with its password: not to be shown.
    server: String,
    said: BTreeMap<&'static str, String>,
}

/// A URL that names no bridge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the URL of the bridge cannot be used: {0}")]
pub struct InvalidUrl(pub(crate) String);

impl BridgeUrl {
    /// Whether a text begins as the URL of a bridge does.
    pub fn is_one(text: &str) -> bool {
        scheme_of(text).is_some()
    }

    /// The URL of the server, with its password: not to be shown.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// What is said of an option; one of [`OPTIONS`].
    pub fn get(&self, option: &str) -> Option<&str> {
        self.said.get(option).map(String::as_str)
    }

    /// Whether an option is switched on.
    ///
    /// # Errors
    /// [`InvalidUrl`] when it is neither on nor off.
    pub fn is_on(&self, option: &str) -> Result<bool, InvalidUrl> {
        match self.get(option) {
            None | Some("0" | "false" | "no") => Ok(false),
            Some("1" | "true" | "yes" | "") => Ok(true),
            Some(other) => Err(InvalidUrl(format!("`{option}={other}`: write 1 or 0"))),
        }
    }

    /// A length of time.
    ///
    /// # Errors
    /// [`InvalidUrl`] when it is none.
    pub fn duration(&self, option: &str) -> Result<Option<Duration>, InvalidUrl> {
        let read = |text: &str| match text.parse::<f64>() {
            // Celery's own settings are in seconds.
            Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
            Err(_) => parse_duration(text).map_err(|error| error.to_string()),
        };
        let said = self.get(option).map(|text| read(text).map_err(|wrong| InvalidUrl(format!("`{option}`: {wrong}"))));
        said.transpose()
    }
}

/// Wire, carrier and the scheme of the server.
fn scheme_of(text: &str) -> Option<(Wire, Over, &str)> {
    let (scheme, _) = text.split_once("://")?;
    let (wire, server) = scheme.split_once('+')?;
    let wire = match wire {
        "celery" => Wire::Celery,
        "taskiq" => Wire::TaskIq,
        "list" => Wire::Bare,
        _ => return None,
    };
    let over = match server {
        "amqp" | "amqps" => Over::Amqp,
        _ => Over::Redis,
    };
    Some((wire, over, server))
}

impl FromStr for BridgeUrl {
    type Err = InvalidUrl;
    fn from_str(text: &str) -> Result<Self, InvalidUrl> {
        let Some((wire, over, scheme)) = scheme_of(text) else {
            return Err(InvalidUrl(
                "it begins with celery+redis://, celery+amqp://, taskiq+redis://, taskiq+amqp:// or list+redis://"
                    .to_owned(),
            ));
        };
        if wire == Wire::Bare && over == Over::Amqp {
            return Err(InvalidUrl("bare JSON is read from Redis lists: write list+redis://".to_owned()));
        }
        let (_, rest) = text.split_once("://").unwrap_or_default();
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (mut said, mut of_server) = (BTreeMap::new(), Vec::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            match OPTIONS.iter().find(|(option, _, _)| *option == name) {
                Some((option, wires, _)) if wires.contains(&wire) => {
                    said.insert(*option, decoded(value).map_err(|wrong| InvalidUrl(format!("`{name}`: {wrong}")))?);
                }
                Some((option, _, _)) => {
                    return Err(InvalidUrl(format!("`{option}` means nothing to this kind of bridge")));
                }
                None => of_server.push(pair),
            }
        }
        let mut server = format!("{scheme}://{place}");
        if !of_server.is_empty() {
            server = format!("{server}?{}", of_server.join("&"));
        }
        Ok(Self { wire, over, server, said })
    }
}

/// Without passwords.
impl fmt::Display for BridgeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wire = match self.wire {
            Wire::Celery => "celery",
            Wire::TaskIq => "taskiq",
            Wire::Bare => "list",
        };
        write!(f, "{wire}+{}", redact::url(&self.server))
    }
}

impl fmt::Debug for BridgeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_the_bridge_is_told_from_what_is_said_of_the_server() {
        let url: BridgeUrl =
            "celery+redis://u:secret@host:6380/2?results=rpc&ca=x&visibility=90&events=1".parse().expect("a bridge");
        assert_eq!((url.wire, url.over), (Wire::Celery, Over::Redis));
        assert_eq!(url.server(), "redis://u:secret@host:6380/2?ca=x");
        assert_eq!((url.get("results"), url.is_on("events"), url.is_on("quorum")), (Some("rpc"), Ok(true), Ok(false)));
        assert_eq!(url.duration("visibility"), Ok(Some(Duration::from_secs(90))));
        assert!(!format!("{url} {url:?}").contains("secret"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_next_step() {
        for (text, says) in [
            ("redis://host", "it begins with"),
            ("celery+redis://host?kind=list", "`kind` means nothing"),
            ("list+amqp://host", "list+redis://"),
            ("celery+redis://host?results=%zz", "`results`"),
        ] {
            let wrong = text.parse::<BridgeUrl>().expect_err(text).to_string();
            assert!(wrong.contains(says), "{wrong}");
        }
        let url: BridgeUrl = "celery+redis://host?events=maybe&visibility=soon".parse().expect("a bridge");
        assert!(url.is_on("events").is_err() && url.duration("visibility").is_err());
    }
}
