//! `windlass dev`: a worker and a scheduler on one file, for a developer's machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use windlass::QueueName;
use windlass::config::LogFormat;
use windlass::worker::{Shutdown, ShutdownStep};

use super::worker::{Role, WorkFlags, node_name, run_node, settings_of, start_logs};
use crate::args::Global;
use crate::context::Context;
use crate::exit::{Exit, Outcome};
use crate::program::Program;
use crate::settings::{self, Override};
use crate::signals::Signals;

/// A compiler writes a program in pieces: it is whole when nothing has changed for one more look.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// Run tasks and schedules on one file, for development
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "\
EXAMPLES
  windlass dev
  windlass dev try.db --reload
  windlass dev -c 2 -v")]
pub(crate) struct Args {
    /// The SQLite file [default: the store of the configuration, ./windlass.db]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// Start again when the program or the configuration file changes
    #[arg(long)]
    reload: bool,
    #[command(flatten)]
    pub(crate) work: WorkFlags,
}

pub(crate) async fn run(global: &Global, args: Args, program: Program) -> Outcome {
    let mut overrides = args.work.overrides();
    if let Some(file) = &args.file {
        overrides.push(Override { key: "store", flag: "FILE", value: format!("sqlite:{}", file.display()) });
    }
    let mut context = Context::new(global, overrides, program)?;
    if context.loaded.config.log.format == LogFormat::Auto {
        context.loaded.config.log.format = LogFormat::Pretty;
    }
    let node = node_name(context.loaded.config.worker.node.as_ref())?;
    start_logs(&context, &node);
    let mut signals = Signals::catch();
    let Some(backend) = signals.unless_stopped(context.store_of_node()).await.transpose()? else {
        return Ok(Exit::Ok);
    };
    let shutdown = Shutdown::new();
    let stops = signals.heed(Arc::clone(&backend), node.clone(), shutdown.clone());
    // Both are remembered before they can change: the path of a program that is replaced is gone.
    let program_file = std::env::current_exe()?;
    let reload = args.reload.then(|| {
        let mut watched = vec![program_file.clone()];
        watched.extend(settings::file(global).map(PathBuf::from));
        tokio::spawn(stop_on_change(watched, shutdown.clone()))
    });
    let mut settings = settings_of(&context.loaded.config, node, Role::All);
    add_own_queues(&mut settings.queues, context.program.definitions().map(|definition| &definition.options.queue));
    run_node(context, Role::All, backend, settings, shutdown, None).await?;
    match reload {
        // It has ended by itself only when it saw a change.
        Some(watching) if watching.is_finished() => start_again(&program_file),
        Some(_) | None => Ok(stops.exit()),
    }
}

/// A developer has one worker: it serves every queue that a task of the program waits in.
fn add_own_queues<'q>(queues: &mut Vec<(QueueName, u32)>, own: impl Iterator<Item = &'q QueueName>) {
    for queue in own {
        if queues.iter().all(|(served, _)| served != queue) {
            queues.push((queue.clone(), 1));
        }
    }
}

/// Begins the shutdown when one of the files has changed and is whole again.
async fn stop_on_change(files: Vec<PathBuf>, shutdown: Shutdown) {
    let look = || files.iter().map(|file| changed_at(file)).collect::<Vec<_>>();
    let first = look();
    let mut before = look();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let now = look();
        if now != first && now == before && now[0].is_some() {
            tracing::info!(event = "reload", "the program or its configuration has changed: starting again");
            return shutdown.begin(ShutdownStep::Graceful);
        }
        before = now;
    }
}

fn changed_at(file: &Path) -> Option<(SystemTime, u64)> {
    let metadata = file.metadata().ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}

/// Becomes the new program, with the same command line.
fn start_again(program: &Path) -> Outcome {
    let mut command = std::process::Command::new(program);
    command.args(std::env::args_os().skip(1));
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt;
        // Comes back only when the new program cannot be started.
        Err(command.exec().into())
    }
    #[cfg(not(unix))]
    {
        let ended = command.status()?;
        Ok(if ended.success() { crate::exit::Exit::Ok } else { crate::exit::Exit::Failed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_developers_worker_serves_every_queue_of_its_program_once() {
        let mut queues = vec![(QueueName::default(), 1)];
        let own = [QueueName::known("email"), QueueName::default(), QueueName::known("email")];
        add_own_queues(&mut queues, own.iter());
        assert_eq!(queues, [(QueueName::default(), 1), (QueueName::known("email"), 1)]);
    }
}
