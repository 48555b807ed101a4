//! Moving between stores over bad lines, killed again and again: in the end everything is in the new store, once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use windlass_core::adoption::{Adopted, Adoption, Delivery};
use windlass_core::backend::{Backend, Command, Demand, Push, ScheduleChange, Settled, Settlement};
use windlass_core::flow::{self, After, FailurePolicy, Flow, Member, NewGroup};
use windlass_core::limit::{Limit, LimitChange, LimitsView, Rule};
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::schedule::every;
use windlass_core::state::DeadReason;
use windlass_core::transfer::Mover;
use windlass_core::view::{Filter, Page};
use windlass_core::{
    Args, DeliveryId, Due, Envelope, Failure, Json, NodeId, QueueName, State, TaskId, TaskName, Timestamp, Verdict,
};
use windlass_memory::MemoryStore;
use windlass_testkit::{Faults, FaultyStore, TestClock};

const SEEDS: u64 = 40;
const START: Timestamp = Timestamp::from_secs(1_800_000_000);

fn task(name: &str) -> Envelope {
    Envelope::new(TaskName::known(name), QueueName::default(), Args::none())
}

fn demand(max: usize) -> Demand {
    Demand {
        node: NodeId::known("node-1"),
        queues: vec![QueueName::default()],
        max,
        lease: Duration::from_secs(30),
        except: Vec::new(),
        wait: Duration::ZERO,
        hush: tokio_util::sync::CancellationToken::new(),
    }
}

/// Takes the next task and ends it.
async fn run_one(store: &MemoryStore, verdict: Verdict) {
    let claim = store.claim(&demand(1)).await.expect("claimed").pop().expect("there is a task");
    let follow = flow::follow(&claim.envelope, &verdict);
    let settled = Settled { receipt: claim.receipt, verdict, follow };
    assert_eq!(store.settle(&[settled]).await.expect("settled"), [Settlement::Applied]);
}

fn ok() -> Verdict {
    Verdict::Succeeded { result: Json::trusted("1"), skipped: None }
}

/// A chord of which one member has arrived, tasks of several states, a schedule and a pause.
async fn furnish(store: &MemoryStore) {
    let group = NewGroup {
        id: TaskId::random(),
        size: 2,
        policy: FailurePolicy::All,
        after: After { push: vec![Envelope { due: Due::Now, ..task("body") }], ..After::default() },
    };
    let member = |index| {
        let member = Some(Member { group: group.id.clone(), index });
        Envelope { flow: Some(Box::new(Flow { member, ..Flow::default() })), ..task("member") }
    };
    let envelopes = vec![member(0), member(1)];
    store.push(&Push { envelopes, groups: vec![group.clone()] }).await.expect("pushed");
    run_one(store, ok()).await;
    let envelopes = (0..1_000).map(|_| task("work")).collect();
    store.push(&Push { envelopes, groups: Vec::new() }).await.expect("pushed");
    let later = Envelope { due: Due::After(Duration::from_secs(3_600)), ..task("later") };
    store.push(&Push { envelopes: vec![later], groups: Vec::new() }).await.expect("pushed");
    let schedule = every("1h").schedule("hourly", task("report")).expect("a schedule");
    store.schedule(&ScheduleChange::Put { schedule, next: Some(START) }).await.expect("put");
    store.command(&Command::PauseQueue(QueueName::known("slow"))).await.expect("paused");
    let rule = Rule { concurrency: Some(3), ..Rule::default() };
    let limit = Limit { subject: "task:work".parse().expect("a subject"), rule };
    store.limit(&LimitChange::Set(limit)).await.expect("set");
    let hold = LimitChange::Hold { gate: "key:acme".parse().expect("a gate"), time: Duration::from_secs(600) };
    store.limit(&hold).await.expect("held");
    for key in ["a", "b"] {
        let (space, value, ttl) = ("once".to_owned(), Json::trusted("1"), Duration::from_secs(3_600));
        let write = NoteAsk::Write { space, key: key.to_owned(), seen: None, value, ttl };
        store.note(&write).await.expect("written");
    }
    let deliveries = vec![delivery()];
    store.adopt(&Adoption { deliveries, ..Adoption::default() }).await.expect("adopted");
    // What a run leaves behind that was killed while it told the stores apart.
    store.command(&Command::PauseTask(TaskName::known("windlass.transfer.0"))).await.expect("paused");
}

/// Of a task that is a dead letter at once, so that it is nobody's next.
fn delivery() -> Delivery {
    let envelope = Envelope::new(TaskName::known("adopted"), QueueName::known("adopted"), Args::none());
    Delivery { id: DeliveryId::known("bridge:1"), envelope, flaw: Some(Failure::new("malformed", "no JSON")) }
}

async fn notes(store: &MemoryStore) -> usize {
    match store.note(&NoteAsk::List { space: None, after: None }).await.expect("listed") {
        NoteAnswer::Notes(notes) => notes.len(),
        other => panic!("notes are listed, not {other:?}"),
    }
}

async fn everything(store: &MemoryStore) -> BTreeSet<(String, State)> {
    let (mut all, mut page) = (BTreeSet::new(), Page::first(1_000));
    loop {
        let listing = store.list(&Filter::all(), &page).await.expect("listed");
        all.extend(listing.tasks.iter().map(|record| (record.envelope.id.to_string(), record.state)));
        match listing.next {
            Some(next) => page.after = Some(next),
            None => return all,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_that_is_killed_again_and_again_arrives() {
    let faults = Faults {
        lost_requests: 0.05,
        lost_replies: 0.05,
        duplicates: 0.05,
        delay: Duration::from_millis(4),
        ..Faults::NONE
    };
    let mut killed = 0;
    for seed in 0..SEEDS {
        let mut dice = fastrand::Rng::with_seed(seed);
        let clock = Arc::new(TestClock::at(START));
        let (old, new) = (MemoryStore::new(clock.clone()), MemoryStore::new(clock.clone()));
        furnish(&old).await;
        let failure = Failure::new("timeout", "too late");
        // The second member is the oldest ready task: it waits, and a plain one becomes a dead letter.
        let before = {
            let claims = old.claim(&demand(2)).await.expect("claimed");
            let dead = Verdict::Dead { reason: DeadReason::Fatal, failure };
            for (claim, verdict) in claims.into_iter().zip([Verdict::Released, dead]) {
                let settled = Settled { receipt: claim.receipt, verdict, follow: flow::Follow::default() };
                old.settle(&[settled]).await.expect("settled");
            }
            everything(&old).await
        };
        loop {
            let line = |store: &MemoryStore, seed| -> Arc<dyn Backend> {
                Arc::new(FaultyStore::new(Arc::new(store.clone()), seed, faults))
            };
            let mover = Mover::new(line(&old, dice.u64(..)), line(&new, dice.u64(..))).clock(clock.clone());
            let lives = Duration::from_millis(dice.u64(1..400));
            match tokio::time::timeout(lives, mover.run(|_| ())).await {
                Ok(moved) => {
                    moved.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                    break;
                }
                Err(_) => killed += 1,
            }
        }
        assert_eq!(everything(&new).await, before, "seed {seed}");
        assert_eq!(everything(&old).await, BTreeSet::new(), "seed {seed}");
        let (of_old, of_new) = (old.counts().await.expect("counts"), new.counts().await.expect("counts"));
        assert_eq!((of_old.closed, of_new.closed), (true, false), "seed {seed}");
        assert!(of_new.queues[&QueueName::known("slow")].paused, "seed {seed}");
        assert_eq!(of_new.paused_tasks, [], "seed {seed}: a mark is no pause");
        assert_eq!(
            (new.schedules().await.expect("listed").len(), old.schedules().await.expect("listed").len()),
            (1, 0)
        );
        let limits = new.limits().await.expect("listed");
        assert_eq!((limits.limits.len(), limits.gates.len()), (1, 1), "seed {seed}");
        assert_eq!(limits.gates[0].held_until, Some(START + Duration::from_secs(600)), "seed {seed}");
        assert_eq!(old.limits().await.expect("listed"), LimitsView::default(), "seed {seed}");
        assert_eq!((notes(&new).await, notes(&old).await), (3, 0), "seed {seed}");
        let again = Adoption { deliveries: vec![delivery()], ..Adoption::default() };
        let adopting = new.adopt(&again).await.expect("adopted");
        assert_eq!(adopting.adopted, [Adopted::Known], "seed {seed}: a delivery is known in the new store");
        // The member that had arrived before the move counts.
        run_one(&new, ok()).await;
        let names: Vec<_> = everything(&new).await.into_iter().filter(|(_, state)| *state == State::Ready).collect();
        assert_eq!(names.len(), 999 + 1, "seed {seed}: what follows the chord is there");
    }
    assert!(killed > SEEDS, "the lines are too good to prove anything: {killed} kills");
}
