//! What a handler may say about a failure, and what is kept of it.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::redact;
use crate::{SignalName, Timestamp};

/// An error of any kind, as libraries hand it over.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// The longest error text that is kept, in bytes; the rest is cut and marked.
pub const ERROR_TEXT_BYTES_MAX: usize = 4 * 1024;
/// The longest error class that is kept, in bytes.
pub const ERROR_CLASS_BYTES_MAX: usize = 120;

/// Why an attempt did not succeed, and what should happen next.
///
/// `?` on any error means "try again by the task's retry policy".
///
/// ```
/// use windlass_core::TaskError;
/// fn parse(text: &str) -> Result<u32, TaskError> {
///     if text.is_empty() {
///         return Err(TaskError::fatal("nothing to parse")); // no retry will help
///     }
///     Ok(text.parse::<u32>()?)
/// }
/// assert!(matches!(parse("x"), Err(TaskError::Failed(_))));
/// ```
#[derive(Debug, Clone)]
pub enum TaskError {
    /// It failed: retried by the task's policy. What `?` makes.
    Failed(Failure),
    /// It failed and no retry can help: a dead letter at once.
    Fatal(Failure),
    /// It failed: retry after exactly this long instead of the policy's delay. Spends an attempt.
    Retry {
        /// How long to wait.
        after: Duration,
        /// What went wrong.
        failure: Failure,
    },
    /// A rate limit answered: try again after this long. Spends no attempt.
    Throttled {
        /// How long to wait.
        after: Duration,
    },
    /// A service is down: try again at this time. Spends no attempt.
    Unavailable {
        /// When the service is expected to be back.
        until: Timestamp,
    },
    /// Not yet: run again after this long. Not an error and no attempt spent.
    Snooze {
        /// How long to wait.
        after: Duration,
    },
    /// It waits for a signal; made by [`Call::wait_for`](crate::call::Call::wait_for), passed on by `?`. No attempt spent.
    Awaits {
        /// Which.
        signal: SignalName,
        /// How much of the memo this attempt has seen.
        seen: usize,
        /// How long it waits at most.
        at_most: Duration,
    },
    /// There was nothing to do: ends the task as succeeded, with the reason and without a result.
    Skipped {
        /// Why there was nothing to do.
        reason: String,
    },
}

impl TaskError {
    /// A failure that the retry policy handles, from text.
    pub fn failed(message: impl fmt::Display) -> Self {
        Self::Failed(Failure::new("error", message))
    }

    /// A failure that no retry can mend, from text.
    pub fn fatal(message: impl fmt::Display) -> Self {
        Self::Fatal(Failure::new("fatal", message))
    }

    /// A failure to be retried after exactly `after`, from text.
    pub fn retry_after(after: Duration, message: impl fmt::Display) -> Self {
        Self::Retry { after, failure: Failure::new("error", message) }
    }

    /// From an error that is already boxed (such as `anyhow::Error::into_boxed_dyn_error`).
    pub fn from_boxed(error: BoxError) -> Self {
        Self::Failed(Failure::with_sources("error", error.as_ref()))
    }

    /// Names the class of this error: what retry policies, metrics and listings group by.
    #[must_use]
    pub fn class(mut self, class: &str) -> Self {
        if let Self::Failed(failure) | Self::Fatal(failure) | Self::Retry { failure, .. } = &mut self {
            failure.class = cut(class, ERROR_CLASS_BYTES_MAX);
        }
        self
    }
}

impl<E: StdError + 'static> From<E> for TaskError {
    fn from(error: E) -> Self {
        Self::Failed(Failure::with_sources(short_type_name::<E>(), &error))
    }
}

/// What is kept of a failure: its class and its text, redacted and cut to size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The type of the error or the name the handler gave it; at most [`ERROR_CLASS_BYTES_MAX`] bytes.
    pub class: String,
    /// The text with its causes; at most [`ERROR_TEXT_BYTES_MAX`] bytes, secrets masked.
    pub message: String,
}

impl Failure {
    /// A failure from a class and a text.
    pub fn new(class: &str, message: impl fmt::Display) -> Self {
        let message = redact::text(&message.to_string());
        Self { class: cut(class, ERROR_CLASS_BYTES_MAX), message: cut(&message, ERROR_TEXT_BYTES_MAX) }
    }

    /// A failure from an error and the chain of its causes, joined by `: `.
    pub fn with_sources(class: &str, error: &(dyn StdError + 'static)) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            // Many libraries repeat the cause in their own text.
            if !text.contains(&cause_text) {
                text.push_str(": ");
                text.push_str(&cause_text);
            }
            if text.len() > ERROR_TEXT_BYTES_MAX {
                break;
            }
            source = cause.source();
        }
        Self::new(class, text)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.class, self.message)
    }
}

/// `std::num::ParseIntError` is `ParseIntError`; generic arguments go too.
fn short_type_name<T: ?Sized>() -> &'static str {
    let full = std::any::type_name::<T>();
    let without_arguments = full.split('<').next().unwrap_or(full);
    without_arguments.rsplit("::").next().unwrap_or(without_arguments)
}

/// Cuts a text at a character boundary and marks the cut.
pub(crate) fn cut(text: &str, bytes_max: usize) -> String {
    const MARK: &str = "… (cut)";
    if text.len() <= bytes_max {
        return text.to_owned();
    }
    let mut end = bytes_max - MARK.len();
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{MARK}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_keeps_its_type_and_its_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("cannot read the order")]
        struct ReadOrder(#[source] std::num::ParseIntError);

        let error: TaskError = ReadOrder("x".parse::<u8>().unwrap_err()).into();
        let TaskError::Failed(failure) = error else { panic!("`?` retries") };
        assert_eq!(failure.class, "ReadOrder");
        assert_eq!(failure.message, "cannot read the order: invalid digit found in string");
    }

    #[test]
    fn a_long_text_is_cut_at_a_character_and_marked() {
        let failure = Failure::new("x", "é".repeat(ERROR_TEXT_BYTES_MAX));
        assert!(failure.message.len() <= ERROR_TEXT_BYTES_MAX && failure.message.ends_with("(cut)"));
        assert_eq!(cut(&"x".repeat(100), 100).len(), 100);
    }

    #[test]
    fn the_class_can_be_named() {
        let TaskError::Failed(failure) = TaskError::failed("slow").class("http_503") else { panic!("still failed") };
        assert_eq!(failure.class, "http_503");
    }
}
