//! Five nodes fire one schedule while they are killed, frozen and started again: every slot fires, and fires once.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use fastrand::Rng;
use windlass::backend::ScheduleChange;
use windlass::schedule::{Missed, every};
use windlass::view::{Filter, PAGE_MAX, Page};
use windlass::{Args, Backend, Clock, Envelope, QueueName, Source, SystemClock, TaskName, Timestamp};
use windlass_chaos::{Fleet, Place, Store, Worker, seed};

const NODES: usize = 5;
/// Slots that must have fired; there is one every second.
const SLOTS: u64 = 12;
/// Long enough for everything that must happen soon.
const PATIENCE: Duration = Duration::from_secs(60);

async fn plan(backend: &dyn Backend) -> Timestamp {
    let template = Envelope::new(TaskName::known("chaos.count"), QueueName::default(), Args::none());
    // A slot whose nodes are all frozen or dead just then is made up for.
    let schedule = every("1s").missed(Missed::All).schedule("beat", template).expect("a schedule");
    let next = schedule.spec.next(SystemClock.now());
    backend.schedule(&ScheduleChange::Put { schedule, next }).await.expect("stored");
    next.expect("there is always a next second")
}

/// How many tasks there are for each slot. Nobody runs them, so all of them wait.
async fn fired(backend: &dyn Backend) -> BTreeMap<Timestamp, u32> {
    let (mut slots, mut after) = (BTreeMap::new(), None);
    loop {
        let listing = backend.list(&Filter::default(), &Page { after, limit: PAGE_MAX }).await.expect("listed");
        for record in listing.tasks {
            let Source::Schedule { slot, .. } = record.envelope.source else { panic!("not of a schedule: {record:?}") };
            *slots.entry(slot).or_default() += 1;
        }
        after = listing.next;
        if after.is_none() {
            return slots;
        }
    }
}

/// Kills or freezes a node now and then; one that is frozen thaws after its slot is long over.
struct Trouble {
    dice: Rng,
    nodes: Vec<Worker>,
    frozen: Vec<(usize, Instant)>,
    next_at: Instant,
    killed: u32,
    froze: u32,
}

impl Trouble {
    fn turn(&mut self, fleet: &mut Fleet) {
        // tidy: allow(sleep): the pause between two looks at other processes
        std::thread::sleep(Duration::from_millis(20));
        let now = Instant::now();
        for (index, _) in self.frozen.extract_if(.., |(_, until)| *until <= now) {
            self.nodes[index].thaw().expect("it is there");
        }
        if self.next_at > now {
            return;
        }
        self.next_at = now + Duration::from_millis(self.dice.u64(100..600));
        let index = self.dice.usize(0..NODES);
        if self.frozen.iter().any(|(frozen, _)| *frozen == index) {
            return;
        }
        if self.dice.bool() {
            self.nodes[index].freeze().expect("it is there");
            self.frozen.push((index, now + Duration::from_millis(self.dice.u64(200..3_000))));
            self.froze += 1;
        } else {
            let fresh = fleet.scheduler().expect("a scheduler starts");
            std::mem::replace(&mut self.nodes[index], fresh).kill().expect("it is there");
            self.killed += 1;
        }
    }
}

fn fires_every_slot_once(store: Store) {
    let seed = seed();
    println!("{store}: WINDLASS_CHAOS_SEED={seed}");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let place = Place::start(store).expect("the store starts");
    let mut fleet = Fleet::new(Path::new(env!("CARGO_BIN_EXE_chaos-worker")), &place.url(), 1).expect("a folder");
    let backend = runtime.block_on(windlass::connect(&place.url())).expect("the store opens");
    let first = runtime.block_on(plan(&*backend));
    let nodes = (0..NODES).map(|_| fleet.scheduler().expect("a scheduler starts")).collect();
    let mut trouble =
        Trouble { dice: Rng::with_seed(seed), nodes, frozen: Vec::new(), next_at: Instant::now(), killed: 0, froze: 0 };
    let began = Instant::now();
    let slots = loop {
        assert!(began.elapsed() < PATIENCE, "seed {seed}: {SLOTS} slots do not fire");
        trouble.turn(&mut fleet);
        let slots = runtime.block_on(fired(&*backend));
        if slots.len() as u64 >= SLOTS && trouble.killed > 0 && trouble.froze > 0 {
            break slots;
        }
    };
    let planned = (0..).map(|second| (first + Duration::from_secs(second), 1));
    let planned: BTreeMap<Timestamp, u32> = planned.take(slots.len()).collect();
    assert_eq!(slots, planned, "seed {seed}, {} kills, {} freezes", trouble.killed, trouble.froze);
}

#[test]
fn five_nodes_fire_every_slot_once_on_sqlite() {
    fires_every_slot_once(Store::Sqlite);
}

#[test]
fn five_nodes_fire_every_slot_once_on_redis() {
    fires_every_slot_once(Store::Redis);
}

#[test]
fn five_nodes_fire_every_slot_once_on_postgres() {
    fires_every_slot_once(Store::Postgres);
}
