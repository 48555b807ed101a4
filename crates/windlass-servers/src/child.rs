//! One server as a process: found, started, told to end, and never left behind.
//!
//! 1. `setpriv` of util-linux asks the kernel to end the server when the thread that started it ends, and gives up root's
//!    rights where a server refuses to have them. Then it becomes the server, so there is no process in between.
//! 2. That thread must therefore live as long as the program: all servers are started by one thread of their own.
//! 3. What the server says goes into a file; its end is part of every error.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{self, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::Error;

/// How often a process that changes its state is looked at: servers tell nobody.
const POLL: Duration = Duration::from_millis(5);
/// How much of a log an error shows.
const LOG_LINES: usize = 20;
/// Where programs are searched that PATH does not name: cron and some containers have a short one.
const FOLDERS: [&str; 4] = ["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin"];

/// The rights that a server runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Ours.
    Same,
    /// Those of another user: we are root, and the server refuses to be.
    Of(User),
}

/// The signal that the kernel sends to a server whose program is gone, as `setpriv` spells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LastSignal {
    /// For a server of one process.
    Kill,
    /// For PostgreSQL: it ends its processes at once and gives back its shared memory, which a kill would leave behind.
    Quit,
}

/// A user of the machine by numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// A server that runs, or ran until a moment ago.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    program: String,
    log: PathBuf,
}

impl Running {
    /// Starts a program in `folder`, where it also writes its log, freshly, as `NAME.log`.
    pub(crate) fn start(
        program: &Path,
        arguments: &[String],
        folder: &Path,
        rights: Rights,
        last: LastSignal,
    ) -> Result<Self, Error> {
        Self::start_in(&[], program, arguments, folder, rights, last)
    }

    /// The same with variables of the environment on top.
    pub(crate) fn start_in(
        environment: &[(&'static str, OsString)],
        program: &Path,
        arguments: &[String],
        folder: &Path,
        rights: Rights,
        last: LastSignal,
    ) -> Result<Self, Error> {
        let name = program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        let log = folder.join(format!("{name}.log"));
        let cannot_start = || Error::cannot(format!("start `{}`", program.display()));
        let output = File::create(&log).map_err(Error::cannot(format!("write {}", log.display())))?;
        let mut command = wrapped(program, rights, last)?;
        command.args(arguments).current_dir(folder).stdin(Stdio::null());
        command.stdout(output.try_clone().map_err(cannot_start())?).stderr(output);
        without_settings_of_others(&mut command);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        // Ctrl-C at a terminal goes to the whole group of processes: it shall end the tests, and they their servers.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = spawn(command).map_err(cannot_start())?;
        Ok(Self { child, program: name, log })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits until the server says that it is ready.
    ///
    /// # Errors
    /// [`Error::Ended`] when it ends before, [`Error::Slow`] after `limit`.
    pub(crate) fn wait_until_ready(&mut self, limit: Duration, ready: impl Fn(u32) -> bool) -> Result<(), Error> {
        let started = Instant::now();
        while started.elapsed() < limit {
            if let Some(status) = self.status() {
                return Err(self.ended(status));
            }
            if ready(self.id()) {
                return Ok(());
            }
            thread::sleep(POLL);
        }
        Err(Error::Slow { program: self.program.clone(), limit, log: self.log_end() })
    }

    /// Waits for a program that does its work and ends.
    ///
    /// # Errors
    /// [`Error::Ended`] when it failed, [`Error::Slow`] after `limit`; it is killed then.
    pub(crate) fn wait_until_done(mut self, limit: Duration) -> Result<(), Error> {
        match self.wait(limit) {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.ended(status)),
            None => Err(Error::Slow { program: self.program.clone(), limit, log: self.log_end() }),
        }
    }

    /// Sends a signal that asks the server to end, waits up to `limit`, then kills it.
    pub(crate) fn end(mut self, signal: Signal, limit: Duration) {
        // It may have ended by itself; then there is nobody to tell.
        let _ = kill_process(Pid::from_child(&self.child), signal);
        self.wait(limit);
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            let status = self.status();
            if status.is_some() || started.elapsed() > limit {
                return status;
            }
            thread::sleep(POLL);
        }
    }

    fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    fn ended(&self, status: ExitStatus) -> Error {
        Error::Ended { program: self.program.clone(), status: status.to_string(), log: self.log_end() }
    }

    fn log_end(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        last_lines(&String::from_utf8_lossy(&log))
    }
}

impl Drop for Running {
    /// Kills what still runs.
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Where a program is: on PATH, or where systems have it.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain(FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Settings in the environment that clients and servers of PostgreSQL and RabbitMQ would obey, and words in another
/// language.
pub(crate) fn without_settings_of_others(command: &mut Command) {
    let obeyed =
        |name: &OsStr| ["PG", "RABBITMQ_", "ERL_"].iter().any(|prefix| name.to_string_lossy().starts_with(prefix));
    for (name, _) in std::env::vars_os().filter(|(name, _)| obeyed(name)) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C");
}

/// The command that becomes `program`, bound to our life and with these rights.
fn wrapped(program: &Path, rights: Rights, last: LastSignal) -> Result<Command, Error> {
    let Some(setpriv) = find("setpriv") else {
        return match rights {
            // Without util-linux (macOS) a server still ends with its value; only a killed program leaves it behind.
            Rights::Same => Ok(Command::new(program)),
            Rights::Of(_) => Err(Error::NotInstalled { program: "setpriv", package: "util-linux" }),
        };
    };
    let mut command = Command::new(setpriv);
    if let Rights::Of(User { user, group }) = rights {
        command.args([format!("--reuid={user}"), format!("--regid={group}"), "--clear-groups".to_owned()]);
    }
    let last = match last {
        LastSignal::Kill => "KILL",
        LastSignal::Quit => "QUIT",
    };
    command.args(["--pdeathsig", last, "--"]).arg(program);
    Ok(command)
}

/// One process to start, and where to say what became of it.
type Order = (Command, SyncSender<io::Result<Child>>);

/// Starts a process from the thread that lives as long as the program.
fn spawn(command: Command) -> io::Result<Child> {
    static SPAWNER: OnceLock<SyncSender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, orders) = mpsc::sync_channel::<Order>(0);
        thread::spawn(move || {
            for (mut command, answer) in orders {
                drop(answer.send(command.spawn()));
            }
        });
        sender
    });
    let (answer, child) = mpsc::sync_channel(1);
    let gone = || io::Error::other("the thread that starts servers is gone");
    spawner.send((command, answer)).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}

fn last_lines(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn shell(script: &str, folder: &Path) -> Running {
        let arguments = ["-c".to_owned(), script.to_owned()];
        Running::start(&find("sh").expect("a shell"), &arguments, folder, Rights::Same, LastSignal::Kill)
            .expect("starts")
    }

    #[test]
    fn a_program_that_ends_too_early_is_shown_with_its_last_words() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut running = shell("echo no such luck >&2; exit 3", folder.path());
        let error = running.wait_until_ready(LIMIT, |_| false).expect_err("ended").to_string();
        assert!(error.contains("`sh` ended with exit status: 3") && error.contains("no such luck"), "{error}");
    }

    #[test]
    fn a_program_that_is_never_ready_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut running = shell("exec sleep 600", folder.path());
        let error = running.wait_until_ready(Duration::from_millis(20), |_| false).expect_err("slow");
        assert!(matches!(error, Error::Slow { .. }), "{error}");
    }

    #[test]
    fn a_program_that_does_not_listen_is_killed_after_its_limit() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut running = shell("trap '' TERM; touch ready; while :; do sleep 1; done", folder.path());
        running.wait_until_ready(LIMIT, |_| folder.path().join("ready").exists()).expect("ready");
        let process = running.id();
        running.end(Signal::TERM, Duration::from_millis(50));
        assert!(!Path::new(&format!("/proc/{process}")).exists());
    }

    #[test]
    fn only_the_end_of_a_long_log_is_shown() {
        let log = "noise\n".repeat(100) + "last\n";
        assert_eq!(last_lines(&log), "noise\n".repeat(LOG_LINES - 1) + "last");
    }
}
