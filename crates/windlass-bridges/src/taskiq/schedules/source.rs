//! The keys of a `ListRedisScheduleSource`.

use std::collections::BTreeSet;
use std::time::Duration;

use tracing::warn;
use windlass_core::Timestamp;
use windlass_core::bridge::TransportError;
use windlass_core::schedule::SpecError;
use windlass_redis::Location;
use windlass_redis::foreign::{Command, Line, Reply};
use windlass_wire::taskiq::Serializer;
use windlass_wire::taskiq::schedule::{ScheduledTask, data_key, time_key};

use crate::carrier::of_store;
use crate::taskiq::producer::{texts, words};

/// The most schedules that are read at once; others of the same source are not fired.
pub const SCHEDULES_MAX: usize = 10_000;
/// The longest id of a schedule, in bytes.
const ID_BYTES_MAX: usize = 200;
/// The data of so many schedules comes in one trip.
const TRIP: usize = 50;
/// The most answers to one question for the times that have passed.
const SCAN_MAX: usize = 10_000;

/// Whether schedules whose time had passed before anybody read them are fired: `skip_past_schedules`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PastTimes {
    /// They are, late.
    #[default]
    Fire,
    /// They stay where they are.
    Skip,
}

/// A schedule that was not added.
#[derive(Debug, thiserror::Error)]
pub enum ScheduleError {
    /// It never fires, or not as it says.
    #[error("schedule `{id}` is refused: {reason}")]
    Invalid {
        /// Its id, the start of it.
        id: String,
        /// What is wrong.
        reason: String,
    },
    /// The server did not take it.
    #[error("the schedule was not stored: {0}")]
    Transport(#[from] TransportError),
}

/// Where schedules are kept.
#[derive(Debug)]
pub struct Source {
    pub(super) line: Line,
    pub(super) prefix: String,
    serializer: Serializer,
    past: PastTimes,
}

impl Source {
    /// A source on this server. TaskIQ's defaults are the prefix `schedule`, pickles, and to fire what is past.
    pub fn new(location: Location, prefix: &str, serializer: Serializer, past: PastTimes) -> Self {
        Self { line: Line::to(location), prefix: prefix.to_owned(), serializer, past }
    }

    /// Stores a schedule, in the place of one with the same id.
    ///
    /// # Errors
    /// [`ScheduleError`].
    pub async fn put(&self, schedule: &ScheduledTask) -> Result<(), ScheduleError> {
        check(schedule)?;
        self.remove(&schedule.schedule_id).await?;
        let data = data_key(&self.prefix, &schedule.schedule_id).into_bytes();
        let mut commands = vec![vec![b"SET".to_vec(), data, schedule.encode(self.serializer)]];
        let indices = schedule.index_keys(&self.prefix);
        commands.extend(indices.iter().map(|index| words(&["RPUSH", index, &schedule.schedule_id])));
        self.line.ask_all(&commands).await.map_err(of_store)?;
        Ok(())
    }

    /// Takes a schedule away; does nothing when there is none.
    ///
    /// # Errors
    /// [`TransportError`]; repeat it.
    pub async fn remove(&self, schedule_id: &str) -> Result<(), TransportError> {
        let data = data_key(&self.prefix, schedule_id);
        let value = self.line.ask(&words(&["GET", &data])).await.map_err(of_store)?.bytes();
        let stored = value.and_then(|value| ScheduledTask::decode(&value, self.serializer).ok());
        let mut indices: BTreeSet<String> =
            stored.iter().flat_map(|schedule| schedule.index_keys(&self.prefix)).collect();
        indices.extend([self.index("cron"), self.index("interval")]);
        // The data goes last: what was broken off can be repeated.
        let mut commands: Vec<Command> =
            indices.iter().map(|index| words(&["LREM", index, "0", schedule_id])).collect();
        commands.push(words(&["DEL", &data]));
        self.line.ask_all(&commands).await.map(drop).map_err(of_store)
    }

    /// All schedules but those for times after `now + ahead`. Those that make no sense are left out.
    ///
    /// # Errors
    /// [`TransportError`].
    pub async fn read(&self, now: Timestamp, ahead: Duration) -> Result<Vec<ScheduledTask>, TransportError> {
        let mut indices = vec![self.index("cron"), self.index("interval")];
        indices.extend(minutes(now, ahead).map(|minute| time_key(&self.prefix, minute)));
        if self.past == PastTimes::Fire {
            indices.extend(self.past_indices(now).await?);
        }
        let commands: Vec<Command> =
            indices.iter().map(|index| words(&["LRANGE", index, "0", &(SCHEDULES_MAX - 1).to_string()])).collect();
        let lists = self.line.ask_all(&commands).await.map_err(of_store)?;
        let mut ids: BTreeSet<String> = lists.into_iter().flat_map(texts).collect();
        if ids.len() > SCHEDULES_MAX {
            warn!(prefix = self.prefix, schedules = ids.len(), "there are more schedules than are fired");
            ids = ids.into_iter().take(SCHEDULES_MAX).collect();
        }
        let ids: Vec<String> = ids.into_iter().collect();
        let mut schedules = Vec::with_capacity(ids.len());
        for trip in ids.chunks(TRIP) {
            let mut command = words(&["MGET"]);
            command.extend(trip.iter().map(|id| data_key(&self.prefix, id).into_bytes()));
            let values = self.line.ask(&command).await.map_err(of_store)?.list();
            for (id, value) in trip.iter().zip(values) {
                schedules.extend(value.bytes().and_then(|value| self.sound(id, &value)));
            }
        }
        Ok(schedules)
    }

    /// A schedule that can be fired.
    fn sound(&self, id: &str, value: &[u8]) -> Option<ScheduledTask> {
        let checked =
            ScheduledTask::decode(value, self.serializer).map_err(|reason| reason.to_string()).and_then(|schedule| {
                match check(&schedule) {
                    Ok(()) => Ok(schedule),
                    Err(error) => Err(error.to_string()),
                }
            });
        match checked {
            Ok(schedule) => Some(schedule),
            Err(reason) => {
                warn!(schedule = shown(id), reason, "a schedule makes no sense; it is not fired");
                None
            }
        }
    }

    /// The lists of minutes before this one.
    async fn past_indices(&self, now: Timestamp) -> Result<Vec<String>, TransportError> {
        let (this_minute, begins) = (time_key(&self.prefix, now), format!("{}:time:", self.prefix));
        let pattern = format!("{}*", begins.replace(['*', '?', '[', ']', '\\'], "?"));
        let (mut past, mut cursor) = (Vec::new(), "0".to_owned());
        for _ in 0..SCAN_MAX {
            let command = words(&["SCAN", &cursor, "MATCH", &pattern, "COUNT", "1000"]);
            let mut answer = self.line.ask(&command).await.map_err(of_store)?.list().into_iter();
            cursor = answer
                .next()
                .and_then(Reply::bytes)
                .and_then(|cursor| String::from_utf8(cursor).ok())
                .unwrap_or_else(|| "0".to_owned());
            let keys = answer.next().map(texts).unwrap_or_default();
            // They have the same length and sort as their times do.
            past.extend(keys.into_iter().filter(|key| key.starts_with(&begins) && *key < this_minute));
            if cursor == "0" || past.len() >= SCHEDULES_MAX {
                break;
            }
        }
        Ok(past)
    }

    fn index(&self, kind: &str) -> String {
        format!("{}:{kind}", self.prefix)
    }
}

/// An instant of each minute from `now` to `now + ahead`.
fn minutes(now: Timestamp, ahead: Duration) -> impl Iterator<Item = Timestamp> {
    let minutes = ahead.as_secs() / 60 + 1;
    (0..=minutes).map(move |minute| now + Duration::from_secs(60 * minute))
}

fn check(schedule: &ScheduledTask) -> Result<(), ScheduleError> {
    let invalid = |reason: String| ScheduleError::Invalid { id: shown(&schedule.schedule_id), reason };
    if schedule.schedule_id.is_empty() || schedule.schedule_id.len() > ID_BYTES_MAX {
        return Err(invalid(format!("its id must have 1 to {ID_BYTES_MAX} bytes")));
    }
    let specs = schedule.specs(Timestamp::MIN).map_err(|error: SpecError| invalid(error.to_string()))?;
    if specs.is_empty() {
        return Err(invalid("it has neither `cron` nor `time` nor `interval`".to_owned()));
    }
    Ok(())
}

/// The start of an id from outside, safe in a log.
pub(super) fn shown(id: &str) -> String {
    id.chars().take(60).flat_map(char::escape_debug).collect()
}
