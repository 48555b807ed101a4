//! What the tasks of a simulation do, and what must have become of them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use windlass_core::backend::Backend;
use windlass_core::batch::{BatchCx, Item};
use windlass_core::state::CRASHES_MAX;
use windlass_core::view::Record;
use windlass_core::workflow::{chain, group};
use windlass_core::{Client, Cx, DeadReason, Key, Priority, QueueName, State, Task, TaskError, TaskId};

use super::{limits, steps};
use crate::faulty::FaultyStore;

/// What the handlers of one worker share: the line that tells them when their process is stopped or dead, and the book
/// that all workers write.
pub(super) struct World {
    pub(super) line: Arc<FaultyStore>,
    pub(super) ledger: Arc<steps::Ledger>,
}

/// One scripted task.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "sim", retries = 30, backoff = "1s * 2^n up to 5s", hard_limit = "10s", output = u64, input = "before")]
pub(super) struct Sim {
    /// How long each attempt runs.
    work: u64,
    /// How many attempts fail before one succeeds.
    fails: u32,
    /// How the ones that fail do it.
    how: How,
    /// What it returns, added to what came before.
    value: u64,
    /// The result of the step before.
    #[serde(default)]
    before: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum How {
    Error,
    Panic,
    Hang,
    Snooze,
    /// No attempt ever succeeds.
    Fatal,
}

/// Adds up what the members of a chord returned.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "sim_sum", retries = 30, backoff = "1s", output = u64, input = "values")]
pub(super) struct Sum {
    #[serde(default)]
    values: Vec<u64>,
}

/// A task that is handled together with others.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "sim_batched", retries = 30, backoff = "1s", hard_limit = "10s", output = u64)]
pub(super) struct Batched {
    fails: u32,
    value: u64,
}

/// A slot of a schedule.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "sim_slot", retries = 30, backoff = "1s")]
pub(super) struct Slot {}

pub(super) async fn handle(task: Sim, cx: Cx<World>) -> Result<u64, TaskError> {
    work(cx.state(), Duration::from_millis(task.work)).await;
    if task.how == How::Fatal {
        return Err(TaskError::fatal("scripted"));
    }
    // A snooze gives its attempt back, so it must not be counted by attempts.
    if task.how == How::Snooze && task.fails > 0 && cx.now().since(cx.enqueued_at) < Duration::from_secs(10) {
        return Err(TaskError::Snooze { after: Duration::from_secs(3) });
    }
    if cx.attempt <= task.fails {
        match task.how {
            How::Error => return Err(TaskError::failed("scripted")),
            How::Panic => panic!("scripted"),
            How::Hang => std::future::pending::<()>().await,
            How::Snooze | How::Fatal => {}
        }
    }
    Ok(task.before + task.value)
}

pub(super) async fn handle_sum(task: Sum, cx: Cx<World>) -> Result<u64, TaskError> {
    work(cx.state(), Duration::from_millis(10)).await;
    Ok(task.values.iter().sum())
}

pub(super) async fn handle_slot(_task: Slot, cx: Cx<World>) -> Result<(), TaskError> {
    work(cx.state(), Duration::from_millis(50)).await;
    Ok(())
}

pub(super) async fn handle_many(batch: Vec<Item<Batched>>, cx: BatchCx<World>) -> Result<(), TaskError> {
    work(cx.state(), Duration::from_millis(200)).await;
    for item in batch {
        if item.attempt <= item.task.fails {
            item.fail(TaskError::failed("scripted"));
        } else {
            let value = item.task.value;
            item.done(value);
        }
    }
    Ok(())
}

/// Takes a while. A handler of a stopped process stands still, one of a dead process never goes on.
pub(super) async fn work(world: &World, length: Duration) {
    tokio::time::sleep(length).await;
    let line = &world.line;
    while let Some(until) = line.frozen_until() {
        tokio::time::sleep_until(until).await;
    }
    if line.is_cut() {
        std::future::pending::<()>().await;
    }
}

/// What a producer does in a simulation.
pub(super) struct Script {
    plain: Vec<Planned>,
    chains: Vec<Vec<Sim>>,
    chords: Vec<Vec<Sim>>,
    batched: Vec<Batched>,
}

struct Planned {
    task: Sim,
    delay: Duration,
    queue: QueueName,
    key: Option<Key>,
    priority: Priority,
    cancel: Cancel,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cancel {
    Never,
    AfterMillis(u64),
}

/// What must have become of the tasks.
#[derive(Debug, Default)]
pub(super) struct Expected {
    /// Pushes that returned, and the states that their tasks may end in.
    ends: BTreeMap<TaskId, Vec<State>>,
    /// The results of those that succeed.
    results: BTreeMap<TaskId, u64>,
    /// Workflows that were started, with the result of their last step.
    workflows: BTreeMap<TaskId, (&'static str, usize, u64)>,
    stepped: steps::Pushed,
}

fn draw(dice: &mut fastrand::Rng) -> Sim {
    let how = match dice.u32(..12) {
        0 => How::Panic,
        1 => How::Hang,
        2 => How::Snooze,
        _ => How::Error,
    };
    let work = if dice.u32(..10) == 0 { dice.u64(..9_000) } else { dice.u64(..1_500) };
    let fails = if dice.u32(..3) == 0 { dice.u32(1..4) } else { 0 };
    Sim { work, fails, how, value: dice.u64(1..1_000), before: 0 }
}

impl Script {
    pub(super) fn draw(tasks: usize, dice: &mut fastrand::Rng) -> Self {
        let chains: Vec<Vec<Sim>> = (0..2).map(|_| (0..3).map(|_| draw(dice)).collect()).collect();
        let chords: Vec<Vec<Sim>> = (0..2).map(|_| (0..dice.usize(1..6)).map(|_| draw(dice)).collect()).collect();
        let in_workflows: usize = chains.iter().chain(&chords).map(Vec::len).sum::<usize>() + chords.len();
        let plain = (in_workflows..tasks.max(in_workflows + 1)).map(|_| {
            let mut task = draw(dice);
            if dice.u32(..20) == 0 {
                task.how = How::Fatal;
            }
            let (queue, key) = match dice.u32(..8) {
                0..3 => (QueueName::default(), None),
                3..6 => (QueueName::known("other"), None),
                _ => (limits::queue(), Some(limits::draw_key(dice))),
            };
            Planned {
                task,
                delay: if dice.u32(..4) == 0 { Duration::from_millis(dice.u64(..20_000)) } else { Duration::ZERO },
                queue,
                key,
                priority: Priority::new(dice.u8(0..=9)).unwrap_or_default(),
                cancel: if dice.u32(..10) == 0 { Cancel::AfterMillis(dice.u64(..5_000)) } else { Cancel::Never },
            }
        });
        let plain = plain.collect();
        let fails = |dice: &mut fastrand::Rng| if dice.u32(..3) == 0 { dice.u32(1..4) } else { 0 };
        let batched =
            (0..dice.usize(1..9)).map(|_| Batched { fails: fails(dice), value: dice.u64(1..1_000) }).collect();
        Self { plain, chains, chords, batched }
    }

    /// Enqueues everything over a bad line and answers what must become of it. What a push did not promise may still
    /// happen, so only what returned is expected.
    pub(super) async fn enqueue(self, line: Arc<FaultyStore>, dice: &mut fastrand::Rng) -> Expected {
        let client = Client::new(line as Arc<dyn Backend>);
        let mut expected = Expected::default();
        for tasks in self.chains {
            let (sum, count) = (tasks.iter().map(|task| task.value).sum(), tasks.len());
            let mut tasks = tasks.into_iter();
            let Some(first) = tasks.next() else { continue };
            let workflow = tasks.fold(chain(first), windlass_core::workflow::Chain::then);
            if let Ok(started) = client.start(workflow).await {
                expected.workflows.insert(started.id, ("sim", count, sum));
            }
        }
        for tasks in self.chords {
            let (sum, count) = (tasks.iter().map(|task| task.value).sum(), tasks.len() + 1);
            if let Ok(started) = client.start(group(tasks).then(Sum { values: Vec::new() })).await {
                expected.workflows.insert(started.id, ("sim_sum", count, sum));
            }
        }
        expected.stepped = steps::enqueue(&client, dice).await;
        for task in self.batched {
            let value = task.value;
            if let Ok(handle) = client.enqueue(task).await {
                expected.results.insert(handle.id.clone(), value);
                expected.ends.insert(handle.id, vec![State::Succeeded]);
            }
        }
        let mut cancels = Vec::new();
        for planned in self.plain {
            let Planned { task, delay, queue, key, priority, cancel } = planned;
            let fatal = task.how == How::Fatal;
            let value = task.value;
            let mut enqueue = client.enqueue(task).delay(delay).queue(queue).priority(priority);
            if let Some(key) = key {
                enqueue = enqueue.key(key);
            }
            let Ok(handle) = enqueue.await else { continue };
            let mut ends = vec![if fatal { State::Dead } else { State::Succeeded }];
            if let Cancel::AfterMillis(after) = cancel {
                ends.push(State::Cancelled);
                cancels.push((after, handle.id.clone()));
            }
            expected.results.insert(handle.id.clone(), value);
            expected.ends.insert(handle.id, ends);
            if dice.u32(..3) == 0 {
                tokio::time::sleep(Duration::from_millis(dice.u64(..800))).await;
            }
        }
        cancels.sort_unstable_by_key(|(after, _)| *after);
        for (after, id) in cancels {
            tokio::time::sleep(Duration::from_millis(after / 8)).await;
            // A cancel that is lost is a cancel that did not happen.
            let _ = client.cancel(vec![id]).await;
        }
        expected.stepped.signal(&client, dice).await;
        expected
    }
}

impl Expected {
    /// Whether every step of every workflow exists, as far as it can: the last one appears when the one before has ended.
    pub(super) fn workflows_are_complete(&self, records: &[Record]) -> bool {
        self.workflows
            .iter()
            .all(|(id, (_, count, _))| steps(records, id).count() >= *count || steps(records, id).any(is_poison))
    }

    pub(super) fn check(&self, records: &[Record]) -> Vec<String> {
        let mut breaches = self.stepped.check(records);
        let by_id: BTreeMap<&TaskId, &Record> = records.iter().map(|record| (&record.envelope.id, record)).collect();
        for (id, ends) in &self.ends {
            match by_id.get(id) {
                None => breaches.push(format!("{id} was pushed and is gone")),
                // Workers are killed often enough for a task to look like poison.
                Some(record) if is_poison(record) => {}
                Some(record) if !ends.contains(&record.state) => {
                    breaches.push(format!("{id} is {}, not one of {ends:?}: {:?}", record.state, record.failure));
                }
                Some(record) if record.state == State::Succeeded => {
                    let result = record.result.as_ref().and_then(|result| result.to::<u64>().ok());
                    if result != self.results.get(id).copied() {
                        breaches.push(format!("{id} has the result {result:?}"));
                    }
                }
                Some(_) => {}
            }
        }
        for (id, (last, count, sum)) in &self.workflows {
            let all: Vec<&Record> = steps(records, id).collect();
            if all.iter().any(|record| is_poison(record)) {
                continue;
            }
            let succeeded = all.iter().filter(|record| record.state == State::Succeeded).count();
            let reached = all.iter().any(|record| {
                let result = record.result.as_ref().and_then(|result| result.to::<u64>().ok());
                record.envelope.name.as_str() == *last && result == Some(*sum)
            });
            if succeeded != *count || !reached {
                breaches.push(format!(
                    "workflow {id}: {succeeded} of {count} steps succeeded, the sum {sum} was reached: {reached}"
                ));
            }
        }
        breaches
    }
}

/// A task whose workers were killed three times is a dead letter, rightly; so is what waited for it.
pub(super) fn is_poison(record: &Record) -> bool {
    match record.reason {
        Some(DeadReason::Poison) => record.crashes >= CRASHES_MAX,
        Some(DeadReason::Upstream) => true,
        _ => false,
    }
}

fn steps<'r>(records: &'r [Record], workflow: &'r TaskId) -> impl Iterator<Item = &'r Record> {
    records.iter().filter(move |record| record.envelope.workflow.as_ref() == Some(workflow))
}
