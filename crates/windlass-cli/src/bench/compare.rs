//! `bench compare`: the same work on several stores and on other products, in one report with ratios.
//!
//! The runs alternate: in each of them every store and every product has its turn, so that whatever else the machine
//! does hits all of them.

use std::path::PathBuf;

use serde_json::{Value, json};
use windlass::envelope::PUSH_MAX;

use super::bed::Place;
use super::peer::Peer;
use super::stats::{Latencies, Runs, rounded, thousands};
use super::{Bench, Goal, Repeat, Report, drain, enqueue, latency};
use crate::commands::enqueue::rate::Rate;
use crate::exit::Problem;

/// Tasks that are enqueued other than in bulk in each run; a part of them.
const ENQUEUE_TASKS: u32 = 20_000;
const CALLERS: u32 = 50;
/// The drain, as a multiple of the peer's.
const BULLMQ_TIMES_MIN: f64 = 8.0;
const GRAPHILE_TIMES_MIN: f64 = 1.5;

/// Several stores and other products, side by side
///
/// Each store and each product drains the same number of tasks that do nothing, in turn; ratios are to the first store.
/// A product works on the store of its kind that is given here, in names of its own that it removes.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass bench compare --store sqlite --store redis://127.0.0.1/0
  windlass bench compare --store redis://127.0.0.1/0 --peer bullmq --peer celery --peer taskiq
  windlass bench compare --store postgres://127.0.0.1/test --peer graphile-worker --processes 2")]
pub(crate) struct Args {
    /// A store to compare; repeat it for more
    #[arg(id = "store", long = "store", value_name = "URL", help_heading = "Connection")]
    pub(super) store: Vec<String>,
    /// A product to compare with; repeat it for more
    #[arg(long, value_name = "NAME")]
    peer: Vec<Peer>,
    /// The folder of the products
    #[arg(long, value_name = "FOLDER", default_value = "bench/peers")]
    peers: PathBuf,
    #[command(flatten)]
    plan: drain::Plan,
    /// How many tasks are enqueued to see how soon they start
    #[arg(long, value_name = "RATE", default_value = "200/s")]
    rate: Rate,
    /// For how long in each run
    #[arg(long, value_name = "COUNT", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    #[command(flatten)]
    pub(super) repeat: Repeat,
}

/// One store or product over all runs.
#[derive(Debug, Default)]
struct Line {
    name: String,
    version: Option<String>,
    drain: Runs,
    bulk: Runs,
    single: Runs,
    concurrent: Runs,
    starts: Latencies,
    worker_cpu: Runs,
    server_cpu: Runs,
}

pub(super) async fn run(bench: &Bench, places: &[Place], args: &Args) -> Result<Report, Problem> {
    let mut urls = Vec::new();
    for peer in &args.peer {
        peer.check(&args.peers)?;
        urls.push(peer.url(places)?);
    }
    let mut stores: Vec<Line> = places.iter().map(|place| Line::named(place.kind())).collect();
    let mut peers: Vec<Line> = args.peer.iter().map(|peer| Line::named(peer.name())).collect();
    let processes = args.plan.processes.unwrap_or(1);
    for number in 1..=args.repeat.runs {
        let of = args.repeat.runs;
        for (line, place) in stores.iter_mut().zip(places) {
            line.add_store(place, args).await?;
            bench.progress(format_args!("run {number} of {of}: {}", line.text()));
        }
        for ((line, peer), url) in peers.iter_mut().zip(&args.peer).zip(&urls) {
            let server =
                places.iter().find(|place| place.server().is_some_and(|server| server.kind() == peer.server()));
            // Its enqueue is in this too: it does both in one go.
            let before = server_cpu(server).await?;
            let said = peer.run(&args.peers, url, args.plan.tasks, processes).await?;
            let after = server_cpu(server).await?;
            let tasks = f64::from(args.plan.tasks);
            line.version = Some(said.version);
            line.bulk.add(said.enqueue_tasks_per_s);
            line.drain.add(said.drain_tasks_per_s);
            line.worker_cpu.add(said.cpu_s / tasks * 1e6);
            line.server_cpu.add_known(before.zip(after).map(|(before, after)| (after - before) / tasks * 1e6));
            bench.progress(format_args!("run {number} of {of}: {}", line.text()));
        }
    }

    let mut report = Report::new("compare", "several");
    report.put("tasks", json!(args.plan.tasks), thousands(args.plan.tasks.into()));
    report.put("slots", json!(args.plan.slots), args.plan.slots.to_string());
    report.put("processes", json!(processes), processes.to_string());
    report.put("runs", json!(args.repeat.runs), args.repeat.runs.to_string());
    for (place, line) in places.iter().zip(&stores) {
        for (peer, other) in args.peer.iter().zip(&peers) {
            let same = place.server().is_some_and(|server| server.kind() == peer.server());
            let times = line.drain.median() / other.drain.median().max(1e-9);
            match peer {
                Peer::Bullmq if same => report.goal(Goal::at_least("drain, of BullMQ's", times, BULLMQ_TIMES_MIN, "x")),
                Peer::GraphileWorker if same => {
                    report.goal(Goal::at_least("drain, of Graphile Worker's", times, GRAPHILE_TIMES_MIN, "x"));
                }
                Peer::Bullmq | Peer::GraphileWorker | Peer::Celery | Peer::Taskiq => {}
            }
        }
    }
    let lines: Vec<Line> = stores.into_iter().chain(peers).collect();
    let first = lines[0].drain.median();
    let text = lines.iter().map(|line| line.text_against(first)).collect::<Vec<_>>().join("\n");
    report.put("compared", lines.iter().map(|line| line.json(first)).collect(), text);
    Ok(report)
}

async fn server_cpu(place: Option<&Place>) -> Result<Option<f64>, Problem> {
    match place {
        Some(place) => place.server_cpu().await,
        None => Ok(None),
    }
}

impl Line {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), ..Self::default() }
    }

    /// One more run of a store.
    async fn add_store(&mut self, place: &Place, args: &Args) -> Result<(), Problem> {
        let drained = drain::one(place, &args.plan, drain::Setting::default()).await?;
        self.drain.add(drained.drain);
        self.bulk.add(drained.enqueue);
        self.worker_cpu.add_known(drained.worker_cpu);
        self.server_cpu.add_known(drained.server_cpu);
        let tasks = args.plan.tasks.clamp(10, ENQUEUE_TASKS);
        let enqueue = enqueue::Plan { tasks, callers: CALLERS, batch: PUSH_MAX as u32, payload: args.plan.payload };
        let enqueued = enqueue::one(place, &enqueue).await?;
        self.single.add(enqueued.single);
        self.concurrent.add(enqueued.concurrent);
        let latency = latency::Plan { rate: args.rate, seconds: args.seconds, processes: 1 };
        self.starts.add(&latency::one(place, &latency).await?.0);
        Ok(())
    }

    fn text(&self) -> String {
        format!("{:<24} {}", self.name, self.drain.text("tasks/s"))
    }

    /// With the ratio to the first one, a number to a line.
    fn text_against(&self, first: f64) -> String {
        let share = self.drain.median() / first.max(1e-9);
        let mut lines = vec![format!("{}, {share:.3} x the first", self.text())];
        let mut add = |what: &str, text: String| lines.push(format!("  {what:<22} {text}"));
        add("enqueue in bulk", self.bulk.text("tasks/s"));
        if self.single.count() > 0 {
            add("enqueue one by one", self.single.text("tasks/s"));
            add(&format!("enqueue by {CALLERS}"), self.concurrent.text("tasks/s"));
            add("enqueue to start", self.starts.text());
        }
        add("CPU of the workers", self.worker_cpu.text("us a task"));
        if self.server_cpu.count() > 0 {
            add("CPU of the server", self.server_cpu.text("us a task"));
        }
        lines.join("\n")
    }

    fn json(&self, first: f64) -> Value {
        let runs = |runs: &Runs| if runs.count() == 0 { Value::Null } else { runs.json() };
        json!({
            "name": self.name,
            "version": self.version,
            "drain_tasks_per_s": runs(&self.drain),
            "of_the_first": rounded(self.drain.median() / first.max(1e-9)),
            "bulk_tasks_per_s": runs(&self.bulk),
            "one_by_one_tasks_per_s": runs(&self.single),
            "concurrent_tasks_per_s": runs(&self.concurrent),
            "enqueue_to_start": if self.starts.count() == 0 { Value::Null } else { self.starts.json() },
            "worker_cpu_us_per_task": runs(&self.worker_cpu),
            "server_cpu_us_per_task": runs(&self.server_cpu),
        })
    }
}
