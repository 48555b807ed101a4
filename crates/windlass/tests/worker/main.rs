//! What a worker does with tasks, good and bad, over the memory store in simulated time.

mod bad_input;
mod batch_ends;
mod batches;
mod breakers;
mod composite;
mod declared;
mod guard;
mod limits;
mod metrics;
mod orders;
mod outages;
mod rig;
mod shutdown;
mod steps;
mod workflows;
