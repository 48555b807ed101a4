//! A relay: what waits in queues of the store is sent to the workers at the other end of a bridge, as Celery's beat sends what
//! it fires.
//!
//! It is an application whose only handler sends the task that it is given. So all that holds for tasks holds for what
//! is sent: it is claimed by one node, waits while the broker is away, becomes a dead letter when nobody can take it, and is
//! seen where tasks are seen. Its result is the id of the message, which is that of the task.
//!
//! A message is sent at least once: what a node had sent and not yet recorded when it died is sent again, with the same id.

use std::sync::LazyLock;
use std::time::Duration;

use windlass_core::bridge::TransportError;
use windlass_core::envelope::Due;
use windlass_core::retry::{ATTEMPTS_MAX, RetryPolicy};
use windlass_core::task::{Definition, Fields, Options};
use windlass_core::{App, Backoff, Cx, Envelope, QueueName, TaskError, TaskName};

use crate::celery::producer::SendError as ToCelery;
use crate::taskiq::producer::SendError as ToTaskiq;
use crate::url::{BridgeUrl, InvalidUrl, Wire};
use crate::{OpenError, celery, celery_producer, taskiq, taskiq_producer};

/// For how long a task is left to the workers of ours that it is for: not for long, because nobody has it meanwhile.
const NOT_OURS: Duration = Duration::from_secs(1);

/// How often a broker is asked that refuses: some three minutes, so that somebody who is mending it may end.
const REFUSED_MAX: u32 = 10;

/// A broker that is away is asked again every half minute, for days.
static SENDING: LazyLock<Definition> = LazyLock::new(|| Definition {
    name: TaskName::known("relay"),
    doc: "Sends a task to the other end of the bridge.".to_owned(),
    fields: Fields::Any,
    options: Options {
        retry: RetryPolicy {
            attempts_max: ATTEMPTS_MAX,
            backoff: Backoff::formula("1s * 2^n up to 30s"),
            ..RetryPolicy::default()
        },
        hard_limit: Duration::from_secs(60),
        ..Options::default()
    },
    output: serde_json::json!({ "type": "string" }),
});

/// Who sends.
#[derive(Debug)]
pub enum Outgoing {
    /// To Celery's workers.
    Celery(celery::producer::Producer),
    /// To TaskIQ's.
    TaskIq(taskiq::producer::Producer),
}

/// The application of a node that sends what waits in `queues` to the other end of `url`. `origin` says who sends, for display.
///
/// # Errors
/// [`OpenError`]: nobody at the other end takes messages of ours, or a RabbitMQ cannot be used now.
pub async fn relay(url: &BridgeUrl, queues: &[QueueName], origin: &str) -> Result<App<Outgoing>, OpenError> {
    let outgoing = match url.wire {
        Wire::Celery => Outgoing::Celery(celery_producer(url, origin).await?),
        Wire::TaskIq => Outgoing::TaskIq(taskiq_producer(url, queues).await?),
        Wire::Bare => return Err(InvalidUrl("nobody's workers are known at its other end".to_owned()).into()),
    };
    Ok(App::new("relay").with_state(outgoing).fallback(&SENDING, send))
}

async fn send(cx: Cx<Outgoing>) -> Result<String, TaskError> {
    if cx.envelope.origin.is_some() {
        // It has come over a bridge, and waits here for its next attempt: a worker of ours has to make that.
        return Err(TaskError::Snooze { after: NOT_OURS });
    }
    if cx.envelope.flow.is_some() {
        return Err(TaskError::fatal(
            "a task that others follow is not relayed: they would follow when it is sent, and not when it has ended",
        ));
    }
    // It has waited for its time here.
    let envelope = Envelope { due: Due::Now, ..Envelope::clone(&cx.envelope) };
    match cx.state() {
        Outgoing::Celery(producer) => producer.enqueue(&envelope).await.map_err(|error| match error {
            ToCelery::Transport(error) => not_sent(&error, cx.attempt),
            error => TaskError::fatal(error),
        }),
        Outgoing::TaskIq(producer) => producer.enqueue(&envelope).await.map_err(|error| match error {
            ToTaskiq::Transport { error, .. } => not_sent(&error, cx.attempt),
            error @ ToTaskiq::Unsendable(_) => TaskError::fatal(error),
        }),
    }
}

/// A broker that is away comes back; one that refuses wants somebody to mend something, who looks at dead letters.
fn not_sent(error: &TransportError, attempt: u32) -> TaskError {
    match error {
        TransportError::Unreachable(_) => TaskError::failed(error).class("unreachable"),
        TransportError::Refused(_) if attempt < REFUSED_MAX => TaskError::failed(error).class("refused"),
        TransportError::Refused(_) => TaskError::fatal(error).class("refused"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_that_is_away_is_waited_for_and_one_that_refuses_is_not() {
        let refused = || TransportError::Refused("PRECONDITION_FAILED".to_owned());
        let away = || TransportError::Unreachable("it is away".into());
        assert!(matches!(not_sent(&away(), 1_000), TaskError::Failed(failure) if failure.class == "unreachable"));
        assert!(matches!(not_sent(&refused(), 1), TaskError::Failed(failure) if failure.class == "refused"));
        assert!(matches!(not_sent(&refused(), REFUSED_MAX), TaskError::Fatal(failure) if failure.class == "refused"));
    }
}
