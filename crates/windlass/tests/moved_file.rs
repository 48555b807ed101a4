//! Schedules on a file, in real time, under a clock that is moved: two schedulers, no slot twice, the policies kept.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use windlass::prelude::*;
use windlass::schedule::Missed;
use windlass::view::ScheduleRecord;
use windlass::worker::{Ended, Schedules};
use windlass::{Backend, ConnectOptions, Location, Timestamp};
use windlass_testkit::TestClock;

#[derive(Task, Serialize, Deserialize)]
#[task(name = "slot")]
struct Slot {}

fn app() -> App {
    App::new("slots")
        .task(async |_task: Slot, _cx: Cx| Ok(()))
        .schedule("all", cron("*/10 * * * *").missed(Missed::All), Slot {})
        .schedule("once", cron("*/10 * * * *").missed(Missed::Once), Slot {})
        .schedule("recent", cron("*/10 * * * *").missed(Missed::All).max_lateness(Duration::from_secs(3600)), Slot {})
        .schedule("skip", cron("*/10 * * * *").missed(Missed::Skip), Slot {})
}

struct Scheduler {
    shutdown: Shutdown,
    ended: tokio::task::JoinHandle<std::io::Result<Ended>>,
}

impl Scheduler {
    /// Over a connection of its own, as another process would have.
    async fn start(file: &Path, clock: &TestClock, node: &str) -> Self {
        let mut settings = Settings::new(NodeId::known(node));
        (settings.slots, settings.schedules) = (0, Schedules::Fire);
        let registry = app().build().await.unwrap();
        let worker = Worker::new(store(file, clock).await, registry, settings).clock(Arc::new(clock.clone()));
        let shutdown = Shutdown::new();
        let ended = tokio::spawn(worker.start(shutdown.clone()));
        Self { shutdown, ended }
    }

    async fn stop(self) {
        self.shutdown.begin(ShutdownStep::Graceful);
        assert_eq!(self.ended.await.unwrap().unwrap().left_behind, 0);
    }
}

async fn store(file: &Path, clock: &TestClock) -> Arc<dyn Backend> {
    let options = ConnectOptions { clock: Arc::new(clock.clone()), ..ConnectOptions::default() };
    windlass::connect_with(&Location::Sqlite(file.to_owned()), options).await.unwrap()
}

async fn until(store: &Arc<dyn Backend>, is_so: impl Fn(&[ScheduleRecord]) -> bool) -> Vec<ScheduleRecord> {
    for _ in 0..1_000 {
        let schedules = store.schedules().await.unwrap();
        if is_so(&schedules) {
            return schedules;
        }
        // tidy: allow(sleep): a store does not wake those who wait for a schedule
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it never happened: {:?}", store.schedules().await.unwrap());
}

fn fired(schedules: &[ScheduleRecord]) -> Vec<(&str, u64)> {
    schedules.iter().map(|record| (record.schedule.id.as_str(), record.fired)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_moved_three_hours_forward_fires_as_its_policies_say() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.db");
    let clock = TestClock::at(Timestamp::from_secs(1_800_000_000));
    let looker = store(&file, &clock).await;
    let first = Scheduler::start(&file, &clock, "w1").await;
    until(&looker, |schedules| schedules.len() == 4).await;
    first.stop().await;

    clock.advance(Duration::from_secs(3 * 3600 + 5 * 60));
    let (one, two) = (Scheduler::start(&file, &clock, "w2").await, Scheduler::start(&file, &clock, "w3").await);
    let moved_on = |record: &ScheduleRecord| record.next.is_some_and(|next| next > windlass::Clock::now(&clock));
    let schedules = until(&looker, |schedules| schedules.iter().all(moved_on)).await;
    assert_eq!(fired(&schedules), [("all", 18), ("once", 1), ("recent", 6), ("skip", 0)]);
    one.stop().await;
    two.stop().await;
    assert_eq!(looker.counts().await.unwrap().total().ready, 25, "one task for each slot that fired");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_schedulers_on_one_file_fire_every_slot_once() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.db");
    let clock = TestClock::at(Timestamp::from_secs(1_800_000_000));
    let looker = store(&file, &clock).await;
    let (one, two) = (Scheduler::start(&file, &clock, "w1").await, Scheduler::start(&file, &clock, "w2").await);
    until(&looker, |schedules| schedules.len() == 4).await;
    for slot in 1..=5 {
        clock.advance(Duration::from_secs(600));
        until(&looker, |schedules| schedules.iter().all(|record| record.fired == slot)).await;
    }
    one.stop().await;
    two.stop().await;
    assert_eq!(looker.counts().await.unwrap().total().ready, 4 * 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_is_set_back_an_hour_fires_no_slot_twice_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tasks.db");
    let clock = TestClock::at(Timestamp::from_secs(1_800_000_000));
    let looker = store(&file, &clock).await;
    let scheduler = Scheduler::start(&file, &clock, "w1").await;
    until(&looker, |schedules| schedules.len() == 4).await;
    clock.advance(Duration::from_secs(600));
    until(&looker, |schedules| schedules.iter().all(|record| record.fired == 1)).await;
    clock.set(Timestamp::from_secs(1_800_000_600 - 3600));
    clock.advance(Duration::from_secs(3600 + 600));
    until(&looker, |schedules| schedules.iter().all(|record| record.fired == 2)).await;
    scheduler.stop().await;
    assert_eq!(looker.counts().await.unwrap().total().ready, 4 * 2);
}
