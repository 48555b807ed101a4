//! Finds the next slot of a cron line on the wall clock of a zone.
//!
//! Between two changes of its clock a zone is a fixed distance from UTC, so the search is plain calendar work:
//!
//! 1. look for a matching minute up to the next change   2. at the change, apply the rules for skipped and repeated times
//! 3. go on behind it, until a minute matches

use jiff::civil::{Date, DateTime};

use super::Zone;
use super::cron::Plan;
use crate::Timestamp;

impl Plan {
    pub(super) fn next(&self, after: Timestamp, zone: &Zone) -> Option<Timestamp> {
        // An instant before 1970 is as good as the last one before it.
        let after = jiff::Timestamp::from_microsecond(after.as_micros().max(-1)).ok()?;
        let zone = zone.time_zone();
        let mut offset = zone.to_offset(after);
        let mut from = offset.to_datetime(a_moment_after(after)?);
        if !self.repeats
            && let Some(change) = zone.preceding(a_moment_after(after)?).next()
            && let Ok(before) = change.timestamp().checked_sub(NANOSECOND)
        {
            // Still in the second pass of a repeated time? Then it has fired already, up to where the first pass ended.
            from = from.max(zone.to_offset(before).to_datetime(change.timestamp()));
        }
        let mut changes = zone.following(after);
        loop {
            let Some(change) = changes.next() else {
                return slot(self.first_match(from, DateTime::MAX)?, offset);
            };
            let stops = offset.to_datetime(change.timestamp());
            if let Some(found) = self.first_match(from, stops) {
                return slot(found, offset);
            }
            let resumes = change.offset().to_datetime(change.timestamp());
            let skipped = self.first_match(from.max(stops), resumes);
            if skipped.is_some() && !self.every_hour() {
                return within_limits(change.timestamp());
            }
            if change.timestamp().as_microsecond() > Timestamp::MAX.as_micros() {
                return None;
            }
            from = if self.repeats { resumes } else { resumes.max(stops).max(from) };
            offset = change.offset();
        }
    }

    /// The first matching minute in `from..before`.
    fn first_match(&self, from: DateTime, before: DateTime) -> Option<DateTime> {
        let mut date = from.date();
        let mut earliest = minute_of_day_from(from);
        while date <= before.date() {
            if self.months >> date.month() & 1 == 0 {
                date = first_of_next_month(date)?;
                earliest = 0;
                continue;
            }
            if self.fires_on(date)
                && let Some((hour, minute)) = self.first_time(earliest)
            {
                let found = date.at(hour, minute, 0, 0);
                return (found < before).then_some(found);
            }
            date = date.tomorrow().ok()?;
            earliest = 0;
        }
        None
    }

    fn fires_on(&self, date: Date) -> bool {
        let weekday = date.weekday().to_sunday_zero_offset() as u32;
        self.days.hold(date.day() as u32, date.days_in_month() as u32, weekday)
    }

    /// The first hour and minute of a day that fire, from a minute of the day on.
    fn first_time(&self, earliest: u32) -> Option<(i8, i8)> {
        let (hour, minute) = (earliest / 60, earliest % 60);
        if hour < 24
            && self.hours >> hour & 1 == 1
            && let Some(minute) = first_bit_from(self.minutes, minute)
        {
            return Some((hour as i8, minute as i8));
        }
        let hour = first_bit_from(self.hours, hour + 1)?;
        Some((hour as i8, first_bit_from(self.minutes, 0)? as i8))
    }
}

const NANOSECOND: jiff::SignedDuration = jiff::SignedDuration::from_nanos(1);

fn a_moment_after(instant: jiff::Timestamp) -> Option<jiff::Timestamp> {
    instant.checked_add(NANOSECOND).ok()
}

fn slot(wall_clock: DateTime, offset: jiff::tz::Offset) -> Option<Timestamp> {
    within_limits(offset.to_timestamp(wall_clock).ok()?)
}

fn within_limits(instant: jiff::Timestamp) -> Option<Timestamp> {
    let slot = Timestamp::from_jiff(instant);
    (slot <= Timestamp::MAX).then_some(slot)
}

/// The first whole minute that is not before `time`; 1440 when the day has none left.
fn minute_of_day_from(time: DateTime) -> u32 {
    let begun = time.second() > 0 || time.subsec_nanosecond() > 0;
    time.hour() as u32 * 60 + time.minute() as u32 + u32::from(begun)
}

fn first_of_next_month(date: Date) -> Option<Date> {
    date.last_of_month().tomorrow().ok()
}

fn first_bit_from(bits: u64, from: u32) -> Option<u32> {
    let rest = bits.checked_shr(from)?;
    (rest != 0).then(|| rest.trailing_zeros() + from)
}
