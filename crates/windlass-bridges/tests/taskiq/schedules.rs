//! Schedules as TaskIQ's clients write them, fired once however many schedulers there are.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use windlass_bridges::taskiq::producer::{Kind, RedisOutlet};
use windlass_bridges::taskiq::schedules::{PastTimes, ScheduleError, Scheduler, SchedulerOptions, Source};
use windlass_core::{Json, Timestamp};
use windlass_redis::foreign::Reply;
use windlass_testkit::TestClock;
use windlass_wire::taskiq::schedule::ScheduledTask;
use windlass_wire::taskiq::{Message, Serializer};

use crate::rig::{Rig, client_commands, message, vector};

/// Noon, to the second.
const NOON: &str = "2040-01-02T12:00:00Z";

fn noon() -> Timestamp {
    NOON.parse().expect("a time")
}

fn source(rig: &Rig, serializer: Serializer) -> Source {
    Source::new(rig.location(), "schedule", serializer, PastTimes::Fire)
}

fn scheduler(rig: &Rig, clock: &TestClock) -> Scheduler {
    scheduler_of(rig, clock, source(rig, Serializer::Json))
}

fn scheduler_of(rig: &Rig, clock: &TestClock, source: Source) -> Scheduler {
    let outlet = Arc::new(RedisOutlet::new(rig.location(), Kind::List));
    Scheduler::new(source, outlet, SchedulerOptions::default()).with_clock(Arc::new(clock.clone()))
}

fn schedule(id: &str) -> ScheduledTask {
    ScheduledTask {
        task_name: "interop.add".to_owned(),
        labels: Map::new(),
        args: Json::trusted("[1, 2]"),
        kwargs: Json::trusted("{}"),
        task_id: None,
        schedule_id: id.to_owned(),
        cron: None,
        cron_offset: None,
        time: None,
        interval: None,
    }
}

/// Does what a Python client has done.
async fn replay(rig: &Rig, name: &str) {
    for command in client_commands(name) {
        rig.line.ask(&command).await.expect("an answer");
    }
}

/// Takes what was sent, the oldest first.
async fn sent(rig: &Rig, queue: &str) -> Vec<Message> {
    let mut sent = Vec::new();
    while let Some(bytes) = rig.ask(&[b"RPOP", queue.as_bytes()]).await.bytes() {
        sent.push(Message::decode(&bytes).expect("a message"));
    }
    sent
}

async fn look(scheduler: &mut Scheduler) -> usize {
    scheduler.look().await.expect("it looks")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cron_line_of_a_python_client_fires_at_its_minutes() {
    let rig = Rig::new();
    replay(&rig, "schedule-list-cron").await;
    let clock = TestClock::at(noon() + Duration::from_secs(90));
    let mut scheduler = scheduler(&rig, &clock);
    assert_eq!(look(&mut scheduler).await, 0, "every five minutes: the last one is too long ago");
    clock.advance(Duration::from_secs(209));
    assert_eq!(look(&mut scheduler).await, 0);
    clock.advance(Duration::from_secs(1));
    assert_eq!(look(&mut scheduler).await, 1);
    assert_eq!(look(&mut scheduler).await, 0, "once");
    let [message] = sent(&rig, "taskiq").await.try_into().expect("one message");
    assert_eq!((message.task_name.as_str(), message.args.as_str()), ("interop.add", "[1, 2]"));
    assert_eq!(message.labels.to_value(), serde_json::json!({"x": "1", "schedule_id": "sched-cron"}));
    clock.advance(Duration::from_secs(300));
    assert_eq!(look(&mut scheduler).await, 1, "and again");
}

#[tokio::test(flavor = "multi_thread")]
async fn pickled_schedules_are_read() {
    let rig = Rig::new();
    replay(&rig, "schedule-list-cron-pickle").await;
    let clock = TestClock::at("2040-01-02T03:00:01Z".parse().expect("a time"));
    let source = Source::new(rig.location(), "schedpkl", Serializer::Pickle, PastTimes::Fire);
    assert_eq!(look(&mut scheduler_of(&rig, &clock, source)).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_for_one_time_fires_once_and_goes() {
    let rig = Rig::new();
    replay(&rig, "schedule-list-time").await;
    let at: Timestamp = "2040-01-02T03:04:05Z".parse().expect("a time");
    let clock = TestClock::at(at - Duration::from_secs(1));
    let mut scheduler = scheduler(&rig, &clock);
    assert_eq!(look(&mut scheduler).await, 0);
    clock.advance(Duration::from_secs(1));
    assert_eq!(look(&mut scheduler).await, 1);
    clock.advance(Duration::from_secs(600));
    assert_eq!(look(&mut scheduler).await, 0);
    assert_eq!(rig.ask(&[b"KEYS", b"schedule:*"]).await, Reply::List(Vec::new()), "nothing is left of it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_that_has_passed_fires_late_unless_it_is_to_be_skipped() {
    let rig = Rig::new();
    replay(&rig, "schedule-list-time").await;
    let clock = TestClock::at(noon());
    let skipping = Source::new(rig.location(), "schedule", Serializer::Json, PastTimes::Skip);
    assert_eq!(look(&mut scheduler_of(&rig, &clock, skipping)).await, 0);
    assert_eq!(look(&mut scheduler(&rig, &clock)).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interval_fires_on_and_on() {
    let rig = Rig::new();
    replay(&rig, "schedule-list-interval").await;
    let clock = TestClock::at(noon() + Duration::from_secs(1));
    let mut scheduler = scheduler(&rig, &clock);
    let mut fired = 0;
    for _ in 0..120 {
        fired += look(&mut scheduler).await;
        clock.advance(Duration::from_secs(1));
    }
    assert_eq!(fired, 5, "every 30 seconds for two minutes, and the one that has just been");
    assert_eq!(sent(&rig, "taskiq").await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_schedulers_fire_every_slot_once() {
    let rig = Rig::new();
    let shared = source(&rig, Serializer::Json);
    for number in 0..10 {
        let every = Some(Duration::from_secs(1 + number % 3));
        shared.put(&ScheduledTask { interval: every, ..schedule(&format!("s{number}")) }).await.expect("stored");
    }
    let clock = TestClock::at(noon());
    let (mut one, mut other) = (scheduler(&rig, &clock), scheduler(&rig, &clock));
    let mut fired = 0;
    for _ in 0..12 {
        let (by_one, by_other) = tokio::join!(look(&mut one), look(&mut other));
        fired += by_one + by_other;
        clock.advance(Duration::from_secs(1));
    }
    // What one finds claimed by the other it looks at again.
    fired += look(&mut one).await + look(&mut other).await;
    let sent = sent(&rig, "taskiq").await;
    let ids: std::collections::BTreeSet<&str> = sent.iter().map(|message| message.task_id.as_str()).collect();
    assert_eq!((sent.len(), ids.len()), (fired, fired), "no slot twice");
    // 13 looks: four schedules of one second, three of two, three of three.
    assert_eq!(fired, 4 * 13 + 3 * 7 + 3 * 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_whose_scheduler_died_before_it_sent_is_fired_by_another() {
    let rig = Rig::new();
    let cron = ScheduledTask { cron: Some("0 12 * * *".to_owned()), ..schedule("noon") };
    source(&rig, Serializer::Json).put(&cron).await.expect("stored");
    let key = format!("windlass.fired:schedule:noon:{}", noon().as_micros());
    rig.ask(&[b"SET", key.as_bytes(), b"the dead one", b"PX", b"60000"]).await;
    let clock = TestClock::at(noon());
    let mut scheduler = scheduler(&rig, &clock);
    assert_eq!(look(&mut scheduler).await, 0);
    // The server's minute is over.
    rig.ask(&[b"DEL", key.as_bytes()]).await;
    assert_eq!(look(&mut scheduler).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_goes_to_the_queue_that_its_labels_name() {
    let rig = Rig::new();
    let labels: Map<String, Value> = [("queue_name".to_owned(), Value::from("mail"))].into_iter().collect();
    let to_mail = ScheduledTask { labels, time: Some(noon()), task_id: Some("mine".to_owned()), ..schedule("once") };
    source(&rig, Serializer::Json).put(&to_mail).await.expect("stored");
    look(&mut scheduler(&rig, &TestClock::at(noon()))).await;
    assert_eq!(sent(&rig, "mail").await[0].task_id, "mine");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_broker_refuses_does_not_hold_up_the_others() {
    let rig = Rig::new();
    let shared = source(&rig, Serializer::Json);
    rig.ask(&[b"SET", b"broken", b"no list"]).await;
    let labels: Map<String, Value> = [("queue_name".to_owned(), Value::from("broken"))].into_iter().collect();
    let broken = ScheduledTask { labels, time: Some(noon() - Duration::from_secs(1)), ..schedule("broken") };
    shared.put(&broken).await.expect("stored");
    shared.put(&ScheduledTask { time: Some(noon()), ..schedule("sound") }).await.expect("stored");
    let mut scheduler = scheduler(&rig, &TestClock::at(noon()));
    assert_eq!(look(&mut scheduler).await, 1);
    assert!(scheduler.look().await.is_err(), "the other one is tried again");
    rig.ask(&[b"DEL", b"broken"]).await;
    assert_eq!(look(&mut scheduler).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_of_a_rust_client_is_what_a_python_client_writes() {
    let rig = Rig::new();
    let written =
        ScheduledTask { time: Some("2040-01-02T03:04:05Z".parse().expect("a time")), ..schedule("sched-time") };
    let source = source(&rig, Serializer::Json);
    source.put(&written).await.expect("stored");
    let recorded = vector("schedule-list-time");
    let data = rig.ask(&[b"GET", b"schedule:data:sched-time"]).await.bytes().expect("a schedule");
    assert_eq!(Value::from(String::from_utf8(data).expect("text")), recorded["client_commands"][0]["cmd"][2]);
    let index = rig.ask(&[b"LRANGE", b"schedule:time:2040-01-02T03:04", b"0", b"-1"]).await;
    assert_eq!(index, Reply::List(vec![Reply::Bytes(b"sched-time".to_vec())]));
    // In its place, and not beside it.
    source.put(&ScheduledTask { cron: Some("0 3 * * *".to_owned()), ..schedule("sched-time") }).await.expect("stored");
    assert_eq!(rig.ask(&[b"EXISTS", b"schedule:time:2040-01-02T03:04"]).await, Reply::Number(0));
    assert_eq!(rig.ask(&[b"LLEN", b"schedule:cron"]).await, Reply::Number(1));
    source.remove("sched-time").await.expect("removed");
    assert_eq!(rig.ask(&[b"KEYS", b"schedule:*"]).await, Reply::List(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn schedules_that_make_no_sense_are_refused_or_passed_over() {
    let rig = Rig::new();
    let source = source(&rig, Serializer::Json);
    for bad in [
        schedule("never"),
        ScheduledTask { cron: Some("61 * * * *".to_owned()), ..schedule("cron") },
        ScheduledTask { time: Some(noon()), ..schedule("") },
    ] {
        assert!(matches!(source.put(&bad).await, Err(ScheduleError::Invalid { .. })), "{bad:?}");
    }
    rig.ask(&[b"SET", b"schedule:data:bad", message("1", "x", &[], "[]").as_bytes()]).await;
    rig.ask(&[b"RPUSH", b"schedule:cron", b"bad", b"gone"]).await;
    source.put(&ScheduledTask { time: Some(noon()), ..schedule("good") }).await.expect("stored");
    assert_eq!(look(&mut scheduler(&rig, &TestClock::at(noon()))).await, 1);
}
