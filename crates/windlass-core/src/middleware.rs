//! Code that runs around every push and every attempt: trace context, tenants, measurements.

use std::sync::Arc;

use async_trait::async_trait;

use crate::call::Call;
use crate::envelope::Envelope;
use crate::registry::{Entry, Registry};
use crate::retry::Outcome;

/// Something that happens around tasks. The first one registered is the outermost.
///
/// ```
/// use windlass_core::middleware::{Middleware, Next};
/// use windlass_core::{Envelope, call::Call, retry::Outcome};
///
/// /// Hands the tenant of the producer to the log of the worker.
/// struct Tenant;
///
/// #[async_trait::async_trait]
/// impl Middleware for Tenant {
///     fn on_push(&self, envelope: &mut Envelope) {
///         envelope.headers.entry("tenant".into()).or_insert_with(|| "acme".into());
///     }
///     async fn run(&self, call: &Call, next: Next<'_>) -> Outcome {
///         println!("tenant {:?}", call.header("tenant"));
///         next.run().await
///     }
/// }
/// ```
#[async_trait]
pub trait Middleware: Send + Sync {
    /// Sees every envelope before it is stored. What it adds is checked against the limits like everything else.
    fn on_push(&self, envelope: &mut Envelope) {
        let _ = envelope;
    }

    /// Runs an attempt, or a part of one: a handler that another handler runs ([`crate::composite`]). Not calling `next`
    /// means that the handler does not run.
    async fn run(&self, call: &Call, next: Next<'_>) -> Outcome {
        let _ = call;
        next.run().await
    }
}

/// The rest of the chain, with the handler at its end.
pub struct Next<'a> {
    call: &'a Arc<Call>,
    rest: &'a [Arc<dyn Middleware>],
    registry: &'a Arc<Registry>,
    entry: &'a Entry,
}

impl<'a> Next<'a> {
    pub(crate) fn new(call: &'a Arc<Call>, registry: &'a Arc<Registry>, entry: &'a Entry) -> Self {
        Self { call, rest: registry.middleware(), registry, entry }
    }

    /// Runs the rest of the chain.
    pub async fn run(self) -> Outcome {
        match self.rest.split_first() {
            Some((first, rest)) => first.run(self.call, Next { rest, ..self }).await,
            None => self.entry.run(Arc::clone(self.call), self.registry).await,
        }
    }
}

impl std::fmt::Debug for Next<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Next({} more)", self.rest.len())
    }
}
