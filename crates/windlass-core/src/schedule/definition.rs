//! A schedule: when it fires, what it pushes and by which policies.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Dialect, Jitter, Missed, MissedPolicy, Overlap, Spec, SpecError};
use crate::envelope::{Due, Envelope, InvalidEnvelope, Source};
use crate::time::duration_text;
use crate::{InvalidDuration, InvalidName, ScheduleId, TaskId, Timestamp};

/// The longest id of a schedule, in bytes: the ids of its tasks contain it.
pub const SCHEDULE_ID_BYTES_MAX: usize = 200;

/// A recurring push.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// Its identity.
    pub id: ScheduleId,
    /// When it fires.
    pub spec: Spec,
    /// What it pushes; the id and the due time are those of the slot.
    pub task: Envelope,
    /// A task that has not been started this long after it was pushed is not started any more.
    #[serde(default, with = "duration_text::option", skip_serializing_if = "Option::is_none")]
    pub expires_after: Option<Duration>,
    /// What becomes of slots that passed while no scheduler ran.
    #[serde(default)]
    pub missed: MissedPolicy,
    /// What happens when the task of the slot before has not ended.
    #[serde(default)]
    pub overlap: Overlap,
    /// How far its pushes are spread.
    #[serde(default)]
    pub jitter: Jitter,
    /// Who declared it.
    #[serde(default)]
    pub origin: Origin,
}

/// Who declared a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The application's code: set anew whenever a node starts.
    Code,
    /// A person or another program, at run time.
    #[default]
    Operator,
}

impl Schedule {
    /// The task of a slot. Its id is the schedule and the slot, so that a slot is pushed once, however many try.
    pub fn instance(&self, slot: Timestamp, now: Timestamp) -> Envelope {
        let delay = self.jitter.delay(&self.id, slot);
        Envelope {
            id: self.task_id(slot),
            due: if delay.is_zero() { Due::Now } else { Due::After(delay) },
            expires: self.expires_after.map(|after| now + delay + after),
            source: Source::Schedule { id: self.id.clone(), slot },
            ..self.task.clone()
        }
    }

    /// The id of the task of a slot.
    pub fn task_id(&self, slot: Timestamp) -> TaskId {
        TaskId::new(format!("{}@{slot}", self.id))
            .unwrap_or_else(|error| unreachable!("the id was checked when the schedule was made: {error}"))
    }

    /// Checks what cannot be checked by its parts.
    ///
    /// # Errors
    /// [`InvalidSchedule`].
    pub fn check(&self, now: Timestamp) -> Result<(), InvalidSchedule> {
        if self.id.as_str().len() > SCHEDULE_ID_BYTES_MAX {
            return Err(InvalidSchedule::IdTooLong);
        }
        // The ids of its tasks contain it, and they take no spaces.
        TaskId::new(&self.id)?;
        Ok(self.task.check(now)?)
    }
}

/// A schedule that cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum InvalidSchedule {
    /// When it fires is not written well.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// A duration is not written well.
    #[error(transparent)]
    Duration(#[from] InvalidDuration),
    /// Its id breaks the rule of names.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Its id is too long.
    #[error("the id of a schedule takes at most {SCHEDULE_ID_BYTES_MAX} bytes")]
    IdTooLong,
    /// What it pushes breaks a limit.
    #[error(transparent)]
    Task(#[from] InvalidEnvelope),
}

/// When a schedule fires and by which policies, as it is written in code: [`cron`], [`every`], [`once`].
///
/// ```
/// use windlass_core::schedule::{Missed, Overlap, cron};
/// let nightly = cron("0 3 * * *").zone("Europe/Berlin").missed(Missed::Skip).overlap(Overlap::Skip);
/// ```
#[derive(Debug, Clone)]
pub struct When {
    base: Base,
    zone: String,
    dialect: Dialect,
    missed: MissedPolicy,
    overlap: Overlap,
    jitter: Duration,
}

#[derive(Debug, Clone)]
enum Base {
    Cron(String),
    Every(String),
    Once(Timestamp),
}

/// At the times that a cron line names, in UTC unless [`When::zone`] says otherwise.
pub fn cron(line: &str) -> When {
    When::new(Base::Cron(line.to_owned()))
}

/// Again and again: `every("30s")`. From one second on. The slots are whole periods since 1970, so that every node agrees.
pub fn every(period: &str) -> When {
    When::new(Base::Every(period.to_owned()))
}

/// At one instant.
pub fn once(at: Timestamp) -> When {
    When::new(Base::Once(at))
}

impl When {
    fn new(base: Base) -> Self {
        Self {
            base,
            zone: "UTC".to_owned(),
            dialect: Dialect::Standard,
            missed: MissedPolicy::default(),
            overlap: Overlap::default(),
            jitter: Duration::ZERO,
        }
    }

    /// The time zone of a cron line: any IANA name.
    #[must_use]
    pub fn zone(mut self, zone: &str) -> Self {
        zone.clone_into(&mut self.zone);
        self
    }

    /// The dialect of a cron line.
    #[must_use]
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// What becomes of slots that passed while no scheduler ran; [`Missed::Once`] without it.
    #[must_use]
    pub fn missed(mut self, what: Missed) -> Self {
        self.missed.what = what;
        self
    }

    /// Slots older than this never fire late.
    #[must_use]
    pub fn max_lateness(mut self, limit: Duration) -> Self {
        self.missed.max_lateness = Some(limit);
        self
    }

    /// What happens when the task of the slot before has not ended; [`Overlap::Allow`] without it.
    #[must_use]
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = overlap;
        self
    }

    /// Spreads the pushes of schedules that share a slot over this time.
    #[must_use]
    pub fn jitter(mut self, up_to: Duration) -> Self {
        self.jitter = up_to;
        self
    }

    /// The schedule that pushes `template`, an envelope that was made at [`Timestamp::MIN`].
    ///
    /// # Errors
    /// [`InvalidSchedule`].
    pub fn schedule(self, id: &str, template: Envelope) -> Result<Schedule, InvalidSchedule> {
        let id = ScheduleId::new(id)?;
        let spec = match &self.base {
            Base::Cron(line) => Spec::cron_of(self.dialect, line, &self.zone)?,
            Base::Every(period) => Spec::every(crate::parse_duration(period)?, Timestamp::MIN)?,
            Base::Once(at) => Spec::once(*at),
        };
        let schedule = Schedule {
            // Equal declarations must be equal data: a random id would make every start of a node an edit.
            task: Envelope { id: TaskId::new(&id)?, expires: None, ..template.clone() },
            id,
            spec,
            expires_after: template.expires.map(|expires| expires.since(Timestamp::MIN)),
            missed: self.missed,
            overlap: self.overlap,
            jitter: Jitter::up_to(self.jitter)?,
            origin: Origin::Code,
        };
        schedule.check(Timestamp::MIN)?;
        Ok(schedule)
    }
}

impl From<&str> for When {
    /// A cron line.
    fn from(line: &str) -> Self {
        cron(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Args, QueueName, TaskName};

    fn template() -> Envelope {
        Envelope::new(TaskName::known("report"), QueueName::default(), Args::none())
    }

    #[test]
    fn equal_declarations_are_equal_data() {
        let declare = || every("30s").jitter(Duration::from_secs(2)).schedule("tick", template()).unwrap();
        assert_eq!(declare(), declare());
        let stored = serde_json::to_string(&declare()).unwrap();
        assert_eq!(serde_json::from_str::<Schedule>(&stored).unwrap(), declare());
    }

    #[test]
    fn the_task_of_a_slot_is_named_after_it() {
        let schedule = cron("0 3 * * *").schedule("nightly", template()).unwrap();
        let slot = Timestamp::from_secs(1_800_000_000);
        let task = schedule.instance(slot, slot);
        assert_eq!(task.id, schedule.task_id(slot));
        assert_eq!(task.source, Source::Schedule { id: schedule.id, slot });
    }

    #[test]
    fn mistakes_are_found_when_it_is_declared() {
        assert!(cron("61 * * * *").schedule("x", template()).is_err());
        assert!(every("10ms").schedule("x", template()).is_err());
        assert!(cron("* * * * *").zone("Europe/Berlino").schedule("x", template()).is_err());
        assert!(cron("* * * * *").schedule(&"x".repeat(SCHEDULE_ID_BYTES_MAX), template()).is_ok());
        assert!(cron("* * * * *").schedule(&"x".repeat(SCHEDULE_ID_BYTES_MAX + 1), template()).is_err());
    }
}
