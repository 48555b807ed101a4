//! The one table of the engine's keys: parsing, `windlass config show` and the documentation all read it.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::time::Duration;

use super::{Alias, Config, Key, Kind, LogFormat};
use crate::names::{NodeId, QueueName};
use crate::redact::Secret;
use crate::time::duration;

/// Slots cost little while they wait for the network, which is what most tasks do.
const SLOTS_FOR_EACH_CORE: usize = 8;
/// Also a machine with one core waits for more than a few answers at a time.
const SLOTS_AT_LEAST: usize = 16;
/// One claim brings at most this many tasks.
const SLOTS_MAX: u64 = 1_000;
/// A weight is a share, not a priority: beyond this the lighter queues would hardly ever be asked.
const WEIGHT_MAX: u32 = 100;
/// A process is a whole worker with connections of its own.
const PROCESSES_MAX: u64 = 256;
/// Less than a worker takes that has nothing to do would be a loop of processes that begin and end.
const MEMORY_MIN: u64 = 32 << 20;
const MEMORY_MAX: u64 = 1 << 44;
const NEVER_WAITS: Duration = Duration::ZERO;
const TEN_YEARS: Duration = duration("3650d");

/// Every key of the engine, in the order of `windlass config show`.
pub static KEYS: &[Key<Config>] = &[
    key(
        "store",
        "The store that keeps the tasks.",
        Kind::Text { shape: "the URL of a store, or the path of a file", set: |config, text| config.store = text },
    )
    // tidy: allow(name): what opens this URL is chosen elsewhere; a default has to name one store
    .preset("sqlite:windlass.db")
    .url(),
    key(
        "bridge",
        "Whose messages a worker takes besides the tasks of its store; nobody's when it is not set.",
        Kind::Text { shape: "the URL of a bridge", set: |config, text| config.bridge = Some(text) },
    )
    .url(),
    key(
        "relay",
        "The queues whose tasks a scheduler sends to the workers at the other end of the bridge; none when it is not set.",
        Kind::List { shape: "names of queues", set: set_relay },
    ),
    key(
        "worker.queues",
        "The queues to work on; earlier ones are emptied first, or by weight when any has one (`email=3,default`).",
        Kind::List { shape: "names of queues, each with `=WEIGHT` (1 to 100) if you like", set: set_queues },
    )
    .preset("default"),
    key(
        "worker.slots",
        "How many tasks run at the same time.",
        Kind::Count { min: 1, max: SLOTS_MAX, set: |config, count| config.worker.slots = count as usize },
    )
    .preset_of_machine("8 for each core, 16 to 1000", || {
        (cores() * SLOTS_FOR_EACH_CORE).clamp(SLOTS_AT_LEAST, SLOTS_MAX as usize).to_string()
    })
    .aliases(&[Alias::Key { name: "worker.concurrency", reason: "what most other systems call it" }]),
    key(
        "worker.threads",
        "How many threads run them; blocking tasks have threads of their own.",
        Kind::Count { min: 1, max: 512, set: |config, count| config.worker.threads = count as usize },
    )
    .preset_of_machine("one for each core", || cores().min(512).to_string()),
    key(
        "worker.lease",
        "How long a claim is held without a renewal: a task of a worker that died starts again after this.",
        Kind::Duration { min: duration("3s"), max: duration("24h"), set: |config, lease| config.worker.lease = lease },
    )
    .preset("30s"),
    key(
        "worker.grace",
        "How long running tasks may go on after the signal to stop.",
        Kind::Duration { min: NEVER_WAITS, max: duration("24h"), set: |config, grace| config.worker.grace = grace },
    )
    .preset("25s"),
    key(
        "worker.cancel_grace",
        "How long a task may go on after it was told that it is cancelled; then it is dropped.",
        Kind::Duration {
            min: NEVER_WAITS,
            max: duration("1h"),
            set: |config, grace| config.worker.cancel_grace = grace,
        },
    )
    .preset("10s"),
    key(
        "worker.node",
        "The name of this worker in the fleet, unique among those that run; made up when it is not set.",
        Kind::Parsed {
            shape: "1 to 255 visible ASCII characters without spaces",
            set: |config, text| {
                config.worker.node = Some(NodeId::new(text).map_err(|invalid| invalid.to_string())?);
                Ok(())
            },
        },
    ),
    key(
        "worker.schedules",
        "Also fire schedules; safe on any number of workers.",
        Kind::Flag { set: |config, flag| config.worker.schedules = flag },
    )
    .preset("false"),
    key(
        "worker.listen",
        "Where a worker answers probes (`/livez`, `/readyz`, `/startupz`) and `/metrics`, to whoever asks; nowhere when it is not set.",
        Kind::Parsed {
            shape: "an address with a port, such as 127.0.0.1:9100 or [::1]:9100",
            set: |config, text| {
                config.worker.listen = Some(text.parse().map_err(|_| format!("`{text}` is no address with a port"))?);
                Ok(())
            },
        },
    ),
    key(
        "worker.processes",
        "How many processes share the work under a supervisor, each with slots and threads of its own; with 0 it is done in this process.",
        Kind::Count { min: 0, max: PROCESSES_MAX, set: |config, count| config.worker.processes = count as usize },
    )
    .preset("0"),
    key(
        "worker.recycle_tasks",
        "After how many tasks a process of a supervisor is replaced by a fresh one; never with 0.",
        Kind::Count { min: 0, max: 1_000_000_000_000, set: |config, count| config.worker.recycle_tasks = count },
    )
    .preset("0"),
    key(
        "worker.recycle_memory",
        "With how much resident memory a process of a supervisor is replaced by a fresh one, once its tasks have ended.",
        Kind::Bytes {
            min: MEMORY_MIN,
            max: MEMORY_MAX,
            set: |config, bytes| config.worker.recycle_memory = Some(bytes),
        },
    ),
    key(
        "worker.memory_max",
        "How much resident memory a process of a supervisor may use: beyond it what runs in it has failed, and it ends.",
        Kind::Bytes { min: MEMORY_MIN, max: MEMORY_MAX, set: |config, bytes| config.worker.memory_max = Some(bytes) },
    ),
    key(
        "client.deadline",
        "How long one call to the store may take before it counts as unreachable.",
        Kind::Duration {
            min: duration("10ms"),
            max: duration("10m"),
            set: |config, deadline| config.client.deadline = deadline,
        },
    )
    .preset("5s"),
    key(
        "retention.finished",
        "How long succeeded, cancelled and expired tasks are kept with their results.",
        Kind::Duration { min: NEVER_WAITS, max: TEN_YEARS, set: |config, kept| config.retention.finished = kept },
    )
    .preset("1h"),
    key(
        "retention.finished_max",
        "At most this many of them are kept, the newest.",
        Kind::Count { min: 0, max: 1_000_000_000, set: |config, count| config.retention.finished_max = count },
    )
    .preset("100000"),
    key(
        "retention.dead",
        "How long dead letters are kept.",
        Kind::Duration { min: NEVER_WAITS, max: TEN_YEARS, set: |config, kept| config.retention.dead = kept },
    )
    .preset("30d"),
    key(
        "log.level",
        "What is logged: a level, or levels by part of the program (`info,windlass_core=debug`).",
        Kind::Parsed { shape: "trace, debug, info, warn, error or off, or part=level with commas", set: set_level },
    )
    .preset("info")
    .aliases(&[Alias::Variable { name: "LOG_LEVEL", reason: "what most container platforms set" }]),
    key(
        "log.format",
        "How log lines look: `auto` is `pretty` on a terminal and `json` elsewhere.",
        Kind::Choice(&[
            ("auto", |config| config.log.format = LogFormat::Auto),
            ("pretty", |config| config.log.format = LogFormat::Pretty),
            ("json", |config| config.log.format = LogFormat::Json),
        ]),
    )
    .preset("auto"),
    key(
        "tasks.shell",
        "Whether the built-in task `shell.run` may run commands; whoever may enqueue could then run any.",
        Kind::Flag { set: |config, flag| config.tasks.shell = flag },
    )
    .preset("false"),
    key(
        "tasks.http.allow_private",
        "Whether the built-in HTTP task may call loopback, private and link-local addresses.",
        Kind::Flag { set: |config, flag| config.tasks.http.allow_private = flag },
    )
    .preset("false"),
    key(
        "tasks.http.timeout",
        "How long the built-in HTTP task waits for a whole answer.",
        Kind::Duration {
            min: duration("10ms"),
            max: duration("1h"),
            set: |config, timeout| config.tasks.http.timeout = timeout,
        },
    )
    .preset("30s"),
    key(
        "tasks.http.user_agent",
        "What the built-in HTTP task calls itself.",
        Kind::Parsed {
            shape: "printable ASCII",
            set: |config, text| {
                if !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
                    return Err("it holds a character that a header cannot carry".to_owned());
                }
                text.clone_into(&mut config.tasks.http.user_agent);
                Ok(())
            },
        },
    )
    .preset(concat!("windlass/", env!("CARGO_PKG_VERSION"))),
    key(
        "tasks.http.max_response_bytes",
        "How much of an answer the built-in HTTP task keeps.",
        Kind::Bytes {
            min: 1 << 10,
            max: 64 << 20,
            set: |config, bytes| config.tasks.http.max_response_bytes = bytes as usize,
        },
    )
    .preset("1MiB"),
    key(
        "tasks.http.signing_key",
        "Signs the requests of the built-in HTTP task, so that receivers can tell who sent them.",
        Kind::Text {
            shape: "text without control characters",
            set: |config, text| config.tasks.http.signing_key = Some(Secret::new(text)),
        },
    )
    .secret(),
    key(
        // tidy: allow(name): the section of one store's own settings, carried and never interpreted here
        "sqlite.busy_timeout",
        "How long to wait for another process that writes to the same file.",
        Kind::Duration {
            min: NEVER_WAITS,
            max: duration("5m"),
            // tidy: allow(name): the section of one store's own settings, carried and never interpreted here
            set: |config, timeout| config.sqlite.busy_timeout = timeout,
        },
    )
    .preset("5s"),
    key(
        // tidy: allow(name): the section of one store's own settings, carried and never interpreted here
        "sqlite.allow_network_fs",
        "Whether the file may be on a network file system, where locks cannot be trusted.",
        // tidy: allow(name): the section of one store's own settings, carried and never interpreted here
        Kind::Flag { set: |config, flag| config.sqlite.allow_network_fs = flag },
    )
    .preset("false"),
];

/// Variables that begin like ours and are read elsewhere, each with what it is for.
pub const RESERVED_VARIABLES: &[(&str, &str)] = &[
    (super::CONFIG_VARIABLE, "The configuration file, instead of looking for one."),
    (super::PROFILE_VARIABLE, "The profile of the configuration file."),
    ("WINDLASS_BACKTRACE", "1 shows where an error came from."),
    ("WINDLASS_SERVER", "The URL of a server that the command line talks to instead of the store."),
    ("WINDLASS_TOKEN", "The token it shows to that server."),
    ("WINDLASS_SEED", "The seed of the randomised tests."),
    ("WINDLASS_SIM_SEEDS", "How many seeds the simulation runs."),
    ("WINDLASS_SIM_FROM", "The first of them."),
];

/// A row of the table; says what the setters set, which they cannot tell from their row alone.
const fn key(name: &'static str, doc: &'static str, kind: Kind<Config>) -> Key<Config> {
    Key::new(name, doc, kind)
}

/// As many as this process may use.
fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

fn set_relay(config: &mut Config, items: &[String]) -> Result<(), String> {
    let mut weighed = Config { relay: Vec::new(), ..config.clone() };
    set_queues(&mut weighed, items)?;
    if !weighed.worker.weights.is_empty() {
        return Err("what is relayed has no weight: write the names alone".to_owned());
    }
    config.relay = weighed.worker.queues;
    Ok(())
}

/// Names with or without a weight; a queue without one counts as 1 when another has one.
fn set_queues(config: &mut Config, items: &[String]) -> Result<(), String> {
    let mut queues: Vec<QueueName> = Vec::with_capacity(items.len());
    let mut weights = BTreeMap::new();
    for item in items {
        // A queue's name may hold `=`: only a number behind the last one is a weight.
        let (name, weight) = match item.rsplit_once('=') {
            Some((name, digits)) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                let weight = digits.parse().ok().filter(|weight| (1..=WEIGHT_MAX).contains(weight));
                (name.trim_end(), Some(weight.ok_or("a weight is out of range")?))
            }
            _ => (item.as_str(), None),
        };
        let queue = QueueName::new(name).map_err(|invalid| invalid.to_string())?;
        if queues.contains(&queue) {
            return Err(format!("queue `{queue}` is named twice"));
        }
        if let Some(weight) = weight {
            weights.insert(queue.clone(), weight);
        }
        queues.push(queue);
    }
    config.worker.queues = queues;
    config.worker.weights = weights;
    Ok(())
}

/// Levels as tracing names them; `WARNING` and `CRITICAL` are what Python services set in `LOG_LEVEL`.
fn set_level(config: &mut Config, text: &str) -> Result<(), String> {
    let mut directives = Vec::new();
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        let (part, word) = match directive.rsplit_once('=') {
            Some((part, word)) => (Some(part.trim()), word.trim()),
            None => (None, directive),
        };
        let level = match word.to_ascii_lowercase().as_str() {
            "trace" => "trace",
            "debug" => "debug",
            "info" => "info",
            "warn" | "warning" => "warn",
            "error" | "critical" | "fatal" => "error",
            "off" => "off",
            _ => return Err(format!("{} is no level", super::problem::quote(word))),
        };
        match part {
            None => directives.push(level.to_owned()),
            Some(part)
                if !part.is_empty()
                    && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_:-.".contains(&byte)) =>
            {
                directives.push(format!("{part}={level}"));
            }
            Some(part) => return Err(format!("{} is no part of a program", super::problem::quote(part))),
        }
    }
    if directives.is_empty() {
        return Err("it names no level".to_owned());
    }
    config.log.level = directives.join(",");
    Ok(())
}
