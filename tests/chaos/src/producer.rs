//! The programs at the other end of a bridge: they send tasks and wait for results, whoever works.

use std::time::Duration;

use anyhow::{Result, ensure};
use windlass::bridges::url::Wire;
use windlass::bridges::{BridgeUrl, celery, celery_producer, taskiq, taskiq_producer};
use windlass::{Envelope, QueueName};

/// A client of workers behind a bridge.
#[derive(Debug)]
pub enum Producer {
    /// As a service with Celery.
    Celery(Box<celery::producer::Producer>),
    /// As a service with TaskIQ.
    TaskIq(taskiq::producer::Producer),
}

impl Producer {
    /// A client of the workers of this bridge on this queue.
    ///
    /// # Errors
    /// When the broker cannot be used.
    pub async fn open(url: &BridgeUrl, queue: &QueueName) -> Result<Self> {
        Ok(match url.wire {
            Wire::Celery => Self::Celery(Box::new(celery_producer(url, "chaos@test").await?)),
            Wire::TaskIq => Self::TaskIq(taskiq_producer(url, std::slice::from_ref(queue)).await?),
            Wire::Bare => anyhow::bail!("nobody answers bare JSON"),
        })
    }

    /// Sends a task and answers the id under which it is answered.
    ///
    /// # Errors
    /// When the broker does not take it.
    pub async fn send(&self, envelope: &Envelope) -> Result<String> {
        Ok(match self {
            Self::Celery(producer) => producer.enqueue(envelope).await?,
            Self::TaskIq(producer) => producer.enqueue(envelope).await?,
        })
    }

    /// Waits for a task to end well, and answers what it returned, as JSON.
    ///
    /// # Errors
    /// When it has not ended within the limit, or failed.
    pub async fn result(&self, id: &str, limit: Duration) -> Result<String> {
        match self {
            Self::Celery(producer) => {
                let document = producer.wait(id, limit).await?;
                ensure!(document.exception().is_none(), "`{id}` is {}: {:?}", document.status, document.result);
                Ok(document.result.as_str().to_owned())
            }
            Self::TaskIq(producer) => {
                let result = producer.wait(id, limit).await?;
                ensure!(result.error.is_none(), "`{id}` failed: {:?}", result.error);
                Ok(result.return_value.as_str().to_owned())
            }
        }
    }
}
