//! Examples do what they promise: each is run, and its output compared with `examples/expected/NAME.txt`.
//!
//! An expected line may hold `*` for any run of characters: an id, a duration. Each example runs in an empty temporary
//! folder, so it leaves nothing in the checkout and needs nothing from it. `DATABASE_URL` names a PostgreSQL of the run.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::must_succeed;
use crate::metadata::Metadata;
use crate::process::{self, Echo};
use crate::programs::Programs;

/// An example that shows one idea is done in seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// One example of one crate.
#[derive(Debug)]
pub(super) struct Example {
    /// Its name.
    pub(super) name: String,
    /// What it should print.
    expected: PathBuf,
}

/// The examples of every crate of the workspace.
///
/// # Errors
/// When an expected output has no example: somebody renamed one.
pub(super) fn find(root: &Path, metadata: &Metadata) -> Result<Vec<Example>> {
    let mut examples = Vec::new();
    for package in metadata.members() {
        let folder = root.join(&package.manifest).with_file_name("examples").join("expected");
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if !package.examples.contains(&name) {
                bail!("{} belongs to no example of `{}`: delete or rename it", path.display(), package.name);
            }
        }
        let named = package.examples.iter();
        examples.extend(named.map(|name| Example { name: name.clone(), expected: folder.join(format!("{name}.txt")) }));
    }
    Ok(examples)
}

impl Example {
    /// Runs the example and compares what it prints. It may use this PostgreSQL.
    ///
    /// # Errors
    /// When it fails, hangs, prints something else, or has no expected output.
    pub(super) fn check(&self, programs: &Programs, postgres: &str) -> Result<()> {
        let name = &self.name;
        let Ok(expected) = std::fs::read_to_string(&self.expected) else {
            bail!(
                "no expected output: run `cargo run --example {name}`, read what it prints and save it as {}",
                self.expected.display()
            );
        };
        let program = programs.find("example", name).context("was not built: which feature does it need?")?;
        let folder = tempfile::tempdir().context("cannot make a temporary folder: is the disk full?")?;
        let mut command = Command::new(program);
        command.current_dir(folder.path()).env("DATABASE_URL", postgres);
        let finished = process::run(command, LIMIT, Echo::Nothing)?;
        if !finished.success() {
            print!("{}{}", finished.stdout, finished.stderr);
        }
        must_succeed(&finished, "it", "its output is above")?;
        compare(&expected, &finished.stdout)
    }
}

/// Compares line by line.
///
/// # Errors
/// The first line that differs.
fn compare(expected: &str, actual: &str) -> Result<()> {
    let (mut expected, mut actual) = (expected.lines(), actual.lines());
    let mut line = 0;
    loop {
        line += 1;
        match (expected.next(), actual.next()) {
            (None, None) => return Ok(()),
            (Some(expected), Some(actual)) if matches(expected, actual) => {}
            (expected, actual) => {
                let show = |line: Option<&str>| line.map_or_else(|| "the end".to_owned(), |line| format!("`{line}`"));
                bail!("line {line} differs\n    expected {}\n    printed  {}", show(expected), show(actual));
            }
        }
    }
}

/// Whether a line fits a pattern in which `*` stands for any run of characters.
fn matches(pattern: &str, line: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == line;
    };
    let Some(mut left) = line.strip_prefix(head) else { return false };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        let Some(at) = left.find(part) else { return false };
        left = &left[at + part.len()..];
    }
    left.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::samples::member;

    #[test]
    fn a_star_is_any_run_of_characters() {
        for (pattern, line) in
            [("a*c", "abbc"), ("a*c", "ac"), ("*", ""), ("id * took * ms", "id 7 took 3 ms"), ("x", "x")]
        {
            assert!(matches(pattern, line), "{pattern} {line}");
        }
        for (pattern, line) in [("a*c", "abcd"), ("a*bc*bc", "abc"), ("x", "xy"), ("ab*ba", "aba")] {
            assert!(!matches(pattern, line), "{pattern} {line}");
        }
    }

    #[test]
    fn the_first_line_that_differs_is_shown() {
        assert!(compare("a\n* ms\n", "a\n3 ms\n").is_ok());
        let error = compare("a\nb\n", "a\n").expect_err("shorter").to_string();
        assert_eq!(error, "line 2 differs\n    expected `b`\n    printed  the end");
    }

    #[test]
    fn an_expected_output_without_an_example_is_found() {
        let root = tempfile::tempdir().expect("a folder");
        let folder = root.path().join("crates/windlass/examples/expected");
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("old.txt"), "").expect("a file");
        let metadata = Metadata { packages: vec![member("windlass", &[], &[])] };
        assert!(find(root.path(), &metadata).expect_err("no example").to_string().contains("belongs to no example"));
    }

    #[test]
    fn an_example_without_expected_output_fails() {
        let example = Example { name: "hello".to_owned(), expected: PathBuf::from("/nowhere/hello.txt") };
        assert!(
            example.check(&Programs::default(), "").expect_err("missing").to_string().starts_with("no expected output")
        );
    }
}
