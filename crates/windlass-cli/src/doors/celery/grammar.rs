//! What may be typed behind `celery`: its options, in our words.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::worker::ChildFlags;
use crate::doors::words::{self, Idle, given};

/// Celery's command line, for the tasks of this program
///
/// What has no meaning here is said on standard error and ignored. docs/bridges.md says what differs.
#[derive(Debug, Parser)]
#[command(name = "celery", version, arg_required_else_help = true, subcommand_required = true)]
#[command(disable_help_subcommand = true)]
pub(super) struct Door {
    #[command(flatten)]
    pub(super) top: Top,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Top {
    /// The application: accepted for the sake of scripts, as there is only this program's
    #[arg(short = 'A', long, global = true, value_name = "MODULE", help_heading = "Application")]
    pub(super) app: Option<String>,
    /// The broker: redis://, rediss://, amqp:// or the URL of a bridge [env: CELERY_BROKER_URL]
    #[arg(short, long, global = true, value_name = "URL", help_heading = "Application")]
    pub(super) broker: Option<String>,
    /// Where results go: redis://, rpc:// or disabled [env: CELERY_RESULT_BACKEND] [default: the broker, when it is Redis]
    #[arg(long, global = true, value_name = "URL", help_heading = "Application")]
    pub(super) result_backend: Option<String>,
    /// Nothing: there is no Python to load
    #[arg(long, global = true, value_name = "CLASS", help_heading = "Application")]
    loader: Option<String>,
    /// Nothing: the configuration is that of this program
    #[arg(long, global = true, value_name = "MODULE", help_heading = "Application")]
    config: Option<String>,
    /// Work in this folder
    #[arg(long, global = true, value_name = "FOLDER", help_heading = "Application")]
    pub(super) workdir: Option<PathBuf>,
    /// Print without colours
    #[arg(short = 'C', long, global = true, help_heading = "Application")]
    pub(super) no_color: bool,
    /// Say errors only
    #[arg(short, long, global = true, help_heading = "Application")]
    pub(super) quiet: bool,
    /// Nothing: there is no Django
    #[arg(long, global = true, help_heading = "Application")]
    skip_checks: bool,
}

impl Top {
    pub(super) fn idle(&self) -> Vec<Idle> {
        given(&[
            (self.loader.is_some(), ("--loader", "no Python is loaded")),
            (
                self.config.is_some(),
                ("--config", "the configuration is windlass.toml and the environment; see docs/configuration.md"),
            ),
            (self.skip_checks, ("--skip-checks", "there is no Django to check")),
        ])
    }
}

/// Every command.
#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Work on the queues of the broker, until told to stop
    Worker(Box<Worker>),
    /// Fire the schedules of the fleet's store, and send what waits in the queues of -Q to the broker
    Beat(Beat),
    /// Ask the workers something
    Inspect(Inspect),
    /// Tell the workers something
    Control(Inspect),
    /// List the workers that answer
    Status(Status),
    /// Send a task by its name
    Call(Box<Call>),
    /// Print what a task has returned
    Result(TaskResult),
    /// Drop every message of queues
    Purge(Purge),
    /// Print what this program is and what it is connected to
    Report,
    /// List what the broker knows
    List(List),
    /// What another program does, or nobody
    #[command(external_subcommand)]
    Elsewhere(Vec<OsString>),
}

/// Options of `celery worker`.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Worker {
    /// The name in the fleet: %h is the host, %n the host without its domain, %d the domain [default: celery@%h]
    #[arg(short = 'n', long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// Refused: a service manager starts programs in the background
    #[arg(short = 'D', long)]
    pub(super) detach: bool,
    /// Nothing: what is revoked is cancelled in the store
    #[arg(short = 'S', long, value_name = "FILE")]
    statedb: Option<String>,
    /// How much is logged: DEBUG, INFO, WARNING, ERROR, CRITICAL or FATAL
    #[arg(short, long, value_name = "LEVEL", value_parser = words::level)]
    pub(super) loglevel: Option<String>,
    /// `fair`, which is always so, or `default`
    #[arg(short = 'O', long, value_name = "PROFILE")]
    pub(super) optimization: Option<Optimization>,
    /// How many messages are taken for each slot, the one that runs among them [default: 1]
    #[arg(long, value_name = "COUNT")]
    pub(super) prefetch_multiplier: Option<u64>,
    /// So it is always
    #[arg(long)]
    disable_prefetch: bool,
    /// How many tasks run at once; `auto` is our default
    #[arg(short, long, value_name = "COUNT", value_parser = concurrency)]
    pub(super) concurrency: Option<Concurrency>,
    /// How tasks run: `solo` is one at a time, all others are what we do
    #[arg(short = 'P', long, value_name = "POOL")]
    pub(super) pool: Option<Pool>,
    /// Send events of tasks, as Flower wants them
    #[arg(short = 'E', long, visible_aliases = ["events"])]
    pub(super) task_events: bool,
    /// How long a task may run whose message says nothing of it
    #[arg(long, value_name = "SECONDS", value_parser = words::seconds)]
    pub(super) time_limit: Option<Duration>,
    /// After how long such a task is asked to end
    #[arg(long, value_name = "SECONDS", value_parser = words::seconds)]
    pub(super) soft_time_limit: Option<Duration>,
    /// Replace the process after so many tasks for each slot
    #[arg(long, visible_alias = "maxtasksperchild", value_name = "COUNT")]
    pub(super) max_tasks_per_child: Option<u64>,
    /// Nothing: processes are started anew, never copied
    #[arg(long, value_name = "METHOD")]
    pool_start_method: Option<StartMethod>,
    /// Replace the process when it uses so many KiB for each slot
    #[arg(long, value_name = "KIB")]
    pub(super) max_memory_per_child: Option<u64>,
    /// Drop every message of the queues before working on them
    #[arg(long, visible_alias = "discard")]
    pub(super) purge: bool,
    /// The queues to work on [default: celery]
    #[arg(short = 'Q', long, value_name = "QUEUES")]
    pub(super) queues: Option<String>,
    /// Queues not to work on
    #[arg(short = 'X', long, value_name = "QUEUES")]
    pub(super) exclude_queues: Option<String>,
    /// Nothing: there is no Python to load
    #[arg(short = 'I', long, value_name = "MODULES")]
    include: Option<String>,
    /// So it is always
    #[arg(long)]
    without_gossip: bool,
    /// Do not ask the other workers at the start what was revoked
    #[arg(long)]
    pub(super) without_mingle: bool,
    /// Nothing: a worker always says that it lives
    #[arg(long)]
    without_heartbeat: bool,
    /// Nothing: a worker says that it lives as often as the fleet needs
    #[arg(long, value_name = "SECONDS")]
    heartbeat_interval: Option<u64>,
    /// At most and at least so many tasks at once: a free slot costs nothing, so it is the most
    #[arg(long, value_name = "MAX,MIN", value_parser = autoscale)]
    pub(super) autoscale: Option<u64>,
    /// Also fire the schedules of this program
    #[arg(short = 'B', long)]
    pub(super) beat: bool,
    /// Nothing: schedules are in the store
    #[arg(short = 's', long, visible_alias = "schedule-filename", value_name = "FILE")]
    schedule: Option<String>,
    /// Nothing: schedules are in the store
    #[arg(long, value_name = "CLASS")]
    scheduler: Option<String>,
    #[command(flatten)]
    pub(super) daemon: Daemon,
    #[command(flatten)]
    pub(super) child: ChildFlags,
}

impl Worker {
    pub(super) fn idle(&self) -> Vec<Idle> {
        let in_store = "schedules are in the store: see `windlass schedule ls`";
        let processes = matches!(self.pool, Some(Pool::Prefork | Pool::Processes | Pool::Custom));
        let mut idle = given(&[
            (
                self.statedb.is_some(),
                (
                    "--statedb",
                    "revoked tasks are cancelled in the store; ids of those that have not come are remembered for three hours",
                ),
            ),
            (
                processes,
                ("--pool", "tasks run on threads of one process; `windlass worker --processes N` keeps them apart"),
            ),
            (self.pool_start_method.is_some(), ("--pool-start-method", "processes are started anew")),
            (self.include.is_some(), ("--include", "no Python is loaded")),
            (self.without_heartbeat, ("--without-heartbeat", "a worker always says that it lives")),
            (self.heartbeat_interval.is_some(), ("--heartbeat-interval", "a worker says often enough that it lives")),
            (self.autoscale.is_some(), ("the minimum of --autoscale", "a free slot costs nothing")),
            (self.schedule.is_some(), ("--schedule", in_store)),
            (self.scheduler.is_some(), ("--scheduler", in_store)),
        ]);
        idle.extend(self.daemon.idle());
        idle
    }
}

/// Options of programs in the background.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Daemon {
    /// Write the log to the end of this file
    #[arg(short = 'f', long, value_name = "FILE", help_heading = "Background")]
    pub(super) logfile: Option<String>,
    /// Write the number of the process into this file
    #[arg(long, value_name = "FILE", help_heading = "Background")]
    pub(super) pidfile: Option<String>,
    /// Refused: start it as that user
    #[arg(long, value_name = "USER", help_heading = "Background")]
    pub(super) uid: Option<String>,
    /// Refused: start it as that group
    #[arg(long, value_name = "GROUP", help_heading = "Background")]
    pub(super) gid: Option<String>,
    /// Nothing: set it where this program is started
    #[arg(long, value_name = "MASK", help_heading = "Background")]
    umask: Option<String>,
    /// Nothing: there is no Python
    #[arg(long, value_name = "FILE", help_heading = "Background")]
    executable: Option<String>,
}

impl Daemon {
    fn idle(&self) -> Vec<Idle> {
        given(&[
            (self.umask.is_some(), ("--umask", "set it where this program is started")),
            (self.executable.is_some(), ("--executable", "there is no Python")),
        ])
    }
}

/// Options of `celery beat`.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct Beat {
    /// Refused: a service manager starts programs in the background
    #[arg(long)]
    pub(super) detach: bool,
    /// The queues whose tasks are sent to the broker; an option of ours [config: relay]
    #[arg(short = 'Q', long, value_name = "QUEUES")]
    pub(super) queues: Option<String>,
    /// Nothing: schedules are in the store
    #[arg(short = 's', long, value_name = "FILE")]
    schedule: Option<String>,
    /// Nothing: schedules are in the store
    #[arg(short = 'S', long, value_name = "CLASS")]
    scheduler: Option<String>,
    /// Nothing: a slot fires when it is due
    #[arg(long, value_name = "SECONDS")]
    max_interval: Option<u64>,
    /// Nothing: see whether it lives with `windlass health`
    #[arg(long, overrides_with = "no_enable_remote_control")]
    enable_remote_control: bool,
    /// So it is always
    #[arg(long)]
    no_enable_remote_control: bool,
    /// The name in the fleet: %h is the host [default: celerybeat@%h]
    #[arg(short = 'n', long, value_name = "NAME")]
    pub(super) hostname: Option<String>,
    /// How much is logged: DEBUG, INFO, WARNING, ERROR, CRITICAL or FATAL
    #[arg(short, long, value_name = "LEVEL", value_parser = words::level)]
    pub(super) loglevel: Option<String>,
    #[command(flatten)]
    pub(super) daemon: Daemon,
}

impl Beat {
    pub(super) fn idle(&self) -> Vec<Idle> {
        let in_store = "schedules are in the store: see `windlass schedule ls`";
        let mut idle = given(&[
            (self.schedule.is_some(), ("--schedule", in_store)),
            (self.scheduler.is_some(), ("--scheduler", in_store)),
            (self.max_interval.is_some(), ("--max-interval", "a slot fires when it is due")),
            (self.enable_remote_control, ("--enable-remote-control", "see whether it lives with `windlass health`")),
        ]);
        idle.extend(self.daemon.idle());
        idle
    }
}

/// Options of `celery inspect` and `celery control`.
#[derive(Debug, Clone, Args)]
pub(super) struct Inspect {
    /// What is asked, and what is said with it; --list lists them
    #[arg(value_name = "COMMAND", required_unless_present = "list")]
    pub(super) words: Vec<String>,
    /// List what may be asked
    #[arg(long)]
    pub(super) list: bool,
    #[command(flatten)]
    pub(super) asking: Status,
}

/// Options of whoever asks the workers.
#[derive(Debug, Clone, Args)]
pub(super) struct Status {
    /// How many seconds answers are waited for
    #[arg(short, long, value_name = "SECONDS", default_value = "1.0", value_parser = words::seconds)]
    pub(super) timeout: Duration,
    /// Ask only these workers
    #[arg(short, long, value_name = "NAMES")]
    pub(super) destination: Option<String>,
    /// Print the answers as one JSON object
    #[arg(short, long)]
    pub(super) json: bool,
}

/// Options of `celery call`.
#[derive(Debug, Clone, Args)]
pub(super) struct Call {
    /// The name of the task
    #[arg(value_name = "NAME")]
    pub(super) name: String,
    /// Arguments by position: a JSON array
    #[arg(short, long, value_name = "JSON")]
    pub(super) args: Option<String>,
    /// Arguments by name: a JSON object
    #[arg(short, long, value_name = "JSON")]
    pub(super) kwargs: Option<String>,
    /// Not before this time (ISO 8601)
    #[arg(long, value_name = "TIME", conflicts_with = "countdown")]
    pub(super) eta: Option<String>,
    /// Not before so many seconds have passed
    #[arg(long, value_name = "SECONDS", value_parser = words::seconds)]
    pub(super) countdown: Option<Duration>,
    /// Not after this time (ISO 8601), or so many seconds from now
    #[arg(long, value_name = "TIME")]
    pub(super) expires: Option<String>,
    /// `json`
    #[arg(long, value_name = "NAME", default_value = "json")]
    pub(super) serializer: String,
    /// The queue [default: celery]
    #[arg(long, value_name = "NAME")]
    pub(super) queue: Option<String>,
    /// The exchange [default: straight to the queue]
    #[arg(long, value_name = "NAME")]
    pub(super) exchange: Option<String>,
    /// The routing key [default: the queue]
    #[arg(long, value_name = "KEY")]
    pub(super) routing_key: Option<String>,
}

impl Call {
    pub(super) fn idle(&self) -> Vec<Idle> {
        given(&[(self.serializer != "json", ("--serializer", "arguments are sent as JSON"))])
    }
}

/// Options of `celery result`.
#[derive(Debug, Clone, Args)]
pub(super) struct TaskResult {
    /// The id of the task
    #[arg(value_name = "ID")]
    pub(super) id: String,
    /// Nothing: the id is enough
    #[arg(short, long, value_name = "NAME")]
    task: Option<String>,
    /// Print the traceback instead
    #[arg(long)]
    pub(super) traceback: bool,
}

impl TaskResult {
    pub(super) fn idle(&self) -> Vec<Idle> {
        given(&[(self.task.is_some(), ("--task", "the id is enough"))])
    }
}

/// Options of `celery purge`.
#[derive(Debug, Clone, Args)]
pub(super) struct Purge {
    /// Do not ask
    #[arg(short, long)]
    pub(super) force: bool,
    /// The queues [default: those of the configuration, or celery]
    #[arg(short = 'Q', long, value_name = "QUEUES")]
    pub(super) queues: Option<String>,
    /// Queues to leave as they are
    #[arg(short = 'X', long, value_name = "QUEUES")]
    pub(super) exclude_queues: Option<String>,
}

/// Options of `celery list`.
#[derive(Debug, Clone, Args)]
pub(super) struct List {
    #[command(subcommand)]
    pub(super) what: Listed,
}

/// What is listed.
#[derive(Debug, Clone, Copy, Subcommand)]
pub(super) enum Listed {
    /// Which queue gets what, by exchange and routing key
    Bindings,
}

/// How tasks run in Celery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Pool {
    /// In processes that are copies.
    Prefork,
    /// On green threads.
    Eventlet,
    /// On green threads.
    Gevent,
    /// One at a time.
    Solo,
    /// In processes.
    Processes,
    /// On threads.
    Threads,
    /// By a class of the application's.
    Custom,
}

/// How work is handed out in Celery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Optimization {
    /// Beforehand.
    Default,
    /// To who has nothing to do.
    Fair,
}

/// How processes begin in Celery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum StartMethod {
    /// As a copy.
    Fork,
    /// Anew.
    Spawn,
}

/// How many tasks run at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Concurrency {
    /// As the machine allows.
    Auto,
    /// So many.
    Of(u64),
}

fn concurrency(text: &str) -> Result<Concurrency, String> {
    match text {
        "auto" | "0" => Ok(Concurrency::Auto),
        count => count.parse().map(Concurrency::Of).map_err(|_| "it is a whole number, or auto".to_owned()),
    }
}

/// The larger of two numbers: which one comes first is easily mistaken.
fn autoscale(text: &str) -> Result<u64, String> {
    let counts: Result<Vec<u64>, _> = text.split(',').map(|count| count.trim().parse()).collect();
    match counts.as_deref() {
        Ok(counts @ ([_] | [_, _])) => Ok(counts.iter().copied().max().unwrap_or(1).max(1)),
        _ => Err("it is two whole numbers, as in 10,3".to_owned()),
    }
}
