//! The fleet in simulated time: 200 seeds in every test run, as many as asked for by `cargo xtask sim`.
//!
//! `WINDLASS_SIM_SEEDS` says how many, `WINDLASS_SIM_FROM` the first one. A failure prints its seed; the same seed is the
//! same run.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use windlass_testkit::sim::{Report, simulate};

const TASKS: usize = 50;

fn from_env(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is a number, not `{text}`")),
        Err(_) => default,
    }
}

#[test]
fn nothing_is_lost_whatever_happens_to_the_fleet() {
    let (count, from) = (from_env("WINDLASS_SIM_SEEDS", 200), from_env("WINDLASS_SIM_FROM", 1));
    // The scripts panic on purpose; the hook would write a backtrace for each.
    std::panic::set_hook(Box::new(|info| {
        if info.payload_as_str() != Some("scripted") {
            eprintln!("{info}");
        }
    }));
    let started = Instant::now();
    let next = AtomicU64::new(from);
    let (failures, total) = (Mutex::new(Vec::new()), Mutex::new(Report::default()));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= from + count || !failures.lock().is_empty() {
                        return;
                    }
                    match simulate(seed, TASKS) {
                        Ok(report) => {
                            let mut total = total.lock();
                            total.tasks += report.tasks;
                            total.claims += report.claims;
                            total.stale += report.stale;
                            total.killed += report.killed;
                            total.simulated += report.simulated;
                        }
                        Err(breaches) => failures.lock().push((seed, breaches)),
                    }
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    println!("{count} seeds from {from} in {:?}: {:?}", started.elapsed(), total.lock());
    for (seed, breaches) in failures.lock().iter() {
        println!("seed {seed} (WINDLASS_SIM_FROM={seed} WINDLASS_SIM_SEEDS=1):");
        for breach in breaches {
            println!("  {breach}");
        }
    }
    assert!(failures.lock().is_empty(), "the simulation broke an invariant");
}

#[test]
fn the_same_seed_is_the_same_run() {
    std::panic::set_hook(Box::new(|_| {}));
    assert_eq!(simulate(4711, TASKS), simulate(4711, TASKS));
}
