//! What every command works with: the configuration, the store it names, the application and the way to print.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;

use windlass::config::Loaded;
use windlass::{Backend, Client, Location, SystemClock};

use crate::args::Global;
use crate::exit::{Exit, Problem};
use crate::output::Out;
use crate::program::Program;
use crate::settings::{self, Missing, Override};

/// What a command works with.
#[derive(Debug)]
pub(crate) struct Context {
    /// The flags of every command.
    pub(crate) global: Global,
    /// The configuration.
    pub(crate) loaded: Loaded,
    /// How it prints.
    pub(crate) out: Out,
    /// The application.
    pub(crate) program: Program,
}

impl Context {
    /// Loads the configuration; every problem of it is reported at once.
    pub(crate) fn new(
        global: &Global,
        overrides: impl IntoIterator<Item = Override>,
        program: Program,
    ) -> Result<Self, Problem> {
        let loaded = settings::load(&settings::sources(global, overrides))?;
        crate::builtin::configure(&loaded.config.tasks);
        Ok(Self { global: global.clone(), loaded, out: Out::of(global)?, program })
    }

    /// The store, which must exist.
    pub(crate) async fn store(&self) -> Result<Arc<dyn Backend>, Problem> {
        self.refuse_memory()?;
        settings::open(&self.loaded, Missing::Refuse).await
    }

    /// The store, made when it does not exist.
    pub(crate) async fn store_or_new(&self) -> Result<Arc<dyn Backend>, Problem> {
        self.refuse_memory()?;
        settings::open(&self.loaded, Missing::Create).await
    }

    /// The store of a node: also one in memory, for a program that enqueues its own tasks.
    pub(crate) async fn store_of_node(&self) -> Result<Arc<dyn Backend>, Problem> {
        settings::open(&self.loaded, Missing::Create).await
    }

    /// A store in memory would be empty, and gone when the command ends.
    fn refuse_memory(&self) -> Result<(), Problem> {
        if self.loaded.config.store.parse::<Location>()?.is_shared() {
            return Ok(());
        }
        Err(Problem::usage(
            "a store in memory lives as long as this command: nobody would ever see what is in it",
            "name a file, as in `--store sqlite:windlass.db`, or run one task with `windlass run NAME --inline`",
        ))
    }

    /// A producer's connection to a store that is open.
    pub(crate) fn client(&self, backend: &Arc<dyn Backend>) -> Client {
        Client::with(Arc::clone(backend), Arc::new(SystemClock), Arc::from([]), self.loaded.config.client.deadline)
    }
}

/// Whether somebody has agreed beforehand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Agreed {
    /// By `--yes`.
    Already,
    /// A question is to be asked.
    Ask,
}

/// Asks before something that touches many.
///
/// # Errors
/// [`Exit::Denied`] when the answer is no, or when nobody is there to be asked.
pub(crate) fn confirm(question: &str, agreed: Agreed) -> Result<(), Problem> {
    if agreed == Agreed::Already {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Problem::new(
            Exit::Denied,
            format_args!("{question} Nobody is there to be asked"),
            "add `--yes` to do it, or `--dry-run` to see what it would touch",
        ));
    }
    let mut stderr = io::stderr().lock();
    write!(stderr, "{question} [y/N] ")?;
    stderr.flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        Ok(())
    } else {
        Err(Problem::new(Exit::Denied, "nothing was changed", "answer `y` to go on, or add `--yes`"))
    }
}
