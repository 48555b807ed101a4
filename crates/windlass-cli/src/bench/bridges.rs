//! `bench bridges`: how fast foreign messages are worked off, against the same store's own tasks and against the workers of
//! those who sent them.
//!
//! Messages are those of Celery's and TaskIQ's clients, and lie in the server before the worker starts. Every task does nothing
//! and has its result stored where its client looks, by the workers of those products too. The runs alternate, so that
//! whatever else the machine does hits all of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum as _;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use serde_json::json;
use windlass::bridges::redis::{Command, Line};
use windlass::bridges::{self, BridgeUrl, Outgoing, Side};
use windlass::envelope::PUSH_MAX;
use windlass::worker::SLOTS_MAX;
use windlass::{Args as TaskArgs, Backend, Client, Envelope, NodeId, QueueName, TaskId, TaskName};

use super::bed::{self, Place, Watch, Working};
use super::peer::Peer;
use super::stats::{Runs, thousands};
use super::{Bench, Goal, Repeat, Report, server};
use crate::exit::{Exit, Problem};

/// Messages that are on their way at once.
const SENDING: usize = 500;
/// Results are looked at by nobody; they go by themselves.
const RESULTS_EXPIRE: Duration = Duration::from_secs(120);

/// How fast messages of Celery, TaskIQ and of nobody's framework are worked off
///
/// Needs a Redis or Valkey server. Other products work on it with names of their own; `bench/README.md` says how they are
/// installed.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench bridges --store redis://127.0.0.1/0
  windlass bench bridges --store redis://127.0.0.1/0 --rabbitmq amqp://guest:guest@127.0.0.1/%2f
  windlass bench bridges --store redis://127.0.0.1/0 --kind celery --kind taskiq_stream
  windlass bench bridges --store redis://127.0.0.1/0 --peer celery --peer taskiq --runs 5")]
pub(crate) struct Args {
    /// Messages of each kind
    #[arg(long, value_name = "COUNT", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    tasks: u32,
    /// Tasks that run at once; the most that are taken in one step
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=SLOTS_MAX as i64))]
    slots: u32,
    /// A RabbitMQ server: messages of Celery and TaskIQ over it are measured as well, into the same store
    #[arg(long, value_name = "URL")]
    rabbitmq: Option<String>,
    /// Only this kind of messages; repeat it for several
    #[arg(long, value_name = "KIND")]
    kind: Vec<Kind>,
    /// A product to compare with: celery, taskiq; repeat it for both
    #[arg(long, value_name = "NAME")]
    peer: Vec<Peer>,
    /// Tasks that those drain; they are slower
    #[arg(long, value_name = "COUNT", default_value_t = 3_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    peer_tasks: u32,
    /// The folder of the products
    #[arg(long, value_name = "FOLDER", default_value = "bench/peers")]
    peers: PathBuf,
    #[command(flatten)]
    pub(super) repeat: Repeat,
}

/// A kind of message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    Celery,
    #[value(name = "taskiq_list")]
    TaskIqList,
    #[value(name = "taskiq_stream")]
    TaskIqStream,
    #[value(name = "bare_json")]
    Bare,
    #[value(name = "celery_rabbitmq")]
    CeleryOverRabbitMq,
    #[value(name = "taskiq_rabbitmq")]
    TaskIqOverRabbitMq,
}

impl Kind {
    const OVER_REDIS: [Self; 4] = [Self::Celery, Self::TaskIqList, Self::TaskIqStream, Self::Bare];
    const OVER_RABBITMQ: [Self; 2] = [Self::CeleryOverRabbitMq, Self::TaskIqOverRabbitMq];

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// The product whose worker is measured on the same messages.
    fn worker(self) -> Option<Peer> {
        match self {
            Self::Celery | Self::CeleryOverRabbitMq => Some(Peer::Celery),
            Self::TaskIqStream => Some(Peer::Taskiq),
            Self::TaskIqList | Self::Bare | Self::TaskIqOverRabbitMq => None,
        }
    }

    /// How many times as fast as that worker we mean to be.
    fn goal(self, times: f64) -> Option<Goal> {
        let (what, least) = match self {
            Self::Celery => ("celery, of Celery's own worker", 30.0),
            Self::CeleryOverRabbitMq => ("celery_rabbitmq, of Celery's own worker", 15.0),
            Self::TaskIqStream => ("taskiq_stream, of TaskIQ's own worker", 15.0),
            Self::TaskIqList | Self::Bare | Self::TaskIqOverRabbitMq => return None,
        };
        Some(Goal::at_least(what, times, least, "x"))
    }
}

/// The servers that messages and results are in.
struct Servers {
    redis: String,
    rabbitmq: Option<String>,
    line: Line,
}

impl Servers {
    /// The kinds that can be measured, or those of them that are wanted.
    fn kinds(&self, wanted: &[Kind]) -> Result<Vec<Kind>, Problem> {
        if self.rabbitmq.is_none() && wanted.iter().any(|kind| Kind::OVER_RABBITMQ.contains(kind)) {
            return Err(Problem::usage(
                "this kind needs a RabbitMQ server",
                "add --rabbitmq amqp://guest:guest@127.0.0.1/%2f",
            ));
        }
        let over_rabbitmq = self.rabbitmq.iter().flat_map(|_| Kind::OVER_RABBITMQ);
        let all = Kind::OVER_REDIS.into_iter().chain(over_rabbitmq);
        Ok(all.filter(|kind| wanted.is_empty() || wanted.contains(kind)).collect())
    }

    /// Where messages of a kind are.
    fn broker(&self, kind: Kind) -> &str {
        match (&self.rabbitmq, kind) {
            (Some(rabbitmq), Kind::CeleryOverRabbitMq | Kind::TaskIqOverRabbitMq) => rabbitmq,
            _ => &self.redis,
        }
    }

    fn bridge(&self, kind: Kind) -> Result<BridgeUrl, Problem> {
        let (server, expire) = (self.broker(kind), RESULTS_EXPIRE.as_secs());
        let mark = if server.contains('?') { '&' } else { '?' };
        let results = format!("results={}&results-expire={expire}", self.redis);
        let url = match kind {
            Kind::Celery | Kind::CeleryOverRabbitMq => format!("celery+{server}{mark}{results}"),
            Kind::TaskIqList => format!("taskiq+{server}{mark}kind=list&{results}"),
            Kind::TaskIqStream => format!("taskiq+{server}{mark}kind=stream&{results}"),
            Kind::TaskIqOverRabbitMq => format!("taskiq+{server}{mark}{results}"),
            Kind::Bare => format!("list+{server}"),
        };
        url.parse().map_err(|error| Problem::usage(error, "see `windlass bench bridges --help`"))
    }

    /// Sends messages as a client of that product does, over its own connection.
    async fn send(&self, kind: Kind, queue: &QueueName, count: u32) -> Result<(), Problem> {
        if kind == Kind::Bare {
            return self.push_objects(queue, count).await;
        }
        let url = self.bridge(kind)?;
        let sender = match kind {
            Kind::Celery | Kind::CeleryOverRabbitMq => {
                Outgoing::Celery(bridges::celery_producer(&url, "bench@localhost").await.map_err(failed)?)
            }
            _ => Outgoing::TaskIq(bridges::taskiq_producer(&url, std::slice::from_ref(queue)).await.map_err(failed)?),
        };
        let one = async |_: u32| -> Result<(), Problem> {
            let args = TaskArgs::parse(r#"{"payload": ""}"#).map_err(failed)?;
            let task = Envelope::new(TaskName::known("bench.noop"), queue.clone(), args);
            match &sender {
                Outgoing::Celery(producer) => producer.enqueue(&task).await.map(drop).map_err(failed),
                Outgoing::TaskIq(producer) => producer.enqueue(&task).await.map(drop).map_err(failed),
            }
        };
        stream::iter(0..count).map(one).buffer_unordered(SENDING).try_for_each(async |()| Ok(())).await
    }

    async fn push_objects(&self, queue: &QueueName, count: u32) -> Result<(), Problem> {
        let object = || json!({"task": "bench.noop", "args": {"payload": ""}, "id": TaskId::random()}).to_string();
        let mut left = count as usize;
        while left > 0 {
            let trip = left.min(SENDING);
            let commands: Vec<Command> = (0..trip).map(|_| words(["LPUSH", queue.as_str(), &object()])).collect();
            self.line.ask_all(&commands).await?;
            left -= trip;
        }
        Ok(())
    }

    /// Forgets a queue.
    async fn delete(&self, kind: Kind, queue: &QueueName) -> Result<(), Problem> {
        self.line.ask(&words(["DEL", queue.as_str()])).await?;
        if Kind::OVER_RABBITMQ.contains(&kind) {
            let url = self.bridge(Kind::CeleryOverRabbitMq)?;
            let producer = bridges::celery_producer(&url, "bench@localhost").await.map_err(failed)?;
            producer.delete(queue).await.map_err(failed)?;
            producer.close().await;
        }
        Ok(())
    }
}

fn failed(error: impl std::fmt::Display) -> Problem {
    Problem::new(Exit::Failed, error, "see whether the server answers")
}

fn words<const N: usize>(words: [&str; N]) -> Command {
    words.map(|word| word.as_bytes().to_vec()).into()
}

/// What was measured of a kind: ours, and the worker that it replaces.
struct Measured {
    kind: Kind,
    ours: Runs,
    theirs: Runs,
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let Some(server) = bench.place.server().filter(|server| server.kind() == server::Kind::Redis) else {
        return Err(Problem::usage("bridges are measured on Redis", "add --store redis://127.0.0.1/0"));
    };
    let redis = server::without_parameters(server.url(), &["namespace", "schema", "connections"]);
    let line = Line::to(redis.parse().map_err(|error| Problem::usage(error, "see `windlass bench bridges --help`"))?);
    let servers = Servers { redis, rabbitmq: args.rabbitmq.clone(), line };
    for peer in &args.peer {
        peer.check(&args.peers)?;
    }
    let mut native = Runs::default();
    let mut measured: Vec<Measured> = servers.kinds(&args.kind)?.into_iter().map(Measured::of).collect();
    for number in 1..=args.repeat.runs {
        let say = |what: &str, rate: &Runs| {
            bench.progress(format_args!("run {number} of {}: {what} {}", args.repeat.runs, rate.text("tasks/s")));
        };
        native.add(drain_native(&bench.place, args).await?);
        say("own tasks", &native);
        for Measured { kind, ours, theirs } in &mut measured {
            ours.add(drain_bridge(&bench.place, args, *kind, &servers).await?);
            say(&kind.name(), ours);
            if let Some(peer) = kind.worker().filter(|peer| args.peer.contains(peer)) {
                let (broker, results) = (servers.broker(*kind), Some(servers.redis.as_str()));
                let said = peer.run_with_results(&args.peers, broker, results, args.peer_tasks, 2).await?;
                theirs.add(said.drain_tasks_per_s);
                say(&format!("{} by the worker of {}", kind.name(), peer.name()), theirs);
            }
        }
    }
    Ok(report(bench, args, &native, &measured))
}

impl Measured {
    fn of(kind: Kind) -> Self {
        Self { kind, ours: Runs::default(), theirs: Runs::default() }
    }
}

fn report(bench: &Bench, args: &Args, native: &Runs, measured: &[Measured]) -> Report {
    let mut report = Report::new("bridges", bench.place.kind());
    report.put("tasks", json!(args.tasks), thousands(args.tasks.into()));
    report.put("slots", json!(args.slots), args.slots.to_string());
    report.put("runs", json!(args.repeat.runs), args.repeat.runs.to_string());
    report.rate("native_tasks_per_s", native, "tasks/s");
    for Measured { kind, ours, theirs } in measured {
        let name = kind.name();
        report.rate(&format!("{name}_tasks_per_s"), ours, "tasks/s");
        let share = 100.0 * ours.median() / native.median().max(1e-9);
        report.put(&format!("{name}_share_of_native"), json!(share), format!("{share:.1} %"));
        if let Some(peer) = kind.worker().filter(|peer| args.peer.contains(peer)) {
            report.rate(&format!("{name}_by_worker_of_{}", peer.name()), theirs, "tasks/s");
            if let Some(goal) = kind.goal(ours.median() / theirs.median().max(1e-9)) {
                report.goal(goal);
            }
        }
    }
    report
}

/// The same store's own tasks.
async fn drain_native(place: &Place, args: &Args) -> Result<f64, Problem> {
    let open = place.open(bed::keep_everything()).await?;
    let queue = bed::own_queue()?;
    let client = Client::new(Arc::clone(&open.backend));
    let mut left = args.tasks as usize;
    while left > 0 {
        let count = left.min(PUSH_MAX);
        client.push(bed::noops(&queue, count, 0)?).await?;
        left -= count;
    }
    let rate = drain(&open.backend, &queue, args).await?;
    drop(client);
    open.close(&queue).await?;
    Ok(rate)
}

/// Messages of a kind.
async fn drain_bridge(place: &Place, args: &Args, kind: Kind, servers: &Servers) -> Result<f64, Problem> {
    let open = place.open(bed::keep_everything()).await?;
    let queue = bed::own_queue()?;
    let registry = bed::noop_registry().await?;
    let side = Side {
        node: NodeId::known(&format!("bench-{:08x}", fastrand::u32(..))),
        queues: vec![queue.clone()],
        tasks: registry.names().iter().map(ToString::to_string).collect(),
    };
    // Before the messages: what is sent to a stream without a group is not seen.
    let bridge = bridges::open(&servers.bridge(kind)?, side, Arc::clone(&open.backend)).await.map_err(failed)?;
    servers.send(kind, &queue, args.tasks).await?;
    let rate = drain(&bridge, &queue, args).await?;
    drop(bridge);
    servers.delete(kind, &queue).await?;
    open.close(&queue).await?;
    Ok(rate)
}

/// Tasks a second from the start of a worker until the last one has ended.
async fn drain(backend: &Arc<dyn Backend>, queue: &QueueName, args: &Args) -> Result<f64, Problem> {
    let watch = Arc::new(Watch::default());
    let began = Instant::now();
    let working = Working::start(backend, bed::noop_registry().await?, queue, Some(args.slots as usize), &watch);
    watch.until(args.tasks.into()).await;
    let seconds = began.elapsed().as_secs_f64();
    working.stop().await?;
    watch.check()?;
    Ok(f64::from(args.tasks) / seconds.max(1e-9))
}
