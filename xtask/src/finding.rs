//! What a check has to say about one place in the tree.

use std::fmt;

/// One place that breaks a rule, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    /// The file, from the root of the repository; or the name of a crate where no file is to blame.
    pub(crate) place: String,
    /// The line, counted from 1, where there is one.
    pub(crate) line: Option<usize>,
    /// What is wrong.
    pub(crate) what: String,
    /// What to do next.
    pub(crate) fix: String,
}

impl Finding {
    /// A finding about a whole file or crate.
    pub(crate) fn whole(place: impl Into<String>, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { place: place.into(), line: None, what: what.into(), fix: fix.into() }
    }

    /// A finding about one line, counted from 1.
    pub(crate) fn at(place: impl Into<String>, line: usize, what: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { line: Some(line), ..Self::whole(place, what, fix) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}", self.place)?;
        if let Some(line) = self.line {
            write!(out, ":{line}")?;
        }
        write!(out, ": {}; {}", self.what, self.fix)
    }
}
