//! What happens after an attempt: [`decide`] turns an outcome into a verdict. Pure; its test is a table of cases.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::state::{DeadReason, Spent, Verdict};
use crate::time::{format_duration, parse_micros};
use crate::{Failure, Json, TaskError, Timestamp};

/// The most attempts that a policy may ask for: three and a half days of retries every 30 seconds.
pub const ATTEMPTS_MAX: u32 = 10_000;
/// The longest wait before a retry.
pub const BACKOFF_MAX: Duration = Duration::from_secs(30 * 86_400);

/// How long to wait before the next attempt.
///
/// Written as `30s` (always), `10s * n` (linear), `60s * 2^n` (exponential: 60 s, 120 s, 240 s …), each with an optional
/// cap: `1s * 2^n up to 1h`; or as a list, `1s, 5s, 30s`, whose last entry repeats.
///
/// ```
/// use std::time::Duration;
/// use windlass_core::Backoff;
/// let backoff: Backoff = "60s * 2^n up to 5m".parse().unwrap();
/// assert_eq!(backoff.delay(1), Duration::from_secs(60));
/// assert_eq!(backoff.delay(3), Duration::from_secs(240));
/// assert_eq!(backoff.delay(9), Duration::from_secs(300));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backoff {
    /// A formula.
    Formula {
        /// The first delay.
        base: Duration,
        /// How it grows with each failed attempt.
        growth: Growth,
        /// No delay is longer; [`BACKOFF_MAX`] at most.
        cap: Duration,
    },
    /// These delays in turn; the last one repeats.
    List(Cow<'static, [Duration]>),
}

/// How a delay grows with the number of failed attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// It does not.
    Fixed,
    /// `base * n`.
    Linear,
    /// `base * factor^(n - 1)`.
    Exponential {
        /// 2 to 10.
        factor: u32,
    },
}

impl Backoff {
    /// A backoff written in the source code; a mistake in it does not compile when it is a constant.
    ///
    /// Formulas only; lists are `Backoff::List`.
    pub const fn formula(text: &str) -> Self {
        match parse_formula(text.as_bytes()) {
            Some((base, growth, cap)) => Self::Formula { base, growth, cap },
            None => panic!("invalid backoff: write it as `30s`, `10s * n` or `60s * 2^n up to 1h`"),
        }
    }

    /// The delay after `failed` failed attempts (1 for the first), before jitter.
    pub fn delay(&self, failed: u32) -> Duration {
        let failed = failed.max(1);
        match self {
            Self::Formula { base, growth, cap } => {
                let times = match growth {
                    Growth::Fixed => 1,
                    Growth::Linear => failed,
                    Growth::Exponential { factor } => factor.saturating_pow(failed - 1),
                };
                base.saturating_mul(times).min(*cap)
            }
            Self::List(delays) => delays
                .get(failed as usize - 1)
                .or_else(|| delays.last())
                .copied()
                .unwrap_or(Duration::ZERO)
                .min(BACKOFF_MAX),
        }
    }
}

impl Default for Backoff {
    /// `2s * 2^n up to 1h`.
    fn default() -> Self {
        const DEFAULT: Backoff = Backoff::formula("2s * 2^n up to 1h");
        DEFAULT
    }
}

/// A backoff that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid backoff `{0}`: write it as `30s`, `10s * n`, `60s * 2^n up to 1h` or `1s, 5s, 30s`")]
pub struct InvalidBackoff(String);

impl FromStr for Backoff {
    type Err = InvalidBackoff;
    fn from_str(text: &str) -> Result<Self, InvalidBackoff> {
        let invalid = || InvalidBackoff(text.chars().take(60).collect());
        if text.contains(',') {
            let delays: Result<Vec<_>, _> = text.split(',').map(|part| crate::parse_duration(part.trim())).collect();
            return Ok(Self::List(delays.map_err(|_| invalid())?.into()));
        }
        let (base, growth, cap) = parse_formula(text.trim().as_bytes()).ok_or_else(invalid)?;
        Ok(Self::Formula { base, growth, cap })
    }
}

impl fmt::Display for Backoff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Formula { base, growth, cap } => {
                f.write_str(&format_duration(*base))?;
                match growth {
                    Growth::Fixed => {}
                    Growth::Linear => f.write_str(" * n")?,
                    Growth::Exponential { factor } => write!(f, " * {factor}^n")?,
                }
                if *cap == BACKOFF_MAX { Ok(()) } else { write!(f, " up to {}", format_duration(*cap)) }
            }
            Self::List(delays) => {
                let delays: Vec<_> = delays.iter().map(|delay| format_duration(*delay)).collect();
                f.write_str(&delays.join(", "))?;
                // One entry would read as a formula, which means the same.
                Ok(())
            }
        }
    }
}

impl Serialize for Backoff {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Backoff {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// `30s`, `10s * n`, `60s * 2^n`, each with ` up to 1h`; spaces are optional. `const`, so that constants are checked early.
const fn parse_formula(text: &[u8]) -> Option<(Duration, Growth, Duration)> {
    let mut at = skip_spaces(text, 0);
    let base_from = at;
    while at < text.len() && text[at].is_ascii_alphanumeric() {
        at += 1;
    }
    let Some(base) = parse_micros(text, base_from, at) else { return None };
    at = skip_spaces(text, at);
    let mut growth = Growth::Fixed;
    if at < text.len() && text[at] == b'*' {
        at = skip_spaces(text, at + 1);
        if at < text.len() && text[at] == b'n' {
            growth = Growth::Linear;
            at += 1;
        } else {
            let mut factor: u32 = 0;
            while at < text.len() && text[at].is_ascii_digit() && factor <= 10 {
                factor = factor * 10 + (text[at] - b'0') as u32;
                at += 1;
            }
            let power = at + 1 < text.len() && text[at] == b'^' && text[at + 1] == b'n';
            if factor < 2 || factor > 10 || !power {
                return None;
            }
            growth = Growth::Exponential { factor };
            at += 2;
        }
        at = skip_spaces(text, at);
    }
    let mut cap = BACKOFF_MAX;
    if at < text.len() {
        let up_to = b"up to ";
        let mut letter = 0;
        while letter < up_to.len() {
            if at >= text.len() || text[at] != up_to[letter] {
                return None;
            }
            at += 1;
            letter += 1;
        }
        let Some(micros) = parse_micros(text, at, text.len()) else { return None };
        cap = Duration::from_micros(micros);
    }
    Some((Duration::from_micros(base), growth, cap))
}

const fn skip_spaces(text: &[u8], mut at: usize) -> usize {
    while at < text.len() && text[at] == b' ' {
        at += 1;
    }
    at
}

/// When and how often a failed task is tried again.
#[derive(Debug, Clone, PartialEq)]
pub struct RetryPolicy {
    /// The first run and its retries together; 1 to [`ATTEMPTS_MAX`].
    pub attempts_max: u32,
    /// The wait before each retry.
    pub backoff: Backoff,
    /// Spread of the wait: 0.2 means ±20 %, so that tasks which failed together do not return together. 0 to 1.
    pub jitter: f64,
    /// No retry starts later than this after the task was enqueued.
    pub age_max: Option<Duration>,
    /// Error classes that are never retried.
    pub never: Vec<Cow<'static, str>>,
    /// When not empty, only these error classes are retried.
    pub only: Vec<Cow<'static, str>>,
}

impl Default for RetryPolicy {
    /// 10 retries, `2s * 2^n up to 1h`, ±20 %.
    fn default() -> Self {
        Self {
            attempts_max: 11,
            backoff: Backoff::default(),
            jitter: 0.2,
            age_max: None,
            never: Vec::new(),
            only: Vec::new(),
        }
    }
}

impl RetryPolicy {
    fn retries_class(&self, class: &str) -> bool {
        !self.never.iter().any(|never| never == class)
            && (self.only.is_empty() || self.only.iter().any(|only| only == class))
    }
}

/// What came out of one attempt.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// The handler returned a result.
    Done(Json),
    /// The handler returned an error.
    Error(TaskError),
    /// The handler panicked, with the text of the panic.
    Panicked(String),
    /// The attempt ran into its hard limit.
    TimedOut {
        /// The limit.
        limit: Duration,
    },
    /// The arguments do not fit the task.
    Malformed(String),
    /// Nothing of this name is registered here.
    Unknown,
    /// It was cancelled while it ran.
    Cancelled,
    /// It was too late to start it.
    Expired,
    /// The worker is stopping and gives it back.
    Released,
}

/// What [`decide`] needs to know of the attempt besides its outcome.
#[derive(Debug, Clone, Copy)]
pub struct Attempt {
    /// 1 for the first.
    pub number: u32,
    /// When the task was enqueued.
    pub enqueued_at: Timestamp,
    /// Now.
    pub now: Timestamp,
    /// A random number from 0 to 1 that spreads the delay.
    pub dice: f64,
}

/// Decides what becomes of a task after an attempt.
///
/// ```text
/// done → Succeeded        failed → Again, or Dead when attempts or age are used up, or the class is not retried
/// fatal, malformed → Dead        throttled, unavailable, snooze → Again, no attempt spent        released → Released
/// ```
pub fn decide(policy: &RetryPolicy, attempt: Attempt, outcome: Outcome) -> Verdict {
    let later = |after: Duration, spent: Spent, failure: Option<Failure>| Verdict::Again {
        after: after.min(BACKOFF_MAX),
        spent,
        failure,
    };
    match outcome {
        Outcome::Done(result) => Verdict::Succeeded { result, skipped: None },
        Outcome::Error(TaskError::Skipped { reason }) => {
            Verdict::Succeeded { result: Json::null(), skipped: Some(crate::error::cut(&reason, 1024)) }
        }
        Outcome::Error(TaskError::Failed(failure)) => retry(policy, attempt, failure, None),
        Outcome::Error(TaskError::Retry { after, failure }) => retry(policy, attempt, failure, Some(after)),
        Outcome::Error(TaskError::Fatal(failure)) => Verdict::Dead { reason: DeadReason::Fatal, failure },
        Outcome::Error(TaskError::Throttled { after }) => later(not_before(after, attempt.dice), Spent::No, None),
        Outcome::Error(TaskError::Unavailable { until }) => {
            later(not_before(until.since(attempt.now), attempt.dice), Spent::No, None)
        }
        Outcome::Error(TaskError::Awaits { signal, seen, at_most }) => Verdict::Awaits { signal, seen, at_most },
        Outcome::Error(TaskError::Snooze { after }) => later(after, Spent::No, None),
        Outcome::Panicked(message) => retry(policy, attempt, Failure::new("panic", message), None),
        Outcome::TimedOut { limit } => {
            let failure =
                Failure::new("timeout", format_args!("ran longer than its hard limit of {}", format_duration(limit)));
            retry(policy, attempt, failure, None)
        }
        Outcome::Malformed(message) => {
            Verdict::Dead { reason: DeadReason::Malformed, failure: Failure::new("malformed", message) }
        }
        Outcome::Unknown => Verdict::Parked,
        Outcome::Cancelled => Verdict::Cancelled,
        Outcome::Expired => Verdict::Expired,
        Outcome::Released => Verdict::Released,
    }
}

fn retry(policy: &RetryPolicy, attempt: Attempt, failure: Failure, after: Option<Duration>) -> Verdict {
    if !policy.retries_class(&failure.class) {
        return Verdict::Dead { reason: DeadReason::Fatal, failure };
    }
    if attempt.number >= policy.attempts_max {
        return Verdict::Dead { reason: DeadReason::AttemptsUsedUp, failure };
    }
    let after = after.unwrap_or_else(|| spread(policy.backoff.delay(attempt.number), policy.jitter, attempt.dice));
    if let Some(age_max) = policy.age_max
        && (attempt.now + after).since(attempt.enqueued_at) > age_max
    {
        return Verdict::Dead { reason: DeadReason::TooOld, failure };
    }
    Verdict::Again { after: after.min(BACKOFF_MAX), spent: Spent::Yes, failure: Some(failure) }
}

/// `delay` and up to a tenth more: who asks to be left alone for a while counts an earlier call as another offence.
fn not_before(delay: Duration, dice: f64) -> Duration {
    delay.min(BACKOFF_MAX).mul_f64(1.0 + 0.1 * dice.clamp(0.0, 1.0))
}

/// `delay` ± `jitter`, where `dice` runs from 0 to 1.
fn spread(delay: Duration, jitter: f64, dice: f64) -> Duration {
    delay.min(BACKOFF_MAX).mul_f64((1.0 + jitter.clamp(0.0, 1.0) * (dice.clamp(0.0, 1.0) * 2.0 - 1.0)).max(0.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn attempt(number: u32) -> Attempt {
        Attempt { number, enqueued_at: Timestamp::from_secs(1000), now: Timestamp::from_secs(1100), dice: 0.5 }
    }

    fn policy() -> RetryPolicy {
        RetryPolicy { attempts_max: 3, backoff: Backoff::formula("60s * 2^n"), ..RetryPolicy::default() }
    }

    fn failed() -> Outcome {
        Outcome::Error(TaskError::failed("x"))
    }

    #[test]
    fn backoffs_are_read_and_written() {
        for text in ["30s", "10s * n", "1m * 2^n", "1s * 2^n up to 1h", "1s, 5s, 30s"] {
            let backoff: Backoff = text.parse().unwrap();
            assert_eq!(backoff.to_string(), text);
        }
        for text in [
            "",
            "x",
            "5",
            "60s * 2",
            "60s * 1^n",
            "60s * 2^n up",
            "60s * 2^n up to",
            "60s ** n",
            "1s,",
            "1s * 99999999999^n",
        ] {
            assert!(text.parse::<Backoff>().is_err(), "{text}");
        }
    }

    #[test]
    fn delays_grow_as_written_and_never_overflow() {
        let delays = |text: &str| {
            let backoff: Backoff = text.parse().unwrap();
            [1, 2, 3, 10_000].map(|failed| backoff.delay(failed).as_secs())
        };
        assert_eq!(delays("30s"), [30, 30, 30, 30]);
        assert_eq!(delays("10s * n"), [10, 20, 30, 100_000]);
        assert_eq!(delays("60s * 2^n up to 1h"), [60, 120, 240, 3600]);
        assert_eq!(delays("60s * 2^n"), [60, 120, 240, BACKOFF_MAX.as_secs()]);
        assert_eq!(delays("1s, 5s"), [1, 5, 5, 5]);
    }

    #[test]
    fn a_failure_is_retried_until_its_attempts_are_used_up() {
        let Verdict::Again { after, spent: Spent::Yes, .. } = decide(&policy(), attempt(2), failed()) else { panic!() };
        assert_eq!(after, 2 * MINUTE);
        assert!(matches!(
            decide(&policy(), attempt(3), failed()),
            Verdict::Dead { reason: DeadReason::AttemptsUsedUp, .. }
        ));
    }

    #[test]
    fn panics_and_timeouts_are_failures() {
        for outcome in [Outcome::Panicked("boom".into()), Outcome::TimedOut { limit: MINUTE }] {
            assert!(matches!(decide(&policy(), attempt(1), outcome), Verdict::Again { spent: Spent::Yes, .. }));
        }
    }

    #[test]
    fn what_is_not_the_tasks_fault_spends_no_attempt() {
        for error in [
            TaskError::Throttled { after: MINUTE },
            TaskError::Snooze { after: MINUTE },
            TaskError::Unavailable { until: Timestamp::from_secs(1160) },
        ] {
            let Verdict::Again { after, spent: Spent::No, .. } = decide(&policy(), attempt(3), Outcome::Error(error))
            else {
                panic!()
            };
            assert!((MINUTE..=MINUTE + MINUTE / 10).contains(&after), "{after:?}");
        }
    }

    #[test]
    fn nobody_comes_back_earlier_than_it_was_asked_to() {
        for dice in [0.0, 0.3, 1.0] {
            for error in [
                TaskError::Throttled { after: MINUTE },
                TaskError::Unavailable { until: Timestamp::from_secs(1160) },
                TaskError::retry_after(MINUTE, "busy"),
            ] {
                let attempt = Attempt { dice, ..attempt(1) };
                let Verdict::Again { after, .. } = decide(&policy(), attempt, Outcome::Error(error)) else { panic!() };
                assert!(after >= MINUTE, "{after:?} with {dice}");
            }
        }
    }

    #[test]
    fn a_class_on_the_never_list_is_dead_at_once() {
        let policy = RetryPolicy { never: vec!["http_400".into()], ..policy() };
        let error = TaskError::failed("bad request").class("http_400");
        assert!(matches!(
            decide(&policy, attempt(1), Outcome::Error(error)),
            Verdict::Dead { reason: DeadReason::Fatal, .. }
        ));
        assert!(matches!(decide(&policy, attempt(1), failed()), Verdict::Again { .. }));
    }

    #[test]
    fn a_task_that_would_be_too_old_is_dead() {
        let policy = RetryPolicy { age_max: Some(Duration::from_secs(159)), ..policy() };
        assert!(matches!(decide(&policy, attempt(1), failed()), Verdict::Dead { reason: DeadReason::TooOld, .. }));
    }

    #[test]
    fn a_wait_that_the_handler_names_is_exact() {
        let error = TaskError::retry_after(Duration::from_secs(7), "x");
        let Verdict::Again { after, .. } = decide(&policy(), attempt(1), Outcome::Error(error)) else { panic!() };
        assert_eq!(after, Duration::from_secs(7));
    }

    #[test]
    fn jitter_spreads_the_delay_to_both_sides() {
        let spread_at = |dice| spread(100 * MINUTE, 0.2, dice).as_secs() / 60;
        assert_eq!([spread_at(0.0), spread_at(0.5), spread_at(1.0)], [80, 100, 120]);
    }
}
