//! A worker behind a bridge that kills itself at the moment that [`DIES`] names; without it, it lives.
//!
//! It has bridge, queue and store from the environment, and is made by hand: the command line has no place for a transport
//! whose process dies between two steps. What others must find silent before they take it over is silent after a second.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use tokio::signal::unix::{SignalKind, signal};
use windlass::bridge::{Bridge, Transport};
use windlass::bridges::BridgeUrl;
use windlass::bridges::url::{Over, Wire};
use windlass::prelude::*;
use windlass::{Backend, event};
use windlass_bridges::carrier::{TaskiqProfile, TaskiqTopology};
use windlass_bridges::celery::{self, Celery, ResultPlace};
use windlass_bridges::taskiq;
use windlass_chaos::{DIES, Doom, LEDGER, Ledger, Moment, Mortal};

const SLOTS: usize = 4;
const LEASE: Duration = Duration::from_secs(2);
/// Who gives no sign of life for so long is dead.
const SILENT: Duration = Duration::from_secs(1);
/// How long a task waits that wants to run later.
const LATER: Duration = Duration::from_secs(1);

/// Writes its number into the ledger and returns it; one that wants to does so at a later attempt.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "chaos.visit", retries = 20, output = u32)]
struct Visit {
    number: u32,
    later: bool,
}

struct House {
    ledger: Ledger,
    doom: Option<Arc<Doom>>,
}

async fn visit(task: Visit, cx: Cx<House>) -> Result<u32, TaskError> {
    if task.later && cx.attempt == 1 {
        return Err(TaskError::retry_after(LATER, "later"));
    }
    cx.state().ledger.ran(task.number)?;
    if let Some(doom) = &cx.state().doom {
        doom.passes(Moment::Running, 1);
    }
    Ok(task.number)
}

/// Where it works.
struct Site {
    url: BridgeUrl,
    results: windlass_redis::Location,
    queue: QueueName,
    node: NodeId,
    tasks: Vec<String>,
}

impl Site {
    async fn transport(self, store: Arc<dyn Backend>) -> Result<Arc<dyn Transport>> {
        let server = self.url.server().to_owned();
        match (self.url.wire, self.url.over) {
            (Wire::Celery, Over::Redis) => {
                Ok(Arc::new(Celery::on_redis(server.parse()?, self.of_celery(), store).await?))
            }
            (Wire::Celery, Over::Amqp) => {
                Ok(Arc::new(Celery::on_amqp(server.parse()?, self.of_celery(), store).await?))
            }
            (Wire::TaskIq, Over::Redis) if self.url.get("kind") == Some("stream") => {
                let groups = taskiq::Groups { idle: SILENT, ..taskiq::Groups::default() };
                Ok(taskiq::open_streams(server.parse()?, groups, self.of_taskiq()).await?)
            }
            (Wire::TaskIq, Over::Redis) => Ok(taskiq::open_lists(server.parse()?, self.of_taskiq()).await?),
            (Wire::TaskIq, Over::Amqp) => {
                let queues = vec![self.queue.clone()];
                let topology = TaskiqTopology { queues, ..TaskiqTopology::of(TaskiqProfile::V0_6) };
                Ok(taskiq::open_amqp(server.parse()?, &topology, self.of_taskiq()).await?)
            }
            (Wire::Bare, _) => bail!("nobody answers bare JSON"),
        }
    }

    fn of_celery(self) -> celery::Options {
        celery::Options {
            queues: vec![self.queue],
            registered: self.tasks,
            results: ResultPlace::Redis(self.results),
            visibility: SILENT,
            ..celery::Options::new(self.node.as_str())
        }
    }

    fn of_taskiq(self) -> taskiq::Options {
        taskiq::Options {
            queues: vec![self.queue],
            registered: self.tasks,
            results: Some(taskiq::ResultOptions::new(self.results)),
            silent_after: SILENT,
            ..taskiq::Options::default()
        }
    }
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is set"))
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().json().flatten_event(true).with_env_filter("info,lapin=off").init();
    let doom = std::env::var(DIES).ok().map(|text| text.parse::<Doom>()).transpose()?.map(Arc::new);
    let node = NodeId::new(&std::env::args().next_back().context("`--name NAME` comes last")?)?;
    let house_doom = doom.clone();
    let open =
        async move || anyhow::Ok(House { ledger: Ledger::open(&PathBuf::from(variable(LEDGER)?))?, doom: house_doom });
    let registry = App::new("chaos").state(open).task(visit).build().await?;
    let url: BridgeUrl = variable("CHAOS_BRIDGE")?.parse()?;
    let results = url.get("results").context("the bridge names the place of its results")?.parse()?;
    let queue = QueueName::new(&variable("CHAOS_QUEUE")?)?;
    let tasks = registry.names().iter().map(ToString::to_string).collect();
    let store = windlass::connect(&variable("WINDLASS_STORE")?).await?;
    let settings =
        Settings { queues: vec![(queue.clone(), 1)], slots: SLOTS, lease: LEASE, ..Settings::new(node.clone()) };
    let mut transport = Site { url, results, queue, node, tasks }.transport(Arc::clone(&store)).await?;
    if let Some(doom) = &doom {
        transport = Arc::new(Mortal::new(transport, Arc::clone(doom)));
    }
    let mut worker = Worker::new(Arc::new(Bridge::new(store, transport)), registry, settings).listener(event::Log);
    if let Some(doom) = doom {
        worker = worker.listener(doom);
    }
    let shutdown = Shutdown::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let begun = shutdown.clone();
    tokio::spawn(async move {
        terminate.recv().await;
        begun.begin(ShutdownStep::Graceful);
    });
    let ended = worker.start(shutdown).await?;
    anyhow::ensure!(ended.left_behind == 0, "{} attempts were left behind", ended.left_behind);
    Ok(())
}
