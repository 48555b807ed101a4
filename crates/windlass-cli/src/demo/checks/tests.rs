//! Every check holds for a run without mistakes, and exactly the right ones fail for each mistake.

use windlass::schedule::every;
use windlass::view::ScheduleRecord;
use windlass::{Envelope, Failure};

use super::*;
use crate::builtin::HttpRequest;
use crate::demo::receiver::Ledger;
use crate::demo::stage::Enqueued;

const DELIVERIES: u32 = 1_000;
const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const SECOND: Duration = Duration::from_secs(1);

fn envelope() -> Envelope {
    Envelope::of(&HttpRequest::to("http://127.0.0.1:1/"), Timestamp::MIN).unwrap()
}

fn record(state: State) -> Record {
    Record {
        envelope: envelope(),
        state,
        attempt: 1,
        crashes: 0,
        enqueued_at: START,
        due_at: None,
        started_at: Some(START),
        finished_at: Some(START + SECOND),
        node: None,
        progress: None,
        cancel_requested: false,
        result: None,
        skipped: None,
        reason: None,
        failure: None,
        memo: String::new(),
        waits_for: None,
        history: Vec::new(),
    }
}

fn arrive(ledger: &mut Ledger, subject: Subject, id: &TaskId, attempt: u32, at: Timestamp, status: u16) {
    ledger.arrivals.push(Arrival { subject, id: id.clone(), attempt, at, status });
}

/// A run without mistakes. The killed worker held the first two deliveries; the first one arrived twice.
fn perfect() -> Seen {
    let mut ledger = Ledger::default();
    let mut enqueued = Enqueued { first_slot: START, cancelled_now: u64::from(CANCELLED), ..Enqueued::default() };
    let mut records = Vec::new();
    for number in 0..DELIVERIES {
        let (subject, id) = (Subject::Delivery(number), TaskId::random());
        match subject.fate() {
            Fate::Accepted => {
                arrive(&mut ledger, subject, &id, 1, START + SECOND, 200);
                records.push(Some(record(State::Succeeded)));
            }
            Fate::PutOff => {
                arrive(&mut ledger, subject, &id, 1, START, 503);
                arrive(&mut ledger, subject, &id, 2, START + PUT_OFF_BY, 200);
                records.push(Some(record(State::Succeeded)));
            }
            Fate::Refused => {
                arrive(&mut ledger, subject, &id, 1, START, 400);
                let failure = Some(Failure::new("http_4xx", "no such order"));
                records.push(Some(Record { reason: Some(DeadReason::Fatal), failure, ..record(State::Dead) }));
            }
        }
        enqueued.deliveries.push(id);
    }
    arrive(&mut ledger, Subject::Delivery(0), &enqueued.deliveries[0], 2, START + 6 * SECOND, 200);
    for number in 0..DELAYED {
        let (id, due) = (TaskId::random(), START + SECOND);
        arrive(&mut ledger, Subject::Delayed(number), &id, 1, due + SECOND / 100, 200);
        enqueued.delayed.push((id, due));
        records.push(Some(record(State::Succeeded)));
    }
    for _ in 0..CANCELLED {
        enqueued.cancelled.push(TaskId::random());
        records.push(Some(record(State::Cancelled)));
    }
    for number in 0..CHORD {
        let id = TaskId::random();
        arrive(&mut ledger, Subject::Member(number), &id, 1, START, 200);
        enqueued.members.push(id);
        records.push(Some(record(State::Succeeded)));
    }
    arrive(&mut ledger, Subject::Chord, &TaskId::random(), 1, START, 200);
    let answers: Vec<serde_json::Value> = (0..CHORD)
        .map(|member| {
            let body = crate::demo::plan::square(member).to_string();
            serde_json::json!({ "status": 200, "headers": {}, "body": body, "ms": 1 })
        })
        .collect();
    ledger.chord = Some(serde_json::to_vec(&answers).unwrap().into());
    let schedule = every("1s").schedule("demo-tick", envelope()).unwrap();
    for second in 0..10 {
        let slot = START + SECOND * second;
        arrive(&mut ledger, Subject::Tick, &schedule.task_id(slot), 1, slot, 200);
    }
    let next = START + 10 * SECOND;
    Seen {
        held: enqueued.deliveries[..2].iter().cloned().collect(),
        enqueued,
        records,
        schedule: ScheduleRecord {
            schedule,
            next: Some(next),
            paused: true,
            last_fired_at: None,
            last_task: None,
            fired: 10,
            missed: 0,
        },
        schedule_paused_at: next,
        ledger,
        left: 0,
        lease: 5 * SECOND,
        killed_at: START,
        took: 10 * SECOND,
    }
}

/// The names of the checks that fail after a mistake.
fn failing(mistake: impl FnOnce(&mut Seen)) -> Vec<&'static str> {
    let mut seen = perfect();
    mistake(&mut seen);
    report(&seen).checks.iter().filter(|check| check.problem.is_some()).map(|check| check.name).collect()
}

/// The position of the first delivery with this fate that the killed worker did not hold.
fn first(fate: Fate) -> usize {
    (2..DELIVERIES).find(|number| Subject::Delivery(*number).fate() == fate).unwrap() as usize
}

fn forget(seen: &mut Seen, id: &TaskId) {
    seen.ledger.arrivals.retain(|arrival| arrival.id != *id);
}

#[test]
fn a_run_without_mistakes_holds() {
    let report = report(&perfect());
    assert!(report.holds(), "{}", report.to_table());
    assert!(report.to_table().contains("998 of 1,000"), "{}", report.to_table());
}

#[test]
fn a_lost_delivery_is_found() {
    let lost = |seen: &mut Seen| {
        let id = seen.enqueued.deliveries[first(Fate::Accepted)].clone();
        forget(seen, &id);
    };
    assert_eq!(failing(lost), ["delivered"]);
    assert_eq!(failing(|seen| seen.records[first(Fate::Accepted)] = None), ["delivered"]);
}

#[test]
fn a_repetition_that_the_killed_worker_does_not_explain_is_found() {
    let again = |number: usize| {
        move |seen: &mut Seen| {
            let id = seen.enqueued.deliveries[number].clone();
            arrive(&mut seen.ledger, Subject::Delivery(number as u32), &id, 2, START + SECOND, 200);
        }
    };
    assert_eq!(failing(again(first(Fate::Accepted))), ["repeated"]);
    assert!(failing(again(1)).is_empty(), "the killed worker held it");
}

#[test]
fn coming_back_too_early_is_found() {
    let early = |seen: &mut Seen| {
        let id = &seen.enqueued.deliveries[first(Fate::PutOff)];
        let second = seen.ledger.arrivals.iter_mut().rfind(|arrival| arrival.id == *id).unwrap();
        second.at = START + PUT_OFF_BY - Duration::from_millis(1);
    };
    assert_eq!(failing(early), ["put off"]);
}

#[test]
fn dead_letters_are_those_that_were_refused_and_no_others() {
    let revived = |seen: &mut Seen| seen.records[first(Fate::Refused)] = Some(record(State::Succeeded));
    assert_eq!(failing(revived), ["dead letters"]);
    let other = |seen: &mut Seen| seen.records[first(Fate::Accepted)] = Some(record(State::Dead));
    assert_eq!(failing(other), ["delivered", "dead letters"]);
}

#[test]
fn a_task_that_nobody_took_over_is_found() {
    let stuck = |seen: &mut Seen| {
        seen.records[0] = Some(Record { finished_at: None, ..record(State::Running) });
        seen.left = 1;
    };
    assert_eq!(failing(stuck), ["delivered", "recovered", "nothing left"]);
}

#[test]
fn a_slot_that_is_missing_or_fired_twice_is_found() {
    let missing = |seen: &mut Seen| {
        let id = seen.schedule.schedule.task_id(START + 3 * SECOND);
        forget(seen, &id);
    };
    assert_eq!(failing(missing), ["schedule"]);
    assert_eq!(failing(|seen| seen.schedule.fired = 11), ["schedule"]);
    assert_eq!(failing(|seen| seen.schedule.missed = 1), ["schedule"]);
    assert_eq!(failing(|seen| seen.schedule_paused_at = seen.schedule_paused_at + 10 * SECOND), ["schedule"]);
}

#[test]
fn a_chord_that_ends_wrongly_is_found() {
    assert_eq!(failing(|seen| seen.ledger.chord = None), ["chord"]);
    assert_eq!(failing(|seen| seen.ledger.chord = Some("[]".into())), ["chord"]);
    let twice = |seen: &mut Seen| arrive(&mut seen.ledger, Subject::Chord, &TaskId::random(), 1, START, 200);
    assert_eq!(failing(twice), ["chord"]);
}

#[test]
fn a_delayed_task_that_is_early_or_late_is_found() {
    let moved = |to: Timestamp, every_one: usize| {
        move |seen: &mut Seen| {
            let of_delayed = |arrival: &&mut Arrival| matches!(arrival.subject, Subject::Delayed(_));
            seen.ledger.arrivals.iter_mut().filter(of_delayed).step_by(every_one).for_each(|arrival| arrival.at = to);
        }
    };
    assert_eq!(failing(moved(START, DELAYED as usize)), ["delayed"]);
    assert_eq!(failing(moved(START + 9 * SECOND, 2)), ["delayed"]);
}

#[test]
fn a_cancelled_task_that_arrives_is_found() {
    let arrived = |seen: &mut Seen| {
        let id = seen.enqueued.cancelled[0].clone();
        arrive(&mut seen.ledger, Subject::Cancelled(0), &id, 1, START, 200);
    };
    assert_eq!(failing(arrived), ["cancelled"]);
    assert_eq!(failing(|seen| seen.enqueued.cancelled_now -= 1), ["cancelled"]);
}

#[test]
fn strangers_are_found() {
    assert_eq!(failing(|seen| seen.ledger.strangers = 1), ["nothing left"]);
}
