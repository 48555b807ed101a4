//! Events for monitors: what this node is, and what happens to tasks. Best effort: who does not listen misses them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::debug;
use windlass_core::view::NodeInfo;
use windlass_core::{Clock, SystemClock};
use windlass_wire::Frame;
use windlass_wire::celery::Event;
use windlass_wire::celery::event::{Kind, Worker};

use super::broker::Broker;

/// Between two heartbeats.
const FREQUENCY: Duration = Duration::from_secs(2);
/// Events that nobody has sent yet; what comes beyond that is dropped.
const WAITING_MAX: usize = 10_000;
/// Monitors see by themselves that a node is gone.
const GOODBYE_WITHIN: Duration = Duration::from_secs(1);
/// Events of one frame.
const TOGETHER: usize = 100;

/// A Lamport clock: one more for each event, above everything heard.
#[derive(Debug, Default)]
pub(super) struct Lamport(AtomicU64);

impl Lamport {
    pub(super) fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Somebody else has come so far.
    pub(super) fn heard(&self, other: u64) {
        // A stranger must not take it to the end of the numbers.
        self.0.fetch_max(other.min(u64::from(u32::MAX)), Ordering::Relaxed);
        self.tick();
    }
}

/// What a node tells monitors.
#[derive(Debug)]
pub(super) struct Events {
    hostname: String,
    pid: u32,
    pub(super) clock: Lamport,
    of_tasks: AtomicBool,
    waiting: mpsc::Sender<Event>,
    node: Mutex<(u64, u64)>,
    /// Asks for a heartbeat now.
    heartbeat: tokio::sync::Notify,
    stop: CancellationToken,
    /// Everything was sent, and that the node is gone.
    gone: CancellationToken,
}

impl Events {
    /// Events of this node, and the task that sends them until `stop`, after which it says that the node is gone.
    pub(super) fn start(hostname: &str, of_tasks: bool, broker: Arc<dyn Broker>, stop: CancellationToken) -> Arc<Self> {
        let (waiting, inbox) = mpsc::channel(WAITING_MAX);
        let events = Arc::new(Self {
            hostname: hostname.to_owned(),
            pid: std::process::id(),
            clock: Lamport::default(),
            of_tasks: AtomicBool::new(of_tasks),
            waiting,
            node: Mutex::default(),
            heartbeat: tokio::sync::Notify::new(),
            stop,
            gone: CancellationToken::new(),
        });
        tokio::spawn(send(Arc::clone(&events), broker, inbox));
        events
    }

    /// Whether events of tasks are wanted.
    pub(super) fn of_tasks(&self) -> bool {
        self.of_tasks.load(Ordering::Relaxed)
    }

    /// Switches events of tasks on or off; answers whether they were on.
    pub(super) fn switch(&self, on: bool) -> bool {
        self.of_tasks.swap(on, Ordering::Relaxed)
    }

    /// Something has happened to tasks.
    pub(super) fn tell(&self, kinds: impl IntoIterator<Item = Kind>) {
        if !self.of_tasks() {
            return;
        }
        let now = SystemClock.now();
        for kind in kinds {
            let event = Event::new(&self.hostname, self.pid, self.clock.tick(), now, kind);
            if self.waiting.try_send(event).is_err() {
                debug!("events are not sent as fast as they happen; one is dropped");
            }
        }
    }

    pub(super) fn beat(&self, node: &NodeInfo) {
        *self.node.lock() = (node.busy as u64, node.finished);
    }

    /// Sends what waits and that the node is gone.
    pub(super) async fn say_goodbye(&self) {
        self.stop.cancel();
        if tokio::time::timeout(GOODBYE_WITHIN, self.gone.cancelled()).await.is_err() {
            debug!("monitors could not be told that the node is gone");
        }
    }

    /// Sends a heartbeat at once.
    pub(super) fn heartbeat(&self) {
        self.heartbeat.notify_one();
    }

    fn of_worker(&self, kind: impl FnOnce(Worker) -> Kind) -> Frame {
        let (active, processed) = *self.node.lock();
        let worker = Worker {
            freq: FREQUENCY.as_secs_f64(),
            active,
            processed,
            loadavg: load_average(),
            sw_ident: "windlass".to_owned(),
            sw_ver: env!("CARGO_PKG_VERSION").to_owned(),
            sw_sys: "Linux".to_owned(),
        };
        let kind = kind(worker);
        Event::new(&self.hostname, self.pid, self.clock.tick(), SystemClock.now(), kind).frame(None)
    }
}

/// The load of the machine over 1, 5 and 15 minutes; nothing where the system does not say.
fn load_average() -> Vec<f64> {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut load: Vec<f64> = text.split_whitespace().take(3).filter_map(|part| part.parse().ok()).collect();
    load.resize(3, 0.0);
    load
}

async fn send(events: Arc<Events>, broker: Arc<dyn Broker>, mut inbox: mpsc::Receiver<Event>) {
    let _gone = events.gone.clone().drop_guard();
    emit(&*broker, &[events.of_worker(Kind::WorkerOnline)]).await;
    let mut beats = tokio::time::interval(FREQUENCY);
    beats.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut batch = Vec::with_capacity(TOGETHER);
    loop {
        tokio::select! {
            biased;
            amount = inbox.recv_many(&mut batch, TOGETHER) => {
                if amount == 0 {
                    return;
                }
                emit(&*broker, &[Event::batch(&batch, &events.hostname, None)]).await;
                batch.clear();
            }
            () = events.stop.cancelled() => break,
            _ = beats.tick() => emit(&*broker, &[events.of_worker(Kind::WorkerHeartbeat)]).await,
            () = events.heartbeat.notified() => emit(&*broker, &[events.of_worker(Kind::WorkerHeartbeat)]).await,
        }
    }
    emit(&*broker, &[events.of_worker(Kind::WorkerOffline)]).await;
}

async fn emit(broker: &dyn Broker, frames: &[Frame]) {
    if let Err(error) = broker.emit(frames).await {
        debug!(%error, "events were not sent");
    }
}
