//! What tests of Windlass need: a clock that tests move, tasks whose fate is written in their arguments, and the contract
//! of a task store as a suite that every driver runs. Never linked into production.
//!
//! - [`TestApp`]: an application under test, in simulated time. Start here to test your own tasks.
//! - [`TestClock`]: time that stands still until a test moves it.
//! - [`conformance`](mod@conformance): the contract of [`Backend`](windlass_core::Backend), case by case.
//! - [`fate`](mod@fate): a task whose arguments say what each of its runs does.
//! - [`FaultyStore`]: a store behind a bad line.
//! - [`MemoryTransport`]: a foreign transport, for bridges.
//! - [`sim`]: a whole fleet in simulated time, with bad luck from a seed.

pub mod clock;
pub mod conformance;
pub mod fate;
pub mod faulty;
pub mod harness;
pub mod patient;
pub mod sim;
pub mod transport;

pub use clock::TestClock;
pub use faulty::{Faults, FaultyStore};
pub use harness::TestApp;
pub use patient::PatientStore;
pub use transport::MemoryTransport;
