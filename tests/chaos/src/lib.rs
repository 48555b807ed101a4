//! Real workers and real servers, killed, stopped and restarted while tasks run: nothing may be lost.
//!
//! | file | owns |
//! |---|---|
//! | `ledger.rs` | what handlers have really done, written by themselves: the truth that stores are compared with |
//! | `place.rs` | a store and the server below it, which can be taken away |
//! | `fleet.rs` | worker processes, and what is done to them |
//! | `storm.rs` | the run: tasks, random faults, and the comparison at the end |
//!
//! The program `chaos-worker` is a worker with one task, which writes into the ledger. The tests in `tests/` are small runs
//! that are always made; `WINDLASS_CHAOS_TASKS` and `WINDLASS_CHAOS_SEED` make large ones, and repeat one.

mod fleet;
mod ledger;
mod place;
mod storm;

pub use fleet::{Fleet, Worker};
pub use ledger::{LEDGER, Ledger, Runs};
pub use place::{Place, Store};
pub use storm::{Report, Storm, seed};
