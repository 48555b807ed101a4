//! A task whose arguments say what becomes of it, and what is remembered of its runs.
//!
//! A test writes down what the first, the second and every further run of a task does, lets workers run it and looks at
//! what came of it, without a handler of its own:
//!
//! ```
//! use std::time::Duration;
//! use windlass_testkit::fate::{Act, Fate};
//!
//! let fails_twice = Fate::of([Act::fail("timeout"), Act::fail("timeout"), Act::succeed(7)]);
//! let slow = Fate::of([Act::succeed(1).after(Duration::from_secs(5))]);
//! let loses_its_worker = Fate::of([Act::Abort]);
//! ```
//!
//! [`fate`] is the handler. Its state is [`Runs`], which counts the runs and remembers what each of them did.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use windlass_core::time::duration_text;
use windlass_core::{Cx, Failure, Task, TaskError, TaskId, Timestamp};

/// Does what its arguments say.
#[derive(Debug, Clone, PartialEq, Task, Serialize, Deserialize)]
#[task(name = "fate", crate = "windlass_core", output = Value)]
pub struct Fate {
    /// What each run does, from the first on; the last one counts for all further runs. With none, every run succeeds.
    pub acts: Vec<Act>,
}

/// What one run does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub enum Act {
    /// Returns this.
    Succeed {
        /// What is returned.
        output: Value,
    },
    /// Fails, to be retried by policy.
    Fail {
        /// What kind of error.
        class: String,
    },
    /// Fails so that no retry can help.
    Fatal {
        /// What kind of error.
        class: String,
    },
    /// Panics.
    Panic {
        /// With this text.
        message: String,
    },
    /// Finds nothing to do.
    Skip {
        /// Why.
        reason: String,
    },
    /// Fails, to be retried after exactly this time.
    RetryAfter {
        /// How long to wait.
        #[serde(with = "duration_text")]
        delay: Duration,
    },
    /// Is told to slow down; spends no attempt.
    Throttle {
        /// How long to wait.
        #[serde(with = "duration_text")]
        delay: Duration,
    },
    /// Finds a service down; spends no attempt.
    Unavailable {
        /// Until when.
        until: Timestamp,
    },
    /// Is not ready yet; spends no attempt.
    Snooze {
        /// How long to wait.
        #[serde(with = "duration_text")]
        delay: Duration,
    },
    /// Takes some time without holding up its thread, then acts.
    Work {
        /// How long it takes, in tokio's time.
        #[serde(with = "duration_text")]
        time: Duration,
        /// What it does then.
        then: Box<Act>,
    },
    /// Holds up its thread, as a handler should not, then acts.
    Block {
        /// For how long, in real time.
        #[serde(with = "duration_text")]
        time: Duration,
        /// What it does then.
        then: Box<Act>,
    },
    /// Goes on until it is asked to stop, then acts.
    UntilStopped {
        /// What it does then.
        then: Box<Act>,
    },
    /// Never returns, whatever it is asked.
    Hang,
    /// Ends its process on the spot, as a crash does. Only for workers in processes of their own.
    Abort,
}

impl Act {
    /// Returns a value.
    ///
    /// # Panics
    /// When the value has no JSON form.
    pub fn succeed(output: impl Serialize) -> Self {
        let output = serde_json::to_value(output).unwrap_or_else(|error| panic!("an output has a JSON form: {error}"));
        Self::Succeed { output }
    }

    /// Fails, to be retried by policy.
    pub fn fail(class: &str) -> Self {
        Self::Fail { class: class.to_owned() }
    }

    /// Fails so that no retry can help.
    pub fn fatal(class: &str) -> Self {
        Self::Fatal { class: class.to_owned() }
    }

    /// Panics.
    pub fn panic(message: &str) -> Self {
        Self::Panic { message: message.to_owned() }
    }

    /// The same after some work.
    #[must_use]
    pub fn after(self, time: Duration) -> Self {
        Self::Work { time, then: Box::new(self) }
    }

    /// The same when it is asked to stop.
    #[must_use]
    pub fn when_stopped(self) -> Self {
        Self::UntilStopped { then: Box::new(self) }
    }

    /// Does it. `stopped` ends when the handler is asked to stop.
    ///
    /// # Errors
    /// What the act says.
    ///
    /// # Panics
    /// When the act says so.
    pub async fn perform(&self, stopped: impl Future<Output = ()>) -> Result<Value, TaskError> {
        let mut act = self;
        let mut stopped = std::pin::pin!(stopped);
        loop {
            act = match act {
                Self::Work { time, then } => {
                    tokio::time::sleep(*time).await;
                    then
                }
                Self::Block { time, then } => {
                    std::thread::sleep(*time);
                    then
                }
                Self::UntilStopped { then } => {
                    stopped.as_mut().await;
                    then
                }
                Self::Hang => std::future::pending().await,
                last => return last.end(),
            }
        }
    }

    /// How a run ends that has nothing left to wait for.
    fn end(&self) -> Result<Value, TaskError> {
        let failure = |class: &str| Failure::new(class, "it was written in the arguments");
        Err(match self {
            Self::Succeed { output } => return Ok(output.clone()),
            Self::Fail { class } => TaskError::Failed(failure(class)),
            Self::Fatal { class } => TaskError::Fatal(failure(class)),
            Self::Panic { message } => panic!("{message}"),
            Self::Skip { reason } => TaskError::Skipped { reason: reason.clone() },
            Self::RetryAfter { delay } => TaskError::Retry { after: *delay, failure: failure("retry") },
            Self::Throttle { delay } => TaskError::Throttled { after: *delay },
            Self::Unavailable { until } => TaskError::Unavailable { until: *until },
            Self::Snooze { delay } => TaskError::Snooze { after: *delay },
            Self::Abort => std::process::abort(),
            Self::Work { .. } | Self::Block { .. } | Self::UntilStopped { .. } | Self::Hang => {
                unreachable!("these wait before they end")
            }
        })
    }
}

impl Fate {
    /// A task whose first run does the first act, and so on; the last act counts for all further runs.
    pub fn of(acts: impl IntoIterator<Item = Act>) -> Self {
        Self { acts: acts.into_iter().collect() }
    }

    /// What a run does, counted from 1.
    pub fn act(&self, run: u32) -> Act {
        let place = (run as usize).clamp(1, self.acts.len().max(1)) - 1;
        self.acts.get(place).cloned().unwrap_or(Act::Succeed { output: Value::Null })
    }
}

/// The handler of [`Fate`].
///
/// # Errors
/// What the arguments say.
pub async fn fate(task: Fate, cx: Cx<Runs>) -> Result<Value, TaskError> {
    let running = cx.state().begin(cx.id());
    let stopped = async {
        cx.stopped().await;
    };
    let answer = task.act(running.number).perform(stopped).await;
    running.end();
    answer
}

/// Counts the runs of every task of a test. Clones count together.
///
/// Runs are not attempts: a run that spends no attempt is a run, and so is one that another worker makes because the first
/// seemed lost.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    of_tasks: Arc<Mutex<HashMap<TaskId, Counted>>>,
}

/// How often a task was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Runs that have begun.
    pub begun: u32,
    /// Runs that came to their end; the others were dropped, panicked, or still go on.
    pub ended: u32,
    /// Runs that go on now.
    pub running: u32,
    /// The most runs that ever went on at the same time: more than one when two workers held the task at once.
    pub running_max: u32,
}

impl Runs {
    /// No runs.
    pub fn new() -> Self {
        Self::default()
    }

    /// How often a task was run.
    pub fn of(&self, id: &TaskId) -> Counted {
        self.of_tasks.lock().get(id).copied().unwrap_or_default()
    }

    /// How often each task was run.
    pub fn all(&self) -> HashMap<TaskId, Counted> {
        self.of_tasks.lock().clone()
    }

    /// Counts a run that begins.
    pub fn begin(&self, id: &TaskId) -> Running {
        let mut of_tasks = self.of_tasks.lock();
        let counted = of_tasks.entry(id.clone()).or_default();
        counted.begun += 1;
        counted.running += 1;
        counted.running_max = counted.running_max.max(counted.running);
        Running { runs: self.clone(), id: id.clone(), number: counted.begun }
    }
}

/// A run that goes on until this is dropped.
#[derive(Debug)]
pub struct Running {
    runs: Runs,
    id: TaskId,
    /// Which run of its task it is, from 1.
    pub number: u32,
}

impl Running {
    /// Counts the run as one that came to its end.
    pub fn end(self) {
        if let Some(counted) = self.runs.of_tasks.lock().get_mut(&self.id) {
            counted.ended += 1;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(counted) = self.runs.of_tasks.lock().get_mut(&self.id) {
            counted.running -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use windlass_core::Args;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    async fn perform(act: Act) -> Result<Value, TaskError> {
        act.perform(std::future::ready(())).await
    }

    #[test]
    fn a_run_does_the_act_of_its_number() {
        let fate = Fate::of([Act::fail("a"), Act::fail("b"), Act::succeed(7)]);
        assert_eq!((fate.act(1), fate.act(2)), (Act::fail("a"), Act::fail("b")));
        assert_eq!((fate.act(3), fate.act(99)), (Act::succeed(7), Act::succeed(7)));
        assert_eq!(Fate::of([]).act(1), Act::Succeed { output: Value::Null });
    }

    #[test]
    fn a_fate_travels_as_arguments() {
        let fate = Fate::of([
            Act::Snooze { delay: MINUTE },
            Act::Unavailable { until: Timestamp::from_secs(1_800_000_000) },
            Act::succeed("done").when_stopped().after(MINUTE),
            Act::Block { time: MINUTE, then: Box::new(Act::Abort) },
        ]);
        let args = Args::of(&fate).expect("a fate is an object");
        let read: Fate = args.decode(None, &windlass_core::Feed::Nothing, None).expect("it was written by us");
        assert_eq!(read, fate);
    }

    #[tokio::test(start_paused = true)]
    async fn acts_end_as_they_say() {
        assert_eq!(perform(Act::succeed(7).after(MINUTE)).await.expect("it succeeds"), 7);
        assert!(matches!(perform(Act::fail("x")).await, Err(TaskError::Failed(failure)) if failure.class == "x"));
        assert!(matches!(perform(Act::fatal("x")).await, Err(TaskError::Fatal(_))));
        assert!(matches!(perform(Act::Skip { reason: "r".to_owned() }).await, Err(TaskError::Skipped { .. })));
        assert!(
            matches!(perform(Act::RetryAfter { delay: MINUTE }).await, Err(TaskError::Retry { after, .. }) if after == MINUTE)
        );
        assert!(matches!(perform(Act::Throttle { delay: MINUTE }).await, Err(TaskError::Throttled { .. })));
        assert!(matches!(perform(Act::Snooze { delay: MINUTE }).await, Err(TaskError::Snooze { .. })));
        let panicked = std::panic::AssertUnwindSafe(perform(Act::panic("ouch"))).catch_unwind().await;
        assert!(panicked.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_run_that_hangs_does_not_hear_that_it_should_stop() {
        let hang = tokio::time::timeout(MINUTE, perform(Act::Hang));
        assert!(hang.await.is_err());
        let polite = Act::succeed(1).when_stopped();
        assert!(tokio::time::timeout(MINUTE, polite.perform(std::future::pending())).await.is_err());
        assert_eq!(perform(polite).await.expect("it was asked to stop"), 1);
    }

    #[test]
    fn runs_that_overlap_are_noticed() {
        let (runs, id) = (Runs::new(), TaskId::random());
        let first = runs.begin(&id);
        let second = runs.begin(&id);
        assert_eq!((first.number, second.number), (1, 2));
        first.end();
        drop(second);
        assert_eq!(runs.of(&id), Counted { begun: 2, ended: 1, running: 0, running_max: 2 });
        assert_eq!(runs.of(&TaskId::random()), Counted::default());
    }
}
