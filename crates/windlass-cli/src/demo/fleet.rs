//! The processes of the demo: this program, started again as workers and a scheduler.
//!
//! A child ends with the demo, however that ends: the demo holds its standard input, and a child that was told
//! `--exit-with-stdin` leaves when that closes. Then it is killed, should it still be there.

use std::fs::File;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use tokio::process::{Child, Command};
use windlass::{NodeId, QueueName};

use super::Place;

/// How long a child may take to end by itself.
const END_GRACE: Duration = Duration::from_secs(3);
/// What a process needs of the environment to run at all.
const KEPT: [&str; 5] = ["PATH", "HOME", "TMPDIR", "SystemRoot", "TEMP"];
/// How much of a log an error quotes.
const LOG_LINES: usize = 5;

/// Starts processes that share a store and a folder for their logs.
#[derive(Debug)]
pub(super) struct Fleet {
    program: PathBuf,
    store: String,
    folder: PathBuf,
    queue: QueueName,
    finished_max: u64,
}

/// One process.
#[derive(Debug)]
pub(super) struct Process {
    /// Its name in the fleet.
    pub(super) node: NodeId,
    log: PathBuf,
    child: Child,
}

impl Fleet {
    /// A fleet without processes, whose store keeps this many tasks that have ended.
    ///
    /// # Errors
    /// When this program does not know its own file, or cannot write to the folder.
    pub(super) fn new(place: &Place, finished_max: u64) -> anyhow::Result<Self> {
        let Place { folder, store, queue } = place.clone();
        // Found before the files of the user and of the machine.
        std::fs::write(folder.join("windlass.toml"), "# The demo runs with the defaults.\n")?;
        let program = std::env::current_exe().context("the file of this program cannot be found")?;
        Ok(Self { program, store, folder, queue, finished_max })
    }

    /// Starts a worker.
    pub(super) fn worker(&self, name: &str, slots: usize, lease: Duration) -> anyhow::Result<Process> {
        let (slots, lease) = (slots.to_string(), windlass::format_duration(lease));
        let flags = ["--queues", self.queue.as_str(), "--concurrency", &slots, "--lease", &lease];
        self.start("worker", name, &flags)
    }

    /// Starts a scheduler.
    pub(super) fn scheduler(&self, name: &str) -> anyhow::Result<Process> {
        self.start("scheduler", name, &[])
    }

    fn start(&self, role: &str, name: &str, flags: &[&str]) -> anyhow::Result<Process> {
        let node = NodeId::new(format!("{name}-{}-{:04x}", std::process::id(), fastrand::u16(..)))?;
        let log = self.folder.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = output.try_clone()?;
        let mut command = Command::new(&self.program);
        command
            .args([role, "--name", node.as_str(), "--exit-with-stdin"])
            .args(flags)
            // The demo shows the defaults, not what this folder, this shell or this machine happens to set.
            .current_dir(&self.folder)
            .env_clear()
            .envs(KEPT.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
            // Not on the command line, which everybody on this machine can read: it may hold a password.
            .env("WINDLASS_STORE", &self.store)
            // The receiver is on this machine.
            .env("WINDLASS_TASKS__HTTP__ALLOW_PRIVATE", "true")
            .env("WINDLASS_RETENTION__FINISHED_MAX", self.finished_max.to_string())
            // Every delivery that is put off would be a line of the log.
            .env("WINDLASS_LOG__LEVEL", "warn")
            .stdin(Stdio::piped())
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(true);
        // Ctrl-C is for the demo: it ends the others in order.
        #[cfg(unix)]
        command.process_group(0);
        let child = command.spawn().with_context(|| format!("cannot start `{} {role}`", self.program.display()))?;
        Ok(Process { node, log, child })
    }
}

impl Process {
    /// Its number.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// SIGKILL, and waits until it is dead: no word of it comes after this.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await.with_context(|| format!("cannot kill {}", self.node))
    }

    /// Fails when it has ended by itself.
    pub(super) fn must_run(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} has ended early ({status}); its log says: {}", self.node, self.log_end()),
        }
    }

    /// Tells it to end and waits for that; kills it when it does not.
    pub(super) async fn end(mut self) {
        drop(self.child.stdin.take());
        if tokio::time::timeout(END_GRACE, self.child.wait()).await.is_err() {
            // It may have ended just now.
            let _ = self.child.kill().await;
        }
    }

    fn log_end(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        match &lines[lines.len().saturating_sub(LOG_LINES)..] {
            [] => "nothing".to_owned(),
            last => last.join(" | "),
        }
    }
}
