//! An outbox in a file: what its transaction wrote gets into the store once, whatever fails on the way.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use rusqlite::{Connection, TransactionBehavior};
use tokio::sync::oneshot;
use windlass_core::adoption::{Adopting, Adoption};
use windlass_core::backend::{
    Backend, Claim, Command, Commanded, Demand, Push, Pushed, Renewal, Renewed, ScheduleChange, ScheduleChanged,
    Settled, Settlement, StoreError, Ticked,
};
use windlass_core::limit::{Limit, LimitChange, LimitsView, Rule};
use windlass_core::metrics::Metrics;
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::outbox::{Outbox, Relay, Relayed, Row, Taken};
use windlass_core::transfer::{Transfer, Transferred};
use windlass_core::view::{Counts, Filter, Info, Listing, Node, NodeInfo, Page, Record, ScheduleRecord};
use windlass_core::workflow::group;
use windlass_core::{Args, Client, Envelope, NodeId, QueueName, SystemClock, Task, TaskId, TaskName};
use windlass_memory::MemoryStore;
use windlass_sqlite::outbox::{SQL, SqliteOutbox, push_in};
use windlass_testkit::faulty::{Faults, FaultyStore};

/// A file of an application.
struct Shop {
    db: Connection,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Shop {
    fn open() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("shop.db");
        let db = Connection::open(&file).expect("a file");
        db.execute_batch("PRAGMA journal_mode = WAL").expect("a log");
        db.execute_batch(SQL).expect("the table");
        db.execute_batch(SQL).expect("to make it again changes nothing");
        Self { db, file, _folder: folder }
    }

    fn outbox(&self) -> Arc<dyn Outbox> {
        Arc::new(SqliteOutbox::open(&self.file).expect("an outbox"))
    }

    fn write(&mut self, pushes: &[Push]) {
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate).expect("a transaction");
        for push in pushes {
            push_in(&transaction, push).expect("written");
        }
        transaction.commit().expect("committed");
    }

    fn rows(&self) -> i64 {
        self.db.query_row("SELECT count(*) FROM windlass_outbox", [], |row| row.get(0)).expect("a count")
    }

    fn refused(&self) -> Vec<(i64, String)> {
        let mut select = self
            .db
            .prepare("SELECT place, refused FROM windlass_outbox WHERE refused IS NOT NULL ORDER BY place")
            .expect("a query");
        let rows = select.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).expect("rows");
        rows.collect::<Result<_, _>>().expect("rows")
    }
}

fn memory() -> Arc<dyn Backend> {
    Arc::new(MemoryStore::new(Arc::new(SystemClock)))
}

fn task(queue: &str) -> Envelope {
    Envelope::new(TaskName::known("mail"), QueueName::known(queue), Args::none())
}

fn pushes(count: usize) -> Vec<Push> {
    (0..count).map(|_| Push::from(task("default"))).collect()
}

/// The ids in the store, oldest first.
async fn stored(store: &dyn Backend) -> Vec<TaskId> {
    let listing = store.list(&Filter::all(), &Page::first(1_000)).await.expect("a listing");
    listing.tasks.into_iter().rev().map(|record| record.envelope.id).collect()
}

fn ids(pushes: &[Push]) -> Vec<TaskId> {
    pushes.iter().flat_map(|push| push.envelopes.iter().map(|envelope| envelope.id.clone())).collect()
}

#[tokio::test]
async fn what_a_committed_transaction_wrote_is_moved_in_its_order() {
    let (mut shop, store) = (Shop::open(), memory());
    let written = pushes(1_200);
    shop.write(&written);
    let dropped = shop.db.transaction().expect("a transaction");
    push_in(&dropped, &Push::from(task("default"))).expect("written");
    dropped.rollback().expect("rolled back");
    let relayed = Relay::new(shop.outbox(), Arc::clone(&store)).drain().await.expect("moved");
    assert_eq!(relayed, Relayed { moved: 1_200, ..Relayed::default() });
    assert_eq!(stored(&*store).await, ids(&written)[200..], "the newest thousand, in order");
    assert_eq!((store.counts().await.expect("counts").total().ready, shop.rows()), (1_200, 0));
}

/// Where a relay dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Dies {
    BeforePush,
    AfterPush,
    BeforeSettle,
    AfterSettle,
}

/// An outbox whose relay dies when it settles.
#[derive(Debug)]
struct Dying(Arc<dyn Outbox>, Dies);

struct DyingBatch(Box<dyn Taken>, Dies);

#[async_trait]
impl Outbox for Dying {
    async fn take(&self, except: &[QueueName]) -> Result<Option<Box<dyn Taken>>, StoreError> {
        let taken = self.0.take(except).await?;
        Ok(taken.map(|taken| Box::new(DyingBatch(taken, self.1)) as Box<dyn Taken>))
    }

    async fn written(&self, wait: Duration) {
        self.0.written(wait).await;
    }
}

#[async_trait]
impl Taken for DyingBatch {
    fn rows(&self) -> &[Row] {
        self.0.rows()
    }

    async fn settle(self: Box<Self>, moved: &[i64], refused: &[(i64, String)]) -> Result<(), StoreError> {
        match self.1 {
            Dies::BeforeSettle => {}
            Dies::AfterSettle => self.0.settle(moved, refused).await?,
            Dies::BeforePush | Dies::AfterPush => return self.0.settle(moved, refused).await,
        }
        Err(StoreError::Unreachable("the process was killed".into()))
    }
}

#[tokio::test]
async fn a_relay_that_dies_at_any_step_loses_nothing_and_doubles_nothing() {
    for dies in [Dies::BeforePush, Dies::AfterPush, Dies::BeforeSettle, Dies::AfterSettle] {
        let (mut shop, store) = (Shop::open(), memory());
        let written = pushes(10);
        shop.write(&written);
        let line = match dies {
            Dies::BeforePush => Faults { lost_requests: 1.0, ..Faults::NONE },
            Dies::AfterPush => Faults { lost_replies: 1.0, ..Faults::NONE },
            Dies::BeforeSettle | Dies::AfterSettle => Faults::NONE,
        };
        let faulty = Arc::new(FaultyStore::new(Arc::clone(&store), 1, line));
        let dying = Relay::new(Arc::new(Dying(shop.outbox(), dies)), faulty);
        dying.drain().await.expect_err("it dies");
        let pushed = dies != Dies::BeforePush;
        assert_eq!(stored(&*store).await.len(), if pushed { 10 } else { 0 }, "{dies:?}");
        assert_eq!(shop.rows(), if dies == Dies::AfterSettle { 0 } else { 10 }, "{dies:?}");
        // The next one finds what the first has left.
        let relayed = Relay::new(shop.outbox(), Arc::clone(&store)).drain().await.expect("moved");
        assert_eq!(relayed.known, if pushed { relayed.moved } else { 0 }, "{dies:?}");
        assert_eq!((stored(&*store).await, shop.rows()), (ids(&written), 0), "{dies:?}");
    }
}

#[tokio::test]
async fn rows_of_a_full_queue_wait_and_hold_back_no_other() {
    let (mut shop, store) = (Shop::open(), memory());
    let length = Rule { length: Some(2), ..Rule::default() };
    let limit = Limit { subject: "queue:small".parse().expect("a subject"), rule: length };
    store.limit(&LimitChange::Set(limit.clone())).await.expect("a limit");
    let small: Vec<Push> = (0..700).map(|_| Push::from(task("small"))).collect();
    shop.write(&small);
    let other = pushes(1);
    shop.write(&other);
    let relay = Relay::new(shop.outbox(), Arc::clone(&store));
    let relayed = relay.drain().await.expect("moved");
    assert_eq!((relayed.moved, relayed.refused), (3, 0));
    assert_eq!((stored(&*store).await, shop.rows()), ([&ids(&small)[..2], &ids(&other)].concat(), 698));
    store.limit(&LimitChange::Remove(limit.subject)).await.expect("no limit");
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(async move { relay.run(async { drop(stopped.await) }).await });
    until("the rest", || async { store.counts().await.expect("counts").total().ready == 701 }).await;
    drop(stop);
    running.await.expect("it ends when told to");
    assert_eq!(shop.rows(), 0);
}

#[tokio::test]
async fn a_row_that_can_never_be_pushed_is_set_aside_with_its_reason() {
    let (mut shop, store) = (Shop::open(), memory());
    let written = pushes(3);
    shop.write(&written[..1]);
    shop.db
        .execute("INSERT INTO windlass_outbox (written_at, queue, push) VALUES (0, 'default', 'what is this')", [])
        .expect("a row");
    shop.write(&written[1..]);
    let metrics = Metrics::new();
    let relay = Relay::new(shop.outbox(), Arc::clone(&store)).listener(Arc::new(metrics.clone()));
    let relayed = relay.drain().await.expect("moved");
    assert_eq!(relayed, Relayed { moved: 3, refused: 1, ..Relayed::default() });
    assert_eq!(stored(&*store).await, ids(&written));
    let refused = shop.refused();
    assert!(refused[0].0 == 2 && refused[0].1.contains("damaged"), "{refused:?}");
    let text = metrics.encode();
    assert!(text.contains("windlass_relay_moved_total 3") && text.contains("windlass_relay_refused_total 1"), "{text}");
    // Mended, it goes its way.
    shop.db.execute("DELETE FROM windlass_outbox WHERE refused IS NOT NULL", []).expect("removed");
    assert_eq!(relay.drain().await.expect("nothing"), Relayed::default());
}

/// Refuses pushes with tasks of the queue `refused`, whole, as a store does with what breaks a limit.
#[derive(Debug)]
struct Picky(Mutex<Vec<TaskId>>);

macro_rules! not_asked {
    ($($name:ident($($arg:ident: $type:ty),*) -> $answer:ty;)*) => {
        #[async_trait]
        impl Backend for Picky {
            async fn push(&self, push: &Push) -> Result<Vec<Pushed>, StoreError> {
                if push.envelopes.iter().any(|envelope| envelope.queue.as_str() == "refused") {
                    return Err(StoreError::Rejected("a limit is broken".to_owned()));
                }
                self.0.lock().extend(push.envelopes.iter().map(|envelope| envelope.id.clone()));
                Ok(vec![Pushed::Stored; push.envelopes.len()])
            }
            $(async fn $name(&self, $(_: $type),*) -> Result<$answer, StoreError> {
                unreachable!("a relay only pushes")
            })*
        }
    };
}

not_asked! {
    adopt(adoption: &Adoption) -> Adopting;
    claim(demand: &Demand) -> Vec<Claim>;
    renew(renewals: &[Renewal], lease: Duration) -> Vec<Renewed>;
    settle(settled: &[Settled]) -> Vec<Settlement>;
    find(ids: &[TaskId]) -> Vec<Option<Record>>;
    list(filter: &Filter, page: &Page) -> Listing;
    counts() -> Counts;
    command(command: &Command) -> Commanded;
    beat(info: &NodeInfo, ttl: Duration) -> ();
    nodes() -> Vec<Node>;
    tick(node: &NodeId) -> Ticked;
    schedules() -> Vec<ScheduleRecord>;
    schedule(change: &ScheduleChange) -> ScheduleChanged;
    limits() -> LimitsView;
    limit(change: &LimitChange) -> bool;
    note(ask: &NoteAsk) -> NoteAnswer;
    watch(ids: &[TaskId], wait: Duration) -> Vec<Record>;
    transfer(step: &Transfer) -> Transferred;
    info() -> Info;
}

#[tokio::test]
async fn a_row_that_the_store_refuses_does_not_block_those_around_it() {
    let mut shop = Shop::open();
    let written = pushes(4);
    shop.write(&written[..2]);
    shop.write(&[Push::from(task("refused"))]);
    shop.write(&written[2..]);
    let store = Arc::new(Picky(Mutex::default()));
    let relayed = Relay::new(shop.outbox(), Arc::clone(&store) as Arc<dyn Backend>).drain().await.expect("moved");
    assert_eq!(relayed, Relayed { moved: 4, refused: 1, ..Relayed::default() });
    assert_eq!(*store.0.lock(), ids(&written));
    assert_eq!(shop.refused(), [(3, "a limit is broken".to_owned())]);
}

/// Counts something.
#[derive(Debug, Clone, Task, serde::Serialize, serde::Deserialize)]
#[task(crate = "windlass_core", name = "count", output = u64)]
struct Count {}

/// Adds it up.
#[derive(Debug, Clone, Task, serde::Serialize, serde::Deserialize)]
#[task(crate = "windlass_core", name = "total", output = u64, input = "counts")]
struct Total {
    #[serde(default)]
    counts: Vec<u64>,
}

#[tokio::test]
async fn a_workflow_is_moved_whole() {
    let (mut shop, store) = (Shop::open(), memory());
    let chord = group([Count {}, Count {}, Count {}]).then(Total { counts: Vec::new() });
    let push = Client::new(Arc::clone(&store)).prepare(chord).expect("prepared");
    assert_eq!((push.envelopes.len(), push.groups.len()), (3, 1));
    let before = pushes(1);
    shop.write(&[before[0].clone(), push.clone()]);
    let relayed = Relay::new(shop.outbox(), Arc::clone(&store)).drain().await.expect("moved");
    assert_eq!(relayed.moved, 2, "rows");
    let workflow = Filter { workflow: push.envelopes[0].workflow.clone(), ..Filter::all() };
    let listing = store.list(&workflow, &Page::first(10)).await.expect("a listing");
    assert_eq!(listing.tasks.len(), 3);
    let Transferred::Parcel(parcel) = store.transfer(&Transfer::Export).await.expect("exported") else {
        unreachable!("an export is answered with a parcel")
    };
    assert_eq!(parcel.groups.len(), 1, "the group is there as well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_relay_is_woken_by_the_commit_of_another_connection() {
    let (mut shop, store) = (Shop::open(), memory());
    let relay = Relay::new(shop.outbox(), Arc::clone(&store));
    let (stop, stopped) = oneshot::channel::<()>();
    let running = tokio::spawn(async move { relay.run(async { drop(stopped.await) }).await });
    let mut took = Vec::new();
    for written in 1..=10 {
        let began = std::time::Instant::now();
        shop.write(&pushes(1));
        until("a row", || async { stored(&*store).await.len() == written }).await;
        took.push(began.elapsed());
    }
    took.sort();
    assert!(took[5] < Duration::from_millis(500), "it does not wait for its look: {took:?}");
    drop(stop);
    running.await.expect("it ends when told to");
}

#[tokio::test]
async fn a_file_without_the_table_says_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("empty.db");
    assert!(SqliteOutbox::open(&file).is_err(), "there is no file");
    Connection::open(&file).expect("a file").execute_batch("CREATE TABLE a (b)").expect("a table");
    let outbox = SqliteOutbox::open(&file).expect("an outbox");
    let error = outbox.take(&[]).await.err().expect("no table").to_string();
    assert!(error.contains("windlass_outbox") && error.contains("SQL"), "{error}");
}

async fn until<F: Future<Output = bool>>(what: &str, mut seen: impl FnMut() -> F) {
    let began = std::time::Instant::now();
    while !seen().await {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}: it does not come");
        // tidy: allow(sleep): the pause between two looks at a store
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
