//! Compares what was enqueued, what the store says and what the receiver has seen. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use windlass::view::Record;
use windlass::{DeadReason, State, TaskId, Timestamp, format_duration};

use super::plan::{CANCELLED, CHORD, DELAYED, Fate, PUT_OFF_BY, Subject, sum_of_squares};
use super::receiver::Arrival;
use super::report::{Check, Latency, Report, Speed, grouped, percentile};
use super::stage::Seen;
use crate::builtin::HttpAnswer;

/// A task with a time of its own that starts later than this, on a machine that delivers as fast as it can, is late.
const LATE: Duration = Duration::from_secs(2);
/// A scheduler that has not fired a slot this long after its time is behind.
const BEHIND: Duration = Duration::from_secs(3);
/// How many examples a problem names.
const EXAMPLES: usize = 3;

/// What was checked and measured in a run.
pub(super) fn report(seen: &Seen) -> Report {
    let facts = Facts::of(seen);
    let checks = vec![
        facts.delivered(),
        facts.repeated(),
        facts.put_off(),
        facts.dead_letters(),
        facts.recovered(),
        facts.schedule(),
        facts.chord(),
        facts.delayed(),
        facts.cancelled(),
        facts.nothing_left(),
    ];
    Report { checks, speed: facts.speed(), latencies: facts.latencies(), took: seen.took }
}

/// A run, in a form that answers questions.
struct Facts<'a> {
    seen: &'a Seen,
    arrivals: HashMap<&'a TaskId, Vec<&'a Arrival>>,
    records: HashMap<&'a TaskId, &'a Record>,
}

/// What a check found wrong: how many, and which to begin with.
#[derive(Default)]
struct Wrong {
    count: usize,
    examples: Vec<String>,
}

impl Wrong {
    fn note(&mut self, example: impl std::fmt::Display) {
        self.count += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(example.to_string());
        }
    }

    /// `3 were lost: a, b, c`.
    fn says(&self, what: &str) -> Option<String> {
        let more = if self.count > self.examples.len() { ", …" } else { "" };
        (self.count > 0).then(|| format!("{} {what}: {}{more}", grouped(self.count as u64), self.examples.join(", ")))
    }
}

impl Check {
    /// A check that holds when none of its problems is one.
    fn new(name: &'static str, detail: String, problems: impl IntoIterator<Item = Option<String>>) -> Self {
        let problems: Vec<String> = problems.into_iter().flatten().collect();
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        Self { name, detail, problem }
    }
}

/// Whether an answer was the last word: anything but "come back later".
fn is_final(arrival: &Arrival) -> bool {
    arrival.status != 503
}

impl<'a> Facts<'a> {
    fn of(seen: &'a Seen) -> Self {
        let records = seen.enqueued.all().zip(&seen.records);
        Self {
            seen,
            arrivals: seen.ledger.by_task(),
            records: records.filter_map(|(id, record)| Some((id, record.as_ref()?))).collect(),
        }
    }

    /// Every delivery with its number.
    fn deliveries(&self) -> impl Iterator<Item = (Subject, &'a TaskId)> {
        self.seen.enqueued.deliveries.iter().enumerate().map(|(number, id)| (Subject::Delivery(number as u32), id))
    }

    fn arrived(&self, id: &TaskId) -> &[&'a Arrival] {
        self.arrivals.get(id).map(Vec::as_slice).unwrap_or_default()
    }

    /// The first answer for good.
    fn answered(&self, id: &TaskId) -> Option<&'a Arrival> {
        self.arrived(id).iter().find(|arrival| is_final(arrival)).copied()
    }

    fn state(&self, id: &TaskId) -> Option<State> {
        self.records.get(id).map(|record| record.state)
    }

    fn was_held(&self, id: &TaskId) -> bool {
        self.seen.held.contains(id)
    }

    fn delivered(&self) -> Check {
        let (mut lost, mut unfinished, mut delivered) = (Wrong::default(), Wrong::default(), 0);
        for (subject, id) in self.deliveries().filter(|(subject, _)| subject.fate() != Fate::Refused) {
            match (self.answered(id), self.state(id)) {
                (Some(_), Some(State::Succeeded)) => delivered += 1,
                (None, _) => lost.note(subject),
                (Some(_), state) => {
                    unfinished.note(format_args!("{subject} is {}", state.map_or("gone", State::as_str)));
                }
            }
        }
        let all = grouped(self.seen.enqueued.deliveries.len() as u64);
        Check::new(
            "delivered",
            format!("{} of {all}, the others are refused on purpose; none is lost", grouped(delivered)),
            [lost.says("never arrived"), unfinished.says("arrived, but the store has not recorded it")],
        )
    }

    fn repeated(&self) -> Check {
        let (mut unexplained, mut repeated) = (Wrong::default(), 0);
        for (id, arrivals) in &self.arrivals {
            if arrivals.iter().filter(|arrival| is_final(arrival)).count() > 1 {
                repeated += 1;
                if !self.was_held(id) {
                    unexplained.note(id);
                }
            }
        }
        let held = self.seen.held.len();
        Check::new(
            "repeated",
            format!("{repeated} of the {held} that the killed worker had under way, and nothing else"),
            [unexplained.says("arrived twice though the killed worker did not hold them")],
        )
    }

    fn put_off(&self) -> Check {
        let (mut wrong, mut count, mut shortest) = (Wrong::default(), 0_u64, None::<Duration>);
        for (subject, id) in self.deliveries().filter(|(subject, _)| subject.fate() == Fate::PutOff) {
            count += 1;
            match self.arrived(id) {
                [first, second, ..] if first.status == 503 => {
                    let wait = second.at.since(first.at);
                    let as_asked = wait >= PUT_OFF_BY && second.attempt == first.attempt + 1;
                    // The verdict of the killed worker may not have reached the store.
                    if !as_asked && !self.was_held(id) {
                        wrong.note(format_args!("{subject} after {}", format_duration(wait)));
                    }
                    shortest = Some(shortest.map_or(wait, |shortest| shortest.min(wait)));
                }
                arrivals => wrong.note(format_args!("{subject} with {} requests", arrivals.len())),
            }
        }
        Check::new(
            "put off",
            format!(
                "{} were answered 503 with Retry-After: {}; each came back, the earliest after {:.2} s",
                grouped(count),
                PUT_OFF_BY.as_secs(),
                shortest.unwrap_or_default().as_secs_f64()
            ),
            [wrong.says("did not come back when they were asked to")],
        )
    }

    fn dead_letters(&self) -> Check {
        let (mut missing, mut unexpected, mut count) = (Wrong::default(), Wrong::default(), 0);
        for (subject, id) in self.deliveries() {
            let dead = self.records.get(id).filter(|record| record.state == State::Dead);
            match (subject.fate(), dead) {
                (Fate::Refused, Some(record)) if died_of_400(record) => count += 1,
                (Fate::Refused, _) => missing.note(subject),
                (Fate::Accepted | Fate::PutOff, None) => {}
                (Fate::Accepted | Fate::PutOff, Some(record)) => {
                    let why = record.failure.as_ref().map(ToString::to_string).unwrap_or_default();
                    unexpected.note(format_args!("{subject} ({why})"));
                }
            }
        }
        Check::new(
            "dead letters",
            format!("{count}, each for the 400 that it was answered (class http_4xx, no retry)"),
            [
                missing.says("were answered 400 and are no dead letters"),
                unexpected.says("are dead letters without a 400"),
            ],
        )
    }

    /// What the killed worker held.
    fn recovered(&self) -> Check {
        let (mut stuck, mut last) = (Wrong::default(), self.seen.killed_at);
        for id in &self.seen.held {
            // Tasks of the schedule and the end of the chord are judged by their own checks.
            let Some(record) = self.records.get(id) else { continue };
            match record.finished_at {
                Some(at) => last = last.max(at),
                None => stuck.note(id),
            }
        }
        let after = last.since(self.seen.killed_at).as_secs_f64();
        let (held, lease) = (self.seen.held.len(), format_duration(self.seen.lease));
        Check::new(
            "recovered",
            format!(
                "{held} tasks of the worker that was killed: all done by {after:.1} s later (its lease was {lease})"
            ),
            [stuck.says("were never taken over")],
        )
    }

    fn schedule(&self) -> Check {
        let Seen { schedule, enqueued, schedule_paused_at, .. } = self.seen;
        let Some(next) = schedule.next else {
            return Check::new("schedule", String::new(), [Some("it has no next slot".to_owned())]);
        };
        let slots = (enqueued.first_slot.as_secs()..next.as_secs()).map(Timestamp::from_secs);
        let planned: HashSet<TaskId> = slots.map(|slot| schedule.schedule.task_id(slot)).collect();
        let fired: HashSet<&TaskId> = self.about(Subject::Tick).map(|arrival| &arrival.id).collect();
        let (mut missing, mut extra) = (Wrong::default(), Wrong::default());
        planned.iter().filter(|id| !fired.contains(id)).for_each(|id| missing.note(id));
        fired.iter().filter(|id| !planned.contains(**id)).for_each(|id| extra.note(id));
        let behind = schedule_paused_at.since(next);
        let count = schedule.fired == planned.len() as u64 && schedule.missed == 0;
        Check::new(
            "schedule",
            format!("{} slots, one a second: each fired once, none is missing", planned.len()),
            [
                missing.says("slots never arrived"),
                extra.says("arrived that are no slots"),
                (!count).then(|| {
                    let (fired, missed) = (schedule.fired, schedule.missed);
                    format!("the store counts {fired} fired and {missed} missed of {} slots", planned.len())
                }),
                (behind > BEHIND).then(|| format!("the scheduler was {} behind", format_duration(behind))),
            ],
        )
    }

    fn chord(&self) -> Check {
        let mut unfinished = Wrong::default();
        for id in &self.seen.enqueued.members {
            if self.state(id) != Some(State::Succeeded) {
                unfinished.note(id);
            }
        }
        let ends: HashSet<&TaskId> = self.about(Subject::Chord).map(|arrival| &arrival.id).collect();
        let sum = self.seen.ledger.chord.as_ref().map(|body| sum_of(body));
        let expected = sum_of_squares();
        let wrong = match sum {
            None => Some("its end never arrived".to_owned()),
            Some(None) => Some("the results that arrived cannot be read".to_owned()),
            Some(Some(found)) if found != (CHORD as usize, expected) => {
                Some(format!("{} results with the sum {} arrived, not {CHORD} with {expected}", found.0, found.1))
            }
            Some(Some(_)) => None,
        };
        Check::new(
            "chord",
            format!("{CHORD} tasks, then one with all their results; their sum {} is right", grouped(expected)),
            [
                unfinished.says("members have not succeeded"),
                wrong,
                (ends.len() > 1).then(|| format!("it ended {} times", ends.len())),
            ],
        )
    }

    fn delayed(&self) -> Check {
        let (mut missing, mut early, mut late) = (Wrong::default(), Wrong::default(), Vec::new());
        for (number, (id, due)) in self.seen.enqueued.delayed.iter().enumerate() {
            let Some(arrival) = self.arrived(id).first() else {
                missing.note(Subject::Delayed(number as u32));
                continue;
            };
            if arrival.at < *due {
                early.note(format_args!("{} by {}", arrival.subject, format_duration(due.since(arrival.at))));
            }
            late.push(arrival.at.since(*due));
        }
        late.sort_unstable();
        let p99 = percentile(&late, 99);
        Check::new(
            "delayed",
            format!("{DELAYED}, none early; 99 of 100 within {:.0} ms of their time", p99.as_secs_f64() * 1_000.0),
            [
                missing.says("never arrived"),
                early.says("were too early"),
                (p99 > LATE).then(|| format!("the last hundredth was later than {}", format_duration(p99))),
            ],
        )
    }

    fn cancelled(&self) -> Check {
        let (mut arrived, mut other) = (Wrong::default(), Wrong::default());
        for id in &self.seen.enqueued.cancelled {
            if !self.arrived(id).is_empty() {
                arrived.note(id);
            }
            if self.state(id) != Some(State::Cancelled) {
                other.note(id);
            }
        }
        let now = self.seen.enqueued.cancelled_now;
        Check::new(
            "cancelled",
            format!("{CANCELLED}, none of them arrived"),
            [
                arrived.says("arrived all the same"),
                other.says("are not cancelled in the store"),
                (now != u64::from(CANCELLED)).then(|| format!("the store cancelled {now} of {CANCELLED}")),
            ],
        )
    }

    fn nothing_left(&self) -> Check {
        let (left, strangers) = (self.seen.left, self.seen.ledger.strangers);
        Check::new(
            "nothing left",
            "every task has ended, and nothing arrived that nobody enqueued".to_owned(),
            [
                (left > 0).then(|| format!("{} tasks have not ended in time", grouped(left))),
                (strangers > 0).then(|| format!("{} requests arrived that nobody planned", grouped(strangers))),
            ],
        )
    }

    fn about(&self, subject: Subject) -> impl Iterator<Item = &'a Arrival> {
        self.seen.ledger.arrivals.iter().filter(move |arrival| arrival.subject == subject)
    }

    /// The last hundredth waits for a lease and for `Retry-After`, which says nothing of speed.
    fn speed(&self) -> Speed {
        let good = |arrival: &&Arrival| matches!(arrival.subject, Subject::Delivery(_)) && is_final(arrival);
        let mut times: Vec<Timestamp> =
            self.seen.ledger.arrivals.iter().filter(good).map(|arrival| arrival.at).collect();
        times.sort_unstable();
        let within = times.len() - times.len() / 100;
        let (first, last) = match (times.first(), times[..within].last()) {
            (Some(first), Some(last)) => (*first, *last),
            (_, _) => return Speed { enqueued: 0.0, deliveries: 0.0, best: 0, attempts: 0.0 },
        };
        let a_second = |count: usize, took: Duration| count as f64 / took.as_secs_f64().max(0.001);
        let attempts = self.seen.ledger.arrivals.iter().filter(|arrival| (first..=last).contains(&arrival.at)).count();
        let mut seconds: BTreeMap<i64, u64> = BTreeMap::new();
        for at in &times {
            *seconds.entry(at.as_secs()).or_default() += 1;
        }
        Speed {
            enqueued: a_second(self.seen.enqueued.deliveries.len(), self.seen.enqueued.took),
            deliveries: a_second(within, last.since(first)),
            best: seconds.values().copied().max().unwrap_or_default(),
            attempts: a_second(attempts, last.since(first)),
        }
    }

    /// Without what the killed worker held: those wait for its lease, which has a line of its own.
    fn latencies(&self) -> Vec<Latency> {
        let undisturbed = || self.deliveries().filter(|(_, id)| !self.was_held(id));
        let accepted = undisturbed().filter(|(subject, _)| subject.fate() == Fate::Accepted);
        let waited = accepted.filter_map(|(_, id)| {
            let record = self.records.get(id)?;
            Some(self.answered(id)?.at.since(record.enqueued_at))
        });
        let ran = undisturbed().filter_map(|(_, id)| {
            let record = self.records.get(id)?;
            Some(record.finished_at?.since(record.started_at?))
        });
        let due: Vec<Duration> = self
            .seen
            .enqueued
            .delayed
            .iter()
            .filter(|(id, _)| !self.was_held(id))
            .filter_map(|(id, due)| Some(self.answered(id)?.at.since(*due)))
            .collect();
        let mut ticks: BTreeSet<(TaskId, Duration)> = BTreeSet::new();
        for arrival in self.about(Subject::Tick).filter(|arrival| !self.was_held(&arrival.id)) {
            let slot = arrival.id.to_string().rsplit_once('@').and_then(|(_, slot)| slot.parse::<Timestamp>().ok());
            ticks.extend(slot.map(|slot| (arrival.id.clone(), arrival.at.since(slot))));
        }
        vec![
            Latency::of("enqueued to delivered, behind the backlog", waited.collect()),
            Latency::of("started to ended", ran.collect()),
            Latency::of("due to delivered, priority 9", due),
            Latency::of("slot to delivered, priority 9", ticks.into_iter().map(|(_, late)| late).collect()),
        ]
    }
}

fn died_of_400(record: &Record) -> bool {
    record.reason == Some(DeadReason::Fatal)
        && record.failure.as_ref().is_some_and(|failure| failure.class == "http_4xx")
}

/// How many results there are, and their sum.
fn sum_of(body: &[u8]) -> Option<(usize, u64)> {
    let results: Vec<HttpAnswer> = serde_json::from_slice(body).ok()?;
    let numbers: Option<Vec<u64>> = results.iter().map(|answer| answer.body.parse().ok()).collect();
    numbers.map(|numbers| (numbers.len(), numbers.iter().sum()))
}

#[cfg(test)]
mod tests;
