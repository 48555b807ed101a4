//! What the machine must have before anything can be built, installed where that is possible.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::process::{self, Echo};
use crate::servers;

/// Packages come from a mirror near by; a quarter of an hour means that it does not answer.
const INSTALL_LIMIT: Duration = Duration::from_secs(15 * 60);

/// Finds or installs what the other steps need, and says what it found.
///
/// # Errors
/// When something is missing and cannot be installed from here; the text says what to install.
pub(crate) fn prepare(root: &Path) -> Result<String> {
    // Rust itself links through the compiler driver, so on a bare machine this program could not have been built; what it
    // finds missing here is the rest: headers, or a compiler that cannot compile.
    if !compiles_c()? {
        install("build-essential", "a C compiler with its headers (SQLite and ring are C)")?;
        if !compiles_c()? {
            bail!(
                "`cc` still compiles nothing after installing build-essential: run `cc --version` and mend what it says"
            );
        }
    }
    if !answers(Command::new("git").arg("--version")) {
        install("git", "git (the checks ask it for the files of the project)")?;
    }
    for (tool, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if !answers(process::cargo().args([tool, "--version"]).current_dir(root)) {
            add_component(component)?;
        }
    }
    let tests = if has_nextest() { "nextest" } else { "no nextest: cargo test" };
    Ok(format!("C compiler, git, rustfmt, clippy, {}; {tests}", servers::install_missing()?))
}

/// Whether `cargo nextest` is installed. It is used where it is; compiling it would take longer than it saves.
pub(crate) fn has_nextest() -> bool {
    answers(process::cargo().args(["nextest", "--version"]))
}

/// Whether `cc` turns a small program with a header into an object file.
fn compiles_c() -> Result<bool> {
    let folder = tempfile::tempdir().context("cannot make a temporary folder: is the disk full?")?;
    let source = folder.path().join("probe.c");
    std::fs::write(&source, "#include <stdio.h>\nint main(void) { return puts(\"\") < 0; }\n")
        .context("cannot write a temporary file")?;
    Ok(answers(Command::new("cc").arg("-o").arg(folder.path().join("probe")).arg(&source)))
}

fn answers(command: &mut Command) -> bool {
    command.stdin(Stdio::null()).output().is_ok_and(|output| output.status.success())
}

/// Installs a Debian package, where there is apt-get and we may use it. What it has to say goes to standard error: the
/// output of some commands is read by programs.
///
/// # Errors
/// When that is not possible; the text says what to install by hand.
pub(crate) fn install(package: &str, what: &str) -> Result<()> {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout.trim_ascii() == b"0");
    if !is_root || !answers(Command::new("apt-get").arg("--version")) {
        bail!("{what} is missing: install it (Debian: `apt-get install {package}` as root) and run this again");
    }
    eprintln!("{what} is missing: installing {package}");
    for arguments in [vec!["update", "-qq"], vec!["install", "-y", "-qq", package]] {
        let mut command = Command::new("apt-get");
        command.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        // Packages of servers start them; not in this runlevel, where the machine has any.
        command.env("RUNLEVEL", "1");
        let finished = process::run(command, INSTALL_LIMIT, Echo::Errors)?;
        if !finished.success() {
            eprint!("{}", finished.stdout);
            bail!("apt-get {}: install {package} by hand and run this again", finished.ending());
        }
    }
    Ok(())
}

fn add_component(component: &str) -> Result<()> {
    println!("{component} is missing: adding it to the toolchain");
    let mut command = Command::new("rustup");
    command.args(["component", "add", component]);
    if process::run(command, INSTALL_LIMIT, Echo::Both).is_ok_and(|finished| finished.success()) {
        return Ok(());
    }
    bail!(
        "{component} is missing: install it (`rustup component add {component}`, or your system's package) and run this again"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_that_built_this_compiles_c() {
        assert!(compiles_c().expect("a temporary folder"));
    }

    #[test]
    fn a_program_that_is_not_there_does_not_answer() {
        assert!(!answers(&mut Command::new("no-such-program")));
    }
}
