//! `Cron::next` against a reference that walks minute by minute and knows nothing of the search.
//!
//! The reference reads the offset of the zone, computes the wall clock of every minute, and applies the rules for clock
//! changes as they are written on the page of `windlass_core::schedule`. A failure prints its seed; run it again with
//! `WINDLASS_SEED=<seed> cargo test -p windlass-core --test cron`.

use std::fmt::Write;

use jiff::tz::{TimeZone, TimeZoneDatabase};
use windlass_core::Timestamp;
use windlass_core::schedule::{Cron, CronError, Dialect, Zone};

/// Half-hour changes, gaps at midnight, a skipped day, southern summers, odd offsets, changed minds.
const ZONES: [&str; 26] = [
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "Europe/Istanbul",
    "Europe/Moscow",
    "America/New_York",
    "America/Los_Angeles",
    "America/St_Johns",
    "America/Havana",
    "America/Sao_Paulo",
    "America/Santiago",
    "America/Asuncion",
    "America/Caracas",
    "Australia/Lord_Howe",
    "Australia/Sydney",
    "Pacific/Auckland",
    "Pacific/Chatham",
    "Pacific/Apia",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Africa/Monrovia",
    "Asia/Beirut",
    "Asia/Gaza",
    "Asia/Tehran",
    "Asia/Kathmandu",
    "Antarctica/Troll",
];

const MINUTE: i64 = 60;
const DAY: i64 = 24 * 60 * MINUTE;

fn seed_of_this_run() -> u64 {
    let given = std::env::var("WINDLASS_SEED").ok().map(|text| text.parse().expect("WINDLASS_SEED is a number"));
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("WINDLASS_SEED={seed}");
    seed
}

/// A random line, and what it means.
#[derive(Debug)]
struct Line {
    text: String,
    dialect: Dialect,
    minutes: Vec<bool>,
    hours: Vec<bool>,
    dates: Vec<bool>,
    months: Vec<bool>,
    weekdays: Vec<bool>,
    either_day: bool,
    /// Fires in both passes of a repeated time.
    repeats: bool,
    every_hour: bool,
}

fn random_field(random: &mut fastrand::Rng, first: usize, last: usize, star_chance: f64) -> (String, Vec<bool>) {
    let mut holds = vec![false; last + 1];
    if random.f64() < star_chance {
        let step = if random.bool() { 1 } else { random.usize(1..=(last - first + 1).min(20)) };
        (first..=last).step_by(step).for_each(|value| holds[value] = true);
        return (if step == 1 { "*".to_owned() } else { format!("*/{step}") }, holds);
    }
    let mut text = String::new();
    for part in 0..random.usize(1..=3) {
        if part > 0 {
            text.push(',');
        }
        let from = random.usize(first..=last);
        let to = random.usize(from..=last);
        let step = random.usize(1..=(last - first + 1).min(9));
        match random.u8(0..3) {
            0 => {
                holds[from] = true;
                write!(text, "{from}").unwrap();
            }
            1 => {
                (from..=to).for_each(|value| holds[value] = true);
                write!(text, "{from}-{to}").unwrap();
            }
            _ => {
                (from..=to).step_by(step).for_each(|value| holds[value] = true);
                write!(text, "{from}-{to}/{step}").unwrap();
            }
        }
    }
    (text, holds)
}

impl Line {
    fn random(random: &mut fastrand::Rng) -> Self {
        let dialect = random.choice([Dialect::Standard, Dialect::Celery, Dialect::TaskIq]).unwrap();
        let (minute, minutes) = random_field(random, 0, 59, 0.3);
        let (hour, hours) = random_field(random, 0, 23, 0.3);
        let (date, dates) = random_field(random, 1, 31, 0.6);
        let (month, months) = random_field(random, 1, 12, 0.7);
        let (weekday, weekdays) = random_field(random, 0, 6, 0.6);
        let both_restricted = !date.starts_with('*') && !weekday.starts_with('*');
        let every_minute = minutes.iter().all(|fires| *fires);
        let every_hour = hours.iter().all(|fires| *fires);
        Self {
            text: format!("{minute} {hour} {date} {month} {weekday}"),
            dialect,
            either_day: both_restricted && dialect != Dialect::Celery,
            repeats: minute.starts_with('*') || hour.starts_with('*') || every_minute || every_hour,
            every_hour,
            minutes,
            hours,
            dates,
            months,
            weekdays,
        }
    }

    /// A line that some day matches; the parser refuses the others.
    fn random_that_fires(random: &mut fastrand::Rng) -> (Self, Cron) {
        loop {
            let line = Self::random(random);
            match Cron::parse(&line.text, line.dialect) {
                Ok(cron) => return (line, cron),
                Err(CronError::NeverFires) => {}
                Err(error) => panic!("{line:?}: {error}"),
            }
        }
    }

    fn fires_on(&self, days: i64) -> bool {
        let (month, date) = month_and_date(days);
        // 1 January 1970 was a Thursday.
        let weekday = (days + 4).rem_euclid(7) as usize;
        let (by_date, by_weekday) = (self.dates[date], self.weekdays[weekday]);
        self.months[month] && if self.either_day { by_date || by_weekday } else { by_date && by_weekday }
    }
}

/// The month and the date of a day since 1970, by counting off the years and months: slow and plain.
fn month_and_date(days: i64) -> (usize, usize) {
    let length_of = |year: i64| if (year % 4 == 0 && year % 100 != 0) || year % 400 == 0 { 366 } else { 365 };
    let (mut year, mut rest) = (1970, days);
    while rest >= length_of(year) {
        rest -= length_of(year);
        year += 1;
    }
    let february = length_of(year) - 337;
    for (month, length) in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31].into_iter().enumerate() {
        if rest < length {
            return (month + 1, rest as usize + 1);
        }
        rest -= length;
    }
    unreachable!("a year has twelve months");
}

/// The stretches of constant offset from `from` to `to` as (start, offset): asks for the offset every quarter of an hour
/// and halves the quarter in which it changed.
fn offsets(zone: &TimeZone, from: i64, to: i64) -> Vec<(i64, i64)> {
    let offset = |second: i64| i64::from(zone.to_offset(jiff::Timestamp::from_second(second).unwrap()).seconds());
    let mut old = offset(from);
    let mut stretches = vec![(from, old)];
    let mut second = from;
    while second < to {
        let (mut same, mut other) = (second, second + 15 * MINUTE);
        second = other;
        let new = offset(other);
        if new != old {
            while other - same > 1 {
                let middle = i64::midpoint(same, other);
                if offset(middle) == old { same = middle } else { other = middle }
            }
            stretches.push((other, new));
            old = new;
        }
    }
    stretches
}

/// Every slot from `from` up to `to`, by walking over every minute that the wall clock shows.
fn walk(line: &Line, stretches: &[(i64, i64)], from: i64, to: i64) -> Vec<i64> {
    let mut slots: Vec<i64> = Vec::new();
    // The wall clock has shown every time before this one.
    let mut shown_up_to = stretches[0].0 + stretches[0].1;
    for (at, (start, offset)) in stretches.iter().enumerate() {
        let end = stretches.get(at + 1).map_or(to, |next| next.0).min(to);
        if *start >= to {
            break;
        }
        if *start >= from && start + offset > shown_up_to && !line.every_hour {
            let skipped = minutes_that_fire(line, shown_up_to, start + offset);
            slots.extend(skipped.first().map(|_| *start));
        }
        if end > from {
            for wall_clock in minutes_that_fire(line, start.max(&from) + offset, end + offset) {
                let first_pass = wall_clock >= shown_up_to || *start == stretches[0].0;
                if (first_pass || line.repeats) && slots.last() != Some(&(wall_clock - offset)) {
                    slots.push(wall_clock - offset);
                }
            }
        }
        shown_up_to = shown_up_to.max(end + offset);
    }
    slots
}

fn minutes_that_fire(line: &Line, from: i64, to: i64) -> Vec<i64> {
    let mut found = Vec::new();
    let mut second = from + (-from).rem_euclid(MINUTE);
    let (mut days, mut day_fires) = (i64::MIN, false);
    let (mut minute, mut hour) = (second.rem_euclid(3600) / 60, second.rem_euclid(DAY) / 3600);
    while second < to {
        if days == i64::MIN || (minute == 0 && hour == 0) {
            days = second.div_euclid(DAY);
            day_fires = line.fires_on(days);
        }
        if day_fires && line.hours[hour as usize] && line.minutes[minute as usize] {
            found.push(second);
        }
        second += MINUTE;
        minute += 1;
        if minute == 60 {
            (minute, hour) = (0, (hour + 1) % 24);
        }
    }
    found
}

/// One line in one zone, with what the walk found.
struct Case<'a> {
    seed: u64,
    line: Line,
    cron: Cron,
    zone: &'a Zone,
    slots: Vec<i64>,
    to: i64,
}

impl Case<'_> {
    /// The search and the walk name the same next slot after a second; at the end of the walk, both name none.
    fn agrees_after(&self, after: i64) {
        let expected = self.slots.get(self.slots.partition_point(|slot| *slot <= after));
        let found = self.cron.next(Timestamp::from_secs(after), self.zone);
        let agrees = match expected {
            Some(slot) => found == Some(Timestamp::from_secs(*slot)),
            None => found.is_none_or(|slot| slot >= Timestamp::from_secs(self.to)),
        };
        assert!(
            agrees,
            "WINDLASS_SEED={}: `{}` ({}) in {} after {}: found {found:?}, the walk says {:?}",
            self.seed,
            self.line.text,
            self.line.dialect,
            self.zone,
            Timestamp::from_secs(after),
            expected.map(|slot| Timestamp::from_secs(*slot)),
        );
    }
}

fn first_second_of(year: i16) -> i64 {
    format!("{year}-01-01T00:00:00Z").parse::<Timestamp>().unwrap().as_secs()
}

fn zones() -> impl Iterator<Item = (Zone, TimeZone)> {
    ZONES.iter().map(|name| (name.parse().unwrap(), TimeZoneDatabase::bundled().get(name).unwrap()))
}

#[test]
fn random_lines_fire_when_a_walk_over_ten_years_says() {
    let seed = seed_of_this_run();
    let mut random = fastrand::Rng::with_seed(seed);
    for (zone, time_zone) in zones() {
        for _ in 0..3 {
            // Ten years somewhere in the rules of the past, of today and of the far future.
            let first = random.i16(1971..2045);
            let (from, to) = (first_second_of(first), first_second_of(first + 10));
            let stretches = offsets(&time_zone, from - 2 * DAY, to);
            let (line, cron) = Line::random_that_fires(&mut random);
            let slots = walk(&line, &stretches, from, to);
            let case = Case { seed, line, cron, zone: &zone, slots, to };
            for _ in 0..200 {
                case.agrees_after(random.i64(from..to));
            }
            let start = random.usize(0..=case.slots.len());
            for slot in case.slots[start..].iter().take(200) {
                case.agrees_after(*slot);
            }
        }
    }
}

#[test]
fn random_lines_fire_when_a_walk_over_clock_changes_says() {
    let seed = seed_of_this_run();
    let mut random = fastrand::Rng::with_seed(seed);
    for (zone, time_zone) in zones() {
        let stretches = offsets(&time_zone, first_second_of(2004), first_second_of(2027));
        for change in &stretches[1..] {
            let (from, to) = (change.0 - DAY, change.0 + 2 * DAY);
            for _ in 0..4 {
                let (line, cron) = Line::random_that_fires(&mut random);
                let slots = walk(&line, &stretches, from, to);
                let case = Case { seed, line, cron, zone: &zone, slots, to };
                for _ in 0..8 {
                    case.agrees_after(change.0 + random.i64(-5 * 3600..5 * 3600));
                }
                let near = case.slots.partition_point(|slot| *slot < change.0 - 3 * 3600);
                for slot in case.slots[near..].iter().take(20) {
                    case.agrees_after(*slot);
                }
                case.agrees_after(change.0 - 1);
                case.agrees_after(change.0);
            }
        }
    }
}

/// The slots of a line in a zone, written with their offsets.
fn fires(line: &str, zone: &str, after: &str, expected: &[&str]) {
    let cron = Cron::parse(line, Dialect::Standard).unwrap();
    let zone: Zone = zone.parse().unwrap();
    let found: Vec<_> = cron.upcoming(after.parse().unwrap(), &zone).take(expected.len()).collect();
    let expected: Vec<Timestamp> = expected.iter().map(|text| text.parse().unwrap()).collect();
    assert_eq!(found, expected, "`{line}` in {zone}");
}

#[test]
fn a_skipped_time_fires_once_when_the_gap_ends() {
    let (zone, before) = ("Europe/Berlin", "2026-03-28T12:00:00Z");
    fires("30 2 * * *", zone, before, &["2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00"]);
    // Several skipped slots and the regular one at the end of the gap are one.
    fires("*/10 2,3 * * *", zone, before, &["2026-03-29T03:00:00+02:00", "2026-03-29T03:10:00+02:00"]);
    fires("30 2 * * *", zone, "2026-03-29T00:59:59.999999Z", &["2026-03-29T01:00:00Z"]);
    fires("30 2 * * *", zone, "2026-03-29T01:00:00Z", &["2026-03-30T00:30:00Z"]);
}

#[test]
fn a_line_of_every_hour_gets_no_extra_slot_from_a_gap() {
    let before = "2026-03-29T00:00:00Z";
    fires("30 * * * *", "Europe/Berlin", before, &["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"]);
    fires("*/30 * * * *", "Europe/Berlin", before, &["2026-03-29T00:30:00Z", "2026-03-29T01:00:00Z"]);
}

#[test]
fn a_repeated_time_fires_once_unless_the_line_follows_elapsed_time() {
    let zone = "Europe/Berlin";
    let before = "2026-10-25T00:00:00+02:00";
    fires("30 2 * * *", zone, before, &["2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00"]);
    let elapsed = ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00", "2026-10-25T03:30:00+01:00"];
    fires("30 * * * *", zone, "2026-10-25T02:00:00+02:00", &elapsed);
    // Asked in the second pass, a line that fired in the first is silent.
    fires("30,45 2 * * *", zone, "2026-10-25T02:35:00+01:00", &["2026-10-26T02:30:00+01:00"]);
}

#[test]
fn half_hour_changes_follow_the_same_rules() {
    let zone = "Australia/Lord_Howe";
    let spring = ["2026-10-04T02:30:00+11:00", "2026-10-05T02:15:00+11:00"];
    fires("15 2 * * *", zone, "2026-10-03T12:00:00+10:30", &spring);
    let autumn = ["2026-04-05T01:45:00+11:00", "2026-04-06T01:45:00+10:30"];
    fires("45 1 * * *", zone, "2026-04-04T12:00:00+11:00", &autumn);
    let quarters = ["2026-04-05T01:45:00+11:00", "2026-04-05T01:30:00+10:30", "2026-04-05T01:45:00+10:30"];
    fires("*/15 * * * *", zone, "2026-04-05T01:30:00+11:00", &quarters);
}

#[test]
fn a_midnight_that_does_not_exist_is_made_up_for_at_one() {
    let beirut = ["2026-03-29T01:00:00+03:00", "2026-03-30T00:00:00+03:00"];
    fires("@daily", "Asia/Beirut", "2026-03-28T12:00:00Z", &beirut);
    fires("@daily", "America/Sao_Paulo", "2017-10-14T12:00:00Z", &["2017-10-15T01:00:00-02:00"]);
    let cairo = ["2026-04-24T01:00:00+03:00", "2026-04-24T12:00:00+03:00"];
    fires("0 */12 * * *", "Africa/Cairo", "2026-04-23T12:00:00Z", &cairo);
}

#[test]
fn a_day_that_a_zone_skipped_is_made_up_for() {
    // Apia had no 30 December 2011.
    let (zone, before) = ("Pacific/Apia", "2011-12-29T12:00:00-10:00");
    fires("0 9 30 12 *", zone, before, &["2011-12-31T00:00:00+14:00", "2012-12-30T09:00:00+14:00"]);
    fires("0 9 * * *", zone, before, &["2011-12-31T00:00:00+14:00", "2011-12-31T09:00:00+14:00"]);
    fires("0 * * * *", zone, "2011-12-29T23:00:00-10:00", &["2011-12-31T00:00:00+14:00", "2011-12-31T01:00:00+14:00"]);
}

#[test]
fn rare_days_are_found() {
    let after = "2026-01-01T00:00:00Z";
    fires("0 0 29 2 *", "UTC", after, &["2028-02-29T00:00:00Z", "2032-02-29T00:00:00Z"]);
    fires("0 0 L 2 *", "UTC", after, &["2026-02-28T00:00:00Z", "2027-02-28T00:00:00Z", "2028-02-29T00:00:00Z"]);
    fires("0 0 * * 5#5", "UTC", after, &["2026-01-30T00:00:00Z", "2026-05-29T00:00:00Z"]);
    fires("0 0 * * fril", "UTC", after, &["2026-01-30T00:00:00Z", "2026-02-27T00:00:00Z"]);
    fires("0 0 13 * 5", "UTC", after, &["2026-01-02T00:00:00Z", "2026-01-09T00:00:00Z", "2026-01-13T00:00:00Z"]);
    // Both day fields must match: 29 February on a Monday, across 2100, which is no leap year.
    let cron = Cron::parse("0 0 29 2 1", Dialect::Celery).unwrap();
    let next = cron.next("2072-03-01T00:00:00Z".parse().unwrap(), &Zone::utc());
    assert_eq!(next, "2112-02-29T00:00:00Z".parse().ok());
}
