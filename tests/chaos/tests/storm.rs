//! Workers are killed and frozen and servers crash while tasks run: every task runs, each result counts once, and nothing
//! is repeated but what was in flight.

use std::path::Path;

use windlass_chaos::{Report, Store, Storm};

fn play(store: Store) -> Report {
    let played = Storm::usual(store).play(Path::new(env!("CARGO_BIN_EXE_chaos-worker")));
    let report = played.unwrap_or_else(|error| panic!("{error:#}"));
    println!("{report:?}");
    assert!(report.killed > 0, "nothing happened: the run is too short to say anything");
    report
}

#[test]
fn a_storm_loses_nothing_on_sqlite() {
    play(Store::Sqlite);
}

#[test]
fn a_storm_loses_nothing_on_redis() {
    assert_eq!(play(Store::Redis).crashed, 2);
}

#[test]
fn a_storm_loses_nothing_on_postgres() {
    assert_eq!(play(Store::Postgres).crashed, 2);
}
