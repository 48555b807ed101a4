//! Two stores on one file, as two processes have it: neither knows the other.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{claim, demand, done, open, place, push, settle, task};
use windlass_core::StoreError;
use windlass_core::backend::{Backend, Command, Settlement};
use windlass_core::limit::{Limit, LimitChange, Rule};
use windlass_core::{Envelope, Key, QueueName, State};
use windlass_sqlite::{Options, SqliteStore};

const PATIENCE: Duration = Duration::from_secs(10);

/// SQLite has no queue for its lock: without pauses, whoever commits in a tight loop keeps all others out for seconds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_never_rests_does_not_keep_others_from_writing() {
    let place = place();
    let (busy, other) = (Arc::new(open(&place.file)), open(&place.file));
    let stop = Arc::new(AtomicBool::new(false));
    // Many at a time: while some are committed, the next ones wait already, and the file is free for microseconds only.
    let never_rests: Vec<_> = (0..32)
        .map(|_| {
            let (store, stopped) = (Arc::clone(&busy), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut commits = 0;
                while !stopped.load(Ordering::Relaxed) {
                    push(&store, (0..20).map(|_| task()).collect()).await;
                    commits += 1;
                }
                commits
            })
        })
        .collect();
    let mut longest = Duration::ZERO;
    for _ in 0..100 {
        let began = Instant::now();
        push(&other, vec![task()]).await;
        longest = longest.max(began.elapsed());
    }
    stop.store(true, Ordering::Relaxed);
    for busy in never_rests {
        assert!(busy.await.expect("ran") > 0);
    }
    // 20 ms is usual; the limit leaves room for a machine that does other things as well.
    assert!(longest < Duration::from_secs(1), "the longest wait was {longest:?}");
}

#[tokio::test]
async fn a_claim_is_woken_by_a_push_of_another_process() {
    let place = place();
    let (worker, producer) = (open(&place.file), open(&place.file));
    let waiting = demand(1, PATIENCE);
    let pushed = task();
    let (claims, _) = tokio::join!(worker.claim(&waiting), async {
        tokio::task::yield_now().await;
        push(&producer, vec![pushed.clone()]).await
    });
    assert_eq!(claims.unwrap()[0].envelope.id, pushed.id);
}

/// What a claim that finds its gates shut would write would wake the claims that wait in other processes, and theirs this one.
#[tokio::test]
async fn a_claim_that_finds_its_gates_shut_writes_nothing() {
    let place = place();
    let store = open(&place.file);
    let rule = Rule { rate: Some("1/h".parse().unwrap()), ..Rule::default() };
    for subject in ["queue:default", "keys-of-queue:default"] {
        let limit = Limit { subject: subject.parse().unwrap(), rule: rule.clone() };
        assert!(store.limit(&LimitChange::Set(limit)).await.unwrap());
    }
    let keyed = |key| Envelope { key: Some(Key::known(key)), ..task() };
    push(&store, vec![keyed("a"), keyed("b"), keyed("a"), task()]).await;
    assert_eq!(claim(&store, 10).await.len(), 1);
    let watcher = rusqlite::Connection::open(&place.file).unwrap();
    let version = || -> i64 { watcher.query_row("PRAGMA data_version", [], |row| row.get(0)).unwrap() };
    let before = version();
    for _ in 0..3 {
        assert_eq!(claim(&store, 10).await.len(), 0);
    }
    assert_eq!(version(), before);
    push(&store, vec![task()]).await;
    assert_ne!(version(), before, "whatever is written is seen");
}

#[tokio::test]
async fn a_watch_is_woken_by_a_settle_of_another_process() {
    let place = place();
    let (worker, client) = (open(&place.file), open(&place.file));
    let pushed = task();
    push(&client, vec![pushed.clone()]).await;
    let claims = claim(&worker, 1).await;
    let ids = [pushed.id.clone()];
    let (ended, settled) = tokio::join!(client.watch(&ids, PATIENCE), settle(&worker, &claims));
    assert_eq!(settled, [Settlement::Applied]);
    assert_eq!(ended.unwrap()[0].state, State::Succeeded);
}

#[tokio::test]
async fn a_pause_holds_in_every_process_at_once() {
    let place = place();
    let (worker, operator) = (open(&place.file), open(&place.file));
    push(&operator, vec![task(), task()]).await;
    assert_eq!(claim(&worker, 1).await.len(), 1);
    operator.command(&Command::PauseQueue(QueueName::default())).await.unwrap();
    assert_eq!(claim(&worker, 1).await.len(), 0);
    operator.command(&Command::ResumeQueue(QueueName::default())).await.unwrap();
    assert_eq!(claim(&worker, 1).await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_task_is_claimed_by_one_process_alone() {
    let place = place();
    let stores = [Arc::new(open(&place.file)), Arc::new(open(&place.file))];
    push(&stores[0], (0..1000).map(|_| task()).collect()).await;
    let drain = |store: Arc<SqliteStore>| {
        tokio::spawn(async move {
            let mut ids = Vec::new();
            loop {
                let claims = claim(&store, 25).await;
                if claims.is_empty() {
                    return ids;
                }
                assert!(settle(&store, &claims).await.iter().all(|settled| *settled == Settlement::Applied));
                ids.extend(claims.into_iter().map(|claim| claim.receipt.id));
            }
        })
    };
    let (first, second) = (drain(Arc::clone(&stores[0])), drain(Arc::clone(&stores[1])));
    let mut ids = first.await.unwrap();
    ids.extend(second.await.unwrap());
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 1000);
    let total = stores[1].counts().await.unwrap().total();
    assert_eq!((total.succeeded, total.live()), (1000, 0));
}

#[tokio::test]
async fn a_file_that_another_process_holds_is_busy_and_says_what_to_do() {
    let place = place();
    let impatient = Options { busy_timeout: Duration::from_millis(50), ..Options::default() };
    let store = SqliteStore::open(&place.file, impatient).unwrap();
    let other = rusqlite::Connection::open(&place.file).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let pushing = windlass_core::backend::Push { envelopes: vec![task()], groups: Vec::new() };
    let refused = store.push(&pushing).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Busy(text) if text.contains("raise the busy timeout")), "{refused}");
    assert!(refused.is_transient());
    other.execute_batch("COMMIT").unwrap();
    push(&store, vec![task()]).await;
}

#[tokio::test]
async fn a_process_stops_writing_when_a_newer_program_has_migrated_the_file() {
    let place = place();
    let store = open(&place.file);
    push(&store, vec![task()]).await;
    let newer = rusqlite::Connection::open(&place.file).unwrap();
    newer.execute("UPDATE windlass_meta SET value = 99 WHERE key = 'version'", []).unwrap();
    let pushing = windlass_core::backend::Push { envelopes: vec![task()], groups: Vec::new() };
    for _ in 0..2 {
        let refused = store.push(&pushing).await.unwrap_err();
        assert!(matches!(&refused, StoreError::Broken(text) if text.contains("upgrade this program")), "{refused}");
    }
}

#[tokio::test]
async fn reading_does_not_wait_for_a_process_that_writes() {
    let place = place();
    let store = open(&place.file);
    push(&store, vec![task()]).await;
    let other = rusqlite::Connection::open(&place.file).unwrap();
    other.execute_batch("BEGIN IMMEDIATE; UPDATE windlass_task SET priority = 9").unwrap();
    assert_eq!(store.counts().await.unwrap().total().ready, 1);
    other.execute_batch("ROLLBACK").unwrap();
}

/// A reader that stays keeps SQLite from emptying the log; when it has gone, the log shrinks again.
#[tokio::test]
async fn the_log_is_short_again_after_a_long_reader_has_gone() {
    let place = place();
    let store = open(&place.file);
    let reader = rusqlite::Connection::open(&place.file).unwrap();
    push(&store, vec![task()]).await;
    reader.execute_batch("BEGIN").unwrap();
    reader.query_row("SELECT count(*) FROM windlass_task", [], |_| Ok(())).unwrap();
    let heavy = || {
        let mut task = task();
        let text = format!(r#"{{"text":"{}"}}"#, "x".repeat(1_000_000));
        task.args = windlass_core::Args::parse(&text).unwrap();
        task
    };
    for _ in 0..10 {
        push(&store, (0..8).map(|_| heavy()).collect()).await;
    }
    let wal = place.folder.path().join("tasks.db-wal");
    let size = || std::fs::metadata(&wal).unwrap().len();
    assert!(size() > 64 << 20, "the reader keeps the log: {}", size());
    reader.execute_batch("COMMIT").unwrap();
    let began = Instant::now();
    while size() > 32 << 20 {
        assert!(began.elapsed() < PATIENCE, "the log has still {} bytes", size());
        let claims = claim(&store, 1).await;
        store.settle(&claims.iter().map(done).collect::<Vec<_>>()).await.unwrap();
        push(&store, vec![task()]).await;
    }
}
