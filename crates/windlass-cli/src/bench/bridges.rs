//! `bench bridges`: how fast foreign messages are worked off, against the same store's own tasks and against the workers of
//! those who sent them.
//!
//! Messages are the bytes that Celery's and TaskIQ's clients push, and lie in the server before the worker starts. Every task
//! does nothing and has its result stored where its client looks. The runs alternate, so that whatever else the machine does
//! hits all of them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use windlass::bridges::redis::{Command, Line};
use windlass::bridges::wire::{celery, kombu, taskiq};
use windlass::bridges::{self, Side};
use windlass::envelope::PUSH_MAX;
use windlass::worker::SLOTS_MAX;
use windlass::{Backend, Client, Json, NodeId, QueueName, TaskId};

use super::bed::{self, Place, Watch, Working};
use super::peer::Peer;
use super::stats::{Runs, thousands};
use super::{Bench, Goal, Repeat, Report, server};
use crate::exit::{Exit, Problem};

/// Messages of one trip.
const TRIP: usize = 500;
/// Results are looked at by nobody; they go by themselves.
const RESULTS_EXPIRE: Duration = Duration::from_secs(120);
/// The drain, as a multiple of what the workers of those products do.
const CELERY_TIMES_MIN: f64 = 30.0;
const TASKIQ_TIMES_MIN: f64 = 15.0;

/// How fast messages of Celery, TaskIQ and of nobody's framework are worked off
///
/// Needs a Redis or Valkey server. Other products work on it with names of their own; `bench/README.md` says how they are
/// installed.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench bridges --store redis://127.0.0.1/0
  windlass bench bridges --store redis://127.0.0.1/0 --peer celery --peer taskiq --runs 5")]
pub(crate) struct Args {
    /// Messages of each kind
    #[arg(long, value_name = "COUNT", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    tasks: u32,
    /// Tasks that run at once; the most that are taken in one step
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=SLOTS_MAX as i64))]
    slots: u32,
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Celery,
    TaskIqList,
    TaskIqStream,
    Bare,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Celery, Self::TaskIqList, Self::TaskIqStream, Self::Bare];

    fn name(self) -> &'static str {
        match self {
            Self::Celery => "celery",
            Self::TaskIqList => "taskiq_list",
            Self::TaskIqStream => "taskiq_stream",
            Self::Bare => "bare_json",
        }
    }

    /// The URL of its bridge over this server.
    fn url(self, server: &str) -> String {
        let expire = RESULTS_EXPIRE.as_secs();
        match self {
            Self::Celery => format!("celery+{server}?results-expire={expire}"),
            Self::TaskIqList => format!("taskiq+{server}?kind=list&results-expire={expire}"),
            Self::TaskIqStream => format!("taskiq+{server}?kind=stream&results-expire={expire}"),
            Self::Bare => format!("list+{server}"),
        }
    }

    /// The command that a client sends a task with.
    fn command(self, queue: &QueueName) -> Command {
        let id = TaskId::random().to_string();
        let message = match self {
            Self::Celery => {
                let args = (Json::trusted("[]"), Json::trusted(r#"{"payload": ""}"#));
                let request = celery::Request::new("bench.noop", id.clone());
                let message = celery::Message { args: args.0, kwargs: args.1, request }.with_reprs();
                let (exchange, routing_key, now) = ("", queue.as_str(), bed::now());
                let sending = celery::Sending { exchange, routing_key, delivery_tag: Some(&id), now };
                kombu::encode(&message.frame(&sending))
            }
            Self::TaskIqList | Self::TaskIqStream => taskiq::Message {
                task_id: id,
                task_name: "bench.noop".to_owned(),
                labels: taskiq::Labels::default(),
                args: Json::trusted("[]"),
                kwargs: Json::trusted(r#"{"payload": ""}"#),
            }
            .encode(),
            Self::Bare => json!({"task": "bench.noop", "args": {"payload": ""}, "id": id}).to_string(),
        };
        match self {
            Self::TaskIqStream => words(["XADD", queue.as_str(), "*", taskiq::STREAM_FIELD, &message]),
            Self::Celery | Self::TaskIqList | Self::Bare => words(["LPUSH", queue.as_str(), &message]),
        }
    }
}

fn words<const N: usize>(words: [&str; N]) -> Command {
    words.map(|word| word.as_bytes().to_vec()).into()
}

pub(super) async fn run(bench: &Bench, args: &Args) -> Result<Report, Problem> {
    let Some(server) = bench.place.server().filter(|server| server.kind() == server::Kind::Redis) else {
        return Err(Problem::usage("bridges are measured on Redis", "add --store redis://127.0.0.1/0"));
    };
    let url = server::without_parameters(server.url(), &["namespace", "schema", "connections"]);
    let line = Line::to(url.parse().map_err(|error| Problem::usage(error, "see `windlass bench bridges --help`"))?);
    for peer in &args.peer {
        peer.check(&args.peers)?;
    }
    let runs = args.repeat.runs;
    let mut native = Runs::default();
    let mut rates: Vec<Runs> = Kind::ALL.iter().map(|_| Runs::default()).collect();
    let mut peers: Vec<Runs> = args.peer.iter().map(|_| Runs::default()).collect();
    for number in 1..=runs {
        native.add(drain_native(&bench.place, args).await?);
        bench.progress(format_args!("run {number} of {runs}: own tasks {}", native.text("tasks/s")));
        for (kind, rate) in Kind::ALL.into_iter().zip(&mut rates) {
            rate.add(drain_bridge(&bench.place, args, kind, &url, &line).await?);
            bench.progress(format_args!("run {number} of {runs}: {} {}", kind.name(), rate.text("tasks/s")));
        }
        for (peer, rate) in args.peer.iter().zip(&mut peers) {
            rate.add(peer.run(&args.peers, &url, args.peer_tasks, 2).await?.drain_tasks_per_s);
            bench.progress(format_args!("run {number} of {runs}: {}'s worker {}", peer.name(), rate.text("tasks/s")));
        }
    }
    let mut report = Report::new("bridges", bench.place.kind());
    report.put("tasks", json!(args.tasks), thousands(args.tasks.into()));
    report.put("slots", json!(args.slots), args.slots.to_string());
    report.put("runs", json!(runs), runs.to_string());
    report.rate("native_tasks_per_s", &native, "tasks/s");
    for (kind, rate) in Kind::ALL.into_iter().zip(&rates) {
        report.rate(&format!("{}_tasks_per_s", kind.name()), rate, "tasks/s");
        let share = 100.0 * rate.median() / native.median().max(1e-9);
        report.put(&format!("{}_share_of_native", kind.name()), json!(share), format!("{share:.1} %"));
    }
    for (peer, of_peer) in args.peer.iter().zip(&peers) {
        report.rate(&format!("{}_worker_tasks_per_s", peer.name()), of_peer, "tasks/s");
        let times = |kind: usize| rates[kind].median() / of_peer.median().max(1e-9);
        match peer {
            Peer::Celery => {
                report.goal(Goal::at_least("drain, of Celery's own worker", times(0), CELERY_TIMES_MIN, "x"));
            }
            Peer::Taskiq => {
                report.goal(Goal::at_least("drain, of TaskIQ's own worker", times(1), TASKIQ_TIMES_MIN, "x"));
            }
            Peer::Bullmq | Peer::GraphileWorker => {}
        }
    }
    Ok(report)
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
async fn drain_bridge(place: &Place, args: &Args, kind: Kind, url: &str, line: &Line) -> Result<f64, Problem> {
    let open = place.open(bed::keep_everything()).await?;
    let queue = bed::own_queue()?;
    let registry = bed::noop_registry().await?;
    let side = Side {
        node: NodeId::known(&format!("bench-{:08x}", fastrand::u32(..))),
        queues: vec![queue.clone()],
        tasks: registry.names().iter().map(ToString::to_string).collect(),
    };
    let wrong = |error: &dyn std::fmt::Display| Problem::new(Exit::Failed, error, "see whether the server answers");
    let bridge = kind.url(url).parse().map_err(|error: bridges::url::InvalidUrl| wrong(&error))?;
    // Before the messages: what is sent to a stream without a group is not seen.
    let bridge = bridges::open(&bridge, side, Arc::clone(&open.backend)).await.map_err(|error| wrong(&error))?;
    let mut left = args.tasks as usize;
    while left > 0 {
        let count = left.min(TRIP);
        let commands: Vec<Command> = (0..count).map(|_| kind.command(&queue)).collect();
        line.ask_all(&commands).await?;
        left -= count;
    }
    let rate = drain(&bridge, &queue, args).await?;
    line.ask(&words(["DEL", queue.as_str()])).await?;
    drop(bridge);
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
