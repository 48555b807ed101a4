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
use windlass_bridges::carrier::{AmqpQueues, CeleryQueues, TaskiqProfile, TaskiqTopology, taskiq_topology};
use windlass_bridges::celery::producer as celery_workers;
use windlass_bridges::taskiq::ResultOptions;
use windlass_bridges::taskiq::producer as taskiq_workers;
use windlass_core::QueueName;
use windlass_interop::environment::{BrokerUrl, Environment, Protocol, ResultUrl, TaskIqKind};
use windlass_interop::{celery, taskiq};
use windlass_redis::Location;
use windlass_wire::taskiq::Label;

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
    let declared = match (environment.quorum, environment.max_priority) {
        (true, _) => CeleryQueues::Quorum,
        (false, max_priority) => CeleryQueues::Classic { max_priority },
    };
    let settings = celery_workers::Settings {
        default_queue: environment.default_queue().clone(),
        results: results(environment),
        key_prefix: environment.key_prefix.clone(),
        declared,
        ..celery_workers::Settings::default()
    };
    let producer = match &environment.broker {
        BrokerUrl::Redis(location) => celery_workers::Producer::on_redis(location.clone(), settings),
        BrokerUrl::Amqp(location) => celery_workers::Producer::on_amqp(location.clone(), settings).await?,
    };
    let answer = match order {
        Order::Enqueue => {
            let call = celery::Call::parse(&read_call()?)?;
            producer.send(&call.signature).await?;
            match call.children.as_slice() {
                [] => json!({ "id": call.id }),
                children => json!({ "id": call.id, "children": children }),
            }
        }
        Order::Await(id) => {
            let document = match producer.wait(&id, PATIENCE).await {
                Ok(document) => Some(document),
                Err(celery_workers::WaitError::Timeout { .. }) => producer.find(&id).await?,
                Err(error) => return Err(error.into()),
            };
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
    let results = results(environment).context("TaskIQ has no rpc:// results")?;
    let results = ResultOptions { serializer: environment.serializer, ..ResultOptions::new(results) };
    let producer = taskiq_workers::Producer::new(taskiq_outlet(environment).await?, Some(&results));
    Ok(match order {
        Order::Enqueue => {
            let message = taskiq::read_call(&read_call()?)?;
            // The brokers of taskiq-redis send to another queue when this label names one; that of RabbitMQ does not.
            let named =
                message.labels.0.get("queue_name").filter(|_| matches!(environment.broker, BrokerUrl::Redis(_)));
            let queue = match named.map(Label::text) {
                Some(name) => QueueName::new(&name)?,
                None => environment.default_queue().clone(),
            };
            producer.send(&message, &queue).await?;
            json!({ "id": message.task_id })
        }
        Order::Await(id) => match producer.wait(&id, PATIENCE).await {
            Err(windlass_bridges::taskiq::WaitError::Timeout { .. }) => {
                json!({ "state": "PENDING", "result": null, "error": null })
            }
            Err(error) => return Err(error.into()),
            Ok(result) => {
                let state = if result.error.is_some() { "FAILURE" } else { "SUCCESS" };
                let value: Value = result.return_value.to()?;
                let error = result.error.map(|error| {
                    let arguments = error.exc_message.as_array().cloned().unwrap_or_default();
                    json!({ "type": error.exc_type, "message": message_of(arguments) })
                });
                json!({ "state": state, "result": value, "error": error })
            }
        },
    })
}

async fn taskiq_outlet(environment: &Environment) -> Result<Arc<dyn taskiq_workers::Outlet>> {
    let kind = match environment.taskiq_kind {
        TaskIqKind::List => Some(taskiq_workers::Kind::List),
        TaskIqKind::Stream => Some(taskiq_workers::Kind::Stream { group: "taskiq".to_owned(), length_max: None }),
        TaskIqKind::PubSub => Some(taskiq_workers::Kind::Channel),
        TaskIqKind::AioPika => None,
    };
    Ok(match (&environment.broker, kind) {
        (BrokerUrl::Redis(location), Some(kind)) => Arc::new(taskiq_workers::RedisOutlet::new(location.clone(), kind)),
        (BrokerUrl::Redis(_), None) => bail!("INTEROP_BROKER: aiopika needs an amqp:// URL"),
        (BrokerUrl::Amqp(location), _) => {
            let queues = vec![environment.default_queue().clone()];
            let topology = TaskiqTopology { queues, ..TaskiqTopology::of(TaskiqProfile::V0_6) };
            let carrier = AmqpQueues::open(location.clone(), &taskiq_topology(&topology), &[]).await?;
            Arc::new(taskiq_workers::AmqpOutlet::new(Arc::clone(carrier.amqp()), &topology))
        }
    })
}

fn results(environment: &Environment) -> Option<Location> {
    match &environment.result {
        ResultUrl::Redis(location) => Some(location.clone()),
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
