//! Transfers between accounts that are in the database of the store, while their workers are killed and abort after every
//! statement: each transfer is made exactly once, and no money comes or goes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use windlass::backend::{BATCH_MAX, Command, Target, TaskAction};
use windlass::view::{Filter, Page};
use windlass::{Backend, Client, DeadReason, State, TaskId};
use windlass_chaos::{Books, Fleet, Place, Step, Store, Transfer, Worker, bank, seed, tasks};

/// Worker processes, and transfers that each makes at once.
const WORKERS: usize = 3;
const SLOTS: usize = 4;
const ACCOUNTS: u32 = 50;
const BALANCE: i64 = 1_000;
/// The pause between two looks at other processes.
const LOOK: Duration = Duration::from_millis(20);

fn orders(dice: &mut Rng) -> Vec<Transfer> {
    let order = |number| {
        let from = dice.u32(0..ACCOUNTS);
        let to = (from + dice.u32(1..ACCOUNTS)) % ACCOUNTS;
        Transfer { number, from, to, amount: dice.i64(1..=100) }
    };
    (0..tasks() / 3).map(order).collect()
}

/// What the books must say when each order was carried out once.
fn expected(orders: &[Transfer], ids: &[TaskId]) -> Books {
    let mut balances: BTreeMap<u32, i64> = (0..ACCOUNTS).map(|account| (account, BALANCE)).collect();
    for order in orders {
        *balances.entry(order.from).or_default() -= order.amount;
        *balances.entry(order.to).or_default() += order.amount;
    }
    let mut booked: Vec<String> = ids.iter().map(ToString::to_string).collect();
    booked.sort();
    Books { balances, booked }
}

/// Workers that die, by the dice of the test and by their own.
struct Trouble {
    dice: Rng,
    workers: Vec<Worker>,
    next_at: Instant,
    killed: u32,
    /// After which steps workers have aborted.
    aborted: Vec<String>,
}

impl Trouble {
    fn turn(&mut self, fleet: &mut Fleet) {
        // tidy: allow(sleep): the pause between two looks at other processes
        std::thread::sleep(LOOK);
        for worker in &mut self.workers {
            if let Some(step) = worker.aborted().expect("a worker ends by the dice only") {
                self.aborted.push(step);
                *worker = fleet.worker(&[]).expect("a worker starts");
            }
        }
        if self.next_at <= Instant::now() {
            self.next_at = Instant::now() + Duration::from_millis(self.dice.u64(300..1_200));
            let index = self.dice.usize(0..WORKERS);
            let fresh = fleet.worker(&[]).expect("a worker starts");
            std::mem::replace(&mut self.workers[index], fresh).kill().expect("it is there");
            self.killed += 1;
        }
    }
}

/// Whoever has taken down three workers is a dead letter; here that is bad luck, and somebody tries it again.
async fn revive(backend: &dyn Backend) -> u64 {
    let filter = Filter::in_states([State::Dead]);
    let dead = backend.list(&filter, &Page::first(100)).await.expect("listed");
    for record in &dead.tasks {
        assert_eq!(record.reason, Some(DeadReason::Poison), "{record:?}");
    }
    let target = Target::Matching { filter, after: None };
    let retried = backend.command(&Command::Tasks { target, action: TaskAction::Retry }).await;
    retried.expect("retried").changed
}

async fn every_transfer_succeeded(backend: &dyn Backend, ids: &[TaskId]) {
    let mut number = 0;
    for batch in ids.chunks(BATCH_MAX) {
        for record in backend.find(batch).await.expect("found") {
            let record = record.unwrap_or_else(|| panic!("transfer {number} is lost"));
            let result = record.result.as_ref().map(|result| result.as_str().to_owned());
            assert_eq!((record.state, result), (State::Succeeded, Some(number.to_string())), "{record:?}");
            number += 1;
        }
    }
}

fn makes_each_transfer_once(store: Store) {
    let seed = seed();
    println!("{store}: WINDLASS_CHAOS_SEED={seed}");
    let mut dice = Rng::with_seed(seed);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let place = Place::start(store).expect("the store starts");
    let mut fleet = Fleet::new(Path::new(env!("CARGO_BIN_EXE_chaos-bank")), &place.url(), SLOTS).expect("a folder");
    let backend = runtime.block_on(windlass::connect(&place.url())).expect("the store opens");
    let bank = bank(&place.url()).expect("the bank opens");
    runtime.block_on(bank.found(ACCOUNTS, BALANCE)).expect("accounts");
    let orders = orders(&mut dice);
    let client = Client::new(Arc::clone(&backend));
    let handles = runtime.block_on(client.enqueue_all(orders.iter().cloned())).expect("enqueued");
    let ids: Vec<TaskId> = handles.iter().map(|handle| handle.id.clone()).collect();

    let workers = (0..WORKERS).map(|_| fleet.worker(&[]).expect("a worker starts")).collect();
    let mut trouble = Trouble { dice, workers, next_at: Instant::now(), killed: 0, aborted: Vec::new() };
    let (began, limit) = (Instant::now(), Duration::from_secs(120) + LOOK * orders.len() as u32);
    let mut revived = 0;
    loop {
        let counts = runtime.block_on(backend.counts()).expect("counts").total();
        if counts.dead > 0 {
            revived += runtime.block_on(revive(&*backend));
        } else if counts.live() == 0 {
            break;
        }
        assert!(began.elapsed() < limit, "seed {seed}: it does not come to an end: {counts:?}");
        trouble.turn(&mut fleet);
    }
    let steps: BTreeSet<&String> = trouble.aborted.iter().collect();
    println!(
        "{} transfers in {:?}, {} kills, {} aborts after {steps:?}, {revived} tried again",
        orders.len(),
        began.elapsed(),
        trouble.killed,
        trouble.aborted.len()
    );
    runtime.block_on(every_transfer_succeeded(&*backend, &ids));
    let books = runtime.block_on(bank.books()).expect("books");
    assert_eq!(books.balances.values().sum::<i64>(), i64::from(ACCOUNTS) * BALANCE, "seed {seed}: the sum is exact");
    assert_eq!(books, expected(&orders, &ids), "seed {seed}: each transfer is made and booked once");
    assert!(trouble.killed > 0 && trouble.aborted.len() >= Step::ALL.len(), "the run is too quiet to say anything");
}

#[test]
fn transfers_are_made_exactly_once_on_sqlite() {
    makes_each_transfer_once(Store::Sqlite);
}

#[test]
fn transfers_are_made_exactly_once_on_postgres() {
    makes_each_transfer_once(Store::Postgres);
}
