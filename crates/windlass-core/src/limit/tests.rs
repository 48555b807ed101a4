use super::*;

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn at(micros: i64) -> Timestamp {
    Timestamp::from_micros(NOW.as_micros() + micros)
}

#[test]
fn a_rate_reads_as_it_is_written() {
    for text in ["100/m", "10/s burst 20", "1/1m30s", "5/h", "2/d"] {
        assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
    }
    assert_eq!("1/90s".parse::<Rate>().unwrap().per, Duration::from_secs(90));
    for text in ["", "100", "/m", "0/s", "1/0s", "x/m", "1/m burst 0", "1/400d", "-1/s", "1/fortnight"] {
        assert!(text.parse::<Rate>().is_err(), "{text}");
    }
}

#[test]
fn subjects_and_gates_read_as_they_are_written() {
    for text in ["queue:mail", "task:a:b", "key:acme & sons", "keys-of-queue:mail", "keys-of-task:send"] {
        assert_eq!(text.parse::<Subject>().unwrap().to_string(), text);
    }
    for text in ["queue:mail", "task:send", "key:a b", "key-of-queue:mail acme & sons", "key-of-task:send x"] {
        assert_eq!(text.parse::<Gate>().unwrap().to_string(), text);
    }
    for text in ["mail", "queue:", "keys:x", "key-of-queue:mail", ""] {
        assert!(text.parse::<Gate>().is_err() && text.parse::<Subject>().is_err(), "{text}");
    }
}

/// Claims of random size at random times: in no window more start than the rate and its burst allow.
#[test]
fn a_rate_is_never_above_its_limit_in_any_window() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    for _ in 0..300 {
        let rate =
            Rate { count: dice.u32(1..50), per: Duration::from_micros(dice.u64(1..2_000_000)), burst: dice.u32(1..20) };
        let (mut next, mut now, mut starts) = (Timestamp::MIN, NOW, Vec::new());
        for _ in 0..200 {
            now = now + Duration::from_micros(dice.u64(0..400_000));
            let taken = rate.room(next, now).min(dice.u64(0..30));
            next = if taken > 0 { rate.after(next, now, taken) } else { next };
            starts.extend((0..taken).map(|_| now.as_micros()));
        }
        for (first, start) in starts.iter().enumerate() {
            for (last, end) in starts.iter().enumerate().skip(first) {
                let allowed = i64::from(rate.burst) + (end - start) / rate.interval_micros();
                assert!((last - first + 1) as i64 <= allowed, "{rate}: {} in {} us", last - first + 1, end - start);
            }
        }
    }
}

#[test]
fn a_rate_is_used_up_to_its_limit() {
    let rate: Rate = "10/s burst 5".parse().unwrap();
    assert_eq!(rate.room(Timestamp::MIN, NOW), 5);
    let next = rate.after(Timestamp::MIN, NOW, 5);
    assert_eq!(rate.room(next, NOW), 0);
    assert_eq!(rate.opens_at(next), at(100_000), "one more after the time of one");
    assert_eq!(rate.room(next, at(100_000)), 1);
    assert_eq!(rate.room(next, at(99_999)), 0);
}

fn names() -> (QueueName, TaskName, Key) {
    (QueueName::known("mail"), TaskName::known("send"), Key::known("acme"))
}

fn rule(text: &str) -> Rule {
    Rule::from_text(text).unwrap()
}

#[test]
fn every_gate_on_the_way_must_be_open() {
    let (queue, name, key) = names();
    let rules = Rules::new(
        [
            Limit { subject: Subject::Queue(queue.clone()), rule: rule(r#"{"concurrency":10}"#) },
            Limit { subject: Subject::Task(name.clone()), rule: rule(r#"{"rate":"3/s burst 3"}"#) },
            Limit { subject: Subject::KeysOfTask(name.clone()), rule: rule(r#"{"concurrency":2}"#) },
        ],
        [],
    );
    let mut claim = Admission::new(&rules, NOW);
    let load = |gate: &Gate| -> Result<GateState, ()> {
        Ok(GateState { next: Timestamp::MIN, running: if matches!(gate, Gate::Queue(_)) { 6 } else { 1 } })
    };
    assert_eq!(claim.room(&queue, &name, Some(&key), load), Ok(1), "one of this key runs");
    claim.start(&queue, &name, Some(&key), 1);
    assert_eq!(claim.room(&queue, &name, Some(&key), load), Ok(0));
    assert_eq!(claim.room(&queue, &name, None, load), Ok(2), "the rate has two left");
    claim.start(&queue, &name, None, 2);
    assert_eq!(claim.room(&queue, &name, None, load), Ok(0));
    assert_eq!(claim.opens_at(), Some(at(333_334)));
    assert_eq!(claim.counted().count(), 1, "only a rate is kept");
    let other = TaskName::known("other");
    assert_eq!(claim.room(&queue, &other, None, load), Ok(1), "six ran, three started, ten may");
}

#[test]
fn a_held_gate_opens_when_its_time_has_come() {
    let (queue, name, key) = names();
    let gate = Gate::KeyOfQueue(queue.clone(), key.clone());
    let rules = Rules::new([], [(gate, at(5))]);
    let load = |_: &Gate| -> Result<GateState, ()> { unreachable!("a hold needs no state") };
    let mut claim = Admission::new(&rules, NOW);
    assert_eq!(claim.room(&queue, &name, Some(&key), load), Ok(0));
    assert_eq!(claim.opens_at(), Some(at(5)));
    assert_eq!(claim.room(&queue, &name, None, load), Ok(u64::MAX));
    assert_eq!(Admission::new(&rules, at(5)).room(&queue, &name, Some(&key), load), Ok(u64::MAX));
}

#[test]
fn a_limit_that_makes_no_sense_is_refused() {
    let (queue, name, key) = names();
    let limit = |subject: &Subject, text| Limit { subject: subject.clone(), rule: rule(text) }.check();
    let (of_queue, of_task, of_key) = (Subject::Queue(queue), Subject::Task(name), Subject::Key(key));
    assert!(limit(&of_queue, r#"{"length":5}"#).is_ok() && limit(&of_task, r#"{"length":5}"#).is_err());
    assert!(limit(&of_key, r#"{"weight":5}"#).is_ok() && limit(&of_queue, r#"{"weight":5}"#).is_err());
    assert!(limit(&of_key, r#"{"weight":101}"#).is_err() && limit(&of_key, "{}").is_err());
    assert!(limit(&of_task, r#"{"concurrency":0}"#).is_ok(), "nothing starts: as good as a pause");
    assert!(Rule::from_text(r#"{"concurency":1}"#).is_err());
}
