//! Tasks that are enqueued within the application's own transaction, from Rust and from SQL.

mod common;

use std::time::Duration;

use common::{Schema, client, demand, push, store, task};
use windlass_core::backend::{Backend, Demand, Push, Pushed};
use windlass_core::flow::{After, FailurePolicy, NewGroup};
use windlass_core::{Args, Due, Envelope, Priority, State, TaskId, Unique, UniqueKey};
use windlass_postgres::{PushInError, push_in};

#[tokio::test]
async fn a_push_belongs_to_the_transaction_of_the_caller() {
    let schema = Schema::new();
    let store = store(&schema).await;
    let mut client = client().await;
    for (commit, expected) in [(false, None), (true, Some(State::Ready))] {
        let envelope = task();
        let transaction = client.transaction().await.expect("a transaction");
        let pushed = push_in(&transaction, schema.name(), &push(vec![envelope.clone()])).await.expect("pushed");
        assert_eq!(pushed, [Pushed::Stored]);
        let ids = [envelope.id.clone()];
        assert_eq!(store.find(&ids).await.expect("asked"), [None], "nobody sees it before");
        if commit {
            transaction.commit().await.expect("committed");
        } else {
            transaction.rollback().await.expect("rolled back");
        }
        let found = store.find(&ids).await.expect("asked").remove(0);
        assert_eq!(found.map(|record| record.state), expected);
    }
    assert_eq!(store.counts().await.expect("counts").total().ready, 1);
}

#[tokio::test]
async fn a_waiting_claim_hears_of_the_commit() {
    let schema = Schema::new();
    let store = std::sync::Arc::new(store(&schema).await);
    let waits = {
        let store = std::sync::Arc::clone(&store);
        tokio::spawn(async move { store.claim(&Demand { wait: Duration::from_secs(30), ..demand(1) }).await })
    };
    common::until("somebody waits", || async {
        let sql = format!("SELECT count(*) FROM {}.waiting", schema.name());
        client().await.query_one(&sql, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0)
    })
    .await;
    let mut client = client().await;
    let transaction = client.transaction().await.expect("a transaction");
    let envelope = task();
    push_in(&transaction, schema.name(), &push(vec![envelope.clone()])).await.expect("pushed");
    transaction.commit().await.expect("committed");
    let claims = waits.await.expect("it does not panic").expect("claimed");
    assert_eq!(claims[0].receipt.id, envelope.id);
}

#[tokio::test]
async fn a_push_with_every_kind_of_task_is_answered_as_by_the_store() {
    let schema = Schema::new();
    let store = store(&schema).await;
    let mut client = client().await;
    let transaction = client.transaction().await.expect("a transaction");
    let unique = || Some(Unique::new(UniqueKey::known("k")));
    let first = Envelope { unique: unique(), ..task() };
    let later = Envelope { due: Due::After(Duration::from_secs(60)), ..task() };
    let envelopes = vec![first.clone(), Envelope { unique: unique(), ..task() }, later.clone(), later.clone()];
    let group = NewGroup { id: TaskId::random(), size: 1, policy: FailurePolicy::All, after: After::default() };
    let pushed = push_in(&transaction, schema.name(), &Push { envelopes, groups: vec![group] }).await.expect("pushed");
    transaction.commit().await.expect("committed");
    assert_eq!(
        pushed,
        [Pushed::Stored, Pushed::Exists(first.id.clone()), Pushed::Stored, Pushed::Exists(later.id.clone())]
    );
    let counts = store.counts().await.expect("counts").total();
    assert_eq!((counts.ready, counts.scheduled), (1, 1));
    let claim = store.claim(&demand(5)).await.expect("claimed").remove(0);
    assert_eq!(*claim.envelope, first);
}

#[tokio::test]
async fn a_push_that_breaks_a_limit_is_refused() {
    let mut client = client().await;
    let transaction = client.transaction().await.expect("a transaction");
    let too_many = push((0..=windlass_core::envelope::PUSH_MAX).map(|_| task()).collect());
    assert!(matches!(push_in(&transaction, "windlass", &too_many).await, Err(PushInError::Rejected(_))));
    assert!(matches!(push_in(&transaction, "a; DROP", &push(vec![])).await, Err(PushInError::Rejected(_))));
}

#[tokio::test]
async fn sql_enqueues_in_its_own_transaction() {
    let schema = Schema::new();
    let store = store(&schema).await;
    let client = client().await;
    let name = schema.name();
    client
        .batch_execute(&format!(
            "BEGIN; SELECT {name}.enqueue('never'); ROLLBACK; BEGIN; SELECT {name}.enqueue('plain'); COMMIT"
        ))
        .await
        .expect("enqueued");
    let claim = store.claim(&demand(5)).await.expect("claimed").remove(0);
    assert_eq!((claim.envelope.name.as_str(), claim.envelope.queue.as_str()), ("plain", "default"));
    assert_eq!(claim.envelope.args, Args::none());
}

#[tokio::test]
async fn sql_sets_every_option() {
    let schema = Schema::new();
    let store = store(&schema).await;
    let client = client().await;
    let sql = format!(
        "SELECT {}.enqueue('mail', '{{\"to\": \"somebody\", \"copies\": 2}}', queue => 'mails', priority => 9, key => 'tenant 1', \
         unique_key => 'k', unique_for => '1 hour', headers => '{{\"traceparent\": \"00-1\"}}', retries => 3, \
         result_ttl => '90 seconds', expires => now() + interval '1 day', id => 'order-1017')",
        schema.name()
    );
    let id: String = client.query_one(&sql, &[]).await.expect("enqueued").get(0);
    assert_eq!(id, "order-1017");
    let claims =
        store.claim(&Demand { queues: vec!["mails".parse().expect("a name")], ..demand(5) }).await.expect("claimed");
    let envelope = &claims[0].envelope;
    assert_eq!(envelope.args, Args::parse(r#"{"to": "somebody", "copies": 2}"#).expect("JSON"));
    assert_eq!((envelope.priority, envelope.retries), (Priority::FIRST, Some(3)));
    assert_eq!(envelope.key.as_ref().map(windlass_core::Key::as_str), Some("tenant 1"));
    assert_eq!(envelope.headers.get("traceparent").map(String::as_str), Some("00-1"));
    assert_eq!(envelope.result_ttl, Some(Duration::from_secs(90)));
    let window = envelope.unique.as_ref().and_then(|unique| unique.window);
    assert_eq!(window, Some(Duration::from_secs(3600)));
    assert!(envelope.expires.is_some());
    let again: String = client.query_one(&sql, &[]).await.expect("asked").get(0);
    assert_eq!(again, "order-1017", "the answer is who has the key");
    let positional = format!("SELECT {}.enqueue('add', '[1, 2]', delay => '1 minute')", schema.name());
    let id: String = client.query_one(&positional, &[]).await.expect("enqueued").get(0);
    let id: TaskId = id.parse().expect("an id");
    let record = store.find(&[id]).await.expect("found").remove(0).expect("stored");
    assert_eq!(record.state, State::Scheduled);
    assert_eq!(record.envelope.args, Args::parse("[1, 2]").expect("JSON"));
}

#[tokio::test]
async fn sql_refuses_what_the_engine_would_refuse() {
    let schema = Schema::new();
    let _store = store(&schema).await;
    let client = client().await;
    for (arguments, says) in [
        ("'two words'", "visible ASCII"),
        ("'a', queue => ''", "visible ASCII"),
        ("'a', priority => 10", "0 (last) to 9 (first)"),
        ("'a', args => '1'", "JSON object or an array"),
        ("'a', key => ''", "1 to 255 bytes"),
        ("'a', retries => 10000", "retries"),
        ("'a', delay => '11 years'", "ten years"),
    ] {
        let sql = format!("SELECT {}.enqueue({arguments})", schema.name());
        let error = client.query_one(&sql, &[]).await.expect_err("it is refused");
        let said = error.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default();
        assert!(said.contains(says), "{arguments}: {said}");
    }
}
