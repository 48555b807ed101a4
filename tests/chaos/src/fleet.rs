//! Worker processes, and what is done to them.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::ledger::LEDGER;

/// What a process needs of the environment to run at all.
const KEPT: [&str; 3] = ["PATH", "HOME", "TMPDIR"];

/// A worker that is not ready by then never will be.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The exit code of a program whose store does not answer.
pub(crate) const NO_STORE: i32 = 5;

/// What a worker writes into its log before it aborts on purpose; the place where it does follows.
pub const ABORTS: &str = "chaos: aborts after";

/// Starts workers on one store, which write into one ledger.
#[derive(Debug)]
pub struct Fleet {
    program: PathBuf,
    url: String,
    folder: tempfile::TempDir,
    slots: usize,
    started: u32,
    /// What else its programs are told by their environment.
    variables: BTreeMap<&'static str, String>,
}

/// A worker process; it is killed when this value goes.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    log: PathBuf,
}

impl Fleet {
    /// A fleet without workers.
    ///
    /// # Errors
    /// When no folder can be made.
    pub fn new(program: &Path, url: &str, slots: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("windlass-chaos-").tempdir()?;
        std::fs::create_dir(folder.path().join("ledger"))?;
        std::fs::write(folder.path().join("windlass.toml"), "# Nothing but what the command line says.\n")?;
        Ok(Self {
            program: program.to_owned(),
            url: url.to_owned(),
            folder,
            slots,
            started: 0,
            variables: BTreeMap::new(),
        })
    }

    /// The folder of the ledger.
    pub fn ledger(&self) -> PathBuf {
        self.folder.path().join("ledger")
    }

    /// Starts a worker.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn worker(&mut self, arguments: &[&str]) -> Result<Worker> {
        let slots = self.slots.to_string();
        self.start(&[&["worker", "--lease", "5s", "--slots", &slots], arguments].concat())
    }

    /// Starts a node that only fires schedules.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn scheduler(&mut self) -> Result<Worker> {
        self.start(&["scheduler"])
    }

    /// Starts a relay from the outbox of a database; the program takes no arguments.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn relay(&mut self, from: &str) -> Result<Worker> {
        self.tell("WINDLASS_OUTBOX", from);
        self.start(&[])
    }

    /// Sets a variable for what is started from now on.
    pub fn tell(&mut self, variable: &'static str, value: &str) {
        self.variables.insert(variable, value.to_owned());
    }

    /// Unsets it again.
    pub fn forget(&mut self, variable: &'static str) {
        self.variables.remove(variable);
    }

    /// Starts the program with these arguments and a name.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&mut self, arguments: &[&str]) -> Result<Worker> {
        self.started += 1;
        let name = format!("w{}", self.started);
        let log = self.folder.path().join(format!("{name}.log"));
        let output = File::create(&log)?;
        let errors = output.try_clone()?;
        let child = Command::new(&self.program)
            .args(arguments)
            .args(["--name", &name])
            .current_dir(self.folder.path())
            .env_clear()
            .envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            .env("WINDLASS_STORE", &self.url)
            // The comparison at the end looks at everything that has ended.
            .env("WINDLASS_RETENTION__FINISHED_MAX", "10000000")
            .env("WINDLASS_RETENTION__FINISHED", "1d")
            .env(LEDGER, self.ledger())
            .envs(&self.variables)
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        Ok(Worker { child, log })
    }

    /// Keeps the logs for somebody who looks for the reason of a failure.
    pub fn keep_logs(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }
}

impl Worker {
    /// SIGKILL; waits until it is dead.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGSTOP: it keeps its connections and does nothing.
    ///
    /// # Errors
    /// When it is not there.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it is not there.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    /// SIGTERM once it is ready, and waits for its exit code. A process that has only just begun would die of it.
    ///
    /// # Errors
    /// When it is not there, or does not get ready.
    pub fn end(mut self) -> Result<Option<i32>> {
        let began = Instant::now();
        while !self.is_ready() {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code());
            }
            ensure!(began.elapsed() < READY_WITHIN, "a worker does not get ready: {}", self.log_text());
            // tidy: allow(sleep): the pause between two looks at another process
            std::thread::sleep(Duration::from_millis(20));
        }
        self.signal(Signal::TERM)?;
        Ok(self.child.wait()?.code())
    }

    /// Whether it runs. One that found no store when it started has left, as it should: its supervisor starts it again.
    ///
    /// # Errors
    /// When it has ended for another reason; with the end of its log.
    pub fn runs(&mut self) -> Result<bool> {
        let Some(status) = self.child.try_wait()? else { return Ok(true) };
        if status.code() == Some(NO_STORE) {
            return Ok(false);
        }
        let log = self.log_text();
        let end: Vec<&str> = log.lines().rev().take(8).collect();
        anyhow::bail!("a worker has ended by itself ({status}); its log, newest first: {}", end.join("\n"))
    }

    /// Where it has aborted on purpose, when it has.
    ///
    /// # Errors
    /// When it has ended for another reason.
    pub fn aborted(&mut self) -> Result<Option<String>> {
        let Some(status) = self.child.try_wait()? else { return Ok(None) };
        let log = self.log_text();
        let place = log.lines().find_map(|line| line.strip_prefix(ABORTS));
        Ok(Some(place.with_context(|| format!("a worker has ended by itself ({status}): {log}"))?.trim().to_owned()))
    }

    /// Waits until it has killed itself.
    ///
    /// # Errors
    /// When it does not within this time, or ends otherwise; with its log.
    pub fn killed_itself(mut self, limit: Duration) -> Result<()> {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(began.elapsed() < limit, "it lives on: {}", self.log_text());
            // tidy: allow(sleep): the pause between two looks at another process
            std::thread::sleep(Duration::from_millis(20));
        };
        ensure!(status.signal() == Some(Signal::KILL.as_raw()), "it has ended with {status}: {}", self.log_text());
        Ok(())
    }

    /// How much memory it has, in KiB.
    ///
    /// # Errors
    /// When it is not there.
    pub fn memory_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("it has no memory")?;
        Ok(line.trim().trim_end_matches("kB").trim_end().parse()?)
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it does not, or ends before.
    pub fn ready(&mut self) -> Result<()> {
        let began = Instant::now();
        while !self.is_ready() {
            ensure!(self.child.try_wait()?.is_none(), "a worker has ended: {}", self.log_text());
            ensure!(began.elapsed() < READY_WITHIN, "a worker does not get ready: {}", self.log_text());
            // tidy: allow(sleep): the pause between two looks at another process
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn is_ready(&self) -> bool {
        self.log_text().contains("\"event\":\"worker_ready\"")
    }

    /// What it has logged so far.
    pub fn log_text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process has a number")?;
        kill_process(pid, signal)?;
        Ok(())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
