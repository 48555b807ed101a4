//! Tasks in steps: what an attempt has done stays done, whatever becomes of the attempts and of their workers.
//!
//! Each step draws a number. A later attempt that drew another one would have run the step again after it was stored.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use windlass_core::view::Record;
use windlass_core::{Client, Cx, Json, SignalName, State, Task, TaskError, TaskId};

use super::script::{World, is_poison, work};

/// How many tasks in steps there are; every other one gets its signal.
const TASKS: u32 = 4;
/// Longer than things go wrong: a signal that is sent is not missed. A task whose push was not promised gets none, and ends.
const PATIENT: Duration = Duration::from_secs(1_800);
const IMPATIENT: Duration = Duration::from_secs(15);

/// Two steps with a sleep and a wait between them, and an effect that all tasks of a simulation share.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(crate = "windlass_core", name = "sim_steps", retries = 30, backoff = "1s", hard_limit = "10s", output = Done)]
pub(super) struct Stepped {
    work: u64,
    patient: bool,
}

/// What a task in steps has done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Done {
    first: u64,
    signal: Option<u64>,
    shared: u64,
    last: u64,
}

/// What handlers were told by their steps: one book for all workers.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Book>);

#[derive(Debug, Default)]
struct Book {
    steps: HashMap<(TaskId, &'static str), u64>,
    breaches: Vec<String>,
}

impl Ledger {
    fn was_told(&self, id: &TaskId, step: &'static str, value: u64) {
        let mut book = self.0.lock();
        let before = *book.steps.entry((id.clone(), step)).or_insert(value);
        if before != value {
            book.breaches.push(format!("the step `{step}` of {id} was {before} and later {value}"));
        }
    }

    pub(super) fn breaches(&self) -> Vec<String> {
        self.0.lock().breaches.clone()
    }
}

pub(super) async fn handle_steps(task: Stepped, cx: Cx<World>) -> Result<Done, TaskError> {
    let ledger = Arc::clone(&cx.state().ledger);
    let length = Duration::from_millis(task.work);
    let draw = async || {
        work(cx.state(), length).await;
        Ok(fastrand::u64(..1_000_000))
    };
    let first = cx.step("first", draw).await?;
    ledger.was_told(cx.id(), "first", first);
    cx.sleep("pause", Duration::from_secs(3)).await?;
    let patience = if task.patient { PATIENT } else { IMPATIENT };
    let signal = cx.wait_for(&SignalName::known("go"), patience).await?;
    let shared = cx.once("shared", PATIENT, draw).await?;
    let last = cx.step("last", draw).await?;
    ledger.was_told(cx.id(), "last", last);
    Ok(Done { first, signal, shared, last })
}

/// The tasks in steps that were pushed.
#[derive(Debug, Default)]
pub(super) struct Pushed(BTreeMap<TaskId, Signal>);

/// The signal that a task waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    /// None will come.
    Never,
    /// It is sent when everything is enqueued.
    Later,
    /// It was sent until the store had it, or until the task had ended: with it, or as poison.
    Sent(u64),
}

/// Enqueues them.
pub(super) async fn enqueue(client: &Client, dice: &mut fastrand::Rng) -> Pushed {
    let mut pushed = Pushed::default();
    for number in 0..TASKS {
        let patient = number % 2 == 0;
        if let Ok(handle) = client.enqueue(Stepped { work: dice.u64(..1_500), patient }).await {
            pushed.0.insert(handle.id, if patient { Signal::Later } else { Signal::Never });
        }
    }
    pushed
}

impl Pushed {
    /// Sends a signal to each that waits for one, until the store has it or the task has ended.
    pub(super) async fn signal(&mut self, client: &Client, dice: &mut fastrand::Rng) {
        for (id, signal) in self.0.iter_mut().filter(|(_, signal)| **signal == Signal::Later) {
            let sent = dice.u64(..1_000);
            tokio::time::sleep(Duration::from_millis(dice.u64(..5_000))).await;
            let value = Json::of(&sent).unwrap_or_else(|_| Json::null());
            *signal = Signal::Sent(sent);
            while client.signal(id, SignalName::known("go"), value.clone()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }

    pub(super) fn check(&self, records: &[Record]) -> Vec<String> {
        let mut breaches = Vec::new();
        let mut shared = BTreeMap::new();
        for (id, signal) in &self.0 {
            let Some(record) = records.iter().find(|record| record.envelope.id == *id) else {
                breaches.push(format!("{id} was pushed and is gone"));
                continue;
            };
            let done = record.result.as_ref().and_then(|result| result.to::<Done>().ok());
            match (record.state, done) {
                (State::Succeeded, Some(done)) => {
                    let expected = if let Signal::Sent(sent) = signal { Some(*sent) } else { None };
                    if done.signal != expected {
                        breaches.push(format!("{id} took the signal {:?}, sent was {signal:?}", done.signal));
                    }
                    shared.entry(done.shared).or_insert_with(Vec::new).push(id);
                }
                _ if is_poison(record) => {}
                (state, done) => breaches.push(format!("{id} is {state} with {done:?}: {:?}", record.failure)),
            }
        }
        if shared.len() > 1 {
            breaches.push(format!("what is done once has {} results: {shared:?}", shared.len()));
        }
        breaches
    }
}
