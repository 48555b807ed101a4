//! What can go wrong with a server, by what the reader can do about it.

use std::io;
use std::time::Duration;

/// Why a server or a proxy does not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is missing.
    #[error("`{program}` is not installed: install it (Debian: `apt-get install {package}`)")]
    NotInstalled {
        /// The program that was searched.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// The machine refused a folder, a port, a process or a thread.
    #[error("cannot {what}")]
    Machine {
        /// What was tried.
        what: String,
        /// What the machine said.
        #[source]
        source: io::Error,
    },
    /// The program ended instead of serving, or before its work was done.
    #[error("`{program}` ended with {status}; the end of its log:\n{log}")]
    Ended {
        /// The program.
        program: String,
        /// How it ended.
        status: String,
        /// The last lines that it wrote.
        log: String,
    },
    /// The program runs but did not become ready in time.
    #[error("`{program}` was not ready after {limit:?}; the end of its log:\n{log}")]
    Slow {
        /// The program.
        program: String,
        /// How long it had.
        limit: Duration,
        /// The last lines that it wrote.
        log: String,
    },
    /// The server answered with an error: its own words.
    #[error("the server refused: {0}")]
    Refused(String),
    /// The server could not be talked to.
    #[error("cannot talk to the server: is it stopped?")]
    Unreachable(#[source] io::Error),
    /// What was waited for did not happen.
    #[error("it did not happen within {limit:?}: {seen}")]
    NotSeen {
        /// How long it had.
        limit: Duration,
        /// What there was instead.
        seen: String,
    },
}

impl Error {
    /// For `map_err`: says what was tried.
    pub(crate) fn cannot(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Machine { what, source }
    }

    /// Whether a server ended because somebody else took its port.
    pub(crate) fn is_port_taken(&self) -> bool {
        matches!(self, Self::Ended { log, .. } if log.contains("Address already in use"))
    }
}
