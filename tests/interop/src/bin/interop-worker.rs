//! `interop-worker [--protocol celery|taskiq]`: our worker with the tasks of the suite. The environment says the rest.

use std::process::ExitCode;

use windlass::worker::Shutdown;
use windlass_interop::environment::{Environment, Protocol};
use windlass_interop::worker;

const USAGE: &str =
    "usage: interop-worker [--protocol celery|taskiq]; the environment variables INTEROP_* say the rest";

fn protocol() -> Option<Protocol> {
    let mut args = std::env::args().skip(1);
    match (args.next().as_deref(), args.next().as_deref(), args.next()) {
        (None, None, None) | (Some("--protocol"), Some("celery"), None) => Some(Protocol::Celery),
        (Some("--protocol"), Some("taskiq"), None) => Some(Protocol::TaskIq),
        _ => None,
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some(protocol) = protocol() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    tracing_subscriber::fmt().with_env_filter(filter()).with_writer(std::io::stderr).init();
    match work(protocol).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Warnings, unless somebody wants to hear more.
fn filter() -> tracing_subscriber::EnvFilter {
    tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn,lapin=off".into())
}

async fn work(protocol: Protocol) -> anyhow::Result<()> {
    let environment = Environment::of_process(protocol)?;
    let shutdown = Shutdown::new();
    worker::heed_signals(shutdown.clone())?;
    worker::run(protocol, environment, shutdown).await
}
