//! A cron line: its text, its dialect, and the sets of values that it names.
//!
//! Owns the types; `parse` reads the text, `walk` finds the next slot, `words` says it in English.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{Zone, parse};
use crate::Timestamp;

/// The longest cron line, in bytes: a line that lists every minute by number takes 170.
pub const CRON_BYTES_MAX: usize = 512;

/// Whose rules a cron line is read by; the table is in [the module's page](super).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dialect {
    /// Unix cron as Vixie wrote it, with names, `@daily` and the like, `L` and `#`. The default.
    #[default]
    Standard,
    /// `celery.schedules.crontab`, its five arguments in the usual order of a cron line.
    Celery,
    /// What TaskIQ's scheduler does with `cron`: the Python package pycron 3.3.0.
    TaskIq,
}

impl Dialect {
    /// `standard`, `celery` or `taskiq`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Standard => "standard",
            Self::Celery => "celery",
            Self::TaskIq => "taskiq",
        }
    }
}

impl fmt::Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Dialect {
    type Err = UnknownDialect;
    fn from_str(text: &str) -> Result<Self, UnknownDialect> {
        [Self::Standard, Self::Celery, Self::TaskIq]
            .into_iter()
            .find(|dialect| dialect.as_str() == text)
            .ok_or_else(|| UnknownDialect(parse::shown(text)))
    }
}

/// A dialect that is not one of the three.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown cron dialect `{0}`: it is standard, celery or taskiq")]
pub struct UnknownDialect(String);

/// One of the five fields of a cron line, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Field {
    /// 0 to 59.
    Minute,
    /// 0 to 23.
    Hour,
    /// 1 to 31.
    DayOfMonth,
    /// 1 to 12.
    Month,
    /// 0 (Sunday) to 6.
    DayOfWeek,
}

impl Field {
    pub(super) const fn first(self) -> u32 {
        match self {
            Self::Minute | Self::Hour | Self::DayOfWeek => 0,
            Self::DayOfMonth | Self::Month => 1,
        }
    }

    pub(super) const fn last(self) -> u32 {
        match self {
            Self::Minute => 59,
            Self::Hour => 23,
            Self::DayOfMonth => 31,
            Self::Month => 12,
            Self::DayOfWeek => 6,
        }
    }

    /// Every value of this field, as bits.
    pub(super) const fn all(self) -> u64 {
        ((1 << (self.last() + 1)) - 1) & !((1 << self.first()) - 1)
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Minute => "minute",
            Self::Hour => "hour",
            Self::DayOfMonth => "day of month",
            Self::Month => "month",
            Self::DayOfWeek => "day of week",
        })
    }
}

/// Why a cron line was refused. The texts hold at most 40 characters of the line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CronError {
    /// The line is longer than any sensible one.
    #[error("the cron line takes {bytes} bytes, the limit is {CRON_BYTES_MAX}")]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The line has six fields.
    #[error(
        "a cron line has five fields, this has six: seconds are not supported; \
         remove the first field, or use an interval for anything more frequent than once a minute"
    )]
    Seconds,
    /// The line does not have five fields.
    #[error("a cron line has five fields (minute, hour, day of month, month, day of week), this has {found}")]
    FieldCount {
        /// How many it has.
        found: usize,
    },
    /// An `@word` that this dialect does not know.
    #[error("`{word}` is not a cron line here: {reason}")]
    Word {
        /// The word, shortened.
        word: String,
        /// What to write instead.
        reason: &'static str,
    },
    /// A part of a field that cannot be read.
    #[error("`{part}` in the {field} field: {reason}")]
    Part {
        /// Which field.
        field: Field,
        /// The part between two commas, shortened.
        part: String,
        /// What is wrong with it, and what to write instead.
        reason: String,
    },
    /// Every part can be read, and no day of any year matches.
    #[error("this cron line never fires: no day of any year matches it")]
    NeverFires,
}

/// When a cron line fires, as sets of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Plan {
    /// Bit `n` is minute `n`; the other masks alike.
    pub(super) minutes: u64,
    pub(super) hours: u64,
    pub(super) months: u64,
    pub(super) days: Days,
    /// The minute or the hour follows the time that passes: it fires in both passes of a repeated hour.
    pub(super) repeats: bool,
}

impl Plan {
    pub(super) fn every_hour(&self) -> bool {
        self.hours == Field::Hour.all()
    }
}

/// Which days of its months a cron line fires on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Days {
    pub(super) of_month: u64,
    /// `L`: the last day of the month.
    pub(super) last_of_month: bool,
    /// Bit 0 is Sunday.
    pub(super) of_week: u64,
    /// `nth_of_week[n - 1]` are the weekdays named with `#n`.
    pub(super) nth_of_week: [u64; 5],
    /// `5L`: the last Friday of the month.
    pub(super) last_of_week: u64,
    pub(super) rule: DayRule,
}

/// How the two day fields work together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DayRule {
    Both,
    Either,
}

impl Days {
    /// Whether the day fires: `day` from 1, `weekday` from 0 (Sunday).
    pub(super) fn hold(&self, day: u32, days_in_month: u32, weekday: u32) -> bool {
        let by_month = self.of_month >> day & 1 == 1 || (self.last_of_month && day == days_in_month);
        let by_week = (self.of_week | self.nth_of_week[(day as usize - 1) / 7]) >> weekday & 1 == 1
            || (day + 7 > days_in_month && self.last_of_week >> weekday & 1 == 1);
        match self.rule {
            DayRule::Both => by_month && by_week,
            DayRule::Either => by_month || by_week,
        }
    }
}

/// A cron line that was parsed; cheap to clone.
///
/// # Example
/// ```
/// use windlass_core::Timestamp;
/// use windlass_core::schedule::{Cron, Dialect, Zone};
///
/// let cron = Cron::parse("30 2 * * *", Dialect::Standard).unwrap();
/// let berlin: Zone = "Europe/Berlin".parse().unwrap();
/// // On 29 March 2026 the clocks in Berlin go from 02:00 to 03:00: the run is made up for at 03:00.
/// let saturday: Timestamp = "2026-03-28T12:00:00+01:00".parse().unwrap();
/// assert_eq!(cron.next(saturday, &berlin), "2026-03-29T03:00:00+02:00".parse().ok());
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Cron {
    text: Arc<str>,
    dialect: Dialect,
    plan: Plan,
}

impl Cron {
    /// Reads a cron line of at most [`CRON_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`CronError`] names the field and the part that cannot be read, and what to write instead.
    pub fn parse(text: &str, dialect: Dialect) -> Result<Self, CronError> {
        let text = text.trim_ascii();
        Ok(Self { plan: parse::plan(text, dialect)?, text: text.into(), dialect })
    }

    /// Whose rules the line is read by.
    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// The line as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The first slot after an instant, on the wall clock of `zone`; `None` beyond the year 9999.
    ///
    /// What happens when the clock of the zone is changed is written on [the module's page](super).
    pub fn next(&self, after: Timestamp, zone: &Zone) -> Option<Timestamp> {
        self.plan.next(after, zone)
    }

    /// The slots after an instant, in order; endless but for the year 9999.
    pub fn upcoming(&self, after: Timestamp, zone: &Zone) -> impl Iterator<Item = Timestamp> {
        std::iter::successors(self.next(after, zone), |slot| self.next(*slot, zone))
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }
}

impl fmt::Display for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

impl fmt::Debug for Cron {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({})", self.text, self.dialect)
    }
}
