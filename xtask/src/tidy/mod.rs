//! `cargo xtask tidy`: rules about the whole tree that no compiler checks.
//!
//! Each check is one module: a function from what was read (files, crates) to findings, with tests that show it fails on
//! a bad input. A place that must break a line rule says so in a comment on that line or in the comment block above it:
//! `// tidy: allow(sleep): the point of this test is to be slow`. The reason is required.

mod allow;
mod commands;
mod engine;
mod imports;
mod leftovers;
mod length;
mod licences;
mod links;
mod manifests;
mod traces;

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};

use crate::finding::Finding;
use crate::metadata::Metadata;
use crate::tree::Tree;

/// Everything the checks look at, read once.
pub(crate) struct Subject<'root> {
    /// The checkout.
    pub(crate) root: &'root Path,
    /// Its files.
    pub(crate) tree: Tree,
    /// Its crates and what they depend on.
    pub(crate) metadata: Metadata,
}

/// One rule about the tree.
struct Check {
    name: &'static str,
    about: &'static str,
    run: fn(&Subject<'_>) -> Result<Vec<Finding>>,
}

/// Every check, in the order they are printed.
const CHECKS: [Check; 9] = [
    Check { name: "imports", about: "which crate may know which", run: |of| Ok(imports::check(&of.metadata)) },
    Check {
        name: "engine",
        about: "no foreign words, clocks or sockets in the core",
        run: |of| Ok(engine::check(&of.tree)),
    },
    Check { name: "length", about: "long files say why", run: |of| Ok(length::check(&of.tree)) },
    Check {
        name: "leftovers",
        about: "unfinished work, prints, sleeps, unwraps",
        run: |of| Ok(leftovers::check(&of.tree)),
    },
    Check {
        name: "manifests",
        about: "descriptions, licences, lints, versions",
        run: |of| manifests::check(&of.tree, &of.metadata),
    },
    Check {
        name: "licences",
        about: "licences and bans of dependencies",
        run: |of| licences::check(of.root, &of.tree, &of.metadata),
    },
    Check {
        name: "commands",
        about: "commands and examples named in documents",
        run: |of| Ok(commands::check(&of.tree, &of.metadata)),
    },
    Check { name: "links", about: "links and anchors in documents", run: |of| Ok(links::check(&of.tree)) },
    Check { name: "traces", about: "no machine paths, no registry hosts", run: |of| Ok(traces::check(&of.tree)) },
];

/// How a place is excused, for `--help`.
pub(crate) const EXCUSES: &str = "A line that must break a rule says so in a comment on it or right above it:\n    \
    // tidy: allow(RULE): the reason\n\
    RULE is one of macro, print, unwrap, unbounded, sleep, ignore, name, clock.\n\
    A file of more than 600 lines says why in its first 15:\n    \
    //! Long because ...\n\
    Import rules and their exceptions are tables in xtask/src/tidy/imports.rs; licences and bans are in deny.toml.";

/// The names of all checks.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    CHECKS.iter().map(|check| check.name)
}

/// Runs all checks, or those named in `only`, and prints what they find.
///
/// # Errors
/// When a check finds something, or cannot read what it needs, or `only` names no check.
pub(crate) fn run(root: &Path, only: &[String]) -> Result<()> {
    if let Some(unknown) = only.iter().find(|name| !names().any(|known| known == name.as_str())) {
        bail!("there is no check `{unknown}`: choose from {}", names().collect::<Vec<_>>().join(", "));
    }
    let subject = Subject { root, tree: Tree::read(root)?, metadata: Metadata::read(root)? };
    let mut count = 0;
    for check in CHECKS.iter().filter(|check| only.is_empty() || only.iter().any(|name| name == check.name)) {
        let started = Instant::now();
        let findings = (check.run)(&subject)?;
        let verdict = if findings.is_empty() { "ok".to_owned() } else { format!("{} to mend", findings.len()) };
        println!("  {:<10} {:<48} {verdict} ({} ms)", check.name, check.about, started.elapsed().as_millis());
        for finding in &findings {
            println!("    {finding}");
        }
        count += findings.len();
    }
    if count > 0 {
        bail!("tidy found {count} to mend, listed above");
    }
    Ok(())
}

/// Whether any document tells people to start the `windlass` binary.
///
/// # Errors
/// When the files cannot be read.
pub(crate) fn documents_name_commands(root: &Path) -> Result<bool> {
    Ok(commands::names_the_binary(&Tree::read(root)?))
}

/// The commands in the documents that start the `windlass` binary, checked against the built `binary`.
///
/// # Errors
/// When the binary does not start.
pub(crate) fn check_documented_commands(root: &Path, binary: &Path) -> Result<commands::Documented> {
    commands::check_binary(&Tree::read(root)?, binary)
}
