//! Real workers and real servers, killed, stopped and restarted while tasks run: nothing may be lost.
//!
//! | file | owns |
//! |---|---|
//! | `ledger.rs` | what handlers have really done, written by themselves: the truth that stores are compared with |
//! | `place.rs` | a store and the server below it, which can be taken away |
//! | `fleet.rs` | worker processes, and what is done to them |
//! | `bank/` | accounts in the database of the store, and transfers that are committed with their task |
//! | `moment.rs` | where a worker behind a bridge kills itself: counted, not left to luck |
//! | `producer.rs` | the programs at the other end of a bridge: they send tasks and wait for results |
//! | `storm.rs` | the run: tasks, random faults, and the comparison at the end |
//!
//! The program `chaos-worker` is a worker with tasks that write into the ledger, `chaos-bridge` one behind a bridge that kills
//! itself, `chaos-bank` one that makes transfers, `chaos-relay` moves tasks out of an outbox. The tests in `tests/` are small
//! runs that are always made; `WINDLASS_CHAOS_TASKS` and `WINDLASS_CHAOS_SEED` make large ones, and repeat one.

mod bank;
mod fleet;
mod ledger;
mod moment;
mod place;
mod producer;
mod storm;

pub use bank::{Bank, Books, Step, Transfer, bank};
pub use fleet::{ABORTS, Fleet, Worker};
pub use ledger::{LEDGER, Ledger, Runs};
pub use moment::{DIES, Doom, Moment, Mortal};
pub use place::{Place, Store};
pub use producer::Producer;
pub use storm::{Report, Storm, seed, tasks};
