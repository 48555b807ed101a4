//! Durable steps inside of one task: what is done stays done across attempts, a sleep or a wait frees the slot.
//!
//! A handler that uses steps is run from its beginning again and again; a step that is done answers what it returned then,
//! without running. So the code between the steps must do the same each time: no random choices, no reading of the clock.
//!
//! ```
//! # extern crate windlass_core as windlass;
//! # use std::time::Duration;
//! # use serde::{Deserialize, Serialize};
//! # use windlass_core::{Cx, SignalName, Task, TaskError};
//! # #[derive(Task, Serialize, Deserialize)] struct Order { id: u64 }
//! # async fn charge(id: u64) -> Result<String, TaskError> { Ok(String::new()) }
//! # async fn ship(payment: &str) -> Result<(), TaskError> { Ok(()) }
//! async fn order(task: Order, cx: Cx) -> Result<(), TaskError> {
//!     let payment: String = cx.step("charge", || charge(task.id)).await?;
//!     // No slot is held while it waits; `windlass signal TASK packed` goes on.
//!     let packed = cx.wait_for::<bool>(&SignalName::known("packed"), Duration::from_secs(86_400)).await?;
//!     if packed == Some(true) {
//!         cx.step("ship", || ship(&payment)).await?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! **What voids it.** A step whose result was not stored runs again: the process died, or the lease was lost, between the
//! effect and the store. Give the other side [`Call::id`](crate::call::Call::id) and the name of the step as its
//! idempotency key. Code that takes another path on its second run finds the results of other steps.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::{Renewal, Renewed};
use crate::call::Call;
use crate::memo::{self, Line, MEMO_BYTES_MAX};
use crate::{Json, SignalName, StoreError, TaskError, Timestamp};

/// The longest name of a step, in bytes.
pub const STEP_NAME_BYTES_MAX: usize = 255;
/// The wait between two tries to store a step; it doubles up to a second.
const TRY_AGAIN: Duration = Duration::from_millis(20);
const TRY_AGAIN_MAX: Duration = Duration::from_secs(1);

/// The memo of an attempt: what came with the claim, and what it has added.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: HashMap<String, Json>,
    signals: Vec<(SignalName, Json)>,
    bytes: usize,
    waits: HashMap<SignalName, Waits>,
}

/// The waits of this attempt for one signal.
#[derive(Debug, Default, Clone, Copy)]
struct Waits {
    begun: usize,
    answered: usize,
}

/// How a wait ended, as it is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Waited {
    Signalled,
    TimedOut,
}

impl Steps {
    pub(crate) fn of(memo: &str) -> Self {
        let mut steps = Self { bytes: memo.len(), ..Self::default() };
        for line in memo::lines(memo) {
            match line {
                Line::Step { step, value } => {
                    steps.done.insert(step, value);
                }
                Line::Signal { signal, value } => steps.signals.push((signal, value)),
            }
        }
        steps
    }

    /// The value of the signal that the next wait for it takes.
    fn signal(&self, name: &SignalName, answered: usize) -> Option<Json> {
        self.signals.iter().filter(|(signal, _)| signal == name).nth(answered).map(|(_, value)| value.clone())
    }
}

impl Call {
    /// Runs a step once: its result is stored before this returns, and later attempts get it without running it again.
    /// Names are unique within a task; in loops, number them.
    ///
    /// # Errors
    /// Those of `work`; nothing is remembered then, and the attempt fails or waits as that error says. [`TaskError::Fatal`]
    /// when the result does not fit in the memo ([`MEMO_BYTES_MAX`]), or has another type than the one that was stored.
    pub async fn step<T, F, Fut>(&self, name: &str, work: F) -> Result<T, TaskError>
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, TaskError>>,
    {
        self.step_of(format!("do {name}"), work).await
    }

    async fn step_of<T, F, Fut>(&self, step: String, work: F) -> Result<T, TaskError>
    where
        T: Serialize + DeserializeOwned,
        F: FnOnce() -> Fut,
        Fut: Future<Output = Result<T, TaskError>>,
    {
        if step.len() > STEP_NAME_BYTES_MAX {
            return Err(TaskError::fatal(format_args!("the name of a step takes at most {STEP_NAME_BYTES_MAX} bytes")));
        }
        let step = self.step_name(&step);
        let before = self.steps().done.get(&step).cloned();
        if let Some(value) = before {
            return value.to().map_err(|error| {
                TaskError::fatal(format_args!("the stored result of step `{step}` has another shape: {error}"))
            });
        }
        let value = work().await?;
        let json = Json::of(&value)
            .map_err(|error| TaskError::fatal(format_args!("the result of step `{step}` cannot be stored: {error}")))?;
        self.remember(step, json).await?;
        Ok(value)
    }

    /// Goes on at this time; until then no slot is held. A time in the past is now.
    ///
    /// # Errors
    /// [`TaskError::Snooze`] while it is not that time: pass it on with `?`.
    pub fn sleep_until(&self, time: Timestamp) -> Result<(), TaskError> {
        let left = time.since(self.now());
        if left.is_zero() { Ok(()) } else { Err(TaskError::Snooze { after: left }) }
    }

    /// Goes on this long after the attempt that came here first; until then no slot is held. The name is that of a step.
    ///
    /// # Errors
    /// As [`Call::sleep_until`], and those of storing a step.
    pub async fn sleep(&self, name: &str, time: Duration) -> Result<(), TaskError> {
        let until: Timestamp = self.step_of(format!("sleep {name}"), async || Ok(self.now() + time)).await?;
        self.sleep_until(until)
    }

    /// Waits for a signal ([`TaskAction::Signal`](crate::backend::TaskAction::Signal), `windlass signal`) without holding a
    /// slot; `None` when none came in time. Signals that came before the wait count; each is taken by one wait.
    ///
    /// # Errors
    /// [`TaskError::Awaits`] while there is none: pass it on with `?`. [`TaskError::Fatal`] when what was sent does not fit.
    pub async fn wait_for<T: DeserializeOwned>(
        &self,
        signal: &SignalName,
        timeout: Duration,
    ) -> Result<Option<T>, TaskError> {
        let (number, answered) = {
            let mut steps = self.steps();
            let waits = steps.waits.entry(signal.clone()).or_default();
            waits.begun += 1;
            (waits.begun, waits.answered)
        };
        let deadline: Timestamp =
            self.step_of(format!("wait {number} {signal}"), async || Ok(self.now() + timeout)).await?;
        let waited = self
            .step_of(format!("waited {number} {signal}"), async || {
                let (came, seen) = {
                    let steps = self.steps();
                    (steps.signal(signal, answered).is_some(), steps.bytes)
                };
                let left = deadline.since(self.now());
                if came {
                    Ok(Waited::Signalled)
                } else if left.is_zero() {
                    Ok(Waited::TimedOut)
                } else {
                    Err(TaskError::Awaits { signal: signal.clone(), seen, at_most: left })
                }
            })
            .await?;
        if waited == Waited::TimedOut {
            return Ok(None);
        }
        let value = {
            let mut steps = self.steps();
            steps.waits.entry(signal.clone()).or_default().answered += 1;
            steps.signal(signal, answered).unwrap_or_else(Json::null)
        };
        let value = value.to().map_err(|error| {
            TaskError::fatal(format_args!("what was sent with the signal `{signal}` does not fit: {error}"))
        })?;
        Ok(Some(value))
    }

    /// Stores a step with a renewal of the lease, and repeats that while the store cannot and the lease holds.
    async fn remember(&self, step: String, value: Json) -> Result<(), TaskError> {
        let line = Line::Step { step: step.clone(), value: value.clone() }.to_text();
        if self.steps().bytes + line.len() > MEMO_BYTES_MAX {
            return Err(TaskError::fatal(format_args!(
                "the results of the steps take more than {MEMO_BYTES_MAX} bytes; store the data elsewhere and return references"
            )));
        }
        let renewal = Renewal { receipt: self.receipt.clone(), progress: None, memo: Some(line.clone()) };
        let mut wait = TRY_AGAIN;
        loop {
            match self.client().backend().renew(std::slice::from_ref(&renewal), self.surroundings.lease).await {
                Ok(renewed) if renewed.first() == Some(&Renewed::Lost) => {
                    return Err(TaskError::failed("the lease was lost before the step was stored").class("lease_lost"));
                }
                Ok(_) => break,
                // Whoever drops this attempt when its lease has run out, or it is told to stop, ends the loop as well.
                Err(error) if error.is_transient() => tracing::debug!(%error, "a step is not stored for now"),
                Err(error) => return Err(not_stored(&error)),
            }
            tokio::time::sleep(wait).await; // tidy: allow(sleep): the wait between two tries
            wait = (wait * 2).min(TRY_AGAIN_MAX);
        }
        let mut steps = self.steps();
        steps.bytes += line.len();
        steps.done.insert(step, value);
        Ok(())
    }
}

fn not_stored(error: &StoreError) -> TaskError {
    TaskError::failed(format_args!("the step cannot be stored: {error}")).class("store")
}
