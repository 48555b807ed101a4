//! `windlass worker`, `scheduler` and `all`: the roles of a node.

mod flags;
mod relay;

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::runtime::Handle;
use windlass::bridges::url::Wire;
use windlass::bridges::{self, BridgeUrl, OpenError, Side};
use windlass::config::{Config, Loaded, WorkerConfig};
use windlass::worker::{Schedules, Settings, Shutdown, Why, Worker};
use windlass::{Backend, NodeId, QueueName, Registry, event};

use crate::args::{Cli, Command, Global};
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::logs::{self, Labels, Stream};
use crate::parent::{self, Parent};
use crate::probes::Probes;
use crate::program::Program;
use crate::settings::{self, shown_store};
use crate::signals::Signals;
use crate::supervisor::{self, Place, Tether};

pub(crate) use flags::{AllArgs, Args, ChildFlags, NodeFlags, SchedulerArgs, WorkFlags};

/// The heaviest queue, when earlier queues come first.
const WEIGHT_FIRST: u32 = windlass::worker::WEIGHT_MAX;

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
    let (node, overrides) = match &cli.command {
        Command::Worker(args) => (&args.node, args.overrides()),
        Command::All(args) => (&args.node, [args.work.overrides(), args.processes.overrides()].concat()),
        Command::Dev(args) => return load(args.work.overrides()).map(|config| Some(config.threads)),
        Command::Scheduler(_) => return Ok(Some(1)),
        _ => return Ok(None),
    };
    let config = load(overrides)?;
    let supervises = config.processes > 0 && node.place().is_none();
    // One hears the children, one may wait for the store.
    Ok(Some(if supervises { 2 } else { config.threads }))
}

pub(crate) async fn worker(global: &Global, args: Args, program: Program) -> Outcome {
    start(Context::new(global, args.overrides(), program)?, Role::Worker, &args.node).await
}

pub(crate) async fn scheduler(global: &Global, args: SchedulerArgs, program: Program) -> Outcome {
    start(Context::new(global, args.overrides(), program)?, Role::Scheduler, &args.node).await
}

pub(crate) async fn all(global: &Global, args: AllArgs, program: Program) -> Outcome {
    let overrides = [args.node.overrides(), args.work.overrides(), args.processes.overrides()].concat();
    start(Context::new(global, overrides, program)?, Role::All, &args.node).await
}

/// Runs a node until it is told to stop.
async fn start(context: Context, role: Role, flags: &NodeFlags) -> Outcome {
    let config = &context.loaded.config.worker;
    let node = node_name(wanted_name(&context.loaded)?.as_ref())?;
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
    let settings = settings_of(&context.loaded.config, node, role);
    run_node(context, role, backend, settings, shutdown, None).await?;
    Ok(stops.exit())
}

/// Runs a child of a supervisor: a node that may end its process for the sake of one handler.
async fn start_child(mut context: Context, role: Role, place: Place) -> Outcome {
    let shutdown = Shutdown::new();
    let tether = Arc::new(Tether::take(&context.loaded.config.worker, shutdown.clone())?);
    let mut signals = Signals::catch();
    let drivers = driver_thread()?;
    let Some(backend) = signals.unless_stopped(open_on(&drivers, &context)).await.transpose()? else {
        return Ok(Exit::Ok);
    };
    let stops = signals.heed(Arc::clone(&backend), place.node.clone(), shutdown.clone());
    let config = &mut context.loaded.config.worker;
    config.listen = config.listen.map(|first| place.listen(first));
    let settings = settings_of(&context.loaded.config, place.node, role);
    match run_node(context, role, backend, settings, shutdown, Some(Isolated { tether, drivers })).await? {
        Why::Told => Ok(stops.exit()),
        Why::Stuck => Ok(Exit::Stuck),
        Why::OutOfMemory => Ok(Exit::OutOfMemory),
    }
}

/// How a child is kept apart from its handlers.
#[derive(Debug)]
pub(crate) struct Isolated {
    tether: Arc<Tether>,
    drivers: Handle,
}

/// A thread for the drivers of store and bridge: those that work in the background would otherwise do so on the threads of
/// handlers, and when all of these are blocked nobody could settle what blocks them.
fn driver_thread() -> Result<Handle, Problem> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let handle = runtime.handle().clone();
    std::thread::Builder::new()
        .name("windlass-store".to_owned())
        .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
    Ok(handle)
}

async fn open_on(drivers: &Handle, context: &Context) -> Result<Arc<dyn Backend>, Problem> {
    let loaded = context.loaded.clone();
    let opening = drivers.spawn(async move { settings::open(&loaded, settings::Missing::Create).await });
    opening.await.map_err(thread_has_ended)?
}

fn thread_has_ended(error: tokio::task::JoinError) -> Problem {
    Problem::new(Exit::Failed, format_args!("the thread of the drivers has ended: {error}"), "please report it")
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
    role: Role,
    backend: Arc<dyn Backend>,
    settings: Settings,
    shutdown: Shutdown,
    isolated: Option<Isolated>,
) -> Result<Why, Problem> {
    let Context { loaded, program, .. } = context;
    let bridge = settings::bridge(&loaded)?;
    let mut registry = program.build().await?;
    let mut sources = None;
    if role == Role::Scheduler {
        registry = relay::relaying(registry, bridge.as_ref(), &settings).await?;
        sources = relay::fire_theirs(bridge.as_ref()).await?;
    }
    say_hello(&loaded, bridge.as_ref(), &backend, &settings, &registry).await?;
    let backend = match bridge {
        Some(url) if role != Role::Scheduler => {
            registry = bridges::with_builtins(&url, registry);
            let drivers = isolated.as_ref().map_or_else(Handle::current, |isolated| isolated.drivers.clone());
            let side = side_of(&settings, &registry);
            drivers.spawn(bridged(url, side, backend)).await.map_err(thread_has_ended)??
        }
        // A scheduler takes nothing from the other side.
        Some(_) | None => backend,
    };
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
    if let Some(Isolated { tether, .. }) = isolated {
        worker = worker.listener(Arc::clone(&tether)).guard(tether);
    }
    let ended = worker.start(shutdown).await.map_err(|error| {
        Problem::new(Exit::Failed, format_args!("the engine's thread cannot be started: {error}"), "see `ulimit -u`")
    })?;
    drop(sources);
    if ended.left_behind > 0 {
        return Err(Problem::new(
            Exit::Failed,
            format_args!("{} attempts could not be settled or given back: the store did not answer", ended.left_behind),
            "nothing is lost: their leases run out, then other workers run them again",
        ));
    }
    Ok(ended.why)
}

/// What the other side is told of this node.
fn side_of(settings: &Settings, registry: &Registry) -> Side {
    Side {
        node: settings.node.clone(),
        queues: settings.queues.iter().map(|(queue, _)| queue.clone()).collect(),
        tasks: registry.names().iter().map(ToString::to_string).collect(),
    }
}

/// The store with what other programs send in front of it.
async fn bridged(url: BridgeUrl, side: Side, store: Arc<dyn Backend>) -> Result<Arc<dyn Backend>, Problem> {
    bridges::open(&url, side, store).await.map_err(|error| not_open(&url, &error))
}

fn not_open(url: &BridgeUrl, error: &OpenError) -> Problem {
    if matches!(error, OpenError::Url(_)) {
        return Problem::usage(error, "see docs/bridges.md for what the URL of a bridge may say");
    }
    Problem::new(
        Exit::Unreachable,
        format_args!("the bridge {url} cannot be opened: {error}"),
        "start the server, or correct the URL: `windlass config show bridge --origin` says where it comes from",
    )
}

/// Says once what an operator wants to know of a node that starts.
async fn say_hello(
    loaded: &Loaded,
    bridge: Option<&BridgeUrl>,
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
        bridge = bridge.map(tracing::field::display),
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
    if tasks.is_empty() && settings.slots > 0 && !registry.runs_any() {
        tracing::warn!(event = "no_tasks", "this program declares no task: everything it claims will be parked");
    }
    Ok(())
}

/// Queues that tasks of this program wait in by their definition, and that this worker takes nothing from; with the tasks.
/// That may be meant, when other workers do; to a newcomer it is a task that never starts.
fn unserved(settings: &Settings, registry: &Registry) -> BTreeMap<QueueName, Vec<String>> {
    let mut unserved: BTreeMap<QueueName, Vec<String>> = BTreeMap::new();
    if settings.slots == 0 || registry.runs_any() {
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
pub(crate) fn settings_of(config: &Config, node: NodeId, role: Role) -> Settings {
    let Config { worker: config, relay, .. } = config;
    let fires = match role {
        Role::Worker => config.schedules,
        Role::Scheduler | Role::All => true,
    };
    let (queues, slots) = match role {
        // It runs nothing; what it sends waits for a broker, as tasks wait for a handler.
        Role::Scheduler if relay.is_empty() => (config.queues.clone(), 0),
        Role::Scheduler => (relay.clone(), config.slots),
        Role::Worker | Role::All => (config.queues.clone(), config.slots),
    };
    Settings {
        queues: weighted(&queues, |queue| config.weights.get(queue).copied()),
        slots,
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

/// The name that was chosen; Celery's monitors want what is made up to have the machine behind an `@`.
fn wanted_name(loaded: &Loaded) -> Result<Option<NodeId>, Problem> {
    let for_celery = settings::bridge(loaded)?.is_some_and(|url| url.wire == Wire::Celery);
    let made_up = || for_celery.then(|| NodeId::known(&format!("windlass-{:04x}@%h", fastrand::u16(..))));
    Ok(loaded.config.worker.node.clone().or_else(made_up))
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
        let config = sources.load().unwrap().config;
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
        let config = Config::default();
        let settings = settings_of(&config, NodeId::known("s"), Role::Scheduler);
        assert_eq!((settings.slots, settings.schedules), (0, Schedules::Fire));
        assert_eq!(settings_of(&config, NodeId::known("w"), Role::Worker).schedules, Schedules::Leave);
    }

    #[test]
    fn a_scheduler_that_relays_has_slots_for_the_queues_of_its_relay() {
        let config = Config { relay: vec![QueueName::known("reports")], ..Config::default() };
        let settings = settings_of(&config, NodeId::known("s"), Role::Scheduler);
        assert_eq!((settings.slots, settings.schedules), (config.worker.slots, Schedules::Fire));
        assert_eq!(settings.queues, [(QueueName::known("reports"), WEIGHT_FIRST)]);
        assert_eq!(settings_of(&config, NodeId::known("w"), Role::Worker).queues[0].0, QueueName::default());
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
