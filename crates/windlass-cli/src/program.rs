//! An application without its type: what the commands need of it.

use std::borrow::Cow;
use std::ffi::OsString;
use std::fmt;
use std::sync::OnceLock;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use windlass::registry::{BuildError, CheckArgs, Registry};
use windlass::task::Definition;
use windlass::{App, TaskName};

/// What this process is called: a process is one program.
static CALLED: OnceLock<String> = OnceLock::new();

/// Makes [`as_typed`] name this program.
pub(crate) fn be_called(name: &str) {
    // A second call can only come from a test.
    let _ = CALLED.set(name.to_owned());
}

/// The arguments of this process as another process of the same program is to be given them.
static GIVEN: OnceLock<Vec<OsString>> = OnceLock::new();

/// Makes [`given`] answer these arguments.
pub(crate) fn be_given(args: Vec<OsString>) {
    // A second call can only come from a test.
    let _ = GIVEN.set(args);
}

/// The arguments with which another process of this program does the same, under whatever name it is started.
pub(crate) fn given() -> Vec<OsString> {
    GIVEN.get().cloned().unwrap_or_else(|| std::env::args_os().skip(1).collect())
}

/// A text that tells people what to type, such as "see `windlass task show ID`", with the name of this program: an
/// application has the same commands, and its users have no `windlass`.
pub(crate) fn as_typed(text: &str) -> Cow<'_, str> {
    typed_in(CALLED.get().map_or("windlass", String::as_str), text)
}

fn typed_in<'text>(program: &str, text: &'text str) -> Cow<'text, str> {
    const TYPED: &str = "`windlass ";
    if program == "windlass" || !text.contains(TYPED) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace(TYPED, &format!("`{program} ")))
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_to_type_the_name_of_their_program() {
        let text = "look with `windlass task show 7`, or `windlass doctor`; the windlass stays";
        assert_eq!(typed_in("shop", text), "look with `shop task show 7`, or `shop doctor`; the windlass stays");
        assert_eq!(typed_in("windlass", text), text);
    }
}
