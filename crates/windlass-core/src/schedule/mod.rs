//! Recurring pushes: when a slot is due, and what to do about the slots that were missed.
//!
//! Everything here is pure: the clock, the store and the push belong to whoever calls. A [`Spec`] says when; [`due`]
//! compares the slot that the store remembers with the time that the caller read and names the slots to push now.
//!
//! ```
//! use windlass_core::Timestamp;
//! use windlass_core::schedule::{Due, MissedPolicy, Spec, due};
//!
//! let nightly = Spec::cron("0 3 * * *", "Europe/Berlin").unwrap();
//! assert_eq!(nightly.words(), "every day at 03:00 in Europe/Berlin");
//!
//! let stored: Timestamp = "2026-11-24T02:00:00Z".parse().unwrap();
//! let Due { fire, next, .. } = due(&nightly, &MissedPolicy::default(), stored, stored);
//! assert_eq!(fire, [stored]);
//! assert_eq!(next.unwrap().to_string(), "2026-11-25T02:00:00.000Z");
//! ```
//!
//! # Cron lines
//!
//! Five fields: minute, hour, day of month, month, day of week. A [`Dialect`] decides the details, so that a line taken
//! over from another system fires when it did there:
//!
//! | | [`Standard`](Dialect::Standard) | [`Celery`](Dialect::Celery) | [`TaskIq`](Dialect::TaskIq) (pycron 3.3.0) |
//! |---|---|---|---|
//! | both day fields restricted | either may match; a field that begins with `*` is not restricted | both must match | either may match; a field that contains `*` is not restricted |
//! | Sunday | 0 or 7 | 0 | 0 |
//! | names | months and days | months and days | days |
//! | `*/n` | from the field's first value, `n` at most the field's length | from the first value, any `n` | from the first value, any `n` |
//! | `5/15` | 5, 20, 35, 50 | refused | refused (never fires there) |
//! | range that runs backwards | refused, but a week may end on Sunday (`fri-sun`) | wraps (`22-4`) | in days of the week: up to Saturday, and the parts after it are ignored; else refused |
//! | value beyond the field | refused | refused | ignored while another value remains |
//! | `@hourly @daily @weekly @monthly @yearly` | yes | refused | refused |
//! | `L`, `5L`, `FRI#2` | last day, last Friday, second Friday | refused | refused |
//!
//! Refused everywhere: seconds (a sixth field), `W`, `?`, `@reboot`, and a line that can never fire (`0 0 31 2 *`).
//!
//! # Clock changes
//!
//! A cron line is read on the wall clock of its zone. When that clock is changed:
//!
//! 1. **A time that is skipped** (clocks go forward) fires once, at the moment the gap ends. Several skipped slots of one
//!    line, and a regular slot at that same moment, are one slot. A line that fires in every hour loses nothing to a gap
//!    and gets no extra slot: the hours that exist fire as always.
//! 2. **A time that comes twice** (clocks go back) fires once, at its first occurrence.
//! 3. Except that **a line whose minute or hour begins with `*`**, or names all of them, follows the time that passes: it
//!    fires in both passes, so `*/5 * * * *` fires every five minutes through the change.
//!
//! The rules know nothing of hours or seasons: they hold for Lord Howe's half hour, for gaps at midnight (Beirut, Cairo,
//! Santiago), for Troll's two hours and for the day that Apia skipped. Day fields are matched against the date that the
//! wall clock would have shown.
//!
//! An interval ([`Spec::Every`]) counts real time from its anchor and knows no zone.

mod cron;
mod definition;
mod parse;
mod policy;
pub mod runner;
mod spec;
mod walk;
mod words;
mod zone;

pub use cron::{CRON_BYTES_MAX, Cron, CronError, Dialect, Field, UnknownDialect};
pub use definition::{InvalidSchedule, Origin, SCHEDULE_ID_BYTES_MAX, Schedule, When, cron, every, once};
pub use policy::{Due, FIRE_MAX, JITTER_MAX, Jitter, MISSED_COUNT_MAX, Missed, MissedPolicy, ON_TIME, Overlap, due};
pub use spec::{PERIOD_MAX, PERIOD_MIN, PREVIEW_MAX, Period, Spec, SpecError};
pub use zone::{UnknownZone, Zone};
