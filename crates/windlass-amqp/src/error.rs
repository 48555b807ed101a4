//! What the broker and its connection can answer with, by what the caller can do about it; each text says the next step.

use std::io;

use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::{Error, ErrorKind};
use windlass_core::redact;

/// Why the transport did not do what it was asked to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AmqpError {
    /// The broker does not answer. The transport connects again by itself: repeat later.
    #[error("the broker is unreachable: {0}")]
    Unreachable(String),
    /// The broker is there and does not serve this now: it is short of memory or disk, somebody holds the queue. Repeat later.
    #[error("the broker is busy: {0}")]
    Busy(String),
    /// The broker does not let us in, or not do what we must: password, vhost, rights. Somebody must act; then it goes on by
    /// itself.
    #[error("{0}")]
    Denied(String),
    /// What was asked for does not fit what there is: a missing exchange, other arguments, a wrong configuration. Somebody
    /// must act; then it goes on by itself.
    #[error("{0}")]
    Broken(String),
    /// The request breaks a limit. Repeating it is useless.
    #[error("the broker cannot take this: {0}")]
    Refused(String),
    /// [`crate::Amqp::close`] was called.
    #[error("the transport is closed")]
    Closed,
}

impl AmqpError {
    /// Whether the same request may succeed later without anybody doing anything.
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Busy(_) => true,
            Self::Denied(_) | Self::Broken(_) | Self::Refused(_) | Self::Closed => false,
        }
    }
}

/// What the client library or the broker said. `at` is the broker, without secrets.
pub(crate) fn of(error: &Error, at: &str) -> AmqpError {
    let said = redact::text(&error.to_string());
    match error.kind() {
        ErrorKind::ProtocolError(answer) => of_answer(answer, at),
        ErrorKind::IOError(cause) => of_connection(cause, at),
        ErrorKind::MissingHeartbeatError => AmqpError::Unreachable(format!(
            "{at} has said nothing for two heartbeats; the connection is half open or the broker is stopped"
        )),
        ErrorKind::ChannelsLimitReached => {
            AmqpError::Busy(format!("{at} allows no more channels; raise its `channel_max`"))
        }
        ErrorKind::InvalidProtocolVersion(_) | ErrorKind::AuthProviderError(_) | ErrorKind::ParsingError(_) => {
            AmqpError::Broken(format!("{at} does not speak AMQP 0-9-1 as RabbitMQ does ({said}); is it its port?"))
        }
        ErrorKind::SerialisationError(_) => AmqpError::Refused(format!("it cannot be written as AMQP ({said})")),
        _ => AmqpError::Unreachable(format!("the connection to {at} ended ({said})")),
    }
}

fn of_answer(answer: &AMQPError, at: &str) -> AmqpError {
    let said = redact::text(answer.get_message().as_str());
    match answer.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => AmqpError::Denied(format!(
            "{at} does not allow this user that ({said}); give it rights with `rabbitmqctl set_permissions`, or correct the \
             user and the password in the URL"
        )),
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) if said.contains("not found") => AmqpError::Denied(format!(
            "{at} has no such vhost ({said}); make it with `rabbitmqctl add_vhost`, or correct the end of the URL (`/%2f` is \
             the first one)"
        )),
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => AmqpError::Denied(format!(
            "{at} does not let this user in ({said}); give it rights with `rabbitmqctl set_permissions`"
        )),
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => {
            AmqpError::Broken(format!("{at} does not have it ({said}); declare it, or correct the name"))
        }
        AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => AmqpError::Busy(format!(
            "another connection to {at} holds the queue for itself ({said}); it is free when that connection ends"
        )),
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => match different_argument(&said) {
            Some(argument) => AmqpError::Broken(format!(
                "{at} has it with another `{argument}` ({said}); declare it as it is, or delete it so that it is made anew"
            )),
            None => AmqpError::Broken(format!("{at} refused it ({said})")),
        },
        AMQPErrorKind::Soft(AMQPSoftError::CONTENTTOOLARGE) => AmqpError::Refused(said),
        AMQPErrorKind::Soft(AMQPSoftError::NOCONSUMERS | AMQPSoftError::NOROUTE)
        | AMQPErrorKind::Hard(AMQPHardError::RESOURCEERROR | AMQPHardError::INTERNALERROR) => {
            AmqpError::Busy(format!("{at} cannot do it now ({said}); look at its log"))
        }
        AMQPErrorKind::Hard(AMQPHardError::CONNECTIONFORCED) => {
            AmqpError::Unreachable(format!("{at} ended the connection ({said})"))
        }
        AMQPErrorKind::Hard(_) => AmqpError::Broken(format!("{at} does not understand it ({said}); look at its log")),
    }
}

fn of_connection(cause: &io::Error, at: &str) -> AmqpError {
    let said = redact::text(&cause.to_string());
    AmqpError::Unreachable(match cause.kind() {
        io::ErrorKind::ConnectionRefused => {
            format!("nothing listens at {at} ({said}); start the broker or correct the URL")
        }
        io::ErrorKind::TimedOut => format!("{at} does not answer; look whether it is stopped or behind a firewall"),
        _ if said.contains("lookup") || said.contains("resolve") => {
            format!("the host of {at} is not known ({said}); correct the URL")
        }
        _ => format!("the connection to {at} broke ({said})"),
    })
}

/// The name of the argument that differs, when the broker refuses a declaration for that: it says `inequivalent arg 'NAME'`.
pub(crate) fn different_argument(said: &str) -> Option<&str> {
    let (_, rest) = said.split_once("inequivalent arg '")?;
    rest.split_once('\'').map(|(name, _)| name)
}

/// Whether the broker ended no more than the channel for this.
pub(crate) fn ends_channel_only(error: &Error) -> bool {
    error.is_amqp_soft_error()
}

/// Whether the broker said that there is no such thing.
pub(crate) fn is_not_found(error: &Error) -> bool {
    is_soft(error, &AMQPSoftError::NOTFOUND)
}

/// Whether the broker said that it has it otherwise.
pub(crate) fn is_precondition(error: &Error) -> bool {
    is_soft(error, &AMQPSoftError::PRECONDITIONFAILED)
}

/// Whether the broker said that this user may not.
pub(crate) fn is_access_refused(error: &Error) -> bool {
    is_soft(error, &AMQPSoftError::ACCESSREFUSED)
}

fn is_soft(error: &Error, wanted: &AMQPSoftError) -> bool {
    matches!(error.kind(), ErrorKind::ProtocolError(answer) if matches!(answer.kind(), AMQPErrorKind::Soft(kind) if kind == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(kind: impl Into<AMQPErrorKind>, text: &str) -> AmqpError {
        of(&ErrorKind::ProtocolError(AMQPError::new(kind.into(), text.into())).into(), "`amqp://host:5672/%2f`")
    }

    #[test]
    fn what_the_broker_says_becomes_the_next_step() {
        let refused = answer(AMQPSoftError::ACCESSREFUSED, "ACCESS_REFUSED - Login was refused");
        assert!(matches!(&refused, AmqpError::Denied(text) if text.contains("the password in the URL")), "{refused}");
        let vhost = answer(AMQPHardError::NOTALLOWED, "NOT_ALLOWED - vhost shop not found");
        assert!(matches!(&vhost, AmqpError::Denied(text) if text.contains("add_vhost")), "{vhost}");
        let differs = answer(
            AMQPSoftError::PRECONDITIONFAILED,
            "PRECONDITION_FAILED - inequivalent arg 'x-max-priority' for queue 'q' in vhost '/': received none but current is 9",
        );
        assert!(matches!(&differs, AmqpError::Broken(text) if text.contains("another `x-max-priority`")), "{differs}");
        let forced = answer(AMQPHardError::CONNECTIONFORCED, "CONNECTION_FORCED - broker forced connection closure");
        assert!(forced.is_transient() && !refused.is_transient() && !differs.is_transient());
    }

    #[test]
    fn a_connection_that_breaks_is_transient() {
        let broken = |kind: io::ErrorKind| of(&Error::from(io::Error::from(kind)), "`amqp://host:5672/%2f`");
        for kind in [io::ErrorKind::ConnectionRefused, io::ErrorKind::TimedOut, io::ErrorKind::ConnectionReset] {
            assert!(broken(kind).is_transient() && broken(kind).to_string().contains("amqp://host:5672/%2f"));
        }
        assert!(of(&ErrorKind::MissingHeartbeatError.into(), "it").to_string().contains("half open"));
    }
}
