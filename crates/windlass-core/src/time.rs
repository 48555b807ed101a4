//! When and how long: [`Timestamp`], [`Clock`], and durations as people write them.
//!
//! The engine reads the time only through [`Clock`]. Timers run on tokio's monotonic clock, so a jump of the wall clock
//! moves neither renewals nor time limits; leases are measured by the store.

use std::fmt::{self, Write};
use std::ops::{Add, Sub};
use std::str::FromStr;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// An instant: microseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(i64);

impl Timestamp {
    /// Before everything.
    pub const MIN: Self = Self(0);
    /// The last instant that is accepted: the end of the year 9999.
    pub const MAX: Self = Self(253_402_300_799_000_000);

    /// From microseconds since 1970.
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// From whole seconds since 1970.
    pub const fn from_secs(secs: i64) -> Self {
        Self(secs * 1_000_000)
    }

    /// Microseconds since 1970.
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// Whole seconds since 1970.
    pub const fn as_secs(self) -> i64 {
        self.0.div_euclid(1_000_000)
    }

    /// The wall clock of this machine. Everything but [`SystemClock`] asks a [`Clock`] instead.
    fn of_this_machine() -> Self {
        let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self(since_1970.as_micros() as i64)
    }

    /// How long after `earlier` this is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }

    /// The same instant as `jiff` knows it, for calendar arithmetic.
    pub fn to_jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_microsecond(self.0.clamp(Self::MIN.0, Self::MAX.0)).unwrap_or(jiff::Timestamp::MAX)
    }

    /// From `jiff`, truncated to microseconds.
    pub fn from_jiff(instant: jiff::Timestamp) -> Self {
        Self(instant.as_microsecond())
    }
}

impl Add<Duration> for Timestamp {
    type Output = Self;
    /// Saturates at [`Timestamp::MAX`].
    fn add(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_add(micros).min(Self::MAX.0))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Self;
    fn sub(self, duration: Duration) -> Self {
        let micros = i64::try_from(duration.as_micros()).unwrap_or(i64::MAX);
        Self(self.0.saturating_sub(micros))
    }
}

impl fmt::Display for Timestamp {
    /// RFC 3339 in UTC with milliseconds: `2026-11-24T05:04:03.120Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3}", self.to_jiff())
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}", self.to_jiff())
    }
}

impl FromStr for Timestamp {
    type Err = InvalidTime;
    /// RFC 3339 with an offset or `Z`. A time without an offset is refused: it would mean something else on every machine.
    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        text.parse::<jiff::Timestamp>().map(Self::from_jiff).map_err(|_| InvalidTime(text.chars().take(40).collect()))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.6}", self.to_jiff()))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A time that is not RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid time `{0}`: write it as 2026-11-24T05:04:03Z or with an offset such as +02:00")]
pub struct InvalidTime(String);

/// Where the engine reads the time. Passed in, never global.
pub trait Clock: Send + Sync + fmt::Debug {
    /// Now.
    fn now(&self) -> Timestamp;

    /// The time since some moment in the past, by a clock that nobody moves. A clock that is never moved, as this default
    /// assumes, has only one.
    fn steady(&self) -> Duration {
        self.now().since(Timestamp::MIN)
    }
}

/// The wall clock of this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::of_this_machine()
    }

    fn steady(&self) -> Duration {
        static STARTED: OnceLock<Instant> = OnceLock::new();
        STARTED.get_or_init(Instant::now).elapsed()
    }
}

/// Notices that the wall clock was moved, for stores that measure leases by the wall clock of their process.
///
/// A clock that is moved forward makes every lease look as if it had run out, those of living holders too. So for
/// [`LeaseGuard::PAUSE`] after a move nobody is taken for dead: the living renew their leases by then.
#[derive(Debug, Default)]
pub struct LeaseGuard(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// Both clocks at the last look.
    last: Option<(Timestamp, Duration)>,
    /// In steady time.
    doubt_until: Duration,
}

/// Whether leases that have run out by the wall clock have really run out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leases {
    /// They have.
    Trusted,
    /// The clock was moved a moment ago: they may not have.
    InDoubt,
}

impl LeaseGuard {
    /// Leases are in doubt for this long after the clock was moved: two renewals of the default lease, and some time.
    pub const PAUSE: Duration = Duration::from_secs(45);
    /// A difference between the two clocks of less than this is no move.
    const MOVED: Duration = Duration::from_secs(2);

    /// Looks at both clocks. Call it with every tick: only moves between two looks are noticed.
    pub fn look(&self, clock: &dyn Clock) -> Leases {
        let (now, steady) = (clock.now(), clock.steady());
        let mut seen = self.0.lock();
        if let Some((then, steady_then)) = seen.last.replace((now, steady)) {
            let expected = then + steady.saturating_sub(steady_then);
            if now.since(expected).max(expected.since(now)) >= Self::MOVED {
                seen.doubt_until = steady + Self::PAUSE;
                tracing::warn!(event = "clock_moved", from = %expected, to = %now, "the wall clock was moved");
            }
        }
        if steady < seen.doubt_until { Leases::InDoubt } else { Leases::Trusted }
    }
}

/// A duration that is not written like `30s`, `5m` or `1h30m`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid duration `{0}`: write it as 250ms, 30s, 5m, 1h30m or 7d")]
pub struct InvalidDuration(String);

/// Parses a duration as people write it: `250ms`, `30s`, `5m`, `1h30m`, `7d`, `2w`.
///
/// # Errors
/// [`InvalidDuration`] for anything else, for an empty text, and beyond 584,000 years.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(windlass_core::parse_duration("1h30m").unwrap(), Duration::from_secs(5400));
/// assert!(windlass_core::parse_duration("5").is_err());
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, InvalidDuration> {
    parse_micros(text.as_bytes(), 0, text.len())
        .map(Duration::from_micros)
        .ok_or_else(|| InvalidDuration(text.chars().take(40).collect()))
}

/// A duration written in the source code; a mistake in it does not compile.
///
/// ```
/// use std::time::Duration;
/// const LIMIT: Duration = windlass_core::time::duration("4m");
/// assert_eq!(LIMIT.as_secs(), 240);
/// ```
pub const fn duration(text: &str) -> Duration {
    match parse_micros(text.as_bytes(), 0, text.len()) {
        Some(micros) => Duration::from_micros(micros),
        None => panic!("invalid duration: write it as 250ms, 30s, 5m, 1h30m or 7d"),
    }
}

/// The microseconds of `text[from..to]`; `const` so that derive(Task) can check durations while compiling.
pub(crate) const fn parse_micros(text: &[u8], from: usize, to: usize) -> Option<u64> {
    if from >= to {
        return None;
    }
    let mut at = from;
    let mut total: u64 = 0;
    while at < to {
        let mut number: u64 = 0;
        let digits_from = at;
        while at < to && text[at].is_ascii_digit() {
            let Some(shifted) = number.checked_mul(10) else { return None };
            let Some(sum) = shifted.checked_add((text[at] - b'0') as u64) else { return None };
            number = sum;
            at += 1;
        }
        if at == digits_from || at == to {
            return None;
        }
        let two_letters = at + 1 < to && text[at + 1] == b's';
        let unit = match text[at] {
            b'u' if two_letters => 1,
            b'm' if two_letters => 1_000,
            b's' => 1_000_000,
            b'm' => 60_000_000,
            b'h' => 3_600_000_000,
            b'd' => 86_400_000_000,
            b'w' => 604_800_000_000,
            _ => return None,
        };
        at += if unit < 1_000_000 { 2 } else { 1 };
        let Some(part) = number.checked_mul(unit) else { return None };
        let Some(sum) = total.checked_add(part) else { return None };
        total = sum;
    }
    Some(total)
}

/// A duration as people write it, the inverse of [`parse_duration`]: `1h30m`, `250ms`.
pub fn format_duration(duration: Duration) -> String {
    let micros = duration.as_micros();
    if micros == 0 {
        return "0s".to_owned();
    }
    let mut rest = micros;
    let mut text = String::new();
    for (unit, size) in [
        ("d", 86_400_000_000_u128),
        ("h", 3_600_000_000),
        ("m", 60_000_000),
        ("s", 1_000_000),
        ("ms", 1_000),
        ("us", 1),
    ] {
        if rest >= size {
            // Writing to a string cannot fail.
            let _ = write!(text, "{}{unit}", rest / size);
            rest %= size;
        }
    }
    text
}

/// Serialises a [`Duration`] as people write it; for `#[serde(with = "...")]` in configuration and stored options.
pub mod duration_text {
    use super::{Deserialize, Deserializer, Duration, Serializer, format_duration, parse_duration};

    /// `1h30m`.
    ///
    /// # Errors
    /// Those of the serializer.
    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(*duration))
    }

    /// Reads `1h30m`.
    ///
    /// # Errors
    /// When the text is not a duration.
    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        parse_duration(&text).map_err(serde::de::Error::custom)
    }

    /// The same for `Option<Duration>`; use it with `#[serde(default, skip_serializing_if = "Option::is_none")]`.
    pub mod option {
        use super::{Deserialize, Deserializer, Duration, Serializer, format_duration, parse_duration};

        /// `1h30m` or nothing.
        ///
        /// # Errors
        /// Those of the serializer.
        #[allow(clippy::ref_option, reason = "the shape that serde calls")]
        pub fn serialize<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
            match duration {
                Some(duration) => serializer.serialize_str(&format_duration(*duration)),
                None => serializer.serialize_none(),
            }
        }

        /// Reads `1h30m` or nothing.
        ///
        /// # Errors
        /// When the text is not a duration.
        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
            let text = Option::<std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
            text.map(|text| parse_duration(&text).map_err(serde::de::Error::custom)).transpose()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, micros) in [
            ("250ms", 250_000),
            ("30s", 30_000_000),
            ("5m", 300_000_000),
            ("1h30m", 5_400_000_000),
            ("7d", 604_800_000_000),
            ("1m5ms", 60_005_000),
            ("0s", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(micros)), "{text}");
        }
        for text in ["", "5", "s", "5 m", "-5s", "5x", "99999999999999999999s", "1.5h", "5\u{fe0f}s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_survives_being_written_and_read() {
        for micros in [0, 1, 999, 1_000, 61_000_000, 90_061_001_001, 604_800_000_000] {
            let duration = Duration::from_micros(micros);
            assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }
    }

    #[test]
    fn a_time_without_an_offset_is_refused() {
        assert!("2026-11-24T05:04:03".parse::<Timestamp>().is_err());
        assert_eq!("2026-11-24T07:04:03+02:00".parse(), "2026-11-24T05:04:03Z".parse::<Timestamp>());
    }

    #[test]
    fn time_arithmetic_saturates() {
        assert_eq!(Timestamp::MAX + Duration::MAX, Timestamp::MAX);
        assert_eq!(Timestamp::MIN.since(Timestamp::MAX), Duration::ZERO);
    }
}
