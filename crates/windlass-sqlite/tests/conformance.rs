//! The contract of a task store, against SQLite: two stores on one file, as two processes would have it.

use std::sync::Arc;

use windlass_sqlite::{Options, SqliteStore};
use windlass_testkit::conformance::{Opened, Setup};

async fn open(setup: Setup) -> Opened {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let options = Options { retention: setup.retention, clock: Arc::new(setup.clock), ..Options::default() };
    let file = folder.path().join("tasks.db");
    let store = SqliteStore::open(&file, options.clone()).expect("a new file");
    let second = SqliteStore::open(&file, options).expect("the same file");
    Opened::new(store).with_second(second).keep(folder)
}

windlass_testkit::conformance!(open);
