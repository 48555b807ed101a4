//! What a bridge promises: every message becomes one task, whatever dies or fails between the transport and the store.

mod leaving;
mod unheld;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use windlass_core::adoption::DELIVERY_SPACE;
use windlass_core::backend::{
    Backend, Claim, Command, Demand, Push, Renewal, Renewed, Settled, Settlement, StoreError,
};
use windlass_core::bridge::{Answer, Bridge, DELIVERED_AS, Malformed, Message, News};
use windlass_core::flow;
use windlass_core::limit::{Limit, LimitChange, Rule};
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::state::DeadReason;
use windlass_core::view::{Filter, Health, NodeInfo, NodePhase, Page, Record};
use windlass_core::{
    Args, Clock, Due, Envelope, Failure, Json, NodeId, QueueName, State, TaskId, TaskName, Timestamp, Verdict,
};
use windlass_memory::MemoryStore;
use windlass_testkit::transport::ANSWERED;
use windlass_testkit::{Faults, FaultyStore, MemoryTransport};

const LEASE: Duration = Duration::from_secs(30);
const LONG: Duration = Duration::from_secs(60);

/// The time of the runtime, which stands still while there is something to do.
#[derive(Debug)]
struct RuntimeClock(Instant);

impl Clock for RuntimeClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_secs(1_800_000_000) + self.0.elapsed()
    }
}

/// A store, a transport, and bridges between them.
struct Rig {
    clock: Arc<dyn Clock>,
    store: MemoryStore,
    transport: MemoryTransport,
}

impl Rig {
    fn new() -> Self {
        let clock: Arc<dyn Clock> = Arc::new(RuntimeClock(Instant::now()));
        Self { store: MemoryStore::new(Arc::clone(&clock)), transport: MemoryTransport::new(), clock }
    }

    fn bridge(&self) -> Arc<Bridge> {
        self.bridge_over(Arc::new(self.store.clone()))
    }

    fn bridge_over(&self, store: Arc<dyn Backend>) -> Arc<Bridge> {
        Arc::new(Bridge::new(store, Arc::new(self.transport.clone())).with_clock(Arc::clone(&self.clock)))
    }

    /// A bridge over a store that can be cut off and has these faults.
    fn bad_bridge(&self, seed: u64, faults: Faults) -> (Arc<Bridge>, Arc<FaultyStore>) {
        let line = Arc::new(FaultyStore::new(Arc::new(self.store.clone()), seed, faults));
        (self.bridge_over(Arc::clone(&line) as Arc<dyn Backend>), line)
    }

    async fn records(&self) -> Vec<Record> {
        self.store.list(&Filter::all(), &Page::first(1_000)).await.expect("listed").tasks
    }

    async fn remembered(&self) -> usize {
        let ask = NoteAsk::List { space: Some(DELIVERY_SPACE.to_owned()), after: None };
        match self.store.note(&ask).await.expect("listed") {
            NoteAnswer::Notes(notes) => notes.len(),
            other => panic!("notes are listed, not {other:?}"),
        }
    }

    async fn push(&self, envelope: Envelope) {
        self.store.push(&Push { envelopes: vec![envelope], groups: vec![] }).await.expect("pushed");
    }
}

fn task(name: &str) -> Envelope {
    Envelope::new(TaskName::known(name), QueueName::default(), Args::none())
}

fn answered(name: &str) -> Envelope {
    Envelope { headers: [(ANSWERED.to_owned(), "yes".to_owned())].into(), ..task(name) }
}

fn node(name: &str) -> NodeId {
    NodeId::known(name)
}

fn demand(max: usize, wait: Duration) -> Demand {
    Demand {
        node: node("n1"),
        queues: vec![QueueName::default()],
        max,
        lease: LEASE,
        except: Vec::new(),
        wait,
        hush: tokio_util::sync::CancellationToken::new(),
    }
}

fn ids(claims: &[Claim]) -> Vec<TaskId> {
    claims.iter().map(|claim| claim.receipt.id.clone()).collect()
}

fn succeeded(claim: &Claim) -> Settled {
    let verdict = Verdict::Succeeded { result: Json::trusted("1"), skipped: None };
    Settled { receipt: claim.receipt.clone(), follow: flow::follow(&claim.envelope, &verdict), verdict }
}

/// Claims, and waits until what was stored has left the transport.
async fn claim(bridge: &Bridge, max: usize) -> Vec<Claim> {
    let claims = bridge.claim(&demand(max, Duration::ZERO)).await.expect("claimed");
    bridge.all_left().await;
    claims
}

/// A claim that waits, begun.
fn waiting(bridge: &Arc<Bridge>, max: usize) -> tokio::task::JoinHandle<Result<Vec<Claim>, StoreError>> {
    let bridge = Arc::clone(bridge);
    tokio::spawn(async move { bridge.claim(&demand(max, LONG)).await })
}

/// Lets everything go on that need not wait for time.
async fn settle_down() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

fn info(name: &str) -> NodeInfo {
    NodeInfo {
        id: node(name),
        host: "host".to_owned(),
        pid: 1,
        version: "1.0".to_owned(),
        started_at: Timestamp::from_secs(1_800_000_000),
        queues: vec![QueueName::default()],
        tasks: Vec::new(),
        slots: 10,
        busy: 0,
        finished: 0,
        failed: 0,
        phase: NodePhase::Running,
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_becomes_a_claim_and_is_accepted() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let sent = task("work");
    rig.transport.send("t:1", sent.clone());
    let claims = claim(&bridge, 10).await;
    assert_eq!(*claims[0].envelope, sent);
    assert_eq!((claims.len(), rig.transport.waiting(), rig.transport.held()), (1, 0, 0));
    assert_eq!(bridge.settle(&[succeeded(&claims[0])]).await.expect("settled"), [Settlement::Applied]);
    assert_eq!(rig.records().await[0].state, State::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn no_more_is_taken_than_there_are_free_slots() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    (0..10).for_each(|number| rig.transport.send(&format!("t:{number}"), task("work")));
    assert_eq!(claim(&bridge, 3).await.len(), 3);
    assert_eq!((rig.transport.waiting(), rig.records().await.len()), (7, 3));
    assert_eq!(rig.transport.takes(), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_message_does_not_wait_for_the_store() {
    let rig = Rig::new();
    let claim = waiting(&rig.bridge(), 10);
    settle_down().await;
    rig.transport.send("t:1", task("work"));
    let began = Instant::now();
    assert_eq!(claim.await.expect("it ends").expect("claimed").len(), 1);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_falls_due_does_not_wait_for_a_message() {
    let rig = Rig::new();
    let due = Envelope { due: Due::After(Duration::from_secs(7)), ..task("retry") };
    rig.push(due.clone()).await;
    let began = Instant::now();
    let claims = waiting(&rig.bridge(), 10).await.expect("it ends").expect("claimed");
    assert_eq!(ids(&claims), [due.id]);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_comes_from_both_at_once_is_no_more_than_the_free_slots_and_nothing_is_lost() {
    for round in 0..20 {
        let rig = Rig::new();
        let bridge = rig.bridge();
        let claim = waiting(&bridge, 1);
        settle_down().await;
        let (sent, pushed) = (task("sent"), task("pushed"));
        rig.transport.send("t:1", sent.clone());
        if round % 2 == 0 {
            settle_down().await;
        }
        rig.push(pushed.clone()).await;
        let mut claims = claim.await.expect("it ends").expect("claimed");
        assert_eq!(claims.len(), 1, "round {round}");
        claims.extend(waiting(&bridge, 2).await.expect("it ends").expect("claimed"));
        let claimed: BTreeSet<TaskId> = ids(&claims).into_iter().collect();
        assert_eq!(claimed, [sent.id, pushed.id].into(), "round {round}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_waits_in_vain_ends_and_so_does_one_that_is_hushed() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let began = Instant::now();
    assert!(bridge.claim(&demand(1, Duration::from_secs(5))).await.expect("claimed").is_empty());
    assert_eq!(began.elapsed().as_secs(), 5);
    let waits = demand(1, LONG);
    let hush = waits.hush.clone();
    let claim = tokio::spawn(async move { bridge.claim(&waits).await });
    settle_down().await;
    hush.cancel();
    assert!(claim.await.expect("it ends").expect("claimed").is_empty());
    assert_eq!(began.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_between_taking_and_storing_loses_no_message() {
    let rig = Rig::new();
    let (bridge, line) = rig.bad_bridge(1, Faults::NONE);
    bridge.beat(&info("n1"), Duration::from_secs(10)).await.expect("alive");
    line.freeze(Duration::from_secs(3_600));
    rig.transport.send("t:1", task("work"));
    let claim = waiting(&bridge, 1);
    rig.transport.until(|transport| transport.held() == 1).await;
    claim.abort();
    assert!(claim.await.is_err());
    drop(bridge);
    let other = rig.bridge();
    tokio::time::advance(Duration::from_secs(11)).await;
    other.tick(&node("n2")).await.expect("it ticks");
    let claims = other.claim(&Demand { node: node("n2"), ..demand(1, Duration::ZERO) }).await.expect("claimed");
    other.all_left().await;
    assert_eq!((claims.len(), rig.transport.held(), rig.records().await.len()), (1, 0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_node_that_dies_between_storing_and_accepting_has_its_message_known() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    bridge.beat(&info("n1"), Duration::from_secs(10)).await.expect("alive");
    rig.transport.hang_accepts();
    rig.transport.send("t:1", task("work"));
    let claims = waiting(&bridge, 1).await.expect("it ends").expect("the worker does not wait for the transport");
    settle_down().await;
    assert_eq!((claims.len(), rig.records().await.len(), rig.transport.held()), (1, 1, 1));
    drop(bridge);
    // The transport that a new process connects to answers.
    let transport = MemoryTransport::new();
    transport.send("t:1", task("work"));
    let other = Bridge::new(Arc::new(rig.store.clone()), Arc::new(transport.clone()));
    assert!(claim(&other, 1).await.is_empty());
    assert_eq!((rig.records().await.len(), transport.waiting(), transport.held()), (1, 0, 0));
    // What died with it runs again when its lease has run out.
    tokio::time::advance(LEASE).await;
    other.tick(&node("n2")).await.expect("it ticks");
    assert_eq!(other.claim(&demand(1, Duration::ZERO)).await.expect("claimed")[0].attempt, 2);
}

#[tokio::test(start_paused = true)]
async fn lost_requests_and_answers_of_the_store_store_every_message_once() {
    for seed in 0..30 {
        let rig = Rig::new();
        let faults = Faults { lost_requests: 0.2, lost_replies: 0.3, duplicates: 0.1, ..Faults::NONE };
        let (bridge, line) = rig.bad_bridge(seed, faults);
        let sent: BTreeSet<TaskId> = (0..40)
            .map(|number| {
                let envelope = task("work");
                rig.transport.send(&format!("t:{number}"), envelope.clone());
                envelope.id
            })
            .collect();
        for _ in 0..40 {
            // The worker would wait before it asks again.
            let _ = bridge.claim(&demand(7, Duration::from_secs(1))).await;
        }
        line.set(Faults::NONE);
        while rig.transport.waiting() + rig.transport.held() > 0 {
            bridge.claim(&demand(7, Duration::from_secs(40))).await.expect("the line is good");
            bridge.all_left().await;
            bridge.tick(&node("n1")).await.expect("it ticks");
        }
        let records = rig.records().await;
        let stored: BTreeSet<TaskId> = records.iter().map(|record| record.envelope.id.clone()).collect();
        assert_eq!((records.len(), stored), (40, sent), "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_transport_is_down_the_store_goes_on_and_the_transport_is_asked_later_and_later() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.transport.send("t:1", task("sent"));
    rig.transport.cut();
    for _ in 0..20 {
        rig.push(task("pushed")).await;
        assert_eq!(claim(&bridge, 10).await.len(), 1);
    }
    assert!(bridge.claim(&demand(1, LONG)).await.expect("claimed").is_empty());
    assert!(rig.transport.takes().0 < 50, "{:?}", rig.transport.takes());
    let check = bridge.info().await.expect("informed").checks.pop().expect("a check");
    assert_eq!((check.name, check.health), ("transport", Health::Bad));
    let claim = waiting(&bridge, 1);
    settle_down().await;
    rig.transport.mend();
    let began = Instant::now();
    assert_eq!(claim.await.expect("it ends").expect("claimed").len(), 1);
    assert!(began.elapsed() <= Duration::from_secs(3), "{:?}", began.elapsed());
    let check = bridge.info().await.expect("informed").checks.pop().expect("a check");
    assert_eq!(check.health, Health::Good);
}

#[tokio::test(start_paused = true)]
async fn while_the_store_is_down_messages_stay_with_the_transport() {
    let rig = Rig::new();
    let (bridge, line) = rig.bad_bridge(1, Faults { lost_requests: 1.0, ..Faults::NONE });
    rig.transport.send("t:1", task("work"));
    for _ in 0..20 {
        bridge.claim(&demand(1, Duration::ZERO)).await.expect_err("the store is down");
    }
    assert_eq!((rig.transport.waiting(), rig.transport.held()), (1, 0));
    assert!(rig.transport.takes().0 <= 2, "it is asked for nothing that cannot be stored: {:?}", rig.transport.takes());
    line.set(Faults::NONE);
    assert_eq!(waiting(&bridge, 1).await.expect("it ends").expect("claimed").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_leaves_messages_with_the_transport() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let rule = Rule::from_text(r#"{"length":1}"#).expect("a rule");
    let limit = Limit { subject: "queue:default".parse().expect("a subject"), rule };
    rig.store.limit(&LimitChange::Set(limit)).await.expect("set");
    (0..5).for_each(|number| rig.transport.send(&format!("t:{number}"), task("work")));
    let mut ended = 0;
    while ended < 5 {
        let claims = bridge.claim(&demand(5, LONG)).await.expect("claimed");
        assert_eq!(claims.len(), 1, "one at a time has a place");
        bridge.settle(&[succeeded(&claims[0])]).await.expect("settled");
        ended += 1;
    }
    assert!(rig.transport.takes().0 <= 10, "{:?}", rig.transport.takes());
    bridge.all_left().await;
    assert_eq!((rig.records().await.len(), rig.transport.waiting(), rig.transport.held()), (5, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_paused_queue_does_not_drain_the_transport_into_the_store() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.store.command(&Command::PauseQueue(QueueName::default())).await.expect("paused");
    (0..500).for_each(|number| rig.transport.send(&format!("t:{number}"), task("work")));
    assert!(bridge.claim(&demand(5, LONG)).await.expect("claimed").is_empty());
    // In a minute: as many as there are slots every 2.5 to 5 s.
    assert!(rig.records().await.len() <= 5 * 26, "{} are stored", rig.records().await.len());
    rig.store.command(&Command::ResumeQueue(QueueName::default())).await.expect("resumed");
    let mut ended = 0;
    while ended < 500 {
        let claims = bridge.claim(&demand(50, LONG)).await.expect("claimed");
        ended += claims.len();
        bridge.settle(&claims.iter().map(succeeded).collect::<Vec<_>>()).await.expect("settled");
    }
    assert_eq!(ended, 500);
}

#[tokio::test(start_paused = true)]
async fn a_malformed_message_becomes_a_dead_letter_with_its_bytes_and_others_go_on() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let malformed = Malformed {
        queue: QueueName::default(),
        name: Some(TaskName::known("add")),
        id: None,
        reason: "the body is no JSON".to_owned(),
        raw: b"{\"x\": ".to_vec(),
    };
    rig.transport.send_message("t:1", Message::Malformed(malformed));
    rig.transport.send("t:2", Envelope { due: Due::After(windlass_core::envelope::DELAY_MAX * 2), ..task("far") });
    let sound = task("work");
    rig.transport.send("t:3", sound.clone());
    assert_eq!(ids(&claim(&bridge, 10).await), [sound.id]);
    let dead: Vec<Record> = rig.records().await.into_iter().filter(|record| record.state == State::Dead).collect();
    assert!(dead.iter().all(|record| record.reason == Some(DeadReason::Malformed)));
    assert_eq!(dead.iter().map(|record| record.envelope.name.as_str()).collect::<Vec<_>>(), ["far", "add"]);
    assert_eq!(dead[1].failure, Some(Failure::new("malformed", "the body is no JSON")));
    assert!(dead[1].envelope.args.keyword().expect("arguments").as_str().contains(r#"{\"x\": "#));
    assert_eq!((rig.transport.waiting(), rig.transport.held()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_second_run_of_a_living_task_is_stored_under_another_id_and_answered_under_the_first() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let sent = answered("work");
    rig.transport.send("t:1", sent.clone());
    rig.transport.send("t:2", sent.clone());
    let mut claims = claim(&bridge, 10).await;
    if claims.len() < 2 {
        claims.extend(claim(&bridge, 10).await);
    }
    assert_eq!(claims.len(), 2);
    assert_eq!((&claims[0].receipt.id, &claims[1].envelope.headers[DELIVERED_AS]), (&sent.id, &sent.id.to_string()));
    assert_ne!(claims[1].receipt.id, sent.id);
    bridge.settle(&claims.iter().map(succeeded).collect::<Vec<_>>()).await.expect("settled");
    let answers = rig.transport.answers();
    let settled = answers.iter().filter(|answer| matches!(answer.news, News::Settled(_)));
    assert_eq!(settled.map(Answer::id).collect::<Vec<_>>(), vec![sent.id.to_string(); 2]);
    assert_eq!((rig.transport.waiting(), rig.transport.held()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_delivery_that_comes_again_is_accepted_and_runs_once() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.transport.send("t:1", task("work"));
    rig.transport.send("t:1", task("again"));
    assert_eq!(claim(&bridge, 10).await.len(), 1);
    assert_eq!((rig.records().await.len(), rig.transport.waiting(), rig.transport.held()), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn how_a_task_ends_is_told_before_it_is_recorded_and_not_recorded_while_it_cannot_be_told() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.transport.send("t:1", answered("work"));
    rig.transport.send("t:2", task("unheard"));
    let claims = claim(&bridge, 2).await;
    rig.transport.cut();
    bridge.settle(&claims.iter().map(succeeded).collect::<Vec<_>>()).await.expect_err("nobody can be told");
    assert!(rig.records().await.iter().all(|record| record.state == State::Running));
    rig.transport.mend();
    bridge.settle(&claims.iter().map(succeeded).collect::<Vec<_>>()).await.expect("settled");
    let news: Vec<News> = rig.transport.answers().into_iter().map(|answer| answer.news).collect();
    assert_eq!(news, [News::Started(node("n1")), News::Settled(succeeded(&claims[0]).verdict)]);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_may_have_lost_its_lease_is_told_only_when_it_is_recorded() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.transport.send("t:1", answered("slow"));
    let claims = claim(&bridge, 1).await;
    tokio::time::advance(LEASE).await;
    rig.store.tick(&node("n2")).await.expect("it ticks");
    assert_eq!(bridge.settle(&[succeeded(&claims[0])]).await.expect("settled"), [Settlement::Stale]);
    bridge.tick(&node("n1")).await.expect("it ticks");
    assert!(!rig.transport.answers().iter().any(|answer| matches!(answer.news, News::Settled(_))));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_refused_holds_up_nobody_and_is_tried_again() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.transport.send("t:1", answered("secret"));
    rig.transport.send("t:2", answered("work"));
    let claims = claim(&bridge, 2).await;
    rig.transport.refuse_answers_of("secret");
    bridge.settle(&claims.iter().map(succeeded).collect::<Vec<_>>()).await.expect("settled");
    let told = |name: &str| {
        let answers = rig.transport.answers();
        answers
            .iter()
            .filter(|answer| matches!(answer.news, News::Settled(_)))
            .any(|answer| answer.envelope.name.as_str() == name)
    };
    assert!(told("work") && !told("secret"));
    bridge.tick(&node("n1")).await.expect("it ticks");
    rig.transport.mend();
    bridge.tick(&node("n1")).await.expect("it ticks");
    assert!(told("secret"), "somebody has mended it");
}

#[tokio::test(start_paused = true)]
async fn messages_are_stored_ahead_of_the_slots_when_that_is_wanted() {
    let rig = Rig::new();
    let bridge = Bridge::new(Arc::new(rig.store.clone()), Arc::new(rig.transport.clone()));
    let bridge = bridge.with_clock(Arc::clone(&rig.clock)).with_ahead(2);
    for number in 0..5 {
        rig.transport.send(&format!("t:{number}"), task("work"));
    }
    assert_eq!(claim(&bridge, 1).await.len(), 1);
    for _ in 0..3 {
        bridge.tick(&node("n1")).await.expect("it ticks");
    }
    let ready = rig.records().await.into_iter().filter(|record| record.state == State::Ready).count();
    assert_eq!((ready, rig.transport.waiting()), (2, 2));
}

#[tokio::test(start_paused = true)]
async fn a_refused_message_becomes_a_dead_letter_that_can_be_retried_and_is_answered() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    let failure = Failure::new("not_registered", "nobody here knows it");
    rig.transport.send_message("t:1", Message::Refused(Box::new(answered("strange")), failure.clone()));
    assert!(claim(&bridge, 1).await.is_empty());
    let dead = rig.records().await.remove(0);
    assert_eq!(
        (dead.state, dead.failure, dead.envelope.name.as_str()),
        (State::Dead, Some(failure.clone()), "strange")
    );
    let news: Vec<News> = rig.transport.answers().into_iter().map(|answer| answer.news).collect();
    assert_eq!(news, [News::Settled(Verdict::Dead { reason: DeadReason::Malformed, failure })]);
}

#[tokio::test(start_paused = true)]
async fn of_a_transport_without_identities_a_second_message_of_the_same_words_is_a_second_run() {
    let rig = Rig::new();
    let bridge = rig.bridge();
    rig.transport.send_without_identity("work", answered("work"));
    assert_eq!(claim(&bridge, 1).await.len(), 1);
    rig.transport.send_without_identity("work", answered("work"));
    rig.transport.send_without_identity("work", answered("work"));
    let mut claims = claim(&bridge, 10).await;
    claims.extend(claim(&bridge, 10).await);
    assert_eq!(claims.len(), 2);
    assert_eq!((rig.transport.waiting(), rig.transport.held()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_settle_whose_answer_was_lost_is_told_once_and_a_lost_task_never() {
    let rig = Rig::new();
    let (bridge, line) = rig.bad_bridge(1, Faults::NONE);
    rig.transport.send("t:1", answered("work"));
    rig.transport.send("t:2", answered("slow"));
    let claims = claim(&bridge, 2).await;
    line.set(Faults { lost_replies: 1.0, ..Faults::NONE });
    bridge.settle(&[succeeded(&claims[0])]).await.expect_err("the answer is lost");
    line.set(Faults::NONE);
    assert_eq!(bridge.settle(&[succeeded(&claims[0])]).await.expect("settled"), [Settlement::Stale]);
    // The other one outlives its lease, and somebody else has it.
    tokio::time::advance(LEASE).await;
    rig.store.tick(&node("n2")).await.expect("it ticks");
    let renewal = Renewal { receipt: claims[1].receipt.clone(), progress: None, memo: None };
    assert_eq!(bridge.renew(&[renewal], LEASE).await.expect("renewed"), [Renewed::Lost]);
    assert_eq!(bridge.settle(&[succeeded(&claims[1])]).await.expect("settled"), [Settlement::Stale]);
    bridge.tick(&node("n1")).await.expect("it ticks");
    let settled: Vec<String> = rig
        .transport
        .answers()
        .into_iter()
        .filter(|answer| matches!(answer.news, News::Settled(_)))
        .map(|answer| answer.envelope.name.to_string())
        .collect();
    assert_eq!(settled, ["work"]);
}
