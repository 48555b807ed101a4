//! Servers that cannot be used: each is refused with one line that says what to do.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use common::{Ask as _, free_port, open, redis, redis_with, refused};
use windlass_core::{Backend, StoreError};
use windlass_redis::{Eviction, Location, Options, RedisStore};
use windlass_servers::redis_url;

#[tokio::test]
async fn a_wrong_password_is_refused_without_showing_it() {
    let redis = redis_with(&["--requirepass", "secret"]);
    let address = redis.address();
    for (url, part) in [
        (format!("redis://{address}"), "wants a password"),
        (format!("redis://:guessed@{address}"), "refused the user name or the password"),
        (format!("redis://me:guessed@{address}"), "refused the user name or the password"),
    ] {
        let error = refused(&url).await;
        let text = error.to_string();
        assert!(matches!(error, StoreError::Denied(_)) && text.contains(part), "{text}");
        assert!(!text.contains("guessed"), "{text}");
    }
    let store = open(&format!("redis://:secret@{address}")).await;
    let info = store.info().await.expect("the store answers");
    assert!(!info.location.contains("secret"), "{}", info.location);
}

#[tokio::test]
async fn a_user_without_rights_is_told_which_are_missing() {
    let redis = redis();
    let address = redis.address();
    redis.ask(&["ACL", "SETUSER", "weak", "on", ">pw", "~other:*", "+@all"]);
    let text = refused(&format!("redis://weak:pw@{address}")).await.to_string();
    assert!(text.contains("does not allow this user") && text.contains("~{NAMESPACE}"), "{text}");
    redis.ask(&["ACL", "SETUSER", "silent", "on", ">pw", "~*", "&*", "+@all", "-info"]);
    let text = refused(&format!("redis://silent:pw@{address}")).await.to_string();
    assert!(text.contains("info"), "{text}");
}

#[tokio::test]
async fn a_replica_is_refused_and_its_primary_named() {
    let primary = redis();
    let port = primary.address().port().to_string();
    let replica = redis_with(&["--replicaof", "127.0.0.1", &port]);
    let text = refused(&replica.url()).await.to_string();
    assert!(text.contains("read-only replica of `127.0.0.1`") && text.contains("primary"), "{text}");
}

#[tokio::test]
async fn a_server_that_is_too_old_is_named_with_its_version() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("it has an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer_as_redis_6_0(stream);
        }
    });
    let text = refused(&format!("redis://{address}")).await.to_string();
    assert!(text.contains("Redis 6.0.16") && text.contains("6.2"), "{text}");
}

/// Answers requests the way an old server does.
fn answer_as_redis_6_0(mut stream: std::net::TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().expect("a socket can be cloned")).lines();
    let mut line = || lines.next().and_then(Result::ok);
    while let Some(head) = line() {
        let words: Vec<String> = (0..head.trim_start_matches('*').parse().unwrap_or(0))
            .filter_map(|_: usize| {
                line()?;
                line()
            })
            .collect();
        let info = "redis_version:6.0.16\r\nrole:master\r\n";
        let answer = match words.first().map(String::as_str) {
            Some("HELLO") => "%2\r\n+server\r\n+redis\r\n+proto\r\n:3\r\n".to_owned(),
            Some("INFO") => format!("${}\r\n{info}\r\n", info.len()),
            _ => "+OK\r\n".to_owned(),
        };
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_port_without_tls_is_told_from_one_that_is_dead() {
    let redis = redis();
    let error = refused(&format!("rediss://{}", redis.address())).await;
    let text = error.to_string();
    assert!(matches!(error, StoreError::Unreachable(_)) && text.contains("TLS port"), "{text}");
    let error = refused(&format!("redis://127.0.0.1:{}", free_port())).await;
    let text = error.to_string();
    assert!(matches!(error, StoreError::Unreachable(_)) && text.contains("nothing listens"), "{text}");
}

#[tokio::test]
async fn an_unknown_host_is_named() {
    let error = refused("redis://:secret@no-such-host.invalid").await;
    let text = error.to_string();
    assert!(matches!(error, StoreError::Unreachable(_)), "{text}");
    assert!(text.contains("no-such-host.invalid") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn an_authority_that_cannot_be_read_is_named() {
    let text = refused("rediss://127.0.0.1:1?ca=/nowhere/ca.pem").await.to_string();
    assert!(text.contains("/nowhere/ca.pem"), "{text}");
}

#[tokio::test]
async fn a_server_that_drops_keys_is_refused_unless_somebody_insists() {
    let redis = redis_with(&["--maxmemory-policy", "allkeys-lru"]);
    let text = refused(&redis.url()).await.to_string();
    assert!(text.contains("allkeys-lru") && text.contains("noeviction"), "{text}");
    let options = Options { eviction: Eviction::Allow, ..Options::default() };
    let location: Location = redis.url().parse().expect("a URL");
    let store = RedisStore::open(location, options).await.expect("somebody insists");
    let checks = store.info().await.expect("the store answers").checks;
    assert!(checks.iter().any(|check| check.name == "eviction" && check.health == windlass_core::view::Health::Bad));
}

#[tokio::test]
async fn the_store_of_a_newer_version_is_refused() {
    let redis = redis();
    redis.ask(&["HSET", "{windlass}:meta", "version", "7"]);
    let text = refused(&redis.url()).await.to_string();
    assert!(text.contains("version 7") && text.contains("upgrade"), "{text}");
}

#[tokio::test]
async fn a_server_without_persistence_is_reported() {
    let redis = redis_with(&["--appendonly", "no"]);
    let store = open(&redis.url()).await;
    let info = store.info().await.expect("the store answers");
    assert!(info.durability.contains("nothing"), "{}", info.durability);
    assert!(info.checks.iter().any(|check| check.name == "durability" && check.detail.contains("appendonly yes")));
}

#[tokio::test]
async fn what_a_store_survives_is_told_by_what_the_server_does() {
    let store = open(&redis_url()).await;
    let info = store.info().await.expect("the store answers");
    assert!(
        info.durability.contains("a stop of the server; a crash on a slow disk or a power cut may lose up to 2 s"),
        "{}",
        info.durability
    );
    let always = redis_with(&["--appendfsync", "always"]);
    let info = open(&always.url()).await.info().await.expect("the store answers");
    assert!(info.durability.contains("power cut (append-only file, synced each time)"), "{}", info.durability);
}
