//! Where a value came from, and what is wrong with it.

use std::fmt;

use crate::redact;

/// More than anyone mends in one go; a hostile file could report a hundred thousand.
const PROBLEMS_SHOWN_MAX: usize = 50;
/// Enough to recognise a key or a value.
const QUOTED_CHARS_MAX: usize = 60;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    BuiltIn,
    /// The configuration file as a whole, when it cannot be read.
    WholeFile(String),
    /// A line of the configuration file.
    File {
        /// The file as it was named.
        name: String,
        /// Counted from 1.
        line: usize,
    },
    /// A line of the chosen profile in the configuration file.
    Profile {
        /// The profile.
        profile: String,
        /// The file as it was named.
        name: String,
        /// Counted from 1.
        line: usize,
    },
    /// A line of the `.env` file.
    DotEnv {
        /// The file as it was named.
        name: String,
        /// Counted from 1.
        line: usize,
        /// The variable that it sets.
        variable: String,
    },
    /// A variable of the environment.
    Environment(String),
    /// A flag of the command line, such as `--slots`.
    Flag(String),
    /// Nobody has set it; it follows from this key.
    Follows(&'static str),
}

impl fmt::Display for Origin {
    /// `windlass.toml:12`, `environment WINDLASS_WORKER__SLOTS`, `flag --slots`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BuiltIn => f.write_str("built-in default"),
            Self::WholeFile(name) => f.write_str(name),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Profile { profile, name, line } => write!(f, "{name}:{line} (profile {profile})"),
            Self::DotEnv { name, line, variable } => write!(f, "{name}:{line} {variable}"),
            Self::Environment(variable) => write!(f, "environment {variable}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
            Self::Follows(key) => write!(f, "follows from {key}"),
        }
    }
}

/// One thing that is wrong with the configuration, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key with its section, such as `worker.slots`; empty when the problem is not about one key.
    pub key: String,
    /// Where it is written.
    pub origin: Origin,
    /// What is wrong and what to write instead. Never holds a secret.
    pub message: String,
}

impl Problem {
    pub(super) fn new(key: impl Into<String>, origin: Origin, message: impl Into<String>) -> Self {
        Self { key: key.into(), origin, message: message.into() }
    }
}

impl fmt::Display for Problem {
    /// `windlass.toml:12: worker.lease: ...`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.key.is_empty() {
            write!(f, "{}: {}", self.origin, self.message)
        } else {
            write!(f, "{}: {}: {}", self.origin, self.key, self.message)
        }
    }
}

/// Everything that is wrong with the configuration, so that it is mended in one go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(Vec<Problem>);

impl ConfigErrors {
    /// # Panics
    /// Without a problem: that is a success.
    pub(super) fn new(problems: Vec<Problem>) -> Self {
        assert!(!problems.is_empty(), "a configuration without problems is no error");
        Self(problems)
    }

    /// Each problem: the file from top to bottom, then `.env`, environment and flags, then the values in the order of
    /// the table of keys. At least one.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for ConfigErrors {
    /// One line for each problem; the first 50 of them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().take(PROBLEMS_SHOWN_MAX).enumerate() {
            if at > 0 {
                f.write_str("\n")?;
            }
            fmt::Display::fmt(problem, f)?;
        }
        match self.0.len().saturating_sub(PROBLEMS_SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more"),
        }
    }
}

impl std::error::Error for ConfigErrors {}

/// Text from outside in backquotes: short, escaped and without the user part of a URL.
pub(super) fn quote(text: &str) -> String {
    let masked = redact::text(text);
    let cut: String = masked.chars().take(QUOTED_CHARS_MAX).flat_map(char::escape_debug).collect();
    let rest = if masked.chars().nth(QUOTED_CHARS_MAX).is_some() { "…" } else { "" };
    format!("`{}{rest}`", cut.replace("\\'", "'").replace("\\\"", "\""))
}
