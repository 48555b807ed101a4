//! Tasks that Celery's workers have built in: one message, and a handler that is called for each of many items.
//!
//! `task.map(it)` and `task.starmap(it)` each send one message of theirs, `task.chunks(it, n)` a group of the second kind. The
//! items are run in turn, and the first that fails is the end of the whole.

use serde::{Deserialize, Serialize};
use windlass_core::call::StopReason;
use windlass_core::composite::Handlers;
use windlass_core::envelope::RESULT_BYTES_MAX;
use windlass_core::retry::Outcome;
use windlass_core::{Args, InvalidArgs, Json, Registry, Task, TaskError, TaskName};

use super::arrival::NOT_REGISTERED;

/// What the names of built-in tasks begin with. Celery's workers do not list them unless they are asked to.
pub(super) const PREFIX: &str = "celery.";

/// Calls a task for each item, with the item as its only argument.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "celery.map", retries = 0, hard_limit = "24h", output = Vec<Json>)]
struct Map {
    task: Json,
    it: Vec<Json>,
}

/// Calls a task for each item, a list of its arguments.
#[derive(Debug, Task, Serialize, Deserialize)]
#[task(name = "celery.starmap", retries = 0, hard_limit = "24h", output = Vec<Json>)]
struct Starmap {
    task: Json,
    it: Vec<Json>,
}

/// Of a signature the name counts alone: its own arguments and options do not, with Celery's workers neither.
#[derive(Deserialize)]
struct Signature {
    task: String,
}

/// An application with the tasks that Celery's workers have built in: `celery.map` and `celery.starmap`.
///
/// [`Options::registered`](super::Options::registered) is to name them too.
pub fn with_builtins(registry: Registry) -> Registry {
    registry
        .with_composite(|Map { task, it }, handlers| each(task, it, only_argument, handlers))
        .with_composite(|Starmap { task, it }, handlers| each(task, it, all_arguments, handlers))
}

fn only_argument(item: Json) -> Result<Args, InvalidArgs> {
    Args::new(Some(Json::trusted(format!("[{}]", item.as_str()))), None)
}

fn all_arguments(item: Json) -> Result<Args, InvalidArgs> {
    Args::new(Some(item), None)
}

async fn each(
    signature: Json,
    items: Vec<Json>,
    args_of: fn(Json) -> Result<Args, InvalidArgs>,
    mut handlers: Handlers,
) -> Outcome {
    let task = match signature.to() {
        Ok(Signature { task }) => task,
        Err(error) => return Outcome::Malformed(format!("argument `task`: {error}")),
    };
    let Ok(name) = TaskName::new(&task) else { return not_registered(&task) };
    let mut results = Results::default();
    for item in items {
        if let Some(reason) = handlers.stop_reason() {
            return stopped(reason);
        }
        let args = match args_of(item) {
            Ok(args) => args,
            Err(error) => return Outcome::Malformed(error.to_string()),
        };
        let full = match run_one(&name, args, &mut handlers).await {
            Outcome::Done(result) => results.add(&result),
            Outcome::Error(TaskError::Skipped { .. }) => results.add(&Json::null()),
            Outcome::Unknown => return not_registered(&task),
            other => return other,
        };
        if let Err(error) = full {
            return Outcome::Error(error);
        }
    }
    results.whole()
}

/// Runs an item until it has ended. One that is to run later is waited for here: the items before it would run again.
async fn run_one(name: &TaskName, args: Args, handlers: &mut Handlers) -> Outcome {
    loop {
        let outcome = handlers.run(name, args.clone()).await;
        let after = match &outcome {
            Outcome::Error(TaskError::Throttled { after } | TaskError::Snooze { after }) => *after,
            Outcome::Error(TaskError::Unavailable { until }) => until.since(handlers.now()),
            Outcome::Error(TaskError::Awaits { signal, .. }) => {
                let why = format_args!("an item waits for the signal `{signal}`, which nobody can send to it");
                return Outcome::Error(TaskError::fatal(why));
            }
            _ => return outcome,
        };
        tokio::select! {
            reason = handlers.stopped() => return stopped(reason),
            () = tokio::time::sleep(after) => {}
        }
    }
}

/// A list that grows.
#[derive(Default)]
struct Results {
    text: String,
    count: usize,
}

impl Results {
    fn add(&mut self, result: &Json) -> Result<(), TaskError> {
        self.text.push(if self.count == 0 { '[' } else { ',' });
        self.text.push_str(result.as_str());
        self.count += 1;
        if self.text.len() < RESULT_BYTES_MAX {
            return Ok(());
        }
        // The items that are left would be run for nothing.
        Err(TaskError::fatal(format_args!(
            "the results of the first {} items take more than {RESULT_BYTES_MAX} bytes",
            self.count
        )))
    }

    fn whole(mut self) -> Outcome {
        self.text.push_str(if self.count == 0 { "[]" } else { "]" });
        match Json::parse(&self.text) {
            Ok(results) => Outcome::Done(results),
            Err(error) => Outcome::Error(TaskError::fatal(format_args!("the results cannot be stored: {error}"))),
        }
    }
}

fn not_registered(task: &str) -> Outcome {
    Outcome::Error(TaskError::fatal(task).class(NOT_REGISTERED))
}

/// Asked to end between two items.
fn stopped(reason: StopReason) -> Outcome {
    let error = TaskError::failed(reason);
    Outcome::Error(match reason {
        StopReason::SoftLimit => error.class("soft_limit"),
        StopReason::Cancelled | StopReason::Shutdown | StopReason::LeaseLost => error,
    })
}
