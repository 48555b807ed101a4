//! The keys in Redis where clients look for results and progress: written for Python's clients, read for those in Rust.
//!
//! A result is written with one overwriting `SET`, and before the end of its task is recorded: written twice it is the same.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;
use windlass_core::bridge::{Answer, Concern, News, TransportError};
use windlass_core::state::DeadReason;
use windlass_core::{Failure, Json, StoreError, Verdict};
use windlass_redis::foreign::{Command, Line, Reply};
use windlass_wire::python::MODULE;
use windlass_wire::taskiq::{ErrorObject, Label, Labels, Progress, Serializer, TaskResult, progress_key, result_key};

use super::options::ResultOptions;
use crate::carrier::of_store;

/// The class of a failure after which no result is stored.
const NO_RESULT: &str = "NoResultError";
/// Between two looks for a result: at first, and at last.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));
/// The commands of one trip: those of a full batch.
const TRIP: usize = 500;

/// How long a result is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Until somebody deletes it.
    ForEver,
    /// For this long; in milliseconds unless it is whole seconds.
    For(Duration),
}

/// Whether the keys of progress are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressKeys {
    /// They are not: TaskIQ leaves them to the tasks.
    Leave,
    /// `STARTED`, `RETRY`, and at the end `SUCCESS` or `FAILURE`.
    Write,
}

/// Results in a Redis server.
#[derive(Debug)]
pub struct Results {
    line: Arc<Line>,
    prefix: Option<String>,
    keep: Keep,
    serializer: Serializer,
    progress: ProgressKeys,
}

/// A result that was not there.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// The task may go on; ask again.
    #[error("there is no result of `{task_id}` after {limit:?}")]
    Timeout {
        /// Of which task.
        task_id: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The server does not answer, or refuses.
    #[error("the result of `{task_id}` cannot be read: {error}")]
    Unreachable {
        /// Of which task.
        task_id: String,
        /// Why.
        #[source]
        error: StoreError,
    },
    /// Another serializer wrote it, or it is more than plain data.
    #[error("the result of `{task_id}` makes no sense: {reason}")]
    Malformed {
        /// Of which task.
        task_id: String,
        /// Why.
        #[source]
        reason: windlass_wire::Malformed,
    },
}

impl Results {
    /// Results as these options say; the server is asked when there is one.
    pub fn new(options: &ResultOptions) -> Self {
        Self {
            line: Arc::new(Line::to(options.location.clone())),
            prefix: options.prefix.clone(),
            keep: options.keep,
            serializer: options.serializer,
            progress: options.progress,
        }
    }

    pub(super) fn concern(&self) -> Concern {
        match self.progress {
            ProgressKeys::Leave => Concern::Ends,
            ProgressKeys::Write => Concern::Everything,
        }
    }

    /// Stores what clients are to see of these tasks.
    pub(super) async fn tell(&self, answers: impl Iterator<Item = &Answer>) -> Result<(), TransportError> {
        let commands: Vec<Command> = answers.flat_map(|answer| self.commands(answer)).collect();
        for trip in commands.chunks(TRIP) {
            self.line.ask_all(trip).await.map_err(of_store)?;
        }
        Ok(())
    }

    /// What is stored when this has happened. Pure.
    fn commands(&self, answer: &Answer) -> Vec<Command> {
        let id = answer.id();
        let mut commands = Vec::new();
        if self.progress == ProgressKeys::Write {
            let progress = progress(&answer.news).map(|progress| progress.encode(self.serializer));
            commands.extend(progress.map(|value| self.set(progress_key(self.prefix.as_deref(), &id), value, &[])));
        }
        if let Some(result) = result(answer) {
            // Who ended without a holder contradicts nobody who has said how the task ended.
            let over: &[&str] = if matches!(answer.news, News::Ended(_)) { &["NX"] } else { &[] };
            commands.push(self.set(result_key(self.prefix.as_deref(), &id), result.encode(self.serializer), over));
        }
        commands
    }

    fn set(&self, key: String, value: Vec<u8>, over: &[&str]) -> Command {
        let mut command = vec![b"SET".to_vec(), key.into_bytes(), value];
        match self.keep {
            Keep::ForEver => {}
            Keep::For(time) if time.subsec_nanos() == 0 && !time.is_zero() => {
                command.extend([b"EX".to_vec(), time.as_secs().to_string().into_bytes()]);
            }
            Keep::For(time) => {
                command.extend([b"PX".to_vec(), time.as_millis().max(1).to_string().into_bytes()]);
            }
        }
        command.extend(over.iter().map(|word| word.as_bytes().to_vec()));
        command
    }

    /// Waits for the result of a task, and leaves it where it is.
    ///
    /// Looks every 50 ms at first, and once a second later.
    /// # Errors
    /// [`WaitError`]; a server that cannot be reached is asked again until the time is over.
    pub async fn wait(&self, task_id: &str, limit: Duration) -> Result<TaskResult, WaitError> {
        let (until, mut pause) = (Instant::now() + limit, LOOK_EVERY.0);
        loop {
            let now = Instant::now();
            match self.find(task_id).await {
                Ok(Some(result)) => return Ok(result),
                Err(WaitError::Unreachable { error, .. }) if error.is_transient() && now < until => {}
                Err(error) => return Err(error),
                Ok(None) if now >= until => {
                    return Err(WaitError::Timeout { task_id: task_id.to_owned(), limit });
                }
                Ok(None) => {}
            }
            tokio::time::sleep_until(until.min(now + pause)).await;
            pause = (pause * 3 / 2).min(LOOK_EVERY.1);
        }
    }

    /// The result of a task, if it is there.
    ///
    /// # Errors
    /// [`WaitError::Unreachable`] or [`WaitError::Malformed`].
    pub async fn find(&self, task_id: &str) -> Result<Option<TaskResult>, WaitError> {
        let key = result_key(self.prefix.as_deref(), task_id);
        let value = self.get(task_id, key).await?;
        let result = value.map(|value| TaskResult::decode(&value, self.serializer)).transpose();
        result.map_err(|reason| WaitError::Malformed { task_id: task_id.to_owned(), reason })
    }

    /// How far a task is, if it says so.
    ///
    /// # Errors
    /// [`WaitError::Unreachable`] or [`WaitError::Malformed`].
    pub async fn progress(&self, task_id: &str) -> Result<Option<Progress>, WaitError> {
        let key = progress_key(self.prefix.as_deref(), task_id);
        let value = self.get(task_id, key).await?;
        let progress = value.map(|value| Progress::decode(&value, self.serializer)).transpose();
        progress.map_err(|reason| WaitError::Malformed { task_id: task_id.to_owned(), reason })
    }

    async fn get(&self, task_id: &str, key: String) -> Result<Option<Vec<u8>>, WaitError> {
        let unreachable = |error| WaitError::Unreachable { task_id: task_id.to_owned(), error };
        self.line.ask(&[b"GET".to_vec(), key.into_bytes()]).await.map(Reply::bytes).map_err(unreachable)
    }
}

/// The result that a client finds; `None` while the task goes on, and for one that has none.
fn result(answer: &Answer) -> Option<TaskResult> {
    let (News::Settled(verdict) | News::Ended(verdict)) = &answer.news else { return None };
    let error = match verdict {
        Verdict::Succeeded { result, .. } => {
            return Some(TaskResult::success(result.clone(), &labels(answer), answer.ran));
        }
        Verdict::Dead { reason, failure } => error(*reason, failure)?,
        Verdict::Cancelled => ErrorObject::new(MODULE, "TaskCancelled", "the task was cancelled"),
        Verdict::Expired => ErrorObject::new(MODULE, "TaskExpired", "the task was not started in time"),
        Verdict::Again { .. } | Verdict::Awaits { .. } | Verdict::Released | Verdict::Parked => return None,
    };
    Some(TaskResult::failure(error, &labels(answer), answer.ran))
}

/// A failure as the exception that Python sees; `None` for one that asks for no result.
fn error(reason: DeadReason, failure: &Failure) -> Option<ErrorObject> {
    match (reason, failure.class.as_str()) {
        (_, NO_RESULT) => None,
        (_, "timeout") => Some(ErrorObject::timeout()),
        (DeadReason::Malformed, _) => Some(ErrorObject::wrong_arguments(&failure.message)),
        (
            DeadReason::AttemptsUsedUp
            | DeadReason::Fatal
            | DeadReason::Poison
            | DeadReason::Unknown
            | DeadReason::TooOld
            | DeadReason::Upstream,
            _,
        ) => Some(ErrorObject::of(failure)),
    }
}

/// The labels of the message; those of a task that has failed before say so, as if it had been sent again.
fn labels(answer: &Answer) -> Labels {
    let mut labels = match Labels::of(&answer.envelope) {
        Ok(labels) => labels.unwrap_or_default(),
        Err(reason) => {
            warn!(task = %answer.envelope.id, %reason, "the labels of a task cannot be read; its result has none");
            Labels::default()
        }
    };
    let failed_here = answer.attempt.saturating_sub(1);
    if failed_here > 0 {
        let failed = labels.failed_runs().saturating_add(failed_here);
        labels.0.insert("_retries".to_owned(), Label::Int(i64::from(failed)));
    }
    labels
}

fn progress(news: &News) -> Option<Progress> {
    let (state, failure) = match news {
        News::Started(_) => ("STARTED", None),
        News::Settled(verdict) | News::Ended(verdict) => match verdict {
            Verdict::Succeeded { .. } => ("SUCCESS", None),
            Verdict::Again { failure: Some(failure), .. } => ("RETRY", Some(failure)),
            Verdict::Dead { failure, .. } => ("FAILURE", Some(failure)),
            Verdict::Cancelled | Verdict::Expired => ("FAILURE", None),
            Verdict::Again { failure: None, .. } | Verdict::Awaits { .. } | Verdict::Released | Verdict::Parked => {
                return None;
            }
        },
    };
    let meta = failure.map(|failure| Json::trusted(serde_json::Value::from(failure.message.as_str()).to_string()));
    Some(Progress { state: state.to_owned(), meta: meta.unwrap_or_else(Json::null) })
}

#[cfg(test)]
mod tests {
    use windlass_core::state::Spent;
    use windlass_core::{Args, Envelope, NodeId, QueueName, TaskId, TaskName};

    use super::*;

    const RAN: Duration = Duration::from_millis(1_234);

    fn results(keep: Keep, progress: ProgressKeys) -> Results {
        let location = "redis://localhost".parse().expect("a URL");
        let serializer = Serializer::Json;
        let prefix = Some("app".to_owned());
        Results::new(&ResultOptions { prefix, keep, serializer, progress, ..ResultOptions::new(location) })
    }

    fn answer(attempt: u32, news: News) -> Answer {
        let mut envelope = Envelope::new(TaskName::known("add"), QueueName::known("taskiq"), Args::none());
        envelope.id = TaskId::new("t1").expect("an id");
        Labels([("x".to_owned(), Label::Int(5))].into()).attach(&mut envelope).expect("labels");
        Answer { envelope: Arc::new(envelope), attempt, ran: RAN, news }
    }

    fn dead(reason: DeadReason, class: &str) -> Verdict {
        Verdict::Dead { reason, failure: Failure::new(class, "text") }
    }

    /// Commands as text, one a line.
    fn said(results: &Results, answer: &Answer) -> Vec<String> {
        let text = |word: &Vec<u8>| String::from_utf8_lossy(word).into_owned();
        results.commands(answer).iter().map(|command| command.iter().map(text).collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn a_result_is_one_overwriting_set_with_the_expiry_that_was_asked_for() {
        let verdict = Verdict::Succeeded { result: Json::trusted("7"), skipped: None };
        let answer = answer(1, News::Settled(verdict));
        let value = r#"{"is_err": false, "log": null, "return_value": 7, "execution_time": 1.23, "labels": {"x": 5}, "error": null}"#;
        for (keep, expiry) in [
            (Keep::ForEver, ""),
            (Keep::For(Duration::from_secs(60)), " EX 60"),
            (Keep::For(Duration::from_millis(1_500)), " PX 1500"),
            (Keep::For(Duration::ZERO), " PX 1"),
        ] {
            let expected = format!("SET app:t1 {value}{expiry}");
            assert_eq!(said(&results(keep, ProgressKeys::Leave), &answer), [expected], "{keep:?}");
        }
    }

    #[test]
    fn who_ends_without_a_holder_contradicts_nobody() {
        let said = said(&results(Keep::ForEver, ProgressKeys::Leave), &answer(0, News::Ended(Verdict::Expired)));
        assert!(said.len() == 1 && said[0].ends_with(" NX") && said[0].contains("TaskExpired"), "{said:?}");
    }

    #[test]
    fn nothing_is_stored_while_a_task_goes_on_but_progress_when_it_is_asked_for() {
        let failure = || Some(Failure::new("ValueError", "boom"));
        let again = |failure| Verdict::Again { after: RAN, spent: Spent::Yes, failure };
        for (news, progress) in [
            (News::Started(NodeId::known("n")), Some(r#"{"state": "STARTED", "meta": null}"#)),
            (News::Settled(again(failure())), Some(r#"{"state": "RETRY", "meta": "boom"}"#)),
            (News::Settled(again(None)), None),
            (News::Settled(Verdict::Released), None),
            (News::Settled(Verdict::Parked), None),
        ] {
            let answer = answer(1, news);
            assert!(said(&results(Keep::ForEver, ProgressKeys::Leave), &answer).is_empty());
            let expected: Vec<String> = progress.iter().map(|value| format!("SET app:t1__progress {value}")).collect();
            assert_eq!(said(&results(Keep::ForEver, ProgressKeys::Write), &answer), expected);
        }
    }

    #[test]
    fn failures_are_the_errors_that_python_knows() {
        for (verdict, module, class) in [
            (dead(DeadReason::AttemptsUsedUp, "ValueError"), "builtins", "ValueError"),
            (dead(DeadReason::AttemptsUsedUp, "timeout"), "builtins", "TimeoutError"),
            (dead(DeadReason::Malformed, "malformed"), "builtins", "TypeError"),
            (dead(DeadReason::Poison, "poison"), MODULE, "poison"),
            (Verdict::Cancelled, MODULE, "TaskCancelled"),
        ] {
            let error = result(&answer(1, News::Settled(verdict))).expect("a result").error.expect("an error");
            assert_eq!((error.exc_module.as_deref(), error.exc_type.as_str()), (Some(module), class));
        }
        assert_eq!(result(&answer(1, News::Settled(dead(DeadReason::Fatal, "NoResultError")))), None);
    }

    #[test]
    fn labels_say_how_often_the_task_has_failed_before() {
        let labels = |attempt| {
            let verdict = Verdict::Succeeded { result: Json::null(), skipped: None };
            result(&answer(attempt, News::Settled(verdict))).expect("a result").labels
        };
        assert_eq!(labels(1), serde_json::json!({"x": 5}));
        assert_eq!(labels(3), serde_json::json!({"x": 5, "_retries": 2}));
    }
}
