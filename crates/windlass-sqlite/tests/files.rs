//! The file under the store: where it may be, and what happens when it is not as it should be.

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{claim, open, place, push, settle, task};
use rusqlite::Connection;
use windlass_core::backend::{Backend, Settlement};
use windlass_core::view::{Filter, Health, Page};
use windlass_core::{Args, DeadReason, State, StoreError};
use windlass_sqlite::{Migrations, Options, SCHEMA_VERSION, SqliteStore};

fn refused(path: impl AsRef<std::path::Path>) -> String {
    match SqliteStore::open(path, Options::default()) {
        Err(StoreError::Broken(text)) => text,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn tasks_are_there_after_the_store_was_opened_again() {
    let place = place();
    let pushed = task();
    push(&open(&place.file), vec![pushed.clone()]).await;
    let store = open(&place.file);
    let claims = claim(&store, 10).await;
    assert_eq!(claims.iter().map(|claim| &claim.envelope.id).collect::<Vec<_>>(), [&pushed.id]);
    assert_eq!(settle(&store, &claims).await, [Settlement::Applied]);
    assert_eq!(store.counts().await.unwrap().total().succeeded, 1);
}

#[tokio::test]
async fn a_store_that_is_closed_leaves_everything_in_its_file() {
    let place = place();
    let store = open(&place.file);
    push(&store, vec![task()]).await;
    drop(store);
    let log = place.file.with_extension("db-wal");
    assert_eq!(std::fs::metadata(&log).map_or(0, |log| log.len()), 0, "{}", log.display());
    let copy = place.folder.path().join("copy.db");
    std::fs::copy(&place.file, &copy).unwrap();
    assert_eq!(open(&copy).counts().await.unwrap().total().ready, 1);
}

#[tokio::test]
async fn the_file_is_for_its_user_alone() {
    let place = place();
    let store = open(&place.file);
    push(&store, vec![task()]).await;
    for file in std::fs::read_dir(place.folder.path()).unwrap().map(Result::unwrap) {
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
    }
}

#[test]
fn a_path_that_cannot_hold_a_store_says_what_to_do() {
    let place = place();
    let folder = place.folder.path();
    assert!(refused(folder).contains("is a directory; name a file in it"));
    let missing = refused(folder.join("no/such/tasks.db"));
    assert!(missing.contains("does not exist; create it with `mkdir -p"), "{missing}");
    std::fs::write(folder.join("notes.txt"), "this is no database, and long enough to be sure of it. ".repeat(100))
        .unwrap();
    let foreign = refused(folder.join("notes.txt"));
    assert!(foreign.contains("not a SQLite database") && foreign.contains("restore a backup"), "{foreign}");
}

#[test]
fn a_newer_file_names_both_versions_and_says_to_upgrade() {
    let place = place();
    drop(open(&place.file));
    let db = Connection::open(&place.file).unwrap();
    db.execute("UPDATE windlass_meta SET value = 99 WHERE key = 'version'", []).unwrap();
    let text = refused(&place.file);
    assert!(text.contains("version 99") && text.contains(&format!("up to {SCHEMA_VERSION}")), "{text}");
    assert!(text.contains("upgrade this program"), "{text}");
}

#[test]
fn migrations_are_shown_applied_once_or_refused() {
    let place = place();
    assert_eq!(
        SqliteStore::pending(&place.file).unwrap().steps,
        ["create the tables", "add limits, turns of keys, memos and notes"]
    );
    assert!(!place.file.exists(), "looking changes nothing");
    assert_eq!(SqliteStore::migrate(&place.file).unwrap(), SCHEMA_VERSION as usize);
    assert_eq!(SqliteStore::migrate(&place.file).unwrap(), 0);
    let pending = SqliteStore::pending(&place.file).unwrap();
    assert_eq!((pending.version, pending.steps.len()), (SCHEMA_VERSION, 0));
    let careful = Options { migrations: Migrations::Refuse, ..Options::default() };
    SqliteStore::open(&place.file, careful).expect("nothing is left to do");
}

#[test]
fn several_processes_may_create_the_file_at_once() {
    let place = place();
    std::thread::scope(|scope| {
        let opened: Vec<_> =
            (0..8).map(|_| scope.spawn(|| SqliteStore::open(&place.file, Options::default()))).collect();
        for store in opened {
            store.join().unwrap().expect("each one finds or creates the tables");
        }
    });
}

#[tokio::test]
async fn an_application_may_keep_its_own_tables_in_the_file() {
    let place = place();
    let db = Connection::open(&place.file).unwrap();
    db.execute_batch("CREATE TABLE orders (id INTEGER PRIMARY KEY); PRAGMA user_version = 7").unwrap();
    let store = open(&place.file);
    push(&store, vec![task()]).await;
    db.execute("INSERT INTO orders VALUES (1)", []).unwrap();
    assert_eq!(store.counts().await.unwrap().total().ready, 1);
}

#[tokio::test]
async fn a_full_file_refuses_what_does_not_fit_and_goes_on_when_there_is_space() {
    let place = place();
    let small = Options { size_max: Some(512 * 1024), ..Options::default() };
    let store = SqliteStore::open(&place.file, small).unwrap();
    let heavy = || {
        let mut task = task();
        task.args = Args::parse(&format!(r#"{{"text":"{}"}}"#, "x".repeat(100_000))).unwrap();
        task
    };
    let mut stored = 0;
    let refused = loop {
        match store.push(&windlass_core::backend::Push { envelopes: vec![heavy()], groups: vec![] }).await {
            Ok(_) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, StoreError::NoSpace(_)), "{refused}");
    assert!((2..=5).contains(&stored), "{stored}");
    // Nothing is half-written, and what needs little space goes on.
    assert_eq!(store.counts().await.unwrap().total().ready, stored);
    let claims = claim(&store, 10).await;
    settle(&store, &claims).await;
    assert_eq!(store.counts().await.unwrap().total().succeeded, stored);
    let discard = windlass_core::backend::Command::Tasks {
        target: windlass_core::backend::Target::Matching { filter: Filter::all(), after: None },
        action: windlass_core::backend::TaskAction::Discard,
    };
    assert_eq!(store.command(&discard).await.unwrap().changed, stored);
    push(&store, vec![heavy()]).await;
    assert_eq!(store.counts().await.unwrap().total().ready, 1);
}

#[tokio::test]
async fn a_file_that_was_deleted_takes_no_more_pushes() {
    let place = place();
    let store = open(&place.file);
    push(&store, vec![task()]).await;
    std::fs::remove_file(&place.file).unwrap();
    let refused =
        store.push(&windlass_core::backend::Push { envelopes: vec![task()], groups: vec![] }).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Broken(text) if text.contains("deleted or moved") && text.contains("put it back")),
        "{refused}"
    );
    assert!(matches!(store.counts().await, Err(StoreError::Broken(_))));
}

#[tokio::test]
async fn a_file_that_was_replaced_takes_no_more_pushes() {
    let place = place();
    let store = open(&place.file);
    let other = place.folder.path().join("other.db");
    drop(open(&other));
    std::fs::rename(&other, &place.file).unwrap();
    let refused =
        store.push(&windlass_core::backend::Push { envelopes: vec![task()], groups: vec![] }).await.unwrap_err();
    assert!(matches!(&refused, StoreError::Broken(text) if text.contains("was replaced")), "{refused}");
}

#[tokio::test]
async fn a_claim_that_waits_hears_that_the_file_is_gone() {
    let place = place();
    let store = open(&place.file);
    let demand = common::demand(1, std::time::Duration::from_secs(30));
    let waiting = async { store.claim(&demand).await };
    let removing = async {
        tokio::task::yield_now().await;
        std::fs::remove_file(&place.file).unwrap();
    };
    let (claimed, ()) = tokio::join!(waiting, removing);
    assert!(matches!(claimed, Err(StoreError::Broken(_))), "{claimed:?}");
}

#[tokio::test]
async fn a_task_that_cannot_be_read_becomes_a_dead_letter() {
    let place = place();
    let store = open(&place.file);
    let (damaged, sound) = (task(), task());
    push(&store, vec![damaged.clone(), sound.clone()]).await;
    let db = Connection::open(&place.file).unwrap();
    db.execute("UPDATE windlass_task SET body = '{\"v\":1,\"args' WHERE seq = 1", []).unwrap();
    let claims = claim(&store, 10).await;
    assert_eq!(claims.iter().map(|claim| &claim.envelope.id).collect::<Vec<_>>(), [&sound.id]);
    let found = store.find(std::slice::from_ref(&damaged.id)).await.unwrap().remove(0).expect("it is known");
    assert_eq!((found.state, found.reason), (State::Dead, Some(DeadReason::Malformed)));
    assert_eq!(store.list(&Filter::in_states([State::Dead]), &Page::first(10)).await.unwrap().tasks.len(), 1);
}

#[tokio::test]
async fn a_damaged_file_is_an_error_that_says_what_to_do() {
    let place = place();
    let store = open(&place.file);
    push(&store, (0..500).map(|_| task()).collect()).await;
    drop(store);
    let db = Connection::open(&place.file).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(db);
    let mut bytes = std::fs::read(&place.file).unwrap();
    let from = bytes.len() / 4;
    bytes[from..].fill(0x5a);
    std::fs::write(&place.file, bytes).unwrap();
    let outcome = match SqliteStore::open(&place.file, Options::default()) {
        Ok(store) => store.claim(&common::demand(500, std::time::Duration::ZERO)).await.map(|claims| claims.len()),
        Err(error) => Err(error),
    };
    assert!(matches!(&outcome, Err(StoreError::Broken(text)) if text.contains("damaged")), "{outcome:?}");
}

#[tokio::test]
async fn the_store_knows_how_well_it_is() {
    let place = place();
    let store = open(&place.file);
    push(&store, vec![task()]).await;
    let info = store.info().await.unwrap();
    assert_eq!((info.kind, info.durability.as_str()), ("sqlite", "survives power loss: WAL, synchronous=FULL"));
    assert!(info.size_bytes.is_some_and(|size| size > 4096));
    let health = |name: &str| info.checks.iter().find(|check| check.name == name).map(|check| check.health);
    for name in ["schema", "log size", "file mode", "space after pruning"] {
        assert_eq!(health(name), Some(Health::Good), "{name}: {:?}", info.checks);
    }
    assert_eq!(store.soundness().await.unwrap().health, Health::Good);
}
