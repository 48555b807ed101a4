//! The calls of the suite as what TaskIQ's workers are sent.

mod call;

pub use call::read_call;
