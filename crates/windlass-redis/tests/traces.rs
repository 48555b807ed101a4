//! Nothing is left behind: however tasks went through keys, limits and replacements, what is counted of them is right.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::{demand, node, push_of, redis, settled, succeeded, task};
use windlass_core::backend::{Backend, Claim, Command, Push, Pushed, Target, TaskAction};
use windlass_core::flow::{After, FailurePolicy, NewGroup};
use windlass_core::limit::{Gate, Limit, LimitChange, Rule};
use windlass_core::state::Spent;
use windlass_core::{
    Args, Due, Envelope, Key, OnConflict, Priority, QueueName, State, TaskName, Unique, UniqueKey, Verdict,
};
use windlass_redis::{Location, Options, RedisStore};
use windlass_servers::Redis;

const QUEUES: [&str; 2] = ["default", "other"];
const NAMES: [&str; 3] = ["a", "b", "c"];
const KEYS: [&str; 4] = ["", "one", "two three", "ä"];
const LIMITS: [(&str, &str); 5] = [
    ("queue:default", r#"{"concurrency":7}"#),
    ("task:a", r#"{"concurrency":4,"rate":"1000/s burst 50"}"#),
    ("key:one", r#"{"concurrency":3,"weight":2}"#),
    ("keys-of-queue:other", r#"{"concurrency":2}"#),
    ("keys-of-task:b", r#"{"concurrency":2,"rate":"1000/s burst 50"}"#),
];

async fn store(server: &Redis) -> RedisStore {
    let location: Location = server.url().parse().expect("a URL");
    RedisStore::open(location, Options::default()).await.expect("a store")
}

fn any(dice: &mut fastrand::Rng) -> Envelope {
    let key = KEYS[dice.usize(..KEYS.len())];
    Envelope {
        name: TaskName::known(NAMES[dice.usize(..NAMES.len())]),
        queue: QueueName::known(QUEUES[dice.usize(..QUEUES.len())]),
        key: (!key.is_empty()).then(|| Key::known(key)),
        priority: if dice.bool() { Priority::HIGH } else { Priority::LOW },
        due: if dice.u8(..4) == 0 { Due::After(Duration::from_millis(dice.u64(..30))) } else { Due::Now },
        ..task("a")
    }
}

async fn claims(store: &RedisStore, max: usize) -> Vec<Claim> {
    let queues = QUEUES.map(QueueName::known).to_vec();
    let demand = windlass_core::backend::Demand { queues, ..demand(max, Duration::ZERO) };
    store.claim(&demand).await.expect("the store answers")
}

fn any_end(dice: &mut fastrand::Rng) -> Verdict {
    match dice.u8(..6) {
        0 => Verdict::Released,
        1 => Verdict::Parked,
        2 => Verdict::Again { after: Duration::from_millis(dice.u64(..10)), spent: Spent::No, failure: None },
        _ => succeeded(),
    }
}

async fn act(store: &RedisStore, claim: &Claim, action: TaskAction) {
    let command = Command::Tasks { target: Target::Ids(vec![claim.receipt.id.clone()]), action };
    store.command(&command).await.expect("the store answers");
}

/// What runs at each gate, from the tasks that are held.
fn running(held: &[Claim]) -> BTreeMap<Gate, u64> {
    let mut counted = BTreeMap::new();
    for Claim { envelope, .. } in held {
        let (queue, name, key) = (&envelope.queue, &envelope.name, envelope.key.as_ref());
        let mut gates = vec![Gate::Queue(queue.clone()), Gate::Task(name.clone())];
        if let Some(key) = key.cloned() {
            gates.push(Gate::Key(key.clone()));
            gates.push(Gate::KeyOfQueue(queue.clone(), key.clone()));
            gates.push(Gate::KeyOfTask(name.clone(), key));
        }
        for gate in gates {
            *counted.entry(gate).or_default() += 1;
        }
    }
    counted
}

/// Compares what the store counts with what is held.
async fn check(store: &RedisStore, held: &[Claim]) {
    let view = store.limits().await.expect("the store answers");
    let held = running(held);
    for limit in &view.limits {
        let expected: Vec<_> = held.iter().filter(|(gate, _)| gate.subject() == limit.subject).collect();
        for (gate, count) in expected {
            let found = view.gates.iter().find(|view| view.gate == *gate).and_then(|view| view.running);
            assert_eq!(found, Some(*count), "{gate}");
        }
    }
    let sum: u64 = view.gates.iter().filter_map(|view| view.running).sum();
    let limited = |gate: &Gate| view.limits.iter().any(|limit| limit.subject == gate.subject());
    let expected: u64 = held.iter().filter(|(gate, _)| limited(gate)).map(|(_, count)| *count).sum();
    assert_eq!(sum, expected, "nothing else is counted");
}

#[tokio::test]
async fn nothing_is_left_of_keys_and_limits_when_everything_has_ended() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut dice = fastrand::Rng::with_seed(seed);
    let server = redis();
    let store = store(&server).await;
    let mut held: Vec<Claim> = Vec::new();
    for step in 0..400 {
        match dice.u8(..8) {
            0 | 1 => {
                let tasks: Vec<Envelope> = (0..dice.usize(1..10)).map(|_| any(&mut dice)).collect();
                store.push(&push_of(tasks)).await.expect("the store answers");
            }
            2 => {
                let (subject, rule) = LIMITS[dice.usize(..LIMITS.len())];
                let subject = subject.parse().expect("a subject");
                let change = if dice.bool() {
                    LimitChange::Set(Limit { subject, rule: Rule::from_text(rule).expect("a rule") })
                } else {
                    LimitChange::Remove(subject)
                };
                store.limit(&change).await.expect("the store answers");
            }
            3 if !held.is_empty() => {
                let claim = held.swap_remove(dice.usize(..held.len()));
                store.settle(&[settled(&claim, Verdict::Parked)]).await.expect("the store answers");
                let queue = QueueName::known(QUEUES[dice.usize(..QUEUES.len())]);
                let actions = [TaskAction::Move(queue), TaskAction::Reprioritise(Priority::HIGH), TaskAction::Cancel];
                for action in actions.into_iter().take(dice.usize(..4)) {
                    act(&store, &claim, action).await;
                }
                if dice.bool() {
                    act(&store, &claim, TaskAction::Retry).await;
                }
            }
            4 | 5 => held.extend(claims(&store, dice.usize(1..12)).await),
            6 => {
                for _ in 0..dice.usize(0..=held.len()) {
                    let claim = held.swap_remove(dice.usize(..held.len()));
                    store.settle(&[settled(&claim, any_end(&mut dice))]).await.expect("the store answers");
                }
            }
            _ => {
                store.tick(&node()).await.expect("the store answers");
            }
        }
        if step % 10 == 0 {
            check(&store, &held).await;
        }
    }
    let ends: Vec<_> = held.iter().map(|claim| settled(claim, succeeded())).collect();
    store.settle(&ends).await.expect("the store answers");
    check(&store, &[]).await;
    for (subject, _) in LIMITS {
        store.limit(&LimitChange::Remove(subject.parse().expect("a subject"))).await.expect("the store answers");
    }
    let parked = windlass_core::view::Filter::in_states([State::Parked]);
    let target = Target::Matching { filter: parked, after: None };
    store.command(&Command::Tasks { target, action: TaskAction::Cancel }).await.expect("the store answers");
    let began = std::time::Instant::now();
    loop {
        let taken = claims(&store, 100).await;
        store.settle(&taken.iter().map(|claim| settled(claim, succeeded())).collect::<Vec<_>>()).await.expect("settle");
        let counts = store.counts().await.expect("the store answers").total();
        if counts.ready + counts.scheduled + counts.running == 0 {
            break;
        }
        assert!(began.elapsed() < common::PATIENCE, "{counts:?}");
    }
    let keys = server.cli(&["KEYS", "*"]).expect("the server answers");
    let left = |kind: &str| keys.lines().any(|key| key.starts_with(&format!("{{windlass}}:{kind}")));
    for kind in ["ready:", "lanes:", "names:", "keys:", "keyed:", "running", "lease", "due:"] {
        assert!(!left(kind), "{kind} is left: {keys}");
    }
}

fn replacing(text: &str, size: usize) -> Envelope {
    let mut unique = Unique::new(UniqueKey::known("k"));
    unique.on_conflict = OnConflict::Replace;
    let args = Args::parse(&format!("{{\"text\":\"{text}{}\"}}", "x".repeat(size))).expect("arguments");
    Envelope { args, unique: Some(unique), retries: Some(7), key: Some(Key::known("key")), ..task("work") }
}

/// Short bodies and long ones replace each other, in one batch as in several, and all else stays.
#[tokio::test]
async fn a_task_is_replaced_again_and_again() {
    let server = redis();
    let store = store(&server).await;
    let first = Envelope { retries: Some(3), ..replacing("first", 10) };
    let batch = [first.clone(), replacing("second", 9_000), replacing("third", 1)];
    let replaced = Pushed::Replaced(first.id.clone());
    let pushed = store.push(&push_of(batch)).await.expect("the store answers");
    assert_eq!(pushed, [Pushed::Stored, replaced.clone(), replaced.clone()]);
    for (text, size) in [("fourth", 5_000), ("fifth", 7_000), ("last", 3)] {
        let pushed = store.push(&push_of([replacing(text, size)])).await.expect("the store answers");
        assert_eq!(pushed, std::slice::from_ref(&replaced));
    }
    let taken = claims(&store, 10).await;
    assert_eq!(taken.len(), 1);
    assert_eq!(taken[0].envelope.args, replacing("last", 3).args);
    assert_eq!(taken[0].envelope.retries, Some(3));
    assert_eq!(server.cli(&["EXISTS", "{windlass}:body"]).expect("the server answers"), "0");
}

/// A group comes whole or not at all.
#[tokio::test]
async fn a_group_that_finds_its_queue_full_leaves_nothing() {
    let server = redis();
    let store = store(&server).await;
    let rule = Rule { length: Some(2), ..Rule::default() };
    let subject = "queue:default".parse().expect("a subject");
    store.limit(&LimitChange::Set(Limit { subject, rule })).await.expect("the store answers");
    let id = windlass_core::TaskId::random();
    let group = || NewGroup { id: id.clone(), size: 3, policy: FailurePolicy::All, after: After::default() };
    let push = |members: usize| Push { envelopes: (0..members).map(|_| task("work")).collect(), groups: vec![group()] };
    let full = vec![Pushed::Full { limit: 2 }; 3];
    assert_eq!(store.push(&push(3)).await.expect("the store answers"), full);
    assert_eq!(store.counts().await.expect("the store answers").total().ready, 0);
    assert_eq!(server.cli(&["EXISTS", &format!("{{windlass}}:group:{id}")]).expect("the server answers"), "0");
    assert_eq!(store.push(&push(2)).await.expect("the store answers"), [Pushed::Stored, Pushed::Stored]);
}
