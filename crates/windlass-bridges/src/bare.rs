//! Bare JSON in Redis lists: what a service pushes that has no framework. Nobody waits for an answer.

use std::sync::Arc;

use async_trait::async_trait;
use windlass_core::backend::Demand;
use windlass_core::bridge::{
    Answer, Concern, Identity, LetGo, Malformed, Message, Returned, Tag, Taken, Transport, TransportError,
};
use windlass_core::{Envelope, NodeId, TaskId};
use windlass_redis::Location;
use windlass_redis::foreign::{Line, SILENT_AFTER};
use windlass_wire::raw::{self, Shape};

use crate::carrier::{Carried, Carrier, RedisLists, delivery_id, of_store, one_list};

/// A bridge's transport for bare JSON.
///
/// A message that names an id is the task with that id; one that is sent again under an id that has not ended is a second
/// run. Until it is stored, a message is held in Redis: a node that dies loses nothing.
#[derive(Debug)]
pub struct Bare {
    carrier: Arc<dyn Carrier>,
    shape: Shape,
}

impl Bare {
    /// A transport over the lists of this server.
    ///
    /// # Errors
    /// [`TransportError`] when the server cannot be used now; later it is waited for.
    pub async fn on_redis(location: Location, shape: Shape) -> Result<Self, TransportError> {
        let line = Arc::new(Line::to(location));
        line.ask(&[b"PING".to_vec()]).await.map_err(of_store)?;
        Ok(Self::new(Arc::new(RedisLists::new(line, "", one_list, SILENT_AFTER)), shape))
    }

    /// A transport over any carrier of bytes.
    pub fn new(carrier: Arc<dyn Carrier>, shape: Shape) -> Self {
        Self { carrier, shape }
    }

    fn read(&self, carried: Carried) -> Taken {
        let Carried { tag, identity, queue, content, .. } = carried;
        let message = match raw::decode(content.raw(), &self.shape, queue.clone()) {
            Ok(envelope) => Message::Task(Box::new(envelope)),
            Err(reason) => Message::Malformed(Malformed {
                queue,
                name: None,
                id: None,
                reason: reason.to_string(),
                raw: content.raw().to_vec(),
            }),
        };
        let token = identity.unwrap_or_else(|| TaskId::random().to_string());
        Taken { id: delivery_id(&format!("list:{token}")), identity: Identity::Own, tag, message }
    }
}

#[async_trait]
impl Transport for Bare {
    async fn take(&self, demand: &Demand) -> Result<Vec<Taken>, TransportError> {
        let carried = self.carrier.take(&demand.queues, demand.max, demand.wait, &demand.hush).await?;
        Ok(carried.into_iter().map(|carried| self.read(carried)).collect())
    }

    async fn accept(&self, tags: &[Tag]) -> Result<Vec<LetGo>, TransportError> {
        self.carrier.accept(tags).await
    }

    async fn put_back(&self, tags: &[Tag], why: Returned) -> Result<(), TransportError> {
        self.carrier.put_back(tags, why).await
    }

    fn concern(&self, _envelope: &Envelope) -> Concern {
        Concern::Nothing
    }

    async fn answer(&self, _answers: &[Answer]) -> Result<(), TransportError> {
        Ok(())
    }

    async fn recover(&self, _living: &[NodeId]) -> Result<u64, TransportError> {
        self.carrier.recover().await
    }
}
