//! Recurring pushes: when a slot is due, and what to do about the slots that were missed.
//!
//! Everything here is pure: the clock, the store and the push belong to whoever calls.
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

mod cron;

mod parse;
mod walk;
mod zone;

pub use cron::{CRON_BYTES_MAX, Cron, CronError, Dialect, Field, UnknownDialect};
pub use zone::{UnknownZone, Zone};
