//! Schedules as TaskIQ's sources in Redis keep them.
//!
//! | kind | data | index |
//! |---|---|---|
//! | every schedule | `SET <prefix>:data:<id>` | |
//! | with `cron` | | `RPUSH <prefix>:cron <id>` |
//! | with `time` | | `RPUSH <prefix>:time:<UTC minute> <id>` |
//! | with `interval` | | `RPUSH <prefix>:interval <id>` |

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Map, Value};
use windlass_core::schedule::{Dialect, Spec, SpecError};
use windlass_core::{Json, Timestamp};

use super::label::{Label, Labels};
use super::message::Message;
use super::result::Serializer;
use crate::error::{Malformed, shown};
use crate::json;

/// The longest interval that is read.
const INTERVAL_MAX: Duration = Duration::from_secs(366 * 86_400);

/// A schedule.
#[derive(Debug, Clone, PartialEq)]
pub struct ScheduledTask {
    /// The name of the task.
    pub task_name: String,
    /// Its labels; their types are lost.
    pub labels: Map<String, Value>,
    /// Positional arguments: an array.
    pub args: Json,
    /// Keyword arguments: an object.
    pub kwargs: Json,
    /// The id of the task that is sent; a new one for each when there is none.
    pub task_id: Option<String>,
    /// The id of the schedule.
    pub schedule_id: String,
    /// A cron line of five fields, in UTC unless there is an offset.
    pub cron: Option<String>,
    /// A zone by its name, or an offset as ISO 8601 duration: `PT2H`.
    pub cron_offset: Option<String>,
    /// Once, at this time.
    pub time: Option<Timestamp>,
    /// Again and again, this far apart.
    pub interval: Option<Duration>,
}

#[derive(Deserialize)]
struct Wire {
    task_name: String,
    #[serde(default)]
    labels: Map<String, Value>,
    args: Json,
    kwargs: Json,
    #[serde(default)]
    task_id: Option<String>,
    schedule_id: String,
    #[serde(default)]
    cron: Option<String>,
    #[serde(default)]
    cron_offset: Option<String>,
    #[serde(default)]
    time: Option<String>,
    #[serde(default)]
    interval: Option<Value>,
}

impl ScheduledTask {
    /// Reads a stored schedule.
    ///
    /// # Errors
    /// [`Malformed`] when it is none, or never fires.
    pub fn decode(bytes: &[u8], serializer: Serializer) -> Result<Self, Malformed> {
        let text = serializer.decode("schedule", bytes)?;
        json::check_object("schedule", text.as_str())?;
        let wire: Wire = json::object("schedule", text.as_str())?;
        if !wire.args.as_str().starts_with('[') || !wire.kwargs.as_str().starts_with('{') {
            return Err(Malformed::shape("arguments of a schedule", "an array and an object"));
        }
        // Times without an offset are UTC, as the scheduler reads them.
        let time = wire.time.as_deref().map(|text| crate::celery::parse_time("`time`", text, &jiff::tz::TimeZone::UTC));
        let schedule = Self {
            task_name: wire.task_name,
            labels: wire.labels,
            args: wire.args,
            kwargs: wire.kwargs,
            task_id: wire.task_id,
            schedule_id: wire.schedule_id,
            cron: wire.cron,
            cron_offset: wire.cron_offset,
            time: time.transpose()?,
            interval: wire.interval.filter(|value| !value.is_null()).map(interval).transpose()?,
        };
        if schedule.cron.is_none() && schedule.time.is_none() && schedule.interval.is_none() {
            return Err(Malformed::Missing("`cron`, `time` or `interval` of a schedule"));
        }
        Ok(schedule)
    }

    /// The schedule as a source stores it.
    pub fn encode(&self, serializer: Serializer) -> Vec<u8> {
        let text = |text: Option<&str>| text.map_or_else(|| "null".to_owned(), json::quoted);
        let time = self.time.map(|at| {
            let iso = crate::celery::iso_time(at);
            format!("{}Z", iso.trim_end_matches("+00:00"))
        });
        // The type of the field is a number or a duration; both are read.
        let interval = self.interval.map(|every| match every.subsec_nanos() {
            0 => every.as_secs().to_string(),
            _ => json::quoted(&format!("PT{}S", every.as_secs_f64())),
        });
        let members = [
            ("task_name", json::quoted(&self.task_name)),
            ("labels", Value::Object(self.labels.clone()).to_string()),
            ("args", self.args.as_str().to_owned()),
            ("kwargs", self.kwargs.as_str().to_owned()),
            ("task_id", text(self.task_id.as_deref())),
            ("schedule_id", json::quoted(&self.schedule_id)),
            ("cron", text(self.cron.as_deref())),
            ("cron_offset", text(self.cron_offset.as_deref())),
            ("time", text(time.as_deref())),
            ("interval", interval.unwrap_or_else(|| "null".to_owned())),
        ];
        let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
        serializer.encode(&Json::trusted(format!("{{{}}}", members.join(", "))))
    }

    /// The message that is sent when it fires; `new_id` is used when the schedule names no task id.
    pub fn message(&self, new_id: &str) -> Message {
        let mut labels: Labels =
            Labels(self.labels.iter().map(|(name, value)| (name.clone(), Label::from_value(value.clone()))).collect());
        labels.0.insert("schedule_id".to_owned(), Label::Text(self.schedule_id.clone()));
        Message {
            task_id: self.task_id.clone().unwrap_or_else(|| new_id.to_owned()),
            task_name: self.task_name.clone(),
            labels,
            args: self.args.clone(),
            kwargs: self.kwargs.clone(),
        }
    }

    /// When it fires, as a schedule of ours; intervals count from `anchor`. One for each of cron, time and interval.
    ///
    /// # Errors
    /// [`SpecError`] for a line or a zone that is not known. An offset that is no zone and no whole hour is such a one.
    pub fn specs(&self, anchor: Timestamp) -> Result<Vec<Spec>, SpecError> {
        let mut specs = Vec::new();
        if let Some(line) = &self.cron {
            let zone = self.cron_offset.as_deref().map_or_else(|| "UTC".to_owned(), zone_of);
            specs.push(Spec::cron_of(Dialect::TaskIq, line, &zone)?);
        }
        specs.extend(self.time.map(Spec::once));
        if let Some(every) = self.interval {
            specs.push(Spec::every(every, anchor)?);
        }
        Ok(specs)
    }

    /// The keys of the lists that name this schedule.
    pub fn index_keys(&self, prefix: &str) -> Vec<String> {
        let cron = self.cron.as_ref().map(|_| format!("{prefix}:cron"));
        let time = self.time.map(|at| time_key(prefix, at));
        let interval = self.interval.map(|_| format!("{prefix}:interval"));
        [cron, time, interval].into_iter().flatten().collect()
    }
}

/// The key of a schedule's data.
pub fn data_key(prefix: &str, schedule_id: &str) -> String {
    format!("{prefix}:data:{schedule_id}")
}

/// The key of the list of schedules of one minute.
///
/// ```
/// use windlass_wire::taskiq::schedule::time_key;
/// let at = "2040-01-02T03:04:05Z".parse().unwrap();
/// assert_eq!(time_key("schedule", at), "schedule:time:2040-01-02T03:04");
/// ```
pub fn time_key(prefix: &str, at: Timestamp) -> String {
    let minute = crate::celery::iso_time(at);
    format!("{prefix}:time:{}", &minute[..minute.len().min(16)])
}

/// Whole hours east of UTC have a zone with a name; its sign is the other way round.
fn zone_of(offset: &str) -> String {
    let (negative, text) = offset.strip_prefix('-').map_or((false, offset), |text| (true, text));
    let Ok(length) = iso_duration(text) else { return offset.to_owned() };
    match (length.as_secs() / 3600, length.as_secs() % 3600) {
        (0, 0) => "UTC".to_owned(),
        (hours, 0) => format!("Etc/GMT{}{hours}", if negative { '+' } else { '-' }),
        _ => offset.to_owned(),
    }
}

fn interval(value: Value) -> Result<Duration, Malformed> {
    const PART: &str = "`interval`";
    const EXPECTED: &str = "seconds, or an ISO 8601 duration such as `PT30S`";
    let length = match value {
        Value::Number(seconds) => seconds.as_f64().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
        Value::String(text) => Some(iso_duration(&text)?),
        _ => None,
    };
    length.filter(|length| !length.is_zero() && *length <= INTERVAL_MAX).ok_or(Malformed::shape(PART, EXPECTED))
}

/// Reads `P1DT2H3M4.5S`; months and years have no length and are refused.
fn iso_duration(text: &str) -> Result<Duration, Malformed> {
    let wrong = || Malformed::Time { part: "duration", text: shown(text) };
    let rest = text.strip_prefix('P').filter(|rest| !rest.is_empty() && rest.len() < 64).ok_or_else(wrong)?;
    let (mut seconds, mut number, mut in_time) = (0.0_f64, String::new(), false);
    for char in rest.chars() {
        let unit = match (char, in_time) {
            ('0'..='9' | '.', _) => {
                number.push(char);
                continue;
            }
            ('T', false) if number.is_empty() => {
                in_time = true;
                continue;
            }
            ('W', false) => 7.0 * 86_400.0,
            ('D', false) => 86_400.0,
            ('H', true) => 3_600.0,
            ('M', true) => 60.0,
            ('S', true) => 1.0,
            _ => return Err(wrong()),
        };
        seconds += number.parse::<f64>().map_err(|_| wrong())? * unit;
        number.clear();
    }
    if !number.is_empty() {
        return Err(wrong());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_iso_8601() {
        for (text, seconds) in [("PT30S", 30.0), ("P1DT2H3M4.5S", 93_784.5), ("P1W", 604_800.0), ("PT0S", 0.0)] {
            assert_eq!(iso_duration(text), Ok(Duration::from_secs_f64(seconds)), "{text}");
        }
        for text in ["", "P", "30", "P1M", "PT1", "PTS", "P1TT1S", "PT1.2.3S"] {
            assert!(iso_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_offset_of_whole_hours_is_a_zone() {
        assert_eq!(zone_of("PT2H"), "Etc/GMT-2");
        assert_eq!(zone_of("-PT5H"), "Etc/GMT+5");
        assert_eq!(zone_of("PT5H30M"), "PT5H30M");
        assert_eq!(zone_of("Europe/Berlin"), "Europe/Berlin");
        assert_eq!(zone_of("PT0S"), "UTC");
    }
}
