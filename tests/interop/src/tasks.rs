//! The tasks of the suite as a Windlass application, under the names that both protocols call.
//!
//! Python's functions take arguments by position and by name and refuse what does not fit with a `TypeError`; `interop.echo`
//! takes any. Both are the business of `AsPython`, a middleware: the engine itself has one word for arguments that do not
//! fit, and no task with any number of them.

use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::{Number, Value};
use windlass::call::{Call, StopReason};
use windlass::middleware::{Middleware, Next};
use windlass::retry::Outcome;
use windlass::{App, Cx, Envelope, Feed, Json, Task, TaskError};
use windlass_wire::celery::Request;
use windlass_wire::taskiq::Labels;

/// How long `interop.flaky` of Celery waits before it runs again, and how often it does.
const FLAKY_PAUSE: Duration = Duration::from_millis(500);
const FLAKY_RETRIES: u32 = 4;
/// The longest sleep: what is longer is a mistake.
const SLEEP_MAX: Duration = Duration::from_secs(24 * 3600);
/// The name of the task that takes any arguments.
const ECHO: &str = "interop.echo";

/// The application.
pub fn app() -> App {
    App::new("interop")
        .task(add)
        .task(echo)
        .task(fail)
        .task(flaky)
        .task(sleep)
        .task(chain_double)
        .task(sum_list)
        .middleware(AsPython)
}

/// Adds two numbers, texts or lists.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "interop.add", output = Json, retries = 0)]
struct Add {
    x: Json,
    y: Json,
}

/// Answers its arguments; `AsPython` runs it.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "interop.echo", output = Json, retries = 0)]
struct Echo {}

/// Fails.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "interop.fail", output = Json, retries = 0)]
struct Fail {
    message: String,
}

/// Fails some times before it succeeds.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "interop.flaky", output = Attempts, retries = 4)]
struct Flaky {
    key: String,
    fail_times: u32,
}

/// What `interop.flaky` answers.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Attempts {
    key: String,
    attempts: u32,
}

/// Takes its time.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "interop.sleep", output = Number, retries = 0)]
struct Sleep {
    seconds: Number,
}

/// Doubles a number.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "interop.chain_double", output = Number, retries = 0)]
struct ChainDouble {
    x: Number,
}

/// Adds up.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "interop.sum_list", output = Number, retries = 0)]
struct SumList {
    xs: Vec<Number>,
}

async fn add(task: Add, _cx: Cx) -> Result<Json, TaskError> {
    let (x, y): (Value, Value) = (task.x.to()?, task.y.to()?);
    let sum = match (x, y) {
        (Value::Number(x), Value::Number(y)) => Value::Number(sum(&x, &y)?),
        (Value::String(x), Value::String(y)) => Value::String(x + &y),
        (Value::Array(x), Value::Array(y)) => Value::Array(x.into_iter().chain(y).collect()),
        _ => return Err(TaskError::fatal("these two cannot be added").class("TypeError")),
    };
    Ok(Json::of(&sum)?)
}

/// Never runs: [`AsPython`] answers in its place.
async fn echo(_task: Echo, cx: Cx) -> Result<Json, TaskError> {
    echo_of(&cx.envelope)
}

async fn fail(task: Fail, _cx: Cx) -> Result<Json, TaskError> {
    Err(TaskError::fatal(task.message).class("ValueError"))
}

async fn flaky(task: Flaky, cx: Cx) -> Result<Attempts, TaskError> {
    let origin = Origin::of(&cx.envelope)?;
    let retries = origin.retries_before() + cx.attempt - 1;
    if retries >= task.fail_times {
        return Ok(Attempts { key: task.key, attempts: retries + 1 });
    }
    let message = format!("flaky {}", task.key);
    let error = match origin.pause_before_retry(retries) {
        Some(pause) => TaskError::retry_after(pause, message),
        None => TaskError::fatal(message),
    };
    Err(error.class("RuntimeError"))
}

async fn sleep(task: Sleep, cx: Cx) -> Result<Number, TaskError> {
    let seconds = task.seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let Some(time) = seconds.filter(|time| *time <= SLEEP_MAX) else {
        return Err(TaskError::fatal("sleep length must be between nothing and a day").class("ValueError"));
    };
    tokio::select! {
        // tidy: allow(sleep): it is what the task is for
        () = tokio::time::sleep(time) => Ok(task.seconds),
        reason = cx.stopped() => match reason {
            StopReason::SoftLimit => Err(TaskError::fatal("the soft limit has passed").class("soft_limit")),
            reason => Err(TaskError::failed(reason)),
        },
    }
}

async fn chain_double(task: ChainDouble, _cx: Cx) -> Result<Number, TaskError> {
    sum(&task.x, &task.x)
}

async fn sum_list(task: SumList, _cx: Cx) -> Result<Number, TaskError> {
    task.xs.iter().try_fold(Number::from(0), |total, x| sum(&total, x))
}

/// The sum of two numbers as Python has it: whole as long as both are.
fn sum(x: &Number, y: &Number) -> Result<Number, TaskError> {
    let too_large = || TaskError::fatal("the sum is too large").class("OverflowError");
    if let (Some(x), Some(y)) = (x.as_i128(), y.as_i128()) {
        return Number::from_i128(x + y).ok_or_else(too_large);
    }
    let as_float = |number: &Number| number.as_f64().ok_or_else(too_large);
    Number::from_f64(as_float(x)? + as_float(y)?).ok_or_else(too_large)
}

/// Whose message a task was.
enum Origin {
    /// Celery's, with its count of retries.
    Celery { retries: u32 },
    /// TaskIQ's, with its count of failed runs and whether it wants to run again.
    TaskIq { failed_runs: u32, again: bool },
    /// Nobody's: it was enqueued here.
    Ours,
}

impl Origin {
    fn of(envelope: &Envelope) -> Result<Self, TaskError> {
        if let Some(request) = Request::of(envelope)? {
            return Ok(Self::Celery { retries: request.retries });
        }
        Ok(match Labels::of(envelope)? {
            Some(labels) => {
                Self::TaskIq { failed_runs: labels.failed_runs(), again: labels.retry_on_error() == Some(true) }
            }
            None => Self::Ours,
        })
    }

    /// How many runs its producer, or a worker from Python, has counted before it came here.
    fn retries_before(&self) -> u32 {
        match self {
            Self::Celery { retries } => *retries,
            Self::TaskIq { failed_runs, .. } => *failed_runs,
            Self::Ours => 0,
        }
    }

    /// How long to wait before the next run; `None` when there is none. How many runs TaskIQ's label allows is in the
    /// envelope, and the engine counts them.
    fn pause_before_retry(&self, retries: u32) -> Option<Duration> {
        match self {
            Self::Celery { .. } | Self::Ours => (retries < FLAKY_RETRIES).then_some(FLAKY_PAUSE),
            Self::TaskIq { again, .. } => again.then_some(Duration::ZERO),
        }
    }
}

/// What Python does with arguments and the engine does otherwise.
struct AsPython;

#[async_trait]
impl Middleware for AsPython {
    async fn run(&self, call: &Call, next: Next<'_>) -> Outcome {
        if call.envelope.name.as_str() == ECHO {
            return match echo_of(&call.envelope) {
                Ok(answer) => Outcome::Done(answer),
                Err(error) => Outcome::Error(error),
            };
        }
        match next.run().await {
            Outcome::Malformed(message) => Outcome::Error(TaskError::fatal(message).class("TypeError")),
            other => other,
        }
    }
}

/// All arguments, as they came.
fn echo_of(envelope: &Envelope) -> Result<Json, TaskError> {
    let positional = envelope.args.positional().map_or("[]", Json::as_str);
    let keyword = envelope.args.keyword().map_or("{}", Json::as_str);
    let fed = envelope.input.as_ref().filter(|_| envelope.feed == Feed::First);
    let args = match fed {
        None => positional.to_owned(),
        Some(fed) => {
            let rest = positional.trim_start_matches('[').trim_start();
            let separator = if rest == "]" { "" } else { ", " };
            format!("[{}{separator}{rest}", fed.as_str())
        }
    };
    Ok(Json::parse(&format!(r#"{{"args": {args}, "kwargs": {keyword}}}"#))?)
}
