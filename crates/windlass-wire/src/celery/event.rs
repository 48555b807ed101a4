//! Events: what Flower, `celery events` and other monitors listen to.
//!
//! Events of tasks are published as an **array** with the routing key `task.multi`, events of workers one by one with
//! `worker.online` and the like, to the exchange `celeryev`. Receivers accept both forms for any event.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use windlass_core::Timestamp;

use crate::error::Malformed;
use crate::frame::{Frame, Properties};
use crate::json::{self, BODY_BYTES_MAX};

/// The exchange of events.
pub const EXCHANGE: &str = "celeryev";
/// The most events that are read from one frame; Celery sends 24.
pub const EVENTS_MAX: usize = 10_000;

/// One event.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The node that it is about.
    pub hostname: String,
    /// Hours west of UTC; 0 for UTC, which ours always are.
    #[serde(default)]
    pub utcoffset: f64,
    /// The process of the node.
    #[serde(default)]
    pub pid: u64,
    /// Lamport clock: one more for each event, above everything heard. Monitors sort by it.
    #[serde(default)]
    pub clock: u64,
    /// Seconds since 1970.
    pub timestamp: f64,
    /// What happened.
    #[serde(flatten)]
    pub kind: Kind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum Kind {
    /// A worker is there.
    #[serde(rename = "worker-online")]
    WorkerOnline(Worker),
    /// A worker is alive: every two seconds.
    #[serde(rename = "worker-heartbeat")]
    WorkerHeartbeat(Worker),
    /// A worker ends.
    #[serde(rename = "worker-offline")]
    WorkerOffline(Worker),
    /// A client sent a task.
    #[serde(rename = "task-sent")]
    Sent {
        /// The task.
        #[serde(flatten)]
        task: Announced,
        /// Its queue.
        #[serde(default)]
        queue: Option<String>,
        /// Its exchange.
        #[serde(default)]
        exchange: Option<String>,
        /// Its routing key.
        #[serde(default)]
        routing_key: Option<String>,
    },
    /// A worker has a task; monitors learn its name here.
    #[serde(rename = "task-received")]
    Received(Announced),
    /// A task runs.
    #[serde(rename = "task-started")]
    Started {
        /// The id of the task.
        uuid: String,
    },
    /// A task ended well.
    #[serde(rename = "task-succeeded")]
    Succeeded {
        /// The id of the task.
        uuid: String,
        /// Its result as Python shows it, cut at 1,024 characters.
        result: String,
        /// Seconds that it ran.
        runtime: f64,
    },
    /// A task gave up.
    #[serde(rename = "task-failed")]
    Failed(Failed),
    /// A task failed and runs again.
    #[serde(rename = "task-retried")]
    Retried(Failed),
    /// A task was revoked.
    #[serde(rename = "task-revoked")]
    Revoked {
        /// The id of the task.
        uuid: String,
        /// It ran and was killed.
        terminated: bool,
        /// With this signal.
        #[serde(default)]
        signum: Option<Value>,
        /// It was not started in time.
        expired: bool,
    },
    /// A message was rejected.
    #[serde(rename = "task-rejected")]
    Rejected {
        /// The id of the task.
        uuid: String,
        /// Whether it went back to its queue.
        requeue: bool,
    },
    /// A task was cancelled, because the connection to the broker was lost.
    #[serde(rename = "task-cancelled")]
    Cancelled {
        /// The id of the task.
        uuid: String,
    },
    /// Any other event, and one whose fields do not fit, with its `type`.
    #[serde(untagged)]
    Other(Map<String, Value>),
}

/// A worker as it shows itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Worker {
    /// Seconds between heartbeats: it is gone after twice as long.
    pub freq: f64,
    /// Tasks that run.
    #[serde(default)]
    pub active: u64,
    /// Tasks that ended.
    #[serde(default)]
    pub processed: u64,
    /// The load of the machine over 1, 5 and 15 minutes.
    #[serde(default)]
    pub loadavg: Vec<f64>,
    /// The name of the program.
    #[serde(default)]
    pub sw_ident: String,
    /// Its version.
    #[serde(default)]
    pub sw_ver: String,
    /// The system.
    #[serde(default)]
    pub sw_sys: String,
}

/// A task as monitors first hear of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Announced {
    /// Its id.
    pub uuid: String,
    /// Its name.
    #[serde(default)]
    pub name: Option<String>,
    /// Positional arguments as Python shows them.
    #[serde(default)]
    pub args: Option<String>,
    /// Keyword arguments as Python shows them.
    #[serde(default)]
    pub kwargs: Option<String>,
    /// The first task of its workflow.
    #[serde(default)]
    pub root_id: Option<String>,
    /// The task that published it.
    #[serde(default)]
    pub parent_id: Option<String>,
    /// How many runs there were before.
    #[serde(default)]
    pub retries: u32,
    /// Not before, ISO 8601.
    #[serde(default)]
    pub eta: Option<String>,
    /// Not after, ISO 8601.
    #[serde(default)]
    pub expires: Option<Value>,
}

/// A run that failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Failed {
    /// The id of the task.
    pub uuid: String,
    /// The exception as Python shows it: `ValueError('boom')`.
    pub exception: String,
    /// Its traceback.
    #[serde(default)]
    pub traceback: Option<String>,
}

impl Announced {
    /// What a request says of its task.
    pub fn of(request: &super::Request) -> Self {
        Self {
            uuid: request.id.clone(),
            name: Some(request.shown_name().to_owned()),
            args: Some(request.argsrepr.clone()),
            kwargs: Some(request.kwargsrepr.clone()),
            root_id: request.root_id.clone(),
            parent_id: request.parent_id.clone(),
            retries: request.retries,
            eta: request.eta.map(super::iso_time),
            expires: request.expires.map(|at| Value::from(super::iso_time(at))),
        }
    }
}

impl Kind {
    /// The type as it is written: `task-received`.
    pub fn name(&self) -> &str {
        match self {
            Self::WorkerOnline(_) => "worker-online",
            Self::WorkerHeartbeat(_) => "worker-heartbeat",
            Self::WorkerOffline(_) => "worker-offline",
            Self::Sent { .. } => "task-sent",
            Self::Received(_) => "task-received",
            Self::Started { .. } => "task-started",
            Self::Succeeded { .. } => "task-succeeded",
            Self::Failed(_) => "task-failed",
            Self::Retried(_) => "task-retried",
            Self::Revoked { .. } => "task-revoked",
            Self::Rejected { .. } => "task-rejected",
            Self::Cancelled { .. } => "task-cancelled",
            Self::Other(members) => members.get("type").and_then(Value::as_str).unwrap_or_default(),
        }
    }

    /// The id of the task that it is about.
    pub fn task(&self) -> Option<&str> {
        match self {
            Self::Sent { task, .. } | Self::Received(task) => Some(&task.uuid),
            Self::Failed(failed) | Self::Retried(failed) => Some(&failed.uuid),
            Self::Started { uuid }
            | Self::Succeeded { uuid, .. }
            | Self::Revoked { uuid, .. }
            | Self::Rejected { uuid, .. }
            | Self::Cancelled { uuid } => Some(uuid),
            Self::Other(members) => members.get("uuid").and_then(Value::as_str),
            Self::WorkerOnline(_) | Self::WorkerHeartbeat(_) | Self::WorkerOffline(_) => None,
        }
    }
}

impl Event {
    /// An event of a node of ours, in UTC.
    pub fn new(hostname: &str, pid: u32, clock: u64, at: Timestamp, kind: Kind) -> Self {
        Self {
            hostname: hostname.to_owned(),
            utcoffset: 0.0,
            pid: u64::from(pid),
            clock,
            timestamp: at.as_micros() as f64 / 1_000_000.0,
            kind,
        }
    }

    /// Reads the events of a frame's body: one object, or an array of them.
    ///
    /// # Errors
    /// [`Malformed`] when it is neither, or when an event has no host or no time.
    pub fn decode(body: &[u8]) -> Result<Vec<Self>, Malformed> {
        let text = json::text("events", body, BODY_BYTES_MAX)?;
        match json::typed("events", text)? {
            Value::Array(events) if events.len() > EVENTS_MAX => {
                Err(Malformed::TooMany { part: "events", max: EVENTS_MAX })
            }
            Value::Array(events) => events.into_iter().map(one).collect(),
            event => one(event).map(|event| vec![event]),
        }
    }

    /// The frame of an event that travels alone: those of workers, and `task-sent`.
    pub fn frame(&self, delivery_tag: Option<&str>) -> Frame {
        let routing_key = self.kind.name().replacen('-', ".", 1);
        frame(&json!(self), &self.hostname, &routing_key, delivery_tag)
    }

    /// The frame of several events of tasks; `hostname` is the node that sends them.
    pub fn batch(events: &[Self], hostname: &str, delivery_tag: Option<&str>) -> Frame {
        frame(&json!(events), hostname, "task.multi", delivery_tag)
    }
}

fn one(event: Value) -> Result<Event, Malformed> {
    if !event.is_object() {
        return Err(Malformed::shape("event", "a JSON object"));
    }
    serde_json::from_value(event).map_err(|error| Malformed::NotJson { part: "event", reason: error.to_string() })
}

fn frame(body: &Value, hostname: &str, routing_key: &str, delivery_tag: Option<&str>) -> Frame {
    Frame {
        headers: Map::from_iter([("hostname".to_owned(), Value::from(hostname))]),
        properties: Properties {
            content_type: Some("application/json".to_owned()),
            content_encoding: Some("utf-8".to_owned()),
            delivery_mode: Some(1),
            priority: Some(0),
            delivery_tag: delivery_tag.map(ToOwned::to_owned),
            exchange: EXCHANGE.to_owned(),
            routing_key: routing_key.to_owned(),
            ..Properties::default()
        },
        body: json::python_text(&body.to_string()).into_bytes(),
    }
}
