//! What the environment says to the programs of the suite: typed, with every problem reported at once.
//!
//! The names are the contract with the suite in `python/`; a Python reference worker reads the same ones.

use std::fmt;
use std::time::Duration;

use windlass_core::QueueName;
use windlass_wire::taskiq::Serializer;

/// How long results are kept.
pub const RESULT_EXPIRES: Duration = Duration::from_secs(3600);

const HOSTNAME: &str = "interop@localhost";
const CELERY_QUEUE: &str = "celery";
const TASKIQ_QUEUE: &str = "taskiq";
const CONCURRENCY: u32 = 4;
/// Nobody has so many slots; a larger number is a slip of the pen.
const CONCURRENCY_MAX: u32 = 10_000;
const PREFETCH: u32 = 4;
const PREFETCH_MAX: u32 = 10_000;
const VISIBILITY: Duration = Duration::from_secs(3600);
const IDLE: Duration = Duration::from_secs(600);
/// The greatest `x-max-priority` of RabbitMQ.
const PRIORITY_MAX: u32 = 255;
const QUEUES_MAX: usize = 100;
const KEY_PREFIX_BYTES_MAX: usize = 200;

/// Which programs are on the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Celery.
    Celery,
    /// TaskIQ.
    TaskIq,
}

/// Where messages are.
#[derive(Debug, Clone, PartialEq)]
pub enum BrokerUrl {
    /// A Redis.
    Redis(windlass_redis::Location),
    /// A RabbitMQ.
    Amqp(windlass_amqp::Location),
}

/// Where results go.
#[derive(Debug, Clone, PartialEq)]
pub enum ResultUrl {
    /// Keys of a Redis.
    Redis(windlass_redis::Location),
    /// `rpc://`: messages to a queue of whoever asked.
    Rpc,
}

/// When a message is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acceptance {
    /// As its task starts: a worker that dies takes it along.
    Early,
    /// When its task has ended.
    Late,
}

/// Which broker of TaskIQ it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaskIqKind {
    /// `ListQueueBroker`.
    List,
    /// `RedisStreamBroker`.
    Stream,
    /// `PubSubBroker`.
    PubSub,
    /// `AioPikaBroker`.
    AioPika,
}

/// What the environment says.
#[derive(Debug, Clone, PartialEq)]
pub struct Environment {
    /// `INTEROP_BROKER`.
    pub broker: BrokerUrl,
    /// `INTEROP_RESULT`.
    pub result: ResultUrl,
    /// `INTEROP_HOSTNAME`: the name of the node, as it is.
    pub hostname: String,
    /// `INTEROP_QUEUES` of Celery, `INTEROP_QUEUE` of TaskIQ; the first one is the default.
    pub queues: Vec<QueueName>,
    /// `INTEROP_CONCURRENCY`: how many tasks run at once.
    pub concurrency: u32,
    /// `INTEROP_PREFETCH`: how many messages are taken for each of them.
    pub prefetch: u32,
    /// `INTEROP_ACKS_LATE`.
    pub acceptance: Acceptance,
    /// `INTEROP_VISIBILITY`, in seconds: a message that was taken and not accepted comes again after so long.
    pub visibility: Duration,
    /// `INTEROP_EVENTS`: whether events of tasks are sent from the start.
    pub events: bool,
    /// `INTEROP_MAX_PRIORITY`: the `x-max-priority` of the queues.
    pub max_priority: Option<u8>,
    /// `INTEROP_QUORUM`: whether the queues are quorum queues.
    pub quorum: bool,
    /// `INTEROP_KEYPREFIX`: in front of every key and channel.
    pub key_prefix: String,
    /// `INTEROP_RESULT_EXTENDED`: whether results say what was called.
    pub result_extended: bool,
    /// `INTEROP_TASKIQ_KIND`.
    pub taskiq_kind: TaskIqKind,
    /// `INTEROP_SERIALIZER`, of the results of TaskIQ.
    pub serializer: Serializer,
    /// `INTEROP_IDLE_MS`: an entry of a stream that is idle for so long is taken over.
    pub idle: Duration,
}

/// What is wrong with the environment, all of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the environment cannot be used:")?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for Problems {}

impl Environment {
    /// Reads the environment of this process.
    ///
    /// # Errors
    /// [`Problems`] with everything that is missing or makes no sense.
    pub fn of_process(protocol: Protocol) -> Result<Self, Problems> {
        Self::read(protocol, |name| std::env::var(name).ok())
    }

    /// Reads variables; what is empty counts as absent.
    ///
    /// # Errors
    /// As [`Self::of_process`].
    pub fn read(protocol: Protocol, variable: impl Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        let mut reader = Reader { variable, problems: Vec::new() };
        let broker = reader.required("INTEROP_BROKER", broker_url);
        let result = reader.required("INTEROP_RESULT", result_url);
        let queues = match protocol {
            Protocol::Celery => reader.optional("INTEROP_QUEUES", queue_names),
            Protocol::TaskIq => reader.optional("INTEROP_QUEUE", |text| queue_name(text).map(|queue| vec![queue])),
        };
        let default_queue = match protocol {
            Protocol::Celery => CELERY_QUEUE,
            Protocol::TaskIq => TASKIQ_QUEUE,
        };
        let acceptance = if reader.flag("INTEROP_ACKS_LATE", true) { Acceptance::Late } else { Acceptance::Early };
        let seconds = |text: &str| duration(text, 1.0, "seconds");
        let millis = |text: &str| duration(text, 0.001, "milliseconds");
        let optional = (
            reader.optional("INTEROP_HOSTNAME", |text| Ok(text.to_owned())),
            reader.optional("INTEROP_CONCURRENCY", |text| number(text, 1, CONCURRENCY_MAX)),
            reader.optional("INTEROP_PREFETCH", |text| number(text, 1, PREFETCH_MAX)),
            reader.optional("INTEROP_VISIBILITY", seconds),
            reader.optional("INTEROP_IDLE_MS", millis),
            reader.optional("INTEROP_MAX_PRIORITY", |text| number(text, 0, PRIORITY_MAX)),
            reader.optional("INTEROP_KEYPREFIX", key_prefix),
            reader.optional("INTEROP_TASKIQ_KIND", taskiq_kind),
            reader.optional("INTEROP_SERIALIZER", serializer),
        );
        let (hostname, concurrency, prefetch, visibility, idle, max_priority, key_prefix, kind, serializer) = optional;
        let (events, quorum, result_extended) = (
            reader.flag("INTEROP_EVENTS", false),
            reader.flag("INTEROP_QUORUM", false),
            reader.flag("INTEROP_RESULT_EXTENDED", false),
        );
        let taskiq_kind = kind.unwrap_or(TaskIqKind::List);
        if protocol == Protocol::TaskIq {
            reader.problems.extend(taskiq_mistakes(taskiq_kind, broker.as_ref(), result.as_ref()));
        }
        let (Some(broker), Some(result), true) = (broker, result, reader.problems.is_empty()) else {
            return Err(Problems(reader.problems));
        };
        Ok(Self {
            broker,
            result,
            hostname: hostname.unwrap_or_else(|| HOSTNAME.to_owned()),
            queues: queues.unwrap_or_else(|| vec![QueueName::known(default_queue)]),
            concurrency: concurrency.unwrap_or(CONCURRENCY),
            prefetch: prefetch.unwrap_or(PREFETCH),
            acceptance,
            visibility: visibility.unwrap_or(VISIBILITY),
            events,
            max_priority: max_priority.filter(|max| *max > 0).and_then(|max| u8::try_from(max).ok()),
            quorum,
            key_prefix: key_prefix.unwrap_or_default(),
            result_extended,
            taskiq_kind,
            serializer: serializer.unwrap_or_default(),
            idle: idle.unwrap_or(IDLE),
        })
    }

    /// The queue of a task that names none.
    pub fn default_queue(&self) -> &QueueName {
        self.queues.first().expect("reading leaves at least one queue")
    }

    /// The Redis that several workers share for their store: that of the results, else that of the messages. `None` when
    /// neither is one.
    pub fn store(&self) -> Option<&windlass_redis::Location> {
        match (&self.result, &self.broker) {
            (ResultUrl::Redis(location), _) | (ResultUrl::Rpc, BrokerUrl::Redis(location)) => Some(location),
            (ResultUrl::Rpc, BrokerUrl::Amqp(_)) => None,
        }
    }
}

/// Reads variables and collects what is wrong with them.
struct Reader<V> {
    variable: V,
    problems: Vec<String>,
}

impl<V: Fn(&str) -> Option<String>> Reader<V> {
    fn given(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.is_empty())
    }

    fn optional<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let value = self.given(name)?;
        parse(&value).map_err(|problem| self.problems.push(format!("{name}: {problem}"))).ok()
    }

    fn required<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        if self.given(name).is_none() {
            self.problems.push(format!("{name} is not set"));
        }
        self.optional(name, parse)
    }

    fn flag(&mut self, name: &str, default: bool) -> bool {
        let parsed = self.optional(name, |text| match text {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err("write 0 or 1".to_owned()),
        });
        parsed.unwrap_or(default)
    }
}

/// Redis or RabbitMQ, by the scheme. The text of the URL is in no message: it may hold a password.
fn broker_url(text: &str) -> Result<BrokerUrl, String> {
    if text.starts_with("amqp") {
        return vhost_of_kombu(text).parse().map(BrokerUrl::Amqp).map_err(|error| error.to_string());
    }
    text.parse().map(BrokerUrl::Redis).map_err(|error| error.to_string())
}

/// Kombu writes the vhost `/` as it is: `amqp://host//`.
fn vhost_of_kombu(url: &str) -> String {
    match url.strip_suffix("//") {
        Some(rest) if rest.contains("://") => format!("{rest}/%2f"),
        _ => url.to_owned(),
    }
}

fn result_url(text: &str) -> Result<ResultUrl, String> {
    if text.starts_with("rpc://") {
        return Ok(ResultUrl::Rpc);
    }
    text.parse().map(ResultUrl::Redis).map_err(|error: windlass_redis::InvalidUrl| error.to_string())
}

fn queue_names(text: &str) -> Result<Vec<QueueName>, String> {
    let queues: Vec<QueueName> = text.split(',').map(queue_name).collect::<Result<_, _>>()?;
    if queues.len() > QUEUES_MAX {
        return Err(format!("{} queues, at most {QUEUES_MAX}", queues.len()));
    }
    Ok(queues)
}

fn queue_name(text: &str) -> Result<QueueName, String> {
    text.trim().parse().map_err(|error| format!("{error}"))
}

fn number(text: &str, min: u32, max: u32) -> Result<u32, String> {
    let number = text.parse().map_err(|_| format!("`{text}` is no whole number"))?;
    if (min..=max).contains(&number) { Ok(number) } else { Err(format!("{number} is not between {min} and {max}")) }
}

fn duration(text: &str, unit: f64, name: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("`{text}` is no number of {name}"))?;
    Duration::try_from_secs_f64(number * unit)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| format!("`{text}` {name} are no time"))
}

fn key_prefix(text: &str) -> Result<String, String> {
    if text.len() > KEY_PREFIX_BYTES_MAX {
        return Err(format!("{} bytes, at most {KEY_PREFIX_BYTES_MAX}", text.len()));
    }
    Ok(text.to_owned())
}

fn taskiq_kind(text: &str) -> Result<TaskIqKind, String> {
    match text {
        "list" => Ok(TaskIqKind::List),
        "stream" => Ok(TaskIqKind::Stream),
        "pubsub" => Ok(TaskIqKind::PubSub),
        "aiopika" => Ok(TaskIqKind::AioPika),
        _ => Err(format!("`{text}` is none of list, stream, pubsub, aiopika")),
    }
}

fn serializer(text: &str) -> Result<Serializer, String> {
    match text {
        "pickle" => Ok(Serializer::Pickle),
        "json" => Ok(Serializer::Json),
        _ => Err(format!("`{text}` is none of pickle, json")),
    }
}

/// What does not go together.
fn taskiq_mistakes(kind: TaskIqKind, broker: Option<&BrokerUrl>, result: Option<&ResultUrl>) -> Vec<String> {
    let mut mistakes = Vec::new();
    match (kind, broker) {
        (TaskIqKind::AioPika, Some(BrokerUrl::Redis(_))) => {
            mistakes.push("INTEROP_BROKER: aiopika needs an amqp:// URL".to_owned());
        }
        (TaskIqKind::List | TaskIqKind::Stream | TaskIqKind::PubSub, Some(BrokerUrl::Amqp(_))) => {
            mistakes.push("INTEROP_BROKER: list, stream and pubsub need a redis:// URL".to_owned());
        }
        (_, None | Some(BrokerUrl::Redis(_))) | (TaskIqKind::AioPika, Some(BrokerUrl::Amqp(_))) => {}
    }
    if result == Some(&ResultUrl::Rpc) {
        mistakes.push("INTEROP_RESULT: TaskIQ has no rpc:// results".to_owned());
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;

    const REDIS: (&str, &str) = ("INTEROP_BROKER", "redis://127.0.0.1:1/2");
    const RESULT: (&str, &str) = ("INTEROP_RESULT", "redis://127.0.0.1:1/3");

    fn read(protocol: Protocol, variables: &[(&str, &str)]) -> Result<Environment, Problems> {
        Environment::read(protocol, |name| {
            variables.iter().find(|(given, _)| *given == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn what_is_not_said_has_a_default() {
        let environment = read(Protocol::Celery, &[REDIS, RESULT]).expect("complete");
        assert_eq!(environment.default_queue().as_str(), "celery");
        assert_eq!(environment.concurrency, 4);
        assert_eq!(environment.acceptance, Acceptance::Late);
        assert!(!environment.events);
        assert_eq!(environment.max_priority, None);
        let environment = read(Protocol::TaskIq, &[REDIS, RESULT]).expect("complete");
        assert_eq!(environment.default_queue().as_str(), "taskiq");
        assert_eq!(environment.serializer, Serializer::Pickle);
    }

    #[test]
    fn what_is_said_is_taken() {
        let environment = read(
            Protocol::Celery,
            &[
                ("INTEROP_BROKER", "amqp://user:word@127.0.0.1:5//"),
                ("INTEROP_RESULT", "rpc://"),
                ("INTEROP_QUEUES", "one,two"),
                ("INTEROP_ACKS_LATE", "0"),
                ("INTEROP_VISIBILITY", "2.5"),
                ("INTEROP_MAX_PRIORITY", "9"),
                ("INTEROP_EVENTS", "1"),
            ],
        )
        .expect("complete");
        assert!(matches!(&environment.broker, BrokerUrl::Amqp(location) if location.vhost() == "/"));
        assert_eq!(environment.result, ResultUrl::Rpc);
        assert_eq!(environment.queues.iter().map(QueueName::as_str).collect::<Vec<_>>(), ["one", "two"]);
        assert_eq!(environment.acceptance, Acceptance::Early);
        assert_eq!(environment.visibility, Duration::from_millis(2500));
        assert_eq!(environment.max_priority, Some(9));
        assert!(environment.events);
        assert_eq!(environment.store(), None);
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let problems = read(
            Protocol::TaskIq,
            &[
                REDIS,
                ("INTEROP_CONCURRENCY", "many"),
                ("INTEROP_TASKIQ_KIND", "aiopika"),
                ("INTEROP_IDLE_MS", "0"),
                ("INTEROP_EVENTS", "yes"),
            ],
        )
        .expect_err("five mistakes");
        let text = problems.to_string();
        for name in [
            "INTEROP_RESULT is not set",
            "INTEROP_CONCURRENCY: ",
            "INTEROP_BROKER: aiopika",
            "INTEROP_IDLE_MS: ",
            "INTEROP_EVENTS: ",
        ] {
            assert!(text.contains(name), "{name} in {text}");
        }
    }

    #[test]
    fn a_password_is_in_no_problem() {
        let problems = read(Protocol::Celery, &[("INTEROP_BROKER", "http://user:hidden@host"), RESULT]);
        assert!(!problems.expect_err("no broker").to_string().contains("hidden"));
    }

    #[test]
    fn the_store_is_in_the_redis_of_the_results() {
        let environment = read(Protocol::Celery, &[REDIS, RESULT]).expect("complete");
        assert!(matches!(&environment.result, ResultUrl::Redis(result) if environment.store() == Some(result)));
    }
}
