//! A folder of its own for each test, and the program in it.

#![allow(dead_code, reason = "each test program uses its part")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

/// The program that the tests are about.
const WINDLASS: &str = env!("CARGO_BIN_EXE_windlass");

/// A folder with a store in it.
pub(crate) struct House {
    folder: tempfile::TempDir,
}

/// What a command has said.
#[derive(Debug)]
pub(crate) struct Said {
    /// Its exit code.
    pub(crate) code: i32,
    /// Standard output.
    pub(crate) out: String,
    /// Standard error.
    pub(crate) err: String,
}

impl House {
    /// A folder without a store.
    pub(crate) fn empty() -> Self {
        Self { folder: tempfile::tempdir().expect("a temporary folder") }
    }

    /// A folder with an empty store.
    pub(crate) fn new() -> Self {
        let house = Self::empty();
        assert_eq!(house.run(&["migrate", "up"]).code, 0);
        house
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Writes a file into the folder.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path().join(name), content).expect("a file in a temporary folder");
    }

    /// The program in this folder, without any configuration of the machine.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(WINDLASS);
        command.args(args).current_dir(self.path()).env_clear().env("HOME", self.path()).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Said {
        said(self.assert(args))
    }

    /// With these variables.
    pub(crate) fn run_with(&self, variables: &[(&str, &str)], args: &[&str]) -> Said {
        let mut command = self.assert(args);
        command.envs(variables.iter().copied());
        said(command)
    }

    /// A link to the program under another name.
    #[cfg(unix)]
    pub(crate) fn link(&self, name: &str) -> std::path::PathBuf {
        let link = self.path().join(name);
        std::os::unix::fs::symlink(WINDLASS, &link).expect("a link in a temporary folder");
        link
    }

    /// A node that is started by any command line.
    pub(crate) fn node(&self, args: &[&str]) -> Worker {
        self.node_of(Path::new(WINDLASS), args)
    }

    /// The same under another name of the program.
    pub(crate) fn node_of(&self, program: &Path, args: &[&str]) -> Worker {
        let mut command = Command::new(program);
        command.args(args).current_dir(self.path()).env_clear().env("HOME", self.path()).stdin(Stdio::null());
        Worker::of(&mut command)
    }

    /// With this on standard input.
    pub(crate) fn feed(&self, args: &[&str], input: impl Into<Vec<u8>>) -> Said {
        said(self.assert(args).write_stdin(input))
    }

    fn assert(&self, args: &[&str]) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::new(WINDLASS);
        command.args(args).current_dir(self.path()).env_clear().env("HOME", self.path());
        command
    }

    /// The JSON that a command prints; it must have ended well.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let said = self.run(&[args, &["--json"]].concat());
        assert_eq!(said.code, 0, "{args:?}: {said:?}");
        serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{args:?}: {error}: {said:?}"))
    }

    /// A worker that is ready.
    pub(crate) fn worker(&self, args: &[&str]) -> Worker {
        self.worker_named("w1", args)
    }

    /// A worker of another name that is ready.
    pub(crate) fn worker_named(&self, name: &str, args: &[&str]) -> Worker {
        let mut worker = self.starting_worker(name, args);
        worker.wait_for("worker_ready");
        worker
    }

    /// Waits until a node is listed: a worker says that it is ready just before its first beat is stored.
    pub(crate) fn until_listed(&self, node: &str) {
        let listed = |nodes: &Value| {
            nodes["nodes"].as_array().is_some_and(|nodes| nodes.iter().any(|known| known["id"] == node))
        };
        while !listed(&self.json(&["node", "ls"])) {}
    }

    /// A worker that is not ready yet.
    pub(crate) fn starting_worker(&self, name: &str, args: &[&str]) -> Worker {
        let mut command = self.command(&[&["worker", "--name", name], args].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let log = BufReader::new(child.stdout.take().expect("its log is piped"));
        Worker { child, log: Box::new(log) }
    }
}

fn said(mut command: impl std::borrow::BorrowMut<assert_cmd::Command>) -> Said {
    let output = command.borrow_mut().output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Said { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}

/// A worker as a process of its own; killed when the test ends early.
pub(crate) struct Worker {
    child: Child,
    log: Box<dyn BufRead>,
}

impl Worker {
    /// The one that a command starts.
    pub(crate) fn of(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().expect("the program starts");
        let log = BufReader::new(child.stdout.take().expect("its log is piped"));
        Self { child, log: Box::new(log) }
    }

    /// Reads its log until this event, and answers the line.
    pub(crate) fn wait_for(&mut self, event: &str) -> Value {
        loop {
            let mut line = String::new();
            let length = self.log.read_line(&mut line).expect("its log is text");
            assert!(length > 0, "the worker ended before `{event}`");
            let line: Value = serde_json::from_str(&line).expect("a log line is JSON");
            if line["event"] == event {
                return line;
            }
        }
    }

    /// Sends a signal by its name.
    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status();
        assert!(sent.expect("`kill` is there").success());
    }

    /// Its exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        // A full pipe would keep it from ending.
        std::io::copy(&mut self.log, &mut std::io::sink()).expect("its log can be read");
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
