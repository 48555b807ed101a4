//! What a schedule is: a cron line in a zone, an interval, or one instant; as data that a store keeps.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Cron, CronError, Dialect, UnknownZone, Zone, words};
use crate::{Timestamp, format_duration, parse_duration};

/// The shortest interval.
pub const PERIOD_MIN: Duration = Duration::from_secs(1);

/// The longest interval; anything rarer is a cron line.
pub const PERIOD_MAX: Duration = Duration::from_secs(366 * 24 * 60 * 60);

/// The most slots that one [`Spec::preview`] gives: two weeks of an hourly schedule and some more.
pub const PREVIEW_MAX: usize = 500;

/// The time between two slots of an interval: [`PERIOD_MIN`] to [`PERIOD_MAX`], in whole microseconds.
///
/// ```
/// use windlass_core::schedule::Period;
/// assert_eq!("90s".parse::<Period>().unwrap().to_string(), "1m30s");
/// assert!("500ms".parse::<Period>().is_err());
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(NonZeroU64);

impl Period {
    /// A period from its length; a fraction of a microsecond is dropped.
    ///
    /// # Errors
    /// [`SpecError::Period`] outside the limits.
    pub fn new(length: Duration) -> Result<Self, SpecError> {
        if !(PERIOD_MIN..=PERIOD_MAX).contains(&length) {
            return Err(SpecError::Period);
        }
        NonZeroU64::new(length.as_micros() as u64).map(Self).ok_or(SpecError::Period)
    }

    /// Its length.
    pub fn length(self) -> Duration {
        Duration::from_micros(self.0.get())
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format_duration(self.length()))
    }
}

impl FromStr for Period {
    type Err = SpecError;
    fn from_str(text: &str) -> Result<Self, SpecError> {
        parse_duration(text).map_err(|_| SpecError::Period).and_then(Self::new)
    }
}

impl Serialize for Period {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// When a schedule fires.
///
/// Stored as `{"kind":"cron","line":"0 3 * * *","dialect":"standard","zone":"Europe/Berlin"}`,
/// `{"kind":"every","period":"5m","anchor":"2026-01-01T00:00:00.000000Z"}` or
/// `{"kind":"once","at":"2026-01-01T00:00:00.000000Z"}`; the dialect may be left out (standard), the zone too (UTC).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub enum Spec {
    /// At the times that a cron line names.
    Cron {
        /// The line.
        cron: Cron,
        /// On whose wall clock.
        zone: Zone,
    },
    /// Again and again, whatever the calendar says.
    Every {
        /// The time between two slots.
        period: Period,
        /// The first slot; the others are whole periods after it.
        anchor: Timestamp,
    },
    /// At one instant.
    Once {
        /// That instant.
        at: Timestamp,
    },
}

impl Spec {
    /// A cron line in the standard dialect, in a zone such as `Europe/Berlin` or `UTC`.
    ///
    /// # Errors
    /// [`SpecError::Cron`] or [`SpecError::Zone`].
    /// # Example
    /// ```
    /// use windlass_core::schedule::Spec;
    /// assert_eq!(Spec::cron("*/5 * * * *", "UTC").unwrap().words(), "every 5 minutes in UTC");
    /// ```
    pub fn cron(line: &str, zone: &str) -> Result<Self, SpecError> {
        Self::cron_of(Dialect::Standard, line, zone)
    }

    /// A cron line in the dialect of the system that it comes from.
    ///
    /// # Errors
    /// [`SpecError::Cron`] or [`SpecError::Zone`].
    pub fn cron_of(dialect: Dialect, line: &str, zone: &str) -> Result<Self, SpecError> {
        Ok(Self::Cron { cron: Cron::parse(line, dialect)?, zone: zone.parse()? })
    }

    /// An interval from [`PERIOD_MIN`] to [`PERIOD_MAX`], whose first slot is `anchor`.
    ///
    /// # Errors
    /// [`SpecError::Period`] outside the limits.
    pub fn every(period: Duration, anchor: Timestamp) -> Result<Self, SpecError> {
        Ok(Self::Every { period: Period::new(period)?, anchor })
    }

    /// One slot.
    pub fn once(at: Timestamp) -> Self {
        Self::Once { at }
    }

    /// The first slot after an instant; `None` when there is none before the end of the year 9999.
    pub fn next(&self, after: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Cron { cron, zone } => cron.next(after, zone),
            Self::Every { period, anchor } => next_of_interval(*period, *anchor, after),
            Self::Once { at } => (*at > after).then_some(*at),
        }
    }

    /// The next `count` slots after an instant, at most [`PREVIEW_MAX`].
    ///
    /// # Example
    /// ```
    /// use windlass_core::Timestamp;
    /// use windlass_core::schedule::Spec;
    ///
    /// let payday = Spec::cron("0 9 L * *", "Asia/Kathmandu").unwrap();
    /// let slots = payday.preview("2026-02-01T00:00:00Z".parse().unwrap(), 2);
    /// let expected = ["2026-02-28T09:00:00+05:45", "2026-03-31T09:00:00+05:45"];
    /// assert_eq!(slots, expected.map(|slot| slot.parse::<Timestamp>().unwrap()));
    /// ```
    pub fn preview(&self, after: Timestamp, count: usize) -> Vec<Timestamp> {
        std::iter::successors(self.next(after), |slot| self.next(*slot)).take(count.min(PREVIEW_MAX)).collect()
    }

    /// The schedule in plain English: `every day at 03:00 in Europe/Berlin`.
    pub fn words(&self) -> String {
        match self {
            Self::Cron { cron, zone } => format!("{} in {zone}", words::of_plan(cron.plan())),
            Self::Every { period, .. } => words::of_period(period.length()),
            Self::Once { at } => format!("once, at {}", at.to_jiff().strftime("%Y-%m-%d %H:%M:%S UTC")),
        }
    }
}

fn next_of_interval(period: Period, anchor: Timestamp, after: Timestamp) -> Option<Timestamp> {
    // In 128 bits: no instant and no period can overflow them.
    let (period, anchor) = (i128::from(period.0.get()), i128::from(anchor.as_micros()));
    let periods_done = (i128::from(after.as_micros()) - anchor).div_euclid(period);
    let slot = anchor + (periods_done + 1).max(0) * period;
    i64::try_from(slot).ok().map(Timestamp::from_micros).filter(|slot| *slot <= Timestamp::MAX)
}

/// Why a schedule was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// The cron line cannot be read.
    #[error(transparent)]
    Cron(#[from] CronError),
    /// The time zone is unknown.
    #[error(transparent)]
    Zone(#[from] UnknownZone),
    /// The interval is outside its limits, or not a duration.
    #[error("an interval goes from 1s to 366d, written as 30s, 5m or 1h30m")]
    Period,
    /// The jitter is outside its limits.
    #[error("a jitter goes from 0s to 1d, written as 30s, 5m or 1h30m")]
    Jitter,
}

/// A [`Spec`] as a store keeps it.
#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
enum Stored {
    Cron {
        line: String,
        #[serde(default)]
        dialect: Dialect,
        #[serde(default)]
        zone: Zone,
    },
    Every {
        period: Period,
        anchor: Timestamp,
    },
    Once {
        at: Timestamp,
    },
}

impl From<Spec> for Stored {
    fn from(spec: Spec) -> Self {
        match spec {
            Spec::Cron { cron, zone } => Self::Cron { line: cron.as_str().to_owned(), dialect: cron.dialect(), zone },
            Spec::Every { period, anchor } => Self::Every { period, anchor },
            Spec::Once { at } => Self::Once { at },
        }
    }
}

impl TryFrom<Stored> for Spec {
    type Error = SpecError;
    fn try_from(stored: Stored) -> Result<Self, SpecError> {
        Ok(match stored {
            Stored::Cron { line, dialect, zone } => Self::Cron { cron: Cron::parse(&line, dialect)?, zone },
            Stored::Every { period, anchor } => Self::Every { period, anchor },
            Stored::Once { at } => Self::Once { at },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn an_interval_counts_whole_periods_from_its_anchor() {
        let anchor = at("2026-01-01T00:00:10Z");
        let spec = Spec::every(Duration::from_secs(60), anchor).unwrap();
        for (after, next) in [
            ("2025-06-01T00:00:00Z", "2026-01-01T00:00:10Z"),
            ("2026-01-01T00:00:09.999999Z", "2026-01-01T00:00:10Z"),
            ("2026-01-01T00:00:10Z", "2026-01-01T00:01:10Z"),
            ("2026-01-01T00:01:09Z", "2026-01-01T00:01:10Z"),
            ("2030-01-01T00:00:00Z", "2030-01-01T00:00:10Z"),
        ] {
            assert_eq!(spec.next(at(after)), Some(at(next)), "{after}");
        }
    }

    #[test]
    fn a_period_at_its_limits_passes_and_one_over_does_not() {
        for length in [PERIOD_MIN, PERIOD_MAX] {
            assert_eq!(Period::new(length).unwrap().length(), length);
        }
        for length in
            [Duration::ZERO, Duration::from_micros(999_999), PERIOD_MAX + Duration::from_nanos(1), Duration::MAX]
        {
            assert_eq!(Period::new(length), Err(SpecError::Period));
        }
    }

    #[test]
    fn there_is_no_slot_beyond_the_year_9999() {
        for spec in [
            Spec::cron("* * * * *", "America/Santiago").unwrap(),
            Spec::every(PERIOD_MIN, Timestamp::MIN).unwrap(),
            Spec::once(Timestamp::MAX),
        ] {
            assert_eq!(spec.next(Timestamp::MAX), None);
            assert_eq!(spec.next(Timestamp::from_micros(i64::MAX)), None);
            assert!(spec.next(Timestamp::from_micros(i64::MIN)).is_some());
        }
    }

    #[test]
    fn a_preview_is_bounded() {
        let spec = Spec::cron("* * * * *", "UTC").unwrap();
        assert_eq!(spec.preview(Timestamp::MIN, 3).len(), 3);
        assert_eq!(spec.preview(Timestamp::MIN, usize::MAX).len(), PREVIEW_MAX);
        assert_eq!(Spec::once(Timestamp::MIN).preview(Timestamp::MIN, 3), []);
    }

    #[test]
    fn a_spec_is_stored_as_text_and_comes_back() {
        let anchor = at("2026-01-01T00:00:00Z");
        for (spec, json) in [
            (
                Spec::cron_of(Dialect::Celery, "0 22-4 * * mon", "Asia/Kathmandu").unwrap(),
                r#"{"kind":"cron","line":"0 22-4 * * mon","dialect":"celery","zone":"Asia/Kathmandu"}"#,
            ),
            (
                Spec::every(Duration::from_secs(300), anchor).unwrap(),
                r#"{"kind":"every","period":"5m","anchor":"2026-01-01T00:00:00.000000Z"}"#,
            ),
            (Spec::once(anchor), r#"{"kind":"once","at":"2026-01-01T00:00:00.000000Z"}"#),
        ] {
            assert_eq!(serde_json::to_string(&spec).unwrap(), json);
            assert_eq!(serde_json::from_str::<Spec>(json).unwrap(), spec);
        }
        let short: Spec = serde_json::from_str(r#"{"kind":"cron","line":"@daily"}"#).unwrap();
        assert_eq!(short, Spec::cron("@daily", "UTC").unwrap());
    }

    #[test]
    fn a_stored_spec_that_breaks_a_rule_is_refused() {
        for json in [
            r#"{"kind":"cron","line":"0 0 31 2 *"}"#,
            r#"{"kind":"cron","line":"@daily","zone":"Mars/Olympus"}"#,
            r#"{"kind":"cron","line":"@daily","dialect":"quartz"}"#,
            r#"{"kind":"cron","line":"@daily","seconds":5}"#,
            r#"{"kind":"every","period":"10ms","anchor":"2026-01-01T00:00:00Z"}"#,
            r#"{"kind":"hourly"}"#,
        ] {
            assert!(serde_json::from_str::<Spec>(json).is_err(), "{json}");
        }
    }
}
