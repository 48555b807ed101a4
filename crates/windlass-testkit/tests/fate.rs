//! Tasks of every fate, run by a worker on the store in memory.

use std::sync::Arc;
use std::time::Duration;

use windlass_core::worker::{Settings, Shutdown, ShutdownStep, Worker};
use windlass_core::{App, Backend, Client, NodeId, State, SystemClock, TaskId};
use windlass_memory::MemoryStore;
use windlass_testkit::fate::{Act, Fate, Runs, fate};

/// Only a worker that is broken takes this long.
const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a task to its end on a worker of its own; answers its state and how often it ran.
async fn run(acts: impl IntoIterator<Item = Act>) -> (State, u32) {
    let store: Arc<dyn Backend> = Arc::new(MemoryStore::new(Arc::new(SystemClock)));
    let runs = Runs::new();
    let of_worker = runs.clone();
    let app = App::new("fate").state(|| async move { Ok::<_, std::io::Error>(of_worker) }).task(fate);
    let registry = app.build().await.expect("the state is at hand");
    let shutdown = Shutdown::new();
    let worker = Worker::new(Arc::clone(&store), registry, Settings::new(NodeId::known("worker")));
    let worker = tokio::spawn(worker.start(shutdown.clone()));

    let handle = Client::new(Arc::clone(&store)).enqueue(Fate::of(acts)).await.expect("a fate is a valid task");
    let id: TaskId = handle.id.clone();
    let ended = store.watch(std::slice::from_ref(&id), PATIENCE).await.expect("the store answers");
    shutdown.begin(ShutdownStep::Immediate);
    worker.await.expect("the worker does not panic").expect("the worker stops");
    (ended.first().map_or(State::Running, |record| record.state), runs.of(&id).begun)
}

#[tokio::test]
async fn a_task_ends_by_its_fate() {
    let at_once = Duration::ZERO;
    assert_eq!(run([Act::succeed(7)]).await, (State::Succeeded, 1));
    assert_eq!(run([Act::fatal("broken")]).await, (State::Dead, 1));
    assert_eq!(run([Act::RetryAfter { delay: at_once }, Act::succeed(7)]).await, (State::Succeeded, 2));
    assert_eq!(
        run([Act::Snooze { delay: at_once }, Act::Skip { reason: "done".to_owned() }]).await,
        (State::Succeeded, 2)
    );
}
