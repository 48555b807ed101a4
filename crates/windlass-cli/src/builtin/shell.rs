//! `shell.run`: runs a command, keeps the end of what it writes, and leaves none of its processes behind.
//!
//! 1. refuse unless it is allowed
//! 2. start it in a process group of its own
//! 3. wait for its end, its time limit, or the engine that wants it to end
//! 4. end whatever is left of the group
//! 5. judge the exit code

use std::collections::BTreeMap;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};
use windlass::config::TasksConfig;
use windlass::{Cx, Task, TaskError};

use super::Services;
use super::duration::DurationText;

/// How much of each output is kept: its end, where errors are.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// How much of the error output an error quotes.
const QUOTED_CHARS_MAX: usize = 500;
/// How long a command may take to end after it was asked to.
const TERM_GRACE: Duration = Duration::from_secs(2);
/// How long output is read on after the command has ended, in case a process of another group still holds it.
const DRAIN: Duration = Duration::from_millis(500);
/// What a command finds of the worker's environment without being told: where programs are and how text is written. All
/// else may be secret.
const INHERITED: [&str; 9] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TZ", "TMPDIR"];

/// Runs a command or a shell script on the worker's machine.
///
/// Off unless the worker allows it (`tasks.shell`): whoever may enqueue could then run anything as the worker's user. The
/// exit code 0 is a success. Others are tried again (class `exit_3`), but for those in `fatal_codes`, for 126 (not
/// executable) and 127 (not found). When the task is cancelled or its time is up, the whole process group ends.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(name = "shell.run", retries = 3, backoff = "10s * 2^n up to 1h", hard_limit = "1d", output = ShellDone)]
pub struct ShellRun {
    /// The program, found in `PATH` or by its path. Either this or `script`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The arguments of the command; no shell reads them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// A script for `/bin/sh`; `args` are `$1`, `$2` and so on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub script: Option<String>,
    /// Environment variables to set.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Variables of the worker's environment to hand on, beside PATH, HOME, USER, LOGNAME, SHELL, LANG, LC_ALL, TZ and
    /// TMPDIR. Variables of Windlass itself are never handed on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inherit: Vec<String>,
    /// The working directory; the worker's own without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// What the command reads from its standard input; nothing without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// How long it may run; an hour without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<DurationText>,
    /// Exit codes that no retry can help.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fatal_codes: Vec<i32>,
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ShellDone {
    /// The exit code.
    pub code: i32,
    /// The end of its output, up to 64 KiB; bytes that are no text are replaced.
    pub stdout: String,
    /// The end of its error output, up to 64 KiB.
    pub stderr: String,
    /// Whether it wrote more than is kept.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cut: bool,
    /// How long it ran, in milliseconds.
    pub ms: u64,
}

/// Whether commands may be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shell {
    Allowed,
    Refused,
}

impl Shell {
    pub(crate) fn new(config: &TasksConfig) -> Self {
        if config.shell { Self::Allowed } else { Self::Refused }
    }
}

pub(super) async fn run(task: ShellRun, cx: Cx<Services>) -> Result<ShellDone, TaskError> {
    match cx.state().shell {
        Shell::Allowed => execute(&task, async { cx.stopped().await.to_string() }).await,
        Shell::Refused => Err(TaskError::fatal(
            "this worker runs no commands: set `tasks.shell = true` in its configuration \
             (WINDLASS_TASKS__SHELL=true) where everybody who may enqueue may run anything",
        )
        .class("not_allowed")),
    }
}

/// Runs a command until it ends, its time is up, or `stopped` says why it has to end.
async fn execute(task: &ShellRun, stopped: impl Future<Output = String>) -> Result<ShellDone, TaskError> {
    let started = Instant::now();
    let mut child = start(task)?;
    let group = Group::of(&child);
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let given = task.stdin.clone().unwrap_or_default();
    let feed = tokio::spawn(async move {
        if let Some(mut stdin) = stdin {
            // A command need not read what it is given.
            let _ = stdin.write_all(given.as_bytes()).await;
        }
    });
    let (stdout, stderr) = (Tail::reading(stdout), Tail::reading(stderr));
    let limit = task.timeout.map_or(Duration::from_secs(3600), |timeout| timeout.0);
    let ended = tokio::select! {
        status = child.wait() => status.map(Ended::Itself),
        () = tokio::time::sleep(limit) => group.end(&mut child).await.map(|_| Ended::TimeUp),
        reason = stopped => group.end(&mut child).await.map(|_| Ended::Stopped(reason)),
    };
    // What it has left behind in its group holds the output open and belongs to nobody now.
    drop(group);
    feed.abort();
    let (stdout, stderr) = tokio::join!(stdout.finish(), stderr.finish());
    let failed =
        |class: &str, what: &str| TaskError::failed(format_args!("{what}{}", quoted(&stderr.text))).class(class);
    match ended? {
        Ended::Itself(status) => judge(task, status, stdout, stderr, started.elapsed()),
        Ended::TimeUp => {
            Err(failed("timeout", &format!("the command ran longer than {}", windlass::format_duration(limit))))
        }
        Ended::Stopped(reason) => Err(failed("stopped", &format!("the command was ended: {reason}"))),
    }
}

enum Ended {
    Itself(ExitStatus),
    TimeUp,
    Stopped(String),
}

fn start(task: &ShellRun) -> Result<Child, TaskError> {
    let mut command = match (&task.command, &task.script) {
        (Some(program), None) => Command::new(program),
        (None, Some(script)) => {
            let mut shell = Command::new("/bin/sh");
            shell.arg("-c").arg(script).arg("sh");
            shell
        }
        (Some(_), Some(_)) | (None, None) => {
            return Err(TaskError::fatal("give either `command` or `script`").class("bad_request"));
        }
    };
    let handed_on = INHERITED.iter().copied().chain(task.inherit.iter().map(String::as_str));
    command
        .args(&task.args)
        .env_clear()
        .envs(handed_on.filter(|name| !is_ours(name)).filter_map(|name| Some((name, std::env::var_os(name)?))))
        .envs(&task.env)
        .process_group(0)
        .stdin(if task.stdin.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    if let Some(directory) = &task.cwd {
        command.current_dir(directory);
    }
    command.spawn().map_err(|error| {
        let what = task.command.as_deref().unwrap_or("/bin/sh");
        let place = task.cwd.as_deref().map(|cwd| format!(" in `{cwd}`")).unwrap_or_default();
        let text = format!("`{what}` cannot be started{place}: {error}");
        match error.kind() {
            // Other workers of the queue are set up alike: a retry would meet the same.
            std::io::ErrorKind::NotFound => TaskError::fatal(text).class("exit_127"),
            std::io::ErrorKind::PermissionDenied => TaskError::fatal(text).class("exit_126"),
            std::io::ErrorKind::InvalidInput => TaskError::fatal(text).class("bad_request"),
            _ => TaskError::failed(text).class("start"),
        }
    })
}

/// The store's password is in them.
fn is_ours(name: &str) -> bool {
    name.to_ascii_uppercase().starts_with(windlass::config::VARIABLE_PREFIX)
}

fn judge(
    task: &ShellRun,
    status: ExitStatus,
    stdout: Tail,
    stderr: Tail,
    took: Duration,
) -> Result<ShellDone, TaskError> {
    use std::os::unix::process::ExitStatusExt;
    let Some(code) = status.code() else {
        let signal = status.signal().unwrap_or_default();
        let text = format!("the command was ended by signal {signal}{}", quoted(&stderr.text));
        return Err(TaskError::failed(text).class(&format!("signal_{signal}")));
    };
    if code == 0 {
        let cut = stdout.cut || stderr.cut;
        return Ok(ShellDone { code, stdout: stdout.text, stderr: stderr.text, cut, ms: took.as_millis() as u64 });
    }
    let text = format!("the command ended with exit code {code}{}", quoted(&stderr.text));
    let never = matches!(code, 126 | 127) || task.fatal_codes.contains(&code);
    let error = if never { TaskError::fatal(text) } else { TaskError::failed(text) };
    Err(error.class(&format!("exit_{code}")))
}

/// The end of the error output as one line.
fn quoted(stderr: &str) -> String {
    let words: Vec<&str> = stderr.split_whitespace().collect();
    let line = words.join(" ");
    if line.is_empty() {
        return String::new();
    }
    let skipped = line.chars().count().saturating_sub(QUOTED_CHARS_MAX);
    format!(": {}", line.chars().skip(skipped).filter(|char| !char.is_control()).collect::<String>())
}

/// The processes of a command. They end with this value, also when the attempt is dropped where it stands.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| Pid::from_raw(id.cast_signed())))
    }

    /// Asks the processes to end, then makes them.
    async fn end(&self, child: &mut Child) -> std::io::Result<ExitStatus> {
        self.signal(Signal::TERM);
        if let Ok(status) = timeout(TERM_GRACE, child.wait()).await {
            return status;
        }
        self.signal(Signal::KILL);
        child.wait().await
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.0 {
            // An error means that nobody is left.
            let _ = kill_process_group(group, signal);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
    }
}

/// The end of an output.
#[derive(Debug, Default)]
struct Tail {
    text: String,
    cut: bool,
}

/// An output that is being read.
struct Reading(tokio::sync::oneshot::Sender<()>, tokio::task::JoinHandle<Tail>);

impl Tail {
    /// Reads in the background, so that a command never waits for its output to be read.
    fn reading(output: Option<impl AsyncRead + Unpin + Send + 'static>) -> Reading {
        let (enough, mut told) = tokio::sync::oneshot::channel::<()>();
        let reader = tokio::spawn(async move {
            let (mut kept, mut cut) = (Vec::new(), false);
            let Some(mut output) = output else { return Self::default() };
            let mut buffer = vec![0; 16 * 1024];
            loop {
                let read = tokio::select! {
                    read = output.read(&mut buffer) => read.unwrap_or(0),
                    _ = &mut told => 0,
                };
                if read == 0 {
                    return Self { text: String::from_utf8_lossy(&kept).into_owned(), cut };
                }
                kept.extend_from_slice(&buffer[..read]);
                let over = kept.len().saturating_sub(OUTPUT_BYTES_MAX);
                kept.drain(..over);
                cut |= over > 0;
            }
        });
        Reading(enough, reader)
    }
}

impl Reading {
    async fn finish(self) -> Tail {
        let Self(enough, mut reader) = self;
        if let Ok(tail) = timeout(DRAIN, &mut reader).await {
            return tail.unwrap_or_default();
        }
        let _ = enough.send(());
        reader.await.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(text: &str) -> ShellRun {
        let mut task: ShellRun = serde_json::from_str("{}").unwrap();
        task.script = Some(text.to_owned());
        task
    }

    async fn run(task: &ShellRun) -> Result<ShellDone, TaskError> {
        execute(task, std::future::pending()).await
    }

    fn class(result: Result<ShellDone, TaskError>) -> (&'static str, String) {
        match result.unwrap_err() {
            TaskError::Failed(failure) => ("again", failure.class),
            TaskError::Fatal(failure) => ("never", failure.class),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until a process has ended.
    async fn gone(pid: i32) -> bool {
        let path = format!("/proc/{pid}/stat");
        for _ in 0..200 {
            match std::fs::read_to_string(&path) {
                // A zombie is gone: it waits for its parent only.
                Ok(stat) if stat.contains(") Z ") => return true,
                Ok(_) => tokio::task::yield_now().await,
                Err(_) => return true,
            }
            // tidy: allow(sleep): the end of another process has no event here
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    #[tokio::test]
    async fn a_command_gets_its_arguments_as_they_are() {
        let mut task: ShellRun = serde_json::from_str(r#"{"command": "printf"}"#).unwrap();
        task.args = vec!["%s|".to_owned(), "$HOME; exit 1".to_owned(), "*".to_owned()];
        assert_eq!(run(&task).await.unwrap().stdout, "$HOME; exit 1|*|");
    }

    #[tokio::test]
    async fn a_script_reads_what_it_is_given() {
        let mut task = script("read line; echo \"$line $1 $GREETING\"; echo oops >&2");
        task.stdin = Some("hello\n".to_owned());
        task.args = vec!["big".to_owned()];
        task.env.insert("GREETING".to_owned(), "world".to_owned());
        let done = run(&task).await.unwrap();
        assert_eq!((done.code, done.stdout.as_str(), done.stderr.as_str()), (0, "hello big world\n", "oops\n"));
    }

    #[tokio::test]
    async fn it_sees_nothing_of_the_environment_but_what_is_named() {
        let mut task = script("env");
        task.inherit = vec!["CARGO_MANIFEST_DIR".to_owned(), "WINDLASS_STORE".to_owned()];
        let seen = run(&task).await.unwrap().stdout;
        assert!(seen.contains("PATH=") && seen.contains("CARGO_MANIFEST_DIR="), "{seen}");
        assert!(!seen.contains("CARGO_PKG_NAME") && !seen.contains("WINDLASS_"), "{seen}");
    }

    #[tokio::test]
    async fn exit_codes_are_classes() {
        assert_eq!(class(run(&script("exit 3")).await), ("again", "exit_3".to_owned()));
        assert_eq!(class(run(&script("no-such-command")).await), ("never", "exit_127".to_owned()));
        assert_eq!(class(run(&script("kill -9 $$")).await), ("again", "signal_9".to_owned()));
        let mut task = script("exit 3");
        task.fatal_codes = vec![3];
        assert_eq!(class(run(&task).await), ("never", "exit_3".to_owned()));
        let nothing: ShellRun = serde_json::from_str("{}").unwrap();
        assert_eq!(class(run(&nothing).await), ("never", "bad_request".to_owned()));
        let missing: ShellRun = serde_json::from_str(r#"{"command": "/no/such/program"}"#).unwrap();
        assert_eq!(class(run(&missing).await), ("never", "exit_127".to_owned()));
    }

    #[tokio::test]
    async fn the_end_of_a_long_output_is_kept() {
        let done = run(&script("yes x | head -c 300000; echo the end")).await.unwrap();
        assert!(done.stdout.ends_with("the end\n") && done.stdout.len() == OUTPUT_BYTES_MAX && done.cut);
    }

    #[tokio::test]
    async fn at_its_time_limit_its_children_end_too() {
        let mut task = script("trap '' TERM; sleep 100 & echo $! $$ >&2; wait; sleep 100");
        task.timeout = Some(DurationText(Duration::from_millis(300)));
        let error = run(&task).await.unwrap_err();
        let TaskError::Failed(failure) = error else { panic!("{error:?}") };
        assert_eq!(failure.class, "timeout");
        let pids: Vec<i32> = failure.message.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        assert_eq!(pids.len(), 2, "{}", failure.message);
        for pid in pids {
            assert!(gone(pid).await, "{pid}");
        }
    }

    #[tokio::test]
    async fn what_a_command_leaves_running_ends_with_it() {
        let done = run(&script("sleep 100 & echo $!")).await.unwrap();
        assert!(gone(done.stdout.trim().parse().unwrap()).await);
    }

    #[tokio::test]
    async fn a_dropped_attempt_ends_its_command() {
        let folder = tempfile::tempdir().unwrap();
        let mut task = script("echo $$ > pid.part; mv pid.part pid; sleep 100");
        task.cwd = Some(folder.path().to_str().unwrap().to_owned());
        let attempt = tokio::spawn(async move { run(&task).await });
        let pid = loop {
            if let Ok(pid) = std::fs::read_to_string(folder.path().join("pid")) {
                break pid.trim().parse().unwrap();
            }
            tokio::task::yield_now().await;
        };
        attempt.abort();
        assert!(gone(pid).await);
    }

    #[tokio::test]
    async fn a_cancelled_command_is_asked_to_end_first() {
        let task = script("trap 'echo saved >&2; exit 0' TERM; echo ready; while :; do sleep 0.01; done");
        let error = execute(&task, async {
            // tidy: allow(sleep): the trap is set when the shell has started, which nobody tells
            tokio::time::sleep(Duration::from_millis(300)).await;
            "the task was cancelled".to_owned()
        });
        let TaskError::Failed(failure) = error.await.unwrap_err() else { panic!("it failed") };
        // A shell may say as well that its own child was terminated.
        assert!(failure.message.ends_with("saved"), "{}", failure.message);
    }

    #[test]
    fn it_is_off_unless_it_is_allowed() {
        let mut config = windlass::config::Config::default().tasks;
        assert_eq!(Shell::new(&config), Shell::Refused);
        config.shell = true;
        assert_eq!(Shell::new(&config), Shell::Allowed);
    }
}
