//! What `celery inspect` asks.

use std::time::Duration;

use serde_json::{Value, json};
use windlass_core::limit::Subject;
use windlass_core::view::{Filter, PAGE_MAX, Page, Record};
use windlass_core::{Backend, State, StoreError, TaskId};
use windlass_wire::celery::control::Command;
use windlass_wire::celery::control::answer::{self, Stats, TaskInfo};
use windlass_wire::celery::{Request, repr};

use super::super::Desk;
use super::super::builtins::PREFIX;
use super::unavailable;

/// The reply to a question; outer `None` when it is no question, inner `None` when nothing is said.
pub(super) async fn reply(desk: &Desk, store: &dyn Backend, command: &Command) -> Option<Option<Value>> {
    let said = match command {
        Command::Ping => Ok(answer::pong()),
        Command::Clock => Ok(answer::clock(desk.events.clock.now())),
        Command::Report => {
            Ok(answer::ok(format!("windlass {} on {}", env!("CARGO_PKG_VERSION"), desk.teller.hostname)))
        }
        Command::Hello { from, revoked } => {
            if *from == desk.teller.hostname {
                return Some(None);
            }
            desk.revoked.add(revoked.iter().cloned());
            Ok(answer::hello(&desk.revoked.all(), desk.events.clock.now()))
        }
        Command::Revoked => Ok(json!(desk.revoked.all())),
        Command::ActiveQueues => {
            Ok(desk.queues.now.lock().iter().map(|queue| answer::queue(queue.as_str())).collect::<Value>())
        }
        Command::Conf { .. } => Ok(conf(desk)),
        Command::Stats => Ok(stats(desk)),
        Command::Registered { items, builtins } => registered(desk, store, items, *builtins).await,
        Command::Active { safe } => active(desk, store, *safe).await,
        Command::Reserved => waiting(desk, store, State::Ready).await,
        Command::Scheduled => waiting(desk, store, State::Scheduled).await,
        Command::QueryTask { ids } => query(desk, store, ids).await,
        Command::Revoke { .. }
        | Command::RevokeByStamps { .. }
        | Command::RateLimit { .. }
        | Command::TimeLimit { .. }
        | Command::AddConsumer { .. }
        | Command::CancelConsumer { .. }
        | Command::PoolGrow { .. }
        | Command::PoolShrink { .. }
        | Command::Autoscale { .. }
        | Command::PoolRestart
        | Command::EnableEvents
        | Command::DisableEvents
        | Command::Heartbeat
        | Command::Shutdown
        | Command::Invalid { .. }
        | Command::Unknown { .. } => return None,
    };
    Some(Some(said.unwrap_or_else(|error| unavailable(&error))))
}

/// The settings that readers look for; none of them is a secret.
fn conf(desk: &Desk) -> Value {
    let limits = desk.time_limits.lock().every;
    let seconds = |limit: Option<Duration>| limit.map(|limit| limit.as_secs_f64());
    json!({
        "task_time_limit": seconds(limits.hard),
        "task_soft_time_limit": seconds(limits.soft),
        "task_default_queue": desk.teller.default_queue,
        "task_track_started": desk.teller.track_started,
        "task_ignore_result": desk.teller.ignore_results,
        "task_acks_late": true,
        "task_reject_on_worker_lost": true,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "result_extended": desk.teller.extended,
        "worker_send_task_events": desk.events.of_tasks(),
        "timezone": "UTC",
        "enable_utc": true,
    })
}

fn stats(desk: &Desk) -> Value {
    let node = desk.node.lock().clone();
    let slots = node.as_ref().map_or(0, |node| u32::try_from(node.slots).unwrap_or(u32::MAX));
    let started_at = node.as_ref().map(|node| node.started_at);
    let uptime = started_at.map_or(0, |at| windlass_core::Clock::now(&windlass_core::SystemClock).since(at).as_secs());
    let (user_time, system_time, max_rss) = usage();
    Stats {
        total: desk.ended.lock().clone(),
        pid: std::process::id(),
        clock: desk.events.clock.now(),
        uptime,
        concurrency: slots,
        // Messages are taken as slots are free, and stored.
        prefetch_count: slots,
        broker: desk.broker.info(),
        user_time,
        system_time,
        max_rss,
    }
    .to_value()
}

/// Seconds of CPU time of the program and of the system for it, and the most memory in KiB; zeros where nobody says.
fn usage() -> (f64, f64, u64) {
    // Ticks of a hundredth of a second on every Linux that Rust runs on.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in brackets, may hold anything.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = |place: usize| {
        after_name.split_whitespace().nth(place).and_then(|text| text.parse::<f64>().ok()).unwrap_or(0.0) / TICKS
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
    (ticks(11), ticks(12), peak.unwrap_or(0))
}

async fn registered(desk: &Desk, store: &dyn Backend, items: &[String], builtins: bool) -> Result<Value, StoreError> {
    let limits = if items.iter().any(|item| item == "rate_limit") || items.is_empty() {
        store.limits().await?.limits
    } else {
        Vec::new()
    };
    let is_shown = |name: &&String| builtins || !name.starts_with(PREFIX);
    let mut names: Vec<&String> = desk.reader.registered.iter().filter(is_shown).collect();
    names.sort();
    let shown = names.into_iter().map(|name| {
        let of_task = |subject: &Subject| matches!(subject, Subject::Task(task) if task.as_str() == name);
        let rate = limits.iter().find(|limit| of_task(&limit.subject)).and_then(|limit| limit.rule.rate.as_ref());
        match rate {
            Some(rate) => Value::from(format!("{name} [rate_limit={rate}]")),
            None => Value::from(name.as_str()),
        }
    });
    Ok(shown.collect())
}

/// Tasks that run on this node.
async fn active(desk: &Desk, store: &dyn Backend, safe: bool) -> Result<Value, StoreError> {
    let listing = store.list(&Filter::in_states([State::Running]), &Page::first(PAGE_MAX)).await?;
    let of_this_node =
        |record: &&Record| record.node.as_ref().is_some_and(|node| node.as_str() == desk.teller.hostname);
    Ok(listing
        .tasks
        .iter()
        .filter(of_this_node)
        .filter_map(|record| info(desk, record, safe))
        .map(|it| json!(it))
        .collect())
}

/// Tasks that the store holds and that wait, for a slot or for their time. The store is every node's: each says the same.
async fn waiting(desk: &Desk, store: &dyn Backend, state: State) -> Result<Value, StoreError> {
    let queues = desk.queues.now.lock().clone();
    let filter = Filter { queues, ..Filter::in_states([state]) };
    let listing = store.list(&filter, &Page::first(PAGE_MAX)).await?;
    let shown = listing.tasks.iter().filter_map(|record| {
        let info = info(desk, record, false)?;
        Some(match (state, record.due_at) {
            (State::Scheduled, Some(due)) => answer::scheduled(due, &info),
            _ => json!(info),
        })
    });
    Ok(shown.collect())
}

async fn query(desk: &Desk, store: &dyn Backend, ids: &[String]) -> Result<Value, StoreError> {
    let ids: Vec<TaskId> = ids.iter().filter_map(|id| TaskId::new(id).ok()).collect();
    let records = store.find(&ids).await?;
    let found = records.iter().flatten().filter_map(|record| {
        let word = match record.state {
            State::Running => "active",
            State::Scheduled => "scheduled",
            State::Ready | State::Parked => "reserved",
            State::Succeeded | State::Dead | State::Cancelled | State::Expired => return None,
        };
        Some((word, info(desk, record, false)?))
    });
    Ok(answer::query_task(&found.collect::<Vec<_>>()))
}

/// A task as it is shown; `None` for those that are not Celery's.
fn info(desk: &Desk, record: &Record, safe: bool) -> Option<TaskInfo> {
    let envelope = &record.envelope;
    let request = Request::of(envelope).ok().flatten()?;
    let (args, kwargs) = (envelope.args.positional(), envelope.args.keyword());
    let part = |part: Option<&windlass_core::Json>, shown: fn(&windlass_core::Json) -> String, empty: &str| match part {
        Some(json) if safe => Value::from(shown(json)),
        Some(json) => json.to().unwrap_or_default(),
        None if safe => Value::from(empty),
        None => serde_json::from_str(empty).unwrap_or_default(),
    };
    let (args, kwargs) = (part(args, repr::args, if safe { "()" } else { "[]" }), part(kwargs, repr::value, "{}"));
    let mut info = TaskInfo::of(&request, args, kwargs, &desk.teller.hostname);
    if record.state == State::Running {
        info.time_start = record.started_at.map(|at| at.as_micros() as f64 / 1_000_000.0);
        info.worker_pid = Some(std::process::id());
    }
    info.acknowledged = true;
    Some(info)
}
