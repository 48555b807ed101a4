//! The contract of a task store, against PostgreSQL: two stores on one schema, as two processes would have it.

mod common;

use std::sync::Arc;

use common::Schema;
use windlass_postgres::{Options, PostgresStore, Time};
use windlass_testkit::conformance::{Opened, Setup, opened};

async fn open(setup: Setup) -> Opened {
    let schema = Schema::new();
    let options =
        Options { retention: setup.retention, time: Time::Given(Arc::new(setup.clock)), ..Options::default() };
    let url = schema.url();
    let store = opened(|| PostgresStore::connect(&url, options.clone())).await;
    let second = opened(|| PostgresStore::connect(&url, options.clone())).await;
    Opened::new(store).with_second(second).keep(schema)
}

windlass_testkit::conformance!(open);
