//! Runs other programs: their output is shown as it comes and kept, and none runs longer than it may.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Read, Write as _};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// How often a silent program is looked at.
const POLL: Duration = Duration::from_millis(50);
/// How long a program's output is read after its end: a process that it left behind may hold the pipe for ever.
const LEFT_BEHIND_LIMIT: Duration = Duration::from_secs(5);
/// How long a program that is told to end may take before it is killed.
const END_GRACE: Duration = Duration::from_secs(5);

/// What of a program's output the reader sees while it runs. All of it is kept either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Echo {
    /// Both streams.
    Both,
    /// What it says to people; its standard output is for us.
    Errors,
    /// Nothing.
    Nothing,
}

/// A program that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    /// How it ended; `None` when it ran into its limit and was killed.
    pub(crate) status: Option<ExitStatus>,
    /// Its standard output. Bytes that are not UTF-8 are replaced.
    pub(crate) stdout: String,
    /// Its standard error.
    pub(crate) stderr: String,
}

impl Finished {
    /// Whether it ended by itself with exit code 0.
    pub(crate) fn success(&self) -> bool {
        self.status.is_some_and(|status| status.success())
    }

    /// How it ended, to be read after its name.
    pub(crate) fn ending(&self) -> String {
        match self.status {
            None => "ran into its time limit and was ended".to_owned(),
            Some(status) => status
                .code()
                .map_or_else(|| format!("ended by {status}"), |code| format!("ended with exit code {code}")),
        }
    }
}

/// The cargo that runs us.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    forget_our_package(&mut command);
    if std::io::stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    command
}

/// Takes away what cargo told us about our own package: build scripts that watch those variables (ring's does) would be
/// built again and again.
pub(crate) fn forget_our_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let known = name.to_string_lossy();
        if known.starts_with("CARGO_PKG_") || known.starts_with("CARGO_MANIFEST_") || known == "CARGO_PRIMARY_PACKAGE" {
            command.env_remove(&name);
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Stream {
    Stdout,
    Stderr,
}

/// Runs a program to its end, or ends it and all it started after `limit`.
///
/// # Errors
/// When the program cannot be started.
pub(crate) fn run(mut command: Command, limit: Duration, echo: Echo) -> Result<Finished> {
    let started = Instant::now();
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{name}`: is it installed?"))?;
    let (sender, receiver) = mpsc::channel();
    read_lines(child.stdout.take().expect("piped above"), Stream::Stdout, sender.clone());
    read_lines(child.stderr.take().expect("piped above"), Stream::Stderr, sender);

    let mut finished = Finished { status: None, stdout: String::new(), stderr: String::new() };
    let mut ended_at: Option<Instant> = None;
    let mut killed = false;
    loop {
        match receiver.recv_timeout(POLL) {
            Ok((stream, line)) => take_line(&mut finished, stream, &line, echo),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended_at.is_none() && child.try_wait().context("cannot wait for the program")?.is_some() {
            ended_at = Some(Instant::now());
        }
        if ended_at.is_some_and(|ended| ended.elapsed() > LEFT_BEHIND_LIMIT) {
            eprintln!("xtask: `{name}` has ended, but a process that it left behind still holds its output");
            break;
        }
        if !killed && ended_at.is_none() && started.elapsed() > limit {
            killed = true;
            end_with_children(child.id());
        }
    }
    let status = child.wait().context("cannot wait for the program")?;
    finished.status = (!killed).then_some(status);
    Ok(finished)
}

fn read_lines(pipe: impl Read + Send + 'static, stream: Stream, sender: Sender<(Stream, Vec<u8>)>) {
    thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        loop {
            let mut line = Vec::new();
            match reader.read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => break,
                // Nobody listens any more: the program outlived its limit.
                Ok(_) if sender.send((stream, line)).is_err() => break,
                Ok(_) => {}
            }
        }
    });
}

fn take_line(finished: &mut Finished, stream: Stream, line: &[u8], echo: Echo) {
    // A closed terminal is no reason to stop the work.
    match (stream, echo) {
        (Stream::Stdout, Echo::Both) => drop(std::io::stdout().write_all(line)),
        (Stream::Stderr, Echo::Both | Echo::Errors) => drop(std::io::stderr().write_all(line)),
        _ => {}
    }
    let kept = match stream {
        Stream::Stdout => &mut finished.stdout,
        Stream::Stderr => &mut finished.stderr,
    };
    kept.push_str(&String::from_utf8_lossy(line));
}

/// Ends a process and everything below it: politely, then surely.
fn end_with_children(root: u32) {
    let family = descendants(root, &parents());
    send_signal("-TERM", &family);
    let told = Instant::now();
    let mut left = family;
    while !left.is_empty() && told.elapsed() < END_GRACE {
        // Processes that are not our children tell nobody of their end but who looks.
        thread::sleep(POLL);
        left.retain(|process| is_alive(*process));
    }
    if !left.is_empty() {
        send_signal("-KILL", &left);
    }
}

/// Sends a signal, written as for `kill`: `-TERM`.
pub(crate) fn send_signal(signal: &str, processes: &[u32]) {
    let numbers = processes.iter().map(u32::to_string);
    // The processes may be gone already; then `kill` complains and there is nothing to do.
    drop(Command::new("kill").arg(signal).args(numbers).stderr(Stdio::null()).status());
}

fn is_alive(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// The parent of every process. Empty where there is no `/proc`: then only the program itself is ended.
fn parents() -> BTreeMap<u32, u32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let processes = entries.filter_map(|entry| {
        let process: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        // The name stands in brackets and may hold anything; state and parent follow its last bracket.
        let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
        Some((process, parent))
    });
    processes.collect()
}

fn descendants(root: u32, parents: &BTreeMap<u32, u32>) -> Vec<u32> {
    let mut family = vec![root];
    let mut at = 0;
    while at < family.len() {
        let above = family[at];
        family.extend(parents.iter().filter(|(_, parent)| **parent == above).map(|(child, _)| *child));
        at += 1;
    }
    family
}

/// The text without colours, as a program would print it into a file.
pub(crate) fn without_colours(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("\u{1b}[") {
        plain.push_str(&rest[..start]);
        let end = rest[start + 2..].find(|char: char| char.is_ascii_alphabetic());
        rest = end.map_or("", |length| &rest[start + 2 + length + 1..]);
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_exit_code_are_kept() {
        let finished =
            run(shell("echo out; echo err >&2; exit 3"), Duration::from_secs(20), Echo::Nothing).expect("starts");
        assert_eq!((finished.stdout.as_str(), finished.stderr.as_str()), ("out\n", "err\n"));
        assert!(!finished.success());
        assert_eq!(finished.ending(), "ended with exit code 3");
    }

    #[test]
    fn a_program_past_its_limit_is_ended_with_its_children() {
        let started = Instant::now();
        let script = "sleep 600 & echo $!; wait";
        let finished = run(shell(script), Duration::from_millis(300), Echo::Nothing).expect("starts");
        assert!(finished.status.is_none());
        assert!(started.elapsed() < Duration::from_secs(60));
        let child: u32 = finished.stdout.trim().parse().expect("a process id");
        assert!(!is_alive(child), "the child outlived its parent");
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let error = run(Command::new("no-such-program"), Duration::from_secs(1), Echo::Nothing).expect_err("not there");
        assert_eq!(error.to_string(), "cannot run `no-such-program`: is it installed?");
    }

    #[test]
    fn descendants_are_found_through_generations() {
        let parents = BTreeMap::from([(2, 1), (3, 2), (4, 3), (9, 8)]);
        assert_eq!(descendants(2, &parents), [2, 3, 4]);
    }

    #[test]
    fn colours_are_dropped() {
        assert_eq!(without_colours("\u{1b}[32;1m   Summary\u{1b}[0m done"), "   Summary done");
    }
}
