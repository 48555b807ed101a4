//! An application without its type: what the commands need of it.

use std::fmt;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use windlass::registry::{BuildError, CheckArgs, Registry};
use windlass::task::Definition;
use windlass::{App, TaskName};

/// An application whose state has not been made.
pub(crate) struct Program {
    name: String,
    tasks: Vec<Known>,
    build: BoxFuture<'static, Result<Registry, BuildError>>,
}

/// A task of this program.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known {
    /// What is known of it.
    pub(crate) definition: &'static Definition,
    /// Whether arguments are its own, as its worker would say.
    pub(crate) check: CheckArgs,
}

impl Program {
    /// Forgets the type of the state, so that every command is compiled once.
    pub(crate) fn of<S: Send + Sync + 'static>(app: App<S>) -> Self {
        let tasks = app.checks().map(|(definition, check)| Known { definition, check }).collect();
        Self { name: app.name().to_owned(), tasks, build: app.build().boxed() }
    }

    /// The name of the application.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Every task, in the order of registration.
    pub(crate) fn definitions(&self) -> impl Iterator<Item = &'static Definition> {
        self.tasks.iter().map(|task| task.definition)
    }

    /// The task of this name.
    pub(crate) fn task(&self, name: &TaskName) -> Option<Known> {
        self.tasks.iter().copied().find(|task| task.definition.name == *name)
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
        write!(f, "Program({}, {} tasks)", self.name, self.tasks.len())
    }
}
