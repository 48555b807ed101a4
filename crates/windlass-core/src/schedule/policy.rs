//! What to do about slots: those that were missed, those whose last run still goes on, and those that all fall together.
//!
//! [`due`] is the whole decision of a scheduler, once per schedule and look at the clock. It remembers nothing: the store
//! keeps the next slot, and the push for (schedule, slot) is unique, so any number of schedulers may ask at once.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Spec, SpecError};
use crate::time::duration_text;
use crate::{ScheduleId, Timestamp, format_duration, parse_duration};

/// A slot that is not older than this is on time, whatever the policy: a scheduler may be busy for a moment.
pub const ON_TIME: Duration = Duration::from_secs(5);

/// The most slots that one [`due`] gives: one batch of pushes. The rest comes with the next call.
pub const FIRE_MAX: usize = 100;

/// Where [`due`] stops counting missed slots; read it as "so many or more". A minute schedule gets there in a week.
pub const MISSED_COUNT_MAX: u64 = 10_000;

/// The longest jitter.
pub const JITTER_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What becomes of slots that passed while nobody looked (no scheduler ran, or the clock was moved forward).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Missed {
    /// None of them fires.
    Skip,
    /// However many there are, one run makes up for all: the latest fires, unless a slot that is on time does. The default.
    #[default]
    Once,
    /// Each fires, the oldest first.
    All,
}

/// What becomes of missed slots, and up to what age.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct MissedPolicy {
    /// Which of them fire.
    #[serde(default)]
    pub what: Missed,
    /// A slot older than this never fires late; `None` is no limit. [`ON_TIME`] when shorter.
    #[serde(default, with = "duration_text::option", skip_serializing_if = "Option::is_none")]
    pub max_lateness: Option<Duration>,
}

/// What to do when a slot fires and the task of the slot before it is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overlap {
    /// Push anyway. The default.
    #[default]
    Allow,
    /// Leave the new slot out.
    Skip,
    /// Cancel the one that still runs, then push.
    CancelPrevious,
}

/// Spreads schedules that share a slot: each is delayed by its own part of a limit.
///
/// The delay depends only on the schedule and the slot, so every scheduler of the fleet computes the same one.
///
/// ```
/// use std::time::Duration;
/// use windlass_core::schedule::Jitter;
/// use windlass_core::{ScheduleId, Timestamp};
///
/// let jitter = Jitter::up_to(Duration::from_secs(30)).unwrap();
/// let (report, slot) = (ScheduleId::known("report"), Timestamp::from_secs(1_800_000_000));
/// assert!(jitter.delay(&report, slot) <= jitter.limit());
/// assert_eq!(jitter.delay(&report, slot), jitter.delay(&report, slot));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Jitter(Duration);

impl Jitter {
    /// No delay. The default.
    pub const NONE: Self = Self(Duration::ZERO);

    /// Delays from zero to `limit`, both included, in microseconds.
    ///
    /// # Errors
    /// [`SpecError::Jitter`] above [`JITTER_MAX`].
    pub fn up_to(limit: Duration) -> Result<Self, SpecError> {
        if limit > JITTER_MAX { Err(SpecError::Jitter) } else { Ok(Self(limit)) }
    }

    /// The longest delay.
    pub fn limit(self) -> Duration {
        self.0
    }

    /// How much later than its slot this schedule is pushed.
    pub fn delay(self, schedule: &ScheduleId, slot: Timestamp) -> Duration {
        let choices = self.0.as_micros() as u64 + 1;
        // Nodes of different versions must agree, so the hash is written out here: the standard library's may change.
        let hash = hash_of(schedule.as_str().bytes().chain(slot.as_micros().to_le_bytes()));
        Duration::from_micros(((u128::from(hash) * u128::from(choices)) >> 64) as u64)
    }
}

/// FNV-1a, and a last round of mixing because its high bits alone are weak.
fn hash_of(bytes: impl Iterator<Item = u8>) -> u64 {
    let hash = bytes
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let hash = (hash ^ (hash >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ (hash >> 29)
}

impl Serialize for Jitter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_duration(self.0))
    }
}

impl<'de> Deserialize<'de> for Jitter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let limit = parse_duration(&text).map_err(serde::de::Error::custom)?;
        Self::up_to(limit).map_err(serde::de::Error::custom)
    }
}

/// What [`due`] decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Due {
    /// The slots to push now, oldest first; at most [`FIRE_MAX`].
    pub fire: Vec<Timestamp>,
    /// How many slots passed and are given up, at most [`MISSED_COUNT_MAX`].
    pub missed: u64,
    /// The slot to remember. It may have passed already when more were due than one call gives: ask again at once.
    /// `None` when the schedule is over.
    pub next: Option<Timestamp>,
}

/// Decides which slots fire, given the slot that the store remembers (`next`) and the time (`now`).
///
/// Before `next` nothing fires, so a clock that was moved back fires no slot twice: it is silent until the remembered slot
/// is reached. From `next` on, slots not older than [`ON_TIME`] fire; the older ones were missed and follow the policy.
/// The work is bounded, however many slots were missed.
///
/// # Example
/// ```
/// use std::time::Duration;
/// use windlass_core::Timestamp;
/// use windlass_core::schedule::{Missed, MissedPolicy, Spec, due};
///
/// let hourly = Spec::cron("@hourly", "UTC").unwrap();
/// let stored: Timestamp = "2026-11-24T01:00:00Z".parse().unwrap();
/// let now = stored + Duration::from_secs(3 * 3600 + 60);
///
/// let once = due(&hourly, &MissedPolicy { what: Missed::Once, max_lateness: None }, stored, now);
/// assert_eq!((once.fire.len(), once.missed), (1, 3));
/// let all = due(&hourly, &MissedPolicy { what: Missed::All, max_lateness: None }, stored, now);
/// assert_eq!((all.fire.len(), all.missed), (4, 0));
/// assert_eq!(once.next, all.next);
/// ```
pub fn due(spec: &Spec, policy: &MissedPolicy, next: Timestamp, now: Timestamp) -> Due {
    if now < next {
        return Due { fire: Vec::new(), missed: 0, next: Some(next) };
    }
    let on_time = now - ON_TIME;
    let oldest_late = policy.max_lateness.map_or(next, |lateness| now - lateness).min(on_time);
    let first_from = match policy.what {
        Missed::Skip => on_time,
        Missed::Once => latest(spec, next, now).clamp(oldest_late, on_time),
        Missed::All => oldest_late,
    };
    let first = if next >= first_from { Some(next) } else { spec.next(first_from - Duration::from_micros(1)) };
    let mut fire = Vec::new();
    let mut slot = first;
    while let Some(passed) = slot.filter(|slot| *slot <= now && fire.len() < FIRE_MAX) {
        fire.push(passed);
        slot = spec.next(passed);
    }
    // Every slot before the first that fires is given up; one at `now` would be on time and fire.
    let missed = count(spec, next, first.unwrap_or(Timestamp::MAX).min(now));
    Due { fire, missed, next: slot }
}

/// The latest slot up to `now`, found by halving: a per-second schedule missed for years takes forty steps, not millions.
fn latest(spec: &Spec, known: Timestamp, now: Timestamp) -> Timestamp {
    let (mut latest, mut none_after) = (known, now);
    while latest < none_after {
        // Rounded down, so the middle is never `none_after` and each turn makes the stretch shorter.
        let middle = Timestamp::from_micros(latest.as_micros() + (none_after.as_micros() - latest.as_micros()) / 2);
        match spec.next(middle).filter(|slot| *slot <= none_after) {
            Some(slot) => latest = slot,
            None => none_after = middle,
        }
    }
    latest
}

/// How many slots there are from `next` up to `before`, counted up to [`MISSED_COUNT_MAX`].
fn count(spec: &Spec, next: Timestamp, before: Timestamp) -> u64 {
    std::iter::successors(Some(next), |slot| spec.next(*slot))
        .take_while(|slot| *slot < before)
        .take(MISSED_COUNT_MAX as usize)
        .count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn policy(what: Missed) -> MissedPolicy {
        MissedPolicy { what, max_lateness: None }
    }

    fn within(what: Missed, lateness: Duration) -> MissedPolicy {
        MissedPolicy { what, max_lateness: Some(lateness) }
    }

    const POLICIES: [Missed; 3] = [Missed::Skip, Missed::Once, Missed::All];

    #[test]
    fn nothing_fires_before_the_stored_slot() {
        let minutely = Spec::cron("* * * * *", "UTC").unwrap();
        let stored = at("2026-11-24T12:00:00Z");
        for what in POLICIES {
            // The clock was moved back by an hour.
            let due = due(&minutely, &policy(what), stored, stored - secs(3600));
            assert_eq!(due, Due { fire: vec![], missed: 0, next: Some(stored) });
        }
    }

    #[test]
    fn a_slot_on_time_fires_whatever_the_policy() {
        let hourly = Spec::cron("@hourly", "UTC").unwrap();
        let stored = at("2026-11-24T12:00:00Z");
        for policy in POLICIES.into_iter().flat_map(|what| [policy(what), within(what, Duration::ZERO)]) {
            for late in [Duration::ZERO, secs(1), ON_TIME] {
                let due = due(&hourly, &policy, stored, stored + late);
                assert_eq!(due, Due { fire: vec![stored], missed: 0, next: Some(stored + secs(3600)) }, "{policy:?}");
            }
        }
    }

    #[test]
    fn a_clock_moved_three_hours_forward_fires_as_the_policy_says() {
        let hourly = Spec::cron("@hourly", "UTC").unwrap();
        let stored = at("2026-11-24T01:00:00Z");
        let hour = |count: u64| stored + secs(count * 3600);
        let now = hour(3) + secs(600);
        for (policy, fire, missed) in [
            (policy(Missed::Skip), vec![], 4),
            (policy(Missed::Once), vec![hour(3)], 3),
            (policy(Missed::All), vec![stored, hour(1), hour(2), hour(3)], 0),
            (within(Missed::Once, secs(600)), vec![hour(3)], 3),
            (within(Missed::Once, secs(599)), vec![], 4),
            (within(Missed::All, secs(2 * 3600)), vec![hour(2), hour(3)], 2),
            (within(Missed::All, secs(60)), vec![], 4),
            (within(Missed::Skip, secs(7200)), vec![], 4),
        ] {
            let due = due(&hourly, &policy, stored, now);
            assert_eq!(due, Due { fire, missed, next: Some(hour(4)) }, "{policy:?}");
        }
    }

    #[test]
    fn a_slot_on_time_makes_up_for_the_missed_ones() {
        let hourly = Spec::cron("@hourly", "UTC").unwrap();
        let stored = at("2026-11-24T01:00:00Z");
        let now = stored + secs(2 * 3600 + 1);
        for (what, fired, missed) in [(Missed::Skip, 1, 2), (Missed::Once, 1, 2), (Missed::All, 3, 0)] {
            let due = due(&hourly, &policy(what), stored, now);
            assert_eq!((due.fire.len(), due.missed), (fired, missed), "{what:?}");
            assert_eq!(due.fire.last(), Some(&(stored + secs(7200))));
        }
    }

    #[test]
    fn a_one_off_is_over_when_it_fired_or_was_missed() {
        let stored = at("2026-11-24T01:00:00Z");
        let once = Spec::once(stored);
        for (what, fire, missed) in
            [(Missed::Skip, vec![], 1), (Missed::Once, vec![stored], 0), (Missed::All, vec![stored], 0)]
        {
            assert_eq!(due(&once, &policy(what), stored, stored + secs(60)), Due { fire, missed, next: None });
        }
    }

    #[test]
    fn a_per_second_schedule_missed_for_years_is_bounded() {
        let stored = at("1970-01-01T00:00:00Z");
        let now = at("2026-11-24T00:00:00Z");
        let secondly = Spec::every(secs(1), stored).unwrap();
        for (what, fired) in [(Missed::Skip, 6), (Missed::Once, 6), (Missed::All, FIRE_MAX)] {
            let due = due(&secondly, &policy(what), stored, now);
            assert_eq!(due.fire.len(), fired, "{what:?}");
            assert!(due.missed <= MISSED_COUNT_MAX);
            assert_eq!(due.next, due.fire.last().map(|slot| *slot + secs(1)));
        }
    }

    #[test]
    fn all_missed_slots_fire_over_several_calls_and_none_twice() {
        let minutely = Spec::cron("* * * * *", "UTC").unwrap();
        let stored = at("2026-11-24T00:00:00Z");
        let now = stored + secs(250 * 60);
        let mut fired = Vec::new();
        let mut next = stored;
        while next <= now {
            let due = due(&minutely, &policy(Missed::All), next, now);
            fired.extend(due.fire);
            next = due.next.unwrap();
        }
        let expected: Vec<_> = (0..=250).map(|minute| stored + secs(minute * 60)).collect();
        assert_eq!(fired, expected);
    }

    /// The decision again, from a list of every slot.
    fn due_from_list(slots: &[Timestamp], policy: MissedPolicy, now: Timestamp) -> (Vec<Timestamp>, u64) {
        let passed: Vec<_> = slots.iter().copied().filter(|slot| *slot <= now).collect();
        let on_time = |slot: &Timestamp| now.since(*slot) <= ON_TIME;
        let young = |slot: &Timestamp| policy.max_lateness.is_none_or(|lateness| now.since(*slot) <= lateness);
        let fire: Vec<_> = match policy.what {
            Missed::Skip => passed.iter().copied().filter(on_time).collect(),
            Missed::Once if passed.iter().any(on_time) => passed.iter().copied().filter(on_time).collect(),
            Missed::Once => passed.last().copied().filter(young).into_iter().collect(),
            Missed::All => passed.iter().copied().filter(|slot| on_time(slot) || young(slot)).collect(),
        };
        let missed = passed.len() - fire.len();
        (fire.into_iter().take(FIRE_MAX).collect(), missed as u64)
    }

    #[test]
    fn random_decisions_are_those_made_from_a_list_of_every_slot() {
        let given = std::env::var("WINDLASS_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| fastrand::u64(..));
        println!("WINDLASS_SEED={seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let start = at("2026-10-24T20:00:00Z");
        let specs = [
            Spec::cron("* * * * *", "UTC").unwrap(),
            Spec::cron("*/20 1-3 * * *", "Europe/Berlin").unwrap(),
            Spec::cron("@daily", "Africa/Cairo").unwrap(),
            Spec::every(secs(3), start).unwrap(),
            Spec::every(secs(5_000), start).unwrap(),
            Spec::once(start + secs(4_000)),
        ];
        for round in 0..600 {
            let spec = &specs[round % specs.len()];
            let Some(next) = spec.next(start + secs(random.u64(0..3_000))) else { continue };
            let longest_late = 10_u64.pow(random.u32(1..8));
            let now = next + Duration::from_millis(random.u64(0..longest_late));
            let max_lateness = random.bool().then(|| secs(random.u64(0..20_000)));
            let policy = MissedPolicy { what: random.choice(POLICIES).unwrap(), max_lateness };
            let slots: Vec<_> =
                std::iter::successors(Some(next), |slot| spec.next(*slot).filter(|slot| *slot <= now)).collect();
            let due = due(spec, &policy, next, now);
            let expected = due_from_list(&slots, policy, now);
            let case = format!("seed {seed}, round {round}: {spec:?} {policy:?} {next:?} {now:?}");
            assert_eq!((due.fire, due.missed), expected, "{case}");
            let full = expected.0.len() == FIRE_MAX;
            assert!(full || due.next.is_none_or(|next| next > now), "{case}");
        }
    }

    #[test]
    fn the_latest_slot_is_found_among_rare_and_dense_ones() {
        let now = at("2026-11-24T12:34:56Z");
        for line in ["* * * * *", "*/7 3 * * *", "0 0 29 2 *", "0 3 1 1 *", "59 23 31 12 *"] {
            let spec = Spec::cron(line, "Europe/Berlin").unwrap();
            let known = spec.next(at("2015-01-01T00:00:00Z")).unwrap();
            let found = latest(&spec, known, now);
            assert!(found <= now && spec.next(found).unwrap() > now, "{line}: {found}");
            assert_eq!(spec.next(found - Duration::from_micros(1)), Some(found), "{line}");
        }
    }

    #[test]
    fn a_jitter_is_the_same_everywhere_and_spread_over_its_limit() {
        let jitter = Jitter::up_to(secs(60)).unwrap();
        let slot = at("2026-11-24T00:00:00Z");
        // A stored value: it must never change between versions.
        let nightly = ScheduleId::known("nightly");
        assert_eq!(jitter.delay(&nightly, slot), Duration::from_micros(42_727_359));
        let mut tenths = [0; 10];
        for number in 0..1_000 {
            let delay = jitter.delay(&ScheduleId::known(&format!("schedule-{number}")), slot);
            assert!(delay <= jitter.limit());
            tenths[(delay.as_millis() / 6_001) as usize] += 1;
        }
        assert!(tenths.iter().all(|count| (60..=140).contains(count)), "{tenths:?}");
        assert_ne!(jitter.delay(&nightly, slot), jitter.delay(&nightly, slot + secs(60)));
        assert_eq!(Jitter::NONE.delay(&nightly, slot), Duration::ZERO);
    }

    #[test]
    fn a_jitter_at_its_limit_passes_and_one_over_does_not() {
        assert!(Jitter::up_to(JITTER_MAX).is_ok());
        assert_eq!(Jitter::up_to(JITTER_MAX + Duration::from_nanos(1)), Err(SpecError::Jitter));
    }

    #[test]
    fn policies_are_stored_as_words() {
        let json = r#"{"what":"all","max_lateness":"1h"}"#;
        let stored: MissedPolicy = serde_json::from_str(json).unwrap();
        assert_eq!(stored, within(Missed::All, secs(3600)));
        assert_eq!(serde_json::to_string(&stored).unwrap(), json);
        assert_eq!(serde_json::from_str::<MissedPolicy>("{}").unwrap(), MissedPolicy::default());
        assert_eq!(serde_json::to_string(&Overlap::CancelPrevious).unwrap(), "\"cancel_previous\"");
        assert_eq!(serde_json::from_str::<Jitter>("\"30s\"").unwrap().limit(), secs(30));
        assert!(serde_json::from_str::<Jitter>("\"2d\"").is_err());
    }
}
