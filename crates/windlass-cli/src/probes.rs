//! What a worker answers to platforms and to people who are woken at night: `/livez`, `/readyz`, `/startupz`, `/metrics`.
//!
//! | path | 200 | 503 |
//! |---|---|---|
//! | `/livez` | the process answers; nothing else is asked, or an outage of the store would restart every worker | never |
//! | `/readyz` | the store answers and the worker takes tasks | the store fails, or the worker drains, is quiet or has not begun |
//! | `/startupz` | the worker has begun | not yet |
//!
//! `?verbose` answers the checks as JSON. Nobody has to log in: nothing is said but states, names of queues and tasks, and
//! counts. Only addresses of this machine are reached from this machine alone: choose the address with that in mind.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use windlass::event::{Event, Listener};
use windlass::metrics::Metrics;
use windlass::view::{Counts, NodePhase};
use windlass::{Backend, Clock, SystemClock};

use crate::exit::{Exit, Problem};

/// The store is asked this often at most, however many probes come.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A store that takes longer is not ready.
const PATIENCE: Duration = Duration::from_secs(2);
/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 64;
/// A client that does not send its request in this time is let go.
const REQUEST_WITHIN: Duration = Duration::from_secs(5);

/// What the probes know. Give a clone to the worker as a listener, so that they hear of it.
#[derive(Clone)]
pub(crate) struct Probes(Arc<Known>);

struct Known {
    backend: Arc<dyn Backend>,
    metrics: Metrics,
    /// `None` until the worker has begun.
    phase: Mutex<Option<NodePhase>>,
    /// What the worker last heard of a store that fails, and since when it does.
    failing: Mutex<Option<(String, Instant)>>,
    looked: tokio::sync::Mutex<Option<Look>>,
    gates_looked: tokio::sync::Mutex<Option<Instant>>,
}

/// How the store answered when it was asked last.
struct Look {
    at: Instant,
    took: Duration,
    answer: Result<(), String>,
}

/// One check, as `?verbose` shows it.
struct Check {
    name: &'static str,
    problem: Option<String>,
    took: Duration,
}

impl Listener for Probes {
    fn on_event(&self, event: &Event) {
        self.0.metrics.on_event(event);
        match event {
            Event::Phase(phase) => *self.0.phase.lock() = Some(*phase),
            Event::StoreFailed { operation, error, .. } => {
                let mut failing = self.0.failing.lock();
                let since = failing.as_ref().map_or_else(Instant::now, |(_, since)| *since);
                *failing = Some((format!("{operation}: {error}"), since));
            }
            Event::StoreBack { .. } => *self.0.failing.lock() = None,
            _ => {}
        }
    }
}

impl Probes {
    /// Listens at this address. The server ends with the runtime.
    ///
    /// # Errors
    /// When nobody can listen there.
    pub(crate) async fn serve(backend: Arc<dyn Backend>, address: SocketAddr) -> Result<Self, Problem> {
        let listener = TcpListener::bind(address).await.map_err(|error| {
            Problem::new(
                Exit::Usage,
                format_args!("nobody can listen at {address}: {error}"),
                "choose another address with `--listen`, or leave it out",
            )
        })?;
        let probes = Self(Arc::new(Known {
            backend,
            metrics: Metrics::new(),
            phase: Mutex::new(None),
            failing: Mutex::new(None),
            looked: tokio::sync::Mutex::new(None),
            gates_looked: tokio::sync::Mutex::new(None),
        }));
        let bound = listener.local_addr().unwrap_or(address);
        tracing::info!(event = "probes_ready", address = %bound, "probes and metrics are answered");
        if !bound.ip().is_loopback() {
            tracing::warn!(
                event = "probes_public",
                address = %bound,
                "probes and metrics are answered to other machines, without a password"
            );
        }
        tokio::spawn(accept(listener, probes.clone()));
        Ok(probes)
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered");
        }
        let verbose = request.uri().query().is_some_and(|query| query.split('&').any(|part| part == "verbose"));
        match request.uri().path() {
            "/livez" | "/health/live" => report(&[], verbose),
            "/readyz" | "/health/ready" | "/health" | "/healthz" | "/healthcheck" => {
                report(&[self.store().await, self.worker()], verbose)
            }
            "/startupz" => report(&[self.begun()], verbose),
            "/metrics" => {
                // Old numbers are better than none: that the store fails is a metric too.
                let _ = self.look().await;
                self.look_at_gates().await;
                let mut response = plain(StatusCode::OK, self.0.metrics.encode());
                response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(METRICS_TYPE));
                response
            }
            _ => plain(StatusCode::NOT_FOUND, "try /livez, /readyz, /startupz or /metrics"),
        }
    }

    /// Whether the store answers us now, and has answered the worker.
    async fn store(&self) -> Check {
        let (took, answer) = self.look().await;
        let failing = self
            .0
            .failing
            .lock()
            .as_ref()
            .map(|(said, since)| format!("failing for {} s, last at {said}", since.elapsed().as_secs()));
        Check { name: "store", problem: answer.err().or(failing), took }
    }

    fn worker(&self) -> Check {
        let problem = match *self.0.phase.lock() {
            Some(NodePhase::Running) => None,
            Some(NodePhase::Quiet) => Some("it takes no more tasks".to_owned()),
            Some(NodePhase::Stopping | NodePhase::Stopped) => Some("it finishes what it has and leaves".to_owned()),
            None => Some("it has not begun".to_owned()),
        };
        Check { name: "worker", problem, took: Duration::ZERO }
    }

    fn begun(&self) -> Check {
        let problem = self.0.phase.lock().is_none().then(|| "it has not begun".to_owned());
        Check { name: "worker", problem, took: Duration::ZERO }
    }

    /// Asks the store, unless it was asked a moment ago: probes that come together share one question.
    async fn look(&self) -> (Duration, Result<(), String>) {
        let mut looked = self.0.looked.lock().await;
        if let Some(look) = looked.as_ref().filter(|look| look.at.elapsed() < LOOK_EVERY) {
            return (look.took, look.answer.clone());
        }
        let began = Instant::now();
        let answer = match tokio::time::timeout(PATIENCE, self.0.backend.counts()).await {
            Ok(Ok(counts)) => {
                self.0.metrics.observe_counts(&counts, SystemClock.now());
                whether_open(&counts)
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("it does not answer within {} s", PATIENCE.as_secs())),
        };
        let look = Look { at: Instant::now(), took: began.elapsed(), answer };
        let seen = (look.took, look.answer.clone());
        *looked = Some(look);
        seen
    }
}

impl Probes {
    /// Limits and breakers, which only the metrics tell of.
    async fn look_at_gates(&self) {
        let Known { backend, metrics, gates_looked, .. } = &*self.0;
        let mut looked = gates_looked.lock().await;
        if looked.is_some_and(|looked| looked.elapsed() < LOOK_EVERY) {
            return;
        }
        *looked = Some(Instant::now());
        let asked = async { tokio::join!(backend.limits(), windlass::breaker::list(&**backend)) };
        let Ok((limits, breakers)) = tokio::time::timeout(PATIENCE, asked).await else { return };
        if let Ok(limits) = limits {
            metrics.observe_limits(&limits, SystemClock.now());
        }
        if let Ok(breakers) = breakers {
            metrics.observe_breakers(&breakers);
        }
    }
}

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A store that was moved gives no tasks to anybody.
fn whether_open(counts: &Counts) -> Result<(), String> {
    if counts.closed { Err("it is closed: it was moved to another store".to_owned()) } else { Ok(()) }
}

async fn accept(listener: TcpListener, probes: Probes) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // No file descriptors left, most likely: they come back.
                tracing::debug!(%error, "a probe was not accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let probes = probes.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let probes = probes.clone();
                async move { Ok::<_, Infallible>(probes.answer(&request).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(REQUEST_WITHIN).keep_alive(false);
            // A client that goes away half-way has lost interest.
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

fn report(checks: &[Check], verbose: bool) -> Response<Full<Bytes>> {
    let problems: BTreeMap<&str, &str> =
        checks.iter().filter_map(|check| Some((check.name, check.problem.as_deref()?))).collect();
    let (status, word) =
        if problems.is_empty() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "failing") };
    if !verbose {
        let text: Vec<String> = problems.iter().map(|(name, problem)| format!("{name}: {problem}")).collect();
        return plain(status, if text.is_empty() { word.to_owned() } else { text.join("\n") });
    }
    let checks: Vec<_> = checks
        .iter()
        .map(|check| {
            let status = if check.problem.is_none() { "ok" } else { "failing" };
            json!({ "name": check.name, "status": status, "detail": check.problem, "latency_ms": check.took.as_millis() as u64 })
        })
        .collect();
    let mut response = plain(status, json!({ "status": word, "checks": checks }).to_string());
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    response
}

fn plain(status: StatusCode, text: impl Into<String>) -> Response<Full<Bytes>> {
    let mut text: String = text.into();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
