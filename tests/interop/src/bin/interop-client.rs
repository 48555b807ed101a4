//! `interop-client [--protocol celery|taskiq] enqueue|await ID`: a client in Rust for workers from Python.
//!
//! `enqueue` reads one call as JSON from standard input and prints `{"id": …}` as its last line; `await` prints
//! `{"state", "result", "error"}`. The environment names broker, results and queue. What goes wrong is said on standard
//! error, with exit code 1; 2 when the command line makes no sense.

use std::io::Read as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use windlass_amqp::Amqp;
use windlass_core::{Clock as _, SystemClock};
use windlass_interop::environment::{BrokerUrl, Environment, Protocol, ResultUrl, TaskIqKind};
use windlass_interop::{celery, taskiq};
use windlass_redis::foreign::Line;

const USAGE: &str = "usage: interop-client [--protocol celery|taskiq] enqueue|await ID";
/// How long `await` waits; the state is printed all the same.
const PATIENCE: Duration = Duration::from_secs(60);
/// The largest call that is read.
const CALL_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What is asked for.
enum Order {
    Enqueue,
    Await(String),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let Some((protocol, order)) = read_arguments(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match run(protocol, order).await {
        Ok(answer) => {
            println!("{answer}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn read_arguments(arguments: impl Iterator<Item = String>) -> Option<(Protocol, Order)> {
    let arguments: Vec<String> = arguments.collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (protocol, rest) = match words.as_slice() {
        ["--protocol", "celery", rest @ ..] | ["--protocol=celery", rest @ ..] => (Protocol::Celery, rest),
        ["--protocol", "taskiq", rest @ ..] | ["--protocol=taskiq", rest @ ..] => (Protocol::TaskIq, rest),
        rest => (Protocol::Celery, rest),
    };
    match rest {
        ["enqueue"] => Some((protocol, Order::Enqueue)),
        ["await", id] => Some((protocol, Order::Await((*id).to_owned()))),
        _ => None,
    }
}

async fn run(protocol: Protocol, order: Order) -> Result<Value> {
    let environment = Environment::of_process(protocol)?;
    match protocol {
        Protocol::Celery => run_celery(&environment, order).await,
        Protocol::TaskIq => run_taskiq(&environment, order).await,
    }
}

async fn run_celery(environment: &Environment, order: Order) -> Result<Value> {
    let transport = match &environment.broker {
        BrokerUrl::Redis(location) => celery::Transport::Redis(Arc::new(Line::to(location.clone()))),
        BrokerUrl::Amqp(location) => celery::Transport::Amqp(open(location).await?),
    };
    let settings = celery::Settings {
        default_queue: environment.default_queue().clone(),
        key_prefix: environment.key_prefix.clone(),
        queues: celery::Queues { max_priority: environment.max_priority, quorum: environment.quorum },
        origin: format!("gen{}@windlass", std::process::id()),
    };
    let producer = celery::Producer::new(transport, results(environment), settings);
    let answer = match order {
        Order::Enqueue => {
            let call = celery::Call::parse(&read_call()?)?;
            producer.send(&call.signature, SystemClock.now()).await?;
            match call.children.as_slice() {
                [] => json!({ "id": call.id }),
                children => json!({ "id": call.id, "children": children }),
            }
        }
        Order::Await(id) => {
            let document = producer.wait(&id, PATIENCE).await?;
            let error = document.as_ref().and_then(windlass_wire::celery::ResultDocument::exception);
            let error = error.map(|error| json!({ "type": error.exc_type, "message": message_of(error.exc_message) }));
            let state = document.as_ref().map_or("PENDING", |document| document.status.as_str());
            let result = document.as_ref().filter(|_| error.is_none());
            let result: Value = result.map(|document| document.result.to()).transpose()?.unwrap_or_default();
            json!({ "state": state, "result": result, "error": error })
        }
    };
    producer.close().await;
    Ok(answer)
}

async fn run_taskiq(environment: &Environment, order: Order) -> Result<Value> {
    let transport = match (&environment.broker, environment.taskiq_kind) {
        (BrokerUrl::Amqp(location), _) => taskiq::Transport::Amqp(open(location).await?),
        (BrokerUrl::Redis(location), kind) => {
            let line = Arc::new(Line::to(location.clone()));
            match kind {
                TaskIqKind::List => taskiq::Transport::List(line),
                TaskIqKind::Stream => taskiq::Transport::Stream(line),
                TaskIqKind::PubSub => taskiq::Transport::PubSub(line),
                TaskIqKind::AioPika => bail!("INTEROP_BROKER: aiopika needs an amqp:// URL"),
            }
        }
    };
    let results = results(environment).context("TaskIQ has no rpc:// results")?;
    let queue = environment.default_queue().as_str();
    let producer = taskiq::Producer::open(transport, queue, results, environment.serializer).await?;
    let answer = match order {
        Order::Enqueue => {
            let message = taskiq::read_call(&read_call()?)?;
            producer.send(&message).await?;
            json!({ "id": message.task_id })
        }
        Order::Await(id) => match producer.wait(&id, PATIENCE).await? {
            None => json!({ "state": "PENDING", "result": null, "error": null }),
            Some(result) => {
                let state = if result.error.is_some() { "FAILURE" } else { "SUCCESS" };
                let value: Value = result.return_value.to()?;
                let error = result.error.map(|error| {
                    let arguments = error.exc_message.as_array().cloned().unwrap_or_default();
                    json!({ "type": error.exc_type, "message": message_of(arguments) })
                });
                json!({ "state": state, "result": value, "error": error })
            }
        },
    };
    producer.close().await;
    Ok(answer)
}

async fn open(location: &windlass_amqp::Location) -> Result<Amqp> {
    Amqp::open(location.clone(), windlass_amqp::Options::default()).await.context("cannot reach the broker")
}

fn results(environment: &Environment) -> Option<Arc<Line>> {
    match &environment.result {
        ResultUrl::Redis(location) => Some(Arc::new(Line::to(location.clone()))),
        ResultUrl::Rpc => None,
    }
}

fn read_call() -> Result<String> {
    let mut text = String::new();
    let read = std::io::stdin().take(CALL_BYTES_MAX + 1).read_to_string(&mut text).context("cannot read the call")?;
    if read as u64 > CALL_BYTES_MAX {
        bail!("the call is larger than {CALL_BYTES_MAX} bytes");
    }
    Ok(text)
}

/// The arguments of an exception as one text: mostly there is one, and it is text.
fn message_of(arguments: Vec<Value>) -> String {
    let texts = arguments.into_iter().map(|argument| match argument {
        Value::String(text) => text,
        other => other.to_string(),
    });
    texts.collect::<Vec<_>>().join(", ")
}
