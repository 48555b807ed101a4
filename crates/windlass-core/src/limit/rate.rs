//! Rates: how often, as people write it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::InvalidLimit;
use crate::time::parse_micros;
use crate::{Timestamp, format_duration};

/// The highest count of a rate.
pub const RATE_COUNT_MAX: u32 = 1_000_000;
/// The longest time of a rate.
pub const RATE_PER_MAX: Duration = Duration::from_secs(31 * 86_400);

/// How often tasks may start: `100/m`, `10/s burst 20`, `1/90s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// This many; 1 to [`RATE_COUNT_MAX`].
    pub count: u32,
    /// In this time; up to [`RATE_PER_MAX`].
    pub per: Duration,
    /// How many may start at once after a pause; 1 to [`RATE_COUNT_MAX`].
    pub burst: u32,
}

impl Rate {
    /// A rate without bursts.
    pub const fn new(count: u32, per: Duration) -> Self {
        Self { count, per, burst: 1 }
    }

    /// A rate written in the source code; a mistake in it does not compile when it is a constant.
    ///
    /// ```
    /// # use windlass_core::Rate;
    /// const MAIL: Rate = Rate::known("100/m burst 10");
    /// assert_eq!((MAIL.count, MAIL.per.as_secs(), MAIL.burst), (100, 60, 10));
    /// ```
    /// # Panics
    /// When it is not a rate.
    pub const fn known(text: &str) -> Self {
        match parse(text.as_bytes()) {
            Ok(rate) => rate,
            Err(Wrong::Form) => panic!("invalid rate: write it as `100/m`, `10/s burst 20` or `1/90s`"),
            Err(Wrong::Count) => panic!("invalid rate: it counts from 1 to 1,000,000, its burst too"),
            Err(Wrong::Time) => panic!("invalid rate: its time is longer than zero and at most 31 days"),
        }
    }

    /// The time between two starts, in microseconds; rounded up, so that the rate is never exceeded.
    pub fn interval_micros(self) -> i64 {
        let per = i64::try_from(self.per.as_micros()).unwrap_or(i64::MAX);
        let count = i64::from(self.count.max(1));
        (per / count + i64::from(per % count > 0)).max(1)
    }

    /// How early a start may come, in microseconds.
    pub fn tolerance_micros(self) -> i64 {
        self.interval_micros().saturating_mul(i64::from(self.burst.max(1)) - 1)
    }

    /// How many may start now, when the next start is due at `next`.
    pub fn room(self, next: Timestamp, now: Timestamp) -> u64 {
        let (next, now) = (next.as_micros().max(now.as_micros()), now.as_micros());
        let early = now.saturating_add(self.tolerance_micros()).saturating_sub(next);
        if early < 0 { 0 } else { (early / self.interval_micros()) as u64 + 1 }
    }

    /// When one may start, when the next start is due at `next`.
    pub fn opens_at(self, next: Timestamp) -> Timestamp {
        Timestamp::from_micros(next.as_micros().saturating_sub(self.tolerance_micros()))
    }

    /// When the next start is due after `started` more.
    pub fn after(self, next: Timestamp, now: Timestamp, started: u64) -> Timestamp {
        let passed = self.interval_micros().saturating_mul(i64::try_from(started).unwrap_or(i64::MAX));
        Timestamp::from_micros(next.as_micros().max(now.as_micros()).saturating_add(passed))
    }

    pub(super) fn check(self) -> Result<Self, InvalidLimit> {
        self.checked().map_err(|wrong| wrong.of(&self.to_string()))
    }

    const fn checked(self) -> Result<Self, Wrong> {
        if self.count < 1 || self.count > RATE_COUNT_MAX || self.burst < 1 || self.burst > RATE_COUNT_MAX {
            return Err(Wrong::Count);
        }
        if self.per.is_zero() || self.per.as_micros() > RATE_PER_MAX.as_micros() {
            return Err(Wrong::Time);
        }
        Ok(self)
    }
}

/// What is wrong with the text of a rate.
#[derive(Clone, Copy)]
enum Wrong {
    Form,
    Count,
    Time,
}

impl Wrong {
    fn of(self, text: &str) -> InvalidLimit {
        InvalidLimit(match self {
            Self::Form => {
                let shown: String = text.chars().take(40).flat_map(char::escape_debug).collect();
                format!("`{shown}` is not a rate: write it as 100/m, 10/s burst 20 or 1/90s")
            }
            Self::Count => format!("a rate counts from 1 to {RATE_COUNT_MAX}, its burst too"),
            Self::Time => {
                format!("the time of a rate is longer than zero and at most {}", format_duration(RATE_PER_MAX))
            }
        })
    }
}

/// Reads `COUNT/TIME` and, behind a space, `burst COUNT`. `const`, so that derive(Task) can check rates while compiling.
const fn parse(text: &[u8]) -> Result<Rate, Wrong> {
    let Some((count, at)) = number(text, skip_spaces(text, 0)) else { return Err(Wrong::Form) };
    let slash = skip_spaces(text, at);
    if slash >= text.len() || text[slash] != b'/' {
        return Err(Wrong::Form);
    }
    let from = skip_spaces(text, slash + 1);
    let mut to = from;
    while to < text.len() && text[to] != b' ' {
        to += 1;
    }
    let Some(micros) = time(text, from, to) else { return Err(Wrong::Form) };
    let mut burst = 1;
    let mut end = skip_spaces(text, to);
    if end < text.len() {
        let Some(from) = skip_word(text, end, b"burst") else { return Err(Wrong::Form) };
        let Some((count, at)) = number(text, skip_spaces(text, from)) else { return Err(Wrong::Form) };
        (burst, end) = (count, skip_spaces(text, at));
    }
    if end < text.len() {
        return Err(Wrong::Form);
    }
    Rate { count, per: Duration::from_micros(micros), burst }.checked()
}

const fn skip_spaces(text: &[u8], mut at: usize) -> usize {
    while at < text.len() && text[at] == b' ' {
        at += 1;
    }
    at
}

const fn skip_word(text: &[u8], from: usize, word: &[u8]) -> Option<usize> {
    let mut at = 0;
    while at < word.len() {
        if from + at >= text.len() || text[from + at] != word[at] {
            return None;
        }
        at += 1;
    }
    Some(from + at)
}

/// A number and where it ends; one that is too large is the largest there is, which no limit allows.
const fn number(text: &[u8], from: usize) -> Option<(u32, usize)> {
    let (mut at, mut number) = (from, 0_u32);
    while at < text.len() && text[at].is_ascii_digit() {
        number = number.saturating_mul(10).saturating_add((text[at] - b'0') as u32);
        at += 1;
    }
    if at == from { None } else { Some((number, at)) }
}

/// Microseconds: a duration, or a unit alone, which means one of it.
const fn time(text: &[u8], from: usize, to: usize) -> Option<u64> {
    /// Longer than any duration that somebody writes.
    const LONGEST: usize = 40;
    if from >= to || to - from >= LONGEST || !text[from].is_ascii_alphabetic() {
        return parse_micros(text, from, to);
    }
    let mut with_one = [b'1'; LONGEST];
    let mut at = from;
    while at < to {
        with_one[at - from + 1] = text[at];
        at += 1;
    }
    parse_micros(&with_one, 0, to - from + 1)
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = match self.per.as_secs() {
            1 if self.per.subsec_nanos() == 0 => "s".to_owned(),
            60 if self.per.subsec_nanos() == 0 => "m".to_owned(),
            3600 if self.per.subsec_nanos() == 0 => "h".to_owned(),
            86_400 if self.per.subsec_nanos() == 0 => "d".to_owned(),
            _ => format_duration(self.per),
        };
        write!(f, "{}/{per}", self.count)?;
        if self.burst > 1 { write!(f, " burst {}", self.burst) } else { Ok(()) }
    }
}

impl FromStr for Rate {
    type Err = InvalidLimit;
    fn from_str(text: &str) -> Result<Self, InvalidLimit> {
        parse(text.as_bytes()).map_err(|wrong| wrong.of(text))
    }
}

impl Serialize for Rate {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}
