//! A whole fleet in one thread, in simulated time, with bad luck from a seed.
//!
//! [`simulate`] runs several workers over one store. Each worker has its own bad line ([`FaultyStore`]) and its own skewed
//! clock; workers are stopped and continued, killed and replaced; tasks fail, panic, hang, are delayed, limited, batched,
//! cancelled and chained, sleep and wait for signals. Then the faults end, the fleet finishes, and everything is counted:
//!
//! 1. nothing is lost: every push that returned has ended, and as its script says;
//! 2. every claim is settled at most once, and every task ends once;
//! 3. no lease is held twice, and an old holder is never told that it holds one;
//! 4. a chord's body sees the result of every member; a chain hands on every result;
//! 5. a slot of a schedule fires once;
//! 6. the counters of the store equal what a listing counts;
//! 7. at no time more tasks are held, and in no window more are started, than limits allow; none is while a gate is held;
//! 8. a step that was stored is not done again; what is done once has one result; a signal that was taken arrives.
//!
//! The same seed is the same run, so a failure is a seed.

mod fleet;
mod limits;
mod script;
mod steps;
mod witness;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use windlass_core::backend::Backend;
use windlass_core::view::{Filter, Page, Record, Retention};
use windlass_core::{Clock, State, TaskId, Timestamp};
use windlass_memory::MemoryStore;

use crate::faulty::{Faults, FaultyStore};
use fleet::Fleet;
use script::{Expected, Script};
use witness::Witness;

/// How long the fleet may take after the faults have ended, in simulated time.
const FINISH_WITHIN: Duration = Duration::from_secs(3600);

/// How a simulation went well.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Tasks that were pushed, steps of workflows and slots of schedules included.
    pub tasks: usize,
    /// Claims that the store gave out.
    pub claims: u64,
    /// Settles that came too late.
    pub stale: u64,
    /// Workers that were killed.
    pub killed: u32,
    /// How long it took in simulated time.
    pub simulated: Duration,
}

/// Runs one simulation of `tasks` tasks. Blocks; takes some milliseconds.
///
/// # Errors
/// Every invariant that was broken, in words.
pub fn simulate(seed: u64, tasks: usize) -> Result<Report, Vec<String>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .map_err(|error| vec![format!("no runtime: {error}")])?;
    runtime.block_on(run(seed, tasks))
}

async fn run(seed: u64, tasks: usize) -> Result<Report, Vec<String>> {
    let mut dice = fastrand::Rng::with_seed(seed);
    // The engine draws its jitter from the thread's dice.
    fastrand::seed(seed);
    let started = Instant::now();
    let clock: Arc<dyn Clock> = Arc::new(SimClock { started, ahead: Duration::ZERO });
    // Everything must still be there when it is counted.
    let retention = Retention { finished: Duration::from_secs(86_400), ..Retention::default() };
    let store = MemoryStore::new(Arc::clone(&clock)).with_retention(retention);
    let witness = Arc::new(Witness::new(Arc::new(store), Arc::clone(&clock)));
    let backend: Arc<dyn Backend> = Arc::clone(&witness) as Arc<dyn Backend>;

    limits::set(&*backend).await;
    let mut fleet = Fleet::new(Arc::clone(&backend), started, &mut dice);
    fleet.start_workers().await;
    // The producer has a bad line too: what its pushes promise is what counts.
    let producer_line = Arc::new(FaultyStore::new(Arc::clone(&backend), dice.u64(..), fleet.faults()));
    let script = Script::draw(tasks, &mut dice);
    let (expected, ()) = tokio::join!(script.enqueue(producer_line, &mut dice), fleet.suffer());
    fleet.recover().await;
    let ended = wait_for_the_end(&backend, &expected).await;
    // One more lease must pass without anything coming back to life.
    tokio::time::sleep(fleet::LEASE * 3).await;
    let (killed, ledger) = (fleet.killed(), fleet.ledger());
    fleet.stop().await;

    let records = all(&backend).await;
    let mut breaches = witness.testimony().breaches;
    if let Err(reason) = ended {
        breaches.push(reason);
    }
    breaches.extend(expected.check(&records));
    breaches.extend(ledger.breaches());
    breaches.extend(check_settled_once(&witness.testimony().final_settles, &records));
    breaches.extend(check_counts(&backend, &records).await);
    if !breaches.is_empty() {
        return Err(breaches);
    }
    let testimony = witness.testimony();
    Ok(Report {
        tasks: records.len(),
        claims: testimony.claims,
        stale: testimony.stale,
        killed,
        simulated: started.elapsed(),
    })
}

async fn wait_for_the_end(backend: &Arc<dyn Backend>, expected: &Expected) -> Result<(), String> {
    let give_up_at = Instant::now() + FINISH_WITHIN;
    loop {
        let live = all(backend).await.iter().filter(|record| !record.state.is_final()).count();
        if live == 0 && expected.workflows_are_complete(&all(backend).await) {
            return Ok(());
        }
        if Instant::now() > give_up_at {
            return Err(format!("{live} tasks had not ended {} s after the last fault", FINISH_WITHIN.as_secs()));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn all(backend: &Arc<dyn Backend>) -> Vec<Record> {
    let (mut records, mut page) = (Vec::new(), Page::first(1_000));
    loop {
        // The witness and the store behind it have no faults.
        let Ok(listing) = backend.list(&Filter::all(), &page).await else { return records };
        records.extend(listing.tasks);
        match listing.next {
            Some(next) => page.after = Some(next),
            None => return records,
        }
    }
}

fn check_settled_once(final_settles: &std::collections::HashMap<TaskId, u32>, records: &[Record]) -> Vec<String> {
    let twice = final_settles.iter().filter(|(_, count)| **count > 1);
    let mut breaches: Vec<String> = twice.map(|(id, count)| format!("{id} was ended {count} times")).collect();
    let succeeded = records.iter().filter(|record| record.state == State::Succeeded);
    breaches.extend(
        succeeded
            .filter(|record| !final_settles.contains_key(&record.envelope.id))
            .map(|record| format!("{} succeeded although nobody settled it", record.envelope.id)),
    );
    breaches
}

async fn check_counts(backend: &Arc<dyn Backend>, records: &[Record]) -> Vec<String> {
    let Ok(counts) = backend.counts().await else { return vec!["the store does not count".to_owned()] };
    let mut listed: BTreeMap<_, u64> = BTreeMap::new();
    for record in records {
        *listed.entry((record.envelope.queue.clone(), record.state)).or_default() += 1;
    }
    let mut breaches = Vec::new();
    for (queue, counted) in &counts.queues {
        for state in State::ALL {
            let listed = listed.get(&(queue.clone(), state)).copied().unwrap_or_default();
            if counted.of(state) != listed {
                breaches.push(format!("queue {queue}: {} {state} counted, {listed} listed", counted.of(state)));
            }
        }
    }
    breaches
}

/// The wall clock of one machine in a simulation: simulated time, and wrong by a constant.
#[derive(Debug)]
struct SimClock {
    started: Instant,
    ahead: Duration,
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs(1_800_000_000) + self.started.elapsed() + self.ahead
    }
}

/// A line of a simulation: bad in its own way.
fn draw_faults(dice: &mut fastrand::Rng) -> Faults {
    Faults {
        lost_requests: 0.1 * dice.f64(),
        lost_replies: 0.1 * dice.f64(),
        duplicates: 0.1 * dice.f64(),
        delay: Duration::from_millis(dice.u64(0..200)),
        pause: (0.02 * dice.f64(), Duration::from_secs(dice.u64(1..20))),
    }
}
