//! What a node asks the others when it first listens: which tasks were revoked while it was not there. Celery calls it mingle.
//!
//! Nothing waits for it: what they say is taken over as they say it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tracing::debug;
use windlass_wire::celery::control::{Command, Destination, answer};

use super::super::Desk;

/// How long the others are listened to; as Celery's workers do it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks the other nodes, those in Python too, and tells them what is known here.
pub(super) async fn with_neighbours(desk: Arc<Desk>) {
    let Some(neighbours) = &desk.neighbours else { return };
    let hello = Command::Hello { from: desk.teller.hostname.clone(), revoked: desk.revoked.all() };
    let take_over = |answers: Map<String, Value>| {
        for (node, answer) in answers {
            let (revoked, clock) = answer::heard_of_hello(&answer);
            debug!(node, revoked = revoked.len(), "another node has said what was revoked");
            desk.events.clock.heard(clock);
            desk.revoked.add(revoked);
        }
        ControlFlow::Continue(())
    };
    if let Err(error) = neighbours.hear(hello, Destination::All, PATIENCE, take_over).await {
        debug!(%error, "the other nodes cannot be asked what was revoked");
    }
}
