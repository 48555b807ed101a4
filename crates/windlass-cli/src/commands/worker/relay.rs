//! What a scheduler does for the workers at the other end of a bridge: it sends them tasks, and fires schedules of theirs.

use tokio_util::sync::{CancellationToken, DropGuard};
use windlass::bridges::{self, BridgeUrl};
use windlass::worker::Settings;
use windlass::{QueueName, Registry};

use super::{host, not_open};
use crate::exit::Problem;

/// What the node runs: nothing, or everything by sending it.
pub(super) async fn relaying(
    program: Registry,
    bridge: Option<&BridgeUrl>,
    settings: &Settings,
) -> Result<Registry, Problem> {
    if settings.slots == 0 {
        return Ok(program);
    }
    let Some(url) = bridge else {
        return Err(Problem::usage(
            "`relay` names queues, and there is no bridge that their tasks could be sent over",
            "name it with `--bridge`, as in celery+redis://HOST, or in the configuration",
        ));
    };
    let queues: Vec<QueueName> = settings.queues.iter().map(|(queue, _)| queue.clone()).collect();
    let origin = format!("gen{}@{}", std::process::id(), host());
    let relay = bridges::relay(url, &queues, &origin).await.map_err(|error| not_open(url, &error))?;
    Ok(program.run_by(relay.build().await?))
}

/// Fires the schedules that producers of TaskIQ's keep in Redis, until the guard is dropped.
pub(super) async fn fire_theirs(bridge: Option<&BridgeUrl>) -> Result<Option<DropGuard>, Problem> {
    let Some(url) = bridge else { return Ok(None) };
    let scheduler = bridges::taskiq_scheduler(url).await.map_err(|error| not_open(url, &error))?;
    Ok(scheduler.map(|scheduler| {
        let stop = CancellationToken::new();
        tokio::spawn(scheduler.run(stop.clone()));
        stop.drop_guard()
    }))
}
