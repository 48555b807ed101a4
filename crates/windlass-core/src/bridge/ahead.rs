//! Messages that are stored before there is a slot for them, when somebody wants that: tools of other systems show what a node
//! has reserved, and messages that are delayed are soon where delays are kept.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Bridge;
use crate::backend::{Demand, StoreError};
use crate::{NodeId, State};

impl Bridge {
    /// Stores messages until as many wait in the store as are wanted there; with every tick.
    pub(super) async fn take_ahead(&self, node: &NodeId) -> Result<(), StoreError> {
        let Some(demand) = self.state.lock().demand.clone() else { return Ok(()) };
        let (open, _) = self.open_queues(&self.transport.queues(&demand.queues));
        if open.is_empty() {
            return Ok(());
        }
        let counts = self.store.counts().await?;
        let waiting: u64 =
            open.iter().filter_map(|queue| counts.queues.get(queue)).map(|queue| queue.of(State::Ready)).sum();
        let missing = self.ahead.saturating_sub(usize::try_from(waiting).unwrap_or(usize::MAX));
        if missing == 0 {
            return Ok(());
        }
        let (wait, hush) = (Duration::ZERO, CancellationToken::new());
        let taken =
            self.ask_transport(&Demand { node: node.clone(), queues: open, max: missing, wait, hush, ..demand }).await;
        if taken.is_empty() { Ok(()) } else { self.adopt_taken(None, taken).await.map(drop) }
    }
}
