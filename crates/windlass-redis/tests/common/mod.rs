//! Servers of their own for tests that kill, stop or fill one, a network that breaks, and tasks in few words.

#![allow(dead_code, reason = "every test file uses a part of it")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use windlass_core::backend::{Backend, Claim, Demand, Push, Settled};
use windlass_core::flow;
use windlass_core::{Args, Envelope, Json, NodeId, QueueName, StoreError, TaskId, TaskName, Verdict};
use windlass_redis::{Location, Options, RedisStore};

/// How long a test waits for what must happen.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The shared server of the run.
pub(crate) fn redis_url() -> String {
    std::env::var("WINDLASS_TEST_REDIS_URL").unwrap_or_else(|_| {
        panic!("WINDLASS_TEST_REDIS_URL is not set: run `cargo xtask servers -- cargo nextest run -p windlass-redis`")
    })
}

/// A server of its own, with an append-only file that is synced every second.
pub(crate) struct Redis {
    child: Child,
    port: u16,
    folder: tempfile::TempDir,
    options: Vec<String>,
}

impl Redis {
    pub(crate) fn start_with(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let port = free_port();
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        let child = spawn(port, folder.path(), &options);
        let redis = Self { child, port, folder, options };
        redis.wait();
        redis
    }

    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    pub(crate) fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    pub(crate) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Kills it at once.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The same port, the same data.
    pub(crate) fn start_again(&mut self) {
        self.child = spawn(self.port, self.folder.path(), &self.options);
        self.wait();
    }

    /// What the server says to a command.
    pub(crate) fn cli(&self, words: &[&str]) -> String {
        let port = self.port.to_string();
        let said = Command::new("redis-cli").args(["-h", "127.0.0.1", "-p", &port]).args(words).output();
        String::from_utf8_lossy(&said.expect("redis-cli is installed").stdout).trim().to_owned()
    }

    fn wait(&self) {
        let began = Instant::now();
        // A server that wants a password answers as well.
        while !["PONG", "NOAUTH"].iter().any(|answer| self.cli(&["ping"]).contains(answer)) {
            assert!(began.elapsed() < PATIENCE, "the server starts");
            // tidy: allow(sleep): a server that starts tells nobody
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

fn spawn(port: u16, folder: &std::path::Path, options: &[String]) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"])
        .arg("--dir")
        .arg(folder)
        .args(options)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed")
}

pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("it has an address").port()
}

/// A network between a store and its server that can break.
pub(crate) struct Proxy {
    address: SocketAddr,
    state: Arc<ProxyState>,
}

#[derive(Default)]
struct ProxyState {
    stalled: AtomicBool,
    /// The next request reaches the server, its answer does not come back.
    lose_answer: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let address = listener.local_addr().expect("it has an address");
        let state = Arc::new(ProxyState::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(target) else { continue };
                connect(&shared, &client, &server);
            }
        });
        Self { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Ends every connection.
    pub(crate) fn cut(&self) {
        for stream in self.state.streams.lock().expect("no thread panics").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Connections stay, nothing comes through.
    pub(crate) fn stall(&self) {
        self.state.stalled.store(true, Ordering::SeqCst);
    }

    pub(crate) fn resume(&self) {
        self.state.stalled.store(false, Ordering::SeqCst);
    }

    pub(crate) fn lose_next_answer(&self) {
        self.state.lose_answer.store(true, Ordering::SeqCst);
    }
}

fn connect(state: &Arc<ProxyState>, client: &TcpStream, server: &TcpStream) {
    let muted = Arc::new(AtomicBool::new(false));
    let copy = |stream: &TcpStream| stream.try_clone().expect("a socket can be cloned");
    state.streams.lock().expect("no thread panics").extend([copy(client), copy(server)]);
    let (mut from_client, mut to_server) = (copy(client), copy(server));
    let (mut from_server, mut to_client) = (copy(server), copy(client));
    let (state_of_requests, muting) = (Arc::clone(state), Arc::clone(&muted));
    std::thread::spawn(move || {
        pump(&mut from_client, &mut to_server, &state_of_requests, |state| {
            if state.lose_answer.swap(false, Ordering::SeqCst) {
                muting.store(true, Ordering::SeqCst);
            }
            true
        });
    });
    let state = Arc::clone(state);
    std::thread::spawn(move || pump(&mut from_server, &mut to_client, &state, |_| !muted.load(Ordering::SeqCst)));
}

fn pump(from: &mut TcpStream, to: &mut TcpStream, state: &ProxyState, goes_on: impl Fn(&ProxyState) -> bool) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count) = from.read(&mut bytes) {
        while state.stalled.load(Ordering::SeqCst) {
            // tidy: allow(sleep): a stalled network has no event
            std::thread::sleep(Duration::from_millis(5));
        }
        if count == 0 || !goes_on(state) || to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
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
