//! Reads a cron line by the rules of its dialect.
//!
//! 1. split the line into fields, the fields into parts   2. read a part: `*`, a value or a range, perhaps with a step
//! 3. let the dialect say which values that is   4. refuse a line that no day can match

use super::cron::{CRON_BYTES_MAX, CronError, DayRule, Days, Dialect, Field, Plan};

const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = ["sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday"];

/// The start of a hostile text, escaped, for error messages.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_debug).collect()
}

pub(super) fn plan(line: &str, dialect: Dialect) -> Result<Plan, CronError> {
    if line.len() > CRON_BYTES_MAX {
        return Err(CronError::TooLong { bytes: line.len() });
    }
    let line = if line.starts_with('@') { meaning_of_word(line, dialect)? } else { line };
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [minute, hour, day_of_month, month, day_of_week] = fields[..] else {
        return Err(match fields.len() {
            6 => CronError::Seconds,
            found => CronError::FieldCount { found },
        });
    };
    let minutes = values(Field::Minute, minute, dialect)?;
    let hours = values(Field::Hour, hour, dialect)?;
    let of_month = values(Field::DayOfMonth, day_of_month, dialect)?;
    let months = values(Field::Month, month, dialect)?.bits;
    let of_week = values(Field::DayOfWeek, day_of_week, dialect)?;
    let plan = Plan {
        repeats: [(&minutes, minute, Field::Minute), (&hours, hour, Field::Hour)]
            .iter()
            .any(|(values, text, field)| text.starts_with('*') || values.bits == field.all()),
        minutes: minutes.bits,
        hours: hours.bits,
        months,
        days: Days {
            of_month: of_month.bits,
            last_of_month: of_month.last_of_month,
            of_week: of_week.bits,
            nth_of_week: of_week.nth_of_week,
            last_of_week: of_week.last_of_week,
            rule: day_rule(day_of_month, day_of_week, dialect),
        },
    };
    if !ever_fires(&plan) {
        return Err(CronError::NeverFires);
    }
    Ok(plan)
}

fn meaning_of_word(word: &str, dialect: Dialect) -> Result<&'static str, CronError> {
    let refuse = |reason| Err(CronError::Word { word: shown(word), reason });
    match dialect {
        Dialect::Standard => {}
        Dialect::Celery | Dialect::TaskIq => return refuse("this dialect has no words, write the five fields"),
    }
    match word.to_ascii_lowercase().as_str() {
        "@hourly" => Ok("0 * * * *"),
        "@daily" | "@midnight" => Ok("0 0 * * *"),
        "@weekly" => Ok("0 0 * * 0"),
        "@monthly" => Ok("0 0 1 * *"),
        "@yearly" | "@annually" => Ok("0 0 1 1 *"),
        "@reboot" => refuse("a schedule has no start of the machine, push the task when the process starts"),
        other if other.starts_with("@every") => refuse("use an interval"),
        _ => refuse("write @hourly, @daily, @weekly, @monthly, @yearly or the five fields"),
    }
}

fn day_rule(day_of_month: &str, day_of_week: &str, dialect: Dialect) -> DayRule {
    let either_when = |restricted: fn(&str) -> bool| {
        if restricted(day_of_month) && restricted(day_of_week) { DayRule::Either } else { DayRule::Both }
    };
    match dialect {
        Dialect::Standard => either_when(|text| !text.starts_with('*')),
        Dialect::Celery => DayRule::Both,
        Dialect::TaskIq => either_when(|text| !text.contains('*')),
    }
}

fn ever_fires(plan: &Plan) -> bool {
    const LENGTHS: [&[u32]; 13] =
        [&[], &[31], &[28, 29], &[31], &[30], &[31], &[30], &[31], &[31], &[30], &[31], &[30], &[31]];
    // In the 400 years of the calendar's cycle every date, 29 February too, falls on every weekday.
    (1..=12).filter(|month| plan.months >> month & 1 == 1).any(|month: usize| {
        LENGTHS[month]
            .iter()
            .any(|&length| (1..=length).any(|day| (0..7).any(|weekday| plan.days.hold(day, length, weekday))))
    })
}

/// The values that a field names.
#[derive(Debug, Default)]
struct Values {
    bits: u64,
    last_of_month: bool,
    nth_of_week: [u64; 5],
    last_of_week: u64,
}

impl Values {
    fn are_none(&self) -> bool {
        self.bits == 0 && !self.last_of_month && self.nth_of_week == [0; 5] && self.last_of_week == 0
    }
}

fn values(field: Field, text: &str, dialect: Dialect) -> Result<Values, CronError> {
    let mut values = Values::default();
    for part in text.split(',') {
        let refuse = |reason: String| CronError::Part { field, part: shown(part), reason };
        match dialect {
            Dialect::Standard => {
                if !add_special(&mut values, field, part).map_err(refuse)? {
                    values.bits |= standard(field, part).map_err(refuse)?;
                }
            }
            Dialect::Celery => values.bits |= celery(field, part).map_err(refuse)?,
            Dialect::TaskIq => match taskiq(field, text, part).map_err(refuse)? {
                TaskIqPart::Values(bits) => values.bits |= bits,
                TaskIqPart::ValuesAndStop(bits) => {
                    values.bits |= bits;
                    break;
                }
            },
        }
    }
    if values.are_none() {
        let reason = match field {
            Field::DayOfWeek => "TaskIQ never fires on it: days are 0 (Sunday) to 6".to_owned(),
            _ => format!("TaskIQ never fires on it: the field goes from {} to {}", field.first(), field.last()),
        };
        return Err(CronError::Part { field, part: shown(text), reason });
    }
    Ok(values)
}

/// A part as it is written, before a dialect says what it means.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    base: Base<'a>,
    step: Option<&'a str>,
}

#[derive(Debug, Clone, Copy)]
enum Base<'a> {
    All,
    One(&'a str),
    Range(&'a str, &'a str),
}

fn split(part: &str) -> Part<'_> {
    let (base, step) = match part.split_once('/') {
        Some((base, step)) => (base, Some(step)),
        None => (part, None),
    };
    let base = match base.split_once('-') {
        Some((from, to)) => Base::Range(from, to),
        None if base == "*" => Base::All,
        None => Base::One(base),
    };
    Part { base, step }
}

fn standard(field: Field, part: &str) -> Result<u64, String> {
    let Part { base, step } = split(part);
    // 7 is Sunday too, so that 5-7 can be written.
    let last = if field == Field::DayOfWeek { 7 } else { field.last() };
    let value = |text| value_within(field, text, field.first(), last);
    let (from, to) = match base {
        Base::All => (field.first(), field.last()),
        Base::One(text) if step.is_some() => (value(text)?, field.last()),
        Base::One(text) => (value(text)?, value(text)?),
        Base::Range(from, to) => (value(from)?, value(to)?),
    };
    let to = if field == Field::DayOfWeek && to == 0 && from > 0 { 7 } else { to };
    if from > to {
        return Err(format!(
            "the range runs backwards, write it as two: {from}-{},{}-{to}",
            field.last(),
            field.first()
        ));
    }
    let step = step.map_or(Ok(1), step_of)?;
    let length = field.last() - field.first() + 1;
    if step > length {
        return Err(format!("the step is longer than the field, which has {length} values; use an interval"));
    }
    let bits = bits_of((from..=to).step_by(step as usize));
    Ok(if field == Field::DayOfWeek { (bits | bits >> 7) & field.all() } else { bits })
}

/// Adds `L`, `5L` and `FRI#2`; answers whether the part was one of them.
fn add_special(values: &mut Values, field: Field, part: &str) -> Result<bool, String> {
    let upper = part.to_ascii_uppercase();
    match field {
        Field::DayOfMonth if upper == "L" => values.last_of_month = true,
        Field::DayOfMonth if upper.starts_with("L-") => {
            return Err("only the last day itself (`L`) is supported, not the days before it".to_owned());
        }
        Field::DayOfMonth if upper.ends_with('W') => return Err("`W` (nearest weekday) is not supported".to_owned()),
        Field::DayOfWeek if upper == "L" => {
            return Err("write which last weekday of the month, such as 5L, or SAT for every Saturday".to_owned());
        }
        Field::DayOfWeek if part.contains('#') => {
            let (day, nth) = part.split_once('#').unwrap_or((part, ""));
            let day = value_within(field, day, 0, 7)? % 7;
            match number(nth) {
                Some(nth @ 1..=5) => values.nth_of_week[nth as usize - 1] |= 1 << day,
                Some(_) | None => return Err("after `#` comes 1 to 5: which one of the month".to_owned()),
            }
        }
        Field::DayOfWeek if upper.ends_with('L') && upper.len() > 1 => {
            values.last_of_week |= 1 << (value_within(field, &upper[..upper.len() - 1], 0, 7)? % 7);
        }
        Field::Minute | Field::Hour | Field::DayOfMonth | Field::Month | Field::DayOfWeek => {
            if upper == "?" {
                return Err("write `*` instead".to_owned());
            }
            return Ok(false);
        }
    }
    Ok(true)
}

fn celery(field: Field, part: &str) -> Result<u64, String> {
    let Part { base, step } = split(part);
    let value = |text| value_within(field, text, field.first(), field.last());
    let step = step.map(step_of).transpose()?;
    let every = step.unwrap_or(1) as usize;
    Ok(match base {
        Base::All => bits_of((field.first()..=field.last()).step_by(every)),
        Base::One(_) if step.is_some() => return Err(STEP_NEEDS_RANGE.to_owned()),
        Base::One(text) => 1 << value(text)?,
        Base::Range(from, to) => {
            let (from, to) = (value(from)?, value(to)?);
            if from <= to {
                bits_of((from..=to).step_by(every))
            } else {
                bits_of((from..=field.last()).chain(field.first()..=to).step_by(every))
            }
        }
    })
}

enum TaskIqPart {
    Values(u64),
    /// The parts after this one are not looked at.
    ValuesAndStop(u64),
}

fn taskiq(field: Field, text: &str, part: &str) -> Result<TaskIqPart, String> {
    let Part { base, step } = split(part);
    let value = |text| {
        if field == Field::Month && !text_is_number(text) {
            return Err("TaskIQ knows no names of months, write 1 to 12".to_owned());
        }
        // Values beyond the field are allowed and match nothing.
        value_within(field, text, 0, u32::MAX)
    };
    let step_number = step.map(step_of).transpose()?;
    let every = step_number.unwrap_or(1) as usize;
    let bits = match base {
        Base::One("") => 0,
        Base::All if step.is_none() && text != "*" => {
            return Err("TaskIQ ignores a `*` in a list, write it alone".to_owned());
        }
        Base::All => bits_of((field.first()..=field.last()).step_by(every)),
        Base::One(_) if step.is_some() => return Err(STEP_NEEDS_RANGE.to_owned()),
        Base::One(text) => bits_of(std::iter::once(value(text)?)),
        Base::Range(from, _) if step.is_some() && !text_is_number(from) => {
            return Err("TaskIQ knows no step after a range of names, write numbers".to_owned());
        }
        Base::Range(from, to) => {
            let (from, to) = (value(from)?, value(to)?);
            if from > to && field == Field::DayOfWeek {
                return Ok(TaskIqPart::ValuesAndStop(bits_of(from..=6) & field.all()));
            }
            if from > to {
                return Err("the range runs backwards, TaskIQ never fires on it".to_owned());
            }
            bits_of((from..=to.min(63)).step_by(every))
        }
    };
    Ok(TaskIqPart::Values(bits & field.all()))
}

const STEP_NEEDS_RANGE: &str = "a step comes after `*` or a range here, such as */5 or 10-50/5";

fn step_of(text: &str) -> Result<u32, String> {
    match number(text) {
        Some(0) | None => Err("after `/` comes a number from 1".to_owned()),
        Some(step) => Ok(step),
    }
}

fn value_within(field: Field, text: &str, first: u32, last: u32) -> Result<u32, String> {
    let range = || match field {
        Field::DayOfWeek => format!("days of the week go from 0 (Sunday) to {}", last.min(7)),
        Field::Minute | Field::Hour | Field::DayOfMonth | Field::Month => {
            format!("the field goes from {} to {}", field.first(), field.last())
        }
    };
    if text_is_number(text) {
        return number(text).filter(|value| (first..=last).contains(value)).ok_or_else(range);
    }
    named(field, text).ok_or_else(|| match field {
        Field::Month => "write 1 to 12 or JAN to DEC".to_owned(),
        Field::DayOfWeek => "write 0 to 6 or SUN to SAT".to_owned(),
        Field::Minute | Field::Hour | Field::DayOfMonth => range(),
    })
}

fn named(field: Field, text: &str) -> Option<u32> {
    let position = |names: &[&str]| {
        names.iter().position(|name| text.eq_ignore_ascii_case(name) || text.eq_ignore_ascii_case(&name[..3]))
    };
    match field {
        Field::Month => position(&MONTHS).map(|at| at as u32 + 1),
        Field::DayOfWeek => position(&WEEKDAYS).map(|at| at as u32),
        Field::Minute | Field::Hour | Field::DayOfMonth => None,
    }
}

fn text_is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// A whole number; too many digits saturate, which every caller then finds out of range.
fn number(text: &str) -> Option<u32> {
    text_is_number(text).then(|| text.parse().unwrap_or(u32::MAX))
}

/// Values above 63 are in no field.
fn bits_of(values: impl Iterator<Item = u32>) -> u64 {
    values.take_while(|value| *value < 64).fold(0, |bits, value| bits | 1 << value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Cron;

    fn parsed(line: &str, dialect: Dialect) -> Plan {
        *Cron::parse(line, dialect).unwrap_or_else(|error| panic!("{line}: {error}")).plan()
    }

    fn list(bits: u64) -> Vec<u32> {
        (0..64).filter(|value| bits >> value & 1 == 1).collect()
    }

    fn bits(values: &[u32]) -> Vec<u32> {
        values.to_vec()
    }

    #[test]
    fn standard_fields_name_their_values() {
        for (text, values) in [
            ("0", vec![0]),
            ("5,10", vec![5, 10]),
            ("10-13", vec![10, 11, 12, 13]),
            ("*/20", vec![0, 20, 40]),
            ("10-30/10", vec![10, 20, 30]),
            ("5/15", vec![5, 20, 35, 50]),
            ("007", vec![7]),
            ("1,1,1-2", vec![1, 2]),
        ] {
            assert_eq!(list(parsed(&format!("{text} * * * *"), Dialect::Standard).minutes), values, "{text}");
        }
        for (text, values) in [
            ("7", vec![0]),
            ("5-7", vec![0, 5, 6]),
            ("0-7", vec![0, 1, 2, 3, 4, 5, 6]),
            ("mon-fri", vec![1, 2, 3, 4, 5]),
            ("Fri-Sun", vec![0, 5, 6]),
            ("SUNDAY,saturday", vec![0, 6]),
            ("*/2", vec![0, 2, 4, 6]),
            ("mon-fri/2", vec![1, 3, 5]),
        ] {
            assert_eq!(list(parsed(&format!("0 0 * * {text}"), Dialect::Standard).days.of_week), values, "{text}");
        }
        for (text, values) in [("JAN,dec", vec![1, 12]), ("*/5", vec![1, 6, 11]), ("mar-may", vec![3, 4, 5])] {
            assert_eq!(list(parsed(&format!("0 0 * {text} *"), Dialect::Standard).months), values, "{text}");
        }
    }

    #[test]
    fn words_of_the_standard_dialect_stand_for_lines() {
        for (word, line) in [
            ("@hourly", "0 * * * *"),
            ("@daily", "0 0 * * *"),
            ("@Weekly", "0 0 * * 0"),
            ("@monthly", "0 0 1 * *"),
            ("@yearly", "0 0 1 1 *"),
        ] {
            assert_eq!(parsed(word, Dialect::Standard), parsed(line, Dialect::Standard));
            assert!(matches!(Cron::parse(word, Dialect::Celery), Err(CronError::Word { .. })));
            assert!(matches!(Cron::parse(word, Dialect::TaskIq), Err(CronError::Word { .. })));
        }
    }

    #[test]
    fn celery_fields_name_their_values() {
        for (text, values) in [
            ("22-4", bits(&[0, 1, 2, 3, 4, 22, 23])),
            ("22-4/2", bits(&[0, 2, 4, 22])),
            ("*/100", bits(&[0])),
            ("*,5", (0..24).collect()),
            ("0,8-17/4", bits(&[0, 8, 12, 16])),
        ] {
            assert_eq!(list(parsed(&format!("0 {text} * * *"), Dialect::Celery).hours), values, "{text}");
        }
        assert_eq!(
            list(parsed("0 0 */3 * *", Dialect::Celery).days.of_month),
            [1, 4, 7, 10, 13, 16, 19, 22, 25, 28, 31]
        );
        assert_eq!(list(parsed("0 0 * * sat-mon", Dialect::Celery).days.of_week), [0, 1, 6]);
        assert_eq!(list(parsed("0 0 * nov-feb thursday", Dialect::Celery).months), [1, 2, 11, 12]);
        assert_eq!(parsed("0 0 13 * 5", Dialect::Celery).days.rule, DayRule::Both);
        for line in
            ["5/15 * * * *", "0 0 * * 7", "0 0 * * 5L", "0 0 L * *", "*/0 * * * *", "1,,2 * * * *", "60 * * * *"]
        {
            assert!(Cron::parse(line, Dialect::Celery).is_err(), "{line}");
        }
    }

    #[test]
    fn taskiq_fields_name_what_pycron_matches() {
        for (text, values) in [
            ("*/2", bits(&[0, 2, 4, 6])),
            ("1,7", bits(&[1])),
            ("5-7", bits(&[5, 6])),
            ("fri-mon", bits(&[5, 6])),
            ("fri-mon,wed", bits(&[5, 6])),
            ("wed,fri-mon", bits(&[3, 5, 6])),
            ("5-1/2", bits(&[5, 6])),
            ("Monday,TUE", bits(&[1, 2])),
            ("1-5/2", bits(&[1, 3, 5])),
            ("1,,2", bits(&[1, 2])),
        ] {
            assert_eq!(list(parsed(&format!("0 0 * * {text}"), Dialect::TaskIq).days.of_week), values, "{text}");
        }
        assert_eq!(list(parsed("50-70/5 * * * *", Dialect::TaskIq).minutes), [50, 55]);
        assert_eq!(list(parsed("*/90 * * * *", Dialect::TaskIq).minutes), [0]);
        assert_eq!(list(parsed("0 0 */10 */6 *", Dialect::TaskIq).days.of_month), [1, 11, 21, 31]);
        assert_eq!(list(parsed("0 0 */10 */6 *", Dialect::TaskIq).months), [1, 7]);
        for (line, rule) in [
            ("0 0 13 * 5", DayRule::Either),
            ("0 0 */2 * 5", DayRule::Both),
            ("0 0 1,*/2 * 5", DayRule::Both),
            ("0 0 13 * *", DayRule::Both),
        ] {
            assert_eq!(parsed(line, Dialect::TaskIq).days.rule, rule, "{line}");
        }
        for line in [
            "0 0 * * 7",
            "0 0 * JAN *",
            "5/15 * * * *",
            "*,5 * * * *",
            "0 0 * * mon-fri/2",
            "30-10 * * * *",
            "*/0 * * * *",
            "70 * * * *",
            ", * * * *",
            "0 0 L * *",
            "1-2-3 * * * *",
            "*/2/3 * * * *",
        ] {
            assert!(Cron::parse(line, Dialect::TaskIq).is_err(), "{line}");
        }
    }

    #[test]
    fn a_standard_field_that_begins_with_a_star_is_not_restricted() {
        for (line, rule) in [
            ("0 0 13 * 5", DayRule::Either),
            ("0 0 */2 * 5", DayRule::Both),
            ("0 0 1,*/2 * 5", DayRule::Either),
            ("0 0 13 * *", DayRule::Both),
            ("0 0 L * 5#1", DayRule::Either),
        ] {
            assert_eq!(parsed(line, Dialect::Standard).days.rule, rule, "{line}");
        }
    }

    #[test]
    fn a_refusal_says_what_to_write_instead() {
        for (line, words) in [
            ("0 0 0 * * *", "seconds are not supported"),
            ("", "this has 0"),
            ("* * * *", "this has 4"),
            ("* * * * * * *", "this has 7"),
            ("60 * * * *", "`60` in the minute field: the field goes from 0 to 59"),
            ("0 24 * * *", "from 0 to 23"),
            ("0 0 0 * *", "from 1 to 31"),
            ("0 0 * 13 *", "from 1 to 12"),
            ("0 0 * FOO *", "JAN to DEC"),
            ("0 0 * * 8", "0 (Sunday) to 7"),
            ("0 0 * * someday", "SUN to SAT"),
            ("0 22-4 * * *", "22-23,0-4"),
            ("*/90 * * * *", "use an interval"),
            ("*/0 * * * *", "a number from 1"),
            ("1,,2 * * * *", "`` in the minute field"),
            ("0 0 15W * *", "not supported"),
            ("0 0 LW * *", "not supported"),
            ("0 0 L-3 * *", "not the days before"),
            ("0 0 ? * 1", "write `*`"),
            ("0 0 * * L", "5L"),
            ("0 0 * * 5#6", "1 to 5"),
            ("@reboot", "when the process starts"),
            ("@every 5m", "use an interval"),
            ("@dayly", "@daily"),
            ("0 0 30 2 *", "never fires"),
            ("0 0 31 4,6,9,11 *", "never fires"),
            ("0 0 */31 * MON#2", "never fires"),
            ("-5 * * * *", "from 0 to 59"),
            ("5- * * * *", "from 0 to 59"),
        ] {
            let message = Cron::parse(line, Dialect::Standard).map(|_| line).unwrap_err().to_string();
            assert!(message.contains(words), "{line}: {message}");
        }
        assert!(Cron::parse("0 0 29 2 *", Dialect::Standard).is_ok());
    }

    #[test]
    fn a_hostile_line_is_refused_shortly() {
        let huge = "*,".repeat(1 << 20);
        let digits = format!("{} * * * *", "9".repeat(400));
        let step = format!("*/{} * * * *", "9".repeat(400));
        let names = format!("{} * * * *", "\u{1f980}".repeat(100));
        let escape = "\u{1b}[31m\u{202e} * * * *";
        let wide = "\u{ff15} * * * *";
        for line in [&huge, &digits, &names, escape, wide, "0 0 * * \u{e9}L", "0 0 * * #", "/ * * * *", "- * * * *"] {
            for dialect in [Dialect::Standard, Dialect::Celery, Dialect::TaskIq] {
                let message = Cron::parse(line, dialect).map(|_| ()).unwrap_err().to_string();
                assert!(message.len() < 500 && !message.contains('\u{1b}'), "{message}");
            }
        }
        assert!(Cron::parse(&step, Dialect::Standard).is_err());
        assert_eq!(list(parsed(&step, Dialect::Celery).minutes), [0]);
        assert_eq!(list(parsed("0-4294967295/4294967295 * * * *", Dialect::TaskIq).minutes), [0]);
    }

    #[test]
    fn a_line_at_its_limit_passes_and_one_over_does_not() {
        let line = |bytes: usize| format!("{}1 * * * *", "1,".repeat((bytes - 9) / 2));
        assert_eq!(line(CRON_BYTES_MAX - 1).len(), CRON_BYTES_MAX - 1);
        assert!(Cron::parse(&line(CRON_BYTES_MAX - 1), Dialect::Standard).is_ok());
        assert!(matches!(Cron::parse(&line(CRON_BYTES_MAX + 1), Dialect::Standard), Err(CronError::TooLong { .. })));
    }
}
