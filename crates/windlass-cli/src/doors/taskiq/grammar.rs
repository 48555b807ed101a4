//! What may be typed behind `taskiq`: its options, in our words.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::worker::ChildFlags;
use crate::doors::words::{self, Idle, given};

/// TaskIQ's command line, for the tasks of this program
///
/// The broker is named by TASKIQ_BROKER_URL. What has no meaning here is said on standard error and ignored.
#[derive(Debug, Parser)]
#[command(name = "taskiq", version, arg_required_else_help = true, subcommand_required = true)]
#[command(disable_help_subcommand = true)]
pub(super) struct Door {
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Work on the queue of the broker, until told to stop
    Worker(Box<Worker>),
    /// Fire the schedules of the fleet's store, and send what waits in the queues of -Q to the broker
    Scheduler(Scheduler),
    /// Send a task by its name
    Task(Send),
}

/// Options that are about Python.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Python {
    /// Work in this folder
    #[arg(short = 'd', long, value_name = "FOLDER")]
    pub(super) app_dir: Option<PathBuf>,
    /// Nothing: tasks are part of this program
    #[arg(long)]
    fs_discover: bool,
    /// Nothing: tasks are part of this program
    #[arg(long, value_name = "PATTERN")]
    tasks_pattern: Vec<String>,
    /// How much is logged: DEBUG, INFO, WARNING, ERROR or CRITICAL
    #[arg(long, value_name = "LEVEL", value_parser = words::level)]
    pub(super) log_level: Option<String>,
    /// Nothing: the log is that of this program
    #[arg(long)]
    no_configure_logging: bool,
    /// Nothing: tasks are part of this program
    #[arg(value_name = "MODULES")]
    modules: Vec<String>,
}

impl Python {
    fn idle(&self) -> Vec<Idle> {
        const OURS: &str = "tasks are part of this program";
        given(&[
            (self.fs_discover, ("--fs-discover", OURS)),
            (!self.tasks_pattern.is_empty(), ("--tasks-pattern", OURS)),
            (self.no_configure_logging, ("--no-configure-logging", "the log is that of this program: see `log.level`")),
            (!self.modules.is_empty(), ("a module to look for tasks in", OURS)),
        ])
    }
}

/// Options of `taskiq worker`.
#[derive(Debug, Clone, Args)]
pub(super) struct Worker {
    /// The broker in Python: accepted for the sake of scripts
    #[arg(value_name = "MODULE:BROKER")]
    pub(super) broker: String,
    #[command(flatten)]
    pub(super) python: Python,
    /// Nothing: there is one way to receive
    #[arg(long, value_name = "MODULE:CLASS")]
    receiver: Option<String>,
    /// Nothing: there is one way to receive
    #[arg(long = "receiver_arg", visible_alias = "receiver-arg", value_name = "NAME=VALUE")]
    receiver_arg: Vec<String>,
    /// Nothing: see `log.format`
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
    /// How many processes share the work
    #[arg(short, long, value_name = "COUNT")]
    pub(super) workers: Option<u64>,
    /// Nothing: arguments are read as the task declares them
    #[arg(long)]
    no_parse: bool,
    /// Nothing: there are no generators to tell
    #[arg(long)]
    no_propagate_errors: bool,
    /// Nothing: blocking tasks have threads of their own
    #[arg(long, value_name = "COUNT")]
    max_threadpool_threads: Option<u64>,
    /// How many seconds running tasks may go on after the signal to stop, when --wait-tasks-timeout does not say it
    #[arg(long, value_name = "SECONDS", value_parser = words::seconds)]
    pub(super) shutdown_timeout: Option<Duration>,
    /// Nothing: see `windlass dev --reload`
    #[arg(short, long)]
    reload: bool,
    /// Nothing: see `windlass dev --reload`
    #[arg(long, value_name = "FOLDER")]
    reload_dir: Vec<String>,
    /// Nothing: see `windlass dev --reload`
    #[arg(long)]
    do_not_use_gitignore: bool,
    /// How many tasks run at once in each process
    #[arg(long, value_name = "COUNT")]
    pub(super) max_async_tasks: Option<u64>,
    /// Nothing: processes do not end by the number of tasks that run
    #[arg(long, value_name = "COUNT")]
    max_async_tasks_jitter: Option<u64>,
    /// How many messages are stored beyond the free slots
    #[arg(long, value_name = "COUNT")]
    pub(super) max_prefetch: Option<u64>,
    /// Nothing: a process that ends is replaced, later and later
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    max_fails: Option<i64>,
    /// Nothing: a message is let go when the store has its task, which survives every crash
    #[arg(long, value_name = "WHEN")]
    ack_type: Option<AckType>,
    /// Replace a process after so many tasks
    #[arg(long, value_name = "COUNT")]
    pub(super) max_tasks_per_child: Option<u64>,
    /// How many seconds running tasks may go on after the signal to stop
    #[arg(long, value_name = "SECONDS", value_parser = words::seconds)]
    pub(super) wait_tasks_timeout: Option<Duration>,
    /// Nothing: the second signal ends it at once
    #[arg(long, value_name = "COUNT")]
    hardkill_count: Option<u64>,
    /// Nothing: blocking tasks have threads of their own
    #[arg(long)]
    use_process_pool: bool,
    /// Nothing: blocking tasks have threads of their own
    #[arg(long, value_name = "COUNT")]
    max_process_pool_processes: Option<u64>,
    #[command(flatten)]
    pub(super) child: ChildFlags,
}

impl Worker {
    pub(super) fn idle(&self) -> Vec<Idle> {
        const RELOAD: &str = "`windlass dev --reload` starts again when the program changes";
        const THREADS: &str = "blocking tasks have threads of their own";
        let mut idle = self.python.idle();
        idle.extend(given(&[
            (self.receiver.is_some(), ("--receiver", "there is one way to receive")),
            (!self.receiver_arg.is_empty(), ("--receiver_arg", "there is one way to receive")),
            (self.log_format.is_some(), ("--log-format", "see `log.format` in docs/configuration.md")),
            (self.no_parse, ("--no-parse", "arguments are read as the task declares them")),
            (self.no_propagate_errors, ("--no-propagate-errors", "there are no generators to tell")),
            (self.max_threadpool_threads.is_some(), ("--max-threadpool-threads", THREADS)),
            (self.reload, ("--reload", RELOAD)),
            (!self.reload_dir.is_empty(), ("--reload-dir", RELOAD)),
            (self.do_not_use_gitignore, ("--do-not-use-gitignore", RELOAD)),
            (
                self.max_async_tasks_jitter.is_some(),
                ("--max-async-tasks-jitter", "no process ends by the number of tasks that run"),
            ),
            (self.max_fails.is_some(), ("--max-fails", "a process that ends is replaced")),
            (
                self.ack_type.is_some_and(|when| when != AckType::WhenSaved),
                ("--ack-type", "a message is let go when the store has its task, which survives every crash"),
            ),
            (self.hardkill_count.is_some(), ("--hardkill-count", "the second signal ends it at once")),
            (self.use_process_pool, ("--use-process-pool", THREADS)),
            (self.max_process_pool_processes.is_some(), ("--max-process-pool-processes", THREADS)),
        ]));
        idle
    }
}

/// When TaskIQ lets a message go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(super) enum AckType {
    /// Before the task runs.
    WhenReceived,
    /// After it has run.
    WhenExecuted,
    /// After its result was stored.
    WhenSaved,
    /// When the task says so.
    Manual,
}

/// Options of `taskiq scheduler`.
#[derive(Debug, Clone, Args)]
pub(super) struct Scheduler {
    /// The scheduler in Python: accepted for the sake of scripts
    #[arg(value_name = "MODULE:SCHEDULER")]
    pub(super) scheduler: String,
    #[command(flatten)]
    pub(super) python: Python,
    /// The queues of the store whose tasks are sent to the broker; an option of ours [config: relay]
    #[arg(short = 'Q', long, value_name = "QUEUES")]
    pub(super) queues: Option<String>,
    /// Nothing: a slot that was missed fires by the policy of its schedule
    #[arg(long)]
    skip_first_run: bool,
    /// Nothing: the store says when schedules change
    #[arg(long, value_name = "SECONDS")]
    update_interval: Option<f64>,
    /// Nothing: a slot fires when it is due
    #[arg(long, value_name = "SECONDS")]
    loop_interval: Option<f64>,
    /// Nothing: a call to the store ends after `client.deadline`
    #[arg(long, value_name = "SECONDS")]
    send_timeout: Option<f64>,
}

impl Scheduler {
    pub(super) fn idle(&self) -> Vec<Idle> {
        let mut idle = self.python.idle();
        idle.extend(given(&[
            (self.skip_first_run, ("--skip-first-run", "a slot that was missed fires by the policy of its schedule")),
            (self.update_interval.is_some(), ("--update-interval", "the store says when schedules change")),
            (self.loop_interval.is_some(), ("--loop-interval", "a slot fires when it is due")),
            (self.send_timeout.is_some(), ("--send-timeout", "a call to the store ends after `client.deadline`")),
        ]));
        idle
    }
}

/// Options of `taskiq task`.
#[derive(Debug, Clone, Args)]
pub(super) struct Send {
    /// The name of the task, as in shop.tasks:add
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Its arguments as JSON: an array by position, an object by name
    #[arg(short, long, value_name = "JSON")]
    pub(super) args: Option<String>,
    /// Arguments by name besides those by position: a JSON object
    #[arg(short, long, value_name = "JSON")]
    pub(super) kwargs: Option<String>,
    /// A label of the message; may be given often
    #[arg(short, long = "label", value_name = "NAME=VALUE", value_parser = label)]
    pub(super) labels: Vec<(String, String)>,
    /// The queue of the broker [default: taskiq]
    #[arg(long, value_name = "NAME")]
    pub(super) queue: Option<String>,
}

fn label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("it is written NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}
