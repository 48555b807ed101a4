//! What an answer, or none, means for the task. Pure but for [`of_network`], which reads the causes of an error.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use jiff::fmt::rfc2822;
use reqwest::StatusCode;
use windlass::{TaskError, Timestamp};

use super::guard::Refused;

/// A receiver cannot put a task off for longer than this.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(86_400);
/// `Retry-After: 0` must not become a loop that never rests.
const RETRY_AFTER_MIN: Duration = Duration::from_secs(1);

/// What a status means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The request did what it was sent for.
    Good,
    /// It may do so later: an error of this class, tried again by the task's policy.
    Again(&'static str),
    /// The same, after as long as the receiver asks for.
    AgainAfter(&'static str, Duration),
    /// A rate limit: again after this long, and the attempt does not count.
    Throttled(Duration),
    /// It never will.
    Never(&'static str),
}

/// Judges a status. `expect` replaces 2xx when it is not empty.
pub(super) fn judge(status: StatusCode, expect: &[u16], retry_after: Option<Duration>) -> Judgement {
    let expected = if expect.is_empty() { status.is_success() } else { expect.contains(&status.as_u16()) };
    if expected {
        return Judgement::Good;
    }
    let class = match status.as_u16() {
        429 => {
            return retry_after.map_or(Judgement::Again("http_429"), Judgement::Throttled);
        }
        408 => "http_408",
        425 => "http_425",
        500..=599 => "http_5xx",
        400..=499 => return Judgement::Never("http_4xx"),
        300..=399 => return Judgement::Never("http_3xx"),
        _ => return Judgement::Never("http_unexpected"),
    };
    retry_after.map_or(Judgement::Again(class), |after| Judgement::AgainAfter(class, after))
}

impl Judgement {
    /// As the handler says it; `Ok` for a good one.
    pub(super) fn into_result(self, what: impl std::fmt::Display) -> Result<(), TaskError> {
        match self {
            Self::Good => Ok(()),
            Self::Again(class) => Err(TaskError::failed(what).class(class)),
            Self::AgainAfter(class, after) => Err(TaskError::retry_after(after, what).class(class)),
            Self::Throttled(after) => Err(TaskError::Throttled { after }),
            Self::Never(class) => Err(TaskError::fatal(what).class(class)),
        }
    }
}

/// Reads `Retry-After`: seconds or a date. Between a second and a day, whatever it says.
pub(super) fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let after = if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number holds are more than a day.
        value.parse().map_or(RETRY_AFTER_MAX, Duration::from_secs)
    } else {
        let at = rfc2822::DateTimeParser::new().parse_timestamp(value).ok()?;
        Timestamp::from_jiff(at).since(now)
    };
    Some(after.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX))
}

/// What it means that there is no whole answer.
pub(super) fn of_network(error: reqwest::Error) -> TaskError {
    // The query of a URL may hold a secret.
    let error = error.without_url();
    let refused = causes(&error).find_map(|cause| cause.downcast_ref::<Refused>());
    if let Some(refused) = refused {
        return forbidden(refused);
    }
    let tls = causes(&error).any(<dyn StdError>::is::<rustls::Error>);
    let class = if error.is_timeout() {
        "timeout"
    } else if tls {
        "tls"
    } else if error.is_dns() {
        "dns"
    } else if error.is_connect() {
        "connect"
    } else {
        "connection"
    };
    let failure = windlass::Failure::with_sources(class, &error);
    TaskError::Failed(failure)
}

/// A place that the guard refuses.
pub(super) fn forbidden(refused: &Refused) -> TaskError {
    TaskError::fatal(refused).class("forbidden")
}

/// An error and what it was made of, outermost first; also what an `io::Error` carries, which `source` passes over.
fn causes<'e>(error: &'e (dyn StdError + 'static)) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(carried) => Some(carried as &(dyn StdError + 'static)),
        None => error.source(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn statuses_are_judged() {
        let table: [(u16, &[u16], Option<Duration>, Judgement); 16] = [
            (200, &[], None, Judgement::Good),
            (204, &[], None, Judgement::Good),
            (404, &[200, 404], None, Judgement::Good),
            (200, &[404], None, Judgement::Never("http_unexpected")),
            (302, &[], None, Judgement::Never("http_3xx")),
            (400, &[], None, Judgement::Never("http_4xx")),
            (404, &[], Some(MINUTE), Judgement::Never("http_4xx")),
            (408, &[], None, Judgement::Again("http_408")),
            (425, &[], None, Judgement::Again("http_425")),
            (429, &[], None, Judgement::Again("http_429")),
            (429, &[], Some(MINUTE), Judgement::Throttled(MINUTE)),
            (429, &[429], Some(MINUTE), Judgement::Good),
            (500, &[], None, Judgement::Again("http_5xx")),
            (503, &[], Some(MINUTE), Judgement::AgainAfter("http_5xx", MINUTE)),
            (599, &[], None, Judgement::Again("http_5xx")),
            (500, &[200], None, Judgement::Again("http_5xx")),
        ];
        for (status, expect, after, judgement) in table {
            assert_eq!(judge(StatusCode::from_u16(status).unwrap(), expect, after), judgement, "{status} {expect:?}");
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date_within_a_second_and_a_day() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = Timestamp::from_secs(784_111_777) - MINUTE;
        for (value, after) in [
            ("120", Some(2 * MINUTE)),
            (" 1 ", Some(Duration::from_secs(1))),
            ("0", Some(RETRY_AFTER_MIN)),
            ("99999999999999999999999999", Some(RETRY_AFTER_MAX)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", Some(MINUTE)),
            ("Sun, 06 Nov 1984 08:49:37 GMT", None),
            ("Tue, 06 Nov 1984 08:49:37 GMT", Some(RETRY_AFTER_MIN)),
            ("Mon, 06 Nov 2094 08:49:37 GMT", None),
            ("-5", None),
            ("1.5", None),
            ("soon", None),
            ("", None),
        ] {
            // A weekday that does not fit its date is a date that cannot be read; both ends are bounded.
            let read = retry_after(value, now);
            match after {
                Some(after) => assert_eq!(read, Some(after), "{value}"),
                None => assert!(read.is_none_or(|read| read <= RETRY_AFTER_MAX), "{value}"),
            }
        }
    }
}
