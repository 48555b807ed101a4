//! A store that an older version has written: its tasks go on, and the limits of their keys hold for them.

mod common;

use std::time::Duration;

use common::{Ask as _, demand, push_of, redis, settled, task};
use windlass_core::backend::{Backend, Claim, Command, Target, TaskAction};
use windlass_core::limit::{Limit, LimitChange, Rule};
use windlass_core::view::{Filter, Page};
use windlass_core::{Envelope, Key, State, TaskName, Verdict};
use windlass_redis::{Location, Options, RedisStore};
use windlass_servers::Redis;

/// The mark of a task that is in a lane of its key.
const KEYED: u8 = 0x08;

async fn opened(server: &Redis) -> RedisStore {
    let location: Location = server.url().parse().expect("a URL");
    RedisStore::open(location, Options::default()).await.unwrap_or_else(|error| panic!("{error}"))
}

/// Puts everything where version 1 had it: no lanes of keys, no marks, nothing about limits.
fn as_version_1(server: &Redis) {
    let mut server =
        redis::Client::open(server.url()).and_then(|client| client.get_connection()).expect("a connection");
    let mut ask = |words: &[&[u8]]| -> redis::Value {
        let mut cmd = redis::cmd(std::str::from_utf8(words[0]).expect("a command"));
        words[1..].iter().for_each(|word| {
            cmd.arg(*word);
        });
        cmd.query(&mut server).expect("the server answers")
    };
    let rows: Vec<(Vec<u8>, Vec<u8>)> =
        redis::from_redis_value(ask(&[b"HGETALL", b"{windlass}:task"])).expect("packed tasks");
    for (row, mut packed) in rows {
        packed[3] &= !KEYED;
        ask(&[b"HSET", b"{windlass}:task", &row, &packed]);
    }
    let lanes: Vec<String> = redis::from_redis_value(ask(&[b"KEYS", b"{windlass}:ready:default * *"])).expect("keys");
    for lane in lanes {
        let plain = lane.rsplit_once(' ').expect("it has a key").0;
        ask(&[b"ZUNIONSTORE", plain.as_bytes(), b"2", plain.as_bytes(), lane.as_bytes()]);
        ask(&[b"DEL", lane.as_bytes()]);
        let name = plain.rsplit_once(' ').expect("it has a name").1;
        ask(&[b"SADD", b"{windlass}:lanes:default", name.as_bytes()]);
    }
    let sets: Vec<String> = redis::from_redis_value(ask(&[b"KEYS", b"{windlass}:keys:*"])).expect("keys");
    for key in sets {
        ask(&[b"DEL", key.as_bytes()]);
    }
    ask(&[b"DEL", b"{windlass}:names:default", b"{windlass}:keyed:default", b"{windlass}:rules", b"{windlass}:turn"]);
    ask(&[b"HSET", b"{windlass}:meta", b"version", b"1"]);
}

fn keyed(key: &str) -> Envelope {
    Envelope { key: Some(Key::known(key)), ..task("work") }
}

async fn claims(store: &RedisStore, max: usize) -> Vec<Claim> {
    store.claim(&demand(max, Duration::ZERO)).await.expect("the store answers")
}

/// A store of version 1 with these tasks, opened by this version.
async fn aged(server: &Redis, tasks: impl IntoIterator<Item = Envelope>) -> RedisStore {
    let store = opened(server).await;
    store.push(&push_of(tasks)).await.expect("the store answers");
    as_version_1(server);
    drop(store);
    let store = opened(server).await;
    let checks = store.info().await.expect("the store answers").checks;
    assert!(checks.iter().any(|check| check.name == "schema" && check.detail == "version 2"), "{checks:?}");
    store
}

async fn limit(store: &RedisStore, subject: &str, rule: &str) {
    let subject = subject.parse().expect("a subject");
    let rule = Rule::from_text(rule).expect("a rule");
    assert!(store.limit(&LimitChange::Set(Limit { subject, rule })).await.expect("the store answers"));
}

#[tokio::test]
async fn keyed_tasks_of_an_older_version_are_taken_where_they_are() {
    let server = redis();
    let other = Envelope { name: TaskName::known("other"), ..keyed("b") };
    let store = aged(&server, [keyed("a"), task("work"), other]).await;
    let taken = claims(&store, 10).await;
    assert_eq!(taken.len(), 3);
    // Given back, they are with their keys.
    store
        .settle(&taken.iter().map(|claim| settled(claim, Verdict::Released)).collect::<Vec<_>>())
        .await
        .expect("settle");
    assert_eq!(store.list(&Filter::in_states([State::Ready]), &Page::first(10)).await.expect("list").tasks.len(), 3);
    let newer = [keyed("a"), keyed("a")];
    store.push(&push_of(newer)).await.expect("the store answers");
    let keys: Vec<_> = claims(&store, 3).await.iter().map(|claim| claim.envelope.key.clone()).collect();
    assert_eq!(keys.iter().filter(|key| **key == keyed("a").key).count(), 1, "{keys:?}");
}

#[tokio::test]
async fn keyed_tasks_of_an_older_version_take_turns_with_newer_ones() {
    let server = redis();
    let store = aged(&server, (0..600).map(|_| keyed("a"))).await;
    store.push(&push_of((0..20).map(|_| keyed("b")))).await.expect("the store answers");
    let taken = claims(&store, 20).await;
    let of_b = taken.iter().filter(|claim| claim.envelope.key == keyed("b").key).count();
    assert_eq!((taken.len(), of_b), (20, 10));
    let mut left = 620 - taken.len();
    while left > 0 {
        let more = claims(&store, 100).await.len();
        assert!(more > 0, "{left} are left");
        left -= more;
    }
}

#[tokio::test]
async fn the_limits_of_a_key_hold_for_tasks_of_an_older_version() {
    let server = redis();
    let store = opened(&server).await;
    store.push(&push_of((0..4).map(|_| keyed("a")))).await.expect("the store answers");
    let running = claims(&store, 1).await;
    as_version_1(&server);
    let store = opened(&server).await;
    limit(&store, "keys-of-queue:default", r#"{"concurrency":2}"#).await;
    assert_eq!(claims(&store, 10).await.len(), 1, "one runs since before");
    store.settle(&[settled(&running[0], common::succeeded())]).await.expect("the store answers");
    assert_eq!(claims(&store, 10).await.len(), 1);
    assert_eq!(store.limits().await.expect("the store answers").gates[0].running, Some(2));
}

#[tokio::test]
async fn what_runs_is_counted_anew_when_an_older_version_has_not_counted() {
    let server = redis();
    let store = opened(&server).await;
    limit(&store, "queue:default", r#"{"concurrency":2}"#).await;
    store.push(&push_of((0..4).map(|_| keyed("a")))).await.expect("the store answers");
    assert_eq!(claims(&store, 1).await.len(), 1);
    server.ask(&["HSET", "{windlass}:running", "queue:default", "9"]);
    assert_eq!(claims(&store, 1).await.len(), 0);
    server.ask(&["HSET", "{windlass}:rules", "counted", "1"]);
    store.tick(&common::node()).await.expect("the store answers");
    assert_eq!(claims(&store, 10).await.len(), 1);
}

#[tokio::test]
async fn what_an_older_version_has_cancelled_is_found() {
    let server = redis();
    let store = opened(&server).await;
    let envelopes: Vec<Envelope> = (0..3).map(|_| task("work")).collect();
    let ids: Vec<_> = envelopes.iter().map(|envelope| envelope.id.clone()).collect();
    store.push(&push_of(envelopes)).await.expect("pushed");
    let command = Command::Tasks { target: Target::Ids(ids[..2].to_vec()), action: TaskAction::Cancel };
    store.command(&command).await.expect("cancelled");
    drop(store);
    let mut client =
        redis::Client::open(server.url()).and_then(|client| client.get_connection()).expect("a connection");
    let forgotten: i64 = redis::cmd("DEL").arg("{windlass}:stopped").query(&mut client).expect("the server answers");
    let unmarked: i64 =
        redis::cmd("HDEL").arg("{windlass}:meta").arg("stopped").query(&mut client).expect("the server answers");
    assert_eq!((forgotten, unmarked), (1, 1));
    let store = opened(&server).await;
    let filter = Filter::in_states([State::Cancelled, State::Expired]);
    let listed = store.list(&filter, &Page::first(10)).await.expect("listed").tasks;
    let found: Vec<_> = listed.into_iter().map(|record| record.envelope.id).collect();
    assert_eq!(found, [ids[1].clone(), ids[0].clone()]);
}
