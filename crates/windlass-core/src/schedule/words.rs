//! A schedule in plain English, from the values that it names: lines that fire alike read alike.

use std::time::Duration;

use super::cron::{DayRule, Days, Field, Plan};

/// More times of day than this are described, not listed.
const LISTED_TIMES_MAX: usize = 6;

const MONTHS: [&str; 13] = [
    "",
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const NTH: [&str; 5] = ["first", "second", "third", "fourth", "fifth"];

pub(super) fn of_plan(plan: &Plan) -> String {
    let days = days(plan);
    match (times(plan), plan.months == Field::Month.all()) {
        (Times::At(times), true) => format!("{} at {times}", days.unwrap_or_else(|| "every day".to_owned())),
        (Times::At(times), false) => {
            format!("{} at {times}", days.unwrap_or_else(|| format!("every day in {}", months(plan))))
        }
        (Times::Through(times), true) => days.map_or(times.clone(), |days| format!("{times}, {days}")),
        (Times::Through(times), false) => {
            days.map_or_else(|| format!("{times} in {}", months(plan)), |days| format!("{times}, {days}"))
        }
    }
}

pub(super) fn of_period(period: Duration) -> String {
    let mut rest = period.as_micros();
    let mut parts = Vec::new();
    for (unit, size) in [
        ("day", 86_400_000_000),
        ("hour", 3_600_000_000),
        ("minute", 60_000_000),
        ("second", 1_000_000),
        ("millisecond", 1_000),
        ("microsecond", 1),
    ] {
        match rest / size {
            0 => {}
            1 => parts.push(format!("1 {unit}")),
            count => parts.push(format!("{count} {unit}s")),
        }
        rest %= size;
    }
    let text = joined(&parts);
    let text = if parts.len() == 1 { text.strip_prefix("1 ").unwrap_or(&text) } else { &text };
    format!("every {text}")
}

enum Times {
    /// `03:00 and 15:00`: comes after `at`.
    At(String),
    /// `every 5 minutes`: stands alone.
    Through(String),
}

fn times(plan: &Plan) -> Times {
    let (minutes, hours) = (list(plan.minutes), list(plan.hours));
    let every_minutes = match step(plan.minutes, 60) {
        Some(1) => Some("every minute".to_owned()),
        Some(step) => Some(format!("every {step} minutes")),
        None => None,
    };
    if let Some(every) = every_minutes {
        return Times::Through(if plan.every_hour() { every } else { format!("{every} {}", window(plan.hours)) });
    }
    if plan.every_hour() {
        return Times::Through(match minutes[..] {
            [0] => "every hour".to_owned(),
            _ if minutes.len() <= LISTED_TIMES_MAX => {
                let minutes: Vec<_> = minutes.iter().map(|minute| format!(":{minute:02}")).collect();
                format!("every hour at {}", joined(&minutes))
            }
            [first, second, ..] if step(plan.minutes >> first, 60) == Some(second - first) => {
                format!("every {} minutes from :{first:02}", second - first)
            }
            _ => format!("every hour at the minutes {}", numbers(&minutes)),
        });
    }
    if let [minute] = minutes[..]
        && hours.len() > 3
    {
        let past = if minute == 0 { String::new() } else { format!(" at :{minute:02}") };
        if let Some(step) = step(plan.hours, 24) {
            return Times::Through(format!("every {step} hours{past}"));
        }
        if let Some((first, last)) = stretch(plan.hours) {
            return Times::Through(format!("every hour from {first:02}:{minute:02} to {last:02}:{minute:02}"));
        }
    }
    if minutes.len() * hours.len() <= LISTED_TIMES_MAX {
        let times: Vec<_> =
            hours.iter().flat_map(|hour| minutes.iter().map(move |minute| format!("{hour:02}:{minute:02}"))).collect();
        return Times::At(joined(&times));
    }
    let (minute_word, hour_word) = (plural("minute", minutes.len()), plural("hour", hours.len()));
    Times::At(format!("the {minute_word} {} of the {hour_word} {}", numbers(&minutes), numbers(&hours)))
}

fn window(hours: u64) -> String {
    match stretch(hours) {
        Some((first, last)) => format!("from {first:02}:00 to {last:02}:59"),
        None => format!("in the hours {}", numbers(&list(hours))),
    }
}

/// The days and, where they are days of a month, the months; `None` when every day of a month fires.
fn days(plan: &Plan) -> Option<String> {
    let days = &plan.days;
    let by_month = days.of_month != Field::DayOfMonth.all();
    let by_week = days.of_week != Field::DayOfWeek.all();
    let every_month = plan.months == Field::Month.all();
    let dates =
        || format!("on {} of {}", dates(days), if every_month { "every month".to_owned() } else { months(plan) });
    let in_months = || if every_month { String::new() } else { format!(" in {}", months(plan)) };
    match (by_month, by_week, days.rule) {
        (false, false, _) | (true, false, DayRule::Either) | (false, true, DayRule::Either) => None,
        (true, false, DayRule::Both) => Some(dates()),
        (false, true, DayRule::Both) => Some(weekdays(days) + &in_months()),
        (true, true, DayRule::Either) => Some(format!("{} and {}{}", dates(), weekdays(days), in_months())),
        (true, true, DayRule::Both) => Some(format!("{} when it is {}", dates(), any_weekday(days))),
    }
}

/// `the 1st and the last day`.
fn dates(days: &Days) -> String {
    let mut parts = runs(&list(days.of_month), ordinal);
    if days.last_of_month {
        parts.push(if parts.is_empty() { "last day".to_owned() } else { "the last day".to_owned() });
    }
    format!("the {}", joined(&parts))
}

/// `Monday to Friday`, `every Monday and Friday`, `on the second Tuesday of the month`.
fn weekdays(days: &Days) -> String {
    let special = special_weekdays(days);
    let mut parts = Vec::new();
    match list(days.of_week)[..] {
        [] => {}
        [1, 2, 3, 4, 5] => parts.push("Monday to Friday".to_owned()),
        ref plain => parts.push(format!("every {}", joined(&names(plain)))),
    }
    if !special.is_empty() {
        parts.push(format!("on {} of the month", joined(&special)));
    }
    joined(&parts)
}

/// `Monday or Friday`: what a date has to be as well.
fn any_weekday(days: &Days) -> String {
    let mut parts = names(&list(days.of_week));
    parts.extend(special_weekdays(days));
    parts.join(" or ")
}

fn special_weekdays(days: &Days) -> Vec<String> {
    let nth = days.nth_of_week.iter().zip(NTH);
    let mut special: Vec<_> = nth
        .flat_map(|(weekdays, nth)| names(&list(*weekdays)).into_iter().map(move |name| format!("the {nth} {name}")))
        .collect();
    special.extend(names(&list(days.last_of_week)).into_iter().map(|name| format!("the last {name}")));
    special
}

/// In the order of a working week: Sunday last.
fn names(weekdays: &[u32]) -> Vec<String> {
    let mut weekdays = weekdays.to_vec();
    weekdays.sort_by_key(|weekday| (weekday + 6) % 7);
    weekdays.iter().map(|weekday| WEEKDAYS[*weekday as usize].to_owned()).collect()
}

fn months(plan: &Plan) -> String {
    joined(&runs(&list(plan.months), |month| MONTHS[month as usize].to_owned()))
}

fn ordinal(number: u32) -> String {
    let ending = match (number % 10, number / 10) {
        (1, 0 | 2 | 3) => "st",
        (2, 0 | 2) => "nd",
        (3, 0 | 2) => "rd",
        _ => "th",
    };
    format!("{number}{ending}")
}

fn plural(word: &str, count: usize) -> String {
    if count == 1 { word.to_owned() } else { format!("{word}s") }
}

fn list(bits: u64) -> Vec<u32> {
    (0..64).filter(|value| bits >> value & 1 == 1).collect()
}

/// The step of values that go round evenly from 0: 1 for all of them, 5 for 0, 5, 10 … up to `length`.
fn step(bits: u64, length: u32) -> Option<u32> {
    (1..length)
        .filter(|step| length.is_multiple_of(*step))
        .find(|step| bits == (0..length).step_by(*step as usize).fold(0, |bits, value| bits | 1 << value))
}

/// The first and last hour when all lie together, midnight or not.
fn stretch(hours: u64) -> Option<(u32, u32)> {
    let fires = |hour: u32| hours >> (hour % 24) & 1 == 1;
    let mut starts = (0..24).filter(|hour| fires(*hour) && !fires(hour + 23));
    let ends = (0..24).find(|hour| fires(*hour) && !fires(hour + 1))?;
    match (starts.next(), starts.next()) {
        (Some(start), None) => Some((start, ends)),
        (None, _) | (Some(_), Some(_)) => None,
    }
}

/// Values in words, three or more neighbours as `first to last`.
fn runs(values: &[u32], word: impl Fn(u32) -> String) -> Vec<String> {
    values
        .chunk_by(|one, other| one + 1 == *other)
        .flat_map(|run| match run {
            [first, _, .., last] => vec![format!("{} to {}", word(*first), word(*last))],
            _ => run.iter().map(|value| word(*value)).collect(),
        })
        .collect()
}

/// `0, 7 and 9 to 17`.
fn numbers(values: &[u32]) -> String {
    joined(&runs(values, |value| value.to_string()))
}

/// `a, b and c`.
fn joined(parts: &[String]) -> String {
    match parts {
        [] => String::new(),
        [only] => only.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Dialect, Spec};
    use super::*;

    #[test]
    fn lines_read_as_english() {
        for (line, words) in [
            ("* * * * *", "every minute"),
            ("*/5 * * * *", "every 5 minutes"),
            ("0-59/5 * * * *", "every 5 minutes"),
            ("0 * * * *", "every hour"),
            ("5 * * * *", "every hour at :05"),
            ("0,30 * * * *", "every 30 minutes"),
            ("5,20,35 * * * *", "every hour at :05, :20 and :35"),
            ("*/7 * * * *", "every hour at the minutes 0, 7, 14, 21, 28, 35, 42, 49 and 56"),
            ("1-59/2 * * * *", "every 2 minutes from :01"),
            ("0 3 * * *", "every day at 03:00"),
            ("@daily", "every day at 00:00"),
            ("30 9,17 * * *", "every day at 09:30 and 17:30"),
            ("0 */6 * * *", "every 6 hours"),
            ("15 */2 * * *", "every 2 hours at :15"),
            ("0 9-17 * * *", "every hour from 09:00 to 17:00"),
            ("*/15 9-17 * * mon-fri", "every 15 minutes from 09:00 to 17:59, Monday to Friday"),
            ("* 2 * * *", "every minute from 02:00 to 02:59"),
            ("*/10 1,5,9 * * *", "every 10 minutes in the hours 1, 5 and 9"),
            ("0,7 8-18 * * *", "every day at the minutes 0 and 7 of the hours 8 to 18"),
            ("0 0 * * 0", "every Sunday at 00:00"),
            ("0 9 * * 1,5", "every Monday and Friday at 09:00"),
            ("0 9 * * sat,sun", "every Saturday and Sunday at 09:00"),
            ("0 5 1 * *", "on the 1st of every month at 05:00"),
            ("0 5 1,15 * *", "on the 1st and 15th of every month at 05:00"),
            ("0 5 1-7 jan,jul *", "on the 1st to 7th of January and July at 05:00"),
            ("@yearly", "on the 1st of January at 00:00"),
            ("0 5 * jun-aug *", "every day in June to August at 05:00"),
            ("*/5 * * 12 *", "every 5 minutes in December"),
            ("0 5 13 * 5", "on the 13th of every month and every Friday at 05:00"),
            ("0 5 L * *", "on the last day of every month at 05:00"),
            ("0 5 15,L * *", "on the 15th and the last day of every month at 05:00"),
            ("0 5 * * tue#2", "on the second Tuesday of the month at 05:00"),
            ("0 5 * * 5L", "on the last Friday of the month at 05:00"),
            ("0 5 * 3 mon", "every Monday in March at 05:00"),
            ("0 5 1-31 * 5", "every day at 05:00"),
        ] {
            assert_eq!(Spec::cron(line, "UTC").unwrap().words(), format!("{words} in UTC"), "{line}");
        }
        let friday_13 = Spec::cron_of(Dialect::Celery, "0 22-2 13 * 5", "Europe/Berlin").unwrap();
        assert_eq!(
            friday_13.words(),
            "every hour from 22:00 to 02:00, on the 13th of every month when it is Friday in Europe/Berlin"
        );
    }

    #[test]
    fn intervals_and_one_offs_read_as_english() {
        for (seconds, words) in [
            (1, "every second"),
            (30, "every 30 seconds"),
            (60, "every minute"),
            (5_400, "every 1 hour and 30 minutes"),
            (86_400, "every day"),
            (90_061, "every 1 day, 1 hour, 1 minute and 1 second"),
        ] {
            assert_eq!(of_period(Duration::from_secs(seconds)), words);
        }
        assert_eq!(of_period(Duration::from_millis(1_500)), "every 1 second and 500 milliseconds");
        let once = Spec::once("2026-11-24T12:00:00+02:00".parse().unwrap());
        assert_eq!(once.words(), "once, at 2026-11-24 10:00:00 UTC");
    }

    #[test]
    fn numbers_get_their_endings() {
        for (number, text) in [
            (1, "1st"),
            (2, "2nd"),
            (3, "3rd"),
            (4, "4th"),
            (11, "11th"),
            (12, "12th"),
            (21, "21st"),
            (22, "22nd"),
            (23, "23rd"),
            (30, "30th"),
            (31, "31st"),
        ] {
            assert_eq!(ordinal(number), text);
        }
    }
}
