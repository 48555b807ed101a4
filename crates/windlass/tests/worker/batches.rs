//! Batches: when one begins, and the verdict that each of its tasks keeps.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use windlass::backend::{Command, Order};
use windlass::batch::BATCH_SIZE_MAX;
use windlass::call::Call;
use windlass::client::Handle;
use windlass::middleware::{Middleware, Next};
use windlass::prelude::*;
use windlass::retry::Outcome;
use windlass::view::Record;
use windlass::{Args, DeadReason, Envelope, TaskName};

use crate::rig::{MINUTE, Rig, What, act, handle};

/// How long batches wait in these tests; what happens "at once" takes less than [`SOON`].
pub(crate) const WAIT: Duration = Duration::from_secs(30);
pub(crate) const SOON: Duration = Duration::from_secs(2);

/// Does what its arguments say, as a member of a batch.
#[derive(Debug, Clone, Task, Serialize, Deserialize)]
#[task(name = "index", retries = 1, backoff = "10s", jitter = 0.0, soft_limit = "30m", hard_limit = "1h", output = u64)]
pub(crate) struct Index {
    pub(crate) number: u64,
    pub(crate) how: How,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum How {
    Done,
    FailOnce,
    Silent,
    /// Holds up those after it.
    Slow(Duration),
    UntilAsked,
    UntilAllAreAsked,
    Report,
    /// What follows is for the whole batch.
    ErrorOnce,
    PanicOnce,
    Hang,
}

/// The numbers of each batch, in the order in which they began; and how many handlers were dropped.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen(Arc<Mutex<Vec<Vec<u64>>>>, pub(crate) Arc<Mutex<usize>>);

impl Seen {
    pub(crate) fn batches(&self) -> Vec<Vec<u64>> {
        self.0.lock().unwrap().clone()
    }
}

struct CountDropped(Option<Arc<Mutex<usize>>>);

impl Drop for CountDropped {
    fn drop(&mut self) {
        if let Some(count) = self.0.take() {
            *count.lock().unwrap() += 1;
        }
    }
}

pub(crate) async fn index(batch: Vec<Item<Index>>, cx: BatchCx<Seen>) -> Result<(), TaskError> {
    cx.state().0.lock().unwrap().push(batch.iter().map(|item| item.task.number).collect());
    let mut guard = CountDropped(Some(cx.state().1.clone()));
    for item in batch {
        let first = item.attempt == 1;
        match item.task.how {
            How::FailOnce if first => item.fail(TaskError::failed("scripted").class("scripted")),
            How::ErrorOnce if first => return Err(TaskError::failed("the index is down").class("down")),
            How::PanicOnce if first => panic!("scripted"),
            How::Done | How::FailOnce | How::ErrorOnce | How::PanicOnce => {
                let number = item.task.number;
                item.done(number);
            }
            How::Silent => drop(item),
            How::Slow(length) => {
                // tidy: allow(sleep): the work of a handler, in simulated time
                tokio::time::sleep(length).await;
                item.done(0);
            }
            How::UntilAsked => {
                let reason = item.stopped().await;
                item.fail(TaskError::failed(reason));
            }
            How::UntilAllAreAsked => return Err(TaskError::failed(cx.stopped().await)),
            How::Report => {
                item.progress(item.task.number, None, "half-way");
                // tidy: allow(sleep): the work of a handler, in simulated time
                tokio::time::sleep(MINUTE).await;
                item.done(0);
            }
            How::Hang => std::future::pending().await,
        }
    }
    guard.0 = None;
    Ok(())
}

pub(crate) fn app(up_to: usize) -> (App<Seen>, Seen) {
    let seen = Seen::default();
    let size = Batch::up_to(up_to).within(WAIT);
    (App::new("test").with_state(seen.clone()).batch_task(size, index), seen)
}

pub(crate) async fn enqueue(rig: &Rig, hows: &[How]) -> Vec<Handle<Index>> {
    let tasks = (1..).zip(hows).map(|(number, how)| Index { number, how: how.clone() });
    rig.client.enqueue_all(tasks).await.unwrap()
}

pub(crate) fn took(record: &Record) -> Duration {
    record.finished_at.unwrap().since(record.enqueued_at)
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_begins_at_once() {
    let rig = Rig::new().await;
    let (app, seen) = app(3);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    for handle in enqueue(&rig, &[How::Done, How::Done, How::Done]).await {
        let record = rig.until(&handle.id, State::Succeeded).await;
        assert!(took(&record) < SOON, "{record:?}");
    }
    assert_eq!(seen.batches(), [[1, 2, 3]]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_does_not_become_full_begins_when_its_wait_is_over() {
    let rig = Rig::new().await;
    let (app, seen) = app(4);
    let _worker = rig.worker_of("w1", app, |settings| settings.slots = 8).await;
    let first = enqueue(&rig, &[How::Done]).await.remove(0);
    rig.until(&first.id, State::Running).await;
    tokio::time::advance(WAIT / 2).await;
    let second = enqueue(&rig, &[How::Done, How::Done]).await.remove(1);
    let record = rig.until(&first.id, State::Succeeded).await;
    assert!(took(&record) >= WAIT && took(&record) < WAIT + SOON, "{record:?}");
    let record = rig.until(&second.id, State::Succeeded).await;
    assert!(took(&record) < WAIT / 2 + SOON, "the wait counts from the first: {record:?}");
    assert_eq!(seen.batches(), [vec![1, 1, 2]]);
}

#[tokio::test(start_paused = true)]
async fn under_load_every_batch_is_full() {
    let rig = Rig::new().await;
    let (app, seen) = app(10);
    let handles = enqueue(&rig, &vec![How::Slow(Duration::from_millis(50)); 200]).await;
    let _worker = rig.worker_of("w1", app, |settings| settings.slots = 25).await;
    for handle in handles {
        rig.until(&handle.id, State::Succeeded).await;
    }
    let sizes: Vec<usize> = seen.batches().iter().map(Vec::len).collect();
    assert_eq!(sizes, [10; 20]);
}

#[tokio::test(start_paused = true)]
async fn with_fewer_slots_than_a_batch_takes_it_begins_when_all_of_them_wait() {
    let rig = Rig::new().await;
    let (app, seen) = app(100);
    let handles = enqueue(&rig, &[How::Done, How::Done, How::Done, How::Done]).await;
    let _worker = rig.worker_of("w1", app, |settings| settings.slots = 2).await;
    for handle in handles {
        assert!(took(&rig.until(&handle.id, State::Succeeded).await) < SOON);
    }
    assert_eq!(seen.batches(), [[1, 2], [3, 4]]);
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_loses_slots_does_not_wait_for_what_they_would_bring() {
    let rig = Rig::new().await;
    let (app, seen) = app(4);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = enqueue(&rig, &[How::Done, How::Done]).await;
    rig.until(&handles[1].id, State::Running).await;
    let node = NodeId::known("w1");
    rig.backend.command(&Command::Order { node, order: Order::Resize(2) }).await.unwrap();
    assert!(took(&rig.until(&handles[1].id, State::Succeeded).await) < SOON);
    assert_eq!(seen.batches(), [[1, 2]]);
}

#[tokio::test(start_paused = true)]
async fn a_batch_waits_for_the_slot_in_which_something_else_runs() {
    let rig = Rig::new().await;
    let (app, seen) = app(4);
    let app = app.task(async |task, cx: Cx<Seen>| {
        let _ = cx.state();
        run_act(task).await
    });
    let long = Duration::from_secs(10);
    let other = rig.client.enqueue(act(What::Work(long))).await.unwrap();
    let handles = enqueue(&rig, &[How::Done, How::Done, How::Done, How::Done]).await;
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    rig.until(&other.id, State::Succeeded).await;
    let record = rig.until(&handles[0].id, State::Succeeded).await;
    assert!(took(&record) >= long && took(&record) < long + SOON, "{record:?}");
    assert_eq!(seen.batches(), [[1, 2, 3, 4]]);
}

async fn run_act(task: crate::rig::Act) -> Result<u64, TaskError> {
    if let What::Work(length) = task.what {
        // tidy: allow(sleep): the work of a handler, in simulated time
        tokio::time::sleep(length).await;
    }
    Ok(0)
}

#[tokio::test(start_paused = true)]
async fn batches_of_two_names_do_not_wait_for_each_others_slots() {
    async fn sort(batch: Vec<Item<Sort>>, _cx: BatchCx<Seen>) -> Result<Vec<Result<(), TaskError>>, TaskError> {
        Ok(batch.iter().map(|_| Ok(())).collect())
    }
    let rig = Rig::new().await;
    let (app, seen) = app(3);
    let app = app.batch_task(Batch::up_to(3).within(WAIT), sort);
    let handles = enqueue(&rig, &[How::Done, How::Done]).await;
    let others = rig.client.enqueue_all([Sort {}, Sort {}]).await.unwrap();
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    assert!(took(&rig.until(&handles[1].id, State::Succeeded).await) < SOON, "four slots, four tasks that wait");
    assert!(rig.until(&others[1].id, State::Succeeded).await.attempt == 1);
    assert_eq!(seen.batches(), [[1, 2]]);
}

#[derive(Task, Serialize, Deserialize)]
#[task(name = "sort")]
struct Sort {}

#[tokio::test(start_paused = true)]
async fn a_task_whose_own_limit_leaves_no_time_to_wait_begins_its_batch_at_once() {
    let rig = Rig::new().await;
    let (app, _seen) = app(4);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let task = Index { number: 1, how: How::Done };
    let handle = rig.client.enqueue(task).limits(None, WAIT).await.unwrap();
    assert!(took(&rig.until(&handle.id, State::Succeeded).await) < SOON);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_expires_while_it_waits_does_not_begin() {
    let rig = Rig::new().await;
    let (app, seen) = app(3);
    let short = Index { number: 7, how: How::Done };
    let short = rig.client.enqueue(short).expires(WAIT / 2).await.unwrap();
    let other = enqueue(&rig, &[How::Done]).await.remove(0);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    rig.until(&short.id, State::Expired).await;
    rig.until(&other.id, State::Succeeded).await;
    assert_eq!(seen.batches(), [[1]]);
}

#[tokio::test(start_paused = true)]
async fn one_task_is_retried_and_the_others_of_its_batch_succeed() {
    let rig = Rig::new().await;
    let (app, seen) = app(3);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = enqueue(&rig, &[How::Done, How::FailOnce, How::Done]).await;
    for (handle, attempt) in handles.iter().zip([1, 2, 1]) {
        let record = rig.until(&handle.id, State::Succeeded).await;
        assert_eq!(record.attempt, attempt);
    }
    assert_eq!(handles[2].output(MINUTE).await.unwrap(), 3, "each has its own result");
    assert_eq!(rig.record(&handles[1].id).await.history[0].failure.class, "scripted");
    assert_eq!(seen.batches(), [vec![1, 2, 3], vec![2]]);
}

#[tokio::test(start_paused = true)]
async fn a_task_without_an_answer_has_failed_and_says_so() {
    let rig = Rig::new().await;
    let (app, _seen) = app(2);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = enqueue(&rig, &[How::Done, How::Silent]).await;
    rig.until(&handles[0].id, State::Succeeded).await;
    let failure = rig.until(&handles[1].id, State::Dead).await.failure.unwrap();
    assert_eq!(failure.to_string(), "unanswered: the handler of the batch gave no answer for this task");
    assert_eq!(rig.record(&handles[1].id).await.attempt, 2, "it was retried by its policy");
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_handler_goes_to_each_task_by_its_own_policy() {
    whole_batch_fails(How::ErrorOnce, "down: the index is down").await;
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_handler_goes_to_each_task_by_its_own_policy() {
    whole_batch_fails(How::PanicOnce, "panic: scripted").await;
}

/// The first has its answer before; the second gives up at its first failure, the third is retried.
async fn whole_batch_fails(how: How, text: &str) {
    let rig = Rig::new().await;
    let (app, _seen) = app(3);
    let early = rig.client.enqueue(Index { number: 1, how: How::Done }).await.unwrap();
    let strict = rig.client.enqueue(Index { number: 2, how: how.clone() }).retries(0).await.unwrap();
    let patient = rig.client.enqueue(Index { number: 3, how }).await.unwrap();
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    assert_eq!(rig.until(&early.id, State::Succeeded).await.attempt, 1);
    let record = rig.until(&strict.id, State::Dead).await;
    assert_eq!((record.attempt, record.failure.unwrap().to_string()), (1, text.to_owned()));
    let record = rig.until(&patient.id, State::Succeeded).await;
    assert_eq!((record.attempt, record.history[0].failure.to_string()), (2, text.to_owned()));
}

#[tokio::test(start_paused = true)]
async fn arguments_that_do_not_fit_end_that_task_and_do_not_disturb_the_batch() {
    let rig = Rig::new().await;
    let (app, seen) = app(2);
    let args = Args::parse(r#"{"number":"x","how":"Done"}"#).unwrap();
    let malformed = Envelope::new(TaskName::known("index"), QueueName::default(), args);
    let id = malformed.id.clone();
    rig.client.push(vec![malformed]).await.unwrap();
    let handles = enqueue(&rig, &[How::Done, How::Done]).await;
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let record = rig.until(&id, State::Dead).await;
    assert_eq!((record.reason, record.attempt), (Some(DeadReason::Malformed), 1));
    for handle in handles {
        assert!(took(&rig.until(&handle.id, State::Succeeded).await) < SOON);
    }
    assert_eq!(seen.batches(), [[1, 2]]);
}

#[derive(Task, Serialize, Deserialize)]
#[task(name = "halve", retries = 0, output = u64)]
struct Halve {
    number: u64,
}

fn half(number: u64) -> Result<u64, TaskError> {
    if number.is_multiple_of(2) { Ok(number / 2) } else { Err(TaskError::fatal("odd")) }
}

#[tokio::test(start_paused = true)]
async fn results_may_be_returned_as_a_list_in_the_order_of_the_batch() {
    async fn halve(batch: Vec<Item<Halve>>, _cx: BatchCx) -> Result<Vec<Result<u64, TaskError>>, TaskError> {
        Ok(batch.iter().map(|item| half(item.task.number)).collect())
    }
    let rig = Rig::new().await;
    let app = App::new("test").batch_task(Batch::up_to(3).within(WAIT), halve);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let handles = rig.client.enqueue_all([8, 7, 6].map(|number| Halve { number })).await.unwrap();
    assert_eq!(handles[0].output(MINUTE).await.unwrap(), 4);
    assert_eq!(rig.until(&handles[1].id, State::Dead).await.failure.unwrap().message, "odd");
    assert_eq!(handles[2].output(MINUTE).await.unwrap(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_list_of_another_length_than_the_batch_answers_nothing() {
    async fn halve(batch: Vec<Item<Halve>>, _cx: BatchCx) -> Result<Vec<Result<u64, TaskError>>, TaskError> {
        Ok(batch.iter().flat_map(|item| half(item.task.number)).map(Ok).collect())
    }
    let rig = Rig::new().await;
    let app = App::new("test").batch_task(Batch::up_to(2).within(WAIT), halve);
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    for handle in rig.client.enqueue_all([8, 7].map(|number| Halve { number })).await.unwrap() {
        let failure = rig.until(&handle.id, State::Dead).await.failure.unwrap();
        assert_eq!(failure.to_string(), "unanswered: the handler returned 1 results for a batch of 2 tasks");
    }
}

/// In real time: threads that block do not know simulated time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blocking_handler_takes_batches_off_the_async_threads() {
    let halve = |batch: Vec<Item<Halve>>, _cx: BatchCx| {
        for item in batch {
            let result = half(item.task.number);
            item.answer(result);
        }
        Ok(())
    };
    let backend = windlass::connect("memory:").await.unwrap();
    let client = Client::new(backend.clone());
    let registry = App::new("test").blocking_batch_task(Batch::up_to(2).within(WAIT), halve).build().await.unwrap();
    let shutdown = Shutdown::new();
    let worker = Worker::new(backend, registry, Settings::new(NodeId::known("w1")));
    let worker = tokio::spawn(worker.start(shutdown.clone()));
    let handles = client.enqueue_all([8, 7].map(|number| Halve { number })).await.unwrap();
    assert_eq!(handles[0].output(WAIT / 2).await.unwrap(), 4);
    assert_eq!(handles[1].ended(WAIT / 2).await.unwrap().state, State::Dead);
    shutdown.begin(ShutdownStep::Graceful);
    worker.await.unwrap().unwrap();
}

/// In real time, on many threads: answers, retries and batches that overlap.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_many_threads_every_task_gets_its_own_answer_once() {
    async fn halve(batch: Vec<Item<Halve>>, cx: BatchCx<Calls>) -> Result<(), TaskError> {
        cx.state().lock().unwrap().extend(batch.iter().map(|item| item.task.number));
        tokio::task::yield_now().await;
        for item in batch {
            let result = half(item.task.number);
            item.answer(result);
        }
        Ok(())
    }
    type Calls = Arc<Mutex<Vec<u64>>>;
    let backend = windlass::connect("memory:").await.unwrap();
    let (client, calls) = (Client::new(backend.clone()), Calls::default());
    let size = Batch::up_to(7).within(Duration::from_millis(2));
    let registry = App::new("test").with_state(calls.clone()).batch_task(size, halve).build().await.unwrap();
    let handles = client.enqueue_all((0..2_000).map(|number| Halve { number })).await.unwrap();
    let shutdown = Shutdown::new();
    let mut settings = Settings::new(NodeId::known("w1"));
    settings.slots = 60;
    let worker = tokio::spawn(Worker::new(backend, registry, settings).start(shutdown.clone()));
    for (number, handle) in (0..).zip(handles) {
        let record = handle.ended(MINUTE).await.unwrap();
        match half(number) {
            Ok(half) => assert_eq!(record.result.unwrap().as_str(), half.to_string()),
            Err(_) => assert_eq!(record.state, State::Dead),
        }
    }
    shutdown.begin(ShutdownStep::Graceful);
    worker.await.unwrap().unwrap();
    let mut calls = calls.lock().unwrap().clone();
    calls.sort_unstable();
    assert_eq!(calls, (0..2_000).collect::<Vec<_>>());
}

/// Keeps the events that tell of small batches.
struct Small(Arc<Mutex<Vec<String>>>);

impl windlass::event::Listener for Small {
    fn on_event(&self, event: &windlass::event::Event) {
        if let windlass::event::Event::SmallBatches { task, takes, slots } = event {
            self.0.lock().unwrap().push(format!("{task} takes {takes} of {slots}"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_worker_with_fewer_slots_than_a_batch_takes_says_so() {
    for (slots, expected) in [(0, vec![]), (4, vec!["index takes 5 of 4"]), (5, vec![])] {
        let told = Arc::new(Mutex::new(Vec::new()));
        let backend = windlass::connect("memory:").await.unwrap();
        let mut settings = Settings::new(NodeId::known("w1"));
        settings.slots = slots;
        let shutdown = Shutdown::new();
        shutdown.begin(ShutdownStep::Graceful);
        let worker = Worker::new(backend, app(5).0.build().await.unwrap(), settings).listener(Small(told.clone()));
        worker.run(shutdown).await;
        assert_eq!(*told.lock().unwrap(), expected);
    }
}

/// What the middleware saw: the header of each task, and how it ended.
struct Note(Arc<Mutex<Vec<String>>>);

#[async_trait::async_trait]
impl Middleware for Note {
    async fn run(&self, call: &Call, next: Next<'_>) -> Outcome {
        let outcome = next.run().await;
        let word = if matches!(outcome, Outcome::Done(_)) { "done" } else { "failed" };
        self.0.lock().unwrap().push(format!("{} {word}", call.header("tenant").unwrap_or("nobody")));
        outcome
    }
}

#[tokio::test(start_paused = true)]
async fn middleware_runs_around_each_task_and_sees_its_own_outcome() {
    let rig = Rig::new().await;
    let noted = Arc::new(Mutex::new(Vec::new()));
    let (app, _seen) = app(2);
    let (done, fails) = (Index { number: 1, how: How::Done }, Index { number: 2, how: How::FailOnce });
    let acme = rig.client.enqueue(done).header("tenant", "acme").await.unwrap();
    let umbrella = rig.client.enqueue(fails).retries(0).header("tenant", "umbrella").await.unwrap();
    let _worker = rig.worker_of("w1", app.middleware(Note(noted.clone())), |_| {}).await;
    rig.until(&acme.id, State::Succeeded).await;
    rig.until(&umbrella.id, State::Dead).await;
    let mut noted = noted.lock().unwrap().clone();
    noted.sort();
    assert_eq!(noted, ["acme done", "umbrella failed"]);
}

#[tokio::test(start_paused = true)]
async fn batches_and_single_tasks_share_a_worker() {
    let rig = Rig::new().await;
    let app =
        App::new("test").task(handle).batch_task(Batch::up_to(2).within(WAIT), async |batch: Vec<Item<Sort>>, _cx| {
            for item in batch {
                item.done(());
            }
            Ok(())
        });
    let _worker = rig.worker_of("w1", app, |_| {}).await;
    let sorted = rig.client.enqueue(Sort {}).await.unwrap();
    rig.until(&sorted.id, State::Running).await;
    let single = rig.client.enqueue(act(What::Return(5))).await.unwrap();
    assert!(took(&rig.until(&single.id, State::Succeeded).await) < SOON);
    assert_eq!(rig.record(&sorted.id).await.state, State::Running, "its batch waits");
}

#[tokio::test]
async fn every_mistake_in_the_size_of_a_batch_is_reported_before_the_worker_starts() {
    async fn ignore<T: Task>(_batch: Vec<Item<T>>, _cx: BatchCx) -> Result<(), TaskError> {
        Ok(())
    }
    let day = Duration::from_secs(86_400);
    let short = Batch::up_to(BATCH_SIZE_MAX + 1).within(Duration::from_secs(31));
    let app = App::new("test")
        .batch_task(Batch::up_to(0).within(day), ignore::<Sort>)
        .batch_task(short, ignore::<crate::rig::Act>)
        .batch_task(Batch::up_to(BATCH_SIZE_MAX).within(MINUTE), ignore::<Halve>);
    assert_eq!(
        app.build().await.unwrap_err().to_string(),
        "the application is declared wrongly: task `sort`: a batch takes 1 to 1000 tasks, not 0; \
         task `sort`: a batch waits for 1m at most, not 1d; \
         task `sort`: a batch that waits for 1d leaves too little of its limit of 1h; \
         task `act`: a batch takes 1 to 1000 tasks, not 1001; \
         task `act`: a batch that waits for 31s leaves too little of its limit of 30s"
    );
}
