//! The contract of a task store, kept by the store in memory.

use std::sync::Arc;

use windlass_memory::MemoryStore;
use windlass_testkit::conformance::{Opened, Setup};

async fn open(setup: Setup) -> Opened {
    let store = MemoryStore::new(Arc::new(setup.clock)).with_retention(setup.retention);
    Opened::new(store.clone()).with_second(store)
}

windlass_testkit::conformance!(open);
