//! What an adoption promises: each delivery of a transport becomes one task, however often it is delivered.

use std::collections::HashSet;
use std::sync::Arc;

use windlass_core::adoption::{Adopted, Adopting, Adoption, DELIVERY_SPACE, DELIVERY_TTL, Delivery};
use windlass_core::backend::{BATCH_MAX, Claim, Command, Demand, Renewed, Settlement, TaskAction};
use windlass_core::limit::{Limit, LimitChange, Rule};
use windlass_core::note::{NoteAnswer, NoteAsk};
use windlass_core::state::DeadReason;
use windlass_core::view::Filter;
use windlass_core::{
    Args, DeliveryId, Due, Envelope, Key, NodeId, OnConflict, Priority, State, TaskId, TaskName, Unique, UniqueHold,
    UniqueKey, Verdict,
};

use super::harness::{Harness, PATIENCE, START, answer, begun, is_rejected, soon};
use super::make::{
    LEASE, MICRO, dead, delayed, demand, demand_of, failure, json, just_under, ok, queue, secs, task, task_in, waiting,
};

/// What is delivered is stored and held by the node that adopts it, in one step.
pub async fn a_delivery_is_stored_and_claimed_in_one_step(h: &Harness) {
    let envelope = Envelope { args: Args::parse(r#"{"a":1}"#).expect("arguments"), ..task("work") };
    let adopting = adopt(h, [delivery("1", envelope.clone())], Some(demand(1))).await;
    assert_eq!(adopting.adopted, [Adopted::Stored]);
    let claim = only(adopting.claims);
    assert_eq!((&*claim.envelope, claim.attempt, claim.ready_at), (&envelope, 1, START));
    assert_eq!(h.state(&envelope.id).await, State::Running);
    assert_eq!(h.default_counts().await.running, 1);
    assert_eq!(h.settle(&claim, ok("1")).await, Settlement::Applied);
}

/// Whatever a delivery asks for, its node is told of the task what everybody sees of it, and may end it; a second claim gets
/// nothing.
pub async fn a_claim_of_a_delivery_is_a_claim_of_its_task(h: &Harness) {
    let unique_until_started = Unique { hold: UniqueHold::Started, ..Unique::new(UniqueKey::known("u-2")) };
    let envelopes = [
        task("plain"),
        Envelope { args: Args::parse(&format!(r#"["{}"]"#, "x".repeat(2_000))).expect("arguments"), ..task("long") },
        Envelope { headers: [("tenant".to_owned(), "a".to_owned())].into(), retries: Some(7), ..task("options") },
        Envelope { priority: Priority::new(9).expect("a priority"), hard_limit: Some(secs(9)), ..task("first") },
        Envelope { key: Some(Key::known("k")), ..task("keyed") },
        Envelope { expires: Some(START + secs(60)), ..task("expires") },
        Envelope { due: Due::At(START), result_ttl: Some(secs(5)), ..task("due") },
        unique("u-1", OnConflict::Keep),
        Envelope { unique: Some(unique_until_started), ..task("started") },
        task_in("other"),
    ];
    let both = Demand { queues: vec![queue("default"), queue("other")], ..demand(20) };
    let claims = adopt(h, numbered(&envelopes), Some(both)).await.claims;
    let claimed: HashSet<TaskId> = ids(&claims).into_iter().collect();
    assert_eq!(claimed, envelopes.iter().map(|envelope| envelope.id.clone()).collect());
    for claim in &claims {
        let record = h.record(&claim.receipt.id).await;
        assert_eq!(*claim.envelope, record.envelope);
        assert_eq!(
            (claim.attempt, claim.enqueued_at, record.state),
            (record.attempt, record.enqueued_at, State::Running)
        );
        assert_eq!((claim.ready_at, record.node), (START, Some(demand(1).node)));
    }
    assert!(adopt(h, [], Some(demand(20))).await.claims.is_empty());
    for claim in &claims {
        assert_eq!(h.renew(claim, LEASE).await, Renewed::Held);
        assert_eq!(h.settle(claim, ok("1")).await, Settlement::Applied);
    }
    let counts = h.default_counts().await;
    assert_eq!((counts.running, counts.ready, counts.succeeded), (0, 0, envelopes.len() as u64 - 1));
}

/// The claim is like any other: what was there before comes first.
pub async fn what_waited_before_is_claimed_first(h: &Harness) {
    let before = h.push(task("work")).await;
    let new = task("work");
    let claims = adopt(h, [delivery("1", new.clone())], Some(demand(2))).await.claims;
    assert_eq!(ids(&claims), [before, new.id]);
}

/// Without a demand nothing is claimed, and without deliveries nothing is stored.
pub async fn each_half_of_an_adoption_works_alone(h: &Harness) {
    let envelope = task("work");
    let adopting = adopt(h, [delivery("1", envelope.clone())], None).await;
    assert_eq!((adopting.adopted, adopting.claims.len()), (vec![Adopted::Stored], 0));
    assert_eq!(h.state(&envelope.id).await, State::Ready);
    let adopting = adopt(h, [], Some(demand(1))).await;
    assert_eq!((adopting.adopted, ids(&adopting.claims)), (vec![], vec![envelope.id]));
    let adopting = adopt(h, [], Some(demand(1))).await;
    assert_eq!((adopting.adopted.len(), adopting.claims.len()), (0, 0), "it does not wait");
    assert_eq!(adopt(h, [], None).await.adopted, []);
}

/// An adoption claims no more than the demand asks for; the rest is ready for everybody.
pub async fn no_more_is_claimed_than_is_demanded(h: &Harness) {
    let envelopes: Vec<Envelope> = (0..5).map(|_| task("work")).collect();
    let adopting = adopt(h, numbered(&envelopes), Some(demand(2))).await;
    assert_eq!(adopting.adopted, vec![Adopted::Stored; 5]);
    assert_eq!(ids(&adopting.claims), [envelopes[0].id.clone(), envelopes[1].id.clone()]);
    assert_eq!(h.default_counts().await.ready, 3);
    assert_eq!(answer(h.second.claim(&demand(10)).await).len(), 3);
}

/// The claim takes only queues and names that the node wants, and that are not paused.
pub async fn what_is_paused_or_not_wanted_is_only_stored(h: &Harness) {
    h.command(Command::PauseQueue(queue("paused"))).await;
    h.command(Command::PauseTask(TaskName::known("stopped"))).await;
    let wanted = task("work");
    let envelopes = [task_in("paused"), task_in("other"), task("stopped"), task("excepted"), wanted.clone()];
    let demand = Demand { except: vec![TaskName::known("excepted")], ..demand_of(&["paused", "default"], 10) };
    let adopting = adopt(h, numbered(&envelopes), Some(demand)).await;
    assert_eq!(adopting.adopted, vec![Adopted::Stored; 5]);
    assert_eq!(ids(&adopting.claims), [wanted.id]);
    for envelope in &envelopes[..4] {
        assert_eq!(h.state(&envelope.id).await, State::Ready);
    }
}

/// No gate lets more pass in an adoption than its limit says.
pub async fn an_adoption_is_limited_as_a_claim_is(h: &Harness) {
    set(h, "queue:default", r#"{"concurrency":2}"#).await;
    let envelopes: Vec<Envelope> = (0..4).map(|_| task("work")).collect();
    let claims = adopt(h, numbered(&envelopes), Some(demand(10))).await.claims;
    assert_eq!(ids(&claims), [envelopes[0].id.clone(), envelopes[1].id.clone()]);
    assert!(adopt(h, [], Some(demand(10))).await.claims.is_empty());
    h.settle(&claims[0], ok("1")).await;
    assert_eq!(ids(&adopt(h, [], Some(demand(10))).await.claims), [envelopes[2].id.clone()]);
}

/// A delivery with a delay is stored for its time.
pub async fn a_delayed_delivery_is_scheduled(h: &Harness) {
    let later = delayed(secs(60));
    let adopting = adopt(h, [delivery("1", later.clone())], Some(demand(1))).await;
    assert_eq!((adopting.adopted, adopting.claims.len()), (vec![Adopted::Stored], 0));
    let record = h.record(&later.id).await;
    assert_eq!((record.state, record.due_at), (State::Scheduled, Some(START + secs(60))));
    h.clock.advance(secs(60));
    assert_eq!(ids(&adopt(h, [], Some(demand(1))).await.claims), [later.id], "what is due is ready");
}

/// A delivery that comes again changes nothing, whatever its task does or has become, and wherever it comes.
pub async fn a_delivery_that_comes_again_changes_nothing(h: &Harness) {
    let envelope = task("work");
    adopt(h, [delivery("1", envelope.clone())], None).await;
    let again = || adopting([delivery("1", Envelope { priority: windlass_core::Priority::FIRST, ..envelope.clone() })]);
    assert_eq!(answer(h.second.adopt(&again()).await).adopted, [Adopted::Known], "ready");
    let claim = h.claim_one().await;
    assert_eq!(answer(h.second.adopt(&again()).await).adopted, [Adopted::Known], "running");
    h.settle(&claim, ok("1")).await;
    assert_eq!(answer(h.second.adopt(&again()).await).adopted, [Adopted::Known], "ended");
    h.act_on(&envelope.id, TaskAction::Discard).await;
    assert_eq!(answer(h.second.adopt(&again()).await).adopted, [Adopted::Known], "forgotten");
    assert_eq!(h.list(&Filter::all()).await, []);
    assert_eq!(h.default_counts().await.ready, 0);
}

/// A delivery that is there twice is adopted once; another one of the same task finds its id taken.
pub async fn a_delivery_twice_in_one_adoption_is_stored_once(h: &Harness) {
    let envelope = task("work");
    let deliveries = [delivery("1", envelope.clone()), delivery("1", task("work")), delivery("2", envelope.clone())];
    let adopted = adopt(h, deliveries, None).await.adopted;
    assert_eq!(adopted, [Adopted::Stored, Adopted::Known, Adopted::Exists(envelope.id)]);
    assert_eq!(h.default_counts().await.ready, 1);
}

/// A delivery is remembered for a day, and then it is new.
pub async fn a_delivery_is_remembered_for_a_day(h: &Harness) {
    adopt(h, [delivery("1", task("work"))], None).await;
    h.clock.advance(just_under(DELIVERY_TTL));
    assert_eq!(adopt(h, [delivery("1", task("work"))], None).await.adopted, [Adopted::Known]);
    h.tick_after(MICRO).await;
    assert_eq!(adopt(h, [delivery("1", task("work"))], None).await.adopted, [Adopted::Stored]);
    assert_eq!(adopt(h, [delivery("1", task("work"))], None).await.adopted, [Adopted::Known]);
}

/// What the transport has let go is forgotten: a delivery with the same identity is a new one.
pub async fn what_the_transport_has_let_go_is_forgotten(h: &Harness) {
    adopt(h, [delivery("1", task("work")), delivery("2", task("work"))], None).await;
    assert_eq!(remembered(h).await, ["bridge:1", "bridge:2"]);
    let accepted = vec![delivery_id("1"), delivery_id("never seen")];
    let deliveries = vec![delivery("1", task("work")), delivery("2", task("work"))];
    let adopting = answer(h.store.adopt(&Adoption { accepted, deliveries, demand: None }).await);
    assert_eq!(adopting.adopted, [Adopted::Stored, Adopted::Known], "it is forgotten before anything is stored");
    let all = Adoption { accepted: vec![delivery_id("1"), delivery_id("2")], ..Adoption::default() };
    answer(h.store.adopt(&all).await);
    assert_eq!(remembered(h).await, [] as [&str; 0]);
    assert_eq!(h.default_counts().await.ready, 3);
}

/// A delivery is remembered as a note that names its task, so it moves with the others to another store.
pub async fn a_delivery_is_remembered_as_a_note(h: &Harness) {
    let envelope = task("work");
    adopt(h, [delivery("1", envelope.clone())], None).await;
    let ask = NoteAsk::Read { space: DELIVERY_SPACE.to_owned(), key: "bridge:1".to_owned() };
    let NoteAnswer::Notes(notes) = answer(h.second.note(&ask).await) else { panic!("a note is read") };
    let note = only(notes);
    assert_eq!((note.value, note.expires), (json(&format!("\"{}\"", envelope.id)), START + DELIVERY_TTL));
    // As a move writes it.
    let write = NoteAsk::Write {
        space: DELIVERY_SPACE.to_owned(),
        key: "bridge:2".to_owned(),
        seen: None,
        value: json("\"moved\""),
        ttl: secs(60),
    };
    assert!(matches!(answer(h.store.note(&write).await), NoteAnswer::Written(version) if version > note.version));
    assert_eq!(adopt(h, [delivery("2", task("work"))], None).await.adopted, [Adopted::Known]);
}

/// A second run under the id of a task that has ended: the old record is forgotten, and its receipts are worthless.
pub async fn the_id_of_an_ended_task_runs_again(h: &Harness) {
    for (number, verdict) in [ok("1"), dead(), Verdict::Cancelled, Verdict::Expired].into_iter().enumerate() {
        let envelope = Envelope { id: TaskId::new(format!("task-{number}")).expect("an id"), ..task("work") };
        let first = only(adopt(h, [delivery(&format!("{number} a"), envelope.clone())], Some(demand(1))).await.claims);
        h.settle(&first, verdict.clone()).await;
        let args = Args::parse(r#"{"run":2}"#).expect("arguments");
        let again = Envelope { args, ..envelope.clone() };
        h.clock.advance(secs(1));
        let adopting = adopt(h, [delivery(&format!("{number} b"), again.clone())], Some(demand(1))).await;
        assert_eq!(adopting.adopted, [Adopted::Stored], "{verdict:?}");
        let second = only(adopting.claims);
        assert_eq!((&*second.envelope, second.attempt), (&again, 1));
        let record = h.record(&envelope.id).await;
        assert_eq!((record.state, record.result, record.failure, record.reason), (State::Running, None, None, None));
        assert_eq!(record.history, []);
        assert_eq!(h.settle(&first, ok("3")).await, Settlement::Stale);
        assert_eq!(h.settle(&second, ok("2")).await, Settlement::Applied);
        assert_eq!(h.record(&envelope.id).await.result, Some(json("2")));
    }
    assert_eq!(h.list(&Filter::all()).await.len(), 4, "one record each");
    let counts = h.default_counts().await;
    assert_eq!((counts.ready, counts.running, counts.dead), (0, 0, 0));
}

/// While a task lives its id is taken; the delivery is not remembered, and can be adopted under another id.
pub async fn the_id_of_a_living_task_is_taken(h: &Harness) {
    let envelope = task("work");
    h.push(Envelope { due: windlass_core::Due::After(secs(5)), ..envelope.clone() }).await;
    let taken = [Adopted::Exists(envelope.id.clone())];
    assert_eq!(adopt(h, [delivery("1", envelope.clone())], None).await.adopted, taken, "scheduled");
    h.clock.advance(secs(5));
    let claim = h.claim_one().await;
    assert_eq!(adopt(h, [delivery("1", envelope.clone())], None).await.adopted, taken, "running");
    h.settle(&claim, Verdict::Parked).await;
    assert_eq!(adopt(h, [delivery("1", envelope.clone())], None).await.adopted, taken, "parked");
    assert_eq!(remembered(h).await, [] as [&str; 0]);
    let other = Envelope { id: TaskId::random(), ..envelope };
    assert_eq!(adopt(h, [delivery("1", other)], None).await.adopted, [Adopted::Stored]);
    assert_eq!(h.list(&Filter::all()).await.len(), 2);
}

/// A delivery whose unique key is taken is dealt with: it is known when it comes again, even if the key is free by then.
pub async fn a_delivery_whose_unique_key_is_taken_is_dealt_with(h: &Harness) {
    let holder = h.push(unique("k", OnConflict::Keep)).await;
    let late = unique("k", OnConflict::Keep);
    let adopted = adopt(h, [delivery("1", late.clone())], None).await.adopted;
    assert_eq!(adopted, [Adopted::Exists(holder.clone())]);
    assert!(adopted[0].is_done(&late.id));
    h.act_on(&holder, TaskAction::Cancel).await;
    assert_eq!(adopt(h, [delivery("1", late)], None).await.adopted, [Adopted::Known]);
    assert_eq!(h.default_counts().await.ready, 0);
}

/// A delivery that takes the place of a waiting one is dealt with as well.
pub async fn a_delivery_takes_the_place_of_one_with_its_key(h: &Harness) {
    let args = Args::parse(r#"{"newer":true}"#).expect("arguments");
    let holder = h.push(unique("k", OnConflict::Replace)).await;
    let newer = Envelope { args: args.clone(), ..unique("k", OnConflict::Replace) };
    let adopting = adopt(h, [delivery("1", newer.clone())], Some(demand(1))).await;
    assert_eq!(adopting.adopted, [Adopted::Replaced(holder.clone())]);
    let claim = only(adopting.claims);
    assert_eq!((&claim.receipt.id, &claim.envelope.args), (&holder, &args));
    h.settle(&claim, ok("1")).await;
    assert_eq!(adopt(h, [delivery("1", newer)], None).await.adopted, [Adopted::Known]);
}

/// A full queue takes no delivery: it is not remembered, and what has ended under its id stays.
pub async fn a_full_queue_takes_no_delivery(h: &Harness) {
    let ended = h.push_and_run(task("work"), ok("1")).await;
    set(h, "queue:default", r#"{"length":1}"#).await;
    let (first, second) = (task("work"), Envelope { id: ended.clone(), ..task("work") });
    let deliveries = || [delivery("1", first.clone()), delivery("2", second.clone())];
    let adopting = adopt(h, deliveries(), Some(demand(1))).await;
    assert_eq!(adopting.adopted, [Adopted::Stored, Adopted::Full { limit: 1 }]);
    assert_eq!(ids(&adopting.claims), std::slice::from_ref(&first.id));
    assert_eq!(h.record(&ended).await.result, Some(json("1")));
    assert_eq!(remembered(h).await, ["bridge:1"]);
    assert_eq!(adopt(h, deliveries(), None).await.adopted, [Adopted::Known, Adopted::Stored], "the place is free now");
    assert_eq!(h.state(&ended).await, State::Ready);
}

/// A message that means no task is a dead letter from the start, with its reason, in no queue too full for it.
pub async fn a_malformed_delivery_is_a_dead_letter_from_the_start(h: &Harness) {
    set(h, "queue:default", r#"{"length":0}"#).await;
    let envelope = Envelope { args: Args::parse(r#"{"raw":"\u0000?"}"#).expect("arguments"), ..task("unreadable") };
    let malformed = Delivery { flaw: Some(failure()), ..delivery("1", envelope.clone()) };
    let watched = begun({
        let (store, ids) = (Arc::clone(&h.second), [envelope.id.clone()]);
        async move { store.watch(&ids, PATIENCE * 2).await }
    });
    let adopting = adopt(h, [malformed.clone()], Some(demand(1))).await;
    assert_eq!((adopting.adopted, adopting.claims.len()), (vec![Adopted::Stored], 0));
    let record = h.record(&envelope.id).await;
    assert_eq!((record.state, record.reason), (State::Dead, Some(DeadReason::Malformed)));
    assert_eq!((record.failure, record.attempt, record.finished_at), (Some(failure()), 0, Some(START)));
    assert_eq!(record.envelope, envelope);
    assert_eq!(only(answer(soon(watched).await)).state, State::Dead, "who waits for it hears of it");
    assert_eq!(h.default_counts().await.dead, 1);
    assert_eq!(adopt(h, [malformed.clone()], None).await.adopted, [Adopted::Known]);
    // Under the id of an ended task it takes the place of that.
    let again = Delivery { id: delivery_id("2"), ..malformed };
    assert_eq!(adopt(h, [again], None).await.adopted, [Adopted::Stored]);
    assert_eq!(h.default_counts().await.dead, 1);
    h.act_on(&envelope.id, TaskAction::Retry).await;
    assert_eq!(h.claim_ids(demand(1)).await, [envelope.id]);
}

/// A batch over its limit is refused, and so is a demand over its own: nothing is stored, forgotten or remembered.
pub async fn a_refused_adoption_changes_nothing(h: &Harness) {
    let one = vec![delivery("1", task("work"))];
    adopt(h, [delivery("kept", task("work"))], None).await;
    let accepted = vec![delivery_id("kept")];
    let too_many: Vec<Delivery> = (0..=BATCH_MAX).map(|number| delivery(&number.to_string(), task("work"))).collect();
    let too_many_ids = too_many.iter().map(|delivery| delivery.id.clone()).collect();
    for wrong in [
        Adoption { accepted: accepted.clone(), deliveries: too_many, demand: None },
        Adoption { accepted: too_many_ids, deliveries: one.clone(), demand: None },
        Adoption { accepted: accepted.clone(), deliveries: one.clone(), demand: Some(demand(BATCH_MAX + 1)) },
        Adoption { accepted, deliveries: one, demand: Some(Demand { lease: std::time::Duration::ZERO, ..demand(1) }) },
    ] {
        assert!(is_rejected(h.store.adopt(&wrong).await));
    }
    assert_eq!(remembered(h).await, ["bridge:kept"]);
    assert_eq!(h.default_counts().await.ready, 1);
}

/// As many deliveries as are allowed are stored, claimed and forgotten in one step each.
pub async fn the_largest_adoption_is_one_step(h: &Harness) {
    let envelopes: Vec<Envelope> = (0..BATCH_MAX).map(|_| task("work")).collect();
    let adopting = adopt(h, numbered(&envelopes), Some(demand(BATCH_MAX))).await;
    assert!(adopting.adopted.iter().all(|adopted| *adopted == Adopted::Stored));
    assert_eq!(adopting.claims.len(), BATCH_MAX);
    let again = adopt(h, numbered(&envelopes), None).await.adopted;
    assert!(again.iter().all(|adopted| *adopted == Adopted::Known));
    let accepted = numbered(&envelopes).into_iter().map(|delivery| delivery.id).collect();
    answer(h.store.adopt(&Adoption { accepted, ..Adoption::default() }).await);
    assert_eq!(remembered(h).await, [] as [&str; 0]);
}

/// What is stored and not claimed wakes claims that wait.
pub async fn the_rest_of_an_adoption_wakes_a_claim(h: &Harness) {
    let second = Arc::clone(&h.second);
    let waits = Demand { node: NodeId::known("node-2"), ..waiting(PATIENCE * 2) };
    let claim = begun(async move { second.claim(&waits).await });
    // It may have taken one before the claim of the adoption sees it: never both, never none.
    let envelopes = [task("work"), task("work"), task("work")];
    let mut taken = ids(&adopt(h, numbered(&envelopes), Some(demand(2))).await.claims);
    taken.extend(ids(&answer(soon(claim).await)));
    assert_eq!(taken.into_iter().collect::<HashSet<_>>(), envelopes.into_iter().map(|envelope| envelope.id).collect());
}

/// Of all nodes that adopt a delivery at once, one stores it, and one holds it.
pub async fn of_all_who_adopt_a_delivery_one_stores_it(h: &Harness) {
    for round in 0..20 {
        let envelope = task("work");
        let nodes = (0..6).map(|number| {
            let store = if number % 2 == 0 { Arc::clone(&h.store) } else { Arc::clone(&h.second) };
            let node = NodeId::known(&format!("node-{number}"));
            let deliveries = vec![
                delivery(&format!("{round} of each"), Envelope { id: envelope.id.clone(), ..envelope.clone() }),
                delivery(&format!("{round} of {number}"), task("work")),
            ];
            let demand = Some(Demand { node, ..demand(2) });
            tokio::spawn(async move { answer(store.adopt(&Adoption { accepted: vec![], deliveries, demand }).await) })
        });
        let nodes: Vec<_> = nodes.collect();
        let (mut stored, mut held) = (0, Vec::new());
        for node in nodes {
            let adopting = node.await.expect("it ends");
            assert_eq!(adopting.adopted[1], Adopted::Stored);
            stored += usize::from(adopting.adopted[0] == Adopted::Stored);
            assert!(matches!(adopting.adopted[0], Adopted::Stored | Adopted::Known), "{:?}", adopting.adopted);
            held.extend(ids(&adopting.claims));
        }
        assert_eq!(stored, 1);
        held.extend(h.claim_ids(demand(10)).await);
        assert_eq!((held.len(), held.iter().collect::<HashSet<_>>().len()), (7, 7), "each is held once");
    }
}

/// Of several deliveries that bring the id of an ended task at once, one runs it again.
pub async fn of_all_second_runs_of_a_task_one_is_stored(h: &Harness) {
    for round in 0..20 {
        let id = h.push_and_run(task("work"), ok("1")).await;
        let nodes = (0..4).map(|number| {
            let store = if number % 2 == 0 { Arc::clone(&h.store) } else { Arc::clone(&h.second) };
            let envelope = Envelope { id: id.clone(), ..task("work") };
            let adoption = adopting([delivery(&format!("{round} {number}"), envelope)]);
            tokio::spawn(async move { answer(store.adopt(&adoption).await).adopted })
        });
        let nodes: Vec<_> = nodes.collect();
        let mut stored = 0;
        for node in nodes {
            match only(node.await.expect("it ends")) {
                Adopted::Stored => stored += 1,
                adopted => assert_eq!(adopted, Adopted::Exists(id.clone())),
            }
        }
        assert_eq!((stored, h.state(&id).await), (1, State::Ready));
        h.run_one(ok("2")).await;
    }
}

/// An adopted task is as any other to everybody: it is renewed, rescued and claimed again.
pub async fn an_adopted_task_is_rescued_as_any_other(h: &Harness) {
    let envelope = task("work");
    let lost = only(adopt(h, [delivery("1", envelope.clone())], Some(demand(1))).await.claims);
    h.tick_after(LEASE).await;
    let claim = h.claim_one().await;
    assert_eq!((&claim.receipt.id, claim.attempt), (&envelope.id, 2));
    assert_eq!(h.settle(&lost, ok("1")).await, Settlement::Stale);
    assert_eq!(h.settle(&claim, ok("2")).await, Settlement::Applied);
}

async fn adopt(h: &Harness, deliveries: impl IntoIterator<Item = Delivery>, demand: Option<Demand>) -> Adopting {
    answer(h.store.adopt(&Adoption { demand, ..adopting(deliveries) }).await)
}

fn adopting(deliveries: impl IntoIterator<Item = Delivery>) -> Adoption {
    Adoption { deliveries: deliveries.into_iter().collect(), ..Adoption::default() }
}

fn delivery(id: &str, envelope: Envelope) -> Delivery {
    Delivery { id: delivery_id(id), envelope, flaw: None }
}

fn delivery_id(id: &str) -> DeliveryId {
    DeliveryId::known(&format!("bridge:{id}"))
}

/// A delivery of each, from 0 on.
fn numbered(envelopes: &[Envelope]) -> Vec<Delivery> {
    let each = envelopes.iter().enumerate();
    each.map(|(number, envelope)| delivery(&number.to_string(), envelope.clone())).collect()
}

fn unique(key: &str, on_conflict: OnConflict) -> Envelope {
    Envelope { unique: Some(Unique { on_conflict, ..Unique::new(UniqueKey::known(key)) }), ..task("work") }
}

fn ids(claims: &[Claim]) -> Vec<TaskId> {
    claims.iter().map(|claim| claim.receipt.id.clone()).collect()
}

#[track_caller]
fn only<T>(mut items: Vec<T>) -> T {
    assert_eq!(items.len(), 1);
    items.remove(0)
}

/// The deliveries that are remembered.
async fn remembered(h: &Harness) -> Vec<String> {
    let ask = NoteAsk::List { space: Some(DELIVERY_SPACE.to_owned()), after: None };
    match answer(h.store.note(&ask).await) {
        NoteAnswer::Notes(notes) => notes.into_iter().map(|note| note.key).collect(),
        other => panic!("notes are listed, not {other:?}"),
    }
}

async fn set(h: &Harness, subject: &str, rule: &str) {
    let limit = Limit { subject: subject.parse().expect("a subject"), rule: Rule::from_text(rule).expect("a rule") };
    answer(h.store.limit(&LimitChange::Set(limit)).await);
}
