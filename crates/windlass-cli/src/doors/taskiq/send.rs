//! `taskiq task`: a message for whoever works on the queue.

use windlass::bridges::taskiq::producer::SendError;
use windlass::bridges::{self, BridgeUrl};
use windlass::{Args, Envelope, Json, QueueName, TaskName};

use super::DEFAULT_QUEUE;
use super::grammar::Send;
use crate::doors::broker;
use crate::exit::{Exit, Outcome, Problem};
use crate::output::Out;

/// Sends a task and prints its id.
pub(super) async fn task(out: &Out, bridge: &BridgeUrl, task: &Send) -> Outcome {
    let envelope = envelope(task)?;
    let queues = std::slice::from_ref(&envelope.queue);
    let producer = bridges::taskiq_producer(bridge, queues).await.map_err(broker::not_opened)?;
    let sent = producer.enqueue(&envelope).await.map_err(|error| match error {
        SendError::Transport { error, .. } => broker::not_done(error),
        SendError::Unsendable(_) => Problem::usage(error, "see `windlass taskiq task --help`"),
    });
    out.line(&sent?)?;
    Ok(Exit::Ok)
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
