//! Waiting: claims until there is a task, watches until a task has ended.
//!
//! A claim that finds nothing leaves its name with its queues, in the script that found nothing, and whoever makes a task
//! ready wakes as many claims as it takes to hold them. The message comes over a connection that only listens, one for each
//! handle. Whoever was woken and does not take the task wakes the next. All of it is a matter of speed only: every claim and
//! every watch looks by itself each second.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use redis::{PushInfo, PushKind, Value};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, warn};
use windlass_core::TaskId;
use windlass_core::backend::Demand;

use crate::Shared;
use crate::link::send;
use crate::scripts::Script;

/// Who waits looks by itself after this time: the most that a lost message costs.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// A claim waits this long for the connection that listens, and then goes on without.
const LISTEN_WITHIN: Duration = Duration::from_millis(500);
/// How often the connection that listens is asked whether it lives. A connection whose other end is gone without a word
/// looks exactly like one on which nothing happens.
const PING_EVERY: Duration = Duration::from_secs(10);
/// Between two attempts to listen.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// Who waits in this process.
#[derive(Debug)]
pub(crate) struct Bell {
    /// The name of this handle: random, so that no other process has it.
    handle: String,
    waiting: Mutex<Waiting>,
    listening: watch::Sender<bool>,
    closing: watch::Sender<bool>,
    started: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    claims: HashMap<u64, Arc<Waiter>>,
    watches: HashMap<String, Vec<Arc<Notify>>>,
}

#[derive(Debug, Default)]
struct Waiter {
    bell: Notify,
    /// It was woken and has not looked yet.
    called: AtomicBool,
}

impl Bell {
    pub(crate) fn new() -> Self {
        Self {
            handle: TaskId::random().to_string(),
            waiting: Mutex::default(),
            listening: watch::Sender::new(false),
            closing: watch::Sender::new(false),
            started: AtomicBool::new(false),
        }
    }

    /// Nobody listens any more: the store is dropped.
    pub(crate) fn close(&self) {
        self.closing.send_replace(true);
    }

    /// Wakes everybody: the connection was lost, and messages with it.
    fn ring_all(&self) {
        let waiting = self.waiting.lock();
        for waiter in waiting.claims.values() {
            waiter.bell.notify_one();
        }
        for bell in waiting.watches.values().flatten() {
            bell.notify_one();
        }
    }
}

/// Begins to listen, once for each handle.
async fn listen(shared: &Arc<Shared>) {
    let mut listening = shared.bell.listening.subscribe();
    if !shared.bell.started.swap(true, Ordering::AcqRel) {
        let weak = Arc::downgrade(shared);
        let listener = Listener(weak.clone());
        tokio::spawn(async move {
            let _listener = listener;
            while let Some(shared) = weak.upgrade() {
                if !hear(&shared).await {
                    return;
                }
                drop(shared);
                tokio::time::sleep(AGAIN_AFTER).await;
            }
        });
    }
    // Not to listen yet is no error: it only takes longer to notice something.
    let _ = tokio::time::timeout(LISTEN_WITHIN, listening.wait_for(|listening| *listening)).await;
}

/// Somebody listens. A runtime that ends takes its tasks along: then the next who waits begins anew.
struct Listener(std::sync::Weak<Shared>);

impl Drop for Listener {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.bell.listening.send_replace(false);
            shared.bell.started.store(false, Ordering::Release);
        }
    }
}

/// Listens until the connection breaks. Answers whether to listen again.
async fn hear(shared: &Arc<Shared>) -> bool {
    let mut closing = shared.bell.closing.subscribe();
    // tidy: allow(unbounded): the client library hands messages over without waiting; they are short and taken at once
    let (sender, mut heard) = mpsc::unbounded_channel();
    let mut connection = match shared.link.listen(sender).await {
        Ok(connection) => connection,
        Err(error) => {
            debug!(%error, "cannot listen for tasks");
            return true;
        }
    };
    let prefix = shared.link.location().prefix();
    let own = format!("{prefix}bell:{}", shared.bell.handle);
    let ends = format!("{prefix}ends");
    if let Err(error) = connection.subscribe(&[own.as_str(), ends.as_str()]).await {
        debug!(error = %shared.link.fault(&error), "cannot listen for tasks");
        return true;
    }
    let weak = Arc::downgrade(shared);
    shared.bell.listening.send_replace(true);
    // What happened before is not told.
    shared.bell.ring_all();
    let mut ping_at = Instant::now() + PING_EVERY;
    let left = loop {
        tokio::select! {
            push = heard.recv() => match push {
                Some(push) if push.kind == PushKind::Message => told(&weak, &own, push),
                Some(push) if push.kind == PushKind::Disconnection => break true,
                Some(_) => {}
                None => break true,
            },
            () = async { closing.wait_for(|closing| *closing).await.map_or((), drop) } => break false,
            () = tokio::time::sleep_until(ping_at) => {
                if let Err(error) = send(&mut connection, &redis::cmd("PING")).await {
                    warn!(event = "listening_stalled", error = %shared.link.fault(&error), "the connection that listens is dead");
                    break true;
                }
                ping_at = Instant::now() + PING_EVERY;
            }
        }
    };
    shared.bell.listening.send_replace(false);
    shared.bell.ring_all();
    left
}

/// A message: `CLAIM QUEUE` for this handle, or the id of a task that has ended.
fn told(shared: &std::sync::Weak<Shared>, own: &str, push: PushInfo) {
    let Some(shared) = shared.upgrade() else { return };
    let mut parts = push.data.into_iter().filter_map(|part| match part {
        Value::BulkString(bytes) => String::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    });
    let (Some(channel), Some(message)) = (parts.next(), parts.next()) else { return };
    if channel != own {
        for bell in shared.bell.waiting.lock().watches.get(&message).into_iter().flatten() {
            bell.notify_one();
        }
        return;
    }
    let Some((number, queue)) = message.split_once(' ') else { return };
    let waiter = number.parse().ok().and_then(|number: u64| shared.bell.waiting.lock().claims.get(&number).cloned());
    if let Some(waiter) = waiter {
        waiter.called.store(true, Ordering::Release);
        waiter.bell.notify_one();
        return;
    }
    // It waits no longer: the next one may want the task.
    let queue = queue.to_owned();
    tokio::spawn(async move { pass_on(&shared, "", true, &[queue]).await });
}

async fn pass_on(shared: &Shared, name: &str, woken: bool, queues: &[String]) {
    let passed = shared
        .run(Script::Ring, |cmd| {
            cmd.arg(name).arg(u8::from(woken));
            for queue in queues {
                cmd.arg(queue);
            }
        })
        .await;
    if let Err(error) = passed {
        // Whoever waits looks again within a second.
        debug!(%error, "cannot wake the next claim");
    }
}

/// A claim that waits. Given back when it is dropped, however it ends.
#[derive(Debug)]
pub(crate) struct Ticket {
    shared: Arc<Shared>,
    number: u64,
    waiter: Arc<Waiter>,
    /// How the scripts know it.
    name: String,
    queues: Vec<String>,
    /// The scripts may know it.
    listed: bool,
}

impl Ticket {
    pub(crate) async fn new(shared: &Arc<Shared>, demand: &Demand) -> Self {
        listen(shared).await;
        let waiter = Arc::new(Waiter::default());
        let mut waiting = shared.bell.waiting.lock();
        waiting.last += 1;
        let number = waiting.last;
        waiting.claims.insert(number, Arc::clone(&waiter));
        let picky = u8::from(!demand.except.is_empty());
        Self {
            shared: Arc::clone(shared),
            number,
            waiter,
            name: format!("{} {number} {} {picky}", shared.bell.handle, demand.max),
            queues: demand.queues.iter().map(ToString::to_string).collect(),
            listed: false,
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether an earlier look has left its name.
    pub(crate) fn is_listed(&self) -> bool {
        self.listed
    }

    /// It looks now: whatever it was woken for, it sees.
    pub(crate) fn looks(&self) {
        self.waiter.called.store(false, Ordering::Release);
    }

    /// What a look was answered with.
    pub(crate) fn looked(&mut self, listed: bool) {
        self.listed = listed;
    }

    pub(crate) async fn rung(&self) {
        self.waiter.bell.notified().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.shared.bell.waiting.lock().claims.remove(&self.number);
        let called = self.waiter.called.load(Ordering::Acquire);
        if !self.listed && !called {
            return;
        }
        // Without a runtime nobody can be told; whoever waits looks again within a second.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (shared, name, queues) =
                (Arc::clone(&self.shared), std::mem::take(&mut self.name), std::mem::take(&mut self.queues));
            runtime.spawn(async move { pass_on(&shared, &name, called, &queues).await });
        }
    }
}

/// A watch that waits. Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Watching {
    shared: Arc<Shared>,
    ids: Vec<String>,
    bell: Arc<Notify>,
}

impl Watching {
    pub(crate) async fn new(shared: &Arc<Shared>, ids: &[TaskId]) -> Self {
        listen(shared).await;
        let bell = Arc::new(Notify::new());
        let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        let mut waiting = shared.bell.waiting.lock();
        for id in &ids {
            waiting.watches.entry(id.clone()).or_default().push(Arc::clone(&bell));
        }
        drop(waiting);
        Self { shared: Arc::clone(shared), ids, bell }
    }

    pub(crate) async fn rung(&self) {
        self.bell.notified().await;
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut waiting = self.shared.bell.waiting.lock();
        for id in &self.ids {
            if let Some(bells) = waiting.watches.get_mut(id) {
                bells.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
                if bells.is_empty() {
                    waiting.watches.remove(id);
                }
            }
        }
    }
}
