//! Servers of their own for tests that kill, stop or fill one, a network that breaks, and tasks in few words.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use windlass_core::backend::{Backend, Claim, Demand, Push, Settled};
use windlass_core::flow;
use windlass_core::{Args, Envelope, Json, NodeId, QueueName, StoreError, TaskId, TaskName, Verdict};
use windlass_redis::{Location, Options, RedisStore};
use windlass_servers::{Aof, Proxy, Redis};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server of its own that forgets nothing when it is killed.
pub(crate) fn redis() -> Redis {
    redis_with(&[])
}

/// The same with options.
pub(crate) fn redis_with(options: &[&str]) -> Redis {
    Redis::start_with(Aof::Always, options).unwrap_or_else(|error| panic!("{error}"))
}

/// Asking a server what it must answer.
pub(crate) trait Ask {
    fn ask(&self, words: &[&str]) -> String;
}

impl Ask for Redis {
    fn ask(&self, words: &[&str]) -> String {
        self.cli(words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }
}

/// A line to a server that can break, and the URL at this end of it.
pub(crate) fn line_to(redis: &Redis) -> (Proxy, String) {
    let line = Proxy::to(redis.address()).unwrap_or_else(|error| panic!("{error}"));
    let url = format!("redis://{}", line.address());
    (line, url)
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("it has an address").port()
}

/// A store in a namespace of its own.
pub(crate) async fn open(url: &str) -> RedisStore {
    let location: Location = url.parse().expect("a URL");
    let location = location.with_namespace(&format!("test-{}", TaskId::random())).expect("a namespace");
    RedisStore::open(location, Options::default()).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Why a store cannot be opened.
pub(crate) async fn refused(url: &str) -> StoreError {
    let location: Location = url.parse().expect("a URL");
    match RedisStore::open(location, Options::default()).await {
        Ok(_) => panic!("{url} is refused"),
        Err(error) => error,
    }
}

pub(crate) fn task(name: &str) -> Envelope {
    Envelope::new(TaskName::known(name), QueueName::default(), Args::none())
}

pub(crate) fn push_of(envelopes: impl IntoIterator<Item = Envelope>) -> Push {
    Push { envelopes: envelopes.into_iter().collect(), groups: Vec::new() }
}

pub(crate) fn node() -> NodeId {
    NodeId::known("node-1")
}

pub(crate) fn demand(max: usize, wait: Duration) -> Demand {
    Demand {
        node: node(),
        queues: vec![QueueName::default()],
        max,
        lease: Duration::from_secs(30),
        except: Vec::new(),
        wait,
        hush: CancellationToken::new(),
    }
}

pub(crate) async fn claim_one(store: &RedisStore) -> Claim {
    let mut claims = store.claim(&demand(1, Duration::ZERO)).await.expect("the store answers");
    claims.pop().expect("there is a task")
}

pub(crate) fn succeeded() -> Verdict {
    Verdict::Succeeded { result: Json::null(), skipped: None }
}

pub(crate) fn settled(claim: &Claim, verdict: Verdict) -> Settled {
    let follow = flow::follow(&claim.envelope, &verdict);
    Settled { receipt: claim.receipt.clone(), verdict, follow }
}

/// Repeats something until the store is back.
pub(crate) async fn until_back<T, F: Future<Output = Result<T, StoreError>>>(mut ask: impl FnMut() -> F) -> T {
    let began = Instant::now();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                assert!(began.elapsed() < PATIENCE, "the store comes back: {error}");
                // tidy: allow(sleep): a server that comes back tells nobody
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}
