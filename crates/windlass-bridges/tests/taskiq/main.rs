//! TaskIQ's programs on the other side: messages as they write them, results as they read them, on real Redis servers.

// `#[derive(Task)]` writes `::windlass`, the crate that users depend on.
extern crate windlass_core as windlass;

mod brokers;
mod faults;
mod producing;
mod rabbitmq;
mod results;
mod rig;
mod schedules;
