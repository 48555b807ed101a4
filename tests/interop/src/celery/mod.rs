//! The calls of the suite as what Celery's workers are sent.

mod call;

pub use call::{Call, InvalidCall};
