//! How a command ends: the exit codes, and problems that say what to do next.

use std::backtrace::Backtrace;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::process::ExitCode;

use windlass::registry::BuildError;
use windlass::view::InvalidFilter;
use windlass::{ConnectError, InvalidEnvelope, PushError, StoreError, WaitError};

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// As asked.
    Ok,
    /// The operation failed, or something is unhealthy.
    Failed,
    /// The command line or the configuration is wrong.
    Usage,
    /// What was named does not exist.
    NotFound,
    /// It exists in a state that does not allow this, or it exists already.
    Conflict,
    /// The store cannot be reached or opened.
    Unreachable,
    /// Somebody said no: a guard, or a question that nobody could answer.
    Denied,
    /// A part was done.
    Partial,
    /// What was waited for has not happened in time.
    TimedOut,
    /// Nobody answered a question to all workers.
    NobodyAnswered,
    /// A child of a supervisor left because a handler does not give its thread back.
    Stuck,
    /// A child of a supervisor left because it used more memory than it may.
    OutOfMemory,
    /// Ended by Ctrl-C.
    Interrupted,
    /// Ended by SIGTERM.
    Terminated,
}

impl Exit {
    /// The number that the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::NotFound => 3,
            Self::Conflict => 4,
            Self::Unreachable => 5,
            Self::Denied => 6,
            Self::Partial => 7,
            Self::TimedOut => 8,
            Self::NobodyAnswered => 69,
            Self::Stuck => 75,
            Self::OutOfMemory => 76,
            Self::Interrupted => 130,
            Self::Terminated => 143,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// What a command answers.
pub(crate) type Outcome = Result<Exit, Problem>;

/// Why a command ended early, and what its user can do about it.
#[derive(Debug)]
pub struct Problem {
    exit: Exit,
    text: String,
    next: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
    /// Taken where the problem arose, when somebody asked for it.
    backtrace: Option<Backtrace>,
}

impl Problem {
    /// A problem from its text and the next step, both whole sentences without a full stop.
    pub fn new(exit: Exit, text: impl fmt::Display, next: impl fmt::Display) -> Self {
        Self { exit, text: text.to_string(), next: next.to_string(), source: None, backtrace: backtrace() }
    }

    /// A wrong command line.
    pub fn usage(text: impl fmt::Display, next: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, text, next)
    }

    /// Standard output was closed by who reads it, as `head` does: nobody is left to be told anything.
    pub fn closed_pipe() -> Self {
        Self::new(Exit::Ok, "", "")
    }

    /// With another next step.
    #[must_use]
    pub fn next(mut self, next: impl fmt::Display) -> Self {
        self.next = next.to_string();
        self
    }

    /// With another exit code.
    #[must_use]
    pub fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    /// How the program ends.
    pub const fn exit_code(&self) -> Exit {
        self.exit
    }

    /// Whether there is nothing to be said.
    pub const fn is_silent(&self) -> bool {
        self.text.is_empty()
    }

    /// What went wrong, in one line.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Where it arose; empty unless `WINDLASS_BACKTRACE=1` asked for it.
    pub fn backtrace(&self) -> String {
        self.backtrace.as_ref().map(ToString::to_string).unwrap_or_default()
    }

    /// What to do about it.
    pub fn next_step(&self) -> &str {
        &self.next
    }
}

fn backtrace() -> Option<Backtrace> {
    crate::logs::wants_backtrace().then(Backtrace::force_capture)
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl StdError for Problem {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

const ASK_DOCTOR: &str = "run `windlass doctor` to see what is wrong with the store";

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        let (exit, next) = match &error {
            StoreError::Unreachable(_) => (Exit::Unreachable, "check the URL with `windlass config show --origin`"),
            StoreError::Busy(_) => (Exit::Unreachable, "try again, and see with `windlass doctor` who holds the store"),
            StoreError::NoSpace(_) => (Exit::Failed, "make room on the disk, then try again: nothing was lost"),
            StoreError::Denied(_) => (Exit::Denied, "correct the URL, or give this user the rights"),
            StoreError::Broken(_) => (Exit::Failed, ASK_DOCTOR),
            StoreError::Rejected(_) => (Exit::Conflict, "ask for less at once"),
        };
        Self {
            exit,
            text: error.to_string(),
            next: next.to_owned(),
            source: Some(Box::new(error)),
            backtrace: backtrace(),
        }
    }
}

impl From<ConnectError> for Problem {
    fn from(error: ConnectError) -> Self {
        match error {
            ConnectError::UnknownScheme(_) | ConnectError::NoPath | ConnectError::InvalidUrl(_) => Self::usage(
                &error,
                "write it as in `sqlite:windlass.db`, `redis://host:6379/0` or `postgres://user@host/database`",
            ),
            ConnectError::NoOutbox(_) => Self::usage(&error, "name the database of the application"),
            ConnectError::Store(error) => {
                let problem = Self::from(error);
                // At this point nothing is known but that the store cannot be opened.
                if problem.exit == Exit::Failed { problem.exit(Exit::Unreachable) } else { problem }
            }
        }
    }
}

impl From<PushError> for Problem {
    fn from(error: PushError) -> Self {
        match error {
            PushError::Invalid(error) => error.into(),
            PushError::Name(error) => Self::usage(error, "see `windlass enqueue --help`"),
            PushError::NoUniqueKey(_) => Self::usage(error, "see `windlass enqueue --help`"),
            PushError::Full { .. } => Self::new(
                Exit::Conflict,
                &error,
                "nothing was enqueued: try again when there is room, or start more workers",
            ),
            PushError::Store(error) => error.into(),
            PushError::Deadline(_) => Self::new(
                Exit::Unreachable,
                &error,
                "the task may be stored all the same: enqueue again with the same `--id` to be sure",
            ),
        }
    }
}

impl From<InvalidEnvelope> for Problem {
    fn from(error: InvalidEnvelope) -> Self {
        Self::usage(error, "nothing was enqueued: change the task and try again")
    }
}

impl From<WaitError> for Problem {
    fn from(error: WaitError) -> Self {
        match error {
            WaitError::Timeout(_) => Self::new(Exit::TimedOut, &error, "it goes on: look with `windlass task show`"),
            WaitError::Store(error) => error.into(),
            WaitError::Dead(_) | WaitError::Ended(_) | WaitError::NoResult(_) | WaitError::Shape(_) => {
                Self::new(Exit::Failed, &error, "see its attempts with `windlass task show`")
            }
        }
    }
}

impl From<BuildError> for Problem {
    fn from(error: BuildError) -> Self {
        let next = match &error {
            BuildError::State(_) => "see that what the application connects to is there",
            BuildError::Mistakes(_) => "change the code that builds the `App`",
        };
        Self::new(Exit::Failed, &error, next)
    }
}

impl From<InvalidFilter> for Problem {
    fn from(error: InvalidFilter) -> Self {
        Self::usage(error, "write the query as in `-q 'state:dead queue:mail'`")
    }
}

impl From<io::Error> for Problem {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Self::closed_pipe();
        }
        Self::new(Exit::Failed, &error, "see that the file or device is there and may be used")
    }
}

impl From<anyhow::Error> for Problem {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(problem) => problem,
            Err(error) => Self::new(Exit::Failed, format_args!("{error:#}"), "run `windlass doctor`"),
        }
    }
}
