//! Remote control: requests that clients broadcast, and the replies of this node. `inspect.rs` looks, `change.rs` changes;
//! `mingle.rs` asks the other nodes.
//!
//! Requests are served one after the other, apart from the work of the node: they are answered however busy its slots are.

mod change;
mod inspect;
mod mingle;

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};
use windlass_core::{Backend, Clock, SystemClock};
use windlass_wire::Frame;
use windlass_wire::celery::control::{Command, Meant, Request, answer};

use super::Desk;

/// Between two attempts to listen.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest that a request is worked on: its client does not wait as long.
const WITHIN: Duration = Duration::from_secs(5);

/// Serves control requests until it is stopped.
pub(super) async fn serve(desk: Arc<Desk>, store: Arc<dyn Backend>, stop: CancellationToken) {
    let mut has_asked = false;
    while !stop.is_cancelled() {
        let listening = tokio::select! {
            listening = desk.broker.requests(&desk.teller.hostname) => listening,
            () = stop.cancelled() => return,
        };
        match listening {
            Ok(mut requests) => {
                // Apart from this loop: two nodes that start at once ask each other.
                if !std::mem::replace(&mut has_asked, true) {
                    tokio::spawn(mingle::with_neighbours(Arc::clone(&desk)));
                }
                loop {
                    let request = tokio::select! {
                        request = requests.recv() => request,
                        () = stop.cancelled() => return,
                    };
                    let Some(frame) = request else { break };
                    if tokio::time::timeout(WITHIN, one(&desk, &*store, &frame)).await.is_err() {
                        warn!("a control request took too long and was given up");
                    }
                }
            }
            Err(error) => debug!(%error, "control requests are not heard; it is tried again"),
        }
        tokio::select! {
            () = tokio::time::sleep(AGAIN) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// One request, and the reply to it.
async fn one(desk: &Desk, store: &dyn Backend, frame: &Frame) {
    let request = match Request::decode(frame) {
        Ok(request) => request,
        Err(reason) => {
            debug!(%reason, "a control request cannot be read");
            return;
        }
    };
    desk.events.clock.heard(request.clock);
    let node = &desk.teller.hostname;
    match request.is_for(node) {
        Meant::Yes => {}
        Meant::No => return,
        Meant::Unknown => {
            debug!("a control request has a pattern that is not matched here; it is passed over");
            return;
        }
    }
    if request.has_expired(SystemClock.now()) {
        return;
    }
    let Some(reply) = reply(desk, store, &request.command).await else { return };
    let Some(frame) = request.reply(node, &reply, desk.events.clock.tick(), None) else { return };
    if let Err(error) = desk.broker.reply(&[frame]).await {
        debug!(%error, "the reply to a control request was not sent");
    }
}

/// What the node says to a command; `None` for nothing.
async fn reply(desk: &Desk, store: &dyn Backend, command: &Command) -> Option<Value> {
    if let Some(reply) = inspect::reply(desk, store, command).await {
        return reply;
    }
    let method = command.method();
    let reply = change::reply(desk, store, command).await;
    info!(method, "a control request was carried out");
    reply
}

/// The store could not be asked, in the words of an error of Python.
fn unavailable(error: &windlass_core::StoreError) -> Value {
    answer::error(format!("ConnectionError('the store cannot be asked: {}')", error.to_string().replace('\'', "\"")))
}
