//! `celery inspect`, `control` and `status`: requests to every worker, and what they answer.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use windlass::bridges::wire::celery::control::{Command, Destination};

use super::grammar::{Inspect, Status};
use super::place::Place;
use super::shown::{self, Form};
use super::{Exit, Out, Outcome, Problem, Remote, words};
use crate::doors::broker;

/// Something that workers understand.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) method: &'static str,
    pub(super) usage: &'static str,
    pub(super) about: &'static str,
    read: fn(&[String]) -> Option<Command>,
}

const fn known(
    method: &'static str,
    usage: &'static str,
    about: &'static str,
    read: fn(&[String]) -> Option<Command>,
) -> Known {
    Known { method, usage, about, read }
}

/// What `celery inspect` asks.
pub(super) const INSPECT: &[Known] = &[
    known("active", "", "tasks that run", |words| none(words, Command::Active { safe: false })),
    known("active_queues", "", "queues that are worked on", |words| none(words, Command::ActiveQueues)),
    known("clock", "", "the logical clock", |words| none(words, Command::Clock)),
    known("conf", "[with_defaults]", "the settings", |words| {
        (words.len() <= 1).then(|| Command::Conf { with_defaults: words.first().is_some_and(|word| is_on(word)) })
    }),
    known("memdump", "[samples]", "memory, of workers in Python", |words| {
        python("memdump", words, &[("samples", Shape::Number)])
    }),
    known("memsample", "", "memory, of workers in Python", |words| python("memsample", words, &[])),
    known("objgraph", "[type] [num] [max_depth]", "objects, of workers in Python", |words| {
        let shapes = [("objtype", Shape::Text), ("num", Shape::Number), ("max_depth", Shape::Number)];
        python("objgraph", words, &shapes)
    }),
    known("ping", "", "whether they answer", |words| none(words, Command::Ping)),
    known("query_task", "[id …]", "where tasks are", |words| Some(Command::QueryTask { ids: words.to_vec() })),
    known("registered", "[attribute …]", "tasks that have a handler", |words| {
        Some(Command::Registered { items: words.to_vec(), builtins: false })
    }),
    known("report", "", "what they are", |words| none(words, Command::Report)),
    known("reserved", "", "tasks that wait for a slot", |words| none(words, Command::Reserved)),
    known("revoked", "", "ids that were revoked", |words| none(words, Command::Revoked)),
    known("scheduled", "", "tasks that wait for their time", |words| none(words, Command::Scheduled)),
    known("stats", "", "what they have done", |words| none(words, Command::Stats)),
];

/// What `celery control` tells.
pub(super) const CONTROL: &[Known] = &[
    known("add_consumer", "QUEUE [exchange [type [routing_key]]]", "work on a queue too", |words| match words {
        [queue, rest @ ..] if rest.len() <= 3 => Some(Command::AddConsumer {
            queue: queue.clone(),
            exchange: rest.first().cloned(),
            exchange_type: rest.get(1).cloned(),
            routing_key: rest.get(2).cloned(),
        }),
        _ => None,
    }),
    known("autoscale", "[max [min]]", "as many tasks at once, of workers in Python", |words| {
        let count = |at: usize| words.get(at).map(|count| count.parse().ok());
        match (count(0), count(1)) {
            (Some(None), _) | (_, Some(None)) => None,
            (max, min) if words.len() <= 2 => Some(Command::Autoscale { max: max.flatten(), min: min.flatten() }),
            _ => None,
        }
    }),
    known("cancel_consumer", "QUEUE", "work on a queue no more", |words| match words {
        [queue] => Some(Command::CancelConsumer { queue: queue.clone() }),
        _ => None,
    }),
    known("disable_events", "", "send no events of tasks", |words| none(words, Command::DisableEvents)),
    known("election", "ID TOPIC ACTION", "choose one, of workers in Python", |words| {
        let shapes = [("id", Shape::Text), ("topic", Shape::Text), ("action", Shape::Text)];
        (words.len() == 3).then(|| python("election", words, &shapes)).flatten()
    }),
    known("enable_events", "", "send events of tasks", |words| none(words, Command::EnableEvents)),
    known("heartbeat", "", "send a heartbeat now", |words| none(words, Command::Heartbeat)),
    known("pool_grow", "[N]", "N slots more", |words| by(words).map(|by| Command::PoolGrow { by })),
    known("pool_restart", "", "start anew, of workers in Python", |words| none(words, Command::PoolRestart)),
    known("pool_shrink", "[N]", "N slots less", |words| by(words).map(|by| Command::PoolShrink { by })),
    known("rate_limit", "TASK RATE", "not more often, as in 10/m", |words| match words {
        [task, limit] => {
            Some(Command::RateLimit { task: task.clone(), limit: Some(limit.clone()).filter(|limit| limit != "0") })
        }
        _ => None,
    }),
    known("revoke", "[id …]", "do not run these tasks", |words| {
        (!words.is_empty()).then(|| Command::Revoke {
            ids: words.to_vec(),
            terminate: false,
            signal: "SIGTERM".to_owned(),
        })
    }),
    known("revoke_by_stamped_headers", "[name=value …]", "do not run tasks with these stamps", |words| {
        let mut headers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for word in words {
            let (name, value) = word.split_once('=')?;
            headers.entry(name).or_default().push(value);
        }
        let headers = headers.into_iter().map(|(name, values)| (name.to_owned(), Value::from(values)));
        (!words.is_empty()).then(|| Command::RevokeByStamps {
            headers: headers.collect(),
            terminate: false,
            signal: "SIGTERM".to_owned(),
        })
    }),
    known("shutdown", "", "finish what runs and end", |words| none(words, Command::Shutdown)),
    known("terminate", "SIGNAL [id …]", "end these tasks, also when they run", |words| match words {
        [signal, ids @ ..] if !ids.is_empty() => {
            Some(Command::Revoke { ids: ids.to_vec(), terminate: true, signal: signal.clone() })
        }
        _ => None,
    }),
    known("time_limit", "TASK SOFT [HARD]", "seconds that a task may take", |words| {
        let seconds = |text: &String| text.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        match words {
            [task, soft] => Some(Command::TimeLimit { task: task.clone(), soft: Some(seconds(soft)?), hard: None }),
            [task, soft, hard] => {
                Some(Command::TimeLimit { task: task.clone(), soft: Some(seconds(soft)?), hard: Some(seconds(hard)?) })
            }
            _ => None,
        }
    }),
];

fn none(words: &[String], command: Command) -> Option<Command> {
    words.is_empty().then_some(command)
}

fn by(words: &[String]) -> Option<u32> {
    match words {
        [] => Some(1),
        [count] => count.parse().ok(),
        _ => None,
    }
}

fn is_on(word: &str) -> bool {
    matches!(word.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    Text,
    Number,
}

/// What only workers in Python answer.
fn python(method: &str, words: &[String], shapes: &[(&str, Shape)]) -> Option<Command> {
    if words.len() > shapes.len() {
        return None;
    }
    let mut arguments = Map::new();
    for (word, (name, shape)) in words.iter().zip(shapes) {
        let value = match shape {
            Shape::Text => Value::from(word.as_str()),
            Shape::Number => Value::from(word.parse::<u64>().ok()?),
        };
        arguments.insert((*name).to_owned(), value);
    }
    Some(Command::Unknown { method: method.to_owned(), arguments })
}

impl Inspect {
    /// The request that was typed.
    pub(super) fn remote(&self, table: &[Known]) -> Result<Remote, Problem> {
        let (method, words) =
            self.words.split_first().map_or(("", &[][..]), |(method, words)| (method.as_str(), words));
        // The names before Celery 3, and those with hyphens, are typed from memory.
        let folded = method.replace('-', "_");
        let Some(known) = table.iter().find(|known| known.method == folded) else {
            let is_in = |table: &[Known]| table.iter().any(|known| known.method == folded);
            let next = match crate::task_args::nearest(&folded, table.iter().map(|known| known.method)) {
                _ if is_in(CONTROL) => format!("it is told with `celery control {folded}`"),
                _ if is_in(INSPECT) => format!("it is asked with `celery inspect {folded}`"),
                Some(nearest) => format!("did you mean `{nearest}`?"),
                None => "--list lists them".to_owned(),
            };
            return Err(Problem::usage(format_args!("workers know no `{}`", crate::output::one_line(method)), next));
        };
        let command = (known.read)(words).ok_or_else(|| {
            let usage = format!("{} {}", known.method, known.usage);
            Problem::usage(format_args!("`{method}` is written otherwise"), format_args!("write `{}`", usage.trim()))
        })?;
        let form = if self.asking.json { Form::Json } else { Form::Answers { counts: method == "ping" } };
        Ok(self.asking.remote_of(command, form))
    }
}

impl Status {
    /// Whether they answer, one line each.
    pub(super) fn remote(&self) -> Remote {
        self.remote_of(Command::Ping, if self.json { Form::Json } else { Form::Status })
    }

    fn remote_of(&self, command: Command, form: Form) -> Remote {
        let destination = words::names(self.destination.as_deref());
        Remote { command, destination, patience: self.timeout, form }
    }
}

/// Asks, and prints what is answered in time.
pub(super) async fn ask(out: &Out, place: &Place, remote: Remote) -> Outcome {
    let silent = matches!(remote.command, Command::Shutdown | Command::Heartbeat);
    let destination = match remote.destination.as_slice() {
        [] => Destination::All,
        nodes => Destination::Nodes(nodes.to_vec()),
    };
    let asked = place.producer.ask(remote.command, destination, remote.patience).await;
    place.producer.close().await;
    let answers = asked.map_err(broker::not_done)?;
    if answers.is_empty() {
        if silent {
            out.say("it was said; nobody answers that");
            return Ok(Exit::Ok);
        }
        return Err(Problem::new(
            Exit::NobodyAnswered,
            format_args!("no worker answered within {}s", remote.patience.as_secs_f64()),
            format_args!("start one on {}, or wait longer with `--timeout 5`", place.shown),
        ));
    }
    out.line(shown::answers(&answers, remote.form).trim_end())?;
    Ok(Exit::Ok)
}
