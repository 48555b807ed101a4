//! `taskiq task`: a message for whoever works on the queue.

use windlass::bridges::redis::{Command, Line};
use windlass::bridges::url::Over;
use windlass::bridges::wire::taskiq::{Broker, Message, STREAM_FIELD};
use windlass::bridges::{BridgeUrl, RedisLocation};
use windlass::{Args, Envelope, Json, QueueName, TaskName};

use super::grammar::Send;
use crate::exit::{Exit, Outcome, Problem};
use crate::output::Out;

/// Where a message goes that names no queue.
const DEFAULT_QUEUE: &str = "taskiq";

/// How a broker of TaskIQ's keeps messages in Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    List,
    Stream,
    Channel,
}

/// Sends a task and prints its id.
pub(super) async fn task(out: &Out, bridge: &BridgeUrl, task: &Send) -> Outcome {
    let kind = kind(bridge)?;
    let location: RedisLocation = bridge
        .server()
        .parse()
        .map_err(|wrong| Problem::usage(wrong, "write redis://HOST:PORT/DB?kind=list or stream"))?;
    let envelope = envelope(task)?;
    let message = Message::of(&envelope, Broker::Redis)
        .map_err(|error| Problem::usage(error, "see `windlass taskiq task --help`"))?;
    let heard = Line::to(location).ask(&publish(kind, envelope.queue.as_str(), &message.encode())).await?;
    if kind == Kind::Channel && heard.number() == Some(0) {
        out.warn("nobody listens to the channel: the message is gone");
    }
    out.line(&envelope.id)?;
    Ok(Exit::Ok)
}

fn kind(bridge: &BridgeUrl) -> Result<Kind, Problem> {
    match (bridge.over, bridge.get("kind")) {
        (Over::Redis, None | Some("list")) => Ok(Kind::List),
        (Over::Redis, Some("stream")) => Ok(Kind::Stream),
        (Over::Redis, Some("pubsub")) => Ok(Kind::Channel),
        (Over::Redis, Some(other)) => Err(Problem::usage(
            format_args!("there is no kind `{other}` of broker"),
            "it is list (ListQueueBroker), stream (RedisStreamBroker) or pubsub (PubSubBroker)",
        )),
        (Over::Amqp, _) => Err(Problem::usage(
            format_args!("tasks are sent over Redis only, not yet over {bridge}"),
            "send it from Python: our workers run it",
        )),
    }
}

/// The command that a broker of this kind would use.
fn publish(kind: Kind, queue: &str, message: &str) -> Command {
    let words: &[&str] = match kind {
        Kind::List => &["LPUSH", queue, message],
        Kind::Stream => &["XADD", queue, "*", STREAM_FIELD, message],
        Kind::Channel => &["PUBLISH", queue, message],
    };
    words.iter().map(|word| word.as_bytes().to_vec()).collect()
}

fn envelope(task: &Send) -> Result<Envelope, Problem> {
    let name =
        TaskName::new(&task.name).map_err(|error| Problem::usage(error, "name the task as its worker knows it"))?;
    let json = |text: &Option<String>, option: &str| {
        let parsed = text.as_deref().map(Json::parse).transpose();
        parsed.map_err(|error| Problem::usage(format_args!("{option}: {error}"), "write JSON, in quotes of the shell"))
    };
    let (args, kwargs) = (json(&task.args, "--args")?, json(&task.kwargs, "--kwargs")?);
    let (positional, keyword) = match (args, kwargs) {
        (Some(args), None) if args.as_str().starts_with('{') => (None, Some(args)),
        both => both,
    };
    let given = Args::new(positional, keyword).map_err(|_| {
        Problem::usage("the arguments have another shape", "write --args '[1, 2]' or --args '{\"name\": 1}'")
    })?;
    let queue = QueueName::new(task.queue.as_deref().unwrap_or(DEFAULT_QUEUE))
        .map_err(|error| Problem::usage(error, "name another queue with `--queue`"))?;
    let mut envelope = Envelope::new(name, queue, given);
    envelope.headers.extend(task.labels.iter().cloned());
    Ok(envelope)
}
