//! The contract of a task store, case by case.
//!
//! Every driver runs the same cases from a test file of its own. It says how to open an empty store, and
//! [`conformance!`](crate::conformance!) makes one test of each case:
//!
//! ```
//! use std::sync::Arc;
//! use windlass_memory::MemoryStore;
//! use windlass_testkit::conformance::{Opened, Setup};
//!
//! async fn open(setup: Setup) -> Opened {
//!     let store = MemoryStore::new(Arc::new(setup.clock)).with_retention(setup.retention);
//!     Opened::new(store.clone()).with_second(store)
//! }
//!
//! windlass_testkit::conformance!(open);
//! # fn main() {}
//! ```
//!
//! The test file needs `tokio` with the features `macros`, `rt-multi-thread` and `time`.
//!
//! Cases move the store's time with [`Harness::clock`] and wait for events in real time, at most [`PATIENCE`]. A case is
//! a sentence of the contract; its module is the verb of the port that the sentence is about. A bug that one driver had
//! becomes a case here, so that no other driver can have it.

mod cases;
mod harness;
mod make;

pub mod adoption;
pub mod beat;
pub mod claim;
pub mod command;
pub mod counts;
pub mod fairness;
pub mod find;
pub mod flow;
pub mod gates;
pub mod info;
pub mod limits;
pub mod list;
pub mod memo;
pub mod notes;
pub mod pause;
pub mod priority;
pub mod push;
pub mod renew;
pub mod schedule;
pub mod settle;
pub mod tick;
pub mod transfer;
pub mod unique;
pub mod watch;

pub use harness::{Harness, Opened, PATIENCE, PATIENT, RETENTION, START, Setup, opened};

/// Makes one test of every case of the contract, in a module for each verb. The argument is a function, visible where the
/// macro is called, from [`Setup`] to a future of [`Opened`].
#[macro_export]
macro_rules! conformance {
    ($open:expr) => {
        $crate::__conformance_cases!($crate::__conformance_tests; $open);
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_tests {
    ($open:expr; $($verb:ident { $($case:ident,)* })*) => {
        $(mod $verb {
            #[allow(unused_imports, reason = "the function that opens the store may be a path")]
            use super::*;

            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                let harness = $crate::conformance::Harness::open($open).await;
                $crate::conformance::$verb::$case(&harness).await;
            })*
        })*
    };
}

#[cfg(test)]
mod tests {
    /// The source of every module of cases, by its verb.
    const SOURCES: [(&str, &str); 24] = [
        ("push", include_str!("push.rs")),
        ("claim", include_str!("claim.rs")),
        ("adoption", include_str!("adoption.rs")),
        ("renew", include_str!("renew.rs")),
        ("settle", include_str!("settle.rs")),
        ("find", include_str!("find.rs")),
        ("list", include_str!("list.rs")),
        ("counts", include_str!("counts.rs")),
        ("command", include_str!("command.rs")),
        ("beat", include_str!("beat.rs")),
        ("tick", include_str!("tick.rs")),
        ("schedule", include_str!("schedule.rs")),
        ("watch", include_str!("watch.rs")),
        ("flow", include_str!("flow.rs")),
        ("transfer", include_str!("transfer.rs")),
        ("info", include_str!("info.rs")),
        ("priority", include_str!("priority.rs")),
        ("unique", include_str!("unique.rs")),
        ("pause", include_str!("pause.rs")),
        ("limits", include_str!("limits.rs")),
        ("gates", include_str!("gates.rs")),
        ("fairness", include_str!("fairness.rs")),
        ("memo", include_str!("memo.rs")),
        ("notes", include_str!("notes.rs")),
    ];

    #[test]
    fn every_case_is_in_the_list() {
        let list = include_str!("cases.rs");
        for (verb, source) in SOURCES {
            let (_, from_verb) = list.split_once(&format!("{verb} {{\n")).expect("the list has every verb");
            let (of_verb, _) = from_verb.split_once('}').expect("the list is closed");
            let listed: Vec<&str> = of_verb.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
            let written: Vec<&str> = source
                .lines()
                .filter_map(|line| line.strip_prefix("pub async fn ")?.split_once('(').map(|(name, _)| name))
                .collect();
            assert_eq!(listed, written, "{verb}");
        }
    }
}
