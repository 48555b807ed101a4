//! What a store does by itself: it repeats what others were in the way of, reconnects, and goes by the server's clock.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Schema, client, demand, push, store, succeeded, task, until};
use windlass_core::backend::{Backend, Demand, Pushed, Settlement};
use windlass_core::view::Retention;
use windlass_core::{Due, Envelope, State, TaskId};
use windlass_postgres::{Options, PostgresStore};

#[tokio::test]
async fn a_deadlock_is_repeated_until_the_others_are_out_of_the_way() {
    let schema = Schema::new();
    let store = Arc::new(store(&schema).await);
    store.push(&push(vec![task(), task()])).await.expect("pushed");
    let claims = store.claim(&demand(2)).await.expect("claimed");
    let name = schema.name();
    let lock = |row: i64| format!("SELECT 1 FROM {name}.live WHERE seq = {row} FOR UPDATE");
    let (first, second) = (claims[0].receipt.row, claims[1].receipt.row);
    // Somebody locks in the other order, and is never the one that gives way.
    let other = client().await;
    other.batch_execute(&format!("SET deadlock_timeout = '1h'; BEGIN; {}", lock(second))).await.expect("locked");
    let settle = {
        let (store, settled) = (Arc::clone(&store), claims.iter().map(succeeded).collect::<Vec<_>>());
        tokio::spawn(async move { store.settle(&settled).await })
    };
    until("the settle waits for a lock", || async {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{name}.live%'"
        );
        client().await.query_one(&sql, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0)
    })
    .await;
    other.batch_execute(&format!("{}; COMMIT", lock(first))).await.expect("it does not give way");
    let settlements = settle.await.expect("it does not panic").expect("settled in the end");
    assert_eq!(settlements, [Settlement::Applied, Settlement::Applied]);
    assert_eq!(store.counts().await.expect("counts").total().succeeded, 2);
}

#[tokio::test]
async fn a_serialization_failure_is_repeated() {
    let schema = Schema::new();
    let store = store(&schema).await;
    let name = schema.name();
    // The first two inserts fail as if others had been faster. A sequence is not rolled back.
    client()
        .await
        .batch_execute(&format!(
            "CREATE SEQUENCE {name}.failures; CREATE FUNCTION {name}.fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
             IF nextval('{name}.failures') <= 2 THEN RAISE EXCEPTION 'others were faster' USING ERRCODE = '40001'; END IF; \
             RETURN NEW; END $$; CREATE TRIGGER fail BEFORE INSERT ON {name}.live FOR EACH ROW EXECUTE FUNCTION {name}.fail()"
        ))
        .await
        .expect("a trigger");
    assert_eq!(store.push(&push(vec![task()])).await.expect("pushed in the end"), [Pushed::Stored]);
    assert_eq!(store.counts().await.expect("counts").total().ready, 1);
}

#[tokio::test]
async fn one_push_that_cannot_be_done_does_not_keep_others_out() {
    let schema = Schema::new();
    let url = schema.url_with("connections=1");
    let store = Arc::new(PostgresStore::connect(&url, Options::default()).await.expect("a store"));
    let name = schema.name();
    client()
        .await
        .batch_execute(&format!("ALTER TABLE {name}.live ADD CONSTRAINT no_bad CHECK (key <> 'bad')"))
        .await
        .expect("a constraint");
    // While the only lane waits for the table, pushes gather and then share a transaction.
    let other = client().await;
    other.batch_execute(&format!("BEGIN; LOCK TABLE {name}.live")).await.expect("locked");
    let pushes: Vec<_> = (0..10)
        .map(|number| {
            let store = Arc::clone(&store);
            let key = if number == 5 { "bad" } else { "good" };
            let envelope = Envelope { key: Some(windlass_core::Key::known(key)), ..task() };
            tokio::spawn(async move { store.push(&push(vec![envelope])).await })
        })
        .collect();
    until("the lane waits for the table", || async {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%{name}.live%'"
        );
        client().await.query_one(&sql, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0)
    })
    .await;
    other.batch_execute("COMMIT").await.expect("unlocked");
    let mut outcomes = Vec::new();
    for push in pushes {
        outcomes.push(push.await.expect("it does not panic").is_ok());
    }
    assert_eq!(outcomes, (0..10).map(|number| number != 5).collect::<Vec<_>>());
    assert_eq!(store.counts().await.expect("counts").total().ready, 9);
}

#[tokio::test]
async fn connections_that_the_server_ends_are_opened_anew() {
    let schema = Schema::new();
    let application = schema.name().to_owned();
    let url = schema.url_with(&format!("connections=2&application_name={application}"));
    let store = Arc::new(PostgresStore::connect(&url, Options::default()).await.expect("a store"));
    for _ in 0..3 {
        let waits = {
            let store = Arc::clone(&store);
            // A claim that was asked when its connection ended says so; the engine asks again.
            tokio::spawn(async move {
                loop {
                    if let Ok(claims) = store.claim(&Demand { wait: Duration::from_secs(30), ..demand(1) }).await {
                        return claims;
                    }
                }
            })
        };
        until("somebody waits", || async {
            let sql = format!("SELECT count(*) FROM {application}.waiting");
            client().await.query_one(&sql, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0)
        })
        .await;
        // All of them: the lanes, and the one that listens.
        client()
            .await
            .execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1",
                &[&application],
            )
            .await
            .expect("terminated");
        let envelope = task();
        let pushed = push(vec![envelope.clone()]);
        // An answer may be lost with its connection; a push is safe to repeat.
        while store.push(&pushed).await.is_err() {}
        let claims = waits.await.expect("it does not panic");
        assert_eq!(claims[0].receipt.id, envelope.id);
        client().await.batch_execute(&format!("TRUNCATE {application}.waiting")).await.expect("emptied");
    }
}

#[tokio::test]
async fn a_claim_in_another_process_starts_a_delayed_task_at_its_time() {
    let schema = Schema::new();
    let (ours, theirs) = (store(&schema).await, Arc::new(store(&schema).await));
    let waits = {
        let theirs = Arc::clone(&theirs);
        tokio::spawn(async move { theirs.claim(&Demand { wait: Duration::from_secs(30), ..demand(1) }).await })
    };
    let delay = Duration::from_millis(300);
    let envelope = Envelope { due: Due::After(delay), ..task() };
    ours.push(&push(vec![envelope.clone()])).await.expect("pushed");
    let claim = waits.await.expect("it does not panic").expect("claimed").remove(0);
    assert_eq!(claim.receipt.id, envelope.id);
    let record = ours.find(&[envelope.id]).await.expect("found").remove(0).expect("stored");
    let waited = record.started_at.expect("it was started").since(record.enqueued_at);
    assert!(waited >= delay, "by the server's clock it is never early: {waited:?}");
}

#[tokio::test]
async fn times_are_those_of_the_server() {
    let schema = Schema::new();
    let store = store(&schema).await;
    let envelope = task();
    let now = || async {
        let row =
            client().await.query_one("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint", &[]).await;
        row.expect("the time").get::<_, i64>(0)
    };
    let before = now().await;
    store.push(&push(vec![envelope.clone()])).await.expect("pushed");
    let after = now().await;
    let record = store.find(&[envelope.id]).await.expect("found").remove(0).expect("stored");
    assert!((before..=after).contains(&record.enqueued_at.as_micros()));
}

#[tokio::test]
async fn a_worker_whose_clock_is_wrong_shares_the_leases_of_the_others() {
    let schema = Schema::new();
    let store = store(&schema).await;
    store.push(&push(vec![task()])).await.expect("pushed");
    let claim = store.claim(&demand(1)).await.expect("claimed").remove(0);
    // The lease is kept by the server's clock: that of this process is nowhere in the statements, so nothing that it says can
    // end the lease. What the row says is the server's time and the lease.
    let sql = format!("SELECT at - started_at FROM {}.live", schema.name());
    let lease: i64 = client().await.query_one(&sql, &[]).await.expect("a row").get(0);
    assert_eq!(lease, 30_000_000);
    let ticked = store.tick(&demand(1).node).await.expect("ticked");
    assert_eq!(ticked.rescued, 0);
    assert_eq!(store.settle(&[succeeded(&claim)]).await.expect("settled"), [Settlement::Applied]);
}

#[tokio::test]
async fn names_that_are_paused_or_left_to_others_are_not_walked_over() {
    let schema = Schema::new();
    let store = store(&schema).await;
    let wanted = Envelope { name: windlass_core::TaskName::known("wanted"), ..task() };
    for _ in 0..5 {
        store.push(&push((0..1_000).map(|_| task()).collect())).await.expect("pushed");
    }
    store.push(&push(vec![wanted.clone()])).await.expect("pushed");
    let claims = store
        .claim(&Demand { except: vec![windlass_core::TaskName::known("work")], ..demand(10) })
        .await
        .expect("claimed");
    assert_eq!(claims.iter().map(|claim| claim.receipt.id.clone()).collect::<Vec<TaskId>>(), [wanted.id]);
}

#[tokio::test]
async fn many_tasks_leave_no_bloat() {
    const TASKS: usize = 100_000;
    let schema = Schema::new();
    let options =
        Options { retention: Retention { finished_max: 1_000, ..Retention::default() }, ..Options::default() };
    let store = PostgresStore::connect(&schema.url(), options).await.expect("a store");
    let name = schema.name();
    let size = || async {
        let sql = format!(
            "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c \
             WHERE c.relnamespace = '{name}'::regnamespace AND c.relkind = 'r'"
        );
        client().await.query_one(&sql, &[]).await.expect("a size").get::<_, i64>(0)
    };
    let vacuum = client().await;
    let mut sizes = Vec::new();
    for _ in 0..10 {
        for _ in 0..TASKS / 10 / 1_000 {
            store.push(&push((0..1_000).map(|_| task()).collect())).await.expect("pushed");
            let claims = store.claim(&demand(1_000)).await.expect("claimed");
            store.settle(&claims.iter().map(succeeded).collect::<Vec<_>>()).await.expect("settled");
            store.tick(&demand(1).node).await.expect("ticked");
        }
        // What autovacuum does; it sleeps for a minute between two looks.
        for table in ["live", "delta", "finished", "queue"] {
            vacuum.batch_execute(&format!("VACUUM {name}.{table}")).await.expect("vacuumed");
        }
        sizes.push(size().await);
    }
    let counts = store.counts().await.expect("counts").total();
    assert_eq!((counts.succeeded, counts.live()), (TASKS as u64, 0));
    // Pages of an index are free again one vacuum after the one that emptied them; a snapshot of somebody else delays that.
    assert!(sizes[9] <= sizes[4] * 3 / 2, "the second half finds room that the first has left: {sizes:?}");
}

#[tokio::test]
async fn the_hot_tables_are_vacuumed_when_very_many_settles_were_made() {
    let schema = Schema::new();
    let store = store(&schema).await;
    let vacuumed = || async {
        let sql = format!(
            "SELECT coalesce(min(vacuum_count), 0)::bigint FROM pg_stat_user_tables \
             WHERE schemaname = '{}' AND relname IN ('live', 'delta')",
            schema.name()
        );
        client().await.query_one(&sql, &[]).await.expect("a count").get::<_, i64>(0) > 0
    };
    store.push(&push(vec![task()])).await.expect("pushed");
    let claims = store.claim(&demand(1)).await.expect("claimed");
    let again = vec![succeeded(&claims[0]); 1_000];
    store.tick(&demand(1).node).await.expect("ticked");
    for _ in 0..50 {
        store.settle(&again).await.expect("settled");
    }
    assert!(!vacuumed().await, "nobody has looked after the tables yet");
    store.tick(&demand(1).node).await.expect("ticked");
    common::until("the tables are vacuumed", vacuumed).await;
}

#[tokio::test]
async fn days_of_which_nothing_is_kept_are_dropped_whole() {
    use windlass_core::{Clock, Timestamp};
    let schema = Schema::new();
    let clock = windlass_testkit::TestClock::at(Timestamp::from_secs(1_800_000_000));
    let retention = Retention { finished: Duration::from_secs(7 * 86_400), ..Retention::default() };
    let options =
        Options { retention, time: windlass_postgres::Time::Given(Arc::new(clock.clone())), ..Options::default() };
    let store = PostgresStore::connect(&schema.url(), options).await.expect("a store");
    let envelope = task();
    store.push(&push(vec![envelope.clone()])).await.expect("pushed");
    let claims = store.claim(&demand(1)).await.expect("claimed");
    store.settle(&[succeeded(&claims[0])]).await.expect("settled");
    let days = || async {
        let sql = format!(
            "SELECT count(*) FROM pg_class WHERE relnamespace = '{}'::regnamespace AND relname ~ '^finished_[0-9]+$'",
            schema.name()
        );
        client().await.query_one(&sql, &[]).await.expect("a count").get::<_, i64>(0)
    };
    let node = demand(1).node;
    assert_eq!(days().await, 2, "today and tomorrow");
    clock.advance(Duration::from_secs(6 * 86_400));
    store.tick(&node).await.expect("ticked");
    assert!(store.find(std::slice::from_ref(&envelope.id)).await.expect("asked")[0].is_some(), "it is kept for a week");
    for _ in 0..4 {
        clock.advance(Duration::from_secs(86_400));
        store.tick(&node).await.expect("ticked");
    }
    assert!(clock.now() > Timestamp::from_secs(1_800_000_000));
    assert_eq!(store.find(&[envelope.id]).await.expect("asked"), [None]);
    let counts = store.counts().await.expect("counts").total();
    assert_eq!((counts.succeeded, counts.of(State::Ready)), (1, 0), "what ended is counted for ever");
}
