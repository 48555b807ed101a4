//! The contract of a task store, against Redis: two stores in one namespace, as two processes would have it.

use std::sync::Arc;

use windlass_core::TaskId;
use windlass_redis::{Location, Options, RedisStore, Time};
use windlass_testkit::conformance::{Opened, Setup};

async fn open(setup: Setup) -> Opened {
    let url = std::env::var("WINDLASS_TEST_REDIS_URL").expect("WINDLASS_TEST_REDIS_URL");
    let namespace = format!("test-{}", TaskId::random());
    let location: Location = url.parse().expect("a URL");
    let location = location.with_namespace(&namespace).expect("a namespace");
    let options =
        Options { retention: setup.retention, time: Time::Given(Arc::new(setup.clock)), ..Options::default() };
    let store = RedisStore::open(location.clone(), options.clone()).await.expect("a new namespace");
    let second = RedisStore::open(location, options).await.expect("the same namespace");
    Opened::new(store).with_second(second)
}

windlass_testkit::conformance!(open);
