//! A relay that aborts now and then: after every step of a batch.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use windlass::QueueName;
use windlass::backend::StoreError;
use windlass::outbox::{Outbox, Relay, Row, Taken};
use windlass_chaos::ABORTS;

/// One of so many steps is the last thing that its process does.
const STEPS_PER_ABORT: u32 = 12;

fn may_abort(step: &str) {
    if fastrand::u32(0..STEPS_PER_ABORT) == 0 {
        eprintln!("{ABORTS} {step}");
        std::process::abort();
    }
}

#[derive(Debug)]
struct Aborting(Arc<dyn Outbox>);

struct AbortingBatch(Box<dyn Taken>);

#[async_trait]
impl Outbox for Aborting {
    async fn take(&self, except: &[QueueName]) -> Result<Option<Box<dyn Taken>>, StoreError> {
        let taken = self.0.take(except).await?;
        Ok(taken.map(|taken| {
            may_abort("Taken");
            Box::new(AbortingBatch(taken)) as Box<dyn Taken>
        }))
    }

    async fn written(&self, wait: Duration) {
        self.0.written(wait).await;
    }
}

#[async_trait]
impl Taken for AbortingBatch {
    fn rows(&self) -> &[Row] {
        self.0.rows()
    }

    async fn settle(self: Box<Self>, moved: &[i64], refused: &[(i64, String)]) -> Result<(), StoreError> {
        may_abort("Pushed");
        self.0.settle(moved, refused).await?;
        may_abort("Settled");
        Ok(())
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let from = std::env::var("WINDLASS_OUTBOX").context("WINDLASS_OUTBOX names the database of the application")?;
    let to = std::env::var("WINDLASS_STORE").context("WINDLASS_STORE names the store")?;
    let outbox = windlass::connect_outbox(&from).await?;
    let store = windlass::connect(&to).await?;
    Relay::new(Arc::new(Aborting(outbox)), store).run(std::future::pending()).await;
    Ok(())
}
