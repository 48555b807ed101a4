//! What `celery control` and the buttons of Flower change.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use windlass_core::backend::{Command as StoreCommand, Order, Target, TaskAction};
use windlass_core::bridge::{Answer, News};
use windlass_core::limit::{Limit, LimitChange, Rule, Subject};
use windlass_core::view::{Filter, PAGE_MAX, Page, Record};
use windlass_core::{Args, Backend, Envelope, NodeId, QueueName, Rate, State, StoreError, TaskId, TaskName, Verdict};
use windlass_wire::celery::control::Command;
use windlass_wire::celery::control::answer;
use windlass_wire::celery::{Request, TimeLimit};

use super::super::Desk;
use super::unavailable;

/// The most slots that an operator may ask for over this door.
const SLOTS_MAX: usize = windlass_core::worker::SLOTS_MAX;

/// Carries a command out.
pub(super) async fn reply(desk: &Desk, store: &dyn Backend, command: &Command) -> Option<Value> {
    let done = match command {
        Command::Revoke { ids, terminate, .. } => revoke(desk, store, ids, *terminate).await,
        Command::RevokeByStamps { headers, terminate, .. } => by_stamps(desk, store, headers, *terminate).await,
        Command::RateLimit { task, limit } => rate_limit(desk, store, task, limit.as_deref()).await,
        Command::TimeLimit { task, hard, soft } => Ok(time_limit(desk, task, *hard, *soft)),
        Command::AddConsumer { queue, .. } => Ok(add_consumer(desk, queue).await),
        Command::CancelConsumer { queue } => Ok(cancel_consumer(desk, queue).await),
        Command::PoolGrow { by } => resize(desk, store, i64::from(*by), "pool will grow").await,
        Command::PoolShrink { by } => resize(desk, store, -i64::from(*by), "pool will shrink").await,
        Command::Autoscale { .. } => Ok(answer::error("ValueError('Autoscale not enabled')")),
        Command::PoolRestart => Ok(answer::error("ValueError('Pool restarts not enabled')")),
        Command::EnableEvents => Ok(switch(desk, true)),
        Command::DisableEvents => Ok(switch(desk, false)),
        Command::Heartbeat => {
            desk.events.heartbeat();
            return None;
        }
        Command::Shutdown => match order(desk, store, Order::Stop).await {
            Ok(()) => return None,
            Err(error) => Err(error),
        },
        Command::Unknown { method, .. } => Ok(answer::unknown_method(method)),
        Command::Invalid { method, reason, .. } => Ok(answer::error(format!("TypeError('{method}: {reason}')"))),
        Command::Ping
        | Command::Active { .. }
        | Command::Reserved
        | Command::Scheduled
        | Command::Revoked
        | Command::Registered { .. }
        | Command::Stats
        | Command::ActiveQueues
        | Command::Conf { .. }
        | Command::QueryTask { .. }
        | Command::Report
        | Command::Clock
        | Command::Hello { .. } => return None,
    };
    Some(done.unwrap_or_else(|error| unavailable(&error)))
}

/// Tasks that have not begun are cancelled, wherever they wait; those that have not come are remembered; those that run here
/// are cancelled when they are to be terminated.
async fn revoke(desk: &Desk, store: &dyn Backend, ids: &[String], terminate: bool) -> Result<Value, StoreError> {
    desk.revoked.add(ids.iter().cloned());
    let known: Vec<TaskId> = ids.iter().filter_map(|id| TaskId::new(id).ok()).collect();
    let records = store.find(&known).await?;
    let mut ended = Vec::new();
    let mut running = Vec::new();
    for (id, record) in known.iter().zip(records) {
        match record {
            Some(record) if record.state == State::Running => running.push(record),
            Some(record) if record.state.is_final() => {}
            Some(record) => ended.push((id.clone(), record.envelope)),
            // It may run in another fleet that shares the broker: who is told to kill it says nothing of it. Its clients would
            // hear that, as channels of Redis are the same in all databases.
            None if terminate => {}
            None => ended.extend(unknown(id).map(|envelope| (id.clone(), envelope))),
        }
    }
    let ids_to_cancel = ended.iter().map(|(id, _)| id.clone()).collect();
    cancel(store, ids_to_cancel).await?;
    let answers: Vec<Answer> = ended
        .into_iter()
        .map(|(_, envelope)| Answer {
            envelope: Arc::new(envelope),
            attempt: 0,
            ran: Duration::ZERO,
            news: News::Ended(Verdict::Cancelled),
        })
        .collect();
    if let Err(error) = desk.answer(&answers).await {
        return Err(StoreError::Unreachable(error.to_string().into()));
    }
    if !terminate {
        return Ok(answer::revoked(ids));
    }
    let here = |record: &&Record| record.node.as_ref().is_some_and(|node| node.as_str() == desk.teller.hostname);
    let here: Vec<TaskId> = running.iter().filter(here).map(|record| record.envelope.id.clone()).collect();
    cancel(store, here.clone()).await?;
    Ok(answer::terminated(&here.iter().map(ToString::to_string).collect::<Vec<_>>()))
}

/// A task that has not come: enough of it to answer whoever waits for it.
fn unknown(id: &TaskId) -> Option<Envelope> {
    let mut envelope = Envelope::new(TaskName::new("unknown").ok()?, QueueName::default(), Args::none());
    envelope.id = id.clone();
    Request::new("", id.to_string()).attach(&mut envelope).ok()?;
    Some(envelope)
}

async fn cancel(store: &dyn Backend, ids: Vec<TaskId>) -> Result<(), StoreError> {
    if ids.is_empty() {
        return Ok(());
    }
    let command = StoreCommand::Tasks { target: Target::Ids(ids), action: TaskAction::Cancel };
    store.command(&command).await.map(drop)
}

/// Tasks with any of these stamps that the store has now.
async fn by_stamps(
    desk: &Desk,
    store: &dyn Backend,
    headers: &serde_json::Map<String, Value>,
    terminate: bool,
) -> Result<Value, StoreError> {
    let filter = Filter::in_states([State::Running, State::Ready, State::Scheduled, State::Parked]);
    let listing = store.list(&filter, &Page::first(PAGE_MAX)).await?;
    let is_meant = |request: &Request| {
        headers.iter().any(|(name, wanted)| request.stamps.get(name).is_some_and(|stamp| overlap(stamp, wanted)))
    };
    let ids: Vec<String> = listing
        .tasks
        .iter()
        .filter_map(|record| Request::of(&record.envelope).ok().flatten())
        .filter(is_meant)
        .map(|request| request.id)
        .collect();
    if ids.is_empty() {
        return Ok(answer::ok(format!("headers {headers:?} flagged as revoked, but not terminated")));
    }
    revoke(desk, store, &ids, terminate).await
}

/// Stamps are values or lists of them.
fn overlap(stamp: &Value, wanted: &Value) -> bool {
    let values = |value: &Value| match value {
        Value::Array(values) => values.clone(),
        one => vec![one.clone()],
    };
    let wanted = values(wanted);
    values(stamp).iter().any(|value| wanted.contains(value))
}

/// A limit of the fleet, not of a node: it holds in the claim.
async fn rate_limit(desk: &Desk, store: &dyn Backend, task: &str, limit: Option<&str>) -> Result<Value, StoreError> {
    let Some(name) = known(desk, task) else { return Ok(answer::error("unknown task")) };
    let subject = Subject::Task(name);
    let Some(text) = limit else {
        store.limit(&LimitChange::Remove(subject)).await?;
        return Ok(answer::ok("rate limit disabled successfully"));
    };
    // A bare number is tasks a second.
    let spelled = if text.contains('/') { text.to_owned() } else { format!("{text}/s") };
    let Ok(rate) = spelled.parse::<Rate>() else {
        return Ok(answer::error(format!("Invalid rate limit string: ValueError('{}')", shown(text))));
    };
    let rule = Rule { rate: Some(rate), ..Rule::default() };
    store.limit(&LimitChange::Set(Limit { subject, rule })).await?;
    Ok(answer::ok("new rate limit set successfully"))
}

/// For messages that come from now on and bring no limit of their own.
fn time_limit(desk: &Desk, task: &str, hard: Option<f64>, soft: Option<f64>) -> Value {
    let Some(name) = known(desk, task) else { return answer::error("unknown task") };
    let limit = |seconds: Option<f64>| {
        seconds.filter(|seconds| *seconds > 0.0).and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
    };
    desk.time_limits.lock().of.insert(name.to_string(), TimeLimit { hard: limit(hard), soft: limit(soft) });
    answer::ok("time limits set successfully")
}

fn known(desk: &Desk, task: &str) -> Option<TaskName> {
    desk.reader.registered.contains(task).then(|| TaskName::new(task).ok()).flatten()
}

async fn add_consumer(desk: &Desk, queue: &str) -> Value {
    let Ok(name) = QueueName::new(queue) else {
        return answer::error(format!("ValueError('{} is not the name of a queue')", shown(queue)));
    };
    if desk.queues.now.lock().contains(&name) {
        return answer::ok(format!("already consuming from '{name}'"));
    }
    if let Err(error) = desk.broker.declare(std::slice::from_ref(&name)).await {
        return answer::error(format!("OperationalError('{error}')"));
    }
    desk.queues.change(|queues| queues.push(name.clone()));
    answer::ok(format!("add consumer {name}"))
}

async fn cancel_consumer(desk: &Desk, queue: &str) -> Value {
    desk.queues.change(|queues| queues.retain(|name| name.as_str() != queue));
    desk.queues.until_left(queue).await;
    answer::ok(format!("no longer consuming from {}", shown(queue)))
}

async fn resize(desk: &Desk, store: &dyn Backend, by: i64, done: &str) -> Result<Value, StoreError> {
    let has = desk.node.lock().as_ref().map(|node| node.slots);
    let Some(has) = has else {
        return Ok(answer::error("RuntimeError('the node has not begun to work yet')"));
    };
    let now = desk.slots_wanted.lock().unwrap_or(has);
    let slots = i64::try_from(now).unwrap_or(i64::MAX).saturating_add(by);
    let slots = usize::try_from(slots).unwrap_or(0).min(SLOTS_MAX);
    if slots == 0 {
        return Ok(answer::error("ValueError('a pool has at least one slot')"));
    }
    *desk.slots_wanted.lock() = Some(slots);
    order(desk, store, Order::Resize(slots)).await?;
    Ok(answer::ok(done))
}

async fn order(desk: &Desk, store: &dyn Backend, order: Order) -> Result<(), StoreError> {
    let Ok(node) = NodeId::new(&desk.teller.hostname) else { return Ok(()) };
    store.command(&StoreCommand::Order { node, order }).await.map(drop)
}

fn switch(desk: &Desk, on: bool) -> Value {
    let was_on = desk.events.switch(on);
    answer::ok(match (on, was_on) {
        (true, false) => "task events enabled",
        (true, true) => "task events already enabled",
        (false, true) => "task events disabled",
        (false, false) => "task events already disabled",
    })
}

/// The start of a text from outside.
fn shown(text: &str) -> String {
    text.chars().filter(|character| !character.is_control() && *character != '\'').take(80).collect()
}
