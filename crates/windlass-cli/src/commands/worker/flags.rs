//! What `worker`, `scheduler` and `all` are told, and which keys of the configuration that sets.

use windlass::NodeId;

use crate::parent::Parent;
use crate::settings::Override;
use crate::supervisor::Place;

/// Run tasks until told to stop
///
/// TERM or INT finishes what runs, a second one gives it back at once; TSTP or USR1 takes no more tasks and stays; USR2
/// logs what runs. With --processes a supervisor starts that many workers and replaces those that end: a task that does
/// not give its thread back at its hard limit costs one of them, and TTIN and TTOU add and take away one.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass worker                                    tasks of the queue `default`
  windlass worker -Q email=3,default -c 8            three of four times email first
  windlass worker --name w1@%h --grace 1m --schedules
  windlass worker --listen 127.0.0.1:9100            probes and metrics
  windlass worker --processes 4 -c 8 --memory-max 512MiB --recycle-tasks 10000
  windlass worker --store sqlite:/var/lib/app/tasks.db
  windlass worker --bridge celery+redis://127.0.0.1:6379/0 -Q celery    messages of Celery's producers")]
pub(crate) struct Args {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    #[command(flatten)]
    pub(super) work: WorkFlags,
    #[command(flatten)]
    pub(super) processes: ProcessFlags,
    /// Also fire schedules; any number of workers may
    #[arg(long)]
    schedules: bool,
    /// What another command line says, translated.
    #[arg(skip)]
    translated: Vec<Override>,
}

impl Args {
    /// The arguments that another command line stands for.
    pub(crate) fn translated(overrides: Vec<Override>, child: ChildFlags) -> Self {
        let node = NodeFlags { child, ..NodeFlags::default() };
        Self {
            node,
            work: WorkFlags::default(),
            processes: ProcessFlags::default(),
            schedules: false,
            translated: overrides,
        }
    }

    pub(super) fn overrides(&self) -> Vec<Override> {
        // Of two flags for a key the last one counts: a child has the name that its supervisor gave it.
        let own = [self.node.overrides(), self.work.overrides(), self.processes.overrides()].concat();
        let mut overrides = [self.translated.clone(), own].concat();
        if self.schedules {
            overrides.extend(Override::of("worker.schedules", "--schedules", Some(&true)));
        }
        overrides
    }
}

/// Fire schedules and keep house, without running tasks
///
/// With a bridge it can also send tasks to the workers at its other end, in Python say: all that wait in the queues of --relay,
/// whether a schedule or `windlass enqueue` has put them there.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass scheduler
  windlass scheduler --name s1@%h
  windlass scheduler --store sqlite:/var/lib/app/tasks.db
  windlass scheduler --bridge celery+redis://127.0.0.1:6379/0 --relay reports    for Celery's workers of that queue")]
pub(crate) struct SchedulerArgs {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    /// Where the workers are that tasks are sent to; see docs/bridges.md [config: bridge]
    #[arg(long, value_name = "URL", help_heading = "Connection")]
    bridge: Option<String>,
    /// Send what waits in these queues over the bridge [config: relay]
    #[arg(long, value_name = "QUEUES")]
    relay: Option<String>,
    /// What another command line says, translated.
    #[arg(skip)]
    translated: Vec<Override>,
}

impl SchedulerArgs {
    /// The arguments that another command line stands for.
    pub(crate) fn translated(overrides: Vec<Override>) -> Self {
        Self { node: NodeFlags::default(), bridge: None, relay: None, translated: overrides }
    }

    pub(super) fn overrides(&self) -> Vec<Override> {
        let mut overrides = [self.translated.clone(), self.node.overrides()].concat();
        overrides.extend(Override::of("bridge", "--bridge", self.bridge.as_ref()));
        overrides.extend(Override::of("relay", "--relay", self.relay.as_ref()));
        overrides
    }
}

/// Run tasks and fire schedules
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass all
  windlass all -Q email,default --slots 32")]
pub(crate) struct AllArgs {
    #[command(flatten)]
    pub(super) node: NodeFlags,
    #[command(flatten)]
    pub(super) work: WorkFlags,
    #[command(flatten)]
    pub(super) processes: ProcessFlags,
}

/// Flags of every role.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct NodeFlags {
    /// The name in the fleet, unique; %h is the host, %p the process [default: host-process-random]
    #[arg(short, long, value_name = "NAME")]
    name: Option<String>,
    /// Answer probes (/livez, /readyz, /startupz) and /metrics there [config: worker.listen]
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,
    /// Stop when standard input closes: the process that started this one has ended
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
    #[command(flatten)]
    child: ChildFlags,
}

/// What a supervisor tells its children.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ChildFlags {
    /// Which child of a supervisor this is
    #[arg(long, hide = true, requires = "child_name", value_parser = clap::value_parser!(u16).range(1..))]
    child_number: Option<u16>,
    /// The name of this child in the fleet
    #[arg(long, hide = true, requires = "child_number")]
    child_name: Option<NodeId>,
}

impl ChildFlags {
    /// Whether a supervisor has started this process.
    pub(crate) fn is_one(&self) -> bool {
        self.child_number.is_some()
    }
}

/// Flags of roles that may be several processes. Each overrides a key of the configuration.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ProcessFlags {
    /// Work in this many processes under a supervisor, each with slots of its own [config: worker.processes]
    #[arg(long, value_name = "COUNT", help_heading = "Isolation")]
    processes: Option<String>,
    /// Replace a process after so many tasks [config: worker.recycle_tasks]
    #[arg(long, value_name = "COUNT", help_heading = "Isolation")]
    recycle_tasks: Option<String>,
    /// Replace a process that uses so much memory, when its tasks have ended [config: worker.recycle_memory]
    #[arg(long, value_name = "SIZE", help_heading = "Isolation")]
    recycle_memory: Option<String>,
    /// End a process that uses so much memory; what it runs has failed [config: worker.memory_max]
    #[arg(long, value_name = "SIZE", help_heading = "Isolation")]
    memory_max: Option<String>,
}

impl ProcessFlags {
    pub(super) fn overrides(&self) -> Vec<Override> {
        [
            Override::of("worker.processes", "--processes", self.processes.as_ref()),
            Override::of("worker.recycle_tasks", "--recycle-tasks", self.recycle_tasks.as_ref()),
            Override::of("worker.recycle_memory", "--recycle-memory", self.recycle_memory.as_ref()),
            Override::of("worker.memory_max", "--memory-max", self.memory_max.as_ref()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Flags of roles that run tasks. Each overrides a key of the configuration.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct WorkFlags {
    /// Queues to work on: earlier ones first, or by weight as in email=3,default [config: worker.queues]
    #[arg(short = 'Q', long, value_name = "QUEUES")]
    queues: Option<String>,
    /// How many tasks run at once [config: worker.slots]
    #[arg(short = 'c', long, visible_alias = "slots", value_name = "COUNT")]
    concurrency: Option<String>,
    /// How many threads run them [config: worker.threads]
    #[arg(long, value_name = "COUNT")]
    threads: Option<String>,
    /// How long running tasks may go on after the signal to stop [config: worker.grace]
    #[arg(long, value_name = "DURATION")]
    grace: Option<String>,
    /// Also take what other programs send, as in celery+redis://HOST; see docs/bridges.md [config: bridge]
    #[arg(long, value_name = "URL", help_heading = "Connection")]
    bridge: Option<String>,
    /// How long a task of a worker that died waits for another [config: worker.lease]
    #[arg(long, value_name = "DURATION")]
    lease: Option<String>,
}

impl NodeFlags {
    pub(super) fn overrides(&self) -> Vec<Override> {
        let name = match &self.child.child_name {
            Some(name) => Override::of("worker.node", "--child-name", Some(name)),
            None => Override::of("worker.node", "--name", self.name.as_ref()),
        };
        name.into_iter().chain(Override::of("worker.listen", "--listen", self.listen.as_ref())).collect()
    }

    pub(super) fn place(&self) -> Option<Place> {
        Some(Place { number: self.child.child_number?, node: self.child.child_name.clone()? })
    }

    pub(super) fn parent(&self) -> Parent {
        if self.exit_with_stdin { Parent::HoldsStdin } else { Parent::Any }
    }
}

impl WorkFlags {
    pub(crate) fn overrides(&self) -> Vec<Override> {
        [
            Override::of("worker.queues", "--queues", self.queues.as_ref()),
            Override::of("worker.slots", "--concurrency", self.concurrency.as_ref()),
            Override::of("worker.threads", "--threads", self.threads.as_ref()),
            Override::of("worker.grace", "--grace", self.grace.as_ref()),
            Override::of("worker.lease", "--lease", self.lease.as_ref()),
            Override::of("bridge", "--bridge", self.bridge.as_ref()),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}
