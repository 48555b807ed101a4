//! Tasks whose handler runs the handlers of other tasks, one after the other, within its own attempt.
//!
//! To a store it is one task: one claim, one lease, one verdict, one result. Nothing is enqueued for the parts. What stops the
//! attempt (its limits, a cancel, the end of the worker) stops the part that runs; after a crash all parts run again.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::sync::Arc;

use futures_util::FutureExt;

use crate::call::Call;
use crate::middleware::Next;
use crate::registry::{Registry, decode};
use crate::retry::Outcome;
use crate::task::Task;
use crate::worker;
use crate::{Args, TaskName};

impl Registry {
    /// Adds a task whose handler may run the others. A task of this name that the application has itself stays.
    #[must_use]
    pub fn with_composite<T, F, Fut>(mut self, handler: F) -> Self
    where
        T: Task,
        F: Fn(T, Handlers) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Outcome> + Send + 'static,
    {
        let (definition, handler) = (T::definition(), Arc::new(handler));
        self.add(
            definition,
            Box::new(move |call, registry| {
                let (handler, registry) = (Arc::clone(&handler), Arc::clone(registry));
                async move {
                    match decode::<T>(definition, &call) {
                        Ok(task) => handler(task, Handlers { call, registry, begun: 0 }).await,
                        Err(outcome) => outcome,
                    }
                }
                .boxed()
            }),
        );
        self
    }
}

/// The handlers of an application, for one of them that runs others; by deref its own attempt.
pub struct Handlers {
    call: Arc<Call>,
    registry: Arc<Registry>,
    /// How many parts have begun.
    begun: usize,
}

impl Handlers {
    /// Runs the handler of a task with these arguments, and the middleware around it. [`Outcome::Unknown`] when there is none.
    ///
    /// The part has an id of its own, which is the same in every attempt that runs the same parts in the same order; its
    /// progress and steps are those of the attempt. The hard limit of its task holds for it, beside those of the attempt. A
    /// panic ends the attempt.
    pub async fn run(&mut self, name: &TaskName, args: Args) -> Outcome {
        // Handlers that return at once would keep the limits and a cancel of the attempt, and its neighbours, from their turn.
        tokio::task::yield_now().await;
        let Some(entry) = self.registry.entry(name) else { return Outcome::Unknown };
        let call = Arc::new(self.call.part(self.begun, name.clone(), args));
        self.begun += 1;
        let (_, limit) = worker::limits(&call, entry.definition());
        let running = Next::new(&call, &self.registry, entry).run();
        tokio::time::timeout(limit, running).await.unwrap_or(Outcome::TimedOut { limit })
    }
}

impl Deref for Handlers {
    type Target = Call;
    fn deref(&self) -> &Call {
        &self.call
    }
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handlers({:?}, {} begun)", self.call, self.begun)
    }
}
