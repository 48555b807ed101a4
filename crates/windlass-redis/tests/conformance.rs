//! The contract of a task store, against Redis: two stores in one namespace, as two processes would have it.

use std::sync::Arc;

use windlass_core::TaskId;
use windlass_redis::{Location, Options, RedisStore, Time};
use windlass_testkit::conformance::{Opened, Setup, opened};

/// The keys of a case, removed when it has ended.
struct Keys {
    url: String,
    namespace: String,
}

impl Drop for Keys {
    fn drop(&mut self) {
        let Ok(mut server) = redis::Client::open(self.url.as_str()).and_then(|client| client.get_connection()) else {
            return;
        };
        let pattern = format!("{{{}}}:*", self.namespace);
        let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query(&mut server).unwrap_or_default();
        if !keys.is_empty() {
            // What stays is in nobody's way.
            let _ = redis::cmd("UNLINK").arg(keys).query::<i64>(&mut server);
        }
    }
}

async fn open(setup: Setup) -> Opened {
    let url = windlass_servers::redis_url();
    let namespace = format!("test-{}", TaskId::random());
    let location: Location = url.parse().expect("a URL");
    let location = location.with_namespace(&namespace).expect("a namespace");
    let options =
        Options { retention: setup.retention, time: Time::Given(Arc::new(setup.clock)), ..Options::default() };
    let store = opened(|| RedisStore::open(location.clone(), options.clone())).await;
    let second = opened(|| RedisStore::open(location.clone(), options.clone())).await;
    Opened::new(store).with_second(second).keep(Keys { url, namespace })
}

windlass_testkit::conformance!(open);
