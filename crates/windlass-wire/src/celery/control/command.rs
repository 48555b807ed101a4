//! The methods of remote control with their arguments.

use serde_json::{Map, Value, json};

/// The most ids that one request names.
const IDS_MAX: usize = 100_000;

/// What a control request asks for. Both names of a method are read; the first one is written.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// `ping`
    Ping,
    /// `active` (`dump_active`): tasks that run; `safe` asks for arguments as text.
    Active {
        /// Arguments as Python shows them instead of values.
        safe: bool,
    },
    /// `reserved` (`dump_reserved`): tasks that were taken and wait for a slot.
    Reserved,
    /// `scheduled` (`dump_schedule`): tasks that wait for their time.
    Scheduled,
    /// `revoked` (`dump_revoked`): ids that were revoked.
    Revoked,
    /// `registered` (`dump_tasks`): names of tasks, with these attributes.
    Registered {
        /// Attributes to show, such as `rate_limit`.
        items: Vec<String>,
        /// With the built-in tasks.
        builtins: bool,
    },
    /// `stats`
    Stats,
    /// `active_queues`
    ActiveQueues,
    /// `conf` (`dump_conf`)
    Conf {
        /// With the settings that nobody changed.
        with_defaults: bool,
    },
    /// `query_task`
    QueryTask {
        /// The tasks.
        ids: Vec<String>,
    },
    /// `report`
    Report,
    /// `clock`
    Clock,
    /// `hello`: a worker starts and asks what was revoked.
    Hello {
        /// Who starts; does not get an answer from itself.
        from: String,
        /// What it knows to be revoked.
        revoked: Vec<String>,
    },
    /// `revoke`, and `terminate`, which is the same with `terminate`.
    Revoke {
        /// The tasks.
        ids: Vec<String>,
        /// Kills those that run.
        terminate: bool,
        /// With this signal; `SIGTERM` when none is named.
        signal: String,
    },
    /// `revoke_by_stamped_headers`
    RevokeByStamps {
        /// Names and values; a task with any of them is meant.
        headers: Map<String, Value>,
        /// Kills those that run.
        terminate: bool,
        /// With this signal.
        signal: String,
    },
    /// `rate_limit`
    RateLimit {
        /// The task.
        task: String,
        /// `10/m`, or nothing for no limit.
        limit: Option<String>,
    },
    /// `time_limit`
    TimeLimit {
        /// The task.
        task: String,
        /// Seconds.
        hard: Option<f64>,
        /// Seconds.
        soft: Option<f64>,
    },
    /// `add_consumer`
    AddConsumer {
        /// The queue.
        queue: String,
        /// Its exchange; the name of the queue when none is named.
        exchange: Option<String>,
        /// `direct`, …
        exchange_type: Option<String>,
        /// Its routing key; the name of the queue when none is named.
        routing_key: Option<String>,
    },
    /// `cancel_consumer`
    CancelConsumer {
        /// The queue.
        queue: String,
    },
    /// `pool_grow`
    PoolGrow {
        /// By how many.
        by: u32,
    },
    /// `pool_shrink`
    PoolShrink {
        /// By how many.
        by: u32,
    },
    /// `autoscale`
    Autoscale {
        /// At most.
        max: Option<u32>,
        /// At least.
        min: Option<u32>,
    },
    /// `pool_restart`
    PoolRestart,
    /// `enable_events`
    EnableEvents,
    /// `disable_events`
    DisableEvents,
    /// `heartbeat`: send one now; has no answer.
    Heartbeat,
    /// `shutdown`: finish what runs and end; has no answer.
    Shutdown,
    /// A method that is known, with arguments that do not fit it.
    Invalid {
        /// The method.
        method: String,
        /// What does not fit.
        reason: &'static str,
        /// The arguments as they came.
        arguments: Map<String, Value>,
    },
    /// A method that is not known.
    Unknown {
        /// The method.
        method: String,
        /// The arguments as they came.
        arguments: Map<String, Value>,
    },
}

impl Command {
    /// From a method and its arguments.
    pub(super) fn decode(method: &str, arguments: Map<String, Value>) -> Self {
        match Self::read(method, &arguments) {
            Ok(Some(command)) => command,
            Ok(None) => Self::Unknown { method: method.to_owned(), arguments },
            Err(reason) => Self::Invalid { method: method.to_owned(), reason, arguments },
        }
    }

    fn read(method: &str, arguments: &Map<String, Value>) -> Result<Option<Self>, &'static str> {
        let of = Arguments(arguments);
        Ok(Some(match method {
            "ping" => Self::Ping,
            "active" | "dump_active" => Self::Active { safe: of.flag("safe") },
            "reserved" | "dump_reserved" => Self::Reserved,
            "scheduled" | "dump_schedule" => Self::Scheduled,
            "revoked" | "dump_revoked" => Self::Revoked,
            "registered" | "dump_tasks" => {
                Self::Registered { items: of.list("taskinfoitems").unwrap_or_default(), builtins: of.flag("builtins") }
            }
            "stats" => Self::Stats,
            "active_queues" => Self::ActiveQueues,
            "conf" | "dump_conf" => Self::Conf { with_defaults: of.flag("with_defaults") },
            "query_task" => Self::QueryTask { ids: of.list("ids").ok_or("`ids` must be a list of ids")? },
            "report" => Self::Report,
            "clock" => Self::Clock,
            "hello" => Self::Hello { from: of.needed("from_node")?, revoked: of.ids("revoked").unwrap_or_default() },
            "revoke" | "terminate" => Self::Revoke {
                ids: of.list("task_id").ok_or("`task_id` must be an id or a list of ids")?,
                terminate: method == "terminate" || of.flag("terminate"),
                signal: of.text("signal").unwrap_or_else(|| "SIGTERM".to_owned()),
            },
            "revoke_by_stamped_headers" => Self::RevokeByStamps {
                headers: arguments
                    .get("headers")
                    .and_then(Value::as_object)
                    .cloned()
                    .ok_or("`headers` must be an object")?,
                terminate: of.flag("terminate"),
                signal: of.text("signal").unwrap_or_else(|| "SIGTERM".to_owned()),
            },
            "rate_limit" => Self::RateLimit { task: of.needed("task_name")?, limit: of.rate() },
            "time_limit" => {
                Self::TimeLimit { task: of.needed("task_name")?, hard: of.number("hard"), soft: of.number("soft") }
            }
            "add_consumer" => Self::AddConsumer {
                queue: of.needed("queue")?,
                exchange: of.text("exchange"),
                exchange_type: of.text("exchange_type"),
                routing_key: of.text("routing_key"),
            },
            "cancel_consumer" => Self::CancelConsumer { queue: of.needed("queue")? },
            "pool_grow" => Self::PoolGrow { by: of.count("n").unwrap_or(1) },
            "pool_shrink" => Self::PoolShrink { by: of.count("n").unwrap_or(1) },
            "autoscale" => Self::Autoscale { max: of.count("max"), min: of.count("min") },
            "pool_restart" => Self::PoolRestart,
            "enable_events" => Self::EnableEvents,
            "disable_events" => Self::DisableEvents,
            "heartbeat" => Self::Heartbeat,
            "shutdown" => Self::Shutdown,
            _ => return Ok(None),
        }))
    }

    /// The name of the method.
    pub fn method(&self) -> &str {
        match self {
            Self::Ping => "ping",
            Self::Active { .. } => "active",
            Self::Reserved => "reserved",
            Self::Scheduled => "scheduled",
            Self::Revoked => "revoked",
            Self::Registered { .. } => "registered",
            Self::Stats => "stats",
            Self::ActiveQueues => "active_queues",
            Self::Conf { .. } => "conf",
            Self::QueryTask { .. } => "query_task",
            Self::Report => "report",
            Self::Clock => "clock",
            Self::Hello { .. } => "hello",
            Self::Revoke { .. } => "revoke",
            Self::RevokeByStamps { .. } => "revoke_by_stamped_headers",
            Self::RateLimit { .. } => "rate_limit",
            Self::TimeLimit { .. } => "time_limit",
            Self::AddConsumer { .. } => "add_consumer",
            Self::CancelConsumer { .. } => "cancel_consumer",
            Self::PoolGrow { .. } => "pool_grow",
            Self::PoolShrink { .. } => "pool_shrink",
            Self::Autoscale { .. } => "autoscale",
            Self::PoolRestart => "pool_restart",
            Self::EnableEvents => "enable_events",
            Self::DisableEvents => "disable_events",
            Self::Heartbeat => "heartbeat",
            Self::Shutdown => "shutdown",
            Self::Invalid { method, .. } | Self::Unknown { method, .. } => method,
        }
    }

    /// The arguments as they are written.
    pub(super) fn arguments(&self) -> Value {
        match self {
            Self::Active { safe } => json!({"safe": safe}),
            Self::Registered { items, builtins } => json!({"taskinfoitems": items, "builtins": builtins}),
            Self::Conf { with_defaults } => json!({"with_defaults": with_defaults}),
            Self::QueryTask { ids } => json!({"ids": ids}),
            Self::Hello { from, revoked } => json!({"from_node": from, "revoked": revoked}),
            Self::Revoke { ids, terminate, signal } => {
                json!({"task_id": ids, "terminate": terminate, "signal": signal})
            }
            Self::RevokeByStamps { headers, terminate, signal } => {
                json!({"headers": headers, "terminate": terminate, "signal": signal})
            }
            Self::RateLimit { task, limit } => json!({"task_name": task, "rate_limit": limit}),
            Self::TimeLimit { task, hard, soft } => json!({"task_name": task, "hard": hard, "soft": soft}),
            Self::AddConsumer { queue, exchange, exchange_type, routing_key } => json!({
                "queue": queue, "exchange": exchange, "exchange_type": exchange_type, "routing_key": routing_key,
            }),
            Self::CancelConsumer { queue } => json!({"queue": queue}),
            Self::PoolGrow { by } | Self::PoolShrink { by } => json!({"n": by}),
            Self::Autoscale { max, min } => json!({"max": max, "min": min}),
            Self::Invalid { arguments, .. } | Self::Unknown { arguments, .. } => json!(arguments),
            Self::Ping
            | Self::Reserved
            | Self::Scheduled
            | Self::Revoked
            | Self::Stats
            | Self::ActiveQueues
            | Self::Report
            | Self::Clock
            | Self::PoolRestart
            | Self::EnableEvents
            | Self::DisableEvents
            | Self::Heartbeat
            | Self::Shutdown => json!({}),
        }
    }
}

/// Arguments from outside: what has the wrong type counts as absent.
struct Arguments<'a>(&'a Map<String, Value>);

impl Arguments<'_> {
    fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).and_then(Value::as_str).map(ToOwned::to_owned)
    }

    fn needed(&self, name: &str) -> Result<String, &'static str> {
        self.text(name).ok_or(match name {
            "task_name" => "`task_name` is missing",
            "queue" => "`queue` is missing",
            _ => "`from_node` is missing",
        })
    }

    /// Flower sends 1 for true.
    fn flag(&self, name: &str) -> bool {
        self.0
            .get(name)
            .is_some_and(|value| value.as_bool().unwrap_or_else(|| value.as_f64().is_some_and(|it| it != 0.0)))
    }

    fn number(&self, name: &str) -> Option<f64> {
        self.0.get(name).and_then(Value::as_f64)
    }

    fn count(&self, name: &str) -> Option<u32> {
        self.0.get(name).and_then(Value::as_u64).and_then(|count| u32::try_from(count).ok())
    }

    fn list(&self, name: &str) -> Option<Vec<String>> {
        self.0.get(name).cloned().and_then(|value| texts(value, IDS_MAX))
    }

    fn ids(&self, name: &str) -> Option<Vec<String>> {
        self.0.get(name).cloned().and_then(ids)
    }

    /// A rate is text, or a number of tasks a second; 0 and nothing mean no limit.
    fn rate(&self) -> Option<String> {
        match self.0.get("rate_limit")? {
            Value::String(text) if text != "0" => Some(text.clone()),
            Value::Number(number) if number.as_f64() != Some(0.0) => Some(number.to_string()),
            _ => None,
        }
    }
}

/// Ids that were revoked: a list of them, or, with workers of Celery 5.3 and older, an object that says when.
pub(super) fn ids(value: Value) -> Option<Vec<String>> {
    match value {
        Value::Object(since) if since.len() <= IDS_MAX => Some(since.into_iter().map(|(id, _)| id).collect()),
        Value::Object(_) => None,
        list => texts(list, IDS_MAX),
    }
}

/// A text, or a list of at most `max` texts.
pub(super) fn texts(value: Value, max: usize) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text]),
        Value::Array(values) if values.len() <= max => {
            values.into_iter().map(|value| value.as_str().map(ToOwned::to_owned)).collect()
        }
        _ => None,
    }
}
