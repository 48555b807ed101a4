//! What a bridge does with every tick for messages that it is done with, and for those of dead nodes.

use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::letting_go::UNCONFIRMED;
use super::{Bridge, TransportError};
use crate::adoption::Adoption;
use crate::backend::{BATCH_MAX, StoreError};
use crate::{DeliveryId, NodeId};

/// How often a node looks for messages of the dead.
const RECOVER_EVERY: Duration = Duration::from_secs(15);

impl Bridge {
    /// Takes out what the store need remember no longer; as many as one adoption names.
    pub(super) fn let_go(&self) -> Vec<DeliveryId> {
        let (mut state, now) = (self.state.lock(), Instant::now());
        while state.unconfirmed.len() > UNCONFIRMED.1 || state.unconfirmed.front().is_some_and(|(at, _)| *at <= now) {
            let oldest = state.unconfirmed.pop_front();
            state.let_go.extend(oldest.map(|(_, id)| id));
        }
        let amount = state.let_go.len().min(BATCH_MAX);
        state.let_go.drain(..amount).collect()
    }

    /// Lets the store forget what the transport has let go, when no message comes that would do so on the way.
    pub(super) async fn forget(&self) -> Result<(), StoreError> {
        let adoption = Adoption { accepted: self.let_go(), ..Adoption::default() };
        if adoption.accepted.is_empty() {
            return Ok(());
        }
        let forgotten = self.store.adopt(&adoption).await;
        if forgotten.is_err() {
            self.state.lock().let_go.extend(adoption.accepted);
        }
        forgotten.map(drop)
    }

    /// Tries answers again that the transport has refused.
    pub(super) async fn tell_refused(&self) {
        for (answer, times) in self.answers.refused() {
            if let Err(TransportError::Refused(_) | TransportError::Unreachable(_)) =
                self.aside(self.transport.answer(std::slice::from_ref(&answer))).await
            {
                self.answers.refuse(vec![answer], times + 1);
            }
        }
    }

    /// Brings messages back that dead nodes have taken.
    pub(super) async fn recover(&self, node: &NodeId) -> Result<(), StoreError> {
        let now = Instant::now();
        {
            let mut state = self.state.lock();
            let early = state.recovered_at.is_some_and(|at| now.saturating_duration_since(at) < RECOVER_EVERY);
            if early || state.transport.shut_until(now).is_some() {
                return Ok(());
            }
            state.recovered_at = Some(now);
        }
        let nodes = self.store.nodes().await?;
        let living = nodes.into_iter().filter(|node| node.alive).map(|node| node.info.id);
        let living: Vec<NodeId> = living.chain([node.clone()]).collect();
        let said = self.aside(self.transport.recover(&living)).await;
        if let Some(messages @ 1..) = self.heard(said, "recover") {
            warn!(messages, "messages of dead nodes are delivered again");
        }
        Ok(())
    }
}
