//! The receiver of the demo: answers requests as planned, and keeps a ledger of its own. What the store says is checked
//! against what has really arrived.

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderMap, HeaderName, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use windlass::{Clock, SystemClock, TaskId, Timestamp};

use super::plan::{Fate, PUT_OFF_BY, Subject, square};

/// The results of the chord with room to spare.
const BODY_BYTES_MAX: usize = 1024 * 1024;

/// A request that arrived.
#[derive(Debug, Clone)]
pub(super) struct Arrival {
    /// What it is about.
    pub(super) subject: Subject,
    /// Its idempotency key: the id of the task.
    pub(super) id: TaskId,
    /// Which attempt it says it is.
    pub(super) attempt: u32,
    /// When.
    pub(super) at: Timestamp,
    /// What it was answered.
    pub(super) status: u16,
}

/// Everything that arrived.
#[derive(Debug, Default, Clone)]
pub(super) struct Ledger {
    /// In the order of arrival.
    pub(super) arrivals: Vec<Arrival>,
    /// The body of the request that ends the chord.
    pub(super) chord: Option<Bytes>,
    /// Requests that nobody planned.
    pub(super) strangers: u64,
}

/// A receiver on a free port of this machine.
#[derive(Debug)]
pub(super) struct Receiver {
    port: u16,
    shared: Arc<Shared>,
    serving: tokio::task::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    book: Mutex<Book>,
    /// Deliveries that were answered for good, each counted once: read by the progress bar without the lock.
    delivered: AtomicUsize,
}

#[derive(Debug, Default)]
struct Book {
    ledger: Ledger,
    /// Who was put off before.
    put_off: HashSet<TaskId>,
    /// Who was answered for good before.
    done: HashSet<TaskId>,
}

impl Receiver {
    /// Listens.
    ///
    /// # Errors
    /// When this machine gives no port.
    pub(super) async fn start() -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let serving = tokio::spawn(serve(listener, Arc::clone(&shared)));
        Ok(Self { port, shared, serving })
    }

    /// The URL of a subject.
    pub(super) fn url(&self, subject: Subject) -> String {
        format!("http://127.0.0.1:{}{subject}", self.port)
    }

    /// How many deliveries were answered for good.
    pub(super) fn delivered(&self) -> usize {
        self.shared.delivered.load(Ordering::Relaxed)
    }

    /// Everything that arrived so far.
    pub(super) fn ledger(&self) -> Ledger {
        self.shared.book.lock().ledger.clone()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        // A connection that failed before it was accepted is the business of the worker, which tries again.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(request, &shared).await) }
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // The killed worker breaks its connections off.
            let _ = connection.await;
        });
    }
}

async fn answer(request: Request<Incoming>, shared: &Shared) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, BODY_BYTES_MAX).collect().await else {
        // It did not arrive whole, so it did not arrive.
        return plain(StatusCode::BAD_REQUEST, "the body is too large or broken".to_owned());
    };
    let arrived = (head.uri.path().parse::<Subject>(), id_of(&head.headers), attempt_of(&head.headers));
    let (Ok(subject), Some(id), Some(attempt)) = arrived else {
        shared.book.lock().ledger.strangers += 1;
        return plain(StatusCode::NOT_FOUND, "nobody planned this".to_owned());
    };
    let mut book = shared.book.lock();
    let status = match subject.fate() {
        Fate::Refused => StatusCode::BAD_REQUEST,
        Fate::PutOff if book.put_off.insert(id.clone()) => StatusCode::SERVICE_UNAVAILABLE,
        Fate::PutOff | Fate::Accepted => StatusCode::OK,
    };
    if matches!(subject, Subject::Delivery(_))
        && status != StatusCode::SERVICE_UNAVAILABLE
        && book.done.insert(id.clone())
    {
        shared.delivered.fetch_add(1, Ordering::Relaxed);
    }
    if subject == Subject::Chord {
        book.ledger.chord = Some(body.to_bytes());
    }
    book.ledger.arrivals.push(Arrival { subject, id, attempt, at: SystemClock.now(), status: status.as_u16() });
    drop(book);
    let text = match (subject, status) {
        (Subject::Member(member), _) => square(member).to_string(),
        (_, StatusCode::BAD_REQUEST) => "no such order".to_owned(),
        (_, _) => "ok".to_owned(),
    };
    plain(status, text)
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(RETRY_AFTER, PUT_OFF_BY.as_secs().into());
    }
    response
}

fn id_of(headers: &HeaderMap) -> Option<TaskId> {
    headers.get("idempotency-key")?.to_str().ok()?.parse().ok()
}

fn attempt_of(headers: &HeaderMap) -> Option<u32> {
    const ATTEMPT: HeaderName = HeaderName::from_static("windlass-attempt");
    headers.get(ATTEMPT)?.to_str().ok()?.parse().ok()
}

impl Ledger {
    /// The arrivals of each task, in their order.
    pub(super) fn by_task(&self) -> HashMap<&TaskId, Vec<&Arrival>> {
        let mut by_task: HashMap<&TaskId, Vec<&Arrival>> = HashMap::new();
        for arrival in &self.arrivals {
            by_task.entry(&arrival.id).or_default().push(arrival);
        }
        by_task
    }
}
