//! `windlass worker`, `scheduler` and `all`: the roles of a node.

use std::collections::BTreeMap;
use std::sync::Arc;

use windlass::config::{Loaded, WorkerConfig};
use windlass::worker::{Schedules, Settings, Shutdown, Why, Worker};
use windlass::{Backend, NodeId, QueueName, Registry, event};

use crate::args::{Cli, Command, Global};
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::logs::{self, Labels, Stream};
use crate::parent::{self, Parent};
use crate::probes::Probes;
use crate::program::Program;
use crate::settings::{self, Override, shown_store};
use crate::signals::Signals;
use crate::supervisor::{self, Place, Tether};

/// The heaviest queue, when earlier queues come first.
const WEIGHT_FIRST: u32 = windlass::worker::WEIGHT_MAX;

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
  windlass worker --store sqlite:/var/lib/app/tasks.db")]
pub(crate) struct Args {
    #[command(flatten)]
    node: NodeFlags,
    #[command(flatten)]
    work: WorkFlags,
    #[command(flatten)]
    processes: ProcessFlags,
    /// Also fire schedules; any number of workers may
    #[arg(long)]
    schedules: bool,
}

/// Fire schedules and keep house, without running tasks
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass scheduler
  windlass scheduler --name s1@%h
  windlass scheduler --store sqlite:/var/lib/app/tasks.db")]
pub(crate) struct SchedulerArgs {
    #[command(flatten)]
    node: NodeFlags,
}

/// Run tasks and fire schedules
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass all
  windlass all -Q email,default --slots 32")]
pub(crate) struct AllArgs {
    #[command(flatten)]
    node: NodeFlags,
    #[command(flatten)]
    work: WorkFlags,
    #[command(flatten)]
    processes: ProcessFlags,
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
    /// Which child of a supervisor this is
    #[arg(long, hide = true, requires = "child_name", value_parser = clap::value_parser!(u16).range(1..))]
    child_number: Option<u16>,
    /// The name of this child in the fleet
    #[arg(long, hide = true, requires = "child_number")]
    child_name: Option<NodeId>,
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
    fn overrides(&self) -> Vec<Override> {
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
    /// How long a task of a worker that died waits for another [config: worker.lease]
    #[arg(long, value_name = "DURATION")]
    lease: Option<String>,
}

impl NodeFlags {
    fn overrides(&self) -> Vec<Override> {
        let name = match &self.child_name {
            Some(name) => Override::of("worker.node", "--child-name", Some(name)),
            None => Override::of("worker.node", "--name", self.name.as_ref()),
        };
        name.into_iter().chain(Override::of("worker.listen", "--listen", self.listen.as_ref())).collect()
    }

    fn place(&self) -> Option<Place> {
        Some(Place { number: self.child_number?, node: self.child_name.clone()? })
    }

    fn parent(&self) -> Parent {
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
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It runs tasks, and fires schedules when the configuration says so.
    Worker,
    /// It fires schedules.
    Scheduler,
    /// Both.
    All,
}

/// How many threads the runtime of a role gets; `None` for one that runs no tasks.
pub(crate) fn threads(cli: &Cli) -> Result<Option<usize>, Problem> {
    let load = |overrides| Ok(settings::load(&settings::sources(&cli.global, overrides))?.config.worker);
    let (node, work, processes) = match &cli.command {
        Command::Worker(args) => (&args.node, &args.work, &args.processes),
        Command::All(args) => (&args.node, &args.work, &args.processes),
        Command::Dev(args) => return load(args.work.overrides()).map(|config| Some(config.threads)),
        Command::Scheduler(_) => return Ok(Some(1)),
        _ => return Ok(None),
    };
    let config = load([work.overrides(), processes.overrides()].concat())?;
    let supervises = config.processes > 0 && node.place().is_none();
    // One hears the children, one may wait for the store.
    Ok(Some(if supervises { 2 } else { config.threads }))
}

pub(crate) async fn worker(global: &Global, args: Args, program: Program) -> Outcome {
    let mut overrides = [args.node.overrides(), args.work.overrides(), args.processes.overrides()].concat();
    if args.schedules {
        overrides.extend(Override::of("worker.schedules", "--schedules", Some(&true)));
    }
    start(Context::new(global, overrides, program)?, Role::Worker, &args.node).await
}

pub(crate) async fn scheduler(global: &Global, args: SchedulerArgs, program: Program) -> Outcome {
    start(Context::new(global, args.node.overrides(), program)?, Role::Scheduler, &args.node).await
}

pub(crate) async fn all(global: &Global, args: AllArgs, program: Program) -> Outcome {
    let overrides = [args.node.overrides(), args.work.overrides(), args.processes.overrides()].concat();
    start(Context::new(global, overrides, program)?, Role::All, &args.node).await
}

/// Runs a node until it is told to stop.
async fn start(context: Context, role: Role, flags: &NodeFlags) -> Outcome {
    let config = &context.loaded.config.worker;
    let node = node_name(config.node.as_ref())?;
    start_logs(&context, &node);
    match (flags.place(), role) {
        (Some(place), _) => return start_child(context, role, place).await,
        (None, Role::Worker | Role::All) if config.processes > 0 => {
            return supervisor::run(&context.loaded, node).await;
        }
        (None, _) => warn_of_idle_limits(config),
    }
    let mut signals = Signals::catch();
    let Some(backend) = signals.unless_stopped(context.store_of_node()).await.transpose()? else {
        return Ok(Exit::Ok);
    };
    let shutdown = Shutdown::new();
    if flags.parent() == Parent::HoldsStdin {
        parent::end_with_stdin(shutdown.clone());
    }
    let stops = signals.heed(Arc::clone(&backend), node.clone(), shutdown.clone());
    let settings = settings_of(&context.loaded.config.worker, node, role);
    run_node(context, backend, settings, shutdown, None).await?;
    Ok(stops.exit())
}

/// Runs a child of a supervisor: a node that may end its process for the sake of one handler.
async fn start_child(mut context: Context, role: Role, place: Place) -> Outcome {
    let shutdown = Shutdown::new();
    let tether = Arc::new(Tether::take(&context.loaded.config.worker, shutdown.clone())?);
    let mut signals = Signals::catch();
    let Some(backend) = signals.unless_stopped(open_apart(&context)).await.transpose()? else {
        return Ok(Exit::Ok);
    };
    let stops = signals.heed(Arc::clone(&backend), place.node.clone(), shutdown.clone());
    let config = &mut context.loaded.config.worker;
    config.listen = config.listen.map(|first| place.listen(first));
    let settings = settings_of(config, place.node, role);
    match run_node(context, backend, settings, shutdown, Some(tether)).await? {
        Why::Told => Ok(stops.exit()),
        Why::Stuck => Ok(Exit::Stuck),
        Why::OutOfMemory => Ok(Exit::OutOfMemory),
    }
}

/// Opens the store on a thread of its own: drivers that work in the background would otherwise do so on the threads of
/// handlers, and when all of these are blocked nobody could settle what blocks them.
async fn open_apart(context: &Context) -> Result<Arc<dyn Backend>, Problem> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("windlass-store".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    let loaded = context.loaded.clone();
    let opening = handle.spawn(async move { settings::open(&loaded, settings::Missing::Create).await });
    opening.await.map_err(|error| {
        Problem::new(Exit::Failed, format_args!("the store's thread has ended: {error}"), "please report it")
    })?
}

/// Limits that only a supervisor keeps are no limits without one.
fn warn_of_idle_limits(config: &WorkerConfig) {
    if config.recycle_tasks > 0 || config.recycle_memory.is_some() || config.memory_max.is_some() {
        tracing::warn!(
            event = "limits_not_kept",
            "`worker.recycle_tasks`, `worker.recycle_memory` and `worker.memory_max` need `--processes`: nobody keeps them"
        );
    }
}

/// Log lines of a node are its data.
pub(crate) fn start_logs(context: &Context, node: &NodeId) {
    let labels = Labels { worker: Some(node.to_string()), service: context.program.name().to_owned() };
    logs::start(&context.global, &context.loaded.config.log, Stream::Stdout, labels);
}

/// Runs a node whose signals somebody else hears.
pub(crate) async fn run_node(
    context: Context,
    backend: Arc<dyn Backend>,
    settings: Settings,
    shutdown: Shutdown,
    tether: Option<Arc<Tether>>,
) -> Result<Why, Problem> {
    let Context { loaded, program, .. } = context;
    let registry = program.build().await?;
    say_hello(&loaded, &backend, &settings, &registry).await?;
    let probes = match loaded.config.worker.listen {
        Some(address) => Some(Probes::serve(Arc::clone(&backend), address).await?),
        None => None,
    };
    let mut worker = Worker::new(backend, registry, settings).host(&host());
    if let Some(probes) = probes {
        worker = worker.listener(probes);
    }
    // Behind the probes: who reads in the log that the worker is ready may ask them at once.
    worker = worker.listener(event::Log);
    if let Some(tether) = tether {
        worker = worker.listener(Arc::clone(&tether)).guard(tether);
    }
    let ended = worker.start(shutdown).await.map_err(|error| {
        Problem::new(Exit::Failed, format_args!("the engine's thread cannot be started: {error}"), "see `ulimit -u`")
    })?;
    if ended.left_behind > 0 {
        return Err(Problem::new(
            Exit::Failed,
            format_args!("{} attempts could not be settled or given back: the store did not answer", ended.left_behind),
            "nothing is lost: their leases run out, then other workers run them again",
        ));
    }
    Ok(ended.why)
}

/// Says once what an operator wants to know of a node that starts.
async fn say_hello(
    loaded: &Loaded,
    backend: &Arc<dyn Backend>,
    settings: &Settings,
    registry: &Registry,
) -> Result<(), Problem> {
    let info = backend.info().await?;
    let queues: Vec<String> = settings.queues.iter().map(|(queue, weight)| format!("{queue}={weight}")).collect();
    let tasks: Vec<String> = registry.names().iter().map(ToString::to_string).collect();
    tracing::info!(
        event = "worker_starting",
        node = %settings.node,
        store = %shown_store(loaded),
        durability = %info.durability,
        queues = %queues.join(","),
        slots = settings.slots,
        tasks = %tasks.join(","),
        schedules = matches!(settings.schedules, Schedules::Fire),
        "worker starting"
    );
    for (queue, tasks) in unserved(settings, registry) {
        tracing::warn!(
            event = "queue_not_served",
            queue = %queue,
            tasks = %tasks.join(","),
            "this worker has handlers of tasks whose queue it does not work on: name it with `--queues`"
        );
    }
    if tasks.is_empty() && settings.slots > 0 {
        tracing::warn!(event = "no_tasks", "this program declares no task: everything it claims will be parked");
    }
    Ok(())
}

/// Queues that tasks of this program wait in by their definition, and that this worker takes nothing from; with the tasks.
/// That may be meant, when other workers do; to a newcomer it is a task that never starts.
fn unserved(settings: &Settings, registry: &Registry) -> BTreeMap<QueueName, Vec<String>> {
    let mut unserved: BTreeMap<QueueName, Vec<String>> = BTreeMap::new();
    if settings.slots == 0 {
        return unserved;
    }
    for entry in registry.names().iter().filter_map(|name| registry.entry(name)) {
        let definition = entry.definition();
        let queue = &definition.options.queue;
        if settings.queues.iter().all(|(served, _)| served != queue) {
            unserved.entry(queue.clone()).or_default().push(definition.name.to_string());
        }
    }
    unserved
}

/// The engine's settings for a role.
pub(crate) fn settings_of(config: &WorkerConfig, node: NodeId, role: Role) -> Settings {
    let fires = match role {
        Role::Worker => config.schedules,
        Role::Scheduler | Role::All => true,
    };
    Settings {
        queues: weighted(&config.queues, |queue| config.weights.get(queue).copied()),
        slots: if role == Role::Scheduler { 0 } else { config.slots },
        lease: config.lease,
        grace: config.grace,
        cancel_grace: config.cancel_grace,
        schedules: if fires { Schedules::Fire } else { Schedules::Leave },
        ..Settings::new(node)
    }
}

/// Queues with weights. Without any, earlier queues come first: by weights that fall steeply, so that a queue which is
/// never empty cannot starve the others for ever.
fn weighted(queues: &[QueueName], weight_of: impl Fn(&QueueName) -> Option<u32>) -> Vec<(QueueName, u32)> {
    if queues.iter().any(|queue| weight_of(queue).is_some()) {
        return queues.iter().map(|queue| (queue.clone(), weight_of(queue).unwrap_or(1))).collect();
    }
    let steps = queues.len().saturating_sub(1).max(1) as f64;
    let weight = |at: usize| f64::from(WEIGHT_FIRST).powf(1.0 - at as f64 / steps).round().max(1.0) as u32;
    queues.iter().enumerate().map(|(at, queue)| (queue.clone(), weight(at))).collect()
}

/// The name of this node, with what stands for the machine and the process put in.
pub(crate) fn node_name(wanted: Option<&NodeId>) -> Result<NodeId, Problem> {
    let process = std::process::id();
    let name = match wanted {
        Some(name) => name.as_str().replace("%h", &host()).replace("%p", &process.to_string()),
        // Containers share names of hosts and numbers of processes across machines.
        None => format!("{}-{process}-{:04x}", host(), fastrand::u16(..)),
    };
    NodeId::new(&name).map_err(|error| Problem::usage(error, "choose another with `--name`"))
}

/// The name of this machine.
pub(crate) fn host() -> String {
    let file = std::fs::read_to_string("/proc/sys/kernel/hostname").ok();
    let ask =
        || std::process::Command::new("hostname").output().ok().and_then(|out| String::from_utf8(out.stdout).ok());
    let name = file.or_else(|| std::env::var("COMPUTERNAME").ok()).or_else(ask).unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(queues: &str) -> Vec<u32> {
        let sources = windlass::config::Sources::new().flag("worker.queues", "--queues", queues);
        let config = sources.load().unwrap().config.worker;
        settings_of(&config, NodeId::known("w"), Role::Worker).queues.into_iter().map(|(_, weight)| weight).collect()
    }

    #[test]
    fn earlier_queues_come_first_unless_one_has_a_weight() {
        assert_eq!(weights("a"), [1000]);
        assert_eq!(weights("a,b"), [1000, 1]);
        assert_eq!(weights("a,b,c"), [1000, 32, 1]);
        assert_eq!(weights("a=3,b"), [3, 1]);
    }

    #[test]
    fn a_scheduler_has_no_slots_and_fires() {
        let config = windlass::config::Config::default().worker;
        let settings = settings_of(&config, NodeId::known("s"), Role::Scheduler);
        assert_eq!((settings.slots, settings.schedules), (0, Schedules::Fire));
        assert_eq!(settings_of(&config, NodeId::known("w"), Role::Worker).schedules, Schedules::Leave);
    }

    #[tokio::test]
    async fn queues_of_the_programs_own_tasks_that_nobody_asked_for_are_found() {
        use windlass::prelude::*;

        #[derive(Task, Serialize, Deserialize)]
        #[task(name = "mail", queue = "email")]
        struct Mail {}
        let handler = async |_: Mail, _: Cx| Ok::<(), TaskError>(());
        let registry = App::new("shop").task(handler).build().await.unwrap();

        let mut settings = Settings::new(NodeId::known("w"));
        assert_eq!(
            unserved(&settings, &registry),
            BTreeMap::from([("email".parse().unwrap(), vec!["mail".to_owned()])])
        );
        settings.queues.push(("email".parse().unwrap(), 1));
        assert!(unserved(&settings, &registry).is_empty());
        let scheduler = Settings { slots: 0, ..Settings::new(NodeId::known("s")) };
        assert!(unserved(&scheduler, &registry).is_empty(), "a scheduler runs nothing");
    }

    #[test]
    fn a_name_says_where_it_runs() {
        let name = node_name(Some(&NodeId::known("w1@%h"))).unwrap();
        assert_eq!(name.as_str(), format!("w1@{}", host()));
        assert_ne!(node_name(None).unwrap(), node_name(None).unwrap());
    }
}
