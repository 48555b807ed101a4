//! `task signal`: something that a task waits for has happened.

use serde_json::json;
use windlass::{Json, SignalName, TaskId};

use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};

/// The signal, and to whom.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// The task
    #[arg(value_name = "ID")]
    id: TaskId,
    /// The signal, as the task names it
    #[arg(value_name = "NAME")]
    name: SignalName,
    /// What is sent with it, as JSON
    #[arg(value_name = "JSON", default_value = "null", hide_default_value = true, value_parser = read_json)]
    value: Json,
}

/// Reads JSON of any kind, for clap.
pub(crate) fn read_json(text: &str) -> Result<Json, String> {
    Json::parse(text).map_err(|error| format!("{error}; text is written with quotes, as in '\"yes\"'"))
}

pub(super) async fn run(context: &Context, Args { id, name, value }: Args) -> Outcome {
    let backend = context.store().await?;
    let client = context.client(&backend);
    if !client.signal(&id, name.clone(), value).await? {
        return Err(match client.find(&id).await? {
            None => Problem::new(
                Exit::NotFound,
                format_args!("{id} is not known (any more)"),
                "`windlass task ls` lists the tasks that are",
            ),
            Some(record) if record.state.is_final() => Problem::new(
                Exit::Conflict,
                format_args!("{id} is {}: it takes no signal any more", record.state),
                "retry it first, with `windlass task retry`",
            ),
            Some(_) => Problem::new(
                Exit::Conflict,
                format_args!("the memo of {id} is full: it takes no signal any more"),
                "see what it remembers with `windlass task show`",
            ),
        });
    }
    context.out.object(&id.to_string(), json!({"id": id, "signal": name, "sent": true}), || "sent\n".to_owned())
}
