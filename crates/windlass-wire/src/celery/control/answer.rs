//! Answers to control requests, in the shapes that `celery inspect` and Flower read.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};
use windlass_core::Timestamp;

use super::command::ids;
use crate::celery::iso_time;
use crate::celery::request::Request;

/// `{"ok": …}`: done.
pub fn ok(what: impl Into<Value>) -> Value {
    json!({"ok": what.into()})
}

/// `{"error": …}`: not done, and why.
pub fn error(why: impl Into<Value>) -> Value {
    json!({"error": why.into()})
}

/// The answer to `ping`.
pub fn pong() -> Value {
    ok("pong")
}

/// The answer to a method that is not known.
pub fn unknown_method(method: &str) -> Value {
    error(format!("KeyError('{method}')"))
}

/// The answer to `clock`.
pub fn clock(clock: u64) -> Value {
    json!({"clock": clock})
}

/// The answer to `hello`.
pub fn hello(revoked: &[String], clock: u64) -> Value {
    json!({"revoked": revoked, "clock": clock})
}

/// What such an answer says: the ids, and the clock. What makes no sense says nothing.
pub fn heard_of_hello(answer: &Value) -> (Vec<String>, u64) {
    let revoked = answer.get("revoked").and_then(|revoked| ids(revoked.clone())).unwrap_or_default();
    (revoked, answer.get("clock").and_then(Value::as_u64).unwrap_or_default())
}

/// The answer to `revoke` without `terminate`.
pub fn revoked(ids: &[String]) -> Value {
    let ids: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();
    ok(format!("tasks {{{}}} flagged as revoked", ids.join(", ")))
}

/// The answer to `revoke` with `terminate`: the tasks that were killed.
pub fn terminated(ids: &[String]) -> Value {
    if ids.is_empty() { ok("terminate: tasks unknown") } else { ok(format!("terminate: {}", ids.join(", "))) }
}

/// A task as `active`, `reserved`, `scheduled` and `query_task` show it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TaskInfo {
    /// Its id.
    pub id: String,
    /// Its name, or what is shown instead.
    pub name: String,
    /// Positional arguments; the text that Python shows when `safe` was asked for.
    pub args: Value,
    /// Keyword arguments; the text that Python shows when `safe` was asked for.
    pub kwargs: Value,
    /// Its name.
    #[serde(rename = "type")]
    pub kind: String,
    /// The node that has it.
    pub hostname: String,
    /// Seconds since 1970 when it started.
    pub time_start: Option<f64>,
    /// Whether the broker was told that it is done with.
    pub acknowledged: bool,
    /// How it was delivered.
    pub delivery_info: DeliveryInfo,
    /// The process that runs it.
    pub worker_pid: Option<u32>,
}

/// How a task was delivered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeliveryInfo {
    /// Its exchange.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// In the direction of the broker.
    pub priority: i64,
    /// It was delivered before.
    pub redelivered: bool,
}

impl TaskInfo {
    /// A task of a node that waits there; set `time_start` and `worker_pid` for one that runs.
    pub fn of(request: &Request, args: Value, kwargs: Value, node: &str) -> Self {
        Self {
            id: request.id.clone(),
            name: request.shown_name().to_owned(),
            args,
            kwargs,
            kind: request.task.clone(),
            hostname: node.to_owned(),
            time_start: None,
            acknowledged: false,
            delivery_info: DeliveryInfo {
                exchange: request.exchange.clone(),
                routing_key: request.routing_key.clone(),
                priority: request.priority,
                redelivered: request.redelivered,
            },
            worker_pid: None,
        }
    }
}

/// An entry of the answer to `scheduled`.
pub fn scheduled(eta: Timestamp, info: &TaskInfo) -> Value {
    json!({"eta": iso_time(eta), "priority": 6, "request": info})
}

/// The answer to `query_task`: what is known of each id, as a word and a task.
pub fn query_task(found: &[(&str, TaskInfo)]) -> Value {
    let entries = found.iter().map(|(word, info)| (info.id.clone(), json!([word, info])));
    Value::Object(entries.collect())
}

/// A queue as `active_queues` shows it: direct and durable, bound to an exchange of its name.
pub fn queue(name: &str) -> Value {
    json!({
        "name": name,
        "exchange": {
            "name": name, "type": "direct", "arguments": null, "durable": true, "passive": false,
            "auto_delete": false, "delivery_mode": null, "no_declare": false,
        },
        "routing_key": name,
        "queue_arguments": null, "binding_arguments": null, "consumer_arguments": null,
        "durable": true, "exclusive": false, "auto_delete": false, "no_ack": false,
        "alias": null, "bindings": [], "no_declare": null, "expires": null, "message_ttl": null,
        "max_length": null, "max_length_bytes": null, "max_priority": null,
    })
}

/// The answer to `stats`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stats {
    /// How many tasks of each name ended here.
    pub total: BTreeMap<String, u64>,
    /// The process.
    pub pid: u32,
    /// The Lamport clock; written as text here.
    pub clock: u64,
    /// Seconds since the start.
    pub uptime: u64,
    /// How many tasks run at once.
    pub concurrency: u32,
    /// How many tasks are taken beforehand.
    pub prefetch_count: u32,
    /// The broker. Never its password.
    pub broker: BrokerInfo,
    /// Seconds of CPU time of the program.
    pub user_time: f64,
    /// Seconds of CPU time of the system.
    pub system_time: f64,
    /// The most memory that was used, in KiB.
    pub max_rss: u64,
}

/// Where a node is connected to.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BrokerInfo {
    /// The host.
    pub hostname: String,
    /// The port.
    pub port: u16,
    /// `redis`, `amqp`.
    pub transport: String,
    /// The user.
    pub userid: Option<String>,
    /// The virtual host, or the number of the database.
    pub virtual_host: String,
    /// TLS.
    pub ssl: bool,
}

impl Stats {
    /// As it is written. Flower takes `alternates` out of `broker`, so that has to be there.
    pub fn to_value(&self) -> Value {
        json!({
            "total": self.total,
            "pid": self.pid,
            "clock": self.clock.to_string(),
            "uptime": self.uptime,
            "pool": {
                "implementation": "windlass",
                "max-concurrency": self.concurrency,
                "processes": [self.pid],
                "max-tasks-per-child": "N/A",
                "put-guarded-by-semaphore": false,
                "timeouts": [0, 0],
                "writes": "N/A",
            },
            "broker": {
                "hostname": self.broker.hostname,
                "userid": self.broker.userid,
                "virtual_host": self.broker.virtual_host,
                "port": self.broker.port,
                "insist": false,
                "ssl": self.broker.ssl,
                "transport": self.broker.transport,
                "connect_timeout": 4,
                "transport_options": {},
                "login_method": null,
                "uri_prefix": null,
                "heartbeat": 0.0,
                "failover_strategy": "round-robin",
                "alternates": [],
            },
            "prefetch_count": self.prefetch_count,
            "rusage": {"utime": self.user_time, "stime": self.system_time, "maxrss": self.max_rss},
        })
    }
}
