//! The broker and the place of results, as a client of Celery's uses them.

use windlass::bridges::celery::producer::{Producer, SendError, WaitError};
use windlass::bridges::{self, BridgeUrl};

use crate::commands::worker::host;
use crate::doors::broker;
use crate::exit::{Exit, Problem};

/// A broker with the messages of Celery's programs.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) producer: Producer,
    /// The broker as it may be shown.
    pub(super) shown: String,
}

impl Place {
    /// The place that a bridge leads to. A Redis is connected to when it is asked for the first time.
    pub(super) async fn of(bridge: &BridgeUrl) -> Result<Self, Problem> {
        let origin = format!("gen{}@{}", std::process::id(), host());
        let producer = bridges::celery_producer(bridge, &origin).await.map_err(broker::not_opened)?;
        Ok(Self { producer, shown: bridge.to_string() })
    }
}

/// A task that was not sent.
pub(super) fn not_sent(error: SendError) -> Problem {
    match error {
        SendError::Transport(error) => broker::not_done(error),
        error @ (SendError::Unsendable(_) | SendError::Signature(_) | SendError::ChordWithoutResults) => {
            Problem::usage(error, "see `windlass celery call --help`")
        }
    }
}

/// A result that cannot be asked for.
pub(super) fn not_found(error: WaitError) -> Problem {
    match error {
        WaitError::Unreachable { error, .. } => error.into(),
        WaitError::NoResults => Problem::new(
            Exit::NotFound,
            error,
            "name their place with `--result-backend redis://…`, or see the task with `windlass task show ID`",
        ),
        WaitError::Malformed { .. } | WaitError::Timeout { .. } => {
            Problem::new(Exit::Failed, error, "see who has written it")
        }
    }
}
