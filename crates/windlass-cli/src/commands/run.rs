//! `windlass run`: one task, and its result.

use std::sync::Arc;

use windlass::backend::Pushed;
use windlass::view::{Node, Record};
use windlass::worker::{Settings, Shutdown, ShutdownStep, Worker};
use windlass::{Backend, Client, Clock, ConnectOptions, Envelope, Location, NodeId, SystemClock, TaskName, WaitError};

use super::enqueue::{TaskOptions, envelope, find};
use super::task::{WaitFor, ended};
use crate::context::Context;
use crate::exit::{Exit, Outcome, Problem};
use crate::task_args::ArgsFlags;

/// Run a task and print its result
///
/// A worker of the store runs it; with --inline this process does, and no store is touched.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass run http.request --arg url=https://example.org
  windlass run http.request --arg url=https://example.org --inline
  windlass run sleep --arg duration=2s --timeout 10s")]
pub(crate) struct Args {
    /// The name of the task
    #[arg(value_name = "NAME")]
    name: TaskName,
    #[command(flatten)]
    given: ArgsFlags,
    /// Run it in this process, without a store
    #[arg(long)]
    inline: bool,
    #[command(flatten)]
    wait: WaitFor,
    #[command(flatten)]
    options: TaskOptions,
    /// Run a task that this program does not know, on a worker of another program
    #[arg(long, conflicts_with = "inline", help_heading = "Task")]
    unregistered: bool,
}

pub(crate) async fn run(context: Context, args: Args) -> Outcome {
    let known = find(&context.program, &args.name, args.unregistered)?;
    let now = SystemClock.now();
    let mut task = envelope(&args.name, known, args.given.read(known)?, now);
    args.options.apply(&mut task, now)?;
    task.check(now)?;
    if args.inline {
        return run_here(context, task, args.wait).await;
    }
    let backend = context.store_or_new().await?;
    let client = context.client(&backend);
    let nodes = backend.nodes().await?;
    if !nodes.iter().any(|node| works_on(node, &task)) {
        context.out.warn(format_args!(
            "no living node works on `{}` in the queue `{}`: start one with `windlass worker -Q {}`",
            task.name, task.queue, task.queue
        ));
    }
    let record = wait_for(&client, task, args.wait).await?;
    ended(&context.out, &record)
}

fn works_on(node: &Node, task: &Envelope) -> bool {
    node.alive && node.info.slots > 0 && node.info.queues.contains(&task.queue) && node.info.tasks.contains(&task.name)
}

async fn wait_for(client: &Client, task: Envelope, wait: WaitFor) -> Result<Record, Problem> {
    let queue = task.queue.clone();
    let Some((own, pushed)) = client.push(vec![task]).await?.pop() else {
        return Err(Problem::new(Exit::Failed, "the store answered nothing", "run `windlass doctor`"));
    };
    let id = match pushed {
        Pushed::Stored => own,
        Pushed::Exists(other) | Pushed::Replaced(other) => other,
        Pushed::Full { limit } => return Err(windlass::PushError::Full { queue, limit }.into()),
    };
    let record = client.watch_all(std::slice::from_ref(&id), wait.timeout).await?.pop();
    record.ok_or_else(|| {
        let problem = Problem::from(WaitError::Timeout(wait.timeout));
        problem.next(format_args!(
            "it goes on: `windlass task wait {id}` waits for it, `windlass task cancel {id}` ends it"
        ))
    })
}

/// On a store that lives as long as this command, by a worker with one slot.
async fn run_here(context: Context, mut task: Envelope, wait: WaitFor) -> Outcome {
    let backend: Arc<dyn Backend> = windlass::connect_with(&Location::Memory, ConnectOptions::default()).await?;
    // Whoever asks for one run wants its answer, not that of the third retry an hour later.
    task.retries = task.retries.or(Some(0));
    let mut settings = Settings::new(NodeId::known("inline"));
    settings.slots = 1;
    settings.queues = vec![(task.queue.clone(), 1)];
    let Context { program, out, .. } = context;
    let registry = program.build().await?;
    let shutdown = Shutdown::new();
    let worker = Worker::new(Arc::clone(&backend), registry, settings);
    let worker = tokio::spawn(worker.start(shutdown.clone()));
    let record = wait_for(&Client::new(backend), task, wait).await;
    shutdown.begin(ShutdownStep::Immediate);
    // It has nothing left to do: how it ends does not matter.
    let _ = worker.await;
    let record = record.map_err(|problem| problem.next("give it longer with `--timeout`"))?;
    ended(&out, &record)
}
