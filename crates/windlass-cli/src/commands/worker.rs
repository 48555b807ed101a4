//! `windlass worker`: claims tasks and runs them until it is told to stop.

use windlass::worker::{Settings, Shutdown, ShutdownStep, Worker};
use windlass::{NodeId, event};

use crate::args::Global;
use crate::exit::{Exit, Outcome, Problem};
use crate::program::Program;

/// Runs tasks until it is told to stop.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass worker
  windlass worker -Q email=3,default -c 8 --name w1@%h")]
pub(crate) struct Args {
    /// How many tasks run at once.
    #[arg(short = 'c', long, visible_alias = "slots")]
    concurrency: Option<usize>,
}

pub(crate) async fn run(global: &Global, args: Args, program: Program) -> Outcome {
    crate::logs::start();
    let store = global.store.as_deref().unwrap_or("sqlite:windlass.db");
    let backend = windlass::connect(store).await?;
    let registry = program.build().await?;
    let mut settings = Settings::new(NodeId::known(&format!("worker-{}", std::process::id())));
    if let Some(slots) = args.concurrency {
        settings.slots = slots;
    }
    let shutdown = Shutdown::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.begin(ShutdownStep::Graceful);
        }
    });
    let ended = Worker::new(backend, registry, settings).listener(event::Log).start(shutdown).await?;
    if ended.left_behind > 0 {
        return Err(Problem::new(
            Exit::Failed,
            format_args!("{} attempts could not be settled or given back", ended.left_behind),
            "their leases run out by themselves; then other workers run them again",
        ));
    }
    Ok(Exit::Ok)
}
