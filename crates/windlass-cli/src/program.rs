//! An application without its type: what the commands need of it.

use std::fmt;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use windlass::registry::{BuildError, Registry};
use windlass::task::Definition;
use windlass::{App, TaskName};

/// An application whose state has not been made.
pub(crate) struct Program {
    name: String,
    definitions: Vec<&'static Definition>,
    build: BoxFuture<'static, Result<Registry, BuildError>>,
}

impl Program {
    /// Forgets the type of the state, so that every command is compiled once.
    pub(crate) fn of<S: Send + Sync + 'static>(app: App<S>) -> Self {
        Self { name: app.name().to_owned(), definitions: app.definitions().collect(), build: app.build().boxed() }
    }

    /// The name of the application.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Every task, in the order of registration.
    pub(crate) fn definitions(&self) -> &[&'static Definition] {
        &self.definitions
    }

    /// The task of this name.
    pub(crate) fn definition(&self, name: &TaskName) -> Option<&'static Definition> {
        self.definitions.iter().copied().find(|definition| definition.name == *name)
    }

    /// Makes the state and binds the handlers to it.
    ///
    /// # Errors
    /// [`BuildError`].
    pub(crate) async fn build(self) -> Result<Registry, BuildError> {
        self.build.await
    }
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Program({}, {} tasks)", self.name, self.definitions.len())
    }
}
