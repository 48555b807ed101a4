//! A worker that has its process to itself leaves for the sake of a handler that cannot be ended. In real time: threads
//! that block do not know simulated time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use windlass::prelude::*;
use windlass::view::Record;
use windlass::worker::{Advice, Ended, Guard, Why};
use windlass::{Backend, State, TaskId};

use crate::rig::{MINUTE, What, act, app};

/// Long beyond the hard limit; the test's own runtime waits for threads that block.
const BLOCKS: Duration = Duration::from_secs(6);

/// Blocks its thread, far beyond its hard limit.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "block", retries = 0, hard_limit = "1s")]
struct Block {}

/// The same, registered as a handler that may block.
#[derive(Task, Serialize, Deserialize)]
#[task(name = "block_apart", retries = 0, hard_limit = "1s")]
struct BlockApart {}

fn block() {
    // tidy: allow(sleep): a handler that cannot be ended
    std::thread::sleep(BLOCKS);
}

/// Says that memory is used up once it is told to.
#[derive(Default)]
struct Memory(AtomicBool);

impl Guard for Memory {
    fn look(&self) -> Advice {
        if self.0.load(Ordering::Relaxed) {
            Advice::OutOfMemory { used: 700 << 20, limit: 512 << 20 }
        } else {
            Advice::GoOn
        }
    }
}

struct Guarded {
    client: Client,
    backend: Arc<dyn Backend>,
    memory: Arc<Memory>,
    worker: tokio::task::JoinHandle<std::io::Result<Ended>>,
}

impl Guarded {
    async fn start() -> Self {
        let backend = windlass::connect("memory:").await.unwrap();
        let blocking = async |_: Block, _: Cx| {
            block();
            Ok(())
        };
        let apart = |_: BlockApart, _: Cx| {
            block();
            Ok(())
        };
        let registry = app().task(blocking).blocking_task(apart).build().await.unwrap();
        let settings = Settings { slots: 4, ..Settings::new(NodeId::known("w1")) };
        let memory = Arc::new(Memory::default());
        let worker = Worker::new(Arc::clone(&backend), registry, settings).guard(Arc::<Memory>::clone(&memory));
        let worker = tokio::spawn(worker.start(Shutdown::new()));
        Self { client: Client::new(Arc::clone(&backend)), backend, memory, worker }
    }

    /// Two tasks that run for as long as they may.
    async fn two_that_run(&self) -> [TaskId; 2] {
        let mut ids = Vec::new();
        for _ in 0..2 {
            ids.push(self.client.enqueue(act(What::Work(MINUTE))).retries(0).await.unwrap().id);
        }
        while self.backend.counts().await.unwrap().total().running < 2 {
            tokio::task::yield_now().await;
        }
        ids.try_into().unwrap()
    }

    async fn record(&self, id: &TaskId) -> Record {
        stored(&self.backend, id).await
    }

    /// How it left, all by itself.
    async fn left(self) -> (Ended, Arc<dyn Backend>) {
        (self.worker.await.unwrap().unwrap(), self.backend)
    }
}

async fn stored(backend: &Arc<dyn Backend>, id: &TaskId) -> Record {
    backend.find(std::slice::from_ref(id)).await.unwrap().remove(0).unwrap()
}

async fn leaves_after<T: Task<Output = ()> + 'static>(task: T) {
    let guarded = Guarded::start().await;
    let others = guarded.two_that_run().await;
    let began = Instant::now();
    let blocked = guarded.client.enqueue(task).await.unwrap();
    let record = blocked.ended(MINUTE).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((record.state, record.failure.unwrap().class.as_str()), (State::Dead, "timeout"));
    let (ended, backend) = guarded.left().await;
    assert_eq!(ended, Ended { left_behind: 0, why: Why::Stuck });
    for id in &others {
        let record = stored(&backend, id).await;
        assert_eq!(
            (record.state, record.attempt, record.history.len()),
            (State::Ready, 0, 0),
            "given back for nothing"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_its_thread_is_a_time_out_and_the_rest_is_given_back() {
    leaves_after(Block {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_handler_that_does_not_return_is_no_reason_to_keep_the_process() {
    leaves_after(BlockApart {}).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_runs_when_the_memory_is_used_up_has_failed() {
    let guarded = Guarded::start().await;
    let ids = guarded.two_that_run().await;
    guarded.memory.0.store(true, Ordering::Relaxed);
    let (ended, backend) = guarded.left().await;
    assert_eq!(ended, Ended { left_behind: 0, why: Why::OutOfMemory });
    for id in &ids {
        let record = stored(&backend, id).await;
        let failure = record.failure.unwrap();
        assert_eq!((record.state, failure.class.as_str()), (State::Dead, "memory_limit"));
        assert_eq!(failure.message, "the process used 700 MiB of memory, it may use 512 MiB");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handlers_that_end_in_time_are_no_reason_to_leave() {
    let guarded = Guarded::start().await;
    let handle = guarded.client.enqueue(act(What::Return(5))).await.unwrap();
    assert_eq!(handle.output(MINUTE).await.unwrap(), 5);
    assert_eq!(guarded.record(&handle.id).await.state, State::Succeeded);
    assert!(!guarded.worker.is_finished());
    guarded.worker.abort();
}
