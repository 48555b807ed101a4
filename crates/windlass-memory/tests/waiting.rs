//! How claims that wait are woken: as many as it takes, and none of them in vain. What every store must do is in the
//! conformance suite; this is what the memory store does beyond.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use windlass_core::backend::{Backend, Claim, Command, Demand, Push, Settled};
use windlass_core::flow::Follow;
use windlass_core::view::{Filter, Page, Retention};
use windlass_core::{Args, Envelope, Json, NodeId, QueueName, StoreError, SystemClock, TaskName, Verdict};
use windlass_memory::MemoryStore;

/// A claim that waits, polled by hand, and how often it was woken.
struct Waiting {
    claim: Pin<Box<dyn Future<Output = Result<Vec<Claim>, StoreError>> + Send>>,
    woken: Arc<Woken>,
}

#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Waiting {
    fn begin(store: &MemoryStore, max: usize) -> Self {
        Self::begin_at(store, &["default"], max)
    }

    fn begin_at(store: &MemoryStore, queues: &[&str], max: usize) -> Self {
        let queues = queues.iter().map(|name| QueueName::known(name)).collect();
        let demand = Demand { queues, ..demand(max, Duration::from_secs(60)) };
        let store = store.clone();
        let mut waiting = Self { claim: Box::pin(async move { store.claim(&demand).await }), woken: Arc::default() };
        assert!(waiting.poll().is_none(), "there is nothing to take yet");
        waiting
    }

    fn poll(&mut self) -> Option<usize> {
        let waker = Waker::from(Arc::clone(&self.woken));
        match self.claim.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(claims) => Some(claims.expect("the store answers").len()),
            Poll::Pending => None,
        }
    }
}

fn store() -> MemoryStore {
    MemoryStore::new(Arc::new(SystemClock))
}

fn demand(max: usize, wait: Duration) -> Demand {
    Demand {
        node: NodeId::known("node"),
        queues: vec![QueueName::default()],
        max,
        lease: Duration::from_secs(30),
        except: Vec::new(),
        wait,
        hush: CancellationToken::new(),
    }
}

async fn push(store: &MemoryStore, count: usize) {
    push_to(store, "default", count).await;
}

async fn push_to(store: &MemoryStore, queue: &str, count: usize) {
    let task = || Envelope::new(TaskName::known("work"), QueueName::known(queue), Args::none());
    let push = Push { envelopes: (0..count).map(|_| task()).collect(), groups: Vec::new() };
    store.push(&push).await.expect("the store answers");
}

fn woken(waiting: &[Waiting]) -> Vec<usize> {
    waiting.iter().map(|waiting| waiting.woken.0.load(Ordering::SeqCst)).collect()
}

#[tokio::test(start_paused = true)]
async fn a_task_wakes_the_claim_that_waits_longest() {
    let store = store();
    let mut waiting: Vec<Waiting> = (0..4).map(|_| Waiting::begin(&store, 10)).collect();
    push(&store, 1).await;
    assert_eq!(woken(&waiting), [1, 0, 0, 0]);
    assert_eq!(waiting[0].poll(), Some(1));
    assert_eq!(woken(&waiting), [1, 0, 0, 0], "nothing is left to wake others for");
}

#[tokio::test(start_paused = true)]
async fn a_batch_wakes_as_many_claims_as_it_takes() {
    let store = store();
    let mut waiting: Vec<Waiting> = (0..5).map(|_| Waiting::begin(&store, 2)).collect();
    push(&store, 5).await;
    assert_eq!(woken(&waiting), [1, 1, 1, 0, 0]);
    let taken: Vec<Option<usize>> = waiting.iter_mut().map(Waiting::poll).collect();
    assert_eq!(taken, [Some(2), Some(2), Some(1), None, None]);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_is_dropped_when_it_was_woken_wakes_the_next() {
    let store = store();
    let mut waiting: Vec<Waiting> = (0..2).map(|_| Waiting::begin(&store, 1)).collect();
    push(&store, 1).await;
    drop(waiting.remove(0));
    assert_eq!(woken(&waiting), [1]);
    assert_eq!(waiting[0].poll(), Some(1));
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_takes_another_task_wakes_the_next() {
    let store = store();
    let mut of_both = Waiting::begin_at(&store, &["a", "b"], 1);
    let mut of_a = Waiting::begin_at(&store, &["a"], 1);
    let mut of_b = Waiting::begin_at(&store, &["b"], 1);
    push_to(&store, "b", 1).await;
    push_to(&store, "a", 1).await;
    assert_eq!(of_both.poll(), Some(1), "it was woken for `b` and prefers `a`");
    assert_eq!((of_a.poll(), of_b.poll()), (None, Some(1)));
    assert_eq!(of_b.woken.0.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn resuming_lets_everybody_look() {
    let store = store();
    let queue = QueueName::default();
    store.command(&Command::PauseQueue(queue.clone())).await.expect("the store answers");
    let mut waiting: Vec<Waiting> = (0..3).map(|_| Waiting::begin(&store, 1)).collect();
    push(&store, 2).await;
    assert_eq!(woken(&waiting), [0, 0, 0]);
    store.command(&Command::ResumeQueue(queue)).await.expect("the store answers");
    assert_eq!(woken(&waiting), [1, 1, 1]);
    assert_eq!(waiting.iter_mut().map(Waiting::poll).collect::<Vec<_>>(), [Some(1), Some(1), None]);
}

#[tokio::test]
async fn the_history_stays_at_its_size_without_a_tick() {
    let store = store().with_retention(Retention { finished_max: 10, ..Retention::default() });
    for _ in 0..20 {
        push(&store, 5).await;
        let claims = store.claim(&demand(5, Duration::ZERO)).await.expect("the store answers");
        let succeeded = || Verdict::Succeeded { result: Json::null(), skipped: None };
        let settled: Vec<Settled> = claims
            .into_iter()
            .map(|claim| Settled { receipt: claim.receipt, verdict: succeeded(), follow: Follow::default() })
            .collect();
        store.settle(&settled).await.expect("the store answers");
    }
    let listing = store.list(&Filter::all(), &Page::first(100)).await.expect("the store answers");
    assert_eq!(listing.tasks.len(), 10);
    assert_eq!(store.counts().await.expect("the store answers").total().succeeded, 100);
}
