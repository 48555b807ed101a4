//! The worker of the suite: ours, in the place of one from Python.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use windlass::bridge::{Bridge, Transport};
use windlass::worker::{Settings, Shutdown, ShutdownStep, Worker};
use windlass::{Backend, NodeId};
use windlass_bridges::carrier::{CeleryQueues, TaskiqProfile, TaskiqTopology};
use windlass_bridges::celery::{Celery, Options, ResultPlace};
use windlass_bridges::taskiq;
use windlass_redis::RedisStore;

use crate::environment::{BrokerUrl, Environment, Protocol, RESULT_EXPIRES, ResultUrl, TaskIqKind};
use crate::tasks;

/// How long a handler that was told to end may take: a client waits for what became of it.
const CANCEL_GRACE: Duration = Duration::from_millis(300);
/// How often a task of TaskIQ runs whose label asks for retries and says no number.
const TASKIQ_RUNS: u32 = 5;
/// The longest that others wait for the tasks of a worker that is gone.
const LEASE: (Duration, Duration) = (Duration::from_secs(3), Duration::from_secs(10));

/// Works until it is told to stop.
///
/// # Errors
/// When a server cannot be used.
pub async fn run(protocol: Protocol, environment: Environment, shutdown: Shutdown) -> anyhow::Result<()> {
    let node = NodeId::new(&environment.hostname).context("INTEROP_HOSTNAME is the name of a node")?;
    let store = store(&environment).await?;
    let registry = match protocol {
        Protocol::Celery => windlass_bridges::celery::with_builtins(tasks::app().build().await?),
        Protocol::TaskIq => tasks::app().build().await?,
    };
    let names = registry.names().iter().map(ToString::to_string).collect();
    let transport: Arc<dyn Transport> = match protocol {
        Protocol::Celery => Arc::new(celery(&environment, names, Arc::clone(&store)).await?),
        Protocol::TaskIq => taskiq(&environment, names).await?,
    };
    let settings = Settings {
        queues: environment.queues.iter().map(|queue| (queue.clone(), 1)).collect(),
        slots: environment.concurrency as usize,
        lease: environment.visibility.clamp(LEASE.0, LEASE.1),
        cancel_grace: CANCEL_GRACE,
        ..Settings::new(node)
    };
    // Who looks at a worker from Python sees what it has reserved.
    let ahead = match protocol {
        Protocol::Celery => environment.prefetch as usize,
        Protocol::TaskIq => 0,
    };
    let bridge = Arc::new(Bridge::new(store, transport).with_ahead(ahead));
    let ended = Worker::new(bridge, registry, settings).start(shutdown).await?;
    anyhow::ensure!(ended.left_behind == 0, "{} attempts were left behind", ended.left_behind);
    Ok(())
}

/// Told to stop by SIGTERM or SIGINT; twice means at once.
///
/// # Errors
/// When signals cannot be heard.
pub fn heed_signals(shutdown: Shutdown) -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(async move {
        for step in [ShutdownStep::Graceful, ShutdownStep::Immediate] {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            shutdown.begin(step);
        }
    });
    Ok(())
}

async fn store(environment: &Environment) -> anyhow::Result<Arc<dyn Backend>> {
    match environment.store() {
        Some(location) => {
            let store = RedisStore::open(location.clone(), windlass_redis::Options::default()).await;
            Ok(Arc::new(store.context("the store in the Redis of the results")?))
        }
        // Messages in RabbitMQ, answers to `rpc://`: there is no server that workers could share.
        None => Ok(windlass::connect("memory:").await?),
    }
}

async fn celery(environment: &Environment, names: Vec<String>, store: Arc<dyn Backend>) -> anyhow::Result<Celery> {
    let options = Options {
        queues: environment.queues.clone(),
        default_queue: environment.default_queue().to_string(),
        registered: names,
        results: match &environment.result {
            ResultUrl::Redis(location) => ResultPlace::Redis(location.clone()),
            ResultUrl::Rpc => ResultPlace::Replies,
        },
        result_expires: RESULT_EXPIRES,
        key_prefix: environment.key_prefix.clone(),
        track_started: true,
        extended: environment.result_extended,
        events: environment.events,
        visibility: environment.visibility,
        declared: if environment.quorum {
            CeleryQueues::Quorum
        } else {
            CeleryQueues::Classic { max_priority: environment.max_priority }
        },
        ..Options::new(&environment.hostname)
    };
    let opened = match &environment.broker {
        BrokerUrl::Redis(location) => Celery::on_redis(location.clone(), options, store).await,
        BrokerUrl::Amqp(location) => Celery::on_amqp(location.clone(), options, store).await,
    };
    Ok(opened?)
}

async fn taskiq(environment: &Environment, names: Vec<String>) -> anyhow::Result<Arc<dyn Transport>> {
    let results = match &environment.result {
        ResultUrl::Redis(location) => Some(taskiq::ResultOptions {
            keep: taskiq::Keep::For(RESULT_EXPIRES),
            serializer: environment.serializer,
            ..taskiq::ResultOptions::new(location.clone())
        }),
        ResultUrl::Rpc => None,
    };
    let options = taskiq::Options {
        queues: environment.queues.clone(),
        registered: names,
        results,
        default_runs: TASKIQ_RUNS,
        silent_after: environment.idle.clamp(Duration::from_secs(1), Duration::from_secs(60)),
    };
    let groups = taskiq::Groups { idle: environment.idle, ..taskiq::Groups::default() };
    let opened = match (&environment.broker, environment.taskiq_kind) {
        (BrokerUrl::Redis(location), TaskIqKind::List) => taskiq::open_lists(location.clone(), options).await,
        (BrokerUrl::Redis(location), TaskIqKind::Stream) => {
            taskiq::open_streams(location.clone(), groups, options).await
        }
        (BrokerUrl::Redis(location), TaskIqKind::PubSub) => taskiq::open_channels(location.clone(), options).await,
        (BrokerUrl::Amqp(location), TaskIqKind::AioPika) => {
            let profile = TaskiqTopology::of(TaskiqProfile::V0_6);
            let topology = TaskiqTopology { queues: environment.queues.clone(), ..profile };
            taskiq::open_amqp(location.clone(), &topology, options).await
        }
        (BrokerUrl::Redis(_), TaskIqKind::AioPika) | (BrokerUrl::Amqp(_), _) => {
            anyhow::bail!("INTEROP_BROKER and INTEROP_TASKIQ_KIND do not go together")
        }
    };
    Ok(opened?)
}
