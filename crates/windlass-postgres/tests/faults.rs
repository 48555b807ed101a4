//! Servers that crash and networks that break: nothing is lost, nothing is done twice.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{demand, push, succeeded, task};
use tokio_postgres::{Client, NoTls};
use windlass_core::StoreError;
use windlass_core::backend::{Backend, Claim, Demand, Pushed, Settlement};
use windlass_postgres::{Options, PostgresStore};
use windlass_servers::{Postgres, Proxy, Stop};

async fn direct(server: &Postgres) -> Client {
    let (client, connection) = tokio_postgres::connect(&server.url("postgres"), NoTls).await.expect("the server");
    tokio::spawn(connection);
    client
}

/// A store that reaches its server through a proxy.
async fn through(proxy: &Proxy) -> Arc<PostgresStore> {
    let url = format!("postgres://postgres@{}/postgres?connections=1&sslmode=disable", proxy.address());
    Arc::new(PostgresStore::connect(&url, Options::default()).await.expect("a store"))
}

async fn store(server: &Postgres) -> PostgresStore {
    let url = format!("{}?connections=2", server.url("postgres"));
    PostgresStore::connect(&url, Options::default()).await.expect("a store")
}

/// Repeats a request as the engine does, for as long as the store may take to come back.
async fn in_the_end<T>(mut request: impl AsyncFnMut() -> Result<T, StoreError>) -> T {
    let began = std::time::Instant::now();
    loop {
        match request().await {
            Ok(answer) => return answer,
            Err(error) => {
                assert!(error.is_transient(), "{error}");
                assert!(began.elapsed() < Duration::from_secs(60), "it does not come back: {error}");
            }
        }
    }
}

async fn until_something_waits_for_a_lock(client: &Client) {
    common::until("something waits for a lock", || async {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        client.query_one(sql, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_whose_answer_is_lost_is_stored_once() {
    let server = Postgres::start().expect("a server");
    let proxy = Proxy::to(server.address()).expect("a proxy");
    let store = through(&proxy).await;
    let (client, locker) = (direct(&server).await, direct(&server).await);
    let envelope = task();
    locker.batch_execute("BEGIN; LOCK TABLE windlass.live").await.expect("locked");
    let first = {
        let (store, push) = (Arc::clone(&store), push(vec![envelope.clone()]));
        tokio::spawn(async move { store.push(&push).await })
    };
    until_something_waits_for_a_lock(&client).await;
    // Everything was sent, the commit included; from here on no answer arrives.
    proxy.stall();
    locker.batch_execute("COMMIT").await.expect("unlocked");
    common::until("the task is stored", || async {
        client.query_one("SELECT count(*) FROM windlass.live", &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 1)
    })
    .await;
    proxy.cut();
    proxy.resume();
    let lost = first.await.expect("it does not panic").expect_err("its answer is lost");
    assert!(matches!(lost, StoreError::Unreachable(_)), "{lost}");
    let again = in_the_end(async || store.push(&push(vec![envelope.clone()])).await).await;
    assert_eq!(again, [Pushed::Exists(envelope.id.clone())]);
    assert_eq!(in_the_end(async || store.counts().await).await.total().ready, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settle_whose_answer_is_lost_is_applied_once() {
    let server = Postgres::start().expect("a server");
    let proxy = Proxy::to(server.address()).expect("a proxy");
    let store = through(&proxy).await;
    let (client, locker) = (direct(&server).await, direct(&server).await);
    store.push(&push(vec![task()])).await.expect("pushed");
    let claim = store.claim(&demand(1)).await.expect("claimed").remove(0);
    locker.batch_execute("BEGIN; SELECT 1 FROM windlass.live FOR UPDATE").await.expect("locked");
    let first = {
        let (store, settled) = (Arc::clone(&store), succeeded(&claim));
        tokio::spawn(async move { store.settle(&[settled]).await })
    };
    until_something_waits_for_a_lock(&client).await;
    proxy.stall();
    locker.batch_execute("COMMIT").await.expect("unlocked");
    common::until("the task has ended", || async {
        client.query_one("SELECT count(*) FROM windlass.finished", &[]).await.is_ok_and(|row| row.get::<_, i64>(0) == 1)
    })
    .await;
    proxy.cut();
    proxy.resume();
    let lost = first.await.expect("it does not panic").expect_err("its answer is lost");
    assert!(matches!(lost, StoreError::Unreachable(_)), "{lost}");
    let again = in_the_end(async || store.settle(&[succeeded(&claim)]).await).await;
    assert_eq!(again, [Settlement::Stale], "it was applied the first time");
    let counts = in_the_end(async || store.counts().await).await.total();
    assert_eq!((counts.succeeded, counts.live()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_crashes_between_claim_and_settle_forgets_nothing() {
    let mut server = Postgres::start().expect("a server");
    let store = store(&server).await;
    store.push(&push((0..50).map(|_| task()).collect())).await.expect("pushed");
    let claims = store.claim(&demand(20)).await.expect("claimed");
    server.restart_immediately().expect("it starts again");
    let settled: Vec<_> = claims.iter().map(succeeded).collect();
    let settlements = in_the_end(async || store.settle(&settled).await).await;
    assert!(settlements.iter().all(|settlement| *settlement == Settlement::Applied), "{settlements:?}");
    let rest: Vec<Claim> = in_the_end(async || store.claim(&demand(50)).await).await;
    assert_eq!(rest.len(), 30, "each of the others once");
    let counts = in_the_end(async || store.counts().await).await.total();
    assert_eq!((counts.succeeded, counts.running, counts.ready), (20, 30, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_that_waits_survives_a_restart_of_the_server() {
    let mut server = Postgres::start().expect("a server");
    let store = Arc::new(store(&server).await);
    let waits = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            loop {
                match store.claim(&Demand { wait: Duration::from_secs(50), ..demand(1) }).await {
                    Ok(claims) => return claims,
                    Err(error) => assert!(error.is_transient(), "{error}"),
                }
            }
        })
    };
    let client = direct(&server).await;
    common::until("somebody waits", || async {
        let sql = "SELECT count(*) FROM windlass.waiting";
        client.query_one(sql, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0)
    })
    .await;
    server.stop(Stop::Immediate);
    server.start_again().expect("it starts again");
    let envelope = task();
    let pushed = push(vec![envelope.clone()]);
    in_the_end(async || store.push(&pushed).await).await;
    let claims = waits.await.expect("it does not panic");
    assert_eq!(claims[0].receipt.id, envelope.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_on_a_silent_network_ends() {
    let server = Postgres::start().expect("a server");
    let proxy = Proxy::to(server.address()).expect("a proxy");
    let store = through(&proxy).await;
    proxy.stall();
    let began = std::time::Instant::now();
    let error = store.push(&push(vec![task()])).await.expect_err("nobody answers");
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(40), "a stuck request ends: {:?}", began.elapsed());
    let began = std::time::Instant::now();
    let error = store.push(&push(vec![task()])).await.expect_err("a new connection is accepted, and nobody answers");
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
    assert!(began.elapsed() < Duration::from_secs(40), "a stuck connection is given up: {:?}", began.elapsed());
    proxy.cut();
    proxy.resume();
    let pushed = push(vec![task()]);
    in_the_end(async || store.push(&pushed).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_connection_is_unreachable_after_a_while_and_comes_back() {
    let server = Postgres::start().expect("a server");
    let proxy = Proxy::to(server.address()).expect("a proxy");
    let store = through(&proxy).await;
    proxy.refuse();
    let pushed = push(vec![task()]);
    let error = store.push(&pushed).await.expect_err("nobody is there");
    assert!(matches!(error, StoreError::Unreachable(_)), "{error}");
    proxy.resume();
    in_the_end(async || store.push(&pushed).await).await;
    assert_eq!(in_the_end(async || store.counts().await).await.total().ready, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_becomes_read_only_is_left_and_found_again() {
    let server = Postgres::start().expect("a server");
    let store = store(&server).await;
    let admin = direct(&server).await;
    admin.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").await.expect("set");
    admin.batch_execute("SELECT pg_reload_conf()").await.expect("reloaded");
    common::until("it is read-only", || async {
        direct(&server).await.batch_execute("CREATE TABLE refused (a int)").await.is_err()
    })
    .await;
    let pushed = push(vec![task()]);
    let error = store.push(&pushed).await.expect_err("it is read-only");
    assert!(matches!(error, StoreError::Unreachable(_)) && error.to_string().contains("read-only"), "{error}");
    admin.batch_execute("SET default_transaction_read_only = off").await.expect("set");
    admin.batch_execute("ALTER SYSTEM RESET default_transaction_read_only").await.expect("reset");
    admin.batch_execute("SELECT pg_reload_conf()").await.expect("reloaded");
    in_the_end(async || store.push(&pushed).await).await;
    assert_eq!(store.counts().await.expect("counts").total().ready, 1);
}
