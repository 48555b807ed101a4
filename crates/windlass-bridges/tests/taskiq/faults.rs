//! Nodes that die at any point: nothing is lost, nothing runs twice without need.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use windlass_bridges::carrier::{Carried, Carrier, RedisLists, RedisStreams, StreamReading, one_list};
use windlass_bridges::taskiq;
use windlass_core::bridge::{LetGo, Returned, Tag, TransportError};
use windlass_core::{Backend, QueueName, State};
use windlass_redis::foreign::{Line, Reply};
use windlass_testkit::{Faults, FaultyStore};
use windlass_wire::taskiq::Broker;

use crate::rig::{PATIENCE, Rig, message, until};

/// Where a process dies: its carrier does nothing more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    /// It has taken messages, and nobody hears of them.
    AfterTake,
    /// The tasks are stored, and the messages not accepted.
    BeforeAccept,
    /// The messages are accepted, and nobody hears so.
    AfterAccept,
}

/// A carrier whose process dies at one point, for ever.
#[derive(Debug)]
struct Dying {
    carrier: Box<dyn Carrier>,
    at: Dies,
    dead: AtomicBool,
    died: Arc<Notify>,
}

impl Dying {
    /// Never comes back.
    async fn die(&self) -> ! {
        self.dead.store(true, Ordering::SeqCst);
        self.died.notify_one();
        std::future::pending().await
    }

    async fn live(&self) {
        if self.dead.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Carrier for Dying {
    async fn take(
        &self,
        queues: &[QueueName],
        max: usize,
        wait: Duration,
        hush: &CancellationToken,
    ) -> Result<Vec<Carried>, TransportError> {
        self.live().await;
        let carried = self.carrier.take(queues, max, wait, hush).await?;
        if self.at == Dies::AfterTake && !carried.is_empty() {
            self.die().await;
        }
        Ok(carried)
    }

    async fn accept(&self, tags: &[Tag]) -> Result<Vec<LetGo>, TransportError> {
        self.live().await;
        if self.at == Dies::BeforeAccept {
            self.die().await;
        }
        let let_go = self.carrier.accept(tags).await?;
        if self.at == Dies::AfterAccept {
            self.die().await;
        }
        Ok(let_go)
    }

    async fn put_back(&self, tags: &[Tag], why: Returned) -> Result<(), TransportError> {
        self.live().await;
        self.carrier.put_back(tags, why).await
    }

    async fn recover(&self) -> Result<u64, TransportError> {
        self.live().await;
        self.carrier.recover().await
    }
}

/// What has been silent or pending for so long belongs to the dead.
const SILENT: Duration = Duration::from_millis(300);

fn lists(rig: &Rig) -> Box<dyn Carrier> {
    Box::new(RedisLists::new(Arc::new(Line::to(rig.location())), "", one_list, SILENT))
}

fn stream_reading(consumer: &str) -> StreamReading {
    StreamReading {
        group: "taskiq".to_owned(),
        consumer: consumer.to_owned(),
        from: "0".to_owned(),
        field: "data".to_owned(),
        idle: SILENT,
    }
}

async fn streams(rig: &Rig, consumer: &str) -> Box<dyn Carrier> {
    let streams = RedisStreams::new(Arc::new(Line::to(rig.location())), stream_reading(consumer));
    streams.declare(&[QueueName::known("taskiq")]).await.expect("declared");
    Box::new(streams)
}

/// A node dies over the first carrier; its fellow over the second one finds what it has left.
async fn dies_and_is_followed(rig: &Rig, first: Box<dyn Carrier>, second: Box<dyn Carrier>, at: Dies) {
    let died = Arc::new(Notify::new());
    let dying = Dying { carrier: first, at, dead: AtomicBool::new(false), died: Arc::clone(&died) };
    let store = Arc::new(FaultyStore::new(Arc::new(rig.store.clone()), 0, Faults::NONE));
    let transport = taskiq::open(Arc::new(dying), Broker::Redis, rig.options());
    let _victim = rig.node_over(Arc::clone(&store) as Arc<dyn Backend>, "victim", transport, &["taskiq"]).await;
    died.notified().await;
    store.cut();
    let second = Arc::<dyn Carrier>::from(second);
    if at != Dies::AfterAccept {
        until("it is silent, and what it held is found", async || {
            (second.recover().await.expect("an answer") > 0).then_some(())
        })
        .await;
    }
    let successor = rig.node("successor", taskiq::open(second, Broker::Redis, rig.options())).await;
    for number in 0..4 {
        assert_eq!(rig.result(&format!("t{number}")).await.return_value.as_str(), (number + 1).to_string(), "{at:?}");
    }
    let records = rig.until_records(4, State::Succeeded).await;
    assert_eq!(records.len(), 4, "{at:?}: no task twice");
    // What was stored was claimed in the same step: that attempt is over, or spent though nothing has run. So may be another one
    // that the claim was given with which the dead node waited.
    let most = if at == Dies::AfterTake { 1 } else { 3 };
    assert!(records.iter().all(|record| record.attempt <= most), "{at:?}: {records:?}");
    successor.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_has_taken_from_a_list_when_it_dies_is_run_once() {
    for at in [Dies::AfterTake, Dies::BeforeAccept, Dies::AfterAccept] {
        let rig = Rig::new();
        for number in 0..4 {
            rig.lpush("taskiq", message(&format!("t{number}"), "interop.add", &[], &format!("[{number}, 1]"))).await;
        }
        dies_and_is_followed(&rig, lists(&rig), lists(&rig), at).await;
        rig.until_accepted().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_node_has_read_from_a_stream_when_it_dies_is_run_once() {
    for at in [Dies::AfterTake, Dies::BeforeAccept, Dies::AfterAccept] {
        let rig = Rig::new();
        for number in 0..4 {
            let text = message(&format!("t{number}"), "interop.add", &[], &format!("[{number}, 1]"));
            rig.ask(&[b"XADD", b"taskiq", b"*", b"data", text.as_bytes()]).await;
        }
        dies_and_is_followed(&rig, streams(&rig, "victim").await, streams(&rig, "successor").await, at).await;
        until("all are acknowledged", async || {
            let pending = rig.ask(&[b"XPENDING", b"taskiq", b"taskiq"]).await.list();
            (pending.first() == Some(&Reply::Number(0))).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_waits_for_new_entries_is_given_what_the_dead_have_left() {
    let rig = Rig::new();
    rig.ask(&[b"XADD", b"taskiq", b"*", b"data", b"x"]).await;
    let (dead, living) = (streams(&rig, "dead").await, Arc::<dyn Carrier>::from(streams(&rig, "living").await));
    let (queues, hush) = ([QueueName::known("taskiq")], CancellationToken::new());
    let left = dead.take(&queues, 10, Duration::ZERO, &hush).await.expect("taken");
    let waits = tokio::spawn({
        let living = Arc::clone(&living);
        async move { living.take(&[QueueName::known("taskiq")], 10, PATIENCE * 5, &CancellationToken::new()).await }
    });
    until("it is recovered", async || (living.recover().await.expect("an answer") == 1).then_some(())).await;
    let given = tokio::time::timeout(PATIENCE, waits).await.expect("at once").expect("it ends").expect("taken");
    assert_eq!((&given[0].identity, given[0].again), (&left[0].identity, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_from_a_stream_without_an_answer_is_read_again_at_once() {
    let rig = Rig::new();
    let reading = StreamReading { idle: PATIENCE * 10, ..stream_reading("one") };
    let carrier = RedisStreams::new(Arc::new(Line::to(rig.location())), reading);
    let (queues, hush) = ([QueueName::known("taskiq")], CancellationToken::new());
    carrier.declare(&queues).await.expect("declared");
    let mut sent = BTreeSet::new();
    for number in 0..3 {
        let id = rig.ask(&[b"XADD", b"taskiq", b"*", b"data", number.to_string().as_bytes()]).await;
        sent.insert(format!("taskiq:{}", String::from_utf8(id.bytes().expect("an id")).expect("text")));
    }
    // As the carrier would have asked; nobody has heard the answer.
    let unheard: [&[u8]; 7] = [b"XREADGROUP", b"GROUP", b"taskiq", b"one", b"STREAMS", b"taskiq", b">"];
    rig.ask(&unheard).await;
    let mut read = BTreeSet::new();
    until("the connection has broken under a request, and what is pending was read", async || {
        rig.ask(&[b"CLIENT", b"KILL", b"TYPE", b"normal", b"SKIPME", b"yes"]).await;
        if let Ok(carried) = carrier.take(&queues, 2, Duration::ZERO, &hush).await {
            assert!(carried.iter().all(|carried| carried.again), "somebody may have had it");
            read.extend(carried.into_iter().filter_map(|carried| carried.identity));
        }
        (read == sent).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_that_is_put_back_comes_again_under_its_id() {
    let rig = Rig::new();
    rig.ask(&[b"XADD", b"taskiq", b"*", b"data", b"x"]).await;
    let (carrier, hush) = (streams(&rig, "one").await, CancellationToken::new());
    let queues = [QueueName::known("taskiq")];
    let first = carrier.take(&queues, 10, Duration::ZERO, &hush).await.expect("taken");
    let tags: Vec<Tag> = first.iter().map(|carried| carried.tag.clone()).collect();
    carrier.put_back(&tags, Returned::Unstored).await.expect("put back");
    let again = carrier.take(&queues, 10, Duration::ZERO, &hush).await.expect("taken");
    assert_eq!(again.len(), 1);
    assert_eq!((&again[0].identity, first[0].again, again[0].again), (&first[0].identity, false, true));
    let tags: Vec<Tag> = again.iter().map(|carried| carried.tag.clone()).collect();
    assert_eq!(carrier.accept(&tags).await.expect("accepted"), [LetGo::Perhaps], "somebody may have it still");
    assert!(carrier.take(&queues, 10, Duration::ZERO, &hush).await.expect("taken").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_cannot_be_written_holds_up_the_end_of_its_task_until_it_can() {
    let mut results = Rig::new();
    let broker = Rig::new();
    let options = taskiq::Options { results: Some(taskiq::ResultOptions::new(results.location())), ..broker.options() };
    let transport = taskiq::open_lists(broker.location(), options).await.expect("it opens");
    let node = broker.node("lists-1", transport).await;
    broker.lpush("taskiq", message("first", "interop.add", &[], "[1, 2]")).await;
    results.result("first").await;
    results.server.kill();
    broker.lpush("taskiq", message("second", "interop.add", &[], "[2, 2]")).await;
    broker.until_records(1, State::Running).await;
    results.server.start_again().expect("it starts");
    assert_eq!(results.result("second").await.return_value.as_str(), "4");
    broker.until_records(2, State::Succeeded).await;
    node.stop().await;
}
